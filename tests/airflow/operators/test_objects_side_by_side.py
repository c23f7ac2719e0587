"""Transfer many objects side by side, and files from server to server."""

from __future__ import annotations

import random
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io.store import _STORE_CACHE, ObjectStore
from fsspec.implementations.memory import MemoryFileSystem

from airflow_sftp_backend._cancellation import TaskKilled
from airflow_sftp_backend.hooks.sftp import FilesFailed, SFTPBackendHook
from airflow_sftp_backend.operators._worker_threads import MAX_WORKERS, WorkerThreads
from tests.support.airflow.connections import Connect
from tests.support.airflow.context import State
from tests.support.airflow.operators import actions, download, run, upload
from tests.support.airflow.versions import AirflowFailException
from tests.support.servers import AsyncsshServer, Folder, LimitsOpenFiles

NAMES = [f"{number}.bin" for number in range(20)]


@pytest.fixture(autouse=True)
def forgotten_stores() -> Iterator[None]:
    """Closes and forgets the stores of a test's connections."""
    yield
    for alias in [alias for alias in _STORE_CACHE if alias.startswith("sftpbackend")]:
        _STORE_CACHE.pop(alias).fs.close()


class CountingStore(MemoryFileSystem):  # type: ignore[misc]  # has no types
    """Count the calls, and open each object while others are open."""

    cachable = False
    protocol = "memory"

    def __init__(self, together: int = 1) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self._barrier = threading.Barrier(together)

    def listings(self) -> Counter[str]:
        """Return the metadata calls since the last call of a method."""
        counted, self.calls = self.calls, Counter()
        del counted["open"]
        return counted

    def find(self, path: str, *arguments: Any, **options: Any) -> Any:
        self.calls["find"] += 1
        return super().find(path, *arguments, **options)

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        self.calls["ls"] += 1
        return super().ls(path, detail, **options)

    def info(self, path: str, **options: Any) -> Any:
        self.calls["info"] += 1
        return super().info(path, **options)

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        self.calls["open"] += 1
        self._barrier.wait(30)
        return super().open(path, mode, **options)


Use = Callable[[CountingStore], None]


@pytest.fixture
def use(store: str, monkeypatch: pytest.MonkeyPatch) -> Use:
    """Gives Airflow another store for ``memory://``."""

    def use(other: CountingStore) -> None:
        monkeypatch.setitem(_STORE_CACHE, "memory", ObjectStore("memory", None, other))

    return use


def content_of(name: str) -> bytes:
    return random.Random(name).randbytes(300_000)


@pytest.fixture
def objects(store: str) -> str:
    """The URL of a directory of objects."""
    memory = MemoryFileSystem()
    for name in NAMES:
        memory.pipe(f"{store.removeprefix('memory:/')}/in/{name}", content_of(name))
    return f"{store}/in/"


# -- objects ----------------------------------------------------------------------------------------------------------


def test_objects_are_uploaded_side_by_side(remote: Path, objects: str, use: Use) -> None:
    use(CountingStore(together=5))  # 20 objects in four rounds of five
    rows = run(upload(objects, "out/"))
    assert {row["action"] for row in rows} == {"uploaded"}
    assert {path.name: path.read_bytes() for path in (remote / "out").iterdir()} == {
        name: content_of(name) for name in NAMES
    }


def test_objects_are_downloaded_side_by_side(remote: Path, store: str, use: Use) -> None:
    (remote / "in").mkdir()
    for name in NAMES:
        (remote / "in" / name).write_bytes(content_of(name))
    use(CountingStore(together=5))
    run(download("in/", f"{store}/out/"))
    memory = MemoryFileSystem()
    found = memory.find(f"{store.removeprefix('memory:/')}/out")
    assert {path.rpartition("/")[2]: memory.cat(path) for path in found} == {name: content_of(name) for name in NAMES}


def test_objects_are_listed_once(remote: Path, objects: str, use: Use) -> None:
    counting = CountingStore()
    use(counting)
    run(upload(objects, "out/"))
    assert counting.listings() == {"find": 1}
    assert {row["action"] for row in run(upload(objects, "out/", if_exists="skip_same"))} == {"skipped"}
    assert counting.listings() == {"find": 1}
    assert {row["action"] for row in run(download("out/", objects, if_exists="skip"))} == {"skipped"}
    assert counting.listings() == {"ls": 1}


def test_a_failed_object_does_not_stop_the_others(remote: Path, objects: str, use: Use) -> None:
    class Failing(CountingStore):
        def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
            if path.endswith("/7.bin"):
                raise OSError("the store lost the object")
            return super().open(path, mode, **options)

    use(Failing())
    with pytest.raises(FilesFailed, match=r"(?s)1 of 20 files failed.*the store lost the object.*7\.bin"):
        run(upload(objects, "out/"))
    assert sorted(path.name for path in (remote / "out").iterdir()) == sorted({*NAMES} - {"7.bin"})


