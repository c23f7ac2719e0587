"""Upload files that the group of the partner may change."""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_sftp_backend.operators import SFTPUploadOperator

with DAG("group_writable_upload", schedule=None, params={"data": "/data"}) as dag:
    SFTPUploadOperator(task_id="send", pattern="{{ params.data }}/reports/*.csv", target="shared/", mode=0o664)
