"""The wait in the triggerer: looks and decides as the sensor does, all who wait on a server on one connection."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from airflow.triggers.base import BaseTrigger, TriggerEvent

from .backend import BackendUnavailable, SFTPBackendError
from .hooks import HOPELESS, SFTPBackendHook
from .waiting import Condition, Observed, Verdict, judge, look

if TYPE_CHECKING:
    from .backend import BackendConfig, SFTPBackend

T = TypeVar("T")

_LONGEST_PAUSE = 300.0  # seconds between two tries to reach a server that is away


class SFTPFileTrigger(BaseTrigger):
    """Fires once the files of ``condition`` are there, with ``{"status": "found", "files": [...]}``; or with
    ``{"status": "failed", "message": ...}`` where neither waiting nor another try of the task can help, ``"broken"``
    where another try may.

    ``condition`` is `Condition.as_json`, ``observed`` what the sensor has seen so far; ``poke_interval`` in seconds.
    """

    def __init__(
        self, sftp_conn_id: str, condition: dict[str, Any], poke_interval: float, observed: Observed | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # Airflow leaves it untyped
        self.sftp_conn_id = sftp_conn_id
        self.condition = condition
        self.poke_interval = poke_interval
        self.observed = observed or {}

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Its class and arguments; no secret is among them."""
        return f"{__name__}.{type(self).__name__}", {
            "sftp_conn_id": self.sftp_conn_id,
            "condition": self.condition,
            "poke_interval": self.poke_interval,
            "observed": self.observed,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Looks every ``poke_interval`` seconds, less often while the server cannot be reached."""
        condition = Condition.from_json(self.condition)
        connection = _SharedConnection.join(self.sftp_conn_id)
        failures = 0
        try:
            while True:
                await asyncio.sleep(_pause(self.poke_interval, failures))
                try:
                    verdict = await self._look(connection, condition)
                    failures = 0
                except (*HOPELESS, ValueError, TypeError) as error:
                    yield _event(status="failed", message=str(error))
                    return
                except BackendUnavailable as error:
                    failures += 1
                    self.log.warning("cannot look, will look again: %s", error)
                    continue
                except SFTPBackendError as error:
                    yield _event(status="broken", message=str(error))
                    return
                if verdict.done:
                    yield _event(status="found", files=verdict.files)
                    return
                self.log.info("%s", verdict.missing)
        finally:
            connection.leave()

    async def _look(self, connection: _SharedConnection, condition: Condition) -> Verdict:
        files, done_files = await connection.call(lambda backend: look(backend, condition))
        verdict = judge(condition, files, done_files, self.observed, time.time())
        self.observed = verdict.observed
        return verdict


def _event(**payload: object) -> TriggerEvent:
    return TriggerEvent(payload)  # type: ignore[no-untyped-call] # Airflow leaves it untyped


def _pause(interval: float, failures: int) -> float:
    if not failures:
        return interval
    return min(_LONGEST_PAUSE, max(interval, 1.0) * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311


class _SharedConnection:
    """The connection of all triggers of one Airflow connection, used from one thread, closed when the last one leaves.

    It is made by the first call and made anew, from what the Airflow connection then says, after it was lost.
    """

    _of: ClassVar[dict[tuple[asyncio.AbstractEventLoop, str], _SharedConnection]] = {}

    def __init__(self, key: tuple[asyncio.AbstractEventLoop, str]) -> None:
        self._key = key
        self._users = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"sftp {key[1]}")
        self._backend: SFTPBackend | None = None

    @classmethod
    def join(cls, sftp_conn_id: str) -> _SharedConnection:
        """The connection, one user the richer. Called from the event loop only, as `leave` is."""
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
            self._thread.submit(self._close)
            self._thread.shutdown(wait=False)

    async def call(self, use: Callable[[SFTPBackend], T]) -> T:
        """What ``use`` makes of the backend, on the thread. Raises what it raises."""
        config = None if self._backend is not None else await SFTPBackendHook(self._key[1]).aconfig()
        return await self._key[0].run_in_executor(self._thread, self._use, use, config)

    def _use(self, use: Callable[[SFTPBackend], T], config: BackendConfig | None) -> T:
        if self._backend is None:
            from .backend import SFTPBackend  # here, because it loads paramiko

            if config is None:
                raise BackendUnavailable("the connection was lost while this call waited for its turn")
            self._backend = SFTPBackend.from_config(config)
        try:
            return use(self._backend)
        except BackendUnavailable:
            self._close()
            raise

    def _close(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()
