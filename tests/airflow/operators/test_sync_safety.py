"""A sync deletes, replaces and transfers no file that its rules exclude."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from airflow.sdk import ObjectStoragePath
from fsspec.implementations.memory import MemoryFileSystem

from tests.support.airflow.syncs import Serve, counts, run_sync, set_age, sync
from tests.support.airflow.versions import AirflowFailException
from tests.support.files import read_files, write_files
from tests.support.servers import AsyncsshServer, IgnoresCase


def test_objects_keep_their_times_so_that_the_next_run_sees_no_change(remote: Path, store: str) -> None:
    ObjectStoragePath(f"{store}/in/a").write_bytes(b"one")
    for file in MemoryFileSystem.store.values():
        file.created = file.modified = datetime.now(UTC) - timedelta(hours=1)
    run_sync(sync(f"{store}/in", "copy"))
    assert counts(run_sync(sync(f"{store}/in", "copy"))) == (0, 0, 1, 0)


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_nothing_below_a_link_of_the_source_is_deleted(remote: Path, tmp_path: Path, direction: str) -> None:
    is_upload = direction == "upload"
    source = write_files(tmp_path / "in" if is_upload else remote / "in", {"a": b"1", "sub/b": b"2", "z": b""})
    target = remote / "out" if is_upload else tmp_path / "out"
    ends: tuple[object, object] = (source, "out") if is_upload else ("in", target)
    run_sync(sync(*ends, direction))
    (tmp_path / "moved").mkdir()
    for name in ("sub", "a"):
        (source / name).rename(tmp_path / "moved" / name)
        (source / name).symlink_to(tmp_path / "moved" / name)
    run_sync(sync(*ends, direction, delete=True))
    assert set(read_files(target)) == {"a", "sub/b", "z"}


def test_a_caseless_server_by_url_loses_no_file(serve: Serve, remote: Path) -> None:
    write_files(remote, {"in/A.csv": b"new"})
    caseless = serve(IgnoresCase(), "caseless")
    write_files(caseless, {"out/a.csv": b"old"})
    with pytest.raises(AirflowFailException, match=r"A\.csv"):
        run_sync(sync("in", "sftpbackend://caseless@/out", "download", delete=True))
    assert read_files(caseless) == {"out/a.csv": b"old"}


def test_a_link_with_another_spelling_is_not_written_through(serve: Serve, tmp_path: Path) -> None:
    caseless = serve(IgnoresCase(), "sftp_backend_default")
    outside = write_files(tmp_path / "outside", {"x": b"outside"})
    (caseless / "out").mkdir()
    (caseless / "out/Data").symlink_to(outside)
    with pytest.raises(AirflowFailException):
        run_sync(sync(write_files(tmp_path / "in", {"data/x": b"new"}), "out"))
    assert read_files(outside) == {"x": b"outside"}


def test_links_of_a_target_by_url_are_not_followed_or_deleted(serve: Serve, remote: Path, tmp_path: Path) -> None:
    write_files(remote, {"in/d/b": b"new"})
    other = serve(AsyncsshServer(), "other")
    outside = write_files(tmp_path / "outside", {"b": b"outside"})
    (other / "out").mkdir()
    for name in ("d", "extra"):
        (other / "out" / name).symlink_to(outside)
    with pytest.raises(AirflowFailException, match="link"):
        run_sync(sync("in", "sftpbackend://other@/out", "download", delete=True))
    assert read_files(outside) == {"b": b"outside"}
    assert (other / "out/extra").is_symlink()


def test_links_of_a_source_by_url_are_not_transferred(serve: Serve, remote: Path, tmp_path: Path) -> None:
    other = serve(AsyncsshServer(), "source")
    write_files(other, {"in/a": b"1"})
    (other / "in/link").symlink_to(write_files(tmp_path / "outside", {"secret": b"2"}) / "secret")
    run_sync(sync("sftpbackend://source@/in", "out"))
    assert set(read_files(remote / "out")) == {"a"}


def test_an_empty_file_is_downloaded_once(remote: Path, tmp_path: Path) -> None:
    write_files(remote, {"in/empty": b"", "in/full": b"1"})
    set_age(remote)
    run_sync(sync("in", tmp_path / "out", "download"))
    assert counts(run_sync(sync("in", tmp_path / "out", "download"))) == (0, 0, 2, 0)
