"""What a sensor waits for, and when the wait is over: pure decisions, the same for the worker and the triggerer."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .backend import BackendUnavailable, FileInfo, InvalidPath, NotFound, SFTPBackendError
from .plans import is_glob, paths

if TYPE_CHECKING:
    from .backend import SFTPBackend

TEMPORARY_NAMES = (".*", "*.part", "*.partial", "*.filepart", "*.tmp", "*.temp", "*.crdownload")
"""Names that programs give to files they have not finished writing."""

Row = dict[str, Any]  # plain JSON: path, size in bytes, modified_at in ISO 8601 or None
Observed = dict[str, list[Any]]  # plain JSON: path -> size, modified_at, and since when (epoch seconds) they are these


def patterns(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    """What an argument says to wait for: ``inbox/`` stands for anything in it. Raises as `paths` does."""
    return tuple(f"{one}**" if one.endswith("/") else one for one in paths(path, "path"))


@dataclass(frozen=True, slots=True)
class Condition:
    """What is waited for: ``min_files`` files that fit ``patterns`` and each satisfy the rest.

    ``min_size`` in bytes; ``newer_than`` aware, ISO 8601; ``stable_for`` seconds without a change of size or time;
    ``done_file`` the name of a file that must stand beside each, ``{name}`` being that of the file itself; ``ignore``
    patterns of names that do not count.
    """

    patterns: tuple[str, ...]
    min_files: int = 1
    min_size: int = 0
    newer_than: str | None = None
    stable_for: float = 0.0
    done_file: str | None = None
    ignore: tuple[str, ...] = TEMPORARY_NAMES

    @property
    def plain_path(self) -> str | None:
        """The one path it names; None if there may be several."""
        return self.patterns[0] if len(self.patterns) == 1 and not is_glob(self.patterns[0]) else None

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


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the wait is over, with which files, what to remember for the next look, and what is still missing."""

    done: bool
    files: list[Row]
    observed: Observed
    missing: str


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
    """What fits each group of patterns: by one search, unless one of them is refused."""
    try:
        return dict(zip(groups, backend.find_each(groups), strict=True)) if groups else {}
    except BackendUnavailable:
        raise
    except SFTPBackendError as error:
        if len(groups) == 1:
            return {groups[0]: error}
        return {group: outcome for one in groups for group, outcome in _found_by_patterns(backend, [one]).items()}


def done_file(template: str, path: str) -> str:
    """The key of the done file of ``path``."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{template.replace('{name}', name)}"


def judge(
    condition: Condition, files: Sequence[FileInfo], done_files: Collection[str], earlier: Observed, now: float
) -> Verdict:
    """Decides from what is there now (epoch seconds) and what was there at the last look."""
    named = {"/".join(part for part in pattern.split("/") if part not in ("", ".")) for pattern in condition.patterns}
    after = None if condition.newer_than is None else datetime.fromisoformat(condition.newer_than)
    observed: Observed = {}
    ready: list[Row] = []
    unready = 0
    for info in files:
        if info.path not in named and any(fnmatch.fnmatchcase(info.name, pattern) for pattern in condition.ignore):
            continue
        if info.size < condition.min_size:
            unready += 1
            continue
        if after is not None and (info.modified_at is None or info.modified_at <= after):
            continue
        modified = None if info.modified_at is None else info.modified_at.isoformat()
        size, time, since = earlier.get(info.path, [None, None, now])
        if (size, time) != (info.size, modified):
            since = now
        observed[info.path] = [info.size, modified, since]
        waits = condition.done_file is not None and done_file(condition.done_file, info.path) not in done_files
        if waits or now - since < condition.stable_for:
            unready += 1
        else:
            ready.append({"path": info.path, "size": info.size, "modified_at": modified})
    missing = f"{len(ready)} of {condition.min_files} files are there" + (
        f", {unready} not ready yet" if unready else ""
    )
    return Verdict(len(ready) >= condition.min_files, ready, observed, missing)
