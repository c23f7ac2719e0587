"""Run the sensor in each of its modes, the way Airflow does."""

from __future__ import annotations

import asyncio
import importlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal, cast

import pytest

from airflow_sftp_backend import SFTPBackend
from airflow_sftp_backend._file_rows import FoundFile
from airflow_sftp_backend.sensors import SFTPFileSensor
from airflow_sftp_backend.triggers.sftp import FilesFound, SFTPFileTrigger, WaitFailed
from tests.support.airflow.context import State, context
from tests.support.airflow.versions import HAS_STATE_STORES, AirflowRescheduleException, TaskDeferred

Mode = Literal["poke", "reschedule", "reschedule without memory", "deferred"]


MODES: tuple[Mode, ...] = (
    "poke", *(("reschedule",) if HAS_STATE_STORES else ()), "reschedule without memory", "deferred",
)  # fmt: skip


def sensor(mode: Mode, **arguments: Any) -> SFTPFileSensor:
    given: dict[str, Any] = {"poke_interval": 0.1, "timeout": 20, "task_id": "wait"} | arguments
    given |= {"mode": "reschedule"} if mode.startswith("reschedule") else {"deferrable": mode == "deferred"}
    return SFTPFileSensor(**given)


def wait(mode: Mode, *, run: Any = None, **arguments: Any) -> list[FoundFile]:
    """Run the wait as Airflow does, each rescheduled poll separately."""
    state = State() if HAS_STATE_STORES and mode != "reschedule without memory" else None
    run_by = context(state=state, **(run or {}))
    rows: list[FoundFile] = []
    while True:
        try:
            rows = sensor(mode, **arguments).execute(run_by)
        except AirflowRescheduleException as again:
            time.sleep(max(0.0, (again.reschedule_date - datetime.now(UTC)).total_seconds()))
        except TaskDeferred as deferred:
            given = {"event": first_event(deferred)}
            rows = sensor(mode, **arguments).resume_execution(deferred.method_name, given, context())
            break
        else:
            break
    assert json.loads(json.dumps(rows)) == rows
    return rows


def first_event(deferred: TaskDeferred) -> FilesFound | WaitFailed:
    """Return the triggerer's event; trigger and event pass as JSON."""
    path, arguments = deferred.trigger.serialize()
    module, _, name = path.rpartition(".")
    trigger: SFTPFileTrigger = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(arguments)))

    async def first() -> dict[str, Any]:
        events = trigger.run()
        try:
            return cast("dict[str, Any]", (await anext(events)).payload)
        finally:
            await cast("Any", events).aclose()

    event = asyncio.run(asyncio.wait_for(first(), 30))
    return cast("FilesFound | WaitFailed", json.loads(json.dumps(event)))


@contextmanager
def meanwhile(*steps: Callable[[], object], polls: int = 2) -> Iterator[None]:
    """Take each step after ``polls`` polls, while the block waits."""
    ended = threading.Semaphore(0)

    def telling(ask: Callable[..., Any], is_whole_poll: Callable[[object], bool]) -> Callable[..., Any]:
        def tells(*given: Any, **options: Any) -> Any:
            answer: object = False
            try:
                answer = ask(*given, **options)
            finally:
                if is_whole_poll(answer):
                    ended.release()
            return answer

        return tells

    def take() -> None:
        for step in steps:
            for _ in range(polls):
                assert ended.acquire(timeout=20), "no poll"
            step()
            while ended.acquire(blocking=False):
                pass

    thread = threading.Thread(target=take)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            SFTPBackend, "exists", telling(SFTPBackend.exists, lambda there: not there)
        )  # or the next is made
        patch.setattr(SFTPBackend, "find_each", telling(SFTPBackend.find_each, lambda _: True))
        thread.start()
        try:
            yield
        finally:
            thread.join()


def names(rows: list[FoundFile]) -> list[str]:
    return [row["path"] for row in rows]
