"""Operations on files and directories: generators of requests without a socket (see `_protocol.scheduler`).

Servers report most refusals as a bare failure. So an operation sends its request first, and explains a refusal with
further requests afterwards. It never checks in advance a condition that the request itself reports.
"""

from __future__ import annotations

import logging
import stat
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar, cast

from airflow_sftp_backend.backend._limits import (
    MAX_NAMES_AHEAD,
    BoundExceeded,
    ListedNames,
    ListingTally,
    size_mismatch,
)
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.channel import Pending
from airflow_sftp_backend.backend._protocol.codec import Attributes, DirEntry, OpenFlag
from airflow_sftp_backend.backend._protocol.messages import (
    Close,
    FStat,
    LStat,
    MakeDir,
    Open,
    OpenDir,
    ReadDir,
    Remove,
    Rename,
    Request,
    Stat,
)
from airflow_sftp_backend.backend._protocol.scheduler import (
    Operation,
    SFTPScheduler,
    reply,
    request,
    request_all,
    send,
    server_traits,
)
from airflow_sftp_backend.backend._protocol.striping import StripedFile
from airflow_sftp_backend.backend.errors import (
    AlreadyExists,
    InvalidPath,
    NotFound,
    SFTPBackendError,
    StatusCode,
    StatusError,
    from_status,
    printable,
)
from airflow_sftp_backend.backend.models import FileInfo, Progress, utc

from .pipelining import PipelinedReader, PipelinedWriter, UploadSource, write_source

R = TypeVar("R")
logger = logging.getLogger(__name__)

# -- attributes -------------------------------------------------------------------------------------------------------


def stat_or_none(path: RemotePath) -> Operation[Attributes | None]:
    """Return the attributes of a path. Follows links.

    :param path: the path
    :returns: None if the path does not exist, or if a parent is a file
    :raises SFTPBackendError: if the server refuses the request for another reason
    """
    checks_parent = not (yield from server_traits()).finds_nothing_below_files and not path.parent.is_root
    answer, *parent_answers = yield from request_all(
        [Stat(each.native) for each in (path, *([path.parent] if checks_parent else []))]
    )
    if is_parent_a_file(*parent_answers):
        return None
    if isinstance(answer, StatusError):
        if (yield from is_missing(path, answer)):
            return None
        error = from_status(answer, "cannot get attributes", path.key)
        if answer.code == StatusCode.FAILURE and not (yield from server_traits()).reports_no_such_file:
            error.message += "; the server does not say whether the path exists, and does not list the folder above"
        raise error from None
    return (yield from with_file_type(path, answer))


def is_parent_a_file(answer: Attributes | StatusError | None = None) -> bool:
    """Return whether a reply to STAT of the parent is that of a file, which has no entries."""
    return isinstance(answer, Attributes) and answer.mode is not None and not answer.is_folder


def try_stat(path: RemotePath, *, follow: bool = False) -> Operation[Attributes | StatusError]:
    """Return the attributes of a path or the refusal. Follows links only with ``follow``."""
    (answer,) = yield from request_all([Stat(path.native) if follow else LStat(path.native)])
    if not follow:
        answer = yield from fall_back_to_stat(path, answer)
    return answer if isinstance(answer, StatusError) else (yield from with_file_type(path, answer))


def fall_back_to_stat(path: RemotePath, answer: Attributes | StatusError) -> Operation[Attributes | StatusError]:
    """Fall back to STAT if LSTAT is refused: some servers forbid or do not support LSTAT.

    :param path: the path
    :param answer: the reply to LSTAT of ``path``
    :returns: the reply, or the reply to STAT if only STAT finds the path or reports it missing
    """
    if isinstance(answer, Attributes) or answer.missing:
        return answer
    (followed,) = yield from request_all([Stat(path.native)])
    return followed if isinstance(followed, Attributes) or followed.missing else answer


