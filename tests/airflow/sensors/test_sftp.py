"""The sensor gives the same results in poke, reschedule and deferrable mode."""

from __future__ import annotations

import asyncio
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
from typing import Any, cast

import asyncssh
import pytest

from airflow_sftp_backend import BackendUnavailable, Secret, SFTPBackend, SFTPBackendError
from airflow_sftp_backend._cancellation import TaskKilled
from airflow_sftp_backend._key_vault.client import default_client
from airflow_sftp_backend.sensors import SFTPFileSensor
from airflow_sftp_backend.triggers import SFTPFileTrigger
from tests.support.airflow.arguments import Glob, selection_argument
from tests.support.airflow.connections import Connect
from tests.support.airflow.context import State, context
from tests.support.airflow.sensors import Mode, first_event, meanwhile, names, sensor, wait
from tests.support.airflow.versions import (
    AirflowFailException,
    AirflowNotFoundException,
    AirflowRescheduleException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)
from tests.support.files import write_files
from tests.support.key_vault import Vault
from tests.support.own_time import OwnTime
from tests.support.servers import AsyncsshServer, DeniesEverything, Files, free_port
from tests.support.sessions import assert_nothing_left

SCHEDULED = {"run_type": "scheduled", "logical_date": datetime(2026, 1, 31, tzinfo=UTC)}


# -- equal in every mode ----------------------------------------------------------------------------------------------


def test_existing_files_are_found_at_once(remote: Path, mode: Mode) -> None:
    write_files(remote, {"in/a.csv": b"abc", "in/b.txt": b""})
    (row,) = sensor(mode, pattern="in/*.csv").execute(context())  # neither deferred nor rescheduled
    assert (row["path"], row["size"]) == ("in/a.csv", 3)
    assert row["modified_at"] is not None
    changed = datetime.fromisoformat(row["modified_at"])
    assert changed.tzinfo is not None
    assert abs(changed - datetime.now(UTC)) < timedelta(minutes=1)


NAMED = ["in/a.csv", "/in/a.csv", {"path": "in/a.csv"}, ["q", {"path": "in/a.csv"}], "in/", ["in/", "q"]]


@pytest.mark.parametrize("path", [*NAMED, Glob("in/*.csv"), Glob("**/a.csv"), Glob("in/a.csv", "elsewhere/*")])
def test_a_missing_file_or_directory_is_waited_for(remote: Path, mode: Mode, path: Any) -> None:
    with meanwhile(lambda: write_files(remote, {"in/a.csv": b"abc"})):
        rows = wait(mode, **selection_argument(path, "path"))
    assert [(row["path"], row["size"]) for row in rows] == [("in/a.csv", 3)]


def test_all_requested_files_are_waited_for(remote: Path, mode: Mode) -> None:
    write_files(remote, {"a.csv": b""})
    with meanwhile(lambda: write_files(remote, {"b.csv": b"1"}), lambda: write_files(remote, {"c.csv": b"2"})):
        assert names(wait(mode, pattern="*.csv", min_files=3)) == ["a.csv", "b.csv", "c.csv"]


def test_a_file_is_waited_for_until_it_is_large_enough(remote: Path, mode: Mode) -> None:
    write_files(remote, {"a": b"x"})
    with meanwhile(lambda: write_files(remote, {"a": b"xx"}), lambda: write_files(remote, {"a": b"xxxx"})):
        (row,) = wait(mode, path="a", min_size=3)
    assert row["size"] == 4


def test_a_file_is_waited_for_until_it_is_stable(remote: Path, mode: Mode) -> None:
    write_files(remote, {"a": b"x"})
    changed: list[float] = []

    def change() -> None:
        write_files(remote, {"a": b"x" * (2 + len(changed))})
        changed.append(time.monotonic())

    with meanwhile(change, change, polls=1):
        (row,) = wait(mode, pattern="*", stable_for=0.8)
    assert row["size"] == 3
    assert time.monotonic() - changed[1] >= 0.79  # what is not the system's clock may run slower


