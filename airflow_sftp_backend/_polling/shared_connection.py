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

from .conditions import Condition, Seen, look_for_all

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import BackendConfig, SFTPBackend

log = logging.getLogger(__name__)

_GATHERING = 0.05
"""Seconds a round waits for others who wake at the same time."""
_LONGEST_REST = 300.0
"""Seconds between two tries to reach a server that is away, at most."""

_MOST_LOST = 3
"""Folders that may cost a connection each in one round; the others are looked at in the next."""
_UNUSED = 3600.0
"""Seconds after which a connection apart that nobody has used is ended."""
_ELSEWHERE = object()
"""Says that there is a connection apart by now."""

T = TypeVar("T")
_Question = tuple[Condition, Callable[[Seen], object], "asyncio.Future[object]"]
"""What to look for, what to make of it, and where that is waited for."""
_Refusal = SFTPBackendError | ValueError | TypeError
_Outcomes = list[object]
"""What was decided for each question of a round, or the `_Refusal` in its place."""


class SharedConnection:
    """Used from one thread, closed when the last one leaves.

    It is made by the first look and made anew, from what the Airflow connection then says, after it was lost: at once
    in the same round, and while that fails, less and less often for all of them together. Who looks where the server
    hangs, or hangs up, is given a connection apart, as long as it does. Everything but the looks and what is decided of
    them happens in the event loop.
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
        self._asked: list[_Question] = []
        self._next: asyncio.Task[None] | None = None
        self._rounds: set[asyncio.Task[None]] = set()
        self._apart: dict[frozenset[str], SharedConnection] = {}
        self._used = 0.0
        self._lost_by_look = False
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
        """One user less; the last one ends it, whatever it is doing."""
        self._users -= 1
        if not self._users:
            if self._of.get(self._key) is self:
                del self._of[self._key]
            for place in list(self._apart):
                self._end_apart(place)
            for one in self._rounds:
                one.cancel()
            backend = self._backend
            if backend is not None:
                backend.end_within(0)
            self._thread.submit(self._close)
            self._thread.shutdown(wait=False)

    async def until_next_look(self, interval: float) -> None:
        """Sleeps up to ``interval`` seconds, until all who look that often are to look."""
        if interval <= 0:
            return
        cycles = self._loop.time() / interval + self._phase
        await asyncio.sleep((1 - cycles % 1) * interval)

    async def look(self, condition: Condition, decide: Callable[[Seen], T]) -> T:
        """What ``decide``, called in the connection's thread, makes of what the next round sees.

        Raises what the look or ``decide`` raised (SFTPBackendError, ValueError, TypeError), BackendUnavailable if there
        was no look.
        """
        while True:
            if self._apart and (apart := self._apart.get(condition.place)) is not None:
                return await self._look_apart(apart, condition, decide)
            if self._next is None:
                self._asked = []
                self._next = self._loop.create_task(self._round(self._asked))
                self._rounds.add(self._next)
                self._next.add_done_callback(partial(self._end_round, self._asked))
            answer: asyncio.Future[object] = self._loop.create_future()
            self._asked.append((condition, decide, answer))
            if (outcome := await answer) is not _ELSEWHERE:
                return cast("T", outcome)

    async def _look_apart(self, apart: SharedConnection, condition: Condition, decide: Callable[[Seen], T]) -> T:
        """A look on a connection of its own; once one has its answer there, the next are made with the others again."""
        apart._users += 1
        apart._used = self._loop.time()
        has_answer = False
        try:
            answer = await apart.look(condition, decide)
            has_answer = True
            return answer
        except (SFTPBackendError, ValueError, TypeError) as error:
            has_answer = not isinstance(error, BackendUnavailable)
            raise
        finally:
            apart.leave()
            if has_answer and self._apart.get(condition.place) is apart:
                self._end_apart(condition.place)

    def _end_apart(self, place: frozenset[str]) -> None:
        self._apart.pop(place).leave()

    def _without_those_apart(self, asked: Sequence[_Question]) -> list[_Question]:
        """Sends those on who asked before others were given a connection apart for the same place, and ends the
        connections apart that nobody wants any more."""
        for place, apart in list(self._apart.items()):
            if apart._users == 1 and self._loop.time() - apart._used > _UNUSED:
                self._end_apart(place)
        staying: list[_Question] = []
        for question in asked:
            condition, _, answer = question
            if condition.place not in self._apart:
                staying.append(question)
            elif not answer.done():
                answer.set_result(_ELSEWHERE)
        return staying

    def _end_round(self, asked: list[_Question], ended: asyncio.Task[None]) -> None:
        """Tells who is still waiting why there is no answer."""
        self._rounds.discard(ended)
        if self._next is ended:  # before its turn came
            self._next = None
        error = None if ended.cancelled() else ended.exception()
        for _, _, answer in asked:
            if error is None:
                answer.cancel()
            elif not answer.done():
                answer.set_exception(error)

    async def _round(self, asked: list[_Question]) -> None:
        """A look at all that was asked for until its turn came."""
        await asyncio.sleep(_GATHERING)
        async with self._turn:
            await asyncio.sleep(max(0.0, self._rests_until - self._loop.time()))
            self._next, self._asked = None, []
            try:
                if left := self._without_those_apart(asked) if self._apart else asked:
                    await self._answer(left)
            except BackendUnavailable:
                self._failures += 1
                rest = min(_LONGEST_REST, 2.0 ** min(self._failures, 10))
                self._rests_until = self._loop.time() + rest * random.uniform(0.5, 1.0)  # noqa: S311
                raise
            self._failures = 0

    async def _answer(self, asked: Sequence[_Question]) -> None:
        """Looks for all together, on a new connection if there is none any more, and for the folders one by one if a
        look has cost that one, too."""
        if self._backend is not None:
            try:
                return await self._answer_together(asked)
            except BackendUnavailable as error:
                log.info("%s; connecting anew, as connection %r now says", error, self._conn_id)
        try:
            await self._answer_together(asked)
        except BackendUnavailable as error:
            places: dict[frozenset[str], list[_Question]] = {}
            for question in asked:
                places.setdefault(question[0].place, []).append(question)
            if not self._lost_by_look or len(places) == 1:
                raise
            log.info("%s; looking into one folder after the other", error)
            await self._answer_by_places(places)

    async def _answer_together(self, asked: Sequence[_Question]) -> None:
        self._lost_by_look = False
        config = None if self._backend is not None else await SFTPBackendHook(self._conn_id).aconfig(self._thread)
        outcomes = await self._loop.run_in_executor(self._thread, self._look, asked, config)
        for (_, _, answer), outcome in zip(asked, outcomes, strict=True):
            if answer.done():  # cancelled
                continue
            if isinstance(outcome, BaseException):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

    async def _answer_by_places(self, places: Mapping[frozenset[str], Sequence[_Question]]) -> None:
        """Where only some lose the connection, who looks there gets another one: nobody else is to wait for them."""
        lost: dict[frozenset[str], BackendUnavailable] = {}
        answered = False
        try:
            for place in random.sample(list(places), len(places)):
                try:
                    await self._answer_together(places[place])
                    answered = True
                except BackendUnavailable as error:
                    if self._lost_by_look:
                        lost[place] = error
                    if not self._lost_by_look or len(lost) == (_MOST_LOST if answered else 2):
                        raise
        finally:
            for place, why in lost.items() if answered and self._users else ():
                names = ", ".join(sorted(escaped(folder) or "the base path" for folder in place))
                log.warning("%s; who looks into %s gets another connection", why, names)
                apart = self._apart[place] = SharedConnection(self._key)
                apart._users, apart._used = 1, self._loop.time()
                for _, _, answer in places[place]:
                    if not answer.done():
                        answer.set_exception(why)

    def _look(self, asked: Sequence[_Question], config: BackendConfig | None = None) -> _Outcomes:
        if config is not None:
            from airflow_sftp_backend.backend import SFTPBackend  # here, because it loads paramiko

            # one try: the next is the next round's
            self._backend = SFTPBackend.from_config(replace(config, retry=RetryPolicy.disabled()), reconnects=False)
            if not self._users:
                self._backend.end_within(0)
        assert self._backend is not None
        conditions = list(dict.fromkeys(condition for condition, _, _ in asked))
        try:
            seen = dict(zip(conditions, look_for_all(self._backend, conditions), strict=True))
        except BackendUnavailable:
            self._lost_by_look = self._backend.connections > 0
            self._close()
            raise
        return [_decided(decide, seen[condition]) for condition, decide, _ in asked]

    def _close(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()


def _decided(decide: Callable[[Seen], object], seen: Seen | SFTPBackendError) -> object:
    if isinstance(seen, SFTPBackendError):
        return seen
    try:
        return decide(seen)
    except (SFTPBackendError, ValueError, TypeError) as error:
        return error
