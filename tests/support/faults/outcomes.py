"""Check the promises that hold after every fault."""

from __future__ import annotations

from typing import Final

from airflow_sftp_backend import BackendUnavailable
from airflow_sftp_backend.backend._paths import is_temp_name
from airflow_sftp_backend.backend._ssh.socket_stream import SERVER_CLOSED
from tests.support.faults.cases import NEW, OLD, OTHER, Case, Run, World, errors_in, local_files
from tests.support.faults.network import CONNECT_TIMEOUT, IO_TIMEOUT, Fault, Kind

SERVER: Final = "sftp://model.test:22"
EMPTY: Final = "name empty, old content whole in its backup"
CAUSES: Final = {
    "cut": ("the connection was lost",),
    "stall": (f"no answer for {IO_TIMEOUT:g} s",),
    "late": (f"no answer for {IO_TIMEOUT:g} s",),
    "later": (f"no answer for {IO_TIMEOUT:g} s",),
}


def state_of(run: Run) -> str:
    """Content of the names: old, new, mixed, or in a backup."""
    held = _held(run.world_after)
    before, after = _names(run.case, before=True), _names(run.case, before=False)
    changed = [path for path in before if before[path] != after[path]]
    new = [held.get(path) == after[path] for path in changed]
    old = [held.get(path) == before[path] for path in changed]
    if all(new):
        return "new"
    if all(old):
        return "old"
    if any(before[path] and after[path] and path not in held for path in changed):
        return EMPTY
    return "some old, some new" if run.case.several else "new, and the source is still there"


def _held(world: World) -> dict[str, bytes]:
    local = {f"local {name}": content for name, content in local_files(world.local).items()}
    return world.server.files() | local


def _names(case: Case, *, before: bool) -> dict[str, bytes | None]:
    server, local = (case.before, case.local_before) if before else (case.after, case.local_after)
    return dict(server) | {f"local {name}": content for name, content in local.items()}


def leftovers(world: World, case: Case) -> list[str]:
    """Files and local files that the operation made and did not remove."""
    known = _names(case, before=True).keys() | _names(case, before=False).keys()
    return [path for path, content in _held(world).items() if path not in known and content != OTHER]


def backups(world: World) -> list[str]:
    """Files that hold the whole old content under a name of ours."""
    return [
        path
        for path, content in world.server.files().items()
        if content == OLD and is_temp_name(path.rpartition("/")[2]) and path.endswith(".backup")
    ]


def check_state(run: Run, *, may_be_empty: bool) -> None:
    """Each name has old or new content; other files are unchanged.

    ``may_be_empty``: a name whose file is replaced by two renames may be empty while its backup is whole.
    """
    case, held = run.case, _held(run.world_after)
    before, after = _names(case, before=True), _names(case, before=False)
    for path, old in before.items():
        content = held.get(path)
        if content in (old, after[path]):
            continue
        assert may_be_empty, f"{path} holds {content!r}"
        assert content is None
        assert case.has_two_step_replacement
        assert backups(run.world_after), f"{path} is empty and has no backup"
    assert [path for path, content in held.items() if content == OTHER] == ["/data/in/other", "/outside/other"]
    assert not case.name.startswith("delete") or not leftovers(run.world_after, case)
    if NEW in before.values() and not case.several:
        assert NEW in held.values(), "the source is lost"
    for path in held.keys() - before.keys():
        assert is_temp_name(path.rpartition("/")[2].removeprefix("local ")) or held[path] == OTHER, path


def check_unconnected(run: Run, kind: Kind) -> None:
    """Check the error of a failed connection, without any change."""
    assert state_of(run) == "old"
    assert not leftovers(run.world, run.case)
    cause = SERVER_CLOSED if kind == "cut" else f"no answer within {CONNECT_TIMEOUT:g} s"
    errors = errors_in(run.error)
    assert errors
    for error in errors:
        assert type(error) is BackendUnavailable, repr(error)
        assert str(error).startswith(f"agreeing on the SFTP version: {cause}"), str(error)
        assert error.server == SERVER
        assert SERVER in str(error)


def check_outcome(run: Run, faults: list[Fault]) -> None:
    """Check that a success is new, and an error complete."""
    assert run.handles == 0, f"{run.handles} handles are left open"
    stalls = sum(fault.kind != "cut" for fault in run.network.fired)
    pauses = 2 ** (len(run.network.fired) - 1) - 1  # before connecting once more where that brought nothing forward
    assert run.seconds <= stalls * IO_TIMEOUT + pauses, f"it took {run.seconds} s"
    if run.error is None:
        assert state_of(run) == "new"
        return
    gone = ("the connection of the open file was lost",)  # of `open_atomic`, noticed at the next step
    for error in errors_in(run.error):
        assert type(error) is BackendUnavailable, repr(error)
        assert error.path in run.case.paths, f"{error.path!r} is named"
        assert repr(error.path) in str(error)
        assert error.server == SERVER
        assert SERVER in str(error)
        causes = (*gone, *(cause for fault in faults for cause in CAUSES[fault.kind]))
        assert any(cause in str(error) for cause in causes), str(error)
