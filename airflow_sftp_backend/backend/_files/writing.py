"""Write files, and create directories."""

from __future__ import annotations

import logging
from typing import TypeVar, cast

from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.channel import Pending
from airflow_sftp_backend.backend._protocol.codec import Attributes, OpenFlag
from airflow_sftp_backend.backend._protocol.messages import (
    Close,
    FStat,
    LStat,
    MakeDir,
    Open,
    Remove,
    Rename,
    Request,
    Stat,
)
from airflow_sftp_backend.backend._protocol.scheduler import (
    Operation,
    SFTPScheduler,
    reply,
    request_all,
    send,
    server_traits,
)
from airflow_sftp_backend.backend._protocol.striping import StripedFile
from airflow_sftp_backend.backend.errors import (
    AlreadyExists,
    InvalidPath,
    SFTPBackendError,
    StatusCode,
    StatusError,
    from_status,
    printable,
)
from airflow_sftp_backend.backend.models import Progress

from .attributes import ancestors_of, find_blocking_file, parent_is_missing, try_stat
from .listing import is_missing
from .pipelining import PipelinedWriter, UploadSource, write_source

R = TypeVar("R")

logger = logging.getLogger(__name__)


def make_folder(path: RemotePath, *, exist_ok: bool) -> Operation[None]:
    """Create a directory and its missing parents.

    One round trip, two without ``exist_ok``.

    :param path: the directory
    :param exist_ok: accept an existing directory
    :raises AlreadyExists: if the directory exists and ``exist_ok`` is False
    :raises InvalidPath: if the path or a parent is a file
    """
    exists = False
    if not exist_ok:  # STAT first, because some servers accept MKDIR of an existing directory
        existing = yield from try_stat(path, follow=True)
        exists = isinstance(existing, Attributes) and existing.is_folder
    if not exists:
        exists = not (yield from make_folders(path))
    if exists and not exist_ok:
        raise AlreadyExists("cannot create the directory: the directory exists", path=path.key)


def make_folders(path: RemotePath) -> Operation[bool]:
    """Create a directory and its missing parents, including ``base_path``.

    :param path: the directory
    :returns: False if the directory exists
    :raises InvalidPath: if the path or a parent is a file
    """
    chain = [*reversed([path, *ancestors_of(path)])]
    answers = yield from request_all([MakeDir(folder.native) for folder in chain])
    if isinstance(answers[-1], StatusError) and (yield from parent_is_missing(path, answers[-1])):
        # base_path is missing, or the server did not keep the order of the requests: create one by one
        for folder in [*_base_path_ancestors(path), *chain]:
            answers = yield from request_all([MakeDir(folder.native)])
    refused = answers[-1]
    if not isinstance(refused, StatusError):
        return True
    existing = yield from try_stat(path, follow=True)
    if isinstance(existing, Attributes) and (existing.is_folder or existing.mode is None):
        return False
    blocking_file = path if isinstance(existing, Attributes) else (yield from find_blocking_file(path))
    if blocking_file is not None:
        raise InvalidPath("cannot create the directory: the path is a file", path=blocking_file.key, entry_type="file")
    if isinstance(existing, StatusError) and existing.code == refused.code == StatusCode.FAILURE:
        # The directory may exist although the server does not show it. If it is missing, the next request in it fails.
        return False
    raise from_status(refused, "cannot create the directory", path.key)


def _base_path_ancestors(path: RemotePath) -> list[RemotePath]:
    """Return ``base_path`` and its parents, from the top."""
    while not path.is_root:
        path = path.parent
    parts = [part for part in path.native.split("/") if part not in ("", ".")]
    start = "/" if path.native.startswith("/") else ""
    return [RemotePath("", start + "/".join(parts[: count + 1])) for count in range(len(parts))]


def open_new(
    path: RemotePath, target: RemotePath, flags: OpenFlag, create_parents: bool, *, may_exist: bool = True
) -> Operation[tuple[bytes, Attributes | None]]:
    """Open ``path`` for writing, and request the attributes of ``target`` with it.

    One round trip if the parent exists. With EXCLUSIVE and ``may_exist``, a server not known to honour EXCLUSIVE is
    queried first: one more round trip, and two writers can race.

    :param path: the file to open
    :param target: the final path of the file
    :param flags: flags of OPEN
    :param create_parents: whether to create missing parents
    :param may_exist: whether ``path`` may exist
    :returns: the handle, and the attributes of ``target``; None if it does not exist or is ``path``
    """
    traits = yield from server_traits()
    checks_first = OpenFlag.EXCLUSIVE in flags and may_exist and not traits.honours_exclusive
    if checks_first and (yield from _exists_or_is_restored(path)):
        raise (
            yield from explain_write_failure(path, target, StatusError(StatusCode.FILE_ALREADY_EXISTS), exclusive=True)
        )
    open_reply = yield from send(Open(path.native, flags))
    target_reply = None if path == target else (yield from send(Stat(target.native)))
    handle = yield from _handle_or_none(path, target, open_reply, create_parents)
    target_attributes: Attributes | None = None
    if target_reply is not None:
        try:
            target_attributes = yield from reply(target_reply)
        except StatusError:
            target_attributes = None
    if handle is None:
        yield from make_folders(path.parent)
        handle = yield from _handle_or_none(path, target, (yield from send(Open(path.native, flags))), False)
        assert handle is not None
    return handle, target_attributes


def _exists_or_is_restored(path: RemotePath) -> Operation[bool]:
    """Return whether the path exists. Restores the backup of an interrupted replacement."""
    backup_reply = yield from send(LStat(path.backup.native))
    existing = yield from try_stat(path)
    try:
        yield from reply(backup_reply)
    except StatusError:
        return isinstance(existing, Attributes)
    if isinstance(existing, StatusError):
        (answer,) = yield from request_all([Rename(path.backup.native, path.native)])
        return not isinstance(answer, StatusError)
    return True


