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
from ._errors import Refused
from ._messages import FStat, Open, Read
from ._operations import close_quietly
from ._paths import JailedPath
from ._transfer import SPAN, Content
from ._wire import Operation, ask, ask_all

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
