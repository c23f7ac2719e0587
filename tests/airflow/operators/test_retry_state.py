"""A retry knows which files earlier attempts have moved, deleted or uploaded."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
from airflow.sdk import Asset, ObjectStoragePath

from airflow_sftp_backend._cancellation import TaskKilled
from airflow_sftp_backend.hooks import FilesFailed
from airflow_sftp_backend.operators import SFTPUploadOperator
from tests.support.airflow.arguments import Glob
from tests.support.airflow.connections import Connect
from tests.support.airflow.context import State, context
from tests.support.airflow.operators import Row, actions, delete, move, run, run_in, upload
from tests.support.airflow.versions import AirflowFailException
from tests.support.files import read_files, write_files
from tests.support.servers import AsyncsshServer, CurtDropBox, DropBox

# -- moves ------------------------------------------------------------------------------------------------------------


def in_the_way(remote: Path, path: str) -> Path:
    """A folder where a file is to go."""
    return write_files(remote, {f"{path}/in-the-way": b""}) / path


MOVED = {"path": "work/a.csv", "size": 3, "action": "moved by an earlier attempt", "source": "in/a.csv"}


@pytest.mark.parametrize("if_exists", ["fail", "replace", "skip", "skip_same", "number"])
def test_a_file_delivered_between_attempts_is_left_to_the_next_run(
    remote: Path, if_exists: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = State()
    write_files(remote, {"in/a.csv": b"abc", "in/b.csv": b"x"})
    way = in_the_way(remote, "work/b.csv")
    with pytest.raises((AirflowFailException, FilesFailed)):
        run(move(Glob("in/*.csv"), "work/", if_exists="fail"), state=state)
    shutil.rmtree(way)
    write_files(remote, {"in/a.csv": b"new!"})
    rows = run(move(Glob("in/*.csv"), "work/", if_exists=if_exists), try_number=2, state=state)
    assert [row for row in rows if "b.csv" not in row["path"]] == [MOVED]
    assert read_files(remote) == {"in/a.csv": b"new!", "work/a.csv": b"abc", "work/b.csv": b"x"}
    assert "skipping in/a.csv: delivered again, left to the next run" in capsys.readouterr().out


@pytest.mark.parametrize("if_exists", ["fail", "replace", "number"])
def test_a_killed_move_counts_as_done_though_its_source_exists_again(remote: Path, if_exists: str) -> None:
    state = State()
    write_files(remote, {f"in/{name}.csv": name.encode() for name in "abcde"})
    run(move(Glob("in/*.csv"), "work/", if_exists=if_exists), state=state)  # all is moved, and the worker dies
    write_files(remote, {"in/c.csv": b"the next delivery"})
    rows = run(move(Glob("in/*.csv"), "work/", if_exists=if_exists), try_number=2, state=state)
    assert {row["path"]: row["action"] for row in rows} == {
        f"work/{name}.csv": "moved by an earlier attempt" for name in "abcde"
    }
    assert read_files(remote) == {"in/c.csv": b"the next delivery"} | {f"work/{n}.csv": n.encode() for n in "abcde"}


def test_a_replaced_target_of_equal_size_is_not_recognised_as_moved(remote: Path) -> None:
    state = State()
    write_files(remote, {"in/a.csv": b"abc", "work/a.csv": b"old"})
    os.utime(remote / "work/a.csv", (1, 1))

    class Killed(State):
        """Kill the worker after the record of a move."""

        def set(self, key: str, value: object, **options: object) -> None:
            state.set(key, value)
            raise TaskKilled

    with pytest.raises(TaskKilled):
        run(move("in/a.csv", "work/", if_exists="replace"), state=Killed())
    write_files(remote, {"in/a.csv": b"new!"})
    (row,) = run(move("in/a.csv", "work/", if_exists="replace"), try_number=2, state=state)
    assert row["action"] == "moved"
    assert read_files(remote) == {"work/a.csv": b"new!"}


def test_a_pending_file_is_not_reported_moved_for_an_equal_target(remote: Path) -> None:
    state = State()
    write_files(remote, {"in/a.csv": b"abc"})
    run(move("in/a.csv", "work/"), state=state)
    (remote / "work/a.csv").rename(remote / "in/a.csv")  # as if it had been noted, and never moved
    write_files(remote, {"work/a.csv": b"xyz"})
    (row,) = run(move("in/a.csv", "work/", if_exists="skip"), try_number=2, state=state)
    assert row["action"] == "skipped"


@pytest.mark.parametrize("source", [Glob("in/*.csv"), ["in/a.csv", "in/b.csv"]])
def test_an_earlier_move_is_recognised_by_every_retry(remote: Path, source: str | list[str]) -> None:
    state = State()
    write_files(remote, {"in/a.csv": b"abc", "in/b.csv": b"x"})
    way = in_the_way(remote, "work/b.csv")
    for try_number in (1, 2):
        with pytest.raises((AirflowFailException, FilesFailed)):
            run(move(source, "work/"), try_number=try_number, state=state)
        write_files(remote, {"in/a.csv": b"new!"})
    (remote / "in/a.csv").unlink()
    shutil.rmtree(way)
    rows = run(move(source, "work/"), try_number=3, state=state)
    assert actions(rows) == {"work/a.csv": "moved by an earlier attempt", "work/b.csv": "moved"}


def test_a_cleared_move_moves_what_was_delivered_again(remote: Path) -> None:
    state = State()
    write_files(remote, {"in/a.csv": b"abc", "in/b.csv": b"x"})
    operator = move(Glob("in/*.csv"), "work/", if_exists="number")
    run(operator, state=state)
    write_files(remote, {"in/a.csv": b"new!"})
    rows = run_in(operator, context(2, state, cleared=1))
    assert actions(rows) == {"work/b.csv": "moved by an earlier attempt", "work/a-1.csv": "moved"}
    assert read_files(remote) == {"work/a.csv": b"abc", "work/b.csv": b"x", "work/a-1.csv": b"new!"}


# -- deletions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["in/a.csv", Glob("in/*.csv"), "in/"])
def test_a_file_delivered_again_after_its_deletion_is_left_to_the_next_run(
    remote: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = State()
    write_files(remote, {"in/a.csv": b"abc"})
    assert len(run(delete(path), state=state)) == 1  # and the worker dies
    write_files(remote, {"in/a.csv": b"the next delivery"})
    assert run(delete(path), try_number=2, state=state) == []
    assert read_files(remote) == {"in/a.csv": b"the next delivery"}
    assert "skipping in/a.csv: delivered again, left to the next run" in capsys.readouterr().out
    assert len(delete(path).execute(context(3, state, cleared=2))) == 1
    assert read_files(remote) == {}


def test_a_deletion_killed_before_it_began_is_made_by_the_retry(remote: Path) -> None:
    state = State()

    class Killed(State):
        """Kill the worker after the record of a deletion."""

        def set(self, key: str, value: object, **options: object) -> None:
            state.set(key, value)
            raise TaskKilled

    write_files(remote, {"in/a.csv": b"abc"})
    with pytest.raises(TaskKilled):
        run(delete("in/a.csv"), state=Killed())
    assert len(run(delete("in/a.csv"), try_number=2, state=state)) == 1
    assert read_files(remote) == {}


# -- uploads ----------------------------------------------------------------------------------------------------------


def half_sent(remote: Path, local: Path, state: State, **arguments: object) -> SFTPUploadOperator:
    """Run an upload that sends a.csv, then fails for b.csv."""
    way = in_the_way(remote, "out/b.csv")
    operator = upload(Glob(f"{local}/*.csv"), "out/", **arguments)
    with pytest.raises((AirflowFailException, FilesFailed)):
        operator.execute(context(state=state))
    shutil.rmtree(way)
    (remote / "out/a.csv").unlink()
    return operator


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A folder with two files to send."""
    return write_files(tmp_path / "local", {"a.csv": b"one", "b.csv": b"two!"})


