"""A backup is restored for a missing file, else removed."""

from __future__ import annotations

import pytest

from airflow_sftp_backend import BackendUnavailable, NotFound
from airflow_sftp_backend.backend._files.file_info import get_file_info
from airflow_sftp_backend.backend._protocol.messages import Rename
from airflow_sftp_backend.backend._writes.backups import (
    delete_with_backup,
    move_to_backup,
    remove_backup,
    restore,
    with_backup_restored,
)
from tests.support.atomic_writes import NEW, OLD, SOURCE, TARGET, temps
from tests.support.memory_server import FAILURES, Failure, MemoryServer, Renames

BACKUP, UNIQUE_BACKUP = TARGET.backup, TARGET.unique_backup("f" * 12)


def two_renames(
    *,
    target: bytes | None = None,
    backup: bytes | None = OLD,
    fail_at: tuple[int, ...] = (),
    failure: Failure = "failure",
) -> MemoryServer:
    """Server without atomic rename, with a target and a backup."""
    contents = {"/in/target": target, BACKUP.native: backup}
    files = {path: content for path, content in contents.items() if content is not None}
    return MemoryServer({"/in": None, **files}, renames=Renames("no", "refuses"), fail_at=fail_at, failure=failure)


def test_a_missing_file_is_restored_and_the_operation_repeated() -> None:
    server = two_renames()
    info = server.run(with_backup_restored(server, TARGET, lambda: get_file_info(TARGET)))
    assert info.size == len(OLD)
    assert server.content() == {"/in/target": OLD}


def test_a_missing_file_without_a_backup_is_not_found() -> None:
    server = two_renames(backup=None)
    with pytest.raises(NotFound):
        server.run(with_backup_restored(server, TARGET, lambda: get_file_info(TARGET)))


def test_the_backup_of_another_missing_file_is_not_restored() -> None:
    server = two_renames()
    with pytest.raises(NotFound):
        server.run(with_backup_restored(server, TARGET, lambda: get_file_info(SOURCE)))
    assert server.content() == {BACKUP.native: OLD}


def test_a_backup_does_not_replace_a_file() -> None:
    server = two_renames(target=NEW)
    assert not server.run(restore(server, TARGET))
    assert server.content() == {"/in/target": NEW, BACKUP.native: OLD}


def test_no_backup_is_sought_where_posix_rename_replaces() -> None:
    server = MemoryServer({"/in": None, BACKUP.native: OLD})
    with pytest.raises(NotFound):
        server.run(with_backup_restored(server, TARGET, lambda: get_file_info(TARGET)))
    assert not server.run(restore(server, TARGET))
    assert Rename not in {type(request) for request in server.requests}


@pytest.mark.parametrize("target", [None, NEW])
def test_a_deleted_file_does_not_reappear_from_its_backup(target: bytes | None) -> None:
    server = two_renames(target=target)
    server.run(delete_with_backup(server, TARGET, missing_ok=False))
    assert server.content() == {}
    with pytest.raises(NotFound):
        server.run(delete_with_backup(server, TARGET, missing_ok=False))
    server.run(delete_with_backup(server, TARGET, missing_ok=True))


@pytest.mark.parametrize("target", [None, NEW])
def test_a_backup_is_removed_if_its_file_exists_else_restored(target: bytes | None) -> None:
    server = two_renames(target=target)
    server.run(remove_backup(TARGET, UNIQUE_BACKUP))
    assert server.content() == {"/in/target": target or OLD}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_only_copy_survives_a_failed_removal_of_its_backup(number: int, failure: Failure) -> None:
    server = two_renames(fail_at=(number,), failure=failure)
    try:
        server.run(remove_backup(TARGET, UNIQUE_BACKUP))
    except BackendUnavailable:
        assert failure.startswith("lost")
    assert OLD in server.content().values()


@pytest.mark.parametrize("backup", [None, OLD])
def test_a_file_moves_to_its_backup_in_place_of_an_earlier_one(backup: bytes | None) -> None:
    server = two_renames(target=NEW, backup=backup)
    assert server.run(move_to_backup(TARGET, UNIQUE_BACKUP))
    assert server.content() == {BACKUP.native: NEW}
    assert not server.run(move_to_backup(TARGET, UNIQUE_BACKUP))
    assert temps(server) == [BACKUP.native]
