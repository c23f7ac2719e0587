"""How a file arrives under its name: whole and proven, or not at all. Atomic writes, moves and copies.

New content is written under a temporary name beside its target, proven, and renamed. The rename is the best the
server has: ``posix-rename@openssh.com`` replaces in one step; plain rename needs the old target set aside first, and
it is put back if the exchange fails; a move that no rename can make (two file systems) is a copy that lands the same
way, then a delete. At no moment is the old content without a name.

``overwrite=False`` uses plain rename, which refuses an occupied name on OpenSSH and most servers (filexfer-02 section
6.5), after a look sent along with an earlier request. On a server whose plain rename replaces, two writers can race
between look and rename.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from typing import Final, Literal

from ._codec import Attributes, OpenFlag
from ._errors import (
    BackendUnavailable,
    Code,
    InvalidPath,
    NotFound,
    Refused,
    SFTPBackendError,
    TransferCorrupted,
    from_refusal,
)
from ._lane import Pending
from ._messages import Close, CopyData, FSetStat, FStat, LStat, Open, PosixRename, Remove, Rename, Stat
from ._models import Progress
from ._operations import (
    close_quietly,
    discard,
    is_a_folder,
    list_folder,
    make_folders,
    open_for_reading,
    open_new,
    read_into,
    see,
    taken,
    with_type,
)
from ._partial import left_over
from ._paths import STALE, JailedPath, is_temp_name, same_writer, token_of
from ._spread import Load, Spread
from ._transfer import SPAN, Content, Incoming, Outgoing, send
from ._wire import Operation, Wire, ask, ask_all, post, wait

logger = logging.getLogger(__name__)

Verify = Literal["size", "sha256", "none"]

_NEW: Final = OpenFlag.WRITE | OpenFlag.CREATE | OpenFlag.EXCLUSIVE
_COPY_PIECE: Final = 64 << 20  # bytes a server copies per request: it answers only when it is done


@dataclass(frozen=True, slots=True)
class Landing:
    """Where and how a file is to arrive.

    ``temp`` and ``aside`` are names nobody else uses: for the new content, and for the old while the two change places.
    """

    target: JailedPath
    temp: JailedPath
    aside: JailedPath
    overwrite: bool
    verify: Verify = "size"
    create_parents: bool = True
    lanes: int | None = None
    """How many lanes the content may be sent over; None: as many as it is worth."""
    spare: JailedPath | None = None
    """Where ``temp`` is the name that an earlier try of the same writer gave to the same source: the name to use if
    what is there cannot be gone on with.
    """


@dataclass(slots=True)
class Opened:
    """A temporary file: its handle, what stood under the final name when it was made, and the handle again until its
    close is sent. To close it twice could close somebody else's: servers give a handle that is free to the next file.
    """

    handle: bytes
    replaced: Attributes | None
    unclosed: bytes | None
    renaming: bool = False
    """The temporary file may have its final name by now."""


@dataclass(slots=True)
class SoFar:
    """How far a write is that may go on over another connection: ``acknowledged`` bytes from the start are written."""

    acknowledged: int = 0
    opened: Opened | None = None
    resumable: bool = False
    """The connection was lost while bytes were sent, and the temporary file is still there."""
    temp: JailedPath | None = None
    """The temporary file that the next try finds again, or the one in its place."""
    left: bool = False
    """The temporary file was left for the next try."""

    def placed(self, landing: Landing) -> Landing:
        """The landing, with the temporary file that is used."""
        return landing if self.temp is None else replace(landing, temp=self.temp)


def write_atomic(
    wire: Wire,
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
    wire.want_lanes(Load(content.expected or 0, landing.lanes).lanes_at(wire.round_trip, spreads=wire.spreads))
    if so_far.opened is None:
        opened = yield from _opened(landing, content, so_far)
        if progress is not None and so_far.acknowledged:
            progress(so_far.acknowledged)
    else:
        opened = yield from _reopened(so_far.placed(landing), so_far, progress)
    landing = so_far.placed(landing)
    so_far.opened, so_far.resumable, so_far.left = opened, False, False

    def acknowledged(count: int) -> None:
        so_far.acknowledged += count
        if progress is not None:
            progress(count)

    spread = Spread(wire, landing.temp, opened.handle, size=content.expected, lanes=landing.lanes)
    landed = False
    try:
        content.skip(so_far.acknowledged)
        block = (yield from wire.limits()).write
        out = Outgoing(spread, block, offset=so_far.acknowledged, progress=acknowledged)
        yield from send(content, out)
        now = yield from land(wire, landing, opened, out, content.digest)
        landed = True
        return now
    except Refused as refused:
        raise from_refusal(refused, "cannot write", landing.target.key) from None
    except BaseException as error:
        ended = isinstance(error, BackendUnavailable) or not isinstance(error, Exception)  # by no fault of the file
        worth = landing.spare is not None and so_far.acknowledged > SPAN
        so_far.left = ended and worth and not opened.renaming
        raise
    finally:
        if not landed:
            so_far.resumable = wire.broken is not None and not opened.renaming
            yield from spread.abandon()
            if not so_far.left:
                yield from discard(landing.temp, opened.unclosed)
            elif opened.unclosed is not None:
                yield from close_quietly(opened.unclosed)


def _opened(landing: Landing, content: Content, so_far: SoFar) -> Operation[Opened]:
    """The temporary file: a new one, or what an earlier try has left of it."""
    try:
        return (yield from open_landing(landing))
    except BackendUnavailable:
        raise
    except SFTPBackendError:
        if landing.spare is None or isinstance(left := (yield from see(landing.temp)), Refused):
            raise
    so_far.left = True
    part = (yield from left_over(landing.temp, content)) if left.is_file else None
    if part is None:
        so_far.left = False
        yield from discard(landing.temp)
        so_far.temp = landing.spare
        return (yield from open_landing(so_far.placed(landing)))
    so_far.acknowledged = part.size
    standing = yield from see(landing.target, follow=True)
    replaced = None if isinstance(standing, Refused) else standing
    return (yield from _checked(landing, Opened(part.handle, replaced, unclosed=part.handle)))


def _reopened(landing: Landing, so_far: SoFar, progress: Progress | None) -> Operation[Opened]:
    """The temporary file once more, or a new one where it is gone. What the server does not hold is sent again."""
    assert so_far.opened is not None
    (found,) = yield from ask_all([Stat(landing.temp.native)])
    held = found.size or 0 if isinstance(found, Attributes) else 0
    if held < so_far.acknowledged:
        if progress is not None:
            progress(held - so_far.acknowledged)
        so_far.acknowledged = held
    if isinstance(found, Refused) and found.missing:
        return (yield from open_landing(landing))
    try:
        handle = yield from ask(Open(landing.temp.native, OpenFlag.WRITE))
    except Refused as refused:
        raise from_refusal(refused, "cannot go on writing", landing.target.key) from None
    return Opened(handle, so_far.opened.replaced, unclosed=handle)


def open_landing(landing: Landing) -> Operation[Opened]:
    """Opens the temporary file. Raises AlreadyExists, InvalidPath for a folder under the final name."""
    handle, replaced = yield from open_new(landing.temp, landing.target, _NEW, create_parents=landing.create_parents)
    return (yield from _checked(landing, Opened(handle, replaced, unclosed=handle)))


def _checked(landing: Landing, opened: Opened) -> Operation[Opened]:
    replaced = opened.replaced
    if replaced is not None and (replaced.is_folder or not landing.overwrite):
        yield from discard(landing.temp, opened.handle)
        raise is_a_folder(landing.target) if replaced.is_folder else taken(landing.target)
    return opened


def land(wire: Wire, landing: Landing, opened: Opened, out: Outgoing, digest: str | None) -> Operation[int | None]:
    """Closes the temporary file, proves it and gives it its final name.

    Raises TransferCorrupted, AlreadyExists, Refused.

    ``digest`` (``sha256:<hex>``) is what was sent, for ``verify="sha256"``. Mode bits of a replaced file are kept,
    where the server lets them be set. The server's time, where it tells.
    """
    yield from out.join()
    if opened.replaced is not None and opened.replaced.mode is not None:
        yield from post(FSetStat(opened.handle, Attributes(mode=opened.replaced.mode & 0o777)))
    checking = (yield from post(FStat(opened.handle))) if landing.verify != "none" else None
    closing = yield from post(Close(opened.handle))
    opened.unclosed = None
    standing = None if landing.overwrite else (yield from post(LStat(landing.target.native)))
    yield from out.drain()
    written = Attributes() if checking is None else (yield from _attributes(checking))
    yield from wait(closing)
    if landing.verify != "none":
        yield from _verify_size(landing, out.offset, written.size)
    if landing.verify == "sha256":
        yield from _verify_digest(wire, landing, digest)
    if standing is not None and (yield from _is_shown(standing)):
        raise taken(landing.target)
    opened.renaming = True
    try:
        yield from rename(wire, landing.temp, landing.target, landing.aside, overwrite=landing.overwrite)
    except Refused as refused:
        if not refused.missing or landing.verify != "none":
            raise
        logger.warning("%r: the server took the file away before it had its name", landing.target.key)
    return written.mtime


def _attributes(asked: Pending[Attributes]) -> Operation[Attributes]:
    """The reply, or empty attributes for a refusal."""
    try:
        return (yield from wait(asked))
    except Refused:
        return Attributes()


def _is_shown(asked: Pending[Attributes]) -> Operation[bool]:
    try:
        yield from wait(asked)
    except Refused:
        return False
    return True


def _verify_size(landing: Landing, sent: int, size: int | None) -> Operation[None]:
    if size == sent:
        return
    (found,) = yield from ask_all([Stat(landing.temp.native)])  # some servers answer FSTAT wrongly or not at all
    size = found.size if isinstance(found, Attributes) else size
    if size is None:
        logger.warning("%r: the server does not tell its size, which is therefore not verified", landing.target.key)
    elif size != sent:
        raise TransferCorrupted(
            f"{sent} bytes were sent and the server holds {size}; the target was left as it was",
            path=landing.target.key,
        )


def _verify_digest(wire: Wire, landing: Landing, sent: str | None) -> Operation[None]:
    digest = hashlib.sha256()
    try:
        yield from read_into(wire, landing.temp, digest.update)
    except SFTPBackendError as error:
        raise type(error)(f"what was sent cannot be verified: {error.message}", path=landing.target.key) from None
    if (held := f"sha256:{digest.hexdigest()}") != sent:
        raise TransferCorrupted(
            f"{sent} was sent and the server holds {held}; the target was left as it was", path=landing.target.key
        )


# -- renaming ---------------------------------------------------------------------------------------------------------


def rename(
    wire: Wire, source: JailedPath, target: JailedPath, aside: JailedPath, *, overwrite: bool
) -> Operation[None]:
    """The best rename the server has: one round trip where it has ``posix-rename`` or the target is free.

    Raises AlreadyExists, InvalidPath for a folder under ``target``, Refused if there is no way.
    """
    if overwrite and wire.supports(PosixRename):
        try:
            yield from ask(PosixRename(source.native, target.native))
            return
        except Refused as refused:
            if refused.missing:
                raise
    try:
        yield from ask(Rename(source.native, target.native))
    except Refused as refused:
        found = yield from see(target)
        if isinstance(found, Refused):
            raise refused from None
        if found.is_folder:
            raise is_a_folder(target) from None
        if not overwrite:
            raise taken(target) from None
        yield from _exchange(source, target, aside)


def _exchange(source: JailedPath, target: JailedPath, aside: JailedPath) -> Operation[None]:
    """Replaces ``target`` on a server whose renames never replace: the old file steps aside, and back on failure."""
    yield from ask(Rename(target.native, aside.native))
    moved = False
    try:
        yield from ask(Rename(source.native, target.native))
        moved = True
    finally:
        if not moved:
            yield from _put_back(aside, target)
    yield from discard(aside)


def _put_back(aside: JailedPath, target: JailedPath) -> Operation[None]:
    where = f"its old content is kept as {aside.native!r}"
    try:
        (answer,) = yield from ask_all([Rename(aside.native, target.native)])
    except SFTPBackendError as lost:
        raise type(lost)(f"{lost.message}; {where}", path=target.key) from None
    if isinstance(answer, Refused):
        raise from_refusal(answer, f"cannot put the replaced file back, {where}", target.key)


# -- moving and copying -----------------------------------------------------------------------------------------------


def move(wire: Wire, source: JailedPath, landing: Landing) -> Operation[None]:
    """Moves a file, or a link as a link: two round trips. Raises NotFound, AlreadyExists, InvalidPath for folders."""
    target = landing.target
    found, standing = yield from ask_all([LStat(source.native), LStat(target.native)])
    if isinstance(found, Attributes):
        found = yield from with_type(source, found)
    _check_source(source, found, "cannot move")
    if source == target:
        return
    if isinstance(standing, Attributes):
        if standing.is_folder:
            raise InvalidPath("cannot move: a folder has this name", path=target.key)
        if not landing.overwrite:
            raise taken(target)
    try:
        try:
            yield from rename(wire, source, target, landing.aside, overwrite=landing.overwrite)
        except Refused as refused:
            if not refused.missing or not landing.create_parents:
                raise
            yield from make_folders(target.parent)
            yield from rename(wire, source, target, landing.aside, overwrite=landing.overwrite)
    except Refused as refused:
        if refused.missing or refused.code == Code.PERMISSION_DENIED:
            raise from_refusal(refused, "cannot move", source.key) from None
        yield from make_folders(target.parent)  # a file in the way is the commonest reason, and this names it
        yield from _move_by_copy(wire, source, landing)


def _check_source(source: JailedPath, found: Attributes | Refused, doing: str) -> None:
    if isinstance(found, Refused):
        if found.missing:
            raise NotFound(f"{doing}: no such file", path=source.key)
        raise from_refusal(found, doing, source.key)
    if found.is_folder:
        raise InvalidPath(f"{doing}: it is a folder, not a file", path=source.key)


def _move_by_copy(wire: Wire, source: JailedPath, landing: Landing) -> Operation[None]:
    """The last rung: two file systems, or a server without a rename that serves."""
    copied = yield from copy(wire, source, landing)
    (now,) = yield from ask_all([Stat(source.native)])
    _check_unchanged(source, copied, now, f"copied to {landing.target.key!r}, but the source has changed since")
    try:
        yield from ask(Remove(source.native))
    except Refused as refused:
        doing = f"copied to {landing.target.key!r}, but the source cannot be removed"
        raise from_refusal(refused, doing, source.key) from None


def copy(wire: Wire, source: JailedPath, landing: Landing) -> Operation[Attributes | Refused]:
    """Copies on the server where it has ``copy-data``, else through this process, and lands the copy (``verify`` is
    "size"). What the server says of the source.

    Raises TransferCorrupted if the source changes meanwhile.
    """
    handle = yield from open_for_reading(source)
    try:
        (found,) = yield from ask_all([FStat(handle)])
        size = None if isinstance(found, Refused) else found.size
        if isinstance(found, Attributes) and found.is_folder:
            raise InvalidPath("cannot copy: it is a folder, not a file", path=source.key)
        if source == landing.target:
            raise InvalidPath("cannot copy a file onto itself", path=source.key)
        opened = yield from open_landing(landing)
        landed = False
        try:
            limits = yield from wire.limits()
            out = Outgoing(Spread(wire, landing.temp, opened.handle, size=None, lanes=1), limits.write)
            if size and wire.supports(CopyData):
                yield from _copy_on_server(handle, size, out)
            else:
                incoming = Incoming(wire, handle, limits.read, source.key)
                while data := (yield from incoming.next()):
                    yield from out.push(data)
            (now,) = yield from ask_all([FStat(handle)])
            _check_unchanged(source, found, now, "the source changed while it was copied")
            yield from land(wire, landing, opened, out, None)
            landed = True
            return found
        except Refused as refused:
            raise from_refusal(refused, "cannot copy", source.key) from None
        finally:
            if not landed:
                yield from discard(landing.temp, opened.unclosed)
    finally:
        yield from close_quietly(handle)


def _check_unchanged(source: JailedPath, before: Attributes | Refused, now: Attributes | Refused, change: str) -> None:
    if isinstance(before, Attributes) and isinstance(now, Attributes):
        then, today = (before.size, before.mtime), (now.size, now.mtime)
        if then != today:
            raise TransferCorrupted(f"{change}; wait until it is stable", path=source.key)


def _copy_on_server(handle: bytes, size: int, out: Outgoing) -> Operation[None]:
    """Piece by piece, so that the server is not silent for longer than one piece takes."""
    for start in range(0, size, _COPY_PIECE):
        length = min(_COPY_PIECE, size - start)
        yield from ask(CopyData(handle, start, length, out.handle, start))
        out.offset += length


# -- what was left behind ---------------------------------------------------------------------------------------------


def recover(landing: Landing) -> Operation[None]:
    """Tidies up after a landing whose connection was lost: a replaced file that still stands aside gets its name back,
    unless something has it by now; what is left of the new one is removed.
    """
    standing, aside = yield from ask_all([LStat(landing.target.native), LStat(landing.aside.native)])
    if isinstance(aside, Attributes):
        if isinstance(standing, Attributes):
            yield from discard(landing.aside)
        elif standing.missing:
            yield from ask_all([Rename(landing.aside.native, landing.target.native)])
    yield from discard(landing.temp)


def temps_in(folder: JailedPath) -> Operation[list[tuple[JailedPath, int]]]:
    """The temporary files in a folder, with the times (seconds since 1970) they were last written; none where it
    cannot be listed.
    """
    try:
        entries = yield from list_folder(folder)
    except SFTPBackendError:
        return []
    return [(place, found.mtime) for place, found in entries if found.mtime and is_temp_name(place.name)]


def sweep(
    target: JailedPath, temps: list[tuple[JailedPath, int]], now: int, writer: JailedPath | None = None
) -> Operation[None]:
    """Removes those temporary files of ``target`` that nobody has written to for `STALE` seconds before ``now``, the
    server's time; those of the writer that has just landed, by its temporary name ``writer``, at once.
    """
    stale = [
        place
        for place, written in temps
        if target.owns_temp(place.name)
        and (written < now - STALE or (writer is not None and same_writer(token_of(place.name), token_of(writer.name))))
    ]
    for place, answer in zip(stale, (yield from ask_all([Remove(place.native) for place in stale])), strict=True):
        if not isinstance(answer, Refused):
            logger.info("removed %r, left behind by a writer that ended", place.key)
