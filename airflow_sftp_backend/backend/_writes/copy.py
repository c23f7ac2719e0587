"""Moves and copies of files.

A move is a rename. If no rename can make it (two file systems), it is a copy that arrives as an atomic write does, then
a delete.
"""

from __future__ import annotations

import tempfile
from typing import Final

from airflow_sftp_backend.backend._files.links import lstat_all, renames_links
from airflow_sftp_backend.backend._files.operations import (
    already_exists,
    close_quietly,
    fall_back_to_stat,
    is_missing,
    make_folders,
    open_for_reading,
    parent_is_missing,
    remove_quietly,
    with_file_type,
)
from airflow_sftp_backend.backend._files.pipelining import PipelinedReader, PipelinedWriter, UploadSource
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
from .write_target import OpenTempFile, ResumeState, WriteTarget, open_temp

_COPY_CHUNK: Final = 64 << 20  # bytes a server copies per request: it answers only when it is done
_CopyResult = tuple[Attributes | StatusError, int | None]
"""What the server says of the source, and its time (seconds since 1970) after the copy, where it tells."""


def move(scheduler: SFTPScheduler, source: RemotePath, write_target: WriteTarget) -> Operation[int | None]:
    """Moves a file, or a link as a link: two round trips. Raises NotFound, AlreadyExists, InvalidPath for folders.

    The server's time (seconds since 1970) where the file was copied, which may have been tried before; else None.
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
        raise InvalidPath("cannot move: it is a link, and the server would move what it leads to", path=source.key)
    yield from _check_target(scheduler, write_target, existing, has_backup=has_backup)
    if source_has_backup:  # else it would get the name that the source leaves
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
        yield from make_folders(target.parent)  # a file in the way is the commonest reason, and this names it
        return (yield from _move_by_copy(scheduler, source, write_target))


def _check_target(
    scheduler: SFTPScheduler, write_target: WriteTarget, existing: Attributes | StatusError, *, has_backup: bool
) -> Operation[None]:
    target = write_target.path
    if isinstance(existing, Attributes) and existing.is_folder:
        raise InvalidPath("cannot move: a folder has this name", path=target.key)
    if write_target.overwrite:
        return
    if isinstance(existing, Attributes) or (has_backup and (yield from restore(scheduler, target))):
        raise already_exists(target)


def _check_source(source: RemotePath, attributes: Attributes | StatusError, action: str) -> Operation[None]:
    if isinstance(attributes, StatusError):
        if (yield from is_missing(source, attributes)):
            raise NotFound(f"{action}: no such file", path=source.key)
        raise from_status(attributes, action, source.key)
    if attributes.is_folder:
        raise InvalidPath(f"{action}: it is a folder, not a file", path=source.key)


def _move_by_copy(scheduler: SFTPScheduler, source: RemotePath, write_target: WriteTarget) -> Operation[int | None]:
    """The last rung: two file systems, or a server without a rename that serves."""
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
    """Copies on the server where it has ``copy-data``, else through this process, and lands the copy (``verify`` is
    "size"). The server's time (seconds since 1970), where it tells.

    Where the server lets only one file be open at once, the content waits in a temporary file of this machine.

    With ``resume_state`` of a try that lost its connection it starts over, in a new temporary file.

    Raises TransferCorrupted if the source changes meanwhile.
    """
    resume_state = ResumeState() if resume_state is None else resume_state
    if resume_state.started:
        previous_target = resume_state.with_current_temp(write_target)
        yield from remove_quietly(previous_target.temp)
        restart(previous_target, resume_state, None)
    resume_state.started, resume_state.resumable, resume_state.temp_file = True, False, None
    current_target = resume_state.with_current_temp(write_target)
    try:
        return (
            yield from with_backup_restored(
                scheduler, source, lambda: _copy(scheduler, source, current_target, resume_state)
            )
        )[1]
    except BaseException:
        resume_state.resumable = scheduler.broken is not None and not resume_state.renaming
        raise


def _copy(
    scheduler: SFTPScheduler, source: RemotePath, write_target: WriteTarget, resume_state: ResumeState
) -> Operation[_CopyResult]:
    """Copies; also what the server says of the source."""
    if scheduler.handles.limit == 1:
        return (yield from _copy_via_local_file(scheduler, source, write_target, resume_state))
    handle = yield from open_for_reading(source)
    try:
        source_attributes = yield from _source_attributes(handle, source)
        if source == write_target.path:
            return source_attributes, None
        try:
            temp_file = yield from open_temp(write_target)
        except SFTPBackendError as error:
            if not _may_exceed_open_file_limit(scheduler, error):
                raise
            temp_file = None
        resume_state.temp_file = temp_file
        if temp_file is not None:
            return source_attributes, (
                yield from _copy_to(scheduler, (handle, source), source_attributes, write_target, temp_file)
            )
    finally:
        yield from close_quietly(handle)
    # What is refused now, with the source closed, is refused for another reason.
    temp_file = yield from open_temp(write_target)
    yield from remove_quietly(write_target.temp, temp_file.open_handle)
    scheduler.handles.lower_limit(1)
    return (yield from _copy_via_local_file(scheduler, source, write_target, resume_state))


def _may_exceed_open_file_limit(scheduler: SFTPScheduler, error: SFTPBackendError) -> bool:
    """True if the target may have been refused because the source is open."""
    has_other_cause = isinstance(
        error, BackendUnavailable | AlreadyExists | InvalidPath | NotFound | CapabilityNotSupported
    )
    return not has_other_cause and not scheduler.traits.opens_many_files


def _source_attributes(handle: bytes, source: RemotePath) -> Operation[Attributes | StatusError]:
    (attributes,) = yield from request_all([FStat(handle)])
    if isinstance(attributes, Attributes) and attributes.is_folder:
        raise InvalidPath("cannot copy: it is a folder, not a file", path=source.key)
    return attributes


def _copy_to(
    scheduler: SFTPScheduler,
    opened_source: tuple[bytes, RemotePath],
    source_attributes: Attributes | StatusError,
    write_target: WriteTarget,
    temp_file: OpenTempFile,
) -> Operation[int | None]:
    """Copy from the open source to the open temporary file, and commit it."""
    handle, source = opened_source
    size = None if isinstance(source_attributes, StatusError) else source_attributes.size
    committed = False
    try:
        limits = yield from scheduler.limits()
        writer = PipelinedWriter(
            StripedFile(scheduler, write_target.temp, temp_file.handle, size=None, channels=1), limits.write
        )
        if size and scheduler.supports(CopyData):
            yield from _copy_on_server(handle, size, writer)
        else:
            reader = PipelinedReader(scheduler, handle, limits.read, source.key)
            while data := (yield from reader.read_next()):
                yield from writer.write(data)
        (current,) = yield from request_all([FStat(handle)])
        _check_unchanged(source, source_attributes, current, "the source changed while it was copied")
        mtime = yield from commit(scheduler, write_target, temp_file, writer, None)
        committed = True
        return mtime
    except StatusError as refused:
        raise from_status(refused, "cannot copy", source.key) from None
    finally:
        if not committed:
            yield from remove_quietly(write_target.temp, temp_file.open_handle)


def _copy_via_local_file(
    scheduler: SFTPScheduler, source: RemotePath, write_target: WriteTarget, resume_state: ResumeState
) -> Operation[_CopyResult]:
    """Copy with one file open at a time: first to a temporary file of this machine, then to the target."""
    with tempfile.TemporaryFile() as local:
        handle = yield from open_for_reading(source)
        try:
            source_attributes = yield from _source_attributes(handle, source)
            reader = PipelinedReader(scheduler, handle, (yield from scheduler.limits()).read, source.key)
            while data := (yield from reader.read_next()):
                local.write(data)
            (current,) = yield from request_all([FStat(handle)])
            _check_unchanged(source, source_attributes, current, "the source changed while it was copied")
        except StatusError as refused:
            raise from_status(refused, "cannot copy", source.key) from None
        finally:
            yield from close_quietly(handle)
        local.seek(0)
        write_state = ResumeState()
        try:
            return source_attributes, (
                yield from write_atomic(scheduler, write_target, UploadSource(local), None, write_state)
            )
        finally:
            resume_state.temp_file = write_state.temp_file


def _check_unchanged(
    source: RemotePath, before: Attributes | StatusError, after: Attributes | StatusError, problem: str
) -> None:
    if isinstance(before, Attributes) and isinstance(after, Attributes):
        then, today = (before.size, before.mtime), (after.size, after.mtime)
        if then != today:
            raise TransferCorrupted(f"{problem}; wait until it is stable", path=source.key)


def _copy_on_server(handle: bytes, size: int, writer: PipelinedWriter) -> Operation[None]:
    """Piece by piece, so that the server is not silent for longer than one piece takes."""
    for start in range(0, size, _COPY_CHUNK):
        last = start + _COPY_CHUNK >= size
        # 0 means to the end of the file: the size that the server says may be too small
        yield from request(CopyData(handle, start, 0 if last else _COPY_CHUNK, writer.handle, start))
        writer.offset = min(start + _COPY_CHUNK, size)
