"""Operators transfer files, return their rows and report each failure."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import BaseOperator, ObjectStoragePath

from airflow_sftp_backend import AlreadyExists, BackendUnavailable, NotFound, SFTPBackendError, operators, progress
from airflow_sftp_backend.hooks import FilesFailed
from airflow_sftp_backend.operators import (
    SFTPDeleteOperator,
    SFTPDownloadOperator,
    SFTPMoveOperator,
    SFTPUploadOperator,
)
from tests.support.airflow.arguments import Glob
from tests.support.airflow.connections import Connect
from tests.support.airflow.context import State
from tests.support.airflow.operators import actions, delete, download, file_errors, move, run, upload
from tests.support.airflow.versions import AirflowFailException
from tests.support.files import read_files, write_files
from tests.support.servers import AsyncsshServer, FailsWrite, StallsAfter, free_port
from tests.support.sessions import assert_nothing_left

FILES = {"a.csv": b"one", "b.csv": b"two!", "deep/c.csv": b"three", "deep/d.txt": b"", "deep/.hidden": b"x"}


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A folder of this machine with files in it."""
    return write_files(tmp_path / "local", FILES)


# -- what is named ----------------------------------------------------------------------------------------------------


def test_a_file_is_uploaded_under_the_name_of_its_target(remote: Path, local: Path) -> None:
    rows = run(upload(local / "a.csv", "in/named.csv"))
    assert rows == [{"path": "in/named.csv", "size": 3, "action": "uploaded", "source": str(local / "a.csv")}]
    assert read_files(remote) == {"in/named.csv": b"one"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a.csv", ["a.csv"]),
        ("", ["a.csv", "b.csv", "deep/.hidden", "deep/c.csv", "deep/d.txt"]),
        (["a.csv", "deep/c.csv"], ["a.csv", "c.csv"]),
        (["a.csv", "deep/"], [".hidden", "a.csv", "c.csv", "d.txt"]),
        (Glob("*.csv"), ["a.csv", "b.csv"]),
        (Glob("**/*.csv"), ["a.csv", "b.csv", "deep/c.csv"]),
        (Glob("deep/*"), [".hidden", "c.csv", "d.txt"]),
        (Glob("*.csv", "deep/*"), [".hidden", "a.csv", "b.csv", "c.csv", "d.txt"]),
    ],
)
def test_uploads_keep_paths_relative_to_the_source(remote: Path, local: Path, source: Any, expected: list[str]) -> None:
    given: Any = Glob(*(f"{local}/{one}" for one in source.patterns)) if isinstance(source, Glob) else None
    given = given or (f"{local}/{source}" if isinstance(source, str) else [f"{local}/{one}" for one in source])
    rows = run(upload(given, "out/"))
    assert sorted(row["path"] for row in rows) == [f"out/{name}" for name in expected]
    assert sorted(read_files(remote)) == [f"out/{name}" for name in expected]
    for row in rows:
        assert (remote / row["path"]).read_bytes() == Path(row["source"]).read_bytes()
        assert row["size"] == os.path.getsize(row["source"])


def test_a_file_is_downloaded_under_the_name_of_its_target(remote: Path, tmp_path: Path) -> None:
    write_files(remote, FILES)
    rows = run(download("deep/c.csv", tmp_path / "here" / "named.csv"))
    target = tmp_path / "here" / "named.csv"
    assert rows == [{"path": "deep/c.csv", "size": 5, "action": "downloaded", "target": str(target)}]
    assert target.read_bytes() == b"three"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a.csv", ["a.csv"]),
        ("deep/", [".hidden", "c.csv", "d.txt"]),
        ("/", ["a.csv", "b.csv", "deep/.hidden", "deep/c.csv", "deep/d.txt"]),
        (Glob("*.csv"), ["a.csv", "b.csv"]),
        (Glob("**/*.csv"), ["a.csv", "b.csv", "deep/c.csv"]),
        (Glob("a.csv", "deep/*.csv"), ["a.csv", "c.csv"]),
        ([{"path": "a.csv"}, "deep/"], [".hidden", "a.csv", "c.csv", "d.txt"]),
    ],
)
def test_downloads_and_moves_keep_paths_relative_to_the_source(
    remote: Path, tmp_path: Path, source: Any, expected: list[str]
) -> None:
    write_files(remote, FILES)
    run(download(source, f"{tmp_path}/here/"))
    assert sorted(read_files(tmp_path / "here")) == expected
    rows = run(move(source, "there/"))
    assert sorted(read_files(remote / "there")) == expected
    for row in rows:
        assert row["action"] == "moved"
        assert (remote / row["path"]).read_bytes() == FILES[row["source"]]
    assert len(read_files(remote)) == len(FILES)


