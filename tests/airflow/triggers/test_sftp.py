"""The trigger ends with one event and never blocks the event loop."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_sftp_backend import SFTPBackend, SFTPBackendError
from airflow_sftp_backend.triggers import SFTPFileTrigger
from tests.support.airflow.arguments import condition_for
from tests.support.airflow.connections import Connect
from tests.support.airflow.triggers import FindOutcomes, event, run, start, trigger, until
from tests.support.files import write_files
from tests.support.servers import AsyncsshServer, SilentSFTP
from tests.support.sessions import assert_nothing_left


def test_a_trigger_serializes_without_secrets(remote: Path) -> None:
    path, arguments = trigger("in/*.csv", min_size=3).serialize()
    assert path == "airflow_sftp_backend.triggers.sftp.SFTPFileTrigger"
    assert json.loads(json.dumps(arguments)) == arguments
    assert SFTPFileTrigger(**arguments).serialize() == (path, arguments)
    assert "key" not in json.dumps(arguments).lower()


@pytest.mark.parametrize(
    ("extra", "columns", "text"),
    [
        ({"private_key": None}, {"password": "hunter2-secret"}, "refused: the password"),
        ({"known_host_keys": "SHA256:" + "A" * 43}, {}, "SHA256:"),
        ({"io_timeout": "soon"}, {}, "io_timeout"),
    ],
)
def test_a_non_retryable_error_is_an_event_with_its_cause(
    server: AsyncsshServer, connect: Connect, extra: dict[str, Any], columns: dict[str, object], text: str
) -> None:
    connect(server, columns=columns, **extra)
    found = run(event(trigger("a")))
    assert (found["status"], found["retryable"]) == ("failed", False)
    assert text in found["message"]
    assert "hunter2" not in found["message"]
    assert_nothing_left(server.port)


def test_a_bad_path_fails_its_own_wait_only(remote: Path, server: AsyncsshServer) -> None:
    async def wait() -> None:
        bad, good = await start(trigger("../*"), trigger("a"))
        assert "must not contain" in (await bad)["message"]
        write_files(remote, {"a": b""})
        assert (await good)["status"] == "found"

    run(wait())


def test_blocking_the_event_loop_is_detected() -> None:
    async def hold() -> None:
        time.sleep(0.3)  # noqa: ASYNC251 - just that

    with pytest.raises(AssertionError, match="held up"):
        run(hold(), longest=0.25)


def test_a_silent_server_does_not_block_the_event_loop(connect: Connect) -> None:
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


def test_a_wait_without_interval_yields_to_the_event_loop(remote: Path, server: AsyncsshServer) -> None:
    before = server.logins()

    async def wait() -> dict[str, Any]:
        (waiting,) = await start(trigger("a", every=0))
        await asyncio.sleep(1)
        assert not waiting.done()
        write_files(remote, {"a": b""})
        return await waiting

    assert run(wait(), longest=1)["status"] == "found"
    assert server.logins() == before + 1


@pytest.mark.parametrize("silent", [False, True])
def test_an_unknown_poll_error_ends_the_wait_unless_it_is_to_be_ignored(
    remote: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], silent: bool
) -> None:
    together, failures = SFTPBackend.find_each, [SFTPBackendError("it will not say why")] * 2
    write_files(remote, {"a": b""})

    def fails(backend: SFTPBackend, groups: Sequence[Sequence[str]], *, return_exceptions: bool) -> FindOutcomes:
        return [failures.pop()] if failures else together(backend, groups, return_exceptions=return_exceptions)

    monkeypatch.setattr(SFTPBackend, "find_each", fails)
    path, arguments = SFTPFileTrigger(
        "sftp_backend_default", condition_for("a*").as_json(), 0.1, silent_fail=silent
    ).serialize()
    assert path.endswith(".SFTPFileTrigger")
    found = run(event(SFTPFileTrigger(**json.loads(json.dumps(arguments)))))
    assert (found["status"], found.get("retryable")) == (("found", None) if silent else ("failed", True))
    assert capsys.readouterr().out.count("the poll failed, will poll again: it will not say why") == 2 * silent


def test_a_wait_for_an_invalid_condition_fails(remote: Path) -> None:
    condition = condition_for("a").as_json() | {"done_file": "../x"}
    found = run(event(SFTPFileTrigger("sftp_backend_default", condition, 0.1)))
    assert (found["status"], "done_file must be" in found["message"]) == ("failed", True)


def test_the_state_of_earlier_polls_is_used(remote: Path) -> None:
    write_files(remote, {"a": b"x"})
    seen = run(event(trigger("a", stable_for=0.3)))
    modified = seen["files"][0]["modified_at"]
    waiting = trigger("a", stable_for=1000)
    waiting.stability = {"a": [1, modified, time.time() - 2000]}
    assert run(event(waiting))["status"] == "found"


def test_a_long_wait_logs_periodically_what_is_missing(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    write_files(remote, {"in/small": b"abc"})

    async def use() -> None:
        (task,) = await start(waiting)
        await until(lambda: len(waited) >= 4)
        task.cancel()
        await asyncio.wait([task])

    run(use())
    assert set(waited) == {"no file is ready; 'in/small' does not count: 3 of 10 bytes"}
    assert all(600 <= after - before <= 900 for before, after in pairwise(when))


def test_a_wait_without_changes_logs_nothing(
    remote: Path, server: AsyncsshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[str] = []
    waiting = trigger("in/small", min_size=10, every=0.05)
    monkeypatch.setattr(waiting.log, "info", lambda text, *values: waited.append(text % values))
    write_files(remote, {"in/small": b"abc"})

    async def use() -> None:
        (task,) = await start(waiting)
        before = server.requests.total()
        await until(lambda: server.requests.total() > before + 10)
        task.cancel()
        await asyncio.wait([task])

    run(use())
    assert len(waited) == 1
