"""A retry accepts only targets that its task instance wrote."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from airflow.sdk import ObjectStoragePath
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse

from airflow_sftp_backend import AlreadyExists
from airflow_sftp_backend._cancellation import TaskKilled
from airflow_sftp_backend.hooks import FilesFailed
from airflow_sftp_backend.operators import SFTPDownloadOperator, SFTPUploadOperator
from tests.support.airflow import prepared_process
from tests.support.airflow.connections import Connect
from tests.support.airflow.context import State, context
from tests.support.airflow.killed_task import FileState
from tests.support.airflow.operators import Row, actions, download, move, run, run_in, upload
from tests.support.files import read_files, write_files
from tests.support.servers import AsyncsshServer, BareAttributes, OpenSSHServer

HOUR = 3600.0
Operator = SFTPUploadOperator | SFTPDownloadOperator


class KilledAt(State):
    """End the process before or after a write of the store."""

    def __init__(self, *, kept: bool, state: State, write: int = 1) -> None:
        super().__init__()
        self.values = state.values
        self.kept, self.write, self.writes = kept, write, 0

    def set(self, key: str, value: object, **options: object) -> None:
        self.writes += 1
        if self.writes < self.write or self.kept:
            super().set(key, value, **options)
        if self.writes == self.write:
            raise TaskKilled


class Counting(State):
    """Counts the writes."""

    writes = 0

    def set(self, key: str, value: object, **options: object) -> None:
        self.writes += 1
        super().set(key, value, **options)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A directory with a file to send."""
    return write_files(tmp_path / "local", {"a.csv": b"one"})


