"""Match names against globs: ``*``, ``?`` and ``[...]``.

Patterns for paths on a server, filters of names and host patterns use this matcher. Local files are searched by
`glob.glob`, object stores by fsspec: their syntax is the same.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

_WILDCARD: Final = re.compile(r"[*?[]")
_ESCAPED: Final = re.compile(r"\[([*?[])\]")
"""A literal wildcard, as `glob.escape` writes it."""


def has_wildcard(text: str) -> bool:
    """Return whether a text has a wildcard character, escaped or not.

    :param text: a name, a path or a pattern
    """
    return _WILDCARD.search(text) is not None


@lru_cache(maxsize=1 << 14)
def literal_name(segment: str) -> str | None:
    """Return the only name that a segment of a pattern matches.

    :param segment: part of a pattern between two slashes; `glob.escape` may have escaped its wildcards
    :returns: None if the segment has wildcards
    """
    return None if has_wildcard(_ESCAPED.sub("", segment)) else _ESCAPED.sub(r"\1", segment)


@lru_cache(maxsize=1 << 14)
def name_matcher(*globs: str) -> Callable[[str], re.Match[str] | None]:
    """Return the predicate for names that match one of several globs.

    Without globs no name matches.

    :param globs: globs without slashes; case matters
    """
    return re.compile("|".join(map(fnmatch.translate, globs)) if globs else "(?!)").match