def test_an_unexpected_error_of_a_store_ends_the_task(remote: Path, objects: str, use: Use) -> None:
    class Broken(CountingStore):
        def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
            raise KeyError("an error of the store's library")

    use(Broken())
    with pytest.raises(KeyError, match="of the store's library"):
        run(upload(objects, "out/"))
    assert not [*remote.rglob("*.bin")]


@pytest.mark.parametrize("verify", ["size", "sha256", "none"])
def test_objects_keep_their_options(remote: Path, objects: str, verify: str) -> None:
    (remote / "out").mkdir()
    (remote / "out" / "0.bin").write_bytes(b"old")
    state = State()
    run(upload(objects, "out/", verify=verify, if_exists="replace", mode=0o600, keep_times=True), state=state)
    memory = MemoryFileSystem()
    for name in NAMES:
        path = remote / "out" / name
        created = memory.created(f"{objects.removeprefix('memory:/')}{name}")
        assert path.read_bytes() == content_of(name)
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.stat().st_mtime == int(created.timestamp())
    again = run(upload(objects, "out/"), try_number=2, state=state)
    assert {row["action"] for row in again} == {"uploaded by an earlier attempt"}


def test_an_existing_target_is_not_replaced(remote: Path, objects: str) -> None:
    (remote / "out").mkdir()
    (remote / "out" / "3.bin").write_bytes(b"old")
    with pytest.raises(FilesFailed, match=r"(?s)1 of 20 files failed.*out/3\.bin"):
        run(upload(objects, "out/"))
    assert (remote / "out" / "3.bin").read_bytes() == b"old"
    assert len([*(remote / "out").iterdir()]) == 20


# -- from server to server --------------------------------------------------------------------------------------------


@pytest.fixture
def partner(server: AsyncsshServer, connect: Connect) -> Folder:
    """The folder of the connection ``partner``."""
    folder = server.fresh()
    connect(server, "partner", base_path=folder.base_path)
    return folder


def test_files_go_from_server_to_server(remote: Path, partner: Folder) -> None:
    (partner.path / "in" / "sub").mkdir(parents=True)
    for name in ("in/a.csv", "in/sub/b.csv", "in/c.txt"):
        (partner.path / name).write_bytes(content_of(name))
    rows = run(upload("sftpbackend://partner@/in/", "out/", include="*.csv", keep_times=True))
    assert actions(rows) == {"out/a.csv": "uploaded", "out/sub/b.csv": "uploaded"}
    assert (remote / "out" / "sub" / "b.csv").read_bytes() == content_of("in/sub/b.csv")
    assert (remote / "out" / "a.csv").stat().st_mtime == int((partner.path / "in" / "a.csv").stat().st_mtime)
    rows = run(download("out/", "sftpbackend://partner@/back/", verify="sha256"))
    assert actions(rows) == {"out/a.csv": "downloaded", "out/sub/b.csv": "downloaded"}
    assert (partner.path / "back" / "a.csv").read_bytes() == content_of("in/a.csv")
    assert sorted(path.name for path in (partner.path / "back").rglob("*")) == ["a.csv", "b.csv", "sub"]
    rows = run(download("out/a.csv", "sftpbackend://partner@/back/a.csv", if_exists="skip_same"))
    assert actions(rows) == {"out/a.csv": "skipped"}


def test_characters_of_urls_in_names_are_literal(remote: Path, partner: Folder) -> None:
    name = "in/100%/x?y#z [1].csv"
    (partner.path / name).parent.mkdir(parents=True)
    (partner.path / name).write_bytes(b"1")
    run(upload("sftpbackend://partner@/in/", "out/"))
    run(download("out/", "sftpbackend://partner@/back/"))
    run(upload(f"sftpbackend://partner@/{name}", "one.csv"))
    assert (partner.path / name.replace("in/", "back/", 1)).read_bytes() == (remote / "one.csv").read_bytes() == b"1"


def test_an_existing_file_of_the_other_server_is_kept(remote: Path, partner: Folder) -> None:
    (remote / "a.csv").write_bytes(b"new")
    (partner.path / "a.csv").write_bytes(b"old")
    with pytest.raises(Exception, match=r"a\.csv.* exists"):
        run(download("a.csv", "sftpbackend://partner@/a.csv"))
    run(download("a.csv", "sftpbackend://partner@/a.csv", if_exists="replace"))
    assert (partner.path / "a.csv").read_bytes() == b"new"


