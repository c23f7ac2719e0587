"""Run triggers on an event loop that no wait may block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from airflow_sftp_backend import FileInfo, SFTPBackendError
from airflow_sftp_backend.triggers import SFTPFileTrigger
from tests.support.airflow.arguments import condition_for
from tests.support.own_time import OwnTime
from tests.support.servers import wait_until

T = TypeVar("T")


def trigger(path: str, conn_id: str = "sftp_backend_default", every: float = 0.1, **condition: Any) -> SFTPFileTrigger:
    return SFTPFileTrigger(conn_id, condition_for(path, **condition).as_json(), every)


async def event(waiting: SFTPFileTrigger) -> dict[str, Any]:
    """Its first event, and then its end, as the triggerer takes it."""
    events = [found.payload async for found in waiting.run()]
    assert len(events) == 1
    return cast("dict[str, Any]", events[0])


def run(work: Coroutine[Any, Any, T], longest: float = 2.0) -> T:
    """Run a coroutine, and check that nothing blocks the event loop."""

    async def watched() -> T:
        worst, last = 0.0, OwnTime()

        async def beat() -> None:
            nonlocal worst, last
            while True:
                await asyncio.sleep(0.02)
                worst, last = max(worst, last.seconds()), OwnTime()

        beating = asyncio.create_task(beat())
        await asyncio.sleep(0)
        try:
            return await asyncio.wait_for(work, 40)
        finally:
            beating.cancel()
            worst = max(worst, last.seconds())
            assert worst < longest, f"the event loop was held up for {worst:.1f} s"

    return asyncio.run(watched(), debug=True)


def waiting_threads() -> list[str]:
    """The threads in which connections are used."""
    return [one.name for one in threading.enumerate() if one.name.startswith("sftp ")]


async def start(*triggers: SFTPFileTrigger) -> list[asyncio.Task[dict[str, Any]]]:
    return [asyncio.create_task(event(one)) for one in triggers]


async def until(condition: Callable[[], bool], longest: float = 20) -> None:
    """Waits as `wait_until` does, without holding the loop; ``longest`` in seconds."""
    await asyncio.to_thread(wait_until, condition, "it to be so", timeout=longest)


FindOutcomes = list[list[FileInfo] | SFTPBackendError | OSError]
