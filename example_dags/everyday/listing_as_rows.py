"""Return a listing as rows, and download each in its own task."""

from __future__ import annotations

from airflow.sdk import DAG, task

from airflow_sftp_backend.hooks import FoundFile, SFTPBackendHook
from airflow_sftp_backend.operators import SFTPDownloadOperator

with DAG("listing_as_rows", schedule=None, params={"data": "/data"}) as dag:

    @task
    def find_files() -> list[FoundFile]:
        """Return path, size and time of each file."""
        with SFTPBackendHook() as hook:
            return hook.find("published/**")

    target = "{{ params.data }}/each/"
    SFTPDownloadOperator.partial(task_id="fetch", target=target).expand(source=find_files())
