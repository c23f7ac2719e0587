"""A task that is told to end: where its work may be broken off, and what is ended first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

_KILL_GRACE_SECONDS: Final = 1.5
"""Seconds a task that is killed has to end its conversation with the server."""


class TaskKilled(BaseException):
    """The task was told to stop in the middle of its work.

    No Exception, as KeyboardInterrupt is none: nothing on the way may take it for a failure and try again.
    """


class Abortable(Protocol):
    """What talks to a server, such as the hook."""

    def abort_within(self, seconds: float) -> None:
        """Ends its conversation in that time. Takes no lock."""


class CancellableTask:
    """Lets a task end at once when Airflow tells it to; mixed into operators and sensors."""

    _is_cancellable = False
    _killed = False
    _abortable: Abortable | None = None

    @contextmanager
    def cancellable(self, abortable: Abortable) -> Iterator[None]:
        """A block that `on_kill` may interrupt: the hook's talk to a key vault and to the server."""
        try:
            self._abortable, _current.task = abortable, self
            self._is_cancellable = True
            self._raise_if_killed()
            yield
        finally:
            self._is_cancellable = self._killed = False
            self._abortable = _current.task = None

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """A block within it that is ended before the task is, see `shield_from_kill`."""
        was_cancellable, self._is_cancellable = self._is_cancellable, False
        try:
            yield
        finally:
            self._is_cancellable = was_cancellable
            if was_cancellable:
                self._raise_if_killed()

    def on_kill(self) -> None:
        """Interrupts the work under way. It has a moment to leave what the next try can go on with, to remove what it
        has half written otherwise, and to close the connection, also where the server says nothing any more."""
        if self._killed:  # a second signal would break off what the first one began
            return
        self._killed = True
        if self._abortable is not None:
            self._abortable.abort_within(_KILL_GRACE_SECONDS)
        if self._is_cancellable:
            self._raise_if_killed()

    def _raise_if_killed(self) -> None:
        if self._killed:
            raise TaskKilled("the task was killed")


class _CurrentTask(threading.local):
    """What runs in this thread: signals are handled in one, the task's."""

    task: CancellableTask | None = None


_current: Final = _CurrentTask()


@contextmanager
def shield_from_kill() -> Iterator[None]:
    """A block in which Airflow is spoken to, by whoever: the interruption of the task that runs in this thread waits
    for its end, as half a message would stay."""
    task = _current.task
    if task is None:
        yield
    else:
        with task.shielded():
            yield
