"""List directories."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from airflow_sftp_backend.backend._paths import RemotePath, are_usual_names, check_server_name
from airflow_sftp_backend.backend._protocol.channel import Pending
from airflow_sftp_backend.backend._protocol.codec import Attributes, DirEntry
from airflow_sftp_backend.backend._protocol.directory_reply import DirectoryReply
from airflow_sftp_backend.backend._protocol.messages import (
    LStat,
    OpenDir,
    ReadDir,
    Stat,
)
from airflow_sftp_backend.backend._protocol.scheduler import (
    Operation,
    reply,
    request,
    request_all,
    send,
    server_traits,
)
from airflow_sftp_backend.backend._receive_limits import (
    MAX_NAMES_AHEAD,
    LimitExceeded,
    ListedNames,
    ListingTally,
)
from airflow_sftp_backend.backend.errors import (
    InvalidPath,
    NotFound,
    SFTPBackendError,
    StatusCode,
    StatusError,
    from_status,
)

from .attributes import close_quietly, find_blocking_file, try_stat

Listing = list[tuple[RemotePath, Attributes]]


class EntryCollector(Protocol):
    """Receive the replies of a listing in order."""

    def add(self, reply: DirectoryReply) -> None:
        """Take the entries of a reply.

        Entries with unsafe names are among them.
        """


C = TypeVar("C", bound=EntryCollector)


class ListingCollector:
    """Collect all entries with safe names.

    :param path: the directory
    :param tally: counts the entries with unsafe names
    """

    def __init__(self, path: RemotePath, tally: ListingTally) -> None:
        self.entries: Listing = []
        self._path = path
        self._tally = tally

    def add(self, reply: DirectoryReply) -> None:
        """Take the entries of a reply."""
        self.entries += safe_entries(self._path, reply, self._tally)


def safe_entries(path: RemotePath, entries: Iterable[DirEntry], tally: ListingTally) -> Listing:
    """Return the entries with safe names, without ``.`` and ``..``.

    :param path: the directory
    :param entries: its entries
    :param tally: counts the entries with unsafe names
    """
    listing: Listing = []
    for entry in entries:
        if entry.name not in (".", ".."):
            try:
                listing.append((path.child(entry.name), entry.attributes))
            except InvalidPath as error:
                tally.add_unsafe_name(error)
    return listing


def remove_unsafe_files(path: RemotePath, reply: DirectoryReply, tally: ListingTally) -> None:
    """Remove regular files with unsafe names from a reply.

    :param path: the directory
    :param reply: the reply; its other entries stay
    :param tally: counts the removed files
    """
    if are_usual_names(reply.names):
        return
    unsafe: list[int] = []
    for index, name in enumerate(reply.names):
        try:
            check_server_name(reply.decode(name), path.key)
        except InvalidPath as error:
            tally.add_unsafe_name(error)
            unsafe.append(index)
    reply.remove(unsafe)


def list_folder(path: RemotePath, tally: ListingTally, read_ahead: int = 2) -> Operation[Listing]:
    """Return the entries of a directory with attributes from READDIR.

    Temporary files are included.

    Entries with unsafe names are omitted, with a warning of ``tally``.

    :param path: the directory
    :param tally: counts the replies
    :param read_ahead: number of READDIR requests to send at first; a reply has about 100 names
    :returns: the entries
    :raises NotFound: if the directory does not exist
    :raises InvalidPath: for a file
    :raises LimitExceeded: if the listing exceeds the limits of ``tally``
    """
    collector, _ = yield from read_directory(path, tally, read_ahead, lambda: ListingCollector(path, tally))
    return (yield from with_file_types(collector.entries))


def list_and_recheck(
    path: RemotePath, tally: ListingTally, read_ahead: int = 2
) -> Operation[tuple[Listing, Attributes | StatusError]]:
    """List a directory, and check its path with the last entries.

    The check is an LSTAT.

    :returns: the entries as of `list_folder`, and the attributes of the path: by then it may be a link
    """
    collector, recheck_reply = yield from read_directory(
        path, tally, read_ahead, lambda: ListingCollector(path, tally), recheck=True
    )
    entries = yield from with_file_types(collector.entries)
    assert recheck_reply is not None
    try:
        return entries, (yield from reply(recheck_reply))
    except StatusError as refused:
        return entries, refused


def read_directory(
    path: RemotePath, tally: ListingTally, read_ahead: int, create: Callable[[], C], *, recheck: bool = False
) -> Operation[tuple[C, Pending[Attributes] | None]]:
    """Read the entries of a directory.

    :param path: the directory
    :param tally: counts the replies
    :param read_ahead: number of READDIR requests to send at first
    :param create: creates the collector of the entries; called again if the listing is repeated
    :param recheck: send an LSTAT of the path with the last READDIR
    :returns: the collector, and the reply to the LSTAT
    :raises NotFound: if the directory does not exist
    :raises InvalidPath: for a file
    :raises LimitExceeded: if the listing exceeds the limits of ``tally``
    """
    tally.check()
    for is_last in (False, False, True):
        collector = create()
        try:
            recheck_reply = yield from _read_entries(path, tally, read_ahead, collector, recheck=recheck)
        except StatusError as refused:
            # the directory exists despite NO_SUCH_FILE: it was created just now, a file was renamed during the
            # listing, or the server follows a dangling link
            followed = yield from try_stat(path, follow=True)
            if is_last or not refused.missing or isinstance(followed, StatusError):
                raise (yield from _explain_list_failure(path, refused, followed, "cannot list")) from None
        else:
            return collector, recheck_reply
    raise AssertionError("the last refusal is raised")


def _read_entries(
    path: RemotePath, tally: ListingTally, read_ahead: int, collector: EntryCollector, *, recheck: bool = False
) -> Operation[Pending[Attributes] | None]:
    """Pass the entries of a directory to a collector. Raises StatusError."""
    handle = yield from request(OpenDir(path.native))
    names = ListedNames(path.key)
    pending_replies: deque[tuple[Pending[DirectoryReply], Pending[Attributes] | None]] = deque()
    try:
        while True:
            # half of the requests at a time: a packet for each would cost more than the names in its reply
            if len(pending_replies) <= read_ahead // 2:
                count = read_ahead - len(pending_replies)
                pending_replies += yield from _send_read_dirs(path, ReadDir(handle, tally), count, recheck=recheck)
            entries_reply, recheck_reply = pending_replies.popleft()
            entries = yield from reply(entries_reply)
            size = len(entries)
            if not size:
                break
            names.add(entries.all_names)
            collector.add(entries)
            # a large directory gets more requests in flight, up to the limit of names requested ahead
            read_ahead = min(2 * read_ahead, 128, max(2, MAX_NAMES_AHEAD // size))
        return recheck_reply
    except LimitExceeded as error:
        error.path = path.key if error.path is None else error.path
        tally.exceeded = error.message
        raise
    finally:
        yield from close_quietly(handle)


def _send_read_dirs(
    path: RemotePath, request: ReadDir, count: int, *, recheck: bool
) -> Operation[list[tuple[Pending[DirectoryReply], Pending[Attributes] | None]]]:
    """Send ``count`` READDIR requests and, with ``recheck``, an LSTAT.

    Each READDIR is returned with the LSTAT.
    """
    entries_replies: list[Pending[DirectoryReply]] = []
    while len(entries_replies) < count:
        entries_replies.append((yield from send(request)))
    recheck_reply = (yield from send(LStat(path.native))) if recheck and entries_replies else None
    return [(entries_reply, recheck_reply) for entries_reply in entries_replies]


def with_file_types(entries: Listing) -> Operation[Listing]:
    """Request the attributes of entries whose type is missing in the listing."""
    unknown = [index for index, (_, attributes) in enumerate(entries) if attributes.mode is None]
    answers = yield from request_all([LStat(entries[index][0].native) for index in unknown])
    for index, answer in zip(unknown, answers, strict=True):
        if isinstance(answer, Attributes):
            entries[index] = (entries[index][0], answer)
    return entries


def stat_links(entries: Listing) -> Operation[dict[RemotePath, Attributes | None]]:
    """Return the attributes of link targets.

    They are None for a dangling link.
    """
    links = [path for path, attributes in entries if attributes.is_link]
    answers = yield from request_all([Stat(path.native) for path in links])
    return {
        path: None if isinstance(answer, StatusError) else answer for path, answer in zip(links, answers, strict=True)
    }


def _explain_list_failure(
    path: RemotePath, refused: StatusError, followed: Attributes | StatusError, action: str
) -> Operation[SFTPBackendError]:
    """Explain a refusal by the attributes found afterwards."""
    # The directory may have been created meanwhile.
    if isinstance(followed, Attributes) and followed.mode is not None and not followed.is_folder:
        return InvalidPath(f"{action}: the path is a file, not a directory", path=path.key, entry_type="file")
    if isinstance(followed, StatusError) and (yield from is_missing(path, followed)):
        return NotFound(f"{action}: no such directory", path=path.key)
    if isinstance(followed, Attributes) and refused.missing:
        return SFTPBackendError(
            f"{action}: the directory exists, but the server reports a missing file in it. The usual cause is a"
            " dangling link, on servers that follow links in listings. Delete the link by its name",
            path=path.key,
        )
    return from_status(refused, action, path.key)


def is_missing(path: RemotePath, refused: StatusError) -> Operation[bool]:
    """Determine whether a refused STAT means a missing path.

    If the status is FAILURE on a server that may use it for missing files, the parents are listed.

    :param path: the path
    :param refused: the refusal
    :returns: False if the path exists, or if the server does not report it
    """
    if refused.missing or (yield from find_blocking_file(path)) is not None:
        return True
    if refused.code != StatusCode.FAILURE or (yield from server_traits()).reports_no_such_file:
        return False
    while not path.is_root:
        try:
            tally = ListingTally(path.parent.key)
            collector = ListingCollector(path.parent, tally)
            yield from _read_entries(path.parent, tally, 2, collector)
        except StatusError:
            if isinstance((yield from try_stat(path.parent, follow=True)), Attributes):
                return False
            path = path.parent
        else:
            return path not in {entry for entry, _ in collector.entries}
    return False
