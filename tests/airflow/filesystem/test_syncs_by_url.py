"""A sync accepts the URL of a directory on another server."""

from __future__ import annotations

from pathlib import Path

from tests.support.airflow.syncs import counts, run_sync, sync
from tests.support.files import read_files, write_files


def test_directories_of_one_server_are_synced_by_url(remote: Path) -> None:
    write_files(remote, {"data/a": b"one", "data/sub/b": b"two"})
    url = "sftpbackend://sftp_backend_default@/copy"
    assert counts(run_sync(sync("data", url, "download"))) == (2, 0, 0, 0)
    assert read_files(remote / "copy") == {"a": b"one", "sub/b": b"two"}
    assert counts(run_sync(sync("data", url, "download"))) == (0, 0, 2, 0)
