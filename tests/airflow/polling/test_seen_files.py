"""Report each file once, also after a restart of the triggerer."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from airflow_sftp_backend._file_rows import FoundFile
from airflow_sftp_backend._polling.seen_files import SeenFiles, SeenFilesStore
from tests.support.airflow.context import AssetState
from tests.support.airflow.versions import AssetStateStoreAccessors, needs_state_stores

DAY = 24 * 3600.0


def row(path: str, size: int = 1, modified_at: str | None = "2026-01-01T00:00:00+00:00") -> FoundFile:
    return {"path": path, "size": size, "modified_at": modified_at}


class Watch:
    """A watch with given polls, restarted before each of them."""

    def __init__(self, *, changed: bool = False) -> None:
        self.changed = changed
        self.seen = SeenFiles()

    def poll(self, *ready: FoundFile, unready: tuple[str, ...] = (), at: float = 0.0) -> list[str]:
        """The paths reported."""
        present = [one["path"] for one in ready] + list(unready)
        self.seen = SeenFiles.from_json(json.loads(json.dumps(self.seen.as_json())))
        before = len(self.seen.unacknowledged)
        self.seen = self.seen.updated_with(ready, present, at, changed=self.changed)
        return [one["path"] for report in self.seen.unacknowledged[before:] for one in report.files]


# -- what is new ------------------------------------------------------------------------------------------------------


def test_a_file_is_reported_as_new_once() -> None:
    watch = Watch()
    assert watch.poll(row("a"), row("b")) == ["a", "b"]
    assert watch.poll(row("a"), row("b"), row("c")) == ["c"]
    assert watch.poll(row("a"), row("b"), row("c")) == []


def test_a_limited_batch_has_the_oldest_new_files() -> None:
    files = [row(name, modified_at=f"2026-01-0{day}T00:00:00+00:00") for name, day in {"a": 3, "b": 1, "c": 2}.items()]
    files.append(row("0", modified_at=None))
    seen_files, batches = SeenFiles(), []
    for _ in range(3):
        seen_files = seen_files.updated_with(files, [file["path"] for file in files], 0, changed=False, max_files=2)
        batches = [[file["path"] for file in batch.files] for batch in seen_files.unacknowledged]
    assert batches == [["b", "c"], ["a", "0"]]


@pytest.mark.parametrize("other", [row("a", size=2), row("a", modified_at="2026-01-02T00:00:00+00:00")])
def test_a_changed_file_is_new_only_if_configured(other: FoundFile) -> None:
    for changed, reported in ((False, []), (True, ["a"])):
        watch = Watch(changed=changed)
        watch.poll(row("a"))
        assert watch.poll(other) == reported
        assert watch.poll(other) == []


def test_a_reused_name_is_a_new_file() -> None:
    watch = Watch()
    watch.poll(row("daily.csv"))
    assert watch.poll() == []
    assert watch.poll(row("daily.csv", size=2)) == ["daily.csv"]


def test_a_reused_name_is_new_even_if_first_seen_incomplete() -> None:
    watch = Watch()
    watch.poll(row("daily.csv"))
    watch.poll()
    assert watch.poll(unready=("daily.csv",)) == []
    assert watch.poll(row("daily.csv", size=2)) == ["daily.csv"]


def test_an_unreported_change_is_new_once_it_changes_again() -> None:
    watch = Watch()
    watch.poll(row("a"))
    watch.poll(row("a", size=2))
    watch.poll()
    assert watch.poll(row("a", size=2)) == []
    watch.poll()
    assert watch.poll(row("a", size=3)) == ["a"]


def test_a_briefly_missing_directory_reports_nothing_twice() -> None:
    watch = Watch()
    watch.poll(row("in/a"), row("in/b"), row("other/c"))
    assert watch.poll(row("other/c"), at=100) == []
    assert watch.poll(row("other/c"), at=DAY) == []
    assert watch.poll(row("in/a"), row("in/b"), row("other/c"), at=DAY + 99) == []


def test_a_directory_missing_for_a_day_is_forgotten() -> None:
    watch = Watch()
    watch.poll(row("in/a"))
    watch.poll(at=100)
    watch.poll(at=100 + DAY)
    assert watch.seen == SeenFiles({}, watch.seen.unacknowledged)
    assert watch.poll(row("in/a"), at=100 + DAY) == ["in/a"]


def test_a_deleted_file_is_forgotten_if_others_remain() -> None:
    watch = Watch()
    watch.poll(row("in/a"), row("in/b"))
    assert watch.poll(row("in/b")) == []
    assert watch.poll(row("in/a"), row("in/b")) == ["in/a"]


def test_very_many_new_files_are_split_into_batches() -> None:
    watch = Watch(changed=True)
    files = [row(f"in/{number:04}") for number in range(1200)]
    reported = [watch.poll(*files) for _ in range(4)]
    assert [len(paths) for paths in reported] == [500, 500, 200, 0]
    assert sorted(path for paths in reported for path in paths) == [one["path"] for one in files]
    others = [row(one["path"], size=2) for one in files]
    assert [len(watch.poll(*others)) for _ in range(4)] == [500, 500, 200, 0]


def test_the_stored_record_of_seen_files_is_small() -> None:
    watch = Watch()
    files = [row(f"inbox/partner-a/orders-2026-{number:06}.csv") for number in range(4000)]
    while watch.poll(*files):
        watch.seen = SeenFiles(watch.seen.directories)
    assert len(json.dumps(watch.seen.as_json())) < 65_535


_POLLS = st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(1, 3), max_size=3), max_size=12)


@given(polls=_POLLS)
def test_changed_content_is_reported_once_per_change_if_configured(polls: list[dict[str, int]]) -> None:
    watch = Watch(changed=True)
    last: dict[str, int] = {}
    for files in polls:
        reported = watch.poll(*(row(path, size) for path, size in files.items()))
        assert reported == [path for path, size in files.items() if last.get(path) != size]
        last = files or last  # while there is none at all, none is forgotten


@given(polls=_POLLS)
def test_an_unchanged_file_is_never_reported_twice(polls: list[dict[str, int]]) -> None:
    watch = Watch()
    before: set[str] = set()
    ever: set[str] = set()
    for files in polls:
        reported = set(watch.poll(*(row(path, size) for path, size in files.items())))
        assert reported >= files.keys() - ever
        assert not reported & before
        before = set(files)
        ever |= before


def test_every_batch_has_a_unique_name() -> None:
    watch = Watch()
    names = set()
    for path in "abc":
        watch.poll(row(path))
        names.add(watch.seen.unacknowledged[-1].batch_id)
    assert len(names) == 3


# -- what is remembered -----------------------------------------------------------------------------------------------


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def memory(
    store: AssetState | None, warnings: list[str] | None = None, watch: str = "inbox", clock: Clock | None = None
) -> SeenFilesStore:
    logged: list[str] = [] if warnings is None else warnings
    return SeenFilesStore(watch, cast("AssetStateStoreAccessors | None", store), logged.append, clock or Clock())


def seen(*paths: str, before: SeenFiles | None = None) -> SeenFiles:
    """Return the seen files after a poll of these."""
    return (before or SeenFiles()).updated_with([row(path) for path in paths], paths, 0, changed=False)


def test_a_restart_loads_seen_files_and_the_unacknowledged_batch() -> None:
    store, clock = AssetState(), Clock()

    async def restart() -> None:
        first = memory(store, clock=clock)
        assert await first.load() == SeenFiles()
        assert first.next_unsent() is None
        reported = seen("a")
        await first.save(reported)
        assert await memory(store).load() == reported
        report = first.next_unsent()
        assert report == reported.unacknowledged[0]
        first.mark_sent(report)
        assert first.next_unsent() is None
        clock.now = 29
        assert await first.load() == reported
        clock.now = 31
        settled = await first.load()
        assert settled == SeenFiles(reported.directories)
        again = memory(store)
        assert await again.load() == reported  # that it is settled is not kept yet
        assert again.next_unsent() == report
        await first.save(settled)
        assert await memory(store).load() == settled

    asyncio.run(restart())


def test_batches_are_sent_one_by_one_oldest_first() -> None:
    async def make() -> None:
        kept = memory(AssetState())
        await kept.load()
        both = seen("a", "b", before=seen("a"))
        await kept.save(both)
        made = []
        while (report := kept.next_unsent()) is not None:
            made.append([one["path"] for one in report.files])
            kept.mark_sent(report)
        assert made == [["a"], ["b"]]

    asyncio.run(make())


def test_a_returning_triggerer_loads_what_the_other_one_saved() -> None:
    store = AssetState()

    async def take_over() -> None:
        old, new = memory(store), memory(store)
        await old.save(seen("a", before=await old.load()))
        (first,) = (await old.load()).unacknowledged
        old.mark_sent(first)
        await new.save(seen("a", "b", before=await new.load()))
        theirs = await new.load()
        await old.save(seen("a", "b", before=await old.load()))  # it has seen b as well, under another name
        assert await old.load() == theirs
        assert old.next_unsent() == theirs.unacknowledged[1]
        assert await memory(store).load() == theirs

    asyncio.run(take_over())


def test_a_batch_is_not_sent_twice_while_its_mark_cannot_be_saved() -> None:
    class Full(AssetState):
        full = False

        async def aset(self, key: str, value: object) -> None:
            if self.full:
                raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR))
            await super().aset(key, value)

    store, clock = Full(), Clock()

    async def go_on() -> None:
        kept = memory(store, clock=clock)
        await kept.save(seen("a", before=await kept.load()))
        report = kept.next_unsent()
        assert report is not None
        kept.mark_sent(report)
        store.full = True
        for clock.now in (31, 62, 93):
            with pytest.raises(AirflowRuntimeError):
                await kept.save(await kept.load())
            assert kept.next_unsent() is None
        store.full = False
        await kept.save(await kept.load())
        assert (await memory(store).load()).unacknowledged == ()

    asyncio.run(go_on())


@pytest.mark.parametrize("kept", [[], {"known": {"in": ["!", "", None]}}, {"known": {}}, {"known": 3, "unsettled": []}])
def test_a_stored_value_of_unknown_format_is_logged_and_replaced(kept: Any) -> None:
    store = AssetState()
    warnings: list[str] = []

    async def start() -> None:
        await memory(store).save(seen("a"))
        (key,) = store.values
        store.set(key, kept)
        again = memory(store, warnings)
        await again.save(seen("a", before=await again.load()))
        assert again.next_unsent() is not None
        assert (await memory(store).load()).directories == seen("a").directories

    asyncio.run(start())
    assert any("are not valid" in warning for warning in warnings)


def test_a_temporarily_unreadable_store_is_not_overwritten() -> None:
    store = AssetState()

    async def forget_for_a_while() -> None:
        before = memory(store)
        await before.save(seen("a", before=await before.load()))
        hidden, store.values = store.values, {}
        after = memory(store)
        assert await after.load() == SeenFiles()
        store.values = hidden
        await after.save(seen("a"))
        assert await after.load() == await before.load()

    asyncio.run(forget_for_a_while())


def test_two_watches_of_one_asset_do_not_disturb_each_other() -> None:
    store = AssetState()

    async def watch() -> None:
        for path in "ab":
            kept = memory(store, watch=path)
            await kept.save(seen(path, before=await kept.load()))
        for path in "ab":
            assert (await memory(store, watch=path).load()).directories == seen(path).directories

    asyncio.run(watch())


def test_nothing_is_written_where_nothing_has_changed() -> None:
    store = AssetState()

    async def twice() -> None:
        kept = memory(store)
        await kept.save(seen(before=await kept.load()))
        assert not store.values
        await kept.save(seen("a"))
        store.aset = None  # type: ignore[assignment,method-assign] # whoever calls it fails
        await kept.save(seen("a", before=await kept.load()))

    asyncio.run(twice())


def test_without_a_store_seen_files_are_kept_in_memory() -> None:
    clock = Clock()

    async def remember() -> None:
        kept = memory(None, clock=clock)
        await kept.save(seen("a", before=await kept.load()))
        report = kept.next_unsent()
        assert report is not None
        kept.mark_sent(report)
        clock.now = 31
        assert await kept.load() == SeenFiles(seen("a").directories)
        assert await memory(None).load() == SeenFiles()

    asyncio.run(remember())


@needs_state_stores
def test_a_watch_with_several_assets_is_logged_as_a_warning() -> None:
    several = AssetStateStoreAccessors([Asset("one"), Asset("two")])
    warnings: list[str] = []

    async def remember() -> None:
        kept = SeenFilesStore("inbox", several, warnings.append)
        await kept.save(seen("a", before=await kept.load()))
        assert (await kept.load()).directories == seen("a").directories

    asyncio.run(remember())
    assert len(warnings) == 1
    assert "give each asset its own watch" in warnings[0]


def test_an_invalid_answer_of_the_store_is_an_error() -> None:
    class Garbled(AssetState):
        async def aget(self, key: str) -> Any:
            Pair.model_validate({})

    class Pair(BaseModel):
        left: int

    async def ask() -> None:
        with pytest.raises(ValidationError):
            await memory(Garbled()).load()

    asyncio.run(ask())
