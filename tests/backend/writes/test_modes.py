"""A replaced file keeps its mode, or one warning says that it cannot."""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_sftp_backend import SFTPBackend
from tests.support.servers import Folder, RefusesFSetStat, Server, WithoutSetstat

MakeBackend = Callable[..., SFTPBackend]


@pytest.fixture
def by_path() -> Iterator[RefusesFSetStat]:
    """A server that sets modes by path only."""
    with RefusesFSetStat() as server:
        yield server


def replaced(folder: Folder, *names: str) -> list[int]:
    """Files of modes that no server gives by itself."""
    for name in names:
        (folder.path / name).write_bytes(b"old")
        (folder.path / name).chmod(0o604)
    return [stat.S_IMODE((folder.path / name).stat().st_mode) for name in names]


def mode_of(folder: Folder, name: str) -> int:
    return stat.S_IMODE((folder.path / name).stat().st_mode)


def test_a_mode_is_set_by_path_where_it_cannot_be_set_on_the_open_file(
    by_path: Server, make_backend: MakeBackend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = by_path.fresh()
    (tmp_path / "local").write_bytes(b"new")
    names = ["written", "uploaded", "copied", "opened"]
    replaced(folder, *names)
    (folder.path / "source").write_bytes(b"new")
    backend = make_backend(by_path, base_path=folder.base_path)
    backend.write_atomic("written", b"new", overwrite=True)
    backend.upload(tmp_path / "local", "uploaded", overwrite=True)
    backend.copy("source", "copied", overwrite=True)
    with backend.open_atomic("opened", overwrite=True) as file:
        file.write(b"new")
    assert {name: mode_of(folder, name) for name in names} == dict.fromkeys(names, 0o604)
    assert {(folder.path / name).read_bytes() for name in names} == {b"new"}
    assert "mode" not in caplog.text


def test_modes_that_cannot_be_set_are_logged_once_and_not_retried(
    make_backend: MakeBackend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with WithoutSetstat() as server:
        folder = server.fresh()
        names = ["1", "2", "3"]
        replaced(folder, *names)
        backend = make_backend(server, base_path=folder.base_path)
        with caplog.at_level(logging.WARNING):
            for name in names:
                backend.write_atomic(name, b"new", overwrite=True)
        warnings = [record.getMessage() for record in caplog.records]
        assert len(warnings) == 1
        assert "cannot keep mode 604 of the replaced file" in warnings[0]
        assert "setstat is not supported" in warnings[0]
        assert {(folder.path / name).read_bytes() for name in names} == {b"new"}
        assert (server.requests["fsetstat"], server.requests["setstat"]) == (1, 1)


def test_a_new_file_is_given_no_mode(by_path: RefusesFSetStat, make_backend: MakeBackend) -> None:
    folder = by_path.fresh()
    make_backend(by_path, base_path=folder.base_path).write_atomic("new", b"new")
    assert (by_path.requests["fsetstat"], by_path.requests["setstat"]) == (0, 0)
