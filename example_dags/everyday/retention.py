"""Delete files older than 30 days, and directories that become empty."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from airflow_sftp_backend.operators import SFTPDeleteOperator

with DAG("retention", schedule=None) as dag:
    SFTPDeleteOperator(task_id="retain", pattern="history/**", older_than=timedelta(days=30), empty_folders=True)