def age(path: Path, seconds: float) -> None:
    """Lets the file be that old."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def hard_killed(operator: Operator, state: State) -> None:
    """Run an attempt that transfers everything and dies before its records."""
    operator.execute(context(1, state))


# -- uploads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [None, State], ids=["without store", "with store"])
@pytest.mark.parametrize("old", [0.0, HOUR])
def test_an_equal_file_written_by_others_before_is_a_failure(
    remote: Path, local: Path, state: Callable[[], State] | None, old: float
) -> None:
    kept = None if state is None else state()
    age(write_files(remote, {"out/a.csv": b"one"}) / "out/a.csv", old)
    for try_number, hint in ((1, "."), (2, "if_exists='skip_same'"), (3, "if_exists='skip_same'")):
        with pytest.raises(AlreadyExists, match=hint):
            run(upload(local / "a.csv", "out/a.csv"), try_number=try_number, state=kept)
    assert read_files(remote) == {"out/a.csv": b"one"}


def test_an_equal_file_written_between_attempts_is_a_failure(remote: Path, local: Path) -> None:
    state = State()
    with pytest.raises(TaskKilled):  # before the rename
        run(upload(local / "a.csv", "out/a.csv"), state=KilledAt(kept=True, state=state))
    assert "out/a.csv" not in read_files(remote)
    age(write_files(remote, {"out/a.csv": b"one"}) / "out/a.csv", -60)
    with pytest.raises(AlreadyExists):
        run(upload(local / "a.csv", "out/a.csv"), try_number=2, state=state)


@pytest.mark.parametrize("kept", [False, True])
def test_after_a_kill_before_the_rename_the_retry_uploads(remote: Path, local: Path, kept: bool) -> None:
    state = State()
    with pytest.raises(TaskKilled):
        run(upload(local / "a.csv", "out/a.csv"), state=KilledAt(kept=kept, state=state))
    assert actions(run(upload(local / "a.csv", "out/a.csv"), try_number=2, state=state)) == {"out/a.csv": "uploaded"}
    assert read_files(remote) == {"out/a.csv": b"one"}


@pytest.mark.parametrize("if_exists", ["fail", "replace"])
def test_after_a_kill_after_the_rename_the_retry_recognises_its_file(
    remote: Path, local: Path, if_exists: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = State()
    operator = upload(local / "a.csv", "out/a.csv", if_exists=if_exists)
    hard_killed(operator, state)
    written = (remote / "out/a.csv").stat().st_ino
    with caplog.at_level("INFO"):
        rows = run(operator, try_number=2, state=state)
    assert rows == [
        {"path": "out/a.csv", "size": 3, "action": "uploaded by an earlier attempt", "source": f"{local}/a.csv"}
    ]
    assert (remote / "out/a.csv").stat().st_ino == written
    assert caplog.text.count("comparing samples of 1 files") == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"ONE"),
        lambda path: path.write_bytes(b"longer"),
        lambda path: age(path, HOUR),
        lambda path: age(path, -60),
    ],
    ids=["content", "size", "older", "newer"],
)
def test_a_target_replaced_after_the_upload_is_a_failure(
    remote: Path, local: Path, change: Callable[[Path], object]
) -> None:
    state = State()
    hard_killed(upload(local / "a.csv", "out/a.csv"), state)
    change(remote / "out/a.csv")
    with pytest.raises(AlreadyExists):
        run(upload(local / "a.csv", "out/a.csv"), try_number=2, state=state)


def test_a_changed_source_is_a_failure_and_an_equal_copy_is_read_once(
    remote: Path, local: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = State()
    hard_killed(upload(local / "a.csv", "out/a.csv"), state)
    (local / "a.csv").write_bytes(b"ONE")
    with pytest.raises(AlreadyExists):
        run(upload(local / "a.csv", "out/a.csv"), try_number=2, state=state)
    (local / "a.csv").write_bytes(b"one")
    with caplog.at_level("INFO"):
        rows = run(upload(local / "a.csv", "out/a.csv"), try_number=3, state=state)
    assert actions(rows) == {"out/a.csv": "uploaded by an earlier attempt"}
    assert "reading out/a.csv (3 B) to compare it with" in caplog.text


def test_a_large_file_is_recognised_by_samples_not_by_reading_it(
    remote: Path, local: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = State()
    with (local / "big").open("wb") as file:
        file.truncate(64 << 20)
    hard_killed(upload(local / "big", "big"), state)
    assert actions(run(upload(local / "big", "big"), try_number=2, state=state)) == {
        "big": "uploaded by an earlier attempt"
    }
    with (remote / "big").open("r+b") as file:  # as long, and as old
        file.seek((64 << 20) - 1)
        file.write(b"x")
    os.utime(remote / "big", ns=((local / "big").stat().st_mtime_ns,) * 2)
    with pytest.raises(AlreadyExists):
        run(upload(local / "big", "big"), try_number=3, state=state)


def test_many_files_are_recorded_in_few_writes_and_all_are_recognised(remote: Path, tmp_path: Path) -> None:
    state = Counting()
    write_files(tmp_path / "many", {f"{number:03}": b"x" for number in range(520)})
    operator = upload(f"{tmp_path}/many/", "out/")
    hard_killed(operator, state)
    assert state.writes <= 30
    assert max(map(len, state.values.values())) < 65_535
    rows = run(operator, try_number=2, state=state)
    assert {row["action"] for row in rows} == {"uploaded by an earlier attempt"}
    assert len(rows) == 520


def test_a_cleared_task_ignores_earlier_records(remote: Path, local: Path) -> None:
    state = State()
    operator = upload(local / "a.csv", "out/a.csv")
    hard_killed(operator, state)
    with pytest.raises(AlreadyExists):
        operator.execute(context(2, state, cleared=1))
    with pytest.raises(AlreadyExists):
        operator.execute(context(3, state, cleared=1))


def test_transfers_over_another_connection_are_not_recognised(
    remote: Path, server: AsyncsshServer, connect: Connect, local: Path
) -> None:
    state = State()
    operator = upload(local / "a.csv", "out/a.csv")
    hard_killed(operator, state)
    other = server.fresh()
    connect(server, base_path=other.base_path)
    write_files(other.path, {"out/a.csv": b"one"})
    with pytest.raises(AlreadyExists):
        run(operator, try_number=2, state=state)
    (other.path / "out/a.csv").unlink()
    assert actions(run(operator, try_number=3, state=state)) == {"out/a.csv": "uploaded"}


def test_an_object_is_recognised_by_its_bytes(remote: Path, store: str) -> None:
    state = State()
    ObjectStoragePath(f"{store}/a.csv").write_bytes(b"one")
    hard_killed(upload(f"{store}/a.csv", "out/a.csv"), state)
    (row,) = run(upload(f"{store}/a.csv", "out/a.csv"), try_number=2, state=state)
    assert (row["action"], len(row["sha256"])) == ("uploaded by an earlier attempt", 64)
    ObjectStoragePath(f"{store}/a.csv").write_bytes(b"ONE")
    with pytest.raises(AlreadyExists):
        run(upload(f"{store}/a.csv", "out/a.csv"), try_number=3, state=state)


def test_without_server_times_size_and_samples_decide(connect: Connect, local: Path) -> None:
    with BareAttributes() as server:
        folder = server.fresh()
        connect(server, base_path=folder.base_path)
        state = State()
        operator = upload(local / "a.csv", "a.csv")
        hard_killed(operator, state)
        assert actions(run(operator, try_number=2, state=state)) == {"a.csv": "uploaded by an earlier attempt"}


def test_two_concurrent_attempts_neither_lose_nor_duplicate_files(remote: Path, tmp_path: Path) -> None:
    """The first attempt still runs after the second has begun."""
    state = State()
    files = {f"{number:02}": f"{number}".encode() for number in range(40)}
    write_files(tmp_path / "many", files)
    operator = upload(f"{tmp_path}/many/", "out/")
    second: list[object] = []

    class Overtaken(State):
        """The second attempt runs between the first's records and renames."""

        def set(self, key: str, value: object, **options: object) -> None:
            state.set(key, value)
            if not second:
                second.append(None)
                second.append(run(upload(f"{tmp_path}/many/", "out/"), try_number=2, state=state))

    with pytest.raises(FilesFailed):
        run(operator, state=Overtaken())
    assert {row["action"] for row in cast("list[Row]", second[1])} == {"uploaded"}
    assert read_files(remote) == {f"out/{name}": content for name, content in files.items()}


