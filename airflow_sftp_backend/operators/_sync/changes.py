"""Decide on the transfers and deletions of a sync."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend.backend._paths import has_control_character
from airflow_sftp_backend.backend._receive_limits import MAX_DEPTH
from airflow_sftp_backend.backend.errors import escaped

from .ends import SyncEnds
from .merged_names import target_rules
from .obstacles import deepest_first, emptied_directories, find_obstacles, protected_by_backups, protected_by_links
from .spellings import ANY_RULES, NameRules, merged_paths, unlisted_prefixes, with_parents
from .tree_differences import TreeListing

log = logging.getLogger(__name__)

_NAMED_IN_LOG = 3
_OTHER_SPELLING = (
    "the target does not distinguish this path from a path in another spelling (such as case or Unicode form); rename"
    " one of the two in the source or in the target"
)
_TOO_DEEP = (
    f"the path has more than {MAX_DEPTH} directories, the limit of listings, so that the next sync could not list the"
    " target; move the file further up"
)
_FOLLOWED_LINK = (
    "the target has a link of this name, and this server would replace the file that the link leads to; remove the link"
)


@dataclass(slots=True)
class Changes:
    """Hold the changes of the target.

    :ivar transfers: the files to transfer
    :ivar late: those of ``transfers`` that replace deleted entries, and come after the deletions
    :ivar refused: reason for each file that cannot be transferred
    :ivar deletions: the files to delete
    :ivar directories: directories to remove after the deletions, if they are empty
    """

    transfers: list[str] = field(default_factory=list)
    late: Collection[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    deletions: Sequence[str] = ()
    directories: Sequence[str] = ()


def plan_changes(
    ends: SyncEnds, source: TreeListing, target: TreeListing, written: Sequence[str], extra: Sequence[str] | None
) -> Changes:
    """Plan the transfers and deletions of a sync.

    :param ends: the two directories
    :param source: the source
    :param target: the target
    :param written: new and changed files of the source
    :param extra: files of the target that the source lacks; None if nothing is to be deleted
    :returns: the changes
    :raises InvalidArgument: if the target takes two files of the source for one
    """
    if not written and not extra:
        return Changes()
    protected = protected_by_links(extra or (), source.others) | protected_by_backups(extra or (), source.backups)
    protected |= _unlisted_by_servers(extra or ())
    deletions = [path for path in extra or () if path not in protected]
    mistaken, protected = _check_names(ends, source, target, written, deletions)
    deletions = [path for path in deletions if path not in protected]
    obstacles = find_obstacles(
        [path for path in written if path not in mistaken], target, None if extra is None else set(deletions)
    )
    refused = dict.fromkeys(mistaken, _OTHER_SPELLING) | obstacles.refused
    refused |= {path: _TOO_DEEP for path in written if path.count("/") > MAX_DEPTH}
    links = [path for path in written if path in target.links_to_files and path not in refused]
    if links and not ends.replaces_link(links[0]):  # of all links, because it is a matter of the server
        refused |= dict.fromkeys(links, _FOLLOWED_LINK)
    directories = {*emptied_directories(deletions, source.files), *obstacles.directories}
    transfers = [path for path in written if path not in refused]
    return Changes(transfers, obstacles.late, refused, deletions, deepest_first(directories))


def _unlisted_by_servers(paths: Iterable[str]) -> set[str]:
    """Return the paths that a listing of a server leaves out.

    The source may have these files although its listing lacks them.
    """
    unlisted = {path for path in paths if has_control_character(path) or ".." in re.split(r"[/\\]", path)}
    if unlisted:
        log.warning(
            "not deleted, because listings leave out names with control characters and with .. between backslashes,"
            " %d in total: %s",
            len(unlisted),
            ", ".join(escaped(path) for path in sorted(unlisted)[:_NAMED_IN_LOG]),
        )
    return unlisted


def _check_names(
    ends: SyncEnds, source: TreeListing, target: TreeListing, written: Sequence[str], deletions: Sequence[str]
) -> tuple[set[str], set[str]]:
    """Find the names that the target takes for others.

    :returns: the files not to write, and the files not to delete
    :raises InvalidArgument: if two files to write are one
    """
    listed = target.all_entries
    new = [path for path in written if path not in listed]
    new_entries = with_parents(new) - listed
    excluded = with_parents([*source.others, *source.left_out])

    def find_merged(rules: NameRules) -> tuple[dict[str, str], dict[str, str]]:
        changed = [path for path in written if path in listed]
        return (
            merged_paths(new, new_entries, rules) | (merged_paths(changed, listed, rules) if changed else {}),
            merged_paths(deletions, listed | new_entries | excluded, rules) if deletions else {},
        )

    merged, kept = find_merged(ANY_RULES)
    if merged or kept:
        merged, kept = find_merged(target_rules(ends))
    if merged:
        path, other = min(merged.items())
        raise InvalidArgument(
            f"the target takes {path!r} and {other!r} for one name ({len(merged)} files are affected); nothing"
            " was changed. Rename the files"
        )
    if kept:
        log.warning(
            "not deleted, because the target takes the name for that of another file, %d in total: %s",
            len(kept),
            ", ".join(escaped(path) for path in sorted(kept)[:_NAMED_IN_LOG]),
        )
    lookups = unlisted_prefixes(new, listed)
    existing = ends.existing_in_target(set(lookups.values())) if lookups else set()
    return {path for path, prefix in lookups.items() if prefix in existing}, set(kept)
