"""Wait for files, and process them in one function."""

from __future__ import annotations

from airflow.sdk import DAG, task

from airflow_sftp_backend.hooks import FoundFile

with DAG("sensor_as_decorator", schedule=None) as dag:

    @task.sftp_files(pattern="inbox/*.csv", stable_for=1, poke_interval=1, deferrable=True)
    def load(files: list[FoundFile]) -> int:
        """Add the sizes of the files."""
        return sum(file["size"] for file in files)

    load()  # type: ignore[call-arg] # the decorator passes the files
