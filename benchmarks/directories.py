"""Measure listings, searches and waits in a large directory.

They are compared with paramiko's ``listdir_iter`` on the same sshd. All kinds of work run one after the other in each
round, and each ratio is the median over the rounds: the CPU that the same work takes varies with other load. CPU is
that of this process, memory that of a process of its own.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import paramiko

from airflow_sftp_backend import SFTPBackend
from airflow_sftp_backend._polling.conditions import FileCondition, PollResult, PollSnapshot, evaluate
from airflow_sftp_backend._polling.shared_connection import SharedConnection

from .memory import added_by
from .rivals import backend
from .site import Site, site
from .targets import Options, Row

SENSORS: Final = 200
MATCHES: Final = 10
"""Number of files that the search finds."""
_CONNECTION: Final = "directories"
_TICK: Final = 0.001
"""Seconds between two looks at the event loop's delay."""


def globs() -> list[str]:
    """Return the patterns of the sensors.

    They differ in the start, the end, or a part in the middle.
    """
    shapes = ("customer-{:03}-*", "*.{:03}.xml", "invoice-*-{:03}.txt", "*={:03}=*.json")
    return [shapes[number % len(shapes)].format(number) for number in range(SENSORS)]


def fill(folder: Path, files: int) -> None:
    """Create files with different times.

    The search finds some of them, and each sensor finds one.
    """
    folder.mkdir()
    names = [glob.replace("*", "x") for glob in globs()]
    names += [f"orders-2026-{number:07}.csv" for number in range(MATCHES)]
    names += [f"orders-2026-{number:07}.dat" for number in range(files - len(names))]
    for number, name in enumerate(names):
        path = folder / name
        path.touch()
        os.utime(path, (1_600_000_000 + 97 * number,) * 2)


class LoopDelay:
    """Measure the longest delay of an event loop that this process causes.

    A delay counts only as far as this process used the CPU, in any thread: other processes delay the loop too.
    """

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        """Watch until cancelled."""
        while True:
            started, used = time.perf_counter(), time.process_time()
            await asyncio.sleep(_TICK)
            late = time.perf_counter() - started - _TICK
            self.longest = max(self.longest, min(late, time.process_time() - used))


