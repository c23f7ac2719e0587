"""The promises hold on servers that differ from OpenSSH."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import asyncssh
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
from tests.servers import (
    AsyncsshServer,
    BuffersPackets,
    CurtDropBox,
    DiffersInAll,
    EndsAtForeignNames,
    FailsForMissing,
    Files,
    Folder,
    FollowsLinks,
    ForbidsLStat,
    HidesFoldersWithDanglingLinks,
    IgnoresExclusive,
    ListsLinksAsTargets,
    NeedsTruncate,
    OpenSSHServer,
    RemovesAnything,
    RemovesBehindLinks,
    RemovesFullFolders,
    Server,
    ShowsFilesBelowFiles,
    SwapsFolderForLink,
    sftp_server_path,
)

from .expect import refused, tree

MakeBackend = Callable[..., SFTPBackend]


def put(folder: Folder, *names: str) -> None:
    """Files of one byte, with their folders."""
    for name in names:
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_bytes(b"x")


# -- links ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lists_targets() -> Iterator[Server]:
    """A server that lists links as what they lead to."""
    with ListsLinksAsTargets() as server:
        yield server


@pytest.fixture
def linked(lists_targets: Server) -> Folder:
    """A folder with links to the folder ``precious`` beside it, and to nothing."""
    folder = lists_targets.fresh()
    put(folder, "precious/payroll", "top/sub/deep/file", "top/file")
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
def test_a_folder_that_becomes_a_link_before_it_is_listed_loses_nothing_behind_it(
    swapped: str, make_backend: MakeBackend
) -> None:
    with SwapsFolderForLink(swapped=swapped) as server:
        folder, precious = server.fresh(), server.fresh()
        put(precious, "payroll")
        put(folder, "top/sub/file", "top/file")
        server.link_to = precious.path
        make_backend(server, base_path=folder.base_path).delete_folder("top", recursive=True)
        assert tree(precious.path) == {"payroll": b"x"}
        assert not (folder.path / "top").exists()


@pytest.fixture
def follows() -> Iterator[Server]:
    """A server of which every reply but READDIR's and READLINK's is about what a link leads to."""
    with FollowsLinks() as server:
        yield server


def test_a_link_that_lstat_follows_is_deleted_and_not_what_it_leads_to(
    follows: Server, make_backend: MakeBackend
) -> None:
    folder = follows.fresh()
    backend = make_backend(follows, base_path=folder.base_path)
    put(folder, "precious/payroll", "top/file")
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


def test_a_link_is_not_moved_where_the_server_would_move_what_it_leads_to(
    follows: Server, make_backend: MakeBackend
) -> None:
    folder = follows.fresh()
    put(folder, "precious", "file")
    (folder.path / "link").symlink_to("precious")
    backend = make_backend(follows, base_path=folder.base_path)
    before = tree(folder.path)
    for overwrite in (False, True):
        with refused(InvalidPath, backend, "link") as error:
            backend.move("link", "moved", overwrite)
        assert "it is a link" in error.message
    assert tree(folder.path) == before
    backend.move("file", "moved")
    assert tree(folder.path) == {"precious": b"x", "link": b"-> precious", "moved": b"x"}


# -- exclusive creation -----------------------------------------------------------------------------------------------

CREATIONS: dict[str, Callable[[SFTPBackend, str, bytes], object]] = {
    "write": lambda backend, path, content: backend.write(path, content),
    "write of a stream": lambda backend, path, content: backend.write(path, io.BytesIO(content)),
    "write_atomic": lambda backend, path, content: backend.write_atomic(path, content),
    "open_atomic": lambda backend, path, content: _written(backend, path, content),
}


def _written(backend: SFTPBackend, path: str, content: bytes) -> None:
    with backend.open_atomic(path) as file:
        file.write(content)


@pytest.mark.parametrize("create", CREATIONS.values(), ids=CREATIONS)
def test_nothing_is_overwritten_unasked_where_exclusive_creation_is_ignored(
    create: Callable[[SFTPBackend, str, bytes], object], make_backend: MakeBackend
) -> None:
    with IgnoresExclusive() as server:
        folder = server.fresh()
        backend = make_backend(server, base_path=folder.base_path)
        create(backend, "in/file", b"first")
        (folder.path / "link").symlink_to("in/file")
        (folder.path / "dangling").symlink_to("missing")
        for path in ("in/file", "link", "dangling"):
            with refused(AlreadyExists, backend, path):
                create(backend, path, b"second")
        with refused(InvalidPath, backend, "in"):
            create(backend, "in", b"second")
        assert tree(folder.path) == {
            "in": None, "in/file": b"first", "link": b"-> in/file", "dangling": b"-> missing",
        }  # fmt: skip


def test_an_upload_is_resumed_where_exclusive_creation_is_ignored(make_backend: MakeBackend, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(48 << 20)
    (tmp_path / "file").write_bytes(content)
    with IgnoresExclusive() as server:
        folder = server.fresh()
        backend = make_backend(server, base_path=folder.base_path)

        sent: list[int] = []

        def interrupt(count: int) -> None:
            sent.append(count)
            if sum(sent) > 40 << 20:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            backend.upload(tmp_path / "file", "file", resume_key="a task", progress=interrupt)
        (left,) = folder.path.iterdir()
        assert left.stat().st_size > 32 << 20
        before = server.written
        backend.upload(tmp_path / "file", "file", resume_key="a task")
        assert server.written - before < len(content)  # not from its start
        assert tree(folder.path) == {"file": content}


@pytest.mark.parametrize(
    "refusal",
    [asyncssh.SFTPOpUnsupported("flags"), asyncssh.SFTPFailure(""), asyncssh.SFTPNoSuchFile("")],
    ids=["unsupported", "failure", "no such file"],
)
@pytest.mark.parametrize("create", CREATIONS.values(), ids=CREATIONS)
def test_files_are_made_where_exclusive_creation_must_truncate(
    refusal: asyncssh.SFTPError, create: Callable[[SFTPBackend, str, bytes], object], make_backend: MakeBackend
) -> None:
    with NeedsTruncate(refusal) as server:
        folder = server.fresh()
        backend = make_backend(server, base_path=folder.base_path)
        for path in ("file", "in/deep/file"):
            create(backend, path, b"first")
            with refused(AlreadyExists, backend, path):
                create(backend, path, b"second")
        assert tree(folder.path) == {"file": b"first", "in": None, "in/deep": None, "in/deep/file": b"first"}


def test_a_read_only_file_that_is_to_be_replaced_is_permission_denied(make_backend: MakeBackend, sshd: str) -> None:
    assert sshd
    # root obeys no mode bits unless it gives up the capability to ignore them
    obedient = "" if os.geteuid() else "/usr/bin/setpriv --bounding-set -dac_override "
    with OpenSSHServer({"Subsystem": f"sftp {obedient}{sftp_server_path()}"}) as server:
        folder = server.fresh()
        put(folder, "file")
        (folder.path / "file").chmod(0o444)
        backend = make_backend(server, base_path=folder.base_path)
        with refused(PermissionDenied, backend, "file") as error:
            backend.write("file", b"new", overwrite=True)
        assert "overwrite=True" not in error.message
        with refused(AlreadyExists, backend, "file"):
            backend.write("file", b"new")
        assert tree(folder.path) == {"file": b"x"}


# -- removal ----------------------------------------------------------------------------------------------------------


def test_delete_takes_files_only_and_delete_folder_folders_only(make_backend: MakeBackend) -> None:
    with RemovesAnything() as server:
        folder = server.fresh()
        put(folder, "file", "in/file")
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
        put(folder, "in/file")
        (folder.path / "empty").mkdir()
        backend = make_backend(server, base_path=folder.base_path)
        with refused(DirectoryNotEmpty, backend, "in"):
            backend.delete_folder("in")
        assert tree(folder.path) == {"in": None, "in/file": b"x", "empty": None}
        backend.delete_folder("empty")
        assert tree(folder.path) == {"in": None, "in/file": b"x"}


@pytest.mark.parametrize("kind", [RemovesAnything, RemovesBehindLinks, RemovesFullFolders, ListsLinksAsTargets])
@pytest.mark.parametrize("recursive", [False, True])
def test_a_link_that_is_named_is_removed_and_what_it_leads_to_stays(
    kind: type[Server], recursive: bool, make_backend: MakeBackend
) -> None:
    with kind() as server:
        folder = server.fresh()
        put(folder, "full/file", "file")
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
    """Servers that refuse LSTAT: OpenSSH whose administrator forbids it, unknown ones, and one that differs in more."""
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


def test_a_recursive_delete_without_lstat_spares_what_may_lie_behind_a_link(
    without_lstat: Server, make_backend: MakeBackend
) -> None:
    folder = without_lstat.fresh()
    put(folder, "precious/payroll", "top/sub/file", "top/file")
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


# -- FAILURE for what is missing --------------------------------------------------------------------------------------


def test_what_is_missing_is_found_out_where_the_server_says_failure(make_backend: MakeBackend, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"local")
    with FailsForMissing() as server:
        folder = server.fresh()
        put(folder, "in/file")
        backend = make_backend(server, base_path=folder.base_path)
        for path in ("missing", "in/missing", "no/such/missing", "in/file/missing"):
            assert not backend.exists(path)
            assert not backend.is_file(path)
            assert not backend.is_folder(path)
            assert list(backend.list_files(path)) == []
            assert backend.find(path, f"{path}/*") == []
            backend.delete(path, missing_ok=True)
            backend.delete_folder(path, missing_ok=True)
            backend.delete_folder(path, recursive=True, missing_ok=True)
            calls: list[Callable[[], object]] = [
                partial(backend.get_file_info, path),
                partial(backend.read_bytes, path),
                partial(backend.download, path, tmp_path / "down"),
                partial(backend.delete, path),
                partial(backend.delete_folder, path),
                partial(backend.delete_folder, path, recursive=True),
                partial(backend.move, path, "elsewhere"),
                partial(backend.copy, path, "elsewhere"),
                partial(backend.get_folder_info, path),
            ]
            for call in calls:
                with refused(NotFound, backend, path):
                    call()
        assert tree(folder.path) == {"in": None, "in/file": b"x"}


def test_parents_are_made_where_the_server_says_failure_for_what_is_missing(
    make_backend: MakeBackend, tmp_path: Path
) -> None:
    (tmp_path / "local").write_bytes(b"local")
    with FailsForMissing() as server:
        folder = server.fresh()
        backend = make_backend(server, base_path=f"{folder.base_path}/base/path")
        backend.write("a/b/written", b"x")
        backend.write_atomic("c/d/atomic", b"x")
        backend.upload_many([(tmp_path / "local", f"e/f/{number}") for number in range(3)])
        backend.move("e/f/0", "g/h/moved")
        backend.copy("e/f/1", "i/j/copied")
        with refused(InvalidPath, backend, "a/b/written"):
            backend.write("a/b/written/below", b"x")
        names = {name for name, content in tree(folder.path / "base" / "path").items() if content is not None}
        assert names == {"a/b/written", "c/d/atomic", "e/f/1", "e/f/2", "g/h/moved", "i/j/copied"}


def test_a_server_that_says_failure_and_lists_nothing_is_named_as_the_limit(make_backend: MakeBackend) -> None:
    with CurtDropBox() as server:
        backend = make_backend(server)
        with refused(SFTPBackendError, backend, "missing") as error:
            backend.exists("missing")
        assert "does not say whether" in error.message


# -- other ways -------------------------------------------------------------------------------------------------------


def test_nothing_exists_below_a_file(make_backend: MakeBackend) -> None:
    with ShowsFilesBelowFiles() as server:
        folder = server.fresh()
        put(folder, "in/file")
        backend = make_backend(server, base_path=folder.base_path)
        assert backend.exists("in/file")
        for path in ("in/file/x", "in/file/x/y"):
            assert not backend.exists(path)
            assert not backend.is_file(path)
            assert backend.find(path) == []
            with refused(NotFound, backend, path):
                backend.get_file_info(path)
            (outcome,) = backend.get_file_info_many([path], return_exceptions=True)
            assert type(outcome) is NotFound


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(make_backend: MakeBackend) -> None:
    with HidesFoldersWithDanglingLinks() as server:
        folder = server.fresh()
        put(folder, "in/file", "in/sub/file", "good/file")
        (folder.path / "in" / "dangling").symlink_to("missing")
        backend = make_backend(server, base_path=folder.base_path)
        calls: list[Callable[[], object]] = [
            lambda: list(backend.list_files("in")),
            lambda: list(backend.list_folders("in")),
            lambda: list(backend.list_files("", recursive=True)),
            lambda: backend.find("in/*"),
            lambda: backend.find("**/*"),
            lambda: backend.get_folder_info("in"),
            lambda: backend.delete_folder("in", recursive=True),
            lambda: backend.delete_folder("in", recursive=True, missing_ok=True),
        ]
        for call in calls:
            with refused(SFTPBackendError, backend, "in") as error:
                call()
            assert "link to nothing" in error.message
        assert len(list(backend.list_files("good"))) == 1
        assert tree(folder.path)["in/file"] == b"x"
        backend.delete("in/dangling")
        assert [file.path for file in backend.find("in/*")] == ["in/file"]


def test_files_are_written_beside_a_link_that_keeps_their_folder_from_being_listed(make_backend: MakeBackend) -> None:
    with HidesFoldersWithDanglingLinks() as server:
        folder = server.fresh()
        (folder.path / "dangling").symlink_to("missing")
        backend = make_backend(server, base_path=folder.base_path)
        backend.write_atomic("file", b"first")
        backend.write_atomic("file", b"second", overwrite=True)
        assert tree(folder.path) == {"dangling": b"-> missing", "file": b"second"}


def test_a_name_over_which_the_server_ends_the_connection_is_an_error_and_the_next_call_works(
    make_backend: MakeBackend,
) -> None:
    with EndsAtForeignNames() as server:
        folder = server.fresh()
        put(folder, "in/ü", "in/a")
        backend = make_backend(server, base_path=folder.base_path)
        with pytest.raises(BackendUnavailable):
            list(backend.list_files("in"))
        with pytest.raises(BackendUnavailable):
            backend.find("in/*")
        assert server.logins() <= 4  # each call tries once more
        assert backend.read_bytes("in/ü") == b"x"


def test_blocks_fit_in_the_buffer_that_every_server_has(make_backend: MakeBackend, tmp_path: Path) -> None:
    content = random.Random(2).randbytes(1_000_000)
    (tmp_path / "file").write_bytes(content)
    with BuffersPackets() as server:
        folder = server.fresh()
        backend = make_backend(server, base_path=folder.base_path)
        backend.upload(tmp_path / "file", "file")
        backend.copy("file", "copy")
        assert backend.read_bytes("copy") == content


# -- the server's own words -------------------------------------------------------------------------------------------


class _Quota(Files):
    def write(self, file_obj: Any, offset: int, data: bytes) -> Any:
        raise asyncssh.SFTPFailure("Maximum upload file size quota exceeded")


class Quota(AsyncsshServer):
    """Refuses all writing, and says why in words."""

    files = _Quota


def test_the_reason_that_the_server_gives_is_the_reason_given(make_backend: MakeBackend, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with Quota() as server:
        backend = make_backend(server)
        calls: list[Callable[[], object]] = [
            lambda: backend.write("file", b"x"),
            lambda: backend.upload(tmp_path / "file", "file"),
        ]
        for call in calls:
            with refused(SFTPBackendError, backend, "file") as error:
                call()
            assert error.message == "cannot write: the server says: Maximum upload file size quota exceeded"
