"""What each promise is on the wire: generators that yield requests (see _wire) and know no socket.

Servers report most refusals as a bare failure. So an operation tries first and, only when refused, looks at the names
concerned to say why; it never asks beforehand what the attempt itself answers.
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

from .pipelining import Content, Incoming, Outgoing, write_source

R = TypeVar("R")
logger = logging.getLogger(__name__)

# -- looking ----------------------------------------------------------------------------------------------------------


def look(place: RemotePath) -> Operation[Attributes | None]:
    """What a path leads to, links followed; None if nothing, or if a file stands where the path has a folder."""
    checks_parent = not (yield from server_traits()).finds_nothing_below_files and not place.parent.is_root
    found, *above = yield from request_all(
        [Stat(at.native) for at in (place, *([place.parent] if checks_parent else []))]
    )
    if is_file_above(*above):
        return None
    if isinstance(found, StatusError):
        if (yield from is_missing(place, found)):
            return None
        error = from_status(found, "cannot look at it", place.key)
        if found.code == StatusCode.FAILURE and not (yield from server_traits()).reports_no_such_file:
            error.message += "; the server does not say whether the name is missing, and lists nothing to find it out"
        raise error from None
    return (yield from with_type(place, found))


def is_file_above(answer: Attributes | StatusError | None = None) -> bool:
    """Tell whether the answer to a STAT of the folder above is that of a file, below which nothing can be."""
    return isinstance(answer, Attributes) and answer.mode is not None and not answer.is_folder


def see(place: RemotePath, *, follow: bool = False) -> Operation[Attributes | StatusError]:
    """What stands under a path (with ``follow``: what it leads to), or why it is not shown."""
    (found,) = yield from request_all([Stat(place.native) if follow else LStat(place.native)])
    if not follow:
        found = yield from or_stat(place, found)
    return found if isinstance(found, StatusError) else (yield from with_type(place, found))


def or_stat(place: RemotePath, answer: Attributes | StatusError) -> Operation[Attributes | StatusError]:
    """Fall back to STAT where LSTAT is refused: some servers forbid it, and some do not know it.

    :param answer: the answer to an LSTAT of ``place``
    :returns: that answer, or the answer to a STAT if only this tells what is there
    """
    if isinstance(answer, Attributes) or answer.missing:
        return answer
    (found,) = yield from request_all([Stat(place.native)])
    return found if isinstance(found, Attributes) or found.missing else answer


def is_missing(place: RemotePath, refused: StatusError) -> Operation[bool]:
    """Find out whether STAT or LSTAT of a path was refused because nothing is there.

    Where the server says FAILURE and may mean that, the folders above are listed.

    :returns: False if something is there, or if the server does not tell
    """
    if refused.missing or (yield from _file_above(place)) is not None:
        return True
    if refused.code != StatusCode.FAILURE or (yield from server_traits()).reports_no_such_file:
        return False
    while not place.is_root:
        try:
            entries, _ = yield from _read_entries(place.parent, ListingTally(place.parent.key), 2)
        except StatusError:
            if isinstance((yield from see(place.parent, follow=True)), Attributes):
                return False
            place = place.parent
        else:
            return place not in {entry for entry, _ in entries}
    return False


def parent_is_missing(place: RemotePath, refused: StatusError) -> Operation[bool]:
    """Find out whether a request for ``place`` may have been refused because the folder above is missing."""
    if refused.missing:
        return True
    if refused.code != StatusCode.FAILURE or (yield from server_traits()).reports_no_such_file:
        return False
    return isinstance((yield from see(place.parent, follow=True)), StatusError)


def with_type(place: RemotePath, found: Attributes) -> Operation[Attributes]:
    """The attributes; from a server that sends no type, what can be listed is a folder."""
    if found.mode is not None:
        return found
    try:
        handle = yield from request(OpenDir(place.native))
        try:
            yield from request(ReadDir(handle))  # some servers open a file for listing and refuse only here
        finally:
            yield from close_quietly(handle)
    except StatusError:
        return found
    return replace(found, mode=stat.S_IFDIR)


def info(place: RemotePath) -> Operation[FileInfo]:
    """The FileInfo of a file. NotFound, InvalidPath for a folder."""
    found = as_file(place, (yield from look(place)))
    if isinstance(found, SFTPBackendError):
        raise found
    return found


def as_file(place: RemotePath, looked: Attributes | None) -> FileInfo | NotFound | InvalidPath:
    """What `look` has found, where a file is expected."""
    if looked is None:
        return NotFound("no such file", path=place.key)
    if not looked.is_file:
        return InvalidPath("it is a folder, not a file", path=place.key)
    return file_info(place, looked)


def file_info(place: RemotePath, attributes: Attributes) -> FileInfo:
    """Attributes in the caller's terms."""
    mode = None if attributes.mode is None else attributes.mode & 0o7777
    return FileInfo(place.key, place.name, attributes.size or 0, utc(attributes.mtime), mode)


