"""Progress callbacks distinguish new bytes, earlier bytes and verification."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_sftp_backend import SFTPBackend
from airflow_sftp_backend.backend._files.pipelining import MAX_UNACKED_BYTES
from airflow_sftp_backend.backend.models import Verify
from tests.support.servers import OpenSSHServer, Server

MakeBackend = Callable[..., SFTPBackend]
MiB = 1 << 20
SIZE = 48 * MiB + 12345


class Interrupted(BaseException):
    """Stand for the exception of a signal handler."""


class Reports:
    """A progress callback with everything that one can have."""

    def __init__(self, stop_at: float = float("inf")) -> None:
        self.gained = self.found = self.read_back = 0
        self._stop_at = stop_at

    def __call__(self, gained: int, /) -> None:
        self.gained += gained
        if self.gained >= self._stop_at:
            raise Interrupted

    def resumed(self, count: int, /) -> None:
        """Notes what was there."""
        self.found += count

    def verified(self, count: int, /) -> None:
        """Notes what was read back."""
        self.read_back += count


@pytest.mark.parametrize("verify", ["size", "sha256"])
@pytest.mark.parametrize("record", [False, True])
def test_a_resumed_upload_reports_earlier_bytes_separately(
    openssh: OpenSSHServer, make_backend: MakeBackend, tmp_path: Path, verify: Verify, record: bool
) -> None:
    local = tmp_path / "here"
    local.write_bytes(random.Random(1).randbytes(SIZE))
    backend = make_backend(openssh)
    with pytest.raises(Interrupted):
        backend.upload(local, "file", resume_key="a", channels=1, progress=Reports(40 * MiB))
    reports = Reports()
    backend.upload_many(
        [(local, "file")],
        resume_key="a",
        verify=verify,
        progress=reports,
        before_rename=(lambda files: None) if record else None,
    )
    assert reports.found >= 40 * MiB - MAX_UNACKED_BYTES
    assert reports.found + reports.gained == SIZE
    assert reports.read_back == (SIZE if verify == "sha256" else 0)


def test_a_resumed_download_reports_earlier_bytes_separately(
    openssh: OpenSSHServer, make_backend: MakeBackend, tmp_path: Path
) -> None:
    folder = openssh.fresh()
    (folder.path / "file").write_bytes(random.Random(1).randbytes(SIZE))
    backend = make_backend(openssh, base_path=folder.base_path)
    with pytest.raises(Interrupted):
        backend.download("file", tmp_path / "here", resume_key="a", progress=Reports(30 * MiB))
    reports = Reports()
    backend.download("file", tmp_path / "here", resume_key="a", verify="sha256", progress=reports)
    assert reports.found >= 20 * MiB
    assert reports.found + reports.gained == SIZE
    assert reports.read_back == SIZE


@pytest.mark.parametrize("verify", ["size", "sha256", "none"])
def test_verification_progress_is_reported_only_to_progress_objects(
    server: Server, make_backend: MakeBackend, tmp_path: Path, verify: str
) -> None:
    local = tmp_path / "here"
    local.write_bytes(random.Random(1).randbytes(3 * MiB))
    backend = make_backend(server)
    up, down, gained = Reports(), Reports(), list[int]()
    backend.upload(local, "file", verify=verify, progress=up)  # type: ignore[arg-type]  # one of them
    backend.download("file", tmp_path / "there", verify=verify, progress=down)  # type: ignore[arg-type]  # one of them
    backend.upload(local, "other", verify=verify, progress=gained.append)  # type: ignore[arg-type]  # one of them
    read_back = 3 * MiB if verify == "sha256" else 0
    assert (up.gained, up.read_back) == (down.gained, down.read_back) == (3 * MiB, read_back)
    assert sum(gained) == 3 * MiB