def test_each_file_is_named_by_the_rename_template(remote: Path) -> None:
    write_files(remote, FILES)
    rows = run(move(Glob("**/*.csv"), "archive", rename="{date}/{stem}.done{suffix}"))
    assert {row["source"]: row["path"] for row in rows} == {
        name: f"archive/2026-02-01/{Path(name).stem}.done.csv" for name in FILES if name.endswith(".csv")
    }
    assert all(read_files(remote)[row["path"]] == FILES[row["source"]] for row in rows)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("kind", ["upload", "download", "move"])
def test_a_template_that_leaves_a_file_nameless_fails_it_alone(
    remote: Path, tmp_path: Path, kind: str, dry_run: bool
) -> None:
    files = {"in/README": b"1", "in/a.csv": b"2"}
    write_files(tmp_path if kind == "upload" else remote, files)
    make: Any = {"upload": upload, "download": download, "move": move}[kind]
    source, target = (f"{tmp_path}/in/", "out") if kind == "upload" else ("in/", f"{tmp_path}/out")
    target = "out" if kind == "move" else target
    with pytest.raises(AirflowFailException, match=r"1 of 2 files failed:\n- .*not a file name.*in/README"):
        run(make(source, target, rename="x{suffix}/{suffix}", max_files=1, dry_run=dry_run))
    written = read_files((tmp_path if kind == "download" else remote) / "out")
    assert written == ({} if dry_run else {"x.csv/.csv": b"2"})


def test_files_of_one_name_are_kept_side_by_side(remote: Path) -> None:
    write_files(remote, {"in/r.csv": b"1", "in/d/r.csv": b"2", "out/r.csv": b"old", "out/r-1.csv": b"older"})
    rows = run(move(Glob("in/**"), "out", rename="{name}", if_exists="number"))
    assert {row["source"]: row["path"] for row in rows} == {"in/d/r.csv": "out/r-2.csv", "in/r.csv": "out/r-3.csv"}
    assert read_files(remote) == {
        "out/r.csv": b"old",
        "out/r-1.csv": b"older",
        "out/r-2.csv": b"2",
        "out/r-3.csv": b"1",
    }
    assert run(move("out/r.csv", "out/r.csv", if_exists="number"))[0]["path"] == "out/r.csv"


def test_two_files_are_not_moved_to_one_name(remote: Path) -> None:
    write_files(remote, {"in/r.csv": b"1", "in/d/r.csv": b"2"})
    with pytest.raises(AirflowFailException, match=r"have the same target, 'out/r\.csv'"):
        run(move(Glob("in/**"), "out", rename="{name}"))
    assert read_files(remote) == {"in/r.csv": b"1", "in/d/r.csv": b"2"}


def test_a_file_is_moved_to_the_name_of_its_target(remote: Path) -> None:
    write_files(remote, FILES)
    rows = run(move("deep/c.csv", "archive/2026/c-1.csv"))
    assert rows == [{"path": "archive/2026/c-1.csv", "size": 5, "action": "moved", "source": "deep/c.csv"}]
    assert "deep/c.csv" not in read_files(remote)


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("a.csv", ["b.csv", "deep/.hidden", "deep/c.csv", "deep/d.txt"]),
        (Glob("**/*.csv"), ["deep/.hidden", "deep/d.txt"]),
        ("deep/", ["a.csv", "b.csv"]),
        (Glob("a.csv", "deep/*"), ["b.csv"]),
        ([{"path": "a.csv"}, "deep/c.csv"], ["b.csv", "deep/.hidden", "deep/d.txt"]),
    ],
)
def test_only_the_named_files_are_deleted(remote: Path, path: Any, left: list[str]) -> None:
    write_files(remote, FILES)
    rows = run(delete(path))
    assert sorted(read_files(remote)) == left
    assert {row["path"]: row["size"] for row in rows} == {
        name: len(content) for name, content in FILES.items() if name not in left
    }
    assert (remote / "deep").exists() == (path != "deep/")


