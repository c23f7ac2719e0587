"""Run an upload, move or sync, and kill this process (SIGKILL).

Its state store is a file, and it dies at a write of the store or when so many files have their names.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from airflow_sftp_backend.operators import SFTPMoveOperator, SFTPSyncOperator, SFTPUploadOperator
from tests.support.airflow.context import State, context


class FileState(State):
    """A state store in a file, which outlives the process."""

    def __init__(self, path: Path, kill_at: str = "") -> None:
        super().__init__()
        self.path, self.kill_at = path, kill_at
        self.values = json.loads(path.read_text()) if path.exists() else {}

    def set(self, key: str, value: object, **options: object) -> None:
        if self.kill_at == "before the record":
            _die()
        super().set(key, value, **options)
        self.path.write_text(json.dumps(self.values))
        if self.kill_at == "after the record":
            _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_once_there(folder: Path, count: int) -> None:
    while len([name for name in os.listdir(folder) if not name.startswith(".")]) < count:
        time.sleep(0.0005)
    _die()


def main() -> None:
    """Parse the JSON arguments: the work, its paths and the kill."""
    job = json.loads(sys.argv[1])
    if isinstance(job["kill_at"], int):
        threading.Thread(target=_die_once_there, args=(Path(job["folder"]), job["kill_at"]), daemon=True).start()
    if job["work"] == "sync":
        operator = SFTPSyncOperator(task_id="sync", **job["arguments"])
        operator.execute(context(1))
        return
    kind = SFTPUploadOperator if job["work"] == "upload" else SFTPMoveOperator
    transfer = kind(task_id="task", source=job["source"], target=job["target"])
    state = FileState(Path(job["state"]), job["kill_at"] if isinstance(job["kill_at"], str) else "")
    transfer.execute(context(1, state))


if __name__ == "__main__":
    main()
