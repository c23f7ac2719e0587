"""Wait for files without occupying a worker.

The wait is deferred to the triggerer, where all waits on a server share one connection.

The sensor's result is the list of files found, which the next task takes as it is.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, task

from airflow_sftp_backend.sensors import SFTPFileSensor

with DAG(dag_id="deferred_wait", schedule=None, catchup=False, doc_md=__doc__) as dag:
    arrived = SFTPFileSensor(
        task_id="wait_for_archive", pattern="archive/**", min_files=1, deferrable=True, poke_interval=1, timeout=300
    )

    @task
    def count(files: list[dict[str, Any]]) -> int:
        """Bytes that have arrived."""
        return sum(file["size"] for file in files)

    count(arrived.output)  # type: ignore[arg-type] # an XComArg stands for what it will hold
