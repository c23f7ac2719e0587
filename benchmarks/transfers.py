"""One large file, up and down: every client in turn, round after round, the content compared each time."""

from __future__ import annotations

import filecmp
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from .rivals import OURS, RIVALS, SFTP, Transfer
from .site import Site

Direction = Literal["up", "down"]
TARGETS: Final[dict[Direction, float]] = {"up": 1.0, "down": 0.8}
"""Our speed as a multiple of the sftp command's, at least."""


@dataclass
class Result:
    """Seconds of each round, by client."""

    direction: Direction
    size: int
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Seconds."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str) -> float:
        """A client's speed as a multiple of the sftp command's."""
        return self.median(SFTP.name) / self.median(name)

    @property
    def met(self) -> bool:
        """True if we are as fast as we mean to be."""
        return self.ratio(OURS.name) >= TARGETS[self.direction]


class WrongBytes(Exception):
    """A client did not transfer what it was given."""


def measure(site: Site, size: int, rounds: int) -> Sequence[Result]:
    """``size`` bytes up and down, ``rounds`` times. Raises WrongBytes."""
    source = site.here / "source"
    with source.open("wb") as file:
        for _ in range(0, size, 1 << 20):
            file.write(os.urandom(1 << 20))
    there = site.there / "there"
    results = {direction: Result(direction, size) for direction in TARGETS}
    for number in range(rounds):
        for at in range(len(RIVALS)):
            rival = RIVALS[(at + number) % len(RIVALS)]  # nobody always comes first
            there.unlink(missing_ok=True)
            results["up"].seconds.setdefault(rival.name, []).append(_timed(rival.up, site, source, there))
            _compare(rival.name, source, there)
            back = site.here / "back"
            results["down"].seconds.setdefault(rival.name, []).append(_timed(rival.down, site, back, there))
            _compare(rival.name, source, back)
            back.unlink()
    return list(results.values())


def _timed(transfer: Transfer, site: Site, local: Path, remote: Path) -> float:
    began = time.perf_counter()
    transfer(site, local, remote)
    return time.perf_counter() - began


def _compare(name: str, sent: Path, arrived: Path) -> None:
    if not filecmp.cmp(sent, arrived, shallow=False):
        raise WrongBytes(f"{name}: {arrived} is not {sent}")
