"""Compare two directory trees for a sync.

No I/O, no clock.
A path is relative to the top of its tree, with ``/`` between its segments.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Container, Iterable, Mapping, Set
from dataclasses import dataclass, field
from itertools import accumulate

from airflow_sftp_backend.operators._object_storage import FileState


@dataclass(frozen=True, slots=True)
class TreeListing:
    """Hold the entries of a directory tree.

    :ivar files: state of each regular file
    :ivar others: links, which a sync neither follows nor changes, and special files
    """

    files: Mapping[str, FileState] = field(default_factory=dict)
    others: Set[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeRule:
    """Define when times mean a change of files with equal sizes.

    :ivar is_kept: True if the target keeps the times of its sources. Then unequal times mean a change. Otherwise, a
        target that is older than its source means a change.
    :ivar clock_lead: seconds by which the clock of the target may be ahead of that of the source
    """

    is_kept: bool
    clock_lead: float = 0.0


@dataclass(frozen=True, slots=True)
class Differences:
    """Hold the sorted paths of two trees by their states.

    :ivar new: files of the source that the target lacks
    :ivar changed: files of both trees with different states
    :ivar unchanged: files of both trees with equal states
    :ivar extra: files of the target that the source lacks
    """

    new: list[str]
    changed: list[str]
    unchanged: list[str]
    extra: list[str]


def compare_by_state(source: TreeListing, target: TreeListing, rule: TimeRule) -> Differences:
    """Compare two trees by sizes and times.

    :param source: the source
    :param target: the target
    :param rule: the comparison of times
    :returns: the differences
    """
    unchanged = {
        path
        for path, state in source.files.items()
        if (existing := target.files.get(path)) is not None and _is_unchanged(state, existing, rule)
    }
    return classify(source, target, unchanged)


def classify(source: TreeListing, target: TreeListing, unchanged: Container[str]) -> Differences:
    """Classify the files of two trees.

    :param source: the source
    :param target: the target
    :param unchanged: the files of both trees with equal states
    :returns: the differences
    """
    common = sorted(source.files.keys() & target.files.keys())
    return Differences(
        new=sorted(source.files.keys() - target.files.keys()),
        changed=[path for path in common if path not in unchanged],
        unchanged=[path for path in common if path in unchanged],
        extra=sorted(target.files.keys() - source.files.keys()),
    )


def _is_unchanged(source: FileState, target: FileState, rule: TimeRule) -> bool:
    if not _has_equal_size(source, target):
        return False
    if source.mtime is None or target.mtime is None:
        return True  # nothing else is known
    source_seconds, target_seconds = int(source.mtime), int(target.mtime)  # SFTP has whole seconds
    if source_seconds == target_seconds:
        return True
    return not rule.is_kept and source_seconds <= target_seconds - rule.clock_lead


def _has_equal_size(source: FileState, target: FileState) -> bool:
    return source.size is not None and source.size == target.size


def depends_on_time_rule(source: TreeListing, target: TreeListing) -> bool:
    """Tell whether the time rule decides about any file.

    :param source: the source
    :param target: the target
    :returns: True if a target of equal size is newer than its source
    """
    return any(
        _has_equal_size(state, existing)
        and state.mtime is not None
        and existing.mtime is not None
        and int(existing.mtime) > int(state.mtime)
        for path, state in source.files.items()
        if (existing := target.files.get(path)) is not None
    )


def untimed(source: TreeListing, target: TreeListing, paths: Iterable[str]) -> list[str]:
    """Return the files that were compared by size only.

    :param source: the source
    :param target: the target
    :param paths: files of both trees
    :returns: the files without a time at either end
    """
    return [path for path in paths if None in (source.files[path].mtime, target.files[path].mtime)]


# -- names ------------------------------------------------------------------------------------------------------------


def _prefixes(path: str) -> Iterable[str]:
    return accumulate(path.split("/"), "{}/{}".format)


def folded(path: str) -> str:
    """Return one spelling for all that some server does not distinguish.

    Servers on macOS and Windows ignore case and Unicode form. Windows also drops dots and blanks at the end of a name.

    :param path: the path
    :returns: the spelling
    """
    if path.isascii():
        spelling = path.lower()
    else:
        spelling = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
    if spelling[-1:] not in (".", " ") and "./" not in spelling and " /" not in spelling:
        return spelling
    return "/".join(segment.rstrip(". ") or segment for segment in spelling.split("/"))


def doubtful_spellings(source: Iterable[str], target: Iterable[str]) -> dict[str, str]:
    """Find files that a target may not distinguish from other files.

    An example is a target that ignores case.

    :param source: the files of the source
    :param target: the files of the target
    :returns: for each such file of the source, its shortest prefix that differs from another path in case or Unicode
        form only and that the target lacks
    """
    listed = {prefix for path in target for prefix in _prefixes(path)}
    spellings = {folded(prefix): prefix for prefix in sorted(listed)}
    doubtful: dict[str, str] = {}
    for path in sorted(source):
        for prefix in _prefixes(path):
            if spellings.setdefault(folded(prefix), prefix) != prefix and prefix not in listed:
                doubtful[path] = prefix
                break
    return doubtful


def blocking_entry(path: str, others: Container[str]) -> str | None:
    """Return the link or special file above a path.

    :param path: a file of the source
    :param others: links and special files of the target
    :returns: the link or special file; None for a path through directories only
    """
    *parents, _ = _prefixes(path)
    return next((parent for parent in parents if parent in others), None)


def emptied_directories(deleted: Iterable[str], source: Iterable[str]) -> list[str]:
    """Return the directories to remove after deletions, if they are empty.

    :param deleted: the deleted files
    :param source: the files of the source
    :returns: the parent directories of deleted files that the source does not have, the deepest first
    """
    kept = {parent for path in source for parent in [*_prefixes(path)][:-1]}
    parents = {parent for path in deleted for parent in [*_prefixes(path)][:-1]}
    return sorted(parents - kept, key=lambda path: (-path.count("/"), path))
