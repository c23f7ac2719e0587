"""Transfer regular local files only, with ordinary modes and clear errors."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_sftp_backend import AlreadyExists, SFTPBackend
from airflow_sftp_backend.backend._transfers import local_files
from tests.support.assertions import refused
from tests.support.files import tree
from tests.support.servers import Folder, OpenSSHServer, Server, small_disk

MakeBackend = Callable[..., SFTPBackend]


@pytest.fixture
def server(openssh: Server) -> Server:
    """One server: what is tested here happens on this machine."""
    return openssh


def make_fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def make_socket(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
    return path


def make_link(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


def make_dangling(path: Path) -> Path:
    path.symlink_to("nothing")
    return path


SPECIAL: dict[str, Callable[[Path], Path]] = {
    "null": lambda _: Path("/dev/null"),
    "zero": lambda _: Path("/dev/zero"),
    "fifo": make_fifo,
    "socket": make_socket,
    "link": make_link,
}


# -- kinds of files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_source_that_is_not_a_regular_file_is_refused_unread(
    backend: SFTPBackend, folder: Folder, tmp_path: Path, kind: str
) -> None:
    local = SPECIAL[kind](tmp_path / "special")
    (tmp_path / "plain").write_bytes(b"plain")
    with pytest.raises(OSError, match="not a regular file") as caught:
        backend.upload(local, "file")
    assert caught.value.errno == errno.EINVAL
    assert str(local) in str(caught.value)
    first, second = backend.upload_many([(local, "file"), (tmp_path / "plain", "plain")], return_exceptions=True)
    assert isinstance(first, OSError)
    assert not isinstance(second, Exception)
    assert tree(folder.path) == {"plain": b"plain"}


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("kind", [*SPECIAL, "dangling"])
def test_a_target_that_is_not_a_regular_file_is_refused_and_kept(
    backend: SFTPBackend, folder: Folder, tmp_path: Path, kind: str, overwrite: bool
) -> None:
    (folder.path / "file").write_bytes(b"content")
    local = (SPECIAL | {"dangling": make_dangling})[kind](tmp_path / "special")
    before = os.lstat(local)
    with pytest.raises(OSError, match="not a regular file") as caught:
        backend.download("file", local, overwrite=overwrite)
    assert str(local) in str(caught.value)
    assert os.lstat(local).st_ino == before.st_ino
    assert os.lstat(local).st_mode == before.st_mode
    assert [path.name for path in tmp_path.iterdir()] in ([], ["special"])


def test_a_directory_is_refused_at_both_ends(backend: SFTPBackend, folder: Folder, tmp_path: Path) -> None:
    (folder.path / "file").write_bytes(b"content")
    (tmp_path / "local").mkdir()
    with pytest.raises(IsADirectoryError):
        backend.upload(tmp_path / "local", "new")
    with pytest.raises(IsADirectoryError):
        backend.download("file", tmp_path / "local", overwrite=True)
    assert tree(tmp_path) == {"local": None}


def test_links_to_regular_files_are_accepted(backend: SFTPBackend, folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"content")
    (tmp_path / "link").symlink_to("real")
    backend.upload(tmp_path / "link", "file")
    assert tree(folder.path) == {"file": b"content"}
    (folder.path / "file").write_bytes(b"new")
    backend.download("file", tmp_path / "link", overwrite=True)
    assert tree(tmp_path) == {"real": b"content", "link": b"new"}


def test_a_target_that_becomes_a_device_is_not_replaced(backend: SFTPBackend, folder: Folder, tmp_path: Path) -> None:
    (folder.path / "file").write_bytes(b"content")
    local = tmp_path / "local"

    def change(_moved: int) -> None:
        make_fifo(local)

    with pytest.raises(OSError, match="a FIFO, not a regular file"):
        backend.download("file", local, overwrite=True, progress=change)
    assert stat.S_ISFIFO(local.lstat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["local"]


# -- modes ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def umask() -> Any:
    """Sets the umask for the test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077, 0o000])
