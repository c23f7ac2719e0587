"""``@task.sftp_files`` waits like the sensor and calls the function with rows."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from airflow.sdk import DAG, task

from airflow_sftp_backend._file_rows import FoundFile
from airflow_sftp_backend.decorators import SFTPFilesDecoratedOperator
from tests.support.airflow.context import context
from tests.support.airflow.sensors import first_event
from tests.support.airflow.supervised_task import messages_to_airflow, run
from tests.support.airflow.versions import (
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSkipException,
    TaskDeferred,
)
from tests.support.files import write_files


def operator(function: Callable[..., object], *call: object, calls: Any = None, **arguments: Any) -> Any:
    """Make the task of a decorated function."""
    with DAG("decorated", schedule=None):
        given: dict[str, Any] = {"pattern": "in/*.csv", "timeout": 20} | arguments
        return task.sftp_files(**given)(function)(*call, **(calls or {})).operator


def total(files: list[FoundFile], factor: int = 1) -> int:
    return factor * sum(file["size"] for file in files)


def resume(waiting: SFTPFilesDecoratedOperator) -> object:
    """Defer the wait, and resume the task with the triggerer's event."""
    with pytest.raises(TaskDeferred) as deferred:
        waiting.execute(context())
    event = cast("dict[str, Any]", first_event(deferred.value))
    return waiting.resume_execution(deferred.value.method_name, {"event": event}, context())


def test_the_function_is_called_with_the_rows_once_the_files_are_there(remote: Path) -> None:
    write_files(remote, {"in/a.csv": b"abc", "in/b.csv": b"de", "in/c.txt": b""})
    assert operator(total).execute(context()) == 5
    rows = operator(lambda files: files, task_id="rows").execute(context())
    assert [(row["path"], row["size"]) for row in rows] == [("in/a.csv", 3), ("in/b.csv", 2)]


def test_further_arguments_come_from_the_call_and_from_the_context(remote: Path) -> None:
    write_files(remote, {"in/a.csv": b"abc"})

    def describe(factor: int, files: list[FoundFile], dag_run: Any = None, **more: Any) -> tuple[int, str, bool]:
        return total(files, factor), dag_run.run_type, "ti" in more

    assert operator(describe, 2).execute(context()) == (6, "manual", True)
    assert operator(total, calls={"factor": 3}).execute(context()) == 9


def test_a_deferred_wait_calls_the_function_after_the_event(remote: Path, tmp_path: Path) -> None:
    waiting = operator(total, deferrable=True, stable_for=0.2, poke_interval=0.1)
    write_files(remote, {"in/a.csv": b"abc"})
    assert resume(waiting) == 3


def test_a_rescheduled_wait_calls_no_function_before_the_files_are_there(remote: Path) -> None:
    waiting = operator(total, mode="reschedule")
    (remote / "in").mkdir()
    with pytest.raises(AirflowRescheduleException):
        waiting.execute(context())
    write_files(remote, {"in/a.csv": b"abc"})
    assert waiting.execute(context()) == 3


@pytest.mark.parametrize("deferrable", [True, False])
def test_soft_fail_skips_for_a_failed_wait_not_for_a_failed_function(remote: Path, deferrable: bool) -> None:
    def fail(files: list[FoundFile]) -> None:
        raise AirflowFailException("no table")

    arguments: dict[str, Any] = {"soft_fail": True, "deferrable": deferrable, "stable_for": 0.1, "poke_interval": 0.1}
    waiting = operator(fail, timeout=60, **arguments)
    if deferrable:
        failure = {"event": {"status": "failed", "message": "refused", "retryable": False}}
        with pytest.raises(AirflowSkipException):
            waiting.resume_execution("execute_complete", failure, context())
    else:
        with pytest.raises(AirflowSkipException):
            operator(fail, timeout=0.1, **arguments).execute(context())
    write_files(remote, {"in/a.csv": b"abc"})
    with pytest.raises(AirflowFailException, match="no table"):
        resume(waiting) if deferrable else waiting.execute(context())


def test_a_wrong_function_is_refused_when_the_dag_is_parsed() -> None:
    async def later(files: list[FoundFile]) -> None: ...

    with pytest.raises(ValueError, match="count has no parameter 'files', which receives the rows"):

        def count(rows: list[FoundFile]) -> None: ...

        operator(count)
    with pytest.raises(ValueError, match="'files' receives the rows of the files; omit it in the call of total"):
        operator(total, calls={"files": []})
    with pytest.raises(ValueError, match="later is a coroutine function"):
        operator(later)
    with pytest.raises(ValueError, match="exactly one of path and pattern"):
        operator(total, path="a")
    for argument in ("manifest", "from_manifest"):
        with pytest.raises(ValueError, match=f"@task.sftp_files takes no {argument}: the function receives the rows"):
            operator(total, **{argument: "/m"})


DAG_FILE = """
from airflow.sdk import DAG, task, task_group

with DAG("decorated", schedule=None) as dag:

    @task.sftp_files(pattern="in/*.csv", poke_interval=0.1, timeout=30)
    def load(files, factor=1):
        return factor * len(files)

    @task.sftp_files(pattern="{{ task.op_kwargs['folder'] }}/*.csv", poke_interval=0.1, timeout=3)
    def names(files, folder):
        return [file["path"] for file in files]

    load()
    load.override(task_id="scaled").expand(factor=[10, 20])
    names.expand(folder=["in", "other"])
"""


@pytest.mark.parametrize(
    ("task_id", "map_index", "expected"), [("load", -1, 2), ("scaled", 1, 40), ("names", 1, ["other/x.csv"])]
)
def test_a_supervised_task_returns_the_result_of_the_function(
    remote: Path, tmp_path: Path, task_id: str, map_index: int, expected: object
) -> None:
    write_files(remote, {"in/a.csv": b"", "in/b.csv": b"", "other/x.csv": b""})
    write_files(tmp_path, {"dags/decorated.py": textwrap.dedent(DAG_FILE).encode()})
    log = tmp_path / "task.log"
    run(tmp_path / "dags", "decorated", task_id, log, map_index=map_index)
    messages = messages_to_airflow(log)
    assert expected in messages, messages
    assert any(isinstance(message, dict) and message.get("state") == "success" for message in messages)
