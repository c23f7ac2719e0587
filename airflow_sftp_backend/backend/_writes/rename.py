"""Renames: replace a target in one step where the server can, else by way of its backup name.

``posix-rename@openssh.com`` replaces in one step. Plain rename needs the old target set aside first, and the old target
is put back if the second rename fails. At no moment is the old content without a name; see `backups`.

``overwrite=False`` uses plain rename, which refuses an occupied name on OpenSSH and most servers (filexfer-02 section
6.5), after a look sent along with an earlier request. On a server whose plain rename replaces, two writers can race
between look and rename.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from airflow_sftp_backend.backend._files.operations import (
    already_exists,
    fall_back_to_stat,
    is_directory_error,
    try_stat,
)
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
from airflow_sftp_backend.backend.errors import InvalidPath, SFTPBackendError, StatusError, from_status

from .backups import may_have_backups, move_to_backup, remove_backup_quietly, restore
from .write_target import WriteTarget

_MAX_REPLACE_ATTEMPTS: Final = 3  # of a replacement, where others replace or restore the same file at the same time


@dataclass(frozen=True, slots=True)
class TargetChecks:
    """What was asked about a target before it is written: its own attributes and those of its backup."""

    target: Pending[Attributes] | None
    backup: Pending[Attributes] | None


def send_target_checks(scheduler: SFTPScheduler, write_target: WriteTarget) -> Operation[TargetChecks]:
    """Ask whether the name is taken, and whether an interrupted replacement has left a backup. Does not wait.

    :param scheduler: the connection
    :param write_target: the target
    :returns: for `await_target_checks`
    """
    target = None if write_target.overwrite else (yield from send(LStat(write_target.path.native)))
    backup = (yield from send(LStat(write_target.path.backup.native))) if may_have_backups(scheduler) else None
    return TargetChecks(target, backup)


def await_target_checks(scheduler: SFTPScheduler, write_target: WriteTarget, checks: TargetChecks) -> Operation[bool]:
    """Wait for the answers, and restore a backup that must not be overwritten.

    :param scheduler: the connection
    :param write_target: the target
    :param checks: what `send_target_checks` returned
    :returns: True if there is a backup, to be removed once the target has new content
    :raises AlreadyExists: if the name is taken and ``write_target.overwrite`` is False
    """
    exists = checks.target is not None and (yield from _exists(checks.target, write_target.path))
    has_backup = checks.backup is not None and (yield from _exists(checks.backup))
    if exists or (has_backup and not write_target.overwrite and (yield from restore(scheduler, write_target.path))):
        raise already_exists(write_target.path)
    return has_backup


def _exists(stat_reply: Pending[Attributes], path: RemotePath | None = None) -> Operation[bool]:
    """True if LSTAT, or else STAT of ``place``, says that something is there."""
    try:
        yield from reply(stat_reply)
    except StatusError as refused:
        return path is not None and isinstance((yield from fall_back_to_stat(path, refused)), Attributes)
    return True


def rename(scheduler: SFTPScheduler, source: RemotePath, write_target: WriteTarget) -> Operation[None]:
    """The best rename the server has: one round trip where it has ``posix-rename`` or the target is free.

    Raises AlreadyExists, InvalidPath for a folder under the target's name, StatusError if there is no way.
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
            yield from request(Rename(source.native, target.native))  # another writer may just have set it aside
            return
        if existing.is_folder:
            raise is_directory_error(target) from None
        if not write_target.overwrite:
            raise already_exists(target) from None
        yield from _replace_via_backup(source, write_target)


def _try_posix_rename(scheduler: SFTPScheduler, source: RemotePath, write_target: WriteTarget) -> Operation[bool]:
    """False where posix-rename is refused and two renames may do. Raises StatusError, InvalidPath for a folder."""
    try:
        yield from request(PosixRename(source.native, write_target.path.native))
        return True
    except StatusError as refused:
        if refused.missing:
            raise
        if may_have_backups(scheduler):
            return False
        # what this rename cannot do, two renames cannot do either
        existing = yield from try_stat(write_target.path)
        raise is_directory_error(write_target.path) if _is_folder(existing) else refused from None


def _is_folder(answer: Attributes | StatusError) -> bool:
    return isinstance(answer, Attributes) and answer.is_folder


def _replace_via_backup(source: RemotePath, write_target: WriteTarget) -> Operation[None]:
    """Replaces the target on a server whose renames never replace: the old file steps aside, and back on failure."""
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
                # A copy in place of the rename would replace the file by its copy, and then remove that.
                raise InvalidPath(f"cannot move: it is the same file as {target.key!r}", path=source.key) from None
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
    """Gives a file its name back; False if another has restored it, or has given the name new content."""
    location = f"its old content is kept as {target.backup.native!r}"
    try:
        (answer,) = yield from request_all([Rename(target.backup.native, target.native)])
    except SFTPBackendError as error:
        raise type(error)(f"{error.message}; {location}", path=target.key) from None
    if not isinstance(answer, StatusError):
        return True
    if isinstance((yield from try_stat(target)), Attributes):
        return False
    raise from_status(answer, f"cannot put the replaced file back, {location}", target.key)
