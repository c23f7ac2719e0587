"""A wait ends with the same files and for the same reasons in a worker, rescheduled and deferred."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, cast

import pytest
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)

from airflow_sftp_backend import SFTPBackendError
from airflow_sftp_backend.hooks import TaskKilled
from airflow_sftp_backend.sensors import SFTPFileSensor
from airflow_sftp_backend.triggers import SFTPFileTrigger
from tests.airflow.conftest import Connect, State, context, grow
from tests.backend.sessions import assert_nothing_left
from tests.servers import AsyncsshServer, free_port

Mode = Literal["poke", "reschedule", "reschedule without memory", "deferred"]
Row = dict[str, Any]
MODES: tuple[Mode, ...] = ("poke", "reschedule", "reschedule without memory", "deferred")


@pytest.fixture(params=MODES, ids=lambda mode: mode.replace(" ", "_"))
def mode(request: pytest.FixtureRequest) -> Mode:
    """Each way of waiting; Airflow before 3.3 remembers nothing from one reschedule to the next."""
    return cast("Mode", request.param)


def sensor(mode: Mode, **arguments: Any) -> SFTPFileSensor:
    given: dict[str, Any] = {"poke_interval": 0.1, "timeout": 20, "task_id": "wait"} | arguments
    given |= {"mode": "reschedule"} if mode.startswith("reschedule") else {"deferrable": mode == "deferred"}
    return SFTPFileSensor(**given)


def wait(mode: Mode, **arguments: Any) -> list[Row]:
    """Runs the wait as Airflow does, every look of a rescheduled one in a sensor of its own."""
    state = None if mode == "reschedule without memory" else State()
    run_by = context(state=state)
    rows: list[Row] = []
    while True:
        try:
            rows = sensor(mode, **arguments).execute(run_by)
        except AirflowRescheduleException as again:
            time.sleep(max(0.0, (again.reschedule_date - datetime.now(UTC)).total_seconds()))
        except TaskDeferred as deferred:
            event = fired(deferred)
            resume = getattr(sensor(mode, **arguments), deferred.method_name)
            rows = resume(context(), event)
            break
        else:
            break
    assert json.loads(json.dumps(rows)) == rows
    return rows


def fired(deferred: TaskDeferred) -> dict[str, Any]:
    """What the triggerer hands back: the trigger travels as JSON, and so does its event."""
    path, arguments = deferred.trigger.serialize()
    module, _, name = path.rpartition(".")
    trigger: SFTPFileTrigger = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(arguments)))

    async def first() -> dict[str, Any]:
        events = trigger.run()
        try:
            return cast("dict[str, Any]", (await anext(events)).payload)
        finally:
            await cast("Any", events).aclose()

    event = asyncio.run(asyncio.wait_for(first(), 30))
    return cast("dict[str, Any]", json.loads(json.dumps(event)))


@contextmanager
def meanwhile(*steps: Callable[[], object], every: float = 0.4) -> Iterator[None]:
    """Takes the steps one after another while the block waits."""

    def take() -> None:
        for step in steps:
            time.sleep(every)
            step()

    thread = threading.Thread(target=take)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def names(rows: list[Row]) -> list[str]:
    return [row["path"] for row in rows]


# -- equal in every mode ----------------------------------------------------------------------------------------------


def test_files_that_are_there_are_found_at_once(remote: Path, mode: Mode) -> None:
    grow(remote, {"in/a.csv": b"abc", "in/b.txt": b""})
    (row,) = sensor(mode, path="in/*.csv").execute(context())  # neither deferred nor rescheduled
    assert (row["path"], row["size"]) == ("in/a.csv", 3)
    changed = datetime.fromisoformat(row["modified_at"])
    assert changed.tzinfo is not None
    assert abs(changed - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    "path", ["in/a.csv", "/in/a.csv", "in/*.csv", "in/", ["in/", "q"], "**/a.csv", ["in/a.csv", "elsewhere/*"]]
)
def test_a_file_is_waited_for_and_its_folder_too(remote: Path, mode: Mode, path: str | list[str]) -> None:
    with meanwhile(lambda: grow(remote, {"in/a.csv": b"abc"})):
        rows = wait(mode, path=path)
    assert [(row["path"], row["size"]) for row in rows] == [("in/a.csv", 3)]


def test_all_the_files_asked_for_are_waited_for(remote: Path, mode: Mode) -> None:
    grow(remote, {"a.csv": b""})
    with meanwhile(lambda: grow(remote, {"b.csv": b"1"}), lambda: grow(remote, {"c.csv": b"2"})):
        assert names(wait(mode, path="*.csv", min_files=3)) == ["a.csv", "b.csv", "c.csv"]


def test_a_file_is_waited_for_until_it_is_large_enough(remote: Path, mode: Mode) -> None:
    grow(remote, {"a": b"x"})
    with meanwhile(lambda: grow(remote, {"a": b"xx"}), lambda: grow(remote, {"a": b"xxxx"})):
        (row,) = wait(mode, path="a", min_size=3)
    assert row["size"] == 4


def test_a_file_is_waited_for_until_it_is_stable(remote: Path, mode: Mode) -> None:
    grow(remote, {"a": b"x"})
    started = time.monotonic()
    with meanwhile(lambda: grow(remote, {"a": b"xx"}), lambda: grow(remote, {"a": b"xxx"})):
        (row,) = wait(mode, path="*", stable_for=0.8)
    assert row["size"] == 3
    assert time.monotonic() - started >= 1.6  # 0.8 s of growth, 0.8 s of rest


def test_a_file_is_waited_for_until_it_is_new(remote: Path, mode: Mode) -> None:
    grow(remote, {"old": b"x"})
    after = datetime.now(UTC) + timedelta(seconds=1.1)
    with meanwhile(lambda: time.sleep(1.8), lambda: grow(remote, {"new": b"y"})):
        assert names(wait(mode, path="*", newer_than=after.isoformat())) == ["new"]


def test_a_file_is_waited_for_until_its_done_file_is_there(remote: Path, mode: Mode) -> None:
    grow(remote, {"a.csv": b"x", "b.csv": b"y"})
    with meanwhile(lambda: grow(remote, {"b.csv.done": b""})):
        assert names(wait(mode, path="*.csv", done_file="{name}.done")) == ["b.csv"]


def test_unfinished_files_are_not_taken_for_files(remote: Path, mode: Mode) -> None:
    grow(remote, {"a.csv.part": b"x", ".b": b""})
    with meanwhile(lambda: (remote / "a.csv.part").rename(remote / "a.csv")):
        assert names(wait(mode, path="*")) == ["a.csv"]


def test_a_lost_connection_is_made_again(remote: Path, server: AsyncsshServer, mode: Mode) -> None:
    with meanwhile(server.kill_sessions, server.kill_sessions, lambda: grow(remote, {"a": b"x"})):
        assert names(wait(mode, path="a")) == ["a"]


def test_a_server_that_is_away_for_a_while_is_waited_for(connect: Connect, mode: Mode) -> None:
    port = free_port()
    with AsyncsshServer() as server:  # whose keys and folder the one that comes back has
        known, key = server.known_hosts.replace(str(server.port), str(port)), server.client_key.read_text()
        folder = server.fresh()
        grow(folder.path, {"a": b"x"})
        connect(
            server,
            columns={"port": port},
            base_path=folder.base_path,
            known_host_keys=known,
            private_key=key,
            conn_retry_attempts=1,
        )
        with forwarded_from(port, server.port, after=0.7):
            assert names(wait(mode, path="a")) == ["a"]


@contextmanager
def forwarded_from(port: int, to: int, *, after: float) -> Iterator[None]:
    """Nobody listens at ``port``, until ``after`` seconds from now it leads to another."""
    loop = asyncio.new_event_loop()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", to)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer), return_exceptions=True)

    async def serve() -> None:
        await asyncio.sleep(after)
        listening = await asyncio.start_server(forward, "127.0.0.1", port)
        try:
            await asyncio.Event().wait()
        finally:
            listening.close()

    task = loop.create_task(serve())
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.gather(task, return_exceptions=True)))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


HOPELESS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "wrong password": (
        {},
        {"columns": {"password": "hunter2-secret"}, "private_key": None},
        "does not let 'tester' in",
    ),
    "wrong host key": ({}, {"known_host_keys": "SHA256:" + "A" * 43}, "SHA256:"),
    "wrong extra": ({}, {"io_timeout": "soon"}, "io_timeout"),
    "a folder": ({"path": "folder"}, {}, "it is a folder"),
    "a path that climbs": ({"path": "../*"}, {}, "must not contain"),
    "an empty path": ({"path": [" "]}, {}, "path is empty"),
    "a time without zone": ({"newer_than": "2026-01-31T06:00:00"}, {}, "needs a time zone"),
    "no time at all": ({"newer_than": "yesterday"}, {}, "yesterday"),
}


@pytest.mark.parametrize("name", HOPELESS)
def test_what_waiting_cannot_mend_fails_at_once_with_its_cause(
    connect: Connect, server: AsyncsshServer, mode: Mode, name: str
) -> None:
    arguments, connection, text = HOPELESS[name]
    folder = server.fresh()
    (folder.path / "folder").mkdir()
    connect(server, base_path=folder.base_path, **connection)
    with pytest.raises(AirflowFailException, match=text) as caught:
        wait(mode, **({"path": "a"} | arguments))
    assert "hunter2" not in str(caught.value)
    assert_nothing_left(server.port)


@pytest.mark.parametrize("soft", ["soft_fail", "never_fail"])
def test_a_soft_failure_is_soft_in_every_mode(connect: Connect, server: AsyncsshServer, mode: Mode, soft: str) -> None:
    connect(server, columns={"password": "wrong"}, private_key=None)
    with pytest.raises(AirflowSkipException):
        wait(mode, path="a", **{soft: True})


def test_a_wait_that_takes_too_long_ends(remote: Path, mode: Mode) -> None:
    if mode == "deferred":  # the triggerer ends it at the time it is given
        with pytest.raises(TaskDeferred) as caught:
            sensor(mode, path="a", timeout=77).execute(context())
        assert caught.value.timeout == timedelta(seconds=77)
        return
    with pytest.raises(AirflowSensorTimeout):
        wait(mode, path="a", timeout=0.5)


def test_a_wait_in_one_process_has_one_login_and_leaves_no_connection(remote: Path, server: AsyncsshServer) -> None:
    before = server.logins()
    with meanwhile(lambda: grow(remote, {"a": b"x"})):
        wait("poke", path="a")
    assert server.logins() == before + 1
    assert_nothing_left(server.port)


# -- deferring --------------------------------------------------------------------------------------------------------


def test_a_deferred_wait_looks_once_first_and_hands_on_what_it_saw(remote: Path) -> None:
    grow(remote, {"a": b"x"})
    with pytest.raises(TaskDeferred) as caught:
        sensor("deferred", path="a", stable_for=timedelta(minutes=5), poke_interval=7).execute(context())
    trigger = caught.value.trigger
    assert isinstance(trigger, SFTPFileTrigger)
    assert (trigger.poke_interval, list(trigger.observed)) == (7, ["a"])
    assert trigger.condition["stable_for"] == 300
    assert "private" not in json.dumps(trigger.serialize())


def test_a_broken_trigger_leaves_the_task_another_try() -> None:
    with pytest.raises(SFTPBackendError, match="nested too deep"):
        sensor("deferred", path="a").execute_complete(context(), {"status": "broken", "message": "nested too deep"})


def test_a_failed_trigger_fails_the_task_with_its_reason() -> None:
    with pytest.raises(AirflowFailException, match="no way in"):
        sensor("deferred", path="a").execute_complete(context(), {"status": "failed", "message": "no way in"})


def test_deferring_is_as_airflow_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not SFTPFileSensor(task_id="a", path="a").deferrable
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", "true")
    assert SFTPFileSensor(task_id="b", path="a").deferrable
    assert not SFTPFileSensor(task_id="c", path="a", deferrable=False).deferrable


# -- arguments, log, end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({"min_files": 0}, "min_files is a number from 1"), ({"newer_than": datetime(2026, 1, 1)}, "needs a time zone")],
)
def test_a_wrong_argument_is_refused_where_the_dag_is_written(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SFTPFileSensor(task_id="a", path="a", **arguments)


def test_paths_times_and_connection_are_templated_and_every_argument_documented() -> None:
    assert set(SFTPFileSensor.template_fields) == {"path", "sftp_conn_id", "newer_than", "done_file"}
    code = SFTPFileSensor.__init__.__code__
    for argument in code.co_varnames[1 : 1 + code.co_kwonlyargcount]:
        assert f":param {argument}:" in (SFTPFileSensor.__doc__ or "")


def test_the_log_says_where_it_waits_and_what_is_missing(remote: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AirflowSensorTimeout):
        wait("poke", path="in/*", timeout=0.3)
    log = capsys.readouterr().out
    assert re.search(r"waiting for \S+/in/\* on sftp://127\.0\.0\.1:", log)
    assert "0 of 1 files are there" in log


def test_a_killed_wait_ends_at_once_and_leaves_no_connection(remote: Path, server: AsyncsshServer) -> None:
    waiting = sensor("poke", path="never", poke_interval=30, timeout=60)
    before = signal.signal(signal.SIGUSR2, lambda *_: waiting.on_kill())
    kill = threading.Timer(0.7, os.kill, [os.getpid(), signal.SIGUSR2])
    kill.start()
    started = time.monotonic()
    try:
        with pytest.raises(TaskKilled):
            waiting.execute(context())
    finally:
        signal.signal(signal.SIGUSR2, before)
        kill.join()
    assert time.monotonic() - started < 20
    assert_nothing_left(server.port)
