"""Report each new file once, despite failures of server, store and triggerer."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse

from airflow_sftp_backend.triggers import SFTPNewFilesTrigger
from tests.support.airflow.arguments import Glob, selection_argument
from tests.support.airflow.connections import Connect
from tests.support.airflow.context import AssetState
from tests.support.airflow.triggers import run, until
from tests.support.files import write_files
from tests.support.servers import AsyncsshServer
from tests.support.sessions import assert_nothing_left


class Store(AssetState):
    """State store of the asset, unavailable for ``away`` requests."""

    away = 0

    async def aget(self, key: str) -> Any:
        self._answer()
        return await super().aget(key)

    async def aset(self, key: str, value: object) -> None:
        self._answer()
        await super().aset(key, value)

    def _answer(self) -> None:
        if self.away:
            self.away -= 1
            raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"message": "away"}))


class Watch:
    """A watch that runs, and its events."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self.events = events

    def paths(self) -> list[list[str]]:
        """The paths of each report."""
        return [sorted(file["path"] for file in event["files"]) for event in self.events]

    async def reported(self, count: int) -> list[list[str]]:
        """Its reports, once there are as many."""
        await until(lambda: len(self.events) >= count)
        return self.paths()


@asynccontextmanager
async def watching(
    path: str | Glob = "in/", store: Store | None = None, every: float = 0.1, **given: Any
) -> AsyncIterator[Watch]:
    """Watches as the triggerer does, until the block ends."""
    given = {"stable_for": 0} | given
    found = SFTPNewFilesTrigger(poke_interval=every, **selection_argument(path, "path"), **given)
    _, arguments = found.serialize()
    found = SFTPNewFilesTrigger(**json.loads(json.dumps(arguments)))
    found.asset_state_store = cast("Any", store)
    watch = Watch([])

    async def take() -> None:
        async for event in found.run():
            watch.events.append(cast("dict[str, Any]", event.payload))

    taking = asyncio.create_task(take())
    try:
        yield watch
        assert not taking.done()
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)


