"""Backups: the old content of a file while two plain renames replace it, and for as long as nobody has restored it.

A server without a rename that replaces needs two: the target is renamed to its backup name, then the new file to the
target's name. A process that dies in between leaves the target's name empty and the whole old content under the backup
name. Each target has one backup name, so that a later call finds it without a listing:

* A call that finds the name missing (read, download, copy, move, delete, get_file_info) restores the backup and
  continues.
* A call that must not overwrite restores the backup and raises AlreadyExists.
* A call that has given the name new content removes the backup.
* A call that deletes the file or moves it away removes the backup first, so that no later call restores it.

Removal of a backup takes three steps. It is renamed to a name that nobody else uses; the target is looked at; then the
backup is removed if the target exists, else restored. So a backup that another writer makes in the meantime, whose
target is missing, is never removed.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import TypeVar

from airflow_sftp_backend.backend._files import deletion
from airflow_sftp_backend.backend._files.operations import is_missing, try_stat
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.channel import Pending
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import LStat, PosixRename, Remove, Rename
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, reply, request_all, send
from airflow_sftp_backend.backend.errors import BackendUnavailable, NotFound, StatusError

T = TypeVar("T")
logger = logging.getLogger(__name__)


def may_have_backups(scheduler: SFTPScheduler) -> bool:
    """Tell whether files on a server may be replaced by two renames.

    :param scheduler: the connection
    :returns: False where posix-rename is offered and known to replace
    """
    return not (scheduler.traits.posix_rename_replaces and scheduler.supports(PosixRename))


def restore(scheduler: SFTPScheduler, target: RemotePath) -> Operation[bool]:
    """Rename the backup of a file to the file's own name, which is missing. One round trip.

    :param scheduler: the connection
    :param target: the file
    :returns: True if the file is there again
    """
    if not may_have_backups(scheduler):
        return False
    (answer,) = yield from request_all([Rename(target.backup.native, target.native)])
    if isinstance(answer, StatusError):
        return False
    logger.warning("%r: restored the content that an interrupted replacement had renamed", target.key)
    return True


def with_backup_restored(
    scheduler: SFTPScheduler, path: RemotePath, operation: Callable[[], Operation[T]]
) -> Operation[T]:
    """Run an operation; where it finds the file missing and there is a backup, restore that and run it again.

    :param scheduler: the connection
    :param path: the file that the operation needs
    :param operation: makes the operation
    :returns: what the operation returns
    :raises SFTPBackendError: as the operation
    """
    return _restoring(scheduler, path, operation) if may_have_backups(scheduler) else operation()


def _restoring(scheduler: SFTPScheduler, path: RemotePath, operation: Callable[[], Operation[T]]) -> Operation[T]:
    try:
        return (yield from operation())
    except NotFound as missing:
        if missing.path != path.key or not (yield from restore(scheduler, path)):
            raise
    return (yield from operation())


def delete_with_backup(scheduler: SFTPScheduler, path: RemotePath, *, missing_ok: bool) -> Operation[None]:
    """Delete a file and its backup, which would else get the file's name. No round trip more than for the file.

    :param scheduler: the connection
    :param path: the file
    :param missing_ok: a missing file is no error
    :raises SFTPBackendError: NotFound, InvalidPath for a directory, and others
    """
    try:
        if may_have_backups(scheduler):
            backup_reply = yield from send(LStat(path.backup.native))
            removal = deletion.delete(
                path, missing_ok=False, before_removal=lambda: _remove_if_present(backup_reply, path)
            )
        else:
            removal = deletion.delete(path, missing_ok=False)
        yield from removal
    except NotFound as error:
        if not missing_ok or error.path != path.key:
            raise


def _remove_if_present(backup_reply: Pending[Attributes], path: RemotePath) -> Operation[None]:
    """Wait for the LSTAT of a backup, and remove the backup; if the file is missing, it is restored."""
    try:
        yield from reply(backup_reply)
    except StatusError:
        return
    yield from remove_backup(path)


def remove_backup(target: RemotePath, unique_backup: RemotePath | None = None) -> Operation[None]:
    """Remove the backup of a file that has new content. Three round trips.

    :param target: the file
    :param unique_backup: a backup name of the file that nobody else uses
    """
    unique_backup = unique_backup or target.unique_backup(secrets.token_hex(6))
    (answer,) = yield from request_all([Rename(target.backup.native, unique_backup.native)])
    if not isinstance(answer, StatusError):  # else another has restored or removed it
        yield from resolve_backup(target, unique_backup)


def remove_backup_quietly(target: RemotePath, unique_backup: RemotePath) -> Operation[None]:
    """Remove the backup of a file that has just been replaced. That succeeded: a connection lost now is no error.

    :param target: the file
    :param unique_backup: a backup name of the file that nobody else uses
    """
    try:
        yield from remove_backup(target, unique_backup)
    except BackendUnavailable:
        logger.debug("the connection ended before the backup of %r could be removed", target.key)


def resolve_backup(target: RemotePath, unique_backup: RemotePath) -> Operation[None]:
    """Remove a backup under a name of its own if the file exists; restore it if the file is missing.

    :param target: the file
    :param unique_backup: where its backup is
    """
    existing = yield from try_stat(target)
    if isinstance(existing, Attributes):
        (answer,) = yield from request_all([Remove(unique_backup.native)])
        if isinstance(answer, StatusError) and not answer.missing:
            logger.warning("the backup %r could not be removed: %s", unique_backup.native, answer.text or answer.code)
    elif (yield from is_missing(target, existing)):
        yield from request_all([Rename(unique_backup.native, target.native)])


def move_to_backup(target: RemotePath, unique_backup: RemotePath) -> Operation[bool]:
    """Rename a file to its backup name. A backup that is there already is removed first.

    :param target: the file
    :param unique_backup: a backup name of the file that nobody else uses
    :returns: False if the file is missing by now
    :raises StatusError: if the server refuses
    """
    (answer,) = yield from request_all([Rename(target.native, target.backup.native)])
    if (
        isinstance(answer, StatusError)
        and not answer.missing
        and isinstance((yield from try_stat(target.backup)), Attributes)
    ):
        yield from remove_backup(target, unique_backup)
        (answer,) = yield from request_all([Rename(target.native, target.backup.native)])
    if not isinstance(answer, StatusError):
        return True
    if answer.missing:
        return False
    raise answer
