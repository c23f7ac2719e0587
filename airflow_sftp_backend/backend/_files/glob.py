"""Match patterns against the files below a directory.

A single search serves several callers.

All directories of a level are listed side by side. A directory is listed once, and only if it can contain a match.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from airflow_sftp_backend.backend._paths import (
    RemotePath,
    check_text,
    is_backup_name,
    is_temp_name,
    name_digest,
    original_stem,
    temp_or_backup_digest,
)
from airflow_sftp_backend.backend._patterns import literal_name, name_matcher
from airflow_sftp_backend.backend._protocol.scheduler import Operation
from airflow_sftp_backend.backend._receive_limits import LimitExceeded, ListingTally, SharedTally
from airflow_sftp_backend.backend.errors import (
    BackendUnavailable,
    InvalidPath,
    NotFound,
    SFTPBackendError,
    result_or_raise,
)
from airflow_sftp_backend.backend.models import FileInfo

from .file_info import to_file_info
from .tree import SessionCall, TreeEntry, get_file_infos, list_directory, run_listings, stat_many

FileQuery = Callable[[SessionCall, Sequence[RemotePath]], list[FileInfo | SFTPBackendError | OSError]]
"""Returns the file at each path, or an error."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """Glob over keys.

    ``*``, ``?`` and ``[...]`` match within a segment; ``**`` as a segment matches any number of directories. ``[*]``,
    ``[?]`` and ``[[]``, as written by `glob.escape`, match the character itself.
    """

    segments: tuple[str, ...]

    @classmethod
    def of(cls, pattern: str | FileInfo, name_encoding: str = "utf-8") -> Pattern:
        """Return the pattern of a text or of a file.

        The pattern of a file matches its path only.
        """
        return cls.parse(glob.escape(pattern.path) if isinstance(pattern, FileInfo) else pattern, name_encoding)

    @classmethod
    def parse(cls, text: str, name_encoding: str = "utf-8") -> Pattern:
        """Parse a pattern. Ignores leading and repeated slashes and ``.`` segments.

        :param text: the pattern
        :param name_encoding: encoding of the server's names
        :returns: the parsed pattern
        :raises InvalidPath: for ``..``, NUL, invalid Unicode, or a character that the encoding of names lacks
        """
        check_text(text, "a pattern", name_encoding)
        segments = [segment for segment in text.split("/") if segment not in ("", ".")]
        if ".." in segments:
            raise InvalidPath("a pattern must not contain '..': patterns stay below base_path", path=text)
        return cls(tuple(segments))

    def matches(self, key: str) -> bool:
        """Return whether the pattern matches the whole key."""
        states = {self.segments}
        *folders, name = key.split("/")
        for folder in folders:
            states = {next_segments for segments in states for next_segments in _descend(segments, folder)}
        return any(_completes(segments, name) for segments in states)


RemainingSegments = tuple[str, ...]
"""Segments of a pattern that remain to be matched below a directory."""


def _descend(segments: RemainingSegments, folder: str) -> Iterator[RemainingSegments]:
    """Yield the remaining segments below a subdirectory.

    There are none without a match, and several with ``**``.
    """
    if len(segments) > 1 and segments[0] == "**":
        # ``**`` can match this directory and more below, or end before it.
        yield segments
        yield from _descend(segments[1:], folder)
    elif segments == ("**",):
        yield segments
    elif len(segments) > 1 and _segment_matches(segments[0], folder):
        yield segments[1:]


def _completes(segments: RemainingSegments, name: str) -> bool:
    """Return whether a file name in the directory completes the match."""
    # ``**`` also matches no directory at all.
    while len(segments) > 1 and segments[0] == "**":
        segments = segments[1:]
    return len(segments) == 1 and (segments[0] == "**" or _segment_matches(segments[0], name))


def _segment_matches(segment: str, name: str) -> bool:
    """Return whether a segment matches a name."""
    literal = literal_name(segment)
    return literal == name if literal is not None else name_matcher(segment)(name) is not None


class _Search:
    """Files of a caller in a shared search, or its error."""

    __slots__ = ("error", "matches", "tally")

    def __init__(self, root: RemotePath) -> None:
        self.matches: dict[str, FileInfo] = {}
        self.error: SFTPBackendError | OSError | None = None
        self.tally = ListingTally(root.key)
        """Counts the replies of all directories listed for this caller, even if listed for others too."""

    @property
    def outcome(self) -> list[FileInfo] | SFTPBackendError | OSError:
        """The files sorted by key, or the error."""
        return self.error or [self.matches[key] for key in sorted(self.matches)]


_SearchesBySegments = dict[RemainingSegments, set[_Search]]
"""Segments that remain to be matched below a directory, with the searches of each."""


def find(call: SessionCall, root: RemotePath, patterns: Iterable[Pattern]) -> list[FileInfo]:
    """Return the files that match any of the patterns, sorted by key.

    Each directory is listed once, and only if it can contain a match. A name without wildcards needs no listing.

    :param call: the session
    :param root: the directory of the search
    :param patterns: the patterns
    :returns: the files
    """
    search = _Search(root)
    _run_searches(call, root, [(search, patterns)])
    return result_or_raise(search.outcome)


def find_each(
    call: SessionCall,
    root: RemotePath,
    pattern_groups: Sequence[Sequence[str | FileInfo]],
    name_encoding: str = "utf-8",
    *,
    find_replaced: FileQuery = get_file_infos,
) -> list[list[FileInfo] | SFTPBackendError | OSError]:
    """Search for several groups of patterns together.

    :param call: the session
    :param root: the directory of the search
    :param pattern_groups: the patterns of each group
    :param name_encoding: encoding of the server's names
    :param find_replaced: looks up files whose backups are listed in their place; may restore them
    :returns: for each group, the result or error of `find`
    :raises BackendUnavailable: if the connection is lost
    """
    searches: list[tuple[_Search, list[Pattern]]] = []
    for texts in pattern_groups:
        search, parsed = _Search(root), list[Pattern]()
        try:
            parsed += (Pattern.of(text, name_encoding) for text in texts)
        except InvalidPath as error:
            search.error = error
        searches.append((search, parsed))
    _run_searches(call, root, searches, find_replaced)
    return [search.outcome for search, _ in searches]


def _run_searches(
    call: SessionCall,
    root: RemotePath,
    searches: Iterable[tuple[_Search, Iterable[Pattern]]],
    find_replaced: FileQuery = get_file_infos,
) -> None:
    """Run searches together, level by level."""
    level: dict[RemotePath, _SearchesBySegments] = {root: {}}
    for search, patterns in searches:
        for pattern in patterns:
            if pattern.segments:
                level[root].setdefault(pattern.segments, set()).add(search)
    log = ListingTally(root.key)
    depth = 0
    while level := _without_failed(level):
        try:
            log.check_depth(depth)
            level = _search_level(call, log, level, find_replaced)
        except BackendUnavailable:
            raise
        except SFTPBackendError as error:  # too deep: fails all searches that continue
            _fail_searches(
                {search for wanted in level.values() for groups in wanted.values() for search in groups}, error
            )
        depth += 1
    log.finish()


def _without_failed(level: dict[RemotePath, _SearchesBySegments]) -> dict[RemotePath, _SearchesBySegments]:
    """Remove the segments needed only by failed searches."""
    remaining: dict[RemotePath, _SearchesBySegments] = {}
    for folder, wanted in level.items():
        for segments, searches in wanted.items():
            if active := {search for search in searches if search.error is None}:
                remaining.setdefault(folder, {})[segments] = active
    return remaining


def _fail_searches(searches: Iterable[_Search], error: SFTPBackendError | OSError) -> None:
    """Set the error of searches without an error."""
    for search in searches:
        search.error = search.error or error


def _search_level(
    call: SessionCall, log: ListingTally, level: dict[RemotePath, _SearchesBySegments], find_replaced: FileQuery
) -> dict[RemotePath, _SearchesBySegments]:
    """Search the directories of a level; return the next level."""
    below: dict[RemotePath, _SearchesBySegments] = {}
    literal_paths, to_list = _plan_level(level, below)
    _match_literal_paths(call, literal_paths)
    outcomes = _list_for_searches(call, log, to_list) if to_list else []
    for (folder, wanted), outcome in zip(to_list.items(), outcomes, strict=True):
        _match_listing(folder, wanted, outcome, below)
        if isinstance(outcome, list) and (replaced := _replaced_files(folder, wanted, outcome)):
            _match_replaced(replaced, find_replaced(call, [*replaced]))
    return below


def _replaced_files(
    folder: RemotePath, wanted: _SearchesBySegments, entries: Sequence[TreeEntry]
) -> dict[RemotePath, set[_Search]]:
    """Return the matching files whose backups alone are listed.

    A server without posix-rename replaces a file by two renames. Between them, the file is missing.
    """
    backups = [name for entry in entries if is_backup_name(name := entry.path.name)]
    if not backups:
        return {}
    listed = {entry.path.name for entry in entries}
    replaced: dict[RemotePath, set[_Search]] = {}
    for backup in backups:
        name = original_stem(backup)
        if name in listed or name_digest(name) != temp_or_backup_digest(backup):  # the name was too long and is cut
            continue
        searches = {search for segments in wanted if _completes(segments, name) for search in wanted[segments]}
        if searches:
            replaced[folder.entry(name)] = searches
    return replaced


def _match_replaced(
    replaced: dict[RemotePath, set[_Search]], outcomes: Sequence[FileInfo | SFTPBackendError | OSError]
) -> None:
    """Add files that were found by name to their searches."""
    for searches, outcome in zip(replaced.values(), outcomes, strict=True):
        if isinstance(outcome, FileInfo):
            for search in searches:
                search.matches[outcome.path] = outcome
        elif not isinstance(outcome, NotFound | InvalidPath):
            _fail_searches(searches, outcome)


def _plan_level(
    level: dict[RemotePath, _SearchesBySegments], below: dict[RemotePath, _SearchesBySegments]
) -> tuple[dict[RemotePath, set[_Search]], dict[RemotePath, _SearchesBySegments]]:
    """Determine which directories must be listed, because of a segment with wildcards.

    :param level: the directories of the level
    :param below: extended by subdirectories that need no listing
    :returns: the complete paths without wildcards, and the directories to list
    """
    literal_paths: dict[RemotePath, set[_Search]] = {}
    to_list: dict[RemotePath, _SearchesBySegments] = {}
    for folder, wanted in level.items():
        names = {segments: name for segments in wanted if (name := literal_name(segments[0])) is not None}
        # A listing that one pattern needs serves the literal names of the directory too.
        if len(names) < len(wanted):
            to_list[folder] = wanted
            continue
        for segments, searches in wanted.items():
            path = folder.child(names[segments])
            if len(segments) == 1:
                literal_paths[path] = searches
            else:
                below.setdefault(path, {})[segments[1:]] = searches
    return literal_paths, to_list


def _match_literal_paths(call: SessionCall, literal_paths: dict[RemotePath, set[_Search]]) -> None:
    """Add existing files among literal paths to their searches.

    One round trip.
    """
    if not literal_paths:
        return
    outcomes = stat_many(call, list(literal_paths))
    for (path, searches), outcome in zip(literal_paths.items(), outcomes, strict=True):
        if isinstance(outcome, SFTPBackendError | OSError):
            _fail_searches(searches, outcome)
        elif outcome is not None and outcome.is_file:
            for search in searches:
                search.matches[path.key] = to_file_info(path, outcome)


def _match_listing(
    folder: RemotePath,
    wanted: _SearchesBySegments,
    outcome: list[TreeEntry] | SFTPBackendError | OSError,
    below: dict[RemotePath, _SearchesBySegments],
) -> None:
    """Match the entries of a listed directory.

    If it cannot be listed, the searches that need the listing fail.
    """
    # Removed since its parent was listed, or replaced by a file: no match.
    if isinstance(outcome, NotFound | InvalidPath):
        return
    if not isinstance(outcome, SFTPBackendError | OSError):
        for entry in outcome:
            _match(entry, wanted, below)
        return
    for segments, searches in wanted.items():
        if literal_name(segments[0]) is not None:  # can be requested without a listing
            below.setdefault(folder, {})[segments] = searches
        else:
            _fail_searches(searches, outcome)


def _list_for_searches(
    call: SessionCall, log: ListingTally, to_list: dict[RemotePath, _SearchesBySegments]
) -> list[list[TreeEntry] | SFTPBackendError | OSError]:
    """List directories side by side.

    Each search has its own limits, and fails alone if it exceeds them.
    """
    searches_by_directory = {
        folder: list({search for wanted_searches in wanted.values() for search in wanted_searches})
        for folder, wanted in to_list.items()
    }
    all_searches = {search for wanted_searches in searches_by_directory.values() for search in wanted_searches}

    def operation(folder: RemotePath, depth: int) -> Operation[list[TreeEntry]]:
        tally = SharedTally(folder.key, [search.tally for search in searches_by_directory[folder]], log)
        return list_directory(folder, tally, depth, descends=_descends_anywhere(to_list[folder]))

    outcomes = run_listings(call, [log, *(search.tally for search in all_searches)], list(to_list), operation)
    for search in all_searches:
        if search.tally.exceeded is not None:
            _fail_searches([search], LimitExceeded(search.tally.exceeded, path=log.path))
    return outcomes


def _descends_anywhere(wanted: _SearchesBySegments) -> bool:
    """Return whether a pattern matches subdirectories by wildcards."""
    return any(segments[0] == "**" or (len(segments) > 1 and literal_name(segments[0]) is None) for segments in wanted)


def _match(entry: TreeEntry, wanted: _SearchesBySegments, below: dict[RemotePath, _SearchesBySegments]) -> None:
    """Add an entry to the matching searches.

    A subdirectory is also added to the next level.
    """
    name = entry.path.name
    if entry.is_file and not is_temp_name(name):
        info = None
        for segments, searches in wanted.items():
            if _completes(segments, name):
                info = info or entry.to_file_info()
                for search in searches:
                    search.matches[info.path] = info
    if not entry.is_folder:
        return
    for segments, searches in wanted.items():
        # a link to a directory is entered only if the pattern names it
        if entry.attributes.is_folder or literal_name(segments[0]) is not None:
            for remaining in _descend(segments, name):
                below.setdefault(entry.path, {}).setdefault(remaining, set()).update(searches)
