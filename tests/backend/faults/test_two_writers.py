"""Two writers without atomic renames lose no content when killed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_sftp_backend import BackendUnavailable, NotFound, SFTPBackend
from airflow_sftp_backend.backend._paths import STALE_SECONDS, is_backup_name
from tests.support.faults.cases import NEW, OLD, SERVERS, Case, World, run
from tests.support.faults.network import Fault, Killed
from tests.support.faults.points import writing

PLAIN = SERVERS["unknown, plain rename"]
OURS, THEIRS = writing(NEW).on(PLAIN), writing(b"what the other writer wrote").on(PLAIN)
THEIR_CONTENT = b"what the other writer wrote"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Disable the log, which is useless for so many runs."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def at(number: int, act: Callable[[], object]) -> Callable[[int], None]:
    """A hook that acts once, before the message with that number."""

    def before(now: int) -> None:
        if now == number:
            act()

    return before


def total(case: Case, local: Path) -> int:
    done = run(case, World.of(case, local))
    assert done.error is None
    return done.network.sent


def check_nothing_lost(world: World) -> None:
    """The name has a complete content, or a backup has one."""
    files = world.server.files()
    whole = (OLD, NEW, THEIR_CONTENT)
    if "/data/in/target" in files:
        assert files["/data/in/target"] in whole
    else:
        assert [c for path, c in files.items() if is_backup_name(path.rpartition("/")[2]) and c in whole]


def check_next_call_clears_up(world: World) -> None:
    """The next read finds a content; a later write cleans up."""
    held = run(reading(), world)
    assert held.error is None
    world.clock.sleep(STALE_SECONDS + 1)
    assert run(OURS, world).error is None
    assert sorted(world.server.files()) == ["/data/in/other", "/data/in/target", "/outside/other"]


def reading() -> Case:
    def act(backend: SFTPBackend, local: Path) -> None:
        assert backend.read_bytes("in/target") in (OLD, NEW, THEIR_CONTENT)

    return Case("read_bytes", act, OURS.before, OURS.before, traits=PLAIN)


def test_a_second_writer_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    for number in range(1, total(OURS, tmp_path / "local") + 1):
        world = World.of(OURS, tmp_path / "local")

        def come_in(world: World = world) -> None:
            theirs = run(THEIRS, world)
            assert theirs.error is None
            assert world.server.files()["/data/in/target"] == THEIR_CONTENT

        ours = run(OURS, world, before=at(number, come_in))
        assert ours.error is None, number
        assert world.server.files()["/data/in/target"] in (NEW, THEIR_CONTENT)
        assert len(world.server.files()) == 3, number


def test_a_second_writer_killed_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    theirs, kills = total(THEIRS, tmp_path / "local"), 0
    for number in range(1, total(OURS, tmp_path / "local") + 1):
        for killed_at in range(theirs - 8, theirs + 1):  # it sends, sets aside, renames and clears up
            world = World.of(OURS, tmp_path / "local")

            def come_in(world: World = world, killed_at: int = killed_at) -> None:
                nonlocal kills
                kills += run(THEIRS, world, [Fault("kill", "after request", killed_at)]).killed

            ours = run(OURS, world, before=at(number, come_in))
            assert ours.error is None, (number, killed_at)
            check_nothing_lost(world)
            check_next_call_clears_up(world)
    assert kills > 100


def test_two_killed_writers_lose_nothing(tmp_path: Path) -> None:
    ours, theirs = total(OURS, tmp_path / "local"), total(THEIRS, tmp_path / "local")
    for number in range(ours - 9, ours + 1):
        for killed_at in range(theirs - 8, theirs + 1):
            for dies_at in range(number, ours + 1):
                world = World.of(OURS, tmp_path / "local")

                def come_in(world: World = world, killed_at: int = killed_at) -> None:
                    run(THEIRS, world, [Fault("kill", "after request", killed_at)])

                run(OURS, world, [Fault("kill", "after request", dies_at)], before=at(number, come_in))
                check_nothing_lost(world)
                check_next_call_clears_up(world)


@pytest.mark.parametrize("killed", [False, True])
def test_a_reader_between_two_renames_gets_complete_content(tmp_path: Path, killed: bool) -> None:
    ours = total(OURS, tmp_path / "local")
    for number in range(1, ours + 1):
        world = World.of(OURS, tmp_path / "local")

        def come_in(world: World = world) -> None:
            assert run(reading(), world).error is None

        faults = [Fault("kill", "after request", number)] if killed else []
        result = run(OURS, world, faults, before=at(number, come_in))
        assert result.error is None or isinstance(result.error, Killed | BackendUnavailable | NotFound)
        assert killed or result.error is None, number
        check_nothing_lost(world)
        assert killed or len(world.server.files()) == 3
        check_next_call_clears_up(world)


def killed_before_its_backup_is_removed(local: Path) -> Iterator[World]:
    """Servers after a killed writer: new content and a backup."""
    for number in range(total(OURS, local), 0, -1):
        world = World.of(OURS, local)
        run(OURS, world, [Fault("kill", "after request", number)])
        files = world.server.files()
        if files.get("/data/in/target") == NEW and any(is_backup_name(path.rpartition("/")[2]) for path in files):
            yield world


def removing(backend: SFTPBackend, _local: Path) -> None:
    backend.delete("in/target")


def removing_many(backend: SFTPBackend, _local: Path) -> None:
    backend.delete_many(["in/target"])


def moving_away(backend: SFTPBackend, _local: Path) -> None:
    backend.move("in/target", "archive/target")


@pytest.mark.parametrize("act", [removing, removing_many, moving_away])
def test_a_deleted_or_moved_file_is_not_restored_from_a_backup(
    tmp_path: Path, act: Callable[[SFTPBackend, Path], None]
) -> None:
    def finding(backend: SFTPBackend, local: Path) -> None:
        with pytest.raises(NotFound):
            backend.get_file_info("in/target")
        backend.write_atomic("in/target", THEIR_CONTENT)

    worlds = [*killed_before_its_backup_is_removed(tmp_path / "local")]
    for world in worlds:
        assert run(Case("act", act, OURS.before, OURS.before, traits=PLAIN), world).error is None
        assert run(Case("look", finding, OURS.before, OURS.before, traits=PLAIN), world).error is None
        assert world.server.files()["/data/in/target"] == THEIR_CONTENT
    assert worlds
