"""Run operators and sensors with a context and state store."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import pytest
from airflow.sdk.execution_time.context import OutletEventAccessors

from tests.support.airflow.versions import (
    HAS_STATE_STORES,
    NO_STATE_STORES,
    SetAssetStateStoreByName,
    SetTaskStateStore,
)

if TYPE_CHECKING:
    from airflow.sdk import Asset, Context
    from pydantic import BaseModel


class State:
    """State store of a task instance, which checks each message.

    It skips the test on an Airflow without state stores.
    """

    def __init__(self) -> None:
        if not HAS_STATE_STORES:
            pytest.skip(NO_STATE_STORES)
        self.values: dict[str, str] = {}

    def message(self, key: str, value: Any) -> BaseModel:
        """Build the SDK's message, which accepts plain JSON only."""
        return SetTaskStateStore(ti_id=UUID(int=1), key=key, value=value, expires_at=None)

    def get(self, key: str, default: object = None) -> Any:
        """The value as Airflow returns it."""
        return json.loads(self.values[key])["value"] if key in self.values else default

    def set(self, key: str, value: object, **options: object) -> None:
        """Keeps the value of the message. ValueError for None, as the SDK."""
        if value is None:
            raise ValueError("Cannot set value as None")
        self.values[key] = self.message(key, value).model_dump_json(include={"value"})


class AssetState(State):
    """The state store of an asset."""

    def message(self, key: str, value: Any) -> BaseModel:
        """The SDK's message for a write."""
        return SetAssetStateStoreByName(name="inbox", key=key, value=value)

    async def aget(self, key: str) -> Any:
        """`get`, as the triggerer calls it."""
        return self.get(key)

    async def aset(self, key: str, value: object) -> None:
        """`set`, as the triggerer calls it."""
        self.set(key, value)

    async def adelete(self, key: str) -> None:
        """Remove a value, as the triggerer does."""
        self.values.pop(key, None)


class AssetStates:
    """The state stores of a task with one asset."""

    def __init__(self, state: AssetState) -> None:
        self._state = state

    def __getitem__(self, asset: Asset) -> AssetState:
        """Return the store of the asset."""
        assert asset.name == "inbox"
        return self._state


def context(
    try_number: int = 1,
    state: State | None = None,
    *,
    cleared: int = 0,
    run_type: str = "manual",
    logical_date: datetime | None = None,
    asset_state: AssetState | None = None,
) -> Context:
    """Build a task context; ``cleared`` after this number of attempts."""
    started = datetime.now(UTC)
    instance = SimpleNamespace(
        dag_id="dag", task_id="task", run_id="run", map_index=-1,
        try_number=try_number, max_tries=cleared + 3, task=SimpleNamespace(retries=3),
        get_first_reschedule_date=lambda _: started,
    )  # fmt: skip
    run_after = datetime(2026, 1, 31, 23, 30, tzinfo=timezone(timedelta(hours=-1)))
    run = SimpleNamespace(start_date=None, run_after=run_after, run_type=run_type, logical_date=logical_date)
    found: dict[str, Any] = {"ti": instance, "dag_run": run, "outlet_events": OutletEventAccessors()}
    if logical_date is not None:
        found["logical_date"] = logical_date
    if state is not None:
        found["task_state_store"] = state
    if asset_state is not None:
        found["asset_state_store"] = AssetStates(asset_state)
    return cast("Context", found)
