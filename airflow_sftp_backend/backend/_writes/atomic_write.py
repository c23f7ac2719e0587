"""How a file arrives under its name: whole and proven, or not at all.

New content is written under a temporary name beside its target, proven, and renamed.
"""

from __future__ import annotations

import hashlib
import logging

from airflow_sftp_backend.backend._files.operations import close_quietly, discard, is_missing, read_into, see, taken
from airflow_sftp_backend.backend._files.pipelining import SPAN, Content, Outgoing, write_source
from airflow_sftp_backend.backend._files.progress import report_resumed, report_verified
from airflow_sftp_backend.backend._protocol.channel import Pending
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import Close, FStat, Stat
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, reply, request_all, send
from airflow_sftp_backend.backend._protocol.striping import StripedFile, TransferSize
from airflow_sftp_backend.backend.errors import (
    BackendUnavailable,
    ContentLost,
    SFTPBackendError,
    StatusError,
    TransferCorrupted,
    from_status,
)
from airflow_sftp_backend.backend.models import PreparedFile, Progress

from .backups import clear_backup
from .modes import check_mode, keep_mode
from .rename import check_free, look_at, rename
from .resume import open_or_resume, reopen, start_over, verify_kept, was_renamed
from .write_target import Landing, Opened, SoFar, open_landing

logger = logging.getLogger(__name__)


def write_atomic(
    scheduler: SFTPScheduler,
    landing: Landing,
    content: Content,
    progress: Progress | None = None,
    so_far: SoFar | None = None,
) -> Operation[int | None]:
    """Writes ``content`` to where it lands: three round trips for a small file in an existing folder.

    With ``so_far`` of a try that lost its connection it goes on after what was acknowledged then. The server's time
    (seconds since 1970) at the end, where it tells.
    """
    so_far = SoFar() if so_far is None else so_far
    spreads = scheduler.traits.allows_parallel_writers
    channels = 1 if so_far.single else landing.channels
    scheduler.request_channels(
        TransferSize(content.expected or 0, channels).channel_count(scheduler.round_trip, supports_striping=spreads)
    )
    if so_far.renaming and (yield from was_renamed(so_far.placed(landing), content, so_far)):
        so_far.resumable = False
        return None
    opened = yield from _open(scheduler, landing, content, so_far, progress)
    landing = so_far.placed(landing)
    so_far.left = False

    def acknowledged(count: int) -> None:
        so_far.acknowledged += count
        if progress is not None:
            progress(count)

    spread = StripedFile(scheduler, landing.temp, opened.handle, size=content.expected, channels=channels)
    landed = False
    try:
        content.skip(so_far.acknowledged)
        block = (yield from scheduler.limits()).write
        out = Outgoing(spread, block, offset=so_far.acknowledged, progress=acknowledged)
        yield from write_source(content, out)
        opened.spread = spread.was_striped
        now = yield from land(scheduler, landing, opened, out, content, progress)
        landed = True
        return now
    except StatusError as refused:
        raise _failure(scheduler, landing, opened, refused) from None
    except BaseException as error:
        ended = isinstance(error, BackendUnavailable) or not isinstance(error, Exception)  # by no fault of the file
        worth = landing.spare is not None and so_far.acknowledged > SPAN
        so_far.left = ended and worth and not opened.renaming
        raise
    finally:
        if not landed:
            comparable = landing.verify != "none" and content.rereadable
            so_far.resumable = scheduler.broken is not None and (comparable or not opened.renaming)
            so_far.single = so_far.single or scheduler.handles.shares_handles
            yield from spread.close_quietly()
            if not so_far.left:
                yield from discard(landing.temp, opened.unclosed)
            elif opened.unclosed is not None:
                yield from close_quietly(opened.unclosed)


def _failure(scheduler: SFTPScheduler, landing: Landing, opened: Opened, refused: StatusError) -> SFTPBackendError:
    """The error for a refusal. ContentLost, for another attempt, if the server may not let a file be continued."""
    if opened.resumed and not opened.renaming and not scheduler.traits.keeps_content_at_open:
        error = from_status(refused, "the file cannot be continued", landing.target.key)
        return ContentLost(error.message, path=error.path)
    return from_status(refused, "cannot write", landing.target.key)


