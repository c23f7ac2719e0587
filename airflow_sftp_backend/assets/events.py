"""Return the files that started a DAG run.

Each batch of a watch belongs to one run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from airflow.sdk.exceptions import AirflowRuntimeError

from airflow_sftp_backend._file_rows import FoundFile
from airflow_sftp_backend.version_compat import asset_state_stores

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

_CLAIMS_KEY: Final = "sftp new files claimed by {}"
_MAX_CLAIMS: Final = 400
_MAX_EVENTS: Final = 100
"""Events to search for unclaimed batches; each event carries its files."""
_CLAIM_SETTLE_SECONDS: Final = 1.0
"""Seconds between writing and reading claims: overwriting of unread claims becomes unlikely, not impossible."""


def new_files(context: Context) -> list[FoundFile]:
    """Return the new files that started a DAG run.

    The files are the batches of `SFTPNewFilesTrigger` in the run's asset events, except batches claimed by another run
    of the DAG. Airflow may create one run for several events and pass only the first to the run. Batches of events
    that created no run of the DAG are included too, if sent before the start of the current run and not claimed by
    another run. A path in several batches appears once, with the data of the latest batch.

    Call the function in a task of a DAG scheduled by the watched asset, and name the asset among the task's ``inlets``.
    From Airflow 3.3, the asset's state store records the claims of the last 400 batches. Without the inlet, or in
    earlier versions, only the run's own events count, and two runs get a batch that was sent twice around a restart of
    the triggerer. A retry returns the same files, and later unclaimed batches.

    :param context: the context of the task
    :returns: a row for each file
    :raises AirflowRuntimeError: if Airflow cannot return the batches claimed by an earlier attempt
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
    """Describe an asset event."""

    @property
    def timestamp(self) -> datetime:
        """Time of storage in Airflow."""

    @property
    def extra(self) -> dict[str, Any] | None:
        """Data of the event; a trigger's data is under ``payload``."""


def _payload(event: _Event) -> dict[str, Any]:
    payload = (event.extra or {}).get("payload")
    return payload if isinstance(payload, dict) and "batch" in payload else {}


def _by_batch(events: Iterable[_Event]) -> dict[str, _Event]:
    return {str(payload["batch"]): event for event in events if (payload := _payload(event))}


def _claim(context: Context, store: Any, inlet_events: Any, own: dict[str, _Event]) -> dict[str, _Event]:
    """Claim batches for this run in the asset's ``store``.

    The batches in ``own`` started the run.
    """
    run_id, key = context["ti"].run_id, _CLAIMS_KEY.format(context["ti"].dag_id)
    claims = _load_claims(store, key)
    earlier = {
        batch_id: created for batch_id, (owner, created) in claims.items() if owner == run_id and batch_id not in own
    }
    unclaimed = _unclaimed_events(context, inlet_events, own, earlier)
    claims = _load_claims(store, key)
    unclaimed = {batch_id: event for batch_id, event in unclaimed.items() if _owner(claims, batch_id) in (None, run_id)}
    candidates = unclaimed | own
    for _ in range(3):
        new_claims = {
            batch_id: [run_id, _format_time(event.timestamp)]
            for batch_id, event in candidates.items()
            if batch_id not in claims
        }
        if not new_claims:
            break
        # Other runs may claim the same batches, and the store has no compare-and-set. So write the claims, wait, read
        # the claims again, and keep only this run's.
        store.set(key, dict(list((claims | new_claims).items())[-_MAX_CLAIMS:]))
        if not unclaimed:
            break
        time.sleep(_CLAIM_SETTLE_SECONDS)
        claims = _load_claims(store, key)
    owners = {batch_id: _owner(claims, batch_id) for batch_id in candidates}
    # An own batch without a claim is this run's: the store may have dropped the oldest claims.
    return {
        batch_id: event
        for batch_id, event in candidates.items()
        if owners[batch_id] == run_id or (batch_id in own and owners[batch_id] is None)
    }


def _owner(claims: Mapping[str, Sequence[str]], batch_id: str) -> str | None:
    return claims[batch_id][0] if batch_id in claims else None


def _load_claims(store: Any, key: str) -> dict[str, list[str]]:
    """Return the claim and event time of each batch, oldest first."""
    return cast("dict[str, list[str]]", store.get(key) or {})


def _unclaimed_events(
    context: Context, inlet_events: Any, own: Mapping[str, _Event], earlier: Mapping[str, str]
) -> dict[str, _Event]:
    """Return unclaimed batches, and the ``earlier`` claims of the run.

    Airflow may create one run for several events, and pass only the first event to the run. This function finds the
    batches of the other events for the current run, if sent before the start of the run.
    """
    dag_id, run_started = context["ti"].dag_id, context["dag_run"].start_date or datetime.now(UTC)
    since = min([*earlier.values(), *(_format_time(event.timestamp) for event in own.values())])
    unclaimed: list[_Event] = []
    try:
        for event in inlet_events.after(since).limit(_MAX_EVENTS):
            has_run = any(run.dag_id == dag_id for run in event.created_dagruns)
            if _payload(event).get("batch") in earlier or (not has_run and event.timestamp < run_started):
                unclaimed.append(event)
    except AirflowRuntimeError as error:  # Airflow 3.3.2 fails while a run of one of these events is only queued
        if earlier:
            raise
        log.warning("cannot find unclaimed batches, left to the next run: %s", error)
    return {batch_id: event for batch_id, event in _by_batch(unclaimed).items() if batch_id not in own}


def _format_time(time_: datetime) -> str:
    return time_.astimezone(UTC).isoformat(timespec="microseconds")


def _asset_store(context: Context, asset: Any) -> tuple[Any, Any] | None:
    """Return the state store and the events of an asset.

    :returns: the store and the events; None without a store, or if the asset is not among the task's inlets
    """
    stores = asset_state_stores(context)
    try:
        return None if stores is None else (stores[asset], context["inlet_events"][asset])
    except (KeyError, TypeError):  # not an inlet, or an alias
        return None
