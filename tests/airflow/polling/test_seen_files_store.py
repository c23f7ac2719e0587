"""Seen files survive a stop of the triggerer between any two requests."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any, cast

import pytest
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse
from pydantic import BaseModel, ValidationError

from airflow_sftp_backend._file_rows import FoundFile
from airflow_sftp_backend._polling.seen_files import SeenFiles
from airflow_sftp_backend._polling.seen_files_store import SeenFilesStore
from tests.support.airflow.context import AssetState
from tests.support.airflow.versions import AssetStateStoreAccessors, needs_state_stores


def row(path: str, size: int = 1) -> FoundFile:
    return {"path": path, "size": size, "modified_at": "2026-01-01T00:00:00+00:00"}


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
        assert first.unsent() == []
        reported = seen("a")
        await first.save(reported)
        assert await memory(store).load() == reported
        (report,) = first.unsent()
        assert report == reported.unacknowledged[0]
        first.mark_sent(report)
        assert first.unsent() == []
        clock.now = 29
        assert await first.load() == reported
        clock.now = 31
        settled = await first.load()
        assert settled == SeenFiles(reported.directories)
        again = memory(store)
        assert await again.load() == reported  # that it is settled is not kept yet
        assert again.unsent() == [report]
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
        while reports := kept.unsent():
            made.append([one["path"] for one in reports[0].files])
            kept.mark_sent(reports[0])
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
        assert old.unsent() == [theirs.unacknowledged[1]]
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
        (report,) = kept.unsent()
        kept.mark_sent(report)
        store.full = True
        for clock.now in (31, 62, 93):
            with pytest.raises(AirflowRuntimeError):
                await kept.save(await kept.load())
            assert kept.unsent() == []
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
        assert again.unsent()
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
        store.aset = None  # type: ignore[assignment,method-assign] # a call fails
        await kept.save(seen("a", before=await kept.load()))

    asyncio.run(twice())


def test_without_a_store_seen_files_are_kept_in_memory() -> None:
    clock = Clock()

    async def remember() -> None:
        kept = memory(None, clock=clock)
        await kept.save(seen("a", before=await kept.load()))
        (report,) = kept.unsent()
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


# -- the log of changes -----------------------------------------------------------------------------------------------


class Counting(AssetState):
    """Count the written characters, and kill the triggerer at a chosen request."""

    def __init__(self) -> None:
        super().__init__()
        self.written = self.requests = 0
        self.kill_at: int | None = None

    async def aget(self, key: str) -> Any:
        self._request()
        return await super().aget(key)

    async def aset(self, key: str, value: object) -> None:
        self._request()
        await super().aset(key, value)
        self.written += len(self.values[key])
        assert len(self.values[key]) < 65_535

    async def adelete(self, key: str) -> None:
        self._request()
        await super().adelete(key)

    def _request(self) -> None:
        if self.requests == self.kill_at:
            raise Killed
        self.requests += 1


class Killed(BaseException):
    """The triggerer is killed."""


def files(count: int, first: int = 0) -> list[str]:
    return [f"inbox/partner-a/orders-2026-{number:06}.csv" for number in range(first, first + count)]


async def poll(store: AssetState, paths: list[str], kept: SeenFilesStore | None = None) -> SeenFilesStore:
    """Save the seen files after a poll, and send all batches.

    The store is loaded first, as by a restarted triggerer.
    """
    kept = kept or memory(store)
    await kept.save(seen(*paths, before=await kept.load()))
    return kept


def test_an_arrival_in_a_large_directory_writes_little() -> None:
    store, clock = Counting(), Clock()

    async def arrive() -> None:
        kept, paths = memory(store, clock=clock), files(20_000)
        for _ in range(3):
            await poll(store, paths, kept)
            for batch in kept.unsent():
                kept.mark_sent(batch)
            clock.now += 31
        assert (await kept.load()).unacknowledged == ()
        assert store.written < 50 * 20_000
        store.written = 0
        for number in range(10):
            await poll(store, [*paths, f"inbox/partner-a/new-{number}"], kept)
            for batch in kept.unsent():
                kept.mark_sent(batch)
            clock.now += 31
        assert store.written < 10 * 2 * 2000
        assert await memory(store).load() == kept._current

    asyncio.run(arrive())


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill parts with few files."""
    monkeypatch.setattr("airflow_sftp_backend._polling.seen_files.MAX_BATCH_FILES", 10)
    monkeypatch.setattr("airflow_sftp_backend._polling.seen_files._RECORDS_PER_CHANGE", 10)
    monkeypatch.setattr("airflow_sftp_backend._polling.seen_files_store._HEAD_SIZE", 500)
    monkeypatch.setattr("airflow_sftp_backend._polling.seen_files_store._PART_SIZE", 700)