@pytest.fixture
def takes_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow writes events down sooner than it may need to."""
    monkeypatch.setattr("airflow_sftp_backend._polling.seen_files_store._ACKNOWLEDGE_SECONDS", 0.2)


def test_a_watch_takes_the_oldest_files_after_a_time_first(remote: Path) -> None:
    write_files(remote, {f"in/{age}": b"" for age in range(1, 6)})
    for age in range(1, 6):
        os.utime(remote / f"in/{age}", (1_800_000_000 - age, 1_800_000_000 - age))
    since = datetime.fromtimestamp(1_800_000_000 - 4, UTC)

    async def watch() -> list[list[str]]:
        async with watching(newer_than=since.isoformat(), max_files=3) as started:
            return await started.reported(2)

    assert asyncio.run(watch()) == [["in/2", "in/3", "in/4"], ["in/1"]]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"newer_than": timedelta(days=1)}, "a watch has no run that a timedelta could count back from"),
        ({"newer_than": "yesterday"}, "newer_than is not a time"),
        ({"max_files": 501}, "max_files must be at most 500, not 501"),
        ({"max_files": 0}, "max_files must be a whole number from 1, not 0"),
    ],
)
def test_a_watch_refuses_limits_without_a_meaning(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SFTPNewFilesTrigger("in/", **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"path": ["in/", "r[1].csv", {"path": "None"}, {"path": '["a"]'}]},
        {"pattern": ["in/**", "*.csv"]},
        {"pattern": "in/[[]1]/*"},
        {"path": "in/r*.csv"},
    ],
)
def test_a_watch_survives_serialization(remote: Path, arguments: dict[str, Any]) -> None:
    limits: dict[str, Any] = {"newer_than": datetime(2026, 1, 1, tzinfo=UTC), "max_files": 9}
    arguments |= limits
    found = SFTPNewFilesTrigger(stable_for=3, changed=True, exclude="*.log", include=["*.csv", "*.txt"], **arguments)
    path, arguments = found.serialize()
    assert path == "airflow_sftp_backend.triggers.new_files.SFTPNewFilesTrigger"
    again = SFTPNewFilesTrigger(**json.loads(json.dumps(arguments)))
    assert again.serialize() == (path, arguments)
    assert again.condition == found.condition
    assert SFTPNewFilesTrigger.hash(path, arguments) == SFTPNewFilesTrigger.hash(*found.serialize())
    assert "key" not in json.dumps(arguments).lower()


@pytest.mark.parametrize(
    "given",
    [{"path": ""}, {"path": []}, {"path": "a", "poke_interval": 0}, {}, {"path": "a", "pattern": "b"}, {"pattern": []}],
)
def test_an_invalid_watch_is_refused_when_the_dag_is_parsed(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        SFTPNewFilesTrigger(**given)


def test_each_poll_reports_all_new_files_in_one_batch(remote: Path, server: AsyncsshServer) -> None:
    before = server.logins()
    write_files(remote, {"in/a": b"1", "in/deep/b": b"22", "in/c.part": b"", "other": b""})

    async def watch() -> None:
        async with watching() as one, watching("other") as other:
            await one.reported(1)
            (first,) = one.events
            assert first["sftp_conn_id"] == "sftp_backend_default"
            assert [(file["path"], file["size"]) for file in first["files"]] == [("in/a", 1), ("in/deep/b", 2)]
            write_files(remote, {"in/c": b""})
            assert await one.reported(2) == [["in/a", "in/deep/b"], ["in/c"]]
            await asyncio.sleep(0.5)
            assert len(one.events) == 2
            assert await other.reported(1) == [["other"]]

    run(watch())
    assert server.logins() == before + 1
    assert_nothing_left(server.port)


def test_a_file_is_reported_when_it_has_stopped_growing(remote: Path) -> None:
    write_files(remote, {"in/a": b"1"})

    async def watch() -> None:
        async with watching(stable_for=0.6) as one:
            for size in range(2, 8):
                await asyncio.sleep(0.2)
                write_files(remote, {"in/a": b"1" * size})
            assert one.events == []
            await one.reported(1)
            assert one.events[0]["files"][0]["size"] == 7

    run(watch())


@pytest.mark.parametrize("changed", [False, True])
def test_a_changed_file_is_reported_again_if_configured(remote: Path, changed: bool) -> None:
    write_files(remote, {"in/a": b"1"})

    async def watch() -> None:
        async with watching(changed=changed) as one:
            await one.reported(1)
            write_files(remote, {"in/a": b"22"})
            await asyncio.sleep(0.5)
            write_files(remote, {"in/b": b""})
            assert await one.reported(3 if changed else 2) == [["in/a"], *([["in/a"]] if changed else []), ["in/b"]]

    run(watch())


@pytest.mark.usefixtures("takes_over_at_once")
def test_a_restarted_watch_resumes_where_it_stopped(remote: Path) -> None:
    store = Store()
    write_files(remote, {"in/a": b""})

    async def watch() -> None:
        async with watching(store=store) as one:
            assert await one.reported(1) == [["in/a"]]
            await asyncio.sleep(0.6)
        write_files(remote, {"in/b": b""})
        async with watching(store=store) as one:
            assert await one.reported(1) == [["in/b"]]
            await asyncio.sleep(0.5)
            assert len(one.events) == 1

    run(watch())


def test_an_unacknowledged_batch_is_sent_again_under_its_name(remote: Path) -> None:
    store = Store()
    write_files(remote, {"in/a": b""})

    async def watch() -> None:
        async with watching(store=store) as one:
            await one.reported(1)
        write_files(remote, {"in/b": b""})
        async with watching(store=store) as two:
            assert await two.reported(2) == [["in/a"], ["in/b"]]
        assert two.events[0]["batch"] == one.events[0]["batch"] != two.events[1]["batch"]

    run(watch())


def test_very_many_files_are_reported_after_one_poll(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_sftp_backend.triggers.new_files._PAUSE", 0.01)
    store = Store()
    write_files(remote, {f"in/{number:04}": b"" for number in range(5200)})

    async def watch() -> None:
        async with watching(store=store, every=0.5) as one:
            await one.reported(10)
            write_files(remote, {"in/later": b""})
            reports = await one.reported(12)
            assert [len(paths) for paths in reports] == [*[500] * 10, 200, 1]
            assert len({path for paths in reports for path in paths}) == 5201

    run(watch())


def test_a_watch_with_max_files_reports_one_event_a_poll(remote: Path) -> None:
    write_files(remote, {f"in/{number}": b"" for number in range(4)})

    async def watch() -> None:
        async with watching(max_files=1) as one:
            await one.reported(1)
            write_files(remote, {"in/0first": b""})
            os.utime(remote / "in/0first", (1, 1))
            assert (await one.reported(5))[1] == ["in/0first"]

    run(watch())


def test_two_triggerers_with_one_watch_report_each_file_once(remote: Path) -> None:
    store = Store()

    async def watch() -> None:
        async with watching(store=store) as one, watching(store=store, every=0.13) as two:
            for number in range(10):
                write_files(remote, {f"in/{number}": b""})
                await asyncio.sleep(0.15)
            await until(lambda: len(files_of(one, two)) == 10)
            reports = {event["batch"]: [file["path"] for file in event["files"]] for event in one.events + two.events}
            assert sorted(path for paths in reports.values() for path in paths) == [f"in/{n}" for n in range(10)]

    def files_of(*watches: Watch) -> set[str]:
        return {path for watch in watches for paths in watch.paths() for path in paths}

    run(watch())


@pytest.mark.usefixtures("takes_over_at_once")
def test_a_returning_triggerer_reports_only_what_the_other_has_not(remote: Path) -> None:
    store = Store()
    write_files(remote, {"in/a": b""})

    async def watch() -> None:
        async with watching(store=store, every=2) as old:
            await old.reported(1)
            async with watching(store=store) as new:
                write_files(remote, {"in/b": b""})
                await until(lambda: ["in/b"] in new.paths())
                await asyncio.sleep(4.5)
                assert {tuple(paths) for paths in old.paths()} == {("in/a",)}

    run(watch())


def test_a_watch_applies_size_and_done_file_conditions(remote: Path) -> None:
    write_files(remote, {"in/small": b"1", "in/small.ok": b"", "in/large": b"4444"})

    async def watch() -> None:
        async with watching(min_size=2, done_file="{name}.ok") as one:
            await asyncio.sleep(0.5)
            write_files(remote, {"in/large.ok": b""})
            assert await one.reported(1) == [["in/large"]]
            write_files(remote, {"in/small": b"22"})
            assert await one.reported(2) == [["in/large"], ["in/small"]]

    run(watch())


def test_a_name_that_is_not_utf8_is_skipped_and_logged_once(remote: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(remote, {"in/caf\udce9": b"", "in/a": b""})

    async def watch() -> None:
        async with watching() as one:
            assert await one.reported(1) == [["in/a"]]
            await asyncio.sleep(0.5)
            assert len(one.events) == 1

    run(watch())
    assert capsys.readouterr().out.count("XCom carries only UTF-8 names") == 1


def test_no_file_is_lost_while_the_store_is_unavailable(remote: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store()
    store.away = 3
    write_files(remote, {"in/a": b""})

    async def watch() -> None:
        async with watching(store=store) as one:
            assert await one.reported(1) == [["in/a"]]
            await asyncio.sleep(0.5)
            store.away = 2
            write_files(remote, {"in/b": b""})
            assert await one.reported(2) == [["in/a"], ["in/b"]]

    run(watch())
    assert store.away == 0
    assert capsys.readouterr().out.count("cannot poll for new files of in/, will poll again: ") == 2


def test_an_error_is_logged_once_and_the_watch_continues(
    server: AsyncsshServer, connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = server.fresh()
    write_files(folder.path, {"in/a": b""})
    connect(server, base_path=folder.base_path, io_timeout="soon")
    logged: list[str] = []

    def count(text: str) -> int:
        logged.append(capsys.readouterr().out)
        return "".join(logged).count(text)

    async def watch() -> None:
        async with watching() as one, watching(Glob("../a*")) as never:
            await until(lambda: count("will poll again: ") == 2)
            await asyncio.sleep(0.4)  # for a file that would be reported twice
            connect(server, base_path=folder.base_path)
            assert await one.reported(1) == [["in/a"]]
            await until(lambda: count("must not contain '..'") > 0)
            await asyncio.sleep(0.4)
            assert never.events == []

    run(watch())
    logged.append(capsys.readouterr().out)
    log = "".join(logged)
    assert log.count("cannot poll for new files of in/, will poll again: ") == 1
    assert log.count("cannot poll for new files of ../a*, will poll again: ") == 2
    assert log.count("watching for new files of in/ on connection 'sftp_backend_default'") == 1
    assert log.count("the files seen so far are kept in memory") == 2, "once for each watch"
    assert log.count("must not contain '..'") == 1


def test_a_missing_connection_is_waited_for(
    remote: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(remote, {"in/a": b""})
    given = os.environ["AIRFLOW_CONN_SFTP_BACKEND_DEFAULT"]
    monkeypatch.delenv("AIRFLOW_CONN_SFTP_BACKEND_DEFAULT")

    async def watch() -> None:
        async with watching() as one:
            await until(lambda: "isn't defined" in logged(capsys))
            monkeypatch.setenv("AIRFLOW_CONN_SFTP_BACKEND_DEFAULT", given)
            assert await one.reported(1) == [["in/a"]]

    log: list[str] = []

    def logged(capsys: pytest.CaptureFixture[str]) -> str:
        log.append(capsys.readouterr().out)
        return "".join(log)

    run(watch())


def test_a_watch_continues_after_its_server_was_lost(remote: Path, server: AsyncsshServer) -> None:
    write_files(remote, {"in/a": b""})

    async def watch() -> None:
        async with watching() as one:
            await one.reported(1)
            await asyncio.to_thread(server.kill_sessions)
            write_files(remote, {"in/b": b""})
            assert await one.reported(2) == [["in/a"], ["in/b"]]

    run(watch())
    assert_nothing_left(server.port)
