"""Run the transfers of objects side by side, in threads.

Requests to Airflow are made by the thread of the task only: Airflow's supervisor answers one request at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Final, Generic, TypeVar

T = TypeVar("T")

MAX_WORKERS: Final = 8
"""Objects in transit at once: each needs a few MiB."""
_CLEANUP_SECONDS: Final = 1.5
"""Seconds for interrupted workers to remove their temporary objects."""
_POLL_SECONDS: Final = 0.1


class WorkersStopped(BaseException):
    """Report in a worker that the task was killed or has failed.

    Like `TaskKilled`, the class is not an Exception, so that no handler takes it for the failure of a file.
    """


class WorkerThreads(Generic[T]):
    """Run functions in threads and return their results in order.

    :param functions: the functions; each gets this object, for `call_in_task` and `check`
    """

    def __init__(self, functions: Sequence[Callable[[WorkerThreads[T]], T]]) -> None:
        self._functions = functions
        self._remaining: Iterator[int] = iter(range(len(functions)))
        self._results: dict[int, T] = {}
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        """Calls for the thread of the task: of `call_in_task`, and those that deliver results and errors."""
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def run(self) -> list[T]:
        """Run all functions.

        :returns: their results
        :raises BaseException: the first exception of a function, after the other workers have stopped
        """
        threads = [
            # A daemon does not keep a killed process alive while its store does not answer.
            threading.Thread(target=self._work, name=f"transfer of objects {number}", daemon=True)
            for number in range(min(MAX_WORKERS, len(self._functions)))
        ]
        started: list[threading.Thread] = []
        try:
            for thread in threads:
                started.append(thread)
                thread.start()
            while len(self._results) < len(self._functions):
                call = self._calls.get()
                call()
        finally:
            self._stopped.set()
            end = time.monotonic() + _CLEANUP_SECONDS
            for thread in filter(threading.Thread.is_alive, started):
                thread.join(max(0.0, end - time.monotonic()))
        return [self._results[index] for index in range(len(self._functions))]

    def call_in_task(self, function: Callable[[], object]) -> None:
        """Let the thread of the task call a function, and wait.

        :param function: the function
        :raises WorkersStopped: if the workers are stopped meanwhile
        """
        future: Future[None] = Future()

        def call() -> None:
            try:
                function()
            except BaseException as error:
                future.set_exception(error)
                raise
            future.set_result(None)

        self._calls.put(call)
        while not future.done():
            self.check()
            try:
                future.result(_POLL_SECONDS)
            except TimeoutError:
                continue
        future.result()

    def check(self) -> None:
        """Raise an exception if the workers are stopped.

        :raises WorkersStopped: if the workers are stopped
        """
        if self._stopped.is_set():
            raise WorkersStopped

    def _work(self) -> None:
        """Run functions in a worker thread until none remains."""
        while not self._stopped.is_set():
            with self._lock:
                index = next(self._remaining, None)
            if index is None:
                return
            try:
                result = self._functions[index](self)
            except WorkersStopped:
                return
            except BaseException as error:  # noqa: BLE001 - raised in the thread of the task
                self._calls.put(partial(_raise, error))
                return
            self._calls.put(partial(self._results.__setitem__, index, result))


def _raise(error: BaseException) -> None:
    raise error
