"""How far a transfer is, told at a human pace."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

PACE: Final = 10.0
"""Seconds between two lines."""


class Log(Protocol):
    """Where lines go: Airflow's task log, or any logger."""

    def info(self, message: str, /) -> object:
        """One line."""


class ProgressLog:
    """Called with the bytes gained, it logs a line now and then: bytes, share, rate and time left.

    ``total`` in bytes, None if unknown.

    ``clock`` gives seconds.
    """

    def __init__(self, log: Log, total: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.done = 0
        """Bytes so far."""
        self._log = log
        self._total = total
        self._clock = clock
        self._started = self._last = clock()

    def __call__(self, gained: int) -> None:
        """Notes ``gained`` bytes; fewer than none where a transfer had to go back."""
        self.done += gained
        now = self._clock()
        if now - self._last >= PACE:
            self._last = now
            self._log.info(self._line(now - self._started))

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    def _line(self, elapsed: float) -> str:
        rate = self.done / elapsed
        if not self._total:
            return f"{quantity(self.done)} so far, {quantity(rate)}/s"
        left = duration((self._total - self.done) / rate) if rate > 0 else "unknown time"
        share = min(100, 100 * self.done // self._total)
        return f"{quantity(self.done)} of {quantity(self._total)} ({share}%), {quantity(rate)}/s, {left} left"


def quantity(count: float) -> str:
    """Bytes as people say them: ``512 B``, ``4.0 KiB``, ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def counted(files: int) -> str:
    """``1 file``, ``4 files``."""
    return f"{files} file" if files == 1 else f"{files} files"


def duration(seconds: float) -> str:
    """A time as people say it: ``0.4 s``, ``45 s``, ``2 min 5 s``, ``3 h 20 min``."""
    whole = max(0, round(seconds))
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
