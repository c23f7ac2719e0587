"""Cancel the work of a task that Airflow kills.

A kill ends a `cancellable` block at once, but a `shielded` block within is completed first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

_KILL_GRACE_SECONDS: Final = 1.5
"""Seconds in which a killed task must end its conversation with the server."""


class TaskKilled(BaseException):
    """Report that the task was killed during its work.

    Like KeyboardInterrupt, the class is not an Exception, so that no handler treats a kill as a failure and retries.
    """


class Abortable(Protocol):
    """Abort a conversation with a server; the hook is an example."""

    def abort_within(self, seconds: float) -> None:
        """Abort the conversation after a grace period, without taking a lock.

        :param seconds: time for the calls in progress to clean up
        """


class CancellableTask:
    """Cancel the work of a task when Airflow kills the task.

    Mixin of operators and sensors.
    """

    _is_cancellable = False
    _killed = False
    _abortable: Abortable | None = None

    @contextmanager
    def cancellable(self, abortable: Abortable) -> Iterator[None]:
        """Let `on_kill` cancel a block.

        The block sends requests to a key vault and to the server.

        :param abortable: the object to abort
        :raises TaskKilled: if the task is killed in the block
        """
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
        """Delay a cancellation until a block within `cancellable` ends.

        See `shield_from_kill`.
        """
        was_cancellable, self._is_cancellable = self._is_cancellable, False
        try:
            yield
        finally:
            self._is_cancellable = was_cancellable
            if was_cancellable:
                self._raise_if_killed()

    def on_kill(self) -> None:
        """Cancel the work within 1.5 s, even if the server is silent.

        In this time the task keeps partial files that the next attempt can resume, removes others, and disconnects.

        :raises TaskKilled: if a `cancellable` block runs, outside its `shielded` blocks
        """
        if self._killed:  # a second signal must not cancel the cleanup of the first one
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
    """Hold the cancellable task of this thread.

    Each thread has its own, because Python runs signal handlers in the main thread only.
    """

    task: CancellableTask | None = None


_current: Final = _CurrentTask()


@contextmanager
def shield_from_kill() -> Iterator[None]:
    """Delay the cancellation of the thread's task until the block ends.

    Use the block for requests to Airflow, so that no half-written message stays on Airflow's socket.
    """
    task = _current.task
    if task is None:
        yield
    else:
        with task.shielded():
            yield
