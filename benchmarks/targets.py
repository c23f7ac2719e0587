"""Define rows with targets, tables of clients, and what a run measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

MET, MISSED, NOT_MEASURED = "met", "missed", "not measured"
_COLORS = {MET: "green", MISSED: "red", NOT_MEASURED: "yellow"}
COLUMNS = ("work", "unit", "target", "result", "")
console = Console(highlight=False, soft_wrap=True, width=140)


@dataclass(frozen=True)
class Options:
    """Define how much a run measures.

    :ivar scale: factor for sizes and numbers of files
    :ivar rounds: rounds of each piece of work
    :ivar work: words; if there are any, only work with one of them in its title is measured
    :ivar clients: names of the clients beside this package and sftp; empty for all that are installed
    """

    scale: float = 1.0
    rounds: int = 3
    work: Sequence[str] = ()
    clients: Sequence[str] = ()

    def count(self, full: int) -> int:
        """Return a size or a number of files of this run.

        :param full: the value at the scale of 1
        """
        return max(1, round(full * self.scale))

    def includes(self, title: str) -> bool:
        """Return whether a piece of work is measured."""
        return not self.work or any(word in title for word in self.work)


@dataclass(frozen=True)
class Row:
    """Hold a result and its target.

    :ivar work: what was measured
    :ivar unit: unit of result and target, such as ``x sftp``
    :ivar result: the median of all rounds; None if a program for the measurement is missing
    :ivar target: the greatest result, or the least
    :ivar at_least: the target is the least result
    """

    work: str
    unit: str
    result: float | None
    target: float
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """Return `MET`, `MISSED` or `NOT_MEASURED`."""
        if self.result is None:
            return NOT_MEASURED
        is_met = self.result >= self.target if self.at_least else self.result <= self.target
        return MET if is_met else MISSED

    def cells(self) -> list[str]:
        """Return the texts for `COLUMNS`."""
        sign = "≥" if self.at_least else "≤"
        return [self.work, self.unit, f"{sign} {self.target:,.12g}", number(self.result), self.verdict]


@dataclass(frozen=True)
class ClientTable:
    """Hold results of this package beside those of other clients.

    :ivar name: name of the table's place in docs/speed.md
    :ivar title: what was measured, and the unit
    :ivar columns: the clients
    :ivar rows: work -> result for each client, None for work that a client cannot do
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[float | None]]

    def show(self) -> None:
        """Print the table."""
        table = Table("", title=self.title)
        for column in self.columns:
            table.add_column(column, justify="right")
        for work, results in self.rows.items():
            table.add_row(work, *map(number, results))
        console.print(table)

    def markdown(self) -> str:
        """Return the lines of the table."""
        rows = [[work, *map(number, results)] for work, results in self.rows.items()]
        return markdown(["", *self.columns], rows)


def number(value: float | None) -> str:
    """Return a text with three significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def show(rows: Iterable[Row], caption: str = "") -> None:
    """Print the table of targets and results.

    :param rows: the rows
    :param caption: text below the table
    """
    table = Table(*COLUMNS[:2], title="targets and results", caption=caption, caption_justify="left")
    for column in COLUMNS[2:]:
        table.add_column(column, justify="right")
    for row in rows:
        *cells, verdict = row.cells()
        table.add_row(*cells, f"[{_COLORS[verdict]}]{verdict}[/]")
    console.print(table)
