"""Moves and copies of files.

A move is a rename. If no rename can make it (two file systems), it is a copy that arrives as an atomic write does, then
a delete.
"""

from __future__ import annotations

import tempfile
from typing import Final

from airflow_sftp_backend.backend._files.links import lstat_all, renames_links
from airflow_sftp_backend.backend._files.operations import (
    close_quietly,
    discard,
    is_missing,
    make_folders,
    open_for_reading,
    or_stat,
    parent_is_missing,
    taken,
    with_type,
)
from airflow_sftp_backend.backend._files.pipelining import Content, Incoming, Outgoing
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

from .atomic_write import land, write_atomic
from .backups import clear_backup, may_have_backups, remove_backup, restore, restoring
from .rename import rename
from .resume import start_over
from .write_target import Landing, Opened, SoFar, open_landing

_COPY_PIECE: Final = 64 << 20  # bytes a server copies per request: it answers only when it is done
_Copied = tuple[Attributes | StatusError, int | None]
"""What the server says of the source, and its time (seconds since 1970) after the copy, where it tells."""


def move(scheduler: SFTPScheduler, source: RemotePath, landing: Landing) -> Operation[int | None]:
    """Moves a file, or a link as a link: two round trips. Raises NotFound, AlreadyExists, InvalidPath for folders.

    The server's time (seconds since 1970) where the file was copied, which may have been tried before; else None.
    """
    return (yield from restoring(scheduler, source, lambda: _move(scheduler, source, landing)))


def _move(scheduler: SFTPScheduler, source: RemotePath, landing: Landing) -> Operation[int | None]:
    target = landing.target
    ends = [source, target, *([source.backup, target.backup] if may_have_backups(scheduler) else [])]
    found, standing, *backups = yield from lstat_all(ends)
    source_has_backup, has_backup = [isinstance(left, Attributes) for left in backups] or (False, False)
    found = yield from or_stat(source, found)
    standing = yield from or_stat(target, standing)
    if isinstance(found, Attributes):
        found = yield from with_type(source, found)
    yield from _check_source(source, found, "cannot move")
    if source == target:
        return None
    if isinstance(found, Attributes) and found.is_link and not (yield from renames_links(source)):
        raise InvalidPath("cannot move: it is a link, and the server would move what it leads to", path=source.key)
    yield from _check_target(scheduler, landing, standing, has_backup=has_backup)
    if source_has_backup:  # else it would get the name that the source leaves
        yield from remove_backup(source)
    try:
        try:
            yield from rename(scheduler, source, landing)
        except StatusError as refused:
            if not landing.create_parents or not (yield from parent_is_missing(target, refused)):
                raise
            yield from make_folders(target.parent)
            yield from rename(scheduler, source, landing)
        if has_backup:
            yield from clear_backup(target, landing.aside)
        return None
    except StatusError as refused:
        if refused.missing or refused.code == StatusCode.PERMISSION_DENIED:
            raise from_status(refused, "cannot move", source.key) from None
        yield from make_folders(target.parent)  # a file in the way is the commonest reason, and this names it
        return (yield from _move_by_copy(scheduler, source, landing))


def _check_target(
    scheduler: SFTPScheduler, landing: Landing, standing: Attributes | StatusError, *, has_backup: bool
) -> Operation[None]:
    target = landing.target
    if isinstance(standing, Attributes) and standing.is_folder:
        raise InvalidPath("cannot move: a folder has this name", path=target.key)
    if landing.overwrite:
        return
    if isinstance(standing, Attributes) or (has_backup and (yield from restore(scheduler, target))):
        raise taken(target)


def _check_source(source: RemotePath, found: Attributes | StatusError, doing: str) -> Operation[None]:
    if isinstance(found, StatusError):
        if (yield from is_missing(source, found)):
            raise NotFound(f"{doing}: no such file", path=source.key)
        raise from_status(found, doing, source.key)
    if found.is_folder:
        raise InvalidPath(f"{doing}: it is a folder, not a file", path=source.key)


def _move_by_copy(scheduler: SFTPScheduler, source: RemotePath, landing: Landing) -> Operation[int | None]:
    """The last rung: two file systems, or a server without a rename that serves."""
    copied, written = yield from _copy(scheduler, source, landing, SoFar())
    (now,) = yield from request_all([Stat(source.native)])
    _check_unchanged(source, copied, now, f"copied to {landing.target.key!r}, but the source has changed since")
    try:
        yield from request(Remove(source.native))
    except StatusError as refused:
        doing = f"copied to {landing.target.key!r}, but the source cannot be removed"
        raise from_status(refused, doing, source.key) from None
    return written


def copy(
    scheduler: SFTPScheduler, source: RemotePath, landing: Landing, so_far: SoFar | None = None
) -> Operation[int | None]:
    """Copies on the server where it has ``copy-data``, else through this process, and lands the copy (``verify`` is
    "size"). The server's time (seconds since 1970), where it tells.

    Where the server lets only one file be open at once, the content waits in a temporary file of this machine.

    With ``so_far`` of a try that lost its connection it starts over, in a new temporary file.

    Raises TransferCorrupted if the source changes meanwhile.
    """
    so_far = SoFar() if so_far is None else so_far
    if so_far.begun:
        left = so_far.placed(landing)
        yield from discard(left.temp)
        start_over(left, so_far, None)
    so_far.begun, so_far.resumable, so_far.opened = True, False, None
    placed = so_far.placed(landing)
    try:
        return (yield from restoring(scheduler, source, lambda: _copy(scheduler, source, placed, so_far)))[1]
    except BaseException:
        so_far.resumable = scheduler.broken is not None and not so_far.renaming
        raise


