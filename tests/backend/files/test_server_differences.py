"""Keep the promises of the contract on servers that differ from OpenSSH."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from airflow_sftp_backend import (
    AlreadyExists,
    BackendUnavailable,
    InvalidPath,
    NotFound,
    PermissionDenied,
    SFTPBackend,
    SFTPBackendError,
)
from tests.support.assertions import refused
from tests.support.backends import MakeBackend
from tests.support.files import tree, write_one_byte_files
from tests.support.servers import (
    AsyncsshServer,
    BuffersPackets,
    CurtDropBox,
    EndsAtForeignNames,
    FailsForMissing,
    Files,
    HidesFoldersWithDanglingLinks,
    IgnoresExclusive,
    NeedsTruncate,
    OpenSSHServer,
    ShowsFilesBelowFiles,
    sftp_server_path,
)

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
def test_nothing_is_overwritten_where_exclusive_creation_is_ignored(
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
def test_files_are_created_where_exclusive_creation_must_truncate(
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


def test_replacing_a_read_only_file_is_permission_denied(make_backend: MakeBackend, sshd: str) -> None:
    assert sshd
    # root obeys no mode bits unless it gives up the capability to ignore them
    obedient = "" if os.geteuid() else "/usr/bin/setpriv --bounding-set -dac_override "
    with OpenSSHServer({"Subsystem": f"sftp {obedient}{sftp_server_path()}"}) as server:
        folder = server.fresh()
        write_one_byte_files(folder, "file")
        (folder.path / "file").chmod(0o444)
        backend = make_backend(server, base_path=folder.base_path)
        with refused(PermissionDenied, backend, "file") as error:
            backend.write("file", b"new", overwrite=True)
        assert "overwrite=True" not in error.message
        with refused(AlreadyExists, backend, "file"):
            backend.write("file", b"new")
        assert tree(folder.path) == {"file": b"x"}


# -- FAILURE for what is missing --------------------------------------------------------------------------------------


def test_missing_paths_are_detected_where_the_server_gives_failure(make_backend: MakeBackend, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"local")
    with FailsForMissing() as server:
        folder = server.fresh()
        write_one_byte_files(folder, "in/file")
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


def test_parents_are_created_where_missing_paths_give_only_failure(make_backend: MakeBackend, tmp_path: Path) -> None:
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


def test_a_server_that_fails_and_lists_nothing_is_named_as_the_cause(make_backend: MakeBackend) -> None:
    with CurtDropBox() as server:
        backend = make_backend(server)
        with refused(SFTPBackendError, backend, "missing") as error:
            backend.exists("missing")
        assert "does not say whether" in error.message


# -- other ways -------------------------------------------------------------------------------------------------------


def test_nothing_exists_below_a_file(make_backend: MakeBackend) -> None:
    with ShowsFilesBelowFiles() as server:
        folder = server.fresh()
        write_one_byte_files(folder, "in/file")
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


def test_a_directory_that_cannot_be_listed_is_not_reported_as_empty(make_backend: MakeBackend) -> None:
    with HidesFoldersWithDanglingLinks() as server:
        folder = server.fresh()
        write_one_byte_files(folder, "in/file", "in/sub/file", "good/file")
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
            assert "dangling link" in error.message
        assert len(list(backend.list_files("good"))) == 1
        assert tree(folder.path)["in/file"] == b"x"
        backend.delete("in/dangling")
        assert [file.path for file in backend.find("in/*")] == ["in/file"]


def test_files_are_written_where_a_link_prevents_listing_the_directory(make_backend: MakeBackend) -> None:
    with HidesFoldersWithDanglingLinks() as server:
        folder = server.fresh()
        (folder.path / "dangling").symlink_to("missing")
        backend = make_backend(server, base_path=folder.base_path)
        backend.write_atomic("file", b"first")
        backend.write_atomic("file", b"second", overwrite=True)
        assert tree(folder.path) == {"dangling": b"-> missing", "file": b"second"}


def test_a_name_that_ends_the_connection_fails_only_its_own_call(
    make_backend: MakeBackend,
) -> None:
    with EndsAtForeignNames() as server:
        folder = server.fresh()
        write_one_byte_files(folder, "in/ü", "in/a")
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


def test_the_servers_own_reason_is_quoted(make_backend: MakeBackend, tmp_path: Path) -> None:
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
