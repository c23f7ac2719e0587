"""The files a DAG run was started for: each report of a watch is handed to one run."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from airflow.sdk.exceptions import AirflowRuntimeError

from airflow_sftp_backend._file_rows import FoundFile
from airflow_sftp_backend.version_compat import asset_state_stores

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

_CLAIMS_KEY: Final = "sftp new files taken by {}"
_MAX_CLAIMS: Final = 400
_MAX_EVENTS: Final = 100
"""Events looked at for what is left over: each carries its files."""
_CLAIM_SETTLE_SECONDS: Final = 1.0
"""Seconds after which no other run overwrites a claim it has not seen."""


def new_files(context: Context) -> list[FoundFile]:
    """The files for which a DAG run was started: of all reports of `SFTPNewFilesTrigger` among the asset events that
    triggered it, those that no other run of this DAG has taken; and of those reports for which Airflow has started no
    run, the ones made before this run began.

    For a task of a DAG whose schedule is the watched asset. Name that asset among the task's ``inlets``: there it is
    kept which run has taken which of the last 400 reports, from Airflow 3.3. Without that, or in an older Airflow, only
    the events that triggered the run count, and a report that the triggerer made twice around its own restart is handed
    out twice. A task that is tried again is given the same files, and what has been left over since. A path in several
    reports is given once, as the latest report has it.

    Raises AirflowRuntimeError where Airflow cannot say what an earlier attempt was given.
    """
    files: dict[str, FoundFile] = {}
    for asset, events in context["triggering_asset_events"].items():
        batches = _by_batch(events)
        state = _asset_store(context, asset)
        if state is not None and batches:
            batches = _claim(context, *state, batches)
        for event in batches.values():
            files |= {file["path"]: file for file in cast("list[FoundFile]", _payload(event)["files"])}
    return list(files.values())


class _Event(Protocol):
    """An asset event."""

    @property
    def timestamp(self) -> datetime:
        """When it was written down."""

    @property
    def extra(self) -> dict[str, Any] | None:
        """What it carries; of a trigger's, its ``payload``."""


def _payload(event: _Event) -> dict[str, Any]:
    payload = (event.extra or {}).get("payload")
    return payload if isinstance(payload, dict) and "batch" in payload else {}


def _by_batch(events: Iterable[_Event]) -> dict[str, _Event]:
    return {str(payload["batch"]): event for event in events if (payload := _payload(event))}


def _claim(context: Context, store: Any, inlet_events: Any, own: dict[str, _Event]) -> dict[str, _Event]:
    """The reports that are this run's, written down in the asset's ``store`` as such; ``own`` have started it.

    What has started it is its own, unless a run before has taken it. On what is left over other runs may have an eye
    too, and the store has no compare-and-set: there the claim counts that is still to be read a moment later.
    """
    run_id, key = context["ti"].run_id, _CLAIMS_KEY.format(context["ti"].dag_id)
    claims = _load_claims(store, key)
    earlier = {
        batch_id: created for batch_id, (owner, created) in claims.items() if owner == run_id and batch_id not in own
    }
    unclaimed = _unclaimed_events(context, inlet_events, own, earlier)
    claims = _load_claims(store, key)
    unclaimed = {
        batch_id: event for batch_id, event in unclaimed.items() if claims.get(batch_id, [run_id])[0] == run_id
    }
    candidates = unclaimed | own
    for _ in range(3):
        new_claims = {
            batch_id: [run_id, _format_time(event.timestamp)]
            for batch_id, event in candidates.items()
            if batch_id not in claims
        }
        if not new_claims:
            break
        store.set(key, dict(list((claims | new_claims).items())[-_MAX_CLAIMS:]))
        if not unclaimed:
            break
        time.sleep(_CLAIM_SETTLE_SECONDS)
        claims = _load_claims(store, key)
    return {
        batch_id: event
        for batch_id, event in candidates.items()
        if claims.get(batch_id, [run_id if batch_id in own else None])[0] == run_id
    }


def _load_claims(store: Any, key: str) -> dict[str, list[str]]:
    """Of each report the run that has it and when it was made, the oldest first."""
    return cast("dict[str, list[str]]", store.get(key) or {})


def _unclaimed_events(
    context: Context, inlet_events: Any, own: Mapping[str, _Event], earlier: Mapping[str, str]
) -> dict[str, _Event]:
    """The reports for which no run of this DAG was started though they were made before this run began, and those that
    this run was given ``earlier`` (name -> when it was made).

    Airflow starts one run for all events that come until it starts it, and shows it only the first. It shows the others
    to the next run, if there is one.
    """
    dag_id, run_started = context["ti"].dag_id, context["dag_run"].start_date or datetime.now(UTC)
    since = min([*earlier.values(), *(_format_time(event.timestamp) for event in own.values())])
    unclaimed: list[_Event] = []
    try:
        for event in inlet_events.after(since).limit(_MAX_EVENTS):
            has_run = any(run.dag_id == dag_id for run in event.created_dagruns)
            if _payload(event).get("batch") in earlier or (not has_run and event.timestamp < run_started):
                unclaimed.append(event)
    except AirflowRuntimeError as error:  # 3.3.2 has no answer while a run of one of these events is only queued
        if earlier:
            raise
        log.warning("Airflow does not say which reports are left over; they go to the next run: %s", error)
    return {batch_id: event for batch_id, event in _by_batch(unclaimed).items() if batch_id not in own}


def _format_time(time_: datetime) -> str:
    return time_.astimezone(UTC).isoformat(timespec="microseconds")


def _asset_store(context: Context, asset: Any) -> tuple[Any, Any] | None:
    """Where what has to do with the asset is kept, and its events; None where Airflow has no such place for this task,
    or the asset is not among its inlets."""
    stores = asset_state_stores(context)
    try:
        return None if stores is None else (stores[asset], context["inlet_events"][asset])
    except (KeyError, TypeError):  # an alias
        return None
