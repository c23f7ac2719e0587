"""README, classifiers and requirements name the versions that docs/versions.md proves."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from scripts.versions_page import minor, read_rows, write_row

TOP = Path(__file__).parents[1]
PAGE = (TOP / "docs/versions.md").read_text()
README = (TOP / "README.md").read_text()
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
AIRFLOW_ROWS = read_rows(PAGE, "airflow")
ROW = {
    "Airflow": "3.1.8", "Python": "3.13.0", "dependencies": "newest", "passed": "10", "repeated": "0",
    "skipped": "1", "failed": "0", "demo": "passed", "date": "2026-01-02",
}  # fmt: skip


IN_CI = {
    "floor": re.findall(r'^FLOOR: Final = "(.+)"$', (TOP / "noxfile.py").read_text(), re.MULTILINE)[0],
    "newest": re.findall(r"^apache-airflow==(.+)$", (TOP / "constraints.txt").read_text(), re.MULTILINE)[0],
}
"""The versions of Airflow that `.ci/run` tests each change with."""
PYTHONS_IN_CI = {"3.11", "3.12"}


def has_passed(row: dict[str, str]) -> bool:
    return row["failed"] == "0" and int(row["passed"]) > 100 and row.get("demo", "passed") == "passed"


def test_classifiers_name_only_pythons_that_have_passed() -> None:
    found = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    assert set(found) <= PYTHONS_IN_CI | {minor(row["Python"]) for row in AIRFLOW_ROWS if has_passed(row)}


def test_the_readme_names_only_versions_that_have_passed() -> None:
    section = README[README.index("## Supported versions") : README.index("## Guides")]
    named = set(re.findall(r"(?<![\d.])3\.\d+\.\d+", section))
    assert (
        set(IN_CI.values()) <= named <= {*IN_CI.values(), *(row["Airflow"] for row in AIRFLOW_ROWS if has_passed(row))}
    )


def test_the_oldest_airflow_in_ci_is_the_oldest_allowed() -> None:
    assert f"apache-airflow>={IN_CI['floor']}" in PROJECT["dependencies"]
    pinned = (TOP / f"constraints/airflow-{IN_CI['floor']}.txt").read_text().splitlines()
    assert f"apache-airflow=={IN_CI['floor']}" in pinned
    assert "make floor" in (TOP / "README.md").read_text() + (TOP / "CONTRIBUTING.md").read_text()


def test_a_row_replaces_the_one_of_the_same_versions() -> None:
    page = write_row("<!-- airflow -->\n| head |\n|---|\n<!-- /airflow -->", "airflow", ROW)
    older = ROW | {"Airflow": "3.0.6", "dependencies": "lowest"}
    page = write_row(write_row(page, "airflow", older), "airflow", ROW | {"Python": "3.13.9", "passed": "11"})
    assert read_rows(page, "airflow") == [older, ROW | {"Python": "3.13.9", "passed": "11"}]


def results(path: Path, **outcomes: str) -> Path:
    """Write a JUnit file: ``failure``, ``error``, ``skipped`` or nothing for each test."""
    cases = [f'<testcase name="{name}">{tag and f"<{tag}/>"}</testcase>' for name, tag in outcomes.items()]
    path.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    return path


def record(*files: Path) -> tuple[int, list[str]]:
    """Run the script without a page; return its status and its lines."""
    command: list[str | Path] = [sys.executable, TOP / "scripts/versions_page.py", "check", "--python", "3.11.7"]
    done = subprocess.run([*command, "--results", *files], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()


def test_a_failed_test_fails_the_session(tmp_path: Path) -> None:
    once = results(tmp_path / "once.xml", x="failure", y="", z="skipped", broken="error")
    again = results(tmp_path / "again.xml", x="failure", broken="")
    line = "passed (0 when repeated), 2 failed, 1 skipped; demo passed"
    assert record(once) == (1, ["failed: None::broken", "failed: None::x", f"1 {line}"])
    line = "passed (1 when repeated), 1 failed, 1 skipped; demo passed"
    assert record(once, again) == (1, ["failed: None::x", f"2 {line}"])


def test_a_failed_test_that_passes_when_repeated_is_counted(tmp_path: Path) -> None:
    once = results(tmp_path / "once.xml", x="failure", y="")
    again = results(tmp_path / "again.xml", x="")
    assert record(once, again) == (0, ["2 passed (1 when repeated), 0 failed, 0 skipped; demo passed"])
