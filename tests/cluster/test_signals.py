"""A stopped worker and a task ended in the browser are resumed."""

from __future__ import annotations

import time
from signal import SIGQUIT, SIGTERM, Signals

import pytest

from tests.support.cluster.scenario import MIB, UNACKNOWLEDGED, Scenario

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

SIZE = 128 * MIB


def test_a_worker_that_ends_in_order_completes_its_uploads(scenario: Scenario) -> None:
    scenario.entitle("SIGTERM to the main process of a worker with running uploads")
    sources = [scenario.source(str(number), SIZE // 2) for number in range(4)]
    runs = [scenario.upload(source) for source in sources]
    scenario.wait_for_bytes(SIZE // 2)
    worker = scenario.cluster.worker(runs[0].task().worker)
    running = [run for run in runs if run.task().worker == worker.name]
    worker.signal(SIGTERM)
    scenario.log(f"ended {worker.name}, which has {len(running)} uploads")
    tasks = [task for run in runs for task in run.finish()]
    assert {task.attempt for task in tasks} == {1}
    assert {run.task().worker for run in running} == {worker.name}
    scenario.cluster.wait(lambda: not worker.is_running, "the end of the worker")
    scenario.results.append(f"its {len(running)} uploads end in attempt 1, then the worker ends")
    scenario.check_server({source.name: source for source in sources})
    scenario.check_sent_again(4 * SIZE // 2, 0)


@pytest.mark.parametrize("number", [SIGTERM, SIGQUIT])
def test_a_worker_whose_processes_are_ended_leaves_a_partial_file(scenario: Scenario, number: Signals) -> None:
    scenario.entitle(f"{number.name} to every process of a worker at 50 % of an upload")
    source = scenario.source("file", SIZE)
    run = scenario.upload(source)
    scenario.wait_for_bytes(SIZE // 2)
    worker = scenario.cluster.worker(run.task().worker)
    worker.signal(number, everything=True)
    (last,) = run.finish()
    assert last.attempt == 2
    scenario.results.append("resumed in attempt 2")
    scenario.check_server({source.name: source})
    scenario.check_sent_again(SIZE, UNACKNOWLEDGED)


def test_an_upload_that_is_marked_failed_ends_within_seconds(scenario: Scenario) -> None:
    scenario.entitle("upload marked failed at 50 %, cleared later")
    source = scenario.source("file", SIZE)
    run = scenario.upload(source)
    scenario.wait_for_bytes(SIZE // 2)
    path = f"dags/{run.dag}/dagRuns/{run.run_id}/taskInstances/upload"
    connections = scenario.link.open
    marked_at = time.monotonic()
    scenario.cluster.api.request("PATCH", path, json={"new_state": "failed"})
    scenario.cluster.wait(lambda: scenario.link.open < connections, "the end of the connection", 30)
    scenario.results.append(f"disconnected after {time.monotonic() - marked_at:.1f} s")
    (partial,) = scenario.remote.iterdir()
    assert partial.name.endswith(".part")
    scenario.clear(run)
    run.finish()
    scenario.results.append("completed by the cleared task")
    scenario.check_server({source.name: source})
    scenario.check_sent_again(SIZE, UNACKNOWLEDGED)


def test_an_upload_that_is_cleared_while_it_runs_starts_again(scenario: Scenario) -> None:
    scenario.entitle("upload cleared at 50 % while it is running")
    source = scenario.source("file", SIZE)
    run = scenario.upload(source)
    scenario.wait_for_bytes(SIZE // 2)
    scenario.clear(run)
    run.wait_until(lambda task: task.attempt == 2, "in attempt 2")
    run.finish()
    scenario.results.append("completed by the next attempt")
    scenario.check_server({source.name: source})
    scenario.check_sent_again(SIZE, UNACKNOWLEDGED)