@pytest.mark.usefixtures("small_parts")
def test_the_log_of_a_directory_that_is_cleaned_stays_small() -> None:
    store, clock = Counting(), Clock()

    async def come_and_go() -> None:
        kept = memory(store, clock=clock)
        for number in range(200):
            await poll(store, [f"in/{number}", f"in/{number + 1}"], kept)
            for batch in kept.unsent():
                kept.mark_sent(batch)
            clock.now += 31
        assert sum(map(len, store.values.values())) < 3000
        assert await memory(store).load() == kept._current

    asyncio.run(come_and_go())


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("seed", range(3))
def test_the_stored_log_is_equal_to_the_seen_files(seed: int) -> None:
    """Files come, change, go and come back in many polls."""
    choose = random.Random(seed)
    store, clock = Counting(), Clock()

    async def watch() -> None:
        kept = memory(store, clock=clock)
        paths = [f"{directory}/{number}" for directory in ("", "a", "b") for number in range(90)]
        for _ in range(200):
            present = choose.sample(paths, choose.choice([0, 1, 20, 150, 200, len(paths)]))
            rows = [row(path, choose.choice([1, 1, 1, 2])) for path in present]
            before = await kept.load()
            await kept.save(before.updated_with(rows, present, clock.now, changed=choose.random() < 0.5))
            for batch in kept.unsent()[: choose.randint(0, 3)]:
                kept.mark_sent(batch)
            clock.now += choose.choice([1, 31, 50_000])
            if choose.random() < 0.3:
                again = memory(store, clock=clock)
                assert await again.load() == kept._current
                kept = again
        referenced = {
            part for key, value in store.values.items() for part in json.loads(value)["value"].get("parts", [])
        }
        assert len(store.values) - 1 - len(referenced) < 10

    asyncio.run(watch())


def deliveries(kill_at_request: int | None, kill_at_report: int | None) -> tuple[dict[str, list[str]], int]:
    """Let files arrive while the triggerer is killed once.

    :returns: the reported paths by batch, and the number of requests to the store
    """
    store, clock = Counting(), Clock()
    store.kill_at = kill_at_request
    polls = [paths for paths in (files(55), files(80, 25), files(81, 25)) for _ in range(3)]
    received: dict[str, list[str]] = {}
    reports = 0

    async def work() -> None:
        nonlocal reports
        kept = memory(store, clock=clock)
        while polls:
            await poll(store, polls[0], kept)
            for batch in kept.unsent():
                reports += 1
                if reports - 1 == kill_at_report:
                    raise Killed
                paths = [file["path"] for file in batch.files]
                assert received.setdefault(batch.batch_id, paths) == paths
                kept.mark_sent(batch)
            clock.now += 31
            del polls[0]

    async def work_again() -> None:
        try:
            await work()
        except Killed:
            store.kill_at = None
            await work()

    asyncio.run(work_again())
    return received, store.requests


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("kill", ["at each request", "at each report"])
def test_a_triggerer_killed_anywhere_gives_each_file_to_one_batch(kill: str) -> None:
    received, requests = deliveries(None, None)
    number = requests if kill == "at each request" else len(received) + 1
    assert number > 10
    for point in range(number):
        received, _ = deliveries(point, None) if kill == "at each request" else deliveries(None, point)
        assert sorted(path for paths in received.values() for path in paths) == files(106)


@pytest.mark.usefixtures("small_parts")
def test_unused_parts_of_a_killed_triggerer_are_removed() -> None:
    _, requests = deliveries(None, None)
    for point in range(requests):
        store = Counting()
        store.kill_at = point

        async def burst(store: Counting) -> None:
            try:
                await poll(store, files(100))
                store.kill_at = None
            except Killed:
                store.kill_at = None
            for first in (1, 100):
                await poll(store, files(100, first))

        asyncio.run(burst(store))
        head = next(value["value"] for value in map(json.loads, store.values.values()) if "parts" in value["value"])
        stored = {key.rpartition(" ")[2] for key in store.values if key.count(" ") > 4}
        assert stored <= {*head["parts"], *head["unused"]}
        if store.requests < point:
            break


@pytest.mark.usefixtures("small_parts")
def test_a_triggerer_that_compacts_the_log_does_not_disturb_another() -> None:
    """The other one reads the head, and then finds the parts removed."""
    store, clock = AssetState(), Clock()

    async def both() -> None:
        one = await poll(store, files(200))
        heads: list[str] = []

        class Late(AssetState):
            values = store.values

            async def aget(self, key: str) -> Any:
                value = await super().aget(key)
                if not heads:
                    heads.append(key)
                    for first in (200, 400, 600):
                        clock.now += 31
                        await poll(store, files(200, first), one)
                        for batch in one.unsent():
                            one.mark_sent(batch)
                return value

        late = Late()
        late.values = store.values
        warnings: list[str] = []
        assert await memory(late, warnings).load() == one._current
        assert warnings == []

    asyncio.run(both())
