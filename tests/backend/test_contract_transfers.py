"""The contract's promises about interrupted transfers and transfers of many files."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from airflow_sftp_backend import (
    AlreadyExists,
    BackendUnavailable,
    SFTPBackend,
    SFTPBackendError,
    TransferCorrupted,
    WriteResult,
)
from airflow_sftp_backend.backend.models import Verify
from tests.support.files import tree
from tests.support.servers import Folder, Server

MIB = 1 << 20
LONG = random.Random(11).randbytes(6 * MIB + 7)


class _Cut:
    """Progress that cuts all connections once, after half of `LONG`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.is_done = False
        self.moved = 0

    def __call__(self, count: int) -> None:
        self.moved += count
        if not self.is_done and self.moved > len(LONG) // 2:
            self.is_done = True
            self._server.kill_sessions()


@pytest.mark.parametrize("verify", ["size", "sha256"])
def test_an_interrupted_upload_resumes_and_stores_the_same_bytes(
    backend: SFTPBackend, server: Server, folder: Folder, tmp_path: Path, verify: Verify
) -> None:
    (tmp_path / "local").write_bytes(LONG)
    (folder.path / "file").write_bytes(b"old")
    cut = _Cut(server)
    result = backend.upload(tmp_path / "local", "file", overwrite=True, progress=cut, verify=verify)
    assert cut.is_done
    assert result.size == len(LONG)
    assert tree(folder.path) == {"file": LONG}


@pytest.mark.parametrize("verify", ["size", "sha256", "none"])
def test_an_interrupted_download_resumes_and_has_the_same_bytes(
    backend: SFTPBackend, server: Server, folder: Folder, tmp_path: Path, verify: Verify
) -> None:
    (folder.path / "file").write_bytes(LONG)
    cut = _Cut(server)
    result = backend.download("file", tmp_path / "local", progress=cut, verify=verify)
    assert cut.is_done
    assert result.size == len(LONG)
    assert tree(tmp_path) == {"local": LONG}


def _check_each(outcomes: Sequence[object], contents: dict[str, bytes], there: Path) -> None:
    """Each of many files is done, or reports its failure.

    A session that was cut may truncate a file late: then its size is not the one sent, which the upload notices.
    """
    for (name, content), outcome in zip(contents.items(), outcomes, strict=True):
        if isinstance(outcome, BackendUnavailable | TransferCorrupted):
            assert not (there / name).exists() or (there / name).read_bytes() == content
        elif isinstance(outcome, AlreadyExists):  # the cut session renamed the file late, behind the upload's back
            assert (there / name).read_bytes() == content
        else:
            assert isinstance(outcome, WriteResult)
            assert (there / name).read_bytes() == content
    assert {path.name for path in there.iterdir() if not path.name.startswith(".")} <= contents.keys()


def test_interrupted_uploads_are_whole_or_absent_and_repeatable(
    backend: SFTPBackend, server: Server, folder: Folder, tmp_path: Path
) -> None:
    contents = {f"{number}": random.Random(number).randbytes(400_000 + number) for number in range(20)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    pairs = [(tmp_path / name, name) for name in contents]
    cut = _Cut(server)
    outcomes = backend.upload_many(pairs, progress=cut, return_exceptions=True)
    assert cut.is_done
    _check_each(outcomes, contents, folder.path)
    again = backend.upload_many(pairs, overwrite=True)
    assert [getattr(result, "size", result) for result in again] == list(map(len, contents.values()))
    # A session that was cut may still carry out what it has received, and make a temporary file after the clean-up.
    assert {name: content for name, content in tree(folder.path).items() if name[0] != "."} == contents


def test_interrupted_downloads_are_whole_or_absent_and_repeatable(
    backend: SFTPBackend, server: Server, folder: Folder, tmp_path: Path
) -> None:
    contents = {f"{number}": random.Random(number).randbytes(400_000 + number) for number in range(20)}
    for name, content in contents.items():
        (folder.path / name).write_bytes(content)
    pairs = [(name, tmp_path / name) for name in contents]
    cut = _Cut(server)
    outcomes = backend.download_many(pairs, progress=cut, return_exceptions=True)
    assert cut.is_done
    _check_each(outcomes, contents, tmp_path)
    backend.download_many(pairs, overwrite=True)
    assert tree(tmp_path) == contents


def test_an_interrupted_write_leaves_the_old_content_or_the_new(
    backend: SFTPBackend, server: Server, folder: Folder
) -> None:
    (folder.path / "file").write_bytes(b"old")
    cut = _Cut(server)
    try:
        backend.write_atomic("file", LONG, overwrite=True, progress=cut)
    except SFTPBackendError:
        assert (folder.path / "file").read_bytes() == b"old"
    else:
        assert (folder.path / "file").read_bytes() == LONG
    assert cut.is_done
    backend.write_atomic("file", b"next", overwrite=True)
    assert (folder.path / "file").read_bytes() == b"next"


def test_a_write_without_overwrite_never_replaces_a_concurrent_file(
    make_backend: Callable[..., SFTPBackend], server: Server, folder: Folder
) -> None:
    first, second = (make_backend(server, base_path=folder.base_path) for _ in range(2))
    first.write("file", b"first")
    for write in (second.write, second.write_atomic):
        with pytest.raises(AlreadyExists):
            write("file", b"second")
    with pytest.raises(AlreadyExists), second.open_atomic("atomic") as file:
        file.write(b"second")
        first.write("atomic", b"first")
    assert tree(folder.path) == {"file": b"first", "atomic": b"first"}


NAMES = ["a b", "a[1]*?.csv", "back\\slash", ".hidden", "-dash", "semi;colon", "quote'\"", "~", "a" * 200]
FOREIGN_NAMES = ["ünï çödé", "日本", "🙂"]


def _assert_names_work(backend: SFTPBackend, folder: Folder, names: Sequence[str]) -> None:
    for name in names:
        backend.write_atomic(f"in/{name}", name.encode())
    assert sorted(os.listdir(folder.path / "in")) == sorted(names)
    assert sorted(file.name for file in backend.list_files("in")) == sorted(names)
    assert [backend.read_bytes(f"in/{name}") for name in names] == [name.encode() for name in names]
    backend.move(f"in/{names[0]}", f"in/{names[0]} moved")
    assert backend.delete_many([f"in/{names[0]} moved", *(f"in/{name}" for name in names[1:])]) == [None] * len(names)
    backend.delete_folder("in")
    assert tree(folder.path) == {}


def test_names_of_all_kinds_are_stored_listed_and_deleted(backend: SFTPBackend, folder: Folder) -> None:
    _assert_names_work(backend, folder, NAMES)


def test_names_beyond_ascii_are_stored_listed_and_deleted(backend: SFTPBackend, folder: Folder) -> None:
    _assert_names_work(backend, folder, FOREIGN_NAMES)
