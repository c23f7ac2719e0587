"""Time that this process itself takes: what it waits for a processor, because others use them all, is not counted."""

from __future__ import annotations

import time
from pathlib import Path

_TASKS = Path("/proc/self/task")


class OwnTime:
    """Measures from when it is made; where the system does not tell who waits for a processor, all time counts."""

    def __init__(self) -> None:
        self._waited = _waited()
        self._start = time.monotonic()

    def seconds(self) -> float:
        """Measure the seconds so far, less those in which threads of this process were ready and did not run.

        :returns: seconds
        """
        wall = time.monotonic() - self._start
        lost = sum(waited - self._waited.get(thread, 0.0) for thread, waited in _waited().items())
        return max(0.0, wall - lost)


def _waited() -> dict[str, float]:
    """Read for each thread how many seconds it has been ready and had no processor."""
    found: dict[str, float] = {}
    if not _TASKS.is_dir():
        return found
    for task in _TASKS.iterdir():
        try:
            found[task.name] = int((task / "schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError):  # the thread has ended, or the kernel keeps no such count
            continue
    return found
