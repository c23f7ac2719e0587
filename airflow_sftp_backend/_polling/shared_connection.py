"""One SSH connection for all who wait on an Airflow connection in the triggerer, and one round of looks for them all,
but for those over whose looks the server hangs.

Who looks at the same time is asked for together: each folder is listed once, all plain paths go out in one round trip.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, TypeVar, cast

from airflow_sftp_backend.backend import BackendUnavailable, RetryPolicy, SFTPBackendError
from airflow_sftp_backend.backend.errors import escaped
from airflow_sftp_backend.hooks.sftp import SFTPBackendHook

from .conditions import FileCondition, PollSnapshot, poll_many

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import BackendConfig, SFTPBackend

log = logging.getLogger(__name__)

_BATCH_WINDOW = 0.05
"""Seconds a round waits for others who wake at the same time."""
_MAX_BACKOFF = 300.0
"""Seconds between two tries to reach a server that is away, at most."""

_MAX_LOST_CONNECTIONS = 3
"""Folders that may cost a connection each in one round; the others are looked at in the next."""
_DEDICATED_IDLE_SECONDS = 3600.0
"""Seconds after which a connection apart that nobody has used is ended."""
_MOVED_TO_DEDICATED = object()
"""Says that there is a connection apart by now."""

T = TypeVar("T")
PollRequest = tuple[FileCondition, Callable[[PollSnapshot], object], "asyncio.Future[object]"]
"""What to look for, what to make of it, and where that is waited for."""
_PollError = SFTPBackendError | ValueError | TypeError
_Outcomes = list[object]
"""What was decided for each question of a round, or the `_PollError` in its place."""


class SharedConnection:
    """Used from one thread, closed when the last one leaves.

    It is made by the first look and made anew, from what the Airflow connection then says, after it was lost: at once
    in the same round, and while that fails, less and less often for all of them together. Who looks where the server
    hangs, or hangs up, is given a connection apart, as long as it does. Everything but the looks and what is decided of
    them happens in the event loop.
    """

    _instances: ClassVar[dict[tuple[asyncio.AbstractEventLoop, str], SharedConnection]] = {}

    def __init__(self, key: tuple[asyncio.AbstractEventLoop, str]) -> None:
        self._key = key
        self._loop, self._conn_id = key
        self._user_count = 0
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"sftp {self._conn_id}")
        self._backend: SFTPBackend | None = None
        self._phase = random.random()  # noqa: S311 - keeps the rounds of many servers apart
        self._batch_lock = asyncio.Lock()
        self._next_requests: list[PollRequest] = []
        self._next_batch: asyncio.Task[None] | None = None
        self._batches: set[asyncio.Task[None]] = set()
        self._dedicated: dict[frozenset[str], SharedConnection] = {}
        self._last_used = 0.0
        self._lost_while_polling = False
        self._failures = 0
        self._backoff_until = 0.0

    @classmethod
    def acquire(cls, sftp_conn_id: str) -> SharedConnection:
        """The connection, one user the richer."""
        key = (asyncio.get_running_loop(), sftp_conn_id)
        shared = cls._instances.get(key)
        if shared is None:
            shared = cls._instances[key] = cls(key)
        shared._user_count += 1
        return shared

    def release(self) -> None:
        """One user less; the last one ends it, whatever it is doing."""
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
        """Sleeps up to ``interval`` seconds, until all who look that often are to look."""
        if interval <= 0:
            return
        cycles = self._loop.time() / interval + self._phase
        await asyncio.sleep((1 - cycles % 1) * interval)

    async def poll(self, condition: FileCondition, decide: Callable[[PollSnapshot], T]) -> T:
        """What ``decide``, called in the connection's thread, makes of what the next round sees.

        Raises what the look or ``decide`` raised (SFTPBackendError, ValueError, TypeError), BackendUnavailable if there
        was no look.
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
            self._next_requests.append((condition, decide, answer))
            if (outcome := await answer) is not _MOVED_TO_DEDICATED:
                return cast("T", outcome)

    async def _poll_dedicated(
        self, dedicated: SharedConnection, condition: FileCondition, decide: Callable[[PollSnapshot], T]
    ) -> T:
        """A look on a connection of its own; once one has its answer there, the next are made with the others again."""
        dedicated._user_count += 1
        dedicated._last_used = self._loop.time()
        has_answer = False
        try:
            answer = await dedicated.poll(condition, decide)
            has_answer = True
            return answer
        except (SFTPBackendError, ValueError, TypeError) as error:
            has_answer = not isinstance(error, BackendUnavailable)
            raise
        finally:
            dedicated.release()
            if has_answer and self._dedicated.get(condition.watched_dirs) is dedicated:
                self._release_dedicated(condition.watched_dirs)

    def _release_dedicated(self, directories: frozenset[str]) -> None:
        self._dedicated.pop(directories).release()

    def _split_off_dedicated(self, requests: Sequence[PollRequest]) -> list[PollRequest]:
        """Sends those on who asked before others were given a connection apart for the same place, and ends the
        connections apart that nobody wants any more."""
        for directories, dedicated in list(self._dedicated.items()):
            if dedicated._user_count == 1 and self._loop.time() - dedicated._last_used > _DEDICATED_IDLE_SECONDS:
                self._release_dedicated(directories)
        staying: list[PollRequest] = []
        for request in requests:
            condition, _, answer = request
            if condition.watched_dirs not in self._dedicated:
                staying.append(request)
            elif not answer.done():
                answer.set_result(_MOVED_TO_DEDICATED)
        return staying

    def _end_batch(self, requests: list[PollRequest], batch: asyncio.Task[None]) -> None:
        """Tells who is still waiting why there is no answer."""
        self._batches.discard(batch)
        if self._next_batch is batch:  # before its turn came
            self._next_batch = None
        error = None if batch.cancelled() else batch.exception()
        for _, _, answer in requests:
            if error is None:
                answer.cancel()
            elif not answer.done():
                answer.set_exception(error)

    async def _run_batch(self, requests: list[PollRequest]) -> None:
        """A look at all that was asked for until its turn came."""
        await asyncio.sleep(_BATCH_WINDOW)
        async with self._batch_lock:
            await asyncio.sleep(max(0.0, self._backoff_until - self._loop.time()))
            self._next_batch, self._next_requests = None, []
            try:
                if remaining := self._split_off_dedicated(requests) if self._dedicated else requests:
                    await self._poll_requests(remaining)
            except BackendUnavailable:
                self._failures += 1
                backoff = min(_MAX_BACKOFF, 2.0 ** min(self._failures, 10))
                self._backoff_until = self._loop.time() + backoff * random.uniform(0.5, 1.0)  # noqa: S311
                raise
            self._failures = 0

    async def _poll_requests(self, requests: Sequence[PollRequest]) -> None:
        """Looks for all together, on a new connection if there is none any more, and for the folders one by one if a
        look has cost that one, too."""
        if self._backend is not None:
            try:
                return await self._poll_together(requests)
            except BackendUnavailable as error:
                log.info("%s; reconnecting with the current values of connection %r", error, self._conn_id)
        try:
            await self._poll_together(requests)
        except BackendUnavailable as error:
            by_directories: dict[frozenset[str], list[PollRequest]] = {}
            for request in requests:
                by_directories.setdefault(request[0].watched_dirs, []).append(request)
            if not self._lost_while_polling or len(by_directories) == 1:
                raise
            log.info("%s; polling one directory after the other", error)
            await self._poll_by_directories(by_directories)

    async def _poll_together(self, requests: Sequence[PollRequest]) -> None:
        self._lost_while_polling = False
        config = None if self._backend is not None else await SFTPBackendHook(self._conn_id).aconfig(self._executor)
        outcomes = await self._loop.run_in_executor(self._executor, self._poll_conditions, requests, config)
        for (_, _, answer), outcome in zip(requests, outcomes, strict=True):
            if answer.done():  # cancelled
                continue
            if isinstance(outcome, BaseException):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

    async def _poll_by_directories(self, by_directories: Mapping[frozenset[str], Sequence[PollRequest]]) -> None:
        """Where only some lose the connection, who looks there gets another one: nobody else is to wait for them."""
        lost: dict[frozenset[str], BackendUnavailable] = {}
        any_answered = False
        try:
            for directories in random.sample(list(by_directories), len(by_directories)):
                try:
                    await self._poll_together(by_directories[directories])
                    any_answered = True
                except BackendUnavailable as error:
                    if self._lost_while_polling:
                        lost[directories] = error
                    if not self._lost_while_polling or len(lost) == (_MAX_LOST_CONNECTIONS if any_answered else 2):
                        raise
        finally:
            for directories, failure in lost.items() if any_answered and self._user_count else ():
                names = ", ".join(sorted(escaped(directory) or "the base path" for directory in directories))
                log.warning("%s; using a dedicated connection for %s", failure, names)
                dedicated = self._dedicated[directories] = SharedConnection(self._key)
                dedicated._user_count, dedicated._last_used = 1, self._loop.time()
                for _, _, answer in by_directories[directories]:
                    if not answer.done():
                        answer.set_exception(failure)

    def _poll_conditions(self, requests: Sequence[PollRequest], config: BackendConfig | None = None) -> _Outcomes:
        if config is not None:
            from airflow_sftp_backend.backend import SFTPBackend  # here, because it loads paramiko

            # one try: the next is the next round's
            self._backend = SFTPBackend.from_config(replace(config, retry=RetryPolicy.disabled()), reconnects=False)
            if not self._user_count:
                self._backend.abort_within(0)
        assert self._backend is not None
        conditions = list(dict.fromkeys(condition for condition, _, _ in requests))
        try:
            snapshots = dict(zip(conditions, poll_many(self._backend, conditions), strict=True))
        except BackendUnavailable:
            self._lost_while_polling = self._backend.connections > 0
            self._close()
            raise
        return [_decide(decide, snapshots[condition]) for condition, decide, _ in requests]

    def _close(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()


def _decide(decide: Callable[[PollSnapshot], object], snapshot: PollSnapshot | SFTPBackendError) -> object:
    if isinstance(snapshot, SFTPBackendError):
        return snapshot
    try:
        return decide(snapshot)
    except (SFTPBackendError, ValueError, TypeError) as error:
        return error
