"""A file gets the mode, or is not written."""

from __future__ import annotations

import errno
import logging
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_sftp_backend import CapabilityNotSupported, SFTPBackend
from tests.support.assertions import refused
from tests.support.backends import offline
from tests.support.files import tree
from tests.support.round_trips import count_round_trips
from tests.support.servers import Folder, OpenSSHServer, RefusesFSetStat, Server, WithoutSetstat

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


# -- specified modes --------------------------------------------------------------------------------------------------


def write_everywhere(backend: SFTPBackend, local: Path, mode: int, *, overwrite: bool = False) -> None:
    """Write files in each way that takes a mode."""
    backend.upload(local, "uploaded", overwrite, mode=mode)
    backend.upload_many([(local, "many")], overwrite, mode=mode, verify="sha256")
    backend.write_atomic("written", b"new", overwrite, mode=mode, verify="none")


@pytest.mark.parametrize("overwrite", [False, True])
def test_new_and_replaced_files_get_the_specified_mode(
    backend: SFTPBackend, folder: Folder, tmp_path: Path, overwrite: bool
) -> None:
    (tmp_path / "local").write_bytes(b"new")
    names = ["uploaded", "many", "written"]
    if overwrite:
        replaced(folder, *names)
    write_everywhere(backend, tmp_path / "local", 0o640, overwrite=overwrite)
    assert {name: mode_of(folder, name) for name in names} == dict.fromkeys(names, 0o640)
    assert {path.name for path in folder.path.iterdir()} == set(names)


def test_a_specified_mode_costs_no_round_trip(
    openssh: OpenSSHServer, make_backend: MakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_backend(openssh)
    backend.write_atomic("first", b"content")
    with count_round_trips(monkeypatch) as without:
        backend.write_atomic("a", b"content")
    with count_round_trips(monkeypatch) as with_mode:
        backend.write_atomic("b", b"content", mode=0o640)
    assert with_mode.deepest == without.deepest


def test_a_specified_mode_is_set_by_path_if_not_by_handle(
    by_path: RefusesFSetStat, make_backend: MakeBackend, tmp_path: Path
) -> None:
    folder = by_path.fresh()
    (tmp_path / "local").write_bytes(b"new")
    write_everywhere(make_backend(by_path, base_path=folder.base_path), tmp_path / "local", 0o640)
    assert {mode_of(folder, name) for name in ("uploaded", "many", "written")} == {0o640}


@pytest.mark.parametrize("existing", [None, b"old"])
def test_a_refused_mode_is_an_error_and_leaves_the_target_unchanged(
    make_backend: MakeBackend, tmp_path: Path, existing: bytes | None
) -> None:
    (tmp_path / "local").write_bytes(b"new")
    with WithoutSetstat() as server:
        folder = server.fresh()
        if existing is not None:
            (folder.path / "file").write_bytes(existing)
        backend = make_backend(server, base_path=folder.base_path)
        calls: list[Callable[[], object]] = [
            lambda: backend.upload(tmp_path / "local", "file", overwrite=True, mode=0o640),
            lambda: backend.write_atomic("file", b"new", overwrite=True, mode=0o640),
        ]
        for call in calls:
            with refused(CapabilityNotSupported, backend, "file") as error:
                call()
            assert "cannot set mode 640: the server does not support this operation" in error.message
            assert tree(folder.path) == ({} if existing is None else {"file": existing})


def test_a_mode_without_effect_is_an_error(started: Callable[[str], Server], make_backend: MakeBackend) -> None:
    server = started("rclone")  # accepts every mode and stores none
    folder = server.fresh()
    backend = make_backend(server, base_path=folder.base_path)
    with refused(CapabilityNotSupported, backend, "file") as error:
        backend.write_atomic("file", b"new", mode=0o640)
    assert error.message == "cannot set mode 640: the server gives the file mode 644"
    assert tree(folder.path) == {}


def test_downloads_get_the_specified_mode(backend: SFTPBackend, folder: Folder, tmp_path: Path) -> None:
    (folder.path / "file").write_bytes(b"new")
    (tmp_path / "old").write_bytes(b"old")
    backend.download("file", tmp_path / "new", mode=0o604)
    backend.download("file", tmp_path / "old", overwrite=True, mode=0o460)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "old")] == [0o604, 0o460]


def test_a_mode_that_this_machine_refuses_leaves_the_local_file_unchanged(
    backend: SFTPBackend, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    (folder.path / "file").write_bytes(b"new")
    (tmp_path / "local").write_bytes(b"old")
    monkeypatch.setattr("os.fchmod", refuse)
    with pytest.raises(PermissionError):
        backend.download("file", tmp_path / "local", overwrite=True, mode=0o640)
    assert tree(tmp_path) == {"local": b"old"}


@pytest.mark.parametrize("mode", [640, 755, 777, 0o10000, -1, "0640"])
def test_modes_that_look_like_mistakes_are_value_errors(mode: object) -> None:
    calls: list[Callable[[Any], object]] = [
        lambda mode: offline().upload("local", "file", mode=mode),
        lambda mode: offline().download("file", "local", mode=mode),
        lambda mode: offline().write_atomic("file", b"", mode=mode),
        lambda mode: offline().set_mode("file", mode),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="mode must be a"):
            call(mode)
