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
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, cast

import asyncssh
import pytest
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)

from airflow_sftp_backend import BackendUnavailable, Secret, SFTPBackend, SFTPBackendError
from airflow_sftp_backend._cancellation import TaskKilled
from airflow_sftp_backend._file_rows import FoundFile
from airflow_sftp_backend._key_vault.client import default_client
from airflow_sftp_backend.sensors import SFTPFileSensor
from airflow_sftp_backend.triggers import SFTPFileTrigger
from tests.airflow.conftest import Connect, Glob, State, context, grow, selecting
from tests.backend.sessions import assert_nothing_left
from tests.servers import AsyncsshServer, DeniesEverything, Files, free_port
from tests.support.own_time import OwnTime
from tests.vault import Vault

Mode = Literal["poke", "reschedule", "reschedule without memory", "deferred"]
MODES: tuple[Mode, ...] = ("poke", "reschedule", "reschedule without memory", "deferred")


@pytest.fixture(params=MODES, ids=lambda mode: mode.replace(" ", "_"))
def mode(request: pytest.FixtureRequest) -> Mode:
    """Each way of waiting; Airflow before 3.3 remembers nothing from one reschedule to the next."""
    return cast("Mode", request.param)


def sensor(mode: Mode, **arguments: Any) -> SFTPFileSensor:
    given: dict[str, Any] = {"poke_interval": 0.1, "timeout": 20, "task_id": "wait"} | arguments
    given |= {"mode": "reschedule"} if mode.startswith("reschedule") else {"deferrable": mode == "deferred"}
    return SFTPFileSensor(**given)


SCHEDULED = {"run_type": "scheduled", "logical_date": datetime(2026, 1, 31, tzinfo=UTC)}


def wait(mode: Mode, *, run: Any = None, **arguments: Any) -> list[FoundFile]:
    """Runs the wait as Airflow does, every look of a rescheduled one in a sensor of its own."""
    state = None if mode == "reschedule without memory" else State()
    run_by = context(state=state, **(run or {}))
    rows: list[FoundFile] = []
    while True:
        try:
            rows = sensor(mode, **arguments).execute(run_by)
        except AirflowRescheduleException as again:
            time.sleep(max(0.0, (again.reschedule_date - datetime.now(UTC)).total_seconds()))
        except TaskDeferred as deferred:
            given = {"event": fired(deferred)}
            rows = sensor(mode, **arguments).resume_execution(deferred.method_name, given, context())
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
def meanwhile(*steps: Callable[[], object], looks: int = 2) -> Iterator[None]:
    """Takes each step once ``looks`` looks have ended since the one before, while the block waits."""
    ended = threading.Semaphore(0)

    def telling(ask: Callable[..., Any], is_whole_look: Callable[[object], bool]) -> Callable[..., Any]:
        def tells(*given: Any, **options: Any) -> Any:
            answer: object = False
            try:
                answer = ask(*given, **options)
            finally:
                if is_whole_look(answer):
                    ended.release()
            return answer

        return tells

    def take() -> None:
        for step in steps:
            for _ in range(looks):
                assert ended.acquire(timeout=20), "nobody looks"
            step()
            while ended.acquire(blocking=False):
                pass

    thread = threading.Thread(target=take)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            SFTPBackend, "exists", telling(SFTPBackend.exists, lambda there: not there)
        )  # or the next is made
        patch.setattr(SFTPBackend, "find_each", telling(SFTPBackend.find_each, lambda _: True))
        thread.start()
        try:
            yield
        finally:
            thread.join()


def names(rows: list[FoundFile]) -> list[str]:
    return [row["path"] for row in rows]


# -- equal in every mode ----------------------------------------------------------------------------------------------


def test_files_that_are_there_are_found_at_once(remote: Path, mode: Mode) -> None:
    grow(remote, {"in/a.csv": b"abc", "in/b.txt": b""})
    (row,) = sensor(mode, pattern="in/*.csv").execute(context())  # neither deferred nor rescheduled
    assert (row["path"], row["size"]) == ("in/a.csv", 3)
    assert row["modified_at"] is not None
    changed = datetime.fromisoformat(row["modified_at"])
    assert changed.tzinfo is not None
    assert abs(changed - datetime.now(UTC)) < timedelta(minutes=1)


