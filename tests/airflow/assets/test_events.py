"""Each watching DAG gets the files of an event in one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse

from airflow_sftp_backend._file_rows import FoundFile
from airflow_sftp_backend.assets import new_files
from tests.support.airflow.context import AssetState

if TYPE_CHECKING:
    from airflow.sdk import Context

BEGINNING = datetime(2026, 1, 31, tzinfo=UTC)


def row(path: str, size: int = 1) -> FoundFile:
    return {"path": path, "size": size, "modified_at": "2026-01-01T00:00:00+00:00"}


class Event(SimpleNamespace):
    """An event of the asset, made that many seconds from the beginning."""

    def __init__(self, extra: dict[str, Any] | None, at: float) -> None:
        super().__init__(extra=extra, timestamp=BEGINNING + timedelta(seconds=at), created_dagruns=[])


def report(name: str, *files: FoundFile, at: float = 0.0) -> Event:
    payload = {"batch": name, "sftp_conn_id": "x", "files": list(files)}
    return Event({"from_trigger": True, "payload": payload}, at)


class Events:
    """Events of an asset, as a task with this inlet requests them."""

    def __init__(self, events: Sequence[Event], since: str = "", most: int | None = None) -> None:
        self.events, self.since, self.most = events, since, most

    def after(self, since: str) -> Events:
        return type(self)(self.events, since, self.most)

    def limit(self, most: int) -> Events:
        return type(self)(self.events, self.since, most)

    def __iter__(self) -> Iterator[Event]:
        since = datetime.fromisoformat(self.since)
        found = sorted((one for one in self.events if one.timestamp >= since), key=lambda one: one.timestamp)
        return iter(found[: self.most])


class Inbox:
    """Watched asset, its events and state; starts runs like Airflow 3.3."""

    def __init__(self, *events: Event, remembers: bool = True) -> None:
        self.store = AssetState()
        self.remembers = remembers
        self.events = [*events]
        self._upto: dict[str, datetime] = {}

    def watched_since(self, dag_id: str, at: float) -> None:
        """From then on the events are the DAG's business."""
        self._upto[dag_id] = BEGINNING + timedelta(seconds=at)

    def run(
        self, created: float, began: float | None = None, *, run_id: str = "run", dag_id: str = "dag", **context: object
    ) -> Context:
        """Build the context of a task.

        Its run was created for all events up to that second without an earlier run, and began then or later.
        """
        upto = BEGINNING + timedelta(seconds=created)
        since = self._upto.get(dag_id, BEGINNING - timedelta(days=1))
        own = [event for event in self.events if since < event.timestamp <= upto]
        self._upto[dag_id] = upto
        for event in own:
            event.created_dagruns.append(SimpleNamespace(dag_id=dag_id, run_id=run_id))
        found: dict[str, Any] = {
            "ti": SimpleNamespace(run_id=run_id, dag_id=dag_id),
            "dag_run": SimpleNamespace(start_date=upto if began is None else BEGINNING + timedelta(seconds=began)),
            "triggering_asset_events": {"inbox": own} if own else {},
            "inlet_events": {"inbox": Events(self.events)},
        }
        if self.remembers:
            found["asset_state_store"] = {"inbox": self.store}
        return cast("Context", found | context)


