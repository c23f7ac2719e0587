"""Send counts of the work to Airflow's metrics.

Airflow's settings choose the receiver (StatsD, Datadog or OpenTelemetry), add the prefix ``airflow.`` and filter by
name. A failure to send is logged and never fails a task.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from datetime import timedelta
from typing import Final

from airflow_sftp_backend._file_rows import Action, CompletedAction
from airflow_sftp_backend.backend import BackendStatistics
from airflow_sftp_backend.version_compat import Metrics, task_metrics

log = logging.getLogger(__name__)

PREFIX: Final = "sftp_backend."
CONNECTION_COUNTERS: Final = tuple(PREFIX + field.name for field in fields(BackendStatistics))
"""Counters of every backend that a task or the triggerer uses."""
DURATION: Final = PREFIX + "duration."
"""Start of the name of the timer of a task; its end is the action of the operator."""
FILES: Final = PREFIX + "files."
"""Start of the names of counters of files; the end is the action, or ``failed``."""


class ConnectionMetrics:
    """Send the counters of one backend, each count once.

    :param conn_id: the id of the Airflow connection
    :param metrics: returns the metrics of this process
    """

    def __init__(self, conn_id: str, metrics: Callable[[], Metrics] = task_metrics) -> None:
        self._tags = {"conn_id": conn_id}
        self._metrics = metrics
        self._sent = BackendStatistics()

    def send(self, statistics: BackendStatistics) -> None:
        """Send the counts since the last call.

        :param statistics: the counters of the backend
        """
        added, self._sent = statistics - self._sent, statistics
        counts = {PREFIX + field.name: getattr(added, field.name) for field in fields(added)}
        _send(self._metrics, counts, self._tags)


def send_file_metrics(
    actions: Iterable[Action], failed: int, operator_action: CompletedAction, seconds: float, tags: Mapping[str, str]
) -> None:
    """Send the files by action, and the duration of a task.

    :param actions: the action on each file
    :param failed: number of files that failed
    :param operator_action: the action of the operator
    :param seconds: duration of planning and execution
    :param tags: the connection id, the DAG and the task
    """
    counts = Counter(FILES + action.replace(" ", "_") for action in actions)
    counts[FILES + "failed"] = failed
    _send(task_metrics, counts, tags, {DURATION + operator_action: timedelta(seconds=seconds)})


def _send(
    metrics: Callable[[], Metrics],
    counts: Mapping[str, int],
    tags: Mapping[str, str],
    durations: Mapping[str, timedelta] | None = None,
) -> None:
    try:
        receiver = metrics()
        for name, count in counts.items():
            if count:
                receiver.incr(name, count, tags=dict(tags))
        for name, duration in (durations or {}).items():
            receiver.timing(name, duration, tags=dict(tags))
    except Exception as error:
        log.warning("metrics are not sent: %s", error)