def test_an_empty_folder_is_deleted(remote: Path) -> None:
    (remote / "empty").mkdir()
    assert run(delete("empty/")) == []
    assert not (remote / "empty").exists()


def test_names_with_wildcards_of_their_own_are_plain_names(remote: Path, local: Path, tmp_path: Path) -> None:
    write_files(local, {"[x]*.csv": b"odd"})
    run(upload(local / "[x]*.csv", "in/"))
    write_files(remote, {"in/xy.csv": b"other"})
    run(download("in/", f"{tmp_path}/back/"))
    assert read_files(tmp_path / "back") == {"[x]*.csv": b"odd", "xy.csv": b"other"}


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_urls_are_streamed_in_both_directions(remote: Path, tmp_path: Path, store: str, scheme: str) -> None:
    root = f"file://{tmp_path}/store" if scheme == "file" else store
    (ObjectStoragePath(root) / "in").mkdir(parents=True, exist_ok=True)
    content = bytes(range(256)) * 10_000
    (ObjectStoragePath(root) / "in" / "a.bin").write_bytes(content)
    (ObjectStoragePath(root) / "in" / "b.csv").write_bytes(b"b")
    rows = run(upload(f"{root}/in/a.bin", "one.bin", verify="sha256"))
    assert (actions(rows), rows[0]["size"]) == ({"one.bin": "uploaded"}, len(content))
    assert actions(run(upload(Glob(f"{root}/in/*"), "all/"))) == {"all/a.bin": "uploaded", "all/b.csv": "uploaded"}
    assert read_files(remote) == {"one.bin": content, "all/a.bin": content, "all/b.csv": b"b"}
    run(download("all/", f"{root}/out/"))
    assert (ObjectStoragePath(root) / "out" / "a.bin").read_bytes() == content
    with pytest.raises(FilesFailed, match="2 of 2 files failed"):
        run(download("all/", f"{root}/out/"))
    assert set(actions(run(download("all/", f"{root}/out/", if_exists="skip_same"))).values()) == {"skipped"}


# -- what is there already --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("if_exists", "same_size", "action"),
    [
        ("fail", False, "fails"),
        ("fail", True, "fails"),
        ("replace", False, "done"),
        ("replace", True, "done"),
        ("skip", False, "skipped"),
        ("skip", True, "skipped"),
        ("skip_same", False, "done"),
        ("skip_same", True, "skipped"),
    ],
)
@pytest.mark.parametrize("what", ["upload", "download", "move"])
def test_existing_targets_are_handled_as_configured(
    remote: Path, tmp_path: Path, what: str, if_exists: str, same_size: bool, action: str
) -> None:
    old, new = b"old" if same_size else b"older", b"new"
    here, there = write_files(tmp_path / "here", {"a": new}) / "a", write_files(remote, {"t": old}) / "t"
    operator: BaseOperator = upload(here, "t", if_exists=if_exists)
    if what == "download":
        here.write_bytes(old)
        there.write_bytes(new)
        there = here
        operator = download("t", here, if_exists=if_exists)
    elif what == "move":
        write_files(remote, {"a": new})
        operator = move("a", "t", if_exists=if_exists)
    if action == "fails":
        with pytest.raises(AlreadyExists, match=r"overwrite|exists|taken"):
            run(operator)
    else:
        (row,) = run(operator)
        assert row["action"] == ("skipped" if action == "skipped" else {"move": "moved"}.get(what, f"{what}ed"))
    assert there.read_bytes() == (new if action == "done" else old)
    if what == "move":
        assert (remote / "a").exists() == (action != "done")


@pytest.mark.parametrize("what", ["upload", "download", "move", "delete"])
def test_a_dry_run_returns_the_plan_and_changes_nothing(remote: Path, local: Path, tmp_path: Path, what: str) -> None:
    write_files(remote, FILES | {"there/b.csv": b"taken"})
    write_files(tmp_path / "there", {"b.csv": b"taken"})
    before = read_files(remote), read_files(tmp_path)
    make: dict[str, Callable[[], BaseOperator]] = {
        "upload": lambda: upload(Glob(f"{local}/*.csv"), "there/", dry_run=True),
        "download": lambda: download(Glob("*.csv"), f"{tmp_path}/there/", dry_run=True),
        "move": lambda: move(Glob("*.csv"), "there/", dry_run=True),
        "delete": lambda: delete(Glob("*.csv"), dry_run=True),
    }
    rows = run(make[what]())
    assert (read_files(remote), read_files(tmp_path)) == before
    assert sorted(row["action"] for row in rows) == (
        ["would delete"] * 2 if what == "delete" else sorted(["would fail", f"would {what}"])
    )
    assert sorted(row["size"] for row in rows) == [3, 4]


