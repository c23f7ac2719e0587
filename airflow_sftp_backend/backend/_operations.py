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
from datetime import UTC, datetime

from ._codec import Attributes, Entry, OpenFlag
from ._errors import (
    AlreadyExists,
    DirectoryNotEmpty,
    InvalidPath,
    NotFound,
    Refused,
    SFTPBackendError,
    from_refusal,
)
from ._lane import Pending
from ._limits import MAX_NAMES_AHEAD, BoundExceeded, ListingTally, NewNames, size_mismatch
from ._messages import Close, LStat, MakeDir, Open, OpenDir, ReadDir, Remove, RemoveDir, Request, Stat
from ._models import FileInfo, Progress
from ._paths import JailedPath
from ._spread import Spread
from ._transfer import Content, Incoming, Outgoing, send
from ._wire import Operation, Wire, ask, ask_all, post, server_traits, wait

logger = logging.getLogger(__name__)

# -- looking ----------------------------------------------------------------------------------------------------------


def look(place: JailedPath) -> Operation[Attributes | None]:
    """What a path leads to, links followed; None if nothing, or if a file stands where the path has a folder."""
    try:
        found = yield from ask(Stat(place.native))
    except Refused as refused:
        if refused.missing or (yield from _file_above(place)) is not None:
            return None
        raise from_refusal(refused, "cannot look at it", place.key) from None
    return (yield from with_type(place, found))


def see(place: JailedPath, *, follow: bool = False) -> Operation[Attributes | Refused]:
    """What stands under a path (with ``follow``: what it leads to), or why it is not shown."""
    (found,) = yield from ask_all([Stat(place.native) if follow else LStat(place.native)])
    return found if isinstance(found, Refused) else (yield from with_type(place, found))


def with_type(place: JailedPath, found: Attributes) -> Operation[Attributes]:
    """The attributes; from a server that sends no type, what can be listed is a folder."""
    if found.mode is not None:
        return found
    try:
        handle = yield from ask(OpenDir(place.native))
        try:
            yield from ask(ReadDir(handle))  # some servers open a file for listing and refuse only here
        finally:
            yield from close_quietly(handle)
    except Refused:
        return found
    return replace(found, mode=stat.S_IFDIR)


def info(place: JailedPath) -> Operation[FileInfo]:
    """The FileInfo of a file. NotFound, InvalidPath for a folder."""
    found = as_file(place, (yield from look(place)))
    if isinstance(found, SFTPBackendError):
        raise found
    return found


def as_file(place: JailedPath, looked: Attributes | None) -> FileInfo | NotFound | InvalidPath:
    """What `look` has found, where a file is expected."""
    if looked is None:
        return NotFound("no such file", path=place.key)
    if not looked.is_file:
        return InvalidPath("it is a folder, not a file", path=place.key)
    return file_info(place, looked)


def file_info(place: JailedPath, attributes: Attributes) -> FileInfo:
    """Attributes in the caller's terms."""
    changed = None if attributes.mtime is None else datetime.fromtimestamp(attributes.mtime, UTC)
    mode = None if attributes.mode is None else attributes.mode & 0o7777
    return FileInfo(place.key, place.name, attributes.size or 0, changed, mode)


def check_folder(place: JailedPath) -> Operation[None]:
    """One round trip. NotFound if nothing is there, InvalidPath if a file is."""
    attributes = yield from look(place)
    if attributes is None:
        raise NotFound("no such folder", path=place.key)
    if attributes.mode is not None and not attributes.is_folder:
        raise InvalidPath("it is a file, not a folder", path=place.key)


def _file_above(place: JailedPath) -> Operation[JailedPath | None]:
    """The file that stands where the path has a folder, if one does."""
    above = list(_ancestors(place))
    for ancestor, attributes in zip(above, (yield from ask_all([Stat(a.native) for a in above])), strict=True):
        if isinstance(attributes, Attributes) and attributes.mode is not None and not attributes.is_folder:
            return ancestor
    return None


