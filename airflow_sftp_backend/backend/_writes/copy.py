"""Move and copy files on the server.

A move is a rename. If the server cannot rename the file (to another file system), the file is copied atomically, then
deleted.
"""

from __future__ import annotations

import tempfile
from typing import Final

from airflow_sftp_backend.backend._files.attributes import (
    close_quietly,
    fall_back_to_stat,
    parent_is_missing,
    with_file_type,
)
from airflow_sftp_backend.backend._files.links import lstat_all, renames_links
from airflow_sftp_backend.backend._files.listing import is_missing
from airflow_sftp_backend.backend._files.pipelining import PipelinedReader, PipelinedWriter, UploadSource
from airflow_sftp_backend.backend._files.reading import open_for_reading
from airflow_sftp_backend.backend._files.writing import already_exists, make_folders, remove_quietly
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import CopyData, FStat, Remove, Stat
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, request, request_all
from airflow_sftp_backend.backend._protocol.striping import StripedFile
from airflow_sftp_backend.backend.errors import (
    AlreadyExists,
    BackendUnavailable,
    CapabilityNotSupported,
    InvalidPath,
    NotFound,
    SFTPBackendError,
    StatusCode,
    StatusError,
    TransferCorrupted,
    from_status,
)

from .atomic_write import commit, write_atomic
from .backups import may_have_backups, remove_backup, remove_backup_quietly, restore, with_backup_restored
from .rename import rename
from .resume import restart
from .write_state import ResumeState, WriteState
from .write_target import WriteTarget, open_temp

_COPY_CHUNK: Final = 64 << 20  # bytes per copy request: the server is silent until it has copied them
_CopyResult = tuple[Attributes | StatusError, int | None]
"""Attributes of the source or their refusal, and the time of the copy in seconds since 1970 (None if unknown)."""


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
    yield from _check_source(source, source_attributes, "cannot move")
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
            raise from_status(refused, "cannot move", source.key) from None
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
        raise InvalidPath("cannot move: the target is a directory", path=target.key)
    if write_target.overwrite:
        return
    if isinstance(existing, Attributes) or (has_backup and (yield from restore(scheduler, target))):
        raise already_exists(target)


def _check_source(source: RemotePath, attributes: Attributes | StatusError, action: str) -> Operation[None]:
    """Check that the source exists and is not a directory.

    Raises NotFound, InvalidPath.
    """
    if isinstance(attributes, StatusError):
        if (yield from is_missing(source, attributes)):
            raise NotFound(f"{action}: no such file", path=source.key)
        raise from_status(attributes, action, source.key)
    if attributes.is_folder:
        raise InvalidPath(f"{action}: the path is a directory, not a file", path=source.key)


def _move_by_copy(scheduler: SFTPScheduler, source: RemotePath, write_target: WriteTarget) -> Operation[int | None]:
    """Copy the file and delete the source."""
    # Needed if the server cannot rename across file systems
    copied_attributes, mtime = yield from _copy(scheduler, source, write_target, ResumeState())
    (current,) = yield from request_all([Stat(source.native)])
    _check_unchanged(
        source, copied_attributes, current, f"copied to {write_target.path.key!r}, but the source has changed since"
    )
    try:
        yield from request(Remove(source.native))
    except StatusError as refused:
        action = f"copied to {write_target.path.key!r}, but the source cannot be removed"
        raise from_status(refused, action, source.key) from None
    return mtime


def copy(
    scheduler: SFTPScheduler, source: RemotePath, write_target: WriteTarget, resume_state: ResumeState | None = None
) -> Operation[int | None]:
    """Copy a file on the server or through this process.

    The server copies if it supports ``copy-data``.

    The copy is written atomically and verified by size. If the server allows a single open file only, the content is
    stored in a local temporary file meanwhile. After a lost connection, the copy starts over in a new temporary file.

    :param scheduler: the connection
    :param source: the file
    :param write_target: the path of the copy
    :param resume_state: state of an earlier attempt that lost its connection
    :returns: the time of the copy on the server in seconds since 1970, or None if unknown
    :raises TransferCorrupted: if the source changes meanwhile
    """
    resume_state = ResumeState() if resume_state is None else resume_state
    if resume_state.state is not WriteState.NEW:
        previous_target = write_target.with_temp(resume_state.temp)
        yield from remove_quietly(previous_target.temp)
        restart(previous_target, resume_state, None)
    current_target = write_target.with_temp(resume_state.temp)
    try:
        return (
            yield from with_backup_restored(
                scheduler, source, lambda: _copy(scheduler, source, current_target, resume_state)
            )
        )[1]
    except BaseException as error:
        resume_state.transferred_bytes = 0  # nothing is resumed: a copy starts over
        resumable = scheduler.failure is not None and resume_state.state is not WriteState.RENAMING
        resume_state.end_attempt(error, resumable=resumable)
        raise


