"""Return the files that started a DAG run.

Each batch of a watch belongs to one run.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from airflow.sdk.exceptions import AirflowRuntimeError

from airflow_sftp_backend._file_rows import FoundFile
from airflow_sftp_backend.version_compat import asset_state_stores

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

_CLAIMS_KEY: Final = "sftp batches claimed by {}"
_MAX_CLAIMS_SIZE: Final = 60_000
"""Characters of the record of claims. Airflow warns of values above 64 KiB."""
_EVENTS_PER_REQUEST: Final = 50
"""Events in one answer of Airflow; each event carries its files."""
_MAX_UNCLAIMED: Final = 1000
"""Unclaimed batches that one run may get, about 500,000 files."""
_Claims = dict[str, tuple[str, list[str]]]
"""For each run, oldest claim first: the time of the oldest event that it claimed, and the ids of its batches."""
_CLAIM_SETTLE_SECONDS: Final = 1.0
"""Seconds between writing and reading claims: in this time, a concurrent run writes its claims too."""


def new_files(context: Context) -> list[FoundFile]:
    """Return the new files that started a DAG run.

    The files are the batches of `SFTPNewFilesTrigger` in the run's asset events, except batches claimed by another run
    of the DAG. Airflow may create one run for several events and pass only the first to the run. Batches of events
    that created no run of the DAG are included too, if sent before the start of the current run and not claimed by
    another run. A path in several batches appears once, with the data of the latest batch.

    Call the function in a task of a DAG scheduled by the watched asset, and name the asset among the task's ``inlets``.
    From Airflow 3.3, the asset's state store records the claims of about the last 400 runs. Without the inlet, or in
    earlier versions, only the run's own events count, and two runs get a batch that was sent twice around a restart of
    the triggerer. A retry returns the same files, and those of batches still unclaimed.

    :param context: the context of the task
    :returns: a row for each file
    :raises AirflowRuntimeError: if Airflow cannot read or write the claims, or return the batches claimed by an earlier
        attempt
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

    @property
    def created_dagruns(self) -> Sequence[Any]:
        """Runs that Airflow started for an event of an inlet."""


def _payload(event: _Event) -> dict[str, Any]:
    payload = (event.extra or {}).get("payload")
    return payload if isinstance(payload, dict) and "batch" in payload else {}


def _by_batch(events: Iterable[_Event]) -> dict[str, _Event]:
    return {str(payload["batch"]): event for event in events if (payload := _payload(event))}


def _claim(context: Context, store: Any, inlet_events: Any, own: dict[str, _Event]) -> dict[str, _Event]:
    """Claim batches for this run in the asset's ``store``.

    :param own: the batches that started the run, by id
    :returns: the batches of this run
    """
    run_id, key = context["ti"].run_id, _CLAIMS_KEY.format(context["ti"].dag_id)
    since, earlier = _load_claims(store, key).get(run_id, ("", []))
    unclaimed = _unclaimed_events(context, inlet_events, own, since, set(earlier) - own.keys())
    claims = _load_claims(store, key)
    owners = _owners(claims)
    unclaimed = {batch_id: event for batch_id, event in unclaimed.items() if owners.get(batch_id, run_id) == run_id}
    candidates = unclaimed | own
    for _ in range(3):
        new_claims = {batch_id: event for batch_id, event in candidates.items() if batch_id not in owners}
        if not new_claims:
            break
        # Other runs may claim the same batches, and the store has no compare-and-set. So write the claims, wait, read
        # the claims again, and keep only this run's.
        store.set(key, _with_claims(claims, run_id, new_claims))
        if not unclaimed:
            break
        time.sleep(_CLAIM_SETTLE_SECONDS)
        claims = _load_claims(store, key)
        owners = _owners(claims)
    # An own batch without a claim is this run's: the store may have dropped the oldest claims.
    return {
        batch_id: event
        for batch_id, event in candidates.items()
        if owners.get(batch_id) == run_id or (batch_id in own and batch_id not in owners)
    }


def _load_claims(store: Any, key: str) -> _Claims:
    return {run_id: (since, batches) for run_id, (since, batches) in (store.get(key) or {}).items()}


def _owners(claims: _Claims) -> dict[str, str]:
    """Return the run that claimed each batch."""
    return {batch_id: run_id for run_id, (_, batches) in claims.items() for batch_id in batches}


def _with_claims(claims: _Claims, run_id: str, new: Mapping[str, _Event]) -> dict[str, list[Any]]:
    """Add claims of a run.

    If the record is too long, the oldest claims are dropped.
    """
    since = min(_format_time(event.timestamp) for event in new.values())
    earlier_since, earlier = claims.get(run_id, (since, []))
    newest_first: dict[str, list[Any]] = {run_id: [min(since, earlier_since), [*earlier, *new]]}
    size = len(json.dumps(newest_first))
    for claimer, claim in reversed(claims.items()):
        size += len(json.dumps({claimer: claim}))
        if size > _MAX_CLAIMS_SIZE:
            break
        newest_first.setdefault(claimer, list(claim))
    return dict(reversed(newest_first.items()))


def _unclaimed_events(
    context: Context, inlet_events: Any, own: Mapping[str, _Event], since: str, earlier: Set[str]
) -> dict[str, _Event]:
    """Return unclaimed batches, and the batches that the run claimed ``earlier``.

    Airflow may create one run for several events, and pass only the first event to the run. This function finds the
    batches of the other events for the current run, if sent before the start of the run.

    :param since: time of the oldest event of the ``earlier`` claims
    """
    dag_id, run_started = context["ti"].dag_id, context["dag_run"].start_date or datetime.now(UTC)
    times = [*([since] if earlier else []), *(_format_time(event.timestamp) for event in own.values())]
    found: dict[str, _Event] = {}
    try:
        for event in _events_since(inlet_events, min(times)):
            batch_id = _payload(event).get("batch")
            has_run = any(run.dag_id == dag_id for run in event.created_dagruns)
            if batch_id in earlier or (not has_run and event.timestamp < run_started):
                found |= _by_batch([event])
            is_complete = event.timestamp >= run_started and earlier <= found.keys()
            if is_complete or len(found) - len(earlier) >= _MAX_UNCLAIMED:
                break
    except AirflowRuntimeError as error:  # Airflow 3.3.2 fails while a run of one of these events is only queued
        if earlier:
            raise
        log.warning("cannot find unclaimed batches, left to the next run: %s", error)
    return {batch_id: event for batch_id, event in found.items() if batch_id not in own}


def _events_since(inlet_events: Any, since: str) -> Iterator[_Event]:
    """Yield the events since a time, oldest first."""
    while True:
        events = list(inlet_events.after(since).limit(_EVENTS_PER_REQUEST))
        yield from events
        last = _format_time(events[-1].timestamp) if events else since
        if len(events) < _EVENTS_PER_REQUEST or last == since:
            return
        since = last  # the last event is yielded twice


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
