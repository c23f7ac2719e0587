"""Delete and move links safely on servers that differ from OpenSSH."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import asyncssh
import pytest

from airflow_sftp_backend import AlreadyExists, DirectoryNotEmpty, InvalidPath, NotFound, SFTPBackendError
from tests.support.assertions import refused
from tests.support.backends import MakeBackend
from tests.support.files import tree, write_one_byte_files
from tests.support.servers import (
    AsyncsshServer,
    DiffersInAll,
    FailsForMissing,
    Folder,
    FollowsLinks,
    ForbidsLStat,
    ListsLinksAsTargets,
    OpenSSHServer,
    RemovesAnything,
    RemovesBehindLinks,
    RemovesFullFolders,
    Server,
    SwapsFolderForLink,
    WithoutExtensions,
)

# -- links ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lists_targets() -> Iterator[Server]:
    """A server that lists links as what they lead to."""
    with ListsLinksAsTargets() as server:
        yield server


@pytest.fixture
def linked(lists_targets: Server) -> Folder:
    """Directory with links to the directory ``precious``, and a dangling link."""
    folder = lists_targets.fresh()
    write_one_byte_files(folder, "precious/payroll", "top/sub/deep/file", "top/file")
    (folder.path / "top" / "link").symlink_to("../precious")
    (folder.path / "top" / "sub" / "link").symlink_to(folder.path / "precious")
    (folder.path / "top" / "payroll").symlink_to("../precious/payroll")
    (folder.path / "top" / "nothing").symlink_to("missing")
    return folder


def test_a_recursive_delete_never_enters_a_link_that_is_listed_as_a_folder(
    lists_targets: Server, linked: Folder, make_backend: MakeBackend
) -> None:
    make_backend(lists_targets, base_path=linked.base_path).delete_folder("top", recursive=True)
    assert tree(linked.path) == {"precious": None, "precious/payroll": b"x"}


def test_a_recursive_delete_of_a_link_removes_the_link_alone(
    lists_targets: Server, linked: Folder, make_backend: MakeBackend
) -> None:
    backend = make_backend(lists_targets, base_path=linked.base_path)
    backend.delete_folder("top/link", recursive=True)
    backend.delete_folder("top/sub/link")
    assert not (linked.path / "top" / "link").is_symlink()
    assert not (linked.path / "top" / "sub" / "link").is_symlink()
    assert (linked.path / "precious" / "payroll").read_bytes() == b"x"


def test_recursive_listings_never_enter_a_link_that_is_listed_as_a_folder(
    lists_targets: Server, linked: Folder, make_backend: MakeBackend
) -> None:
    backend = make_backend(lists_targets, base_path=linked.base_path)
    inside = ["top/file", "top/payroll", "top/sub/deep/file"]
    assert sorted(file.path for file in backend.list_files("top", recursive=True)) == inside
    assert [file.path for file in backend.find("top/**")] == inside
    assert [file.path for file in backend.find("top/*/*", "top/**/*")] == inside
    assert [file.path for file in backend.find("top/*/payroll")] == []
    assert backend.get_folder_info("top").file_count == 3


def test_a_link_to_a_folder_that_is_named_is_listed_and_searched(
    lists_targets: Server, linked: Folder, make_backend: MakeBackend
) -> None:
    backend = make_backend(lists_targets, base_path=linked.base_path)
    assert [file.path for file in backend.list_files("top/link", recursive=True)] == ["top/link/payroll"]
    assert [file.path for file in backend.find("top/link/*", "*/link/payroll")] == ["top/link/payroll"]
    assert {entry.path for entry in backend.list_folders("top")} == {"top/link", "top/sub"}


@pytest.mark.parametrize("swapped", ["top", "sub"])
def test_a_directory_replaced_by_a_link_loses_nothing_behind_the_link(swapped: str, make_backend: MakeBackend) -> None:
    with SwapsFolderForLink(swapped=swapped) as server:
        folder, precious = server.fresh(), server.fresh()
        write_one_byte_files(precious, "payroll")
        write_one_byte_files(folder, "top/sub/file", "top/file")
        server.link_to = precious.path
        make_backend(server, base_path=folder.base_path).delete_folder("top", recursive=True)
        assert tree(precious.path) == {"payroll": b"x"}
        assert not (folder.path / "top").exists()


@pytest.fixture
def follows() -> Iterator[Server]:
    """Server that follows links in all replies but READDIR and READLINK."""
    with FollowsLinks() as server:
        yield server


def test_where_lstat_follows_links_only_the_link_is_deleted(follows: Server, make_backend: MakeBackend) -> None:
    folder = follows.fresh()
    backend = make_backend(follows, base_path=folder.base_path)
    write_one_byte_files(folder, "precious/payroll", "top/file")
    for target in ("precious", "missing", "precious/payroll"):
        for delete in (
            backend.delete,
            backend.delete_folder,
            partial(backend.delete_folder, recursive=True),
        ):
            (folder.path / "link").symlink_to(target)
            delete("link")
            assert not (folder.path / "link").is_symlink()
    (folder.path / "top" / "link").symlink_to("../precious")
    backend.delete_folder("top", recursive=True)
    assert tree(folder.path) == {"precious": None, "precious/payroll": b"x"}


def test_a_link_is_not_moved_where_the_server_would_move_its_target(follows: Server, make_backend: MakeBackend) -> None:
    folder = follows.fresh()
    write_one_byte_files(folder, "precious", "file")
    (folder.path / "link").symlink_to("precious")
    backend = make_backend(follows, base_path=folder.base_path)
    before = tree(folder.path)
    for overwrite in (False, True):
        with refused(InvalidPath, backend, "link") as error:
            backend.move("link", "moved", overwrite)
        assert "the path is a link" in error.message
    assert tree(folder.path) == before
    backend.move("file", "moved")
    assert tree(folder.path) == {"precious": b"x", "link": b"-> precious", "moved": b"x"}


class _FailsWithoutExtensions(FailsForMissing):
    """Report FAILURE for missing files; offer plain rename only."""

    offered = frozenset()


@pytest.mark.parametrize("kind", [WithoutExtensions, _FailsWithoutExtensions])
def test_a_file_is_not_moved_onto_itself_under_another_name(
    make_backend: MakeBackend, kind: type[AsyncsshServer]
) -> None:
    with kind() as server:
        folder = server.fresh()
        write_one_byte_files(folder, "real/payroll")
        (folder.path / "link").symlink_to("real")
        backend = make_backend(server, base_path=folder.base_path)
        with refused(InvalidPath, backend, "link/payroll") as error:
            backend.move("link/payroll", "real/payroll", overwrite=True)
        assert "same file" in str(error)
        assert tree(folder.path / "real") == {"payroll": b"x"}


# -- removal ----------------------------------------------------------------------------------------------------------


def test_delete_takes_files_only_and_delete_folder_folders_only(make_backend: MakeBackend) -> None:
    with RemovesAnything() as server:
        folder = server.fresh()
        write_one_byte_files(folder, "file", "in/file")
        (folder.path / "empty").mkdir()
        before = tree(folder.path)
        backend = make_backend(server, base_path=folder.base_path)
        for missing_ok in (False, True):
            with refused(InvalidPath, backend, "file"):
                backend.delete_folder("file", missing_ok=missing_ok)
            with refused(InvalidPath, backend, "file"):
                backend.delete_folder("file", recursive=True, missing_ok=missing_ok)
            with refused(InvalidPath, backend, "empty"):
                backend.delete("empty", missing_ok=missing_ok)
        outcomes = backend.delete_many(["empty", "in"], return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [InvalidPath, InvalidPath]
        assert tree(folder.path) == before
        backend.delete("file")
        backend.delete_folder("empty")
        backend.delete_folder("in", recursive=True)
        assert tree(folder.path) == {}


def test_a_full_folder_is_not_removed_where_rmdir_would_remove_it(make_backend: MakeBackend) -> None:
    with RemovesFullFolders() as server:
        folder = server.fresh()
        write_one_byte_files(folder, "in/file")
        (folder.path / "empty").mkdir()
        backend = make_backend(server, base_path=folder.base_path)
        with refused(DirectoryNotEmpty, backend, "in"):
            backend.delete_folder("in")
        assert tree(folder.path) == {"in": None, "in/file": b"x", "empty": None}
        backend.delete_folder("empty")
        assert tree(folder.path) == {"in": None, "in/file": b"x"}


@pytest.mark.parametrize("kind", [RemovesAnything, RemovesBehindLinks, RemovesFullFolders, ListsLinksAsTargets])
@pytest.mark.parametrize("recursive", [False, True])
def test_deleting_a_named_link_keeps_its_target(kind: type[Server], recursive: bool, make_backend: MakeBackend) -> None:
    with kind() as server:
        folder = server.fresh()
        write_one_byte_files(folder, "full/file", "file")
        (folder.path / "empty").mkdir()
        before = tree(folder.path)
        backend = make_backend(server, base_path=folder.base_path)
        removals: list[Callable[[str], None]] = [
            lambda path: backend.delete_folder(path, recursive),
            backend.delete,
            lambda path: backend.delete(path, missing_ok=True),
        ]
        for remove in removals:
            for target in ("full", "empty", "file", "missing"):
                (folder.path / "link").symlink_to(target)
                remove("link")
                assert tree(folder.path) == before


@pytest.mark.parametrize("name", ["openssh", "asyncssh_plain"])
def test_a_dangling_link_is_moved_and_deleted_as_a_link(
    name: str, request: pytest.FixtureRequest, make_backend: MakeBackend
) -> None:
    server: Server = request.getfixturevalue(name)
    folder = server.fresh()
    (folder.path / "dangling").symlink_to("missing")
    backend = make_backend(server, base_path=folder.base_path)
    assert not backend.exists("dangling")
    backend.move("dangling", "there/moved")
    assert tree(folder.path) == {"there": None, "there/moved": b"-> missing"}
    backend.delete("there/moved")
    assert tree(folder.path) == {"there": None}


# -- LSTAT forbidden --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["openssh", "denied", "unsupported", "failure", "different in all"], scope="module")
def without_lstat(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Servers that refuse LSTAT: OpenSSH, unknown and other servers."""
    refusals = {
        "denied": asyncssh.SFTPPermissionDenied("permission denied"),
        "unsupported": asyncssh.SFTPOpUnsupported("lstat"),
        "failure": asyncssh.SFTPFailure(""),
    }
    if request.param == "different in all":
        with DiffersInAll(asyncssh.SFTPFailure("")) as different:
            yield different
        return
    if request.param in refusals:
        with ForbidsLStat(refusals[request.param]) as lying:
            yield lying
        return
    request.getfixturevalue("sshd")
    with OpenSSHServer({"Subsystem": "sftp internal-sftp -P lstat"}) as server:
        yield server


