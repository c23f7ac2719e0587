"""The contract's promises about write, write_atomic, open_atomic, upload and upload_many."""

from __future__ import annotations

import io
import os
import random
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from airflow_sftp_backend import AlreadyExists, CapabilityNotSupported, InvalidPath, NotFound, SFTPBackend, WriteResult
from tests.support.assertions import refused
from tests.support.backends import offline
from tests.support.files import tree
from tests.support.servers import Folder

BIG = random.Random(8).randbytes(3_000_001)
Write = Callable[..., WriteResult]


@pytest.fixture(params=["write", "write_atomic", "upload", "open_atomic"])
def write(request: pytest.FixtureRequest, backend: SFTPBackend, tmp_path: Path) -> Write:
    """Each way of writing, as ``write(path, content, overwrite=False)``."""

    def upload(path: str, content: bytes, overwrite: bool = False) -> WriteResult:
        (tmp_path / "local").write_bytes(content)
        return backend.upload(tmp_path / "local", path, overwrite)

    def open_atomic(path: str, content: bytes, overwrite: bool = False) -> WriteResult:
        with backend.open_atomic(path, overwrite) as file:
            file.write(content)
        return WriteResult("/".join(s for s in path.split("/") if s not in ("", ".")), len(content))

    ways: dict[str, Write] = {
        "write": backend.write, "write_atomic": backend.write_atomic, "upload": upload, "open_atomic": open_atomic,
    }  # fmt: skip
    return ways[request.param]


# -- what all of them promise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 32_768, 261_121, len(BIG)])
def test_writing_stores_every_byte_and_nothing_else(write: Write, folder: Folder, size: int) -> None:
    assert write("file", BIG[:size]) == WriteResult("file", size)
    assert tree(folder.path) == {"file": BIG[:size]}


def test_writing_returns_the_servers_modification_time(backend: SFTPBackend, folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"content")
    results = [
        backend.write("a", b"content"),
        backend.write_atomic("b", b"content"),
        backend.upload(tmp_path / "local", "c"),
        backend.write_atomic("d", b"content", verify="none"),
    ]
    assert [result.last_modified for result in results[:3]] == [
        backend.get_file_info(name).modified_at for name in ("a", "b", "c")
    ]
    assert all(result.last_modified is not None for result in results[:3])
    assert results[3].last_modified is None  # a server that takes files away at once must not be queried


def test_writing_creates_parents(write: Write, folder: Folder) -> None:
    assert write("/a//b/./c/file", b"content") == WriteResult("a/b/c/file", 7)
    assert tree(folder.path) == {"a": None, "a/b": None, "a/b/c": None, "a/b/c/file": b"content"}


def test_writing_creates_base_path(backend: SFTPBackend, folder: Folder) -> None:
    with SFTPBackend.from_config(replace(backend.config, base_path=f"{folder.base_path}/new/base")) as below:
        below.write("a/file", b"1")
    with SFTPBackend.from_config(replace(backend.config, base_path=f"{folder.base_path}/other")) as below:
        below.write_atomic("file", b"2")
    names = {name for name, content in tree(folder.path).items() if content is not None}
    assert names == {"new/base/a/file", "other/file"}


def test_writing_onto_an_existing_file_is_already_exists(write: Write, backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"old")
    with refused(AlreadyExists, backend, "file") as error:
        write("file", b"new")
    assert "overwrite=True" in str(error)
    assert tree(folder.path) == {"file": b"old"}


