"""A fault at any message leaves old or new content.

Whichever message a connection is lost at, stalls at or the process is killed at, each name holds the old or the new
content, and the next call finds everything in order.

The rows of docs/reliability.md are compared with what the runs give.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_sftp_backend import AlreadyExists, BackendUnavailable, NotFound, SFTPBackend
from airflow_sftp_backend.backend._paths import STALE_SECONDS
from tests.support.faults.cases import NEW, OLD, OTHER, Case, Run, World, errors_in, local_files, run, set_local
from tests.support.faults.network import Fault
from tests.support.faults.outcomes import EMPTY, backups, leftovers, state_of
from tests.support.faults.points import (
    MAIN_SERVERS,
    NEXT,
    SUBJECTS,
    THOROUGH,
    Subject,
    killed,
    lost,
    lost_twice,
    messages,
    next_call,
    writing,
)
from tests.support.faults.table import AT_START, FAULTS, FAULTS_AT_START, HEAD, Row, committed, has_fault

each_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=str)
each_stalling_subject = pytest.mark.parametrize(
    "subject", [subject for subject in SUBJECTS if THOROUGH or subject.server in MAIN_SERVERS], ids=str
)
thorough = pytest.mark.skipif(not THOROUGH, reason="takes minutes: make test-all")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Silence the log of thousands of lost connections."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def check_committed(row: Row) -> None:
    """The page says what the runs have given."""
    print(f"{row.subject}: {FAULTS[row.fault]} at {row.points} points")  # noqa: T201 - shown with -rP
    assert row.points > 0
    assert str(row) in committed()[row.subject.case.name], "run make reliability: docs/reliability.md says otherwise"


@each_subject
def test_a_lost_connection_leaves_old_or_new_content(subject: Subject, tmp_path: Path) -> None:
    check_committed(Row.of(subject, "cut", lost(subject.case, tmp_path / "local", "cut")))


@each_stalling_subject
def test_a_stalled_server_leaves_old_or_new_content(subject: Subject, tmp_path: Path) -> None:
    check_committed(Row.of(subject, "stall", lost(subject.case, tmp_path / "local", "stall")))


@each_subject
def test_a_connection_lost_while_it_is_opened_changes_nothing(subject: Subject, tmp_path: Path) -> None:
    for kind in FAULTS_AT_START:
        assert Row.at_start(subject, kind, tmp_path / "local") in committed()[AT_START], "run make reliability"


@thorough
@each_subject
def test_a_server_that_continues_late_leaves_old_or_new_content(subject: Subject, tmp_path: Path) -> None:
    check_committed(Row.of(subject, "late", lost(subject.case, tmp_path / "local", "late")))


@thorough
@pytest.mark.timeout(600)
@pytest.mark.parametrize("subject", [subject for subject in SUBJECTS if has_fault(subject, "twice")], ids=str)
def test_a_second_loss_during_clean_up_leaves_old_or_new_content(subject: Subject, tmp_path: Path) -> None:
    check_committed(Row.of(subject, "twice", lost_twice(subject.case, tmp_path / "local")))


def tried_twice(act: Callable[[SFTPBackend, Path], object]) -> Callable[[SFTPBackend, Path], object]:
    """Make the call, and repeat it after an unnoticed stall."""

    def call(backend: SFTPBackend, local: Path) -> object:
        try:
            return act(backend, local)
        except BackendUnavailable:
            return act(backend, local)

    return call


WRITES = [
    subject
    for subject in SUBJECTS
    if subject.server in MAIN_SERVERS and subject.case.name.startswith(("upload,", "write_atomic", "copy"))
]


@pytest.mark.parametrize("subject", WRITES, ids=str)
def test_an_abandoned_write_never_replaces_a_later_one(subject: Subject, tmp_path: Path) -> None:
    case, local = subject.case, tmp_path / "local"
    for number in range(1, messages(case, local) + 1):
        fault = Fault("later", "after request", number)
        world = World.of(case, local)
        result = run(case, world, [fault], then=tried_twice(next_call(case)))
        assert world.server.files()["/data/in/target"] == NEXT
        result.network.wake()
        held = world.server.files()
        if "/data/in/target" not in held:  # the first of two renames came late: the next call restores what it took
            assert case.has_two_step_replacement
            assert NEXT in held.values()
        again = run(replace(case, act=lambda backend, local: _expect(backend.read_bytes("in/target"), NEXT)), world)
        assert again.error is None, str(fault)


def test_the_page_has_a_row_for_each_fault_and_no_other() -> None:
    expected = sorted(
        (subject.case.name, FAULTS[fault], subject.server)
        for subject in SUBJECTS
        for fault in FAULTS
        if has_fault(subject, fault)
    )
    found = [(name, *row.strip("| ").split(" | ")) for name, rows in committed().items() for row in rows]
    expected = sorted([*expected, *((AT_START, fault, "any") for fault in FAULTS_AT_START.values())])
    assert sorted(cells[:3] for cells in found) == expected
    assert {len(cells) for cells in found} == {len(HEAD) + 1}


# -- killed -----------------------------------------------------------------------------------------------------------


@each_subject
def test_a_killed_process_leaves_old_or_new_content_and_a_retry_cleans_up(subject: Subject, tmp_path: Path) -> None:
    def checked() -> Iterator[Run]:
        for result in killed(subject.case, tmp_path / "local"):
            check_again(subject.case, result, waits=STALE_SECONDS + 1)
            check_again(subject.case, result, waits=0)
            check_next_write(subject.case, result)
            if state_of(result) == EMPTY and "/data/in/target" in subject.case.before:
                check_restored(result)
            yield result

    check_committed(Row.of(subject, "kill", checked()))


def check_again(case: Case, result: Run, waits: int) -> None:
    """The same call in a new process succeeds or was done."""
    world = result.world.copied()
    world.clock.sleep(waits)
    held = local_files(world.local)
    again = run(case, world)
    done = state_of(result) == "new"
    for error in errors_in(again.error):  # of what was moved already
        assert isinstance(error, NotFound | AlreadyExists), repr(error)
        assert done or case.several
    assert state_of(again) == "new"
    # without a resume key a file that was written to within the hour may be that of a writer that lives
    if again.error is None and (waits or "resume_key" in case.name):
        assert not leftovers(world, case)
    set_local(world.local, held)


def check_next_write(case: Case, result: Run) -> None:
    """An hour later the next write removes all remains."""
    if "/data/in/target" not in case.before:
        return
    world = result.world.copied()
    world.clock.sleep(STALE_SECONDS + 1)
    written = run(writing(NEXT), world)
    assert written.error is None
    assert world.server.files()["/data/in/target"] == NEXT
    assert not leftovers(world, case)


READS: dict[str, Callable[[SFTPBackend, Path], object]] = {
    "get_file_info": lambda backend, local: _expect(backend.get_file_info("in/target").size, len(OLD)),
    "read_bytes": lambda backend, local: _expect(backend.read_bytes("in/target"), OLD),
    "read": lambda backend, local: _expect(_read(backend), OLD),
    "download": lambda backend, local: backend.download("in/target", local / "fetched"),
    "copy": lambda backend, local: backend.copy("in/target", "out/copy"),
    "write_atomic": lambda backend, local: _expect_taken(lambda: backend.write_atomic("in/target", NEXT)),
    "write": lambda backend, local: _expect_taken(lambda: backend.write("in/target", NEXT)),
    "move to it": lambda backend, local: _expect_taken(lambda: backend.move("out/moving", "in/target")),
    "copy to it": lambda backend, local: _expect_taken(lambda: backend.copy("out/moving", "in/target")),
}


def _expect(found: object, expected: object) -> None:
    assert found == expected


def _read(backend: SFTPBackend) -> bytes:
    with backend.read("in/target") as file:
        return file.read()


def _expect_taken(call: Callable[[], object]) -> None:
    with pytest.raises(AlreadyExists):
        call()


def check_restored(result: Run) -> None:
    """Check that the next call restores the content and other files."""
    for name, act in READS.items():
        world = result.world.copied()
        world.server.add("/data/out/moving", NEW)
        done = run(replace(result.case, act=act), world)
        assert done.error is None, f"{name}: {done.error!r}"
        assert world.server.files()["/data/in/target"] == OLD, name
        assert not backups(world)
        if name == "download":
            assert (world.local / "fetched").read_bytes() == OLD
            (world.local / "fetched").unlink()
    moved = done_next(result, lambda backend, local: backend.move("in/target", "out/kept"))
    assert moved["/data/out/kept"] == OLD
    gone = done_next(result, lambda backend, local: backend.delete("in/target"))
    assert OLD not in gone.values()
    gone = done_next(result, lambda backend, local: backend.delete_many(["in/target"], missing_ok=True))
    assert OLD not in gone.values()
    assert gone["/data/in/other"] == OTHER


def done_next(result: Run, act: Callable[[SFTPBackend, Path], object]) -> dict[str, bytes]:
    """The files on the server after the next call."""
    world = result.world.copied()
    assert run(replace(result.case, act=act), world).error is None
    return world.server.files()
