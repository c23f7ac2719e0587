"""Return the files that started a DAG run.

Each batch of a watch belongs to one run.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

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
"""Events in one reply of Airflow; each event carries its files."""
_MAX_UNCLAIMED: Final = 1000
"""Unclaimed batches that one run may get, about 500,000 files."""
_CLAIM_SETTLE_SECONDS: Final = 1.0
"""Seconds between writing and reading claims: in this time, a concurrent run writes its claims too."""
_MAX_CLAIM_ATTEMPTS: Final = 3


class _RunClaims(NamedTuple):
    """Batches that a run has claimed.

    :ivar since: time of the oldest event with one of the batches
    :ivar batch_ids: ids of the batches
    """

    since: str
    batch_ids: list[str]


_Claims = dict[str, _RunClaims]
"""Claims by run, oldest first."""


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
        store_and_events = _store_and_events(context, asset)
        if store_and_events is not None and batches:
            store, inlet_events = store_and_events
            batches = _claim(context, store, inlet_events, batches)
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
    earlier = _load_claims(store, key).get(run_id, _RunClaims("", []))
    unclaimed = _unclaimed_events(context, inlet_events, own, earlier.since, set(earlier.batch_ids) - own.keys())
    claims = _load_claims(store, key)  # other runs may have claimed some of these batches meanwhile
    owners = _owners(claims)
    unclaimed = {batch_id: event for batch_id, event in unclaimed.items() if owners.get(batch_id, run_id) == run_id}
    candidates = unclaimed | own
    owners = _save_claims(store, key, run_id, claims, candidates, may_conflict=bool(unclaimed))
    # An own batch without a claim is this run's: the store may have dropped the oldest claims.
    return {
        batch_id: event
        for batch_id, event in candidates.items()
        if owners.get(batch_id) == run_id or (batch_id in own and batch_id not in owners)
    }


def _load_claims(store: Any, key: str) -> _Claims:
    return {run_id: _RunClaims(*claims) for run_id, claims in (store.get(key) or {}).items()}


def _owners(claims: _Claims) -> dict[str, str]:
    """Return the run that claimed each batch."""
    return {batch_id: run_id for run_id, run_claims in claims.items() for batch_id in run_claims.batch_ids}


def _save_claims(
    store: Any, key: str, run_id: str, claims: _Claims, candidates: Mapping[str, _Event], *, may_conflict: bool
) -> dict[str, str]:
    """Claim batches without an owner for a run; return all owners.

    :param claims: the claims in the store
    :param candidates: the batches of the run, by id
    :param may_conflict: whether other runs may claim the same batches now
    """
    for _ in range(_MAX_CLAIM_ATTEMPTS):
        owners = _owners(claims)
        new_claims = {batch_id: event for batch_id, event in candidates.items() if batch_id not in owners}
        if not new_claims:
            break
        store.set(key, _with_claims(claims, run_id, new_claims))
        if not may_conflict:
            break
        # The store has no compare-and-set, so a concurrent run may have overwritten these claims: wait, and read again.
        time.sleep(_CLAIM_SETTLE_SECONDS)
        claims = _load_claims(store, key)
    return _owners(claims)


def _with_claims(claims: _Claims, run_id: str, new: Mapping[str, _Event]) -> dict[str, list[Any]]:
    """Add claims of a run.

    If the record is too long, the oldest claims are dropped.
    """
    since = min(_format_time(event.timestamp) for event in new.values())
    earlier = claims.get(run_id, _RunClaims(since, []))
    newest_first: dict[str, list[Any]] = {run_id: [min(since, earlier.since), [*earlier.batch_ids, *new]]}
    size = len(json.dumps(newest_first))
    for other_run_id, run_claims in reversed(claims.items()):
        size += len(json.dumps({other_run_id: run_claims}))
        if size > _MAX_CLAIMS_SIZE:
            break
        newest_first.setdefault(other_run_id, list(run_claims))
    return dict(reversed(newest_first.items()))


def _unclaimed_events(
    context: Context, inlet_events: Any, own: Mapping[str, _Event], since: str, earlier: Set[str]
) -> dict[str, _Event]:
    """Return batches that started no run, and earlier claims of this run.

    Airflow may create one run for several events, and pass only the first event to the run. The batches of the other
    events are for the current run, if sent before the start of the run.

    :param own: the batches that started the run
    :param since: time of the oldest event of the ``earlier`` batches
    :param earlier: ids of the other batches that the run has claimed
    """
    dag_id, run_started = context["ti"].dag_id, context["dag_run"].start_date or datetime.now(UTC)
    own_times = [_format_time(event.timestamp) for event in own.values()]
    batches: dict[str, _Event] = {}
    try:
        for event in _events_since(inlet_events, min([since, *own_times] if earlier else own_times)):
            batch_id = _payload(event).get("batch")
            has_run = any(run.dag_id == dag_id for run in event.created_dagruns)
            if batch_id in earlier or (not has_run and event.timestamp < run_started):
                batches |= _by_batch([event])
            is_complete = event.timestamp >= run_started and earlier <= batches.keys()
            if is_complete or len(batches) - len(earlier) >= _MAX_UNCLAIMED:
                break
    except AirflowRuntimeError as error:  # Airflow 3.3.2 fails while a run of one of these events is only queued
        if earlier:
            raise
        log.warning("cannot find unclaimed batches, left to the next run: %s", error)
    return {batch_id: event for batch_id, event in batches.items() if batch_id not in own}


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


def _store_and_events(context: Context, asset: Any) -> tuple[Any, Any] | None:
    """Return the state store and the events of an asset.

    :returns: the store and the events; None without a store, or if the asset is not among the task's inlets
    """
    stores = asset_state_stores(context)
    try:
        return None if stores is None else (stores[asset], context["inlet_events"][asset])
    except (KeyError, TypeError):  # not an inlet, or an alias
        return None
