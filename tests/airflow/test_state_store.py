"""Store plain JSON; a store error never changes a task's outcome."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, cast

import pytest
from airflow.sdk import Asset, BaseOperator
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse
from pydantic import ValidationError

from airflow_sftp_backend import AlreadyExists, NotFound, _state_store
from airflow_sftp_backend.hooks import FilesFailed
from airflow_sftp_backend.hooks.sftp import translate_errors
from airflow_sftp_backend.sensors import SFTPFileSensor
from tests.support.airflow.arguments import Glob
from tests.support.airflow.context import AssetState, State, context
from tests.support.airflow.operators import actions, delete, file_errors, move, run, upload
from tests.support.airflow.supervised_task import messages_to_airflow
from tests.support.airflow.supervised_task import run as run_supervised
from tests.support.airflow.versions import AirflowFailException, needs_state_stores
from tests.support.files import read_files, write_files

AWAY = AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"message": "away"}))


class Failing(State):
    """State store that raises ``error`` for ``methods``, from request ``first`` on."""

    def __init__(self, error: Exception, *methods: str, first: int = 0) -> None:
        super().__init__()
        self.error, self.methods, self.first, self.requests = error, methods, first, 0

    def get(self, key: str, default: object = None) -> Any:
        self._answer("get")
        return super().get(key, default)

    def set(self, key: str, value: object, **options: object) -> None:
        self._answer("set")
        super().set(key, value, **options)

    def _answer(self, method: str) -> None:
        if method in self.methods:
            self.requests += 1
            if self.requests > self.first:
                raise self.error


class Restarting(State):
    """State store whose first writes fail with a status, or without one."""

    def __init__(self, status: int | None, failures: int) -> None:
        super().__init__()
        self.failures, self.requests = failures, 0
        response = ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"status_code": status, "message": "away"})
        self._error = AirflowRuntimeError(response)

    def set(self, key: str, value: object, **options: object) -> None:
        self.requests += 1
        if self.requests <= self.failures:
            raise self._error
        super().set(key, value, **options)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A directory with two files to send."""
    return write_files(tmp_path / "local", {"a.csv": b"one", "b.csv": b"two!"})


@pytest.mark.parametrize("status", [None, 503])
def test_a_record_is_written_when_the_api_server_is_back(
    remote: Path, local: Path, status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_state_store, "_SECONDS_BETWEEN_WRITES", 0.01)
    state = Restarting(status, failures=3)
    run(upload(f"{local}/a.csv", "out/"), state=state)
    assert state.requests > 3
    inode = (remote / "out/a.csv").stat().st_ino
    rows = run(upload(f"{local}/a.csv", "out/"), try_number=2, state=state)
    assert actions(rows) == {"out/a.csv": "uploaded by an earlier attempt"}
    assert (remote / "out/a.csv").stat().st_ino == inode


def test_a_file_waits_once_for_an_api_server_that_stays_away(
    remote: Path, local: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_state_store, "API_SERVER_PATIENCE", 0.1)
    monkeypatch.setattr(_state_store, "_SECONDS_BETWEEN_WRITES", 0.01)
    run(upload(f"{local}/", "out/"), state=Restarting(None, failures=10_000))
    assert read_files(remote) == {"out/a.csv": b"one", "out/b.csv": b"two!"}
    assert "cannot write 'transfers 0' to the task's state store" in caplog.text


@pytest.mark.parametrize("status", [401, 404])
def test_a_refused_record_is_not_written_again(remote: Path, local: Path, status: int) -> None:
    state = Restarting(status, failures=10_000)
    run(upload(f"{local}/a.csv", "out/"), state=state)
    assert state.requests == 1
    assert read_files(remote) == {"out/a.csv": b"one"}


@pytest.mark.parametrize("store", [State, AssetState], ids=["task", "asset"])
@pytest.mark.parametrize("value", [{"rows": [(3, 4)]}, [{1, 2}], b"x", {"a": Path("x")}, {1: 2}], ids=repr)
def test_the_simulated_store_refuses_what_airflows_sdk_refuses(store: type[State], value: object) -> None:
    state = store()
    with pytest.raises(ValidationError):
        state.set("key", value)


def test_a_partly_failed_upload_reports_all_events_and_a_retry_resumes(remote: Path, local: Path) -> None:
    write_files(remote, {"out/b.csv": b"somebody else's"})
    state, outlet = State(), Asset("all")
    operator = upload(Glob(f"{local}/*.csv"), "out/", outlets=[outlet])
    first = context(1, state)
    with pytest.raises(FilesFailed) as caught:
        operator.execute(first)
    assert [type(error) for error in file_errors(caught.value)] == [AlreadyExists]
    assert first["outlet_events"][outlet].extra["size"] == 3
    openlineage_facets = operator.get_openlineage_facets_on_complete(None)
    assert openlineage_facets is not None
    assert [dataset.name.rpartition("/")[2] for dataset in openlineage_facets.outputs] == ["a.csv"]

    (remote / "out/a.csv").unlink()  # the partner has taken it
    (remote / "out/b.csv").unlink()
    rows = run(operator, try_number=2, state=state)
    assert actions(rows) == {"out/a.csv": "uploaded by an earlier attempt", "out/b.csv": "uploaded"}
    assert read_files(remote) == {"out/b.csv": b"two!"}


