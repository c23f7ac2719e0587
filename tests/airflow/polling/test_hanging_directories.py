"""A hanging directory delays only the waits that poll it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import asyncssh
import pytest

from airflow_sftp_backend import BackendUnavailable
from airflow_sftp_backend._polling.shared_connection import SharedConnection
from airflow_sftp_backend.backend import BackendConfig
from airflow_sftp_backend.hooks import SFTPBackendHook
from tests.support.airflow.connections import Connect
from tests.support.airflow.triggers import run, start, trigger, until, waiting_threads
from tests.support.files import write_files
from tests.support.servers import AsyncsshServer, Files, StallsAfter
from tests.support.sessions import assert_nothing_left


class HangingFiles(Files):
    """Delay the listing of one directory until the test continues it."""

    goes_on: ClassVar[threading.Event]

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        if path.endswith(b"/bad") and not self.goes_on.is_set():
            await asyncio.sleep(60)
        async for name in super().scandir(path):
            yield name


class HangsInAFolder(AsyncsshServer):
    """Lists any folder but one."""

    files = HangingFiles


class HangingUpFiles(Files):
    """Close the connection of each client that lists one directory."""

    goes_on: ClassVar[threading.Event]

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        if path.endswith(b"/bad") and not self.goes_on.is_set():
            self.channel.get_connection().abort()
            await asyncio.sleep(60)
        async for name in super().scandir(path):
            yield name


class HangsUpInAFolder(AsyncsshServer):
    """Lists any folder but one."""

    files = HangingUpFiles


@contextmanager
def trouble(connect: Connect, kind: type[HangsInAFolder | HangsUpInAFolder]) -> Iterator[tuple[AsyncsshServer, Path]]:
    """Default connection to this server, with a good and a bad directory."""
    kind.files.goes_on = threading.Event()
    with kind() as server:
        folder = server.fresh()
        connect(server, base_path=folder.base_path, io_timeout=1, conn_retry_attempts=1)
        write_files(folder.path, {"bad/file": b"", "good/file": b""})
        yield server, folder.path


@pytest.mark.parametrize("kind", [HangsInAFolder, HangsUpInAFolder])
def test_a_hanging_directory_holds_up_only_the_waits_that_poll_it(
    connect: Connect, kind: type[HangsInAFolder | HangsUpInAFolder]
) -> None:
    with trouble(connect, kind) as (server, remote):
        write_files(remote, {f"{number}/other": b"" for number in range(5)})

        async def wait() -> None:
            bad, watch = await start(trigger("bad/*", every=0.3), trigger("**/never", every=0.3))
            others = await start(
                *(trigger(f"{number}/a*", every=0.3) for number in range(5)), trigger("0/plain", every=0.3)
            )
            await asyncio.sleep(1)
            write_files(remote, {f"{number}/a": b"" for number in range(5)} | {"0/plain": b""})
            found = await asyncio.wait_for(asyncio.gather(*others), 30)
            assert [event["status"] for event in found] == ["found"] * 6
            assert not bad.done()
            kind.files.goes_on.set()
            write_files(remote, {"1/never": b""})
            assert [(await one)["status"] for one in (bad, watch)] == ["found", "found"]

        run(wait())
        assert_nothing_left(server.port)


def test_a_hanging_directory_has_one_dedicated_connection_while_needed(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with trouble(connect, HangsInAFolder) as (server, remote):

        async def wait() -> None:
            staying, *bad = await start(
                trigger("good/never", every=0.3), *(trigger("bad/*", every=every) for every in (0.2, 0.3, 0.7, 1.1))
            )
            await asyncio.sleep(0.1)
            (shared,) = SharedConnection._instances.values()
            await until(lambda: bool(shared._dedicated), 30)
            logins = server.logins()
            await until(lambda: server.logins() >= logins + 2, 30)  # it was lost over the folder, and made again
            assert caplog.text.count("using a dedicated connection") == len(shared._dedicated) == 1
            for one in bad:
                one.cancel()
            await asyncio.gather(*bad, return_exceptions=True)
            monkeypatch.setattr("airflow_sftp_backend._polling.shared_connection._DEDICATED_IDLE_SECONDS", 0.1)
            await until(lambda: not shared._dedicated, 10)
            await until(lambda: len(waiting_threads()) == 1, 10)
            write_files(remote, {"good/never": b""})
            assert (await staying)["status"] == "found"

        run(wait())
        assert_nothing_left(server.port)


def test_a_refused_login_opens_no_dedicated_connection(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    with trouble(connect, HangsUpInAFolder) as (server, _):
        logins = 0
        reading = SFTPBackendHook.aconfig

        async def sometimes(hook: SFTPBackendHook, *arguments: Any) -> BackendConfig:
            nonlocal logins
            logins += 1
            if logins > 2:  # the third is that of a look into one folder
                raise BackendUnavailable("airflow is away")
            return await reading(hook, *arguments)

        def in_order(places: list[frozenset[str]], _count: int) -> list[frozenset[str]]:
            return [frozenset({name}) for name in ("good", "bad", "other") if frozenset({name}) in places]

        monkeypatch.setattr(SFTPBackendHook, "aconfig", sometimes)
        monkeypatch.setattr("airflow_sftp_backend._polling.shared_connection.random.sample", in_order)

        async def wait() -> None:
            waiting = await start(*(trigger(f"{name}/*.csv", every=0.3) for name in ("other", "bad", "good")))
            await until(lambda: logins > 4, 30)
            (shared,) = SharedConnection._instances.values()
            assert shared._dedicated.keys() == {frozenset({"bad"})}
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

        run(wait())
        assert_nothing_left(server.port)


def test_a_recovered_directory_is_polled_with_the_others_again(connect: Connect) -> None:
    with trouble(connect, HangsInAFolder) as (server, remote):

        async def wait() -> None:
            waiting = await start(*(trigger(f"{name}/never", every=0.3) for name in ("good", "bad/*")))
            await asyncio.sleep(0.1)
            (shared,) = SharedConnection._instances.values()
            await until(lambda: bool(shared._dedicated), 30)
            HangsInAFolder.files.goes_on.set()
            await until(lambda: not shared._dedicated and len(waiting_threads()) == 1, 30)
            write_files(remote, {"good/never": b"", "bad/sub/never": b""})
            assert [(await one)["status"] for one in waiting] == ["found"] * 2

        run(wait())
        assert_nothing_left(server.port)


def test_many_waits_survive_a_stalled_server(connect: Connect) -> None:
    with StallsAfter(requests=40) as stalling:
        folder = stalling.fresh()
        connect(stalling, base_path=folder.base_path, io_timeout=1, timeout=1, conn_retry_attempts=1)

        async def wait() -> list[dict[str, Any]]:
            waiting = await start(*(trigger(f"{number}") for number in range(8)))
            await until(lambda: stalling.requests.total() > 40)
            await asyncio.sleep(2)
            stalling.limit = 10**9
            write_files(folder.path, {f"{number}": b"" for number in range(8)})
            return await asyncio.gather(*waiting)

        assert [event["status"] for event in run(wait())] == ["found"] * 8
