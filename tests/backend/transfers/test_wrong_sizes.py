"""Wrong sizes never cause a truncated file or endless read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_sftp_backend import SFTPBackend, TransferCorrupted
from airflow_sftp_backend.backend._receive_limits import LimitExceeded
from tests.support.assertions import refused
from tests.support.files import tree
from tests.support.servers import SaysOtherSizes, ShortReads

MakeBackend = Callable[..., SFTPBackend]
TEXT = b"".join(b"line %06d\n" % number for number in range(3_205 * 31))
LESS = 3_205


@pytest.fixture(scope="module")
def converting() -> Iterator[SaysOtherSizes]:
    """Report too small sizes, as OpenVMS, z/OS and ASCII modes do."""
    with SaysOtherSizes(lambda size: max(0, size - LESS)) as server:
        yield server


@pytest.mark.parametrize("size", [LESS, 5_000, len(TEXT)])
def test_an_unverified_file_is_read_to_its_end_for_any_reported_size(
    make_backend: MakeBackend, converting: SaysOtherSizes, tmp_path: Path, size: int
) -> None:
    folder = converting.fresh()
    (folder.path / "file").write_bytes(TEXT[:size])
    backend = make_backend(converting, base_path=folder.base_path)
    assert backend.download("file", tmp_path / "local", verify="none").size == size
    assert (tmp_path / "local").read_bytes() == TEXT[:size]
    assert backend.read_bytes("file") == TEXT[:size]
    with backend.read("file") as file:
        assert file.read() == TEXT[:size]


@pytest.mark.parametrize("verify", ["size", "sha256"])
@pytest.mark.parametrize("size", [5_000, len(TEXT)])
def test_a_reported_size_too_small_fails_a_verified_download(
    make_backend: MakeBackend, converting: SaysOtherSizes, tmp_path: Path, verify: Any, size: int
) -> None:
    folder = converting.fresh()
    (folder.path / "file").write_bytes(TEXT[:size])
    backend = make_backend(converting, base_path=folder.base_path)
    with refused(TransferCorrupted, backend, "file") as error:
        backend.download("file", tmp_path / "local", verify=verify)
    assert f"{size - LESS} bytes" in error.message
    assert f"sends {size}" in error.message
    assert "convert text" in error.message
    assert tree(tmp_path) == {}


def test_a_reported_size_too_large_fails_unless_unverified(make_backend: MakeBackend, tmp_path: Path) -> None:
    with SaysOtherSizes(lambda size: size + LESS) as server:
        folder = server.fresh()
        (folder.path / "file").write_bytes(TEXT)
        backend = make_backend(server, base_path=folder.base_path)
        for read in (lambda: backend.download("file", tmp_path / "local"), lambda: backend.read_bytes("file")):
            with refused(TransferCorrupted, backend, "file") as error:
                read()
            assert f"{len(TEXT) + LESS} bytes" in error.message
            assert f"sends {len(TEXT)}" in error.message
            assert "convert text" in error.message
        assert tree(tmp_path) == {}
        assert backend.download("file", tmp_path / "local", verify="none").size == len(TEXT)
        assert (tmp_path / "local").read_bytes() == TEXT


def test_a_short_read_at_the_reported_size_does_not_end_the_file(make_backend: MakeBackend) -> None:
    with SaysOtherSizes(lambda _: 1_000, at_most=1_000) as server:
        folder = server.fresh()
        (folder.path / "file").write_bytes(TEXT[:5_000])
        backend = make_backend(server, base_path=folder.base_path)
        assert backend.read_bytes("file") == TEXT[:5_000]
        with refused(TransferCorrupted, backend, "file"):
            backend.download("file", server.fresh().path / "local")


def test_short_reads_with_a_correct_size_give_the_whole_file(make_backend: MakeBackend) -> None:
    with ShortReads(at_most=1_000) as server:
        folder = server.fresh()
        (folder.path / "file").write_bytes(TEXT[:1_000])
        assert make_backend(server, base_path=folder.base_path).read_bytes("file") == TEXT[:1_000]


@pytest.mark.parametrize("copies_itself", [True, False])
def test_a_copy_has_all_bytes_or_is_not_committed(make_backend: MakeBackend, copies_itself: bool) -> None:
    class Converting(SaysOtherSizes):
        """With or without copy-data."""

        offered = None if copies_itself else frozenset[bytes]()

    with Converting(lambda size: max(0, size - LESS)) as server:
        folder = server.fresh()
        (folder.path / "file").write_bytes(TEXT)
        backend = make_backend(server, base_path=folder.base_path)
        if copies_itself:
            backend.copy("file", "copy")
            assert tree(folder.path) == {"file": TEXT, "copy": TEXT}
        else:
            with refused(TransferCorrupted, backend, "file") as error:
                backend.copy("file", "copy")
            assert "convert text" in error.message
            assert tree(folder.path) == {"file": TEXT}


def test_an_upload_to_a_converting_server_names_both_sizes_and_the_cause(
    make_backend: MakeBackend, converting: SaysOtherSizes
) -> None:
    folder = converting.fresh()
    backend = make_backend(converting, base_path=folder.base_path)
    with refused(TransferCorrupted, backend, "file") as error:
        backend.write_atomic("file", TEXT)
    assert f"{len(TEXT)} bytes were sent" in error.message
    assert str(len(TEXT) - LESS) in error.message
    assert "converts text" in error.message
    assert tree(folder.path) == {}


# -- data without end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", ["size", "sha256"])
@pytest.mark.parametrize("stated_size", [0, 1, 100_000, 2**63, 2**64 - 1])
def test_endless_data_fills_no_disk_where_the_size_is_verified(
    make_backend: MakeBackend, tmp_path: Path, verify: Any, stated_size: int
) -> None:
    with SaysOtherSizes(lambda _: stated_size, endless=True) as server:
        folder = server.fresh()
        (folder.path / "file").touch()
        backend = make_backend(server, base_path=folder.base_path)
        received: list[int] = []
        with refused(TransferCorrupted, backend, "file") as error:
            backend.download("file", tmp_path / "local", verify=verify, progress=received.append)
        assert str(stated_size) in error.message
        assert sum(received) <= min(stated_size, 100_000)
        assert tree(tmp_path) == {}


@pytest.mark.parametrize("stated_size", [0, 2**63, 2**64 - 1, None])
def test_max_file_bytes_bounds_endless_data_without_verification(
    make_backend: MakeBackend, tmp_path: Path, stated_size: int | None
) -> None:
    most = 3_000_000
    with SaysOtherSizes(lambda _: stated_size, endless=True) as server:
        folder = server.fresh()
        (folder.path / "file").touch()
        backend = make_backend(server, base_path=folder.base_path, config={"max_file_bytes": most})

        def read() -> None:
            with backend.read("file") as file:
                while file.read(1 << 20):
                    pass

        received: list[int] = []
        attempts: list[Callable[[], object]] = [
            lambda: backend.download("file", tmp_path / "local", verify="none", progress=received.append),
            lambda: backend.read_bytes("file"),
            read,
        ]
        if stated_size is None:
            attempts.append(lambda: backend.download("file", tmp_path / "local"))
        for attempt in attempts:
            with refused(LimitExceeded, backend, "file") as error:
                attempt()
            assert f"more than {most} bytes (max_file_bytes)" in error.message
        assert sum(received) <= most
        assert tree(tmp_path) == {}


def test_a_file_of_exactly_max_file_bytes_is_read(make_backend: MakeBackend, converting: SaysOtherSizes) -> None:
    folder = converting.fresh()
    (folder.path / "file").write_bytes(TEXT)
    backend = make_backend(converting, base_path=folder.base_path, config={"max_file_bytes": len(TEXT)})
    assert backend.read_bytes("file") == TEXT


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "1"])
@pytest.mark.parametrize("name", ["max_entries", "max_listing_bytes", "max_file_bytes"])
def test_an_invalid_max_file_bytes_is_a_value_error(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number from 1"):
        SFTPBackend("h", config={name: value})
