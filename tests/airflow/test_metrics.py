"""Counters of tasks reach the receivers that Airflow's settings name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
from packaging.version import Version

from airflow_sftp_backend import _metrics
from airflow_sftp_backend._cancellation import TaskKilled
from airflow_sftp_backend._file_rows import CompletedAction
from airflow_sftp_backend._metrics import CONNECTION_COUNTERS, DURATION, FILES, ConnectionMetrics, send_file_metrics
from airflow_sftp_backend._polling.shared_connection import SharedConnection
from airflow_sftp_backend.backend import BackendStatistics
from airflow_sftp_backend.hooks.sftp import SFTPBackendHook
from airflow_sftp_backend.version_compat import task_metrics, triggerer_metrics
from tests.support.airflow.arguments import condition_for
from tests.support.airflow.connections import Connect
from tests.support.airflow.supervised_task import run
from tests.support.airflow.versions import AIRFLOW_VERSION
from tests.support.metrics_receivers import StatsD, counters, otlp_collector, timers
from tests.support.servers import AsyncsshServer, Folder

NAMES = "airflow.sftp_backend."
DAG = """
from airflow.sdk import DAG, task
from airflow_sftp_backend.hooks import SFTPBackendHook
from airflow_sftp_backend.operators import SFTPDownloadOperator, SFTPMoveOperator, SFTPUploadOperator
from airflow_sftp_backend.sensors import SFTPFileSensor

with DAG("work"):
    SFTPUploadOperator(task_id="upload", source={source!r}, target="in/", if_exists="skip", sftp_conn_id={conn_id!r})
    SFTPDownloadOperator(task_id="download", source=["in/a", "gone"], target={target!r}, sftp_conn_id={conn_id!r})
    SFTPFileSensor(task_id="wait", path="in/a", sftp_conn_id={conn_id!r})
    SFTPUploadOperator(task_id="plan", source={source!r}, target="in/", dry_run=True, sftp_conn_id={conn_id!r})

    @task
    def own():
        with SFTPBackendHook({conn_id!r}).backend() as backend:
            backend.read_bytes("in/a")

    own()
"""


@pytest.fixture
def statsd(monkeypatch: pytest.MonkeyPatch) -> Iterator[StatsD]:
    """The StatsD server that Airflow sends to, with labels in InfluxDB's form."""
    server = StatsD()
    settings = {"STATSD_ON": "True", "STATSD_HOST": "127.0.0.1", "STATSD_PORT": str(server.port)}
    for name, value in (settings | {"STATSD_INFLUXDB_ENABLED": "True"}).items():
        monkeypatch.setenv(f"AIRFLOW__METRICS__{name}", value)
    yield server
    server.close()


@contextmanager
def metrics_of(package: str) -> Iterator[None]:
    """Set up metrics as the triggerer or a task does."""
    stats = pytest.importorskip(f"{package}.observability.stats")
    if not hasattr(stats, "initialize"):
        pytest.skip("Airflow before 3.3 sets up its metrics in another way")
    logger = import_module(f"{package}.observability.metrics.stats_utils").get_stats_factory()()
    nothing = import_module(f"{package}._shared.observability.metrics.base_stats_logger").NoStatsLogger
    stats.initialize(factory=lambda: logger, export_legacy_names=False)
    try:
        yield
    finally:
        stats.initialize(factory=nothing, export_legacy_names=False)
        logger.statsd.close()


@pytest.fixture
def folder(asyncssh_plain: AsyncsshServer) -> Folder:
    """A directory with a file of 5,000 bytes."""
    folder = asyncssh_plain.fresh()
    (folder.path / "in").mkdir()
    (folder.path / "in/a").write_bytes(bytes(5000))
    return folder


@pytest.fixture
def dags(tmp_path: Path, connect: Connect, asyncssh_plain: AsyncsshServer, folder: Folder) -> Path:
    """A DAG whose tasks work on the directory."""
    source = tmp_path / "source"
    source.mkdir()
    for name, size in (("a", 10), ("b", 2000), ("c", 3000)):
        (source / name).write_bytes(bytes(size))
    conn_id = connect(asyncssh_plain, "partner", base_path=folder.base_path)
    (tmp_path / "dags").mkdir()
    text = DAG.format(source=f"{source}/", target=f"{tmp_path}/target/", conn_id=conn_id)
    (tmp_path / "dags/work.py").write_text(text)
    return tmp_path / "dags"


def test_an_upload_sends_its_bytes_files_time_and_login(dags: Path, statsd: StatsD, tmp_path: Path) -> None:
    run(dags, "work", "upload", tmp_path / "log")
    lines = statsd.lines()
    expected = {"bytes_sent": 5000, "logins": 1, "files.uploaded": 2, "files.skipped": 1}
    assert counters(lines, NAMES) == expected
    assert timers(lines, NAMES)["duration.uploaded"] > 0
    labels = {line.partition(":")[0] for line in lines if line.startswith(f"{NAMES}files.uploaded")}
    assert labels == {f"{NAMES}files.uploaded,conn_id=partner,dag_id=work,task_id=upload"}


