"""What a sensor waits for, and when the wait is over: pure decisions, the same for the worker and the triggerer."""

from __future__ import annotations

import fnmatch
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import lru_cache
from itertools import takewhile
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ._arguments import InvalidArgument
from .backend import FileInfo, InvalidPath, NotFound, SFTPBackendError
from .plans import BLANK, is_glob, paths

if TYPE_CHECKING:
    from .backend import SFTPBackend

TEMPORARY_NAMES = (".*", "*.part", "*.partial", "*.filepart", "*.tmp", "*.temp", "*.crdownload")
"""Names that programs give to files they have not finished writing."""

Row = dict[str, Any]  # plain JSON: path, size in bytes, modified_at in ISO 8601 or None
Observed = dict[str, list[Any]]  # plain JSON: path -> size, modified_at, and since when (epoch seconds) they are these


def patterns(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    """What an argument says to wait for: ``inbox/`` stands for anything in it. Raises as `paths` does."""
    return tuple(f"{one}**" if one.endswith("/") else one for one in paths(path, "path"))


def after(newer_than: object) -> str | None:
    """The time an argument says, as `Condition` has it: a datetime, or ISO 8601 text, with its zone.

    None and "", which a template renders to that has no time to say, are no limit. InvalidArgument for all else.
    """
    value = newer_than
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise InvalidArgument(
                f"newer_than is no time: {value!r}; expected one such as 2026-01-31T06:00:00+01:00. A template that may"
                " have none to say renders to '' with {{ ... or '' }}"
            ) from None
    if not isinstance(value, datetime):
        raise InvalidArgument(f"newer_than is a datetime or ISO 8601 text, not {type(value).__name__}: {value!r}")
    if value.tzinfo is None:
        example = "2026-01-31T06:00:00+01:00"
        raise InvalidArgument(f"newer_than needs a time zone, as in {example}; {value.isoformat()} has none")
    return value.isoformat()


@dataclass(frozen=True, slots=True)
class Condition:
    """What is waited for: ``min_files`` files that fit ``patterns`` and each satisfy the rest.

    ``min_size`` in bytes; ``newer_than`` as `after` gives it; ``stable_for`` seconds without a change
    of size or time; ``done_file`` the name of a file that must stand beside each, ``{name}`` being that of the file
    itself and ``{stem}`` that without its suffix, which may lead into a folder there; ``ignore`` patterns of names that
    do not count, of files and of folders that ``*`` or ``**`` leads into.

    Raises InvalidArgument, which names the argument, for what no file can satisfy.
    """

    patterns: tuple[str, ...]
    min_files: int = 1
    min_size: int = 0
    newer_than: str | None = None
    stable_for: float = 0.0
    done_file: str | None = None
    ignore: tuple[str, ...] = TEMPORARY_NAMES

    def __post_init__(self) -> None:
        _check_number("min_files", self.min_files, 1, whole=True)
        _check_number("min_size", self.min_size, 0)
        _check_number("stable_for", self.stable_for, 0)
        _check_done_file(self.done_file)

    @property
    def plain_path(self) -> str | None:
        """The one path it names; None if there may be several."""
        return self.patterns[0] if len(self.patterns) == 1 and not is_glob(self.patterns[0]) else None

    @property
    def place(self) -> frozenset[str]:
        """Where a look for it leads: folders, and patterns that lead into more than one."""
        folders = ((pattern, *pattern.rpartition("/")[::2]) for pattern in self.patterns)
        return frozenset(pattern if name == "**" or is_glob(folder) else folder for pattern, folder, name in folders)

    @property
    def folders(self) -> list[str]:
        """The folders it names, in which or below which it looks, each with a slash; "" is the base path."""
        return sorted({_start(_normal(pattern)) for pattern in self.patterns})

    def done_files(self, files: Iterable[FileInfo]) -> set[str]:
        """The done files that are to stand beside these."""
        return set() if self.done_file is None else {done_file(self.done_file, info.path) for info in files}

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, for `from_json`."""
        return {**asdict(self), "patterns": list(self.patterns), "ignore": list(self.ignore)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Condition:
        """What `as_json` gave."""
        return cls(**{**values, "patterns": tuple(values["patterns"]), "ignore": tuple(values["ignore"])})


def _check_number(name: str, value: object, least: int, *, whole: bool = False) -> None:
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not right or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        raise InvalidArgument(f"{name} is a {'whole ' if whole else ''}number from {least}, not {value!r}")


def _check_done_file(template: object) -> None:
    if template is None:
        return
    segments = template.split("/") if isinstance(template, str) else []
    if not segments or any(not one.strip() or one in (".", "..") or "\0" in one for one in segments):
        raise InvalidArgument(f"done_file is the name of a file that stands beside another, not {template!r}")
    if template == "{name}":
        raise InvalidArgument("done_file is the name of another file than the one it stands beside, not '{name}'")
    for blank in BLANK.finditer(str(template)):
        if blank[1] not in ("name", "stem"):
            known = "there are {name}, {stem}"
            raise InvalidArgument(f"done_file has {blank[0]} in it, which stands for nothing; {known}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the wait is over, with which files, what to remember for the next look, and what is still missing.

    ``settling``: nothing is missing but time in which no file changes. ``warning`` is for the log, if it is not empty.
    """

    done: bool
    files: list[Row]
    observed: Observed
    missing: str
    settling: bool = False
    warning: str = ""


Seen = tuple[list[FileInfo], set[str]]
"""The files that fit the patterns of a condition, and of their done files those that exist."""


def look(backend: SFTPBackend, condition: Condition) -> Seen:
    """Looks for one condition. A plain path is asked for by `exists`."""
    plain = condition.plain_path
    if plain is None:
        files = backend.find(*condition.patterns)
    else:
        try:
            files = [backend.get_file_info(plain)] if backend.exists(plain) else []
        except NotFound:  # it went between the two questions
            files = []
    wanted = condition.done_files(files)
    return files, _there(wanted, _ask_for(backend, wanted))


def look_for_all(backend: SFTPBackend, conditions: Sequence[Condition]) -> list[Seen | SFTPBackendError]:
    """Looks for each condition as `look` does, but asks for all plain paths at once and lists no folder twice.

    An outcome for each, in order. Raises BackendUnavailable.
    """
    found = _found_by_patterns(
        backend, list(dict.fromkeys(one.patterns for one in conditions if one.plain_path is None))
    )
    for path, outcome in _ask_for(
        backend, {one.plain_path for one in conditions if one.plain_path is not None}
    ).items():
        if isinstance(outcome, FileInfo):
            found[path,] = [outcome]
        else:
            found[path,] = [] if isinstance(outcome, NotFound) else outcome
    files = [found[condition.patterns] for condition in conditions]
    wanted = [
        set[str]() if isinstance(some, SFTPBackendError) else condition.done_files(some)
        for condition, some in zip(conditions, files, strict=True)
    ]
    asked = _ask_for(backend, set().union(*wanted))
    outcomes: list[Seen | SFTPBackendError] = []
    for some, names in zip(files, wanted, strict=True):
        try:
            outcomes.append(some if isinstance(some, SFTPBackendError) else (some, _there(names, asked)))
        except SFTPBackendError as error:
            outcomes.append(error)
    return outcomes


_Infos = dict[str, FileInfo | SFTPBackendError]


def _ask_for(backend: SFTPBackend, plain: Collection[str]) -> _Infos:
    """The file of each path, or why there is none."""
    asked: _Infos = {}
    for path, outcome in zip(plain, backend.get_file_info_many(plain, return_exceptions=True), strict=True):
        if not isinstance(outcome, FileInfo | SFTPBackendError):
            raise outcome
        asked[path] = outcome
    return asked


def _there(wanted: Collection[str], asked: _Infos) -> set[str]:
    """Those of the paths that are files. Raises why one cannot be looked at."""
    for path in wanted:
        outcome = asked[path]
        if isinstance(outcome, SFTPBackendError) and not isinstance(outcome, NotFound | InvalidPath):
            raise outcome
    return {path for path in wanted if isinstance(asked[path], FileInfo)}


def _found_by_patterns(
    backend: SFTPBackend, groups: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], list[FileInfo] | SFTPBackendError]:
    """What fits each group of patterns, or why that cannot be said."""
    found: dict[tuple[str, ...], list[FileInfo] | SFTPBackendError] = {}
    for group, outcome in zip(groups, backend.find_each(groups, return_exceptions=True), strict=True):
        if isinstance(outcome, OSError):
            raise outcome
        found[group] = outcome
    return found


