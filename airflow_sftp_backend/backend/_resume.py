"""What an earlier try of the same writer has left of an upload, and whether it can be gone on with.

A temporary name says whose it is and which source it was made from (`_paths.resume_token`). What is in such a file is
still looked at before it is trusted: pieces all over it and the end of it are read back and compared with the source.
All that was in flight when the try ended lies within `SPAN` of the end and is sent again. With ``verify="sha256"`` the
whole file is read back in the end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ._codec import Attributes, Limits, OpenFlag
from ._errors import BackendUnavailable, Refused, SFTPBackendError, from_refusal
from ._messages import FStat, Open, Read, Stat
from ._models import Progress
from ._operations import close_quietly, discard, see
from ._paths import JailedPath
from ._transfer import SPAN, Content
from ._wire import Operation, ask, ask_all
from ._write_target import Landing, Opened, SoFar, checked, open_landing

logger = logging.getLogger(__name__)

PIECE: Final = Limits().read
"""Bytes of one piece that is compared: what every server gives at once."""
_PIECES: Final = 32  # all over the file, and as many at its end


@dataclass(frozen=True, slots=True)
class Part:
    """The temporary file, open for writing, and the number of bytes at its start that are the source's."""

    handle: bytes
    size: int


def left_over(temp: JailedPath, content: Content) -> Operation[Part | None]:
    """The part of ``content`` that is there already; None if it is too little to go on with, or not the same."""
    try:
        handle = yield from ask(Open(temp.native, OpenFlag.READ | OpenFlag.WRITE))
    except Refused as refused:
        logger.info("%r: what an earlier try left cannot be opened (%s): starting anew", temp.key, refused)
        return None
    part: Part | None = None
    try:
        (found,) = yield from ask_all([FStat(handle)])
        there = found.size or 0 if isinstance(found, Attributes) else 0
        size = there - SPAN
        if size <= 0 or there > (content.expected or 0):
            logger.info("%r: an earlier try left %d bytes: starting anew", temp.key, there)
        elif not (yield from holds(handle, size, content.at)):
            logger.warning("%r: an earlier try left %d bytes of other content: starting anew", temp.key, there)
        else:
            logger.info("%r: going on after %d bytes that an earlier try has sent", temp.key, size)
            part = Part(handle, size)
        return part
    finally:
        if part is None:
            yield from close_quietly(handle)


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
    answers = yield from ask_all([Read(handle, start, length) for start, length in compared])
    return all(
        not isinstance(answer, Refused) and answer == at(start, length)
        for (start, length), answer in zip(compared, answers, strict=True)
    )


def open_or_resume(landing: Landing, content: Content, so_far: SoFar) -> Operation[Opened]:
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
    return (yield from checked(landing, Opened(part.handle, replaced, unclosed=part.handle)))


def reopen(landing: Landing, so_far: SoFar, progress: Progress | None) -> Operation[Opened]:
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
