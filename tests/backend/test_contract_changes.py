"""The contract's promises about directories, modes, times and texts."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest

from airflow_sftp_backend import (
    AlreadyExists,
    CapabilityNotSupported,
    InvalidPath,
    NotFound,
    SFTPBackend,
    SFTPBackendError,
)
from tests.support.assertions import refused
from tests.support.backends import offline
from tests.support.files import tree
from tests.support.servers import Folder, WithoutSetstat

MakeBackend = Callable[..., SFTPBackend]
TIME = datetime(2020, 2, 29, 23, 59, 58, tzinfo=UTC)


def mode_of(folder: Folder, name: str) -> int:
    """Return the permission bits of a file on the server."""
    return stat.S_IMODE((folder.path / name).stat().st_mode)


# -- directories ------------------------------------------------------------------------------------------------------


def test_make_folder_creates_the_directory_and_its_parents(backend: SFTPBackend, folder: Folder) -> None:
    backend.make_folder("/a//b/./c")
    backend.make_folder("a/b")
    assert tree(folder.path) == {"a": None, "a/b": None, "a/b/c": None}


def test_make_folder_can_refuse_an_existing_directory(backend: SFTPBackend, folder: Folder) -> None:
    backend.make_folder("new/sub", exist_ok=False)
    for name in ("new", "new/sub"):
        with refused(AlreadyExists, backend, name):
            backend.make_folder(name, exist_ok=False)
    assert tree(folder.path) == {"new": None, "new/sub": None}


def test_make_folder_onto_or_below_a_file_is_invalid_path(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"content")
    for name in ("file", "file/a", "file/a/b"):
        for exist_ok in (True, False):
            with refused(InvalidPath, backend, "file"):
                backend.make_folder(name, exist_ok)
    assert tree(folder.path) == {"file": b"content"}


# -- modes and times --------------------------------------------------------------------------------------------------


def test_set_mode_sets_the_mode_of_a_file_and_of_a_directory(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"content")
    (folder.path / "sub").mkdir()
    backend.set_mode("file", 0o640)
    backend.set_mode("sub", 0o2770)
    assert (mode_of(folder, "file"), mode_of(folder, "sub")) == (0o640, 0o2770)
    assert backend.get_file_info("file").mode == 0o640


def test_set_times_sets_the_times_of_a_file_and_of_a_directory(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"content")
    (folder.path / "sub").mkdir()
    backend.set_times("file", TIME.replace(microsecond=900_000))
    backend.set_times("sub", TIME.astimezone(timezone(timedelta(hours=-7))))
    assert backend.get_file_info("file").modified_at == TIME
    assert [(folder.path / name).stat().st_mtime for name in ("file", "sub")] == [TIME.timestamp()] * 2


def test_set_times_takes_a_time_of_the_last_read(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"content")
    backend.set_times("file", TIME, accessed_at=TIME + timedelta(days=1))
    status = os.stat(folder.path / "file")
    assert (status.st_atime, status.st_mtime) == (TIME.timestamp() + 86_400, TIME.timestamp())


def test_modes_and_times_of_missing_names_are_not_found(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"content")
    for name in ("missing", "missing/sub", "file/sub"):
        with refused(NotFound, backend, name):
            backend.set_mode(name, 0o600)
        with refused(NotFound, backend, name):
            backend.set_times(name, TIME)


def test_modes_and_times_that_a_server_refuses_are_errors(make_backend: MakeBackend) -> None:
    with WithoutSetstat() as server:
        folder = server.fresh()
        (folder.path / "file").write_bytes(b"content")
        before = (folder.path / "file").stat()
        backend = make_backend(server, base_path=folder.base_path)
        with refused(CapabilityNotSupported, backend, "file") as error:
            backend.set_mode("file", 0o600)
        assert "cannot set mode 600: the server does not support this operation" in error.message
        with pytest.raises(SFTPBackendError, match="cannot set the time 2020-02-29T23:59:58"):
            backend.set_times("file", TIME)
        after = (folder.path / "file").stat()
        assert (after.st_mode, after.st_mtime) == (before.st_mode, before.st_mtime)


@pytest.mark.parametrize("mode", [-1, 0o10000, 640.0, "640", True, None])
def test_wrong_modes_are_value_errors_before_any_io(mode: object) -> None:
    with pytest.raises(ValueError, match="mode must be a number from 0 to 0o7777"):
        offline().set_mode("file", mode)  # type: ignore[arg-type] # the wrong type is the case


@pytest.mark.parametrize(
    "time", [datetime(2020, 1, 1), datetime(1969, 12, 31, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC), 0, "now"]
)
def test_wrong_times_are_value_errors_before_any_io(time: object) -> None:
    with pytest.raises(ValueError, match="modified_at must be"):
        offline().set_times("file", time)  # type: ignore[arg-type] # the wrong type is the case
    with pytest.raises(ValueError, match="accessed_at must be"):
        offline().set_times("file", TIME, time or 1)  # type: ignore[arg-type] # the wrong type is the case


def test_base_path_itself_is_not_changed() -> None:
    calls: list[Callable[[SFTPBackend], None]] = [
        lambda backend: backend.make_folder(""),
        lambda backend: backend.set_mode("/", 0o700),
        lambda backend: backend.set_times(".", TIME),
    ]
    for call in calls:
        with pytest.raises(InvalidPath):
            call(offline())


# -- texts ------------------------------------------------------------------------------------------------------------


def test_texts_are_written_and_read_with_their_line_ends(backend: SFTPBackend, folder: Folder) -> None:
    text = "Grüße\r\nzweite\nlast\r"
    assert backend.write_text("a/text", text).size == len(text.encode())
    assert (folder.path / "a/text").read_bytes() == text.encode()
    assert backend.read_text("a/text") == text
    backend.write_text("a/text", text, overwrite=True, encoding="latin-1")
    assert (folder.path / "a/text").read_bytes() == text.encode("latin-1")
    assert backend.read_text("a/text", "latin-1") == text
    assert backend.read_text("a/text", errors="replace") == "Gr\ufffd\ufffde\r\nzweite\nlast\r"


def test_write_text_onto_an_existing_file_needs_overwrite(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"old")
    with refused(AlreadyExists, backend, "file"):
        backend.write_text("file", "new")
    assert tree(folder.path) == {"file": b"old"}


def test_text_that_does_not_fit_the_encoding_names_the_file(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"\xff\xfe")
    with pytest.raises(UnicodeDecodeError) as caught:
        backend.read_text("file")
    assert caught.value.__notes__ == [f"while reading 'file' on {backend.address}"]
    with pytest.raises(UnicodeEncodeError):
        backend.write_text("new", "€", encoding="latin-1")
    with pytest.raises(TypeError, match="write_atomic takes bytes"):
        backend.write_text("new", b"bytes")  # type: ignore[arg-type] # the wrong type is the case
    assert tree(folder.path) == {"file": b"\xff\xfe"}
