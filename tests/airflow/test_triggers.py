"""A wait in the triggerer ends with one event: what it found or why it gave up; and the loop is never held."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest

from airflow_sftp_backend import FileInfo, SFTPBackend, SFTPBackendError
from airflow_sftp_backend._polling.shared_connection import SharedConnection
from airflow_sftp_backend.triggers import SFTPFileTrigger
from tests.airflow.conftest import Connect, grow, waiting_for
from tests.backend.sessions import assert_nothing_left
from tests.servers import (
    AsyncsshServer,
    SilentSFTP,
    wait_until,
)
from tests.support.own_time import OwnTime

T = TypeVar("T")
RemoteMatch = list[list[FileInfo] | SFTPBackendError | OSError]


def trigger(path: str, conn_id: str = "sftp_backend_default", every: float = 0.1, **condition: Any) -> SFTPFileTrigger:
    return SFTPFileTrigger(conn_id, waiting_for(path, **condition).as_json(), every)


async def event(waiting: SFTPFileTrigger) -> dict[str, Any]:
    """Its first event, and then its end, as the triggerer takes it."""
    events = [found.payload async for found in waiting.run()]
    assert len(events) == 1
    return cast("dict[str, Any]", events[0])


def run(work: Coroutine[Any, Any, T], longest: float = 2.0) -> T:
    """Runs it on a loop that nobody may hold up for ``longest`` seconds of this process's own time."""

    async def watched() -> T:
        worst, last = 0.0, OwnTime()

        async def beat() -> None:
            nonlocal worst, last
            while True:
                await asyncio.sleep(0.02)
                worst, last = max(worst, last.seconds()), OwnTime()

        beating = asyncio.create_task(beat())
        await asyncio.sleep(0)
        try:
            return await asyncio.wait_for(work, 40)
        finally:
            beating.cancel()
            worst = max(worst, last.seconds())
            assert worst < longest, f"the event loop was held up for {worst:.1f} s"

    return asyncio.run(watched(), debug=True)


def waiting_threads() -> list[str]:
    """The threads in which connections are used."""
    return [one.name for one in threading.enumerate() if one.name.startswith("sftp ")]


@pytest.fixture(autouse=True)
def nobody_waits_at_the_end() -> Iterator[None]:
    """Whoever has waited leaves no connection and no thread."""
    yield
    assert SharedConnection._instances == {}
    wait_until(lambda: not waiting_threads(), "threads to end")


async def start(*triggers: SFTPFileTrigger) -> list[asyncio.Task[dict[str, Any]]]:
    return [asyncio.create_task(event(one)) for one in triggers]


async def until(condition: Callable[[], bool], longest: float = 20) -> None:
    """Waits as `wait_until` does, without holding the loop; ``longest`` in seconds."""
    await asyncio.to_thread(wait_until, condition, "it to be so", timeout=longest)


def test_a_trigger_travels_and_carries_no_secret(remote: Path) -> None:
    path, arguments = trigger("in/*.csv", min_size=3).serialize()
    assert path == "airflow_sftp_backend.triggers.sftp.SFTPFileTrigger"
    assert json.loads(json.dumps(arguments)) == arguments
    assert SFTPFileTrigger(**arguments).serialize() == (path, arguments)
    assert "key" not in json.dumps(arguments).lower()


@pytest.mark.parametrize(
    ("extra", "columns", "text"),
    [
        ({"private_key": None}, {"password": "hunter2-secret"}, "it refuses the password"),
        ({"known_host_keys": "SHA256:" + "A" * 43}, {}, "SHA256:"),
        ({"io_timeout": "soon"}, {}, "io_timeout"),
    ],
)
def test_what_waiting_cannot_mend_is_an_event_with_its_cause(
    server: AsyncsshServer, connect: Connect, extra: dict[str, Any], columns: dict[str, object], text: str
) -> None:
    connect(server, columns=columns, **extra)
    found = run(event(trigger("a")))
    assert found["status"] == "failed"
    assert text in found["message"]
    assert "hunter2" not in found["message"]
    assert_nothing_left(server.port)


def test_a_bad_path_fails_its_own_wait_only(remote: Path, server: AsyncsshServer) -> None:
    async def wait() -> None:
        bad, good = await start(trigger("../*"), trigger("a"))
        assert "must not contain" in (await bad)["message"]
        grow(remote, {"a": b""})
        assert (await good)["status"] == "found"

    run(wait())


