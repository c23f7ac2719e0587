"""All who wait on one connection share it, who goes or fails troubles nobody else, and the loop is never held."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse

from airflow_sftp_backend import FileInfo, SFTPBackend
from airflow_sftp_backend.triggers import SFTPFileTrigger, SFTPNewFilesTrigger
from airflow_sftp_backend.waiting import Condition
from tests.airflow.conftest import Connect, State, grow
from tests.backend.sessions import assert_nothing_left
from tests.servers import AsyncsshServer, OpenSSHServer, SilentSFTP, StallsAfter, free_port, wait_until

T = TypeVar("T")


def trigger(path: str, conn_id: str = "sftp_backend_default", every: float = 0.1, **condition: Any) -> SFTPFileTrigger:
    return SFTPFileTrigger(conn_id, Condition((path,), **condition).as_json(), every)


async def event(waiting: SFTPFileTrigger) -> dict[str, Any]:
    """Its first event, and then its end, as the triggerer takes it."""
    events = [found.payload async for found in waiting.run()]
    assert len(events) == 1
    return cast("dict[str, Any]", events[0])


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs it on a loop that reports whoever holds it up."""

    async def watched() -> T:
        loop = asyncio.get_running_loop()
        held: list[float] = []

        async def watch() -> None:
            while True:
                before = loop.time()
                await asyncio.sleep(0.05)
                held.append(loop.time() - before - 0.05)

        watching = asyncio.create_task(watch())
        try:
            return await asyncio.wait_for(work, 40)
        finally:
            watching.cancel()
            assert max(held, default=0) < 3, "the event loop was held up"

    return asyncio.run(watched())


async def start(*triggers: SFTPFileTrigger) -> list[asyncio.Task[dict[str, Any]]]:
    return [asyncio.create_task(event(one)) for one in triggers]


async def until(condition: Callable[[], bool]) -> None:
    """Waits as `wait_until` does, without holding the loop."""
    await asyncio.to_thread(wait_until, condition, "it to be so")


def test_a_trigger_travels_and_carries_no_secret(remote: Path) -> None:
    path, arguments = trigger("in/*.csv", min_size=3).serialize()
    assert path == "airflow_sftp_backend.triggers.SFTPFileTrigger"
    assert json.loads(json.dumps(arguments)) == arguments
    assert SFTPFileTrigger(**arguments).serialize() == (path, arguments)
    assert "key" not in json.dumps(arguments).lower()


def test_fifty_waits_on_one_connection_have_one_login(remote: Path, server: AsyncsshServer) -> None:
    before = server.logins()

    async def wait() -> list[dict[str, Any]]:
        waiting = await start(*(trigger(f"{number}/*") for number in range(50)))
        await asyncio.sleep(0.5)
        grow(remote, {f"{number}/file": b"x" * number for number in range(50)})
        return await asyncio.gather(*waiting)

    events = run(wait())
    assert [event["files"][0]["size"] for event in events] == list(range(50))
    assert {event["status"] for event in events} == {"found"}
    assert server.logins() == before + 1
    assert_nothing_left(server.port)


def test_waits_on_two_connections_have_two_logins(server: AsyncsshServer, connect: Connect) -> None:
    folders = [server.fresh(), server.fresh()]
    for name, folder in zip(("one", "two"), folders, strict=True):
        connect(server, name, base_path=folder.base_path)
        grow(folder.path, {"a": name.encode()})
    before = server.logins()

    async def wait() -> list[dict[str, Any]]:
        return await asyncio.gather(*(await start(trigger("a", "one"), trigger("a", "two"), trigger("a", "one"))))

    assert {event["status"] for event in run(wait())} == {"found"}
    assert server.logins() == before + 2
    assert_nothing_left(server.port)


