"""Record a run of the tests in docs/versions.md.

Usage: ``python scripts/versions_page.py TABLE --results JUNIT_XML ...``

``make matrix`` calls the script once for each row. The row replaces the row of the same versions; other rows keep their
results and dates. The exit status is 1 if a test or the demo failed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

PAGE: Final = Path(__file__).parents[1] / "docs/versions.md"
COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "airflow": ("Airflow", "Python", "dependencies", "passed", "repeated", "skipped", "failed", "demo", "date"),
    "backend": ("Python", "dependencies", "passed", "repeated", "skipped", "failed", "date"),
}
"""Columns of the tables; those before ``passed`` identify a row, and Python only with its minor version."""

Row = dict[str, str]


def read_rows(page: str, table: str) -> list[Row]:
    """Read a table of the page.

    :param page: text of the page
    :param table: ``airflow`` or ``backend``
    :returns: the rows, as cells by column
    """
    lines = _table(page, table).strip().splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(COLUMNS[table], row, strict=True)) for row in cells]


def write_row(page: str, table: str, row: Row) -> str:
    """Replace or add the row of a combination of versions.

    :param page: text of the page
    :param table: ``airflow`` or ``backend``
    :param row: the cells by column
    :returns: the text with the row
    """
    rows = [other for other in read_rows(page, table) if _key(other) != _key(row)]
    lines = [
        f"| {' | '.join(COLUMNS[table])} |",
        "|---" * len(COLUMNS[table]) + "|",
        *(f"| {' | '.join(each[column] for column in COLUMNS[table])} |" for each in sorted([*rows, row], key=_key)),
    ]
    return page.replace(_table(page, table), "\n".join(["", *lines, ""]))


def minor(version: str) -> str:
    """Return the first two numbers of a version."""
    return ".".join(version.split(".")[:2])


def _table(page: str, table: str) -> str:
    found = re.search(rf"<!-- {table} -->(.*?)<!-- /{table} -->", page, re.DOTALL)
    assert found is not None, f"docs/versions.md has no marker for the table {table}"
    return found[1]


def _key(row: Row) -> tuple[object, ...]:
    numbers = [tuple(int(part) for part in text.split(".")) for text in (row.get("Airflow", "0"), minor(row["Python"]))]
    return (*numbers, row["dependencies"] != "newest")


def _outcomes(results: Path) -> dict[str, str]:
    """Return ``passed``, ``skipped`` or ``failed`` for each test of a JUnit file."""
    found: dict[str, str] = {}
    for case in ElementTree.parse(results).getroot().iter("testcase"):  # noqa: S314 - written by pytest
        test, tags = f"{case.get('classname')}::{case.get('name')}", {part.tag for part in case}
        if tags & {"failure", "error"}:
            found[test] = "failed"
        else:  # a test whose call and teardown fail has two elements
            found.setdefault(test, "skipped" if "skipped" in tags else "passed")
    return found


def _count(files: Sequence[Path]) -> tuple[dict[str, int], list[str]]:
    """Count the outcomes in JUnit files, and list the failed tests.

    The last outcome of a test counts.
    """
    first, *others = map(_outcomes, files)
    repeated = {test: outcome for other in others for test, outcome in other.items() if first.get(test) == "failed"}
    outcomes = first | repeated
    counts = Counter(outcomes.values())
    failed = sorted(test for test, outcome in outcomes.items() if outcome == "failed")
    passed_then = sum(outcome == "passed" for outcome in repeated.values())
    return {"repeated": passed_then, **{name: counts[name] for name in ("passed", "skipped", "failed")}}, failed


def main() -> int:
    """Write the row, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=[*COLUMNS, "check"], help="'check' prints the result and writes no row")
    parser.add_argument(
        "--results", type=Path, nargs="+", required=True, help="JUnit files: of the run, and of what was repeated"
    )
    parser.add_argument("--python", required=True)
    parser.add_argument("--airflow", default="")
    parser.add_argument("--dependencies", default="newest")
    parser.add_argument("--demo", default="passed", choices=["passed", "failed"])
    given = parser.parse_args()
    counts, failed = _count(given.results)
    row = {
        "Airflow": given.airflow, "Python": given.python, "dependencies": given.dependencies, "demo": given.demo,
        "date": f"{datetime.now(UTC):%Y-%m-%d}", **{name: str(count) for name, count in counts.items()},
    }  # fmt: skip
    if given.table in COLUMNS:
        columns = COLUMNS[given.table]
        PAGE.write_text(write_row(PAGE.read_text(), given.table, {column: row[column] for column in columns}))
    for test in failed:
        print(f"failed: {test}")
    passed = f"{counts['passed']} passed ({counts['repeated']} when repeated)"
    print(f"{passed}, {counts['failed']} failed, {counts['skipped']} skipped; demo {given.demo}")
    return 1 if failed or not counts["passed"] or given.demo == "failed" else 0


if __name__ == "__main__":
    sys.exit(main())