@pytest.mark.parametrize("method", ["get", "set"])
def test_an_unavailable_store_neither_loses_nor_duplicates_files(remote: Path, tmp_path: Path, method: str) -> None:
    write_files(tmp_path / "many", {f"{number:03}": b"x" for number in range(100)})
    away = AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"message": "away"}))

    class Away(State):
        """Fails at one call of the method."""

        at, calls = 0, 0

        def get(self, key: str, default: object = None) -> Any:
            self._count("get")
            return super().get(key, default)

        def set(self, key: str, value: object, **options: object) -> None:
            self._count("set")
            super().set(key, value, **options)

        def _count(self, called: str) -> None:
            if called == method:
                self.calls += 1
                if self.calls == self.at:
                    raise away

    for at in (1, 2, 3):
        state = Away()
        state.at = at
        operator = upload(f"{tmp_path}/many/", f"{at}/")
        hard_killed(operator, state)
        inodes = {path: path.stat().st_ino for path in (remote / f"{at}").iterdir()}
        for try_number in (2, 3):
            try:
                run(operator, try_number=try_number, state=state)
            except (AirflowRuntimeError, FilesFailed):
                continue
        assert {path: path.stat().st_ino for path in (remote / f"{at}").iterdir()} == inodes
        assert len(inodes) == 100


