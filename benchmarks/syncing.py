"""Measure syncs of small files beside ``rclone sync`` and ``lftp mirror``.

An initial sync and a rerun without changes, in both directions, with the CPU of the client. Each client connects anew
for each sync, and every byte is compared. A rerun that transfers a file again is an error. The start of a process
counts for the other clients only: a task has loaded the package already.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Final

from .rivals import LFTP, OURS, RCLONE, Rival, Work
from .site import Site, site
from .targets import ClientTable, Options, Row
from .workloads import Spent, WrongBytes, spent_by

CPU_TARGET: Final = 1.5
WALL_TARGET: Final = 1.0
"""Most CPU and most time of a rerun, as a multiple of ``rclone sync``."""
DIRECTIONS: Final = ("up", "down")
CLIENTS: Final = (OURS, RCLONE, LFTP)
_SIZE: Final = 1024
_FILES_PER_FOLDER: Final = 100
_AGE: Final = 3600


def measure(options: Options) -> Iterator[Row | ClientTable]:
    """Measure all rows.

    :param options: how much is measured
    """
    files = options.count(20_000)
    clients = [client for client in CLIENTS if client is OURS or which(client.name)]
    table: dict[str, list[float | None]] = {}
    with site() as place:
        source, first = place.here / "source", place.here / "first"
        write_source(source, files, _SIZE)
        write_source(first, 1, _SIZE)
        sync_twice(place, OURS, "up", first)  # loads what a task has loaded already
        for direction in DIRECTIONS:
            spent: dict[str, list[tuple[Spent, Spent]]] = {client.name: [] for client in clients}
            for number in range(options.rounds):
                for index in range(len(clients)):
                    client = clients[(index + number) % len(clients)]  # nobody always comes first
                    spent[client.name].append(sync_twice(place, client, direction, source))
            initial, rerun = ([median([pair[at] for pair in pairs]) for pairs in spent.values()] for at in (0, 1))
            for name, costs in (("initial sync", initial), ("rerun", rerun)):
                table[f"{name} {direction}"] = [cost.seconds for cost in costs]
                table[f"{name} {direction}, CPU"] = [cost.processor for cost in costs]
            reruns = dict(zip(spent, rerun, strict=True))
            title = f"{files:,} unchanged files, sync {direction}"
            yield from rows_beside_rclone(title, reruns[OURS.name], reruns.get(RCLONE.name))
    title = f"seconds of syncs of {files:,} files of 1 KiB, loopback, median of {options.rounds} rounds"
    yield ClientTable("syncs", title, [client.name for client in clients], table)


def rows_beside_rclone(title: str, ours: Spent, rclone: Spent | None) -> Iterator[Row]:
    """Return the rows for a piece of work without changes.

    :param title: what was measured
    :param ours: time of this package
    :param rclone: time of ``rclone sync``; None if it is not installed
    """
    unit = "x rclone sync"
    cpu, seconds = (ours.processor / rclone.processor, ours.seconds / rclone.seconds) if rclone else (None, None)
    yield Row(f"{title}: CPU", unit, cpu, CPU_TARGET)
    yield Row(f"{title}: time", unit, seconds, WALL_TARGET)


def median(costs: Sequence[Spent]) -> Spent:
    """Return the medians of elapsed time and of CPU."""
    return Spent(statistics.median(cost.seconds for cost in costs), statistics.median(cost.processor for cost in costs))


def write_source(folder: Path, count: int, size: int) -> None:
    """Write files with random bytes and an old time, 100 per directory."""
    generator = random.Random(1)
    past = time.time() - _AGE
    for number in range(count):
        path = folder / f"folder-{number // _FILES_PER_FOLDER:03}" / f"file-{number:05}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(generator.randbytes(size))
        os.utime(path, (past, past))


def sync_twice(place: Site, client: Rival, direction: str, source: Path) -> tuple[Spent, Spent]:
    """Return the times of an initial sync and of a rerun.

    :raises WrongBytes: if the target differs from the source, or if the rerun wrote a file
    """
    work = client.work(f"sync_{direction}")
    assert work is not None
    with _target(place, direction) as target:
        local, remote = (source, target) if direction == "up" else (target, source)
        initial = _spent(work, place, local, remote)
        _compare(client.name, source, target)
        before = _inodes(target)
        rerun = _spent(work, place, local, remote)
        if _inodes(target) != before:
            raise WrongBytes(f"{client.name}: the rerun without changes wrote files again")
    return initial, rerun


def _spent(work: Work, place: Site, local: Path, remote: Path) -> Spent:
    with without_output():
        return spent_by(lambda: work(place, local, remote))


@contextmanager
def without_output() -> Iterator[None]:
    """Discard standard output, also that of programs.

    A task writes a line for each file.
    """
    sys.stdout.flush()
    saved, discarded = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(discarded, 1)
        yield
        sys.stdout.flush()
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(discarded)


@contextmanager
def _target(place: Site, direction: str) -> Iterator[Path]:
    """Create a target directory, and remove it at the end."""
    target = (place.there if direction == "up" else place.here) / "synced"
    target.mkdir()
    try:
        yield target
    finally:
        shutil.rmtree(target)


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def _compare(name: str, source: Path, target: Path) -> None:
    sent, arrived = _files(source), _files(target)
    if sent.keys() != arrived.keys():
        raise WrongBytes(f"{name}: {target} has other files than {source}")
    for path, file in sent.items():
        if file.read_bytes() != arrived[path].read_bytes():
            raise WrongBytes(f"{name}: {path} differs")


def _inodes(folder: Path) -> dict[str, tuple[int, int]]:
    return {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in _files(folder).items()}
