"""Measure syncs of small files beside ``rclone sync`` and ``lftp mirror``.

``python -m benchmarks.syncing`` prints a table for each link: an initial sync and a rerun without changes, in both
directions, with the CPU of the client. Each client connects anew for each sync, and every byte is compared. A rerun
that transfers a file again is an error. The start of a process counts for the other clients only: a task has loaded the
package already.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table

from tests.support.servers import sshd_path

from .__main__ import LINKS
from .delay import delayed
from .rivals import LFTP, OURS, RCLONE, Rival, Work
from .site import CIPHER, Site, site, site_at
from .workloads import WrongBytes

DIRECTIONS: Final = ("up", "down")
CLIENTS: Final = (OURS, RCLONE, LFTP)
_FILES_PER_FOLDER: Final = 100
_AGE: Final = 3600

console = Console(highlight=False, soft_wrap=True, width=120)


class Cost(NamedTuple):
    """Hold what one sync takes.

    :ivar elapsed: seconds
    :ivar cpu: seconds of CPU of the client, without those of the server
    """

    elapsed: float
    cpu: float


@dataclass
class Times:
    """Hold the costs of a client: initial syncs and reruns."""

    initial: list[Cost] = field(default_factory=list)
    unchanged: list[Cost] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 2 if a program is missing."""
    options = _options().parse_args(arguments)
    if sshd_path() is None:
        print("OpenSSH's sshd is needed: install openssh-server", file=sys.stderr)
        return 2
    clients = [client for client in CLIENTS if client is OURS or which(client.name)]
    missing = [client.name for client in CLIENTS if client not in clients]
    for name in missing:
        print(f"NOT MEASURED: {name} is not installed", file=sys.stderr)
    with site() as near:
        source = near.here / "source"
        write_source(source, options.files, options.size)
        for link, round_trip in LINKS.items():
            if options.link is not None and link not in options.link:
                continue
            with delayed(near.port, round_trip) if round_trip else nullcontext(near.port) as port:
                for direction in DIRECTIONS:
                    times = {client.name: Times() for client in clients}
                    for round_number in range(options.rounds):
                        for index in range(len(clients)):
                            client = clients[(index + round_number) % len(clients)]  # nobody always comes first
                            measure(site_at(near, port), client, direction, source, times[client.name])
                    _show(link, direction, times, options)
    return 2 if missing else 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.syncing", description=__doc__)
    parser.add_argument("--files", type=int, default=2000, help="number of files (default 2000)")
    parser.add_argument("--size", type=int, default=4096, help="bytes of each file (default 4096)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each sync (default 3)")
    parser.add_argument("--link", action="append", choices=LINKS, help="measure this link only")
    return parser


def write_source(folder: Path, count: int, size: int) -> None:
    """Write files with random bytes and an old time, 100 per directory."""
    generator = random.Random(1)
    past = time.time() - _AGE
    for number in range(count):
        path = folder / f"folder-{number // _FILES_PER_FOLDER:03}" / f"file-{number:05}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(generator.randbytes(size))
        os.utime(path, (past, past))


def measure(place: Site, client: Rival, direction: str, source: Path, times: Times) -> None:
    """Time an initial sync and a rerun of one client.

    :raises WrongBytes: if the target differs from the source, or if the rerun wrote a file
    """
    work = client.work(f"sync_{direction}")
    assert work is not None
    with _target(place, direction) as target:
        local, remote = (source, target) if direction == "up" else (target, source)
        times.initial.append(_cost(work, place, local, remote))
        _compare(client.name, source, target)
        before = _inodes(target)
        times.unchanged.append(_cost(work, place, local, remote))
        if _inodes(target) != before:
            raise WrongBytes(f"{client.name}: the rerun without changes wrote files again")


def _cost(work: Work, place: Site, local: Path, remote: Path) -> Cost:
    with without_output():
        started, cpu_before = time.perf_counter(), _cpu_seconds()
        work(place, local, remote)
        return Cost(time.perf_counter() - started, _cpu_seconds() - cpu_before)


def _cpu_seconds() -> float:
    """Return the CPU time of this process and its ended programs."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


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


def _median(values: Iterable[float]) -> str:
    return f"{statistics.median(values):.2f}"


def _show(link: str, direction: str, times: dict[str, Times], options: argparse.Namespace) -> None:
    title = (
        f"{link}, {direction}: {options.files} files of {options.size} bytes, seconds ({CIPHER}, connecting included,"
        f" median of {options.rounds})"
    )
    table = Table(title=title)
    table.add_column("")
    for name in times:
        table.add_column(name, justify="right")
    for name, costs in (
        ("initial sync", [each.initial for each in times.values()]),
        ("rerun without changes", [each.unchanged for each in times.values()]),
    ):
        table.add_row(name, *(_median(cost.elapsed for cost in each) for each in costs))
        table.add_row(f"{name}, CPU", *(_median(cost.cpu for cost in each) for each in costs))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
