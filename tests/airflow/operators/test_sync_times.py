"""A sync compares whole seconds; a time of 0 is no time."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from airflow.sdk import ObjectStoragePath
from fsspec.implementations.memory import MemoryFileSystem

from tests.support.airflow.syncs import counts, run_sync, sync
from tests.support.files import write_files


def test_a_local_time_just_below_a_full_second_is_no_change(remote: Path, tmp_path: Path) -> None:
    local = write_files(tmp_path / "local", {"a": b"one"})
    time_ns = 1_700_000_000_999_999_999  # as a float, a second later
    os.utime(local / "a", ns=(time_ns, time_ns))
    for expected in ((1, 0, 0, 0), (0, 0, 1, 0)):
        assert counts(run_sync(sync(local, "mirror"))) == expected


def test_a_server_that_reports_0_reports_no_time(remote: Path, tmp_path: Path) -> None:
    os.utime(write_files(remote, {"in/a": b"one"}) / "in/a", (0, 0))
    run_sync(sync("in", tmp_path / "out", "download"))
    assert (tmp_path / "out/a").stat().st_mtime > 0
    assert counts(run_sync(sync("in", tmp_path / "out", "download"))) == (0, 0, 1, 0)


def test_an_object_with_the_time_0_has_no_time(remote: Path, store: str) -> None:
    ObjectStoragePath(f"{store}/in/a").write_bytes(b"one")
    for file in MemoryFileSystem.store.values():
        file.created = file.modified = datetime.fromtimestamp(0, UTC)
    run_sync(sync(f"{store}/in", "copy"))
    assert (remote / "copy/a").stat().st_mtime > 0
    assert counts(run_sync(sync(f"{store}/in", "copy"))) == (0, 0, 1, 0)
