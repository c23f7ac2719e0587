"""The contract's promises about read, read_bytes, download and download_many."""

from __future__ import annotations

import io
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_sftp_backend import AlreadyExists, BackendUnavailable, InvalidPath, NotFound, SFTPBackend, WriteResult
from tests.support.assertions import refused
from tests.support.backends import offline
from tests.support.files import tree
from tests.support.servers import DropsAfter, Folder, OutOfOrder, ShortReads, StallsAfter

MakeBackend = Callable[..., SFTPBackend]
BIG = random.Random(7).randbytes(3_000_001)


# -- read -------------------------------------------------------------------------------------------------------------


def test_read_gives_a_seekable_buffered_reader(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(BIG)
    with backend.read("file") as file:
        assert isinstance(file, io.BufferedReader)
        assert file.readable()
        assert file.seekable()
        assert not file.writable()
        assert file.read(10) == BIG[:10]
        assert file.tell() == 10
        assert file.seek(-5, io.SEEK_END) == len(BIG) - 5
        assert file.read() == BIG[-5:]
        assert file.read(1) == b""
        assert file.seek(1_000_000) == 1_000_000
        assert file.seek(7, io.SEEK_CUR) == 1_000_007
        assert file.read(1_000_000) == BIG[1_000_007:2_000_007]
        file.seek(0)
        assert file.read() == BIG


def test_read_gives_lines_and_text(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes("ä,1\nö,2\n".encode())
    with backend.read("file") as file, io.TextIOWrapper(file, encoding="utf-8") as text:
        assert list(text) == ["ä,1\n", "ö,2\n"]


def test_read_of_a_missing_file_is_not_found_at_the_call(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").touch()
    for path in ("missing", "missing/file", "file/below"):
        with refused(NotFound, backend, path):
            backend.read(path)


def test_read_of_a_folder_is_invalid_path_at_the_call(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "sub").mkdir()
    for path in ("sub", ""):
        with refused(InvalidPath, backend, path):
            backend.read(path)


def test_read_follows_a_link(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"content")
    (folder.path / "link").symlink_to("file")
    with backend.read("link") as file:
        assert file.read() == b"content"
    assert backend.read_bytes("link") == b"content"


def test_a_closed_reader_does_not_read(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(BIG)
    file = backend.read("file")
    file.read(1)
    file.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


def test_several_readers_and_other_calls_do_not_disturb_each_other(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "one").write_bytes(BIG)
    (folder.path / "two").write_bytes(BIG[::-1])
    with backend.read("one") as one, backend.read("two") as two:
        pieces: list[tuple[bytes, bytes]] = []
        while not pieces or pieces[-1][0]:
            pieces.append((one.read(300_000), two.read(300_000)))
            assert backend.exists("one")
    assert b"".join(piece for piece, _ in pieces) == BIG
    assert b"".join(piece for _, piece in pieces) == BIG[::-1]


# -- read_bytes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 32_767, 32_768, 32_769, 65_536, 65_537, 261_120, 522_241, len(BIG)])
def test_read_bytes_gives_the_whole_file(backend: SFTPBackend, folder: Folder, size: int) -> None:
    (folder.path / "file").write_bytes(BIG[:size])
    assert backend.read_bytes("file") == BIG[:size]


def test_read_bytes_of_a_missing_file_is_not_found(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").touch()
    for path in ("missing", "missing/file", "file/below"):
        with refused(NotFound, backend, path):
            backend.read_bytes(path)


def test_read_bytes_of_a_folder_is_invalid_path(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "sub").mkdir()
    for path in ("sub", ""):
        with refused(InvalidPath, backend, path):
            backend.read_bytes(path)


# -- download, download_many ------------------------------------------------------------------------------------------


def test_download_stores_the_whole_file(backend: SFTPBackend, folder: Folder, tmp_path: Path) -> None:
    (folder.path / "file").write_bytes(BIG)
    moved: list[int] = []
    result = backend.download("/file", tmp_path / "local", progress=moved.append)
    assert result == WriteResult("file", len(BIG))
    assert result.last_modified == backend.get_file_info("file").modified_at
    assert tree(tmp_path) == {"local": BIG}
    assert sum(moved) == len(BIG)


def test_download_has_the_mode_that_the_umask_leaves_not_the_servers(
    backend: SFTPBackend, folder: Folder, tmp_path: Path
) -> None:
    (folder.path / "file").write_bytes(b"content")
    (folder.path / "file").chmod(0o4777)
    before = os.umask(0o022)
    try:
        backend.download("file", tmp_path / "local")
        os.umask(0o277)
        backend.download("file", tmp_path / "masked")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "local").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "masked").stat().st_mode) == 0o400


def test_download_onto_an_existing_file_needs_overwrite(backend: SFTPBackend, folder: Folder, tmp_path: Path) -> None:
    (folder.path / "file").write_bytes(b"new")
    (tmp_path / "local").write_bytes(b"old")
    with pytest.raises(AlreadyExists, match="overwrite=True") as caught:
        backend.download("file", tmp_path / "local")
    assert str(tmp_path / "local") in str(caught.value)
    assert (caught.value.path, caught.value.server) == ("file", backend.address)
    assert tree(tmp_path) == {"local": b"old"}
    backend.download("file", tmp_path / "local", overwrite=True)
    assert tree(tmp_path) == {"local": b"new"}


def test_download_of_a_missing_file_or_directory_keeps_the_local_file(
    backend: SFTPBackend, folder: Folder, tmp_path: Path
) -> None:
    (folder.path / "sub").mkdir()
    (tmp_path / "local").write_bytes(b"old")
    with refused(NotFound, backend, "missing"):
        backend.download("missing", tmp_path / "local", overwrite=True)
    with refused(InvalidPath, backend, "sub"):
        backend.download("sub", tmp_path / "local", overwrite=True)
    assert tree(tmp_path) == {"local": b"old"}


@pytest.mark.parametrize("verify", ["size", "sha256", "none"])
def test_download_verifies_as_configured(backend: SFTPBackend, folder: Folder, tmp_path: Path, verify: str) -> None:
    (folder.path / "file").write_bytes(b"abc")
    result = backend.download("file", tmp_path / "local", verify=verify)  # type: ignore[arg-type]  # parametrized
    digest = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert result.digest == (digest if verify == "sha256" else None)
    assert (tmp_path / "local").read_bytes() == b"abc"


def test_an_unknown_verify_is_a_value_error_before_any_io(tmp_path: Path) -> None:
    backend = offline()
    with pytest.raises(ValueError, match="md5"):
        backend.download("file", tmp_path / "local", verify="md5")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match="md5"):
        backend.upload(tmp_path / "local", "file", verify="md5")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match="md5"):
        backend.write_atomic("file", b"", verify="md5")  # type: ignore[arg-type]  # what is tested


