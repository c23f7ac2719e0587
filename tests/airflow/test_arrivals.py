"""A report is handed to one run, whatever Airflow makes of its events, and to each DAG that watches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse

from airflow_sftp_backend.arrivals import new_files
from airflow_sftp_backend.waiting import Row
from tests.airflow.conftest import State

if TYPE_CHECKING:
    from airflow.sdk import Context

BEGINNING = datetime(2026, 1, 31, tzinfo=UTC)


def row(path: str, size: int = 1) -> Row:
    return {"path": path, "size": size, "modified_at": "2026-01-01T00:00:00+00:00"}


class Event(SimpleNamespace):
    """An event of the asset, made that many seconds from the beginning."""

    def __init__(self, extra: dict[str, Any] | None, at: float) -> None:
        super().__init__(extra=extra, timestamp=BEGINNING + timedelta(seconds=at), created_dagruns=[])


def report(name: str, *files: Row, at: float = 0.0) -> Event:
    payload = {"report": name, "sftp_conn_id": "x", "files": list(files)}
    return Event({"from_trigger": True, "payload": payload}, at)


class Events:
    """The events of an asset, as a task with it among its inlets may ask for them."""

    def __init__(self, events: Sequence[Event], since: str = "", most: int | None = None) -> None:
        self.events, self.since, self.most = events, since, most

    def after(self, since: str) -> Events:
        return Events(self.events, since, self.most)

    def limit(self, most: int) -> Events:
        return Events(self.events, self.since, most)

    def __iter__(self) -> Iterator[Event]:
        since = datetime.fromisoformat(self.since)
        found = sorted((one for one in self.events if one.timestamp >= since), key=lambda one: one.timestamp)
        return iter(found[: self.most])


class Inbox:
    """A watched asset: its events, those who consume them, and what is kept for it."""

    def __init__(self, *, remembers: bool = True) -> None:
        self.store = State()
        self.remembers = remembers
        self.events: list[Event] = []

    def run(
        self, *events: Event, run_id: str = "run", dag_id: str = "dag", began: float = 1000.0, consumes: bool = True
    ) -> Context:
        """What a task sees whose run these events have started."""
        for event in events:
            if event not in self.events:
                self.events.append(event)
            if consumes:
                event.created_dagruns.append(SimpleNamespace(dag_id=dag_id, run_id=run_id))
        found: dict[str, Any] = {
            "ti": SimpleNamespace(run_id=run_id, dag_id=dag_id),
            "dag_run": SimpleNamespace(start_date=BEGINNING + timedelta(seconds=began)),
            "triggering_asset_events": {"inbox": list(events)} if events else {},
            "inlet_events": {"inbox": Events(self.events)},
        }
        if self.remembers:
            found["asset_state_store"] = {"inbox": self.store}
        return cast("Context", found)


@pytest.fixture(autouse=True)
def stands_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other run is under way."""
    monkeypatch.setattr("airflow_sftp_backend.arrivals._CLAIM_STANDS", 0.0)


@pytest.mark.parametrize("remembers", [True, False])
def test_the_files_of_all_reports_are_given_and_a_path_once(remembers: bool) -> None:
    inbox = Inbox(remembers=remembers)
    given = new_files(inbox.run(report("1", row("a"), row("b")), report("2", row("b", 5), row("c"))))
    assert given == [row("a"), row("b", 5), row("c")]


def test_a_report_made_twice_is_given_to_one_run_and_again_to_its_next_try() -> None:
    inbox = Inbox()
    one = inbox.run(report("1", row("a")), run_id="one")
    assert new_files(one) == [row("a")]
    two = inbox.run(report("1", row("a"), at=5), report("2", row("b"), at=6), run_id="two")
    assert new_files(two) == [row("b")]
    assert new_files(two) == [row("b")]
    assert new_files(one) == [row("a")]


def test_each_dag_that_watches_is_given_all() -> None:
    inbox = Inbox()
    event = report("1", row("a"))
    for dag_id in ("one", "two"):
        assert new_files(inbox.run(event, dag_id=dag_id, run_id=dag_id)) == [row("a")]


def test_a_report_that_has_started_no_run_is_given_to_the_one_that_began_after_it() -> None:
    inbox = Inbox()
    started, late = report("1", row("a"), at=1), report("3", row("c"), at=30)
    inbox.events += [report("2", row("b"), at=2), late]
    first = inbox.run(started, run_id="first", began=10)
    assert new_files(first) == [row("b"), row("a")]
    second = inbox.run(late, run_id="second", began=40)
    assert new_files(second) == [row("c")]
    for _ in range(2):
        assert new_files(first) == [row("b"), row("a")]
        assert new_files(second) == [row("c")]


