"""Count the file content that a session transfers, and limit its rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

BURST_SECONDS: Final = 0.5
"""Seconds for which unused rate is kept.

Longer than the round trip of most servers: the bytes of a round trip are sent when its replies arrive.
"""
_MIN_BLOCK: Final = 4096
_BLOCKS_PER_SECOND: Final = 10


class TokenBucket:
    """Decide from a clock when the next bytes may be sent.

    A token bucket that may be in debt. The state is the time until which the bytes so far are paid for. In any
    interval, the bytes do not exceed those of the interval and of `BURST_SECONDS`, plus the last request.

    :param bytes_per_second: the rate
    :param clock: returns seconds
    """

    def __init__(self, bytes_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = bytes_per_second
        self._clock = clock
        self._paid_until = -math.inf

    def wait_time(self) -> float:
        """Return the seconds until the next request may be sent."""
        return max(0.0, self._paid_until - self._clock())

    def take(self, count: int) -> None:
        """Charge the bytes of a request that is sent now.

        :param count: bytes of the request or its full reply
        """
        self._paid_until = max(self._paid_until, self._clock() - BURST_SECONDS) + count / self._rate

    def give_back(self, count: int) -> None:
        """Credit charged bytes that were not transferred.

        The bytes after the end of a file are an example.

        :param count: bytes
        """
        self._paid_until -= count / self._rate


class TrafficMeter:
    """Count and limit the file content of a session.

    All connections and channels of the session share the limit.

    :param max_rate: bytes per second in both directions together; None for no limit
    :param pause: sleeps for some seconds, and returns early if the session is aborted
    :param clock: returns seconds
    """

    def __init__(
        self,
        max_rate: int | None = None,
        *,
        pause: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bytes_sent = 0
        """Acknowledged bytes of file content."""
        self.bytes_received = 0
        """Received bytes of file content."""
        self.max_block: float = math.inf
        """Most bytes of one read or write: at a low rate, large blocks would arrive in bursts."""
        self._limit: TokenBucket | None = None
        self._pause = pause
        if max_rate is not None:
            self._limit = TokenBucket(max_rate, clock)
            self.max_block = max(_MIN_BLOCK, max_rate // _BLOCKS_PER_SECOND)

    @property
    def is_exhausted(self) -> bool:
        """Tell whether the limit delays the next request."""
        return self._limit is not None and self._limit.wait_time() > 0

    def pause(self) -> None:
        """Sleep until the limit allows the next request.

        Returns early if the session is aborted.
        """
        if self._limit is not None:
            self._pause(self._limit.wait_time())

    def start(self, size: int) -> None:
        """Charge a request that is sent now.

        :param size: bytes of the request or its full reply
        """
        if self._limit is not None:
            self._limit.take(size)

    def finish(self, size: int, content: object, *, failed: bool) -> None:
        """Count the content of an answered request, and credit the rest.

        :param size: bytes of the request or its full reply
        :param content: the content of a reply to a read; None for a write
        :param failed: whether the server refused the request
        """
        transferred = 0 if failed else size
        if isinstance(content, memoryview):
            transferred = len(content)
            self.bytes_received += transferred
        else:
            self.bytes_sent += transferred
        if self._limit is not None:
            self._limit.give_back(size - transferred)
