"""Resume a write after a lost connection or in the next attempt.

A temporary name identifies its writer and its source (`_paths.resume_token`). The content is trusted only if samples,
and the bytes before the resume point, match the source. Bytes in flight at the interruption lie within
`MAX_UNACKED_BYTES` of the end and are sent again. With ``verify="sha256"`` the whole file is read back in the end.

Some servers empty a file opened for writing, whatever the flags. So the content is compared after the file is opened.
Unless the server is known to keep the content, it is compared before as well, because another writer may still use the
file.
"""

from __future__ import annotations

import logging
import secrets

from airflow_sftp_backend.backend._files.attributes import close_quietly, try_stat
from airflow_sftp_backend.backend._files.pipelining import MAX_UNACKED_BYTES, UploadSource
from airflow_sftp_backend.backend._files.progress import report_resumed
from airflow_sftp_backend.backend._files.samples import samples_match
from airflow_sftp_backend.backend._files.writing import remove_quietly
from airflow_sftp_backend.backend._paths import RemotePath, fresh_token, temp_name_token
from airflow_sftp_backend.backend._protocol.codec import Attributes, OpenFlag
from airflow_sftp_backend.backend._protocol.messages import FStat, LStat, Open
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, reply, request, request_all, send
from airflow_sftp_backend.backend.errors import (
    BackendUnavailable,
    ContentLost,
    SFTPBackendError,
    StatusError,
    from_status,
)
from airflow_sftp_backend.backend.models import Progress

from .write_state import ResumeState, WriteState
from .write_target import WriteTarget, check_replaceable, open_temp

logger = logging.getLogger(__name__)


def open_for_attempt(
    scheduler: SFTPScheduler,
    write_target: WriteTarget,
    source: UploadSource,
    resume_state: ResumeState,
    progress: Progress | None,
) -> Operation[bool]:
    """Open the temporary file of an attempt to write.

    The file is new, or was left by an earlier call, or is the current file after a lost connection. The attempt
    continues after ``resume_state.transferred_bytes``.

    :param scheduler: the connection
    :param write_target: the target and its first temporary file
    :param source: the content
    :param resume_state: the state of the write over all connections
    :param progress: called with resumed bytes, or with the negative number of bytes to send again
    :returns: False if the file was renamed before the connection was lost
    :raises SFTPBackendError: as `open_temp`
    """
    current_target = write_target.with_temp(resume_state.temp)
    # the reply to the rename was lost with the connection, so the rename may have succeeded
    if resume_state.state is WriteState.RENAMING and (yield from _was_renamed(current_target, source, resume_state)):
        return False
    if resume_state.state in {WriteState.OPEN, WriteState.SENT}:
        yield from _reopen(scheduler, current_target, source, resume_state, progress)
    elif resume_state.state is not WriteState.NEW and (resume_state.must_open_once or resume_state.fresh_temp is None):
        yield from remove_quietly(current_target.temp)  # the lost connection may have created it
        restart(current_target, resume_state, progress)
        yield from open_temp(write_target.with_temp(resume_state.temp), resume_state)
    else:
        yield from _open_or_resume(scheduler, current_target, source, resume_state)
        if resume_state.transferred_bytes:
            report_resumed(progress, resume_state.transferred_bytes)
    return True


def end_attempt(
    scheduler: SFTPScheduler, resume_state: ResumeState, error: BaseException, *, can_resume: bool = True
) -> None:
    """Record that an attempt has failed.

    The write can resume only if the connection was lost.

    :param scheduler: the connection
    :param resume_state: the state of the write
    :param error: the reason
    :param can_resume: whether the content can be compared over another connection
    """
    resume_state.must_open_once = resume_state.must_open_once or scheduler.handles.shares_handles
    resume_state.end_attempt(error, resumable=can_resume and scheduler.failure is not None)


def refused_resume_error(
    scheduler: SFTPScheduler, write_target: WriteTarget, resume_state: ResumeState, refused: StatusError
) -> ContentLost | None:
    """Create the error for a refusal that resuming may have caused.

    It leads to another attempt with a new file.

    :param scheduler: the connection
    :param write_target: the target
    :param resume_state: the state of the write, before its rename
    :param refused: the server's status
    :returns: the error to raise; None if the file is new, or if the server is known to resume files
    """
    if not resume_state.resumed or scheduler.traits.keeps_content_at_open:
        return None
    error = from_status(refused, "cannot resume the file", write_target.path.key)
    return ContentLost(error.message, path=error.path)


