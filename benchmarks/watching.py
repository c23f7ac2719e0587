"""Measure a watch of many new files, and of a large directory.

``make watching`` prints counts, and exits with 0 if the targets are met. The events count as received when the trigger
yields them, and Airflow's state store is replaced by one in memory that builds the messages of Airflow's SDK.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Final, cast

from rich.console import Console
from rich.table import Table

from airflow_sftp_backend.triggers import SFTPNewFilesTrigger
from tests.support.airflow.context import AssetState
from tests.support.files import write_files
from tests.support.servers import OpenSSHServer

MAX_SECONDS: Final = 60.0
"""Seconds from the start of a watch until all files that exist are reported."""
MAX_WRITTEN: Final = 200
"""Bytes of state for each file that arrives with many others."""
MAX_WRITTEN_PER_ARRIVAL: Final = 64 << 10
"""Bytes of state for a file that arrives alone in a large directory."""

console = Console(highlight=False, soft_wrap=True, width=120)


class CountingStore(AssetState):
    """Count what is written to Airflow's state store."""

    def __init__(self) -> None:
        super().__init__()
        self.written = self.requests = 0

    async def aget(self, key: str) -> object:
        """Return a value."""
        self.requests += 1
        return await super().aget(key)

    async def aset(self, key: str, value: object) -> None:
        """Write a value."""
        self.requests += 1
        await super().aset(key, value)
        self.written += len(self.values[key])

    async def adelete(self, key: str) -> None:
        """Remove a value."""
        self.requests += 1
        await super().adelete(key)


@dataclass(frozen=True)
class Cost:
    """Describe what a watch needed.

    :ivar seconds: until all files at the start were reported
    :ivar events: number of events for these files
    :ivar requests: requests to the state store for these files
    :ivar written: bytes of state for these files
    :ivar written_per_arrival: bytes of state for a file that arrived alone
    """

    seconds: float
    events: int
    requests: int
    written: int
    written_per_arrival: float


async def measure(folder: Path, files: int, arrivals: int, poke_interval: float) -> Cost:
    """Measure a watch of a directory.

    :param folder: the directory on the server; its last component is the path to watch
    :param files: number of files to create before the start
    :param arrivals: number of files that arrive one after another later
    :param poke_interval: seconds between two polls
    :returns: the cost
    """
    write_files(folder, {f"orders-2026-{number:07}.csv": b"" for number in range(files)})
    store = CountingStore()
    watch = SFTPNewFilesTrigger(f"{folder.name}/", "watching", poke_interval=poke_interval, stable_for=0)
    watch.asset_state_store = cast("None", store)
    started, reported, at_start = time.monotonic(), 0, Cost(0.0, 0, 0, 0, 0.0)
    events = 0
    async for event in watch.run():
        events += 1
        reported += len(cast("dict[str, list[object]]", event.payload)["files"])
        if reported == files:
            at_start = Cost(time.monotonic() - started, events, store.requests, store.written, 0.0)
        if reported == files + arrivals:
            break
        if reported >= files:
            write_files(folder, {f"new-{reported}": b""})
    return replace(at_start, written_per_arrival=(store.written - at_start.written) / max(arrivals, 1))


def is_met(cost: Cost, files: int) -> bool:
    """Tell whether the targets are met.

    :param cost: the measured cost
    :param files: number of files at the start
    :returns: True if no target is missed
    """
    return (
        cost.seconds < MAX_SECONDS
        and cost.written <= MAX_WRITTEN * files
        and cost.written_per_arrival <= MAX_WRITTEN_PER_ARRIVAL
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print.

    :param arguments: command line arguments; None for those of the process
    :returns: the exit status
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watching", description=__doc__)
    parser.add_argument("--files", type=int, default=50_000, help="how many files exist at the start (default 50000)")
    parser.add_argument("--arrivals", type=int, default=5, help="how many files arrive later (default 5)")
    parser.add_argument("--interval", type=float, default=10, help="seconds between two polls (default 10)")
    options = parser.parse_args(arguments)
    with OpenSSHServer() as server:
        folder = server.fresh()
        os.environ["AIRFLOW_CONN_WATCHING"] = json.dumps({
            "conn_type": "sftp_backend", "host": server.host, "port": server.port, "login": server.username,
            "extra": {"key_file": str(server.client_key), "known_host_keys": server.known_hosts,
                      "base_path": folder.base_path},
        })  # fmt: skip
        with redirect_stdout(StringIO()):  # the trigger logs a line for each event
            cost = asyncio.run(measure(folder.path / "inbox", options.files, options.arrivals, options.interval))
    table = Table("", "", "target", title=f"a watch of {options.files:,} files, a poll every {options.interval:g} s")
    table.add_row("seconds until all were reported", f"{cost.seconds:.1f}", f"{MAX_SECONDS:g}")
    table.add_row("events", f"{cost.events}", "")
    table.add_row("requests to the state store", f"{cost.requests}", "")
    table.add_row("bytes of state in all", f"{cost.written:,}", f"{MAX_WRITTEN * options.files:,}")
    table.add_row("bytes of state per later file", f"{cost.written_per_arrival:,.0f}", f"{MAX_WRITTEN_PER_ARRIVAL:,}")
    console.print(table)
    return 0 if is_met(cost, options.files) else 1


if __name__ == "__main__":
    sys.exit(main())
