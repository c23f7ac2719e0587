"""Reopening of a temporary file: after a lost connection, or by the next attempt of the same writer.

A temporary name says whose it is and which source it was made from (`_paths.resume_token`). Its content is trusted only
where samples of it, and the bytes before the point to resume at, are those of the source. All that was in flight when
an attempt ended lies within `MAX_UNACKED_BYTES` of the end and is sent again. With ``verify="sha256"`` the whole file
is read back in the end.

Some servers empty a file that is opened for writing, whatever the flags say. So the content is compared after the file
is open, and on servers that are not known to keep it also before, because another writer may still be at work on it.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import Final

from airflow_sftp_backend.backend._files.operations import close_quietly, remove_quietly, try_stat
from airflow_sftp_backend.backend._files.pipelining import MAX_UNACKED_BYTES, UploadSource
from airflow_sftp_backend.backend._paths import RemotePath, fresh_token, temp_name_token
from airflow_sftp_backend.backend._protocol.codec import Attributes, Limits, OpenFlag
from airflow_sftp_backend.backend._protocol.messages import FStat, LStat, Open, Read
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, reply, request, request_all, send
from airflow_sftp_backend.backend.errors import BackendUnavailable, ContentLost, SFTPBackendError, StatusError
from airflow_sftp_backend.backend.models import Progress

from .write_target import OpenTempFile, ResumeState, WriteTarget, check_existing, open_temp

logger = logging.getLogger(__name__)

SAMPLE_SIZE: Final = Limits().read
"""Bytes of one piece that is compared: what every server gives at once."""
_SAMPLE_COUNT: Final = 32  # all over the file, and as many at its end


def sample_ranges(size: int) -> list[tuple[int, int]]:
    """Offset and length, in bytes, of what is compared of the first ``size`` bytes: spread over them, and the end."""
    ends = [size - index * SAMPLE_SIZE for index in range(_SAMPLE_COUNT)]
    evenly_spaced = [(size - SAMPLE_SIZE) * index // _SAMPLE_COUNT for index in range(_SAMPLE_COUNT)]
    starts = {max(0, start) for start in [*evenly_spaced, *(end - SAMPLE_SIZE for end in ends)]}
    return [(start, min(SAMPLE_SIZE, size - start)) for start in sorted(starts)]


def samples_match(
    handle: bytes, size: int, expected: Callable[[int, int], bytes | memoryview | None]
) -> Operation[bool]:
    """True if the first ``size`` bytes of a file on the server are, where they are compared, those that ``index`` gives
    for an offset and a length. One round trip.
    """
    ranges = sample_ranges(size)
    answers = yield from request_all([Read(handle, start, length) for start, length in ranges])
    return all(
        not isinstance(answer, StatusError) and answer == expected(start, length)
        for (start, length), answer in zip(ranges, answers, strict=True)
    )


def open_or_resume(
    scheduler: SFTPScheduler, write_target: WriteTarget, source: UploadSource, resume_state: ResumeState
) -> Operation[OpenTempFile]:
    """Open a new temporary file, or the one that an earlier attempt of the same writer left.

    :param scheduler: the connection
    :param write_target: names of the target and of the temporary file; without ``fresh_temp`` nothing is resumed
    :param source: the source
    :param resume_state: how far the write is; ``acknowledged`` is set to the bytes that are there already
    :returns: the open temporary file
    :raises SFTPBackendError: AlreadyExists, InvalidPath and others, as `open_temp`
    """
    resume_state.acknowledged = 0
    if write_target.fresh_temp is not None:
        # it may have been made over the connection that was lost
        if resume_state.temp not in (None, write_target.temp):
            resume_state.abandoned_temps.append(resume_state.temp)
        resume_state.temp = write_target.temp
    try:
        return (yield from open_temp(write_target))
    except BackendUnavailable:
        raise
    except SFTPBackendError:
        if write_target.fresh_temp is None:
            raise
        leftover = yield from try_stat(write_target.temp)
        if isinstance(leftover, StatusError) and leftover.missing:
            raise
    resume_state.is_kept = True
    size = _resumable_size(write_target.temp, leftover, source)
    handle = None if size is None else (yield from _open_if_content_matches(scheduler, write_target.temp, source, size))
    if size is None or handle is None:
        resume_state.is_kept = False
        yield from remove_quietly(write_target.temp)
        resume_state.abandoned_temps.append(write_target.temp)
        resume_state.temp = write_target.fresh_temp
        return (yield from open_temp(resume_state.with_current_temp(write_target)))
    logger.info("%r: resuming after %d bytes that an earlier attempt has sent", write_target.temp.key, size)
    resume_state.acknowledged = size
    existing = yield from try_stat(write_target.path, follow=True)
    attributes = None if isinstance(existing, StatusError) else existing
    return (yield from check_existing(write_target, OpenTempFile(handle, attributes, open_handle=handle, resumed=True)))


def _resumable_size(temp: RemotePath, leftover: Attributes | StatusError, source: UploadSource) -> int | None:
    """The bytes of an abandoned temporary file that can be resumed after; None if there are too few or too many."""
    if isinstance(leftover, StatusError) or not leftover.is_file:
        return None
    size = (leftover.size or 0) - MAX_UNACKED_BYTES
    if size <= 0 or (leftover.size or 0) > (source.expected_size or 0):
        logger.info("%r: an earlier attempt left %s bytes: starting over", temp.key, leftover.size)
        return None
    return size


def reopen(
    scheduler: SFTPScheduler,
    write_target: WriteTarget,
    source: UploadSource,
    resume_state: ResumeState,
    progress: Progress | None,
) -> Operation[OpenTempFile]:
    """Open the temporary file once more after a lost connection, or a new one if its content is not the source's.

    :param scheduler: the new connection
    :param write_target: names of the target and of the temporary file in use
    :param source: the source
    :param resume_state: how far the write is; ``acknowledged`` becomes 0 and ``temp`` another name for a new file
    :param progress: told of the bytes that have to be sent again
    :returns: the open temporary file
    :raises SFTPBackendError: as `open_temp`
    """
    previous = resume_state.temp_file
    assert previous is not None
    if resume_state.acknowledged and not resume_state.must_open_once:
        handle = yield from _open_if_content_matches(scheduler, write_target.temp, source, resume_state.acknowledged)
        if handle is not None:
            return OpenTempFile(handle, previous.existing, open_handle=handle, resumed=True)
        logger.warning("%r does not hold what was sent to it: starting over", write_target.temp.key)
    yield from remove_quietly(write_target.temp)
    restart(write_target, resume_state, progress)
    return (yield from open_temp(resume_state.with_current_temp(write_target)))


def was_renamed(write_target: WriteTarget, source: UploadSource, resume_state: ResumeState) -> Operation[bool]:
    """Find out whether a rename was carried out whose reply was lost with the connection.

    :param write_target: names of the target and of the temporary file in use
    :param source: the source, not read yet; it is read to its end if the target has it
    :param resume_state: prepared for another attempt if the target does not have the content
    :returns: True if the target has the content of the source where they are compared
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
                return True
    assert resume_state.temp_file is not None
    resume_state.temp_file.renaming = False
    return False


