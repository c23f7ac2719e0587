"""Reopening of a temporary file: after a lost connection, or by the next attempt of the same writer.

A temporary name says whose it is and which source it was made from (`_paths.resume_token`). Its content is trusted only
where samples of it, and the bytes before the point to resume at, are those of the source. All that was in flight when
an attempt ended lies within `SPAN` of the end and is sent again. With ``verify="sha256"`` the whole file is read back
in the end.

Some servers empty a file that is opened for writing, whatever the flags say. So the content is compared after the file
is open, and on servers that are not known to keep it also before, because another writer may still be at work on it.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import Final

from airflow_sftp_backend.backend._files.operations import close_quietly, discard, see
from airflow_sftp_backend.backend._files.pipelining import SPAN, Content
from airflow_sftp_backend.backend._paths import RemotePath, fresh_token, temp_name_token
from airflow_sftp_backend.backend._protocol.codec import Attributes, Limits, OpenFlag
from airflow_sftp_backend.backend._protocol.messages import FStat, LStat, Open, Read
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, reply, request, request_all, send
from airflow_sftp_backend.backend.errors import BackendUnavailable, ContentLost, SFTPBackendError, StatusError
from airflow_sftp_backend.backend.models import Progress

from .write_target import Landing, Opened, SoFar, checked, open_landing

logger = logging.getLogger(__name__)

PIECE: Final = Limits().read
"""Bytes of one piece that is compared: what every server gives at once."""
_PIECES: Final = 32  # all over the file, and as many at its end


def pieces(size: int) -> list[tuple[int, int]]:
    """Offset and length, in bytes, of what is compared of the first ``size`` bytes: spread over them, and the end."""
    ends = [size - at * PIECE for at in range(_PIECES)]
    spread = [(size - PIECE) * at // _PIECES for at in range(_PIECES)]
    starts = {max(0, start) for start in [*spread, *(end - PIECE for end in ends)]}
    return [(start, min(PIECE, size - start)) for start in sorted(starts)]


def holds(handle: bytes, size: int, at: Callable[[int, int], bytes | memoryview | None]) -> Operation[bool]:
    """True if the first ``size`` bytes of a file on the server are, where they are compared, those that ``at`` gives
    for an offset and a length. One round trip.
    """
    compared = pieces(size)
    answers = yield from request_all([Read(handle, start, length) for start, length in compared])
    return all(
        not isinstance(answer, StatusError) and answer == at(start, length)
        for (start, length), answer in zip(compared, answers, strict=True)
    )


def open_or_resume(scheduler: SFTPScheduler, landing: Landing, content: Content, so_far: SoFar) -> Operation[Opened]:
    """Open a new temporary file, or the one that an earlier attempt of the same writer left.

    :param wire: the connection
    :param landing: names of the target and of the temporary file; without ``spare`` nothing is resumed
    :param content: the source
    :param so_far: how far the write is; ``acknowledged`` is set to the bytes that are there already
    :returns: the open temporary file
    :raises SFTPBackendError: AlreadyExists, InvalidPath and others, as `open_landing`
    """
    so_far.acknowledged = 0
    if landing.spare is not None:
        if so_far.temp not in (None, landing.temp):  # it may have been made over the connection that was lost
            so_far.abandoned.append(so_far.temp)
        so_far.temp = landing.temp
    try:
        return (yield from open_landing(landing))
    except BackendUnavailable:
        raise
    except SFTPBackendError:
        if landing.spare is None:
            raise
        left = yield from see(landing.temp)
        if isinstance(left, StatusError) and left.missing:
            raise
    so_far.left = True
    size = _resumable_size(landing.temp, left, content)
    handle = None if size is None else (yield from _open_if_same(scheduler, landing.temp, content, size))
    if size is None or handle is None:
        so_far.left = False
        yield from discard(landing.temp)
        so_far.abandoned.append(landing.temp)
        so_far.temp = landing.spare
        return (yield from open_landing(so_far.placed(landing)))
    logger.info("%r: resuming after %d bytes that an earlier attempt has sent", landing.temp.key, size)
    so_far.acknowledged = size
    standing = yield from see(landing.target, follow=True)
    replaced = None if isinstance(standing, StatusError) else standing
    return (yield from checked(landing, Opened(handle, replaced, unclosed=handle, resumed=True)))


def _resumable_size(temp: RemotePath, left: Attributes | StatusError, content: Content) -> int | None:
    """The bytes of an abandoned temporary file that can be resumed after; None if there are too few or too many."""
    if isinstance(left, StatusError) or not left.is_file:
        return None
    size = (left.size or 0) - SPAN
    if size <= 0 or (left.size or 0) > (content.expected or 0):
        logger.info("%r: an earlier attempt left %s bytes: starting over", temp.key, left.size)
        return None
    return size


def reopen(
    scheduler: SFTPScheduler, landing: Landing, content: Content, so_far: SoFar, progress: Progress | None
) -> Operation[Opened]:
    """Open the temporary file once more after a lost connection, or a new one if its content is not the source's.

    :param wire: the new connection
    :param landing: names of the target and of the temporary file in use
    :param content: the source
    :param so_far: how far the write is; ``acknowledged`` becomes 0 and ``temp`` another name for a new file
    :param progress: told of the bytes that have to be sent again
    :returns: the open temporary file
    :raises SFTPBackendError: as `open_landing`
    """
    before = so_far.opened
    assert before is not None
    if so_far.acknowledged and not so_far.single:
        handle = yield from _open_if_same(scheduler, landing.temp, content, so_far.acknowledged)
        if handle is not None:
            return Opened(handle, before.replaced, unclosed=handle, resumed=True)
        logger.warning("%r does not hold what was sent to it: starting over", landing.temp.key)
    yield from discard(landing.temp)
    start_over(landing, so_far, progress)
    return (yield from open_landing(so_far.placed(landing)))


def was_renamed(landing: Landing, content: Content, so_far: SoFar) -> Operation[bool]:
    """Find out whether a rename was carried out whose reply was lost with the connection.

    :param landing: names of the target and of the temporary file in use
    :param content: the source, not read yet; it is read to its end if the target has it
    :param so_far: prepared for another attempt if the target does not have the content
    :returns: True if the target has the content of the source where they are compared
    """
    (left,) = yield from request_all([LStat(landing.temp.native)])
    if isinstance(left, StatusError):
        handle = yield from _try_open(landing.target, OpenFlag.READ)
        if handle is not None:
            size = content.expected or 0
            try:
                same = yield from _is_same(handle, handle, content, size)
            finally:
                yield from close_quietly(handle)
            if same:
                content.skip(size)
                logger.info("%r was renamed before the connection was lost", landing.target.key)
                return True
    assert so_far.opened is not None
    so_far.opened.renaming = False
    return False


def start_over(landing: Landing, so_far: SoFar, progress: Progress | None) -> None:
    """Forget what was sent, and use another temporary name.

    A server may still be carrying out what it was sent over the old connection, and that must not reach the new file.

    :param landing: names of the target and of the temporary file in use
    :param so_far: what is changed
    :param progress: told of the bytes that have to be sent again
    """
    if progress is not None and so_far.acknowledged:
        progress(-so_far.acknowledged)
    so_far.acknowledged = 0
    so_far.abandoned.append(landing.temp)
    token = fresh_token(temp_name_token(landing.temp.name), secrets.token_hex(6))
    so_far.temp = landing.target.temp(token)


def _open_if_same(scheduler: SFTPScheduler, temp: RemotePath, content: Content, size: int) -> Operation[bytes | None]:
    """A handle for writing if the first ``size`` bytes of the file are those of ``content``, else None."""
    if scheduler.handles.limit == 1 and not scheduler.traits.keeps_content_at_open:
        return None  # the file cannot be read beside the handle for writing
    if scheduler.traits.keeps_content_at_open:
        handle = yield from _try_open(temp, OpenFlag.READ | OpenFlag.WRITE)
        same = handle is not None and (yield from _is_same(handle, handle, content, size))
        if handle is not None and not same:
            yield from close_quietly(handle)
        return handle if same else None
    reader = yield from _try_open(temp, OpenFlag.READ)
    if reader is None:
        return None
    writer: bytes | None = None
    same = False
    try:
        if (yield from holds(reader, size, content.at)):
            writer = yield from _try_open(temp, OpenFlag.WRITE)
        same = writer is not None and (yield from _is_same(writer, reader, content, size))
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


def _is_same(writer: bytes, reader: bytes, content: Content, size: int) -> Operation[bool]:
    """True if the open file has at least ``size`` bytes, no more than the source, and the source's where compared."""
    asked = yield from send(FStat(writer))
    same = not size or (yield from holds(reader, size, content.at))
    try:
        told = (yield from reply(asked)).size
    except StatusError:  # some servers have no FSTAT; the last bytes were read
        told = None
    return same and (told is None or size <= told <= (content.expected or 0))


def verify_kept(scheduler: SFTPScheduler, landing: Landing, opened: Opened, content: Content) -> Operation[None]:
    """Compare a file that was opened more than once with its source, after its close and before its rename.

    :param wire: the connection
    :param landing: names of the target and of the temporary file
    :param opened: how often the file was opened
    :param content: the source, all of which was sent
    :raises ContentLost: the server did not keep what was sent
    """
    if not content.rereadable or not content.size or scheduler.traits.keeps_content_at_open:
        return
    findable = landing.spare is not None and content.size > SPAN
    if not (opened.resumed or opened.spread or findable):
        return
    handle = yield from _try_open(landing.temp, OpenFlag.READ)
    if handle is None:
        if landing.verify == "none" or not (opened.resumed or opened.spread):
            return  # not to be read, so nobody else can have resumed it
        raise ContentLost("the server does not let the resumed file be compared", path=landing.target.key)
    try:
        same = yield from holds(handle, content.size, content.at)
    finally:
        yield from close_quietly(handle)
    if not same:
        raise ContentLost(
            "the server did not keep what was sent before the file was opened again", path=landing.target.key
        )
