"""The wait in the triggerer: looks and decides as the sensor does, all who wait on a server on one connection."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from .backend import BackendUnavailable, SFTPBackendError
from .hooks import HOPELESS
from .shared import SharedConnection
from .waiting import Condition, Observed, judge


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
        """Looks every ``poke_interval`` seconds, less often while the server is away; logs what is new."""
        condition = Condition.from_json(self.condition)
        connection = SharedConnection.join(self.sftp_conn_id)
        missing = ""
        try:
            while True:
                await connection.until_next_look(self.poke_interval)
                try:
                    files, done_files = await connection.look(condition)
                    verdict = judge(condition, files, done_files, self.observed, time.time())
                except (*HOPELESS, ValueError, TypeError) as error:
                    yield _event(status="failed", message=str(error))
                    return
                except BackendUnavailable as error:
                    self.log.warning("cannot look, will look again: %s", error)
                    continue
                except SFTPBackendError as error:
                    yield _event(status="broken", message=str(error))
                    return
                self.observed = verdict.observed
                if verdict.done:
                    yield _event(status="found", files=verdict.files)
                    return
                if verdict.missing != missing:
                    missing = verdict.missing
                    self.log.info("%s", missing)
        finally:
            connection.leave()


def _event(**payload: object) -> TriggerEvent:
    return TriggerEvent(payload)  # type: ignore[no-untyped-call] # Airflow leaves it untyped
