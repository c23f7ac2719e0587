"""Awaited calls return the backend's results, despite cancelled calls."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import assert_type

import pytest

from airflow_sftp_backend import BackendUnavailable, NotFound, SFTPBackend, SyncBackendAdapter, WriteResult
from tests.support.backends import offline
from tests.support.servers import Folder, Server, StallsAfter, wait_until


@pytest.fixture
def adapter(backend: SFTPBackend) -> SyncBackendAdapter:
    """An adapter that owns the backend; each test closes it."""
    return SyncBackendAdapter(backend)


def test_fifty_gathered_calls_each_get_their_own_result(
    adapter: SyncBackendAdapter, folder: Folder, server: Server
) -> None:
    for number in range(50):
        (folder.path / f"{number:02}").write_bytes(b"x" * number)
    before = server.logins()

    async def all_sizes() -> list[int]:
        async with adapter:
            infos = await asyncio.gather(*(adapter.get_file_info(f"{number:02}") for number in range(50)))
            contents = await asyncio.gather(*(adapter.read_bytes(f"{number:02}") for number in range(50)))
            assert [len(content) for content in contents] == list(range(50))
            return [info.size for info in infos]

    assert asyncio.run(all_sizes()) == list(range(50))
    assert server.logins() == before + 1


def test_one_failed_call_does_not_fail_the_others(adapter: SyncBackendAdapter, folder: Folder) -> None:
    (folder.path / "there").write_bytes(b"abc")

    async def query() -> list[object]:
        async with adapter:
            names = ["there", "missing", "there"]
            return list(await asyncio.gather(*map(adapter.read_bytes, names), return_exceptions=True))

    first, second, third = asyncio.run(query())
    assert (first, type(second), third) == (b"abc", NotFound, b"abc")


def test_every_call_of_the_backend_can_be_awaited() -> None:
    def public(kind: type) -> set[str]:
        return {name for base in kind.__mro__[:-1] for name in vars(base) if not name.startswith("_")}

    # construction, handles, parts of paramiko
    not_awaited = {"abort_within", "create_atomic", "from_config", "open_atomic", "unwrap"}
    assert public(SFTPBackend) - public(SyncBackendAdapter) == not_awaited
    assert public(SyncBackendAdapter) <= public(SFTPBackend)


@pytest.mark.parametrize(
    "name",
    sorted(name for name, member in vars(SyncBackendAdapter).items() if inspect.iscoroutinefunction(member)),
)
def test_an_awaited_call_has_the_parameters_of_the_call(name: str) -> None:
    if name.startswith("_"):
        return
    ours, theirs = (
        inspect.signature(getattr(kind, name)).parameters.values() for kind in (SyncBackendAdapter, SFTPBackend)
    )
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]


def test_each_awaited_call_does_what_the_sync_call_does(
    adapter: SyncBackendAdapter, folder: Folder, tmp_path: Path
) -> None:
    local = tmp_path / "local"
    local.write_bytes(b"local")
    seen: list[int] = []

    async def use() -> None:
        async with adapter as sftp:
            await sftp.check_health()
            assert (await sftp.write("in/a", b"one")).size == 3
            assert (await sftp.write_atomic("in/b", b"two", verify="sha256", progress=seen.append)).digest is not None
            assert (await sftp.upload(local, "in/c")).size == 5
            assert await sftp.upload_many([(local, "in/d"), (local, "in/e")]) == [
                WriteResult("in/d", 5),
                WriteResult("in/e", 5),
            ]
            assert (await sftp.download("in/c", tmp_path / "back", verify="sha256")).size == 5
            downloads = await sftp.download_many([("in/a", tmp_path / "a"), ("in/b", tmp_path / "b")])
            assert [result.size for result in assert_type(downloads, list[WriteResult])] == [3, 3]
            assert sorted(info.name for info in await sftp.list_files("in")) == ["a", "b", "c", "d", "e"]
            assert [info.path for info in await sftp.find("in/[ab]", "in/e")] == ["in/a", "in/b", "in/e"]
            assert [info.path for info in await sftp.glob("**/c")] == ["in/c"]
            assert [entry.name for entry in await sftp.list_folders("")] == ["in"]
            assert len(await sftp.iter_children("in")) == 5
            assert (await sftp.get_folder_info("")).file_count == 5
            with await sftp.read("in/a") as reader:
                assert await asyncio.to_thread(reader.read) == b"one"
            await sftp.make_folder("in/new")
            assert (await sftp.write_text("in/new/text", "é", encoding="latin-1")).size == 1
            assert await sftp.read_text("in/new/text", "latin-1") == "é"
            await sftp.set_mode("in/new/text", 0o640)
            await sftp.set_times("in/new/text", datetime(2020, 1, 1, tzinfo=UTC))
            info = await sftp.get_file_info("in/new/text")
            assert (info.mode, info.modified_at) == (0o640, datetime(2020, 1, 1, tzinfo=UTC))
            await sftp.move("in/a", "out/a")
            await sftp.copy("out/a", "out/b")
            assert (await sftp.is_file("out/a"), await sftp.is_folder("out"), await sftp.exists("in/a")) == (
                True,
                True,
                False,
            )
            await sftp.delete("out/a")
            await sftp.delete("out/a", missing_ok=True)
            await sftp.delete_folder("in", recursive=True)
            assert sftp.to_key(sftp.native_path("out/b")) == sftp.resolve("out/b").key == "out/b"
            assert sftp.capabilities

    asyncio.run(use())
    assert sum(seen) == 3
    assert (tmp_path / "back").read_bytes() == b"local"
    assert sorted(path.name for path in folder.path.rglob("*")) == ["b", "out"]


def test_failures_of_many_files_are_raised_together(
    adapter: SyncBackendAdapter, folder: Folder, tmp_path: Path
) -> None:
    (folder.path / "there").write_bytes(b"abc")

    async def fetch() -> None:
        async with adapter:
            await adapter.download_many([("there", tmp_path / "there"), ("missing", tmp_path / "missing")])

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(fetch())
    assert [type(error) for error in caught.value.exceptions] == [NotFound]
    assert (tmp_path / "there").read_bytes() == b"abc"


def test_a_call_cancelled_while_queued_is_not_executed(adapter: SyncBackendAdapter, folder: Folder) -> None:
    held, release = threading.Event(), threading.Event()

    class Slow:
        """Content that comes when it is let."""

        def read(self, size: int) -> bytes:
            """Nothing, late."""
            held.set()
            release.wait(30)
            return b""

    async def use() -> None:
        async with adapter:
            writing = asyncio.create_task(adapter.write("first", Slow()))
            await asyncio.to_thread(held.wait, 30)
            waiting = asyncio.create_task(adapter.write("second", b"never"))
            await asyncio.sleep(0.05)
            waiting.cancel()
            release.set()
            assert (await writing).size == 0
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert not await adapter.exists("second")

    asyncio.run(use())
    assert [path.name for path in folder.path.iterdir()] == ["first"]


def test_the_event_loop_runs_while_a_call_waits(adapter: SyncBackendAdapter) -> None:
    release = threading.Event()

    class Slow:
        """Content that comes when it is let."""

        def read(self, size: int) -> bytes:
            """Nothing, late."""
            assert release.wait(30)
            return b""

    async def use() -> None:
        async with adapter:
            writing = asyncio.create_task(adapter.write("a", Slow()))
            for _ in range(10):
                await asyncio.sleep(0.01)
            assert not writing.done()
            release.set()
            await writing

    asyncio.run(use())


def test_an_adapter_may_be_used_from_one_loop_after_another(adapter: SyncBackendAdapter, server: Server) -> None:
    before = server.logins()
    for _ in range(2):
        asyncio.run(adapter.check_health())
    assert server.logins() == before + 1
    asyncio.run(adapter.close())


def test_close_ends_connection_and_thread_and_is_idempotent(
    make_backend: Callable[..., SFTPBackend], server: Server
) -> None:
    backend = make_backend(server)
    adapter = SyncBackendAdapter(backend)

    async def use() -> None:
        await adapter.check_health()
        await adapter.close()
        await adapter.close()

    asyncio.run(use())
    for thread in threading.enumerate():
        if "adapter" in thread.name:
            thread.join(20)
            assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="shutdown"):
        asyncio.run(adapter.check_health())


def test_resolve_and_constants_need_no_await() -> None:
    adapter = SyncBackendAdapter(offline("/data"))
    assert adapter.resolve("a").native_path == "/data/a"
    assert adapter.name == "sftp"
    assert adapter.address.startswith("sftp://127.0.0.1:")
    assert adapter.CAPABILITIES == adapter.capabilities == SFTPBackend.CAPABILITIES
    asyncio.run(adapter.close())


# -- cancelled calls


class Cancelling:
    """Progress that cancels a task once bytes are transferred."""

    def __init__(self) -> None:
        self.task: asyncio.Task[WriteResult] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    def __call__(self, _count: int) -> None:
        assert self.task is not None
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.task.cancel)


def leftovers(folder: Folder) -> list[str]:
    """Names of all that is in a folder."""
    return sorted(path.name for path in folder.path.iterdir())


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_cancelled_transfer_leaves_nothing_and_the_next_call_connects(
    make_backend: Callable[..., SFTPBackend], server: Server, tmp_path: Path, direction: str
) -> None:
    folder = server.fresh()
    large, target = tmp_path / "large", tmp_path / "target"
    with large.open("wb") as file:
        file.truncate(256 << 20)
    if direction == "down":
        (folder.path / "large").symlink_to(large)
    cancelling = Cancelling()

    async def use() -> None:
        async with SyncBackendAdapter(make_backend(server, base_path=folder.base_path)) as adapter:
            cancelling.loop = asyncio.get_running_loop()
            transfer = (
                adapter.upload(large, "large", progress=cancelling)
                if direction == "up"
                else adapter.download("large", target, progress=cancelling)
            )
            cancelling.task = asyncio.create_task(transfer)
            with pytest.raises(asyncio.CancelledError):
                await cancelling.task
            assert await adapter.exists("large") is (direction == "down")

    asyncio.run(use())
    assert leftovers(folder) == (["large"] if direction == "down" else [])
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_a_cancelled_upload_with_a_resume_key_can_be_resumed(
    make_backend: Callable[..., SFTPBackend], openssh: Server, tmp_path: Path
) -> None:
    folder = openssh.fresh()
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(128 << 20)
    done: list[int] = []

    async def use() -> None:
        async with SyncBackendAdapter(make_backend(openssh, base_path=folder.base_path)) as adapter:
            loop, cancelled = asyncio.get_running_loop(), asyncio.Event()

            def progress(count: int) -> None:
                done.append(count)
                if sum(done) > 64 << 20:
                    loop.call_soon_threadsafe(cancelled.set)

            task = asyncio.create_task(adapter.upload(large, "large", resume_key="k", progress=progress))
            await cancelled.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await adapter.find("*") == []
            assert len(leftovers(folder)) == 1
            assert (await adapter.upload(large, "large", resume_key="k")).size == 128 << 20

    asyncio.run(use())
    assert leftovers(folder) == ["large"]


@pytest.mark.parametrize("how", ["close", "leave", "leave by cancellation"])
def test_closing_ends_a_call_on_a_silent_server_within_two_seconds(
    make_backend: Callable[..., SFTPBackend], how: str
) -> None:
    async def use(server: StallsAfter) -> float:
        adapter = SyncBackendAdapter(make_backend(server))
        writing = asyncio.create_task(adapter.write_atomic("a", b"x" * (1 << 20)))
        await asyncio.to_thread(wait_until, lambda: server.requests.total() > 3, "the server to fall silent")
        began = time.monotonic()
        if how == "close":
            await adapter.close()
        elif how == "leave":
            async with adapter:
                pass
        else:
            inside = asyncio.create_task(stay(adapter))
            await asyncio.sleep(0)
            inside.cancel()
            await asyncio.wait([inside])
        took = time.monotonic() - began
        with pytest.raises((BackendUnavailable, asyncio.CancelledError)):
            await writing
        return took

    async def stay(adapter: SyncBackendAdapter) -> None:
        async with adapter:
            await asyncio.sleep(60)

    with StallsAfter(requests=3) as server:
        assert asyncio.run(use(server)) < 3


def test_a_call_runs_in_the_context_of_its_caller(adapter: SyncBackendAdapter, tmp_path: Path) -> None:
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who")
    seen: list[str] = []
    (tmp_path / "a").write_bytes(b"abc")

    async def use() -> None:
        who.set("the trigger")
        async with adapter:
            await adapter.upload(tmp_path / "a", "a", progress=lambda _: seen.append(who.get()))

    asyncio.run(use())
    assert set(seen) == {"the trigger"}
