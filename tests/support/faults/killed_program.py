"""Start an operation, and kill this process at a message."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any
from unittest import mock

from airflow_sftp_backend import RetryPolicy, SFTPBackend
from airflow_sftp_backend.backend._ssh._paramiko_compat import FastChannel
from tests.support.faults.killed_operations import OPERATIONS


def main() -> None:
    """Parse the JSON arguments: connection, operation and kill."""
    job = json.loads(sys.argv[1])
    sends = 0
    send = FastChannel.send

    def sent(channel: FastChannel, data: Any) -> int:
        nonlocal sends
        sends += 1
        if sends == job["kill_at"] and not job["after"]:
            os.kill(os.getpid(), signal.SIGKILL)
        count = send(channel, data)
        if sends == job["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    with (
        SFTPBackend(**job["connection"], retry=RetryPolicy.disabled()) as backend,
        mock.patch.object(FastChannel, "send", sent),
    ):
        OPERATIONS[job["operation"]].act(backend, job["local"])


if __name__ == "__main__":
    main()
