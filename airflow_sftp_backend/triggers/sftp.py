"""Wait for files in the triggerer on behalf of a deferred sensor.

The trigger polls on the connection that all triggers of an Airflow connection share, and evaluates the same condition
as the sensor.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from functools import cached_property
from typing import Any, Final, Literal, TypedDict

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_sftp_backend._arguments import check_conn_id
from airflow_sftp_backend._file_rows import FoundFile
from airflow_sftp_backend._polling.conditions import FileCondition, PollResult, StabilityState, evaluate
from airflow_sftp_backend._polling.shared_connection import SharedConnection
from airflow_sftp_backend.backend import BackendUnavailable, SFTPBackendError
from airflow_sftp_backend.backend.errors import escaped
from airflow_sftp_backend.hooks.sftp import NON_RETRYABLE_ERRORS

_LOG_SECONDS: Final = 600.0
"""Seconds between two log lines of a wait without changes."""


class FilesFound(TypedDict):
    """Describe the event of a wait that has ended with files."""

    status: Literal["found"]
    files: list[FoundFile]


class WaitFailed(TypedDict):
    """Describe the event of a failed wait."""

    status: Literal["failed"]
    message: str
    retryable: bool
    """True if a retry of the task may help."""


class SFTPFileTrigger(BaseTrigger):
    """Fire when a condition is fulfilled or the wait has failed.

    The payload of the event is `FilesFound` or `WaitFailed`.

    :param sftp_conn_id: id of an Airflow connection of type ``sftp_backend``, ``sftp`` or ``ssh``
    :param condition: the condition, as from `FileCondition.as_json`
    :param poke_interval: seconds between two polls
    :param stability: the sensor's observations so far
    :param silent_fail: poll again after an error that a retry of the task may fix
    """

    def __init__(
        self,
        sftp_conn_id: str,
        condition: dict[str, Any],
        poke_interval: float,
        stability: StabilityState | None = None,
        *,
        silent_fail: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # Airflow leaves it untyped
        check_conn_id(sftp_conn_id)
        self.sftp_conn_id = sftp_conn_id
        self.condition = condition
        self.poke_interval = poke_interval
        self.stability = stability or {}
        self.silent_fail = silent_fail

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the import path of the class, and its arguments.

        No argument is a secret.
        """
        return f"{__name__}.{type(self).__name__}", {
            "sftp_conn_id": self.sftp_conn_id,
            "condition": self.condition,
            "poke_interval": self.poke_interval,
            "stability": self.stability,
            "silent_fail": self.silent_fail,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll every ``poke_interval`` seconds, and log only changes.

        Polls are less frequent while the server is away.

        :returns: one event
        """
        connection = SharedConnection.acquire(self.sftp_conn_id)
        counts: tuple[int, ...] | None = None
        warning, logged_at = "", -math.inf
        try:
            while True:
                await connection.sleep_until_next_poll(self.poke_interval)
                try:
                    result = await self._poll(connection)
                except NON_RETRYABLE_ERRORS as error:
                    yield _event({"status": "failed", "message": str(error), "retryable": False})
                    return
                except BackendUnavailable as error:
                    self.log.warning("cannot poll, will poll again: %s", error)
                    continue
                except SFTPBackendError as error:
                    if not self.silent_fail:
                        yield _event({"status": "failed", "message": str(error), "retryable": True})
                        return
                    self.log.error("the poll failed, will poll again: %s", error)
                    continue
                self.stability = result.stability
                if result.warning not in ("", warning):
                    self.log.warning("%s", escaped(result.warning))
                warning = result.warning
                if result.done:
                    yield _event({"status": "found", "files": result.files})
                    return
                # ``reason`` may change at every poll, for example with the size of a growing file.
                if result.counts != counts or time.monotonic() >= logged_at + _LOG_SECONDS:
                    counts, logged_at = result.counts, time.monotonic()
                    self.log.info("%s", escaped(result.reason))
        finally:
            connection.release()

    @cached_property
    def _condition(self) -> FileCondition:
        return FileCondition.from_json(self.condition)

    async def _poll(self, connection: SharedConnection) -> PollResult:
        condition, observed = self._condition, self.stability
        return await connection.poll(condition, lambda snapshot: evaluate(condition, *snapshot, observed, time.time()))


def _event(payload: FilesFound | WaitFailed) -> TriggerEvent:
    return TriggerEvent(payload)  # type: ignore[no-untyped-call] # Airflow leaves it untyped