def test_a_file_is_waited_for_until_it_is_new(remote: Path, mode: Mode) -> None:
    write_files(remote, {"old": b"x"})
    after = datetime.now(UTC) - timedelta(seconds=10)
    os.utime(remote / "old", times=(after.timestamp() - 1,) * 2)
    with meanwhile(lambda: write_files(remote, {"new": b"y"})):
        assert names(wait(mode, pattern="*", newer_than=after.isoformat())) == ["new"]


def test_a_file_is_waited_for_until_its_done_file_is_there(remote: Path, mode: Mode) -> None:
    write_files(remote, {"a.csv": b"x", "b.csv": b"y"})
    with meanwhile(lambda: write_files(remote, {"b.csv.done": b""})):
        assert names(wait(mode, pattern="*.csv", done_file="{name}.done")) == ["b.csv"]


def test_unfinished_files_are_ignored(remote: Path, mode: Mode) -> None:
    write_files(remote, {"a.csv.part": b"x", ".b": b""})
    with meanwhile(lambda: (remote / "a.csv.part").rename(remote / "a.csv")):
        assert names(wait(mode, pattern="*")) == ["a.csv"]


def test_a_lost_connection_is_reopened(remote: Path, server: AsyncsshServer, mode: Mode) -> None:
    with meanwhile(server.kill_sessions, server.kill_sessions, lambda: write_files(remote, {"a": b"x"})):
        assert names(wait(mode, path="a")) == ["a"]


def test_a_briefly_unreachable_server_is_waited_for(connect: Connect, mode: Mode) -> None:
    port = free_port()
    with AsyncsshServer() as server:  # whose keys and folder the one that comes back has
        known, key = server.known_hosts.replace(str(server.port), str(port)), server.client_key.read_text()
        folder = server.fresh()
        write_files(folder.path, {"a": b"x"})
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
    """Let ``port`` refuse connections, and lead to another after ``after`` seconds."""
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
        "the server refuses the login of 'tester'",
    ),
    "wrong host key": ({}, {"known_host_keys": "SHA256:" + "A" * 43}, "SHA256:"),
    "wrong extra": ({}, {"io_timeout": "soon"}, "io_timeout"),
    "a folder": ({"path": "folder"}, {}, "the path is a directory; to select its files"),
    "a path that climbs": ({"path": None, "pattern": "../*"}, {}, "must not contain"),
    "an empty path": ({"path": [" "]}, {}, "path is empty"),
    "a time without zone": ({"newer_than": "2026-01-31T06:00:00"}, {}, "needs a time zone"),
    "no time at all": ({"newer_than": "yesterday"}, {}, "yesterday"),
    "a template that had no time": ({"newer_than": "None"}, {}, "write {{ ... or '' }}"),
    "a done file elsewhere": (
        {"path": None, "pattern": "in/*", "done_file": "../done/{name}"},
        {},
        "done_file must be",
    ),
    "no done file": ({"path": None, "pattern": "in/*", "done_file": ""}, {}, "done_file must be"),
}