def restart(write_target: WriteTarget, resume_state: ResumeState, progress: Progress | None) -> None:
    """Forget what was sent, and use another temporary name.

    A server may still be carrying out what it was sent over the old connection, and that must not reach the new file.

    :param write_target: names of the target and of the temporary file in use
    :param resume_state: what is changed
    :param progress: told of the bytes that have to be sent again
    """
    if progress is not None and resume_state.acknowledged:
        progress(-resume_state.acknowledged)
    resume_state.acknowledged = 0
    resume_state.abandoned_temps.append(write_target.temp)
    token = fresh_token(temp_name_token(write_target.temp.name), secrets.token_hex(6))
    resume_state.temp = write_target.path.temp(token)


def _open_if_content_matches(
    scheduler: SFTPScheduler, temp: RemotePath, source: UploadSource, size: int
) -> Operation[bytes | None]:
    """A handle for writing if the first ``size`` bytes of the file are those of ``source``, else None."""
    if scheduler.handles.limit == 1 and not scheduler.traits.keeps_content_at_open:
        return None  # the file cannot be read beside the handle for writing
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
    try:
        return (yield from request(Open(temp.native, flags)))
    except StatusError as refused:
        logger.info("%r cannot be opened again: %s", temp.key, refused)
        return None


def _content_matches(writer: bytes, reader: bytes, source: UploadSource, size: int) -> Operation[bool]:
    """True if the open file has at least ``size`` bytes, no more than the source, and the source's where compared."""
    stat_reply = yield from send(FStat(writer))
    same = not size or (yield from samples_match(reader, size, source.read_at))
    try:
        stated_size = (yield from reply(stat_reply)).size
    except StatusError:  # some servers have no FSTAT; the last bytes were read
        stated_size = None
    return same and (stated_size is None or size <= stated_size <= (source.expected_size or 0))


def verify_reopened(
    scheduler: SFTPScheduler, write_target: WriteTarget, temp_file: OpenTempFile, source: UploadSource
) -> Operation[None]:
    """Compare a file that was opened more than once with its source, after its close and before its rename.

    :param scheduler: the connection
    :param write_target: names of the target and of the temporary file
    :param temp_file: how often the file was opened
    :param source: the source, all of which was sent
    :raises ContentLost: the server did not keep what was sent
    """
    if not source.rereadable or not source.size or scheduler.traits.keeps_content_at_open:
        return
    findable = write_target.fresh_temp is not None and source.size > MAX_UNACKED_BYTES
    if not (temp_file.resumed or temp_file.was_striped or findable):
        return
    handle = yield from _try_open(write_target.temp, OpenFlag.READ)
    if handle is None:
        if write_target.verify == "none" or not (temp_file.resumed or temp_file.was_striped):
            return  # not to be read, so nobody else can have resumed it
        raise ContentLost("the server does not let the resumed file be compared", path=write_target.path.key)
    try:
        same = yield from samples_match(handle, source.size, source.read_at)
    finally:
        yield from close_quietly(handle)
    if not same:
        raise ContentLost(
            "the server did not keep what was sent before the file was opened again", path=write_target.path.key
        )
