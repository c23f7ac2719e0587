"""Read and write open files of the file system."""

from __future__ import annotations

import contextlib
import gc
import gzip
import io
import os
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import fsspec
import pytest
from fsspec.compression import compr

from airflow_sftp_backend import SFTPBackend
from airflow_sftp_backend.backend._receive_limits import ReceiveLimits
from airflow_sftp_backend.filesystem import SFTPBackendFileSystem
from tests.support.airflow.connections import Connect
from tests.support.servers import AsyncsshServer, Folder
from tests.support.servers.relay import CountingRelay

CONTENT = random.Random(5).randbytes(3 << 20)


def names(folder: Folder) -> list[str]:
    """All names on the server, those of temporary files too."""
    return sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file())


# -- reading ----------------------------------------------------------------------------------------------------------


def test_any_sequence_of_seeks_and_reads_gives_the_bytes_there(fs: SFTPBackendFileSystem, folder: Folder) -> None:
    (folder.path / "file").write_bytes(CONTENT)
    expected, choice = io.BytesIO(CONTENT), random.Random(7)
    with fs.open("file") as file:
        assert file.size == len(CONTENT)
        for _ in range(60):
            if choice.random() < 0.5:
                position = choice.randrange(len(CONTENT) + 10)
                assert file.seek(position) == expected.seek(position)
            size = choice.choice([0, 1, 100, 70_000, 300_000, 1_500_000, -1])
            assert file.read(size) == expected.read(size)
            assert file.tell() == expected.tell()


def test_lines_text_and_compressed_files_are_read(fs: SFTPBackendFileSystem, folder: Folder) -> None:
    (folder.path / "file").write_text("eins\nzwei\ndrei")
    with fs.open("file") as file:
        assert file.readline() == b"eins\n"
        assert [*file] == [b"zwei\n", b"drei"]
    with fs.open("file", "r", encoding="ascii") as file:
        assert file.read() == "eins\nzwei\ndrei"
    with fs.open("file.gz", "wt", compression="infer") as file:
        file.write("packed")
    assert (folder.path / "file.gz").read_bytes()[:2] == b"\x1f\x8b"
    with fs.open("file.gz", "rt", compression="infer") as file:
        assert file.read() == "packed"


def test_slices_count_from_the_end_as_those_of_python(fs: SFTPBackendFileSystem, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"0123456789")
    for start, end in [(None, None), (0, None), (3, None), (None, 4), (-3, None), (2, -2), (8, 20), (5, 2), (-20, 2)]:
        assert fs.cat_file("file", start, end) == b"0123456789"[start:end]
    ranges = fs.cat_ranges(["file", "missing", "file"], [1, 0, -2], [3, 1, None])
    assert (ranges[0], ranges[2]) == (b"12", b"89")
    assert isinstance(ranges[1], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(["missing"], 0, 1, on_error="raise")


def test_a_range_costs_little_more_than_its_bytes(
    make_backend: Callable[..., SFTPBackend], server: AsyncsshServer, folder: Folder
) -> None:
    (folder.path / "file").write_bytes(random.Random(1).randbytes(24 << 20))
    with contextlib.closing(CountingRelay(server.port)) as relay:
        backend = make_backend(server, port=relay.port, base_path=folder.base_path, host_key_policy="auto")
        with SFTPBackendFileSystem(backend=backend).open("file") as file:
            file.read(1)
            before = relay.received
            for position in range(2 << 20, 22 << 20, 4 << 20):
                file.seek(position)
                assert len(file.read(1 << 20)) == 1 << 20
            assert relay.received - before < 1.2 * (5 << 20)


def test_threads_that_seek_and_read_get_the_bytes_of_their_position(fs: SFTPBackendFileSystem, folder: Folder) -> None:
    (folder.path / "file").write_bytes(CONTENT)
    with fs.open("file") as file:

        def piece(number: int) -> bool:
            position = number * 7919 % len(CONTENT)
            file.seek(position)
            return bool(file.read(40_000) == CONTENT[position : position + 40_000])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(piece, range(400)))
        file.seek(5)
        with ThreadPoolExecutor(1) as pool:  # one thread passes the file on to another
            assert pool.submit(file.read, 10).result() == CONTENT[5:15]
        assert file.read(10) == CONTENT[15:25]


class Interruption(BaseException):
    """Stand for an exception of a signal handler."""


def test_after_an_interruption_a_file_is_read_on_without_a_gap(
    fs: SFTPBackendFileSystem, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.path / "file").write_bytes(CONTENT)
    moments = [900_000, 1_800_000, 2_100_000]  # when blocks are read ahead
    check = ReceiveLimits.check_file_bytes

    def interrupted(limits: ReceiveLimits, count: int, path: str) -> None:
        check(limits, count, path)
        if moments and count >= moments[0]:
            del moments[0]
            raise Interruption  # a signal arrives between the reply and the return of its block

    monkeypatch.setattr(ReceiveLimits, "check_file_bytes", interrupted)
    with fs.open("file") as file:
        while (position := file.tell()) < len(CONTENT):
            try:
                data = file.read(300_000)
            except Interruption:
                continue
            assert data == CONTENT[position : position + 300_000]
    assert moments == []


