"""Measure the memory that a large transfer adds.

It runs in a separate process.

Called as ``python -m benchmarks.memory up|down SITE_AS_JSON LOCAL REMOTE``; prints bytes.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Final

import psutil

from .rivals import backend
from .site import Site

LIMIT: Final = 64 << 20
"""Bytes a transfer may add."""


def measure(site: Site, size: int) -> dict[str, int]:
    """Bytes added by a transfer of ``size`` bytes, each way."""
    source, there, back = site.here / "watched", site.there / "watched", site.here / "watched-back"
    with source.open("wb") as file:
        file.truncate(size)
    added = {"up": _in_a_process("up", site, source, there)}
    source.unlink()
    added["down"] = _in_a_process("down", site, back, there)
    assert back.stat().st_size == there.stat().st_size == size
    back.unlink()
    there.unlink()
    return added


def _in_a_process(direction: str, site: Site, local: Path, remote: Path) -> int:
    fields = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(site).items()}
    command = [sys.executable, "-m", "benchmarks.memory", direction, json.dumps(fields), str(local), str(remote)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _added(direction: str, site: Site, local: Path, remote: Path) -> int:
    with backend(site) as ours:
        ours.check_health()
        gc.collect()
        process = psutil.Process()
        idle = peak = process.memory_info().rss
        over = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not over.wait(0.005):
                peak = max(peak, process.memory_info().rss)

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            if direction == "up":
                ours.upload(local, os.fspath(remote))
            else:
                ours.download(os.fspath(remote), local)
        finally:
            over.set()
            watching.join()
    return peak - idle


def _main(direction: str, fields: str, local: str, remote: str) -> None:
    given = json.loads(fields)
    for name in ("client_key", "known_hosts", "here", "there"):
        given[name] = Path(given[name])
    print(_added(direction, Site(**given), Path(local), Path(remote)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