def done_file(template: str, path: str) -> str:
    """The key of the done file of ``path``."""
    folder, slash, name = path.rpartition("/")
    words = {"name": name, "stem": PurePosixPath(name).stem}
    return f"{folder}{slash}{BLANK.sub(lambda blank: words[blank[1]], template)}"


def judge(
    condition: Condition, files: Sequence[FileInfo], done_files: Collection[str], earlier: Observed, now: float
) -> Verdict:
    """Decides from what is there now (epoch seconds) and what was there at the last look."""
    observed: Observed = {}
    ready: list[Row] = []
    unready = settling = 0
    counted, unspeakable = _those_that_count(condition, files)
    is_new = _newness(condition)
    for info in counted:
        if info.size < condition.min_size:
            unready += 1
            continue
        if not is_new(info.modified_at):
            continue
        modified = None if info.modified_at is None else info.modified_at.isoformat()
        rests = 0.0
        if condition.stable_for:
            size, time, since = earlier.get(info.path, [None, None, now])
            since = min(since, now) if (size, time) == (info.size, modified) else now  # clocks differ, and are set back
            observed[info.path] = [info.size, modified, since]
            rests = now - since
        if condition.done_file is not None and done_file(condition.done_file, info.path) not in done_files:
            unready += 1
        elif rests < condition.stable_for:
            settling += 1
        else:
            ready.append({"path": info.path, "size": info.size, "modified_at": modified})
    missing = f"{len(ready)} of {condition.min_files} files are there"
    if unready + settling:
        missing += f", {unready + settling} not ready yet"
    done = len(ready) >= condition.min_files
    may_settle = not done and len(ready) + settling >= condition.min_files
    return Verdict(done, ready, observed, missing, may_settle, _warning(unspeakable))


