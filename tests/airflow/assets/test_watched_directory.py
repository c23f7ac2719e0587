"""New files start DAGs, also while the triggerer is restarted."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.airflow.connections import Connect
from tests.support.airflow.home import AIRFLOW, TOP, airflow_home
from tests.support.files import read_files, write_files
from tests.support.servers import AsyncsshServer, free_port, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

NOTING = """
import time

from airflow.sdk import DAG, Asset, AssetWatcher, task

from airflow_sftp_backend.assets import new_files
from airflow_sftp_backend.triggers import SFTPNewFilesTrigger

def noting(name, seconds, **options):
    trigger = SFTPNewFilesTrigger(name + "/", poke_interval=1, stable_for=1)
    asset = Asset(name, watchers=[AssetWatcher(name="watch", trigger=trigger)])
    with DAG(name, schedule=[asset], catchup=False, **options) as dag:

        @task(inlets=[asset])
        def note(**context):
            lines = "".join(file["path"] + chr(10) for file in new_files(context))
            with open({noted!r}, "a") as file:
                file.write(lines)
            time.sleep(seconds)

        note()
    return dag

bursts, slow = noting("bursts", 0), noting("slow", 20, max_active_runs=1)
"""


MANY = [f"bursts/many-{number:04}" for number in range(4000)]
"""Files that arrive at once."""


@contextmanager
def standalone(home: Path, dags: Path) -> Iterator[dict[str, str]]:
    """Airflow with all its parts; the environment of more of them."""
    home.mkdir()
    port = free_port()
    environment = airflow_home(
        home,
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # where it looks for its own command
        AIRFLOW__CORE__DAGS_FOLDER=str(dags),
        AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION="False",
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS="True",
        AIRFLOW__CORE__EXECUTION_API_SERVER_URL=f"http://127.0.0.1:{port}/execution/",
        AIRFLOW__CORE__PARALLELISM="2",
        AIRFLOW__API__HOST="127.0.0.1",
        AIRFLOW__API__PORT=str(port),
        AIRFLOW__API__WORKERS="1",
        AIRFLOW__API_AUTH__JWT_SECRET="of these tests, and of nothing else, for ever",
        AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT=str(free_port()),
        AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT=str(free_port()),
        AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC="1",
        AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD="5",
    )
    with (home / "standalone.log").open("wb") as out:
        process = subprocess.Popen(
            [*AIRFLOW, "standalone"], env=environment, stdout=out, stderr=out, start_new_session=True
        )
        try:
            yield environment
        except BaseException as error:
            log = (home / "standalone.log").read_text(errors="replace")
            error.add_note("\n".join(log.splitlines()[-200:]))
            raise
        finally:
            for one in parts(environment):
                one.kill()
            process.wait()


def parts(environment: dict[str, str]) -> list[psutil.Process]:
    """Return all processes of that Airflow."""
    found = []
    for one in psutil.process_iter(["cmdline"]):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if one.environ().get("AIRFLOW_HOME") == environment["AIRFLOW_HOME"]:
                found.append(one)
    return found


def triggerer(environment: dict[str, str]) -> psutil.Process:
    """The triggerer of that Airflow, once it runs."""

    def find() -> list[psutil.Process]:
        return [one for one in parts(environment) if one.info["cmdline"] and one.info["cmdline"][-1] == "triggerer"]

    wait_until(lambda: bool(find()), "the triggerer", timeout=90)
    return find()[0]


def restart(environment: dict[str, str], how: signal.Signals) -> subprocess.Popen[bytes]:
    """End the triggerer or kill it, and start another."""
    old = triggerer(environment)
    ending = [old, *old.children(recursive=True)] if how == signal.SIGKILL else [old]
    for one in ending:
        one.send_signal(how)
    psutil.wait_procs(ending, timeout=30)
    with open(f"{environment['AIRFLOW_HOME']}/triggerer.log", "ab") as out:
        return subprocess.Popen([*AIRFLOW, "triggerer"], env=environment, stdout=out, stderr=out)


def arrive(folder: Path, names: list[str]) -> threading.Thread:
    """Lets files arrive one after another in the background."""

    def write() -> None:
        for name in names:
            write_files(folder, {name: name.encode()})
            time.sleep(0.02)

    writing = threading.Thread(target=write)
    writing.start()
    return writing


class Database:
    """Read the database of the running Airflow."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return the rows as soon as the database can be read."""
        while True:
            with suppress(sqlite3.OperationalError), closing(sqlite3.connect(f"{self._home}/airflow.db")) as database:
                return database.execute(query).fetchall()
            time.sleep(0.01)

    def events(self, asset: str) -> list[dict[str, Any]]:
        """The reports that have reached Airflow, each as often as it has."""
        query = f"select e.extra from asset_event e join asset a on a.id = e.asset_id where a.name = '{asset}'"  # noqa: S608
        return [json.loads(extra)["payload"] for (extra,) in self.rows(query)]

    def kept(self, asset: str) -> set[str]:
        """The reports that the watch keeps."""
        query = f"select s.value from asset_state_store s join asset a on a.id = s.asset_id where a.name = '{asset}'"  # noqa: S608
        values = [json.loads(value) for (value,) in self.rows(query)]
        changes = [change for value in values for change in value.get("changes", [])]
        acknowledged = {name for kind, *rest in changes if kind == "acknowledged" for name in rest[0]}
        return {rest[0] for kind, *rest in changes if kind == "batch"} - acknowledged

    def on_its_way(self, asset: str) -> bool:
        """Return whether a stored batch has not reached Airflow."""
        return bool(self.kept(asset) - {event["batch"] for event in self.events(asset)})