def _open_or_resume(
    scheduler: SFTPScheduler, write_target: WriteTarget, source: UploadSource, resume_state: ResumeState
) -> Operation[None]:
    """Open a new temporary file, or resume an earlier one.

    The earlier file is that of an earlier attempt of the same writer.

    :param scheduler: the connection
    :param write_target: the target and its current temporary file
    :param source: the content
    :param resume_state: the state of the write; ``transferred_bytes`` is set to the size of the resumed content
    :raises SFTPBackendError: AlreadyExists, InvalidPath and others, as `open_temp`
    """
    try:
        yield from open_temp(write_target, resume_state)
        return
    except BackendUnavailable:
        raise
    except SFTPBackendError:
        if resume_state.fresh_temp is None:
            raise
        leftover = yield from try_stat(write_target.temp)
        if isinstance(leftover, StatusError) and leftover.missing:
            raise
    resume_state.advance(WriteState.COMPARING)
    size = _resumable_size(write_target.temp, leftover, source)
    handle = None if size is None else (yield from _open_if_content_matches(scheduler, write_target.temp, source, size))
    if size is None or handle is None:
        resume_state.advance(WriteState.STARTED)
        yield from remove_quietly(write_target.temp)
        resume_state.abandoned_temps.append(write_target.temp)
        resume_state.temp, resume_state.fresh_temp = resume_state.fresh_temp, None
        yield from open_temp(write_target.with_temp(resume_state.temp), resume_state)
        return
    logger.info("%r: resuming after %d bytes of an earlier attempt", write_target.temp.key, size)
    existing = yield from try_stat(write_target.path, follow=True)
    attributes = None if isinstance(existing, StatusError) else existing
    yield from check_replaceable(write_target, handle, attributes)
    resume_state.opened(handle, attributes, resumed=True)
    resume_state.transferred_bytes = size


def _resumable_size(temp: RemotePath, leftover: Attributes | StatusError, source: UploadSource) -> int | None:
    """Return the bytes after which to resume a temporary file.

    The result is None if they are too few or too many.
    """
    if isinstance(leftover, StatusError) or not leftover.is_file:
        return None
    size = (leftover.size or 0) - MAX_UNACKED_BYTES
    if size <= 0 or (leftover.size or 0) > (source.expected_size or 0):
        logger.info("%r: restarting after an earlier attempt with %s bytes", temp.key, leftover.size)
        return None
    return size


def _reopen(
    scheduler: SFTPScheduler,
    write_target: WriteTarget,
    source: UploadSource,
    resume_state: ResumeState,
    progress: Progress | None,
) -> Operation[None]:
    """Reopen the temporary file after a lost connection.

    A new file is opened if the content is wrong.

    :param scheduler: the new connection
    :param write_target: the target and the current temporary file
    :param source: the content
    :param resume_state: the state of the write; for a new file, ``transferred_bytes`` becomes 0 and ``temp`` changes
    :param progress: called with the negative number of bytes to send again
    :raises SFTPBackendError: as `open_temp`
    """
    if resume_state.transferred_bytes and not resume_state.must_open_once:
        handle = yield from _open_if_content_matches(
            scheduler, write_target.temp, source, resume_state.transferred_bytes
        )
        if handle is not None:
            resume_state.opened(handle, resume_state.existing, resumed=True)
            return
        logger.warning("%r: restarting, because the server did not keep the content", write_target.temp.key)
    yield from remove_quietly(write_target.temp)
    restart(write_target, resume_state, progress)
    yield from open_temp(write_target.with_temp(resume_state.temp), resume_state)


def _was_renamed(write_target: WriteTarget, source: UploadSource, resume_state: ResumeState) -> Operation[bool]:
    """Determine whether the rename succeeded although its reply was lost.

    :param write_target: the target and the current temporary file
    :param source: the unread content; read to its end if the target has it
    :param resume_state: the state of the write, which becomes DONE or SENT
    :returns: True if samples of the target match the source
    """
    (temp_answer,) = yield from request_all([LStat(write_target.temp.native)])
    if isinstance(temp_answer, StatusError):
        handle = yield from _try_open(write_target.path, OpenFlag.READ)
        if handle is not None:
            size = source.expected_size or 0
            try:
                same = yield from _content_matches(handle, handle, source, size)
            finally:
                yield from close_quietly(handle)
            if same:
                source.skip(size)
                logger.info("%r was renamed before the connection was lost", write_target.path.key)
                resume_state.advance(WriteState.DONE)
                return True
    resume_state.advance(WriteState.SENT)
    return False