def _those_that_count(condition: Condition, files: Sequence[FileInfo]) -> tuple[list[FileInfo], list[str]]:
    """The files that are meant to be waited for, and the paths that Airflow cannot carry: no UTF-8 text."""
    named = {_normal(pattern) for pattern in condition.patterns}
    done_files = {_normal(one) for one in condition.done_files(files)}
    ignored = _fitting(condition.ignore)
    said = _fitting(tuple(sorted({folder for one in named for folder in one.split("/")[:-1] if folder.strip("*?")})))
    passed_over: dict[str, bool] = {}
    counted: list[FileInfo] = []
    unspeakable: list[str] = []
    for info in files:
        folder = info.path[: -len(info.name)]
        if folder not in passed_over:
            passed_over[folder] = any(ignored(name) and not said(name) for name in folder.split("/")[:-1])
        if info.path not in named and (info.path in done_files or ignored(info.name) or passed_over[folder]):
            continue
        if not info.path.isascii() and any("\ud800" <= letter <= "\udfff" for letter in info.path):
            unspeakable.append(info.path)
        else:
            counted.append(info)
    return counted, unspeakable


def _start(pattern: str) -> str:
    """The folders that a pattern names, each with a slash."""
    named = takewhile(lambda segment: not is_glob(segment), pattern.split("/")[:-1])
    return "".join(f"{segment}/" for segment in named)


def _normal(path: str) -> str:
    return "/".join(part for part in path.split("/") if part not in ("", "."))


@lru_cache(maxsize=256)
def _fitting(names: tuple[str, ...]) -> Callable[[str], re.Match[str] | None]:
    """Tells whether a name fits one of these."""
    return re.compile("|".join(map(fnmatch.translate, names)) if names else "(?!)").match


def _newness(condition: Condition) -> Callable[[datetime | None], bool]:
    """Tells whether a file's time is after that of the condition. SFTP tells times in whole seconds: the second in
    which a time with a fraction lies counts."""
    if condition.newer_than is None:
        return lambda _time: True
    limit = datetime.fromisoformat(condition.newer_than)
    if limit.microsecond:
        second = limit.replace(microsecond=0)
        return lambda time: time is not None and time >= second
    return lambda time: time is not None and time > limit


def _warning(unspeakable: Sequence[str]) -> str:
    if not unspeakable:
        return ""
    first = unspeakable[0].encode("utf-8", "backslashreplace").decode()
    more = f" and {len(unspeakable) - 1} more" if len(unspeakable) > 1 else ""
    return (
        f"left out, as Airflow carries only names that are UTF-8 text: {first}{more}; have them renamed on the server"
    )
