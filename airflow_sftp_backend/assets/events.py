"""Hand each batch of new files to one run of a DAG."""

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

_CLAIMS_KEY: Final = "sftp new files claimed by {}"
_MAX_CLAIMS: Final = 400
_MAX_EVENTS: Final = 100
"""Events that are searched for unclaimed batches: each carries its files."""
_CLAIM_SETTLE_SECONDS: Final = 1.0
"""Seconds after which no other run overwrites a claim that it has not read."""


def new_files(context: Context) -> list[FoundFile]:
    """Return the files for which a DAG run was started.

    These are the batches of `SFTPNewFilesTrigger` in the asset events that triggered the run, unless another run of the
    DAG has claimed them; and batches for which Airflow has started no run, if they were sent before this run began.

    For a task of a DAG whose schedule is the watched asset. Name that asset among the task's ``inlets``: its state
    store records which run has claimed which of the last 400 batches, from Airflow 3.3. Without that, or in an older
    Airflow, only the events that triggered the run count, and a batch that was sent twice around a restart of the
    triggerer is handed out twice. A retry gets the same files, and unclaimed ones since. A path in several batches is
    returned once, as the latest batch has it.

    :param context: the context of the task.
    :returns: a row for each file.
    :raises AirflowRuntimeError: if Airflow cannot tell which batches an earlier attempt has claimed.
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
    """Claim batches for this run in the asset's ``store``; ``own`` have started it.

    Other runs may claim the same batches, and the store has no compare-and-set: write the claim, wait, read it again,
    and keep only the claims that are still this run's.
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
    """Return for each batch the run that has claimed it and when it was sent, the oldest first."""
    return cast("dict[str, list[str]]", store.get(key) or {})


def _unclaimed_events(
    context: Context, inlet_events: Any, own: Mapping[str, _Event], earlier: Mapping[str, str]
) -> dict[str, _Event]:
    """Return the batches for which no run was started, and the ``earlier`` claims of this run.

    Only batches count that were sent before this run began.

    Airflow starts one run for all events that come before it starts it, and shows that run only the first. It shows the
    others to the next run, if there is one.
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
        log.warning("Airflow does not tell which batches are unclaimed; they go to the next run: %s", error)
    return {batch_id: event for batch_id, event in _by_batch(unclaimed).items() if batch_id not in own}


def _format_time(time_: datetime) -> str:
    return time_.astimezone(UTC).isoformat(timespec="microseconds")


def _asset_store(context: Context, asset: Any) -> tuple[Any, Any] | None:
    """Return the state store and the events of an asset.

    :returns: None without a store, or if the asset is not among the task's inlets.
    """
    stores = asset_state_stores(context)
    try:
        return None if stores is None else (stores[asset], context["inlet_events"][asset])
    except (KeyError, TypeError):  # an alias
        return None