def test_download_many_gives_one_result_per_pair_in_order(backend: SFTPBackend, folder: Folder, tmp_path: Path) -> None:
    pairs = []
    for number in range(100):
        (folder.path / str(number)).write_bytes(b"x" * number * 100)
        pairs.append((str(number), tmp_path / f"local-{number}"))
    results = backend.download_many(pairs)
    assert results == [WriteResult(str(number), number * 100) for number in range(100)]
    assert tree(tmp_path) == {f"local-{number}": b"x" * number * 100 for number in range(100)}


def test_download_many_tries_all_and_hides_no_failure(backend: SFTPBackend, folder: Folder, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (folder.path / name).write_bytes(name.encode())
    (folder.path / "sub").mkdir()
    pairs = [
        ("one", tmp_path / "one"), ("missing", tmp_path / "a"), ("sub", tmp_path / "b"),
        ("../up", tmp_path / "c"), ("two", tmp_path / "no folder" / "two"), ("two", tmp_path / "two"),
    ]  # fmt: skip
    failures = [NotFound, InvalidPath, InvalidPath, FileNotFoundError]
    with pytest.raises(ExceptionGroup, match="4 of 6") as caught:
        backend.download_many(pairs)
    kinds = [type(error) for error in caught.value.exceptions]
    assert kinds == failures
    assert tree(tmp_path) == {"one": b"one", "two": b"two"}
    outcomes = backend.download_many(pairs, overwrite=True, return_exceptions=True)
    assert outcomes[0] == WriteResult("one", 3)
    assert [type(outcome) for outcome in outcomes[1:]] == [*failures, WriteResult]
    assert isinstance(outcomes[1], NotFound)
    assert outcomes[1].server == backend.address


def test_two_downloads_to_one_local_file_are_a_value_error_before_any_io(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same target"):
        offline().download_many([("a", tmp_path / "x"), ("b", f"{tmp_path}/./x")])


# -- servers that lie -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_most", [1000, 4096, 100_000])
def test_short_reads_are_completed_by_further_requests(make_backend: MakeBackend, tmp_path: Path, at_most: int) -> None:
    with ShortReads(at_most=at_most) as server:
        folder = server.fresh()
        content = BIG[:400_000]
        (folder.path / "file").write_bytes(content)
        backend = make_backend(server, base_path=folder.base_path)
        assert backend.read_bytes("file") == content
        with backend.read("file") as file:
            assert file.read() == content
            file.seek(123_456)
            assert file.read(150_000) == content[123_456:273_456]
        backend.download("file", tmp_path / "local", verify="sha256")
        assert (tmp_path / "local").read_bytes() == content


def test_replies_out_of_order_are_reordered(make_backend: MakeBackend, tmp_path: Path) -> None:
    with OutOfOrder() as server:
        folder = server.fresh()
        backend = make_backend(server, base_path=folder.base_path)
        backend.write("file", BIG)
        assert backend.read_bytes("file") == BIG
        with backend.read("file") as file:
            assert file.read() == BIG
        backend.write_atomic("file", BIG[::-1], overwrite=True)
        backend.download("file", tmp_path / "local")
        assert (tmp_path / "local").read_bytes() == BIG[::-1]
        assert sorted(info.path for info in backend.find("**")) == ["file"]
        assert server.reordered > 3


def test_a_read_that_loses_its_connection_fails_and_the_next_reconnects(make_backend: MakeBackend) -> None:
    with DropsAfter(volume=1_000_000) as server:
        folder = server.fresh()
        (folder.path / "file").write_bytes(BIG)
        backend = make_backend(server, base_path=folder.base_path)
        with backend.read("file") as file:
            with pytest.raises(BackendUnavailable) as caught:
                file.read()
            assert backend.address in str(caught.value)
            with pytest.raises(BackendUnavailable):
                file.read()
        assert server.dropped
        assert backend.read_bytes("file") == BIG
        assert server.logins() == 2


def test_read_bytes_is_repeated_once_on_a_fresh_connection(make_backend: MakeBackend) -> None:
    with DropsAfter(volume=1_000_000) as server:
        folder = server.fresh()
        (folder.path / "file").write_bytes(BIG)
        backend = make_backend(server, base_path=folder.base_path)
        assert backend.read_bytes("file") == BIG
        assert server.dropped
        assert server.logins() == 2


def test_a_download_whose_connection_stays_lost_leaves_nothing(make_backend: MakeBackend, tmp_path: Path) -> None:
    with DropsAfter(volume=1_000_000) as server:
        folder = server.fresh()
        (folder.path / "file").write_bytes(BIG)
        (tmp_path / "local").write_bytes(b"old")
        backend = make_backend(server, base_path=folder.base_path, timeout=5)
        with pytest.raises(BackendUnavailable) as caught:
            backend.download("file", tmp_path / "local", overwrite=True, progress=lambda _: server.stop())
        assert caught.value.server == backend.address
        assert tree(tmp_path) == {"local": b"old"}


def test_a_stalled_server_ends_a_read_and_a_download_in_time(make_backend: MakeBackend, tmp_path: Path) -> None:
    with StallsAfter(requests=1000) as server:
        folder = server.fresh()
        (folder.path / "file").write_bytes(BIG)
        backend = make_backend(server, base_path=folder.base_path, io_timeout=0.5)
        with backend.read("file") as file:
            file.read(10)
            server.limit = 0
            with pytest.raises(BackendUnavailable, match="io_timeout"):
                file.read()
        server.limit = 10**9
        backend.check_health()
        server.limit = server.requests.total() + 4
        with pytest.raises(BackendUnavailable, match="io_timeout"):
            backend.download("file", tmp_path / "local")
        assert tree(tmp_path) == {}
        server.limit = 10**9
        assert backend.read_bytes("file") == BIG


def test_read_seekable_gives_a_file_that_seeks(backend: SFTPBackend, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"0123456789")
    with backend.read_seekable("file") as file:
        assert file.seekable()
        assert (file.seek(-3, os.SEEK_END), file.read()) == (7, b"789")
    with refused(NotFound, backend, "missing"):
        backend.read_seekable("missing")
