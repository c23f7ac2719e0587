"""Process each file that a partner delivers once.

The DAG waits, claims, downloads and processes; then it archives the file or moves it into quarantine.

A delivery is taken as a whole. What was waited for is claimed first: moved from the inbox to a folder of the run, where
nobody replaces it. What the partner delivers from then on, under the same names too, is the next run's. Once all is
processed it is archived from there; if anything before that fails for good, the teardown puts aside what is still
there, so that somebody can look at it. If the wait itself fails, all stays in the inbox. Whatever happens, a file is in
one of the four places. What stays behind of a run is its empty folder. To have a delivery processed again, move it from
quarantine to the inbox and start a run: clearing single tasks finds nothing to go on with.

Params: ``into`` is the local folder the files land in, below it one folder a run.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, task

from airflow_sftp_backend.operators import SFTPDownloadOperator, SFTPMoveOperator
from airflow_sftp_backend.sensors import SFTPFileSensor

with DAG(
    dag_id="partner_delivery",
    schedule=None,
    catchup=False,
    max_active_runs=1,  # two runs at once would wait for the same files
    params={"into": Param("/tmp/deliveries", type="string", description="Local folder the files land in")},  # noqa: S108
    doc_md=__doc__,
) as dag:
    claimed = "working/{{ dag_run.run_after | ts_nodash }}/"  # a run's id may hold what is no name on some servers

    wait = SFTPFileSensor(
        task_id="wait", pattern="inbox/*.csv", stable_for=1, poke_interval=1, timeout=300, deferrable=True
    )
    # wait.output: these files, and none that come later
    claim = SFTPMoveOperator(task_id="claim", source=wait.output, target=claimed, if_exists="number")
    fetch = SFTPDownloadOperator(
        task_id="fetch", source=claimed, target="{{ params.into }}/{{ run_id }}/", if_exists="replace"
    )

    @task
    def process(fetched: list[dict[str, Any]]) -> int:
        """Count the rows of all files.

        Raises ValueError for a file in an unexpected format.
        """
        count = 0
        for file in fetched:
            with Path(file["target"]).open(newline="") as lines:
                rows = list(csv.DictReader(lines, strict=True))
            if not rows or None in rows[0].values():
                raise ValueError(f"{file['path']} is no table with a header")
            count += len(rows)
        return count

    archive = SFTPMoveOperator(
        task_id="archive", source=claimed, target="archive/", rename="{date}/{name}", if_exists="number"
    )
    quarantine = SFTPMoveOperator(
        task_id="quarantine",
        source=claimed,
        target="quarantine/",
        rename="{date}/{name}",
        if_exists="number",
        missing_ok=True,  # what is archived is gone
    ).as_teardown(setups=wait)

    wait >> claim >> fetch
    process(fetch.output) >> archive >> quarantine  # type: ignore[arg-type] # an XComArg stands for what it will hold
