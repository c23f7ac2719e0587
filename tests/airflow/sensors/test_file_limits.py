"""The sensor logs why files do not count, and ignores no limit."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from airflow_sftp_backend.sensors import SFTPFileSensor
from tests.support.airflow.context import context
from tests.support.airflow.supervised_task import run as run_supervised
from tests.support.airflow.versions import AirflowFailException, AirflowRescheduleException, AirflowSensorTimeout
from tests.support.files import write_files


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_newer_than_fails_in_runs_without_a_logical_date(remote: Path, mode: str, empty: str | None) -> None:
    write_files(remote, {"a": b""})
    for run in ("asset_triggered", "manual"):  # the API starts manual runs, with a logical date or without
        waiting = SFTPFileSensor(task_id="wait", path="a", mode=mode, newer_than="{{ prev_start_date_success or '' }}")
        waiting.newer_than = empty  # as rendering leaves it
        with pytest.raises(
            AirflowFailException, match=r"newer_than is empty: .*only_new=True .*move each file to an archive"
        ):
            waiting.execute(context(run_type=run))
        waiting.execute(context(run_type=run, logical_date=datetime.now(UTC)))
    SFTPFileSensor(task_id="wait", path="a", mode=mode).execute(context(run_type="asset_triggered"))


@pytest.mark.parametrize(("run_type", "dated"), [("asset_triggered", False), ("scheduled", True)])
def test_an_empty_newer_than_template_fails_only_in_undated_runs(
    remote: Path, tmp_path: Path, run_type: str, dated: bool
) -> None:
    write_files(remote, {"a": b""})
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags/waiting.py").write_text(
        "from airflow.sdk import DAG\n"
        "from airflow_sftp_backend.sensors.sftp import SFTPFileSensor\n"
        "with DAG('waiting'):\n"
        "    SFTPFileSensor(task_id='wait', path='a', newer_than=\"{{ prev_start_date_success or '' }}\")\n"
    )
    lines = run_supervised(tmp_path / "dags", "waiting", "wait", tmp_path / "log", run_type=run_type, dated=dated)
    log = json.dumps(lines)
    assert ("newer_than is empty" in log) is not dated
    assert ("found" in log.lower() or "success" in log.lower()) or not dated


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
def test_the_log_says_why_an_existing_file_is_not_eligible(
    remote: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(remote, {"in/a\x1b.csv": b"", "in/small.csv": b"abc", "in/old.csv": bytes(20)})
    os.utime(remote / "in/old.csv", (1_700_000_000, 1_700_000_000))
    since = datetime(2026, 1, 1, tzinfo=UTC)
    waiting = SFTPFileSensor(
        task_id="wait", pattern="in/*.csv", min_size=10, newer_than=since, mode=mode, timeout=0.2, poke_interval=0.1
    )
    with pytest.raises((AirflowSensorTimeout, AirflowRescheduleException)):
        waiting.execute(context())
    log = capsys.readouterr().out
    assert "'in/small.csv' does not count: 3 of 10 bytes" in log
    assert "'in/old.csv' does not count: modified 2023-11-14T22:13:20+00:00, not newer than 2026-01-01" in log
    assert "\x1b" not in log