def kill_within_burst(folder: Path, environment: dict[str, str], database: Database) -> subprocess.Popen[bytes]:
    """Create files at once, and kill the triggerer after a batch."""
    before = len(database.events("bursts"))
    write_files(folder, dict.fromkeys(MANY, b""))
    wait_until(lambda: len(database.events("bursts")) > before, "the first of many reports", timeout=60)
    return restart(environment, signal.SIGKILL)


def test_each_file_starts_a_dag_once_while_the_triggerer_is_restarted(
    remote: Path, server: AsyncsshServer, connect: Connect, tmp_path: Path
) -> None:
    noted, dags, home = tmp_path / "noted", tmp_path / "dags", tmp_path / "airflow"
    noted.touch()
    guide = (TOP / "docs/tasks.md").read_text()
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "AssetWatcher" in code)
    write_files(dags, {"noting.py": NOTING.format(noted=str(noted)).encode(), "example.py": example.encode()})
    shutil.copy(TOP / "example_dags" / "watch_inbox.py", dags)
    partner = server.fresh()
    connect(server, "partner", base_path=partner.base_path)
    write_files(partner.path, {"inbox/example.csv": b""})
    database = Database(home)

    def reported(folder: str = "bursts") -> list[str]:
        return [path for path in noted.read_text().splitlines() if path.startswith(folder)]

    def wait_for(names: list[str]) -> None:
        wait_until(lambda: set(names) <= set(reported(names[0].split("/")[0])), f"{names} to be taken", timeout=120)

    started: list[subprocess.Popen[bytes]] = []
    with standalone(home, dags) as environment:
        # Airflow starts no run for slow/3: one is to be started for slow/2 already, and waits for the run of slow/1
        write_files(remote, {"slow/1": b""})
        wait_for(["slow/1"])
        write_files(remote, {"slow/2": b""})
        wait_until(lambda: len(database.events("slow")) == 2, "the second report", timeout=60)
        write_files(remote, {"slow/3": b""})
        wait_until(lambda: len(database.events("slow")) == 3, "the third report", timeout=60)
        names = [f"bursts/{number:03}" for number in range(500)]
        write_files(remote, {"inbox/a.csv": b"1\n2\n", "inbox/deep/a.csv": b"3\n"})
        for first, how in ((0, signal.SIGTERM), (125, signal.SIGKILL), (250, signal.SIGKILL), (375, None)):
            burst = arrive(remote, names[first : first + 125])
            if first == 250:
                wait_until(lambda: database.on_its_way("bursts"), "a report to be on its way", timeout=60)
            else:
                wait_for(names[first : first + 1])
            if how is not None:
                started.append(restart(environment, how))
            burst.join()
            wait_for(names[: first + 125])
        started.append(kill_within_burst(remote, environment, database))
        wait_for(MANY)
        wait_for(["slow/1", "slow/2", "slow/3"])
        wait_until(lambda: len(list(remote.glob("archive/*/*.csv"))) == 2, "the example to archive", timeout=120)
        taken = "select value from xcom where dag_id = 'intake' and key = 'return_value'"
        wait_until(lambda: bool(database.rows(taken)), "the README's DAG to run", timeout=120)
        time.sleep(5)  # for what would come twice
        events = database.events("bursts")
        assert "inbox/example.csv" in str(database.rows(taken))
    for one in started:
        one.wait()
    assert sorted(reported()) == [*names, *MANY]
    assert sorted(reported("slow")) == ["slow/1", "slow/2", "slow/3"]
    reports = {event["batch"] for event in events}
    assert 4 <= len(reports) < len(events)  # those that may not have arrived were made again
    archived = read_files(remote / "archive")
    assert sorted(archived.values()) == [b"1\n2\n", b"3\n"]
    assert {path.rpartition("/")[2] for path in archived} == {"a.csv", "a-1.csv"}
    assert read_files(remote / "inbox") == {}
