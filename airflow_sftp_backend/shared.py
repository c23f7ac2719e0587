"""One SSH connection for all who wait on an Airflow connection in the triggerer, and one round of looks for them all.

Who looks at the same time is asked for together: each folder is listed once, all plain paths go out in one round trip.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ClassVar

from .backend import BackendUnavailable, SFTPBackendError
from .hooks import SFTPBackendHook
from .waiting import Condition, Seen, look_for_all

if TYPE_CHECKING:
    from .backend import BackendConfig, SFTPBackend

_GATHERING = 0.05
"""Seconds a round waits for others who wake at the same time."""
_LONGEST_REST = 300.0
"""Seconds between two tries to reach a server that is away, at most."""

_Outcomes = dict[Condition, Seen | SFTPBackendError]


class SharedConnection:
    """Used from one thread, closed when the last one leaves.

    It is made by the first look and made anew, from what the Airflow connection then says, after it was lost; while the
    server is away, less and less often for all of them together. Everything but the looks happens in the event loop.
    """

    _of: ClassVar[dict[tuple[asyncio.AbstractEventLoop, str], SharedConnection]] = {}

    def __init__(self, key: tuple[asyncio.AbstractEventLoop, str]) -> None:
        self._key = key
        self._loop, self._conn_id = key
        self._users = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"sftp {self._conn_id}")
        self._backend: SFTPBackend | None = None
        self._phase = random.random()  # noqa: S311 - keeps the rounds of many servers apart
        self._turn = asyncio.Lock()
        self._asked: set[Condition] = set()
        self._next: asyncio.Task[_Outcomes] | None = None
        self._rounds: set[asyncio.Task[_Outcomes]] = set()
        self._failures = 0
        self._rests_until = 0.0

    @classmethod
    def join(cls, sftp_conn_id: str) -> SharedConnection:
        """The connection, one user the richer."""
        key = (asyncio.get_running_loop(), sftp_conn_id)
        shared = cls._of.get(key)
        if shared is None:
            shared = cls._of[key] = cls(key)
        shared._users += 1
        return shared

    def leave(self) -> None:
        """One user less; the last one closes it."""
        self._users -= 1
        if not self._users:
            del self._of[self._key]
            for one in self._rounds:
                one.cancel()
            self._thread.submit(self._close)
            self._thread.shutdown(wait=False)

    async def until_next_look(self, interval: float) -> None:
        """Sleeps up to ``interval`` seconds, until all who look that often are to look."""
        if interval <= 0:
            return
        cycles = self._loop.time() / interval + self._phase
        await asyncio.sleep((1 - cycles % 1) * interval)

    async def look(self, condition: Condition) -> Seen:
        """What the next round sees of it. Raises what the look raised, BackendUnavailable if there was none."""
        if self._next is None:
            self._asked = set()
            self._next = self._loop.create_task(self._round(self._asked))
            self._rounds.add(self._next)
            self._next.add_done_callback(self._rounds.discard)
        self._asked.add(condition)
        seen = (await asyncio.shield(self._next))[condition]
        if isinstance(seen, SFTPBackendError):
            raise seen
        return seen

    async def _round(self, asked: set[Condition]) -> _Outcomes:
        """A look at all that was asked for until its turn came."""
        await asyncio.sleep(_GATHERING)
        async with self._turn:
            await asyncio.sleep(max(0.0, self._rests_until - self._loop.time()))
            self._next = None
            try:
                config = None if self._backend is not None else await SFTPBackendHook(self._conn_id).aconfig()
                conditions = list(asked)
                outcomes = await self._loop.run_in_executor(self._thread, self._look, conditions, config)
            except BackendUnavailable:
                self._failures += 1
                rest = min(_LONGEST_REST, 2.0 ** min(self._failures, 10))
                self._rests_until = self._loop.time() + rest * random.uniform(0.5, 1.0)  # noqa: S311
                raise
            self._failures = 0
            return dict(zip(conditions, outcomes, strict=True))

    def _look(self, conditions: Sequence[Condition], config: BackendConfig | None) -> list[Seen | SFTPBackendError]:
        if config is not None:
            from .backend import SFTPBackend  # here, because it loads paramiko

            self._backend = SFTPBackend.from_config(config)
        assert self._backend is not None
        try:
            return look_for_all(self._backend, conditions)
        except BackendUnavailable:
            self._close()
            raise

    def _close(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()
