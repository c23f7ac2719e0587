"""Count the round trips of a call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from airflow_sftp_backend import SFTPBackendError
from airflow_sftp_backend.backend._protocol.channel import Pending
from airflow_sftp_backend.backend._protocol.messages import Request
from airflow_sftp_backend.backend._protocol.scheduler import ChannelRequest, Operation, SFTPScheduler, TraitsQuery

T = TypeVar("T")


class Depth:
    """Measure the depth of requests in round trips.

    The depth of what was run: a request lies one deeper than the deepest reply its operation had waited for when
    it was posted; operations that run side by side start at the same depth, those run one after another add up.
    """

    def __init__(self) -> None:
        self.deepest = 0
        """Round trips so far."""
        self.requests: list[Request[Any]] = []
        """The requests posted so far."""
        self._posted: dict[Pending[Any], int] = {}

    def measured(self, operation: Operation[T], start: int) -> Operation[T]:
        """The operation, measured."""
        level = start
        value: object = None
        error: BaseException | None = None
        while True:
            try:
                step = operation.send(value) if error is None else operation.throw(error)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # a StopIteration's value has no type
            value, error = None, None
            try:
                value = yield step
            except BaseException as raised:  # noqa: BLE001 - handed on to the operation at its next step
                error = raised
            if isinstance(step, Pending):
                level = max(level, self._posted.get(step, start + 1))
                self.deepest = max(self.deepest, level)
            elif isinstance(value, Pending) and not isinstance(step, TraitsQuery):
                self.requests.append(step.request if isinstance(step, ChannelRequest) else step)
                self._posted[value] = level + 1


@contextmanager
def count_round_trips(monkeypatch: pytest.MonkeyPatch) -> Iterator[Depth]:
    """Measures all that schedulers run inside the block."""
    depth = Depth()
    run, run_many = SFTPScheduler.run, SFTPScheduler.run_many

    def run_measured(self: SFTPScheduler, operation: Operation[T]) -> T:
        return run(self, depth.measured(operation, depth.deepest))

    def run_many_measured(
        self: SFTPScheduler, operations: Iterable[Operation[T]], limit: int = 64
    ) -> list[T | SFTPBackendError | OSError]:
        start = depth.deepest
        return run_many(self, (depth.measured(operation, start) for operation in operations), limit)

    with monkeypatch.context() as patch:
        patch.setattr(SFTPScheduler, "run", run_measured)
        patch.setattr(SFTPScheduler, "run_many", run_many_measured)
        yield depth
