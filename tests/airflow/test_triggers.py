"""All who wait on one connection share it, who goes or fails troubles nobody else, and the loop is never held."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from airflow_sftp_backend import FileInfo, SFTPBackend
from airflow_sftp_backend.triggers import SFTPFileTrigger
from airflow_sftp_backend.waiting import Condition
from tests.airflow.conftest import Connect, grow
from tests.backend.sessions import assert_nothing_left
from tests.servers import AsyncsshServer, OpenSSHServer, SilentSFTP, StallsAfter, free_port, wait_until
from tests.vault import Vault

T = TypeVar("T")


def trigger(path: str, conn_id: str = "sftp_backend_default", every: float = 0.1, **condition: Any) -> SFTPFileTrigger:
    return SFTPFileTrigger(conn_id, Condition((path,), **condition).as_json(), every)


async def event(waiting: SFTPFileTrigger) -> dict[str, Any]:
    """Its first event, and then its end, as the triggerer takes it."""
    events = [found.payload async for found in waiting.run()]
    assert len(events) == 1
    return cast("dict[str, Any]", events[0])


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs it on a loop that tells whoever holds it up."""
    slow: list[str] = []

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.msg.startswith("Executing"):
                slow.append(record.getMessage())

    async def watched() -> T:
        asyncio.get_running_loop().slow_callback_duration = 2
        return await asyncio.wait_for(work, 40)

    told = Told()
    logging.getLogger("asyncio").addHandler(told)
    try:
        return asyncio.run(watched(), debug=True)
    finally:
        logging.getLogger("asyncio").removeHandler(told)
        assert not slow, "the event loop was held up"


async def start(*triggers: SFTPFileTrigger) -> list[asyncio.Task[dict[str, Any]]]:
    return [asyncio.create_task(event(one)) for one in triggers]


async def until(condition: Callable[[], bool]) -> None:
    """Waits as `wait_until` does, without holding the loop."""
    await asyncio.to_thread(wait_until, condition, "it to be so")


def test_a_trigger_travels_and_carries_no_secret(remote: Path) -> None:
    path, arguments = trigger("in/*.csv", min_size=3).serialize()
    assert path == "airflow_sftp_backend.triggers.SFTPFileTrigger"
    assert json.loads(json.dumps(arguments)) == arguments
    assert SFTPFileTrigger(**arguments).serialize() == (path, arguments)
    assert "key" not in json.dumps(arguments).lower()


def test_fifty_waits_on_one_connection_have_one_login(remote: Path, server: AsyncsshServer) -> None:
    before = server.logins()

    async def wait() -> list[dict[str, Any]]:
        waiting = await start(*(trigger(f"{number}/*") for number in range(50)))
        await asyncio.sleep(0.5)
        grow(remote, {f"{number}/file": b"x" * number for number in range(50)})
        return await asyncio.gather(*waiting)

    events = run(wait())
    assert [event["files"][0]["size"] for event in events] == list(range(50))
    assert {event["status"] for event in events} == {"found"}
    assert server.logins() == before + 1
    assert_nothing_left(server.port)


def test_waits_on_two_connections_have_two_logins(server: AsyncsshServer, connect: Connect) -> None:
    folders = [server.fresh(), server.fresh()]
    for name, folder in zip(("one", "two"), folders, strict=True):
        connect(server, name, base_path=folder.base_path)
        grow(folder.path, {"a": name.encode()})
    before = server.logins()

    async def wait() -> list[dict[str, Any]]:
        return await asyncio.gather(*(await start(trigger("a", "one"), trigger("a", "two"), trigger("a", "one"))))

    assert {event["status"] for event in run(wait())} == {"found"}
    assert server.logins() == before + 2
    assert_nothing_left(server.port)