def check_folder(place: RemotePath) -> Operation[None]:
    """One round trip. NotFound if nothing is there, InvalidPath if a file is."""
    attributes = yield from look(place)
    if attributes is None:
        raise NotFound("no such folder", path=place.key)
    if attributes.mode is not None and not attributes.is_folder:
        raise InvalidPath("it is a file, not a folder", path=place.key)


def _file_above(place: RemotePath) -> Operation[RemotePath | None]:
    """The file that stands where the path has a folder, if one does."""
    above = list(_ancestors(place))
    for ancestor, attributes in zip(above, (yield from request_all([Stat(a.native) for a in above])), strict=True):
        if isinstance(attributes, Attributes) and attributes.mode is not None and not attributes.is_folder:
            return ancestor
    return None


def _ancestors(place: RemotePath) -> Iterator[RemotePath]:
    """The folders above, the nearest first, the root left out."""
    while not (place := place.parent).is_root:
        yield place


# -- listing ----------------------------------------------------------------------------------------------------------


Listing = list[tuple[RemotePath, Attributes]]


def list_folder(place: RemotePath, tally: ListingTally, depth: int = 2) -> Operation[Listing]:
    """Every entry of a folder with the attributes that READDIR gives, temporary names too.

    ``depth`` is how many requests for the next entries go out at first; a server gives some 100 names to each.
    Raises NotFound, InvalidPath for a file, BoundExceeded. Names that are no plain names are left out; ``tally`` warns
    of them, and counts the replies.
    """
    return (yield from _listed(place, tally, depth))[0]


def list_and_look_again(
    place: RemotePath, tally: ListingTally, depth: int = 2
) -> Operation[tuple[Listing, Attributes | StatusError]]:
    """List a folder, and look (LSTAT) at what has its name when the last entries are requested.

    :returns: the entries as `list_folder` gives them, and what the folder was by then: it may have become a link
    """
    entries, looking = yield from _listed(place, tally, depth, looks_again=True)
    assert looking is not None
    try:
        return entries, (yield from reply(looking))
    except StatusError as refused:
        return entries, refused


def _listed(
    place: RemotePath, tally: ListingTally, depth: int, *, looks_again: bool = False
) -> Operation[tuple[Listing, Pending[Attributes] | None]]:
    """List a folder; with ``looks_again``, the LSTAT too that was sent along with the READDIR that ended the list."""
    tally.check()
    for is_last in (False, False, True):
        try:
            entries, looking = yield from _read_entries(place, tally, depth, looks_again=looks_again)
        except StatusError as refused:
            # a folder that is there though something was missing has just been made, or a file in it was renamed while
            # it was listed, or its listing follows a dangling link
            found = yield from see(place, follow=True)
            if is_last or not refused.missing or isinstance(found, StatusError):
                raise (yield from _why_not_a_folder(place, refused, found, "cannot list it")) from None
        else:
            return (yield from _with_types(entries)), looking
    raise AssertionError("the last refusal is raised")


