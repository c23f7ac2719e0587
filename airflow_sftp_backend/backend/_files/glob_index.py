"""Match undecoded names of a directory against many globs.

The literal parts of a glob are a prefix, a suffix and a middle: ``a*b?c*d`` has the prefix ``a``, the suffix ``d`` and
the middle ``b``. The index looks up one part of each glob, the one that the fewest other globs share. Only a
name with this part is decoded and compared with the glob, so the cost of a name does not grow with the number of globs.
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
"""Number of different lengths up to which a dictionary for each length is faster than a search in a sorted list."""
_MAX_MIDDLE_BYTES: Final = 64
"""Bytes of a middle that are compared: they limit the depth of the regular expression of all middles."""
_MAX_INDEXES: Final = 64
"""Number of indexes to keep: each poll searches for the globs of the previous poll."""

_BRACKETS: Final = re.compile(r"\[!?\]?[^\]]*\]")
_WILDCARDS: Final = re.compile(r"[*?\[\]]")


@dataclass(frozen=True, slots=True)
class _Glob:
    """Segment of a pattern with its literal parts, which may be empty."""

    segment: str
    prefix: bytes
    middle: bytes
    suffix: bytes
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

    def has_parts(self, name: bytes) -> bool:
        """Return whether a name has all literal parts."""
        return name.startswith(self.prefix) and name.endswith(self.suffix) and self.middle in name


_Globs = list[_Glob]
_GlobsByPart = dict[bytes, _Globs]
_Found = Iterator[tuple[int, _Globs]]
"""Index of each name that has a literal part, with the globs of this part."""


class _PartTable(Protocol):
    """Find names by the literal parts of globs."""

    def find(self, names: Sequence[bytes]) -> _Found:
        """Find the names that have a literal part of the table."""


class _FixedLengthTable:
    """Find names by prefixes, or by suffixes, of one length."""

    def __init__(self, globs: _GlobsByPart, length: int, *, is_suffix: bool) -> None:
        self._globs = globs
        self._part = slice(-length, None) if is_suffix else slice(length)

    def find(self, names: Sequence[bytes]) -> _Found:
        """Find the names that have a literal part of the table."""
        globs, part = self._globs, self._part
        for index in [index for index, name in enumerate(names) if name[part] in globs]:
            yield index, globs[names[index][part]]


class _PrefixTable:
    """Find names by prefixes, or by suffixes, of any lengths.

    The prefixes are sorted, and none begins with another one. Therefore a name can only have the last prefix that is
    not greater than the name. A suffix is the prefix of a reversed name.
    """

    def __init__(self, globs: _GlobsByPart, *, is_suffix: bool) -> None:
        self._is_suffix = is_suffix
        self._prefixes: list[bytes] = []
        self._globs: list[_Globs] = []
        globs_by_prefix = {part[::-1]: globs[part] for part in globs} if is_suffix else globs
        for prefix in sorted(globs_by_prefix):
            if self._prefixes and prefix.startswith(self._prefixes[-1]):
                self._globs[-1] += globs_by_prefix[prefix]  # the shorter prefix finds the names of both
            else:
                self._prefixes.append(prefix)
                self._globs.append([*globs_by_prefix[prefix]])

    def find(self, names: Sequence[bytes]) -> _Found:
        """Find the names that have a literal part of the table."""
        prefixes = self._prefixes
        for index, name in enumerate([name[::-1] for name in names] if self._is_suffix else names):
            position = bisect_right(prefixes, name) - 1
            if name.startswith(prefixes[position]):
                yield index, self._globs[position]


class _MiddleTable:
    """Find names that contain a literal part anywhere."""

    def __init__(self, globs: _GlobsByPart) -> None:
        self._globs = globs
        self._search = re.compile(_alternatives(sorted(globs)), re.DOTALL).search

    def find(self, names: Sequence[bytes]) -> _Found:
        """Find the names that have a literal part of the table."""
        search = self._search
        # No part contains the slash. Most replies of a large directory have no match, and take one search.
        if search(b"/".join(names)) is None:
            return
        for index, name in enumerate(names):
            if search(name) is not None:
                yield index, [glob for part, globs in self._globs.items() if part in name for glob in globs]


def _alternatives(texts: Sequence[bytes]) -> bytes:
    """Return a regular expression that matches any of the sorted texts.

    A common prefix of texts is written once, because `re` tries alternatives one after the other.
    """
    if texts[0] == b"":  # the empty text is found wherever the others are
        return b""
    alternatives: list[bytes] = []
    for first_byte in dict.fromkeys(text[:1] for text in texts):
        group = [text for text in texts if text[:1] == first_byte]
        # Texts between the first and the last have the prefix that these two share.
        length = max(end for end in range(len(group[0]) + 1) if group[-1].startswith(group[0][:end]))
        alternatives.append(re.escape(group[0][:length]) + _alternatives([text[length:] for text in group]))
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
        by_prefix, by_middle, by_suffix = _by_rarest_part(globs)
        self._tables: list[_PartTable] = [*_tables(by_prefix, is_suffix=False), *_tables(by_suffix, is_suffix=True)]
        if by_middle:
            self._tables.append(_MiddleTable(by_middle))
        self._without_parts = [glob for glob in globs if not (glob.prefix or glob.middle or glob.suffix)]

    def matches(self, names: Sequence[bytes]) -> Iterator[tuple[int, str, list[str]]]:
        """Yield the matching names.

        :param names: the names
        :returns: for each matching name its index, the decoded name, and the segments
        """
        candidates: dict[int, _Globs] = {}
        for table in self._tables:
            for index, globs in table.find(names):
                if globs := [glob for glob in globs if glob.has_parts(names[index])]:
                    candidates.setdefault(index, []).extend(globs)
        literals = self._literals
        literal_indexes = [index for index, name in enumerate(names) if name in literals] if literals else []
        if self._without_parts:
            indexes: Iterable[int] = range(len(names))
        else:
            indexes = sorted({*candidates, *literal_indexes})
        for index in indexes:
            name = str(names[index], self._encoding, "surrogateescape")
            globs = [*self._without_parts, *candidates.get(index, ())]
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
    """Group globs by prefix, middle or suffix.

    Each glob is in one group: that of the part that the fewest globs share, the longest of these.
    """
    prefixes, middles, suffixes = (
        Counter(getattr(glob, part) for glob in globs) for part in ("prefix", "middle", "suffix")
    )
    by_prefix, by_middle, by_suffix = _GlobsByPart(), _GlobsByPart(), _GlobsByPart()
    for glob in globs:
        choices = [
            (prefixes[glob.prefix], -len(glob.prefix), 0, glob.prefix, by_prefix),
            (suffixes[glob.suffix], -len(glob.suffix), 1, glob.suffix, by_suffix),
            (middles[glob.middle], -len(glob.middle), 2, glob.middle, by_middle),
        ]
        if choices := [choice for choice in choices if choice[3]]:
            *_, part, group = min(choices, key=lambda choice: choice[:3])
            group.setdefault(part, []).append(glob)
    return by_prefix, by_middle, by_suffix


def _tables(globs: _GlobsByPart, *, is_suffix: bool) -> list[_PartTable]:
    """Return the tables for prefixes or suffixes."""
    by_length: dict[int, _GlobsByPart] = {}
    for part, globs_of_part in globs.items():
        by_length.setdefault(len(part), {})[part] = globs_of_part
    if len(by_length) > _MAX_LENGTHS:
        return [_PrefixTable(globs, is_suffix=is_suffix)]
    return [_FixedLengthTable(group, length, is_suffix=is_suffix) for length, group in by_length.items()]
