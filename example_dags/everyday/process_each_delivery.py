"""Wait for CSV files with .done files, and process each file."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, task

from airflow_sftp_backend.hooks import SFTPBackendHook
from airflow_sftp_backend.sensors import SFTPFileSensor

with DAG("process_each_delivery", schedule=None) as dag:
    wait = SFTPFileSensor(task_id="wait", pattern="deliveries/*.csv", done_file="{name}.done", deferrable=True)

    @task
    def process(file: dict[str, Any]) -> int:
        """Count the lines of a file."""
        with SFTPBackendHook().backend() as backend:
            return len(backend.read_text(file["path"]).splitlines())

    process.expand(file=wait.output)
