"""Run one task under Airflow's supervisor, as a worker does.

``python -m tests.support.airflow.supervised_task DAG_ID TASK_ID LOG``: the DAG is in ``DAG_ID.py`` of Airflow's DAGs
folder. Only the API server is not real: it has canned answers.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from pathlib import Path

import httpx
from packaging.version import Version

from tests.support.airflow import prepared_process
from tests.support.airflow.versions import AIRFLOW_VERSION, BundleInfo, known_fields, supervise_task

TOP = Path(__file__).parents[3]
_DEFAULTS = ["manual", "-1", "dated"]


def run(
    dags: Path,
    dag_id: str,
    task_id: str,
    log: Path,
    *,
    run_type: str = "manual",
    dated: bool = True,
    map_index: int = -1,
) -> list[dict[str, object]]:
    """Run the task of ``dags/<dag_id>.py``, and return its log.

    Runs the task of ``dags/<dag_id>.py`` in a run of that type, which has a logical date if ``dated``; the lines of
    its log.
    """
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(dags.parent / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "PYTHONPATH": str(TOP),
    }
    command = ["-m", "tests.support.airflow.supervised_task", dag_id, task_id, str(log)]
    command += [run_type, str(map_index), *(["dated"] if dated else [])]
    # Airflow before 3.3 may read the settings of its metrics when it is imported.
    reads_early = Version("3.3") > AIRFLOW_VERSION and any(
        name.startswith("AIRFLOW__METRICS__") for name in environment
    )
    modules = prepared_process.LIBRARIES if reads_early else prepared_process.TASKS
    done = prepared_process.run(command, environment=environment, modules=modules)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in log.read_text().splitlines()]


def messages_to_airflow(log: Path) -> list[object]:
    """Return the messages of the task to Airflow, in order."""
    return [json.loads(line) for line in log.with_suffix(".events").read_text().splitlines()]


def _answer(request: httpx.Request) -> httpx.Response:
    """Answer a task as Airflow's API server does.

    The run's facts to a task that starts, nothing to what it asks for, and consent to what it tells, which is
    written down.
    """
    if request.headers.get("content-type") == "application/json" or request.url.path.endswith("/state"):
        with Path(sys.argv[3]).with_suffix(".events").open("ab") as file:
            file.write(request.content + b"\n")
    if request.url.path.endswith("/validate-inlets-and-outlets"):
        return httpx.Response(200, json={"inactive_assets": []})
    if request.url.path.endswith("/previous-successful-dagrun"):  # as Airflow answers where there is none
        return httpx.Response(200, json={})
    if request.method == "GET":
        return httpx.Response(404, json={"detail": {"reason": "not_found", "message": "there is none"}})
    if not request.url.path.endswith("/run"):
        return httpx.Response(200, json={})
    from airflow.sdk.api.datamodels._generated import DagRun

    absent = ("data_interval_start", "data_interval_end", "end_date", "partition_key")
    times: dict[str, str | None] = dict.fromkeys(("logical_date", "start_date", "run_after"), "2026-01-01T00:00:00Z")
    run_type, _, *dated = sys.argv[4:] or _DEFAULTS
    times["logical_date"] = times["start_date"] if dated else None
    facts = {"dag_id": sys.argv[1], "run_id": "run", "run_type": run_type, "state": "running", "conf": {}}
    run = {**facts, **times, **dict.fromkeys(absent), "consumed_asset_events": [], "clear_number": 0}
    run = known_fields(DagRun, **run)
    return httpx.Response(200, json={"dag_run": run, "max_tries": 0, "should_retry": False})


def _main(dag_id: str, task_id: str, log: str) -> None:
    from airflow.sdk.api.client import Client
    from airflow.sdk.api.datamodels._generated import TaskInstance

    map_index = (sys.argv[4:] or _DEFAULTS)[1]
    instance = TaskInstance(**known_fields(
        TaskInstance, id=uuid.uuid4(), task_id=task_id, dag_id=dag_id, run_id="run", try_number=1,
        dag_version_id=uuid.uuid4(), map_index=int(map_index), hostname="", context_carrier=None,
    ))  # fmt: skip
    supervise_task(
        ti=instance,
        bundle_info=BundleInfo(name="dags-folder", version=None),
        dag_rel_path=f"{dag_id}.py",
        token="",
        client=Client(base_url="http://canned", token="", transport=httpx.MockTransport(_answer)),
        log_path=log,
    )


if __name__ == "__main__":
    _main(*sys.argv[1:4])