# -- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["download", "move", "delete"])
def test_missing_remote_files_fail_and_the_others_are_done(remote: Path, tmp_path: Path, what: str) -> None:
    write_files(remote, FILES)
    names = ["a.csv", "missing.csv", "no/*.csv"]
    make: dict[str, Callable[[], BaseOperator]] = {
        "download": lambda: download(names, f"{tmp_path}/"),
        "move": lambda: move(names, "there/"),
        "delete": lambda: delete(names),
    }
    with pytest.raises(FilesFailed, match="2 of 3 files failed") as caught:
        run(make[what]())
    assert [(type(error), getattr(error, "path", "")) for error in file_errors(caught.value)] == [
        (NotFound, "missing.csv"),
        (NotFound, "no/*.csv"),
    ]
    assert (remote / "a.csv").exists() == (what == "download")
    assert (tmp_path / "a.csv").exists() == (what == "download")


@pytest.mark.parametrize("operator", [move("missing", "there", missing_ok=True), delete("missing", missing_ok=True)])
def test_missing_files_are_skipped_if_allowed(remote: Path, operator: BaseOperator) -> None:
    assert run(operator) == []


def test_a_single_failure_is_raised_unchanged(remote: Path, local: Path) -> None:
    with pytest.raises(NotFound, match=r"no such file .'missing' on sftp://"):
        run(download("missing", "/nowhere"))
    with pytest.raises(FileNotFoundError, match="missing"):
        run(upload(local / "missing", "a"))
    with pytest.raises(FileNotFoundError, match="no file matches the pattern"):
        run(upload(Glob(f"{local}/*.xml"), "in/"))


def test_one_bad_file_does_not_stop_the_others(remote: Path, local: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(remote, {"in/a.csv/folder": b""})
    with pytest.raises(AirflowFailException, match="1 of 2 files failed") as caught:
        run(upload(Glob(f"{local}/*.csv"), "in/"))
    assert "cannot write: the path is a directory, not a file ('in/a.csv' on sftp://" in str(caught.value)
    assert "in/a.csv" in capsys.readouterr().out
    assert (remote / "in/b.csv").read_bytes() == b"two!"


def test_two_files_with_one_target_are_refused_before_anything_is_sent(remote: Path, local: Path) -> None:
    write_files(local, {"deep/a.csv": b"another"})
    with pytest.raises(AirflowFailException, match=r"a\.csv.*a\.csv.*have the same target, 'in/a\.csv'"):
        run(upload([local / "a.csv", local / "deep/a.csv"], "in/"))
    assert read_files(remote) == {}


@pytest.mark.parametrize(
    "operator",
    [
        upload("", "in/"),
        upload(["/etc/hostname", " "], "in/"),
        upload([], "in/"),
        upload("/etc/hostname", ""),
        download("", "/tmp"),
        download("a", " "),
        move("", "b"),
        delete([]),
    ],
    ids=lambda operator: operator.task_id,
)
def test_an_empty_argument_fails_without_a_retry(remote: Path, operator: BaseOperator) -> None:
    with pytest.raises(AirflowFailException, match=r"is empty.*check the task's result"):
        run(operator)


@pytest.mark.parametrize(
    "make",
    [
        lambda: upload("a", "b", if_exists="overwrite"),
        lambda: download("a", "b", verify="md5"),
        lambda: move("a", "b", if_exists=""),
    ],
)
def test_an_unknown_choice_is_refused_when_the_dag_is_parsed(make: Callable[[], BaseOperator]) -> None:
    with pytest.raises(ValueError, match=r"must be one of 'fail'|must be one of 'size', 'sha256', 'none'"):
        make()


OPERATORS: dict[str, Callable[[Path], BaseOperator]] = {
    "upload": lambda tmp: upload(write_files(tmp, {"u": b"new"}) / "u", "u"),
    "download": lambda tmp: download("a.csv", tmp / "down"),
    "move": lambda tmp: move("a.csv", "moved"),
    "delete": lambda tmp: delete("a.csv"),
}


@pytest.fixture(params=OPERATORS)
def operator(request: pytest.FixtureRequest, tmp_path: Path) -> BaseOperator:
    """Each operator, with work to do among `FILES`."""
    return OPERATORS[request.param](tmp_path)


def test_a_task_has_one_login_and_leaves_no_connection(
    operator: BaseOperator, remote: Path, server: AsyncsshServer
) -> None:
    write_files(remote, FILES)
    before = server.logins()
    assert len(run(operator)) == 1
    assert server.logins() == before + 1
    assert_nothing_left(server.port)


def test_a_failed_task_leaves_no_connection(
    operator: BaseOperator, connect: Connect, server: AsyncsshServer, tmp_path: Path
) -> None:
    connect(server)
    if operator.task_id == "up":
        with StallsAfter(requests=1) as stalling:
            connect(stalling, timeout=5, io_timeout=1)
            with pytest.raises(BackendUnavailable):
                run(operator)
            assert_nothing_left(stalling.port)
    else:
        with pytest.raises(NotFound):
            run(operator)
    assert_nothing_left(server.port)


def test_a_refused_login_fails_without_a_retry_and_shows_no_secret(
    operator: BaseOperator, connect: Connect, server: AsyncsshServer, caplog: pytest.LogCaptureFixture
) -> None:
    connect(server, columns={"password": "hunter2-secret"}, private_key=None)
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(AirflowFailException, match="the server refuses the login of 'tester'") as caught,
    ):
        run(operator)
    assert "hunter2" not in f"{caught.value!s}{caught.value.__cause__!r}{caplog.text}"