@pytest.mark.parametrize("error", [AWAY, ValueError("no"), TypeError("no"), OSError("no"), EOFError("no")], ids=repr)
@pytest.mark.parametrize("what", ["upload", "move", "delete"])
def test_a_finished_task_succeeds_if_its_state_cannot_be_saved(
    remote: Path, local: Path, what: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    write_files(remote, {"in/a.csv": b"one"})
    operator: dict[str, BaseOperator] = {
        "upload": upload(Glob(f"{local}/*.csv"), "out/"),
        "move": move(Glob("in/*"), "out/"),
        "delete": delete(Glob("in/*")),
    }
    with caplog.at_level(logging.WARNING):
        rows = run(operator[what], state=Failing(error, "set"))
    assert {row["action"] for row in rows} <= {"uploaded", "moved", "deleted"}
    assert sorted(read_files(remote)) == {
        "upload": ["in/a.csv", "out/a.csv", "out/b.csv"], "move": ["out/a.csv"], "delete": [],
    }[what]  # fmt: skip


@pytest.mark.parametrize("error", [AWAY, ValueError("no"), OSError("no")], ids=repr)
def test_a_failed_task_raises_its_own_error_if_saving_state_fails_too(
    remote: Path, local: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    write_files(remote, {"out/b.csv": b"theirs", "in/b.csv": b"ours"})
    with caplog.at_level(logging.WARNING), pytest.raises(FilesFailed) as caught:
        run(upload(Glob(f"{local}/*.csv"), "out/"), state=Failing(error, "set"))
    assert [type(failure) for failure in file_errors(caught.value)] == [AlreadyExists]
    assert "cannot write" in caplog.text
    with pytest.raises(AlreadyExists):
        run(move("in/b.csv", "out/"), state=Failing(error, "set"))
    with pytest.raises(NotFound):
        run(delete("in/c.csv"), state=Failing(error, "set"))
    assert read_files(remote) == {"out/a.csv": b"one", "out/b.csv": b"theirs", "in/b.csv": b"ours"}


@pytest.mark.parametrize("error", [AWAY, ValueError("no"), OSError("no")], ids=repr)
@pytest.mark.parametrize("what", ["upload", "move", "delete"])
def test_a_retry_that_cannot_load_its_state_changes_nothing(
    remote: Path, local: Path, what: str, error: Exception
) -> None:
    before = read_files(write_files(remote, {"in/a.csv": b"one"}))
    operator: dict[str, BaseOperator] = {
        "upload": upload(Glob(f"{local}/*.csv"), "out/"),
        "move": move(Glob("in/*"), "out/"),
        "delete": delete(Glob("in/*")),
    }
    with pytest.raises(type(error)) as caught:
        run(operator[what], try_number=2, state=Failing(error, "get"))
    assert caught.value is error
    assert read_files(remote) == before


def test_a_first_attempt_does_not_depend_on_the_store(remote: Path, local: Path) -> None:
    state = Failing(AWAY, "get")
    write_files(remote, {"in/a.csv": b"one", "in/b.csv": b""})
    run(upload(Glob(f"{local}/*.csv"), "out/"), state=state)
    run(move("in/a.csv", "moved/"), state=state)
    run(delete("in/b.csv"), state=state)
    assert sorted(read_files(remote)) == ["moved/a.csv", "out/a.csv", "out/b.csv"]
    assert state.requests == 0


@pytest.mark.parametrize("method", ["get", "set"])
def test_a_rescheduled_wait_ends_if_the_store_does_not_answer(remote: Path, method: str) -> None:
    write_files(remote, {"in/a.csv": b"one"})
    sensor = SFTPFileSensor(task_id="wait", path="in/", mode="reschedule", stable_for=0.1)
    (row,) = sensor.execute(context(state=Failing(AWAY, method)))
    assert row["path"] == "in/a.csv"


DAG = """
from airflow.sdk import DAG
from airflow_sftp_backend.operators import SFTPUploadOperator

with DAG("sending"):
    SFTPUploadOperator(task_id="up", pattern="{local}/*.csv", target="out/", retries=2)
"""


@needs_state_stores
def test_the_sdk_store_accepts_the_records_of_a_real_task(remote: Path, local: Path, tmp_path: Path) -> None:
    write_files(remote, {"out/b.csv": b"somebody else's"})
    write_files(tmp_path, {"dags/sending.py": DAG.format(local=local).encode()})
    lines = run_supervised(tmp_path / "dags", "sending", "up", tmp_path / "up.log")
    written = [cast("dict[str, Any]", body) for body in messages_to_airflow(tmp_path / "up.log")]
    values = [body["value"] for body in written if "rows" in (body.get("value") or {})]
    (before, after) = ([row[:3] + row[-1:] for row in value["rows"]] for value in values)
    assert before == [[f"{local}/a.csv", "out/a.csv", 3, False]]
    assert after == [[f"{local}/a.csv", "out/a.csv", 3, True]]
    log = json.dumps(lines)
    assert "1 of 2 files failed" in log
    assert "validation error" not in log


@pytest.mark.parametrize("kind", [ValueError, TypeError, KeyError])
def test_a_programming_error_is_left_to_airflows_retries(kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught, translate_errors():
        raise kind("ours")
    assert not isinstance(caught.value, AirflowFailException)
    with pytest.raises(ValidationError), translate_errors():
        ErrorResponse.model_validate({"error": "no such error"})
