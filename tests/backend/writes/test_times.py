"""A copy gets its source's time, or one warning."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from airflow_sftp_backend import SFTPBackend
from tests.support.round_trips import count_round_trips
from tests.support.servers import (
    AsyncsshServer,
    Folder,
    OpenSSHServer,
    RefusesFSetStat,
    Server,
    WithoutSetstat,
)

MakeBackend = Callable[..., SFTPBackend]
OLD = 1_000_000_001
"""A time in 2001, in seconds since 1970."""


def source(path: Path, content: bytes = b"content", seconds: float = OLD) -> Path:
    """Write a local file with a time."""
    path.write_bytes(content)
    os.utime(path, (seconds, seconds))
    return path


def time_of(path: Path) -> float:
    return path.stat().st_mtime


def check_both_ways(backend: SFTPBackend, folder: Folder, tmp_path: Path) -> None:
    """Upload and download with times, and compare them with the sources."""
    local = source(tmp_path / "local", seconds=OLD + 0.9)
    written = backend.upload(local, "sub/up", keep_times=True)
    assert time_of(folder.path / "sub/up") == OLD
    assert written.last_modified == datetime.fromtimestamp(OLD, UTC)
    fetched = backend.download("sub/up", tmp_path / "down", keep_times=True)
    assert time_of(tmp_path / "down") == OLD
    assert fetched.last_modified == datetime.fromtimestamp(OLD, UTC)
    backend.write_atomic("object", b"content", modified_at=datetime.fromtimestamp(OLD, UTC))
    assert time_of(folder.path / "object") == OLD


def test_transfers_keep_times_on_openssh(openssh: OpenSSHServer, make_backend: MakeBackend, tmp_path: Path) -> None:
    folder = openssh.fresh()
    check_both_ways(make_backend(openssh, base_path=folder.base_path), folder, tmp_path)


def test_transfers_keep_times_on_an_unknown_server(
    asyncssh_plain: AsyncsshServer, make_backend: MakeBackend, tmp_path: Path
) -> None:
    folder = asyncssh_plain.fresh()
    check_both_ways(make_backend(asyncssh_plain, base_path=folder.base_path), folder, tmp_path)


def test_transfers_keep_times_where_fsetstat_is_refused(make_backend: MakeBackend, tmp_path: Path) -> None:
    with RefusesFSetStat() as server:
        folder = server.fresh()
        check_both_ways(make_backend(server, base_path=folder.base_path), folder, tmp_path)


def test_an_upload_over_several_channels_keeps_its_time(
    openssh: OpenSSHServer, make_backend: MakeBackend, tmp_path: Path
) -> None:
    folder = openssh.fresh()
    local = source(tmp_path / "local", os.urandom(5 << 20))
    make_backend(openssh, base_path=folder.base_path).upload(local, "up", channels=3, keep_times=True)
    assert (folder.path / "up").read_bytes() == local.read_bytes()
    assert time_of(folder.path / "up") == OLD


def test_keeping_the_time_costs_no_round_trip_on_openssh(
    openssh: OpenSSHServer, make_backend: MakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_backend(openssh, base_path=openssh.fresh().base_path)
    backend.check_health()
    local = source(tmp_path / "local")
    depths = []
    for name, keep_times in (("first", False), ("plain", False), ("timed", True)):
        with count_round_trips(monkeypatch) as depth:
            backend.upload(local, name, keep_times=keep_times)
        depths.append(depth.deepest)
    assert depths[1] == depths[2] == 3


def test_times_that_cannot_be_set_are_logged_once_and_not_retried(
    make_backend: MakeBackend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with WithoutSetstat() as server:
        folder = server.fresh()
        backend = make_backend(server, base_path=folder.base_path)
        local = source(tmp_path / "local")
        with caplog.at_level(logging.WARNING):
            for name in ("1", "2", "3"):
                backend.upload(local, name, keep_times=True)
        (warning,) = [record.getMessage() for record in caplog.records]
        assert "'1': cannot keep the time of the source" in warning
        assert "setstat is not supported" in warning
        assert {(folder.path / name).read_bytes() for name in ("1", "2", "3")} == {b"content"}
        assert time_of(folder.path / "1") > OLD
        assert server.requests["setstat"] == 1


@pytest.mark.parametrize("seconds", [-1, 1 << 32])
def test_a_time_that_sftp_cannot_carry_is_not_set(
    asyncssh_plain: Server, make_backend: MakeBackend, tmp_path: Path, seconds: int
) -> None:
    folder = asyncssh_plain.fresh()
    backend = make_backend(asyncssh_plain, base_path=folder.base_path)
    backend.upload(source(tmp_path / "local", seconds=seconds), "up", keep_times=True)
    assert (folder.path / "up").read_bytes() == b"content"
    with pytest.raises(ValueError, match="1970 to 2106"):
        backend.write_atomic("object", b"", modified_at=datetime.fromtimestamp(seconds, UTC))


def test_without_a_request_a_copy_has_the_time_of_the_transfer(
    asyncssh_plain: AsyncsshServer, make_backend: MakeBackend, tmp_path: Path
) -> None:
    folder = asyncssh_plain.fresh()
    backend = make_backend(asyncssh_plain, base_path=folder.base_path)
    backend.upload(source(tmp_path / "local"), "up")
    os.utime(folder.path / "up", (OLD, OLD))
    backend.download("up", tmp_path / "down")
    assert time_of(tmp_path / "down") > OLD
