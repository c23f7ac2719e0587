"""Rename files to their targets.

The rename is atomic if the server can, otherwise via the backup name.

``posix-rename@openssh.com`` replaces a file in one step. With plain renames, the old target is first renamed to its
backup, and restored if the second rename fails. The old content always has a name; see `backups`.

``overwrite=False`` uses plain rename after a check sent along with an earlier request. Plain rename refuses an existing
target on OpenSSH and most servers (filexfer-02 section 6.5). If the server's plain rename replaces files, two writers
can race between check and rename.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from airflow_sftp_backend.backend._files.attributes import fall_back_to_stat, try_stat
from airflow_sftp_backend.backend._files.writing import already_exists, is_directory_error
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.channel import Pending
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import LStat, PosixRename, Rename
from airflow_sftp_backend.backend._protocol.scheduler import (
    Operation,
    SFTPScheduler,
    reply,
    request,
    request_all,
    send,
    server_traits,
)
from airflow_sftp_backend.backend.errors import InvalidPath, SFTPBackendError, StatusCode, StatusError, from_status

from .backups import may_have_backups, move_to_backup, remove_backup_quietly, restore
from .write_target import WriteTarget

_MAX_REPLACE_ATTEMPTS: Final = 3  # while others replace or restore the same file at the same time


@dataclass(frozen=True, slots=True)
class TargetChecks:
    """Pending attributes of a target and its backup, requested before the rename."""

    target: Pending[Attributes] | None
    backup: Pending[Attributes] | None


def send_target_checks(scheduler: SFTPScheduler, write_target: WriteTarget) -> Operation[TargetChecks]:
    """Request the attributes of the target and of its backup.

    An interrupted replacement leaves a backup. Does not wait.

    :param scheduler: the connection
    :param write_target: the target
    :returns: the requests, for `await_target_checks`
    """
    target = None if write_target.overwrite else (yield from send(LStat(write_target.path.native)))
    backup = (yield from send(LStat(write_target.path.backup.native))) if may_have_backups(scheduler) else None
    return TargetChecks(target, backup)


def await_target_checks(scheduler: SFTPScheduler, write_target: WriteTarget, checks: TargetChecks) -> Operation[bool]:
    """Wait for the checks, and restore a needed backup.

    :param scheduler: the connection
    :param write_target: the target
    :param checks: the result of `send_target_checks`
    :returns: True if a backup exists, to be removed after the replacement
    :raises AlreadyExists: if the target exists and ``write_target.overwrite`` is False
    """
    # A backup that is the only copy of its file must not be overwritten.
    exists = checks.target is not None and (yield from _exists(checks.target, write_target.path))
    has_backup = checks.backup is not None and (yield from _exists(checks.backup))
    if exists or (has_backup and not write_target.overwrite and (yield from restore(scheduler, write_target.path))):
        raise already_exists(write_target.path)
    return has_backup


def _exists(stat_reply: Pending[Attributes], path: RemotePath | None = None) -> Operation[bool]:
    """Return whether LSTAT, or else STAT of ``path``, finds a file."""
    try:
        yield from reply(stat_reply)
    except StatusError as refused:
        return path is not None and isinstance((yield from fall_back_to_stat(path, refused)), Attributes)
    return True


def rename(scheduler: SFTPScheduler, source: RemotePath, write_target: WriteTarget) -> Operation[None]:
    """Rename a file by the best method of the server.

    One round trip with ``posix-rename`` or a missing target.

    :param scheduler: the connection
    :param source: the file
    :param write_target: the new path
    :raises AlreadyExists: if the target exists and must not be replaced
    :raises InvalidPath: if the target is a directory
    :raises StatusError: if the server refuses all methods
    """
    if (
        write_target.overwrite
        and scheduler.supports(PosixRename)
        and (yield from _try_posix_rename(scheduler, source, write_target))
    ):
        return
    target = write_target.path
    try:
        yield from request(Rename(source.native, target.native))
    except StatusError as refused:
        existing = yield from try_stat(target)
        if isinstance(existing, StatusError):
            if refused.missing or not may_have_backups(scheduler):
                raise refused from None
            # another writer may have renamed the target to its backup just now
            yield from request(Rename(source.native, target.native))
            return
        if existing.is_folder:
            raise is_directory_error(target) from None
        if not write_target.overwrite:
            raise already_exists(target) from None
        yield from _replace_via_backup(source, write_target)


def refused_rename_error(
    refused: StatusError, write_target: WriteTarget, action: str, path: RemotePath | None = None
) -> SFTPBackendError:
    """Create the error for a refused rename.

    :param refused: the server's status
    :param write_target: the new path
    :param action: the failed operation, such as ``"cannot move"``
    :param path: the file of the operation; None for the target
    :returns: the error to raise
    """
    error = from_status(refused, action, (path or write_target.path).key)
    folder = write_target.temp_naming.folder
    if folder is None or refused.missing or refused.code == StatusCode.PERMISSION_DENIED:
        return error
    hint = f"temp_folder {folder.key!r} must be on the file system of the target, so that the file can be renamed"
    return type(error)(f"{error.message}; {hint}", path=error.path)


def _try_posix_rename(scheduler: SFTPScheduler, source: RemotePath, write_target: WriteTarget) -> Operation[bool]:
    """Return False if two renames may succeed in place of posix-rename.

    Raises StatusError, InvalidPath.
    """
    try:
        yield from request(PosixRename(source.native, write_target.path.native))
        return True
    except StatusError as refused:
        if refused.missing:
            raise
        if may_have_backups(scheduler):
            return False
        # a server whose posix-rename replaces files refuses two plain renames for the same reason
        existing = yield from try_stat(write_target.path)
        raise is_directory_error(write_target.path) if _is_folder(existing) else refused from None


def _is_folder(answer: Attributes | StatusError) -> bool:
    """Return whether a reply is that of a directory."""
    return isinstance(answer, Attributes) and answer.is_folder


def _replace_via_backup(source: RemotePath, write_target: WriteTarget) -> Operation[None]:
    """Replace the target by two renames; restore it on failure."""
    # Needed on a server whose renames never replace
    target = write_target.path
    for is_last_attempt in (*[False] * (_MAX_REPLACE_ATTEMPTS - 1), True):
        is_backed_up = yield from move_to_backup(target, write_target.unique_backup)
        moved = False
        try:
            yield from request(Rename(source.native, target.native))
            moved = True
        except StatusError as refused:
            may_be_gone = refused.missing or not (yield from server_traits()).reports_no_such_file
            source_moved_too = is_backed_up and may_be_gone and isinstance((yield from try_stat(source)), StatusError)
            has_backup, is_backed_up = is_backed_up, False
            is_back = has_backup and (yield from _restore_backup(target))
            if source_moved_too and is_back and isinstance((yield from try_stat(source)), Attributes):
                # A copy in place of the rename would replace the file by its copy, then delete the copy as the source.
                raise InvalidPath(
                    f"cannot move: source and target are the same file, {target.key!r}", path=source.key
                ) from None
            if is_back or is_last_attempt:
                raise
        finally:
            if not moved and is_backed_up:
                yield from _restore_backup(target)
        if moved:
            if is_backed_up:
                yield from remove_backup_quietly(target, write_target.unique_backup)
            return


def _restore_backup(target: RemotePath) -> Operation[bool]:
    """Rename the backup to its target.

    The result is False if the target exists again.
    """
    location = f"the old content is kept as {target.backup.native!r}"
    try:
        (answer,) = yield from request_all([Rename(target.backup.native, target.native)])
    except SFTPBackendError as error:
        raise type(error)(f"{error.message}; {location}", path=target.key) from None
    if not isinstance(answer, StatusError):
        return True
    if isinstance((yield from try_stat(target)), Attributes):
        return False
    raise from_status(answer, f"cannot restore the replaced file, {location}", target.key)
