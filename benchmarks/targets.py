"""Define the rows of the table of targets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """Hold a result and its target.

    :ivar work: what was measured
    :ivar unit: unit of result and target, such as ``x sftp``
    :ivar result: the median of all rounds
    :ivar target: the least result, or the greatest
    :ivar at_least: the target is the least result
    """

    work: str
    unit: str
    result: float
    target: float
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        """Return whether the result meets the target."""
        return self.result >= self.target if self.at_least else self.result <= self.target


def show(rows: Iterable[Row]) -> bool:
    """Print a table of targets and results.

    :param rows: the rows
    :returns: True if all targets are met
    """
    table = Table("work", "unit", title="targets and results")
    for column in ("target", "result", ""):
        table.add_column(column, justify="right")
    all_met = True
    for row in rows:
        verdict = "[green]met[/]" if row.is_met else "[red]missed[/]"
        sign = "≥" if row.at_least else "≤"
        table.add_row(row.work, row.unit, f"{sign} {row.target:,.4g}", f"{row.result:,.3g}", verdict)
        all_met = all_met and row.is_met
    Console(highlight=False, soft_wrap=True, width=120).print(table)
    return all_met
