"""Exchange files with a partner through `SFTPBackend`, without Airflow.

Usage: ``python backend.py HOST PORT USERNAME BASE_PATH``. The environment variable SFTP_PASSWORD holds the password,
SFTP_KNOWN_HOST_KEYS the host keys.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from airflow_sftp_backend import AlreadyExists, NotFound, Secret, SFTPBackend


def send(backend: SFTPBackend, report: Path) -> None:
    """Upload a report once; a second upload under its name is refused."""
    result = backend.upload(str(report), f"outbox/{report.name}", verify="sha256", digest=True, resume_key="nightly")
    print(f"sent {result.path}: {result.size} bytes, {result.digest}")
    try:
        backend.upload(str(report), f"outbox/{report.name}")
    except AlreadyExists as error:
        print(f"not sent again: {error}")


def receive(backend: SFTPBackend, directory: Path) -> None:
    """Download the inbox's CSV files, then move them to the archive."""
    files = backend.find("inbox/**/*.csv")
    pairs = [(file.path, str(directory / file.name)) for file in files]
    backend.download_many(pairs)
    for file in files:
        print(f"received {file.path}: {file.size} bytes")
    backend.move_many([(file.path, f"archive/{file.name}") for file in files])


def read_settings(backend: SFTPBackend) -> str:
    """Return the settings file, or defaults if there is none."""
    try:
        return backend.read_bytes("settings.ini").decode()
    except NotFound:
        return "defaults"


def main(host: str, port: str, username: str, base_path: str) -> None:
    """Send a report and receive the files of the inbox."""
    password = Secret(os.environ["SFTP_PASSWORD"])
    with (
        SFTPBackend(host, port=int(port), username=username, password=password, base_path=base_path) as backend,
        tempfile.TemporaryDirectory() as directory,
    ):
        report = Path(directory, "report.csv")
        report.write_text("order,amount\n1,10.00\n")
        send(backend, report)
        receive(backend, Path(directory))
        print(f"settings: {read_settings(backend)}")
        with backend.open_atomic("outbox/summary.txt", overwrite=True) as summary:
            summary.write(b"1 report\n")
        print(f"outbox: {', '.join(sorted(file.name for file in backend.list_files('outbox')))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
