"""Matches patterns against the files below a directory. One search serves several callers.

All directories of one level are listed side by side. A directory is listed once, and only if it can hold a match.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from airflow_sftp_backend.backend._limits import BoundExceeded, ListingTally, SharedTally
from airflow_sftp_backend.backend._paths import RemotePath, check_text, is_temp_name
from airflow_sftp_backend.backend._patterns import literal_name, name_matcher
from airflow_sftp_backend.backend._protocol.scheduler import Operation
from airflow_sftp_backend.backend.errors import BackendUnavailable, InvalidPath, NotFound, SFTPBackendError
from airflow_sftp_backend.backend.models import FileInfo

from .operations import (
    to_file_info,
)
from .tree import SessionCall, TreeEntry, list_directory, run_listings, stat_many, unwrap


@dataclass(frozen=True, slots=True)
class Pattern:
    """A glob over keys: ``*``, ``?`` and ``[...]`` within a segment, ``**`` as a segment for any number of folders.

    ``[*]``, ``[?]`` and ``[[]``, as `glob.escape` writes them, are those characters.
    Raises InvalidPath for ``..``, NUL and what is no Unicode text.
    """

    segments: tuple[str, ...]

    @classmethod
    def of(cls, pattern: str | FileInfo) -> Pattern:
        """Return the pattern of a text, or the one that matches the path of a file and nothing else."""
        return cls.parse(glob.escape(pattern.path) if isinstance(pattern, FileInfo) else pattern)

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """The pattern of a text; leading and doubled slashes and ``.`` segments fall away."""
        check_text(text, "a pattern")
        segments = [segment for segment in text.split("/") if segment not in ("", ".")]
        if ".." in segments:
            raise InvalidPath("a pattern must not contain '..': patterns stay below base_path", path=text)
        return cls(tuple(segments))

    def matches(self, key: str) -> bool:
        """True if the whole key fits."""
        states = {self.segments}
        *folders, name = key.split("/")
        for folder in folders:
            states = {after for segments in states for after in _descend(segments, folder)}
        return any(_completes(segments, name) for segments in states)


RemainingSegments = tuple[str, ...]
"""What of a pattern is still to be matched below a folder."""


def _descend(segments: RemainingSegments, folder: str) -> Iterator[RemainingSegments]:
    """What is left of it in that subfolder; several ways, or none."""
    if len(segments) > 1 and segments[0] == "**":
        yield segments
        yield from _descend(segments[1:], folder)
    elif segments == ("**",):
        yield segments
    elif len(segments) > 1 and _segment_matches(segments[0], folder):
        yield segments[1:]


def _completes(segments: RemainingSegments, name: str) -> bool:
    """True if a file of that name in this folder completes it."""
    while len(segments) > 1 and segments[0] == "**":
        segments = segments[1:]
    return len(segments) == 1 and (segments[0] == "**" or _segment_matches(segments[0], name))


def _segment_matches(segment: str, name: str) -> bool:
    literal = literal_name(segment)
    return literal == name if literal is not None else name_matcher(segment)(name) is not None


class _Search:
    """What one asks of a search that is made for several: the files found for it, or why it failed."""

    __slots__ = ("error", "matches", "tally")

    def __init__(self, root: RemotePath) -> None:
        self.matches: dict[str, FileInfo] = {}
        self.error: SFTPBackendError | OSError | None = None
        self.tally = ListingTally(root.key)
        """What is listed for it, whoever else wants it."""

    @property
    def outcome(self) -> list[FileInfo] | SFTPBackendError | OSError:
        """Its files, sorted by key, or its failure."""
        return self.error or [self.matches[key] for key in sorted(self.matches)]


_SearchesBySegments = dict[RemainingSegments, set[_Search]]
"""What is still to be matched below a folder, and for whom."""


def find(call: SessionCall, root: RemotePath, patterns: Iterable[Pattern]) -> list[FileInfo]:
    """The files that fit any of the patterns, sorted by key.

    Lists each folder once, and only those that can hold a match; a name without wildcards is asked for without a
    listing.
    """
    search = _Search(root)
    _run_searches(call, root, [(search, patterns)])
    return unwrap(search.outcome)


def find_each(
    call: SessionCall, root: RemotePath, pattern_groups: Sequence[Sequence[str | FileInfo]]
) -> list[list[FileInfo] | SFTPBackendError | OSError]:
    """What `find` gives or raises for each group of patterns, with one search for all of them.

    Raises BackendUnavailable.
    """
    searches: list[tuple[_Search, list[Pattern]]] = []
    for texts in pattern_groups:
        search, parsed = _Search(root), list[Pattern]()
        try:
            parsed += map(Pattern.of, texts)
        except InvalidPath as error:
            search.error = error
        searches.append((search, parsed))
    _run_searches(call, root, searches)
    return [search.outcome for search, _ in searches]


def _run_searches(call: SessionCall, root: RemotePath, searches: Iterable[tuple[_Search, Iterable[Pattern]]]) -> None:
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
            level = _search_level(call, log, level)
        except BackendUnavailable:
            raise
        except SFTPBackendError as error:  # too deep, for all who search on
            _fail_searches(
                {search for wanted in level.values() for groups in wanted.values() for search in groups}, error
            )
        depth += 1
    log.finish()


def _without_failed(level: dict[RemotePath, _SearchesBySegments]) -> dict[RemotePath, _SearchesBySegments]:
    """Without what only those want whose search has failed."""
    remaining: dict[RemotePath, _SearchesBySegments] = {}
    for folder, wanted in level.items():
        for segments, searches in wanted.items():
            if active := {search for search in searches if search.error is None}:
                remaining.setdefault(folder, {})[segments] = active
    return remaining


def _fail_searches(searches: Iterable[_Search], error: SFTPBackendError | OSError) -> None:
    for search in searches:
        search.error = search.error or error


def _search_level(
    call: SessionCall, log: ListingTally, level: dict[RemotePath, _SearchesBySegments]
) -> dict[RemotePath, _SearchesBySegments]:
    """Looks into all folders of a level: what is to be looked into next."""
    below: dict[RemotePath, _SearchesBySegments] = {}
    literal_paths: dict[RemotePath, set[_Search]] = {}
    to_list: dict[RemotePath, _SearchesBySegments] = {}
    for folder, wanted in level.items():
        names = {segments: name for segments in wanted if (name := literal_name(segments[0])) is not None}
        if len(names) < len(wanted):
            to_list[folder] = wanted
            continue
        for segments, searches in wanted.items():
            path = folder.child(names[segments])
            if len(segments) == 1:
                literal_paths[path] = searches
            else:
                below.setdefault(path, {})[segments[1:]] = searches
    for (path, searches), stat_outcome in zip(
        literal_paths.items(), stat_many(call, list(literal_paths)) if literal_paths else [], strict=True
    ):
        if isinstance(stat_outcome, SFTPBackendError | OSError):
            _fail_searches(searches, stat_outcome)
        elif stat_outcome is not None and stat_outcome.is_file:
            for search in searches:
                search.matches[path.key] = to_file_info(path, stat_outcome)
    outcomes = _list_for_searches(call, log, to_list) if to_list else []
    for (folder, wanted), outcome in zip(to_list.items(), outcomes, strict=True):
        if isinstance(outcome, NotFound | InvalidPath):
            continue
        if isinstance(outcome, SFTPBackendError | OSError):
            for segments, searches in wanted.items():
                if literal_name(segments[0]) is not None:  # can be asked for without a listing
                    below.setdefault(folder, {})[segments] = searches
                else:
                    _fail_searches(searches, outcome)
            continue
        for entry in outcome:
            _match(entry, wanted, below)
    return below


def _list_for_searches(
    call: SessionCall, log: ListingTally, to_list: dict[RemotePath, _SearchesBySegments]
) -> list[list[TreeEntry] | SFTPBackendError | OSError]:
    """List folders side by side. Each group has bounds of its own, and fails alone where it exceeds one."""
    searches_by_directory = {
        folder: list({search for some in wanted.values() for search in some}) for folder, wanted in to_list.items()
    }
    all_searches = {search for some in searches_by_directory.values() for search in some}

    def operation(folder: RemotePath, depth: int) -> Operation[list[TreeEntry]]:
        tally = SharedTally(folder.key, [search.tally for search in searches_by_directory[folder]], log)
        return list_directory(folder, tally, depth, descends=_descends_anywhere(to_list[folder]))

    outcomes = run_listings(call, [log, *(search.tally for search in all_searches)], list(to_list), operation)
    for search in all_searches:
        if search.tally.exceeded is not None:
            _fail_searches([search], BoundExceeded(search.tally.exceeded, path=log.path))
    return outcomes


def _descends_anywhere(wanted: _SearchesBySegments) -> bool:
    """True if a pattern leads on into folders that it does not name."""
    return any(segments[0] == "**" or (len(segments) > 1 and literal_name(segments[0]) is None) for segments in wanted)


def _match(entry: TreeEntry, wanted: _SearchesBySegments, below: dict[RemotePath, _SearchesBySegments]) -> None:
    """Sorts one entry of a folder, below which that is wanted, into results and folders to enter."""
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
        if entry.attributes.is_folder or literal_name(segments[0]) is not None:
            for remaining in _descend(segments, name):
                below.setdefault(entry.path, {}).setdefault(remaining, set()).update(searches)