@pytest.mark.parametrize("name", NON_RETRYABLE_ERRORS)
def test_a_non_retryable_error_fails_at_once_with_its_cause(
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
            wait(mode, **selection_argument(path, "path"))
        assert_nothing_left(server.port)


class DenyingFiles(Files):
    """Denies everything from some time on."""

    def map_path(self, path: bytes) -> bytes:
        assert isinstance(self.server, Denies)
        if self.server.denies:
            raise asyncssh.SFTPPermissionDenied("permission denied")
        return super().map_path(path)


class Denies(AsyncsshServer):
    """Denies everything after a switch."""

    files = DenyingFiles
    denies = False


def _refuses_login(server: Denies, _: Path) -> None:
    server.password = "another"
    server.kill_sessions()


LATER: dict[str, tuple[Callable[[Denies, Path], object], str]] = {
    "a folder": (lambda _, folder: (folder / "a").mkdir(), "the path is a directory"),
    "denied": (lambda server, _: setattr(server, "denies", True), "denied"),
    "login refused": (_refuses_login, "the server refuses the login of 'tester'"),
}


@pytest.mark.parametrize("flag", ["", "soft_fail", "never_fail", "silent_fail"])
@pytest.mark.parametrize("name", LATER)
def test_a_non_retryable_error_during_the_wait_fails_the_task(
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
def test_soft_fail_skips_the_task_in_every_mode(
    connect: Connect, server: AsyncsshServer, mode: Mode, soft: str
) -> None:
    connect(server, columns={"password": "wrong"}, private_key=None)
    with pytest.raises(AirflowSkipException):
        wait(mode, path="a", **{soft: True})


@pytest.mark.parametrize(
    ("flag", "kind"), [("soft_fail", AirflowNotFoundException), ("never_fail", AirflowSkipException)]
)
def test_a_missing_connection_is_treated_as_in_airflows_sensors(mode: Mode, flag: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        wait(mode, path="a", sftp_conn_id="no_such_connection", **{flag: True})


@pytest.mark.parametrize("polls_before", [0, 1])
@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        ("", SFTPBackendError),
        ("soft_fail", SFTPBackendError),
        ("never_fail", AirflowSkipException),
        ("silent_fail", None),
    ],
)
def test_an_unknown_poll_error_is_handled_as_the_sensor_is_configured(
    remote: Path,
    mode: Mode,
    monkeypatch: pytest.MonkeyPatch,
    flag: str,
    kind: type[Exception] | None,
    polls_before: int,
) -> None:
    polls = 0

    def failing(poll: Callable[..., Any]) -> Callable[..., Any]:
        def fails(*given: Any, **options: Any) -> Any:
            nonlocal polls
            polls += 1
            if polls <= polls_before:
                return poll(*given, **options)
            if polls <= polls_before + 2:
                raise SFTPBackendError("it will not say why")
            write_files(remote, {"a": b""})
            return poll(*given, **options)

        return fails

    for name in ("find", "find_each"):
        monkeypatch.setattr(SFTPBackend, name, failing(getattr(SFTPBackend, name)))
    given: dict[str, Any] = {"pattern": "a*", **({flag: True} if flag else {})}
    if kind is None:
        assert names(wait(mode, **given)) == ["a"]
        assert polls == polls_before + 3
    else:
        with pytest.raises(kind):
            wait(mode, **given)
        assert polls == polls_before + 1


def test_a_briefly_unreachable_vault_is_waited_for(
    server: AsyncsshServer, connect: Connect, vault: Vault, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = server.fresh()
    write_files(folder.path, {"a": b""})
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


def test_a_name_that_is_not_utf8_is_skipped_and_logged(
    remote: Path, mode: Mode, capsys: pytest.CaptureFixture[str]
) -> None:
    (remote / os.fsdecode(b"caf\xe9.csv")).touch()
    with meanwhile(lambda: write_files(remote, {"é.csv": b""})):
        rows = wait(mode, pattern="*.csv", stable_for=0.1)
    assert names(rows) == ["é.csv"]
    assert json.dumps(rows, ensure_ascii=False).encode()
    count = capsys.readouterr().out.count(r"UTF-8 names: caf\udce9.csv; set")
    assert count == {"poke": 1, "deferred": 2}.get(mode, count) > 0


def test_the_done_file_itself_is_not_returned(remote: Path, mode: Mode) -> None:
    write_files(remote, {"in/READY": b""})
    with meanwhile(lambda: write_files(remote, {"in/a.csv": b""})):
        assert names(wait(mode, pattern="in/*", done_file="READY")) == ["in/a.csv"]


def test_newer_than_includes_the_second_of_the_given_time(remote: Path, mode: Mode) -> None:
    write_files(remote, {"a": b"", "b": b""})
    second = int(time.time()) - 60
    os.utime(remote / "a", (second + 0.2, second + 0.2))
    os.utime(remote / "b", (second - 0.2, second - 0.2))
    after = datetime.fromtimestamp(second + 0.4, UTC)
    for given in (after, after.isoformat()):
        assert names(wait(mode, pattern="*", newer_than=given)) == ["a"]
    assert len(wait(mode, pattern="*", newer_than="", run=SCHEDULED)) == 2


def test_a_timedelta_counts_back_from_the_time_of_the_run(remote: Path, mode: Mode) -> None:
    write_files(remote, {"young": b"", "exact": b"", "old": b""})
    due = context()["dag_run"].run_after.timestamp()
    for name, age in {"young": 3599, "exact": 3600, "old": 3601}.items():
        os.utime(remote / name, (due - age, due - age))
    hour = timedelta(hours=1)
    assert names(wait(mode, pattern="*", newer_than=hour)) == ["exact", "young"]
    assert names(wait(mode, pattern="*", older_than=hour)) == ["old"]
    assert names(wait(mode, pattern="*", max_files=2)) == ["old", "exact"]


def test_a_wait_ends_at_its_timeout(remote: Path, mode: Mode) -> None:
    if mode == "deferred":  # the triggerer ends it at the time it is given
        with pytest.raises(TaskDeferred) as caught:
            sensor(mode, path="a", timeout=77).execute(context())
        assert caught.value.timeout == timedelta(seconds=77)
        return
    with pytest.raises(AirflowSensorTimeout):
        wait(mode, path="a", timeout=0.5)


def test_a_wait_in_one_process_has_one_login_and_leaves_no_connection(remote: Path, server: AsyncsshServer) -> None:
    before = server.logins()
    with meanwhile(lambda: write_files(remote, {"a": b"x"})):
        wait("poke", path="a")
    assert server.logins() == before + 1
    assert_nothing_left(server.port)


# -- deferring --------------------------------------------------------------------------------------------------------


def test_a_deferred_wait_polls_once_and_passes_its_state_on(remote: Path) -> None:
    write_files(remote, {"a": b"x"})
    with pytest.raises(TaskDeferred) as caught:
        sensor("deferred", path="a", stable_for=timedelta(minutes=5), poke_interval=7).execute(context())
    trigger = caught.value.trigger
    assert isinstance(trigger, SFTPFileTrigger)
    assert (trigger.poke_interval, list(trigger.stability)) == (7, ["a"])
    assert trigger.condition["stable_for"] == 300
    assert "private" not in json.dumps(trigger.serialize())


def test_deferrable_takes_precedence_over_reschedule(remote: Path) -> None:
    write_files(remote, {"a": b"x"})
    given: dict[str, Any] = {"path": "a", "mode": "reschedule", "stable_for": 0.3, "poke_interval": 0.1}
    waiting = SFTPFileSensor(task_id="wait", deferrable=True, **given)
    began = time.monotonic()
    with pytest.raises(TaskDeferred) as caught:
        waiting.execute(context())
    assert time.monotonic() - began < 10
    assert list(cast("SFTPFileTrigger", caught.value.trigger).stability) == ["a"]
    assert names(waiting.execute_complete(context(), first_event(caught.value))) == ["a"]


def test_a_deferred_wait_accepts_a_poke_interval_of_zero(remote: Path) -> None:
    with meanwhile(lambda: write_files(remote, {"a": b"x"})):
        assert names(wait("deferred", path="a", poke_interval=0)) == ["a"]


@pytest.mark.parametrize(("min_size", "stable_for"), [(2, 30), (0, 2)])
def test_a_wait_without_a_store_blocks_only_for_stability(
    remote: Path, min_size: int, stable_for: int, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(remote, {"a": b"x"})
    waiting = sensor("reschedule without memory", path="a", min_size=min_size, stable_for=stable_for)
    began = time.monotonic()
    if min_size:
        with pytest.raises(AirflowRescheduleException):
            waiting.execute(context())
    else:
        assert names(waiting.execute(context())) == ["a"]
    assert not min_size or time.monotonic() - began < stable_for
    polled_twice = (
        f"no state is kept between polls: polling again after stable_for, {stable_for} s" in capsys.readouterr().out
    )
    assert polled_twice == (not min_size)


def test_a_retryable_failure_of_the_trigger_lets_the_task_retry() -> None:
    with pytest.raises(SFTPBackendError, match="nested too deep"):
        sensor("deferred", path="a").execute_complete(
            context(), {"status": "failed", "message": "nested too deep", "retryable": True}
        )


def test_a_failed_trigger_fails_the_task_with_its_reason() -> None:
    with pytest.raises(AirflowFailException, match="no way in"):
        sensor("deferred", path="a").execute_complete(
            context(), {"status": "failed", "message": "no way in", "retryable": False}
        )


def test_deferrable_defaults_to_airflows_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not SFTPFileSensor(task_id="a", path="a").deferrable
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", "true")
    assert SFTPFileSensor(task_id="b", path="a").deferrable
    assert not SFTPFileSensor(task_id="c", path="a", deferrable=False).deferrable


# -- arguments, log, end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"min_files": 0}, "min_files must be a whole number from 1, not 0"),
        ({"min_files": "1"}, "min_files must be a whole number from 1, not '1'"),
        ({"min_size": "1"}, "min_size must be a number from 0, not '1'"),
        ({"min_size": -1}, "min_size must be a number from 0"),
        ({"stable_for": "1"}, "stable_for must be a number from 0, not '1'"),
        ({"stable_for": timedelta(seconds=-1)}, "stable_for must be a number from 0"),
        ({"newer_than": datetime(2026, 1, 1)}, "needs a time zone"),
        ({"newer_than": date(2026, 1, 1)}, "newer_than must be a datetime, a timedelta or ISO 8601 text, not date"),
        ({"newer_than": 1_700_000_000}, "newer_than must be a datetime"),
        ({"newer_than": 1.5}, "newer_than must be a datetime"),
        ({"newer_than": ("x",)}, "newer_than must be a datetime"),
    ],
)
def test_an_invalid_argument_is_refused_when_the_dag_is_parsed(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SFTPFileSensor(task_id="a", path="a", **arguments)


def test_the_log_names_the_directory_and_what_is_missing(remote: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AirflowSensorTimeout):
        wait("poke", pattern="in/*", timeout=0.3)
    log = capsys.readouterr().out
    assert re.search(r"waiting for \S+/in/\* on sftp://127\.0\.0\.1:", log)
    assert "no file found yet for in/*" in log


def test_a_missing_directory_is_logged_once(remote: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(remote, {"in/sub/other": b"", "file": b""})
    paths = ["in/*.csv", "in/sub/a", "on/*/a", "typo/sub/a.csv", "file/a", "a.csv", "**/a"]
    with pytest.raises(AirflowSensorTimeout):
        wait("poke", pattern=paths, timeout=0.5, poke_interval=0.1)
    named = re.findall(r"there is no directory (\S+) on sftp://127\.0\.0\.1:\d+ yet", capsys.readouterr().out)
    ends = ("/file", "/on", "/typo/sub")
    assert [path.endswith(end) for path, end in zip(named, ends, strict=True)] == [True] * 3


def test_a_kill_does_not_interrupt_a_message_of_a_rescheduled_wait(remote: Path) -> None:
    waiting = sensor("reschedule", path="never")
    heard: list[str] = []

    def first_reschedule_date(_: object) -> datetime:
        waiting.on_kill()  # the signal comes during a request to Airflow
        heard.append("answer")
        return datetime.now(UTC)

    run_by = context(state=State())
    cast("Any", run_by)["ti"].get_first_reschedule_date = first_reschedule_date
    with pytest.raises(TaskKilled):
        waiting.execute(run_by)
    assert heard == ["answer"]


def test_a_killed_sensor_ends_at_once_and_leaves_no_connection(remote: Path, server: AsyncsshServer) -> None:
    waiting = sensor("poke", path="never", poke_interval=30, timeout=60)
    before = signal.signal(signal.SIGUSR2, lambda *_: waiting.on_kill())
    killed: list[OwnTime] = []

    def kill() -> None:
        killed.append(OwnTime())
        os.kill(os.getpid(), signal.SIGUSR2)

    try:
        with meanwhile(kill, polls=1), pytest.raises(TaskKilled):
            waiting.execute(context())
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert killed[0].seconds() < 4.3
    assert_nothing_left(server.port)
