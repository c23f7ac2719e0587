"""Back up a file during its replacement by two plain renames.

On a server without an atomic rename, the target is renamed to its backup name, then the new file to the target's name.
If the process dies in between, the target is missing, and its old content is complete under the backup name. A target
has only a single backup name, so a later call finds the backup without a listing:

* A call that finds the target missing (read, download, copy, move, delete, get_file_info) restores the backup and
  continues.
* A call that must not overwrite restores the backup and raises AlreadyExists.
* A call that has replaced the target removes the backup.
* A call that deletes or moves the target removes the backup first, so no later call restores the backup.

Removal of a backup takes three steps. The backup is renamed to a unique name, and the target is checked. If the target
exists, the backup is removed; otherwise the backup is restored. So a backup created meanwhile by another writer, with a
missing target, is never removed.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import TypeVar

from airflow_sftp_backend.backend._files import deletion
from airflow_sftp_backend.backend._files.attributes import try_stat
from airflow_sftp_backend.backend._files.listing import is_missing
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.channel import Pending
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import LStat, PosixRename, Remove, Rename
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, reply, request_all, send
from airflow_sftp_backend.backend.errors import BackendUnavailable, NotFound, StatusError

T = TypeVar("T")
logger = logging.getLogger(__name__)


def may_have_backups(scheduler: SFTPScheduler) -> bool:
    """Return whether files on a server may be replaced by two renames.

    :param scheduler: the connection
    :returns: False if the server offers posix-rename and is known to replace files by it
    """
    return not (scheduler.traits.posix_rename_replaces and scheduler.supports(PosixRename))


def restore(scheduler: SFTPScheduler, target: RemotePath) -> Operation[bool]:
    """Rename the backup of a missing file to the file's name.

    One round trip.

    :param scheduler: the connection
    :param target: the file
    :returns: True if the file was restored
    """
    if not may_have_backups(scheduler):
        return False
    (answer,) = yield from request_all([Rename(target.backup.native, target.native)])
    if isinstance(answer, StatusError):
        return False
    logger.warning("%r: restored the old content after an interrupted replacement", target.key)
    return True


def with_backup_restored(
    scheduler: SFTPScheduler, path: RemotePath, operation: Callable[[], Operation[T]]
) -> Operation[T]:
    """Run an operation on a file that may have a backup.

    If the file is missing and the backup can be restored, the operation runs again.

    :param scheduler: the connection
    :param path: the file of the operation
    :param operation: creates the operation
    :returns: the result of the operation
    :raises SFTPBackendError: as the operation
    """
    return _restoring(scheduler, path, operation) if may_have_backups(scheduler) else operation()


def _restoring(scheduler: SFTPScheduler, path: RemotePath, operation: Callable[[], Operation[T]]) -> Operation[T]:
    """Run an operation as described by `with_backup_restored`."""
    try:
        return (yield from operation())
    except NotFound as missing:
        if missing.path != path.key or not (yield from restore(scheduler, path)):
            raise
    return (yield from operation())


def delete_with_backup(scheduler: SFTPScheduler, path: RemotePath, *, missing_ok: bool) -> Operation[None]:
    """Delete a file and its backup.

    A backup that stays would restore the file. Without a backup, no additional round trips.

    :param scheduler: the connection
    :param path: the file
    :param missing_ok: whether to ignore a missing file
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
    """Remove a backup if the server has the backup.

    :param backup_reply: the reply to LSTAT of the backup
    :param path: the file; restored from the backup if missing
    """
    try:
        yield from reply(backup_reply)
    except StatusError:
        return
    yield from remove_backup(path)


def remove_backup(target: RemotePath, unique_backup: RemotePath | None = None) -> Operation[None]:
    """Remove the backup of a file, or restore the missing file.

    Three round trips.

    :param target: the file
    :param unique_backup: a unique backup name of the file
    """
    unique_backup = unique_backup or target.unique_backup(secrets.token_hex(6))
    (answer,) = yield from request_all([Rename(target.backup.native, unique_backup.native)])
    if not isinstance(answer, StatusError):  # otherwise another call has restored or removed the backup
        yield from remove_or_restore_backup(target, unique_backup)


def remove_backup_quietly(target: RemotePath, unique_backup: RemotePath) -> Operation[None]:
    """Remove the backup of a replaced file.

    :param target: the file
    :param unique_backup: a unique backup name of the file
    """
    # A lost connection does not fail the write: the replacement is complete, and the next write removes the backup.
    try:
        yield from remove_backup(target, unique_backup)
    except BackendUnavailable:
        logger.debug("the connection ended before the backup of %r could be removed", target.key)


def remove_or_restore_backup(target: RemotePath, unique_backup: RemotePath) -> Operation[None]:
    """Remove a backup, or restore a missing file from it.

    The name of the backup is unique.

    :param target: the file
    :param unique_backup: the path of its backup
    """
    existing = yield from try_stat(target)
    if isinstance(existing, Attributes):
        (answer,) = yield from request_all([Remove(unique_backup.native)])
        if isinstance(answer, StatusError) and not answer.missing:
            logger.warning("the backup %r could not be removed: %s", unique_backup.native, answer.text or answer.code)
    elif (yield from is_missing(target, existing)):
        yield from request_all([Rename(unique_backup.native, target.native)])


def move_to_backup(target: RemotePath, unique_backup: RemotePath) -> Operation[bool]:
    """Rename a file to its backup name.

    An existing backup is removed first.

    :param target: the file
    :param unique_backup: a unique backup name of the file
    :returns: False if the file is missing
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
