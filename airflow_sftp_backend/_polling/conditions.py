"""Poll for files, and decide whether a wait is over.

The decision is the same in the worker and in the triggerer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, TypedDict

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend._file_filters import (
    TEMPORARY_NAMES,
    FileFilters,
    FileLimits,
    LimitName,
    check_number,
    take_oldest,
)
from airflow_sftp_backend._file_rows import FoundFile, found_file
from airflow_sftp_backend._path_arguments import (
    PLACEHOLDER,
    Selection,
    check_relative,
    directory_error,
    everything_in,
    split_pattern,
)
from airflow_sftp_backend.backend import FileInfo, InvalidPath, NotFound, SFTPBackendError
from airflow_sftp_backend.backend._patterns import has_wildcard

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend

StabilityState = dict[str, list[Any]]
"""Plain JSON: for each path the size, ``modified_at``, and the start (epoch seconds) of the time without changes."""


@dataclass(frozen=True, slots=True)
class FileCondition:
    """Describe the files to wait for.

    :ivar names: literal paths
    :ivar directories: literal paths of directories; every file below a directory counts
    :ivar patterns: globs
    :ivar min_files: number of files that must satisfy all conditions
    :ivar min_size: size in bytes that a file must have at least
    :ivar newer_than: earliest time of a file, as ISO 8601 text
    :ivar older_than: time before which a file must be modified, as ISO 8601 text
    :ivar max_files: number of files to return, the oldest first; None for all
    :ivar stable_for: seconds without a change of size and time
    :ivar done_file: path of a file that must exist beside each file; ``{name}`` stands for the file's name, ``{stem}``
        for the name without its suffix
    :ivar include: globs of file names, as in `FileFilters`; do not apply to ``names``
    :ivar exclude: globs of file and directory names, as in `FileFilters`; do not apply to ``names``
    :raises InvalidArgument: if no file can satisfy a value; the text names the argument
    """

    names: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    min_files: int = 1
    min_size: int = 0
    newer_than: str | None = None
    stable_for: float = 0.0
    done_file: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = TEMPORARY_NAMES
    older_than: str | None = None
    max_files: int | None = None

    def __post_init__(self) -> None:
        check_number("min_files", self.min_files, 1, is_whole=True)
        check_number("min_size", self.min_size, 0)
        check_number("stable_for", self.stable_for, 0)
        if self.max_files is not None and self.max_files < self.min_files:
            raise InvalidArgument(f"max_files is {self.max_files}, less than min_files, {self.min_files}")
        _check_done_file(self.done_file)

    @property
    def limits(self) -> FileLimits:
        """Limits of size, time and number."""
        newest, oldest = (
            None if text is None else datetime.fromisoformat(text) for text in (self.newer_than, self.older_than)
        )
        return FileLimits(newest, oldest, self.min_size, self.max_files)

    @property
    def is_single_name(self) -> bool:
        """True if the condition waits for one file by its name."""
        return len(self.names) == 1 and not self.searches

    @property
    def searches(self) -> tuple[str, ...]:
        """Patterns to search for, with the patterns of the directories."""
        return (*map(everything_in, self.directories), *self.patterns)

    @property
    def watched_dirs(self) -> frozenset[str]:
        """Directories that a poll reads, and patterns that lead into several directories."""
        directories = {name.rpartition("/")[0] for name in self.names}
        for pattern in self.searches:
            directory, pattern_below = split_pattern(pattern)
            directories.add(pattern if "/" in pattern_below or pattern_below == "**" else directory)
        return frozenset(directories)

    @property
    def parent_directories(self) -> list[str]:
        """Directories to search, each with a slash at its end.

        An empty text is the base path.
        """
        directories = [name.rpartition("/")[0] for name in self.names]
        directories += [split_pattern(pattern)[0] for pattern in self.searches]
        return sorted({f"{path}/" if (path := _normalize(directory)) else "" for directory in directories})

    @property
    def descriptions(self) -> list[str]:
        """Names, directories and patterns in the spelling of the arguments."""
        return [*self.names, *(f"{directory.rstrip('/')}/" for directory in self.directories), *self.patterns]

    @property
    def names_with_wildcards(self) -> list[str]:
        """Names with wildcard characters, which may be meant as patterns."""
        return [name for name in (*self.names, *self.directories) if has_wildcard(name)]

    def done_files(self, files: Iterable[FileInfo]) -> set[str]:
        """Return the done files that must exist beside files.

        :param files: the files
        :returns: the paths of the done files
        """
        return set() if self.done_file is None else {done_file_of(self.done_file, info.path) for info in files}

    def as_json(self) -> dict[str, Any]:
        """Return the condition as plain JSON for `from_json`."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FileCondition:
        """Restore a condition from the JSON of `as_json`.

        :param values: the JSON object
        :returns: the condition
        """
        arguments: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**arguments)


