"""Measure the CPU of work on many small files, beside other clients.

Everything is measured in this process after one file of each kind, so the import of the package does not count. Other
clients are processes, whose start counts.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from airflow.sdk import BaseOperator

from airflow_sftp_backend.operators import SFTPDeleteOperator, SFTPUploadOperator
from tests.support.airflow.context import context

from .rivals import OURS, RCLONE, SFTP, Work, backend
from .site import CIPHER, Site, site
from .syncing import CPU_TARGET, median, rows_beside_rclone, without_output
from .targets import Options, Row
from .workloads import Spent, WrongBytes, spent_by

Measured: TypeAlias = Callable[[Site, int], Spent]
"""Returns the time for a number of files."""
_CONN_ID: Final = "benchmark"
_SIZE: Final = 1024
_RCLONE_SYNC: Final = "rclone sync"


@dataclass(frozen=True)
class Comparison:
    """Define a piece of work, and the client to compare with."""

    title: str
    ours: Measured
    other: Measured
    target: float
    other_name: str


def measure(options: Options) -> Iterator[Row]:
    """Measure all rows.

    :param options: how much is measured
    """
    files = options.count(20_000)
    with site() as near:
        _set_connection(near)
        for work in COMPARISONS:
            title = f"{files:,} {work.title}"
            if options.includes(title):
                yield from _rows(work, title, near, files, options.rounds)


def _rows(work: Comparison, title: str, near: Site, files: int, rounds: int) -> Iterator[Row]:
    is_able = work.other_name != _RCLONE_SYNC or shutil.which("rclone") is not None
    ours, others = [], []
    work.ours(near, 1)
    for _ in range(rounds):
        ours.append(work.ours(near, files))
        if is_able:
            others.append(work.other(near, files))
    if work.other_name == _RCLONE_SYNC:
        yield from rows_beside_rclone(title, median(ours), median(others) if others else None)
    else:
        ratio = median(ours).processor / median(others).processor
        yield Row(f"{title}: CPU", f"x {work.other_name}", ratio, work.target)


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


def _cost(work: Callable[[], object]) -> Spent:
    with without_output():
        return spent_by(work)


def _run(operator: BaseOperator) -> None:
    operator.execute(context())


# -- deletions --------------------------------------------------------------------------------------------------------


def _delete_many(near: Site, count: int) -> Spent:
    with _files(near.there / "many", count) as paths, backend(near) as ours:
        # The connection counts, as for the operator.
        return _cost(lambda: ours.delete_many([str(path) for path in paths]))


def _delete_operator(arguments: Callable[[Path, list[Path]], dict[str, Any]]) -> Measured:
    def measured(near: Site, count: int) -> Spent:
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

    def measured(near: Site, count: int) -> Spent:
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

    def measured(near: Site, count: int) -> Spent:
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


COMPARISONS: Final = (
    Comparison(
        "files, delete operator with a directory",
        _delete_operator(lambda folder, _: {"path": f"{folder}/"}),
        _delete_many,
        1.3,
        "delete_many",
    ),
    Comparison(
        "files, delete operator with a pattern",
        _delete_operator(lambda folder, _: {"pattern": f"{folder}/*"}),
        _delete_many,
        1.3,
        "delete_many",
    ),
    Comparison(
        "files, delete operator with rows",
        _delete_operator(lambda _, paths: {"path": [{"path": str(path)} for path in paths]}),
        _delete_many,
        1.3,
        "delete_many",
    ),
    Comparison("files of 1 KiB up", _transfer(OURS.many_up, "up"), _transfer(SFTP.many_up, "up"), 1.0, "sftp"),
    Comparison(
        "files of 1 KiB down", _transfer(OURS.many_down, "down"), _transfer(SFTP.many_down, "down"), 0.7, "sftp"
    ),
    Comparison(
        "unchanged files, upload with skip_same",
        _unchanged(_upload_unchanged),
        _unchanged(_sync_with_rclone),
        CPU_TARGET,
        _RCLONE_SYNC,
    ),
)
