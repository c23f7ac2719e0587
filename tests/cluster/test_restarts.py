"""Transfers and waits survive the restart of each service."""

from __future__ import annotations

import time

import pytest

from tests.support.cluster.scenario import MIB, UNACKNOWLEDGED, Scenario

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

SIZE, COUNT = 48 * MIB, 12


def test_uploads_survive_restarts_of_broker_and_api_server(scenario: Scenario) -> None:
    scenario.entitle(f"Redis and the API server killed and restarted while {COUNT} uploads of 48 MiB run or wait")
    cluster = scenario.cluster
    sources = [scenario.source(f"{number:02}", SIZE) for number in range(COUNT)]
    run = scenario.start_many(sources)
    scenario.wait_for_bytes(SIZE)
    cluster.broker.kill()
    scenario.log("killed Redis")
    scenario.wait_for_bytes(4 * SIZE)
    cluster.broker.start()
    scenario.log("started Redis")
    cluster.api_server.kill()
    cluster.api_server.start()
    scenario.log("restarted the API server")
    cluster.wait(cluster.api.answers, "the API server", 300)
    scenario.log("the API server answers")
    run.finish(800)
    attempts = [task.attempt for task in run.tasks("upload")]
    scenario.results.append(f"{attempts.count(1)} of {COUNT} in attempt 1, the others in attempt {max(attempts)}")
    scenario.check_server({f"in/{source.name}": source for source in sources})
    scenario.check_sent_again(COUNT * SIZE, sum(attempt - 1 for attempt in attempts) * UNACKNOWLEDGED, logins=COUNT)


def test_an_upload_survives_a_restart_of_the_database(scenario: Scenario) -> None:
    scenario.entitle("PostgreSQL restarted at 50 % of an upload")
    cluster = scenario.cluster
    source = scenario.source("file", 128 * MIB)
    run = scenario.upload(source)
    scenario.wait_for_bytes(64 * MIB)
    cluster.database.stop()
    scenario.log("PostgreSQL has ended")
    cluster.database.start()
    (last,) = run.finish()
    scenario.results.append(f"completed in attempt {last.attempt}")
    scenario.check_server({source.name: source})
    scenario.check_sent_again(128 * MIB, (last.attempt - 1) * UNACKNOWLEDGED)


def test_uploads_and_waits_survive_a_server_that_is_away(scenario: Scenario) -> None:
    scenario.entitle("sshd away for 8 s at 50 % of an upload, and while ten sensors are deferred")
    cluster = scenario.cluster
    source = scenario.source("file", 128 * MIB)
    names = [f"{number}" for number in range(10)]
    waits = scenario.start("wait_many", names=names)
    cluster.wait(lambda: scenario.link.open > 0, "the first poll")
    run = scenario.upload(source)
    scenario.wait_for_bytes(64 * MIB)
    cluster.server.die()
    away = time.monotonic()
    scenario.log("sshd has ended")
    cluster.wait(lambda: time.monotonic() - away > 8, "8 s")
    cluster.server.revive(same_port=True)
    scenario.log("sshd is back")
    (last,) = run.finish()
    files = {name: scenario.source(name, 1024) for name in names}
    scenario.put(files)
    tasks = waits.finish()
    assert {task.attempt for task in tasks} == {1}
    scenario.results.append(f"upload completed in attempt {last.attempt}, sensors in attempt 1")
    scenario.check_server({source.name: source, **files})
    scenario.check_sent_again(128 * MIB, UNACKNOWLEDGED)
