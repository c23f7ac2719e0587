"""Deferred sensors and watches survive the loss of a triggerer."""

from __future__ import annotations

import pytest

from tests.support.cluster.cluster import CAPACITY
from tests.support.cluster.scenario import MIB, Run, Scenario

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def states(run: Run) -> list[str]:
    """Return the states of all tasks."""
    return [task.state for task in run.tasks()]


@pytest.mark.parametrize("count", [pytest.param(10, marks=pytest.mark.quick)])
def test_sensors_on_two_triggerers_survive_the_loss_of_one(scenario: Scenario, count: int) -> None:
    scenario.entitle(f"{count} deferred sensors on two triggerers, one of which is killed")
    cluster = scenario.cluster
    # Airflow does not share the waits out: what one triggerer has no room for goes to the other.
    if count * 3 // 5 != CAPACITY:
        cluster.restart_triggerers(count * 3 // 5)
    names = [f"{number:03}" for number in range(count)]
    run = scenario.start("wait_many", names=names)
    cluster.wait(lambda: sum(one.triggerer is not None for one in run.tasks("wait")) == count, "the sensors", 300)
    holders = {task.triggerer for task in run.tasks("wait")}
    assert len(holders) == 2
    cluster.wait(lambda: scenario.link.open == 2, "a connection of each triggerer")
    logins = cluster.server.logins()
    scenario.log("both triggerers poll, over one connection each")
    sources = {name: scenario.source(name, MIB) for name in names}
    scenario.put(dict(list(sources.items())[: count // 2]))
    cluster.wait(lambda: states(run).count("success") > count // 2, "the first half", 300)
    cluster.triggerers[0].kill()
    scenario.log("killed a triggerer")
    scenario.put(dict(list(sources.items())[count // 2 :]))
    run.finish(300)
    tasks = run.tasks("wait")
    assert {task.attempt for task in tasks} == {1}
    rows = [cluster.api.result(run.dag, run.run_id, "wait", task.index) for task in tasks]
    assert sorted(row["path"] for each in rows for row in each) == names
    more = cluster.server.logins() - logins
    scenario.results.append(f"one connection a triggerer, all in attempt 1, {more} logins more after the first poll")
    assert more <= 2
    scenario.check_server(sources)
