"""Download the files that have changed since the last successful run.

The first run takes all files.
"""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_sftp_backend.operators import SFTPDownloadOperator

with DAG("files_since_last_run", schedule=None, params={"data": "/data"}) as dag:
    SFTPDownloadOperator(
        task_id="fetch",
        pattern="published/**",
        target="{{ params.data }}/published/",
        newer_than="{{ prev_start_date_success or '' }}",
        if_exists="replace",
    )
