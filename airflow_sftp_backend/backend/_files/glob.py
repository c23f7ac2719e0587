"""Match patterns against the files below a directory.

A single search serves several callers.

All directories of a level are listed side by side. A directory is listed once, and only if it can contain a match.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from airflow_sftp_backend.backend._paths import (
    BACKUP_END,
    RemotePath,
    check_text,
    is_backup_name,
    is_temp_name,
    name_digest,
    original_stem,
    temp_or_backup_digest,
)
from airflow_sftp_backend.backend._patterns import literal_name, name_matcher
from airflow_sftp_backend.backend._protocol.codec import DirEntry
from airflow_sftp_backend.backend._protocol.directory_reply import DirectoryReply
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
from .glob_index import GlobIndex, glob_index
from .listed_directory import TreeEntry, with_targets
from .listing import Listing, read_directory, remove_unsafe_files, safe_entries
from .tree import SessionCall, get_file_infos, run_listings, stat_many

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
    last = _last_segment(segments)
    return last is not None and (last == "**" or _segment_matches(last, name))


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
        if isinstance(outcome, _DirectoryMatches) and (replaced := _replaced_files(folder, wanted, outcome)):
            _match_replaced(replaced, find_replaced(call, [*replaced]))
    return below


def _replaced_files(
    folder: RemotePath, wanted: _SearchesBySegments, matches: _DirectoryMatches
) -> dict[RemotePath, set[_Search]]:
    """Return the matching files whose backups alone are listed.

    A server without posix-rename replaces a file by two renames. Between them, the file is missing.
    """
    if not matches.backups:
        return {}
    listed = {info.name for info, _ in matches.files} | {entry.path.name for entry in matches.others}
    replaced: dict[RemotePath, set[_Search]] = {}
    for backup in matches.backups:
        name = original_stem(backup)
        # a name that was too long is cut
        if name in listed or is_temp_name(name) or name_digest(name) != temp_or_backup_digest(backup):
            continue
        searches = {search for segments in wanted if _completes(segments, name) for search in wanted[segments]}
        if searches:
            with suppress(InvalidPath):  # the server chose the name: it must not lead out of the directory
                replaced[folder.child(name)] = searches
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
    outcome: _DirectoryMatches | SFTPBackendError | OSError,
    below: dict[RemotePath, _SearchesBySegments],
) -> None:
    """Add the matching entries of a listed directory to their searches.

    If it cannot be listed, the searches that need the listing fail.
    """
    # Removed since its parent was listed, or replaced by a file: no match.
    if isinstance(outcome, NotFound | InvalidPath):
        return
    if not isinstance(outcome, SFTPBackendError | OSError):
        searches_by_segment = _last_segments(wanted)
        for info, matching in outcome.files:
            for segment in matching:
                for search in searches_by_segment[segment]:
                    search.matches[info.path] = info
        for entry in outcome.others:
            _match(entry, wanted, below)
        return
    for segments, searches in wanted.items():
        if literal_name(segments[0]) is not None:  # can be requested without a listing
            below.setdefault(folder, {})[segments] = searches
        else:
            _fail_searches(searches, outcome)


class _DirectoryMatches:
    """Collect the matching entries of a directory.

    :param path: the directory
    :param wanted: the segments to match
    :param tally: counts the entries with unsafe names
    """

    def __init__(self, path: RemotePath, wanted: Collection[RemainingSegments], tally: ListingTally) -> None:
        self.files: list[tuple[FileInfo, list[str]]] = []
        """Regular files, with the last segments that match their names."""
        self.others: list[TreeEntry] = []
        """Entries that are not regular files, or have unusual attributes, and match a segment."""
        self.backups: list[str] = []
        """Names of backups, of any files."""
        self._path = path
        self._tally = tally
        self._last_segments = tuple(sorted({last for segments in wanted if (last := _last_segment(segments))}))
        self._descending = [segments for segments in wanted if len(segments) > 1 or segments == ("**",)]
        self._others: Listing = []

    def add(self, reply: DirectoryReply) -> None:
        """Take the entries of a reply."""
        remove_unsafe_files(self._path, reply, self._tally)
        index = glob_index(self._last_segments, reply.encoding)
        for number, name, segments in index.matches(reply.names):
            if not is_temp_name(name):
                self.files.append((to_file_info(self._path.entry(name), reply.attributes(number)), segments))
        self._add_backups(reply)
        if reply.others:
            self._add_others(reply, index)

    def _add_backups(self, reply: DirectoryReply) -> None:
        names = reply.all_names
        if BACKUP_END not in b"".join(names):
            return
        for name in names:
            if name.endswith(BACKUP_END) and is_backup_name(backup := reply.decode(name)):
                self.backups.append(backup)

    def _add_others(self, reply: DirectoryReply, index: GlobIndex) -> None:
        entries = [DirEntry(reply.decode(name), attributes) for _, name, attributes in reply.others]
        matching = {name for _, name, _ in index.matches([name for _, name, _ in reply.others])}
        for path, attributes in safe_entries(self._path, entries, self._tally):
            name = path.name
            if name in matching or any(any(_descend(segments, name)) for segments in self._descending):
                self._others.append((path, attributes))

    def examine_others(self, *, descends: bool) -> Operation[None]:
        """Request what the listing does not say of other entries."""
        self.others = yield from with_targets(self._others, descends=descends)


def _last_segment(segments: RemainingSegments) -> str | None:
    """Return the segment that matches files of the directory itself, if any."""
    # ``**`` also matches no directory at all.
    while len(segments) > 1 and segments[0] == "**":
        segments = segments[1:]
    return segments[0] if len(segments) == 1 else None


def _last_segments(wanted: _SearchesBySegments) -> dict[str, set[_Search]]:
    """Return the searches by their last segment."""
    searches_by_segment: dict[str, set[_Search]] = {}
    for segments, searches in wanted.items():
        if (last := _last_segment(segments)) is not None:
            searches_by_segment.setdefault(last, set()).update(searches)
    return searches_by_segment


def _find_matches(
    path: RemotePath, wanted: _SearchesBySegments, tally: ListingTally, read_ahead: int
) -> Operation[_DirectoryMatches]:
    """List a directory for its matching entries."""
    matches, _ = yield from read_directory(path, tally, read_ahead, lambda: _DirectoryMatches(path, wanted, tally))
    yield from matches.examine_others(descends=_descends_anywhere(wanted))
    return matches


def _list_for_searches(
    call: SessionCall, log: ListingTally, to_list: dict[RemotePath, _SearchesBySegments]
) -> list[_DirectoryMatches | SFTPBackendError | OSError]:
    """List directories side by side.

    Each search has its own limits, and fails alone if it exceeds them.
    """
    directories: dict[_Search, list[RemotePath]] = {}
    for folder, wanted in to_list.items():
        for search in {search for searches in wanted.values() for search in searches}:
            directories.setdefault(search, []).append(folder)
    # Searches with equal tallies that need the same directories are counted once.
    alike: dict[tuple[object, ...], list[_Search]] = {}
    for search, folders in directories.items():
        alike.setdefault((search.tally.mark(), *folders), []).append(search)
    tallies: dict[RemotePath, list[ListingTally]] = {}
    for searches in alike.values():
        for folder in directories[searches[0]]:
            tallies.setdefault(folder, []).append(searches[0].tally)

    def operation(folder: RemotePath, read_ahead: int) -> Operation[_DirectoryMatches]:
        return _find_matches(folder, to_list[folder], SharedTally(folder.key, tallies[folder], log), read_ahead)

    outcomes = run_listings(call, [log, *(searches[0].tally for searches in alike.values())], list(to_list), operation)
    for first, *others in alike.values():
        for search in others:
            search.tally.rewind(first.tally.mark())
        if first.tally.exceeded is not None:
            _fail_searches([first, *others], LimitExceeded(first.tally.exceeded, path=log.path))
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