@pytest.mark.parametrize("proc", [True, False])
def test_a_new_file_has_the_mode_that_the_umask_leaves(
    backend: SFTPBackend,
    folder: Folder,
    tmp_path: Path,
    umask: Any,
    monkeypatch: pytest.MonkeyPatch,
    mask: int,
    proc: bool,
) -> None:
    if not proc:
        monkeypatch.setattr(local_files, "_PROC_STATUS", "/nowhere")
    (folder.path / "file").write_bytes(b"content")
    (folder.path / "file").chmod(0o600)
    umask(mask)
    while_written: list[int] = []

    def check_mode(_moved: int) -> None:
        while_written.extend(stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir())

    backend.download("file", tmp_path / "local", progress=check_mode)
    backend.download("file", tmp_path / "overwritten", overwrite=True)
    for name in ("local", "overwritten"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask
    assert while_written == [0o600]
    assert os.umask(mask) == mask
    assert sorted(path.name for path in tmp_path.iterdir()) == ["local", "overwritten"]


@pytest.mark.parametrize("mode", [0o664, 0o640, 0o444, 0o755])
def test_a_file_that_is_replaced_keeps_its_mode(
    backend: SFTPBackend, folder: Folder, tmp_path: Path, mode: int
) -> None:
    (folder.path / "file").write_bytes(b"content")
    (tmp_path / "local").write_bytes(b"old")
    (tmp_path / "local").chmod(mode)
    backend.download("file", tmp_path / "local", overwrite=True, verify="sha256")
    assert stat.S_IMODE((tmp_path / "local").stat().st_mode) == mode
    assert (tmp_path / "local").read_bytes() == b"content"


def test_the_umask_is_read_without_changing_it_for_other_threads(
    backend: SFTPBackend, folder: Folder, tmp_path: Path, umask: Any
) -> None:
    umask(0o077)
    names = [f"{number}" for number in range(50)]
    for name in names:
        (folder.path / name).write_bytes(b"content")
    modes: set[int] = set()
    ended = threading.Event()

    def make_files() -> None:
        while not ended.is_set():
            descriptor = os.open(tmp_path / "other", os.O_CREAT | os.O_EXCL, 0o666)
            modes.add(stat.S_IMODE(os.fstat(descriptor).st_mode))
            os.close(descriptor)
            (tmp_path / "other").unlink()

    thread = threading.Thread(target=make_files)
    thread.start()
    try:
        backend.download_many([(name, tmp_path / name) for name in names])
    finally:
        ended.set()
        thread.join()
    assert modes == {0o600}


def test_a_file_system_that_keeps_no_modes_is_no_failure(
    backend: SFTPBackend,
    folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (folder.path / "file").write_bytes(b"content")

    def refusing(descriptor: int, mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchmod", refusing)
    backend.download("file", tmp_path / "local")
    assert tree(tmp_path) == {"local": b"content"}
    assert "cannot give" in caplog.text


# -- errors -----------------------------------------------------------------------------------------------------------


def test_a_full_local_disk_names_each_file_at_both_ends(make_backend: MakeBackend, openssh: OpenSSHServer) -> None:
    with small_disk(1 << 20) as disk:
        if disk is None:
            pytest.skip("this user may not mount a small disk")
        folder = openssh.fresh()
        names = [f"{number}.csv" for number in range(3)]
        for name in names:
            (folder.path / name).write_bytes(bytes(4 << 20))
        backend = make_backend(openssh, base_path=folder.base_path)
        outcomes = backend.download_many([(name, disk / name) for name in names], return_exceptions=True)
        for name, outcome in zip(names, outcomes, strict=True):
            assert isinstance(outcome, OSError)
            assert outcome.errno == errno.ENOSPC
            assert outcome.filename == str(disk / name)
            assert f"downloading '{folder.base_path}/{name}'" in str(outcome)
        assert tree(disk) == {}


def test_every_local_error_of_a_download_names_both_ends(
    backend: SFTPBackend, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.path / "file").write_bytes(b"content")
    local = tmp_path / "local"
    before = local.with_name("old")
    before.write_bytes(b"old")

    def failing(*_arguments: object, **_options: object) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for name in ("write", "link", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, failing)
            if name == "link":
                patched.setattr(os, "replace", failing)
            with pytest.raises(OSError, match="Input/output error") as caught:
                backend.download("file", before if name == "replace" else local, overwrite=name == "replace")
        assert f"downloading '{folder.base_path}/file'" in str(caught.value), name
        assert str(before if name == "replace" else local) in str(caught.value), name
    with pytest.raises(FileNotFoundError, match=r"the local directory does not exist \(downloading") as missing:
        backend.download("file", tmp_path / "missing" / "local")
    assert missing.value.filename == str(tmp_path / "missing" / "local")
    assert tree(tmp_path) == {"old": b"old"}


def test_every_local_error_of_an_upload_names_both_ends(backend: SFTPBackend, folder: Folder, tmp_path: Path) -> None:
    for local in (tmp_path, tmp_path / "missing", Path("/proc/self/mem")):
        with pytest.raises(OSError, match=f"uploading to '{folder.base_path}/in/file'") as caught:
            backend.upload(local, "in/file")
        assert caught.value.filename == str(local)
    assert [path for path in folder.path.rglob("*") if path.is_file()] == []


def test_an_existing_local_file_is_still_already_exists(backend: SFTPBackend, folder: Folder, tmp_path: Path) -> None:
    (folder.path / "file").write_bytes(b"content")
    (tmp_path / "local").touch()
    with refused(AlreadyExists, backend, "file"):
        backend.download("file", tmp_path / "local")
