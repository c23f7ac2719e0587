"""Transfer a file, and kill this process after some bytes.

Run by test_partial_files.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from airflow_sftp_backend import RetryPolicy, SFTPBackend


def main() -> None:
    """Arguments as JSON: connection, work, local, path, key, kill_at (bytes)."""
    job = json.loads(sys.argv[1])
    done = 0

    def progress(gained: int) -> None:
        nonlocal done
        done += gained
        if done >= job["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    with SFTPBackend(**job["connection"], retry=RetryPolicy.disabled()) as backend:
        if job["work"] == "up":
            backend.upload(
                job["local"], job["path"], channels=job["channels"], resume_key=job["key"], progress=progress
            )
        else:
            backend.download(job["path"], job["local"], resume_key=job["key"], progress=progress)


if __name__ == "__main__":
    main()
