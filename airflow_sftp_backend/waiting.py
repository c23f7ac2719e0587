"""What a sensor waits for, and when the wait is over: pure decisions, the same for the worker and the triggerer."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .backend import NotFound
from .plans import is_glob, literally

if TYPE_CHECKING:
    from .backend import FileInfo, SFTPBackend

TEMPORARY_NAMES = (".*", "*.part", "*.partial", "*.filepart", "*.tmp", "*.temp", "*.crdownload")
"""Names that programs give to files they have not finished writing."""

Row = dict[str, Any]  # plain JSON: path, size in bytes, modified_at in ISO 8601 or None
Observed = dict[str, list[Any]]  # plain JSON: path -> size, modified_at, and since when (epoch seconds) they are these


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


def look(backend: SFTPBackend, condition: Condition) -> tuple[list[FileInfo], set[str]]:
    """The files that fit the patterns, and of the done files those that exist.

    A plain path is asked for by `exists`.
    """
    if len(condition.patterns) == 1 and not is_glob(condition.patterns[0]):
        path = condition.patterns[0]
        try:
            files = [backend.get_file_info(path)] if backend.exists(path) else []
        except NotFound:  # it went between the two questions
            files = []
    else:
        files = backend.find(*condition.patterns)
    if condition.done_file is None or not files:
        return files, set()
    wanted = {done_file(condition.done_file, info.path) for info in files}
    return files, {info.path for info in backend.find(*map(literally, wanted))}


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