def test_a_report_that_has_a_run_of_its_own_is_left_to_it() -> None:
    inbox = Inbox()
    queued, started = report("1", row("a"), at=1), report("2", row("b"), at=2)
    own = inbox.run(queued, run_id="own", began=100)
    assert new_files(inbox.run(started, run_id="other", began=50)) == [row("b")]
    assert new_files(own) == [row("a")]


def test_a_report_that_was_passed_over_as_too_young_is_found_by_a_later_run() -> None:
    inbox = Inbox()
    stuck = report("2", row("b"), at=20)
    inbox.events.append(stuck)
    assert new_files(inbox.run(report("1", row("a"), at=1), run_id="one", began=10)) == [row("a")]
    assert new_files(inbox.run(report("3", row("c"), at=30), run_id="two", began=40)) == [row("b"), row("c")]
    assert new_files(inbox.run(report("4", row("d"), at=50), run_id="three", began=60)) == [row("d")]


def test_what_came_before_a_dag_began_to_watch_is_not_its_business() -> None:
    inbox = Inbox()
    inbox.events.append(report("1", row("a"), at=1))
    assert new_files(inbox.run(report("2", row("b"), at=2), began=10)) == [row("b")]


def test_very_many_reports_left_over_are_taken_part_by_part() -> None:
    inbox = Inbox()
    inbox.events += [report(f"left {number}", row(f"{number}"), at=2 + number) for number in range(150)]
    given = [
        new_files(inbox.run(report(f"own {at}", row(f"own {at}"), at=at), run_id=str(at), began=at + 1))
        for at in (1, 300, 301)
    ]
    paths = [found["path"] for files in given for found in files]
    assert sorted(paths) == sorted([f"{number}" for number in range(150)] + ["own 1", "own 300", "own 301"])


@pytest.mark.parametrize("overwritten", ["claimed by the other", "forgotten by the other"])
def test_of_two_runs_that_claim_what_is_left_over_one_has_it(monkeypatch: pytest.MonkeyPatch, overwritten: str) -> None:
    inbox = Inbox()
    inbox.events.append(report("left", row("left"), at=2))
    (key,) = ["sftp new files taken by dag"]

    def meanwhile(_: float) -> None:
        kept = inbox.store.get(key)
        if overwritten == "claimed by the other":
            kept["taken"]["left"] = ["other", kept["taken"]["left"][1]]
        else:
            monkeypatch.setattr("airflow_sftp_backend.arrivals.time.sleep", lambda _: None)
            del kept["taken"]["left"]
        inbox.store.set(key, kept)

    monkeypatch.setattr("airflow_sftp_backend.arrivals.time.sleep", meanwhile)
    given = new_files(inbox.run(report("own", row("own"), at=1), began=10))
    assert given == ([row("own")] if overwritten == "claimed by the other" else [row("left"), row("own")])
    assert inbox.store.get(key)["taken"]["left"][0] == ("other" if len(given) == 1 else "run")


def test_what_airflow_cannot_say_is_asked_by_the_next_run(caplog: pytest.LogCaptureFixture) -> None:
    class Away(Events):
        def after(self, since: str) -> Events:
            raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"message": "away"}))

    inbox = Inbox()
    inbox.events.append(report("left", row("left"), at=2))
    run = inbox.run(report("own", row("own"), at=1), run_id="one", began=10)
    cast("dict[str, Any]", run)["inlet_events"] = {"inbox": Away([])}
    assert new_files(run) == [row("own")]
    assert "left over" in caplog.text
    assert new_files(inbox.run(report("next", row("next"), at=20), run_id="two", began=30)) == [
        row("left"), row("next"),
    ]  # fmt: skip


def test_what_was_taken_is_kept_for_the_latest_reports_and_stays_small() -> None:
    inbox = Inbox()
    events = [report(f"{number:016}", row("a"), at=number) for number in range(600)]
    for number, event in enumerate(events):
        new_files(
            inbox.run(event, run_id=f"asset_triggered__2026-01-31T00:00:00.000000+00:00_{number:08}", began=number)
        )
    (kept,) = inbox.store.values.values()
    assert len(kept) < 80_000
    assert len(inbox.store.get("sftp new files taken by dag")["taken"]) == 400
    assert new_files(inbox.run(events[-1], run_id="other", consumes=False)) == []


def test_events_of_other_origin_bring_no_files() -> None:
    other: tuple[dict[str, Any] | None, ...] = (
        None, {}, {"payload": "text"}, {"from_trigger": True, "payload": {"something": 1}},
    )  # fmt: skip
    inbox = Inbox()
    assert new_files(inbox.run(*(Event(extra, 0) for extra in other), report("1", row("a")))) == [row("a")]
    assert new_files(inbox.run(Event({}, 1), run_id="other")) == []


def test_a_run_that_no_event_started_has_no_files() -> None:
    assert new_files(Inbox().run()) == []