def is_missing(path: RemotePath, refused: StatusError) -> Operation[bool]:
    """Determine whether STAT or LSTAT was refused because the path does not exist.

    If the status is FAILURE on a server that may use it for missing files, the parents are listed.

    :param path: the path
    :param refused: the refusal
    :returns: False if the path exists, or if the server does not report it
    """
    if refused.missing or (yield from _blocking_file(path)) is not None:
        return True
    if refused.code != StatusCode.FAILURE or (yield from server_traits()).reports_no_such_file:
        return False
    while not path.is_root:
        try:
            entries, _ = yield from _read_entries(path.parent, ListingTally(path.parent.key), 2)
        except StatusError:
            if isinstance((yield from try_stat(path.parent, follow=True)), Attributes):
                return False
            path = path.parent
        else:
            return path not in {entry for entry, _ in entries}
    return False


def parent_is_missing(path: RemotePath, refused: StatusError) -> Operation[bool]:
    """Determine whether a request for ``path`` may have been refused because the parent is missing."""
    if refused.missing:
        return True
    if refused.code != StatusCode.FAILURE or (yield from server_traits()).reports_no_such_file:
        return False
    return isinstance((yield from try_stat(path.parent, follow=True)), StatusError)


def with_file_type(path: RemotePath, attributes: Attributes) -> Operation[Attributes]:
    """Add the file type. If the server sends none, a path that can be listed is a directory."""
    if attributes.mode is not None:
        return attributes
    try:
        handle = yield from request(OpenDir(path.native))
        try:
            yield from request(ReadDir(handle))  # some servers accept OPENDIR for a file and refuse only READDIR
        finally:
            yield from close_quietly(handle)
    except StatusError:
        return attributes
    return replace(attributes, mode=stat.S_IFDIR)


def get_file_info(path: RemotePath) -> Operation[FileInfo]:
    """Return the FileInfo of a file. Raises NotFound, or InvalidPath for a directory."""
    outcome = file_info_or_error(path, (yield from stat_or_none(path)))
    if isinstance(outcome, SFTPBackendError):
        raise outcome
    return outcome


def file_info_or_error(path: RemotePath, attributes: Attributes | None) -> FileInfo | NotFound | InvalidPath:
    """Convert the result of `stat_or_none` for a file, or return the error."""
    if attributes is None:
        return NotFound("no such file", path=path.key)
    if not attributes.is_file:
        return InvalidPath("the path is a folder, not a file", path=path.key)
    return to_file_info(path, attributes)


def to_file_info(path: RemotePath, attributes: Attributes) -> FileInfo:
    """Convert attributes to a FileInfo."""
    mode = None if attributes.mode is None else attributes.mode & 0o7777
    return FileInfo(path.key, path.name, attributes.size or 0, utc(attributes.mtime), mode)


def check_folder(path: RemotePath) -> Operation[None]:
    """Check that a path is a directory. One round trip. Raises NotFound, or InvalidPath for a file."""
    attributes = yield from stat_or_none(path)
    if attributes is None:
        raise NotFound("no such folder", path=path.key)
    if attributes.mode is not None and not attributes.is_folder:
        raise InvalidPath("the path is a file, not a folder", path=path.key)


def _blocking_file(path: RemotePath) -> Operation[RemotePath | None]:
    """Return the nearest parent of the path that is a file, or None."""
    ancestors = list(_ancestors(path))
    for ancestor, attributes in zip(
        ancestors, (yield from request_all([Stat(a.native) for a in ancestors])), strict=True
    ):
        if isinstance(attributes, Attributes) and attributes.mode is not None and not attributes.is_folder:
            return ancestor
    return None


def _ancestors(path: RemotePath) -> Iterator[RemotePath]:
    """Yield the parents of a path, the nearest first, without the root."""
    while not (path := path.parent).is_root:
        yield path


# -- listing ----------------------------------------------------------------------------------------------------------


Listing = list[tuple[RemotePath, Attributes]]


