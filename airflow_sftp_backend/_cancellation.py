"""Stop a task that Airflow kills: which blocks may be interrupted, and what finishes first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

_KILL_GRACE_SECONDS: Final = 1.5
"""Seconds a task that is killed has to end its conversation with the server."""


class TaskKilled(BaseException):
    """The task was killed in the middle of its work.

    Not an Exception, as KeyboardInterrupt is not: no handler may take it for a failure and retry.
    """


class Abortable(Protocol):
    """An object that talks to a server, such as the hook."""

    def abort_within(self, seconds: float) -> None:
        """End the conversation with the server within a time. Takes no lock.

        :param seconds: the time.
        """


class CancellableTask:
    """Stop a task at once when Airflow kills it; a mixin of operators and sensors."""

    _is_cancellable = False
    _killed = False
    _abortable: Abortable | None = None

    @contextmanager
    def cancellable(self, abortable: Abortable) -> Iterator[None]:
        """Let `on_kill` interrupt a block: the hook's requests to a key vault and to the server.

        :param abortable: the hook.
        :raises TaskKilled: in the block, when the task is killed.
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
        """Finish a block within `cancellable` before the task is interrupted, see `shield_from_kill`."""
        was_cancellable, self._is_cancellable = self._is_cancellable, False
        try:
            yield
        finally:
            self._is_cancellable = was_cancellable
            if was_cancellable:
                self._raise_if_killed()

    def on_kill(self) -> None:
        """Interrupt the work, within 1.5 s even if the server is silent.

        In this time the task leaves what the next attempt can resume, removes other partial files, and disconnects.
        """
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
    """The task of this thread: signals are handled in the task's thread only."""

    task: CancellableTask | None = None


_current: Final = _CurrentTask()


@contextmanager
def shield_from_kill() -> Iterator[None]:
    """Delay the interruption of the thread's task until this block ends.

    For requests to Airflow: half a message would stay on its socket.
    """
    task = _current.task
    if task is None:
        yield
    else:
        with task.shielded():
            yield
