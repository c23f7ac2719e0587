"""A killed task ends at once, without partial files, and resumes."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import BaseOperator, ObjectStoragePath

from airflow_sftp_backend._cancellation import TaskKilled
from airflow_sftp_backend.backend._paths import is_temp_name
from airflow_sftp_backend.hooks import SFTPBackendHook
from tests.support.airflow.arguments import Glob
from tests.support.airflow.connections import Connect
from tests.support.airflow.context import State
from tests.support.airflow.operators import delete, download, move, run, upload
from tests.support.airflow.supervised_task import TOP, messages_to_airflow
from tests.support.airflow.versions import BaseHook, mask_secret
from tests.support.files import read_files, write_files
from tests.support.key_vault import SECRET, Fault, Vault
from tests.support.own_time import OwnTime
from tests.support.servers import AsyncsshServer, SilentLogin, SilentSFTP, StallsAfter, wait_until
from tests.support.sessions import assert_nothing_left


@contextmanager
def killed_when(operator: BaseOperator, ready: Callable[[], bool], *, signals: int = 1) -> Iterator[list[OwnTime]]:
    """Run a block, kill it as Airflow does, and measure the time."""
    sent: list[OwnTime] = []

    def kill() -> None:
        wait_until(ready, "the work to be under way")
        time.sleep(0.3)
        for _ in range(signals):
            sent.append(OwnTime())
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(0.02)

    before = signal.signal(signal.SIGUSR2, lambda *_: operator.on_kill())
    killing = threading.Thread(target=kill)
    killing.start()
    try:
        yield sent
    finally:
        killing.join()
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize("what", ["upload", "download"])
def test_a_killed_task_ends_at_once_and_leaves_no_partial_file(connect: Connect, tmp_path: Path, what: str) -> None:
    big = bytes(8 << 20)
    with StallsAfter(requests=12) as stalling:
        folder = stalling.fresh()
        connect(stalling, base_path=folder.base_path)
        if what == "download":
            write_files(folder.path, {"big": big})
            operator: BaseOperator = download("big", tmp_path / "down" / "big")
        else:
            operator = upload(write_files(tmp_path, {"big": big}) / "big", "big")
        with (
            killed_when(operator, lambda: stalling.unanswered > 0),
            pytest.raises(TaskKilled, match="was killed"),
        ):
            run(operator)
        assert_nothing_left(stalling.port)
        if what == "download":
            assert not (tmp_path / "down" / "big").exists()
        else:
            assert "big" not in read_files(folder.path)


def test_killing_a_task_that_does_nothing_is_harmless() -> None:
    delete("a").on_kill()


@pytest.mark.parametrize("what", ["upload", "download"])
def test_a_killed_task_ends_in_two_seconds_and_its_retry_resumes(
    connect: Connect, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    caplog.set_level("INFO")
    big = random.Random(1).randbytes(160 << 20)
    with StallsAfter(requests=10**9) as stalling:
        folder = stalling.fresh()
        connect(stalling, base_path=folder.base_path)
        here, there = (tmp_path, folder.path) if what == "upload" else (folder.path, tmp_path / "down")
        write_files(here, {"big": big})
        there.mkdir(exist_ok=True)

        def operator(target: str = "big") -> BaseOperator:
            return upload(here / "big", target) if what == "upload" else download("big", there / target)

        run(operator("whole"))
        stalling.limit = stalling.requests.total() * 5 // 3

        first = operator()
        with killed_when(first, lambda: stalling.unanswered > 0) as sent:
            with pytest.raises(TaskKilled):
                run(first)
            assert sent[0].seconds() < 2
        assert_nothing_left(stalling.port)
        (left,) = read_files(there).keys() - {"whole"}
        assert is_temp_name(left)
        stalling.limit = 10**9
        run(operator(), try_number=2)
        assert read_files(there) == {"big": big, "whole": big}
    assert re.search("(going on|resuming) after", caplog.text)


def test_a_killed_task_skips_clean_up_on_a_silent_server(connect: Connect, tmp_path: Path) -> None:
    with StallsAfter(requests=10) as stalling:
        folder = stalling.fresh()
        connect(stalling, base_path=folder.base_path)
        operator = upload(write_files(tmp_path, {"big": bytes(8 << 20)}) / "big", "big")
        with killed_when(operator, lambda: stalling.unanswered > 0) as sent:
            with pytest.raises(TaskKilled):
                run(operator)
            assert sent[0].seconds() < 2
        assert_nothing_left(stalling.port)
        assert "big" not in read_files(folder.path)


@pytest.mark.parametrize("kind", [SilentLogin, SilentSFTP])
def test_a_task_killed_while_connecting_ends_at_once(connect: Connect, kind: type[AsyncsshServer]) -> None:
    with kind() as silent:
        connect(silent)
        operator = delete("a")
        with killed_when(operator, lambda: silent.connections() > 0) as sent:
            with pytest.raises(TaskKilled):
                run(operator)
            assert sent[0].seconds() < 2
        assert_nothing_left(silent.port)


@pytest.mark.parametrize("what", ["move", "delete", "delete folder"])
def test_killed_moves_and_deletions_leave_whole_files_and_a_retry_resumes(connect: Connect, what: str) -> None:
    names = [f"{number:03}" for number in range(300)]
    with StallsAfter(requests=100, kind="rename" if what == "move" else "remove") as stalling:
        folder = stalling.fresh()
        connect(stalling, base_path=folder.base_path)
        write_files(folder.path, {f"in/{name}": name.encode() for name in names})
        state = State()

        def operator() -> BaseOperator:
            if what == "move":
                return move(Glob("in/*"), "out/")
            return delete(Glob("in/*") if what == "delete" else "in/")

        first = operator()
        with killed_when(first, lambda: stalling.unanswered > 0) as sent:
            with pytest.raises(TaskKilled):
                run(first, state=state)
            assert sent[0].seconds() < 2
        assert_nothing_left(stalling.port)
        left = read_files(folder.path)
        assert all(content == name.rpartition("/")[2].encode() for name, content in left.items())
        assert len(left) == (300 if what == "move" else 200)
        stalling.limit = 10**9
        rows = run(operator(), try_number=2, state=state)
        assert sorted(read_files(folder.path)) == ([f"out/{name}" for name in names] if what == "move" else [])
        assert len(rows) == (300 if what == "move" else len(left))


@pytest.mark.parametrize("what", ["upload", "download"])
def test_a_killed_stream_leaves_the_old_object(connect: Connect, store: str, what: str) -> None:
    big = bytes(24 << 20)
    with StallsAfter(requests=20) as stalling:
        folder = stalling.fresh()
        connect(stalling, base_path=folder.base_path)
        there = ObjectStoragePath(f"{store}/big")
        if what == "upload":
            there.write_bytes(big)
            operator: BaseOperator = upload(f"{store}/big", "big")
        else:
            write_files(folder.path, {"big": big})
            operator = download("big", f"{store}/big")
        with killed_when(operator, lambda: stalling.unanswered > 0) as sent:
            with pytest.raises(TaskKilled):
                run(operator)
            assert sent[0].seconds() < 3
        assert_nothing_left(stalling.port)
        assert there.exists() == (what == "upload")
        assert ("big" in read_files(folder.path)) == (what == "download")


@pytest.mark.parametrize("what", ["upload", "download"])
def test_a_second_signal_leaves_no_partial_file(connect: Connect, tmp_path: Path, what: str) -> None:
    big = os.urandom(24 << 20)
    # counts blocks: the transfer cannot end without the reply to one, but without the reply to a directory's CLOSE
    with StallsAfter(requests=4, kind="write" if what == "upload" else "read") as stalling:
        folder = stalling.fresh()
        connect(stalling, base_path=folder.base_path)
        write_files(folder.path if what == "download" else tmp_path, {"big": big})
        operator = upload(tmp_path / "big", "up") if what == "upload" else download("big", tmp_path / "down/big")

        def is_ready() -> bool:
            if not stalling.unanswered:
                return False
            stalling.limit = 10**9  # what it is sent from now on it answers
            return True

        with killed_when(operator, is_ready, signals=2) as sent:
            with pytest.raises(TaskKilled):
                run(operator)
            assert sent[0].seconds() < 3
        assert_nothing_left(stalling.port)
        if what == "upload":
            assert read_files(folder.path) == {}
        else:
            assert all(is_temp_name(path.name) for path in (tmp_path / "down").iterdir())


# -- before there is a server to talk to ------------------------------------------------------------------------------


def test_a_killed_task_does_not_wait_for_the_vault(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    vault.put("password", "swordfish")
    vault.fail(SECRET, Fault(silent=True))
    extra = {"key_vault_url": vault.url, "password_secret": "password"}
    connection = {"conn_type": "sftp_backend", "host": "127.0.0.1", "login": "tester", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_SFTP_BACKEND_DEFAULT", json.dumps(connection))
    operator = delete("a")
    with killed_when(operator, lambda: vault.counts[SECRET] > 0) as sent:
        with pytest.raises(TaskKilled):
            run(operator)
        assert sent[0].seconds() < 2
    assert SFTPBackendHook().config().password is not None  # another asks anew


@pytest.mark.parametrize("step", ["connection", "masking"])
def test_a_kill_does_not_interrupt_a_message_to_airflow(
    connect: Connect, server: AsyncsshServer, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    connect(server)
    begun, heard = threading.Event(), threading.Event()

    def slowly(call: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*args: Any) -> Any:
            begun.set()
            until = time.monotonic() + 1
            while time.monotonic() < until:
                time.sleep(0.01)
            heard.set()
            return call(*args)

        return slow

    if step == "connection":
        monkeypatch.setattr(SFTPBackendHook, "get_connection", slowly(BaseHook.get_connection))
    else:
        monkeypatch.setattr("airflow_sftp_backend._masking.mask_secret", slowly(mask_secret))
    logins = server.logins()
    operator = delete("a")
    with killed_when(operator, begun.is_set), pytest.raises(TaskKilled):
        run(operator)
    assert heard.is_set()
    assert server.logins() == logins


# -- by Airflow itself ------------------------------------------------------------------------------------------------


@pytest.mark.system
@pytest.mark.timeout(120)
@pytest.mark.parametrize("group", [False, True])
def test_a_terminated_supervisor_leaves_no_partial_file(connect: Connect, tmp_path: Path, group: bool) -> None:
    dag = f"""
        from airflow.sdk import DAG
        from airflow_sftp_backend.operators import SFTPUploadOperator
        with DAG("sending"):
            SFTPUploadOperator(task_id="up", source={str(tmp_path / "big")!r}, target="big")
    """
    with StallsAfter(requests=12) as stalling:
        folder = stalling.fresh()
        connect(stalling, base_path=folder.base_path)
        write_files(tmp_path, {"big": bytes(24 << 20), "dags/sending.py": textwrap.dedent(dag).encode()})
        log = tmp_path / "up.log"
        home, dags = str(tmp_path / "airflow"), str(tmp_path / "dags")
        environment = {**os.environ, "AIRFLOW_HOME": home, "AIRFLOW__CORE__DAGS_FOLDER": dags, "PYTHONPATH": str(TOP)}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.airflow.supervised_task", "sending", "up", str(log)],
            env=environment, cwd=TOP, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            wait_until(lambda: stalling.unanswered > 0, "the upload to stall", timeout=60)
            time.sleep(0.5)
            stalling.limit = 10**9
            killed = time.monotonic()
            (os.killpg if group else os.kill)(process.pid, signal.SIGTERM)  # to the group: as container runtimes do
            process.wait(30)
            assert time.monotonic() - killed < 10
        finally:
            process.kill()
            process.wait()
        assert read_files(folder.path) == {}
        states = [line["state"] for line in messages_to_airflow(log) if isinstance(line, dict) and "state" in line]
        assert "success" not in states
        assert "TaskKilled" in log.read_text()


@pytest.mark.usefixtures("remote")
def test_a_kill_does_not_interrupt_reading_lazy_paths() -> None:
    heard: list[str] = []

    class Mapped(list[str]):
        """Stand for a mapped output: reading an item is a request."""

        def __iter__(self) -> Iterator[str]:
            for name in ("a", "b"):
                operator.on_kill()  # the signal comes during a request to Airflow
                heard.append(name)
                yield name

    operator = delete("a")
    object.__setattr__(operator, "path", Mapped())  # as rendering leaves it: Airflow looks into what is set
    with pytest.raises(TaskKilled):
        run(operator)
    assert heard == ["a", "b"]
