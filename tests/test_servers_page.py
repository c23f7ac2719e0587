"""Write the page of servers from outcomes and unsupported entries."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.contract.promises import PROMISES, promise_of
from tests.support.contract.servers_page import ALL, Matrix
from tests.support.contract.unsupported import UNSUPPORTED, Unsupported, check_failure, unsupported
from tests.support.servers import REAL_SERVERS, SIMULATED_SERVERS

TOP = Path(__file__).parents[1]
PAGE = TOP / "docs" / "servers.md"
NOW = datetime(2026, 1, 2, tzinfo=UTC)
CONTRACT = sorted((TOP / "tests" / "backend").glob("test_contract_*.py"))
TESTS = {name for path in CONTRACT for name in re.findall(r"^def test_(\w+)", path.read_text(), re.MULTILINE)}
READ_ALL = "Every byte is read, from any offset of the file"
DECLARED = Unsupported("it has no such thing", r"NotFound: .*no such", ("a_test",))


def report(test: str, server: str, outcome: str, *, reason: str | None = None, when: str = "call") -> pytest.TestReport:
    """Build the report of pytest for one test on one server."""
    made = pytest.TestReport(
        nodeid=f"tests/backend/test_contract_x.py::test_{test}[{server}]",
        location=("", 0, ""),
        keywords={},
        outcome=outcome,  # type: ignore[arg-type]  # one of the three
        longrepr=None,
        when=when,  # type: ignore[arg-type]  # one of the three
        user_properties=[("server", server)],
    )
    if reason is not None:
        vars(made)["wasxfail"] = reason
    return made


def cells(page: str, row: str) -> list[list[str]]:
    """The cells of a row, in each table that has it."""
    return [
        [cell.strip() for cell in line.split("|")[2:-1]] for line in page.splitlines() if line.startswith(f"| {row} |")
    ]


def test_a_cell_summarises_the_tests_of_its_promise(tmp_path: Path) -> None:
    matrix = Matrix(tmp_path / "page.md")
    whole, torn, none = "read_bytes_gives_the_whole_file", "read_gives_lines_and_text", "a_closed_reader_does_not_read"
    for test in (whole, torn, none):
        matrix.pytest_runtest_logreport(report(test, "openssh", "passed"))
    matrix.pytest_runtest_logreport(report(whole, "proftpd", "passed"))
    matrix.pytest_runtest_logreport(report(torn, "proftpd", "skipped", reason="it tears lines"))
    matrix.pytest_runtest_logreport(report(torn, "dropbear", "skipped", reason="it has no lines"))
    matrix.pytest_runtest_logreport(report(torn, "rclone", "skipped", reason="it tears lines"))
    matrix.pytest_runtest_logreport(report(whole, "conch", "passed"))
    matrix.pytest_runtest_logreport(report(torn, "conch", "failed"))
    matrix.pytest_runtest_logreport(report(whole, "paramiko", "skipped", when="setup"))
    matrix.pytest_runtest_logreport(report(whole, "asyncssh_plain", "failed", when="setup"))
    matrix.pytest_runtest_logreport(report("of_no_server", "", "failed"))
    page = matrix.render(NOW)
    assert cells(page, READ_ALL)[0] == ["yes", "in part [1]", "no [2]", "no [1]", "**fails**", "not run", "**fails**"]
    assert "* [1] it tears lines" in page.splitlines()
    assert "* [2] it has no lines" in page.splitlines()
    assert "2026-01-02" in page


def test_a_test_without_a_promise_is_a_row_of_its_own(tmp_path: Path) -> None:
    matrix = Matrix(tmp_path / "page.md")
    matrix.pytest_runtest_logreport(report("nothing_of_the_kind_is_promised", "openssh", "passed"))
    assert cells(matrix.render(NOW), "Nothing of the kind is promised")[0][0] == "yes"


def test_every_test_of_a_promise_exists_and_proves_only_one() -> None:
    named = [name for names in PROMISES.values() for name in names]
    assert len(named) == len(set(named))
    assert set(named) <= TESTS
    assert [promise_of(f"test_{name}") for names in PROMISES.values() for name in names] == [
        promise for promise, names in PROMISES.items() for _ in names
    ]


def test_unsupported_entries_name_existing_servers_and_tests() -> None:
    assert set(UNSUPPORTED) <= set(ALL)
    for server, entries in UNSUPPORTED.items():
        tests = [test for entry in entries for test in entry.tests]
        assert len(tests) == len(set(tests)), server
        assert set(tests) <= TESTS, server
        assert all(entry.reason and entry.refusal and re.compile(entry.refusal) for entry in entries)


def test_a_declared_test_must_fail_as_declared() -> None:
    assert check_failure(DECLARED, LookupError("no such")) is not None
    assert check_failure(DECLARED, None) is not None

    class NotFound(Exception):
        pass

    assert check_failure(DECLARED, NotFound("cannot read:\nno such file")) is None
    assert check_failure(DECLARED, NotFound("of another cause")) is not None
    assert unsupported("openssh", "test_a_test") is None


def test_a_declared_test_that_passes_or_fails_otherwise_fails_the_run(tmp_path: Path) -> None:
    start = f"""
import sys, pytest
from tests.support.contract import unsupported
entry = unsupported.Unsupported("of no kind", sys.argv[1], ("read_follows_a_link",))
unsupported.UNSUPPORTED = {{"asyncssh_plain": (entry,)}}
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--servers", "asyncssh_plain", {str(CONTRACT[0].parent)!r}
    + "/test_contract_reading.py", "-k", "read_follows_a_link"]))
"""
    command = [sys.executable, "-c", start, "NotFound"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TOP)
    assert done.returncode == 1
    assert "but it passes: of no kind" in done.stdout


def test_the_committed_page_has_every_promise_and_no_failure() -> None:
    page = PAGE.read_text()
    assert "| **fails**" not in page
    prose = [line for line in Matrix(PAGE).render(NOW).splitlines() if line[:1].isalpha() and "Written on" not in line]
    assert [line for line in prose if line not in page] == []
    for promise in PROMISES:
        real, simulated = cells(page, promise)
        assert len(real) == len(REAL_SERVERS) + 2
        assert len(simulated) == len(SIMULATED_SERVERS)
        assert {cell.split(" [")[0] for cell in real + simulated} <= {"yes", "no", "in part"}
    reasons = {reason for entries in UNSUPPORTED.values() for reason in (entry.reason for entry in entries)}
    assert set(re.findall(r"^\* \[\d+\] (.*)", page, re.MULTILINE)) == reasons