def test_a_refused_login_of_the_other_server_fails_at_once(
    remote: Path, server: AsyncsshServer, connect: Connect
) -> None:
    connect(server, "partner", columns={"login": "nobody"})
    with pytest.raises(AirflowFailException, match=r"authentic|login|refused"):
        run(upload("sftpbackend://partner@/in/", "out/"))


def test_large_files_stream_in_constant_memory(remote: Path, partner: Folder) -> None:
    for number in range(3):
        (partner.path / f"{number}").write_bytes(random.Random(number).randbytes(48 << 20))
    run(upload("sftpbackend://partner@/0", "warm"))
    tracemalloc.start()
    try:
        run(upload(["sftpbackend://partner@/1", "sftpbackend://partner@/2"], "out/"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (remote / "out" / "2").read_bytes() == (partner.path / "2").read_bytes()
    assert peak < 64 << 20  # the server of the tests runs in this process


def test_connections_are_read_in_the_thread_of_the_task(
    remote: Path, partner: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = SFTPBackendHook.get_connection
    threads: list[threading.Thread] = []

    def get_connection(conn_id: str) -> Any:
        threads.append(threading.current_thread())
        return read(conn_id)

    monkeypatch.setattr(SFTPBackendHook, "get_connection", staticmethod(get_connection))
    for name in NAMES:
        (partner.path / name).write_bytes(name.encode())
    run(upload("sftpbackend://partner@/", "out/"))
    run(download("out/", "sftpbackend://partner@/back/"))
    assert len(list((partner.path / "back").iterdir())) == len(NAMES)
    assert threads
    assert {*threads} == {threading.main_thread()}


# -- workers ----------------------------------------------------------------------------------------------------------


def test_workers_call_airflow_in_the_thread_of_the_task() -> None:
    threads: list[threading.Thread] = []

    def work(workers: WorkerThreads[bool]) -> bool:
        workers.call_in_task(lambda: threads.append(threading.current_thread()))
        return threading.current_thread() is threading.main_thread()

    assert WorkerThreads([work] * 20).run() == [False] * 20
    assert threads == [threading.main_thread()] * 20
    assert WorkerThreads[bool]([]).run() == []


def test_a_kill_stops_all_workers() -> None:
    started, ended = threading.Semaphore(0), threading.Semaphore(0)

    def work(workers: WorkerThreads[None]) -> None:
        started.release()
        try:
            while True:
                workers.check()
        finally:
            ended.release()

    def kill(workers: WorkerThreads[None]) -> None:
        for _ in range(MAX_WORKERS - 1):
            started.acquire()
        workers.call_in_task(raise_kill)

    def raise_kill() -> None:
        raise TaskKilled

    with pytest.raises(TaskKilled):
        WorkerThreads([*[work] * (MAX_WORKERS - 1), kill, *[work] * 50]).run()
    assert all(ended.acquire(timeout=10) for _ in range(MAX_WORKERS - 1))
    assert not ended.acquire(blocking=False)


@pytest.mark.parametrize("is_running", [True, False], ids=["after start", "before start"])
def test_a_kill_while_threads_start_stops_those_that_run(monkeypatch: pytest.MonkeyPatch, is_running: bool) -> None:
    ended = threading.Semaphore(0)
    start, starts = threading.Thread.start, []

    def start_or_kill(thread: threading.Thread) -> None:
        starts.append(thread)
        if len(starts) < 3 or is_running:
            start(thread)
        if len(starts) == 3:
            raise TaskKilled

    def work(workers: WorkerThreads[None]) -> None:
        try:
            while True:
                workers.check()
        finally:
            ended.release()

    monkeypatch.setattr(threading.Thread, "start", start_or_kill)
    with pytest.raises(TaskKilled):
        WorkerThreads([work] * 8).run()
    assert len(starts) == 3
    assert all(ended.acquire(timeout=10) for _ in range(3 if is_running else 2))


@pytest.mark.parametrize("limit", [1, 3])
def test_a_server_with_few_open_files_sends_all_objects(connect: Connect, store: str, limit: int) -> None:
    with LimitsOpenFiles(limit=limit) as server:
        folder = server.fresh()
        connect(server, base_path=folder.base_path)
        for name in NAMES:
            (folder.path / name).write_bytes(name.encode())
        run(download("./", f"{store}/in/"))
    assert {path.rpartition("/")[2] for path in MemoryFileSystem.store} == set(NAMES)


def test_an_object_is_not_written_over_a_directory_of_its_name(remote: Path, store: str) -> None:
    (remote / "a").write_bytes(b"new")
    ObjectStoragePath(f"{store}/in/a/old").write_bytes(b"old")
    with pytest.raises(AirflowFailException, match="is a directory"):
        run(download("a", f"{store}/in/a", if_exists="replace"))
    assert [path.rpartition("/in/")[2] for path in MemoryFileSystem.store] == ["a/old"]
