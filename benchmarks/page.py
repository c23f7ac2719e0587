"""Write the results of a run to docs/speed.md and README.md."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from .targets import COLUMNS, ClientTable, Row, markdown

_TOP: Final = Path(__file__).parents[1]
PAGES: Final = (_TOP / "docs/speed.md", _TOP / "README.md")


def machine() -> str:
    """Return the processors and the versions that matter for speed."""
    information = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)", information.read_text(), re.MULTILINE) if information.exists() else None
    processors = f"{os.cpu_count()} processors" + (f" ({model[1]})" if model else "")
    version = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr.split(",")[0].strip()
    return f"{processors}, Python {platform.python_version()}, {version}"


def with_targets(page: str, rows: Iterable[Row], run: str, description: str, keep: bool) -> str:
    """Put rows into the table of targets, if the page has one.

    Each row names its run, and below the table each run is described.

    :param page: text of the page
    :param rows: rows of a run; each replaces the row of the same work and unit
    :param run: name of the run
    :param description: machine and load of the run
    :param keep: keep rows of other runs
    :returns: the text with the rows
    """
    if "<!-- targets -->" not in page:
        return page
    lines = _block(page, "targets").splitlines() if keep else []
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    table = {(row[0], row[1]): row for row in cells[2:]}
    table |= {(row.work, row.unit): [*row.cells(), run] for row in rows}
    described = dict(line[2:].split(": ", 1) for line in lines if line.startswith("* ")) | {run: description}
    used = {row[-1] for row in table.values()}
    runs = "".join(f"* {name}: {text}\n" for name, text in described.items() if name in used)
    return _replace(page, "targets", f"{markdown([*COLUMNS, 'run'], table.values())}\n{runs}")


def with_clients(page: str, table: ClientTable, run: str) -> str:
    """Replace a table of clients, if the page has one.

    :param page: text of the page
    :param table: the table
    :param run: name of the run
    :returns: the text with the table
    """
    if f"<!-- {table.name} -->" not in page:
        return page
    return _replace(page, table.name, f"{table.title} ({run}):\n\n{table.markdown()}")


def _block(page: str, name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", page, re.DOTALL)
    assert found is not None, f"the page has no end of {name}"
    return found[1]


def _replace(page: str, name: str, text: str) -> str:
    place = f"<!-- {name} -->\n{{}}<!-- /{name} -->"
    return page.replace(place.format(_block(page, name)), place.format(text))
