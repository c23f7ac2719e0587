"""Write docs/servers.md from a run of the contract suite.

`make servers` runs it. A cell says what the tests of this run did, and nothing is written by hand but the texts above
and below the tables.
"""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import asyncssh
import pytest

from tests.support.contract.promises import PROMISES, promise_of
from tests.support.servers import REAL_SERVERS, SIMULATED_SERVERS
from tests.support.servers.openssh_server import sshd_version

OPENSSH, ASYNCSSH = "openssh", "asyncssh_plain"
REAL = (OPENSSH, *REAL_SERVERS, ASYNCSSH)
"""Names of the ``server`` fixture that stand for servers people run."""
SIMULATED = tuple(SIMULATED_SERVERS)
ALL = (*REAL, *SIMULATED)


@dataclass
class Cell:
    """Outcomes of the tests of one promise on one server."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def add(self, test: str, report: pytest.TestReport) -> None:
        """Counts one test."""
        if report.failed:
            self.failed.append(test)
        elif report.passed:
            self.passed += 1
        elif (reason := getattr(report, "wasxfail", None)) is not None:
            self.reasons += [reason] if reason not in self.reasons else []

    def text(self, numbers: Mapping[str, int]) -> str:
        """Format the cell; ``numbers`` are those of the reasons."""
        if self.failed:
            return "**fails**"
        notes = " ".join(f"[{numbers[reason]}]" for reason in self.reasons)
        if self.reasons:
            return f"in part {notes}" if self.passed else f"no {notes}"
        return "yes" if self.passed else "not run"


class Matrix:
    """Collect the outcomes of a run, then write the page."""

    def __init__(self, page: Path) -> None:
        self._page = page
        self._cells: dict[str, dict[str, Cell]] = defaultdict(lambda: defaultdict(Cell))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record the outcome of a test, or of its failed set-up."""
        server = dict(report.user_properties).get("server")
        if server is None or (report.when != "call" and not report.failed):
            return
        test = report.nodeid.rpartition("::")[2].partition("[")[0]
        self._cells[str(server)][promise_of(test)].add(test, report)

    def pytest_sessionfinish(self) -> None:
        """Writes the page."""
        self._page.write_text(self.render(datetime.now(UTC)))

    def render(self, now: datetime) -> str:
        """The page as it is after the tests so far."""
        return "\n".join(
            [
                _HEAD.format(day=f"{now:%Y-%m-%d}", python=platform.python_version()),
                *_versions(),
                "",
                "## What holds on which server",
                "",
                *self._tables(REAL),
                "",
                _SIMULATED,
                *self._tables(SIMULATED),
                "",
                _NOT_TESTED,
            ]
        )

    def _tables(self, servers: Sequence[str]) -> Iterator[str]:
        """One matrix, and the numbered reasons below it."""
        columns = [self._cells[server] for server in servers]
        numbers: dict[str, int] = {}
        rows = [*PROMISES, *sorted({row for column in columns for row in column} - set(PROMISES))]
        yield f"| promise | {' | '.join(map(_title, servers))} |"
        yield "|---" * (len(servers) + 1) + "|"
        for row in rows:
            for column in columns:
                for reason in column[row].reasons:
                    numbers.setdefault(reason, len(numbers) + 1)
            yield f"| {row} | {' | '.join(column[row].text(numbers) for column in columns)} |"
        if numbers:
            yield ""
        for reason, number in numbers.items():
            yield f"* [{number}] {reason}"


def _title(server: str) -> str:
    """Return the name of a server on the page."""
    if server in REAL_SERVERS:
        return REAL_SERVERS[server].title
    return {OPENSSH: "OpenSSH", ASYNCSSH: "asyncssh"}.get(server, server)


def _versions() -> Iterator[str]:
    """The list of servers with their versions."""
    yield f"* OpenSSH {sshd_version()}"
    for kind in REAL_SERVERS.values():
        missing = kind.missing()
        yield f"* {kind.title} {kind.version() if missing is None else f'(not run: it needs {missing})'}"
    yield f"* asyncssh {asyncssh.__version__}"


_HEAD = """# Promises by server

`make servers` writes this page. The command starts each server below on loopback, runs the contract suite against it
(`tests/backend/test_contract_*.py`, through the public methods of `SFTPBackend`), and turns the results into the
tables. To reproduce the page, run `make servers` in a clone. As root, the command installs the servers with apt;
servers that are not installed are skipped.

* **yes**: every test of this promise passed.
* **in part** and **no**: the server makes the promise impossible, in part or as a whole. The number refers to the
  reason. These tests run too, and must fail as declared in `tests/support/contract/unsupported.py`.
* **not run**: the server was not installed.
* **fails**: the promise is broken on this server. `make test` checks that the committed page has no such cell.

Written on {day}, with Python {python} on Linux, against these versions:
"""

_SIMULATED = """## Simulated: what servers refuse that cannot run here

Each column is asyncssh's server with the refusals that another server documents, and nothing else of that server. The
column proves that these refusals do no harm, not that the package works on that service.

* no-posix-rename: plain rename only, which refuses an existing target.
* no-extensions: SFTP version 3 without any extension.
* one-channel: refuses a second channel on a connection.
* azure-like, after Azure Blob Storage: posix-rename refuses an existing target; no other extension; no symbolic
  links; no file is opened for reading and writing at once. (The tests create links outside the server: the rows on
  links do not apply to a service without links.)
* aws-like, after AWS Transfer Family: modes and times are refused (SETSTAT, FSETSTAT); a file is written from its start
  and in order; no extensions.
"""

_NOT_TESTED = """Two more servers are simulated in separate tests, because they refuse requests that most tests need:

* A mailbox, after IBM Sterling File Gateway: a file can be opened once, and neither opened nor examined afterwards.
  `write`, `write_atomic`, `upload` and `download` work there, each file once
  (`tests/backend/transfers/test_mailbox.py`).
* A drop box: it accepts files, and refuses to examine, list and return them. `write` and `write_atomic` work there
  (`tests/backend/test_contract_moving_and_deleting.py`).

## Not tested

Nobody has run the package against these servers. If you do, please send us the output of `airflow-sftp-backend check`.

| server | simulation |
|---|---|
| Azure Blob Storage (SFTP) | azure-like, above |
| AWS Transfer Family | aws-like, above |
| IBM Sterling File Gateway | the mailbox, above |
| OpenSSH for Windows | none: it is treated as an unknown server |
| SFTPGo, GoAnywhere MFT, MOVEit, Globalscape EFT, Cerberus, CrushFTP, Serv-U, WS_FTP, Bitvise, VShell | none |

Nothing is assumed of an unknown server: the package examines a name before it writes and again afterwards. This takes
more requests than on OpenSSH.
"""
