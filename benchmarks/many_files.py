"""Measure the CPU of work on many small files, beside other clients.

``python -m benchmarks.many_files`` prints a table of targets and results, and exits with 0 if every target is met.
Everything is measured in this process after one file of each kind, so the import of the package does not count. Other
clients are processes, whose start counts.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from airflow.sdk import BaseOperator

from airflow_sftp_backend.operators import SFTPDeleteOperator, SFTPUploadOperator
from tests.support.airflow.context import context
from tests.support.servers import sshd_path

from .rivals import OURS, RCLONE, SFTP, Work, backend
from .site import CIPHER, Site, site
from .syncing import without_output
from .targets import Row, show
from .workloads import WrongBytes, processor

Measured: TypeAlias = Callable[[Site, int], float]
"""Returns CPU seconds for a number of files."""
_CONN_ID: Final = "benchmark"
_SIZE: Final = 1024


@dataclass(frozen=True)
class Comparison:
    """Define a piece of work, and the client to compare with."""

    title: str
    ours: Measured
    other: Measured
    target: float
    other_name: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 2 if a program is missing."""
    options = _options().parse_args(arguments)
    logging.disable(logging.INFO)
    missing = [name for name in ("sftp", "rclone") if shutil.which(name) is None]
    if sshd_path() is None or missing:
        print(f"needed: OpenSSH's sshd, sftp and rclone; missing: {', '.join(missing) or 'sshd'}", file=sys.stderr)
        return 2
    rows = [row for row in ROWS if options.work is None or any(word in row.title for word in options.work)]
    measured: list[Row] = []
    with site() as near:
        _set_connection(near)
        for row in rows:
            row.ours(near, 1)
            spent = [(row.ours(near, options.files), row.other(near, options.files)) for _ in range(options.rounds)]
            ours, other = (statistics.median(column) for column in zip(*spent, strict=True))
            work = f"{row.title}, {options.files} files: {ours:.2f} s of CPU"
            measured.append(Row(work, f"x {row.other_name}", ours / other, row.target))
    return 0 if show(measured) else 1


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_files", description=__doc__)
    parser.add_argument("--files", type=int, default=20_000, help="number of files (default 20000)")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of each piece of work (default 1)")
    parser.add_argument("--work", action="append", help="only work whose title has this word")
    return parser


def _set_connection(near: Site) -> None:
    extra = {
        "private_key": near.client_key.read_text(),
        "known_host_keys": near.known_hosts.read_text(),
        "ciphers": CIPHER,
    }
    connection = {
        "conn_type": "sftp_backend",
        "host": near.host,
        "port": near.port,
        "login": near.username,
        "extra": extra,
    }
    os.environ[f"AIRFLOW_CONN_{_CONN_ID.upper()}"] = json.dumps(connection)


@contextmanager
def _files(folder: Path, count: int) -> Iterator[list[Path]]:
    """Create files, and remove the directory at the end."""
    folder.mkdir()
    try:
        paths = [folder / f"file-{number:05}" for number in range(count)]
        for path in paths:
            path.write_bytes(os.urandom(_SIZE))
        yield paths
    finally:
        shutil.rmtree(folder)


def _cost(work: Callable[[], object]) -> float:
    with without_output():
        before = processor()
        work()
        return processor() - before


def _run(operator: BaseOperator) -> None:
    operator.execute(context())


# -- deletions --------------------------------------------------------------------------------------------------------


def _delete_many(near: Site, count: int) -> float:
    with _files(near.there / "many", count) as paths, backend(near) as ours:
        # The connection counts, as for the operator.
        return _cost(lambda: ours.delete_many([str(path) for path in paths]))


def _delete_operator(arguments: Callable[[Path, list[Path]], dict[str, Any]]) -> Measured:
    def measured(near: Site, count: int) -> float:
        folder = near.there / "many"
        with _files(folder, count) as paths:
            operator = SFTPDeleteOperator(task_id="delete", sftp_conn_id=_CONN_ID, **arguments(folder, paths))
            spent = _cost(lambda: _run(operator))
            if any(path.exists() for path in paths):
                raise WrongBytes("files remain")
            folder.mkdir(exist_ok=True)
            return spent

    return measured


# -- transfers --------------------------------------------------------------------------------------------------------


def _transfer(work: Work | None, direction: str) -> Measured:
    assert work is not None

    def measured(near: Site, count: int) -> float:
        source, target = (near.here, near.there) if direction == "up" else (near.there, near.here)
        with _files(source / "many", count) as paths, _files(target / "copied", 0):
            local, remote = ("many", "copied") if direction == "up" else ("copied", "many")
            spent = _cost(lambda: work(near, near.here / local, near.there / remote))
            for path in paths:
                if (target / "copied" / path.name).read_bytes() != path.read_bytes():
                    raise WrongBytes(f"{path.name} differs")
            return spent

    return measured


def _unchanged(work: Callable[[Site, Path, Path], object]) -> Measured:
    """Measure an upload of files that the server has already."""

    def measured(near: Site, count: int) -> float:
        with _files(near.here / "many", count) as paths, _files(near.there / "copied", 0):
            for path in paths:
                shutil.copy2(path, near.there / "copied")
            return _cost(lambda: work(near, near.here / "many", near.there / "copied"))

    return measured


def _upload_unchanged(_: Site, local: Path, remote: Path) -> None:
    _run(
        SFTPUploadOperator(
            task_id="upload", source=f"{local}/", target=f"{remote}/", if_exists="skip_same", sftp_conn_id=_CONN_ID
        )
    )


def _sync_with_rclone(near: Site, local: Path, remote: Path) -> None:
    assert RCLONE.sync_up is not None
    RCLONE.sync_up(near, local, remote)


ROWS: Final = (
    Comparison(
        "delete operator, a directory",
        _delete_operator(lambda folder, _: {"path": f"{folder}/"}),
        _delete_many,
        1.3,
        "delete_many",
    ),
    Comparison(
        "delete operator, a pattern",
        _delete_operator(lambda folder, _: {"pattern": f"{folder}/*"}),
        _delete_many,
        1.3,
        "delete_many",
    ),
    Comparison(
        "delete operator, rows",
        _delete_operator(lambda _, paths: {"path": [{"path": str(path)} for path in paths]}),
        _delete_many,
        1.3,
        "delete_many",
    ),
    Comparison("upload of 1 KiB", _transfer(OURS.many_up, "up"), _transfer(SFTP.many_up, "up"), 1.0, "sftp"),
    Comparison("download of 1 KiB", _transfer(OURS.many_down, "down"), _transfer(SFTP.many_down, "down"), 0.7, "sftp"),
    Comparison(
        "unchanged, skip_same", _unchanged(_upload_unchanged), _unchanged(_sync_with_rclone), 1.5, "rclone sync"
    ),
)


if __name__ == "__main__":
    sys.exit(main())