NAMED = ["in/a.csv", "/in/a.csv", {"path": "in/a.csv"}, ["q", {"path": "in/a.csv"}], "in/", ["in/", "q"]]


@pytest.mark.parametrize("path", [*NAMED, Glob("in/*.csv"), Glob("**/a.csv"), Glob("in/a.csv", "elsewhere/*")])
def test_a_file_is_waited_for_and_its_folder_too(remote: Path, mode: Mode, path: Any) -> None:
    with meanwhile(lambda: grow(remote, {"in/a.csv": b"abc"})):
        rows = wait(mode, **selecting(path, "path"))
    assert [(row["path"], row["size"]) for row in rows] == [("in/a.csv", 3)]


def test_all_the_files_asked_for_are_waited_for(remote: Path, mode: Mode) -> None:
    grow(remote, {"a.csv": b""})
    with meanwhile(lambda: grow(remote, {"b.csv": b"1"}), lambda: grow(remote, {"c.csv": b"2"})):
        assert names(wait(mode, pattern="*.csv", min_files=3)) == ["a.csv", "b.csv", "c.csv"]


def test_a_file_is_waited_for_until_it_is_large_enough(remote: Path, mode: Mode) -> None:
    grow(remote, {"a": b"x"})
    with meanwhile(lambda: grow(remote, {"a": b"xx"}), lambda: grow(remote, {"a": b"xxxx"})):
        (row,) = wait(mode, path="a", min_size=3)
    assert row["size"] == 4


def test_a_file_is_waited_for_until_it_is_stable(remote: Path, mode: Mode) -> None:
    grow(remote, {"a": b"x"})
    changed: list[float] = []

    def change() -> None:
        grow(remote, {"a": b"x" * (2 + len(changed))})
        changed.append(time.monotonic())

    with meanwhile(change, change, looks=1):
        (row,) = wait(mode, pattern="*", stable_for=0.8)
    assert row["size"] == 3
    assert time.monotonic() - changed[1] >= 0.79  # what is not the system's clock may run slower


def test_a_file_is_waited_for_until_it_is_new(remote: Path, mode: Mode) -> None:
    grow(remote, {"old": b"x"})
    after = datetime.now(UTC) - timedelta(seconds=10)
    os.utime(remote / "old", times=(after.timestamp() - 1,) * 2)
    with meanwhile(lambda: grow(remote, {"new": b"y"})):
        assert names(wait(mode, pattern="*", newer_than=after.isoformat())) == ["new"]


def test_a_file_is_waited_for_until_its_done_file_is_there(remote: Path, mode: Mode) -> None:
    grow(remote, {"a.csv": b"x", "b.csv": b"y"})
    with meanwhile(lambda: grow(remote, {"b.csv.done": b""})):
        assert names(wait(mode, pattern="*.csv", done_file="{name}.done")) == ["b.csv"]


def test_unfinished_files_are_not_taken_for_files(remote: Path, mode: Mode) -> None:
    grow(remote, {"a.csv.part": b"x", ".b": b""})
    with meanwhile(lambda: (remote / "a.csv.part").rename(remote / "a.csv")):
        assert names(wait(mode, pattern="*")) == ["a.csv"]


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

        try:
            await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer), return_exceptions=True)
        finally:
            for one in (writer, there_writer):
                one.close()
                with suppress(OSError):
                    await one.wait_closed()

    async def serve() -> None:
        await asyncio.sleep(after)
        listening = await asyncio.start_server(forward, "127.0.0.1", port)
        try:
            await asyncio.Event().wait()
        finally:
            listening.close()

    async def end() -> None:
        forwarding = asyncio.all_tasks() - {asyncio.current_task()}
        late = (await asyncio.wait(forwarding, timeout=5))[1] if forwarding else set()
        for one in late:
            one.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    task = loop.create_task(serve())
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.gather(task, return_exceptions=True)))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.run_until_complete(end())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


