"""Which files are new: decided from what was seen before, and handed to one run each.

What was seen outlives the triggerer as plain JSON in the asset's state store. A report that may not have reached
Airflow is kept there too and made again under its name, so that whoever takes it can tell.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from .waiting import Row

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.execution_time.context import AssetStateStoreAccessors
    from pydantic import JsonValue

_REMEMBERS = 24 * 3600.0
"""Seconds for which a file that is gone is known: one whose folder was away for a while is not new."""
_TAKEN = "sftp new files taken by {}"
_MOST_TAKEN = 500


@dataclass(frozen=True, slots=True)
class Report:
    """Files that are new, under a name no other report has."""

    files: list[Row]
    name: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True, slots=True)
class _Known:
    """A file that was reported: bytes, time in ISO 8601, and since when (epoch seconds) it is gone."""

    size: int
    modified_at: str | None
    gone: float | None = None


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What a watch has seen. ``pending`` is the report of which it is not known whether it reached Airflow."""

    known: Mapping[str, _Known] = field(default_factory=dict)
    pending: Report | None = None

    def look(self, ready: Sequence[Row], present: Collection[str], now: float, *, changed: bool) -> Arrivals:
        """What is known after a look: new files are its ``pending`` report.

        ``ready`` are the files that may be reported, ``present`` the paths of all that are there, ``now`` in epoch
        seconds. A file is new if its path was never seen; if it was gone and has come back with another size or time;
        and with ``changed``, if its size or time is another.
        """
        known: dict[str, _Known] = {}
        for path, one in self.known.items():
            if path in present:
                known[path] = one
            elif one.gone is None:
                known[path] = replace(one, gone=now)
            elif now - one.gone < _REMEMBERS:
                known[path] = one
        new: list[Row] = []
        for row in ready:
            here = _Known(row["size"], row["modified_at"])
            before = known.get(row["path"])
            differs = before is not None and (before.size, before.modified_at) != (here.size, here.modified_at)
            if before is None or (differs and (changed or before.gone is not None)):
                new.append(row)
            known[row["path"]] = here
        return Arrivals(known, Report(new) if new else None)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, for `from_json`."""
        return {
            "known": {path: [one.size, one.modified_at, one.gone] for path, one in self.known.items()},
            "pending": None if self.pending is None else [self.pending.files, self.pending.name],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Arrivals:
        """What `as_json` gave."""
        pending = values["pending"]
        return cls(
            {path: _Known(*one) for path, one in values["known"].items()}, None if pending is None else Report(*pending)
        )


class Memory:
    """What one watch has seen: in the asset's state store where there is one, and as long as the watch runs.

    ``watch`` says what is watched, since an asset may have several watches.
    """

    def __init__(self, watch: str, store: AssetStateStoreAccessors | None, warn: Callable[[str], object]) -> None:
        self._key = f"sftp new files seen {hashlib.sha256(watch.encode()).hexdigest()[:16]}"
        self._store = store
        self._warn = warn
        self._now: Arrivals | None = None
        self._stored = Arrivals()

    async def recall(self) -> Arrivals:
        """What is known. Raises AirflowRuntimeError if Airflow cannot say."""
        if self._now is None:
            if self._store is not None:
                try:
                    found = await self._store.aget(self._key)
                except ValueError:  # of which asset?
                    self._warn(
                        "several assets have this watch, so that Airflow keeps nothing for it: when the triggerer"
                        " starts again, all files that are there are reported again; give each asset its own watch"
                    )
                    self._store = None
                else:
                    if found is not None:
                        self._stored = Arrivals.from_json(cast("dict[str, Any]", found))
            self._now = self._stored
        return self._now

    async def keep(self, arrivals: Arrivals) -> None:
        """Keeps it. Raises AirflowRuntimeError if Airflow cannot; then nothing has changed."""
        if self._store is not None and arrivals != self._stored:
            await self._store.aset(self._key, cast("JsonValue", arrivals.as_json()))
            self._stored = arrivals
        self._now = arrivals

    def settle(self) -> None:
        """The pending report has reached Airflow; the next `keep` says so."""
        if self._now is not None:
            self._now = replace(self._now, pending=None)


def new_files(context: Context) -> list[Row]:
    """The files for which a DAG run was started: of all reports of `SFTPNewFilesTrigger` among the asset events that
    triggered it, those that no earlier run of this DAG has taken.

    For a task of a DAG whose schedule is the watched asset. Name that asset among the task's ``inlets``: there it is
    kept which run has taken which report, from Airflow 3.3. Without that, or in an older Airflow, a report that
    the triggerer made twice around its own restart is handed out twice. A task that is tried again is given the same
    files. A path in several reports is given once, as the latest report has it.
    """
    instance = context["ti"]
    found: dict[str, Row] = {}
    for asset, events in context["triggering_asset_events"].items():
        store = _store(context, asset)
        key = _TAKEN.format(instance.dag_id)
        taken = {} if store is None else cast("dict[str, str]", store.get(key) or {})
        mine: dict[str, str] = {}
        for event in events:
            payload = event.extra.get("payload")
            if not isinstance(payload, dict) or "report" not in payload:
                continue
            name = str(payload["report"])
            if taken.get(name, instance.run_id) == instance.run_id:
                mine[name] = instance.run_id
                found |= {row["path"]: row for row in cast("list[Row]", payload["files"])}
        if store is not None and not mine.keys() <= taken.keys():
            latest = list((taken | mine).items())[-_MOST_TAKEN:]
            store.set(key, cast("JsonValue", dict(latest)))
    return list(found.values())


def _store(context: Context, asset: Any) -> Any:
    """Where what has to do with the asset is kept; None where Airflow has no such place for this task."""
    stores = context.get("asset_state_store")
    try:
        return None if stores is None else stores[asset]
    except (KeyError, TypeError):  # not among the task's inlets; an alias
        return None
