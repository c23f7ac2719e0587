"""Measure a watch of many new files, and of a large directory.

The events count as received when the trigger yields them, and Airflow's state store is replaced by one in memory that
builds the messages of Airflow's SDK.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Final, cast

from airflow_sftp_backend.triggers import SFTPNewFilesTrigger
from tests.support.airflow.context import AssetState
from tests.support.files import write_files
from tests.support.servers import OpenSSHServer

from .targets import ClientTable, Options, Row

ARRIVALS: Final = 5
"""Number of files that arrive one after another later."""
INTERVAL: Final = 10.0
"""Seconds between two polls."""


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


def measure(options: Options) -> Iterator[Row | ClientTable]:
    """Measure all rows.

    :param options: how much is measured
    """
    files = options.count(50_000)
    with OpenSSHServer() as server:
        folder = server.fresh()
        os.environ["AIRFLOW_CONN_WATCHING"] = json.dumps({
            "conn_type": "sftp_backend", "host": server.host, "port": server.port, "login": server.username,
            "extra": {"key_file": str(server.client_key), "known_host_keys": server.known_hosts,
                      "base_path": folder.base_path},
        })  # fmt: skip
        with redirect_stdout(StringIO()):  # the trigger logs a line for each event
            cost = asyncio.run(watch(folder.path / "inbox", files, ARRIVALS, INTERVAL * min(options.scale, 1)))
    counts: dict[str, list[float | None]] = {"events": [cost.events], "requests to the state store": [cost.requests]}
    yield ClientTable("watching", f"watch of {files:,} files", ["ours"], counts)
    yield from rows(cost, files)


def rows(cost: Cost, files: int) -> Iterator[Row]:
    """Return the rows of a watch.

    :param cost: the measured cost
    :param files: number of files at the start
    """
    title = f"watch of {files:,} files that arrive at once"
    yield Row(f"{title}: until Airflow has all", "s", cost.seconds, 60)
    yield Row(f"{title}: state written", "MB", cost.written / 1e6, 200 * files / 1e6)
    yield Row(f"file that arrives after {files:,} others: state written", "KiB", cost.written_per_arrival / 1024, 64)


async def watch(folder: Path, files: int, arrivals: int, poke_interval: float) -> Cost:
    """Measure a watch of a directory.

    :param folder: the directory on the server; its last component is the path to watch
    :param files: number of files to create before the start
    :param arrivals: number of files that arrive one after another later
    :param poke_interval: seconds between two polls
    :returns: the cost
    """
    write_files(folder, {f"orders-2026-{number:07}.csv": b"" for number in range(files)})
    store = CountingStore()
    trigger = SFTPNewFilesTrigger(f"{folder.name}/", "watching", poke_interval=poke_interval, stable_for=0)
    trigger.asset_state_store = cast("None", store)
    started, reported, at_start = time.monotonic(), 0, Cost(0.0, 0, 0, 0, 0.0)
    events = 0
    async for event in trigger.run():
        events += 1
        reported += len(cast("dict[str, list[object]]", event.payload)["files"])
        if reported == files:
            at_start = Cost(time.monotonic() - started, events, store.requests, store.written, 0.0)
        if reported == files + arrivals:
            break
        if reported >= files:
            write_files(folder, {f"new-{reported}": b""})
    return replace(at_start, written_per_arrival=(store.written - at_start.written) / max(arrivals, 1))
