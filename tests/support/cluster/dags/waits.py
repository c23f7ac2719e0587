"""DAGs that wait for files as users' DAGs do."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, task

from airflow_sftp_backend.assets import new_files
from airflow_sftp_backend.sensors import SFTPFileSensor
from airflow_sftp_backend.triggers import SFTPNewFilesTrigger

with DAG("wait_many", schedule=None, params={"conn_id": "", "names": []}):

    @task
    def names(**context: Any) -> list[str]:
        """Return the names of the files."""
        paths: list[str] = context["params"]["names"]
        return paths

    SFTPFileSensor.partial(
        task_id="wait",
        sftp_conn_id="{{ params.conn_id }}",
        deferrable=True,
        poke_interval=2,
        timeout=900,
        retries=2,
        retry_delay=timedelta(seconds=1),
    ).expand(path=names())

watched = SFTPNewFilesTrigger("inbox/", sftp_conn_id="watched", poke_interval=2, stable_for=1)
inbox = Asset("watched_inbox", watchers=[AssetWatcher(name="new_files", trigger=watched)])

# A test creates the connection before it lets the watch begin.
with DAG("watch", schedule=[inbox], catchup=False, is_paused_upon_creation=True):

    @task(inlets=[inbox], retries=2, retry_delay=timedelta(seconds=1))
    def arrived(**context: Any) -> list[str]:
        """Return the paths of the files that have started this run."""
        return [row["path"] for row in new_files(context)]  # type: ignore[arg-type] # Context is what it is at run time

    arrived()