def _ancestors(place: JailedPath) -> Iterator[JailedPath]:
    """The folders above, the nearest first, the root left out."""
    while not (place := place.parent).is_root:
        yield place


# -- listing ----------------------------------------------------------------------------------------------------------


Listing = list[tuple[JailedPath, Attributes]]


def list_folder(place: JailedPath, tally: ListingTally, depth: int = 2) -> Operation[Listing]:
    """Every entry of a folder with the attributes that READDIR gives, temporary names too.

    ``depth`` is how many requests for the next entries go out at first; a server gives some 100 names to each.
    Raises NotFound, InvalidPath for a file, BoundExceeded. Names that are no plain names are left out; ``tally`` warns
    of them, and counts the replies.
    """
    return (yield from _listed(place, tally, depth))[0]


def list_and_look_again(
    place: JailedPath, tally: ListingTally, depth: int = 2
) -> Operation[tuple[Listing, Attributes | Refused]]:
    """List a folder, and look (LSTAT) at what has its name when the last entries are requested.

    :returns: the entries as `list_folder` gives them, and what the folder was by then: it may have become a link
    """
    entries, looking = yield from _listed(place, tally, depth, looks_again=True)
    assert looking is not None
    try:
        return entries, (yield from wait(looking))
    except Refused as refused:
        return entries, refused


