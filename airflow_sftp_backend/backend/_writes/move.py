"""Move files on the server.

A move is a rename. If the server cannot rename the file (to another file system), the file is copied atomically, then
deleted.
"""

from __future__ import annotations

from airflow_sftp_backend.backend._files.attributes import fall_back_to_stat, parent_is_missing, with_file_type
from airflow_sftp_backend.backend._files.links import lstat_all, renames_links
from airflow_sftp_backend.backend._files.listing import is_missing
from airflow_sftp_backend.backend._files.writing import already_exists, make_folders
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import Remove, Stat
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, request, request_all
from airflow_sftp_backend.backend.errors import (
    InvalidPath,
    NotFound,
    StatusCode,
    StatusError,
    from_status,
)

from .backups import may_have_backups, remove_backup, remove_backup_quietly, restore, with_backup_restored
from .copy import check_unchanged, copy_with_attributes
from .rename import refused_rename_error, rename
from .write_state import ResumeState
from .write_target import WriteTarget


def move(scheduler: SFTPScheduler, source: RemotePath, write_target: WriteTarget) -> Operation[int | None]:
    """Move a file, or a link itself. Two round trips.

    :param scheduler: the connection
    :param source: the file or link
    :param write_target: the new path
    :returns: for a copied file, its time on the server in seconds since 1970; otherwise None
    :raises NotFound: if the source does not exist
    :raises AlreadyExists: if the target exists and must not be replaced
    :raises InvalidPath: for a directory
    """
    return (yield from with_backup_restored(scheduler, source, lambda: _move(scheduler, source, write_target)))


def _move(scheduler: SFTPScheduler, source: RemotePath, write_target: WriteTarget) -> Operation[int | None]:
    target = write_target.path
    paths = [source, target, *([source.backup, target.backup] if may_have_backups(scheduler) else [])]
    source_attributes, existing, *backups = yield from lstat_all(paths)
    source_has_backup, has_backup = [isinstance(answer, Attributes) for answer in backups] or (False, False)
    source_attributes = yield from fall_back_to_stat(source, source_attributes)
    existing = yield from fall_back_to_stat(target, existing)
    if isinstance(source_attributes, Attributes):
        source_attributes = yield from with_file_type(source, source_attributes)
    yield from _check_source(source, source_attributes)
    if source == target:
        return None
    if (
        isinstance(source_attributes, Attributes)
        and source_attributes.is_link
        and not (yield from renames_links(source))
    ):
        raise InvalidPath("cannot move: the path is a link, and the server would move its target", path=source.key)
    yield from _check_target(scheduler, write_target, existing, has_backup=has_backup)
    if source_has_backup:  # otherwise a later call would restore it at the source's path
        yield from remove_backup(source)
    try:
        try:
            yield from rename(scheduler, source, write_target)
        except StatusError as refused:
            if not write_target.create_parents or not (yield from parent_is_missing(target, refused)):
                raise
            yield from make_folders(target.parent)
            yield from rename(scheduler, source, write_target)
        if has_backup:
            yield from remove_backup_quietly(target, write_target.unique_backup)
        return None
    except StatusError as refused:
        if refused.missing or refused.code == StatusCode.PERMISSION_DENIED:
            raise refused_rename_error(refused, write_target, "cannot move", source) from None
        yield from make_folders(target.parent)  # raises InvalidPath if a parent is a file, the most common cause
        return (yield from _move_by_copy(scheduler, source, write_target))


def _check_target(
    scheduler: SFTPScheduler, write_target: WriteTarget, existing: Attributes | StatusError, *, has_backup: bool
) -> Operation[None]:
    """Check that the target may be created or replaced.

    Restores a backup that must not be overwritten.
    """
    target = write_target.path
    if isinstance(existing, Attributes) and existing.is_folder:
        raise InvalidPath("cannot move: the target is a directory", path=target.key, entry_type="directory")
    if write_target.overwrite:
        return
    if isinstance(existing, Attributes) or (has_backup and (yield from restore(scheduler, target))):
        raise already_exists(target)


def _check_source(source: RemotePath, attributes: Attributes | StatusError) -> Operation[None]:
    """Check that the source exists and is not a directory.

    Raises NotFound, InvalidPath.
    """
    if isinstance(attributes, StatusError):
        if (yield from is_missing(source, attributes)):
            raise NotFound("cannot move: no such file", path=source.key)
        raise from_status(attributes, "cannot move", source.key)
    if attributes.is_folder:
        raise InvalidPath("cannot move: the path is a directory, not a file", path=source.key, entry_type="directory")


def _move_by_copy(scheduler: SFTPScheduler, source: RemotePath, write_target: WriteTarget) -> Operation[int | None]:
    """Copy the file and delete the source."""
    # Needed if the server cannot rename across file systems
    copied_attributes, mtime = yield from copy_with_attributes(scheduler, source, write_target, ResumeState())
    (current,) = yield from request_all([Stat(source.native)])
    check_unchanged(
        source, copied_attributes, current, f"copied to {write_target.path.key!r}, but the source has changed since"
    )
    try:
        yield from request(Remove(source.native))
    except StatusError as refused:
        action = f"copied to {write_target.path.key!r}, but the source cannot be removed"
        raise from_status(refused, action, source.key) from None
    return mtime