@pytest.fixture(autouse=True)
def stands_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other run is under way."""
    monkeypatch.setattr("airflow_sftp_backend.assets.events._CLAIM_SETTLE_SECONDS", 0.0)


@pytest.mark.parametrize("remembers", [True, False])
def test_files_of_all_events_are_returned_each_path_once(remembers: bool) -> None:
    inbox = Inbox(report("1", row("a"), row("b")), report("2", row("b", 5), row("c")), remembers=remembers)
    assert new_files(inbox.run(0)) == [row("a"), row("b", 5), row("c")]


def test_a_repeated_event_goes_to_one_run_and_its_retries() -> None:
    inbox = Inbox(report("1", row("a")), report("1", row("a"), at=5), report("2", row("b"), at=6))
    one, two = inbox.run(1, run_id="one"), inbox.run(6, run_id="two")
    assert new_files(one) == [row("a")]
    assert new_files(two) == [row("b")]
    assert new_files(two) == [row("b")]
    assert new_files(one) == [row("a")]


def test_each_dag_that_watches_gets_all_files() -> None:
    inbox = Inbox(report("1", row("a")))
    for dag_id in ("one", "two"):
        assert new_files(inbox.run(1, dag_id=dag_id, run_id=dag_id)) == [row("a")]


def test_events_without_a_run_go_to_the_next_run_and_its_retries() -> None:
    inbox = Inbox(report("1", row("a"), at=1), report("2", row("b"), at=2), report("3", row("c"), at=30))
    first = inbox.run(1, began=10, run_id="first")
    assert new_files(first) == [row("b"), row("a")]
    assert new_files(first) == [row("b"), row("a")]
    second = inbox.run(30, began=40, run_id="second")  # to which Airflow shows 2 as well
    for _ in range(2):
        assert new_files(second) == [row("c")]
        assert new_files(first) == [row("b"), row("a")]


def test_an_event_that_started_another_run_is_left_to_that_run() -> None:
    inbox = Inbox(report("1", row("a"), at=1), report("2", row("b"), at=2))
    one, two = inbox.run(1, began=50, run_id="one"), inbox.run(2, began=50, run_id="two")
    assert new_files(one) == [row("a")]
    assert new_files(two) == [row("b")]


def test_an_event_after_the_start_of_a_run_is_left_to_the_next() -> None:
    inbox = Inbox(report("1", row("a"), at=1), report("2", row("b"), at=20))
    assert new_files(inbox.run(1, began=10, run_id="one")) == [row("a")]
    assert new_files(inbox.run(20, run_id="two")) == [row("b")]


def test_events_before_a_dag_began_to_watch_are_ignored() -> None:
    inbox = Inbox(report("1", row("a"), at=1), report("2", row("b"), at=2))
    inbox.watched_since("dag", 1)
    assert new_files(inbox.run(2)) == [row("b")]


def test_very_many_unclaimed_events_are_returned_once() -> None:
    inbox = Inbox(*(report(f"{number}", row(f"{number}"), at=number) for number in range(250)))
    given = [new_files(inbox.run(created, began=240, run_id=str(created))) for created in (0, 100, 249)]
    assert [len(files) for files in given] == [240, 0, 10]
    assert sorted(int(found["path"]) for files in given for found in files) == list(range(250))


def test_a_run_gets_at_most_a_thousand_unclaimed_events() -> None:
    inbox = Inbox(*(report(f"{number:016}", row(f"{number}"), at=number) for number in range(1100)))
    assert len(new_files(inbox.run(0, began=2000, run_id="one"))) == 1001
    inbox.events.append(report("last", row("last"), at=1100))
    assert len(new_files(inbox.run(1100, run_id="two"))) == 100
    assert len(inbox.store.values["sftp batches claimed by dag"]) < 65_535


@pytest.mark.parametrize("other", ["claims it too", "forgets it once", "forgets it again and again"])
def test_of_two_runs_that_claim_an_event_only_one_gets_it(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    inbox = Inbox(report("own", row("own"), at=1), report("left", row("left"), at=2))
    key = "sftp batches claimed by dag"
    slept = 0

    def meanwhile(_: float) -> None:
        nonlocal slept
        slept += 1
        taken = inbox.store.get(key)
        ((run_id, (since, batches)),) = taken.items()
        if other == "claims it too":
            taken = {run_id: [since, ["own"]], "other": [since, ["left"]]}
        elif other != "forgets it once" or slept == 1:
            batches.remove("left")
        inbox.store.set(key, taken)

    monkeypatch.setattr("airflow_sftp_backend.assets.events.time.sleep", meanwhile)
    given = new_files(inbox.run(1, began=10))
    assert given == ([row("left"), row("own")] if other == "forgets it once" else [row("own")])


def test_an_event_claimed_by_a_concurrent_run_stays_with_that_run() -> None:
    inbox = Inbox(report("own", row("own"), at=1), report("left", row("left"), at=2))

    class Slow(Events):
        def __iter__(self) -> Iterator[Event]:
            assert new_files(inbox.run(2, run_id="other")) == [row("left")]
            yield from super().__iter__()

    first = inbox.run(1, began=10, run_id="one", inlet_events={"inbox": Slow(inbox.events)})
    assert new_files(first) == [row("own")]


class Away(Events):
    """Airflow does not say."""

    def after(self, since: str) -> Events:
        raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"message": "away"}))


def test_events_that_cannot_be_read_go_to_the_next_run(caplog: pytest.LogCaptureFixture) -> None:
    inbox = Inbox(
        report("own", row("own"), at=1), report("left", row("left"), at=2), report("next", row("next"), at=20)
    )
    assert new_files(inbox.run(1, began=10, run_id="one", inlet_events={"inbox": Away([])})) == [row("own")]
    assert "left to the next run" in caplog.text
    assert new_files(inbox.run(20, run_id="two")) == [row("left"), row("next")]


def test_a_retry_that_cannot_get_the_same_events_fails() -> None:
    inbox = Inbox(report("own", row("own"), at=1), report("left", row("left"), at=2))
    run = inbox.run(1, began=10)
    assert new_files(run) == [row("left"), row("own")]
    with pytest.raises(AirflowRuntimeError):
        new_files(cast("Context", {**run, "inlet_events": {"inbox": Away([])}}))


def test_without_inlet_assets_the_events_of_the_run_are_used() -> None:
    inbox = Inbox(report("1", row("a"), at=1), report("2", row("b"), at=2))
    assert new_files(inbox.run(1, began=10, inlet_events={})) == [row("a")]


def test_the_claim_record_is_bounded_to_the_latest_events() -> None:
    inbox = Inbox(*(report(f"{number:016}", row("a"), at=number) for number in range(600)))
    for number in range(600):
        new_files(inbox.run(number, run_id=f"asset_triggered__2026-01-31T00:00:00.000000+00:00_{number:08}"))
    (kept,) = inbox.store.values.values()
    assert len(kept) < 65_535
    assert len(inbox.store.get("sftp batches claimed by dag")) > 400
    inbox.events.append(report(f"{599:016}", row("a"), at=700))
    assert new_files(inbox.run(700, run_id="other")) == []


def test_events_of_other_origin_contain_no_files() -> None:
    other: tuple[dict[str, Any] | None, ...] = (
        None, {}, {"payload": "text"}, {"from_trigger": True, "payload": {"something": 1}},
    )  # fmt: skip
    inbox = Inbox(*(Event(extra, 0) for extra in other), report("1", row("a")), Event({}, 5))
    assert new_files(inbox.run(1)) == [row("a")]
    assert new_files(inbox.run(5, run_id="other")) == []


def test_a_run_that_no_event_started_has_no_files() -> None:
    assert new_files(Inbox().run(1)) == []
