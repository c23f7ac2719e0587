"""The page of the cluster is written from outcomes, and is committed."""

from __future__ import annotations

import ast
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.cluster.page import Page

TOP = Path(__file__).parents[1]
SCENARIOS = [
    node
    for path in sorted((TOP / "tests" / "cluster").glob("test_*.py"))
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
]


def report(test: str, when: str, outcome: str = "passed", again: str = "") -> pytest.TestReport:
    """Build pytest's report for one phase of a scenario."""
    return pytest.TestReport(
        nodeid=f"tests/cluster/test_x.py::test_{test}",
        location=("", 0, ""),
        keywords={},
        outcome=outcome,  # type: ignore[arg-type]  # passed or failed
        longrepr=None,
        when=when,  # type: ignore[arg-type]  # call or teardown
        user_properties=[("scenario", (f"scenario {test}", ["equal", "attempt 2"], again)), ("start", "81")],
    )


def test_a_row_has_what_its_scenario_has_measured(tmp_path: Path) -> None:
    page = Page(tmp_path / "page.md", ["a version"])
    page.pytest_runtest_logreport(report("a", "call"))
    page.pytest_runtest_logreport(report("a", "teardown", again="1.5 MiB"))
    page.pytest_runtest_logreport(report("b", "call", "failed"))
    page.pytest_runtest_logreport(report("b", "teardown"))
    lines = page.render(datetime(2026, 1, 2, tzinfo=UTC)).splitlines()
    assert [line for line in lines if line.startswith("| scenario ")][1:] == [
        "| scenario a | equal; attempt 2 | 1.5 MiB |",
        "| scenario b | **failed** | - |",
    ]
    text = " ".join(lines)
    assert "Run on 2026-01-02" in text
    assert "took 81 s" in text


def test_a_run_without_scenarios_leaves_the_page_as_it_is(tmp_path: Path) -> None:
    Page(tmp_path / "page.md", []).pytest_sessionfinish()
    assert not (tmp_path / "page.md").exists()


def test_three_scenarios_are_quick() -> None:
    marks = [mark for node in SCENARIOS for mark in re.findall(r"mark\.quick", ast.unparse(node))]
    assert len(marks) == 3
