"""Relay connections, and cut, stall and slow them at random moments."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from typing import Final

from tests.support.servers.relay import Relay, Sender

STALLS: Final = (0.5, 12.0)
"""Shortest and longest stall in seconds: some are longer than the clients' ``io_timeout``, some are not."""
SLOW_SECONDS: Final = 5.0
"""Seconds for which a slowed direction of a connection stays slow."""
SLOW_RATE: Final = 1 << 20
"""Bytes per second of a slowed direction."""


class FaultyRelay(Relay):
    """Cause each due fault on the next connection with traffic.

    ``faults`` counts the faults by kind.

    :param target_port: the port of the server
    :param seconds_between: mean time between two faults
    :param seed: seed of the random choices
    """

    def __init__(self, target_port: int, seconds_between: float, seed: int) -> None:
        self.faults: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._mean = seconds_between
        self._choosing = threading.Lock()
        self._next_at = time.monotonic() + seconds_between
        self._slow_until: dict[int, float] = {}
        super().__init__(target_port)

    def passed_on(self, piece: bytes, sender: Sender) -> tuple[bytes, bool]:
        """Pass bytes on, with a fault if one is due."""
        fault, part, stall = self._next_fault()
        if fault == "cut":
            return piece[: int(part * len(piece))], False
        if fault == "stall":
            time.sleep(stall)
        elif fault == "slow":
            self._slow_until[threading.get_ident()] = time.monotonic() + SLOW_SECONDS
        if self._slow_until.get(threading.get_ident(), 0.0) > time.monotonic():
            time.sleep(len(piece) / SLOW_RATE)
        return piece, True

    def _next_fault(self) -> tuple[str, float, float]:
        """Return the due fault, and its bytes or seconds."""
        with self._choosing:
            now = time.monotonic()
            if now < self._next_at:
                return "", 0.0, 0.0
            self._next_at = now + self._random.expovariate(1 / self._mean)
            fault = self._random.choices(("cut", "stall", "slow"), (3, 2, 2))[0]
            self.faults[fault] += 1
            return fault, self._random.random(), self._random.uniform(*STALLS)
