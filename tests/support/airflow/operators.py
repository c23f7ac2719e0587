"""Make and run the operators, and read their results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_sftp_backend.operators import (
    SFTPDeleteOperator,
    SFTPDownloadOperator,
    SFTPMoveOperator,
    SFTPUploadOperator,
)
from tests.support.airflow.arguments import selection_argument
from tests.support.airflow.context import State, context

if TYPE_CHECKING:
    from airflow.sdk import Context


def file_errors(failed: BaseException) -> tuple[Exception, ...]:
    """Return the errors of the files behind a combined failure."""
    assert isinstance(failed.__cause__, ExceptionGroup)
    return failed.__cause__.exceptions


Row = dict[str, Any]


def run(operator: BaseOperator, *, try_number: int = 1, state: State | None = None) -> list[Row]:
    """Run the operator, and return its result, which must be plain JSON."""
    return run_in(operator, context(try_number, state))


def run_in(operator: BaseOperator, task_context: Context) -> list[Row]:
    """Run the operator in a context; return its result as plain JSON."""
    rows = operator.execute(task_context)
    assert json.loads(json.dumps(rows)) == rows
    return rows  # type: ignore[no-any-return]  # Airflow leaves it untyped


def run_to_manifest(operator: BaseOperator, *, try_number: int = 1, state: State | None = None) -> dict[str, Any]:
    """Run an operator with a manifest; return its result as plain JSON."""
    result = operator.execute(context(try_number, state))
    assert json.loads(json.dumps(result)) == result
    assert isinstance(result, dict)
    return result


def upload(source: Any, target: str, **arguments: Any) -> SFTPUploadOperator:
    return SFTPUploadOperator(task_id="up", target=target, **selection_argument(source), **arguments)


def download(source: Any, target: Any, **arguments: Any) -> SFTPDownloadOperator:
    return SFTPDownloadOperator(task_id="down", target=target, **selection_argument(source), **arguments)


def move(source: Any, target: str, **arguments: Any) -> SFTPMoveOperator:
    return SFTPMoveOperator(task_id="mv", target=target, **selection_argument(source), **arguments)


def delete(path: Any, **arguments: Any) -> SFTPDeleteOperator:
    return SFTPDeleteOperator(task_id="rm", **selection_argument(path, "path"), **arguments)


def actions(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {row["path"]: row["action"] for row in rows}
