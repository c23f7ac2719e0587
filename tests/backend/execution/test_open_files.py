"""Read files of hostile servers, and commit written files later."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from airflow_sftp_backend import CapabilityNotSupported, InvalidPath, SFTPBackend, SFTPBackendError
from airflow_sftp_backend.backend._execution.open_files import AtomicWriter, RemoteFile, _RawRemoteFile
from tests.support.assertions import refused
from tests.support.servers import AsyncsshServer, BareAttributes, FailsWrite, SaysOtherSizes

MakeBackend = Callable[..., SFTPBackend]
CONTENT = b"0123456789"


def opened(make_backend: MakeBackend, server: SaysOtherSizes) -> tuple[SFTPBackend, io.BufferedReader]:
    folder = server.fresh()
    (folder.path / "file").write_bytes(CONTENT)
    backend = make_backend(server, base_path=folder.base_path)
    file = backend.read("file")
    assert isinstance(file, io.BufferedReader)
    return backend, file


@pytest.mark.parametrize("stated_size", [2**62 + 1, 2**63 - 1, 2**63, 2**63 + 4, 2**64 - 1])
@pytest.mark.parametrize("offset", [-5, 0, 5])
def test_an_impossible_file_size_is_a_public_error(make_backend: MakeBackend, stated_size: int, offset: int) -> None:
    with SaysOtherSizes(lambda _: stated_size) as server:
        backend, file = opened(make_backend, server)
        with file:
            with refused(SFTPBackendError, backend, "file") as error:
                file.seek(offset, io.SEEK_END)
            assert f"{stated_size} bytes" in error.message
            file.seek(0)
            assert file.read() == CONTENT  # the file is still of use


@pytest.mark.parametrize("stated_size", [2**40, 2**62])
def test_reading_near_a_huge_end_gives_nothing_or_the_servers_error(
    make_backend: MakeBackend, stated_size: int
) -> None:
    with SaysOtherSizes(lambda _: stated_size) as server:
        _, file = opened(make_backend, server)
        with file:
            assert file.seek(-5, io.SEEK_END) == stated_size - 5
            with suppress(SFTPBackendError):  # some file systems refuse such an offset
                assert file.read() == b""
            assert file.seek(2**62) == 2**62
            with suppress(SFTPBackendError):
                assert file.read(10) == b""
            file.seek(0)
            assert file.read() == CONTENT


def test_a_negative_position_is_the_value_error_of_the_io_module(make_backend: MakeBackend) -> None:
    with SaysOtherSizes(lambda _: 0) as server:
        _, file = opened(make_backend, server)
        with file:
            for position in ((-5, io.SEEK_END), (-1, io.SEEK_SET), (-1, io.SEEK_CUR)):
                with pytest.raises(ValueError, match="negative seek"):
                    file.seek(*position)
            with pytest.raises(ValueError, match="whence"):
                file.seek(0, 99)
            with pytest.raises((OverflowError, ValueError)):  # as of any file: no offset is that large
                file.seek(2**64)
            with pytest.raises(ValueError, match="read length"):
                file.read(-2)
            assert file.read() == CONTENT


def test_an_unreported_size_is_not_read_as_zero(make_backend: MakeBackend) -> None:
    with BareAttributes(with_size=False) as server:
        folder = server.fresh()
        (folder.path / "file").write_bytes(CONTENT)
        backend = make_backend(server, base_path=folder.base_path)
        with backend.read("file") as file:
            with refused(CapabilityNotSupported, backend, "file"):
                file.seek(0, io.SEEK_END)
            assert file.read() == CONTENT


@pytest.mark.parametrize("kind", [RemoteFile, _RawRemoteFile, AtomicWriter, SFTPBackend])
def test_a_partly_constructed_object_has_a_repr(kind: type[object]) -> None:
    assert repr(kind.__new__(kind)).startswith("<")


def test_an_atomic_file_is_committed_or_discarded_once(
    make_backend: MakeBackend, asyncssh_plain: AsyncsshServer
) -> None:
    folder = asyncssh_plain.fresh()
    backend = make_backend(asyncssh_plain, base_path=folder.base_path)
    for finish, expected in ((AtomicWriter.commit, ["file"]), (AtomicWriter.discard, [])):
        writer = backend.create_atomic("file")
        writer.write(CONTENT)
        finish(writer)
        writer.discard()
        with pytest.raises(ValueError, match="closed"):
            writer.commit()
        with pytest.raises(ValueError, match="closed"):
            writer.write(CONTENT)
        assert [path.name for path in folder.path.iterdir()] == expected
        backend.delete("file", missing_ok=True)


def test_an_abandoned_file_is_removed_by_the_next_write(
    make_backend: MakeBackend, asyncssh_plain: AsyncsshServer
) -> None:
    folder = asyncssh_plain.fresh()
    backend = make_backend(asyncssh_plain, base_path=folder.base_path)
    writer = backend.create_atomic("file")
    writer.write(CONTENT)
    writer.abandon()
    assert len([*folder.path.iterdir()]) == 1
    assert [*backend.list_files("")] == []
    (temp,) = folder.path.iterdir()
    os.utime(temp, (time.time() - 7200,) * 2)
    backend.close()
    backend.write_atomic("file", b"new")
    assert [path.name for path in folder.path.iterdir()] == ["file"]


def test_a_file_as_parent_of_an_atomic_file_is_refused_at_once(
    make_backend: MakeBackend, asyncssh_plain: AsyncsshServer
) -> None:
    folder = asyncssh_plain.fresh()
    (folder.path / "file").write_bytes(CONTENT)
    backend = make_backend(asyncssh_plain, base_path=folder.base_path)
    with refused(InvalidPath, backend, "file") as error:
        backend.create_atomic("file/below")
    assert isinstance(error, InvalidPath)
    assert error.entry_type == "file"
    assert [path.name for path in folder.path.iterdir()] == ["file"]


def test_a_file_is_not_committed_after_a_failed_write(make_backend: MakeBackend) -> None:
    with FailsWrite(nth=2) as server:
        folder = server.fresh()
        backend = make_backend(server, base_path=folder.base_path)
        with pytest.raises(SFTPBackendError, match="earlier write"), backend.open_atomic("file") as file:
            for _ in range(40):  # more than the window of 8 MiB, so that a reply is awaited
                with suppress(SFTPBackendError):
                    file.write(bytes(300_000))
        assert list(folder.path.iterdir()) == []
