"""Measure memory and CPU of one task with its supervisor.

``python -m benchmarks.task [--mebibytes 1024]`` prints a row for an idle task, an upload and a download.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from tests.support.servers import OpenSSHServer

TOP: Final = Path(__file__).parents[1]
DAG: Final = """
from airflow.sdk import DAG, task
from airflow_sftp_backend.operators import SFTPDownloadOperator, SFTPUploadOperator

with DAG("work"):
    SFTPUploadOperator(task_id="upload", source={source!r}, target="big", sftp_conn_id="partner")
    SFTPDownloadOperator(task_id="download", source="big", target={target!r}, sftp_conn_id="partner")

    @task
    def idle():
        pass

    idle()
"""


@dataclass(frozen=True)
class Usage:
    """Hold what a task and its supervisor used.

    :ivar memory: most bytes at one time (proportional set size), of all processes together
    :ivar cpu: seconds of CPU, of all processes together
    :ivar seconds: duration
    """

    memory: int
    cpu: float
    seconds: float


def measure(task_id: str, home: Path, environment: dict[str, str]) -> Usage:
    """Run a task under Airflow's supervisor.

    :param task_id: the task of the DAG ``work``
    :param home: the directory of Airflow
    :param environment: environment variables of the supervisor
    :returns: its use of memory and CPU
    """
    command = [sys.executable, "-m", "tests.support.airflow.supervised_task", "work", task_id, str(home / task_id)]
    started = time.monotonic()
    process = psutil.Popen(command, env=environment, cwd=TOP, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    memory = 0
    while process.poll() is None:
        used = 0
        with suppress(psutil.Error):
            for member in [process, *process.children(recursive=True)]:
                used += member.memory_full_info().pss
        memory = max(memory, used)
        time.sleep(0.05)
    if process.returncode != 0:
        raise SystemExit(f"the task {task_id!r} failed")
    usage = os.times()
    return Usage(memory, usage.children_user + usage.children_system, time.monotonic() - started)


def main() -> None:
    """Print a row for each task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=1024, help="size of the transferred file")
    size = parser.parse_args().mebibytes << 20
    with OpenSSHServer() as server, tempfile.TemporaryDirectory() as name:
        home, folder = Path(name), server.fresh()
        with (home / "big").open("wb") as file:
            file.truncate(size)
        (home / "dags").mkdir()
        (home / "dags/work.py").write_text(DAG.format(source=f"{home}/big", target=f"{home}/back"))
        extra = {"base_path": folder.base_path, "known_host_keys": server.known_hosts}
        extra["private_key"] = server.client_key.read_text()
        connection = {"conn_type": "sftp_backend", "host": server.host, "port": server.port, "login": server.username}
        environment = os.environ | {
            "AIRFLOW_HOME": f"{home}/airflow",
            "AIRFLOW__CORE__DAGS_FOLDER": f"{home}/dags",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW_CONN_PARTNER": json.dumps(connection | {"extra": extra}),
            "PYTHONPATH": str(TOP),
        }
        print(f"{size >> 20} MiB, {psutil.cpu_count()} processors")
        before = 0.0
        for task_id in ("idle", "upload", "download"):
            usage = measure(task_id, home, environment)
            print(
                f"{task_id:9} {usage.memory / 2**20:6.0f} MiB  {usage.cpu - before:5.1f} s CPU  {usage.seconds:5.1f} s"
            )
            before = usage.cpu
        assert (home / "back").stat().st_size == size


if __name__ == "__main__":
    main()