def list_folder(path: RemotePath, tally: ListingTally, depth: int = 2) -> Operation[Listing]:
    """Return the entries of a directory, including temporary files, with their attributes from READDIR.

    Entries with unsafe names are omitted, with a warning of ``tally``.

    :param path: the directory
    :param tally: counts the replies
    :param depth: number of READDIR requests sent at first; a reply has about 100 names
    :returns: the entries
    :raises NotFound: if the directory does not exist
    :raises InvalidPath: for a file
    :raises BoundExceeded: if the listing exceeds the bounds of ``tally``
    """
    return (yield from _list_entries(path, tally, depth))[0]


def list_and_recheck(
    path: RemotePath, tally: ListingTally, depth: int = 2
) -> Operation[tuple[Listing, Attributes | StatusError]]:
    """List a directory, and request LSTAT of its path together with the last entries.

    :returns: the entries as of `list_folder`, and the attributes of the path: by then it may be a link
    """
    entries, recheck_reply = yield from _list_entries(path, tally, depth, recheck=True)
    assert recheck_reply is not None
    try:
        return entries, (yield from reply(recheck_reply))
    except StatusError as refused:
        return entries, refused


def _list_entries(
    path: RemotePath, tally: ListingTally, depth: int, *, recheck: bool = False
) -> Operation[tuple[Listing, Pending[Attributes] | None]]:
    """List a directory. With ``recheck``, return the reply to the LSTAT sent with the last READDIR too."""
    tally.check()
    for is_last in (False, False, True):
        try:
            entries, recheck_reply = yield from _read_entries(path, tally, depth, recheck=recheck)
        except StatusError as refused:
            # the directory exists despite NO_SUCH_FILE: it was created just now, a file was renamed during the
            # listing, or the server follows a dangling link
            followed = yield from try_stat(path, follow=True)
            if is_last or not refused.missing or isinstance(followed, StatusError):
                raise (yield from _explain_list_failure(path, refused, followed, "cannot list")) from None
        else:
            return (yield from _with_file_types(entries)), recheck_reply
    raise AssertionError("the last refusal is raised")


