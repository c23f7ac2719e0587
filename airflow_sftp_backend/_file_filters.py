"""Filter files by name, time, size and number. No I/O.

Times are compared in whole seconds, because SFTP has no others. ``newer_than`` includes its second and ``older_than``
excludes its second, so consecutive windows take each file once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Final, Generic, Literal, Protocol, TypeAlias, TypeVar

from ._arguments import InvalidArgument
from .backend._patterns import name_matcher

TEMPORARY_NAMES = (".*", "*.part", "*.partial", "*.filepart", "*.tmp", "*.temp", "*.crdownload")
"""Names that programs give to unfinished files."""

TimeLimit: TypeAlias = "datetime | timedelta | str | None"
"""A time; a timedelta counts back from the time when the run was due."""
LimitName: TypeAlias = Literal["min_size", "newer_than", "older_than"]

T = TypeVar("T")
_EXAMPLE: Final = "2026-01-31T06:00:00+01:00"
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_LATEST: Final = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class FileFilters:
    """Filter files by globs of names, not of paths.

    :ivar include: globs of file names that count; empty: all files count
    :ivar exclude: globs of names that do not count, of files and of the directories on their paths that no pattern
        names
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude)

    def accepting(self, patterns: Iterable[str]) -> Callable[[str], bool]:
        """Return the predicate for the files of patterns.

        :param patterns: the patterns that found the files
        :returns: the predicate for paths
        """
        included = name_matcher(*self.include) if self.include else None
        excluded = name_matcher(*self.exclude)
        # A directory that a pattern names, at least in part, is not excluded: ``.spool/*`` finds files although ``.*``
        # is excluded.
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


# -- time, size and number --------------------------------------------------------------------------------------------


class LimitedFile(Protocol):
    """Describe a file by the attributes that limits apply to."""

    @property
    def path(self) -> str:
        """Path of the file."""

    @property
    def size(self) -> int | None:
        """Size in bytes; None if unknown."""

    @property
    def modified_at(self) -> datetime | None:
        """Time of the last change; None if unknown."""


@dataclass(frozen=True, slots=True)
class FileLimits:
    """Limit files by time, size and number.

    :ivar newer_than: earliest time of the last change
    :ivar older_than: time before which the last change must be
    :ivar min_size: smallest size in bytes
    :ivar max_files: number of files to take, the oldest first; None for all
    """

    newer_than: datetime | None = None
    older_than: datetime | None = None
    min_size: float = 0
    max_files: int | None = None

    def __bool__(self) -> bool:
        return self != FileLimits()

    @property
    def has_time(self) -> bool:
        """True if the time of a file matters."""
        return self.newer_than is not None or self.older_than is not None

    @property
    def excludes(self) -> bool:
        """True if the size or the time of a file matters."""
        return self.has_time or bool(self.min_size)

    def violated_by(self, size: int | None, modified_at: datetime | None) -> LimitName | None:
        """Return the first limit that a file violates.

        A limit on an unknown size or time is violated.

        :param size: size in bytes; None if unknown
        :param modified_at: time of the last change; None if unknown
        :returns: name of the limit; None if the file satisfies all
        """
        if self.min_size and (size is None or size < self.min_size):
            return "min_size"
        time = None if modified_at is None else modified_at.replace(microsecond=0)
        if self.newer_than is not None and (time is None or time < self.newer_than.replace(microsecond=0)):
            return "newer_than"
        if self.older_than is not None and (time is None or time >= self.older_than.replace(microsecond=0)):
            return "older_than"
        return None


@dataclass(slots=True)
class SplitFiles(Generic[T]):
    """Hold files split by their limits.

    :ivar accepted: files that satisfy all limits
    :ivar left_out: number of the other files, by the limit that they do not satisfy
    :ivar undecided: files whose size or time is unknown, with the limit that cannot be decided
    """

    accepted: list[T] = field(default_factory=list)
    left_out: Counter[LimitName] = field(default_factory=Counter)
    undecided: list[tuple[T, LimitName]] = field(default_factory=list)


def split_by_limits(files: Iterable[T], limits: FileLimits, file_of: Callable[[T], LimitedFile]) -> SplitFiles[T]:
    """Split files by the limits of size and time.

    :param files: the files
    :param limits: the limits; ``max_files`` has no effect
    :param file_of: returns the attributes of a file
    :returns: the files
    """
    split = SplitFiles[T]()
    for item in files:
        file = file_of(item)
        limit = limits.violated_by(file.size, file.modified_at)
        if limit is None:
            split.accepted.append(item)
        elif (file.size if limit == "min_size" else file.modified_at) is None:
            split.undecided.append((item, limit))
        else:
            split.left_out[limit] += 1
    return split


def take_oldest(
    files: Iterable[T], max_files: int | None, file_of: Callable[[T], LimitedFile], selected: Set[str] = frozenset()
) -> list[T]:
    """Take the oldest files.

    Files without a time come last; equal times are ordered by path.

    :param files: the files
    :param max_files: number of files; None returns all files in their order
    :param file_of: returns the attributes of a file
    :param selected: paths that an earlier attempt selected, existing or not: these files come first, and each of the
        paths counts
    :returns: the files, those of ``selected`` first
    """
    if max_files is None:
        return list(files)

    def age(item: T) -> tuple[bool, datetime, str]:
        file = file_of(item)
        return file.modified_at is None, file.modified_at or _EPOCH, file.path

    ordered = sorted(files, key=age)
    again = [item for item in ordered if file_of(item).path in selected]
    others = [item for item in ordered if file_of(item).path not in selected]
    return again + others[: max(0, max_files - len(selected))]