def test_a_changed_host_key_fails_without_a_retry(
    operator: BaseOperator, connect: Connect, server: AsyncsshServer
) -> None:
    with AsyncsshServer() as other:
        connect(server, known_host_keys=other.known_hosts.replace(str(other.port), str(server.port)))
        with pytest.raises(AirflowFailException, match="SHA256:"):
            run(operator)


def test_an_unreachable_server_is_retried(operator: BaseOperator, connect: Connect, server: AsyncsshServer) -> None:
    connect(server, columns={"port": free_port()}, conn_retry_attempts=1)
    with pytest.raises(BackendUnavailable, match="refuses connections"):
        run(operator)


def test_a_path_outside_base_path_fails_without_a_retry(remote: Path, tmp_path: Path) -> None:
    write_files(tmp_path, {"u": b""})
    for operator in (upload(tmp_path / "u", "../u"), download("../u", tmp_path / "x"), delete(Glob("../*"))):
        with pytest.raises(AirflowFailException, match=r"must not contain '\.\.'"):
            run(operator)


# -- the next try -----------------------------------------------------------------------------------------------------


def test_a_retry_recognises_its_completed_transfers(remote: Path, local: Path, tmp_path: Path) -> None:
    up, down = State(), State()
    run(upload(Glob(f"{local}/*.csv"), "in/"), state=up)
    rows = run(upload(Glob(f"{local}/*.csv"), "in/"), try_number=2, state=up)
    assert set(actions(rows).values()) == {"uploaded by an earlier attempt"}
    run(download("in/", f"{tmp_path}/back/"), state=down)
    rows = run(download("in/", f"{tmp_path}/back/"), try_number=2, state=down)
    assert set(actions(rows).values()) == {"downloaded by an earlier attempt"}


def test_other_content_is_not_recognised_as_an_earlier_transfer(remote: Path, local: Path) -> None:
    write_files(remote, {"in/a.csv": b"ONE"})
    with pytest.raises(AlreadyExists):
        run(upload(local / "a.csv", "in/a.csv"), try_number=2)
    assert read_files(remote) == {"in/a.csv": b"ONE"}


def test_a_retry_continues_with_the_remaining_files(remote: Path, local: Path) -> None:
    write_files(remote, {"in/a.csv/in-the-way": b""})
    state = State()
    with pytest.raises(AirflowFailException):
        run(upload(Glob(f"{local}/*.csv"), "in/"), state=state)
    (remote / "in/a.csv/in-the-way").unlink()
    (remote / "in/a.csv").rmdir()
    assert actions(run(upload(Glob(f"{local}/*.csv"), "in/"), try_number=2, state=state)) == {
        "in/a.csv": "uploaded",
        "in/b.csv": "uploaded by an earlier attempt",
    }


