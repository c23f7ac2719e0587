"""The files a DAG run was started for: each report of a watch is handed to one run."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from airflow.sdk.exceptions import AirflowRuntimeError

from .memory import Report
from .waiting import Row

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

_TAKEN: Final = "sftp new files taken by {}"
_MOST_TAKEN: Final = 400
_MOST_EVENTS: Final = 100
_CLAIM_STANDS: Final = 1.0
"""Seconds after which no other run overwrites a claim it has not seen."""


def new_files(context: Context) -> list[Row]:
    """The files for which a DAG run was started: of all reports of `SFTPNewFilesTrigger` among the asset events that
    triggered it, those that no earlier run of this DAG has taken; and of those reports that Airflow has started no run
    for, because it was about to start one already or could not, the ones made before this run began.

    For a task of a DAG whose schedule is the watched asset. Name that asset among the task's ``inlets``: there it is
    kept which run has taken which report, from Airflow 3.3. Without that, or in an older Airflow, only the events that
    triggered the run count, and a report that the triggerer made twice around its own restart is handed out twice. A
    task that is tried again is given the same files. A path in several reports is given once, as the latest report
    has it.
    """
    found: dict[str, Row] = {}
    for asset, events in context["triggering_asset_events"].items():
        reports = [report for event in events if (report := _report(event)) is not None]
        store = _store(context, asset)
        if store is not None:
            reports = _claimed(context, store, asset, events)
        for report in reports:
            found |= {row["path"]: row for row in report.files}
    return list(found.values())


class _Event(Protocol):
    """An asset event."""

    @property
    def timestamp(self) -> datetime:
        """When it was written down."""

    @property
    def extra(self) -> dict[str, Any] | None:
        """What it carries; of a trigger's, its ``payload``."""


def _report(event: _Event) -> Report | None:
    payload = (event.extra or {}).get("payload")
    if not isinstance(payload, dict) or "report" not in payload:
        return None
    return Report(cast("list[Row]", payload["files"]), str(payload["report"]))


def _claimed(context: Context, store: Any, asset: Any, events: Sequence[_Event]) -> list[Report]:
    """The reports that are this run's, written down as such; ``store`` is the asset's.

    What started this run is its own, unless a run before has taken it. On what is left over other runs may have an eye
    too: there the claim stands that is still to be read a moment later.
    """
    run_id, key = context["ti"].run_id, _TAKEN.format(context["ti"].dag_id)
    own = _by_report(events)
    if not own:
        return []
    kept: dict[str, Any] = store.get(key) or {}
    taken: dict[str, list[str]] = kept.get("taken", {})  # report -> who has it, when it was made
    times = [made for whose, made in taken.values() if whose == run_id] + [
        _text(event.timestamp) for event in own.values()
    ]
    since = min([*times, kept.get("since") or min(times)])
    left, upto = _left_over(context, asset, since)
    left = {name: event for name, event in left.items() if name not in own and taken.get(name, [run_id])[0] == run_id}
    wanted = left | own
    for _ in range(3):
        free = {name: [run_id, _text(event.timestamp)] for name, event in wanted.items() if name not in taken}
        if not free:
            break
        latest = list((taken | free).items())[-_MOST_TAKEN:]
        store.set(key, {"since": max(upto, kept.get("since") or upto), "taken": dict(latest)})
        if not left:
            break
        time.sleep(_CLAIM_STANDS)
        taken = (store.get(key) or {}).get("taken", {})
    mine = [event for name, event in wanted.items() if taken.get(name, [run_id])[0] == run_id]
    return [report for event in mine if (report := _report(event)) is not None]


def _by_report(events: Iterable[_Event]) -> dict[str, _Event]:
    return {report.name: event for event in events if (report := _report(event)) is not None}


def _left_over(context: Context, asset: Any, since: str) -> tuple[dict[str, _Event], str]:
    """The reports since then for which no run of this DAG was started, nor will be: those made before this run began.
    And until when none was passed over that may have a run to come."""
    dag_id, began = context["ti"].dag_id, context["dag_run"].start_date or datetime.now(UTC)
    left: list[_Event] = []
    try:
        for event in context["inlet_events"][asset].after(since).limit(_MOST_EVENTS):
            if not any(run.dag_id == dag_id for run in event.created_dagruns):
                if event.timestamp >= began:
                    break
                left.append(event)
            since = _text(event.timestamp)
    except AirflowRuntimeError as error:  # 3.3.2 has no answer while a run of one of these events is only queued
        log.warning("Airflow does not say which reports are left over, the next run will ask again: %s", error)
        left = []
    return _by_report(left), since


def _text(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="microseconds")


def _store(context: Context, asset: Any) -> Any:
    """Where what has to do with the asset is kept; None where Airflow has no such place for this task."""
    stores = context.get("asset_state_store")
    try:
        return None if stores is None else stores[asset]
    except (KeyError, TypeError):  # not among the task's inlets; an alias
        return None