@dataclass(frozen=True, slots=True)
class LimitArguments:
    """Hold the arguments for limits that no template changes.

    :ivar has_newer_than: True if ``newer_than`` is specified; its template may render to nothing
    :ivar has_older_than: True if ``older_than`` is specified
    :ivar min_size: smallest size in bytes
    :ivar max_files: number of files to take
    """

    has_newer_than: bool = False
    has_older_than: bool = False
    min_size: float = 0
    max_files: int | None = None

    @classmethod
    def checked(
        cls, newer_than: object, older_than: object, min_size: object = 0, max_files: object = None
    ) -> LimitArguments:
        """Check the arguments when the DAG is parsed.

        Templates of times are left for `resolve`.

        :param newer_than: the argument of that name
        :param older_than: the argument of that name
        :param min_size: the argument of that name
        :param max_files: the argument of that name
        :returns: the arguments
        :raises InvalidArgument: for an invalid value
        """
        for argument, value in (("newer_than", newer_than), ("older_than", older_than)):
            if isinstance(value, date | timedelta | int | float | list | tuple):  # anything else may be a template
                parse_time(value, argument, run_after=_LATEST)
        if max_files is not None:
            check_number("max_files", max_files, 1, is_whole=True)
        return cls(
            newer_than is not None, older_than is not None, check_number("min_size", min_size, 0),
            max_files if isinstance(max_files, int) else None,
        )  # fmt: skip

    def resolve(
        self, newer_than: object, older_than: object, *, run_after: datetime | None, is_scheduled: bool = True
    ) -> FileLimits:
        """Return the limits after the templates are rendered.

        :param newer_than: the argument of that name
        :param older_than: the argument of that name
        :param run_after: time when the run was due, from which a timedelta counts back; None without a run
        :param is_scheduled: False for a run without a logical date
        :returns: the limits
        :raises InvalidArgument: for an invalid value, for an empty ``older_than``, and for an empty ``newer_than`` of a
            run without a logical date
        """
        earliest = parse_time(newer_than, "newer_than", run_after)
        latest = parse_time(older_than, "older_than", run_after)
        if self.has_newer_than and earliest is None and not is_scheduled:
            raise InvalidArgument(_EMPTY_NEWER_THAN)
        if self.has_older_than and latest is None:
            raise InvalidArgument("older_than is empty: expected a time. If older_than is a template, check its result")
        return FileLimits(earliest, latest, self.min_size, self.max_files)


_EMPTY_NEWER_THAN: Final = (
    "newer_than is empty: this run has no logical date, so Airflow knows no earlier success. For runs that assets or"
    " the API start, omit newer_than, and download with only_new=True (SFTPDownloadOperator) or move each file to an"
    " archive (SFTPMoveOperator) so that no file is found twice"
)


def parse_time(value: object, argument: str, run_after: datetime | None) -> datetime | None:
    """Parse the argument ``newer_than`` or ``older_than``.

    :param value: a datetime or ISO 8601 text with a time zone; a timedelta that counts back from ``run_after``; None
        and "" mean no limit
    :param argument: name of the argument
    :param run_after: time when the run was due; None without a run
    :returns: the time; None for no limit
    :raises InvalidArgument: for any other value
    """
    if value is None or value == "":
        return None
    if isinstance(value, timedelta):
        return _count_back(value, argument, run_after)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            expected = _expected_time(str(value), argument, has_run=run_after is not None)
            raise InvalidArgument(f"{argument} is not a time: {value!r}; expected {expected}") from None
    if not isinstance(value, datetime):
        raise InvalidArgument(
            f"{argument} must be a datetime, a timedelta or ISO 8601 text, not {type(value).__name__}: {value!r}"
        )
    if value.tzinfo is None:
        raise InvalidArgument(f"{argument} needs a time zone, as in {_EXAMPLE}; {value.isoformat()} has none")
    return value


def _expected_time(text: str, argument: str, *, has_run: bool) -> str:
    """Describe the value to pass in place of an invalid text."""
    expected = f"a time such as {_EXAMPLE}"
    if text == "None" and argument == "newer_than":
        return f"{expected}. If the template may have no time, write {{{{ ... or '' }}}} for no limit"
    return f"{expected}, or for an age a timedelta such as timedelta(days=30)" if has_run else expected


def _count_back(value: timedelta, argument: str, run_after: datetime | None) -> datetime:
    if run_after is None:
        raise InvalidArgument(
            f"{argument} must be a time, not a timedelta: a watch has no run that a timedelta could count back from"
        )
    try:
        if value < timedelta(0):
            raise OverflowError
        return run_after - value
    except OverflowError:
        raise InvalidArgument(
            f"{argument} must be a timedelta from 0, which counts back from the time of the run, not {value!r}"
        ) from None


def check_number(argument: str, value: object, minimum: int, *, is_whole: bool = False) -> float:
    """Check a number.

    :param argument: name of the argument
    :param value: the value to check
    :param minimum: the smallest permitted number
    :param is_whole: True if the number must be whole
    :returns: the number
    :raises InvalidArgument: for another value
    """
    if isinstance(value, int if is_whole else int | float) and not isinstance(value, bool):
        assert isinstance(value, int | float)
        if math.isfinite(value) and value >= minimum:
            return value
    raise InvalidArgument(f"{argument} must be a {'whole ' if is_whole else ''}number from {minimum}, not {value!r}")