def test_a_cancelled_wait_leaves_the_others_alone_and_the_last_closes_the_connection(
    remote: Path, server: AsyncsshServer
) -> None:
    async def wait() -> None:
        before = asyncio.all_tasks() - {cast("asyncio.Task[Any]", asyncio.current_task())}
        leaving, staying = await start(trigger("never"), trigger("a"))
        await asyncio.sleep(0.5)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        grow(remote, {"a": b""})
        assert (await staying)["status"] == "found"
        assert asyncio.all_tasks() - before == {asyncio.current_task()}

    run(wait())
    assert_nothing_left(server.port)


def test_waits_that_end_while_the_server_is_away_leave_no_round_behind(
    server: AsyncsshServer, connect: Connect
) -> None:
    connect(server, columns={"port": free_port()}, conn_retry_attempts=1)

    async def wait() -> None:
        before = asyncio.all_tasks()
        waiting = await start(*(trigger(f"{number}") for number in range(3)))
        await asyncio.sleep(1)  # the first round has failed, the next one rests
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.sleep(0.1)
        assert asyncio.all_tasks() == before

    asyncio.run(wait())


def test_a_lost_connection_is_made_once_again_for_all(remote: Path, server: AsyncsshServer) -> None:
    before = server.logins()

    async def wait() -> list[dict[str, Any]]:
        waiting = await start(*(trigger(f"{number}") for number in range(10)))
        await until(lambda: server.logins() == before + 1)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(server.kill_sessions)
        await asyncio.sleep(0.5)
        grow(remote, {f"{number}": b"" for number in range(10)})
        return await asyncio.gather(*waiting)

    assert {event["status"] for event in run(wait())} == {"found"}
    assert server.logins() == before + 2


def test_a_connection_that_is_corrected_is_taken_up_by_the_next_try(server: AsyncsshServer, connect: Connect) -> None:
    folder = server.fresh()
    grow(folder.path, {"a": b""})
    connect(server, columns={"port": free_port()}, conn_retry_attempts=1)

    async def wait() -> dict[str, Any]:
        (waiting,) = await start(trigger("a"))
        await asyncio.sleep(0.5)
        connect(server, base_path=folder.base_path)
        return await waiting

    assert run(wait())["status"] == "found"


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
        time.sleep(2.1)  # noqa: ASYNC251 - just that

    with pytest.raises(AssertionError, match="held up"):
        run(hold())


