"""Take in what a partner delivers, each file once: wait, download, process; archive it, or put it in quarantine.

A delivery is taken as a whole. Once it is processed its files are archived on the server, where no later run finds
them; if anything before that fails for good, the teardown puts aside what still lies in the inbox, so that the next run
does not stumble over it and somebody can look at it. Whatever happens, a file is in one of the three places.

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
    render_template_as_native_obj=True,
    doc_md=__doc__,
) as dag:
    waited_for = "{{ ti.xcom_pull('wait') | map(attribute='path') | list }}"  # these files, and none that come later

    wait = SFTPFileSensor(
        task_id="wait", path="inbox/*.csv", stable_for=1, poke_interval=1, timeout=300, deferrable=True
    )
    fetch = SFTPDownloadOperator(
        task_id="fetch", source=waited_for, target="{{ params.into }}/{{ run_id }}/", if_exists="replace"
    )

    @task
    def process(fetched: list[dict[str, Any]]) -> int:
        """Counts the rows of all files. ValueError for a file that is not what was agreed on."""
        count = 0
        for file in fetched:
            with Path(file["target"]).open(newline="") as lines:
                rows = list(csv.DictReader(lines, strict=True))
            if not rows or None in rows[0].values():
                raise ValueError(f"{file['path']} is no table with a header")
            count += len(rows)
        return count

    archive = SFTPMoveOperator(task_id="archive", source=waited_for, target="archive/{date}/{name}", if_exists="number")
    quarantine = SFTPMoveOperator(
        task_id="quarantine",
        source=waited_for,
        target="quarantine/{date}/{name}",
        if_exists="number",
        missing_ok=True,  # what is archived is gone
    ).as_teardown(setups=wait)

    wait >> fetch
    process(fetch.output) >> archive >> quarantine  # type: ignore[arg-type] # an XComArg stands for what it will hold
