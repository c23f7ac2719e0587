"""The contract's promises about moving, copying and deleting."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable

import pytest

from airflow_sftp_backend import (
    AlreadyExists,
    BackendUnavailable,
    DirectoryNotEmpty,
    InvalidPath,
    NotFound,
    PermissionDenied,
    SFTPBackend,
    SFTPBackendError,
)
from tests.support.assertions import refused
from tests.support.backends import offline
from tests.support.files import tree
from tests.support.servers import (
    DropBox,
    DropsAfter,
    Folder,
    MovesAway,
    PosixRenameRefusesTaken,
    RefusesRename,
    RenameReplaces,
    Server,
    ShortReads,
    WithoutSetstat,
)

MakeBackend = Callable[..., SFTPBackend]
Change = Callable[..., None]
BIG = random.Random(9).randbytes(1_000_001)


@pytest.fixture(params=["move", "copy"])
def change(request: pytest.FixtureRequest, backend: SFTPBackend) -> Change:
    """``move`` and ``copy``, which promise the same but for the source."""
    found: Change = getattr(backend, request.param)
    return found


# -- move -------------------------------------------------------------------------------------------------------------


def test_move_renames_and_makes_parents(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"content")
    before = (folder.path / "file").stat()
    backend.move("/file", "a//b/./renamed")
    assert tree(folder.path) == {"a": None, "a/b": None, "a/b/renamed": b"content"}
    after = (folder.path / "a" / "b" / "renamed").stat()
    assert (before.st_ino, before.st_mtime) == (after.st_ino, after.st_mtime)


def test_move_onto_itself_only_checks_the_source(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"content")
    backend.move("file", "/./file")
    backend.move("file", "file", overwrite=True)
    assert tree(folder.path) == {"file": b"content"}
    with refused(NotFound, backend, "missing"):
        backend.move("missing", "missing")
    (folder.path / "sub").mkdir()
    with refused(InvalidPath, backend, "sub"):
        backend.move("sub", "sub")


def test_move_of_a_link_moves_the_link(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"content")
    (folder.path / "link").symlink_to("file")
    backend.move("link", "moved")
    assert tree(folder.path) == {"file": b"content", "moved": b"-> file"}


def test_a_replaced_link_is_replaced_itself(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "precious").write_bytes(b"precious")
    for name in ("moved", "written", "copied"):
        (folder.path / name).symlink_to("precious")
    (folder.path / "file").write_bytes(b"content")
    backend.copy("file", "copied", overwrite=True)
    backend.move("file", "moved", overwrite=True)
    backend.write_atomic("written", b"content", overwrite=True)
    assert tree(folder.path) == {"precious": b"precious"} | dict.fromkeys(("copied", "moved", "written"), b"content")


# -- move and copy ----------------------------------------------------------------------------------------------------


def test_a_move_removes_its_source_and_a_copy_keeps_it(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(BIG)
    backend.copy("file", "sub/copied")
    assert tree(folder.path) == {"file": BIG, "sub": None, "sub/copied": BIG}
    backend.move("file", "sub/moved")
    assert tree(folder.path) == {"sub": None, "sub/copied": BIG, "sub/moved": BIG}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_missing_source_is_not_found(change: Change, backend: SFTPBackend, folder: Folder, overwrite: bool) -> None:
    (folder.path / "file").write_bytes(b"content")
    for source in ("missing", "missing/file", "file/below"):
        with refused(NotFound, backend, source):
            change(source, "target", overwrite)
        with refused(NotFound, backend, source):
            change(source, "new/target", overwrite)
    assert "target" not in tree(folder.path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_as_source_is_invalid_path(
    change: Change, backend: SFTPBackend, folder: Folder, overwrite: bool
) -> None:
    (folder.path / "sub").mkdir()
    with refused(InvalidPath, backend, "sub"):
        change("sub", "target", overwrite)
    assert tree(folder.path) == {"sub": None}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_as_target_is_invalid_path(
    change: Change, backend: SFTPBackend, folder: Folder, overwrite: bool
) -> None:
    (folder.path / "file").write_bytes(b"content")
    (folder.path / "sub").mkdir()
    with refused(InvalidPath, backend, "sub"):
        change("file", "sub", overwrite)
    assert tree(folder.path) == {"file": b"content", "sub": None}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_targets_path_is_invalid_path(
    change: Change, backend: SFTPBackend, folder: Folder, overwrite: bool
) -> None:
    (folder.path / "file").write_bytes(b"content")
    (folder.path / "other").write_bytes(b"other")
    for target in ("other/below", "other/far/below"):
        with refused(InvalidPath, backend, "other"):
            change("file", target, overwrite)
    assert tree(folder.path) == {"file": b"content", "other": b"other"}


def test_an_existing_target_is_already_exists(change: Change, backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"content")
    (folder.path / "target").write_bytes(b"old")
    with refused(AlreadyExists, backend, "target") as error:
        change("file", "target")
    assert "overwrite=True" in str(error)
    assert tree(folder.path) == {"file": b"content", "target": b"old"}


def test_a_dangling_link_as_target_is_already_exists(change: Change, backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"content")
    (folder.path / "link").symlink_to("missing")
    with refused(AlreadyExists, backend, "link"):
        change("file", "link")
    assert tree(folder.path) == {"file": b"content", "link": b"-> missing"}


def test_overwrite_replaces_the_target(change: Change, folder: Folder) -> None:
    (folder.path / "file").write_bytes(BIG)
    (folder.path / "target").write_bytes(b"old")
    change("file", "target", overwrite=True)
    held = tree(folder.path)
    held.pop("file", None)
    assert held == {"target": BIG}


def test_empty_files_move_and_copy(change: Change, folder: Folder) -> None:
    (folder.path / "file").touch()
    change("file", "target")
    assert (folder.path / "target").read_bytes() == b""


# -- copy -------------------------------------------------------------------------------------------------------------


def test_copy_onto_itself_only_checks_the_source(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"content")
    before = (folder.path / "file").stat()
    (folder.path / "in").mkdir()
    for overwrite in (False, True):
        backend.copy("file", "/./file", overwrite)
        with refused(NotFound, backend, "missing"):
            backend.copy("missing", "missing", overwrite)
        with refused(InvalidPath, backend, "in"):
            backend.copy("in", "in", overwrite)
    assert tree(folder.path) == {"file": b"content", "in": None}
    after = (folder.path / "file").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_copy_follows_a_link(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(BIG)
    (folder.path / "link").symlink_to("file")
    (folder.path / "target").write_bytes(b"old")
    backend.copy("link", "target", overwrite=True)
    assert tree(folder.path) == {"file": BIG, "link": b"-> file", "target": BIG}


def test_copy_keeps_the_mode_of_what_it_replaces(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(BIG)
    (folder.path / "target").write_bytes(b"old")
    (folder.path / "target").chmod(0o640)
    backend.copy("file", "target", overwrite=True)
    assert tree(folder.path) == {"file": BIG, "target": BIG}
    assert stat.S_IMODE((folder.path / "target").stat().st_mode) == 0o640


def test_a_copy_that_the_server_truncates_is_not_committed(make_backend: MakeBackend) -> None:
    with ShortReads(at_most=1000) as server:
        folder = server.fresh()
        (folder.path / "file").write_bytes(BIG)
        (folder.path / "target").write_bytes(b"old")
        backend = make_backend(server, base_path=folder.base_path)
        with pytest.raises(SFTPBackendError, match="target"):
            backend.copy("file", "target", overwrite=True)
        assert tree(folder.path) == {"file": BIG, "target": b"old"}


# -- delete -----------------------------------------------------------------------------------------------------------


def test_delete_removes_a_file_and_nothing_else(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "one").touch()
    (folder.path / "two").touch()
    backend.delete("one")
    assert tree(folder.path) == {"two": b""}


def test_delete_of_a_missing_file_is_not_found_unless_missing_ok(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").touch()
    for path in ("missing", "missing/file", "file/below"):
        with refused(NotFound, backend, path):
            backend.delete(path)
        backend.delete(path, missing_ok=True)
    assert tree(folder.path) == {"file": b""}


def test_delete_of_a_folder_is_invalid_path_with_missing_ok_too(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "sub").mkdir()
    for missing_ok in (False, True):
        with refused(InvalidPath, backend, "sub") as error:
            backend.delete("sub", missing_ok)
        assert "delete_folder" in error.message
    assert tree(folder.path) == {"sub": None}


def test_delete_removes_a_link_and_not_its_target(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "sub").mkdir()
    (folder.path / "sub" / "file").write_bytes(b"content")
    (folder.path / "to_file").symlink_to("sub/file")
    (folder.path / "to_folder").symlink_to("sub")
    (folder.path / "to_nothing").symlink_to("missing")
    for link in ("to_file", "to_folder", "to_nothing"):
        backend.delete(link)
    assert tree(folder.path) == {"sub": None, "sub/file": b"content"}


# -- delete_folder ----------------------------------------------------------------------------------------------------


def test_delete_folder_removes_an_empty_folder(backend: SFTPBackend, folder: Folder) -> None:
    for recursive in (False, True):
        (folder.path / "sub").mkdir()
        backend.delete_folder("sub", recursive)
        assert tree(folder.path) == {}


def test_delete_folder_of_a_full_one_is_directory_not_empty(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "sub").mkdir()
    (folder.path / "sub" / "file").touch()
    with refused(DirectoryNotEmpty, backend, "sub") as error:
        backend.delete_folder("sub", missing_ok=True)
    assert "recursive=True" in error.message
    assert tree(folder.path) == {"sub": None, "sub/file": b""}


def test_delete_folder_of_a_missing_one_is_not_found_unless_missing_ok(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").touch()
    for path in ("missing", "missing/sub", "file/below"):
        for recursive in (False, True):
            with refused(NotFound, backend, path):
                backend.delete_folder(path, recursive)
            backend.delete_folder(path, recursive, missing_ok=True)
    assert tree(folder.path) == {"file": b""}


def test_delete_folder_of_a_file_is_invalid_path(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").touch()
    for recursive in (False, True):
        with refused(InvalidPath, backend, "file"):
            backend.delete_folder("file", recursive, missing_ok=True)
    assert tree(folder.path) == {"file": b""}


def test_delete_folder_deletes_a_tree_from_the_bottom_up(backend: SFTPBackend, folder: Folder) -> None:
    for name in ("top/a/b/c/1", "top/a/2", "top/d/3", "top/4", "beside/5"):
        path = folder.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (folder.path / "top" / "empty").mkdir()
    (folder.path / "top" / ".hidden").touch()
    (folder.path / "top" / ".data.12345678-0123456789ab.part").touch()
    backend.delete_folder("top", recursive=True)
    assert tree(folder.path) == {"beside": None, "beside/5": b"x"}


def test_delete_folder_deletes_special_files(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "top").mkdir()
    os.mkfifo(folder.path / "top" / "pipe")
    backend.delete_folder("top", recursive=True)
    assert tree(folder.path) == {}


def test_delete_folder_removes_links_and_never_enters_them(
    backend: SFTPBackend, folder: Folder, server: Server
) -> None:
    outside = server.fresh()
    (outside.path / "precious").write_bytes(b"x")
    (folder.path / "top").mkdir()
    (folder.path / "top" / "out").symlink_to(outside.path)
    (folder.path / "top" / "file").symlink_to(outside.path / "precious")
    (folder.path / "top" / "nothing").symlink_to("missing")
    backend.delete_folder("top", recursive=True)
    assert tree(folder.path) == {}
    for recursive in (False, True):
        (folder.path / "link").symlink_to(outside.path)
        backend.delete_folder("link", recursive)
        assert tree(folder.path) == {}
    assert tree(outside.path) == {"precious": b"x"}


def test_delete_folder_quotes_the_server_where_nothing_is_listed(make_backend: MakeBackend) -> None:
    with DropBox() as server:
        folder = server.fresh()
        (folder.path / "sub").mkdir()
        (folder.path / "sub" / "file").touch()
        backend = make_backend(server, base_path=folder.base_path)
        with refused(SFTPBackendError, backend, "sub") as error:
            backend.delete_folder("sub", recursive=True)
        assert "Directory not empty" in error.message
        assert tree(folder.path) == {"sub": None, "sub/file": b""}


# -- servers with other renames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PosixRenameRefusesTaken, RenameReplaces, RefusesRename, WithoutSetstat])
def test_move_and_write_atomic_work_with_every_kind_of_rename(make_backend: MakeBackend, kind: type[Server]) -> None:
    with kind() as server:
        folder = server.fresh()
        (folder.path / "a").write_bytes(b"a")
        (folder.path / "b").write_bytes(b"b")
        backend = make_backend(server, base_path=folder.base_path)
        with refused(AlreadyExists, backend, "b"):
            backend.move("a", "b")
        assert tree(folder.path) == {"a": b"a", "b": b"b"}
        if kind is RefusesRename:  # nothing can be renamed there, so nothing can land
            with pytest.raises(SFTPBackendError):
                backend.move("a", "b", overwrite=True)
            with pytest.raises(SFTPBackendError):
                backend.move("a", "c")
            with pytest.raises(SFTPBackendError):
                backend.write_atomic("b", b"new", overwrite=True)
            with pytest.raises(SFTPBackendError):
                backend.write_atomic("c", b"new")
            assert tree(folder.path) == {"a": b"a", "b": b"b"}
            return
        backend.move("a", "b", overwrite=True)
        assert tree(folder.path) == {"b": b"a"}
        backend.move("b", "sub/c")
        backend.write_atomic("sub/c", b"new", overwrite=True)
        with refused(AlreadyExists, backend, "sub/c"):
            backend.write_atomic("sub/c", b"newer")
        backend.copy("sub/c", "sub/d")
        backend.copy("sub/c", "sub/d", overwrite=True)
        assert tree(folder.path) == {"sub": None, "sub/c": b"new", "sub/d": b"new"}


def test_a_drop_box_accepts_unverified_writes(make_backend: MakeBackend) -> None:
    with DropBox() as server:
        folder = server.fresh()
        backend = make_backend(server, base_path=folder.base_path)
        backend.write("plain", BIG)
        backend.write_atomic("atomic", BIG, verify="none")
        assert tree(folder.path) == {"plain": BIG, "atomic": BIG}
        backend.write_atomic("unseen", BIG)  # the size cannot be requested: a warning, no failure
        assert (folder.path / "unseen").read_bytes() == BIG
        with refused(PermissionDenied, backend, "proven"):
            backend.write_atomic("proven", BIG, verify="sha256")
        with refused(PermissionDenied, backend, "plain"):
            backend.read_bytes("plain")
        assert sorted(os.listdir(folder.path)) == ["atomic", "plain", "unseen"]


def test_a_server_that_moves_files_away_accepts_plain_writes(make_backend: MakeBackend) -> None:
    with MovesAway() as server:
        folder = server.fresh()
        backend = make_backend(server, base_path=folder.base_path)
        assert backend.write("file", BIG).size == len(BIG)
        assert tree(folder.path) == {}
        assert (server.taken / "file").read_bytes() == BIG


def test_unverified_writes_succeed_on_a_server_that_moves_files_away(make_backend: MakeBackend) -> None:
    with MovesAway() as server:
        folder = server.fresh()
        backend = make_backend(server, base_path=folder.base_path)
        assert backend.write_atomic("file", BIG, verify="none").size == len(BIG)
        with refused(NotFound, backend, "file"):
            backend.write_atomic("file", BIG)
        assert tree(folder.path) == {}
        assert any(path.read_bytes() == BIG for path in server.taken.iterdir())


# -- many -------------------------------------------------------------------------------------------------------------


def test_move_many_moves_what_it_can_and_explains_each_failure(backend: SFTPBackend, folder: Folder) -> None:
    for name in ("a", "b", "c", "taken"):
        (folder.path / name).write_bytes(name.encode())
    (folder.path / "sub").mkdir()
    pairs = [
        ("a", "new/deep/a"), ("missing", "x"), ("b", "taken"), ("../up", "y"), ("sub", "z"), ("c", "new/deep/c"),
    ]  # fmt: skip
    failures = [NotFound, AlreadyExists, InvalidPath, InvalidPath]
    outcomes = backend.move_many(pairs, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None), *failures, type(None)]
    assert all(outcome.server == backend.address for outcome in outcomes if isinstance(outcome, SFTPBackendError))
    held = {"b": b"b", "taken": b"taken", "sub": None, "new": None, "new/deep": None}
    assert tree(folder.path) == held | {"new/deep/a": b"a", "new/deep/c": b"c"}
    with pytest.raises(ExceptionGroup, match="1 of 2 moves failed") as caught:
        backend.move_many([("b", "taken"), ("new/deep/a", "a")])
    assert [type(error) for error in caught.value.exceptions] == [AlreadyExists]
    assert backend.move_many([("b", "taken"), ("a", "a")], overwrite=True) == [None, None]
    assert tree(folder.path) == {
        "taken": b"b",
        "a": b"a",
        "sub": None,
        "new": None,
        "new/deep": None,
        "new/deep/c": b"c",
    }


def test_many_moves_and_deletions_of_files_beside_each_other(backend: SFTPBackend, folder: Folder) -> None:
    names = [f"{number}" for number in range(300)]
    for name in names:
        (folder.path / name).write_bytes(name.encode())
    assert backend.move_many([(name, f"in/a/new/folder/{name}") for name in names]) == [None] * 300
    there = folder.path / "in/a/new/folder"
    assert {path.name: path.read_bytes() for path in there.iterdir()} == {name: name.encode() for name in names}
    assert backend.delete_many(f"in/a/new/folder/{name}" for name in names) == [None] * 300
    assert list(there.iterdir()) == []
    assert backend.move_many([]) == backend.delete_many([]) == []


def test_delete_many_deletes_what_it_can_and_explains_each_failure(backend: SFTPBackend, folder: Folder) -> None:
    for name in ("a", "b", "c"):
        (folder.path / name).touch()
    (folder.path / "sub").mkdir()
    paths = ["a", "missing", "sub", "", "b", "../up"]
    with pytest.raises(ExceptionGroup, match="4 of 6 deletions failed") as caught:
        backend.delete_many(paths)
    assert [type(error) for error in caught.value.exceptions] == [NotFound, InvalidPath, InvalidPath, InvalidPath]
    assert tree(folder.path) == {"c": b"", "sub": None}
    assert backend.delete_many(["missing", "c", "c"], missing_ok=True) == [None] * 3
    assert tree(folder.path) == {"sub": None}


@pytest.mark.parametrize(
    "pairs", [[("a", "c"), ("b", "c")], [("a", "b"), ("b", "c")], [("a", "b"), ("b", "a")], [("a", "b"), ("a", "c")]]
)
def test_moves_that_depend_on_their_order_are_a_value_error_before_any_io(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(ValueError, match=r"two pairs have a file in common: '[abc]'"):
        offline().move_many(pairs)


def test_moves_on_a_lost_connection_keep_each_file_in_one_place(make_backend: MakeBackend) -> None:
    names = [f"{number}" for number in range(100)]
    for requests in (40, 150, 260):
        with DropsAfter(requests=requests) as dropping:
            folder = dropping.fresh()
            for name in names:
                (folder.path / name).write_bytes(name.encode())
            backend = make_backend(dropping, base_path=folder.base_path)
            outcomes = backend.move_many([(name, f"to/{name}") for name in names], return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} <= {type(None), BackendUnavailable}
            assert BackendUnavailable in {type(outcome) for outcome in outcomes}
            for name, outcome in zip(names, outcomes, strict=True):
                places = [path for path in (folder.path / name, folder.path / "to" / name) if path.exists()]
                assert [path.read_bytes() for path in places] == [name.encode()]
                assert outcome is not None or places[0].parent.name == "to"


def test_deletions_on_a_lost_connection_report_what_is_deleted(make_backend: MakeBackend) -> None:
    with DropsAfter(requests=220) as dropping:  # three requests for each of the first 64, then removals
        folder = dropping.fresh()
        for number in range(100):
            (folder.path / f"{number}").touch()
        backend = make_backend(dropping, base_path=folder.base_path)
        outcomes = backend.delete_many([f"{number}" for number in range(100)], return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {type(None), BackendUnavailable}
        assert not [
            number
            for number, outcome in enumerate(outcomes)
            if outcome is None and (folder.path / f"{number}").exists()
        ]
