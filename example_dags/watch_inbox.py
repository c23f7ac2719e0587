"""Start when files arrive: each new file of the inbox is processed by a mapped task of its own and archived.

The triggerer watches on one connection; a run is started with the list of all files that are new. Needs Airflow 3.3 to
be sure that a restart of the triggerer reports no file again.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, task

from airflow_sftp_backend.arrivals import new_files
from airflow_sftp_backend.hooks import SFTPBackendHook
from airflow_sftp_backend.operators import SFTPMoveOperator
from airflow_sftp_backend.triggers import SFTPNewFilesTrigger

log = logging.getLogger(__name__)

inbox = Asset(
    "partner_inbox",
    watchers=[AssetWatcher(name="new_files", trigger=SFTPNewFilesTrigger("inbox/", poke_interval=5, stable_for=5))],
)

with DAG(dag_id="watch_inbox", schedule=[inbox], catchup=False, doc_md=__doc__) as dag:

    @task(inlets=[inbox])
    def arrived(**context: Any) -> list[str]:
        """Paths of the files this run was started for."""
        return [file["path"] for file in new_files(context)]  # type: ignore[arg-type] # Context is what it is at run time

    @task(map_index_template="{{ path }}")
    def process(path: str) -> str:
        """Counts the lines of a file; yours goes here. Its path is what is archived."""
        with SFTPBackendHook().backend() as backend:
            log.info("%s has %d lines", path, len(backend.read_bytes(path).splitlines()))
        return path

    SFTPMoveOperator.partial(task_id="archive", target="archive/{date}/{name}", if_exists="number").expand(
        source=process.expand(path=arrived())
    )