NON_RETRYABLE_ERRORS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "wrong password": (
        {},
        {"columns": {"password": "hunter2-secret"}, "private_key": None},
        "does not let 'tester' in",
    ),
    "wrong host key": ({}, {"known_host_keys": "SHA256:" + "A" * 43}, "SHA256:"),
    "wrong extra": ({}, {"io_timeout": "soon"}, "io_timeout"),
    "a folder": ({"path": "folder"}, {}, "it is a directory; end its name with '/'"),
    "a path that climbs": ({"path": None, "pattern": "../*"}, {}, "must not contain"),
    "an empty path": ({"path": [" "]}, {}, "path is empty"),
    "a time without zone": ({"newer_than": "2026-01-31T06:00:00"}, {}, "needs a time zone"),
    "no time at all": ({"newer_than": "yesterday"}, {}, "yesterday"),
    "a template that had no time": ({"newer_than": "None"}, {}, "renders to '' with"),
    "a done file elsewhere": (
        {"path": None, "pattern": "in/*", "done_file": "../done/{name}"},
        {},
        "done_file is the name",
    ),
    "no done file": ({"path": None, "pattern": "in/*", "done_file": ""}, {}, "done_file is the name"),
}


@pytest.mark.parametrize("name", NON_RETRYABLE_ERRORS)
def test_what_waiting_cannot_mend_fails_at_once_with_its_cause(
    connect: Connect, server: AsyncsshServer, mode: Mode, name: str
) -> None:
    arguments, connection, text = NON_RETRYABLE_ERRORS[name]
    folder = server.fresh()
    (folder.path / "folder").mkdir()
    connect(server, base_path=folder.base_path, **connection)
    with pytest.raises(AirflowFailException, match=text) as caught:
        wait(mode, **({"path": "a"} | arguments))
    assert "hunter2" not in str(caught.value)
    assert_nothing_left(server.port)


@pytest.mark.parametrize("path", ["a", Glob("in/*"), Glob("**")])
def test_a_server_that_denies_fails_the_task_at_once(connect: Connect, mode: Mode, path: Any) -> None:
    with DeniesEverything() as server:
        connect(server)
        with pytest.raises(AirflowFailException, match="denied"):
            wait(mode, **selecting(path, "path"))
        assert_nothing_left(server.port)


class DenyingFiles(Files):
    """Denies everything from some time on."""

    def map_path(self, path: bytes) -> bytes:
        assert isinstance(self.server, Denies)
        if self.server.denies:
            raise asyncssh.SFTPPermissionDenied("permission denied")
        return super().map_path(path)


class Denies(AsyncsshServer):
    """Denies everything once it is told to."""

    files = DenyingFiles
    denies = False


def _refuses_login(server: Denies, _: Path) -> None:
    server.password = "another"
    server.kill_sessions()


LATER: dict[str, tuple[Callable[[Denies, Path], object], str]] = {
    "a folder": (lambda _, folder: (folder / "a").mkdir(), "it is a directory"),
    "denied": (lambda server, _: setattr(server, "denies", True), "denied"),
    "login refused": (_refuses_login, "does not let 'tester' in"),
}


@pytest.mark.parametrize("flag", ["", "soft_fail", "never_fail", "silent_fail"])
@pytest.mark.parametrize("name", LATER)
def test_what_becomes_hopeless_while_it_waits_fails_the_task_with_its_cause(
    connect: Connect, mode: Mode, name: str, flag: str
) -> None:
    happens, text = LATER[name]
    kind = AirflowSkipException if flag in ("soft_fail", "never_fail") else AirflowFailException
    with Denies() as server:
        folder = server.fresh()
        connect(server, base_path=folder.base_path, private_key=None, columns={"password": server.password})
        with meanwhile(lambda: happens(server, folder.path)), pytest.raises(kind) as caught:
            wait(mode, path="a", **({flag: True} if flag else {}))
        assert_nothing_left(server.port)
    if kind is AirflowFailException:
        assert text in str(caught.value)


@pytest.mark.parametrize("soft", ["soft_fail", "never_fail"])
def test_a_soft_failure_is_soft_in_every_mode(connect: Connect, server: AsyncsshServer, mode: Mode, soft: str) -> None:
    connect(server, columns={"password": "wrong"}, private_key=None)
    with pytest.raises(AirflowSkipException):
        wait(mode, path="a", **{soft: True})