@pytest.mark.parametrize("source", ["a.csv", Glob("*.csv"), ["a.csv", "b.csv"]])
def test_a_retry_recognises_its_completed_moves(remote: Path, source: Any) -> None:
    write_files(remote, {"a.csv": b"one", "b.csv": b"two!"})
    state = State()
    moved = run(move(source, "there/"), state=state)
    again = run(move(source, "there/"), try_number=2, state=state)
    assert [row | {"action": "moved"} for row in again] == moved
    assert {row["action"] for row in again} == {"moved by an earlier attempt"}


def test_a_move_by_others_is_not_recognised_as_done(remote: Path) -> None:
    write_files(remote, {"there/a.csv": b"one"})
    for state in (None, State()):
        with pytest.raises(NotFound):
            run(move("a.csv", "there/"), try_number=2, state=state)


def test_a_changed_target_is_not_recognised_as_moved(remote: Path) -> None:
    write_files(remote, {"a.csv": b"one"})
    state = State()
    run(move("a.csv", "there/"), state=state)
    (remote / "there/a.csv").write_bytes(b"somebody else's")
    with pytest.raises(NotFound):
        run(move("a.csv", "there/"), try_number=2, state=state)


def test_a_retry_recognises_its_completed_deletions(remote: Path) -> None:
    for state in (None, State()):
        write_files(remote, {"a.csv": b"one"})
        run(delete("a.csv"), state=state)
        assert run(delete("a.csv"), try_number=2, state=state) == []
    with pytest.raises(NotFound):
        run(delete("a.csv"))
    with pytest.raises(NotFound):
        run(delete("never-there.csv"), try_number=2, state=State())


# -- progress, and the end of a task ----------------------------------------------------------------------------------


def test_the_log_shows_each_file_its_progress_and_the_total(
    remote: Path, local: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0.0)
    write_files(local, {"big.bin": bytes(3 << 20)})
    run(upload([local / "a.csv", local / "big.bin"], "in/"))
    log = capsys.readouterr().out
    assert "uploaded in/a.csv (3 B) <- /" in log
    assert "uploaded in/big.bin (3.0 MiB) <- /" in log
    assert "uploaded 2 files, 3.0 MiB in " in log.splitlines()[-1]
    assert "/s" in log.splitlines()[-1]
    assert "(100%), " in log


def test_the_log_names_the_server_and_ends_with_the_total(
    remote: Path, server: AsyncsshServer, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for operator, verb in (
        (upload(Glob(f"{local}/*.csv"), "in/"), "uploaded"),
        (download(Glob("in/*"), f"{tmp_path}/back/"), "downloaded"),
        (move(Glob("in/*"), "out/"), "moved"),
        (delete(Glob("out/*")), "deleted"),
    ):
        run(operator)
        log = capsys.readouterr().out
        assert f"working in {remote} on sftp://{server.host}:{server.port}" in log
        assert f"{verb} 2 files, 7 B in " in log.splitlines()[-1]


def test_a_failed_write_leaves_neither_file_nor_temporary_file(connect: Connect, tmp_path: Path) -> None:
    with FailsWrite(nth=1) as failing:
        folder = failing.fresh()
        connect(failing, base_path=folder.base_path)
        with pytest.raises(SFTPBackendError):
            run(upload(write_files(tmp_path, {"big": bytes(1 << 20)}) / "big", "in/big"))
        assert read_files(folder.path) == {}


# -- templates and mapping --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (SFTPUploadOperator, {"source", "pattern", "target", "rename", "sftp_conn_id", "temp_folder"}),
        (SFTPDownloadOperator, {"source", "pattern", "target", "rename", "sftp_conn_id"}),
        (SFTPMoveOperator, {"source", "pattern", "target", "rename", "sftp_conn_id"}),
        (SFTPDeleteOperator, {"path", "pattern", "sftp_conn_id"}),
    ],
)
def test_every_path_and_the_connection_are_templated(kind: type[BaseOperator], fields: set[str]) -> None:
    assert set(kind.template_fields) == fields | {"newer_than", "older_than", "from_manifest", "manifest"}


def test_every_argument_of_every_operator_is_documented() -> None:
    for name in ("SFTPUploadOperator", "SFTPDownloadOperator", "SFTPMoveOperator", "SFTPDeleteOperator"):
        kind = getattr(operators, name)
        code = kind.__init__.__code__
        for argument in code.co_varnames[1 : 1 + code.co_kwonlyargcount]:
            assert f":param {argument}:" in (kind.__doc__ or ""), (name, argument)
