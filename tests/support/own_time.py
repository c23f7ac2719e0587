"""Measure the time that this process itself takes.

Waiting for a processor is not counted.
"""

from __future__ import annotations

import time
from pathlib import Path

_TASKS = Path("/proc/self/task")


class OwnTime:
    """Measure from the creation of the object.

    All time counts if the system does not report waiting for a processor.
    """

    def __init__(self) -> None:
        self._waited = _waited()
        self._start = time.monotonic()

    def seconds(self) -> float:
        """Return the seconds so far, without the time for processors.

        Threads that are ready wait for a processor in this time.

        :returns: seconds
        """
        wall = time.monotonic() - self._start
        lost = sum(waited - self._waited.get(thread, 0.0) for thread, waited in _waited().items())
        return max(0.0, wall - lost)


def _waited() -> dict[str, float]:
    """Read for each thread the seconds without a processor.

    The thread was ready to run in these seconds.
    """
    found: dict[str, float] = {}
    if not _TASKS.is_dir():
        return found
    for task in _TASKS.iterdir():
        try:
            found[task.name] = int((task / "schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError):  # the thread has ended, or the kernel keeps no such count
            continue
    return found