def test_files_are_written_moved_copied_and_deleted_without_lstat(
    without_lstat: Server, make_backend: MakeBackend, tmp_path: Path
) -> None:
    folder = without_lstat.fresh()
    (tmp_path / "local").write_bytes(b"local")
    backend = make_backend(without_lstat, base_path=folder.base_path)
    backend.delete("missing", missing_ok=True)
    backend.delete("no/missing", missing_ok=True)
    with refused(NotFound, backend, "missing"):
        backend.delete("missing")
    backend.upload_many([(tmp_path / "local", f"new/deep/{number}") for number in range(3)])
    for path in ("new/deep/0", "other/0"):
        backend.write_atomic(path, b"content", overwrite=True)
        backend.write_atomic(path, b"replaced", overwrite=True)
        with refused(AlreadyExists, backend, path):
            backend.write_atomic(path, b"again")
        with refused(AlreadyExists, backend, path):
            backend.write(path, b"again")
    backend.move("new/deep/1", "moved/1")
    backend.move("new/deep/2", "moved/1", overwrite=True)
    with refused(AlreadyExists, backend, "moved/1"):
        backend.move("new/deep/0", "moved/1")
    with refused(NotFound, backend, "missing"):
        backend.move("missing", "moved/2")
    with refused(InvalidPath, backend, "moved"):
        backend.move("moved", "elsewhere")
    backend.copy("moved/1", "copy")
    with refused(InvalidPath, backend, "other"):
        backend.delete("other")
    backend.delete("other/0")
    backend.delete_folder("other")
    with refused(NotFound, backend, "other"):
        backend.delete_folder("other")
    assert tree(folder.path) == {
        "new": None, "new/deep": None, "new/deep/0": b"replaced", "moved": None, "moved/1": b"local", "copy": b"local",
    }  # fmt: skip


