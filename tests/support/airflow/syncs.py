"""Make and run syncs, and read their results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol, cast

from airflow_sftp_backend._file_rows import SyncResult
from airflow_sftp_backend.operators import SFTPSyncOperator
from tests.support.airflow.context import State, context
from tests.support.servers import Server


class Serve(Protocol):
    """Type of the fixture `serve`."""

    def __call__(self, server: Server, conn_id: str = "sftp_backend_default") -> Path: ...


def sync(source: object, target: object, direction: str = "upload", **arguments: Any) -> SFTPSyncOperator:
    """Make an operator."""
    return SFTPSyncOperator(
        task_id="sync",
        source=str(source),
        target=str(target),
        direction=direction,  # type: ignore[arg-type]  # tests pass wrong values too
        **arguments,
    )


def run_sync(operator: SFTPSyncOperator, *, try_number: int = 1, state: State | None = None) -> SyncResult:
    """Run the operator, and return its result, which must be plain JSON."""
    result = operator.execute(context(try_number, state))
    assert json.loads(json.dumps(result)) == result
    assert not operator.manifest
    return cast("SyncResult", result)


def counts(result: SyncResult) -> tuple[int, int, int, int]:
    """Return the numbers of new, changed, unchanged and extra files."""
    return result["new"], result["changed"], result["unchanged"], result["extra"]


def set_age(folder: Path, seconds: float = 1000, now: float = 1_700_000_000) -> None:
    """Set one time for all files, in seconds before ``now``."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (now - seconds, now - seconds))