def test_writing_with_overwrite_replaces(write: Write, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"old and longer than the new one")
    assert write("file", b"new", True) == WriteResult("file", 3)
    assert tree(folder.path) == {"file": b"new"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_writing_onto_a_folder_is_invalid_path(
    write: Write, backend: SFTPBackend, folder: Folder, overwrite: bool
) -> None:
    (folder.path / "sub").mkdir()
    with refused(InvalidPath, backend, "sub"):
        write("sub", b"new", overwrite)
    assert tree(folder.path) == {"sub": None}


@pytest.mark.parametrize("overwrite", [False, True])
def test_writing_onto_a_link_to_a_folder_is_invalid_path(
    write: Write, backend: SFTPBackend, folder: Folder, overwrite: bool
) -> None:
    (folder.path / "sub").mkdir()
    (folder.path / "link").symlink_to("sub")
    with refused(InvalidPath, backend, "link"):
        write("link", b"new", overwrite)
    assert tree(folder.path) == {"link": b"-> sub", "sub": None}


@pytest.mark.parametrize("overwrite", [False, True])
def test_writing_below_a_file_is_invalid_path(
    write: Write, backend: SFTPBackend, folder: Folder, overwrite: bool
) -> None:
    (folder.path / "file").write_bytes(b"old")
    for path in ("file/below", "file/far/below"):
        with refused(InvalidPath, backend, "file"):
            write(path, b"new", overwrite)
    assert tree(folder.path) == {"file": b"old"}


def test_a_dangling_link_is_an_occupied_name(write: Write, backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "link").symlink_to("missing")
    with refused(AlreadyExists, backend, "link"):
        write("link", b"new")
    assert tree(folder.path) == {"link": b"-> missing"}


# -- content ----------------------------------------------------------------------------------------------------------


class _Chunks:
    """Gives its bytes in odd pieces, never more than requested."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, 70_001))


@pytest.mark.parametrize("name", ["write", "write_atomic"])
def test_content_is_bytes_like_or_has_read(backend: SFTPBackend, folder: Folder, name: str) -> None:
    write = getattr(backend, name)
    for content in (BIG, bytearray(BIG), memoryview(BIG), io.BytesIO(BIG), _Chunks(BIG)):
        assert write("file", content, overwrite=True) == WriteResult("file", len(BIG))
        assert (folder.path / "file").read_bytes() == BIG
    wide = memoryview(b"12345678").cast("I")
    assert write("file", wide, overwrite=True).size == 8
    assert (folder.path / "file").read_bytes() == b"12345678"


@pytest.mark.parametrize("content", ["text", io.StringIO("text"), None, 5, ["a"], object()])
def test_other_content_is_a_type_error_before_any_io(content: object) -> None:
    backend = offline()
    with pytest.raises(TypeError, match="content must be"):
        backend.write("file", content)
    with pytest.raises(TypeError, match="content must be"):
        backend.write_atomic("file", content)


class _Text:
    def read(self, size: int) -> str:
        return "text"


class _Failing:
    def __init__(self, error: BaseException) -> None:
        self._error = error
        self._calls = 0

    def read(self, size: int) -> bytes:
        self._calls += 1
        if self._calls > 3:
            raise self._error
        return b"x" * size


@pytest.mark.parametrize("name", ["write", "write_atomic"])
def test_a_read_that_gives_text_is_a_type_error_and_leaves_nothing(
    backend: SFTPBackend, folder: Folder, name: str
) -> None:
    with pytest.raises(TypeError, match="bytes"):
        getattr(backend, name)("file", _Text())
    assert tree(folder.path) == {}


class _Mine(Exception):
    pass


@pytest.mark.parametrize("name", ["write", "write_atomic"])
@pytest.mark.parametrize("error", [_Mine("mine"), OSError("disk"), KeyboardInterrupt()])
def test_the_callers_own_exceptions_pass_unchanged_and_leave_nothing(
    backend: SFTPBackend, folder: Folder, name: str, error: BaseException
) -> None:
    with pytest.raises(type(error)) as caught:
        getattr(backend, name)("file", _Failing(error))
    assert caught.value is error
    assert tree(folder.path) == {}
    backend.write("file", b"the connection still works")


def test_metadata_is_not_supported_before_any_io() -> None:
    backend = offline()
    for write in (backend.write, backend.write_atomic):
        with refused(CapabilityNotSupported, backend, "file"):
            write("file", b"", metadata={"owner": "me"})


def test_one_file_is_copied_from_its_own_reader(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "a").write_bytes(BIG)
    with backend.read("a") as source:
        backend.write("b", source)
    with backend.read("a") as source:
        backend.write_atomic("c", source, verify="sha256")
    assert tree(folder.path) == {"a": BIG, "b": BIG, "c": BIG}


# -- atomic -----------------------------------------------------------------------------------------------------------


def test_the_final_name_appears_only_when_the_file_is_complete(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "old").write_bytes(b"old")
    seen: list[tuple[bool, bytes]] = []

    class Source(_Chunks):
        def read(self, size: int) -> bytes:
            seen.append(((folder.path / "new").exists(), (folder.path / "old").read_bytes()))
            return super().read(size)

    backend.write_atomic("new", Source(BIG))
    backend.write_atomic("old", Source(BIG), overwrite=True)
    assert set(seen) == {(False, b"old"), (True, b"old")}
    assert tree(folder.path) == {"new": BIG, "old": BIG}


@pytest.mark.parametrize("error", [_Mine("mine"), OSError("disk"), KeyboardInterrupt(), SystemExit(3)])
def test_open_atomic_leaves_the_target_as_it_was_on_any_error(
    backend: SFTPBackend, folder: Folder, error: BaseException
) -> None:
    (folder.path / "old").write_bytes(b"old")
    for name in ("old", "new"):
        with pytest.raises(type(error)) as caught, backend.open_atomic(name, overwrite=True) as file:
            file.write(BIG)
            raise error
        assert caught.value is error
    assert tree(folder.path) == {"old": b"old"}


def test_open_atomic_gives_a_writable_file(backend: SFTPBackend, folder: Folder) -> None:
    kept: list[BinaryIO] = []
    with backend.open_atomic("sub/file") as file:
        kept.append(file)
        assert file.writable()
        assert not file.readable()
        assert file.write(b"abc") == 3
        assert file.tell() == 3
        file.write(bytearray(BIG))
        file.writelines([b"x", b"y"])
        file.flush()
        assert not (folder.path / "sub" / "file").exists()
        assert backend.exists("sub")
    assert (folder.path / "sub" / "file").read_bytes() == b"abc" + BIG + b"xy"
    assert os.listdir(folder.path / "sub") == ["file"]
    assert kept[0].closed
    with pytest.raises(ValueError, match="closed"):
        kept[0].write(b"more")


def test_open_atomic_takes_text_through_a_wrapper(backend: SFTPBackend, folder: Folder) -> None:
    with backend.open_atomic("file") as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        text.write("ä;1\r\n")
        text.detach()
    assert (folder.path / "file").read_bytes() == "ä;1\r\n".encode()


@pytest.mark.parametrize("write", ["write_atomic", "upload", "open_atomic"], indirect=True)
def test_mode_bits_of_a_replaced_file_are_kept(write: Write, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"old")
    for mode in (0o600, 0o640, 0o664, 0o755):
        (folder.path / "file").chmod(mode)
        write("file", b"new", True)
        assert stat.S_IMODE((folder.path / "file").stat().st_mode) == mode


@pytest.mark.parametrize("verify", ["size", "sha256", "none"])
def test_write_atomic_verifies_as_configured(backend: SFTPBackend, folder: Folder, verify: str) -> None:
    result = backend.write_atomic("file", b"abc", verify=verify)  # type: ignore[arg-type]  # parametrized
    digest = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert result.digest == (digest if verify == "sha256" else None)
    assert tree(folder.path) == {"file": b"abc"}


def test_progress_is_reported_for_every_byte(backend: SFTPBackend, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(BIG)
    moved: list[int] = []
    backend.upload(tmp_path / "local", "one", progress=moved.append)
    assert sum(moved) == len(BIG)
    assert len(moved) > 2
    moved.clear()
    backend.write_atomic("two", BIG, progress=moved.append)
    assert sum(moved) == len(BIG)


# -- temporary files that others left behind --------------------------------------------------------------------------


def _left_behind(backend: SFTPBackend, folder: Folder, name: str, *, age: float) -> str:
    """Temporary file of a dead writer of ``name``, ``age`` seconds old."""
    before = set(os.listdir(folder.path))
    with backend.open_atomic(name, overwrite=True) as file:
        file.write(BIG)  # a few bytes may be held back, by the server too
        (temp,) = set(os.listdir(folder.path)) - before
        os.link(folder.path / temp, folder.path / "kept")
    (folder.path / "kept").rename(folder.path / temp)
    written = (folder.path / temp).stat().st_mtime - age
    os.utime(folder.path / temp, (written, written))
    return temp


def test_the_next_write_removes_stale_temporary_files_of_its_target(backend: SFTPBackend, folder: Folder) -> None:
    stale = _left_behind(backend, folder, "file", age=7200)
    young = _left_behind(backend, folder, "file", age=60)
    others = _left_behind(backend, folder, "other", age=7200)
    assert stale != young
    backend.close()
    backend.write_atomic("file", b"new", overwrite=True)
    assert sorted(os.listdir(folder.path)) == sorted(["file", "other", young, others])


def test_stale_temporary_files_of_open_atomic_are_removed_too(backend: SFTPBackend, folder: Folder) -> None:
    _left_behind(backend, folder, "file", age=7200)
    backend.close()
    with backend.open_atomic("file", overwrite=True) as file:
        file.write(b"new")
    assert tree(folder.path) == {"file": b"new"}


def test_stale_temporary_files_are_removed_by_upload(backend: SFTPBackend, folder: Folder, tmp_path: Path) -> None:
    _left_behind(backend, folder, "file", age=7200)
    backend.close()
    (tmp_path / "local").write_bytes(b"new")
    backend.upload(tmp_path / "local", "file", overwrite=True)
    assert tree(folder.path) == {"file": b"new"}


# -- upload, upload_many ----------------------------------------------------------------------------------------------


def test_upload_without_create_parents_needs_the_directory(
    backend: SFTPBackend, folder: Folder, tmp_path: Path
) -> None:
    (tmp_path / "local").write_bytes(b"content")
    with refused(NotFound, backend, "sub/file"):
        backend.upload(tmp_path / "local", "sub/file", create_parents=False)
    assert tree(folder.path) == {}
    (folder.path / "sub").mkdir()
    backend.upload(str(tmp_path / "local"), "sub/file", create_parents=False)
    assert tree(folder.path) == {"sub": None, "sub/file": b"content"}


def test_upload_many_gives_one_result_per_pair_in_order(backend: SFTPBackend, folder: Folder, tmp_path: Path) -> None:
    pairs = []
    for number in range(100):
        (tmp_path / str(number)).write_bytes(b"x" * number * 100)
        pairs.append((tmp_path / str(number), f"{number % 3}/file-{number}"))
    assert backend.upload_many(pairs) == [WriteResult(key, i * 100) for i, (_, key) in enumerate(pairs)]
    held = {name: content for name, content in tree(folder.path).items() if content is not None}
    assert held == {key: b"x" * number * 100 for number, (_, key) in enumerate(pairs)}


def test_upload_many_tries_all_and_hides_no_failure(backend: SFTPBackend, folder: Folder, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode())
    (folder.path / "taken").write_bytes(b"old")
    (folder.path / "sub").mkdir()
    pairs = [
        (tmp_path / "one", "one"), (tmp_path / "missing", "a"), (tmp_path / "two", "taken"), (tmp_path, "b"),
        (tmp_path / "two", "../up"),
        (tmp_path / "one", "sub"), (tmp_path / "two", "taken/below"), (tmp_path / "two", "new/two"),
    ]  # fmt: skip
    kinds = [FileNotFoundError, AlreadyExists, IsADirectoryError, InvalidPath, InvalidPath, InvalidPath]
    with pytest.raises(ExceptionGroup, match="6 of 8") as caught:
        backend.upload_many(pairs)
    assert [type(error) for error in caught.value.exceptions] == kinds
    held = {"one": b"one", "taken": b"old", "sub": None, "new": None, "new/two": b"two"}
    assert tree(folder.path) == held
    outcomes = backend.upload_many(pairs, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [AlreadyExists, *kinds, AlreadyExists]
    assert tree(folder.path) == held


def test_two_uploads_to_one_target_are_a_value_error_before_any_io(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same target"):
        offline().upload_many([(tmp_path / "a", "x"), (tmp_path / "b", "/./x")])


def test_an_empty_list_of_transfers_does_nothing() -> None:
    assert offline().upload_many([]) == []
    assert offline().download_many([]) == []
