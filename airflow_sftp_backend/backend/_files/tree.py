"""Walks directory trees level by level, sums them up, and deletes them from the bottom up.

All directories of one level are listed side by side, so that a walk is as many round trips deep as the tree has levels.
Links found on the way are never entered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from airflow_sftp_backend.backend._limits import BoundExceeded, ListingTally
from airflow_sftp_backend.backend._paths import RemotePath, is_temp_name
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import RemoveDir, Stat
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, request_all, server_traits
from airflow_sftp_backend.backend.errors import BackendUnavailable, InvalidPath, NotFound, SFTPBackendError, StatusError
from airflow_sftp_backend.backend.models import FileInfo, FolderInfo

from .deletion import delete, delete_folder
from .links import ambiguous_link_error, get_own_attributes, with_links_detected
from .operations import (
    Listing,
    file_info_or_error,
    is_parent_a_file,
    list_and_recheck,
    list_folder,
    stat_links,
    stat_or_none,
    to_file_info,
)

T = TypeVar("T")


class SessionCall(Protocol):
    """How a walk reaches the server: ``Session.call``, one call a level, so that other threads get their turn."""

    def __call__(self, use: Callable[[SFTPScheduler], T], *, idempotent: bool = False) -> T:
        """Runs ``use`` on the wire."""


@dataclass(slots=True)
class TreeEntry:
    """An entry met on a walk: its own attributes and, for a link, those of what it leads to (None: nothing)."""

    path: RemotePath
    attributes: Attributes
    target_attributes: Attributes | None

    @property
    def is_file(self) -> bool:
        """A file, or a link to one."""
        return self.target_attributes is not None and self.target_attributes.is_file

    @property
    def is_folder(self) -> bool:
        """A folder, or a link to one."""
        return self.target_attributes is not None and self.target_attributes.is_folder

    def to_file_info(self) -> FileInfo:
        """The entry as a file."""
        return to_file_info(self.path, self.target_attributes or self.attributes)


def list_directory(path: RemotePath, tally: ListingTally, depth: int, *, descends: bool) -> Operation[list[TreeEntry]]:
    entries = yield from list_folder(path, tally, depth)
    if descends:
        entries = yield from with_links_detected(entries)
    targets = yield from stat_links(entries)
    if not targets:
        return [TreeEntry(path, attributes, attributes) for path, attributes in entries]
    return [TreeEntry(path, attributes, targets.get(path, attributes)) for path, attributes in entries]


def _list_all(
    call: SessionCall, tally: ListingTally, folders: Sequence[RemotePath], descend_into: Collection[RemotePath]
) -> list[list[TreeEntry] | SFTPBackendError | OSError]:
    """List folders side by side; in those of ``descend_into``, whose subfolders are to be entered, links are told.

    Raises BoundExceeded.
    """
    return _raise_if_bound_exceeded(
        run_listings(
            call,
            [tally],
            folders,
            lambda folder, depth: list_directory(folder, tally, depth, descends=folder in descend_into),
        )
    )


def run_listings(
    call: SessionCall,
    tallies: Sequence[ListingTally],
    folders: Sequence[RemotePath],
    operation: Callable[[RemotePath, int], Operation[T]],
) -> list[T | SFTPBackendError | OSError]:
    """Run an operation that lists for each folder, side by side; ``tallies`` count for them."""
    marks = [tally.mark() for tally in tallies]

    def use(scheduler: SFTPScheduler) -> list[T | SFTPBackendError | OSError]:
        for tally, mark in zip(tallies, marks, strict=True):
            tally.rewind(mark)  # what an earlier connection sent is sent again
            tally.bounds = scheduler.bounds
        depth = _initial_read_ahead(scheduler, folders)
        return _raise_if_unavailable(scheduler.run_many(operation(folder, depth) for folder in folders))

    return call(use, idempotent=True)


def _initial_read_ahead(scheduler: SFTPScheduler, folders: Sequence[RemotePath]) -> int:
    """How many requests for entries go out at first: three for each millisecond of the round trip, so that a large
    folder far away takes few round trips."""
    return int(max(2, min(128, scheduler.round_trip * 3000 / max(1, len(folders)))))


def _raise_if_unavailable(outcomes: list[T | SFTPBackendError | OSError]) -> list[T | SFTPBackendError | OSError]:
    """The outcomes, unless the connection was lost: that is raised, for the whole call to be made again."""
    for outcome in outcomes:
        if isinstance(outcome, BackendUnavailable):
            raise outcome
    return outcomes


def _raise_if_bound_exceeded(outcomes: list[T | SFTPBackendError | OSError]) -> list[T | SFTPBackendError | OSError]:
    """Return the outcomes. Raises BoundExceeded if one is that: the bounds are those of a call as a whole."""
    for outcome in outcomes:
        if isinstance(outcome, BoundExceeded):
            raise outcome
    return outcomes


def list_children(call: SessionCall, folder: RemotePath) -> Iterator[TreeEntry]:
    """What a folder holds, temporary names left out; nothing where there is no such folder."""
    tally = ListingTally(folder.key)
    (outcome,) = _list_all(call, tally, [folder], descend_into=())
    tally.finish()
    if not isinstance(outcome, NotFound | InvalidPath):
        yield from (entry for entry in unwrap(outcome) if not is_temp_name(entry.path.name))


def unwrap(outcome: T | SFTPBackendError | OSError) -> T:
    if isinstance(outcome, SFTPBackendError | OSError):
        raise outcome
    return outcome


def walk(
    call: SessionCall,
    root: RemotePath,
    max_depth: int | None = None,
    *,
    must_exist: bool = False,
    with_temps: bool = False,
) -> Iterator[TreeEntry]:
    """Every entry below ``root``, one level after the other; ``max_depth`` 0 is the root's own entries. Temporary files
    only ``with_temps``.

    Nothing where there is no such folder, unless it ``must_exist``: NotFound, InvalidPath for a file. A folder below
    that is gone by the time it is listed is passed over. Raises BoundExceeded.
    """
    tally = ListingTally(root.key)
    level = [root]
    depth = 0
    try:
        while level and (max_depth is None or depth <= max_depth):
            tally.check_depth(depth)
            descend_into = set(level) if max_depth is None or depth < max_depth else ()
            outcomes = _list_all(call, tally, level, descend_into)
            level = []
            for outcome in outcomes:
                if isinstance(outcome, NotFound | InvalidPath) and not (must_exist and depth == 0):
                    continue
                for entry in unwrap(outcome):
                    if entry.attributes.is_folder:
                        level.append(entry.path)
                    if with_temps or not is_temp_name(entry.path.name) or entry.attributes.is_folder:
                        yield entry
            depth += 1
    finally:
        tally.finish()


def get_file_infos(call: SessionCall, paths: Sequence[RemotePath]) -> list[FileInfo | SFTPBackendError | OSError]:
    """The files of many paths in one round trip: NotFound, InvalidPath for a folder, or why it is not shown."""
    return [
        outcome if isinstance(outcome, SFTPBackendError | OSError) else file_info_or_error(path, outcome)
        for path, outcome in zip(paths, stat_many(call, paths), strict=True)
    ]


def stat_many(call: SessionCall, paths: Sequence[RemotePath]) -> list[Attributes | SFTPBackendError | OSError | None]:
    """What `look` finds for each, or raises. One round trip where the answers leave nothing open."""

    def use(scheduler: SFTPScheduler) -> list[Attributes | SFTPBackendError | OSError | None]:
        parents = () if scheduler.traits.finds_nothing_below_files else {path.parent: None for path in paths}
        requested = (*paths, *(parent for parent in parents if not parent.is_root))
        answers = dict(
            zip(requested, scheduler.run(request_all([Stat(path.native) for path in requested])), strict=True)
        )
        outcomes: dict[RemotePath, Attributes | SFTPBackendError | OSError | None] = {}
        unclear: list[RemotePath] = []
        for path in paths:
            answer = answers[path]
            if parents and is_parent_a_file(answers.get(path.parent)):
                outcomes[path] = None
            elif isinstance(answer, Attributes) and answer.mode is not None:
                outcomes[path] = answer
            elif isinstance(answer, StatusError) and answer.missing:
                outcomes[path] = None
            else:
                unclear.append(path)
        outcomes.update(
            zip(unclear, _raise_if_unavailable(scheduler.run_many(map(stat_or_none, unclear))), strict=True)
        )
        return [outcomes[path] for path in paths]

    return call(use, idempotent=True)


def folder_info(call: SessionCall, folder: RemotePath) -> FolderInfo:
    """Sums over all files below. Raises NotFound, InvalidPath for a file."""
    count = size = 0
    latest = None
    for entry in walk(call, folder, must_exist=True):
        if entry.is_file:
            info = entry.to_file_info()
            count, size = count + 1, size + info.size
            if info.modified_at is not None and (latest is None or info.modified_at > latest):
                latest = info.modified_at
    return FolderInfo(folder.key, count, size, latest)


# -- deletion ---------------------------------------------------------------------------------------------------------


def delete_tree(call: SessionCall, root: RemotePath, *, missing_ok: bool) -> None:
    """Deletes a folder with all it holds, temporary names too; links are removed, never entered.

    Each folder is looked at before it is listed, by its parent's listing or by LSTAT, and once more, along with the end
    of its listing, before anything in it is removed. One race remains, as SFTP 3 cannot delete by a handle:
    if somebody replaces a folder by a link between that second look and the removals, files behind the link are removed
    that have the names of files in the folder.

    Raises NotFound, InvalidPath for a file; else the first refusal, after everything that can be deleted is.
    """
    attributes, is_link_excluded = call(lambda scheduler: scheduler.run(get_own_attributes(root)), idempotent=True)
    if isinstance(attributes, Attributes) and attributes.is_folder and not is_link_excluded:
        raise ambiguous_link_error(root)
    if isinstance(attributes, StatusError) or not attributes.is_folder:
        # a link, a file, nothing: says so
        call(lambda scheduler: scheduler.run(delete_folder(root, missing_ok=missing_ok)))
        return
    tally = ListingTally(root.key)
    try:
        failures = _delete_level_by_level(call, root, tally)
    finally:
        tally.finish()
    if failures:
        raise failures[0]


def _delete_level_by_level(call: SessionCall, root: RemotePath, tally: ListingTally) -> list[SFTPBackendError]:
    """Delete what the levels hold, from the top, then the folders: the failures. Raises BoundExceeded."""
    folders: list[RemotePath] = []
    failures: list[SFTPBackendError] = []
    level = [root]
    depth = 0
    while level:
        tally.check_depth(depth)
        outcomes = _list_for_removal(call, tally, level)
        directories, level = level, []
        non_directories: list[tuple[RemotePath, bool]] = []  # with whether a listing has told the type
        for folder, outcome in zip(directories, outcomes, strict=True):
            if isinstance(outcome, NotFound):
                continue
            if isinstance(outcome, _BecameLink):
                non_directories.append((folder, True))
                continue
            folders.append(folder)
            if isinstance(outcome, SFTPBackendError):
                failures.append(outcome)
                continue
            for path, attributes in unwrap(outcome):
                if attributes.is_folder:
                    level.append(path)
                else:
                    non_directories.append((path, attributes.mode is not None))
        failures += _delete_entries(call, non_directories)
        depth += 1
    return failures + _remove_directories(call, folders)


class _BecameLink(SFTPBackendError):
    """There is a link now where a folder was when it was looked at."""


def _list_for_removal(
    call: SessionCall, tally: ListingTally, folders: Sequence[RemotePath]
) -> list[Listing | SFTPBackendError | OSError]:
    return _raise_if_bound_exceeded(
        run_listings(call, [tally], folders, lambda folder, depth: _list_one_for_removal(folder, tally, depth))
    )


def _list_one_for_removal(path: RemotePath, tally: ListingTally, depth: int) -> Operation[Listing]:
    """The entries of a folder that is still one, links as links. Raises _BecameLink, InvalidPath."""
    entries, rechecked = yield from list_and_recheck(path, tally, depth)
    if isinstance(rechecked, Attributes) and not rechecked.is_folder:
        error_class = _BecameLink if rechecked.is_link else InvalidPath
        raise error_class("cannot delete the folder: something else has its name by now", path=path.key)
    if isinstance(rechecked, StatusError) and not (yield from server_traits()).lists_links_as_links:
        raise ambiguous_link_error(path)
    return (yield from with_links_detected(entries))


def _delete_entries(call: SessionCall, paths: Sequence[tuple[RemotePath, bool]]) -> list[SFTPBackendError]:
    deletions = (delete(path, missing_ok=True, is_listed=is_listed) for path, is_listed in paths)
    outcomes = call(lambda scheduler: _raise_if_unavailable(scheduler.run_many(deletions, limit=256)))
    return [outcome for outcome in outcomes if isinstance(outcome, SFTPBackendError)]


def _remove_directories(call: SessionCall, folders: Sequence[RemotePath]) -> list[SFTPBackendError]:
    """All at once, the deepest first; once more level by level where a server did not keep to that order."""
    deepest_first = sorted(folders, key=lambda folder: folder.key.count("/"), reverse=True)
    answers = call(lambda scheduler: scheduler.run(request_all([RemoveDir(folder.native) for folder in deepest_first])))
    failures: list[SFTPBackendError] = []
    for folder, answer in zip(deepest_first, answers, strict=True):
        if isinstance(answer, StatusError) and not answer.missing:
            failures += _remove_directory(call, folder)
    return failures


def _remove_directory(call: SessionCall, folder: RemotePath) -> list[SFTPBackendError]:
    try:
        call(lambda scheduler: scheduler.run(delete_folder(folder, missing_ok=True)))
    except BackendUnavailable:
        raise
    except SFTPBackendError as error:
        return [error]
    return []