def _read_entries(
    place: RemotePath, tally: ListingTally, depth: int, *, looks_again: bool = False
) -> Operation[tuple[Listing, Pending[Attributes] | None]]:
    """As `_listed`, the attributes as READDIR gives them. Raises Refused."""
    handle = yield from request(OpenDir(place.native))
    entries: Listing = []
    names = ListedNames(place.key)
    waiting: deque[tuple[Pending[list[DirEntry]], Pending[Attributes] | None]] = deque()
    try:
        while True:
            ahead = _read_ahead(place, ReadDir(handle, tally), depth - len(waiting), looks_again=looks_again)
            waiting.extend((yield from ahead))
            reading, looking = waiting.popleft()
            batch = yield from reply(reading)
            if not batch:
                break
            names.add(entry.name for entry in batch)
            _add(entries, place, batch, tally)
            depth = min(2 * depth, 128, max(2, MAX_NAMES_AHEAD // len(batch)))
        return entries, looking
    except BoundExceeded as error:
        error.path = place.key if error.path is None else error.path
        tally.exceeded = error.message
        raise
    finally:
        yield from close_quietly(handle)


def _read_ahead(
    place: RemotePath, request: ReadDir, count: int, *, looks_again: bool
) -> Operation[list[tuple[Pending[list[DirEntry]], Pending[Attributes] | None]]]:
    """Post ``count`` READDIRs and, with ``looks_again``, an LSTAT after them: each with that LSTAT."""
    readings: list[Pending[list[DirEntry]]] = []
    while len(readings) < count:
        readings.append((yield from send(request)))
    looking = (yield from send(LStat(place.native))) if looks_again and readings else None
    return [(reading, looking) for reading in readings]


def _add(entries: Listing, place: RemotePath, batch: list[DirEntry], tally: ListingTally) -> None:
    for entry in batch:
        if entry.name not in (".", ".."):
            try:
                entries.append((place.child(entry.name), entry.attributes))
            except InvalidPath as error:
                tally.add_unsafe_name(error)


def _with_types(entries: Listing) -> Operation[Listing]:
    """The entries, asking again for those whose type the listing left out."""
    unknown = [at for at, (_, attributes) in enumerate(entries) if attributes.mode is None]
    answers = yield from request_all([LStat(entries[at][0].native) for at in unknown])
    for at, answer in zip(unknown, answers, strict=True):
        if isinstance(answer, Attributes):
            entries[at] = (entries[at][0], answer)
    return entries


def follow_links(entries: Listing) -> Operation[dict[RemotePath, Attributes | None]]:
    """What the links among the entries lead to: None for a link to nothing."""
    links = [place for place, attributes in entries if attributes.is_link]
    answers = yield from request_all([Stat(place.native) for place in links])
    return {
        place: None if isinstance(answer, StatusError) else answer for place, answer in zip(links, answers, strict=True)
    }


def close_quietly(handle: bytes) -> Operation[None]:
    """Closes a handle that was only read, without waiting: nothing depends on the answer."""
    try:
        yield from send(Close(handle))
    except SFTPBackendError:  # the line is gone, and the handle with it
        logger.debug("the connection ended before a handle was closed")


def _why_not_a_folder(
    place: RemotePath, refused: StatusError, found: Attributes | StatusError, doing: str
) -> Operation[SFTPBackendError]:
    """Explain a refusal by what was found there afterwards; a folder may be made at any moment in between."""
    if isinstance(found, Attributes) and found.mode is not None and not found.is_folder:
        return InvalidPath(f"{doing}: it is a file, not a folder", path=place.key)
    if isinstance(found, StatusError) and (yield from is_missing(place, found)):
        return NotFound(f"{doing}: no such folder", path=place.key)
    if isinstance(found, Attributes) and refused.missing:
        return SFTPBackendError(
            f"{doing}: the folder is there, but the server says that something in it is missing. A link to nothing in"
            " the folder is the usual cause on servers that follow links in a listing; delete the link by its name",
            path=place.key,
        )
    return from_status(refused, doing, place.key)


# -- reading ----------------------------------------------------------------------------------------------------------


def open_for_reading(place: RemotePath) -> Operation[bytes]:
    """A handle. Raises NotFound, InvalidPath for a folder (some servers say so only at the first read)."""
    try:
        return (yield from request(Open(place.native, OpenFlag.READ)))
    except StatusError as refused:
        raise (yield from why_unreadable(place, refused)) from None


def read_into(
    scheduler: SFTPScheduler, place: RemotePath, sink: Callable[[memoryview], object], *, most: int | None = None
) -> Operation[None]:
    """Read a file to its end into ``sink``, which is called with each piece in order.

    Two round trips for a small file. Raises TransferCorrupted if the file ends before the size that the server says,
    as a part must not be taken for the whole, or has more than ``most`` bytes.
    """
    handle = yield from open_for_reading(place)
    try:
        incoming = Incoming(scheduler, handle, (yield from scheduler.limits()).read, place.key, to_end=True)
        while data := (yield from incoming.next()):
            if most is not None and incoming.size > most:
                raise size_mismatch(most, incoming.size, place.key, reached_end=False)
            sink(data)
        if incoming.size < (told := incoming.attributes.size or 0):
            raise size_mismatch(told, incoming.size, place.key)
    except StatusError as refused:
        raise (yield from why_unreadable(place, refused)) from None
    finally:
        yield from close_quietly(handle)


def why_unreadable(place: RemotePath, refused: StatusError) -> Operation[SFTPBackendError]:
    if not refused.missing:
        found = yield from see(place, follow=True)
        if isinstance(found, Attributes) and found.is_folder:
            return InvalidPath("cannot read: it is a folder, not a file", path=place.key)
        if (yield from _file_above(place)) is not None:
            return NotFound("cannot read: a file stands where the path has a folder", path=place.key)
        if isinstance(found, StatusError) and (yield from is_missing(place, found)):
            return NotFound("cannot read: no such file", path=place.key)
    return from_status(refused, "cannot read", place.key)


# -- writing ----------------------------------------------------------------------------------------------------------


def make_folders(place: RemotePath) -> Operation[None]:
    """Makes the folder and those above it, base_path too.

    Existing ones are no error; InvalidPath if a file is in the way.
    """
    chain = [*reversed([place, *_ancestors(place)])]
    answers = yield from request_all([MakeDir(folder.native) for folder in chain])
    if isinstance(answers[-1], StatusError) and (yield from parent_is_missing(place, answers[-1])):
        # base_path itself is missing, or the server did not keep to the order of the requests: one by one
        for folder in [*_base_of(place), *chain]:
            answers = yield from request_all([MakeDir(folder.native)])
    refused = answers[-1]
    if not isinstance(refused, StatusError):
        return
    found = yield from see(place, follow=True)
    if isinstance(found, Attributes) and (found.is_folder or found.mode is None):
        return
    in_the_way = place if isinstance(found, Attributes) else (yield from _file_above(place))
    if in_the_way is not None:
        raise InvalidPath("cannot make the folder: a file has its name", path=in_the_way.key)
    if StatusCode.FAILURE == refused.code == getattr(found, "code", None):
        return  # it may be there, and the server does not show it: the request that needs it tells
    raise from_status(refused, "cannot make the folder", place.key)


def _base_of(place: RemotePath) -> list[RemotePath]:
    """base_path and the folders above it, from the top."""
    while not place.is_root:
        place = place.parent
    parts = [part for part in place.native.split("/") if part not in ("", ".")]
    start = "/" if place.native.startswith("/") else ""
    return [RemotePath("", start + "/".join(parts[: count + 1])) for count in range(len(parts))]


def open_new(
    place: RemotePath, target: RemotePath, flags: OpenFlag, create_parents: bool, *, may_exist: bool = True
) -> Operation[tuple[bytes, Attributes | None]]:
    """Open ``place`` for writing, and look at ``target`` along with it. One round trip if the folder is there.

    With EXCLUSIVE, a server that is not known to honour it is asked first whether ``place`` is there, unless
    ``may_exist`` is False: one round trip more. Two writers can then race.

    :returns: the handle, and what ``target`` leads to; None if nothing, or if it is ``place``
    """
    traits = yield from server_traits()
    looks_first = OpenFlag.EXCLUSIVE in flags and may_exist and not traits.honours_exclusive
    if looks_first and (yield from _is_occupied(place)):
        raise (yield from why_unwritable(place, target, StatusError(StatusCode.FILE_ALREADY_EXISTS), exclusive=True))
    opening = yield from send(Open(place.native, flags))
    looking = None if place == target else (yield from send(Stat(target.native)))
    handle = yield from _handle_or_none(place, target, opening, create_parents)
    seen: Attributes | None = None
    if looking is not None:
        try:
            seen = yield from reply(looking)
        except StatusError:
            seen = None
    if handle is None:
        yield from make_folders(target.parent)
        handle = yield from _handle_or_none(place, target, (yield from send(Open(place.native, flags))), False)
        assert handle is not None
    return handle, seen


def _is_occupied(place: RemotePath) -> Operation[bool]:
    """True if something has the name, or a backup that an interrupted replacement left, which is restored."""
    asked = yield from send(LStat(place.backup.native))
    found = yield from see(place)
    try:
        yield from reply(asked)
    except StatusError:
        return isinstance(found, Attributes)
    if isinstance(found, StatusError):
        (answer,) = yield from request_all([Rename(place.backup.native, place.native)])
        return not isinstance(answer, StatusError)
    return True


def _handle_or_none(
    place: RemotePath, target: RemotePath, opening: Pending[bytes], create_parents: bool
) -> Operation[bytes | None]:
    """Wait for the handle of a file that is being opened; None if the folder is missing and ``create_parents``.

    Some servers know no exclusive OPEN without TRUNCATE. With TRUNCATE it is tried once more if nothing is there, as
    then it does no harm.

    :raises SFTPBackendError: for the first refusal
    """
    try:
        return (yield from reply(opening))
    except StatusError as error:
        refused = error
    if create_parents and (yield from parent_is_missing(place, refused)):
        return None
    flags = cast(Open, opening.request).flags
    exclusive = OpenFlag.EXCLUSIVE in flags
    if (
        exclusive
        and refused.code != StatusCode.PERMISSION_DENIED
        and not (yield from server_traits()).honours_exclusive
    ):
        found = yield from see(place)
        if isinstance(found, StatusError) and (yield from is_missing(place, found)):
            (answer,) = yield from request_all([Open(place.native, flags | OpenFlag.TRUNCATE)])
            if isinstance(answer, bytes):
                return answer
            if create_parents and (yield from parent_is_missing(place, answer)):
                return None
    raise (yield from why_unwritable(place, target, refused, exclusive=exclusive)) from None


def why_unwritable(
    place: RemotePath, target: RemotePath, refused: StatusError, *, exclusive: bool
) -> Operation[SFTPBackendError]:
    found = yield from see(target)
    if isinstance(found, Attributes) and found.is_folder:
        return is_a_folder(target)
    if isinstance(found, Attributes) and place == target and not refused.unsupported:
        leads_to = (yield from see(target, follow=True)) if found.is_link else found
        if isinstance(leads_to, Attributes) and leads_to.is_folder:
            return is_a_folder(target)
        if exclusive:
            return taken(target)
    if (above := (yield from _file_above(target))) is not None:
        return InvalidPath("cannot write: a file stands where the path has a folder", path=above.key)
    return from_status(refused, "cannot write", target.key)


def is_a_folder(place: RemotePath) -> InvalidPath:
    return InvalidPath("cannot write: it is a folder, not a file", path=place.key)


def taken(place: RemotePath) -> AlreadyExists:
    return AlreadyExists("the name is taken", path=place.key, hint="pass overwrite=True to replace it")


def write(
    scheduler: SFTPScheduler, place: RemotePath, content: Content, *, overwrite: bool, progress: Progress | None = None
) -> Operation[int | None]:
    """Writes straight to the final name: two round trips for a small file in an existing folder.

    ``overwrite=False`` opens exclusively: where the server is known to honour that, it cannot overwrite whatever
    happens; elsewhere it looks first, and two writers can race. What fails half-way is removed.

    :returns: the time of the file on the server, in seconds since 1970, if the server tells
    """
    flags = OpenFlag.WRITE | OpenFlag.CREATE | (OpenFlag.TRUNCATE if overwrite else OpenFlag.EXCLUSIVE)
    handle, _ = yield from open_new(place, place, flags, create_parents=True)
    unclosed: bytes | None = handle
    whole = False
    try:
        spread = StripedFile(scheduler, place, handle, size=None, channels=1)
        out = Outgoing(spread, (yield from scheduler.limits()).write, progress=progress)
        yield from write_source(content, out)
        looking = yield from send(FStat(handle))
        closing = yield from send(Close(handle))
        unclosed = None
        yield from out.drain()
        written = yield from reply_or_none(looking)
        yield from reply(closing)
        whole = True
        return None if written is None else written.mtime
    except StatusError as refused:
        raise from_status(refused, "cannot write", place.key) from None
    finally:
        if not whole:
            yield from discard(place, unclosed)


def reply_or_none(pending: Pending[R]) -> Operation[R | None]:
    """Wait for a reply that is of use but not needed: None for a refusal."""
    try:
        return (yield from reply(pending))
    except StatusError:
        return None


def discard(place: RemotePath, handle: bytes | None = None) -> Operation[None]:
    """Closes and removes, whatever the server says to it: clean-up must not hide the reason for it."""
    requests: list[Request[None]] = [] if handle is None else [Close(handle)]
    try:
        for answer in (yield from request_all([*requests, Remove(place.native)]))[-1:]:
            if isinstance(answer, StatusError) and not answer.missing:
                logger.warning(
                    "the temporary file %r could not be removed: %s",
                    place.native,
                    printable(answer.text) or answer.code,
                )
    except SFTPBackendError:  # the line is gone: the caller hears of that from the operation itself
        logger.debug("the connection ended before %r could be removed", place.native)
