"""A disturbed sync leaves whole files, and the next completes it."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_sftp_backend.backend import NotFound, SFTPBackendError
from airflow_sftp_backend.hooks.sftp import FilesFailed
from tests.support.airflow import prepared_process
from tests.support.airflow.connections import Connect
from tests.support.airflow.context import context
from tests.support.airflow.syncs import Serve, counts, run_sync, set_age, sync
from tests.support.airflow.versions import AirflowFailException
from tests.support.files import read_files, write_files
from tests.support.servers import AsyncsshServer, DropsAfter, OpenSSHServer, WithoutPosixRename
from tests.support.servers.asyncssh_server import Files

TOP = Path(__file__).parents[3]
DIRECTIONS = ["upload", "download"]


class Sides:
    """Hold the directories of a sync, and their names for the operator."""

    def __init__(self, direction: str, remote: Path, tmp_path: Path) -> None:
        is_upload = direction == "upload"
        self.direction = direction
        self.source = tmp_path / "in" if is_upload else remote / "in"
        self.target = remote / "out" if is_upload else tmp_path / "out"
        self.names = (str(self.source), "out") if is_upload else ("in", str(self.target))

    def sync(self, **arguments: Any) -> Any:
        return run_sync(sync(*self.names, self.direction, **arguments))

    def assert_equal(self, *, ignore_hidden: bool = False) -> None:
        """Check that a sync completes the target, and the next is idle.

        Temporary files and backups count as files, unless ``ignore_hidden``.
        """
        self.sync(delete=True)
        contents, arrived = read_files(self.source), read_files(self.target)
        if ignore_hidden:
            arrived = {name: content for name, content in arrived.items() if "/." not in name}
        assert arrived == contents
        assert counts(self.sync(delete=True)) == (0, 0, len(contents), 0)


def versions(count: int, size: int = 20_000) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return old and new contents of files; all have one size."""
    names = [f"d{number % 5}/f{number:03}" for number in range(count)]
    return dict.fromkeys(names[: count * 2 // 3], b"o" * size), dict.fromkeys(names[count // 3 :], b"n" * size)


def assert_whole(target: Path, *allowed: dict[str, bytes]) -> None:
    """Check that each file has one of its whole versions."""
    for name, content in read_files(target).items():
        if not Path(name).name.startswith("."):
            assert content in [version[name] for version in allowed if name in version], name


@pytest.mark.parametrize("count", [1, 40, 79])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_sync_after_a_killed_one_completes_the_target(
    openssh: OpenSSHServer, connect: Connect, tmp_path: Path, direction: str, count: int
) -> None:
    folder = openssh.fresh()
    connect(openssh, base_path=folder.base_path)
    sides = Sides(direction, folder.path, tmp_path)
    files = {f"f{number:03}": bytes([number]) * 200_000 for number in range(80)}
    write_files(sides.source, files)
    sides.target.mkdir()
    arguments = {"source": sides.names[0], "target": sides.names[1], "direction": direction}
    job = {"work": "sync", "arguments": arguments, "kill_at": count, "folder": str(sides.target)}
    command = ["-m", "tests.support.airflow.killed_task", json.dumps(job)]
    killed = prepared_process.run(command)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert_whole(sides.target, files)
    sides.assert_equal()


@pytest.mark.parametrize("requests", [2, 9, 30, 60, 100])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_sync_after_a_lost_connection_completes_the_target(
    serve: Serve, tmp_path: Path, direction: str, requests: int
) -> None:
    sides = Sides(direction, serve(DropsAfter(requests=requests)), tmp_path)
    old, new = versions(30)
    write_files(sides.target, old)
    set_age(sides.target)
    write_files(sides.source, new)
    try:
        sides.sync(delete=True)
    except (FilesFailed, SFTPBackendError) as error:
        assert "connection" in str(error)
        assert_whole(sides.target, old, new)
    sides.assert_equal()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", [AsyncsshServer, WithoutPosixRename])
@pytest.mark.parametrize("runs", [["1", "2"], ["1", "1"]], ids=["two runs", "a run that was given up and its retry"])
def test_two_syncs_at_once_leave_whole_files(
    serve: Serve, tmp_path: Path, kind: type[AsyncsshServer], direction: str, runs: list[str]
) -> None:
    sides = Sides(direction, serve(kind()), tmp_path)
    files = {f"d/f{number}": os.urandom(50_000) for number in range(30)}
    write_files(sides.source, files)
    write_files(sides.target, {**dict.fromkeys(files, b"old"), "extra": b""})
    set_age(sides.source)
    barrier, failures = threading.Barrier(2), []

    def run(run_id: str) -> None:
        task = context()
        task["ti"].run_id = run_id
        barrier.wait()
        try:
            sync(*sides.names, direction, delete=True).execute(task)
        except (FilesFailed, SFTPBackendError, OSError) as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=[run_id]) for run_id in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_whole(sides.target, files, {**dict.fromkeys(files, b"old"), "extra": b""})
    # A retry takes the temporary files of the attempt before. Without POSIX rename, one of two replacements may fail.
    may_fail = runs[0] == runs[1] or kind is WithoutPosixRename
    assert may_fail or failures == []
    sync(*sides.names, direction, delete=True).execute(context())
    sides.assert_equal(ignore_hidden=may_fail)


class _ChangingFiles(Files):
    def open(self, path: bytes, pflags: int, attrs: Any) -> Any:
        assert isinstance(self.server, ChangesAtOpen)
        change, self.server.change = self.server.change, None
        if change is not None:
            change()
        return super().open(path, pflags, attrs)


class ChangesAtOpen(AsyncsshServer):
    """Call ``change`` once, before a file is opened: after the listings."""

    files = _ChangingFiles
    change: Callable[[], object] | None = None


def _replace(path: Path) -> None:
    path.with_name("temp").write_bytes(b"other")
    path.with_name("temp").replace(path)


def _become_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _become_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


CHANGES: dict[str, Callable[[Path], object]] = {
    "grows": lambda path: path.write_bytes(b"longer than before"),
    "shrinks": lambda path: path.write_bytes(b""),
    "is replaced": _replace,
    "disappears": Path.unlink,
    "becomes a directory": _become_directory,
    "becomes a link": _become_link,
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_source_that_changes_during_a_sync_is_copied_whole_or_fails(
    serve: Serve, tmp_path: Path, direction: str, name: str
) -> None:
    server = ChangesAtOpen()
    sides = Sides(direction, serve(server), tmp_path)
    contents = {"a": b"first", "b": b"second", "c": b"third"}
    write_files(sides.source, contents)
    write_files(sides.target, {"b": b"old", "extra": b"extra"})
    set_age(sides.source)
    server.change = lambda: CHANGES[name](sides.source / "b")
    failed = ""
    try:
        sides.sync(delete=True)
    except Exception as error:  # noqa: BLE001 - any error must name the file
        failed = str(error)
        assert "b" in failed
    arrived = read_files(sides.target)
    assert (arrived["a"], arrived["c"]) == (b"first", b"third")
    assert arrived["b"] in (b"old", b"second", *([read_files(sides.source).get("b")])), failed
    assert ("extra" in arrived) == bool(failed)
    assert not [path for path in arrived if path.startswith(".")]
    if name.startswith("becomes"):
        return
    sides.assert_equal()


def test_a_changed_file_takes_little_memory(openssh: OpenSSHServer, connect: Connect, tmp_path: Path) -> None:
    folder = openssh.fresh()
    connect(openssh, base_path=folder.base_path)
    count = 1500
    source = write_files(tmp_path / "in", {f"d{number // 100}/f{number}": b"x" for number in range(count)})
    tracemalloc.start()
    try:
        result = sync(source, "out").execute(context())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result["new"] == count
    assert peak / count < 8_000


class _RecordingFiles(Files):
    async def scandir(self, path: bytes) -> AsyncIterator[Any]:
        assert isinstance(self.server, RecordsCollector)
        self.server.states.append(gc.isenabled())
        async for name in super().scandir(path):
            yield name


class RecordsCollector(AsyncsshServer):
    """Record at each listing whether Python's garbage collector runs in this process."""

    files = _RecordingFiles

    def __init__(self) -> None:
        super().__init__()
        self.states: list[bool] = []


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_garbage_collector_pauses_only_while_listing(serve: Serve, tmp_path: Path, direction: str) -> None:
    server = RecordsCollector()
    sides = Sides(direction, serve(server), tmp_path)
    with pytest.raises((AirflowFailException, NotFound)):
        sides.sync()
    assert gc.isenabled()
    write_files(sides.source, {"a": b"1"})
    sides.assert_equal()
    assert gc.isenabled()
    assert False in server.states