@pytest.mark.parametrize("if_exists", ["fail", "replace", "skip", "skip_same"])
def test_an_upload_removed_by_the_partner_is_not_repeated(remote: Path, local: Path, if_exists: str) -> None:
    state = State()
    operator = half_sent(remote, local, state, if_exists=if_exists)
    rows = run(operator, try_number=2, state=state)
    assert actions(rows) == {"out/a.csv": "uploaded by an earlier attempt", "out/b.csv": "uploaded"}
    assert read_files(remote) == {"out/b.csv": b"two!"}


@pytest.mark.parametrize("taken_before", [2, 3])
@pytest.mark.parametrize("if_exists", ["fail", "replace", "skip"])
def test_a_completed_upload_is_recognised_by_every_retry(
    remote: Path, local: Path, if_exists: str, taken_before: int
) -> None:
    state = State()
    way = in_the_way(remote, "out/b.csv")
    operator = upload(Glob(f"{local}/*.csv"), "out/", if_exists=if_exists)
    for try_number in (1, 2):
        with pytest.raises((AirflowFailException, FilesFailed)):
            run(operator, try_number=try_number, state=state)
        if taken_before == try_number + 1:
            (remote / "out/a.csv").unlink()
    shutil.rmtree(way)
    run(operator, try_number=3, state=state)
    assert read_files(remote) == {"out/b.csv": b"two!"}


