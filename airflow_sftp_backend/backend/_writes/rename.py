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

from airflow_sftp_backend.backend._files.operations import is_a_folder, or_stat, see, taken
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

from .backups import clear_backup, may_have_backups, restore, set_aside
from .write_target import Landing

_ROUNDS: Final = 3  # of a replacement, where others replace or restore the same file at the same time


@dataclass(frozen=True, slots=True)
class Look:
    """What was asked about a target before it is written: its own attributes and those of its backup."""

    target: Pending[Attributes] | None
    backup: Pending[Attributes] | None


def look_at(scheduler: SFTPScheduler, landing: Landing) -> Operation[Look]:
    """Ask whether the name is taken, and whether an interrupted replacement has left a backup. Does not wait.

    :param wire: the connection
    :param landing: the target
    :returns: for `check_free`
    """
    target = None if landing.overwrite else (yield from send(LStat(landing.target.native)))
    backup = (yield from send(LStat(landing.target.backup.native))) if may_have_backups(scheduler) else None
    return Look(target, backup)


def check_free(scheduler: SFTPScheduler, landing: Landing, look: Look) -> Operation[bool]:
    """Wait for the answers, and restore a backup that must not be overwritten.

    :param wire: the connection
    :param landing: the target
    :param look: what `look_at` returned
    :returns: True if there is a backup, to be removed once the target has new content
    :raises AlreadyExists: if the name is taken and ``landing.overwrite`` is False
    """
    is_taken = look.target is not None and (yield from _is_shown(look.target, landing.target))
    has_backup = look.backup is not None and (yield from _is_shown(look.backup))
    if is_taken or (has_backup and not landing.overwrite and (yield from restore(scheduler, landing.target))):
        raise taken(landing.target)
    return has_backup


def _is_shown(asked: Pending[Attributes], place: RemotePath | None = None) -> Operation[bool]:
    """True if LSTAT, or else STAT of ``place``, says that something is there."""
    try:
        yield from reply(asked)
    except StatusError as refused:
        return place is not None and isinstance((yield from or_stat(place, refused)), Attributes)
    return True


def rename(scheduler: SFTPScheduler, source: RemotePath, landing: Landing) -> Operation[None]:
    """The best rename the server has: one round trip where it has ``posix-rename`` or the target is free.

    Raises AlreadyExists, InvalidPath for a folder under the target's name, Refused if there is no way.
    """
    if (
        landing.overwrite
        and scheduler.supports(PosixRename)
        and (yield from _replaced_in_one_step(scheduler, source, landing))
    ):
        return
    target = landing.target
    try:
        yield from request(Rename(source.native, target.native))
    except StatusError as refused:
        found = yield from see(target)
        if isinstance(found, StatusError):
            if refused.missing or not may_have_backups(scheduler):
                raise refused from None
            yield from request(Rename(source.native, target.native))  # another writer may just have set it aside
            return
        if found.is_folder:
            raise is_a_folder(target) from None
        if not landing.overwrite:
            raise taken(target) from None
        yield from _replace(source, landing)


def _replaced_in_one_step(scheduler: SFTPScheduler, source: RemotePath, landing: Landing) -> Operation[bool]:
    """False where posix-rename is refused and two renames may do. Raises Refused, InvalidPath for a folder."""
    try:
        yield from request(PosixRename(source.native, landing.target.native))
        return True
    except StatusError as refused:
        if refused.missing:
            raise
        if may_have_backups(scheduler):
            return False
        # what this rename cannot do, two renames cannot do either
        found = yield from see(landing.target)
        raise is_a_folder(landing.target) if _is_folder(found) else refused from None


def _is_folder(found: Attributes | StatusError) -> bool:
    return isinstance(found, Attributes) and found.is_folder


def _replace(source: RemotePath, landing: Landing) -> Operation[None]:
    """Replaces the target on a server whose renames never replace: the old file steps aside, and back on failure."""
    target = landing.target
    for last in (*[False] * (_ROUNDS - 1), True):
        aside = yield from set_aside(target, landing.aside)
        moved = False
        try:
            yield from request(Rename(source.native, target.native))
            moved = True
        except StatusError as refused:
            may_be_gone = refused.missing or not (yield from server_traits()).reports_no_such_file
            went_along = aside and may_be_gone and isinstance((yield from see(source)), StatusError)
            has_backup, aside = aside, False
            is_back = has_backup and (yield from _put_back(target))
            if went_along and is_back and isinstance((yield from see(source)), Attributes):
                # A copy in place of the rename would replace the file by its copy, and then remove that.
                raise InvalidPath(f"cannot move: it is the same file as {target.key!r}", path=source.key) from None
            if is_back or last:
                raise
        finally:
            if not moved and aside:
                yield from _put_back(target)
        if moved:
            if aside:
                yield from clear_backup(target, landing.aside)
            return


def _put_back(target: RemotePath) -> Operation[bool]:
    """Gives a file its name back; False if another has restored it, or has given the name new content."""
    where = f"its old content is kept as {target.backup.native!r}"
    try:
        (answer,) = yield from request_all([Rename(target.backup.native, target.native)])
    except SFTPBackendError as lost:
        raise type(lost)(f"{lost.message}; {where}", path=target.key) from None
    if not isinstance(answer, StatusError):
        return True
    if isinstance((yield from see(target)), Attributes):
        return False
    raise from_status(answer, f"cannot put the replaced file back, {where}", target.key)
