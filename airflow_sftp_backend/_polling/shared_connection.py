"""Share one SSH connection among all deferred waits on a connection id.

All waits that are due are polled in one batch. A batch lists each directory once, and requests all plain paths in one
round trip.

If the server hangs or disconnects during a batch, its directories are polled one after the other. Each directory whose
poll loses the connection again gets a dedicated connection, so that the waits on other directories continue.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar, cast

from airflow_sftp_backend._metrics import ConnectionMetrics
from airflow_sftp_backend.backend import BackendUnavailable, RetryPolicy, SFTPBackendError
from airflow_sftp_backend.backend._backoff import Backoff
from airflow_sftp_backend.backend.errors import escaped
from airflow_sftp_backend.hooks.sftp import SFTPBackendHook
from airflow_sftp_backend.version_compat import triggerer_metrics

from .conditions import FileCondition, PollSnapshot, poll_many

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import BackendConfig, SFTPBackend

log = logging.getLogger(__name__)

_BATCH_WINDOW = 0.05
"""Seconds for which a batch collects requests before its start."""
_RETRY = RetryPolicy(max_attempts=sys.maxsize, backoff_base=2.0, backoff_max=300.0, jitter=0)
"""Upper limits of the pauses between attempts to reach the server."""

_MAX_LOST_CONNECTIONS = 3
"""Number of lost connections after which a batch ends; the next batch polls the remaining directories."""
_MAX_LOST_WITHOUT_ANSWER = 2
"""The same while the server has answered no poll: then the server is the cause, not a directory."""
_DEDICATED_IDLE_SECONDS = 3600.0
"""Seconds after which an unused dedicated connection is closed."""
_MOVED_TO_DEDICATED = object()
"""Answer to a request whose directories now have a dedicated connection."""

T = TypeVar("T")
_PollError = SFTPBackendError | ValueError | TypeError
_Outcomes = list[object]
"""Decision for each request of a batch, or a `_PollError`."""


class PollRequest(NamedTuple):
    """Describe a wait's request to the next batch.

    :ivar condition: the condition to poll for
    :ivar decide: decides from the snapshot of the poll
    :ivar answer: receives the decision or an error
    """

    condition: FileCondition
    decide: Callable[[PollSnapshot], object]
    answer: asyncio.Future[object]


class SharedConnection:
    """Poll for all waits on a connection id, in one thread.

    The last release closes the connection.

    The first poll connects. A lost connection is replaced in the same batch, with the current values of the Airflow
    connection. While reconnecting fails, batches back off. If the server hangs or disconnects during a poll of certain
    directories, these directories are polled on a dedicated connection until the server answers a poll there, even with
    an error. All blocking work runs in the thread: reading the Airflow connection, polls, decisions, and closing.

    :param key: the event loop, and the id of the Airflow connection
    """

    _instances: ClassVar[dict[tuple[asyncio.AbstractEventLoop, str], SharedConnection]] = {}

    def __init__(self, key: tuple[asyncio.AbstractEventLoop, str]) -> None:
        self._key = key
        self._loop, self._conn_id = key
        self._user_count = 0
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"sftp {self._conn_id}")
        self._backend: SFTPBackend | None = None
        self._metrics = ConnectionMetrics(self._conn_id, triggerer_metrics)
        self._phase = random.random()  # noqa: S311 - keeps the batches of many servers apart
        self._batch_lock = asyncio.Lock()
        self._next_requests: list[PollRequest] = []
        self._next_batch: asyncio.Task[None] | None = None
        self._batches: set[asyncio.Task[None]] = set()
        self._dedicated: dict[frozenset[str], SharedConnection] = {}
        self._last_used = 0.0
        self._lost_while_polling = False
        self._backoff = Backoff(_RETRY)
        self._backoff_until = 0.0

    @classmethod
    def acquire(cls, sftp_conn_id: str) -> SharedConnection:
        """Return the shared connection of an id, and count its user.

        Each event loop has connections of its own.

        :param sftp_conn_id: id of the Airflow connection
        :returns: the connection; the caller must release it
        """
        key = (asyncio.get_running_loop(), sftp_conn_id)
        shared = cls._instances.get(key)
        if shared is None:
            shared = cls._instances[key] = cls(key)
        shared._user_count += 1
        return shared

    def release(self) -> None:
        """Count one user less.

        The last user's release aborts the connection, even during a poll.
        """
        self._user_count -= 1
        if not self._user_count:
            if self._instances.get(self._key) is self:
                del self._instances[self._key]
            for directories in list(self._dedicated):
                self._release_dedicated(directories)
            for batch in self._batches:
                batch.cancel()
            backend = self._backend
            if backend is not None:
                backend.abort_within(0)
            self._executor.submit(self._close)
            self._executor.shutdown(wait=False)

    async def sleep_until_next_poll(self, interval: float) -> None:
        """Sleep until all waits with the same interval wake together.

        :param interval: seconds between two polls, the maximum of the sleep
        """
        if interval <= 0:
            return
        cycles = self._loop.time() / interval + self._phase
        await asyncio.sleep((1 - cycles % 1) * interval)

    async def poll(self, condition: FileCondition, decide: Callable[[PollSnapshot], T]) -> T:
        """Poll with the next batch, and decide from the snapshot.

        :param condition: the condition to poll for
        :param decide: called with the snapshot in the connection's thread
        :returns: the result of ``decide``
        :raises BackendUnavailable: if the server cannot be polled
        :raises SFTPBackendError: if the poll or ``decide`` fails; ValueError and TypeError of ``decide`` pass too
        """
        while True:
            if self._dedicated and (dedicated := self._dedicated.get(condition.watched_dirs)) is not None:
                return await self._poll_dedicated(dedicated, condition, decide)
            if self._next_batch is None:
                self._next_requests = []
                self._next_batch = self._loop.create_task(self._run_batch(self._next_requests))
                self._batches.add(self._next_batch)
                self._next_batch.add_done_callback(partial(self._end_batch, self._next_requests))
            answer: asyncio.Future[object] = self._loop.create_future()
            self._next_requests.append(PollRequest(condition, decide, answer))
            if (outcome := await answer) is not _MOVED_TO_DEDICATED:
                return cast("T", outcome)

    async def _poll_dedicated(
        self, dedicated: SharedConnection, condition: FileCondition, decide: Callable[[PollSnapshot], T]
    ) -> T:
        """Poll on a dedicated connection.

        After an answer, later polls join the batches again.
        """
        dedicated._user_count += 1
        dedicated._last_used = self._loop.time()
        has_answer = False
        try:
            answer = await dedicated.poll(condition, decide)
            has_answer = True
            return answer
        except (SFTPBackendError, ValueError, TypeError) as error:
            # Any other error is an answer of the server or of ``decide``: the directories no longer hang.
            has_answer = not isinstance(error, BackendUnavailable)
            raise
        finally:
            dedicated.release()
            if has_answer and self._dedicated.get(condition.watched_dirs) is dedicated:
                self._release_dedicated(condition.watched_dirs)

    def _release_dedicated(self, directories: frozenset[str]) -> None:
        self._dedicated.pop(directories).release()

    def _split_off_dedicated(self, requests: Sequence[PollRequest]) -> list[PollRequest]:
        """Return the requests for this connection; redirect the others to dedicated connections.

        Close dedicated connections that were idle for an hour.
        """
        for directories, dedicated in list(self._dedicated.items()):
            if dedicated._user_count == 1 and self._loop.time() - dedicated._last_used > _DEDICATED_IDLE_SECONDS:
                self._release_dedicated(directories)
        remaining: list[PollRequest] = []
        for request in requests:
            if request.condition.watched_dirs not in self._dedicated:
                remaining.append(request)
            elif not request.answer.done():
                request.answer.set_result(_MOVED_TO_DEDICATED)
        return remaining

    def _end_batch(self, requests: list[PollRequest], batch: asyncio.Task[None]) -> None:
        """Pass the error of a batch to all requests without an answer."""
        self._batches.discard(batch)
        if self._next_batch is batch:  # cancelled before its start
            self._next_batch = None
        error = None if batch.cancelled() else batch.exception()
        for request in requests:
            if error is None:
                request.answer.cancel()  # no effect on an answer that is done
            elif not request.answer.done():
                request.answer.set_exception(error)

    async def _run_batch(self, requests: list[PollRequest]) -> None:
        """Answer all requests that arrive before the batch starts."""
        await asyncio.sleep(_BATCH_WINDOW)
        async with self._batch_lock:
            await asyncio.sleep(max(0.0, self._backoff_until - self._loop.time()))
            self._next_batch, self._next_requests = None, []
            try:
                if remaining := self._split_off_dedicated(requests) if self._dedicated else requests:
                    await self._poll_requests(remaining)
            except BackendUnavailable:
                self._back_off()
                raise
            self._backoff.reset()

    def _back_off(self) -> None:
        """Delay the next batch after a failed one, longer after each failure."""
        pause = self._backoff.fail() * random.uniform(0.5, 1.0)  # noqa: S311
        self._backoff_until = self._loop.time() + pause

    async def _poll_requests(self, requests: Sequence[PollRequest]) -> None:
        """Poll for all requests together, and reconnect if necessary.

        If a poll also ends the new connection, poll one directory after the other.
        """
        if self._backend is not None:
            try:
                await self._poll_together(requests)
                return
            except BackendUnavailable as error:
                log.info("%s; reconnecting with the current values of connection %r", error, self._conn_id)
        try:
            await self._poll_together(requests)
        except BackendUnavailable as error:
            by_directories: dict[frozenset[str], list[PollRequest]] = {}
            for request in requests:
                by_directories.setdefault(request.condition.watched_dirs, []).append(request)
            if not self._lost_while_polling or len(by_directories) == 1:
                raise
            log.info("%s; polling one directory after the other", error)
            await self._poll_by_directories(by_directories)

    async def _poll_together(self, requests: Sequence[PollRequest]) -> None:
        self._lost_while_polling = False
        config = None if self._backend is not None else await SFTPBackendHook(self._conn_id).aconfig(self._executor)
        outcomes = await self._loop.run_in_executor(self._executor, self._poll_conditions, requests, config)
        for request, outcome in zip(requests, outcomes, strict=True):
            if request.answer.done():  # cancelled
                continue
            if isinstance(outcome, BaseException):
                request.answer.set_exception(outcome)
            else:
                request.answer.set_result(outcome)

    async def _poll_by_directories(self, by_directories: Mapping[frozenset[str], Sequence[PollRequest]]) -> None:
        """Poll one directory after the other.

        Directories whose poll ends the connection get a dedicated one, if the server answers for another directory.
        """
        lost: dict[frozenset[str], BackendUnavailable] = {}
        any_answered = False
        try:
            for directories in random.sample(list(by_directories), len(by_directories)):
                try:
                    await self._poll_together(by_directories[directories])
                    any_answered = True
                except BackendUnavailable as error:
                    if not self._lost_while_polling:  # no connection could be opened
                        raise
                    lost[directories] = error
                    if len(lost) == (_MAX_LOST_CONNECTIONS if any_answered else _MAX_LOST_WITHOUT_ANSWER):
                        raise
        finally:  # also if the batch is cancelled
            if any_answered and self._user_count:
                for directories, failure in lost.items():
                    self._open_dedicated(directories, failure, by_directories[directories])

    def _open_dedicated(
        self, directories: frozenset[str], failure: BackendUnavailable, requests: Sequence[PollRequest]
    ) -> None:
        """Give directories a dedicated connection for later polls.

        The present requests get the failure.
        """
        names = ", ".join(sorted(escaped(directory) or "the base path" for directory in directories))
        log.warning("%s; using a dedicated connection for %s", failure, names)
        dedicated = self._dedicated[directories] = SharedConnection(self._key)
        dedicated._user_count, dedicated._last_used = 1, self._loop.time()
        for request in requests:
            if not request.answer.done():
                request.answer.set_exception(failure)

    def _poll_conditions(self, requests: Sequence[PollRequest], config: BackendConfig | None = None) -> _Outcomes:
        if config is not None:
            from airflow_sftp_backend.backend import SFTPBackend  # here, because it loads paramiko

            # one attempt: the next batch makes the next
            self._backend = SFTPBackend.from_config(replace(config, retry=RetryPolicy.disabled()), reconnects=False)
            self._metrics = ConnectionMetrics(self._conn_id, triggerer_metrics)
            if not self._user_count:
                self._backend.abort_within(0)
        assert self._backend is not None
        conditions = list(dict.fromkeys(request.condition for request in requests))
        try:
            snapshots = dict(zip(conditions, poll_many(self._backend, conditions), strict=True))
        except BackendUnavailable:
            self._lost_while_polling = self._backend.connections > 0
            self._close()
            raise
        self._metrics.send(self._backend.statistics)
        return [_decide(request.decide, snapshots[request.condition]) for request in requests]

    def _close(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()
            self._metrics.send(backend.statistics)


def _decide(decide: Callable[[PollSnapshot], object], snapshot: PollSnapshot | SFTPBackendError) -> object:
    if isinstance(snapshot, SFTPBackendError):
        return snapshot
    try:
        return decide(snapshot)
    except (SFTPBackendError, ValueError, TypeError) as error:
        return error
