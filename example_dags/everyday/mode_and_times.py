"""Upload files with a mode, and keep the times of their sources."""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_sftp_backend.operators import SFTPUploadOperator

with DAG("mode_and_times", schedule=None, params={"data": "/data"}) as dag:
    SFTPUploadOperator(
        task_id="send", pattern="{{ params.data }}/reports/*.csv", target="private/", mode=0o640, keep_times=True
    )