@pytest.mark.parametrize("looks_before", [0, 1])
@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        ("", SFTPBackendError),
        ("soft_fail", SFTPBackendError),
        ("never_fail", AirflowSkipException),
        ("silent_fail", None),
    ],
)
def test_a_look_that_fails_for_no_known_reason_is_what_airflow_is_told_it_is(
    remote: Path,
    mode: Mode,
    monkeypatch: pytest.MonkeyPatch,
    flag: str,
    kind: type[Exception] | None,
    looks_before: int,
) -> None:
    looks = 0

    def failing(look: Callable[..., Any]) -> Callable[..., Any]:
        def fails(*given: Any, **options: Any) -> Any:
            nonlocal looks
            looks += 1
            if looks <= looks_before:
                return look(*given, **options)
            if looks <= looks_before + 2:
                raise SFTPBackendError("it will not say why")
            grow(remote, {"a": b""})
            return look(*given, **options)

        return fails

    for name in ("find", "find_each"):
        monkeypatch.setattr(SFTPBackend, name, failing(getattr(SFTPBackend, name)))
    given: dict[str, Any] = {"pattern": "a*", **({flag: True} if flag else {})}
    if kind is None:
        assert names(wait(mode, **given)) == ["a"]
        assert looks == looks_before + 3
    else:
        with pytest.raises(kind):
            wait(mode, **given)
        assert looks == looks_before + 1


