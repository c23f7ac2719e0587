"""Uploads get through although the server refuses most logins at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cluster.cluster import PATIENT_HEARTBEAT_TIMEOUT
from tests.support.cluster.link import Link
from tests.support.cluster.scenario import MIB, Scenario
from tests.support.servers import OpenSSHServer

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]

LOGINS = 30


def test_thirty_logins_at_once_against_max_startups(scenario: Scenario) -> None:
    scenario.entitle("30 uploads of 1 MiB log in at once to a server with MaxStartups 3:60:6")
    cluster = scenario.cluster
    # Thirty processes that start at once leave no time for frequent signs of life.
    cluster.restart_workers(LOGINS // 2, PATIENT_HEARTBEAT_TIMEOUT)
    sources = [scenario.source(f"{number:02}", MIB) for number in range(LOGINS)]
    with OpenSSHServer({"MaxStartups": "3:60:6"}) as server, Link(server.port) as link:
        remote = server.fresh().path
        scenario.connect(server=server, link=link, base_path=str(remote), timeout=900)
        link.hold_connections(LOGINS)
        run = scenario.start_many(sources)
        cluster.wait(lambda: link.connections >= LOGINS, f"{LOGINS} connections", 900)
        scenario.log(f"{LOGINS} clients wait for the server, which now accepts them at once")
        run.finish(600)
        refused = sum("MaxStartups" in line and line.startswith("drop connection") for line in server.log.splitlines())
        attempts = [task.attempt for task in run.tasks("upload")]
        scenario.results.append(
            f"{link.connections} connections, {refused} of them refused; attempts: {max(attempts)} at most"
        )
        assert refused > 0
        assert server.logins() == LOGINS
        check_files(remote, sources)
        again = link.sent - LOGINS * MIB
        scenario.sent_again = f"{again / MIB:.1f} MiB"
        assert again <= MIB + link.connections * 16384
    cluster.restart_workers()


def check_files(remote: Path, sources: list[Path]) -> None:
    """Assert that a server holds copies of files, and nothing else."""
    held = {path.relative_to(remote).as_posix(): path.read_bytes() for path in remote.rglob("*") if path.is_file()}
    assert held == {f"in/{source.name}": source.read_bytes() for source in sources}