def test_a_cancelled_wait_leaves_the_others_alone_and_the_last_closes_the_connection(
    remote: Path, server: AsyncsshServer
) -> None:
    async def wait() -> None:
        before = asyncio.all_tasks() - {cast("asyncio.Task[Any]", asyncio.current_task())}
        leaving, staying = await start(trigger("never"), trigger("a"))
        await asyncio.sleep(0.5)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        grow(remote, {"a": b""})
        assert (await staying)["status"] == "found"
        assert asyncio.all_tasks() - before == {asyncio.current_task()}

    run(wait())
    assert_nothing_left(server.port)


def test_waits_that_end_while_the_server_is_away_leave_no_round_behind(
    server: AsyncsshServer, connect: Connect
) -> None:
    connect(server, columns={"port": free_port()}, conn_retry_attempts=1)

    async def wait() -> None:
        before = asyncio.all_tasks()
        waiting = await start(*(trigger(f"{number}") for number in range(3)))
        await asyncio.sleep(1)  # the first round has failed, the next one rests
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.sleep(0.1)
        assert asyncio.all_tasks() == before

    asyncio.run(wait())


def test_a_lost_connection_is_made_once_again_for_all(remote: Path, server: AsyncsshServer) -> None:
    before = server.logins()

    async def wait() -> list[dict[str, Any]]:
        waiting = await start(*(trigger(f"{number}") for number in range(10)))
        await until(lambda: server.logins() == before + 1)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(server.kill_sessions)
        await asyncio.sleep(0.5)
        grow(remote, {f"{number}": b"" for number in range(10)})
        return await asyncio.gather(*waiting)

    assert {event["status"] for event in run(wait())} == {"found"}
    assert server.logins() == before + 2


def test_a_connection_that_is_corrected_is_taken_up_by_the_next_try(server: AsyncsshServer, connect: Connect) -> None:
    folder = server.fresh()
    grow(folder.path, {"a": b""})
    connect(server, columns={"port": free_port()}, conn_retry_attempts=1)

    async def wait() -> dict[str, Any]:
        (waiting,) = await start(trigger("a"))
        await asyncio.sleep(0.5)
        connect(server, base_path=folder.base_path)
        return await waiting

    assert run(wait())["status"] == "found"


@pytest.mark.parametrize(
    ("extra", "columns", "text"),
    [
        ({"private_key": None}, {"password": "hunter2-secret"}, "it refuses the password"),
        ({"known_host_keys": "SHA256:" + "A" * 43}, {}, "SHA256:"),
        ({"io_timeout": "soon"}, {}, "io_timeout"),
    ],
)
def test_what_waiting_cannot_mend_is_an_event_with_its_cause(
    server: AsyncsshServer, connect: Connect, extra: dict[str, Any], columns: dict[str, object], text: str
) -> None:
    connect(server, columns=columns, **extra)
    found = run(event(trigger("a")))
    assert found["status"] == "failed"
    assert text in found["message"]
    assert "hunter2" not in found["message"]
    assert_nothing_left(server.port)


def test_a_bad_path_fails_its_own_wait_only(remote: Path, server: AsyncsshServer) -> None:
    async def wait() -> None:
        bad, good = await start(trigger("../*"), trigger("a"))
        assert "must not contain" in (await bad)["message"]
        grow(remote, {"a": b""})
        assert (await good)["status"] == "found"

    run(wait())


def test_a_server_that_says_nothing_does_not_hold_the_loop(connect: Connect) -> None:
    with SilentSFTP() as silent:
        connect(silent, timeout=4, io_timeout=4, conn_retry_attempts=1)

        async def wait() -> None:
            (waiting,) = await start(trigger("a"))
            await asyncio.sleep(2)
            assert not waiting.done()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

        run(wait())
        assert_nothing_left(silent.port)


