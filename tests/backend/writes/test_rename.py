"""A rename replaces a file atomically or through a backup."""

from __future__ import annotations

from airflow_sftp_backend import AlreadyExists, SFTPBackendError
from airflow_sftp_backend.backend._protocol.messages import LStat, PosixRename, Remove, Rename
from airflow_sftp_backend.backend._writes.rename import rename
from airflow_sftp_backend.backend.errors import StatusError
from tests.support.atomic_writes import NEW, OLD, OPERATIONS, SOURCE, TARGET, THEIRS, memory_server, temps, write_target
from tests.support.memory_server import Failure, MemoryServer, Renames


def test_posix_rename_alone_is_used_where_it_replaces(name: str) -> None:
    server = memory_server()
    server.run(OPERATIONS[name](server, write_target(overwrite=True)))
    kinds = [type(request) for request in server.requests]
    assert kinds.count(PosixRename) == 1
    assert Rename not in kinds


def test_without_overwrite_the_rename_used_is_one_that_can_refuse(name: str) -> None:
    server = memory_server(target=None)
    server.run(OPERATIONS[name](server, write_target(overwrite=False)))
    kinds = [type(request) for request in server.requests]
    assert kinds.count(Rename) == 1
    assert PosixRename not in kinds


def _exchange(fail_at: tuple[int, ...], failure: Failure = "failure") -> tuple[MemoryServer, Exception | None]:
    """Rename where renames never replace: through a backup, which is removed."""
    server = memory_server(renames=Renames("no", "refuses"), fail_at=fail_at, failure=failure)
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

        server = memory_server(target=None, renames=renames, after=another)
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