class ConditionPaths(TypedDict):
    """Hold the arguments of `FileCondition` that select files."""

    names: tuple[str, ...]
    directories: tuple[str, ...]
    patterns: tuple[str, ...]


def condition_paths(selection: Selection) -> ConditionPaths:
    """Convert a selection to arguments of `FileCondition`.

    :param selection: names or patterns
    :returns: the arguments
    """
    return {
        "names": tuple(name.path for name in selection.names if not name.is_directory),
        "directories": tuple(name.path for name in selection.names if name.is_directory),
        "patterns": selection.patterns,
    }


def _check_done_file(template: object) -> None:
    if template is None:
        return
    segments = template.split("/") if isinstance(template, str) else []
    if not segments or any(not segment.strip() or segment in (".", "..") or "\0" in segment for segment in segments):
        raise InvalidArgument(f"done_file must be a relative path such as {{name}}.done, not {template!r}")
    if template == "{name}":
        raise InvalidArgument("done_file must differ from the file's own name, '{name}'")
    for placeholder in PLACEHOLDER.finditer(str(template)):
        if placeholder[1] not in ("name", "stem"):
            expected = "expected {name} or {stem}"
            raise InvalidArgument(f"done_file has {placeholder[0]} in it, an unknown placeholder; {expected}")


@dataclass(frozen=True, slots=True)
class PollResult:
    """Hold the result of a poll.

    :ivar done: whether the wait is over
    :ivar files: the files that satisfy all conditions
    :ivar stability: state for the next poll
    :ivar reason: why the wait continues, for the log
    :ivar awaiting_stability: True if only time without changes is missing
    :ivar warning: warning for the log, or ""
    :ivar counts: number of files that satisfy all conditions, and of other files by cause; ``reason`` may change while
        ``counts`` stay equal
    """

    done: bool
    files: list[FoundFile]
    stability: StabilityState
    reason: str
    awaiting_stability: bool = False
    warning: str = ""
    counts: tuple[int, ...] = ()


PollSnapshot = tuple[list[FileInfo], set[str]]
"""Files that match a condition, and their existing done files."""


def poll(backend: SFTPBackend, condition: FileCondition) -> PollSnapshot:
    """Poll for one condition; a single name costs one `exists` request.

    :param backend: the backend
    :param condition: the condition
    :returns: the matching files and the existing done files
    :raises SFTPBackendError: if the poll fails, for example because a name belongs to a directory
    """
    is_refused = _base_path_error(condition, backend.resolve("").native_path) is not None
    if condition.is_single_name and not is_refused and not backend.exists(*condition.names):
        return [], set()
    (snapshot,) = poll_many(backend, [condition])
    if isinstance(snapshot, SFTPBackendError):
        raise snapshot
    return snapshot


def poll_many(backend: SFTPBackend, conditions: Sequence[FileCondition]) -> list[PollSnapshot | SFTPBackendError]:
    """Poll for several conditions.

    All names are polled in one request, and each directory is listed once.

    :param backend: the backend
    :param conditions: the conditions
    :returns: a snapshot or an error for each condition, in order
    :raises BackendUnavailable: if the connection is lost
    """
    base_path = backend.resolve("").native_path
    all_errors = {condition: _base_path_error(condition, base_path) for condition in conditions}
    errors = {condition: error for condition, error in all_errors.items() if error is not None}
    valid = [condition for condition in conditions if condition not in errors]
    # Conditions share searches and names: each is requested once.
    searches = dict.fromkeys(condition.searches for condition in valid if condition.searches)
    names = dict.fromkeys(name for condition in valid for name in condition.names)
    by_patterns = _find_by_patterns(backend, [*searches])
    by_name = _stat_many(backend, [*names])
    files = [errors.get(condition) or _files_of(condition, by_name, by_patterns) for condition in conditions]
    done_files = [
        set[str]() if isinstance(matched, SFTPBackendError) else condition.done_files(matched)
        for condition, matched in zip(conditions, files, strict=True)
    ]
    done_infos = _stat_many(backend, set().union(*done_files))
    return [
        matched if isinstance(matched, SFTPBackendError) else _snapshot(matched, expected, done_infos)
        for matched, expected in zip(files, done_files, strict=True)
    ]