def _read_entries(
    path: RemotePath, tally: ListingTally, depth: int, *, recheck: bool = False
) -> Operation[tuple[Listing, Pending[Attributes] | None]]:
    """List a directory with the attributes from READDIR. Raises StatusError."""
    handle = yield from request(OpenDir(path.native))
    entries: Listing = []
    names = ListedNames(path.key)
    pending_replies: deque[tuple[Pending[list[DirEntry]], Pending[Attributes] | None]] = deque()
    try:
        while True:
            sending = _send_read_dirs(path, ReadDir(handle, tally), depth - len(pending_replies), recheck=recheck)
            pending_replies.extend((yield from sending))
            entries_reply, recheck_reply = pending_replies.popleft()
            batch = yield from reply(entries_reply)
            if not batch:
                break
            names.add(entry.name for entry in batch)
            _add_entries(entries, path, batch, tally)
            depth = min(2 * depth, 128, max(2, MAX_NAMES_AHEAD // len(batch)))
        return entries, recheck_reply
    except BoundExceeded as error:
        error.path = path.key if error.path is None else error.path
        tally.exceeded = error.message
        raise
    finally:
        yield from close_quietly(handle)


def _send_read_dirs(
    path: RemotePath, request: ReadDir, count: int, *, recheck: bool
) -> Operation[list[tuple[Pending[list[DirEntry]], Pending[Attributes] | None]]]:
    """Send ``count`` READDIR requests and, with ``recheck``, an LSTAT; return each READDIR with the LSTAT."""
    entries_replies: list[Pending[list[DirEntry]]] = []
    while len(entries_replies) < count:
        entries_replies.append((yield from send(request)))
    recheck_reply = (yield from send(LStat(path.native))) if recheck and entries_replies else None
    return [(entries_reply, recheck_reply) for entries_reply in entries_replies]


def _add_entries(entries: Listing, path: RemotePath, batch: list[DirEntry], tally: ListingTally) -> None:
    for entry in batch:
        if entry.name not in (".", ".."):
            try:
                entries.append((path.child(entry.name), entry.attributes))
            except InvalidPath as error:
                tally.add_unsafe_name(error)


def _with_file_types(entries: Listing) -> Operation[Listing]:
    """Request the attributes of entries whose type is missing in the listing."""
    unknown = [index for index, (_, attributes) in enumerate(entries) if attributes.mode is None]
    answers = yield from request_all([LStat(entries[index][0].native) for index in unknown])
    for index, answer in zip(unknown, answers, strict=True):
        if isinstance(answer, Attributes):
            entries[index] = (entries[index][0], answer)
    return entries


def stat_links(entries: Listing) -> Operation[dict[RemotePath, Attributes | None]]:
    """Return the attributes of the targets of links; None for a dangling link."""
    links = [path for path, attributes in entries if attributes.is_link]
    answers = yield from request_all([Stat(path.native) for path in links])
    return {
        path: None if isinstance(answer, StatusError) else answer for path, answer in zip(links, answers, strict=True)
    }


def close_quietly(handle: bytes) -> Operation[None]:
    """Close a handle that was only read, without waiting: the reply does not matter."""
    try:
        yield from send(Close(handle))
    except SFTPBackendError:  # the handle ends with the connection
        logger.debug("the connection ended before a handle was closed")


def _explain_list_failure(
    path: RemotePath, refused: StatusError, followed: Attributes | StatusError, action: str
) -> Operation[SFTPBackendError]:
    """Explain a refusal by the attributes found afterwards. The directory may have been created meanwhile."""
    if isinstance(followed, Attributes) and followed.mode is not None and not followed.is_folder:
        return InvalidPath(f"{action}: the path is a file, not a folder", path=path.key)
    if isinstance(followed, StatusError) and (yield from is_missing(path, followed)):
        return NotFound(f"{action}: no such folder", path=path.key)
    if isinstance(followed, Attributes) and refused.missing:
        return SFTPBackendError(
            f"{action}: the folder exists, but the server reports a missing file in it. The usual cause is a dangling"
            " link, on servers that follow links in listings. Delete the link by its name",
            path=path.key,
        )
    return from_status(refused, action, path.key)


# -- reading ----------------------------------------------------------------------------------------------------------


def open_for_reading(path: RemotePath) -> Operation[bytes]:
    """Open a file for reading. Raises NotFound, or InvalidPath for a directory (on some servers at the first read)."""
    try:
        return (yield from request(Open(path.native, OpenFlag.READ)))
    except StatusError as refused:
        raise (yield from explain_read_failure(path, refused)) from None


def read_into(
    scheduler: SFTPScheduler, path: RemotePath, sink: Callable[[memoryview], object], *, max_bytes: int | None = None
) -> Operation[None]:
    """Read a file to its end. Two round trips for a small file.

    :param scheduler: the scheduler of the connection
    :param path: the file
    :param sink: called with each block in order
    :param max_bytes: maximum size of the file
    :raises TransferCorrupted: if the file ends before the stated size or exceeds ``max_bytes``
    """
    handle = yield from open_for_reading(path)
    try:
        reader = PipelinedReader(scheduler, handle, (yield from scheduler.limits()).read, path.key, to_end=True)
        while data := (yield from reader.read_next()):
            if max_bytes is not None and reader.size > max_bytes:
                raise size_mismatch(max_bytes, reader.size, path.key, reached_end=False)
            sink(data)
        if reader.size < (stated_size := reader.attributes.size or 0):
            raise size_mismatch(stated_size, reader.size, path.key)
    except StatusError as refused:
        raise (yield from explain_read_failure(path, refused)) from None
    finally:
        yield from close_quietly(handle)


def explain_read_failure(path: RemotePath, refused: StatusError) -> Operation[SFTPBackendError]:
    """Determine why a read was refused, and create the error."""
    if not refused.missing:
        followed = yield from try_stat(path, follow=True)
        if isinstance(followed, Attributes) and followed.is_folder:
            return InvalidPath("cannot read: the path is a folder, not a file", path=path.key)
        if (yield from _blocking_file(path)) is not None:
            return NotFound("cannot read: a parent of the path is a file", path=path.key)
        if isinstance(followed, StatusError) and (yield from is_missing(path, followed)):
            return NotFound("cannot read: no such file", path=path.key)
    return from_status(refused, "cannot read", path.key)


# -- writing ----------------------------------------------------------------------------------------------------------


def make_folders(path: RemotePath) -> Operation[None]:
    """Create a directory and its missing parents, including ``base_path``.

    :param path: the directory
    :raises InvalidPath: if the path or a parent is a file
    """
    chain = [*reversed([path, *_ancestors(path)])]
    answers = yield from request_all([MakeDir(folder.native) for folder in chain])
    if isinstance(answers[-1], StatusError) and (yield from parent_is_missing(path, answers[-1])):
        # base_path is missing, or the server did not keep the order of the requests: create one by one
        for folder in [*_base_path_ancestors(path), *chain]:
            answers = yield from request_all([MakeDir(folder.native)])
    refused = answers[-1]
    if not isinstance(refused, StatusError):
        return
    existing = yield from try_stat(path, follow=True)
    if isinstance(existing, Attributes) and (existing.is_folder or existing.mode is None):
        return
    blocking_file = path if isinstance(existing, Attributes) else (yield from _blocking_file(path))
    if blocking_file is not None:
        raise InvalidPath("cannot make the folder: the path is a file", path=blocking_file.key)
    if StatusCode.FAILURE == refused.code == getattr(existing, "code", None):
        return  # the directory may exist although the server does not show it; the next request in it tells
    raise from_status(refused, "cannot make the folder", path.key)


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
        yield from make_folders(target.parent)
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
    """Wait for the handle of a file; return None if the parent is missing and ``create_parents`` is set.

    Some servers support exclusive OPEN only with TRUNCATE. If the path does not exist, TRUNCATE is harmless, and the
    request is repeated with it.

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
        existing = yield from try_stat(path)
        if isinstance(existing, StatusError) and (yield from is_missing(path, existing)):
            (answer,) = yield from request_all([Open(path.native, flags | OpenFlag.TRUNCATE)])
            if isinstance(answer, bytes):
                return answer
            if create_parents and (yield from parent_is_missing(path, answer)):
                return None
    raise (yield from explain_write_failure(path, target, refused, exclusive=exclusive)) from None


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
    if (blocking_file := (yield from _blocking_file(target))) is not None:
        return InvalidPath("cannot write: a parent of the path is a file", path=blocking_file.key)
    return from_status(refused, "cannot write", target.key)


def is_directory_error(path: RemotePath) -> InvalidPath:
    """Create the error for writing to a directory."""
    return InvalidPath("cannot write: the path is a folder, not a file", path=path.key)


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
    """Write directly to the final name. Two round trips for a small file in an existing directory.

    Without ``overwrite``, the file is opened exclusively. Only on a server known to honour EXCLUSIVE, an existing file
    is never overwritten; on others two writers can race. An incomplete file is removed.

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
        writer = PipelinedWriter(striped_file, (yield from scheduler.limits()).write, progress=progress)
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
    """Close and remove a file, and log failures: an error of the clean-up must not hide its cause."""
    requests: list[Request[None]] = [] if handle is None else [Close(handle)]
    try:
        for answer in (yield from request_all([*requests, Remove(path.native)]))[-1:]:
            if isinstance(answer, StatusError) and not answer.missing:
                logger.warning(
                    "the temporary file %r could not be removed: %s",
                    path.native,
                    printable(answer.text) or answer.code,
                )
    except SFTPBackendError:  # the operation itself reports the lost connection
        logger.debug("the connection ended before %r could be removed", path.native)