def _listed(
    place: JailedPath, tally: ListingTally, depth: int, *, looks_again: bool = False
) -> Operation[tuple[Listing, Pending[Attributes] | None]]:
    """List a folder; with ``looks_again``, the LSTAT too that was sent along with the READDIR that ended the list."""
    tally.check()
    try:
        handle = yield from ask(OpenDir(place.native))
    except Refused as refused:
        raise (yield from _why_not_a_folder(place, refused, "cannot list it")) from None
    entries: Listing = []
    names = NewNames(place.key)
    waiting: deque[tuple[Pending[list[Entry]], Pending[Attributes] | None]] = deque()
    try:
        while True:
            ahead = _read_ahead(place, ReadDir(handle, tally), depth - len(waiting), looks_again=looks_again)
            waiting.extend((yield from ahead))
            reading, looking = waiting.popleft()
            batch = yield from wait(reading)
            if not batch:
                break
            names.add(entry.name for entry in batch)
            _add(entries, place, batch, tally)
            depth = min(2 * depth, 128, max(2, MAX_NAMES_AHEAD // len(batch)))
    except Refused as refused:  # some servers open a file for listing and refuse only here
        raise (yield from _why_not_a_folder(place, refused, "cannot list it")) from None
    except BoundExceeded as error:
        error.path = place.key if error.path is None else error.path
        tally.exceeded = error.message
        raise
    finally:
        yield from close_quietly(handle)
    return (yield from _with_types(entries)), looking


def _read_ahead(
    place: JailedPath, request: ReadDir, count: int, *, looks_again: bool
) -> Operation[list[tuple[Pending[list[Entry]], Pending[Attributes] | None]]]:
    """Post ``count`` READDIRs and, with ``looks_again``, an LSTAT after them: each with that LSTAT."""
    readings: list[Pending[list[Entry]]] = []
    while len(readings) < count:
        readings.append((yield from post(request)))
    looking = (yield from post(LStat(place.native))) if looks_again and readings else None
    return [(reading, looking) for reading in readings]


def _add(entries: Listing, place: JailedPath, batch: list[Entry], tally: ListingTally) -> None:
    for entry in batch:
        if entry.name not in (".", ".."):
            try:
                entries.append((place.child(entry.name), entry.attributes))
            except InvalidPath as error:
                tally.leave_out(error)


def with_links_told(entries: Listing) -> Operation[Listing]:
    """Ask again (LSTAT) for the entries listed as folders, if the server may list a link as what it leads to.

    :returns: the entries with their own attributes, without folders that are gone by now
    :raises SFTPBackendError: if the server does not say which of the folders are links
    """
    if (yield from server_traits()).lists_links_as_links:
        return entries
    folders = [index for index, (_, attributes) in enumerate(entries) if attributes.is_folder]
    answers = dict(
        zip(folders, (yield from ask_all([LStat(entries[index][0].native) for index in folders])), strict=True)
    )
    told: Listing = []
    for index, (place, attributes) in enumerate(entries):
        answer = answers.get(index, attributes)
        if isinstance(answer, Attributes):
            told.append((place, answer))
        elif not answer.missing:
            raise unknown_link(place, answer)
    return told


def unknown_link(place: JailedPath, refused: Refused) -> SFTPBackendError:
    """The error for a folder that may be a link, and so is neither entered nor emptied."""
    return from_refusal(refused, "cannot tell whether this folder is a link (LSTAT)", place.key)


def _with_types(entries: Listing) -> Operation[Listing]:
    """The entries, asking again for those whose type the listing left out."""
    unknown = [at for at, (_, attributes) in enumerate(entries) if attributes.mode is None]
    answers = yield from ask_all([LStat(entries[at][0].native) for at in unknown])
    for at, answer in zip(unknown, answers, strict=True):
        if isinstance(answer, Attributes):
            entries[at] = (entries[at][0], answer)
    return entries


def follow_links(entries: Listing) -> Operation[dict[JailedPath, Attributes | None]]:
    """What the links among the entries lead to: None for a link to nothing."""
    links = [place for place, attributes in entries if attributes.is_link]
    answers = yield from ask_all([Stat(place.native) for place in links])
    return {
        place: None if isinstance(answer, Refused) else answer for place, answer in zip(links, answers, strict=True)
    }


def close_quietly(handle: bytes) -> Operation[None]:
    """Closes a handle that was only read, without waiting: nothing depends on the answer."""
    try:
        yield from post(Close(handle))
    except SFTPBackendError:  # the line is gone, and the handle with it
        logger.debug("the connection ended before a handle was closed")


def _why_not_a_folder(place: JailedPath, refused: Refused, doing: str) -> Operation[SFTPBackendError]:
    found = yield from see(place, follow=True)
    if isinstance(found, Attributes) and found.mode is not None and not found.is_folder:
        return InvalidPath(f"{doing}: it is a file, not a folder", path=place.key)
    if isinstance(found, Refused) and (found.missing or (yield from _file_above(place)) is not None):
        return NotFound(f"{doing}: no such folder", path=place.key)
    return from_refusal(refused, doing, place.key)


# -- reading ----------------------------------------------------------------------------------------------------------


def open_for_reading(place: JailedPath) -> Operation[bytes]:
    """A handle. Raises NotFound, InvalidPath for a folder (some servers say so only at the first read)."""
    try:
        return (yield from ask(Open(place.native, OpenFlag.READ)))
    except Refused as refused:
        raise (yield from why_unreadable(place, refused)) from None


def read_into(
    wire: Wire, place: JailedPath, sink: Callable[[memoryview], object], *, most: int | None = None
) -> Operation[None]:
    """Read a file to its end into ``sink``, which is called with each piece in order.

    Two round trips for a small file. Raises TransferCorrupted if the file ends before the size that the server says,
    as a part must not be taken for the whole, or has more than ``most`` bytes.
    """
    handle = yield from open_for_reading(place)
    try:
        incoming = Incoming(wire, handle, (yield from wire.limits()).read, place.key, to_end=True)
        while data := (yield from incoming.next()):
            if most is not None and incoming.size > most:
                raise size_mismatch(most, incoming.size, place.key, ended=False)
            sink(data)
        if incoming.size < (told := incoming.attributes.size or 0):
            raise size_mismatch(told, incoming.size, place.key)
    except Refused as refused:
        raise (yield from why_unreadable(place, refused)) from None
    finally:
        yield from close_quietly(handle)


def why_unreadable(place: JailedPath, refused: Refused) -> Operation[SFTPBackendError]:
    if not refused.missing:
        found = yield from see(place, follow=True)
        if isinstance(found, Attributes) and found.is_folder:
            return InvalidPath("cannot read: it is a folder, not a file", path=place.key)
        if (yield from _file_above(place)) is not None:
            return NotFound("cannot read: a file stands where the path has a folder", path=place.key)
    return from_refusal(refused, "cannot read", place.key)


# -- writing ----------------------------------------------------------------------------------------------------------


def make_folders(place: JailedPath) -> Operation[None]:
    """Makes the folder and those above it, base_path too.

    Existing ones are no error; InvalidPath if a file is in the way.
    """
    chain = [*reversed([place, *_ancestors(place)])]
    answers = yield from ask_all([MakeDir(folder.native) for folder in chain])
    if isinstance(answers[-1], Refused) and answers[-1].missing:
        # base_path itself is missing, or the server did not keep to the order of the requests: one by one
        for folder in [*_base_of(place), *chain]:
            answers = yield from ask_all([MakeDir(folder.native)])
    refused = answers[-1]
    if not isinstance(refused, Refused):
        return
    found = yield from see(place, follow=True)
    if isinstance(found, Attributes) and (found.is_folder or found.mode is None):
        return
    in_the_way = place if isinstance(found, Attributes) else (yield from _file_above(place))
    if in_the_way is not None:
        raise InvalidPath("cannot make the folder: a file has its name", path=in_the_way.key)
    raise from_refusal(refused, "cannot make the folder", place.key)


def _base_of(place: JailedPath) -> list[JailedPath]:
    """base_path and the folders above it, from the top."""
    while not place.is_root:
        place = place.parent
    parts = [part for part in place.native.split("/") if part not in ("", ".")]
    start = "/" if place.native.startswith("/") else ""
    return [JailedPath("", start + "/".join(parts[: count + 1])) for count in range(len(parts))]


def open_new(
    place: JailedPath, target: JailedPath, flags: OpenFlag, create_parents: bool
) -> Operation[tuple[bytes, Attributes | None]]:
    """Opens ``place`` for writing, looking at ``target`` along with it. One round trip if the folder is there."""
    opening = yield from post(Open(place.native, flags))
    looking = None if place == target else (yield from post(Stat(target.native)))
    seen: Attributes | None = None
    handle: bytes | None = None
    try:
        handle = yield from wait(opening)
    except Refused as refused:
        if not refused.missing or not create_parents:
            raise (yield from why_unwritable(place, target, refused)) from None
    if looking is not None:
        try:
            seen = yield from wait(looking)
        except Refused:
            seen = None
    if handle is None:
        yield from make_folders(target.parent)
        try:
            handle = yield from ask(Open(place.native, flags))
        except Refused as refused:
            raise (yield from why_unwritable(place, target, refused)) from None
    return handle, seen


def why_unwritable(place: JailedPath, target: JailedPath, refused: Refused) -> Operation[SFTPBackendError]:
    found = yield from see(target)
    if isinstance(found, Attributes) and found.is_folder:
        return is_a_folder(target)
    if isinstance(found, Attributes) and place == target and not refused.unsupported:
        leads_to = yield from see(target, follow=True)
        if isinstance(leads_to, Attributes) and leads_to.is_folder:
            return is_a_folder(target)
        return taken(target)
    if (above := (yield from _file_above(target))) is not None:
        return InvalidPath("cannot write: a file stands where the path has a folder", path=above.key)
    return from_refusal(refused, "cannot write", target.key)


def is_a_folder(place: JailedPath) -> InvalidPath:
    return InvalidPath("cannot write: it is a folder, not a file", path=place.key)


def taken(place: JailedPath) -> AlreadyExists:
    return AlreadyExists("the name is taken; pass overwrite=True to replace it", path=place.key)


def write(
    wire: Wire, place: JailedPath, content: Content, *, overwrite: bool, progress: Progress | None = None
) -> Operation[None]:
    """Writes straight to the final name: two round trips for a small file in an existing folder.

    ``overwrite=False`` opens exclusively, so that it cannot overwrite whatever happens. What fails half-way is removed.
    """
    flags = OpenFlag.WRITE | OpenFlag.CREATE | (OpenFlag.TRUNCATE if overwrite else OpenFlag.EXCLUSIVE)
    handle, _ = yield from open_new(place, place, flags, create_parents=True)
    unclosed: bytes | None = handle
    whole = False
    try:
        spread = Spread(wire, place, handle, size=None, lanes=1)
        out = Outgoing(spread, (yield from wire.limits()).write, progress=progress)
        yield from send(content, out)
        closing = yield from post(Close(handle))
        unclosed = None
        yield from out.drain()
        yield from wait(closing)
        whole = True
    except Refused as refused:
        raise from_refusal(refused, "cannot write", place.key) from None
    finally:
        if not whole:
            yield from discard(place, unclosed)


def discard(place: JailedPath, handle: bytes | None = None) -> Operation[None]:
    """Closes and removes, whatever the server says to it: clean-up must not hide the reason for it."""
    requests: list[Request[None]] = [] if handle is None else [Close(handle)]
    try:
        for answer in (yield from ask_all([*requests, Remove(place.native)]))[-1:]:
            if isinstance(answer, Refused) and not answer.missing:
                logger.warning(
                    "the temporary file %r could not be removed: %s", place.native, answer.text or answer.code
                )
    except SFTPBackendError:  # the line is gone: the caller hears of that from the operation itself
        logger.debug("the connection ended before %r could be removed", place.native)


# -- deleting ---------------------------------------------------------------------------------------------------------


def delete(place: JailedPath, *, missing_ok: bool) -> Operation[None]:
    """Removes a file, or a link and not its target. One round trip."""
    try:
        yield from ask(Remove(place.native))
    except Refused as refused:
        found = yield from see(place)
        if isinstance(found, Attributes) and found.is_folder:
            raise InvalidPath("cannot delete: it is a folder; use delete_folder", path=place.key) from None
        gone = isinstance(found, Refused) and (found.missing or (yield from _file_above(place)) is not None)
        if not gone:
            raise from_refusal(refused, "cannot delete", place.key) from None
        if not missing_ok:
            raise NotFound("cannot delete: no such file", path=place.key) from None


def delete_folder(place: JailedPath, *, missing_ok: bool) -> Operation[None]:
    """Removes an empty folder, or a link to a folder. One round trip."""
    try:
        yield from ask(RemoveDir(place.native))
    except Refused as refused:
        found = yield from see(place)
        if isinstance(found, Attributes) and found.is_link:
            yield from delete(place, missing_ok=missing_ok)
        elif isinstance(found, Attributes) and found.is_file:
            raise InvalidPath("cannot delete the folder: it is a file; use delete", path=place.key) from None
        elif isinstance(found, Refused) and (found.missing or (yield from _file_above(place)) is not None):
            if not missing_ok:
                raise NotFound("cannot delete the folder: no such folder", path=place.key) from None
        elif (yield from _holds_something(place)):
            raise DirectoryNotEmpty(
                "the folder is not empty; pass recursive=True to delete what it holds as well", path=place.key
            ) from None
        else:
            raise from_refusal(refused, "cannot delete the folder", place.key) from None


def _holds_something(place: JailedPath) -> Operation[bool]:
    try:
        handle = yield from ask(OpenDir(place.native))
    except Refused:
        return False
    names = NewNames(place.key)
    try:
        while batch := (yield from ask(ReadDir(handle))):
            if any(entry.name not in (".", "..") for entry in batch):
                return True
            names.add(entry.name for entry in batch)
        return False
    except Refused:
        return False
    finally:
        yield from close_quietly(handle)
