"""Count the round trips of each call on an open connection."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from airflow_sftp_backend import NotFound, SFTPBackend
from airflow_sftp_backend.backend._protocol.messages import OpenDir
from tests.support.round_trips import count_round_trips
from tests.support.servers import AsyncsshServer, Folder, OpenSSHServer, WithoutExtensions

Call = Callable[[], object]


@pytest.fixture(params=["openssh", "asyncssh_plain", "without_extensions"])
def server(request: pytest.FixtureRequest) -> object:
    """Servers with all extensions and with none."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def is_known(server: object) -> bool:
    """Whether the server's traits are known; else types are requested first."""
    return isinstance(server, OpenSSHServer)


@pytest.fixture
def trips(backend: SFTPBackend, monkeypatch: pytest.MonkeyPatch) -> Callable[[Call], int]:
    """``trips(call)``: its round trips on a connection that is open."""
    backend.check_health()

    def count(call: Call) -> int:
        with count_round_trips(monkeypatch) as depth:
            call()
        return depth.deepest

    return count


def grow(folder: Path, names: list[str]) -> None:
    """Files of one byte on the server, with their folders."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_queries_and_deletions_take_one_round_trip(
    backend: SFTPBackend, folder: Folder, is_known: bool, trips: Callable[[Call], int]
) -> None:
    grow(folder.path, ["sub/file", "sub/other"])
    for path in ("sub/file", "sub"):
        assert trips(partial(backend.exists, path)) == 1
        assert trips(partial(backend.is_file, path)) == 1
        assert trips(partial(backend.is_folder, path)) == 1
    assert trips(lambda: backend.exists("missing/file")) == 1
    assert trips(lambda: backend.get_file_info("sub/file")) == 1
    assert trips(backend.check_health) == 1
    assert trips(lambda: backend.delete("sub/file")) == (1 if is_known else 2)
    assert trips(lambda: backend.delete("sub/other", missing_ok=True)) == (1 if is_known else 2)
    assert trips(lambda: backend.delete_folder("sub")) == (1 if is_known else 5)  # which lists it too


def test_queries_of_the_root_take_no_round_trip(backend: SFTPBackend, trips: Callable[[Call], int]) -> None:
    assert trips(lambda: (backend.exists(""), backend.is_folder("/"), backend.is_file("."))) == 0


def test_read_bytes_of_a_small_file_takes_two(
    backend: SFTPBackend, folder: Folder, server: object, trips: Callable[[Call], int]
) -> None:
    # one more where a short read does not prove the end of the file
    most = 2 if isinstance(server, OpenSSHServer) else 3
    for size in (0, 1, 32_767, 32_768):
        (folder.path / "file").write_bytes(b"x" * size)
        assert 2 <= trips(lambda: backend.read_bytes("file")) <= most


def test_a_small_file_after_a_small_one_takes_one_read(
    openssh: OpenSSHServer, make_backend: Callable[..., SFTPBackend], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"first": 10, "small": 10_000, "two_blocks": 500_000, "large": 2_000_000}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(os.urandom(size))
    backend = make_backend(openssh, base_path=str(tmp_path))
    backend.read_bytes("first")
    with count_round_trips(monkeypatch) as depth:
        backend.read_bytes("small")
    assert [type(request).__name__ for request in depth.requests] == ["Open", "FStat", "Read", "Close"]
    for name in sizes:
        assert backend.read_bytes(name) == (tmp_path / name).read_bytes()


def test_write_of_a_small_file_into_an_existing_folder_takes_two(
    backend: SFTPBackend, is_known: bool, trips: Callable[[Call], int]
) -> None:
    for size in (0, 1, 100_000):
        assert trips(partial(backend.write, f"file-{size}", b"x" * size)) == (2 if is_known else 3)
        assert trips(partial(backend.write, f"file-{size}", b"x" * size, overwrite=True)) == 2


def test_write_atomic_of_a_small_file_into_an_existing_folder_takes_three(
    backend: SFTPBackend, folder: Folder, tmp_path: Path, trips: Callable[[Call], int]
) -> None:
    (tmp_path / "local").write_bytes(b"x" * 100_000)
    for _ in range(2):  # the first call lists what others left behind, side by side with its own work
        name = str(len(list(folder.path.iterdir())))
        assert trips(partial(backend.write_atomic, name, b"content")) == 3
        assert trips(partial(backend.upload, tmp_path / "local", f"{name}-up")) == 3


def test_write_atomic_that_replaces_takes_three_where_rename_replaces(
    backend: SFTPBackend, folder: Folder, server: object, trips: Callable[[Call], int]
) -> None:
    (folder.path / "file").write_bytes(b"old")
    # Without posix-rename: a rename that is refused, a look at why, two renames to change places, and the backup is
    # removed under a name of its own after another look at the file.
    expected = 9 if isinstance(server, WithoutExtensions) else 3
    assert trips(lambda: backend.write_atomic("file", b"new", overwrite=True)) == expected


def test_move_takes_two(backend: SFTPBackend, folder: Folder, trips: Callable[[Call], int]) -> None:
    grow(folder.path, ["a", "b", "sub/x"])
    assert trips(lambda: backend.move("a", "sub/a")) == 2
    assert trips(lambda: backend.move("b", "sub/b", overwrite=True)) == 2


def test_many_queries_take_as_long_as_one(backend: SFTPBackend, folder: Folder, trips: Callable[[Call], int]) -> None:
    names = [f"{number}" for number in range(600)]
    grow(folder.path, [*names, "sub/x"])
    assert trips(lambda: backend.get_file_info_many([*names, "missing"], return_exceptions=True)) == 1


def test_many_moves_and_deletions_take_as_long_as_one(
    backend: SFTPBackend, folder: Folder, is_known: bool, trips: Callable[[Call], int]
) -> None:
    names = [f"{number}" for number in range(60)]
    grow(folder.path, [*names, "sub/x"])
    assert trips(lambda: backend.move_many([(name, f"sub/{name}") for name in names])) == 2
    assert trips(lambda: backend.delete_many([f"sub/{name}" for name in names])) == (1 if is_known else 2)


def test_a_parent_is_created_on_failure_without_a_query(
    backend: SFTPBackend, folder: Folder, is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.write("there/file", b"x")
    with count_round_trips(monkeypatch) as depth:
        backend.write("there/other", b"x", overwrite=True)
    sent = [type(request).__name__ for request in depth.requests]
    assert sent == ["Open", "Write", "FStat", "Close"]  # the time is requested on the open handle
    assert depth.deepest == 2
    with count_round_trips(monkeypatch) as depth:
        backend.write("a/b/c/d/e/file", b"x")
    assert depth.deepest == (4 if is_known else 5)  # (look,) open, all folders, open, write
    (folder.path / "file").touch()
    with count_round_trips(monkeypatch) as depth:
        backend.move("file", "f/g/h/file")
    assert depth.deepest <= 5


def test_listing_one_folder_takes_two(backend: SFTPBackend, folder: Folder, trips: Callable[[Call], int]) -> None:
    grow(folder.path, ["file", "sub/file"])
    assert trips(lambda: list(backend.list_files(""))) == 2
    assert trips(lambda: list(backend.list_folders(""))) == 2
    assert trips(lambda: list(backend.iter_children(""))) == 2
    assert trips(lambda: backend.find("*")) == 2


def test_links_in_a_listing_are_queried_together(
    backend: SFTPBackend, folder: Folder, trips: Callable[[Call], int]
) -> None:
    grow(folder.path, ["file"])
    for number in range(50):
        (folder.path / f"link-{number}").symlink_to("file")
    assert trips(lambda: list(backend.list_files(""))) == 3


@pytest.mark.parametrize("depth", [1, 3])
def test_recursive_calls_take_round_trips_by_depth_not_by_directories(
    backend: SFTPBackend, folder: Folder, is_known: bool, trips: Callable[[Call], int], depth: int
) -> None:
    taken: dict[int, dict[str, int]] = {}
    for width in (5, 50):
        below = "/".join(f"level-{level}" for level in range(1, depth))
        grow(folder.path, [f"tree/{number}/{below}/file" for number in range(width)])
        assert len(list(backend.list_files("tree", recursive=True))) == width
        taken[width] = {
            "list": trips(lambda: list(backend.list_files("tree", recursive=True))),
            "find": trips(lambda: backend.find("tree/**")),
            "sum": trips(lambda: backend.get_folder_info("tree")),
            "delete": trips(lambda: backend.delete_folder("tree", recursive=True)),
        }
        assert not (folder.path / "tree").exists()
    assert taken[5] == taken[50]
    extra_requests = 0 if is_known else depth  # at the folders of each level but the last, which has none
    assert taken[5]["list"] == taken[5]["find"] == 2 * (depth + 1) + extra_requests
    assert taken[5]["delete"] <= 3 * (depth + 1) + 2 + extra_requests


def test_find_over_many_patterns_in_one_folder_lists_it_once(
    backend: SFTPBackend, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(folder.path, [f"in/{number}.csv" for number in range(20)])
    with count_round_trips(monkeypatch) as depth:
        found = backend.find(*(f"in/*{number}.csv" for number in range(20)), "in/3.csv", "in/missing.csv")
    assert len(found) == 20
    assert Counter(type(request).__name__ for request in depth.requests)["OpenDir"] == 1


def test_find_of_plain_paths_queries_all_together_without_a_listing(
    backend: SFTPBackend, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(folder.path, ["a/b/1", "a/2", "3"])
    with count_round_trips(monkeypatch) as depth:
        found = backend.find("a/b/1", "3", "missing", "a/c/missing")
    assert [file.path for file in found] == ["3", "a/b/1"]
    assert {type(request).__name__ for request in depth.requests} == {"Stat"}


def test_find_lists_only_folders_that_can_match(
    backend: SFTPBackend, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(folder.path, ["in/2026/a.csv", "in/2025/b.csv", "out/2026/c.csv", "in/2026/deep/d.csv"])
    with count_round_trips(monkeypatch) as depth:
        found = backend.find("in/*6/*.csv")
    assert [file.path for file in found] == ["in/2026/a.csv"]
    listed = [request.path for request in depth.requests if isinstance(request, OpenDir)]
    assert [path.removeprefix(folder.base_path) for path in listed] == ["/in", "/in/2026"]


def test_transfers_of_many_files_take_the_round_trips_of_one(
    backend: SFTPBackend, server: object, tmp_path: Path, trips: Callable[[Call], int]
) -> None:
    grow(tmp_path, [f"{number}" for number in range(60)])
    names = [f"{number}" for number in range(60)]
    assert trips(lambda: backend.upload_many([(tmp_path / name, name) for name in names])) == 3
    reading = 2 if isinstance(server, OpenSSHServer) else 3
    assert trips(lambda: backend.download_many([(name, tmp_path / f"down-{name}") for name in names])) == reading


def test_opening_a_connection_sends_no_request_but_what_the_call_needs(
    make_backend: Callable[..., SFTPBackend],
) -> None:
    with AsyncsshServer() as server:
        make_backend(server).exists("file")
        assert dict(server.requests) == {"limits@openssh.com": 1, "stat": 1}
    with WithoutExtensions() as server:
        backend = make_backend(server)
        with pytest.raises(NotFound):
            backend.get_file_info("file")
        assert dict(server.requests) == {"stat": 1, "rename": 1}  # there may be a backup of what is missing


def test_the_request_for_limits_costs_no_round_trip(
    make_backend: Callable[..., SFTPBackend], openssh: AsyncsshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = openssh.fresh()
    (folder.path / "file").write_bytes(b"content")
    backend = make_backend(openssh, base_path=folder.base_path)
    with count_round_trips(monkeypatch) as depth:
        assert backend.read_bytes("file") == b"content"
    assert depth.deepest == 2
