"""Match undecoded names of a directory against many globs.

Each glob has literal parts: bytes that its names begin with, end with, or contain. The index looks up the part that the
fewest other globs share. Only a name with this part is decoded and compared with the glob, so the cost of a name does
not grow with the number of globs.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Protocol

from airflow_sftp_backend.backend._patterns import literal_name, name_matcher

_MAX_LENGTHS: Final = 3
"""Number of different lengths up to which a table for each length is faster than a search in a sorted list."""
_MAX_MIDDLE_BYTES: Final = 64
"""Bytes of a middle part that are compared: limits the depth of the regular expression of all middle parts."""
_MAX_INDEXES: Final = 64
"""Number of indexes to keep: a poll looks for the globs of the previous poll."""

_BRACKETS: Final = re.compile(r"\[!?\]?[^\]]*\]")
_WILDCARDS: Final = re.compile(r"[*?\[\]]")


@dataclass(frozen=True, slots=True)
class _Glob:
    """Segment of a pattern with its literal parts.

    Its names begin with `start`, contain `middle` and end with `end`.
    """

    segment: str
    start: bytes
    middle: bytes
    end: bytes
    matches: Callable[[str], object] = field(compare=False)

    @classmethod
    def parse(cls, segment: str, encoding: str) -> _Glob:
        """Find the literal parts of a segment with wildcards."""

        def encode(text: str) -> bytes:
            return text.encode(encoding, "surrogateescape")

        wildcards = list(_WILDCARDS.finditer(segment))
        inner = segment[wildcards[0].start() : wildcards[-1].end()]
        middle = max(_WILDCARDS.split(_BRACKETS.sub("*", inner)), key=len)
        return cls(
            segment,
            encode(segment[: wildcards[0].start()]),
            encode(middle)[:_MAX_MIDDLE_BYTES],
            encode(segment[wildcards[-1].end() :]),
            name_matcher("*" if segment == "**" else segment),
        )

    def may_match(self, name: bytes) -> bool:
        """Return whether a name has all literal parts."""
        return name.startswith(self.start) and name.endswith(self.end) and self.middle in name


_Globs = list[_Glob]
_GlobsByPart = dict[bytes, _Globs]
_Hits = Iterator[tuple[int, _Globs]]
"""Indexes of names, with the globs that may match."""


class _Table(Protocol):
    """Find the names with one of several literal parts."""

    def hits(self, names: Sequence[bytes]) -> _Hits:
        """Yield the names with a literal part."""


class _LengthTable:
    """Find names by starts, or by ends, of the same length."""

    def __init__(self, globs: _GlobsByPart, length: int, *, is_end: bool) -> None:
        self._globs = globs
        self._slice = slice(-length, None) if is_end else slice(length)

    def hits(self, names: Sequence[bytes]) -> _Hits:
        """Yield the names with a literal part."""
        globs, part = self._globs, self._slice
        for index in [index for index, name in enumerate(names) if name[part] in globs]:
            yield index, globs[names[index][part]]


class _SortedTable:
    """Find names by starts, or by ends, of any lengths.

    The parts are sorted, and none begins with another: only the last part that is not greater than a name can be its
    start. Ends are compared as starts of reversed names.
    """

    def __init__(self, globs: _GlobsByPart, *, is_end: bool) -> None:
        self._step = -1 if is_end else 1
        self._parts: list[bytes] = []
        self._globs: list[_Globs] = []
        for part, globs_of_part in sorted(
            (part[:: self._step], globs_of_part) for part, globs_of_part in globs.items()
        ):
            if self._parts and part.startswith(self._parts[-1]):
                self._globs[-1] += globs_of_part
            else:
                self._parts.append(part)
                self._globs.append([*globs_of_part])

    def hits(self, names: Sequence[bytes]) -> _Hits:
        """Yield the names with a literal part."""
        parts = self._parts
        ordered = names if self._step == 1 else [name[::-1] for name in names]
        for index in [
            index for index, name in enumerate(ordered) if name.startswith(parts[bisect_right(parts, name) - 1])
        ]:
            yield index, self._globs[bisect_right(parts, ordered[index]) - 1]


class _MiddleTable:
    """Find names that contain a literal part anywhere."""

    def __init__(self, globs: _GlobsByPart) -> None:
        self._globs = globs
        self._search = re.compile(_any_of(sorted(globs)), re.DOTALL).search

    def hits(self, names: Sequence[bytes]) -> _Hits:
        """Yield the names with a literal part."""
        search = self._search
        # No part contains the separator. Most replies of a large directory have no match, and take one search.
        if search(b"/".join(names)) is None:
            return
        for index, name in enumerate(names):
            if search(name) is not None:
                yield index, [glob for part, globs in self._globs.items() if part in name for glob in globs]


def _any_of(parts: Sequence[bytes]) -> bytes:
    """Return a regular expression for any of some sorted texts.

    Texts with a common start share it: `re` tries the alternatives one after the other.
    """
    if parts[0] == b"":  # the shorter text is found wherever the longer ones are
        return b""
    alternatives: list[bytes] = []
    for first in dict.fromkeys(part[:1] for part in parts):
        group = [part for part in parts if part[:1] == first]
        # what the first and the last of sorted texts share, all share
        differences = (at for at, (left, right) in enumerate(zip(group[0], group[-1], strict=False)) if left != right)
        common = next(differences, len(group[0]))
        alternatives.append(re.escape(group[0][:common]) + _any_of([part[common:] for part in group]))
    return alternatives[0] if len(alternatives) == 1 else b"(?:" + b"|".join(alternatives) + b")"


class GlobIndex:
    """Find the names that match any of several segments of patterns.

    :param segments: segments with or without wildcards; ``**`` matches every name
    :param encoding: encoding of the names
    """

    def __init__(self, segments: Iterable[str], encoding: str) -> None:
        self._encoding = encoding
        self._literals: dict[bytes, str] = {}
        globs: _Globs = []
        for segment in segments:
            literal = literal_name(segment)
            if literal is None:
                globs.append(_Glob.parse(segment, encoding))
            else:
                self._literals[literal.encode(encoding, "surrogateescape")] = segment
        starts, middles, ends = _by_rarest_part(globs)
        self._tables: list[_Table] = [*_tables(starts, is_end=False), *_tables(ends, is_end=True)]
        if middles:
            self._tables.append(_MiddleTable(middles))
        self._others = [glob for glob in globs if not (glob.start or glob.middle or glob.end)]

    def matches(self, names: Sequence[bytes]) -> Iterator[tuple[int, str, list[str]]]:
        """Yield the matching names.

        :param names: the names
        :returns: for each matching name its index, the decoded name, and the segments
        """
        candidates: dict[int, _Globs] = {}
        for table in self._tables:
            for index, globs in table.hits(names):
                if possible := [glob for glob in globs if glob.may_match(names[index])]:
                    candidates.setdefault(index, []).extend(possible)
        literals = self._literals
        literal_indexes = [index for index, name in enumerate(names) if name in literals] if literals else []
        if self._others:
            indexes: Iterable[int] = range(len(names))
        else:
            indexes = sorted({*candidates, *literal_indexes})
        for index in indexes:
            name = str(names[index], self._encoding, "surrogateescape")
            globs = [*self._others, *candidates.get(index, ())]
            segments = [glob.segment for glob in globs if glob.matches(name)]
            if names[index] in literals:
                segments.append(literals[names[index]])
            if segments:
                yield index, name, segments


@lru_cache(maxsize=_MAX_INDEXES)
def glob_index(segments: tuple[str, ...], encoding: str) -> GlobIndex:
    """Return the index of some segments.

    :param segments: as for `GlobIndex`
    :param encoding: as for `GlobIndex`
    :returns: the index
    """
    return GlobIndex(segments, encoding)


def _by_rarest_part(globs: Sequence[_Glob]) -> tuple[_GlobsByPart, _GlobsByPart, _GlobsByPart]:
    """Group globs by start, middle or end.

    Each glob is in the group of the part that the fewest globs share, the longest of these.
    """
    starts, middles, ends = (Counter(getattr(glob, part) for glob in globs) for part in ("start", "middle", "end"))
    by_start, by_middle, by_end = _GlobsByPart(), _GlobsByPart(), _GlobsByPart()
    for glob in globs:
        choices = [
            (starts[glob.start], -len(glob.start), 0, glob.start, by_start),
            (ends[glob.end], -len(glob.end), 1, glob.end, by_end),
            (middles[glob.middle], -len(glob.middle), 2, glob.middle, by_middle),
        ]
        if choices := [choice for choice in choices if choice[3]]:
            *_, part, group = min(choices, key=lambda choice: choice[:3])
            group.setdefault(part, []).append(glob)
    return by_start, by_middle, by_end


def _tables(globs: _GlobsByPart, *, is_end: bool) -> list[_Table]:
    """Return the tables for starts or ends."""
    by_length: dict[int, _GlobsByPart] = {}
    for part, globs_of_part in globs.items():
        by_length.setdefault(len(part), {})[part] = globs_of_part
    if len(by_length) > _MAX_LENGTHS:
        return [_SortedTable(globs, is_end=is_end)]
    return [_LengthTable(group, length, is_end=is_end) for length, group in by_length.items()]
