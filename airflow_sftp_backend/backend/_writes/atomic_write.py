"""Write files atomically.

A file appears under its name complete and verified, or not at all.

New content is written to a temporary file beside the target, verified, and renamed.
"""

from __future__ import annotations

import hashlib
import logging

from airflow_sftp_backend.backend._files.attributes import close_quietly, try_stat
from airflow_sftp_backend.backend._files.listing import is_missing
from airflow_sftp_backend.backend._files.pipelining import PipelinedWriter, UploadSource, write_source
from airflow_sftp_backend.backend._files.progress import report_verified
from airflow_sftp_backend.backend._files.reading import read_into
from airflow_sftp_backend.backend._files.writing import already_exists, remove_quietly
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.channel import Pending
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import Close, FStat, Stat
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, reply, request_all, send
from airflow_sftp_backend.backend._protocol.striping import ChannelDemand, StripedFile
from airflow_sftp_backend.backend.errors import (
    SFTPBackendError,
    StatusError,
    TransferCorrupted,
    from_status,
)
from airflow_sftp_backend.backend.models import PreparedFile, Progress

from .backups import remove_backup_quietly
from .modes import await_mode, send_mode, verify_mode
from .rename import await_target_checks, refused_rename_error, rename, send_target_checks
from .resume import end_attempt, open_for_attempt, refused_resume_error, verify_reopened
from .times import await_time, send_time
from .write_state import ResumeState, WriteState
from .write_target import WriteTarget

logger = logging.getLogger(__name__)


def write_atomic(
    scheduler: SFTPScheduler,
    write_target: WriteTarget,
    source: UploadSource,
    progress: Progress | None = None,
    resume_state: ResumeState | None = None,
) -> Operation[int | None]:
    """Write ``source`` to its target.

    Three round trips for a small file in an existing directory.

    :param scheduler: the connection
    :param write_target: the target and its temporary file
    :param source: the content
    :param progress: called with acknowledged bytes
    :param resume_state: state of an interrupted attempt; the write resumes after the acknowledged bytes
    :returns: the file's time on the server in seconds since 1970, or None if unknown
    :raises SFTPBackendError: AlreadyExists, InvalidPath, TransferCorrupted and others
    """
    resume_state = ResumeState() if resume_state is None else resume_state
    channels = 1 if resume_state.must_open_once else write_target.channels
    _request_channels(scheduler, source, channels)
    try:
        if not (yield from open_for_attempt(scheduler, write_target, source, resume_state, progress)):
            return None
    except BaseException as error:
        end_attempt(scheduler, resume_state, error)
        raise
    write_target = write_target.with_temp(resume_state.temp)

    def acknowledged(count: int) -> None:
        resume_state.transferred_bytes += count
        if progress is not None:
            progress(count)

    striped_file = StripedFile(
        scheduler, write_target.temp, resume_state.handle, size=source.expected_size, channels=channels
    )
    try:
        source.skip(resume_state.transferred_bytes)
        block = (yield from scheduler.server_limits()).write
        writer = PipelinedWriter(striped_file, block, offset=resume_state.transferred_bytes, progress=acknowledged)
        yield from write_source(source, writer)
        resume_state.was_striped = striped_file.was_striped
        return (yield from commit(scheduler, write_target, resume_state, writer, source, progress))
    except BaseException as error:
        refusal: SFTPBackendError | None = None
        if isinstance(error, StatusError):
            refusal = refused_resume_error(scheduler, write_target, resume_state, error)
            refusal = refusal or from_status(error, "cannot write", write_target.path.key)
        yield from _end_failed_attempt(scheduler, write_target, resume_state, source, striped_file, error)
        if refusal is not None:
            raise refusal from None
        raise


def _end_failed_attempt(
    scheduler: SFTPScheduler,
    write_target: WriteTarget,
    resume_state: ResumeState,
    source: UploadSource,
    striped_file: StripedFile,
    error: BaseException,
) -> Operation[None]:
    """Close the temporary file, and remove it unless the write can resume."""
    handle = resume_state.open_handle
    # after a rename without a reply, the write can resume only if the target can be compared
    comparable = write_target.verify != "none" and source.rereadable
    can_resume = comparable or resume_state.state is not WriteState.RENAMING
    end_attempt(scheduler, resume_state, error, can_resume=can_resume)
    yield from striped_file.close_quietly()
    if resume_state.state is WriteState.ABANDONED:
        yield from remove_quietly(write_target.temp, handle)
    elif handle is not None:
        yield from close_quietly(handle)


def _request_channels(scheduler: SFTPScheduler, source: UploadSource, channels: int | None) -> None:
    """Request the channels for a transfer before it starts."""
    # Opening channels takes round trips
    size = ChannelDemand(source.expected_size or 0, channels)
    supports_striping = scheduler.traits.allows_parallel_writers
    scheduler.request_channels(size.channel_count(scheduler.round_trip, supports_striping=supports_striping))