@dataclass
class Measured:
    """Hold the CPU seconds of each kind of work by round.

    The longest stall of the event loop in each round is held too.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    stalls: list[float] = field(default_factory=list)

    def add(self, kind: str, work: Callable[[], object]) -> None:
        """Run some work and add its CPU seconds."""
        gc.collect()
        started = time.process_time()
        work()
        self.seconds.setdefault(kind, []).append(time.process_time() - started)

    def ratio(self, kind: str) -> float:
        """Return the median ratio to ``listdir_iter`` in the same round."""
        pairs = zip(self.seconds[kind], self.seconds["paramiko"], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)


async def poll(connection: SharedConnection, conditions: Sequence[FileCondition]) -> None:
    """Poll for all conditions at once, as deferred sensors do."""
    polls = (connection.poll(condition, _decision(condition)) for condition in conditions)
    results = await asyncio.gather(*polls)
    assert all(len(result.files) == 1 for result in results)


async def longest_stall(connection: SharedConnection, conditions: Sequence[FileCondition]) -> float:
    """Return the longest delay of the event loop during a poll."""
    delay = LoopDelay()
    watching = asyncio.create_task(delay.watch())
    try:
        await poll(connection, conditions)
    finally:
        watching.cancel()
    return delay.longest


async def _acquire() -> SharedConnection:
    return SharedConnection.acquire(_CONNECTION)


def _decision(condition: FileCondition) -> Callable[[PollSnapshot], PollResult]:
    """Return the decision of a sensor that has made no observation."""
    return lambda snapshot: evaluate(condition, *snapshot, {}, 0.0)


def measure(options: Options) -> Iterator[Row]:
    """Measure all rows.

    :param options: how much is measured
    """
    files, many = (max(options.count(full), SENSORS + MATCHES) for full in (100_000, 1_000_000))
    found, listed = f'find("*.csv"), {MATCHES} of {{:,}} names', f"list_files, one by one, {files:,} names"
    polled = f"{SENSORS} sensors with {SENSORS} globs, {files:,} names"
    unit = "x listdir_iter"
    with site() as place:
        measured = measure_work(place, files, options.rounds)
        yield Row(f"{found.format(files)}: CPU", unit, measured.ratio("find"), 0.5)
        yield Row(f"{listed}: CPU", unit, measured.ratio("list"), 1.0)
        yield Row(f"{polled}: CPU of a poll", unit, measured.ratio("sensors"), 0.6)
        yield Row(f"{polled}: longest stall of the event loop", "s", max(measured.stalls), 0.02)
        yield Row(f"{listed}: memory added", "MiB", measure_memory(place, "list", files), 10)
        yield Row(f"{found.format(many)}: memory added", "MiB", measure_memory(place, "find", many), 10)


def measure_work(place: Site, files: int, rounds: int) -> Measured:
    """Measure all kinds of work in one directory.

    :param place: the server
    :param files: number of files
    :param rounds: number of rounds
    :returns: the measurements
    """
    fill(place.there / "inbox", files)
    conditions = [FileCondition(patterns=(f"inbox/{glob}",), min_files=2) for glob in globs()]
    measured = Measured()
    with backend(place) as ours, asyncio.Runner() as runner:
        theirs = ours.unwrap(paramiko.SFTPClient)
        base = place.there.as_posix().strip("/")
        os.environ[f"AIRFLOW_CONN_{_CONNECTION.upper()}"] = json.dumps({
            "conn_type": "sftp_backend", "host": place.host, "port": place.port, "login": place.username,
            "extra": {"key_file": str(place.client_key), "known_host_keys": place.known_hosts.read_text(),
                      "base_path": f"/{base}"},
        })  # fmt: skip
        inbox = f"{base}/inbox"
        connection = runner.run(_acquire())
        runner.run(poll(connection, conditions[:1]))  # connects, and imports what a poll needs
        for _ in range(rounds):
            measured.add("paramiko", lambda: sum(1 for _ in theirs.listdir_iter(f"/{inbox}")))
            measured.add("find", lambda: _find(ours, inbox))
            measured.add("list", lambda: _list(ours, inbox, files))
            measured.add("sensors", partial(runner.run, poll(connection, conditions)))
            measured.stalls.append(runner.run(longest_stall(connection, conditions)))
        connection.release()
    return measured


def _find(ours: SFTPBackend, inbox: str) -> None:
    assert len(ours.find(f"{inbox}/*.csv")) == MATCHES


def _list(ours: SFTPBackend, inbox: str, files: int) -> None:
    assert sum(1 for _ in ours.list_files(inbox)) == files


def measure_memory(place: Site, kind: str, files: int) -> float:
    """Measure the memory that a call adds.

    The call is made in a process of its own.

    :param place: the server
    :param kind: ``find`` or ``list``
    :param files: number of files in the directory, which is created if it does not exist
    :returns: MiB
    """
    folder = place.there / f"{files}"
    if not folder.exists():
        fill(folder, files)
    command = [sys.executable, "-m", "benchmarks.directories", kind, place.to_json()]
    command += [folder.as_posix().strip("/"), str(files)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.splitlines()[-1])  # after lines of the log


def _added(kind: str, place: Site, folder: str, files: int) -> float:
    with backend(place) as ours:
        ours.check_health()
        ours.find("no-such-directory/*")
        return added_by(lambda: _find(ours, folder) if kind == "find" else _list(ours, folder, files)) / 2**20


def _run(kind: str, place: str, folder: str, files: str) -> None:
    print(_added(kind, Site.from_json(place), folder, int(files)))


if __name__ == "__main__":
    _run(*sys.argv[1:])
