"""A file is reported once, however often it is seen, and a report is handed to one run."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend.arrivals import Arrivals, Memory, Report, new_files
from airflow_sftp_backend.waiting import Row
from tests.airflow.conftest import State

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.execution_time.context import AssetStateStoreAccessors

DAY = 24 * 3600.0


def row(path: str, size: int = 1, modified_at: str | None = "2026-01-01T00:00:00+00:00") -> Row:
    return {"path": path, "size": size, "modified_at": modified_at}


class Watch:
    """A watch whose looks are given, restarted before each of them."""

    def __init__(self, *, changed: bool = False) -> None:
        self.changed = changed
        self.seen = Arrivals()

    def look(self, *ready: Row, unready: tuple[str, ...] = (), at: float = 0.0) -> list[str]:
        """The paths reported."""
        present = {one["path"] for one in ready} | set(unready)
        self.seen = Arrivals.from_json(json.loads(json.dumps(self.seen.as_json())))
        self.seen = self.seen.look(ready, present, at, changed=self.changed)
        return [] if self.seen.pending is None else [one["path"] for one in self.seen.pending.files]


# -- what is new ------------------------------------------------------------------------------------------------------


def test_a_file_is_new_once() -> None:
    watch = Watch()
    assert watch.look(row("a"), row("b")) == ["a", "b"]
    assert watch.look(row("a"), row("b"), row("c")) == ["c"]
    assert watch.look(row("a"), row("b"), row("c")) == []


@pytest.mark.parametrize("other", [row("a", size=2), row("a", modified_at="2026-01-02T00:00:00+00:00")])
def test_a_changed_file_is_new_only_if_asked(other: Row) -> None:
    for changed, reported in ((False, []), (True, ["a"])):
        watch = Watch(changed=changed)
        watch.look(row("a"))
        assert watch.look(other) == reported
        assert watch.look(other) == []


def test_a_name_that_is_used_again_is_a_new_file() -> None:
    watch = Watch()
    watch.look(row("daily.csv"))
    assert watch.look() == []
    assert watch.look(row("daily.csv", size=2)) == ["daily.csv"]


def test_a_name_that_is_used_again_is_new_though_it_was_seen_half_first() -> None:
    watch = Watch()
    watch.look(row("daily.csv"))
    watch.look()
    assert watch.look(unready=("daily.csv",)) == []
    assert watch.look(row("daily.csv", size=2)) == ["daily.csv"]


def test_a_changed_file_that_was_not_reported_is_new_if_it_comes_back_different_again() -> None:
    watch = Watch()
    watch.look(row("a"))
    watch.look(row("a", size=2))
    watch.look()
    assert watch.look(row("a", size=2)) == []
    watch.look()
    assert watch.look(row("a", size=3)) == ["a"]


def test_a_folder_that_was_away_for_a_while_brings_nothing_new() -> None:
    watch = Watch()
    watch.look(row("in/a"), row("in/b"))
    assert watch.look(at=100) == []
    assert watch.look(at=DAY) == []
    assert watch.look(row("in/a"), row("in/b"), at=DAY + 99) == []


def test_what_is_gone_for_a_day_is_forgotten() -> None:
    watch = Watch()
    watch.look(row("a"), row("b"))
    watch.look(row("b"), at=100)
    watch.look(row("b"), at=100 + DAY)
    assert list(watch.seen.known) == ["b"]
    assert watch.look(row("a"), row("b"), at=100 + DAY) == ["a"]


_LOOKS = st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(1, 3), max_size=3), max_size=12)


@given(looks=_LOOKS)
def test_every_content_is_reported_if_asked_and_none_twice_in_a_row(looks: list[dict[str, int]]) -> None:
    watch = Watch(changed=True)
    last: dict[str, int] = {}
    for files in looks:
        reported = watch.look(*(row(path, size) for path, size in files.items()))
        assert reported == [path for path, size in files.items() if last.get(path) != size]
        last |= files


@given(looks=_LOOKS)
def test_nothing_that_stays_is_reported_twice(looks: list[dict[str, int]]) -> None:
    watch = Watch()
    before: set[str] = set()
    ever: set[str] = set()
    for files in looks:
        reported = set(watch.look(*(row(path, size) for path, size in files.items())))
        assert reported >= files.keys() - ever
        assert not reported & before
        before = set(files)
        ever |= before


def test_every_report_has_a_name_of_its_own() -> None:
    watch = Watch()
    names = set()
    for path in "abc":
        watch.look(row(path))
        assert watch.seen.pending is not None
        names.add(watch.seen.pending.name)
    assert len(names) == 3


# -- what is remembered -----------------------------------------------------------------------------------------------


class Store(State):
    """The state store of an asset, as the triggerer has it."""

    async def aget(self, key: str) -> Any:
        return self.get(key)

    async def aset(self, key: str, value: object) -> None:
        self.set(key, value)


def memory(store: State | None, warnings: list[str] | None = None, watch: str = "inbox") -> Memory:
    told: list[str] = [] if warnings is None else warnings
    return Memory(watch, cast("AssetStateStoreAccessors | None", store), told.append)


def test_a_restart_finds_what_was_kept_and_a_settled_report_only_until_it_is_kept_again() -> None:
    store = Store()

    async def restart() -> None:
        first = memory(store)
        assert await first.recall() == Arrivals()
        reported = Arrivals().look([row("a")], {"a"}, 0, changed=False)
        await first.keep(reported)
        assert await memory(store).recall() == reported
        first.settle()
        settled = await first.recall()
        assert settled.pending is None
        assert (await memory(store).recall()).pending == reported.pending
        await first.keep(settled.look([row("a")], {"a"}, 1, changed=False))
        assert await memory(store).recall() == settled

    asyncio.run(restart())


def test_two_watches_of_one_asset_do_not_disturb_each_other() -> None:
    store = Store()

    async def watch() -> None:
        for path in "ab":
            kept = memory(store, watch=path)
            await kept.keep((await kept.recall()).look([row(path)], {path}, 0, changed=False))
        for path in "ab":
            assert list((await memory(store, watch=path).recall()).known) == [path]

    asyncio.run(watch())


def test_nothing_is_written_where_nothing_has_changed() -> None:
    store = Store()

    async def twice() -> None:
        kept = memory(store)
        await kept.keep((await kept.recall()).look([], (), 0, changed=False))
        assert not store.values

    asyncio.run(twice())


def test_without_a_store_it_is_remembered_until_the_end() -> None:
    async def remember() -> None:
        kept = memory(None)
        seen = Arrivals().look([row("a")], {"a"}, 0, changed=False)
        await kept.keep(seen)
        kept.settle()
        assert (await kept.recall()).known == seen.known
        assert await memory(None).recall() == Arrivals()

    asyncio.run(remember())


def test_several_assets_of_one_watch_are_warned_of() -> None:
    class OfSeveral(Store):
        async def aget(self, key: str) -> Any:
            raise ValueError("Task has 2 concrete inlets and outlets")

    warnings: list[str] = []

    async def remember() -> None:
        kept = memory(OfSeveral(), warnings)
        await kept.keep((await kept.recall()).look([row("a")], {"a"}, 0, changed=False))
        assert list((await kept.recall()).known) == ["a"]

    asyncio.run(remember())
    assert len(warnings) == 1
    assert "give each asset its own watch" in warnings[0]


# -- whom it is handed to ---------------------------------------------------------------------------------------------


def started(*events: object, run_id: str = "run", store: State | None = None, dag_id: str = "dag") -> Context:
    """What a task sees whose run these extras of asset events have started."""
    return cast(
        "Context",
        {
            "ti": SimpleNamespace(run_id=run_id, dag_id=dag_id),
            "triggering_asset_events": {"inbox": [SimpleNamespace(extra=extra) for extra in events]},
            "asset_state_store": {} if store is None else {"inbox": store},
        },
    )


def report(name: str, *files: Row) -> dict[str, Any]:
    made = Report(list(files), name)
    payload = {"report": made.name, "sftp_conn_id": "x", "files": made.files}
    return {"from_trigger": True, "payload": payload}


def test_the_files_of_all_reports_are_given_and_a_path_once() -> None:
    given = new_files(started(report("1", row("a"), row("b")), report("2", row("b", 5), row("c"))))
    assert given == [row("a"), row("b", 5), row("c")]


def test_a_report_made_twice_is_given_to_one_run_and_again_to_its_next_try() -> None:
    store = State()
    assert new_files(started(report("1", row("a")), run_id="one", store=store)) == [row("a")]
    again = started(report("1", row("a")), report("2", row("b")), run_id="two", store=store)
    assert new_files(again) == [row("b")]
    assert new_files(again) == [row("b")]
    assert new_files(started(report("1", row("a")), run_id="one", store=store)) == [row("a")]


def test_each_dag_that_watches_is_given_all() -> None:
    store = State()
    for dag_id in ("one", "two"):
        assert new_files(started(report("1", row("a")), dag_id=dag_id, run_id=dag_id, store=store)) == [row("a")]


def test_what_was_taken_is_kept_for_the_latest_reports() -> None:
    store = State()
    for number in range(600):
        new_files(started(report(str(number), row("a")), run_id=str(number), store=store))
    (kept,) = (json.loads(value) for value in store.values.values())
    assert len(kept) == 500
    assert new_files(started(report("599", row("a")), run_id="other", store=store)) == []


def test_events_of_other_origin_bring_no_files() -> None:
    other: tuple[dict[str, Any], ...] = ({}, {"payload": "text"}, {"from_trigger": True, "payload": {"something": 1}})
    assert new_files(started(*other, report("1", row("a")))) == [row("a")]


def test_a_run_that_no_event_started_has_no_files() -> None:
    context = started()
    assert new_files(context) == []
