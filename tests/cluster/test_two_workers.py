"""Two workers share the work, and two runs may have one target."""

from __future__ import annotations

import filecmp

import pytest

from tests.support.cluster.airflow_api import Task
from tests.support.cluster.scenario import MIB, Scenario

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def seconds(tasks: list[Task]) -> float:
    """Return the time from the first start to the last end."""
    starts, ends = [task.started for task in tasks if task.started], [task.ended for task in tasks if task.ended]
    return (max(ends) - min(starts)).total_seconds()


def test_mapped_uploads_are_spread_over_both_workers(scenario: Scenario) -> None:
    scenario.entitle("30 mapped uploads of 1 MiB over both workers")
    sources = [scenario.source(f"{number:02}", MIB) for number in range(30)]
    logins = scenario.cluster.server.logins()
    run = scenario.start_many(sources)
    run.finish(600)
    tasks = run.tasks("upload")
    assert {task.attempt for task in tasks} == {1}
    assert {task.worker for task in tasks} == {worker.name for worker in scenario.cluster.workers}
    assert scenario.cluster.server.logins() - logins == 30
    scenario.results.append("30 logins, all in attempt 1")
    scenario.check_server({f"in/{source.name}": source for source in sources})
    scenario.check_sent_again(30 * MIB, 0, logins=30)


def test_of_two_runs_with_one_target_one_replaces_the_other(scenario: Scenario) -> None:
    scenario.entitle("two runs upload to one target at once, if_exists=replace")
    size = 64 * MIB
    sources = [scenario.source(name, size) for name in ("a", "b")]
    runs = [scenario.start("upload_replacing", source=str(source), target="file") for source in sources]
    for run in runs:
        run.finish()
    winner = sources[filecmp.cmp(sources[1], scenario.remote / "file", shallow=False)]
    scenario.results.append("both succeed; the file is one of the two, whole")
    scenario.check_server({"file": winner})
    scenario.check_sent_again(2 * size, 0)


def test_of_two_runs_with_one_target_only_one_succeeds(scenario: Scenario) -> None:
    scenario.entitle("two runs upload to one target at once, if_exists=fail")
    size = 64 * MIB
    sources = [scenario.source(name, size) for name in ("a", "b")]
    runs = [scenario.start("upload", source=str(source), target="file") for source in sources]
    states = [run.wait_until(lambda task: task.is_over, "over").state for run in runs]
    assert sorted(states) == ["failed", "success"]
    scenario.results.append("one succeeds, the other fails; the file is that of the first")
    scenario.check_server({"file": sources[states.index("success")]})
    scenario.check_sent_again(2 * size, 0)


def test_two_workers_transfer_more_than_one(scenario: Scenario) -> None:
    scenario.entitle("throughput of 12 mapped uploads of 64 MiB, two workers beside one")
    size, count = 64 * MIB, 12
    sources = [scenario.source(f"{number:02}", size) for number in range(count)]
    rates = []
    for workers in (1, 2):
        scenario.cluster.restore()
        if workers == 1:
            scenario.cluster.workers[1].kill()
        run = scenario.start_many(sources, f"with-{workers}/")
        run.finish(600)
        tasks = run.tasks("upload")
        assert len({task.worker for task in tasks}) == workers
        rates.append(count * size / MIB / seconds(tasks))
        scenario.log(f"{workers} workers: {rates[-1]:.1f} MiB/s")
    scenario.results.append(f"{rates[0]:.1f} and {rates[1]:.1f} MiB/s: factor {rates[1] / rates[0]:.2f}")
    files = {f"with-{workers}/{source.name}": source for workers in (1, 2) for source in sources}
    scenario.check_server(files)
    scenario.check_sent_again(2 * count * size, 0, logins=2 * count)
