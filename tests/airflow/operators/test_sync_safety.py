"""A sync deletes, replaces and transfers no file that its rules exclude."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from airflow.sdk import ObjectStoragePath
from fsspec.implementations.memory import MemoryFileSystem

from airflow_sftp_backend.backend._paths import RemotePath
from tests.support.airflow.connections import Connect
from tests.support.airflow.syncs import Serve, counts, run_sync, set_age, sync
from tests.support.airflow.versions import AirflowFailException
from tests.support.files import read_files, write_files
from tests.support.servers import AsyncsshServer, FollowsLinks, IgnoresCase, ReplacesDuringListing, WithoutPosixRename


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


@pytest.mark.parametrize("kind", ["proftpd", "follows"])
def test_the_target_of_a_link_stays_where_renames_follow_links(
    started: Callable[[str], AsyncsshServer], connect: Connect, serve: Serve, tmp_path: Path, kind: str
) -> None:
    if kind == "proftpd":
        server = started("proftpd")
        folder = server.fresh()
        connect(server, base_path=folder.base_path)
        remote = folder.path
    else:
        remote = serve(FollowsLinks())
    outside = write_files(tmp_path / "outside", {"a": b"outside"})
    write_files(remote, {"out/b": b""})
    (remote / "out/a").symlink_to(outside / "a")
    with pytest.raises(AirflowFailException, match="would replace the file that the link leads to"):
        run_sync(sync(write_files(tmp_path / "in", {"a": b"new", "b": b"1"}), "out"))
    assert read_files(outside) == {"a": b"outside"}


def test_an_empty_file_is_downloaded_once(remote: Path, tmp_path: Path) -> None:
    write_files(remote, {"in/empty": b"", "in/full": b"1"})
    set_age(remote)
    run_sync(sync("in", tmp_path / "out", "download"))
    assert counts(run_sync(sync("in", tmp_path / "out", "download"))) == (0, 0, 2, 0)


@pytest.mark.parametrize("name", ["line\nbreak", "tab\there/file", "..\\windows"])
def test_names_that_servers_do_not_list_are_not_deleted(
    remote: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_files(remote, {"in/a": b"1", f"in/{name}": b"2"})
    target = write_files(tmp_path / "out", {name: b"2", "extra": b""})
    assert run_sync(sync("in", target, "download", delete=True))["deleted"] == 1
    assert read_files(target) == {"a": b"1", name: b"2"}
    assert "not deleted, because listings leave out names with control characters" in caplog.text


# -- replacements by two renames --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("other", ["local", "url"])
def test_a_file_that_is_being_replaced_keeps_its_copy(serve: Serve, tmp_path: Path, other: str, dry_run: bool) -> None:
    source = serve(ReplacesDuringListing("b"))
    write_files(source / "in", {"a": b"1", "b": b"2"})
    target = serve(AsyncsshServer(), "other") / "out" if other == "url" else tmp_path / "out"
    write_files(target, {"a": b"1", "b": b"old"})
    end = "sftpbackend://other@/out" if other == "url" else target
    result = run_sync(sync("in", end, "download", delete=True, dry_run=dry_run))
    assert (result["extra"], result["deleted"]) == (0, 0)
    assert (target / "b").read_bytes() == (b"old" if dry_run else b"2")


@pytest.mark.parametrize("name", ["b", "long-" * 50])
def test_an_interrupted_replacement_keeps_its_copy(
    serve: Serve, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = serve(WithoutPosixRename())
    backup = RemotePath("in", "in").entry(name).backup.key
    write_files(source, {"in/a": b"1", backup: b"2"})
    target = write_files(tmp_path / "out", {"a": b"1", name: b"old", "extra": b""})
    result = run_sync(sync("in", target, "download", delete=True, dry_run=True))
    assert [row["path"] for row in result["files"] if row["action"] == "would delete"] == ["in/extra"]
    assert "left alone files of the source that are being replaced" in capsys.readouterr().out
    assert (source / backup).exists()  # a dry run restores nothing
    run_sync(sync("in", target, "download", delete=True))
    is_cut = len(name) > 200
    assert read_files(target) == {"a": b"1", name: b"old" if is_cut else b"2"}
    assert (source / backup).exists() == is_cut  # the name of the file is not known


def test_a_file_that_is_being_replaced_in_the_target_is_replaced(serve: Serve, tmp_path: Path) -> None:
    target = serve(ReplacesDuringListing("b"))
    write_files(target / "out", {"b": b"old", "c": b""})
    here = write_files(tmp_path / "in", {"b": b"longer"})
    run_sync(sync(here, "out", delete=True))
    assert read_files(target / "out") == {"b": b"longer"}


# -- files and directories that take each other's place ---------------------------------------------------------------


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_with_delete_files_and_directories_replace_each_other(remote: Path, tmp_path: Path, direction: str) -> None:
    files = {"was-dir": b"1", "was-file/a": b"2", "was-file/deep/b": b"3", "same": b"4", "was-empty": b"5"}
    is_upload = direction == "upload"
    source = write_files(tmp_path / "in" if is_upload else remote / "in", files)
    target = remote / "out" if is_upload else tmp_path / "out"
    write_files(target, {"was-dir/x/y": b"", "was-dir/z": b"", "was-file": b"", "same": b"4", "extra/e": b""})
    for empty in ("was-dir/empty/deep", "was-empty/deep"):
        (target / empty).mkdir(parents=True)
    ends: tuple[object, object] = (source, "out") if is_upload else ("in", target)
    planned = run_sync(sync(*ends, direction, delete=True, dry_run=True))
    result = run_sync(sync(*ends, direction, delete=True))
    assert read_files(target) == files
    assert result["deleted"] == 4
    assert counts(planned) == counts(result)
    assert {row["path"] for row in planned["files"]} == {row["path"] for row in result["files"]}
    assert counts(run_sync(sync(*ends, direction, delete=True))) == (0, 0, 5, 0)


@pytest.mark.parametrize("direction", ["upload", "download"])
@pytest.mark.parametrize(
    ("name", "existing", "arguments", "message"),
    [
        ("x", "x/a", {}, "has a directory of this name"),
        ("x/a", "x", {}, "'x' in the target is a file"),
        ("x", "x/kept.log", {"delete": True, "exclude": "*.log"}, "has a directory of this name"),
        ("x.log/a", "x.log", {"delete": True, "include": "a"}, "the filters exclude"),
    ],
)
def test_an_entry_that_stays_in_the_way_fails_before_deletions(
    remote: Path, tmp_path: Path, direction: str, name: str, existing: str, arguments: dict[str, object], message: str
) -> None:
    is_upload = direction == "upload"
    source = write_files(tmp_path / "in" if is_upload else remote / "in", {name: b"new"})
    target = write_files(remote / "out" if is_upload else tmp_path / "out", {existing: b"old"})
    ends: tuple[object, object] = (source, "out") if is_upload else ("in", target)
    for dry_run in (True, False):
        with pytest.raises(AirflowFailException, match=message):
            run_sync(sync(*ends, direction, dry_run=dry_run, **arguments))
        assert read_files(target) == {existing: b"old"}


def test_a_dry_run_lists_no_deletion_that_a_refused_file_prevents(
    remote: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = write_files(tmp_path / "in", {"x": b"1", "ok": b"2", "was-dir": b"3"})
    existing = {"x/excluded.log": b"", "extra": b"", "was-dir/y": b""}
    write_files(remote / "out", existing)
    with pytest.raises(AirflowFailException, match="has a directory of this name"):
        run_sync(sync(here, "out", delete=True, exclude="*.log", dry_run=True))
    planned = capsys.readouterr().out
    assert "would upload out/ok" in planned
    assert "out/was-dir" not in planned
    assert "would delete nothing, because files cannot be transferred" in planned
    assert "would delete out/" not in planned
    with pytest.raises(AirflowFailException, match="has a directory of this name"):
        run_sync(sync(here, "out", delete=True, exclude="*.log"))
    assert read_files(remote / "out") == existing | {"ok": b"2"}


def test_objects_and_directories_of_one_name_replace_each_other(remote: Path, store: str) -> None:
    write_files(remote / "in", {"x/a": b"1", "y": b"2"})
    for name in ("x", "y/b"):
        ObjectStoragePath(f"{store}/out/{name}").write_bytes(b"old")
    run_sync(sync("in", f"{store}/out", "download", delete=True))
    assert counts(run_sync(sync("in", f"{store}/out", "download", delete=True))) == (0, 0, 2, 0)
