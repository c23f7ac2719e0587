"""Create, list and delete directories."""

from __future__ import annotations

from airflow.sdk import DAG, task

from airflow_sftp_backend.hooks import SFTPBackendHook
from airflow_sftp_backend.operators import SFTPDeleteOperator

with DAG("directories", schedule=None) as dag:

    @task
    def prepare() -> list[str]:
        """Create a directory, and return the names of all directories beside it."""
        with SFTPBackendHook().backend() as backend:
            backend.make_folder("projects/2026")
            return [folder.name for folder in backend.list_folders("projects")]

    prepare() >> SFTPDeleteOperator(task_id="delete", path="projects/2024/")
