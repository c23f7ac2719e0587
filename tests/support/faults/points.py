"""Disturb an operation at each of its messages, and check each outcome."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from airflow_sftp_backend import SFTPBackend
from tests.support.faults.cases import CASES, SERVERS, Case, Run, World, nothing_left, run
from tests.support.faults.network import CONNECT_TIMEOUT, MOMENTS, Fault, Kind, Moment, Network
from tests.support.faults.outcomes import check_outcome, check_state, check_unconnected, leftovers, state_of

THOROUGH: Final = os.environ.get("FAULTS") == "all"
"""Set by ``make test-all`` and ``make reliability``: all kinds of fault on all servers, and a second one."""
NEXT: Final = b"what the next call writes"


@dataclass(frozen=True)
class Subject:
    """An operation on one kind of server."""

    case: Case
    server: str

    def __str__(self) -> str:
        return f"{self.case.name} on {self.server}".replace(", ", "-").replace(" ", "_")


MAIN_SERVERS: Final = ("OpenSSH", "unknown, plain rename")
"""The servers with the fewest and the most steps: ``make test`` does on these alone what takes long."""
SUBJECTS: Final = [
    Subject(case.on(traits), server)
    for case in CASES
    for server, traits in SERVERS.items()
    if traits.posix_rename != "refuses" or case.on(traits).has_two_step_replacement
    if server == "OpenSSH" or "channels" not in case.name  # others get several channels only where a caller says so
]


def messages(case: Case, local: Path) -> int:
    """Count the messages of the operation without a fault."""
    return _undisturbed(case, local).sent


def _undisturbed(case: Case, local: Path) -> Network:
    """The network after a run without a fault; it must succeed."""
    done = run(case, World.of(case, local))
    assert done.error is None
    assert done.handles == 0
    assert state_of(done) == "new"
    assert not leftovers(done.world, case)
    assert done.network.sent > 0
    return done.network


def _of_the_operation(case: Case, local: Path) -> range:
    """The numbers of its messages, without those that open its first connection."""
    done = _undisturbed(case, local)
    return range(done.sent_to_connect + 1, done.sent + 1)


def lost(case: Case, local: Path, kind: Kind) -> Iterator[Run]:
    """Run the operation with a fault at each request and reply.

    The question for the server's limits is among them: it is sent with the first request.
    """
    for number in _of_the_operation(case, local):
        for moment in MOMENTS:
            fault = Fault(kind, moment, number)
            with nothing_left():
                result = run(case, World.of(case, local), [fault])
            assert result.network.fired == [fault]
            check_state(result, may_be_empty=False)
            check_outcome(result, [fault])
            assert not leftovers(result.world, case), str(fault)
            yield result


_UNTIL_CONNECTED: Final = MOMENTS[:3]
"""A loss after the last reply equals a loss before the first request, which `lost` covers."""


def lost_at_start(case: Case, local: Path, kind: Kind) -> Iterator[Run]:
    """Run the operation with a fault around INIT and VERSION.

    No request was sent to the server yet: whatever the operation, all is as it was, and the error says what was done.
    """
    for number in range(1, _undisturbed(case, local).sent_to_connect + 1):
        for moment in _UNTIL_CONNECTED:
            fault = Fault(kind, moment, number)
            with nothing_left():
                result = run(case, World.of(case, local), [fault])
            assert result.network.fired == [fault]
            assert result.seconds == (0 if kind == "cut" else CONNECT_TIMEOUT)
            check_unconnected(result, kind)
            yield result


_SECOND: Final[tuple[Moment, ...]] = ("after request", "before reply")


def lost_twice(case: Case, local: Path) -> Iterator[Run]:
    """Run the operation with two cuts at all messages.

    The INIT of each further connection is among those. The next write with the same backend clears whatever is left.
    """
    for number in _of_the_operation(case, local):
        first = Fault("cut", "before reply", number)
        once = run(case, World.of(case, local), [first])
        for later in range(number + 1, once.network.sent + 1):
            for second in (Fault("cut", moment, later) for moment in _SECOND):
                with nothing_left():
                    result = run(case, World.of(case, local), [first, second], then=next_call(case))
                check_state(result, may_be_empty=True)
                check_outcome(result, result.network.fired)
                assert not leftovers(result.world, case), f"{first}, {second}"
                yield result


def next_call(case: Case) -> Callable[[SFTPBackend, Path], object]:
    """Make the next call: a write, or the same call."""
    if "/data/in/target" not in case.before:
        return case.act
    return lambda backend, local: backend.write_atomic("in/target", NEXT, overwrite=True)


def killed(case: Case, local: Path) -> Iterator[Run]:
    """Kill the process after k handled messages, for each k."""
    for number in range(1, messages(case, local) + 1):
        with nothing_left():
            result = run(case, World.of(case, local), [Fault("kill", "after request", number)])
        assert result.killed
        check_state(result, may_be_empty=True)
        yield result


def writing(content: bytes, *, overwrite: bool = True) -> Case:
    """A call that writes to the name."""
    return replace(CASES[0], act=lambda backend, local: backend.write_atomic("in/target", content, overwrite=overwrite))