def _open(
    scheduler: SFTPScheduler, landing: Landing, content: Content, so_far: SoFar, progress: Progress | None
) -> Operation[Opened]:
    """Open the temporary file: a new one, that of an earlier attempt, or the same again after a lost connection."""
    placed = so_far.placed(landing)
    anew = so_far.begun and (so_far.single or landing.spare is None)
    so_far.resumable = False
    try:
        if so_far.opened is not None:
            opened = yield from reopen(scheduler, placed, content, so_far, progress)
        elif anew:
            yield from discard(placed.temp)  # it may have been made over the connection that was lost
            start_over(placed, so_far, progress)
            opened = yield from open_landing(so_far.placed(landing))
        else:
            so_far.begun = True
            opened = yield from open_or_resume(scheduler, landing, content, so_far)
            if so_far.acknowledged:
                report_resumed(progress, so_far.acknowledged)
    except BaseException:
        so_far.resumable = scheduler.broken is not None
        so_far.single = so_far.single or scheduler.handles.shares_handles
        raise
    so_far.opened = opened
    return opened


def land(
    scheduler: SFTPScheduler,
    landing: Landing,
    opened: Opened,
    out: Outgoing,
    content: Content | None,
    progress: Progress | None = None,
) -> Operation[int | None]:
    """Closes the temporary file, proves it and gives it its final name.

    Raises TransferCorrupted, AlreadyExists, Refused.

    ``content`` is what was sent, for ``verify="sha256"`` and for files that were opened more than once. Mode bits of a
    replaced file are kept, where the server lets them be set. The server's time, where it tells.
    """
    yield from out.join()
    keeping = yield from keep_mode(scheduler, opened)
    checking = (yield from send(FStat(opened.handle))) if landing.verify != "none" else None
    closing = yield from send(Close(opened.handle))
    opened.unclosed = None
    look = yield from look_at(scheduler, landing)
    yield from out.drain()
    written = Attributes() if checking is None else (yield from _attributes(checking))
    yield from reply(closing)
    yield from check_mode(scheduler, landing, opened, keeping)
    if landing.verify != "none":
        yield from _verify_size(landing, out.offset, written.size)
    if content is not None:
        yield from verify_kept(scheduler, landing, opened, content)
    if landing.verify == "sha256" and content is not None:
        yield from _verify_digest(scheduler, landing, content.digest, out.offset, progress)
    has_backup = yield from check_free(scheduler, landing, look)
    if landing.commits is not None:
        digest = None if content is None else content.digest
        prepared = PreparedFile(landing.target.key, landing.temp.name, out.offset, written.mtime, digest)
        yield from landing.commits.join(prepared, scheduler)
        # the wait was long enough for others
        looks = not landing.overwrite and not scheduler.traits.rename_refuses_existing
        if looks and isinstance((yield from see(landing.target)), Attributes):
            raise taken(landing.target)
    opened.renaming = True
    try:
        yield from rename(scheduler, landing.temp, landing)
        if has_backup:
            yield from clear_backup(landing.target, landing.aside)
    except StatusError as refused:
        if landing.verify != "none" or not (yield from is_missing(landing.temp, refused)):
            raise
        logger.warning("%r: the server took the file away before it had its name", landing.target.key)
    return written.mtime


def _attributes(asked: Pending[Attributes]) -> Operation[Attributes]:
    """The reply, or empty attributes for a refusal."""
    try:
        return (yield from reply(asked))
    except StatusError:
        return Attributes()


def _verify_size(landing: Landing, sent: int, size: int | None) -> Operation[None]:
    if size == sent:
        return
    (found,) = yield from request_all([Stat(landing.temp.native)])  # some servers answer FSTAT wrongly or not at all
    size = found.size if isinstance(found, Attributes) else size
    if size is None:
        logger.warning("%r: the server does not tell its size, which is therefore not verified", landing.target.key)
    elif size != sent:
        raise TransferCorrupted(
            f"{sent} bytes were sent and the server holds {size}; the target was left as it was. A server that converts"
            ' text (line ends, character sets) gives another size: turn that off, or pass verify="none"',
            path=landing.target.key,
        )


def _verify_digest(
    scheduler: SFTPScheduler, landing: Landing, sent: str | None, size: int, progress: Progress | None
) -> Operation[None]:
    digest = hashlib.sha256()

    def take(data: memoryview) -> None:
        digest.update(data)
        report_verified(progress, len(data))

    try:
        yield from read_into(scheduler, landing.temp, take, most=size)
    except SFTPBackendError as error:
        raise type(error)(f"what was sent cannot be verified: {error.message}", path=landing.target.key) from None
    if (held := f"sha256:{digest.hexdigest()}") != sent:
        raise TransferCorrupted(
            f"{sent} was sent and the server holds {held}; the target was left as it was", path=landing.target.key
        )
