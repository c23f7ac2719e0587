"""Find entries that forbid a transfer or a deletion. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Set
from dataclasses import dataclass, field

from airflow_sftp_backend.backend._paths import name_digest

from .spellings import parents, prefixes
from .tree_differences import TreeListing


@dataclass(slots=True)
class Obstacles:
    """Hold the entries of the target in the way of files.

    :ivar refused: reason for each file that cannot be transferred
    :ivar late: files that can be transferred after the deletions
    :ivar directories: directories to remove before the late files
    """

    refused: dict[str, str] = field(default_factory=dict)
    late: set[str] = field(default_factory=set)
    directories: list[str] = field(default_factory=list)


def find_obstacles(paths: Iterable[str], target: TreeListing, deletions: Collection[str] | None) -> Obstacles:
    """Find the entries of the target in the way of files.

    :param paths: the files to transfer
    :param target: the target
    :param deletions: the files of the target to delete; None if nothing is to be deleted
    :returns: the files that cannot be transferred, or not at once
    """
    obstacles = Obstacles()
    blocked: set[str] = set()
    kept: Set[str] | None = None
    for path in paths:
        if (reason := _refusal(path, target, deletions or ())) is not None:
            obstacles.refused[path] = reason
        elif path in target.directories:
            if kept is None:
                kept = _directories_that_stay(target, deletions)
            if path in kept:
                obstacles.refused[path] = _DIRECTORY
            else:
                obstacles.late.add(path)
                blocked.add(path)
        elif any(parent in target.files for parent in parents(path)):
            obstacles.late.add(path)
    if blocked:
        below = [path for path in target.directories if any(prefix in blocked for prefix in prefixes(path))]
        obstacles.directories = deepest_first(below)
    return obstacles


_DIRECTORY = (
    "the target has a directory of this name; delete=True replaces it if the source lacks all its files, and if no link"
    " and no excluded file is in it"
)
_FILE = "{!r} in the target is a file; delete=True replaces it by the directory"
_EXCLUDED = "{!r} in the target is a file that the filters exclude, in the place of a directory; remove it"
_LINK = "{!r} in the target is a link or a special file, and links are not followed; remove it"


def _refusal(path: str, target: TreeListing, deletions: Container[str]) -> str | None:
    """Return the reason why a file cannot be transferred, whatever is deleted."""
    for parent in parents(path):
        if parent in target.others:
            return _LINK.format(parent)
        if parent in target.left_out:
            return _EXCLUDED.format(parent)
        if parent in target.files and parent not in deletions:
            return _FILE.format(parent)
    if path in target.others and path not in target.links_to_files:
        return _LINK.format(path)
    return None


def _directories_that_stay(target: TreeListing, deletions: Container[str] | None) -> Set[str]:
    if deletions is None:
        return target.directories
    staying = [path for path in target.files if path not in deletions]
    return {parent for path in (*staying, *target.others, *target.left_out) for parent in parents(path)}


def protected_by_links(paths: Iterable[str], others: Container[str]) -> set[str]:
    """Return the paths that are links of the source, or below one.

    :param paths: files of the target that the source lacks
    :param others: links and special files of the source
    :returns: the paths
    """
    return {path for path in paths if any(prefix in others for prefix in prefixes(path))}


def protected_by_backups(paths: Iterable[str], backups: Collection[tuple[str, str]]) -> set[str]:
    """Return the paths of files that are being replaced in the source.

    :param paths: files of the target that the source lacks
    :param backups: the missing files, as in `TreeListing`
    :returns: the paths
    """
    if not backups:
        return set()
    split = {path: path.rpartition("/") for path in paths}
    return {path for path, (directory, _, name) in split.items() if (directory, name_digest(name)) in backups}


def emptied_directories(deleted: Collection[str], source: Iterable[str]) -> list[str]:
    """Return the directories to remove after deletions, if they are empty.

    :param deleted: the deleted files
    :param source: the files of the source
    :returns: the parent directories of deleted files that the source does not have, the deepest first
    """
    if not deleted:
        return []
    kept = {parent for path in source for parent in parents(path)}
    return deepest_first({parent for path in deleted for parent in parents(path)} - kept)


def deepest_first(directories: Iterable[str]) -> list[str]:
    """Sort directories so that each one comes before its parents.

    :param directories: the directories
    :returns: the directories
    """
    return sorted(directories, key=lambda path: (-path.count("/"), path))
