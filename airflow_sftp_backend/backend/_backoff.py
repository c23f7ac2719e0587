"""Count failed attempts, and choose the pauses between attempts."""

from __future__ import annotations

import random
from collections.abc import Callable

from .config import RetryPolicy


class Backoff:
    """Failed attempts of an action, and the pause before the next attempt.

    Waits for nothing: the caller decides whether another attempt is useful, and sleeps.

    :param policy: the number of attempts, and the lengths of pauses
    :param random: returns a random number from 0 to 1 for each pause
    """

    def __init__(self, policy: RetryPolicy, random: Callable[[], float] = random.random) -> None:
        self.failures = 0
        """Failed attempts so far, or since the last `reset`."""
        self._policy = policy
        self._random = random

    @property
    def exhausted(self) -> bool:
        """True after the last attempt of the policy."""
        return self.failures >= self._policy.max_attempts

    def fail(self) -> float:
        """Count a failed attempt.

        :returns: seconds until the next attempt. Beyond the attempts of the policy, pauses do not grow.
        """
        self.failures += 1
        return self._policy.pause(max(1, min(self.failures, self._policy.max_attempts - 1)), self._random())

    def reset(self) -> None:
        """Forget the failures, after progress."""
        self.failures = 0
