"""A write state changes only as its table allows."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise, product
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend import BackendUnavailable, SFTPBackendError, TransferCorrupted
from airflow_sftp_backend.backend._files.pipelining import MAX_UNACKED_BYTES, UploadSource
from airflow_sftp_backend.backend._protocol.scheduler import Operation
from airflow_sftp_backend.backend._protocol.server_traits import OPENSSH, UNKNOWN, ServerTraits
from airflow_sftp_backend.backend._writes import resume, write_state
from airflow_sftp_backend.backend._writes.atomic_write import write_atomic
from airflow_sftp_backend.backend._writes.copy import copy
from airflow_sftp_backend.backend._writes.write_state import TRANSITIONS, ResumeState, WriteState
from airflow_sftp_backend.backend._writes.write_target import WriteTarget
from tests.support.atomic_writes import NEW, OLD, SOURCE, TARGET
from tests.support.memory_server import FAILURES, Failure, MemoryServer, Renames

WRITE_TARGET = WriteTarget(TARGET, TARGET.temp("aaaaaa000000"), TARGET.unique_backup("f" * 12), overwrite=True)
ENDS = {WriteState.DONE, WriteState.KEPT, WriteState.ABANDONED}
ILLEGAL = [(old, new) for old, new in product(WriteState, WriteState) if new not in TRANSITIONS[old]]


# -- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), ILLEGAL, ids=lambda state: state.name)
def test_an_illegal_transition_raises_and_changes_nothing(old: WriteState, new: WriteState) -> None:
    resume_state = ResumeState(old)
    with pytest.raises(RuntimeError, match=f"from {old.name} to {new.name}"):
        resume_state.advance(new)
    assert resume_state.state is old


@given(st.data())
def test_any_legal_walk_renames_only_a_complete_file(data: st.DataObject) -> None:
    resume_state, walk = ResumeState(), [WriteState.NEW]
    while following := TRANSITIONS[resume_state.state]:
        if len(walk) > 30:
            break
        resume_state.advance(data.draw(st.sampled_from(sorted(following, key=lambda state: state.name))))
        walk.append(resume_state.state)
    steps = set(pairwise(walk))
    assert {old for old, new in steps if new is WriteState.DONE} <= {WriteState.RENAMING}
    assert {old for old, new in steps if new is WriteState.RENAMING} <= {WriteState.SENT}
    assert not {WriteState.DONE, WriteState.KEPT} & set(walk[:-1])


def test_every_state_can_be_reached_and_ended() -> None:
    for state in WriteState:
        reached, edge = {state}, {state}
        while edge := {new for old in edge for new in TRANSITIONS[old]} - reached:
            reached |= edge
        assert reached & ENDS
        if state is WriteState.NEW:
            assert reached == set(WriteState)


# -- decisions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", WriteState)
def test_only_an_attempt_that_has_started_and_not_ended_resumes(state: WriteState) -> None:
    assert ResumeState(state).resumable == (state not in ENDS | {WriteState.NEW})


@pytest.mark.parametrize("state", WriteState)
def test_a_handle_is_closed_only_once(state: WriteState) -> None:
    resume_state = ResumeState(state, handle=b"handle")
    assert resume_state.open_handle == (b"handle" if state is WriteState.OPEN else None)


@pytest.mark.parametrize("state", [WriteState.OPEN, WriteState.SENT])
@pytest.mark.parametrize("is_findable", [True, False])
@pytest.mark.parametrize("size", [MAX_UNACKED_BYTES, MAX_UNACKED_BYTES + 1])
def test_only_a_large_file_that_a_later_call_finds_is_kept(state: WriteState, is_findable: bool, size: int) -> None:
    fresh_temp = TARGET.temp("aaaaaa000001") if is_findable else None
    resume_state = ResumeState(state, fresh_temp=fresh_temp, transferred_bytes=size)
    is_kept = is_findable and size > MAX_UNACKED_BYTES
    assert resume_state.keeps_temp == is_kept
    resume_state.mark_unresumable()
    assert resume_state.state is (WriteState.KEPT if is_kept else WriteState.ABANDONED)


@pytest.mark.parametrize(
    ("error", "resumable", "end"),
    [
        (BackendUnavailable("lost"), True, WriteState.SENT),
        (BackendUnavailable("lost"), False, WriteState.KEPT),
        (KeyboardInterrupt(), False, WriteState.KEPT),
        (TransferCorrupted("other bytes"), False, WriteState.ABANDONED),
        (OSError("the local file"), False, WriteState.ABANDONED),
    ],
    ids=repr,
)
def test_an_attempt_ends_by_the_reason_of_its_failure(error: BaseException, resumable: bool, end: WriteState) -> None:
    fresh_temp = TARGET.temp("aaaaaa000001")
    resume_state = ResumeState(WriteState.SENT, fresh_temp=fresh_temp, transferred_bytes=1 << 40)
    resume_state.end_attempt(error, resumable=resumable)
    assert resume_state.state is end
    resume_state.end_attempt(TransferCorrupted("again"), resumable=resumable or end in ENDS)
    assert resume_state.state is end


# -- what the server holds --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Watched(ResumeState):
    """A state that notes its changes."""

    changes: list[WriteState] = field(default_factory=list)

    def advance(self, state: WriteState) -> None:
        """See `ResumeState.advance`."""
        ResumeState.advance(self, state)
        self.changes.append(state)


def operation(name: str, server: MemoryServer, resume_state: ResumeState) -> Operation[object]:
    if name == "copy":
        return copy(server, SOURCE, WRITE_TARGET, resume_state)
    return write_atomic(server, WRITE_TARGET, UploadSource(NEW), None, resume_state)


def initial_state(name: str) -> Watched:
    if name == "upload with a resume key":
        return Watched(temp=WRITE_TARGET.temp, fresh_temp=TARGET.temp("aaaaaa000001"))
    return Watched()


NAMES = ("write", "upload with a resume key", "copy")


@pytest.mark.parametrize("name", NAMES)
def test_an_undisturbed_write_passes_each_state_once(name: str) -> None:
    server = MemoryServer({"/in": None, "/out": None, "/out/source": NEW})
    resume_state = initial_state(name)
    server.run(operation(name, server, resume_state))
    started = [WriteState.STARTED] * (2 if name == "copy" else 1)  # a copy opens its source first
    assert resume_state.changes == [
        *started, WriteState.OPEN, WriteState.SENT, WriteState.RENAMING, WriteState.DONE,
    ]  # fmt: skip


def check_target(resume_state: ResumeState, server: MemoryServer) -> None:
    """Check that the target has the content that the state implies."""
    content = server.content()
    if resume_state.state not in {WriteState.RENAMING, WriteState.DONE}:
        assert content.get("/in/target", OLD) == OLD
        assert OLD in content.values()  # under its backup name after a lost connection
    if resume_state.state is WriteState.DONE:
        assert content["/in/target"] == NEW


@given(
    name=st.sampled_from(NAMES),
    failure=st.sampled_from(FAILURES),
    failed=st.lists(st.integers(1, 60), max_size=5, unique=True),
    leftover=st.integers(0, len(NEW)).map(lambda size: {WRITE_TARGET.temp.native: NEW[:size]}) | st.just({}),
    renames=st.sampled_from([Renames(), Renames("no", "refuses"), Renames("refuses", "refuses")]),
    traits=st.sampled_from([OPENSSH, UNKNOWN]),
    max_open_files=st.sampled_from([1, 64]),
)
def test_the_target_changes_only_in_the_state_that_may_change_it(
    name: str,
    failure: Failure,
    failed: list[int],
    leftover: dict[str, bytes],
    renames: Renames,
    traits: ServerTraits,
    max_open_files: int,
) -> None:
    resume_state = initial_state(name)
    files = {"/in": None, "/in/target": OLD, "/out": None, "/out/source": NEW, **leftover}
    check = partial(check_target, resume_state)
    server = MemoryServer(files, renames=renames, fail_at=failed, failure=failure, after=check, traits=traits)
    server.handles.lower_limit(max_open_files)
    with patch.object(resume, "MAX_UNACKED_BYTES", 9), patch.object(write_state, "MAX_UNACKED_BYTES", 9):
        for _ in range(len(failed) + 1):
            server.reconnect(failed)
            try:
                server.run(operation(name, server, resume_state))
            except SFTPBackendError:
                assert resume_state.state is not WriteState.DONE
                assert resume_state.resumable <= (server.failure is not None)
            else:
                assert resume_state.state is WriteState.DONE
            if not resume_state.resumable:
                break
    assert not resume_state.resumable
    if resume_state.state is WriteState.DONE:
        check_target(resume_state, server)
