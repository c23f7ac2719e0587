"""Waits on one server share a connection and poll in batches."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import asyncssh
import pytest
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse

from airflow_sftp_backend import BackendUnavailable, SFTPBackend, SFTPBackendError
from airflow_sftp_backend._polling.conditions import FileCondition, PollSnapshot, poll_many
from airflow_sftp_backend._polling.shared_connection import SharedConnection
from airflow_sftp_backend.hooks import SFTPBackendHook
from tests.support.airflow.connections import Connect
from tests.support.airflow.triggers import FindOutcomes, event, run, start, trigger, until, waiting_threads
from tests.support.airflow.versions import AirflowNotFoundException
from tests.support.files import write_files
from tests.support.key_vault import Vault
from tests.support.servers import (
    AsyncsshServer,
    Files,
    OpenSSHServer,
    SilentLogin,
    SilentSFTP,
    StallsAfter,
    free_port,
    mute_listener,
)
from tests.support.sessions import assert_nothing_left


def test_fifty_waits_on_one_connection_have_one_login(remote: Path, server: AsyncsshServer) -> None:
    before = server.logins()

    async def wait() -> list[dict[str, Any]]:
        waiting = await start(*(trigger(f"{number}/*") for number in range(50)))
        await asyncio.sleep(0.5)
        write_files(remote, {f"{number}/file": b"x" * number for number in range(50)})
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
        write_files(folder.path, {"a": name.encode()})
    before = server.logins()

    async def wait() -> list[dict[str, Any]]:
        return await asyncio.gather(*(await start(trigger("a", "one"), trigger("a", "two"), trigger("a", "one"))))

    assert {event["status"] for event in run(wait())} == {"found"}
    assert server.logins() == before + 2
    assert_nothing_left(server.port)


def test_cancelling_a_wait_spares_the_others_and_the_last_one_closes(remote: Path, server: AsyncsshServer) -> None:
    async def wait() -> None:
        before = asyncio.all_tasks() - {cast("asyncio.Task[Any]", asyncio.current_task())}
        leaving, staying = await start(trigger("never"), trigger("a"))
        await asyncio.sleep(0.5)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        write_files(remote, {"a": b""})
        assert (await staying)["status"] == "found"
        assert asyncio.all_tasks() - before == {asyncio.current_task()}

    run(wait())
    assert_nothing_left(server.port)


def test_waits_that_end_while_the_server_is_away_leave_no_batch(server: AsyncsshServer, connect: Connect) -> None:
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


def test_a_lost_connection_is_reopened_once_for_all(remote: Path, server: AsyncsshServer) -> None:
    before = server.logins()

    async def wait() -> list[dict[str, Any]]:
        waiting = await start(*(trigger(f"{number}") for number in range(10)))
        await until(lambda: server.logins() == before + 1)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(server.kill_sessions)
        await asyncio.sleep(0.5)
        write_files(remote, {f"{number}": b"" for number in range(10)})
        return await asyncio.gather(*waiting)

    assert {event["status"] for event in run(wait())} == {"found"}
    assert server.logins() == before + 2


def test_a_corrected_connection_is_used_by_the_next_attempt(server: AsyncsshServer, connect: Connect) -> None:
    folder = server.fresh()
    write_files(folder.path, {"a": b""})
    connect(server, columns={"port": free_port()}, conn_retry_attempts=1)

    async def wait() -> dict[str, Any]:
        (waiting,) = await start(trigger("a"))
        await asyncio.sleep(0.5)
        connect(server, base_path=folder.base_path)
        return await waiting

    assert run(wait())["status"] == "found"


@pytest.mark.parametrize("what", ["password", "base_path"])
def test_a_changed_connection_is_used_when_the_old_one_is_lost(
    server: AsyncsshServer, connect: Connect, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    old, new = server.fresh(), server.fresh()
    assert server.password is not None
    connect(server, base_path=old.base_path, private_key=None, columns={"password": server.password})
    write_files(new.path, {"a": b""})
    logins, connections = server.logins(), server.connections()

    async def wait() -> dict[str, Any]:
        (waiting,) = await start(trigger("a"))
        await until(lambda: server.logins() == logins + 1)
        await asyncio.sleep(0.3)
        if what == "password":
            monkeypatch.setattr(server, "password", "the new one")
        connect(server, base_path=new.base_path, private_key=None, columns={"password": server.password})
        await asyncio.to_thread(server.kill_sessions)
        return await waiting

    began = time.monotonic()
    assert run(wait())["status"] == "found"
    assert time.monotonic() - began < 15
    assert (server.logins(), server.connections()) == (logins + 2, connections + 2)  # none was refused
    assert_nothing_left(server.port)


HICCUPS: list[Exception] = [
    AirflowNotFoundException("The conn_id `sftp_backend_default` isn't defined"),
    AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"message": "away"})),
    PermissionError("denied for now"),
    ConnectionRefusedError("the API server is away"),
]


@pytest.mark.parametrize("hiccup", HICCUPS, ids=lambda error: type(error).__name__)
def test_an_error_while_reading_the_connection_is_retried(
    remote: Path,
    server: AsyncsshServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    hiccup: Exception,
) -> None:
    read, away = SFTPBackendHook.get_connection, [hiccup, hiccup]

    def get_connection(_: object, conn_id: str) -> object:
        if away:
            raise away.pop()
        return read(conn_id)

    monkeypatch.setattr(SFTPBackendHook, "get_connection", classmethod(get_connection))
    write_files(remote, {"a": b""})
    assert run(event(trigger("a")))["status"] == "found"
    assert away == []
    log = capsys.readouterr().out
    assert log.count("cannot poll, will poll again: connection 'sftp_backend_default' cannot be read") == 2
    assert str(hiccup) in log


def test_a_hanging_vault_holds_up_only_the_waits_that_need_it(
    server: AsyncsshServer, connect: Connect, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = server.fresh()
    write_files(folder.path, {"a": b""})
    connect(
        server, "hanging", base_path=folder.base_path, private_key=None, key_vault_url=vault.url, password_secret="x"
    )
    connect(server, "sound", base_path=folder.base_path)
    answers = threading.Event()

    def hang(*_: object, **__: object) -> str:
        answers.wait(20)
        raise BackendUnavailable("the vault says nothing")

    monkeypatch.setattr("airflow_sftp_backend._connections.config_loader.ConfigLoader._fetch", hang)

    async def wait() -> None:
        hanging = await start(trigger("a", "hanging"))
        await asyncio.sleep(0.5)
        try:
            assert (await asyncio.wait_for(event(trigger("a", "sound")), 10))["status"] == "found"
            hanging[0].cancel()
            began = time.monotonic()
            await asyncio.gather(*hanging, return_exceptions=True)
            assert time.monotonic() - began < 10  # the vault hangs for 20 s
        finally:
            answers.set()

    run(wait())


def test_many_connections_query_one_vault_concurrently(server: AsyncsshServer, connect: Connect, vault: Vault) -> None:
    folder = server.fresh()
    write_files(folder.path, {"a": b""})
    assert server.password is not None
    names = [f"number_{number}" for number in range(8)]
    for name in names:
        secret = name.replace("_", "-")
        vault.put(secret, server.password)
        connect(
            server, name, base_path=folder.base_path, private_key=None, key_vault_url=vault.url, password_secret=secret
        )

    async def wait() -> list[dict[str, Any]]:
        return await asyncio.gather(*await start(*(trigger("a", name) for name in names)))

    assert [found["status"] for found in run(wait())] == ["found"] * 8


def test_a_changed_password_is_fetched_by_the_next_connection(
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
        write_files(folder.path, {"a": b""})
        return await waiting

    assert run(wait())["status"] == "found"
    assert server.logins() == before + 2
    assert_nothing_left(server.port)


async def cancelled_promptly(waiting: asyncio.Task[dict[str, Any]]) -> None:
    """Its thread is gone within moments, and so is its connection."""
    assert waiting_threads()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    began = time.monotonic()
    await until(lambda: not waiting_threads())
    assert time.monotonic() - began < 10


def test_a_cancelled_wait_does_not_wait_for_a_server_that_stalls(connect: Connect) -> None:
    with StallsAfter(requests=6) as stalling:
        connect(stalling, io_timeout=40)

        async def wait() -> None:
            (waiting,) = await start(trigger("a"))
            await until(lambda: stalling.requests.total() > 6)
            await cancelled_promptly(waiting)

        run(wait())
        assert_nothing_left(stalling.port)


@pytest.mark.parametrize("kind", [SilentLogin, SilentSFTP])
def test_a_cancelled_wait_does_not_wait_for_a_login(connect: Connect, kind: type[AsyncsshServer]) -> None:
    with kind() as silent:
        connect(silent, timeout=40, auth_timeout=40)

        async def wait() -> None:
            (waiting,) = await start(trigger("a"))
            await until(lambda: silent.connections() == 1)
            await asyncio.sleep(0.5)
            await cancelled_promptly(waiting)

        run(wait())
        assert silent.connections() == 1
        assert_nothing_left(silent.port)


def test_a_cancelled_wait_does_not_wait_for_a_host_without_ssh(server: AsyncsshServer, connect: Connect) -> None:
    with mute_listener() as mute:
        connect(server, columns={"port": mute.port}, timeout=40, banner_timeout=40)

        async def wait() -> None:
            (waiting,) = await start(trigger("a"))
            await until(lambda: mute.connections == 1)
            await cancelled_promptly(waiting)

        run(wait())
        assert mute.connections == 1


def test_polls_of_an_unreachable_server_back_off_for_all_waits_at_once(
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
            patch.setattr("airflow_sftp_backend._polling.shared_connection.asyncio.sleep", sleep)
            waiting = await start(*(trigger(f"{number}") for number in range(20)))
            await until(lambda: len(rests) >= 5)
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(wait())
    assert all(2.0**count / 2 - 0.3 <= rest <= 2.0**count for count, rest in enumerate(rests[:5], 1)), rests


def test_the_polls_of_one_batch_are_sent_together(
    remote: Path, server: AsyncsshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(remote, {"in/other": b"", "out/other": b""})
    batches: list[tuple[int, int]] = []
    together = SFTPBackend.find_each

    def counted(backend: SFTPBackend, groups: Sequence[Sequence[str]], *, return_exceptions: bool) -> FindOutcomes:
        before = server.requests["opendir"]
        found = together(backend, groups, return_exceptions=return_exceptions)
        batches.append((len(groups), server.requests["opendir"] - before))
        return found

    monkeypatch.setattr(SFTPBackend, "find_each", counted)

    def full() -> list[int]:
        return [opened for groups, opened in batches if groups >= 30]

    async def wait() -> None:
        waiting = await start(*(trigger(f"in/{number}*", every=0.5) for number in range(30)), trigger("out/*.csv"))
        await until(lambda: len(full()) >= 2)
        write_files(
            remote, {f"in/{number:02}": b"" for number in range(30)} | {f"in/{number}": b"" for number in range(10)}
        )
        write_files(remote, {"out/a.csv": b""})
        events = await asyncio.gather(*waiting)
        assert [event["status"] for event in events] == ["found"] * 31

    run(wait())
    assert max(full()) <= 2  # the patterns share the listings of the two directories


def sizes(seen: PollSnapshot) -> list[int]:
    return [info.size for info in seen[0]]


def test_a_wait_that_leaves_a_running_batch_does_not_hold_up_the_rest(
    remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(remote, {"a": b"12", "b": b"123"})
    polling, may_continue = threading.Event(), threading.Event()

    def slowly(*arguments: Any) -> list[PollSnapshot | SFTPBackendError]:
        polling.set()
        assert may_continue.wait(10)
        return poll_many(*arguments)

    monkeypatch.setattr("airflow_sftp_backend._polling.shared_connection.poll_many", slowly)

    async def wait() -> list[int]:
        connection = SharedConnection.acquire("sftp_backend_default")
        leaving, staying = (asyncio.create_task(connection.poll(FileCondition((name,)), sizes)) for name in "ab")
        await until(polling.is_set)
        leaving.cancel()
        await asyncio.wait([leaving])
        assert leaving.cancelled()
        may_continue.set()
        try:
            return await staying
        finally:
            connection.release()

    assert run(wait()) == [3]


def test_an_aborted_batch_leaves_no_poll_waiting(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(remote, {"a": b"12"})

    async def broken_off(*_: object) -> None:
        raise asyncio.CancelledError

    async def wait() -> list[int]:
        connection = SharedConnection.acquire("sftp_backend_default")
        try:
            with monkeypatch.context() as patch:
                patch.setattr(SFTPBackendHook, "aconfig", broken_off)
                polls = [asyncio.create_task(connection.poll(FileCondition(("a",)), sizes)) for _ in range(3)]
                done, _ = await asyncio.wait(polls, timeout=10)
                assert [one.cancelled() for one in done] == [True] * 3
            return await connection.poll(FileCondition(("a",)), sizes)
        finally:
            connection.release()

    assert run(wait()) == [2]


def test_a_refusal_in_a_batch_reaches_only_its_own_poll(openssh: OpenSSHServer, connect: Connect) -> None:
    folder = openssh.fresh()
    connect(openssh, base_path=folder.base_path)
    write_files(folder.path, {"folder/deep": b"", "file": b""})

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
    assert "the path is a directory" in a_folder["message"]
    assert "'..'" in bad["message"]
    assert plain["files"] == pattern["files"] == same["files"]


class DenyingFiles(Files):
    """One folder is not to be listed."""

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        if path.endswith(b"/denied"):
            raise asyncssh.SFTPPermissionDenied("permission denied")
        async for name in super().scandir(path):
            yield name


class DeniesAFolder(AsyncsshServer):
    """Lists any folder but one."""

    files = DenyingFiles


def test_a_bad_pattern_or_denied_directory_does_not_fail_the_batch(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[tuple[int, int]] = []
    together = SFTPBackend.find_each
    with DeniesAFolder() as server:
        folder = server.fresh()
        connect(server, base_path=folder.base_path)
        write_files(folder.path, {"in/other": b"", "denied/a": b""})

        def counted(backend: SFTPBackend, groups: Sequence[Sequence[str]], *, return_exceptions: bool) -> FindOutcomes:
            before = server.requests["opendir"]
            found = together(backend, groups, return_exceptions=return_exceptions)
            batches.append((len(groups), server.requests["opendir"] - before))
            return found

        monkeypatch.setattr(SFTPBackend, "find_each", counted)
        # On a busy machine, the waits of a batch return one by one.
        monkeypatch.setattr("airflow_sftp_backend._polling.shared_connection._BATCH_WINDOW", 1.0)

        async def wait() -> None:
            waiting = await start(
                *(trigger(f"in/{number:02}*", every=0.5) for number in range(30)),
                trigger("../x*", every=0.5),
                trigger("denied/*", every=0.5),
            )
            await until(lambda: waiting[30].done() and waiting[31].done())
            await until(lambda: len(batches) > 1)
            write_files(folder.path, {f"in/{number:02}": b"" for number in range(30)})
            events = await asyncio.gather(*waiting)
            assert [found["status"] for found in events] == ["found"] * 30 + ["failed"] * 2
            assert "must not contain" in events[30]["message"]
            assert "denied" in events[31]["message"]

        run(wait())
    assert {groups for groups, _ in batches} >= {32, 30}
    assert max(opened for _, opened in batches) <= 14


def test_twenty_waits_on_a_large_directory_do_not_block_the_loop(
    openssh: OpenSSHServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    together = SFTPBackend.find_each

    def counted(backend: SFTPBackend, groups: Sequence[Sequence[str]], *, return_exceptions: bool) -> FindOutcomes:
        found = together(backend, groups, return_exceptions=return_exceptions)
        batches.append(len(groups))
        return found

    monkeypatch.setattr(SFTPBackend, "find_each", counted)
    folder = openssh.fresh()
    connect(openssh, base_path=folder.base_path)
    write_files(folder.path, {f"in/file-{number:05}.csv": b"" for number in range(20_000)})

    async def wait() -> None:
        waiting = await start(*(trigger("in/*", every=1, min_files=20_001 + number) for number in range(20)))
        await until(lambda: len(batches) == 2, 35)  # all twenty have the result of the first
        for one in waiting:
            assert not one.done()
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    run(wait(), longest=2.5)


def test_done_files_of_one_batch_are_matched_per_wait(remote: Path, server: AsyncsshServer) -> None:
    write_files(remote, {"a/x": b"", "a/x.done": b"", "b/x": b"", "c/y": b"", "c/y.ok": b""})

    async def wait() -> list[dict[str, Any]]:
        found = await start(
            trigger("a/*", done_file="{name}.done", exclude=("*.done",)),
            trigger("b/x", done_file="{name}.done"),
            trigger("c/y", done_file="{name}.ok"),
        )
        await until(lambda: found[0].done() and found[2].done())
        await asyncio.sleep(0.3)
        assert not found[1].done()
        write_files(remote, {"b/x.done": b""})
        return await asyncio.gather(*found)

    assert [[file["path"] for file in event["files"]] for event in run(wait())] == [["a/x"], ["b/x"], ["c/y"]]


def test_a_wait_may_continue_in_another_event_loop(remote: Path, server: AsyncsshServer) -> None:
    write_files(remote, {"a": b""})
    for _ in range(2):
        assert run(event(trigger("a")))["status"] == "found"
    assert_nothing_left(server.port)
