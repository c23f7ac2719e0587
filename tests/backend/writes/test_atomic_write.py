"""Files are committed complete or not at all, for each kind of rename and each failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from airflow_sftp_backend import (
    AlreadyExists,
    BackendUnavailable,
    InvalidPath,
    NotFound,
    SFTPBackendError,
    TransferCorrupted,
)
from airflow_sftp_backend.backend._files.pipelining import UploadSource
from airflow_sftp_backend.backend._paths import STALE_SECONDS, Jail, RemotePath, is_temp_name
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import (
    CopyData,
    FStat,
    LStat,
    PosixRename,
    Remove,
    Rename,
    Request,
    Write,
)
from airflow_sftp_backend.backend._protocol.scheduler import Operation
from airflow_sftp_backend.backend._writes.atomic_write import write_atomic
from airflow_sftp_backend.backend._writes.cleanup import remove_stale_temps, roll_back
from airflow_sftp_backend.backend._writes.copy import copy, move
from airflow_sftp_backend.backend._writes.rename import rename
from airflow_sftp_backend.backend._writes.write_target import Verify, WriteTarget
from airflow_sftp_backend.backend.errors import StatusError
from tests.support.memory_server import FAILURES, Failure, MemoryServer, Renames

OLD, NEW, THEIRS = b"the old content", b"the new content, longer", b"what another writer wrote"
AT = Jail("/").resolve
TARGET, SOURCE = AT("in/target"), AT("out/source")

LADDERS = {
    "posix-rename replaces": Renames("replaces", "refuses"),
    "posix-rename refuses": Renames("refuses", "refuses"),
    "no posix-rename, plain refuses": Renames("no", "refuses"),
    "no posix-rename, plain replaces": Renames("no", "replaces"),
    "no rename across, posix": Renames("replaces", "refuses", across=False),
    "no rename across, plain": Renames("no", "refuses", across=False),
}
Run = Callable[[MemoryServer, WriteTarget], Operation[object]]
OPERATIONS: dict[str, Run] = {
    "write_atomic": lambda server, write_target: write_atomic(
        server, write_target, UploadSource(NEW, with_digest=True)
    ),
    "move": lambda server, write_target: move(server, SOURCE, write_target),
    "copy": lambda server, write_target: copy(server, SOURCE, write_target),
}


def write_target(*, overwrite: bool, verify: Verify = "size", target: RemotePath = TARGET) -> WriteTarget:
    return WriteTarget(target, target.temp("0" * 12), target.unique_backup("f" * 12), overwrite, verify)


def world(*, target: bytes | None = OLD, **options: object) -> MemoryServer:
    """A server with a source and, unless it is None, a target."""
    files: dict[str, bytes | None] = {"/in": None, "/out": None, "/out/source": NEW}
    if target is not None:
        files["/in/target"] = target
    return MemoryServer(files, **options)  # type: ignore[arg-type]  # passed through


def temps(server: MemoryServer) -> list[str]:
    return [path for path in server.files if is_temp_name(path.rpartition("/")[2])]


def outcome(server: MemoryServer, operation: Operation[object]) -> SFTPBackendError | None:
    """Return the error, or None."""
    try:
        server.run(operation)
    except SFTPBackendError as error:
        return error
    return None


@pytest.fixture(params=LADDERS, ids=lambda name: name.replace(" ", "_"))
def renames(request: pytest.FixtureRequest) -> Renames:
    """Each kind of server."""
    return LADDERS[request.param]


@pytest.fixture(params=OPERATIONS)
def name(request: pytest.FixtureRequest) -> str:
    """Each operation that lands something."""
    found: str = request.param
    return found


# -- the ladder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, OLD])
def test_new_content_is_committed_with_every_kind_of_rename(name: str, renames: Renames, target: bytes | None) -> None:
    server = world(target=target, renames=renames)
    server.run(OPERATIONS[name](server, write_target(overwrite=True)))
    expected = {"/in/target": NEW} if name == "move" else {"/in/target": NEW, "/out/source": NEW}
    assert server.content() == expected
    assert not server.open


def test_an_existing_file_is_never_overwritten_without_overwrite(name: str, renames: Renames) -> None:
    server = world(renames=renames)
    before = server.content()
    with pytest.raises(AlreadyExists):
        server.run(OPERATIONS[name](server, write_target(overwrite=False)))
    assert server.content() == before
    assert not server.open


def test_a_folder_is_never_replaced(name: str, renames: Renames) -> None:
    for overwrite in (False, True):
        server = MemoryServer({"/in": None, "/in/target": None, "/out": None, "/out/source": NEW}, renames=renames)
        with pytest.raises(InvalidPath):
            server.run(OPERATIONS[name](server, write_target(overwrite=overwrite)))
        assert server.content() == {"/out/source": NEW}
        assert not temps(server)


def test_the_mode_of_a_replaced_file_is_kept(renames: Renames) -> None:
    for name in ("write_atomic", "copy"):
        server = world(renames=renames)
        replaced = server.files["/in/target"]
        assert replaced is not None
        replaced.mode = 0o600
        server.run(OPERATIONS[name](server, write_target(overwrite=True)))
        landed = server.files["/in/target"]
        assert landed is not None
        assert landed.mode == 0o600


def test_posix_rename_alone_is_used_where_it_replaces(name: str) -> None:
    server = world()
    server.run(OPERATIONS[name](server, write_target(overwrite=True)))
    kinds = [type(request) for request in server.requests]
    assert kinds.count(PosixRename) == 1
    assert Rename not in kinds


def test_without_overwrite_the_rename_used_is_one_that_can_refuse(name: str) -> None:
    server = world(target=None)
    server.run(OPERATIONS[name](server, write_target(overwrite=False)))
    kinds = [type(request) for request in server.requests]
    assert kinds.count(Rename) == 1
    assert PosixRename not in kinds


def test_a_server_with_copy_data_copies_itself(renames: Renames) -> None:
    server = world(renames=renames, copies=True)
    server.run(copy(server, SOURCE, write_target(overwrite=True)))
    assert server.content()["/in/target"] == NEW
    assert CopyData in [type(request) for request in server.requests]


# -- every request fails once -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("copies", [False, True])
def test_whichever_request_fails_the_target_is_complete(
    name: str, renames: Renames, failure: Failure, copies: bool
) -> None:
    at, over = 0, False
    while not over:
        at += 1
        seen_new = False

        def keep(server: MemoryServer) -> None:
            nonlocal seen_new
            held = server.content()
            seen_new = seen_new or held.get("/in/target") == NEW
            assert OLD in held.values() or held.get("/in/target") == NEW, server.requests[-1]
            assert NEW in held.values(), server.requests[-1]

        server = world(renames=renames, copies=copies, fail_at=(at,), failure=failure, after=keep)
        remote = write_target(overwrite=True)
        failed = outcome(server, OPERATIONS[name](server, remote))
        raised = failed is not None
        if failed is None:
            assert server.content()["/in/target"] == NEW
        else:
            assert isinstance(failed, BackendUnavailable) == failure.startswith("lost")
            assert failed.path in (TARGET.key, TARGET.parent.key, SOURCE.key) or failure.startswith("lost")
        over = len(server.requests) < at
        if server.broken is not None:
            server.reconnect()
            server.run(roll_back(server, remote))
        held = server.content()
        if "/in/target" not in held:  # the put-back itself was refused: the error says where the old content is
            assert TARGET.backup.native in str(failed)
            assert held[TARGET.backup.native] == OLD
            continue
        assert held["/in/target"] in (OLD, NEW)
        if raised and not seen_new:
            assert held["/in/target"] == OLD
        if name != "move":
            assert held["/out/source"] == NEW
        elif not raised:
            assert "/out/source" not in held
        refused_removal = len(server.requests) >= at and isinstance(server.requests[at - 1], Remove)
        if not (refused_removal and not failure.startswith("lost")):
            # a backup stays where the server refuses what its removal takes
            left = [path for path in temps(server) if not (seen_new and path.endswith(".backup"))]
            assert not left, f"after a failure at {server.requests[at - 1] if not over else None}"
        assert not server.open


@pytest.mark.parametrize("failure", FAILURES)
def test_whichever_request_fails_no_partial_file_is_committed(name: str, renames: Renames, failure: Failure) -> None:
    at, over = 0, False
    while not over:
        at += 1

        def whole(server: MemoryServer) -> None:
            assert server.content().get("/in/target") in (None, NEW), server.requests[-1]
            assert NEW in server.content().values()

        server = world(target=None, renames=renames, fail_at=(at,), failure=failure, after=whole)
        path = write_target(overwrite=False)
        failed = outcome(server, OPERATIONS[name](server, path))
        assert not isinstance(failed, AlreadyExists)
        if failed is None:
            assert server.content()["/in/target"] == NEW
        over = len(server.requests) < at
        if server.broken is not None:
            server.reconnect()
            server.run(roll_back(server, path))
        refused_removal = len(server.requests) >= at and isinstance(server.requests[at - 1], Remove)
        if not (refused_removal and not failure.startswith("lost")):
            assert not temps(server)
        assert not server.open


def test_a_concurrent_writers_file_is_not_overwritten(name: str, renames: Renames) -> None:
    if renames.plain == "replaces":
        return  # such a server has no rename that refuses: documented as a race
    at, over = 0, False
    while not over:
        at += 1
        came_first = False

        def another(server: MemoryServer, at: int = at) -> None:
            nonlocal came_first
            if len(server.requests) == at and "/in/target" not in server.files:
                server.files["/in/target"] = MemoryServer({"/x": THEIRS}).files["/x"]
                came_first = True

        server = world(target=None, renames=renames, after=another)
        try:
            server.run(OPERATIONS[name](server, write_target(overwrite=False)))
        except AlreadyExists:
            assert came_first
        else:
            assert not came_first
        over = len(server.requests) < at
        assert server.content()["/in/target"] == (THEIRS if came_first else NEW)
        assert NEW in server.content().values()
        assert not temps(server)


# -- changing places --------------------------------------------------------------------------------------------------


def _exchange(fail_at: tuple[int, ...], failure: Failure = "failure") -> tuple[MemoryServer, Exception | None]:
    """The rename of a server whose renames never replace: refused, a look, aside, in its place, the old one removed."""
    server = world(renames=Renames("no", "refuses"), fail_at=fail_at, failure=failure)
    path = write_target(overwrite=True)
    try:
        server.run(rename(server, SOURCE, path))
    except (StatusError, SFTPBackendError) as error:
        return server, error
    return server, None


def test_the_replaced_file_is_backed_up_and_removed() -> None:
    server, error = _exchange(())
    assert error is None
    removal = [Rename, LStat, Remove]  # under a name of its own, if the target is there
    assert [type(request) for request in server.requests] == [Rename, LStat, Rename, Rename, *removal]
    assert server.content() == {"/in/target": NEW}


def test_the_backup_is_restored_when_the_replacement_fails() -> None:
    server, error = _exchange((4,))
    assert isinstance(error, StatusError)
    assert server.content() == {"/in/target": OLD, "/out/source": NEW}


def test_a_backup_that_cannot_be_restored_is_kept_and_named() -> None:
    server, error = _exchange((4, 5))
    assert isinstance(error, SFTPBackendError)
    assert error.path == TARGET.key
    assert TARGET.backup.native in error.message
    assert server.content() == {TARGET.backup.native: OLD, "/out/source": NEW}


def test_a_backup_of_a_lost_connection_is_restored_on_the_next_one() -> None:
    server, error = _exchange((4,), "lost before")
    assert isinstance(error, BackendUnavailable)
    assert TARGET.backup.native in error.message
    assert "/in/target" not in server.files
    server.reconnect()
    server.run(roll_back(server, write_target(overwrite=True)))
    assert server.content() == {"/in/target": OLD, "/out/source": NEW}


@pytest.mark.parametrize("parked", [False, True])
def test_recovery_never_touches_a_newer_file_of_the_name(parked: bool) -> None:
    path = write_target(overwrite=True)
    backup = path.unique_backup.native if parked else TARGET.backup.native
    files = {"/in": None, "/in/target": THEIRS, backup: OLD, path.temp.native: b"half"}
    server = MemoryServer(files, renames=Renames("no", "refuses"))
    server.run(roll_back(server, path))
    assert server.content() == {"/in/target": THEIRS}
    for failure in FAILURES:
        for at in range(1, 8):
            renames = Renames("no", "refuses")
            server = MemoryServer({"/in": None, backup: OLD}, renames=renames, fail_at=(at,), failure=failure)
            try:
                server.run(roll_back(server, path))
            except BackendUnavailable:
                assert failure.startswith("lost")
            assert OLD in server.content().values()


# -- verification -----------------------------------------------------------------------------------------------------


class _SwallowsABlock(MemoryServer):
    """Acknowledges every write and forgets the second."""

    def carry_out(self, request: Request[object]) -> object:
        if isinstance(request, Write) and request.offset == 4:
            return None
        return super().carry_out(request)


class _ChangesABlock(MemoryServer):
    """Stores other bytes than it was sent, as many."""

    def carry_out(self, request: Request[object]) -> object:
        if isinstance(request, Write) and request.offset == 4:
            request = Write(request.handle, request.offset, bytes(len(request.data)))
        return super().carry_out(request)


class _LiesAboutOpenFiles(MemoryServer):
    """Says of every open file that it is empty."""

    def carry_out(self, request: Request[object]) -> object:
        return Attributes(size=0) if isinstance(request, FStat) else super().carry_out(request)


class _TellsNoSize(MemoryServer):
    """Leaves the size out everywhere."""

    def carry_out(self, request: Request[object]) -> object:
        answer = super().carry_out(request)
        return replace(answer, size=None) if isinstance(answer, Attributes) else answer


def _written(kind: type[MemoryServer], verify: Verify) -> MemoryServer:
    server = kind({"/in": None, "/in/target": OLD})
    content = UploadSource(b"0123456789abc", with_digest=verify == "sha256")
    server.run(write_atomic(server, write_target(overwrite=True, verify=verify), content))
    return server


def test_a_file_of_unexpected_size_is_not_committed() -> None:
    server = _SwallowsABlock({"/in": None, "/in/target": OLD})
    with pytest.raises(TransferCorrupted, match="13 bytes were sent, but the server stored 9") as caught:
        server.run(write_atomic(server, write_target(overwrite=True), UploadSource(b"0123456789abc")))
    assert caught.value.path == TARGET.key
    assert server.content() == {"/in/target": OLD}


def test_a_file_with_wrong_bytes_is_not_committed_when_verified() -> None:
    server = _ChangesABlock({"/in": None, "/in/target": OLD})
    with pytest.raises(TransferCorrupted, match="sha256:") as caught:
        server.run(
            write_atomic(
                server, write_target(overwrite=True, verify="sha256"), UploadSource(b"0123456789abc", with_digest=True)
            )
        )
    assert caught.value.path == TARGET.key
    assert server.content() == {"/in/target": OLD}
    assert _written(_ChangesABlock, "size").content() != {"/in/target": OLD}  # what a size cannot tell


@pytest.mark.parametrize("verify", ["size", "sha256", "none"])
def test_a_missing_size_is_no_verification_failure(verify: Verify) -> None:
    for kind in (_LiesAboutOpenFiles, _TellsNoSize):
        assert _written(kind, verify).content() == {"/in/target": b"0123456789abc"}


def test_without_verification_no_query_is_sent() -> None:
    server = _written(MemoryServer, "none")
    kinds = {type(request) for request in server.requests}
    assert FStat not in kinds
    assert server.content() == {"/in/target": b"0123456789abc"}


def test_a_copy_whose_source_grows_is_not_committed() -> None:
    for copies in (False, True):

        def grow(server: MemoryServer) -> None:
            if any(isinstance(request, Write | CopyData) for request in server.requests):
                source = server.files["/out/source"]
                assert source is not None
                source.content += b"."

        server = world(copies=copies, after=grow)
        with pytest.raises(TransferCorrupted) as caught:
            server.run(copy(server, SOURCE, write_target(overwrite=True)))
        assert caught.value.path == SOURCE.key
        assert server.content()["/in/target"] == OLD
        assert not temps(server)


def test_a_move_by_copy_never_removes_more_than_it_copied() -> None:
    def grow(server: MemoryServer) -> None:
        source = server.files["/out/source"]
        if source is not None and Write in map(type, server.requests) and len(source.content) < 99:
            source.content += b"."

    server = world(renames=Renames("replaces", "refuses", across=False), after=grow)
    with pytest.raises(TransferCorrupted):
        server.run(move(server, SOURCE, write_target(overwrite=True)))
    assert server.content()["/out/source"].startswith(NEW + b".")
    assert server.content()["/in/target"] == OLD


# -- what others left behind ------------------------------------------------------------------------------------------


def test_only_stale_temporary_files_of_the_same_target_are_removed() -> None:
    now = 2_000_000
    stale, young, other = TARGET.temp("1" * 12), TARGET.temp("2" * 12), AT("in/other").temp("3" * 12)
    server = MemoryServer({"/in": None, stale.native: b"", young.native: b"", other.native: b""})
    seen = [(stale, now - STALE_SECONDS - 1), (young, now - STALE_SECONDS), (other, 0), (AT("in/plain"), 0)]
    server.run(remove_stale_temps(TARGET, seen, now))
    assert sorted(server.content()) == sorted([young.native, other.native])


def test_a_temporary_file_written_since_the_listing_is_not_removed() -> None:
    listed, now = 1_000_000 - 2 * STALE_SECONDS, 1_000_000 + 60  # the server says 1,000,000 of every file
    living = TARGET.temp("1" * 12)
    server = MemoryServer({"/in": None, living.native: b"half"})
    server.run(remove_stale_temps(TARGET, [(living, listed)], now))
    assert server.content() == {living.native: b"half"}


def test_missing_parents_of_a_target_are_created(name: str) -> None:
    server = MemoryServer({"/out": None, "/out/source": NEW})
    target = AT("a/b/c/target")
    server.run(OPERATIONS[name](server, write_target(overwrite=False, target=target)))
    assert server.content()["/a/b/c/target"] == NEW
    assert not temps(server)


def test_a_missing_source_is_not_found_and_leaves_nothing() -> None:
    for name in ("move", "copy"):
        server = MemoryServer({"/in": None, "/in/target": OLD, "/out": None})
        with pytest.raises(NotFound) as caught:
            server.run(OPERATIONS[name](server, write_target(overwrite=True)))
        assert caught.value.path == SOURCE.key
        assert server.content() == {"/in/target": OLD}