@pytest.mark.system
@pytest.mark.parametrize("kill_at", ["after the record", 40])
@pytest.mark.parametrize("work", ["upload", "move"])
def test_a_task_whose_process_is_killed_is_completed_by_its_retry(
    openssh: OpenSSHServer, connect: Connect, tmp_path: Path, work: str, kill_at: str | int
) -> None:
    folder = openssh.fresh()
    connect(openssh, base_path=folder.base_path)
    files = {f"{number:03}": f"{number}".encode() * 50 for number in range(100)}
    source = (
        write_files(tmp_path if work == "upload" else folder.path, {f"in/{name}": files[name] for name in files}) / "in"
    )
    out = folder.path / "out"
    out.mkdir()
    job = {
        "work": work, "source": f"{source}/" if work == "upload" else "in/", "target": "out/", "folder": str(out),
        "state": str(tmp_path / "state.json"), "kill_at": kill_at,
    }  # fmt: skip
    command = ["-m", "tests.support.airflow.killed_task", json.dumps(job)]
    done = prepared_process.run(command)
    assert done.returncode == -signal.SIGKILL, done.stderr
    inodes = {path.name: path.stat().st_ino for path in out.iterdir() if not path.name.startswith(".")}
    time.sleep(1.1)  # the times of files are whole seconds
    operator = upload(job["source"], "out/") if work == "upload" else move("in/", "out/")
    rows = run(operator, try_number=2, state=FileState(tmp_path / "state.json"))
    assert {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")} == files
    assert {name: (out / name).stat().st_ino for name in inodes} == inodes
    by = {Path(row["path"]).name: row["action"] for row in rows}
    assert set(by) == set(files)
    assert {name for name, action in by.items() if "by an earlier attempt" in action} == set(inodes)


# -- without a store --------------------------------------------------------------------------------------------------


def without_store(began: float, try_number: int = 2) -> Any:
    """Create a retry context of Airflow before 3.3, with run age."""
    found = context(try_number)
    cast("Any", found)["dag_run"].start_date = datetime.now(UTC) - timedelta(seconds=began)
    return found


def test_without_a_store_server_times_decide_if_this_run_wrote_the_file(remote: Path, local: Path) -> None:
    operator = upload(local / "a.csv", "out/a.csv")
    operator.execute(without_store(HOUR, 1))
    (row,) = run_in(operator, without_store(HOUR))
    assert row["action"] == "uploaded by an earlier attempt"
    for began, old in ((HOUR, HOUR + 1), (HOUR, HOUR - 3), (0, 0)):
        age(remote / "out/a.csv", old)
        with pytest.raises(AlreadyExists, match="skip_same"):
            operator.execute(without_store(began))
    assert set(read_files(remote)) == {"out/a.csv"}


@pytest.mark.parametrize("ahead", [-2 * HOUR, 2 * HOUR])
def test_without_a_store_clock_differences_are_tolerated(
    remote: Path, local: Path, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    from airflow_sftp_backend import SFTPBackend

    server_time = SFTPBackend.server_time

    def elsewhere(backend: SFTPBackend, path: str) -> datetime | None:
        server_now = server_time(backend, path)
        return None if server_now is None else server_now + timedelta(seconds=ahead)

    monkeypatch.setattr(SFTPBackend, "server_time", elsewhere)
    operator = upload(local / "a.csv", "out/a.csv")
    write_files(remote, {"out/a.csv": b"one"})
    age(remote / "out/a.csv", -ahead + HOUR - 60)  # on that clock, in the run
    assert run_in(operator, without_store(HOUR))[0]["action"] == "uploaded by an earlier attempt"
    age(remote / "out/a.csv", -ahead + HOUR + 60)  # and before it
    with pytest.raises(AlreadyExists):
        operator.execute(without_store(HOUR))


# -- downloads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [None, State], ids=["without store", "with store"])
def test_a_local_file_written_by_others_is_a_failure(
    remote: Path, tmp_path: Path, state: Callable[[], State] | None
) -> None:
    write_files(remote, {"a.csv": b"one"})
    write_files(tmp_path, {"back/a.csv": b"one"})
    kept = None if state is None else state()
    for try_number in (1, 2):
        with pytest.raises(AlreadyExists):
            run(download("a.csv", f"{tmp_path}/back/a.csv"), try_number=try_number, state=kept)


@pytest.mark.parametrize("target", ["local", "object"])
def test_a_download_killed_after_its_rename_is_recognised_locally(
    remote: Path, tmp_path: Path, store: str, target: str
) -> None:
    state = State()
    write_files(remote, {"a.csv": b"one"})
    to = f"{tmp_path}/a.csv" if target == "local" else f"{store}/a.csv"
    hard_killed(download("a.csv", to), state)
    (row,) = run(download("a.csv", to), try_number=2, state=state)
    assert row["action"] == "downloaded by an earlier attempt"
    age(remote / "a.csv", HOUR)  # another version
    with pytest.raises(AlreadyExists):
        run(download("a.csv", to), try_number=3, state=state)


def test_without_a_store_a_download_renamed_in_this_run_is_recognised(remote: Path, tmp_path: Path) -> None:
    write_files(remote, {"a.csv": b"one"})
    operator = download("a.csv", f"{tmp_path}/a.csv")
    operator.execute(without_store(HOUR, 1))
    assert run_in(operator, without_store(HOUR))[0]["action"] == "downloaded by an earlier attempt"
    with pytest.raises(AlreadyExists):
        operator.execute(without_store(0))