def restart(write_target: WriteTarget, resume_state: ResumeState, progress: Progress | None) -> None:
    """Restart from the first byte with another temporary name.

    :param write_target: the target and the current temporary file
    :param resume_state: the state to change
    :param progress: called with the negative number of bytes to send again
    """
    if progress is not None and resume_state.transferred_bytes:
        progress(-resume_state.transferred_bytes)
    resume_state.advance(WriteState.NEW)
    resume_state.transferred_bytes = 0
    resume_state.abandoned_temps.append(write_target.temp)
    # A new name, because the server may still execute requests of the old connection.
    token = fresh_token(temp_name_token(write_target.temp.name), secrets.token_hex(6))
    resume_state.temp, resume_state.fresh_temp = write_target.temp_naming.temp(write_target.path, token), None


def _open_if_content_matches(
    scheduler: SFTPScheduler, temp: RemotePath, source: UploadSource, size: int
) -> Operation[bytes | None]:
    """Open a file whose first ``size`` bytes match the source.

    The result is None if they do not match.
    """
    if scheduler.handles.limit == 1 and not scheduler.traits.keeps_content_at_open:
        return None  # the content must be read while the handle for writing is open
    if scheduler.traits.keeps_content_at_open:
        handle = yield from _try_open(temp, OpenFlag.READ | OpenFlag.WRITE)
        same = handle is not None and (yield from _content_matches(handle, handle, source, size))
        if handle is not None and not same:
            yield from close_quietly(handle)
        return handle if same else None
    reader = yield from _try_open(temp, OpenFlag.READ)
    if reader is None:
        return None
    writer: bytes | None = None
    same = False
    try:
        if (yield from samples_match(reader, size, source.read_at)):
            writer = yield from _try_open(temp, OpenFlag.WRITE)
        same = writer is not None and (yield from _content_matches(writer, reader, source, size))
        return writer if same else None
    finally:
        yield from close_quietly(reader)
        if writer is not None and not same:
            yield from close_quietly(writer)


def _try_open(temp: RemotePath, flags: OpenFlag) -> Operation[bytes | None]:
    """Open a file; return None if the server refuses."""
    try:
        return (yield from request(Open(temp.native, flags)))
    except StatusError as refused:
        logger.info("%r cannot be opened again: %s", temp.key, refused)
        return None


def _content_matches(writer: bytes, reader: bytes, source: UploadSource, size: int) -> Operation[bool]:
    """Return whether an open file matches its source.

    The samples must match. The size must be from ``size`` to the size of the source.
    """
    stat_reply = yield from send(FStat(writer))
    same = not size or (yield from samples_match(reader, size, source.read_at))
    try:
        stated_size = (yield from reply(stat_reply)).size
    except StatusError:  # some servers do not support FSTAT; the samples include the last bytes
        stated_size = None
    return same and (stated_size is None or size <= stated_size <= (source.expected_size or 0))


def verify_reopened(
    scheduler: SFTPScheduler, write_target: WriteTarget, resume_state: ResumeState, source: UploadSource
) -> Operation[None]:
    """Compare a file with its source if opened more than once.

    Called between its close and its rename.

    :param scheduler: the connection
    :param write_target: the target and its temporary file
    :param resume_state: the record of its opens
    :param source: the content, completely sent
    :raises ContentLost: if the server did not keep the content
    """
    if not source.rereadable or not source.size or scheduler.traits.keeps_content_at_open:
        return
    # Another attempt of the writer finds a file of this size by its first name, and may have opened it too.
    may_be_shared = resume_state.fresh_temp is not None and source.size > MAX_UNACKED_BYTES
    if not (resume_state.resumed or resume_state.was_striped or may_be_shared):
        return
    handle = yield from _try_open(write_target.temp, OpenFlag.READ)
    if handle is None:
        if write_target.verify == "none" or not (resume_state.resumed or resume_state.was_striped):
            return  # the file cannot be read, so no other writer can have resumed it
        raise ContentLost("cannot compare the resumed file: the server refuses to open it", path=write_target.path.key)
    try:
        same = yield from samples_match(handle, source.size, source.read_at)
    finally:
        yield from close_quietly(handle)
    if not same:
        raise ContentLost(
            "the server did not keep the content sent before the file was opened again", path=write_target.path.key
        )