def test_a_server_that_is_away_is_asked_less_and_less_often_for_all_together(
    server: AsyncsshServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(server, columns={"port": free_port()}, conn_retry_attempts=1)
    rests: list[float] = []
    slept = asyncio.sleep

    async def sleep(seconds: float) -> None:
        rests.extend([seconds] if seconds > 0.2 else [])
        await slept(min(seconds, 0.2))

    async def wait() -> None:
        with monkeypatch.context() as patch:
            patch.setattr("airflow_sftp_backend.shared.asyncio.sleep", sleep)
            waiting = await start(*(trigger(f"{number}") for number in range(20)))
            await until(lambda: len(rests) >= 5)
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(wait())
    assert all(2.0**count / 2 - 0.3 <= rest <= 2.0**count for count, rest in enumerate(rests[:5], 1)), rests


def test_the_looks_of_one_round_are_one(remote: Path, server: AsyncsshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(remote, {"in/other": b"", "out/other": b""})
    rounds: list[tuple[int, int]] = []
    together = SFTPBackend.find_each

    def counted(backend: SFTPBackend, groups: Sequence[Sequence[str]]) -> list[list[FileInfo]]:
        before = server.requests.total()
        found = together(backend, groups)
        rounds.append((len(groups), server.requests.total() - before))
        return found

    monkeypatch.setattr(SFTPBackend, "find_each", counted)

    async def wait() -> None:
        waiting = await start(*(trigger(f"in/{number}*", every=0.5) for number in range(30)), trigger("out/*.csv"))
        await asyncio.sleep(2.2)
        grow(remote, {f"in/{number:02}": b"" for number in range(30)} | {f"in/{number}": b"" for number in range(10)})
        grow(remote, {"out/a.csv": b""})
        events = await asyncio.gather(*waiting)
        assert [event["status"] for event in events] == ["found"] * 31

    run(wait())
    full = [asked for groups, asked in rounds if groups >= 30]
    assert len(full) >= 2
    assert max(full) <= 14  # two folders, each opened, read twice, closed, and the root once more


def test_a_refusal_in_a_round_is_told_to_whom_it_concerns(openssh: OpenSSHServer, connect: Connect) -> None:
    folder = openssh.fresh()
    connect(openssh, base_path=folder.base_path)
    grow(folder.path, {"folder/deep": b"", "file": b""})

    async def wait() -> list[dict[str, Any]]:
        return await asyncio.gather(
            *await start(
                trigger("folder"), trigger("file"), trigger("fil*"), trigger("file/../x*"), trigger("file", min_size=0)
            )
        )

    a_folder, plain, pattern, bad, same = run(wait())
    assert [event["status"] for event in (a_folder, plain, pattern, bad, same)] == [
        "failed", "found", "found", "failed", "found",
    ]  # fmt: skip
    assert "it is a folder" in a_folder["message"]
    assert "'..'" in bad["message"]
    assert plain["files"] == pattern["files"] == same["files"]


def test_done_files_of_one_round_are_each_its_own(remote: Path, server: AsyncsshServer) -> None:
    grow(remote, {"a/x": b"", "a/x.done": b"", "b/x": b"", "c/y": b"", "c/y.ok": b""})

    async def wait() -> list[dict[str, Any]]:
        found = await start(
            trigger("a/*", done_file="{name}.done", ignore=("*.done",)),
            trigger("b/x", done_file="{name}.done"),
            trigger("c/y", done_file="{name}.ok"),
        )
        await asyncio.sleep(0.6)
        assert [one.done() for one in found] == [True, False, True]
        grow(remote, {"b/x.done": b""})
        return await asyncio.gather(*found)

    assert [[file["path"] for file in event["files"]] for event in run(wait())] == [["a/x"], ["b/x"], ["c/y"]]


def test_a_wait_may_go_on_in_another_loop(remote: Path, server: AsyncsshServer) -> None:
    grow(remote, {"a": b""})
    for _ in range(2):
        assert run(event(trigger("a")))["status"] == "found"
    assert_nothing_left(server.port)


def test_many_waiters_survive_a_server_that_stalls(connect: Connect) -> None:
    with StallsAfter(requests=40) as stalling:
        folder = stalling.fresh()
        connect(stalling, base_path=folder.base_path, io_timeout=1, timeout=1, conn_retry_attempts=1)

        async def wait() -> list[dict[str, Any]]:
            waiting = await start(*(trigger(f"{number}") for number in range(8)))
            await until(lambda: stalling.requests.total() > 40)
            await asyncio.sleep(2)
            stalling.limit = 10**9
            grow(folder.path, {f"{number}": b"" for number in range(8)})
            return await asyncio.gather(*waiting)

        assert [event["status"] for event in run(wait())] == ["found"] * 8


def test_what_was_seen_before_counts(remote: Path) -> None:
    grow(remote, {"a": b"x"})
    seen = run(event(trigger("a", stable_for=0.3)))
    modified = seen["files"][0]["modified_at"]
    waiting = trigger("a", stable_for=1000)
    waiting.observed = {"a": [1, modified, time.time() - 2000]}
    assert run(event(waiting))["status"] == "found"


# -- new files --------------------------------------------------------------------------------------------------------


class Store(State):
    """The asset's state store, as the triggerer gives it to a watch; ``away`` for as many questions."""

    away = 0

    async def aget(self, key: str) -> Any:
        self._answer()
        return self.get(key)

    async def aset(self, key: str, value: object) -> None:
        self._answer()
        self.set(key, value)

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
    path: str = "in/", store: Store | None = None, every: float = 0.1, **given: Any
) -> AsyncIterator[Watch]:
    """Watches as the triggerer does, until the block ends."""
    given = {"stable_for": 0} | given
    found = SFTPNewFilesTrigger(path, poke_interval=every, **given)
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


@pytest.fixture(autouse=True)
def takes_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow writes events down sooner than it may need to."""
    monkeypatch.setattr("airflow_sftp_backend.triggers._TAKES_OVER", 0.2)


def test_a_watch_travels_and_is_the_same_watch(remote: Path) -> None:
    found = SFTPNewFilesTrigger(["in/", "*.csv"], stable_for=3, changed=True, ignore="*.log")
    path, arguments = found.serialize()
    assert path == "airflow_sftp_backend.triggers.SFTPNewFilesTrigger"
    assert SFTPNewFilesTrigger(**json.loads(json.dumps(arguments))).serialize() == (path, arguments)
    assert SFTPNewFilesTrigger.hash(path, arguments) == SFTPNewFilesTrigger.hash(*found.serialize())
    assert "key" not in json.dumps(arguments).lower()


@pytest.mark.parametrize("given", [{"path": ""}, {"path": []}, {"path": "a", "poke_interval": 0}])
def test_a_watch_that_cannot_be_is_refused_where_the_dag_is_parsed(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        SFTPNewFilesTrigger(**given)


def test_each_look_is_one_report_of_all_that_is_new(remote: Path, server: AsyncsshServer) -> None:
    before = server.logins()
    grow(remote, {"in/a": b"1", "in/deep/b": b"22", "in/c.part": b"", "other": b""})

    async def watch() -> None:
        async with watching() as one, watching("other") as other:
            await one.reported(1)
            (first,) = one.events
            assert first["sftp_conn_id"] == "sftp_backend_default"
            assert [(file["path"], file["size"]) for file in first["files"]] == [("in/a", 1), ("in/deep/b", 2)]
            grow(remote, {"in/c": b""})
            assert await one.reported(2) == [["in/a", "in/deep/b"], ["in/c"]]
            await asyncio.sleep(0.5)
            assert len(one.events) == 2
            assert await other.reported(1) == [["other"]]

    run(watch())
    assert server.logins() == before + 1
    assert_nothing_left(server.port)


def test_a_file_is_reported_when_it_has_stopped_growing(remote: Path) -> None:
    grow(remote, {"in/a": b"1"})

    async def watch() -> None:
        async with watching(stable_for=0.6) as one:
            for size in range(2, 8):
                await asyncio.sleep(0.2)
                grow(remote, {"in/a": b"1" * size})
            assert one.events == []
            await one.reported(1)
            assert one.events[0]["files"][0]["size"] == 7

    run(watch())


@pytest.mark.parametrize("changed", [False, True])
def test_a_changed_file_is_reported_again_if_asked(remote: Path, changed: bool) -> None:
    grow(remote, {"in/a": b"1"})

    async def watch() -> None:
        async with watching(changed=changed) as one:
            await one.reported(1)
            grow(remote, {"in/a": b"22"})
            await asyncio.sleep(0.5)
            grow(remote, {"in/b": b""})
            assert await one.reported(3 if changed else 2) == [["in/a"], *([["in/a"]] if changed else []), ["in/b"]]

    run(watch())


def test_a_restarted_watch_goes_on_where_it_was(remote: Path) -> None:
    store = Store()
    grow(remote, {"in/a": b""})

    async def watch() -> None:
        async with watching(store=store) as one:
            assert await one.reported(1) == [["in/a"]]
            await asyncio.sleep(0.6)
        grow(remote, {"in/b": b""})
        async with watching(store=store) as one:
            assert await one.reported(1) == [["in/b"]]
            await asyncio.sleep(0.5)
            assert len(one.events) == 1

    run(watch())


def test_a_report_that_may_not_have_arrived_is_made_again_under_its_name(remote: Path) -> None:
    store = Store()
    grow(remote, {"in/a": b""})

    async def watch() -> None:
        async with watching(store=store) as one:
            await one.reported(1)
        grow(remote, {"in/b": b""})
        async with watching(store=store) as two:
            assert await two.reported(2) == [["in/a"], ["in/b"]]
        assert two.events[0]["report"] == one.events[0]["report"] != two.events[1]["report"]

    run(watch())


def test_nothing_is_lost_while_airflow_cannot_keep_it(remote: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store()
    store.away = 3
    grow(remote, {"in/a": b""})

    async def watch() -> None:
        async with watching(store=store) as one:
            assert await one.reported(1) == [["in/a"]]
            await asyncio.sleep(0.5)
            store.away = 2
            grow(remote, {"in/b": b""})
            assert await one.reported(2) == [["in/a"], ["in/b"]]

    run(watch())
    assert store.away == 0
    assert capsys.readouterr().out.count("cannot look for new files, will look again: ") == 2


def test_what_is_wrong_is_told_once_and_the_watch_goes_on(
    server: AsyncsshServer, connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = server.fresh()
    grow(folder.path, {"in/a": b""})
    connect(server, base_path=folder.base_path, io_timeout="soon")

    async def watch() -> None:
        async with watching() as one, watching("../a*") as never:
            await asyncio.sleep(0.6)
            connect(server, base_path=folder.base_path)
            assert await one.reported(1) == [["in/a"]]
            await asyncio.sleep(0.5)
            assert never.events == []

    run(watch())
    log = capsys.readouterr().out
    assert log.count("cannot look for new files, will look again: ") == 3
    assert log.count("must not contain '..'") == 1


def test_a_connection_that_is_none_is_waited_for(
    remote: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grow(remote, {"in/a": b""})
    given = os.environ["AIRFLOW_CONN_SFTP_BACKEND_DEFAULT"]
    monkeypatch.delenv("AIRFLOW_CONN_SFTP_BACKEND_DEFAULT")

    async def watch() -> None:
        async with watching() as one:
            await until(lambda: "isn't defined" in told(capsys))
            monkeypatch.setenv("AIRFLOW_CONN_SFTP_BACKEND_DEFAULT", given)
            assert await one.reported(1) == [["in/a"]]

    log: list[str] = []

    def told(capsys: pytest.CaptureFixture[str]) -> str:
        log.append(capsys.readouterr().out)
        return "".join(log)

    run(watch())


def test_a_lost_server_is_gone_on_with(remote: Path, server: AsyncsshServer) -> None:
    grow(remote, {"in/a": b""})

    async def watch() -> None:
        async with watching() as one:
            await one.reported(1)
            await asyncio.to_thread(server.kill_sessions)
            grow(remote, {"in/b": b""})
            assert await one.reported(2) == [["in/a"], ["in/b"]]

    run(watch())
    assert_nothing_left(server.port)
