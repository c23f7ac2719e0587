"""Writes docs/cluster.md from a run of the cluster tests: `make cluster`."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from tests.support.cluster.services import postgres_bin, redis_path, version_of
from tests.support.servers.openssh_server import sshd_version


@dataclass(frozen=True)
class Row:
    """Hold the cells of a scenario."""

    title: str
    result: str
    again: str


class Page:
    """Collect the results of a run, and write the page afterwards.

    :param path: file of the page
    :param versions: lines with the versions of the programs
    """

    def __init__(self, path: Path, versions: Sequence[str]) -> None:
        self._path = path
        self._versions = versions
        self._rows: list[Row] = []
        self._failed: set[str] = set()
        self._facts: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes the result of a scenario when its test is over."""
        properties: dict[str, Any] = dict(report.user_properties)
        self._facts |= {name: str(value) for name, value in properties.items() if name in FACTS}
        if report.failed:
            self._failed.add(report.nodeid)
        if report.when != "teardown" or "scenario" not in properties:
            return
        title, results, again = properties["scenario"]
        result = "**failed**" if report.nodeid in self._failed else "; ".join(results)
        self._rows.append(Row(title, result, again or "-"))

    def pytest_sessionfinish(self) -> None:
        """Writes the page, unless nothing has run."""
        if self._rows:
            self._path.write_text(self.render(datetime.now(UTC)))

    def render(self, now: datetime) -> str:
        """Return the page with the scenarios so far."""
        head = _HEAD.format(
            day=f"{now:%Y-%m-%d}",
            processors=os.cpu_count(),
            memory=f"{psutil.virtual_memory().total / (1 << 30):.0f}",
            kernel=platform.release().partition("-")[0],
            load=os.getloadavg()[2],
            **{name: self._facts.get(name, "?") for name in FACTS},
        )
        table = [f"| {row.title} | {row.result} | {row.again} |" for row in self._rows]
        return "\n".join(
            [head, *self._versions, "", _SCENARIOS, "| scenario | result | again |", "|---|---|---|", *table, ""]
        )


FACTS: Final = ("start", "pss")
"""Names of the properties that describe the cluster."""


def installed_versions() -> list[str]:
    """Return the list of versions."""
    programs = postgres_bin()
    redis = redis_path()
    assert programs is not None
    assert redis is not None
    names = {
        "apache-airflow": "Airflow",
        "apache-airflow-providers-celery": "its Celery provider",
        "celery": "Celery",
        "paramiko": "paramiko",
    }
    packages = ", ".join(f"{title} {version(name)}" for name, title in names.items())
    return [
        f"* Python {platform.python_version()}, {packages}",
        f"* PostgreSQL {version_of(programs / 'postgres')}, Redis {version_of(redis)}, OpenSSH {sshd_version()}",
    ]


_HEAD = """# On a cluster

`make cluster` writes this page. It starts an Airflow of several machines, runs DAGs with the operators, the sensor and
the watch of this package, and kills, freezes and restarts machines meanwhile. Each row of the table is a test in
`tests/cluster`, and its cells are what the test has measured. `make cluster-quick` runs three of the tests with small
files, as CI does.

## Set-up

Each machine is a program in Linux namespaces of its own (`unshare`): killing a machine kills all of its processes at
once. The two workers have different host names, and each has a scratch directory that the other cannot see. All
machines share the processors and the loopback network of one computer.

* PostgreSQL, Redis, API server, scheduler, DAG processor
* two triggerers
* two Celery workers, with three tasks at once each
* one OpenSSH server behind a relay, which limits each connection to 8 MiB/s in each direction, counts the bytes, and
  keeps back replies or the ends of connections where a scenario needs it

Airflow gives up an attempt after 20 s without a sign of life (`task_instance_heartbeat_timeout`, by default 300 s).
Uploads read from a directory that both workers see. The tests need root, and the distribution's PostgreSQL and Redis.

Run on {day}: {processors} processors, {memory} GiB of memory, Linux {kernel}, with a load of {load:.0f} from this and
other work. From nothing to a complete cluster took {start} s. Its machines used {pss} GiB of memory.
"""

_SCENARIOS = """## Scenarios

Each test compares the server with the sources: the content of every file, and the names of all files, hidden and
temporary ones too. The last column has the bytes on the link that exceed the content of the files. They include the
headers of SSH and SFTP, about 0.5 % of the content.
"""
