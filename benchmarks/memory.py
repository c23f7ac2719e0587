"""Measure the memory that a large transfer adds.

It runs in a separate process.

Called as ``python -m benchmarks.memory up|down SITE_AS_JSON LOCAL REMOTE``; prints bytes.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil

from .rivals import backend
from .site import Site


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
    command = [sys.executable, "-m", "benchmarks.memory", direction, site.to_json(), str(local), str(remote)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def added_by(call: Callable[[], object]) -> int:
    """Return the bytes of memory that a call adds to this process."""
    gc.collect()
    process, over = psutil.Process(), threading.Event()
    idle = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        call()
    finally:
        over.set()
        watching.join()
    return peak - idle


def _main(direction: str, place: str, local: str, remote: str) -> None:
    with backend(Site.from_json(place)) as ours:
        ours.check_health()
        print(added_by(lambda: ours.upload(local, remote) if direction == "up" else ours.download(remote, local)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
