"""Write and check the table of faults in docs/reliability.md."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from tests.support.faults.cases import Run, errors_in
from tests.support.faults.network import CONNECT_TIMEOUT, IO_TIMEOUT, Kind
from tests.support.faults.outcomes import state_of
from tests.support.faults.points import MAIN_SERVERS, SUBJECTS, Subject, killed, lost, lost_at_start, lost_twice

PAGE: Final = Path(__file__).parents[3] / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: written by make reliability -->", "<!-- faults: end -->"

FAULTS: Final = {
    "cut": "the connection is cut",
    "stall": "the server stalls for ever",
    "late": "the server stalls, and continues after the client has reconnected",
    "twice": "the connection is cut, and cut again during the clean-up or the resumed transfer",
    "kill": "the process is killed",
}
FAULTS_AT_START: Final[Mapping[Kind, str]] = {
    "cut": "the connection is cut before the server's VERSION reply",
    "stall": "the server stalls before its VERSION reply",
}
AT_START: Final = "any operation, while its first connection opens"
HEAD: Final = ("fault", "server", "time limit", "error", "state after")


@dataclass(frozen=True)
class Row:
    """Results of one fault, operation and server at all points."""

    subject: Subject
    fault: str
    points: int
    time_limit: str
    errors: str
    states: str

    @classmethod
    def of(cls, subject: Subject, fault: str, results: Iterable[Run]) -> Row:
        """The row for the runs."""
        states, errors, points, waited = set[str](), set[str](), 0, 0.0
        for result in results:
            points += 1
            waited = max(waited, result.seconds)
            states.add(state_of(result))
            errors |= {type(error).__name__ for error in errors_in(result.error)} or {"none"}
        if fault == "kill":
            return cls(subject, fault, points, "–", "–", _listed(states))
        return cls(subject, fault, points, _time_limit(waited), _listed(errors), _listed(states))

    @classmethod
    def at_start(cls, subject: Subject, kind: Kind, local: Path) -> str:
        """Return the row for faults while connecting, equal for all."""
        row = cls.of(subject, kind, lost_at_start(subject.case, local, kind))
        assert row.points > 0
        return _cells(FAULTS_AT_START[kind], "any", row.time_limit, row.errors, row.states)

    def __str__(self) -> str:
        # without the number of points: it changes with every request that is saved
        return _cells(FAULTS[self.fault], self.subject.server, self.time_limit, self.errors, self.states)


def _cells(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"


def _time_limit(seconds: float) -> str:
    if not seconds:
        return "at once"
    if seconds == CONNECT_TIMEOUT:
        return "1 × `timeout`"
    return f"{seconds / IO_TIMEOUT:g} × `io_timeout`" if seconds >= IO_TIMEOUT else f"{seconds:g} s"


_ORDER: Final = ("none", "old", "new")


def _listed(names: set[str]) -> str:
    known = [name for name in _ORDER if name in names]
    return " or ".join([*known, *sorted(names - set(_ORDER))])


def runs(subject: Subject, fault: str, local: Path) -> Iterable[Run]:
    """All runs of an operation with that kind of fault."""
    if fault == "kill":
        return killed(subject.case, local)
    if fault == "twice":
        return lost_twice(subject.case, local)
    return lost(subject.case, local, cast("Kind", fault))


def has_fault(subject: Subject, fault: str) -> bool:
    """Return whether a fault is part of the table."""
    case = subject.case
    is_short = "channels" not in case.name and subject.server in MAIN_SERVERS
    return fault != "twice" or (is_short and "/data/in/target" in case.before)


def written(texts: Iterable[tuple[str, str]]) -> str:
    """Format one table for each operation from ``texts``."""
    lines: list[str] = []
    for operation, rows in itertools.groupby(texts, key=lambda pair: pair[0]):
        lines += ["", f"### {operation}", "", f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
        lines += [row for _, row in rows]
    return "\n".join([*lines, ""])


def committed() -> dict[str, list[str]]:
    """The rows of docs/reliability.md by their operation."""
    text = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    found: dict[str, list[str]] = {}
    operation = ""
    for line in text.splitlines():
        if line.startswith("### "):
            operation = line.removeprefix("### ")
        elif line.startswith("|") and not line.startswith(("|---", f"| {HEAD[0]} |")):
            found.setdefault(operation, []).append(line)
    return found


def _rows_of(number: int) -> tuple[list[str], list[str]]:
    """Compute the rows of one of `SUBJECTS` in a process."""
    logging.disable(logging.CRITICAL)
    subject = SUBJECTS[number]
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "local"
        faults = [fault for fault in FAULTS if has_fault(subject, fault)]
        started = [Row.at_start(subject, kind, local) for kind in FAULTS_AT_START]
        return [str(Row.of(subject, fault, runs(subject, fault, local))) for fault in faults], started


def main() -> None:
    """Enumerates all faults and writes the table between the page's markers."""
    texts: list[tuple[str, str]] = []
    of_starts: dict[str, None] = {}
    with multiprocessing.get_context("spawn").Pool() as pool:
        for number, (rows, started) in enumerate(pool.imap(_rows_of, range(len(SUBJECTS)))):
            sys.stderr.write(f"{SUBJECTS[number]}\n")
            texts += [(SUBJECTS[number].case.name, row) for row in rows]
            of_starts |= dict.fromkeys(started)
    texts[:0] = [(AT_START, row) for row in of_starts]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{written(texts)}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
