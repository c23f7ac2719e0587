"""Files that arrive start DAGs in a whole Airflow, whatever becomes of its triggerer in between."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.airflow.conftest import Connect, grow, held
from tests.airflow.home import AIRFLOW, TOP, airflow_home
from tests.servers import AsyncsshServer, free_port, wait_until

pytestmark = pytest.mark.timeout(400)

NOTING = """
from airflow.sdk import DAG, Asset, AssetWatcher, task

from airflow_sftp_backend.arrivals import new_files
from airflow_sftp_backend.triggers import SFTPNewFilesTrigger

trigger = SFTPNewFilesTrigger("bursts/", poke_interval=1, stable_for=1)
bursts = Asset("bursts", watchers=[AssetWatcher(name="watch", trigger=trigger)])

with DAG("noting", schedule=[bursts], catchup=False):

    @task(inlets=[bursts])
    def note(**context):
        lines = "".join(file["path"] + chr(10) for file in new_files(context))
        with open({noted!r}, "a") as file:
            file.write(lines)

    note()
"""


@contextmanager
def standalone(home: Path, dags: Path) -> Iterator[dict[str, str]]:
    """Airflow with all its parts; the environment of more of them."""
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
    """All processes of that Airflow, whoever has started them."""
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
    """Ends the triggerer, all at once if it is killed, and starts another."""
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
            grow(folder, {name: name.encode()})
            time.sleep(0.02)

    writing = threading.Thread(target=write)
    writing.start()
    return writing


def test_no_file_is_lost_or_reported_twice_while_the_triggerer_is_restarted(
    remote: Path, server: AsyncsshServer, connect: Connect, tmp_path: Path
) -> None:
    noted, dags, home = tmp_path / "noted", tmp_path / "dags", tmp_path / "airflow"
    noted.touch()
    grow(dags, {"noting.py": NOTING.format(noted=str(noted)).encode()})
    shutil.copy(TOP / "example_dags" / "watch_inbox.py", dags)
    names = [f"bursts/{number:03}" for number in range(501)]
    home.mkdir()

    def reported() -> list[str]:
        return noted.read_text().splitlines()

    started: list[subprocess.Popen[bytes]] = []
    with standalone(home, dags) as environment:
        grow(remote, {names[0]: b""})
        wait_until(lambda: bool(reported()), "the first file to be reported", timeout=120)
        grow(remote, {"inbox/a.csv": b"1\n2\n", "inbox/deep/a.csv": b"3\n"})
        for first, how in ((1, signal.SIGTERM), (126, signal.SIGKILL), (251, signal.SIGKILL), (376, None)):
            burst = arrive(remote, names[first : first + 125])
            time.sleep(1.2)
            if how is not None:
                started.append(restart(environment, how))
            burst.join()
        wait_until(lambda: len(set(reported())) == len(names), "all files to be reported", timeout=120)
        wait_until(lambda: len(list(remote.glob("archive/*/*.csv"))) == 2, "the example to archive", timeout=120)
        time.sleep(5)  # for what would come twice
    for one in started:
        one.wait()
    assert sorted(reported()) == names
    archived = held(remote / "archive")
    assert sorted(archived.values()) == [b"1\n2\n", b"3\n"]
    assert {path.rpartition("/")[2] for path in archived} == {"a.csv", "a-1.csv"}
    assert held(remote / "inbox") == {}
