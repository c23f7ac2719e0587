"""Compare two directory trees for a sync.

No I/O, no clock.
A path is relative to the top of its tree, with ``/`` between its segments.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from airflow_sftp_backend.backend import InvalidPath
from airflow_sftp_backend.operators._object_storage import FileState


@dataclass(frozen=True, slots=True)
class TreeListing:
    """Hold the entries of a directory tree.

    :ivar files: state of each regular file
    :ivar others: links, which a sync neither follows nor changes, and special files
    :ivar links_to_files: those of ``others`` that are links to files
    :ivar left_out: files that the filters of the sync exclude
    :ivar directories: all directories
    :ivar backups: path of each missing file that has a backup, by its directory and the digest of its name
    :ivar invalid: error of each object whose key is not a path
    """

    files: Mapping[str, FileState] = field(default_factory=dict)
    others: Set[str] = frozenset()
    links_to_files: Set[str] = frozenset()
    left_out: Set[str] = frozenset()
    directories: Set[str] = frozenset()
    backups: Mapping[tuple[str, str], str] = field(default_factory=dict)
    invalid: Sequence[InvalidPath] = ()

    @property
    def all_entries(self) -> set[str]:
        """Paths of all entries."""
        return {*self.files, *self.others, *self.left_out, *self.directories}


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeRule:
    """Decide by times whether files of equal size have changed.

    :ivar is_kept: True if the target keeps the times of its sources: a file has changed if the times differ. Otherwise,
        a file has changed if the target is older than the source.
    :ivar clock_lead: seconds by which the clock of the target may be ahead of that of the source
    """

    is_kept: bool
    clock_lead: float = 0.0


@dataclass(frozen=True, slots=True)
class Differences:
    """Hold the sorted paths of two trees, by result of the comparison.

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
