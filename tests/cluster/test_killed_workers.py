"""Transfers continue on the other worker when a worker fails."""

from __future__ import annotations

import time

import pytest

from tests.support.cluster.airflow_api import Task
from tests.support.cluster.scenario import MIB, UNACKNOWLEDGED, Run, Scenario

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def kill_worker(scenario: Scenario, run: Run) -> str:
    """Kill the machine with a run's only task; return its name."""
    name = run.task().worker
    scenario.cluster.worker(name).kill()
    scenario.log(f"killed {name}")
    return name


def finish_elsewhere(scenario: Scenario, run: Run, first: str) -> Task:
    """Wait for the second attempt, which runs on the other worker."""
    lost_at = time.monotonic()
    (last,) = run.finish()
    seconds = time.monotonic() - lost_at
    scenario.results.append(f"attempt {last.attempt} on the other worker, which is done after {seconds:.0f} s")
    assert (last.attempt, last.worker) == (2, scenario.cluster.other_worker(first).name)
    return last


@pytest.mark.parametrize(
    ("dag", "size"),
    [
        pytest.param("upload", 32 * MIB, marks=pytest.mark.quick, id="32 MiB"),
    ],
)
def test_the_other_worker_resumes_an_upload(scenario: Scenario, dag: str, size: int) -> None:
    scenario.entitle("kill -9 of the worker at 50 % of an upload")
    source = scenario.source("file", size)
    run = scenario.upload(source, dag)
    scenario.wait_for_bytes(size // 2)
    first = kill_worker(scenario, run)
    finish_elsewhere(scenario, run, first)
    scenario.check_server({source.name: source})
    scenario.check_sent_again(size, UNACKNOWLEDGED)


@pytest.mark.quick
def test_a_renamed_upload_is_recognised_without_the_reply(scenario: Scenario) -> None:
    scenario.entitle("kill -9 of the worker between the server's rename and its reply")
    source = scenario.source("file", 32 * MIB)
    final = scenario.remote / source.name
    scenario.link.hold_replies_when(final.exists)
    run = scenario.upload(source)
    scenario.cluster.wait(final.exists, "the rename")
    first = kill_worker(scenario, run)
    scenario.link.hold_replies_when(None)
    written = final.stat()
    finish_elsewhere(scenario, run, first)
    (row,) = scenario.cluster.api.result(run.dag, run.run_id, "upload")
    assert row["action"] == "uploaded by an earlier attempt"
    scenario.results.append("the file of the first attempt is recognised")
    assert (final.stat().st_ino, final.stat().st_mtime) == (written.st_ino, written.st_mtime)
    scenario.check_server({source.name: source})
    scenario.check_sent_again(32 * MIB, 0)


def test_a_worker_that_thaws_does_not_disturb_its_successor(scenario: Scenario) -> None:
    scenario.entitle("worker frozen at 50 % of an upload, thawed while the second attempt is sending")
    size = 128 * MIB
    source = scenario.source("file", size)
    run = scenario.upload(source)
    scenario.wait_for_bytes(size // 2)
    first = run.task().worker
    scenario.cluster.worker(first).freeze()
    scenario.log(f"froze {first}")
    run.wait_until(lambda task: task.attempt == 2 and task.state == "running", "in attempt 2")
    scenario.wait_for_bytes(scenario.sent + 8 * MIB)
    scenario.cluster.worker(first).thaw()
    scenario.log(f"thawed {first}")
    finish_elsewhere(scenario, run, first)
    scenario.check_server({source.name: source})
    scenario.check_sent_again(size, UNACKNOWLEDGED + 8 * MIB)


def test_an_upload_survives_a_half_open_connection(scenario: Scenario) -> None:
    scenario.entitle("half-open connection: at 50 % of an upload the server is gone, and nothing says so to the worker")
    size = 128 * MIB
    scenario.connect(io_timeout=5)
    source = scenario.source("file", size)
    run = scenario.upload(source)
    scenario.wait_for_bytes(size // 2)
    scenario.link.lose_server()
    scenario.log("the server is lost")
    (last,) = run.finish()
    assert last.attempt == 1
    scenario.results.append("reconnected after io_timeout, attempt 1")
    scenario.check_server({source.name: source})
    scenario.check_sent_again(size, UNACKNOWLEDGED)


def test_a_machine_without_power_leaves_a_session_that_does_no_harm(scenario: Scenario) -> None:
    scenario.entitle("half-open connection: the worker's machine is gone at 50 %, and nothing says so to the server")
    size = 128 * MIB
    source = scenario.source("file", size)
    run = scenario.upload(source)
    scenario.wait_for_bytes(size // 2)
    scenario.link.lose_clients()
    first = kill_worker(scenario, run)
    finish_elsewhere(scenario, run, first)
    scenario.link.forget_lost()
    scenario.check_server({source.name: source})
    scenario.check_sent_again(size, UNACKNOWLEDGED)
