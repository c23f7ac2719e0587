"""Start when files arrive in the inbox.

Each new file is processed and then archived, independent of the others.

The triggerer watches on one connection; a run is started with the list of all files that are new. A file that cannot be
processed stays in the inbox and is not reported again: clear its task when the cause is mended. To have one processed
again that is archived, touch it before you put it back. After a restart of the triggerer, Airflow before 3.3 reports
all existing files again. Airflow 3.3 can send the last batch again, which `new_files` drops.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, task, task_group

from airflow_sftp_backend.assets import new_files
from airflow_sftp_backend.hooks import SFTPBackendHook
from airflow_sftp_backend.operators import SFTPMoveOperator
from airflow_sftp_backend.triggers import SFTPNewFilesTrigger

log = logging.getLogger(__name__)

MAPPED = 1000  # Airflow maps over no more than 1024 items (core.max_map_length)

inbox = Asset(
    "partner_inbox",
    watchers=[AssetWatcher(name="new_files", trigger=SFTPNewFilesTrigger("inbox/", poke_interval=5, stable_for=5))],
)

with DAG(dag_id="watch_inbox", schedule=[inbox], catchup=False, doc_md=__doc__) as dag:

    @task(inlets=[inbox])
    def arrived(**context: Any) -> list[list[dict[str, Any]]]:
        """Return the rows of the files that started this run.

        Each group has one file, or several if there are very many files.
        """
        files = new_files(context)  # type: ignore[arg-type] # Context is what it is at run time
        return [[dict(row) for row in files[first::MAPPED]] for first in range(min(len(files), MAPPED))]

    @task
    def process(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Count the lines of files.

        Replace this by your own processing. The rows are the files to archive.
        """
        with SFTPBackendHook().backend() as backend:
            for file in files:
                log.info("%s has %d lines", file["path"], len(backend.read_bytes(file["path"]).splitlines()))
        return files

    @task_group
    def handle(files: list[dict[str, Any]]) -> None:
        """One file from the inbox to the archive."""
        SFTPMoveOperator(
            task_id="archive",
            source=process(files),
            target="archive/",
            rename="{date}/{name}",
            if_exists="number",
        )

    handle.expand(files=arrived())
