"""The table of faults in docs/reliability.md: ``make reliability`` writes it, the tests compare their runs with it."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from .cases import Run, errors_in
from .network import IO_TIMEOUT, Kind
from .points import SUBJECTS, Subject, killed, lost, lost_twice
from .verdict import state_of

PAGE: Final = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: written by make reliability -->", "<!-- faults: end -->"

FAULTS: Final = {
    "cut": "the connection is cut",
    "stall": "the server stalls for ever",
    "late": "the server stalls, and goes on once the client has connected anew",
    "twice": "the connection is cut, and cut again during what follows",
    "kill": "the process is killed",
}
HEAD: Final = ("fault", "server", "points", "bound", "error", "state after")


@dataclass(frozen=True)
class Row:
    """What one kind of fault leaves of one operation on one server, over all points."""

    subject: Subject
    fault: str
    points: int
    bound: str
    error: str
    state: str

    @classmethod
    def of(cls, subject: Subject, fault: str, results: Iterable[Run]) -> Row:
        """The row for the runs."""
        states, errors, points, waited = Counter[str](), Counter[str](), 0, 0.0
        for result in results:
            points += 1
            waited = max(waited, result.seconds)
            states[state_of(result)] += 1
            names = sorted({type(error).__name__ for error in errors_in(result.error)})
            errors["none" if not names else ", ".join(names)] += 1
        bound = f"{waited / IO_TIMEOUT:g} × io_timeout" if waited else "at once"
        return cls(
            subject, fault, points, "–" if fault == "kill" else bound,
            "–" if fault == "kill" else _counted(errors), _counted(states),
        )  # fmt: skip

    def __str__(self) -> str:
        cells = (FAULTS[self.fault], self.subject.server, str(self.points), self.bound, self.error, self.state)
        return f"| {' | '.join(cells)} |"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def runs(subject: Subject, fault: str, local: Path) -> Iterable[Run]:
    """All runs of an operation with that kind of fault."""
    if fault == "kill":
        return killed(subject.case, local)
    if fault == "twice":
        return lost_twice(subject.case, local)
    return lost(subject.case, local, cast("Kind", fault))


def has_fault(subject: Subject, fault: str) -> bool:
    """False where a kind of fault is left out: a second cut makes no difference to what only looks or deletes."""
    return fault != "twice" or "/data/in/target" in subject.case.before


def written(rows: Iterable[Row]) -> str:
    """The tables, one for each operation."""
    lines: list[str] = []
    operation = ""
    for row in rows:
        if row.subject.case.name != operation:
            operation = row.subject.case.name
            lines += ["", f"### {operation}", "", f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
        lines.append(str(row))
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


def main() -> None:
    """Enumerates all faults and writes the table between the page's markers."""
    logging.disable(logging.CRITICAL)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for subject in SUBJECTS:
            for fault in FAULTS:
                if has_fault(subject, fault):
                    rows.append(Row.of(subject, fault, runs(subject, fault, Path(folder) / "local")))
                    sys.stderr.write(f"{subject.case.name} {rows[-1]}\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{written(rows)}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
