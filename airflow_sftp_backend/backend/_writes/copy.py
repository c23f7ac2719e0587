"""Copy files on the server, or through this process."""

from __future__ import annotations

import tempfile
from typing import Final

from airflow_sftp_backend.backend._files.attributes import close_quietly
from airflow_sftp_backend.backend._files.pipelining import PipelinedReader, PipelinedWriter, UploadSource
from airflow_sftp_backend.backend._files.reading import open_for_reading
from airflow_sftp_backend.backend._files.writing import remove_quietly
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import CopyData, FStat
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, request, request_all
from airflow_sftp_backend.backend._protocol.striping import StripedFile
from airflow_sftp_backend.backend.errors import (
    AlreadyExists,
    BackendUnavailable,
    CapabilityNotSupported,
    InvalidPath,
    NotFound,
    SFTPBackendError,
    StatusError,
    TransferCorrupted,
    from_status,
)

from .atomic_write import commit, write_atomic
from .backups import with_backup_restored
from .resume import restart
from .write_state import ResumeState, WriteState
from .write_target import WriteTarget, open_temp

_COPY_CHUNK: Final = 64 << 20  # bytes per copy request: the server is silent until it has copied them
_CopyResult = tuple[Attributes | StatusError, int | None]
"""Attributes of the source or their refusal, and the time of the copy in seconds since 1970 (None if unknown)."""


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
                scheduler, source, lambda: copy_with_attributes(scheduler, source, current_target, resume_state)
            )
        )[1]
    except BaseException as error:
        resume_state.transferred_bytes = 0  # nothing is resumed: a copy starts over
        resumable = scheduler.failure is not None and resume_state.state is not WriteState.RENAMING
        resume_state.end_attempt(error, resumable=resumable)
        raise


def copy_with_attributes(
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
    """Tell whether the target may be refused because the source is open."""
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
        raise InvalidPath("cannot copy: the path is a directory, not a file", path=source.key, entry_type="directory")
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
        check_unchanged(source, source_attributes, current, "the source changed while it was copied")
        return (
            yield from commit(scheduler, write_target, resume_state, writer, None, action="cannot copy", path=source)
        )
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
            check_unchanged(source, source_attributes, current, "the source changed while it was copied")
        except StatusError as refused:
            raise from_status(refused, "cannot copy", source.key) from None
        finally:
            yield from close_quietly(handle)
        local.seek(0)
        resume_state.advance(WriteState.NEW)  # no temporary file exists
        return source_attributes, (
            yield from write_atomic(scheduler, write_target, UploadSource(local), None, resume_state)
        )


def check_unchanged(
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
