"""Filter the files of a directory or pattern with ``include`` and ``exclude``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ._arguments import InvalidArgument
from .backend._patterns import name_matcher

TEMPORARY_NAMES = (".*", "*.part", "*.partial", "*.filepart", "*.tmp", "*.temp", "*.crdownload")
"""Names that programs give to unfinished files."""


@dataclass(frozen=True, slots=True)
class FileFilters:
    """Filter files by globs of names, not of paths.

    :ivar include: globs of file names that count; empty: all files count
    :ivar exclude: globs of names that do not count, of files and of directories that a wildcard matched
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude)

    def accepting(self, patterns: Iterable[str]) -> Callable[[str], bool]:
        """Return the predicate for the files of patterns.

        A directory that a pattern names literally is not excluded: ``.spool/*`` finds files although ``.*`` is
        excluded.

        :param patterns: the patterns that found the files
        :returns: the predicate for paths
        """
        included = name_matcher(*self.include) if self.include else None
        excluded = name_matcher(*self.exclude)
        segments = {segment for pattern in patterns for segment in pattern.split("/")[:-1] if segment.strip("*?")}
        named = name_matcher(*sorted(segments))
        is_excluded: dict[str, bool] = {}

        def accepts(path: str) -> bool:  # called for every file of every poll
            directory, _, name = path.rpartition("/")
            if excluded(name) or (included is not None and not included(name)):
                return False
            if directory not in is_excluded:
                names = filter(None, directory.split("/"))
                is_excluded[directory] = any(excluded(segment) and not named(segment) for segment in names)
            return not is_excluded[directory]

        return accepts


def parse_globs(value: object, argument: str) -> tuple[str, ...]:
    """Parse the value of ``include`` or ``exclude``.

    :param value: a text, a list of texts, or None
    :param argument: name of the argument
    :returns: the globs
    :raises InvalidArgument: for other types, an empty text, and a path, because filters match names
    """
    globs: Sequence[object]
    if value is None:
        globs = ()
    elif isinstance(value, str):
        globs = (value,)
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        globs = value
    else:
        raise InvalidArgument(f"{argument} has type {type(value).__name__}; expected a glob or a list of globs")
    for item in globs:
        if not isinstance(item, str):
            raise InvalidArgument(
                f"{argument} contains type {type(item).__name__}; expected a glob, or a list of globs"
            )
        if not item or "/" in item:
            raise InvalidArgument(f"{argument} contains {item!r}; expected a glob of names, such as *.tmp, without '/'")
    return tuple(str(item) for item in globs)
