"""List everything that a traceback with locals can show of an exception."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

_TESTS: Final = str(Path(__file__).parents[1])


def shown_by(error: BaseException) -> Iterator[str]:
    """Return all texts that a traceback can show.

    Local variables of the tests' own frames are left out.
    """
    waiting, done = [error], set()
    while waiting:
        current = waiting.pop()
        if id(current) in done:
            continue
        done.add(id(current))
        yield from (repr(current), str(current), repr(current.args), *getattr(current, "__notes__", ()))
        yield from map(repr, vars(current).values())
        yield from _locals_of(current.__traceback__)
        waiting += [other for other in (current.__cause__, current.__context__) if other is not None]
        waiting += getattr(current, "exceptions", ())


def _locals_of(traceback: TracebackType | None) -> Iterator[str]:
    """Return the local variables of the frames, as repr."""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if not code.co_filename.startswith(_TESTS):
            for name, value in traceback.tb_frame.f_locals.items():
                yield f"{code.co_qualname}, {name}: {value!r}"
        traceback = traceback.tb_next
