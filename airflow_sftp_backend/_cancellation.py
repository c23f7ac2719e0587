"""A task that is told to end: where its work may be broken off, and what is ended first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

_LAST_MOMENT: Final = 1.5
"""Seconds a task that is killed has to end its conversation with the server."""


class TaskKilled(BaseException):
    """The task was told to stop in the middle of its work.

    No Exception, as KeyboardInterrupt is none: nothing on the way may take it for a failure and try again.
    """


class Ending(Protocol):
    """What talks to a server, such as the hook."""

    def end_within(self, seconds: float) -> None:
        """Ends its conversation in that time. Takes no lock."""


class Killable:
    """Lets a task end at once when Airflow tells it to; mixed into operators and sensors."""

    _interruptible = False
    _killed = False
    _ending: Ending | None = None

    @contextmanager
    def interruptible(self, hook: Ending) -> Iterator[None]:
        """A block that `on_kill` may interrupt: the hook's talk to a key vault and to the server."""
        try:
            self._ending, _here.task = hook, self
            self._interruptible = True
            self._end_if_killed()
            yield
        finally:
            self._interruptible = self._killed = False
            self._ending = _here.task = None

    @contextmanager
    def ended_first(self) -> Iterator[None]:
        """A block within it that is ended before the task is, see `undisturbed`."""
        before, self._interruptible = self._interruptible, False
        try:
            yield
        finally:
            self._interruptible = before
            if before:
                self._end_if_killed()

    def on_kill(self) -> None:
        """Interrupts the work under way. It has a moment to leave what the next try can go on with, to remove what it
        has half written otherwise, and to close the connection, also where the server says nothing any more."""
        if self._killed:  # a second signal would break off what the first one began
            return
        self._killed = True
        if self._ending is not None:
            self._ending.end_within(_LAST_MOMENT)
        if self._interruptible:
            self._end_if_killed()

    def _end_if_killed(self) -> None:
        if self._killed:
            raise TaskKilled("the task was killed")


class _Here(threading.local):
    """What runs in this thread: signals are handled in one, the task's."""

    task: Killable | None = None


_here: Final = _Here()


@contextmanager
def undisturbed() -> Iterator[None]:
    """A block in which Airflow is spoken to, by whoever: the interruption of the task that runs in this thread waits
    for its end, as half a message would stay."""
    task = _here.task
    if task is None:
        yield
    else:
        with task.ended_first():
            yield
