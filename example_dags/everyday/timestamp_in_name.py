"""Upload files with the time of the run in their names.

The time is the same in every attempt.
"""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_sftp_backend.operators import SFTPUploadOperator

with DAG("timestamp_in_name", schedule=None, params={"data": "/data"}) as dag:
    SFTPUploadOperator(
        task_id="send",
        pattern="{{ params.data }}/reports/*.csv",
        target="reports/",
        rename="{stem}-{timestamp}{suffix}",
    )