def test_a_recursive_delete_without_lstat_never_deletes_behind_a_link(
    without_lstat: Server, make_backend: MakeBackend
) -> None:
    folder = without_lstat.fresh()
    write_one_byte_files(folder, "precious/payroll", "top/sub/file", "top/file")
    (folder.path / "top" / "link").symlink_to("../precious")
    (folder.path / "link").symlink_to("precious")
    backend = make_backend(without_lstat, base_path=folder.base_path)
    if isinstance(without_lstat, OpenSSHServer):  # whose listings tell links
        backend.delete_folder("top", recursive=True)
        backend.delete_folder("link", recursive=True)
        assert tree(folder.path) == {"precious": None, "precious/payroll": b"x"}
        return
    before = tree(folder.path)
    with refused(SFTPBackendError, backend, "top") as error:
        backend.delete_folder("top", recursive=True)
    assert "the server refuses LSTAT" in error.message
    assert tree(folder.path) == before
    backend.delete_folder("link", recursive=True)  # READLINK tells
    assert tree(folder.path) == {name: content for name, content in before.items() if name != "link"}
    with pytest.raises(SFTPBackendError, match="the server refuses LSTAT"):
        list(backend.list_files("top", recursive=True))
    assert {file.path for file in backend.list_files("top")} == {"top/file"}


def test_only_a_plain_write_follows_a_link_out_of_the_base_path(
    openssh: OpenSSHServer, make_backend: MakeBackend, tmp_path: Path
) -> None:
    folder = openssh.fresh()
    backend = make_backend(openssh, base_path=folder.base_path)
    outside = tmp_path / "outside"
    link = folder.path / "link"
    outside.write_bytes(b"old")
    link.symlink_to(outside)
    backend.write("link", b"written", overwrite=True)
    assert outside.read_bytes() == b"written"
    assert link.is_symlink()
    backend.write_atomic("link", b"new", overwrite=True)
    assert outside.read_bytes() == b"written"
    assert not link.is_symlink()
    assert link.read_bytes() == b"new"