def _handle_or_none(
    path: RemotePath, target: RemotePath, open_reply: Pending[bytes], create_parents: bool
) -> Operation[bytes | None]:
    """Wait for the handle of a file.

    The result is None if the parent is missing and ``create_parents`` is set.

    :raises SFTPBackendError: for the first refusal
    """
    try:
        return (yield from reply(open_reply))
    except StatusError as error:
        refused = error
    if create_parents and (yield from parent_is_missing(path, refused)):
        return None
    flags = cast(Open, open_reply.request).flags
    exclusive = OpenFlag.EXCLUSIVE in flags
    if (
        exclusive
        and refused.code != StatusCode.PERMISSION_DENIED
        and not (yield from server_traits()).honours_exclusive
    ):
        answer = yield from _open_missing_with_truncate(path, flags)
        if isinstance(answer, bytes):
            return answer
        if answer is not None and create_parents and (yield from parent_is_missing(path, answer)):
            return None
    raise (yield from explain_write_failure(path, target, refused, exclusive=exclusive)) from None


def _open_missing_with_truncate(path: RemotePath, flags: OpenFlag) -> Operation[bytes | StatusError | None]:
    """Open a missing file with TRUNCATE added to the flags.

    Some servers support exclusive OPEN only with TRUNCATE, which is harmless if the path does not exist.

    :returns: the handle or the refusal; None if the path may exist
    """
    existing = yield from try_stat(path)
    if not isinstance(existing, StatusError) or not (yield from is_missing(path, existing)):
        return None
    (answer,) = yield from request_all([Open(path.native, flags | OpenFlag.TRUNCATE)])
    return answer


def explain_write_failure(
    path: RemotePath, target: RemotePath, refused: StatusError, *, exclusive: bool
) -> Operation[SFTPBackendError]:
    """Determine why a write was refused, and create the error."""
    existing = yield from try_stat(target)
    if isinstance(existing, Attributes) and existing.is_folder:
        return is_directory_error(target)
    if isinstance(existing, Attributes) and path == target and not refused.unsupported:
        followed = (yield from try_stat(target, follow=True)) if existing.is_link else existing
        if isinstance(followed, Attributes) and followed.is_folder:
            return is_directory_error(target)
        if exclusive:
            return already_exists(target)
    if (blocking_file := (yield from find_blocking_file(target))) is not None:
        return InvalidPath("cannot write: a parent of the path is a file", path=blocking_file.key, entry_type="file")
    return from_status(refused, "cannot write", target.key)


def is_directory_error(path: RemotePath) -> InvalidPath:
    """Create the error for writing to a directory."""
    return InvalidPath("cannot write: the path is a directory, not a file", path=path.key, entry_type="directory")


def already_exists(path: RemotePath) -> AlreadyExists:
    """Create the error for an existing target."""
    return AlreadyExists("the name is taken", path=path.key, hint="pass overwrite=True to replace it")


def write(
    scheduler: SFTPScheduler,
    path: RemotePath,
    source: UploadSource,
    *,
    overwrite: bool,
    progress: Progress | None = None,
) -> Operation[int | None]:
    """Write directly to the final name.

    Two round trips for a small file in an existing directory.

    Without ``overwrite``, the file is opened exclusively. A server that honours EXCLUSIVE never overwrites an existing
    file; on other servers two writers can race. An incomplete file is removed.

    :param scheduler: the scheduler of the connection
    :param path: the file
    :param source: the content
    :param overwrite: whether to replace an existing file
    :param progress: called with acknowledged bytes
    :returns: the file's time on the server in seconds since 1970, or None if unknown
    """
    flags = OpenFlag.WRITE | OpenFlag.CREATE | (OpenFlag.TRUNCATE if overwrite else OpenFlag.EXCLUSIVE)
    handle, _ = yield from open_new(path, path, flags, create_parents=True)
    open_handle: bytes | None = handle
    complete = False
    try:
        striped_file = StripedFile(scheduler, path, handle, size=None, channels=1)
        writer = PipelinedWriter(striped_file, (yield from scheduler.server_limits()).write, progress=progress)
        yield from write_source(source, writer)
        stat_reply = yield from send(FStat(handle))
        close_reply = yield from send(Close(handle))
        open_handle = None
        yield from writer.drain()
        written = yield from reply_or_none(stat_reply)
        yield from reply(close_reply)
        complete = True
        return None if written is None else written.mtime
    except StatusError as refused:
        raise from_status(refused, "cannot write", path.key) from None
    finally:
        if not complete:
            yield from remove_quietly(path, open_handle)


def reply_or_none(pending: Pending[R]) -> Operation[R | None]:
    """Wait for an optional reply; return None for a refusal."""
    try:
        return (yield from reply(pending))
    except StatusError:
        return None


def remove_quietly(path: RemotePath, handle: bytes | None = None) -> Operation[None]:
    """Close and remove a file; log failures in place of raising them."""
    requests: list[Request[None]] = [] if handle is None else [Close(handle)]
    try:
        for answer in (yield from request_all([*requests, Remove(path.native)]))[-1:]:
            if isinstance(answer, StatusError) and not answer.missing:
                logger.warning(
                    "the incomplete file %r could not be removed: %s",
                    path.native,
                    printable(answer.text) or answer.code,
                )
    except SFTPBackendError:  # the operation itself reports the lost connection
        logger.debug("the connection ended before %r could be removed", path.native)