def finish_content(
    scheduler: SFTPScheduler,
    write_target: WriteTarget,
    resume_state: ResumeState,
    writer: PipelinedWriter,
    source: UploadSource | None,
    progress: Progress | None = None,
    *,
    is_direct: bool = False,
) -> Operation[tuple[Attributes, bool]]:
    """Close the open file of a write, and verify its content.

    :param scheduler: the connection
    :param write_target: the target
    :param resume_state: the open file
    :param writer: the writer of the file
    :param source: the content sent, for ``verify="sha256"`` and to verify files opened more than once
    :param progress: called with bytes read back
    :param is_direct: the file has its final name already
    :returns: the attributes of the file as far as requested, and whether the target has a backup
    :raises TransferCorrupted: if the file on the server is not the content sent
    :raises AlreadyExists: if the target exists and must not be replaced
    :raises StatusError: if the server refuses a request
    """
    yield from writer.merge_channels()
    mode_reply = yield from send_mode(scheduler, write_target, resume_state)
    stat_reply = (yield from send(FStat(resume_state.handle))) if write_target.verify != "none" else None
    close_reply = yield from send(Close(resume_state.handle))
    resume_state.advance(WriteState.SENT)
    in_order = scheduler.traits.handles_requests_in_order
    time_reply = (yield from send_time(scheduler, write_target)) if in_order else None
    # sent before waiting for the data, so that the checks need no additional round trip
    target_checks = None if is_direct else (yield from send_target_checks(scheduler, write_target))
    yield from writer.drain()
    written = Attributes() if stat_reply is None else (yield from _attributes(stat_reply))
    yield from reply(close_reply)
    if not in_order:
        time_reply = yield from send_time(scheduler, write_target)
    yield from await_mode(scheduler, write_target, resume_state.existing, mode_reply)
    yield from await_time(scheduler, write_target, resume_state, time_reply)
    yield from verify_mode(write_target, written)
    if write_target.verify != "none":
        yield from _verify_size(write_target, writer.offset, written.size)
    if source is not None:
        yield from verify_reopened(scheduler, write_target, resume_state, source)
    if write_target.verify == "sha256" and source is not None:
        yield from _verify_digest(scheduler, write_target, source.digest, writer.offset, progress)
    if target_checks is None:
        return written, False
    return written, (yield from await_target_checks(scheduler, write_target, target_checks))


def commit(
    scheduler: SFTPScheduler,
    write_target: WriteTarget,
    resume_state: ResumeState,
    writer: PipelinedWriter,
    source: UploadSource | None,
    progress: Progress | None = None,
    *,
    action: str = "cannot write",
    path: RemotePath | None = None,
) -> Operation[int | None]:
    """Close the temporary file, verify it and rename it to its target.

    A specified mode is set, or the write fails. Otherwise the mode bits of a replaced file are set if the server allows
    it, and so is the time of the target.

    :param scheduler: the connection
    :param write_target: the target
    :param resume_state: the open temporary file
    :param writer: the writer of the file
    :param source: the content sent, for ``verify="sha256"`` and to verify files opened more than once
    :param progress: called with bytes read back
    :param action: the failed operation, for the error of a refused rename
    :param path: the file of the operation, for the same error; None for the target
    :returns: the file's time on the server in seconds since 1970, or None if unknown
    :raises TransferCorrupted: if the file on the server is not the content sent
    :raises AlreadyExists: if the target exists and must not be replaced
    :raises StatusError: if the server refuses a request before the rename
    :raises SFTPBackendError: if the server refuses the rename
    """
    written, has_backup = yield from finish_content(scheduler, write_target, resume_state, writer, source, progress)
    if write_target.rename_group is not None:
        digest = None if source is None else source.digest
        mtime = written.mtime if resume_state.kept_mtime is None else resume_state.kept_mtime
        prepared = PreparedFile(write_target.path.key, write_target.temp.name, writer.offset, mtime, digest)
        yield from write_target.rename_group.wait_until_recorded(prepared, scheduler)
        # another writer may have created the target during the wait
        checks_again = not write_target.overwrite and not scheduler.traits.rename_refuses_existing
        if checks_again and isinstance((yield from try_stat(write_target.path)), Attributes):
            raise already_exists(write_target.path)
    resume_state.advance(WriteState.RENAMING)
    try:
        yield from rename(scheduler, write_target.temp, write_target)
        if has_backup:
            yield from remove_backup_quietly(write_target.path, write_target.unique_backup)
    except StatusError as refused:
        if write_target.verify != "none" or not (yield from is_missing(write_target.temp, refused)):
            raise refused_rename_error(refused, write_target, action, path) from None
        logger.warning("%r: the server removed the file before it was renamed", write_target.path.key)
    resume_state.advance(WriteState.DONE)
    return written.mtime


def _attributes(stat_reply: Pending[Attributes]) -> Operation[Attributes]:
    """Return the reply, or empty attributes for a refusal."""
    try:
        return (yield from reply(stat_reply))
    except StatusError:
        return Attributes()


def _verify_size(write_target: WriteTarget, sent: int, size: int | None) -> Operation[None]:
    """Compare the size of the temporary file with the bytes sent.

    Raises TransferCorrupted.
    """
    if size == sent:
        return
    # some servers return a wrong reply to FSTAT, or none
    (answer,) = yield from request_all([Stat(write_target.temp.native)])
    size = answer.size if isinstance(answer, Attributes) else size
    if size is None:
        logger.warning("%r: the server does not report the size, so the size is not verified", write_target.path.key)
    elif size != sent:
        raise TransferCorrupted(
            f"{sent} bytes were sent, but the server stored {size}; the target is unchanged. A server that converts"
            ' text (line ends, character sets) changes the size: turn the conversion off, or pass verify="none"',
            path=write_target.path.key,
        )


def _verify_digest(
    scheduler: SFTPScheduler, write_target: WriteTarget, sent: str | None, size: int, progress: Progress | None
) -> Operation[None]:
    """Read the temporary file back and compare its SHA-256. Raises TransferCorrupted."""
    digest = hashlib.sha256()

    def update(data: memoryview) -> None:
        digest.update(data)
        report_verified(progress, len(data))

    try:
        yield from read_into(scheduler, write_target.temp, update, max_bytes=size)
    except SFTPBackendError as error:
        raise type(error)(f"cannot verify the file: {error.message}", path=write_target.path.key) from None
    if (stored := f"sha256:{digest.hexdigest()}") != sent:
        raise TransferCorrupted(
            f"{sent} was sent, but the server stored {stored}; the target is unchanged", path=write_target.path.key
        )