def _copy(scheduler: SFTPScheduler, source: RemotePath, landing: Landing, so_far: SoFar) -> Operation[_Copied]:
    """Copies; also what the server says of the source."""
    if scheduler.handles.limit == 1:
        return (yield from _copy_by_disk(scheduler, source, landing, so_far))
    handle = yield from open_for_reading(source)
    try:
        found = yield from _source_attributes(handle, source)
        if source == landing.target:
            return found, None
        try:
            opened = yield from open_landing(landing)
        except SFTPBackendError as error:
            if not _may_be_one_file_too_many(scheduler, error):
                raise
            opened = None
        so_far.opened = opened
        if opened is not None:
            return found, (yield from _copy_to(scheduler, (handle, source), found, landing, opened))
    finally:
        yield from close_quietly(handle)
    # What is refused now, with the source closed, is refused for another reason.
    opened = yield from open_landing(landing)
    yield from discard(landing.temp, opened.unclosed)
    scheduler.handles.lower_limit(1)
    return (yield from _copy_by_disk(scheduler, source, landing, so_far))


def _may_be_one_file_too_many(scheduler: SFTPScheduler, error: SFTPBackendError) -> bool:
    """True if the target may have been refused because the source is open."""
    known = isinstance(error, BackendUnavailable | AlreadyExists | InvalidPath | NotFound | CapabilityNotSupported)
    return not known and not scheduler.traits.opens_many_files


def _source_attributes(handle: bytes, source: RemotePath) -> Operation[Attributes | StatusError]:
    (found,) = yield from request_all([FStat(handle)])
    if isinstance(found, Attributes) and found.is_folder:
        raise InvalidPath("cannot copy: it is a folder, not a file", path=source.key)
    return found


def _copy_to(
    scheduler: SFTPScheduler,
    opened_source: tuple[bytes, RemotePath],
    found: Attributes | StatusError,
    landing: Landing,
    opened: Opened,
) -> Operation[int | None]:
    """Copy from the open source to the open temporary file, and commit it."""
    handle, source = opened_source
    size = None if isinstance(found, StatusError) else found.size
    landed = False
    try:
        limits = yield from scheduler.limits()
        out = Outgoing(StripedFile(scheduler, landing.temp, opened.handle, size=None, channels=1), limits.write)
        if size and scheduler.supports(CopyData):
            yield from _copy_on_server(handle, size, out)
        else:
            incoming = Incoming(scheduler, handle, limits.read, source.key)
            while data := (yield from incoming.next()):
                yield from out.push(data)
        (now,) = yield from request_all([FStat(handle)])
        _check_unchanged(source, found, now, "the source changed while it was copied")
        written = yield from land(scheduler, landing, opened, out, None)
        landed = True
        return written
    except StatusError as refused:
        raise from_status(refused, "cannot copy", source.key) from None
    finally:
        if not landed:
            yield from discard(landing.temp, opened.unclosed)


def _copy_by_disk(scheduler: SFTPScheduler, source: RemotePath, landing: Landing, so_far: SoFar) -> Operation[_Copied]:
    """Copy with one file open at a time: first to a temporary file of this machine, then to the target."""
    with tempfile.TemporaryFile() as local:
        handle = yield from open_for_reading(source)
        try:
            found = yield from _source_attributes(handle, source)
            incoming = Incoming(scheduler, handle, (yield from scheduler.limits()).read, source.key)
            while data := (yield from incoming.next()):
                local.write(data)
            (now,) = yield from request_all([FStat(handle)])
            _check_unchanged(source, found, now, "the source changed while it was copied")
        except StatusError as refused:
            raise from_status(refused, "cannot copy", source.key) from None
        finally:
            yield from close_quietly(handle)
        local.seek(0)
        sending = SoFar()
        try:
            return found, (yield from write_atomic(scheduler, landing, Content(local), None, sending))
        finally:
            so_far.opened = sending.opened


def _check_unchanged(
    source: RemotePath, before: Attributes | StatusError, now: Attributes | StatusError, change: str
) -> None:
    if isinstance(before, Attributes) and isinstance(now, Attributes):
        then, today = (before.size, before.mtime), (now.size, now.mtime)
        if then != today:
            raise TransferCorrupted(f"{change}; wait until it is stable", path=source.key)


def _copy_on_server(handle: bytes, size: int, out: Outgoing) -> Operation[None]:
    """Piece by piece, so that the server is not silent for longer than one piece takes."""
    for start in range(0, size, _COPY_PIECE):
        last = start + _COPY_PIECE >= size
        # 0 means to the end of the file: the size that the server says may be too small
        yield from request(CopyData(handle, start, 0 if last else _COPY_PIECE, out.handle, start))
        out.offset = min(start + _COPY_PIECE, size)