def _snapshot(files: list[FileInfo], done_files: set[str], infos: _Outcomes) -> PollSnapshot | SFTPBackendError:
    """Return the files and done files of a condition, or an error."""
    try:
        return files, _existing_of(done_files, infos)
    except SFTPBackendError as error:
        return error


def _base_path_error(condition: FileCondition, base_path: str) -> InvalidPath | None:
    try:
        for name in (*condition.names, *condition.directories):
            check_relative(name, base_path, "path")
        for pattern in condition.patterns:
            check_relative(pattern, base_path, "pattern")
    except InvalidPath as error:
        return error
    return None


def _files_of(
    condition: FileCondition,
    by_name: Mapping[str, FileInfo | SFTPBackendError],
    by_patterns: Mapping[tuple[str, ...], list[FileInfo] | SFTPBackendError],
) -> list[FileInfo] | SFTPBackendError:
    """Return the files of a condition, sorted by path, or the error."""
    files: dict[str, FileInfo] = {}
    for name in condition.names:
        outcome = by_name[name]
        if isinstance(outcome, FileInfo):
            files[outcome.path] = outcome
        elif isinstance(outcome, InvalidPath):
            return directory_error(name, outcome)
        elif not isinstance(outcome, NotFound):
            return outcome
    matches = by_patterns[condition.searches] if condition.searches else []
    if isinstance(matches, SFTPBackendError):
        return matches
    files |= {info.path: info for info in matches}
    return [files[path] for path in sorted(files)]


_Outcomes = dict[str, FileInfo | SFTPBackendError]


def _stat_many(backend: SFTPBackend, paths: Collection[str]) -> _Outcomes:
    """Return the file at each path, or the error."""
    outcomes: _Outcomes = {}
    for path, outcome in zip(paths, backend.get_file_info_many(paths, return_exceptions=True), strict=True):
        if not isinstance(outcome, FileInfo | SFTPBackendError):
            raise outcome
        outcomes[path] = outcome
    return outcomes


def _existing_of(paths: Collection[str], outcomes: _Outcomes) -> set[str]:
    """Return the existing files among paths.

    The error of a path that cannot be examined is raised.
    """
    for path in paths:
        outcome = outcomes[path]
        if isinstance(outcome, SFTPBackendError) and not isinstance(outcome, NotFound | InvalidPath):
            raise outcome
    return {path for path in paths if isinstance(outcomes[path], FileInfo)}


def _find_by_patterns(
    backend: SFTPBackend, groups: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], list[FileInfo] | SFTPBackendError]:
    """Return the files of each group of patterns, or the error."""
    outcomes: dict[tuple[str, ...], list[FileInfo] | SFTPBackendError] = {}
    for group, outcome in zip(groups, backend.find_each(groups, return_exceptions=True), strict=True):
        if isinstance(outcome, OSError):
            raise outcome
        outcomes[group] = outcome
    return outcomes


def done_file_of(template: str, path: str) -> str:
    """Return the path of a file's done file.

    :param template: the name of the done file, with placeholders
    :param path: the path of the file
    :returns: the path of the done file
    """
    directory, slash, name = path.rpartition("/")
    words = {"name": name, "stem": PurePosixPath(name).stem}
    return f"{directory}{slash}{PLACEHOLDER.sub(lambda placeholder: words[placeholder[1]], template)}"


def evaluate(
    condition: FileCondition,
    files: Sequence[FileInfo],
    done_files: Collection[str],
    previous: StabilityState,
    now: float,
) -> PollResult:
    """Decide whether a wait is over.

    The decision needs this poll and the state of the previous poll.

    :param condition: the condition
    :param files: the files that match the condition
    :param done_files: the existing done files
    :param previous: the state of the previous poll
    :param now: time of this poll in epoch seconds
    :returns: the result
    """
    stability: StabilityState = {}
    ready: list[FileInfo] = []
    ineligible = _IneligibleFiles(condition)
    eligible, not_utf8 = _eligible_files(condition, files)
    limits = condition.limits
    for info in eligible:
        if (limit := limits.violated_by(info.size, info.modified_at)) is not None:
            ineligible.outside_limit(info, limit)
            continue
        modified_at = None if info.modified_at is None else info.modified_at.isoformat()
        stable_seconds = 0.0
        if condition.stable_for:
            size, time, since = previous.get(info.path, [None, None, now])
            # min, because clocks differ and are set back
            since = min(since, now) if (size, time) == (info.size, modified_at) else now
            stability[info.path] = [info.size, modified_at, since]
            stable_seconds = now - since
        if (
            condition.done_file is not None
            and (expected := done_file_of(condition.done_file, info.path)) not in done_files
        ):
            ineligible.without_done_file(info, expected)
        elif stable_seconds < condition.stable_for:
            ineligible.not_stable(info)
        else:
            ready.append(info)
    is_done = len(ready) >= condition.min_files
    awaiting_stability = not is_done and len(ready) + ineligible.counts[_STABILITY] >= condition.min_files
    counts = (len(ready), *ineligible.counts.values())
    taken = take_oldest(ready, limits.max_files, lambda info: info)
    return PollResult(
        is_done,
        [found_file(info) for info in taken],
        stability,
        _wait_reason(condition, len(eligible), len(ready), ineligible),
        awaiting_stability,
        _utf8_warning(not_utf8),
        counts,
    )