def test_a_password_that_is_changed_is_fetched_by_the_next_connection(
    vault: Vault, server: AsyncsshServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = server.fresh()
    assert server.password is not None
    vault.put("password", server.password)
    connect(server, base_path=folder.base_path, private_key=None, key_vault_url=vault.url, password_secret="password")
    before = server.logins()

    async def wait() -> dict[str, Any]:
        (waiting,) = await start(trigger("a"))
        await until(lambda: server.logins() == before + 1)
        monkeypatch.setattr(server, "password", "the new one")
        vault.put("password", "the new one")
        await asyncio.to_thread(server.kill_sessions)
        grow(folder.path, {"a": b""})
        return await waiting

    assert run(wait())["status"] == "found"
    assert server.logins() == before + 2
    assert_nothing_left(server.port)


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


def test_a_server_that_is_away_is_asked_less_and_less_often_for_all_together(
    server: AsyncsshServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(server, columns={"port": free_port()}, conn_retry_attempts=1)
    rests: list[float] = []
    slept = asyncio.sleep

    async def sleep(seconds: float) -> None:
        rests.extend([seconds] if seconds > 0.2 else [])
        await slept(min(seconds, 0.2))

    async def wait() -> None:
        with monkeypatch.context() as patch:
            patch.setattr("airflow_sftp_backend.shared.asyncio.sleep", sleep)
            waiting = await start(*(trigger(f"{number}") for number in range(20)))
            await until(lambda: len(rests) >= 5)
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(wait())
    assert all(2.0**count / 2 - 0.3 <= rest <= 2.0**count for count, rest in enumerate(rests[:5], 1)), rests


def test_the_looks_of_one_round_are_one(remote: Path, server: AsyncsshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(remote, {"in/other": b"", "out/other": b""})
    rounds: list[tuple[int, int]] = []
    together = SFTPBackend.find_each

    def counted(backend: SFTPBackend, groups: Sequence[Sequence[str]]) -> list[list[FileInfo]]:
        before = server.requests.total()
        found = together(backend, groups)
        rounds.append((len(groups), server.requests.total() - before))
        return found

    monkeypatch.setattr(SFTPBackend, "find_each", counted)

    async def wait() -> None:
        waiting = await start(*(trigger(f"in/{number}*", every=0.5) for number in range(30)), trigger("out/*.csv"))
        await asyncio.sleep(2.2)
        grow(remote, {f"in/{number:02}": b"" for number in range(30)} | {f"in/{number}": b"" for number in range(10)})
        grow(remote, {"out/a.csv": b""})
        events = await asyncio.gather(*waiting)
        assert [event["status"] for event in events] == ["found"] * 31

    run(wait())
    full = [asked for groups, asked in rounds if groups >= 30]
    assert len(full) >= 2
    assert max(full) <= 14  # two folders, each opened, read twice, closed, and the root once more


def test_a_refusal_in_a_round_is_told_to_whom_it_concerns(openssh: OpenSSHServer, connect: Connect) -> None:
    folder = openssh.fresh()
    connect(openssh, base_path=folder.base_path)
    grow(folder.path, {"folder/deep": b"", "file": b""})

    async def wait() -> list[dict[str, Any]]:
        return await asyncio.gather(
            *await start(
                trigger("folder"), trigger("file"), trigger("fil*"), trigger("file/../x*"), trigger("file", min_size=0)
            )
        )

    a_folder, plain, pattern, bad, same = run(wait())
    assert [event["status"] for event in (a_folder, plain, pattern, bad, same)] == [
        "failed", "found", "found", "failed", "found",
    ]  # fmt: skip
    assert "it is a folder" in a_folder["message"]
    assert "'..'" in bad["message"]
    assert plain["files"] == pattern["files"] == same["files"]


def test_done_files_of_one_round_are_each_its_own(remote: Path, server: AsyncsshServer) -> None:
    grow(remote, {"a/x": b"", "a/x.done": b"", "b/x": b"", "c/y": b"", "c/y.ok": b""})

    async def wait() -> list[dict[str, Any]]:
        found = await start(
            trigger("a/*", done_file="{name}.done", ignore=("*.done",)),
            trigger("b/x", done_file="{name}.done"),
            trigger("c/y", done_file="{name}.ok"),
        )
        await asyncio.sleep(0.6)
        assert [one.done() for one in found] == [True, False, True]
        grow(remote, {"b/x.done": b""})
        return await asyncio.gather(*found)

    assert [[file["path"] for file in event["files"]] for event in run(wait())] == [["a/x"], ["b/x"], ["c/y"]]


def test_a_wait_may_go_on_in_another_loop(remote: Path, server: AsyncsshServer) -> None:
    grow(remote, {"a": b""})
    for _ in range(2):
        assert run(event(trigger("a")))["status"] == "found"
    assert_nothing_left(server.port)


def test_many_waiters_survive_a_server_that_stalls(connect: Connect) -> None:
    with StallsAfter(requests=40) as stalling:
        folder = stalling.fresh()
        connect(stalling, base_path=folder.base_path, io_timeout=1, timeout=1, conn_retry_attempts=1)

        async def wait() -> list[dict[str, Any]]:
            waiting = await start(*(trigger(f"{number}") for number in range(8)))
            await until(lambda: stalling.requests.total() > 40)
            await asyncio.sleep(2)
            stalling.limit = 10**9
            grow(folder.path, {f"{number}": b"" for number in range(8)})
            return await asyncio.gather(*waiting)

        assert [event["status"] for event in run(wait())] == ["found"] * 8


def test_what_was_seen_before_counts(remote: Path) -> None:
    grow(remote, {"a": b"x"})
    seen = run(event(trigger("a", stable_for=0.3)))
    modified = seen["files"][0]["modified_at"]
    waiting = trigger("a", stable_for=1000)
    waiting.observed = {"a": [1, modified, time.time() - 2000]}
    assert run(event(waiting))["status"] == "found"
