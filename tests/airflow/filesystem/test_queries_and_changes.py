"""Query and change the server through the file system."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fsspec.callbacks import Callback

from airflow_sftp_backend import AlreadyExists, BackendUnavailable, InvalidPath, NotFound, SFTPBackend
from airflow_sftp_backend.filesystem import SFTPBackendFileSystem
from tests.support.backends import offline
from tests.support.round_trips import count_round_trips
from tests.support.servers import AsyncsshServer, DeniesEverything, Folder

NOON = 1_700_000_000


@pytest.fixture
def tree(folder: Folder) -> Path:
    """Files at three levels, and links, one of them dangling."""
    top = folder.path / "top"
    (top / "sub" / "deep").mkdir(parents=True)
    for name in ("one", "sub/two", "sub/deep/three"):
        (top / name).write_bytes(name.encode())
        os.utime(top / name, (NOON, NOON))
        (top / name).chmod(0o640)
    (top / "link").symlink_to("one")
    (top / "sub" / "up").symlink_to("..")
    (top / "dangling").symlink_to("nothing")
    return top


def test_attributes_of_files_and_directories(fs: SFTPBackendFileSystem, tree: Path) -> None:
    one = {"name": "/top/one", "size": 3, "type": "file", "mtime": float(NOON), "mode": stat.S_IFREG | 0o640}
    assert fs.info("top/one") == one
    assert fs.info("sftpbackend://top/one") == one
    assert fs.info("/top/link") == one | {"name": "/top/link"}
    assert fs.info("/top/sub/up")["type"] == fs.info("")["type"] == "directory"
    assert fs.info("/")["name"] == "/"
    assert fs.modified("top/one") == datetime.fromtimestamp(NOON, UTC)
    assert fs.size("top/sub/two") == 7
    assert fs.sizes(["top/one", "/top/sub/two"]) == [3, 7]
    with pytest.raises(NotImplementedError, match="no creation times"):
        fs.created("top/one")
    before = fs.ukey("top/one"), fs.checksum("top/one")
    os.utime(tree / "one", (NOON, NOON + 9))
    assert all(old != new for old, new in zip(before, (fs.ukey("top/one"), fs.checksum("top/one")), strict=True))


def test_listings_are_sorted_and_complete(fs: SFTPBackendFileSystem, tree: Path) -> None:
    assert fs.ls("top", detail=False) == ["/top/link", "/top/one", "/top/sub"]
    assert fs.ls("top")[1] == fs.info("top/one")
    assert fs.ls("top/one", detail=False) == ["/top/one"]
    (tree / "empty").mkdir()
    assert fs.ls("top/empty") == []
    with pytest.raises(FileNotFoundError, match="top/missing"):
        fs.ls("top/missing")


def test_searches_do_not_enter_links(fs: SFTPBackendFileSystem, tree: Path) -> None:
    files = ["/top/link", "/top/one", "/top/sub/deep/three", "/top/sub/two"]
    assert fs.find("") == fs.find("/top") == files
    assert fs.find("top", maxdepth=1) == files[:2]
    assert fs.find("top/sub", withdirs=True) == [
        "/top/sub", "/top/sub/deep", "/top/sub/deep/three", "/top/sub/two", "/top/sub/up",
    ]  # fmt: skip
    assert fs.find("top/one") == ["/top/one"]
    assert fs.find("top/missing") == []
    assert fs.find("top", detail=True)["/top/one"] == fs.info("top/one")
    assert fs.glob("top/*") == ["/top/link", "/top/one", "/top/sub"]
    assert fs.glob("/top/**/t*") == ["/top/sub/deep/three", "/top/sub/two"]
    assert fs.du("top") == 3 + 3 + 7 + 14
    assert fs.du("top/sub", total=False) == {"/top/sub/deep/three": 14, "/top/sub/two": 7}


def test_walk_gives_each_directory_once(fs: SFTPBackendFileSystem, tree: Path) -> None:
    rows = [
        ("/top", ["sub"], ["link", "one"]),
        ("/top/sub", ["deep", "up"], ["two"]),
        ("/top/sub/deep", [], ["three"]),
        ("/top/sub/up", [], []),
    ]
    assert [*fs.walk("top")] == rows
    assert sorted(fs.walk("top", topdown=False)) == rows
    assert [*fs.walk("top", maxdepth=1)] == [rows[0], ("/top/sub", [], [])]
    pruned = []
    for path, directories, _ in fs.walk(""):
        pruned.append(path)
        directories[:] = [name for name in directories if name != "sub"]
    assert pruned == ["/", "/top"]
    assert [*fs.walk("missing")] == []
    with pytest.raises(FileNotFoundError):
        next(fs.walk("missing", on_error="raise"))


def test_a_search_takes_a_round_trip_for_each_level(
    fs: SFTPBackendFileSystem, folder: Folder, backend: SFTPBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        path = folder.path / f"{number}" / "sub"
        path.mkdir(parents=True)
        (path / "file.csv").touch()
    backend.check_health()

    def trips(call: Callable[[], object]) -> int:
        with count_round_trips(monkeypatch) as depth:
            call()
        return depth.deepest

    listing = trips(lambda: [*backend.list_files("", recursive=True)])
    examining = trips(lambda: backend.exists("0/sub"))
    assert trips(lambda: fs.find("")) == trips(lambda: fs.du("")) == listing
    assert trips(lambda: fs.glob("*/sub/*.csv")) == trips(lambda: [*fs.walk("")]) == listing + 1  # and the root itself
    assert trips(lambda: fs.info("0/sub")) == trips(lambda: fs.isdir("0/sub")) == examining
    assert trips(lambda: fs.sizes([f"{number}/sub/file.csv" for number in range(40)])) == 1
    assert trips(lambda: fs.cat("0/sub/file.csv")) == trips(lambda: backend.read_bytes("0/sub/file.csv"))


# -- changes ----------------------------------------------------------------------------------------------------------


def test_removal_never_follows_a_link(fs: SFTPBackendFileSystem, tree: Path, folder: Folder) -> None:
    outside = folder.path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (tree / "sub" / "out").symlink_to(outside)
    (folder.path / "out").symlink_to(outside)
    fs.rm("out", recursive=True)
    fs.rm("top", recursive=True)
    assert fs.find("") == ["/outside/kept"]


def test_removal_tries_all_and_names_each_failure(fs: SFTPBackendFileSystem, tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match="'missing'") as caught:
        fs.rm(["missing", "missing too", "top/one"])
    assert any("'missing too'" in note for note in caught.value.__notes__)
    assert not (tree / "one").exists()
    with pytest.raises(IsADirectoryError, match="Pass recursive=True"):
        fs.rm("top/sub")
    fs.rm("top/sub", recursive=True, maxdepth=1)
    assert fs.find("top/sub") == ["/top/sub/deep/three"]
    fs.rm("top/sub/*", recursive=True)
    assert fs.ls("top/sub", detail=False) == []
    with pytest.raises(FileNotFoundError):
        fs.rm("top/*.none")


def test_moves_rename_files_and_directories(fs: SFTPBackendFileSystem, tree: Path) -> None:
    inode = (tree / "one").stat().st_ino
    fs.mv("top/one", "new/place")
    assert (tree.parent / "new" / "place").stat().st_ino == inode
    fs.pipe({"new/a.csv": b"a", "new/b.csv": b"b"})
    fs.mv("new/*.csv", "done/")
    assert fs.find("done") == ["/done/a.csv", "/done/b.csv"]
    fs.mv(["done/a.csv"], ["done/b.csv"])
    assert fs.cat("done/b.csv") == b"a"
    fs.mkdir("there")
    fs.mv("done/b.csv", "there")
    assert fs.cat("there/b.csv") == b"a"
    fs.mv("there", "elsewhere", recursive=True)
    assert fs.find("elsewhere") == ["/elsewhere/b.csv"]
    assert not fs.exists("there")
    with pytest.raises(IsADirectoryError, match="elsewhere"):
        fs.mv("elsewhere", "again")
    with pytest.raises(FileNotFoundError, match="missing"):
        fs.mv("missing", "again")


def test_names_with_wildcards_are_literal_where_one_file_is_meant(fs: SFTPBackendFileSystem, folder: Folder) -> None:
    fs.pipe({"a[1].csv": b"1", "a1.csv": b"2"})
    assert fs.cat_file("a[1].csv") == b"1"
    assert fs.info("a[1].csv")["size"] == 1
    fs.mv(["a[1].csv"], ["b[1].csv"])
    fs.rm_file("b[1].csv")
    assert fs.find("") == ["/a1.csv"]


def test_directories_are_created_and_removed(fs: SFTPBackendFileSystem, tree: Path) -> None:
    fs.mkdir("top/new/below")
    fs.makedirs("top/new/below", exist_ok=True)
    fs.makedirs("/", exist_ok=True)
    for call in (lambda: fs.mkdir("top/new"), lambda: fs.makedirs("top/new"), lambda: fs.mkdir("/")):
        with pytest.raises(OSError, match=r"exists|base_path itself"):
            call()
    with pytest.raises(FileNotFoundError, match="its parent does not exist"):
        fs.mkdir("top/none/below", create_parents=False)
    for create_parents in (True, False):
        with pytest.raises(NotADirectoryError):
            fs.mkdir("top/one/below", create_parents=create_parents)
    with pytest.raises(OSError, match=r"not empty\. Use rm with recursive=True"):
        fs.rmdir("top/new")
    fs.rmdir("top/new/below")
    assert fs.ls("top/new") == []


def test_touch_creates_empties_or_sets_the_time(fs: SFTPBackendFileSystem, tree: Path) -> None:
    fs.touch("top/new")
    assert (tree / "new").read_bytes() == b""
    fs.touch("top/one", truncate=False)
    assert (tree / "one").read_bytes() == b"one"
    assert (tree / "one").stat().st_mtime > NOON
    fs.touch("top/one")
    assert (tree / "one").read_bytes() == b""


def test_transfers_tell_callbacks_of_their_progress(fs: SFTPBackendFileSystem, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"x" * 100_000)
    told = [Callback(), Callback(), Callback()]
    fs.put_file(str(tmp_path / "local"), "file", callback=told[0])
    fs.get_file("file", str(tmp_path / "new" / "copy"), callback=told[1])
    with open(tmp_path / "open", "wb") as file:
        fs.get_file("file", file, callback=told[2])
    assert [(callback.size, callback.value) for callback in told] == [(100_000, 100_000)] * 3
    assert (tmp_path / "new" / "copy").read_bytes() == (tmp_path / "open").read_bytes() == b"x" * 100_000


# -- errors -----------------------------------------------------------------------------------------------------------


def test_errors_are_those_of_python_and_of_the_backend(fs: SFTPBackendFileSystem, tree: Path) -> None:
    cases: list[tuple[Callable[[], object], type[OSError], type[Exception], str]] = [
        (lambda: fs.open("missing"), FileNotFoundError, NotFound, "cannot read"),
        (lambda: fs.open("top"), IsADirectoryError, InvalidPath, "is a directory"),
        (lambda: fs.open("top", "wb"), IsADirectoryError, InvalidPath, "is a directory"),
        (lambda: fs.open("top/one/x", "wb"), NotADirectoryError, InvalidPath, "is a file"),
        (lambda: fs.pipe("top/one", b"", mode="create"), FileExistsError, AlreadyExists, "name is taken"),
        (lambda: fs.info("top/../../etc"), OSError, InvalidPath, "must not contain '..'"),
    ]
    for call, kind, backend_kind, text in cases:
        with pytest.raises(kind, match=text) as caught:
            call()
        assert isinstance(caught.value, backend_kind)
        assert caught.value.errno is not None
        assert "overwrite" not in str(caught.value)


def test_a_refusal_is_a_permission_error(make_backend: Callable[..., SFTPBackend]) -> None:
    with DeniesEverything() as server:
        fs = SFTPBackendFileSystem(backend=make_backend(server))
        for call in (lambda: fs.ls(""), lambda: fs.exists("a"), lambda: fs.isfile("a"), lambda: [*fs.walk("")]):
            with pytest.raises(PermissionError, match="permission denied"):
                call()


def test_an_unreachable_server_is_not_a_missing_file() -> None:
    fs = SFTPBackendFileSystem(backend=offline())
    for call in (lambda: fs.exists("a"), lambda: fs.isdir("a"), lambda: fs.find(""), lambda: fs.open("a")):
        with pytest.raises(ConnectionError, match="the server refuses connections") as caught:
            call()
        assert isinstance(caught.value, BackendUnavailable)


def test_the_root_can_be_listed_and_not_removed(fs: SFTPBackendFileSystem, server: AsyncsshServer, tree: Path) -> None:
    with pytest.raises(OSError, match="base_path itself"):
        fs.rm("/", recursive=True)
    assert fs.exists("top/one")