def test_a_file_that_is_replaced_while_it_is_read_is_read_to_its_old_end(
    fs: SFTPBackendFileSystem, folder: Folder
) -> None:
    (folder.path / "file").write_bytes(CONTENT)
    with fs.open("file") as file:
        start = file.read(1000)
        fs.pipe("file", b"new")
        assert start + file.read() == CONTENT
    assert fs.cat("file") == b"new"


@pytest.mark.parametrize("size", [-1, 100_000])
def test_a_file_that_is_truncated_while_it_is_read_is_an_error(
    fs: SFTPBackendFileSystem, folder: Folder, size: int
) -> None:
    (folder.path / "file").write_bytes(CONTENT)
    with fs.open("file") as file:
        file.read(10)
        os.truncate(folder.path / "file", 2 << 20)
        with pytest.raises(OSError, match=f"ended after {2 << 20} of {3 << 20} bytes: it was changed while"):
            while file.read(size):
                pass


def test_a_reader_that_is_not_closed_gives_its_handle_back(fs: SFTPBackendFileSystem, folder: Folder) -> None:
    (folder.path / "file").write_bytes(CONTENT)
    for _ in range(300):  # more than the server lets a connection have
        fs.open("file").read(10)


# -- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 3 << 20])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_file_appears_when_it_is_closed(
    fs: SFTPBackendFileSystem, folder: Folder, size: int, old: bytes | None
) -> None:
    target = folder.path / "new" / "file"
    if old is not None:
        target.parent.mkdir()
        target.write_bytes(old)
    with fs.open("new/file", "wb") as file:
        for start in range(0, size, 70_000):
            file.write(CONTENT[start : min(size, start + 70_000)])
        assert file.tell() == size
        file.flush()
        assert (target.read_bytes() if target.exists() else None) == old
    assert target.read_bytes() == CONTENT[:size]
    assert names(folder) == ["new/file"]


def test_exclusive_creation_refuses_an_existing_file(fs: SFTPBackendFileSystem, folder: Folder) -> None:
    with fs.open("file", "xb") as file:
        file.write(b"first")
    with pytest.raises(FileExistsError, match="file"):
        fs.open("file", "xb")
    with pytest.raises(FileExistsError):
        fs.pipe("file", b"second", mode="create")
    assert fs.cat("file") == b"first"


@pytest.mark.parametrize("mode", ["ab", "r+b", "a"])
def test_a_file_is_not_changed_in_place(fs: SFTPBackendFileSystem, folder: Folder, mode: str) -> None:
    (folder.path / "file").write_bytes(b"old")
    with pytest.raises(NotImplementedError, match=r"'/file' with mode '.*': a file is replaced as a whole"):
        fs.open("file", mode)


needs_zstd = pytest.mark.skipif("zstd" not in compr, reason="fsspec finds no package for zstd")
OPENINGS: dict[str, Callable[[SFTPBackendFileSystem], IO[Any]]] = {
    "bytes": lambda fs: fs.open("file.gz", "wb"),
    "text": lambda fs: fs.open("file.gz", "w"),
    "compressed": lambda fs: fs.open("file.gz", "wb", compression="gzip"),
    "zstd": lambda fs: fs.open("file.gz", "wb", compression="zstd"),
    "compressed text": lambda fs: fs.open("file.gz", "w", compression="infer"),
    "fsspec.open": lambda fs: fsspec.core.OpenFile(fs, "file.gz", "w", encoding="utf-8").open(),
}


@pytest.fixture(params=[pytest.param(name, marks=needs_zstd) if name == "zstd" else name for name in OPENINGS])
def opened(request: pytest.FixtureRequest, fs: SFTPBackendFileSystem, folder: Folder) -> IO[Any]:
    """A file that replaces an old one, written to, not closed."""
    (folder.path / "file.gz").write_bytes(b"old")
    file = OPENINGS[request.param](fs)
    is_text = "text" in request.param or request.param == "fsspec.open"
    file.write("new" if is_text else b"new")
    return file


def test_a_block_that_raises_writes_nothing(opened: IO[Any], folder: Folder) -> None:
    with pytest.raises(KeyError), opened:
        raise KeyError
    assert names(folder) == ["file.gz"]
    assert (folder.path / "file.gz").read_bytes() == b"old"


def test_closing_while_an_exception_passes_writes_nothing(opened: IO[Any], folder: Folder) -> None:
    with pytest.raises(KeyError):
        try:
            raise KeyError
        finally:
            opened.close()
    assert names(folder) == ["file.gz"]
    assert (folder.path / "file.gz").read_bytes() == b"old"