def test_a_changed_source_is_uploaded_again(remote: Path, local: Path) -> None:
    state = State()
    operator = half_sent(remote, local, state)
    (local / "a.csv").write_bytes(b"ONE")
    os.utime(local / "a.csv", (1, 1))
    assert set(actions(run(operator, try_number=2, state=state)).values()) == {"uploaded"}
    assert read_files(remote) == {"out/a.csv": b"ONE", "out/b.csv": b"two!"}


def test_a_task_cleared_after_success_uploads_everything_again(remote: Path, local: Path) -> None:
    state = State()
    operator = half_sent(remote, local, state)
    run(operator, try_number=2, state=state)
    (remote / "out/b.csv").unlink()
    assert set(actions(run_in(operator, context(3, state, cleared=2))).values()) == {"uploaded"}
    assert sorted(read_files(remote)) == ["out/a.csv", "out/b.csv"]


def test_a_task_cleared_after_a_failure_uploads_everything_again(remote: Path, local: Path) -> None:
    state = State()
    operator = half_sent(remote, local, state)
    rows = run_in(operator, context(2, state, cleared=1))
    assert set(actions(rows).values()) == {"uploaded"}
    assert sorted(read_files(remote)) == ["out/a.csv", "out/b.csv"]


@pytest.mark.parametrize("other", ["base path", "connection"])
def test_after_the_connection_is_corrected_everything_is_delivered(
    remote: Path, server: AsyncsshServer, connect: Connect, local: Path, other: str
) -> None:
    state = State()
    operator = half_sent(remote, local, state)
    right = server.fresh()
    connect(server, "right" if other == "connection" else "sftp_backend_default", base_path=right.base_path)
    if other == "connection":
        operator.sftp_conn_id = "right"
    assert set(actions(run(operator, try_number=2, state=state)).values()) == {"uploaded"}
    assert sorted(read_files(right.path)) == ["out/a.csv", "out/b.csv"]


@pytest.mark.parametrize("changed", [False, True])
def test_an_uploaded_object_is_recognised_by_its_bytes(remote: Path, store: str, changed: bool) -> None:
    for name, content in (("a.csv", b"one"), ("b.csv", b"two!")):
        ObjectStoragePath(f"{store}/{name}").write_bytes(content)
    state = State()
    way = in_the_way(remote, "out/b.csv")
    operator = upload(Glob(f"{store}/*.csv"), "out/")
    with pytest.raises(AirflowFailException):
        run(operator, state=state)
    shutil.rmtree(way)
    (remote / "out/a.csv").unlink()
    if changed:
        ObjectStoragePath(f"{store}/a.csv").write_bytes(b"ONE")
    run(operator, try_number=2, state=state)
    assert ("out/a.csv" in read_files(remote)) == changed


def test_outlet_events_include_uploads_removed_by_the_partner(remote: Path, local: Path) -> None:
    state, outlet = State(), Asset("all")
    operator = half_sent(remote, local, state, outlets=[outlet])
    second = context(2, state)
    operator.execute(second)
    files: list[Row] = second["outlet_events"][outlet].extra["files"]  # type: ignore[assignment]  # any JSON to Airflow
    assert [(file["size"], len(file["sha256"])) for file in files] == [(3, 64), (4, 64)]


@pytest.mark.parametrize("kind", [DropBox, CurtDropBox])
def test_without_read_permission_sent_files_are_not_sent_again(
    connect: Connect, local: Path, kind: type[DropBox]
) -> None:
    with kind() as box:
        folder = box.fresh()
        connect(box, base_path=folder.base_path)
        state = State()
        operator = upload(Glob(f"{local}/*.csv"), "/", verify="none")
        way = in_the_way(folder.path, "b.csv")
        with pytest.raises((AirflowFailException, FilesFailed)):
            run(operator, state=state)
        shutil.rmtree(way)
        (folder.path / "a.csv").unlink()
        assert actions(run(operator, try_number=2, state=state))["a.csv"] == "uploaded by an earlier attempt"
        assert read_files(folder.path) == {"b.csv": b"two!"}


# -- Airflow before 3.3 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("try_number", "has_store"), [(1, False), (2, False), (2, True)])
def test_a_task_with_retries_logs_the_lack_of_a_store(
    remote: Path, try_number: int, has_store: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_files(remote, {"in/a.csv": b"abc"})
    run(move("in/a.csv", "work/"), try_number=try_number, state=State() if has_store else None)
    line = "this Airflow keeps no state between the attempts of a task"
    assert (line in caplog.text) != has_store