def test_a_failed_download_sends_its_failures_too(dags: Path, statsd: StatsD, tmp_path: Path) -> None:
    run(dags, "work", "download", tmp_path / "log")
    expected = {"bytes_received": 5000, "logins": 1, "files.downloaded": 1, "files.failed": 1}
    assert counters(statsd.lines(), NAMES) == expected


@pytest.mark.parametrize(
    ("task_id", "expected"),
    [("wait", {"logins": 1}), ("plan", {"logins": 1}), ("own", {"logins": 1, "bytes_received": 5000})],
)
def test_sensors_plans_and_own_tasks_send_what_they_use(
    dags: Path, statsd: StatsD, tmp_path: Path, task_id: str, expected: dict[str, int]
) -> None:
    run(dags, "work", task_id, tmp_path / "log")
    assert counters(statsd.lines(), NAMES) == expected


@pytest.mark.skipif(Version("3.2") > AIRFLOW_VERSION, reason="Airflow before 3.2 has its own OpenTelemetry settings")
def test_opentelemetry_gets_the_same(dags: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with otlp_collector() as collector:
        monkeypatch.setenv("AIRFLOW__METRICS__OTEL_ON", "True")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        lines = run(dags, "work", "upload", tmp_path / "log")
        assert any("uploaded 2 files" in str(line["event"]) for line in lines)
        assert collector.values[f"{NAMES}bytes_sent"] == 5000
        assert collector.values[f"{NAMES}files.uploaded"] == 2
        assert collector.labels[f"{NAMES}logins"] == {"conn_id": "partner"}
        assert collector.values[f"{NAMES}duration.uploaded"] > 0


def test_deferred_waits_send_their_login_from_the_triggerer(
    statsd: StatsD, connect: Connect, asyncssh_plain: AsyncsshServer, folder: Folder
) -> None:
    conn_id = connect(asyncssh_plain, "partner", base_path=folder.base_path)

    async def polls() -> None:
        shared = SharedConnection.acquire(conn_id)
        try:
            for _ in range(3):
                await shared.poll(condition_for("in/a"), lambda snapshot: None)
        finally:
            shared.release()

    with metrics_of("airflow"):
        asyncio.run(polls())
        assert counters(statsd.lines(), NAMES) == {"logins": 1}


def test_a_killed_task_sends_its_counts(
    statsd: StatsD, connect: Connect, asyncssh_plain: AsyncsshServer, folder: Folder
) -> None:
    conn_id = connect(asyncssh_plain, "partner", base_path=folder.base_path)
    with metrics_of("airflow.sdk"):
        with pytest.raises(TaskKilled), SFTPBackendHook(conn_id).backend() as backend:
            backend.read_bytes("in/a")
            raise TaskKilled
        assert counters(statsd.lines(), NAMES) == {"logins": 1, "bytes_received": 5000}


def test_each_count_is_sent_once() -> None:
    sent: list[tuple[str, int]] = []

    class Receiver:
        """Keep what is sent."""

        def incr(self, stat: str, count: int = 1, *, tags: dict[str, str] | None = None) -> None:
            """Keep a count."""
            assert tags == {"conn_id": "partner"}
            sent.append((stat, count))

        def timing(self, stat: str, dt: timedelta, *, tags: dict[str, str] | None = None) -> None:
            """Refuse: connections have no timer."""
            raise AssertionError

    metrics = ConnectionMetrics("partner", Receiver)
    for statistics in (BackendStatistics(logins=1, bytes_sent=3), BackendStatistics(logins=1, bytes_sent=10)):
        metrics.send(statistics)
        metrics.send(statistics)
    assert sent == [("sftp_backend.bytes_sent", 3), ("sftp_backend.logins", 1), ("sftp_backend.bytes_sent", 7)]


def test_a_broken_receiver_does_not_fail_the_task(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> object:
        raise OSError("no route to the collector")

    monkeypatch.setattr(_metrics, "task_metrics", broken)
    with caplog.at_level(logging.WARNING):
        send_file_metrics(["uploaded"], 0, "uploaded", 1.0, {})
    assert "metrics are not sent: no route to the collector" in caplog.text


def test_a_process_without_settings_sends_nothing() -> None:
    task_metrics().incr("sftp_backend.logins", 1, tags={"conn_id": "partner"})
    triggerer_metrics().timing("sftp_backend.duration.uploaded", timedelta(seconds=1))


def test_the_page_names_every_metric() -> None:
    page = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    actions = get_args(CompletedAction)
    names = [*CONNECTION_COUNTERS, *(f"{FILES}{action}" for action in (*actions, "skipped", "failed"))]
    names += [f"{DURATION}{action}" for action in actions]
    assert [name for name in names if f"`{name}`" not in page] == []