def _wait_reason(condition: FileCondition, eligible: int, ready: int, ineligible: _IneligibleFiles) -> str:
    """Say which files are missing, for the log."""
    if not eligible:
        others = f" and {len(condition.descriptions) - _SHOWN} more" if len(condition.descriptions) > _SHOWN else ""
        return f"no file found yet for {', '.join(condition.descriptions[:_SHOWN])}{others}"
    count = "no file is" if condition.min_files == 1 else f"{ready} of {condition.min_files} files are"
    return f"{count} ready{ineligible}"


_DONE_FILE, _STABILITY = "done_file", "stable_for"
_SHOWN: Final = 3
"""Number of files, or of names and patterns, in a log line."""


class _IneligibleFiles:
    """Count the ineligible files by cause, and explain the first ones."""

    def __init__(self, condition: FileCondition) -> None:
        self._condition = condition
        self._texts: list[str] = []
        self.counts = dict.fromkeys(("min_size", "newer_than", "older_than", _DONE_FILE, _STABILITY), 0)

    def outside_limit(self, info: FileInfo, limit: LimitName) -> None:
        """Note a file that does not satisfy a limit."""
        if limit == "min_size":
            unknown_size = ", or the server reports no size" if info.size == 0 else ""
            text = f"{info.size} of {self._condition.min_size} bytes{unknown_size}"
        else:
            time = self._condition.newer_than if limit == "newer_than" else self._condition.older_than
            if info.modified_at is None:
                text = f"the server reports no time, so {limit} ({time}) cannot be decided"
            else:
                text = f"modified {info.modified_at.isoformat()}, not {limit.replace('_', ' ')} {time}"
        self._note(limit, info, text)

    def without_done_file(self, info: FileInfo, expected: str) -> None:
        """Note a file whose done file is missing."""
        self._note(_DONE_FILE, info, f"its done file {expected!r} is missing")

    def not_stable(self, info: FileInfo) -> None:
        """Note a file that has changed within ``stable_for``."""
        self._note(_STABILITY, info, f"not unchanged for {self._condition.stable_for:g} s yet")

    def _note(self, cause: str, info: FileInfo, text: str) -> None:
        self.counts[cause] += 1
        if len(self._texts) < _SHOWN:
            self._texts.append(f"{info.path!r} does not count: {text}")

    def __str__(self) -> str:
        count_of_others = sum(self.counts.values()) - len(self._texts)
        return "".join(f"; {text}" for text in self._texts) + (
            f"; and {count_of_others} more" if count_of_others else ""
        )


def _eligible_files(condition: FileCondition, files: Sequence[FileInfo]) -> tuple[list[FileInfo], list[str]]:
    """Return the selected files, and the paths that are not UTF-8."""
    names = {_normalize(name) for name in condition.names}
    done_files = {_normalize(path) for path in condition.done_files(files)}
    accepts = FileFilters(condition.include, condition.exclude).accepting(condition.searches)
    eligible: list[FileInfo] = []
    not_utf8: list[str] = []
    for info in files:
        if info.path not in names and (info.path in done_files or not accepts(info.path)):
            continue
        if not info.path.isascii() and any("\ud800" <= char <= "\udfff" for char in info.path):
            not_utf8.append(info.path)
        else:
            eligible.append(info)
    return eligible, not_utf8


def _normalize(path: str) -> str:
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def _utf8_warning(paths: Sequence[str]) -> str:
    if not paths:
        return ""
    first = paths[0].encode("utf-8", "backslashreplace").decode()
    others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return (
        f"left out, because XCom carries only UTF-8 names: {first}{others}; set the connection's name_encoding, or"
        " rename the files on the server"
    )