def _copy(
    scheduler: SFTPScheduler, source: RemotePath, write_target: WriteTarget, resume_state: ResumeState
) -> Operation[_CopyResult]:
    """Copy a file, and return the attributes of the source too."""
    resume_state.advance(WriteState.STARTED)
    if scheduler.handles.limit == 1:
        return (yield from _copy_via_local_file(scheduler, source, write_target, resume_state))
    handle = yield from open_for_reading(source)
    try:
        source_attributes = yield from _source_attributes(handle, source)
        if source == write_target.path:
            resume_state.advance(WriteState.ABANDONED)  # nothing to write
            return source_attributes, None
        try:
            yield from open_temp(write_target, resume_state)
        except SFTPBackendError as error:
            if not _may_exceed_open_file_limit(scheduler, error):
                raise
        else:
            return source_attributes, (
                yield from _copy_to(scheduler, (handle, source), source_attributes, write_target, resume_state)
            )
    finally:
        yield from close_quietly(handle)
    # A refusal with the source closed is not caused by the limit on open files.
    yield from open_temp(write_target, resume_state)
    yield from remove_quietly(write_target.temp, resume_state.open_handle)
    scheduler.handles.lower_limit(1)
    return (yield from _copy_via_local_file(scheduler, source, write_target, resume_state))


def _may_exceed_open_file_limit(scheduler: SFTPScheduler, error: SFTPBackendError) -> bool:
    """Return whether the open source may explain a refused target."""
    has_other_cause = isinstance(
        error, BackendUnavailable | AlreadyExists | InvalidPath | NotFound | CapabilityNotSupported
    )
    return not has_other_cause and not scheduler.traits.opens_many_files


def _source_attributes(handle: bytes, source: RemotePath) -> Operation[Attributes | StatusError]:
    """Return the attributes of the open source or the refusal.

    Raises InvalidPath for a directory.
    """
    (attributes,) = yield from request_all([FStat(handle)])
    if isinstance(attributes, Attributes) and attributes.is_folder:
        raise InvalidPath("cannot copy: the path is a directory, not a file", path=source.key)
    return attributes


def _copy_to(
    scheduler: SFTPScheduler,
    opened_source: tuple[bytes, RemotePath],
    source_attributes: Attributes | StatusError,
    write_target: WriteTarget,
    resume_state: ResumeState,
) -> Operation[int | None]:
    """Copy from source to temporary file, then commit the copy."""
    handle, source = opened_source
    size = None if isinstance(source_attributes, StatusError) else source_attributes.size
    try:
        limits = yield from scheduler.server_limits()
        writer = PipelinedWriter(
            StripedFile(scheduler, write_target.temp, resume_state.handle, size=None, channels=1), limits.write
        )
        if size and scheduler.supports(CopyData):
            yield from _copy_on_server(handle, size, writer)
        else:
            reader = PipelinedReader(scheduler, handle, limits.read, source.key)
            while data := (yield from reader.read_next()):
                yield from writer.write(data)
        (current,) = yield from request_all([FStat(handle)])
        _check_unchanged(source, source_attributes, current, "the source changed while it was copied")
        return (yield from commit(scheduler, write_target, resume_state, writer, None))
    except StatusError as refused:
        raise from_status(refused, "cannot copy", source.key) from None
    finally:
        if resume_state.state is not WriteState.DONE:
            yield from remove_quietly(write_target.temp, resume_state.open_handle)
            if scheduler.failure is None:
                resume_state.advance(WriteState.ABANDONED)


def _copy_via_local_file(
    scheduler: SFTPScheduler, source: RemotePath, write_target: WriteTarget, resume_state: ResumeState
) -> Operation[_CopyResult]:
    """Copy with a single open file at a time.

    The content goes through a local temporary file.
    """
    with tempfile.TemporaryFile() as local:
        handle = yield from open_for_reading(source)
        try:
            source_attributes = yield from _source_attributes(handle, source)
            reader = PipelinedReader(scheduler, handle, (yield from scheduler.server_limits()).read, source.key)
            while data := (yield from reader.read_next()):
                local.write(data)
            (current,) = yield from request_all([FStat(handle)])
            _check_unchanged(source, source_attributes, current, "the source changed while it was copied")
        except StatusError as refused:
            raise from_status(refused, "cannot copy", source.key) from None
        finally:
            yield from close_quietly(handle)
        local.seek(0)
        resume_state.advance(WriteState.NEW)  # no temporary file exists
        return source_attributes, (
            yield from write_atomic(scheduler, write_target, UploadSource(local), None, resume_state)
        )


def _check_unchanged(
    source: RemotePath, before: Attributes | StatusError, after: Attributes | StatusError, problem: str
) -> None:
    """Compare size and time of the source.

    Raises TransferCorrupted with the text ``problem``.
    """
    if isinstance(before, Attributes) and isinstance(after, Attributes):
        size_and_time, current = (before.size, before.mtime), (after.size, after.mtime)
        if size_and_time != current:
            raise TransferCorrupted(f"{problem}. Wait until the source is stable", path=source.key)


def _copy_on_server(handle: bytes, size: int, writer: PipelinedWriter) -> Operation[None]:
    """Copy in chunks, so that the server answers before `io_timeout`."""
    for start in range(0, size, _COPY_CHUNK):
        last = start + _COPY_CHUNK >= size
        # 0 copies to the end of the file: the stated size may be too small
        yield from request(CopyData(handle, start, 0 if last else _COPY_CHUNK, writer.handle, start))
        writer.offset = min(start + _COPY_CHUNK, size)