def test_a_vault_that_is_away_for_a_while_is_waited_for(
    server: AsyncsshServer, connect: Connect, vault: Vault, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = server.fresh()
    grow(folder.path, {"a": b""})
    assert server.password is not None
    vault.put("password", server.password)
    connect(server, base_path=folder.base_path, private_key=None, key_vault_url=vault.url, password_secret="password")
    fetch, away = default_client.fetch, [BackendUnavailable("the vault is away")] * 2

    def fetched(*given: Any, **options: Any) -> Secret:
        if away:
            raise away.pop()
        return fetch(*given, **options)

    monkeypatch.setattr(default_client, "fetch", fetched)
    assert names(wait(mode, path="a")) == ["a"]
    assert away == []


def test_a_name_that_airflow_cannot_carry_is_left_out_and_told(
    remote: Path, mode: Mode, capsys: pytest.CaptureFixture[str]
) -> None:
    (remote / os.fsdecode(b"caf\xe9.csv")).touch()
    with meanwhile(lambda: grow(remote, {"é.csv": b""})):
        rows = wait(mode, pattern="*.csv", stable_for=0.1)
    assert names(rows) == ["é.csv"]
    assert json.dumps(rows, ensure_ascii=False).encode()
    told = capsys.readouterr().out.count(r"UTF-8 text: caf\udce9.csv; have them renamed")
    assert told == {"poke": 1, "deferred": 2}.get(mode, told) > 0


def test_the_done_file_is_no_file_that_is_waited_for(remote: Path, mode: Mode) -> None:
    grow(remote, {"in/READY": b""})
    with meanwhile(lambda: grow(remote, {"in/a.csv": b""})):
        assert names(wait(mode, pattern="in/*", done_file="READY")) == ["in/a.csv"]


def test_the_second_in_which_a_time_lies_counts(remote: Path, mode: Mode) -> None:
    grow(remote, {"a": b"", "b": b""})
    second = int(time.time()) - 60
    os.utime(remote / "a", (second + 0.2, second + 0.2))
    os.utime(remote / "b", (second - 0.2, second - 0.2))
    after = datetime.fromtimestamp(second + 0.4, UTC)
    for given in (after, after.isoformat()):
        assert names(wait(mode, pattern="*", newer_than=given)) == ["a"]
    assert len(wait(mode, pattern="*", newer_than="", run=SCHEDULED)) == 2


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
    assert (trigger.poke_interval, list(trigger.stability)) == (7, ["a"])
    assert trigger.condition["stable_for"] == 300
    assert "private" not in json.dumps(trigger.serialize())


def test_a_sensor_told_to_reschedule_and_to_defer_defers(remote: Path) -> None:
    grow(remote, {"a": b"x"})
    given: dict[str, Any] = {"path": "a", "mode": "reschedule", "stable_for": 0.3, "poke_interval": 0.1}
    waiting = SFTPFileSensor(task_id="wait", deferrable=True, **given)
    began = time.monotonic()
    with pytest.raises(TaskDeferred) as caught:
        waiting.execute(context())
    assert time.monotonic() - began < 10
    assert list(cast("SFTPFileTrigger", caught.value.trigger).stability) == ["a"]
    assert names(waiting.execute_complete(context(), fired(caught.value))) == ["a"]


def test_a_deferred_wait_may_have_no_pause(remote: Path) -> None:
    with meanwhile(lambda: grow(remote, {"a": b"x"})):
        assert names(wait("deferred", path="a", poke_interval=0)) == ["a"]


@pytest.mark.parametrize(("min_size", "longest"), [(2, 1.5), (0, 60)])
def test_a_wait_without_memory_stays_for_stability_only(remote: Path, min_size: int, longest: float) -> None:
    grow(remote, {"a": b"x"})
    waiting = sensor("reschedule without memory", path="a", min_size=min_size, stable_for=2)
    began = time.monotonic()
    if min_size:
        with pytest.raises(AirflowRescheduleException):
            waiting.execute(context())
    else:
        assert names(waiting.execute(context())) == ["a"]
    assert time.monotonic() - began < longest


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
    [
        ({"min_files": 0}, "min_files is a whole number from 1, not 0"),
        ({"min_files": "1"}, "min_files is a whole number from 1, not '1'"),
        ({"min_size": "1"}, "min_size is a number from 0, not '1'"),
        ({"min_size": -1}, "min_size is a number from 0"),
        ({"stable_for": "1"}, "stable_for is a number from 0, not '1'"),
        ({"stable_for": timedelta(seconds=-1)}, "stable_for is a number from 0"),
        ({"newer_than": datetime(2026, 1, 1)}, "needs a time zone"),
        ({"newer_than": date(2026, 1, 1)}, "newer_than is a datetime or ISO 8601 text, not date"),
        ({"newer_than": 1_700_000_000}, "newer_than is a datetime"),
        ({"newer_than": 1.5}, "newer_than is a datetime"),
        ({"newer_than": ("x",)}, "newer_than is a datetime"),
    ],
)
def test_a_wrong_argument_is_refused_where_the_dag_is_written(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SFTPFileSensor(task_id="a", path="a", **arguments)


def test_the_log_says_where_it_waits_and_what_is_missing(remote: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AirflowSensorTimeout):
        wait("poke", pattern="in/*", timeout=0.3)
    log = capsys.readouterr().out
    assert re.search(r"waiting for \S+/in/\* on sftp://127\.0\.0\.1:", log)
    assert "0 of 1 files are there" in log


def test_a_folder_that_is_not_there_is_named_once_in_the_log(remote: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grow(remote, {"in/sub/other": b"", "file": b""})
    paths = ["in/*.csv", "in/sub/a", "on/*/a", "typo/sub/a.csv", "file/a", "a.csv", "**/a"]
    with pytest.raises(AirflowSensorTimeout):
        wait("poke", pattern=paths, timeout=0.5, poke_interval=0.1)
    named = re.findall(r"there is no folder (\S+) on sftp://127\.0\.0\.1:\d+ yet", capsys.readouterr().out)
    ends = ("/file", "/on", "/typo/sub")
    assert [path.endswith(end) for path, end in zip(named, ends, strict=True)] == [True] * 3


def test_what_a_rescheduled_wait_asks_airflow_is_heard_to_the_end(remote: Path) -> None:
    waiting = sensor("reschedule", path="never")
    heard: list[str] = []

    def first_reschedule_date(_: object) -> datetime:
        waiting.on_kill()  # the signal comes while Airflow is asked
        heard.append("answer")
        return datetime.now(UTC)

    run_by = context(state=State())
    cast("Any", run_by)["ti"].get_first_reschedule_date = first_reschedule_date
    with pytest.raises(TaskKilled):
        waiting.execute(run_by)
    assert heard == ["answer"]


def test_a_killed_wait_ends_at_once_and_leaves_no_connection(remote: Path, server: AsyncsshServer) -> None:
    waiting = sensor("poke", path="never", poke_interval=30, timeout=60)
    before = signal.signal(signal.SIGUSR2, lambda *_: waiting.on_kill())
    killed: list[OwnTime] = []

    def kill() -> None:
        killed.append(OwnTime())
        os.kill(os.getpid(), signal.SIGUSR2)

    try:
        with meanwhile(kill, looks=1), pytest.raises(TaskKilled):
            waiting.execute(context())
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert killed[0].seconds() < 4.3
    assert_nothing_left(server.port)