def test_a_file_that_is_never_closed_is_not_written(
    fs: SFTPBackendFileSystem, folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    openings = [opening for name, opening in OPENINGS.items() if name != "zstd" or "zstd" in compr]
    for number, opening in enumerate(openings):
        (folder.path / "file.gz").write_bytes(b"old")
        file = opening(fs)
        with contextlib.suppress(TypeError):
            file.write(b"new")
        with contextlib.suppress(TypeError):
            file.write("new")
        del file
        gc.collect()
        assert caplog.text.count("is not written, because the file was never closed") == number + 1
        assert (folder.path / "file.gz").read_bytes() == b"old"
        assert fs.ls("", detail=False) == ["/file.gz"]  # an abandoned temporary file is not listed


@needs_zstd
def test_a_zstd_file_is_written_and_read_by_url(connect: Connect, server: AsyncsshServer, folder: Folder) -> None:
    connect(server, "partner", base_path=folder.base_path)
    url = "sftpbackend://partner@/file.zst"
    with fsspec.open(url, "wb", compression="zstd") as file:
        file.write(CONTENT)
    assert names(folder) == ["file.zst"]
    assert (folder.path / "file.zst").read_bytes()[:4] == bytes.fromhex("28b52ffd")  # RFC 8878 section 3.1.1
    with fsspec.open(url, "rb", compression="infer") as file:
        assert file.read() == CONTENT


def test_a_compressed_file_of_fsspec_open_is_written_after_its_block(fs: SFTPBackendFileSystem, folder: Folder) -> None:
    for fails in (True, False):
        with contextlib.suppress(KeyError), fsspec.core.OpenFile(fs, "file", "wb", compression="gzip") as file:
            file.write(b"packed")
            if fails:
                raise KeyError
        assert names(folder) == ([] if fails else ["file"])
    assert gzip.decompress(fs.cat("file")) == b"packed"


def test_a_file_opened_and_closed_while_an_exception_is_handled_is_written(fs: SFTPBackendFileSystem) -> None:
    try:
        raise KeyError
    except KeyError:
        with fs.open("report", "w") as file:
            file.write("it failed")
    assert fs.cat("report") == b"it failed"


def test_closing_after_a_failed_write_is_an_error(
    make_backend: Callable[..., SFTPBackend], server: AsyncsshServer, folder: Folder
) -> None:
    backend = make_backend(server, base_path=folder.base_path)
    file = SFTPBackendFileSystem(backend=backend).open("file", "wb")
    file.write(b"1")
    backend.close()
    with pytest.raises(ConnectionError, match="connection of the open file was lost"):
        file.write(CONTENT)
    with pytest.raises(OSError, match="'/file' was not written: an earlier write to the file failed"):
        file.close()
    file.close()
    assert names(folder) == []


def test_a_transaction_writes_all_its_files_or_none(fs: SFTPBackendFileSystem, folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"3")
    for fails in (True, False):
        with contextlib.suppress(KeyError), fs.transaction:
            with fs.open("one", "wb") as file:
                file.write(b"1")
            fs.pipe("two", b"2")
            fs.put_file(str(tmp_path / "local"), "three")
            assert fs.find("") == []
            if fails:
                raise KeyError
    assert fs.cat(["one", "two", "three"]) == {"/one": b"1", "/two": b"2", "/three": b"3"}
    assert len(names(folder)) == 3


# -- the end of the connection ----------------------------------------------------------------------------------------


def test_files_of_a_closed_backend_raise_and_write_nothing(
    fs: SFTPBackendFileSystem, backend: SFTPBackend, folder: Folder
) -> None:
    (folder.path / "old").write_bytes(CONTENT)
    reader, writer = fs.open("old"), fs.open("new", "wb")
    reader.read(10)
    writer.write(b"new")
    backend.close()
    with pytest.raises(ConnectionError, match="Open the file again"):
        reader.read()
    with pytest.raises(ConnectionError):
        writer.close()
    reader.close()
    assert fs.cat("old") == CONTENT  # the file system connects again
    assert names(folder) == ["old"]


def test_an_open_file_is_not_pickled(fs: SFTPBackendFileSystem, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"x")
    with fs.open("file") as reader, fs.open("new", "wb") as writer:
        for file in (reader, writer):
            with pytest.raises(TypeError, match="cannot pickle"):
                pickle.dumps(file)


def test_each_thread_reads_on_from_its_own_seek(fs: SFTPBackendFileSystem, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"".join(b"%07d\n" % number for number in range(1000)))
    with fs.open("file") as file, ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        first.submit(file.seek, 800).result()
        second.submit(file.seek, 1600).result()
        assert [second.submit(file.read, 8).result() for _ in range(2)] == [b"0000200\n", b"0000201\n"]
        assert first.submit(file.read, 8).result() == b"0000100\n"


def test_a_transaction_writes_no_file_that_was_not_closed(fs: SFTPBackendFileSystem, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"old")

    with pytest.raises(ValueError, match="not closed"), fs.transaction:
        unclosed = fs.open("file", "w")
        unclosed.write("unfinished")
    assert (folder.path / "file").read_bytes() == b"old"
    fs.pipe("later", b"later")
    assert names(folder) == ["file", "later"]


def test_a_discarded_file_does_not_fail_its_transaction(fs: SFTPBackendFileSystem, folder: Folder) -> None:
    with fs.transaction:
        fs.pipe("a", b"a")
        with contextlib.suppress(KeyError), fs.open("b", "wb") as file:
            file.write(b"b")
            raise KeyError
        fs.pipe("c", b"c")
    fs.pipe("later", b"later")
    assert names(folder) == ["a", "c", "later"]
