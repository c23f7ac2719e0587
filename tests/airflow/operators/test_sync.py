"""A sync makes the target like the source, without needless transfers."""

from __future__ import annotations

import json
import os
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_sftp_backend.backend import NotFound, SFTPBackendError
from airflow_sftp_backend.hooks.sftp import FilesFailed
from tests.support.airflow.connections import Connect
from tests.support.airflow.context import State
from tests.support.airflow.operators import actions
from tests.support.airflow.supervised_task import messages_to_airflow
from tests.support.airflow.supervised_task import run as run_supervised
from tests.support.airflow.syncs import Serve, counts, run_sync, set_age, sync
from tests.support.airflow.versions import AirflowFailException
from tests.support.files import read_files, tree, write_files
from tests.support.servers import (
    AsyncsshServer,
    BareAttributes,
    FailsWrite,
    IgnoresCase,
    OpenSSHServer,
    OtherClock,
    WithoutSetstat,
)

FILES = {"a.csv": b"one", "sub/b.csv": b"two", "sub/deep/c.txt": b"three"}


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A local directory with three files of an hour ago."""
    folder = write_files(tmp_path / "local", FILES)
    set_age(folder, 3600, time.time())
    return folder


def requests_of(server: AsyncsshServer, work: Callable[[], object]) -> Counter[str]:
    """Return the requests of the block, except those of connecting."""
    before = server.requests.copy()
    work()
    return +Counter({kind: count for kind, count in (server.requests - before).items() if "limits" not in kind})


# -- both directions --------------------------------------------------------------------------------------------------


def check_both_directions(remote: Path, tmp_path: Path) -> None:
    """Sync in both directions, and compare the ends each time."""
    here, there, back = write_files(tmp_path / "here", FILES), remote / "mirror", tmp_path / "back"
    set_age(here)
    assert counts(run_sync(sync(here, "mirror"))) == (3, 0, 0, 0)
    assert counts(run_sync(sync("mirror", back, "download"))) == (3, 0, 0, 0)
    assert read_files(here) == read_files(there) == read_files(back) == FILES
    times = {int(path.stat().st_mtime) for folder in (here, there, back) for path in folder.rglob("*.*")}
    assert len(times) == 1
    assert counts(run_sync(sync(here, "mirror"))) == (0, 0, 3, 0)
    assert counts(run_sync(sync("mirror", back, "download"))) == (0, 0, 3, 0)
    (here / "a.csv").write_bytes(b"ONE")
    (here / "sub/b.csv").unlink()
    (here / "new.csv").write_bytes(b"new")
    set_age(here / "sub/deep", 2000)  # older than before, of equal size
    result = run_sync(sync(here, "mirror", delete=True))
    assert counts(result) == (1, 2, 0, 1)
    assert (result["deleted"], result["size"]) == (1, 3 + 3 + 5)
    assert actions(result["files"]) == {
        "mirror/new.csv": "uploaded",
        "mirror/a.csv": "uploaded",
        "mirror/sub/deep/c.txt": "uploaded",
        "mirror/sub/b.csv": "deleted",
    }
    result = run_sync(sync("mirror/", f"{back}/", "download", delete=True))
    assert counts(result) == (1, 2, 0, 1)
    assert read_files(here) == read_files(there) == read_files(back)
    (deleted,) = [row for row in result["files"] if row["action"] == "deleted"]
    assert deleted == {"path": "mirror/sub/b.csv", "size": 3, "action": "deleted", "target": str(back / "sub/b.csv")}


def test_a_sync_carries_changes_both_ways(remote: Path, tmp_path: Path) -> None:
    check_both_directions(remote, tmp_path)


def test_a_sync_carries_changes_both_ways_on_openssh(openssh: OpenSSHServer, connect: Connect, tmp_path: Path) -> None:
    folder = openssh.fresh()
    connect(openssh, base_path=folder.base_path)
    check_both_directions(folder.path, tmp_path)


@pytest.mark.parametrize("name", ["proftpd", "rclone", "paramiko"])
def test_a_sync_carries_changes_both_ways_on_other_servers(
    started: Callable[[str], AsyncsshServer], connect: Connect, tmp_path: Path, name: str
) -> None:
    server = started(name)
    folder = server.fresh()
    connect(server, base_path=folder.base_path)
    check_both_directions(folder.path, tmp_path)


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_a_run_without_changes_lists_and_does_nothing_else(
    server: AsyncsshServer, remote: Path, local: Path, tmp_path: Path, direction: str
) -> None:
    run_sync(sync(local, "mirror"))
    run_sync(sync("mirror", tmp_path / "back", "download"))
    ends: tuple[object, object] = (local, "mirror") if direction == "upload" else ("mirror", tmp_path / "back")
    requests = requests_of(server, lambda: run_sync(sync(*ends, direction, delete=True)))
    assert requests["opendir"] == 3
    # an unknown server may list links as directories
    assert requests.keys() <= {"opendir", "readdir", "close", "lstat", "readlink"}


def test_a_run_without_changes_has_no_row_for_any_file(remote: Path, local: Path) -> None:
    run_sync(sync(local, "mirror"))
    result = run_sync(sync(local, "mirror"))
    assert result == {
        "new": 0, "changed": 0, "unchanged": 3, "extra": 0, "deleted": 0, "size": 0, "files": [],
    }  # fmt: skip


def test_the_base_path_itself_can_be_either_end(remote: Path, local: Path, tmp_path: Path) -> None:
    run_sync(sync(local, "/"))
    assert read_files(remote) == FILES
    run_sync(sync("/", tmp_path / "back", "download"))
    assert read_files(tmp_path / "back") == FILES


# -- objects ----------------------------------------------------------------------------------------------------------


def test_objects_are_synced_both_ways(remote: Path, store: str, tmp_path: Path) -> None:
    write_files(remote, {"out/a": b"one", "out/sub/b": b"two"})
    set_age(remote)
    assert counts(run_sync(sync("out", f"{store}/in", "download"))) == (2, 0, 0, 0)
    assert counts(run_sync(sync("out", f"{store}/in", "download"))) == (0, 0, 2, 0)
    (remote / "out/a").write_bytes(b"longer")
    (remote / "out/sub/b").unlink()
    result = run_sync(sync("out", f"{store}/in", "download", delete=True))
    assert (counts(result), result["deleted"]) == ((0, 1, 0, 1), 1)
    assert ObjectStoragePath(f"{store}/in/a").read_bytes() == b"longer"
    assert not ObjectStoragePath(f"{store}/in/sub/b").exists()
    assert counts(run_sync(sync(f"{store}/in", "copy"))) == (1, 0, 0, 0)
    assert counts(run_sync(sync(f"{store}/in", "copy"))) == (0, 0, 1, 0)
    assert (remote / "copy/a").read_bytes() == b"longer"


def test_an_object_that_is_written_again_is_changed(remote: Path, store: str) -> None:
    write_files(remote, {"out/a": b"one"})
    run_sync(sync("out", f"{store}/in", "download"))
    now = time.time() + 5
    (remote / "out/a").write_bytes(b"two")
    os.utime(remote / "out/a", (now, now))
    assert counts(run_sync(sync("out", f"{store}/in", "download"))) == (0, 1, 0, 0)
    assert ObjectStoragePath(f"{store}/in/a").read_bytes() == b"two"


# -- comparison -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_with_sha256_the_content_decides(remote: Path, tmp_path: Path, direction: str) -> None:
    large = bytes(3 << 20)
    here = write_files(tmp_path / "here", {"same": b"1", "other": b"2", "large": large, "tail": large})
    there = write_files(remote / "there", {"same": b"1", "other": b"x", "large": large, "tail": large[:-1] + b"x"})
    set_age(here, 1000)
    set_age(there, 500 if direction == "upload" else 1000)
    os.utime(here / "same", (1, 1))
    ends: tuple[object, object] = (here, "there") if direction == "upload" else ("there", here)
    result = run_sync(sync(*ends, direction, compare="sha256"))
    assert counts(result) == (0, 2, 2, 0)
    assert {row["path"] for row in result["files"]} == {"there/other", "there/tail"}
    assert read_files(here) == read_files(there)


def test_objects_are_compared_by_content(remote: Path, store: str) -> None:
    write_files(remote, {"out/a": b"one", "out/b": b"two"})
    run_sync(sync("out", f"{store}/in", "download"))
    (remote / "out/b").write_bytes(b"TWO")
    os.utime(remote / "out/b", (1, 1))
    assert counts(run_sync(sync("out", f"{store}/in", "download"))) == (0, 0, 2, 0)  # the target is newer
    assert counts(run_sync(sync("out", f"{store}/in", "download", compare="sha256"))) == (0, 1, 1, 0)
    assert ObjectStoragePath(f"{store}/in/b").read_bytes() == b"TWO"


def test_on_a_server_that_keeps_no_times_a_newer_target_is_unchanged(
    serve: Serve, local: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remote = serve(WithoutSetstat())
    assert counts(run_sync(sync(local, "mirror"))) == (3, 0, 0, 0)
    assert caplog.text.count("cannot keep the time of the source") == 1
    assert counts(run_sync(sync(local, "mirror"))) == (0, 0, 3, 0)
    assert tree(remote / "mirror").keys() == {"a.csv", "sub", "sub/b.csv", "sub/deep", "sub/deep/c.txt"}
    (local / "a.csv").write_bytes(b"ONE")
    soon = time.time() + 5
    os.utime(local / "a.csv", (soon, soon))
    assert counts(run_sync(sync(local, "mirror"))) == (0, 1, 2, 0)
    assert (remote / "mirror/a.csv").read_bytes() == b"ONE"


@pytest.mark.parametrize("lead", [5 * 3600, -5 * 3600])
def test_clocks_that_differ_by_hours_hide_no_change(serve: Serve, local: Path, lead: float) -> None:
    remote = serve(OtherClock(lead=lead))
    run_sync(sync(local, "mirror"))
    os.utime(remote / "mirror/a.csv", (time.time() - 60,) * 2)  # uploaded a minute ago
    (local / "a.csv").write_bytes(b"ONE")
    run_sync(sync(local, "mirror"))
    assert (remote / "mirror/a.csv").read_bytes() == b"ONE"


@pytest.mark.parametrize("lead", [5 * 3600, -5 * 3600])
def test_a_download_keeps_the_times_of_a_wrong_clock(serve: Serve, tmp_path: Path, lead: float) -> None:
    remote = serve(OtherClock(lead=lead))
    write_files(remote, FILES)
    assert counts(run_sync(sync("/", tmp_path / "back", "download"))) == (3, 0, 0, 0)
    assert counts(run_sync(sync("/", tmp_path / "back", "download"))) == (0, 0, 3, 0)
    (remote / "a.csv").write_bytes(b"ONE")
    later = time.time() + 2
    os.utime(remote / "a.csv", (later, later))
    assert counts(run_sync(sync("/", tmp_path / "back", "download"))) == (0, 1, 2, 0)


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_without_times_sizes_decide_and_a_warning_says_so(
    serve: Serve,
    tmp_path: Path,
    direction: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # without permissions, this server's directories are not known as such
    files = {"a": b"1", "b": b"2", "c": b"3"}
    remote = serve(BareAttributes())
    here = write_files(tmp_path / "here", files)
    if direction == "download":
        write_files(remote / "mirror", files)
    ends: tuple[object, object] = (here, "mirror") if direction == "upload" else ("mirror", tmp_path / "back")
    run_sync(sync(*ends, direction))
    assert counts(run_sync(sync(*ends, direction))) == (0, 0, 3, 0)
    logged = capsys.readouterr().out
    assert "only sizes were compared of 3 files without times" in logged
    assert "compare='sha256'" in logged


def test_keep_times_false_leaves_the_time_of_the_transfer(remote: Path, local: Path) -> None:
    run_sync(sync(local, "mirror", keep_times=False))
    assert (remote / "mirror/a.csv").stat().st_mtime > time.time() - 1800
    assert counts(run_sync(sync(local, "mirror", keep_times=False))) == (0, 0, 3, 0)


def test_a_target_that_is_newer_is_changed_where_times_are_kept(remote: Path, local: Path) -> None:
    run_sync(sync(local, "mirror"))
    (remote / "mirror/a.csv").write_bytes(b"bad")  # somebody else
    assert counts(run_sync(sync(local, "mirror"))) == (0, 1, 2, 0)
    assert read_files(remote / "mirror") == FILES


# -- filters, links, names --------------------------------------------------------------------------------------------


def test_filters_apply_to_both_ends(remote: Path, local: Path) -> None:
    write_files(remote, {"mirror/keep.log": b"", "mirror/tmp/x.csv": b"", "mirror/old.csv": b""})
    result = run_sync(sync(local, "mirror", delete=True, include="*.csv", exclude=["tmp"]))
    assert counts(result) == (2, 0, 0, 1)
    assert read_files(remote / "mirror").keys() == {"a.csv", "sub/b.csv", "keep.log", "tmp/x.csv"}


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_links_of_the_source_are_left_out(
    remote: Path, tmp_path: Path, direction: str, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = write_files(tmp_path / "outside", {"secret": b"secret"})
    top = remote / "in" if direction == "download" else tmp_path / "in"
    write_files(top, {"a": b"one"})
    (top / "link").symlink_to(secret / "secret")
    (top / "inner").symlink_to("a")
    (top / "folder").symlink_to(secret)
    (top / "dangling").symlink_to("missing")
    ends: tuple[object, object] = ("in", tmp_path / "out") if direction == "download" else (top, "out")
    assert counts(run_sync(sync(*ends, direction))) == (1, 0, 0, 0)
    assert read_files((tmp_path if direction == "download" else remote) / "out") == {"a": b"one"}
    assert (
        "left out links and special files of the source, 4 in total: dangling, folder, inner" in capsys.readouterr().out
    )


def test_a_source_that_is_a_link_itself_is_followed(remote: Path, local: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(local)
    assert counts(run_sync(sync(tmp_path / "current", "mirror"))) == (3, 0, 0, 0)


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_links_of_the_target_are_neither_followed_nor_deleted(remote: Path, tmp_path: Path, direction: str) -> None:
    outside = write_files(tmp_path / "outside", {"b": b"outside", "c": b"outside"})
    is_upload = direction == "upload"
    source = write_files(tmp_path / "in" if is_upload else remote / "in", {"d/b": b"new", "c": b"new"})
    target = write_files(remote / "out" if is_upload else tmp_path / "out", {"extra": b""})
    (target / "d").symlink_to(outside)
    (target / "c").symlink_to(outside / "c")
    (target / "more").symlink_to(outside)
    ends: tuple[object, object] = (source, "out") if is_upload else ("in", target)
    with pytest.raises(AirflowFailException, match="'d' in the target is a link or a special file"):
        run_sync(sync(*ends, direction, delete=True))
    assert read_files(outside) == {"b": b"outside", "c": b"outside"}
    assert (target / "extra").exists()  # a failure prevents deletions
    assert not (target / "c").is_symlink()
    assert (target / "c").read_bytes() == b"new"
    (target / "d").unlink()
    run_sync(sync(*ends, direction, delete=True))
    assert (target / "more").is_symlink()
    assert not (target / "extra").exists()


def test_another_spelling_in_the_target_is_not_deleted_after_an_upload(serve: Serve, tmp_path: Path) -> None:
    remote = serve(IgnoresCase())
    write_files(remote, {"mirror/REPORT.csv": b"old"})
    here = write_files(tmp_path / "here", {"report.csv": b"new"})
    with pytest.raises(AirflowFailException, match="does not distinguish this path"):
        run_sync(sync(here, "mirror", delete=True))
    assert read_files(remote / "mirror") == {"REPORT.csv": b"old"}


def test_names_that_differ_in_case_only_are_separate_files(remote: Path, tmp_path: Path) -> None:
    files = {"A.csv": b"upper", "a.csv": b"lower", "D/x": b"1", "d/y": b"2"}
    here = write_files(tmp_path / "here", files)
    assert counts(run_sync(sync(here, "mirror"))) == (4, 0, 0, 0)
    assert counts(run_sync(sync("mirror", tmp_path / "back", "download"))) == (4, 0, 0, 0)
    assert read_files(remote / "mirror") == read_files(tmp_path / "back") == files
    assert counts(run_sync(sync(here, "mirror", delete=True))) == (0, 0, 4, 0)


def test_a_name_that_is_not_utf_8_fails_and_prevents_deletions(remote: Path, local: Path) -> None:
    Path(os.fsdecode(os.fsencode(local) + b"/\xff")).write_bytes(b"")
    write_files(remote, {"mirror/extra": b""})
    with pytest.raises(AirflowFailException, match="the name is not UTF-8"):
        run_sync(sync(local, "mirror", delete=True))
    assert read_files(remote / "mirror") == FILES | {"extra": b""}


# -- deletions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_without_delete_extra_files_stay(remote: Path, local: Path, tmp_path: Path, direction: str) -> None:
    write_files(remote / "mirror", {"extra": b"r"})
    ends: tuple[object, object] = (local, "mirror") if direction == "upload" else ("mirror", local)
    result = run_sync(sync(*ends, direction))
    assert result["extra"] == (1 if direction == "upload" else 3)
    assert result["deleted"] == 0
    assert read_files(remote / "mirror" if direction == "upload" else local) == FILES | {"extra": b"r"}


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_directories_that_deletions_empty_are_removed(
    remote: Path, local: Path, tmp_path: Path, direction: str
) -> None:
    is_upload = direction == "upload"
    source = local if is_upload else write_files(remote / "in", FILES)
    target = write_files(remote / "out" if is_upload else tmp_path / "out", {"x/y/z": b"", "sub/w": b""})
    (target / "empty").mkdir()
    ends: tuple[object, object] = (source, "out") if is_upload else ("in", target)
    run_sync(sync(*ends, direction, delete=True))
    assert tree(target).keys() == tree(source).keys() | {"empty"}


@pytest.mark.parametrize("limit", [2, "60%"])
def test_beyond_max_delete_nothing_is_changed(remote: Path, local: Path, limit: int | str) -> None:
    write_files(remote, {f"mirror/extra-{number}": b"" for number in range(3)} | {"mirror/a.csv": b"old"})
    before = tree(remote)
    with pytest.raises(AirflowFailException, match="3 of 4 files of the target would be deleted, more than max_delete"):
        run_sync(sync(local, "mirror", delete=True, max_delete=limit))
    assert tree(remote) == before
    preview = run_sync(sync(local, "mirror", delete=True, max_delete=limit, dry_run=True))
    assert sum(row["action"] == "would fail" for row in preview["files"]) == 3
    assert tree(remote) == before
    assert run_sync(sync(local, "mirror", delete=True, max_delete=3))["deleted"] == 3


def test_a_failed_transfer_prevents_deletions(serve: Serve, local: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remote = serve(FailsWrite(nth=1))
    write_files(remote, {"mirror/extra": b""})
    with pytest.raises((FilesFailed, SFTPBackendError)):
        run_sync(sync(local, "mirror", delete=True))
    assert (remote / "mirror/extra").exists()
    assert "deleted nothing, because not all transfers succeeded" in capsys.readouterr().out


@pytest.mark.parametrize("missing", [True, False])
@pytest.mark.parametrize("direction", ["upload", "download", "object"])
def test_a_source_that_is_missing_or_empty_deletes_nothing(
    remote: Path, tmp_path: Path, store: str, direction: str, missing: bool
) -> None:
    target = write_files(remote / "kept" if direction != "download" else tmp_path / "kept", FILES)
    source: object = {"upload": tmp_path / "in", "download": "in", "object": f"{store}/in"}[direction]
    if not missing:
        (tmp_path if direction == "upload" else remote).joinpath("in/empty").mkdir(parents=True)
    ends: tuple[object, object] = (source, "kept") if direction != "download" else ("in", target)
    way = "download" if direction == "download" else "upload"
    with pytest.raises(NotFound, match="allow_empty=True accepts this"):
        run_sync(sync(*ends, way, delete=True))
    assert read_files(target) == FILES
    assert run_sync(sync(*ends, way, delete=True, allow_empty=True))["deleted"] == 3
    assert read_files(target) == {}


def test_without_delete_an_empty_source_is_no_failure(remote: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert counts(run_sync(sync(tmp_path / "empty", "mirror"))) == (0, 0, 0, 0)
    with pytest.raises(NotFound, match="does not exist"):
        run_sync(sync(tmp_path / "missing", "mirror"))


# -- dry runs, retries, arguments -------------------------------------------------------------------------------------


def test_a_dry_run_returns_the_plan_and_changes_nothing(remote: Path, local: Path) -> None:
    write_files(remote, {"mirror/a.csv": b"old", "mirror/extra": b""})
    before = tree(remote)
    result = run_sync(sync(local, "mirror", delete=True, dry_run=True))
    assert counts(result) == (2, 1, 0, 1)
    assert (result["deleted"], result["size"]) == (0, 11)
    assert actions(result["files"]) == {
        "mirror/sub/b.csv": "would upload",
        "mirror/sub/deep/c.txt": "would upload",
        "mirror/a.csv": "would upload",
        "mirror/extra": "would delete",
    }
    assert tree(remote) == before


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_a_retry_reports_the_files_of_the_first_attempt(
    remote: Path, local: Path, tmp_path: Path, direction: str
) -> None:
    is_upload = direction == "upload"
    source = local if is_upload else write_files(remote / "in", FILES)
    target = remote / "out" if is_upload else tmp_path / "out"
    ends: tuple[object, object] = (source, "out") if is_upload else ("in", target)
    blocked = write_files(target, {"extra": b""}) / "sub"
    blocked.symlink_to("missing")
    state = State()
    with pytest.raises((FilesFailed, AirflowFailException, OSError, SFTPBackendError)):
        run_sync(sync(*ends, direction, delete=True), state=state)
    blocked.unlink()
    result = run_sync(sync(*ends, direction, delete=True), try_number=2, state=state)
    done = "uploaded" if is_upload else "downloaded"
    prefix = "out" if is_upload else "in"
    assert actions(result["files"]) == {
        f"{prefix}/a.csv": f"{done} by an earlier attempt",
        f"{prefix}/sub/b.csv": done,
        f"{prefix}/sub/deep/c.txt": done,
        f"{prefix}/extra": "deleted",
    }
    assert counts(result) == (2, 1, 0, 1)
    assert read_files(target) == FILES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"direction": "both"}, "direction must be one of 'upload', 'download'"),
        ({"compare": "size"}, "compare must be one of"),
        ({"verify": "md5"}, "verify must be one of"),
        ({"max_delete": "many", "delete": True}, "max_delete is 'many'"),
        ({"max_delete": 1}, "set delete=True"),
        ({"mode": 640}, "mode must be an octal number: write 0o640"),
    ],
)
def test_wrong_arguments_are_refused_when_the_dag_is_parsed(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sync("a", "b", **{"direction": "upload", **arguments})  # type: ignore[arg-type]  # wrong on purpose


def test_an_empty_end_is_refused(remote: Path) -> None:
    with pytest.raises(AirflowFailException, match="target is empty"):
        run_sync(sync("/tmp", " "))


def test_a_source_that_is_a_file_is_refused(remote: Path, local: Path) -> None:
    write_files(remote, {"file": b""})
    with pytest.raises(NotADirectoryError):
        run_sync(sync(local / "a.csv", "mirror"))
    with pytest.raises(AirflowFailException, match="the path is a file"):
        run_sync(sync("file", local, "download"))


def test_events_and_the_log_name_the_changed_files_only(
    remote: Path, local: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_sync(sync(local, "mirror"))
    (local / "a.csv").write_bytes(b"ONE")
    operator = sync(local, "mirror")
    run_sync(operator)
    assert [event.target.rpartition("/")[2] for event in operator._file_events()] == ["a.csv"]
    assert "0 new, 1 changed, 2 unchanged, 0 extra files" in capsys.readouterr().out


@pytest.mark.timeout(120)
def test_a_supervised_task_syncs_and_logs_its_changes(remote: Path, local: Path, tmp_path: Path) -> None:
    write_files(remote, {"mirror/a.csv": b"old", "mirror/extra": b""})
    dag = f"""
        from airflow.sdk import DAG
        from airflow_sftp_backend.operators import SFTPSyncOperator
        with DAG("syncing"):
            SFTPSyncOperator(task_id="sync", source={str(local)!r}, target="mirror", direction="upload", delete=True)
    """
    write_files(tmp_path, {"dags/syncing.py": textwrap.dedent(dag).encode()})
    lines = run_supervised(tmp_path / "dags", "syncing", "sync", tmp_path / "sync.log")
    events = [str(line["event"]) for line in lines]
    assert read_files(remote / "mirror") == FILES, events
    assert "2 new, 1 changed, 0 unchanged, 1 extra files" in events
    assert any("deleted mirror/extra" in event for event in events)
    messages = json.dumps(messages_to_airflow(tmp_path / "sync.log"))
    assert '"success"' in messages