def test_who_holds_the_loop_is_told() -> None:
    async def hold() -> None:
        time.sleep(0.3)  # noqa: ASYNC251 - just that

    with pytest.raises(AssertionError, match="held up"):
        run(hold(), longest=0.25)


def test_a_server_that_says_nothing_does_not_hold_the_loop(connect: Connect) -> None:
    with SilentSFTP() as silent:
        connect(silent, timeout=4, io_timeout=4, conn_retry_attempts=1)

        async def wait() -> None:
            (waiting,) = await start(trigger("a"))
            await asyncio.sleep(2)
            assert not waiting.done()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

        run(wait())
        assert_nothing_left(silent.port)


def test_a_wait_without_pause_leaves_the_loop_to_others(remote: Path, server: AsyncsshServer) -> None:
    before = server.logins()

    async def wait() -> dict[str, Any]:
        (waiting,) = await start(trigger("a", every=0))
        await asyncio.sleep(1)
        assert not waiting.done()
        grow(remote, {"a": b""})
        return await waiting

    assert run(wait(), longest=1)["status"] == "found"
    assert server.logins() == before + 1


@pytest.mark.parametrize("silent", [False, True])
def test_a_look_that_fails_for_no_known_reason_ends_the_wait_unless_it_is_to_be_passed_over(
    remote: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], silent: bool
) -> None:
    together, failures = SFTPBackend.find_each, [SFTPBackendError("it will not say why")] * 2
    grow(remote, {"a": b""})

    def fails(backend: SFTPBackend, groups: Sequence[Sequence[str]], *, return_exceptions: bool) -> RemoteMatch:
        return [failures.pop()] if failures else together(backend, groups, return_exceptions=return_exceptions)

    monkeypatch.setattr(SFTPBackend, "find_each", fails)
    path, arguments = SFTPFileTrigger(
        "sftp_backend_default", waiting_for("a*").as_json(), 0.1, silent_fail=silent
    ).serialize()
    assert path.endswith(".SFTPFileTrigger")
    found = run(event(SFTPFileTrigger(**json.loads(json.dumps(arguments)))))
    assert found["status"] == ("found" if silent else "broken")
    assert capsys.readouterr().out.count("the poll failed, will poll again: it will not say why") == 2 * silent


def test_a_wait_for_what_cannot_be_fails(remote: Path) -> None:
    condition = waiting_for("a").as_json() | {"done_file": "../x"}
    found = run(event(SFTPFileTrigger("sftp_backend_default", condition, 0.1)))
    assert (found["status"], "done_file is the name" in found["message"]) == ("failed", True)


def test_what_was_seen_before_counts(remote: Path) -> None:
    grow(remote, {"a": b"x"})
    seen = run(event(trigger("a", stable_for=0.3)))
    modified = seen["files"][0]["modified_at"]
    waiting = trigger("a", stable_for=1000)
    waiting.stability = {"a": [1, modified, time.time() - 2000]}
    assert run(event(waiting))["status"] == "found"


def test_a_wait_of_hours_says_now_and_then_what_is_missing(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]

    def monotonic() -> float:
        seconds[0] += 100  # from one question for the time to the next
        return seconds[0]

    monkeypatch.setattr("airflow_sftp_backend.triggers.sftp.time", SimpleNamespace(monotonic=monotonic, time=time.time))
    waited: list[str] = []
    when: list[float] = []

    def info(text: str, *values: object) -> None:
        waited.append(text % values)
        when.append(seconds[0])

    waiting = trigger("in/small", min_size=10, every=0.05)
    monkeypatch.setattr(waiting.log, "info", info)
    grow(remote, {"in/small": b"abc"})

    async def use() -> None:
        (task,) = await start(waiting)
        await until(lambda: len(waited) >= 4)
        task.cancel()
        await asyncio.wait([task])

    run(use())
    assert set(waited) == {"0 of 1 files are there; 'in/small' does not count: 3 of 10 bytes"}
    assert all(600 <= after - before <= 900 for before, after in pairwise(when))


def test_a_wait_that_sees_nothing_new_is_silent(
    remote: Path, server: AsyncsshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[str] = []
    waiting = trigger("in/small", min_size=10, every=0.05)
    monkeypatch.setattr(waiting.log, "info", lambda text, *values: waited.append(text % values))
    grow(remote, {"in/small": b"abc"})

    async def use() -> None:
        (task,) = await start(waiting)
        before = server.requests.total()
        await until(lambda: server.requests.total() > before + 10)
        task.cancel()
        await asyncio.wait([task])

    run(use())
    assert len(waited) == 1
