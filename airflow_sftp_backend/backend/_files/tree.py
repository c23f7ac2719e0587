"""Walk directory trees level by level, compute their totals, and delete them.

All directories of a level are listed side by side, so a walk takes as many round trips as the tree has levels. Links
are never entered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol, TypeVar

from airflow_sftp_backend.backend._paths import RemotePath, is_temp_name
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import RemoveDir, Stat
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, request_all, server_traits
from airflow_sftp_backend.backend._receive_limits import LimitExceeded, ListingTally
from airflow_sftp_backend.backend.errors import (
    BackendUnavailable,
    InvalidPath,
    NotFound,
    SFTPBackendError,
    StatusError,
    result_or_raise,
)
from airflow_sftp_backend.backend.models import FileInfo, FolderInfo

from .deletion import delete, delete_folder
from .file_info import file_info_or_error, is_parent_a_file, stat_or_none
from .links import ambiguous_link_error, get_own_attributes, with_links_detected
from .listed_directory import ListedDirectory, TreeEntry, list_directory
from .listing import Listing, list_and_recheck

T = TypeVar("T")


class SessionCall(Protocol):
    """Interface of ``Session.call``.

    A walk calls it for each level, so that other threads can use the connection.
    """

    def __call__(self, function: Callable[[SFTPScheduler], T], /, *, idempotent: bool = False) -> T:
        """Call a function with the scheduler of the connection."""


def _list_all(
    call: SessionCall, tally: ListingTally, folders: Sequence[RemotePath], descend_into: Collection[RemotePath]
) -> list[ListedDirectory | SFTPBackendError | OSError]:
    """List directories side by side, and detect links in those of ``descend_into``.

    :raises LimitExceeded: if the listings exceed the limits of ``tally``
    """
    return _raise_if_limit_exceeded(
        run_listings(
            call,
            [tally],
            folders,
            lambda folder, read_ahead: list_directory(folder, tally, read_ahead, descends=folder in descend_into),
        )
    )


def run_listings(
    call: SessionCall,
    tallies: Sequence[ListingTally],
    folders: Sequence[RemotePath],
    operation: Callable[[RemotePath, int], Operation[T]],
) -> list[T | SFTPBackendError | OSError]:
    """Run a listing operation for each directory, side by side.

    :param call: the session
    :param tallies: tallies of the operations; reset when the call is repeated on another connection
    :param folders: the directories
    :param operation: called with a directory and the number of requests to send at first
    :returns: the results or errors, in the order of the directories
    """
    marks = [tally.mark() for tally in tallies]

    def list_all(scheduler: SFTPScheduler) -> list[T | SFTPBackendError | OSError]:
        for tally, mark in zip(tallies, marks, strict=True):
            tally.rewind(mark)  # replies of a lost connection are received again
            tally.limits = scheduler.receive_limits
        read_ahead = _initial_read_ahead(scheduler, folders)
        return _raise_if_unavailable(scheduler.run_many(operation(folder, read_ahead) for folder in folders))

    return call(list_all, idempotent=True)


def _initial_read_ahead(scheduler: SFTPScheduler, folders: Sequence[RemotePath]) -> int:
    """Return the number of READDIR requests to send at first."""
    # Three for each millisecond of the round trip: a large directory on a far server then takes few round trips.
    return int(max(2, min(128, scheduler.round_trip * 3000 / max(1, len(folders)))))


def _raise_if_unavailable(outcomes: list[T | SFTPBackendError | OSError]) -> list[T | SFTPBackendError | OSError]:
    """Return the outcomes, or raise BackendUnavailable.

    The session then repeats the whole call.
    """
    for outcome in outcomes:
        if isinstance(outcome, BackendUnavailable):
            raise outcome
    return outcomes


def _raise_if_limit_exceeded(outcomes: list[T | SFTPBackendError | OSError]) -> list[T | SFTPBackendError | OSError]:
    """Return the outcomes, or raise LimitExceeded.

    The limits apply to the call as a whole.
    """
    for outcome in outcomes:
        if isinstance(outcome, LimitExceeded):
            raise outcome
    return outcomes


def list_children(call: SessionCall, folder: RemotePath) -> Iterator[TreeEntry]:
    """Yield the entries of a directory without temporary files.

    There are none if the directory does not exist.
    """
    tally = ListingTally(folder.key)
    (outcome,) = _list_all(call, tally, [folder], descend_into=())
    tally.finish()
    if not isinstance(outcome, NotFound | InvalidPath):
        yield from (entry for entry in result_or_raise(outcome) if not is_temp_name(entry.path.name))


def walk(
    call: SessionCall,
    root: RemotePath,
    max_depth: int | None = None,
    *,
    must_exist: bool = False,
    with_temps: bool = False,
) -> Iterator[TreeEntry]:
    """Yield the entries below ``root``, level by level.

    A directory removed before it is listed is skipped.

    :param call: the session
    :param root: the directory
    :param max_depth: 0 for the entries of the root only; None for all levels
    :param must_exist: whether a missing root is an error; otherwise nothing is yielded
    :param with_temps: whether to include temporary files
    :returns: the entries
    :raises NotFound: if ``must_exist`` and the root does not exist
    :raises InvalidPath: if ``must_exist`` and the root is a file
    :raises LimitExceeded: if the listings exceed the limits of the connection
    """
    for listed in _walk_directories(call, root, max_depth, must_exist=must_exist):
        for entry in listed:
            if with_temps or not is_temp_name(entry.path.name) or entry.attributes.is_folder:
                yield entry


def walk_files(
    call: SessionCall, root: RemotePath, max_depth: int | None = None, *, must_exist: bool = False
) -> Iterator[FileInfo]:
    """Yield the files of `walk`, and links to files.

    :param call: the session
    :param root: the directory
    :param max_depth: as for `walk`
    :param must_exist: as for `walk`
    :returns: the files, without temporary files
    :raises SFTPBackendError: as for `walk`
    """
    for listed in _walk_directories(call, root, max_depth, must_exist=must_exist):
        yield from listed.file_infos()


def _walk_directories(
    call: SessionCall, root: RemotePath, max_depth: int | None, *, must_exist: bool
) -> Iterator[ListedDirectory]:
    """Yield the directories of a walk, level by level."""
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
                # removed or replaced since its parent was listed
                if isinstance(outcome, NotFound | InvalidPath) and not (must_exist and depth == 0):
                    continue
                listed = result_or_raise(outcome)
                level += [entry.path for entry in listed.others if entry.attributes.is_folder]
                yield listed
            depth += 1
    finally:
        tally.finish()


def get_file_infos(call: SessionCall, paths: Sequence[RemotePath]) -> list[FileInfo | SFTPBackendError | OSError]:
    """Return the files at many paths, or their errors.

    One round trip. The errors are NotFound, and InvalidPath for a directory.
    """
    return [
        outcome if isinstance(outcome, SFTPBackendError | OSError) else file_info_or_error(path, outcome)
        for path, outcome in zip(paths, stat_many(call, paths), strict=True)
    ]


def stat_many(call: SessionCall, paths: Sequence[RemotePath]) -> list[Attributes | SFTPBackendError | OSError | None]:
    """Return the results of `stat_or_none` for many paths, or errors.

    One round trip, more if a reply does not show whether the path exists.
    """

    def stat_all(scheduler: SFTPScheduler) -> list[Attributes | SFTPBackendError | OSError | None]:
        parents = () if scheduler.traits.finds_nothing_below_files else {path.parent: None for path in paths}
        requested = (*paths, *(parent for parent in parents if not parent.is_root))
        answers = dict(
            zip(requested, scheduler.run(request_all([Stat(path.native) for path in requested])), strict=True)
        )
        outcomes: dict[RemotePath, Attributes | SFTPBackendError | OSError | None] = {}
        undecided: list[RemotePath] = []
        for path in paths:
            answer = answers[path]
            if parents and is_parent_a_file(answers.get(path.parent)):
                outcomes[path] = None
            elif isinstance(answer, Attributes) and answer.mode is not None:
                outcomes[path] = answer
            elif isinstance(answer, StatusError) and answer.missing:
                outcomes[path] = None
            else:
                undecided.append(path)
        outcomes.update(
            zip(undecided, _raise_if_unavailable(scheduler.run_many(map(stat_or_none, undecided))), strict=True)
        )
        return [outcomes[path] for path in paths]

    return call(stat_all, idempotent=True)


def folder_info(call: SessionCall, folder: RemotePath) -> FolderInfo:
    """Compute the totals of all files in a directory.

    Raises NotFound, or InvalidPath for a file.
    """
    count = size = 0
    latest = None
    for info in walk_files(call, folder, must_exist=True):
        count, size = count + 1, size + info.size
        if info.modified_at is not None and (latest is None or info.modified_at > latest):
            latest = info.modified_at
    return FolderInfo(folder.key, count, size, latest)


# -- deletion ---------------------------------------------------------------------------------------------------------


def delete_tree(call: SessionCall, root: RemotePath, *, missing_ok: bool) -> None:
    """Delete a directory with all entries, including temporary files.

    Removes links and never enters them.

    The type of each directory is checked before its listing, by the parent's listing or by LSTAT, and again by an LSTAT
    sent with its last READDIR, before any of its entries are removed. A race remains, because SFTP 3 cannot delete by
    handle. If a directory is replaced by a link between the second check and the removals, files in the link's target
    are removed if their names are those of files in the directory.

    :param call: the session
    :param root: the directory
    :param missing_ok: whether to ignore a missing directory
    :raises NotFound: if the root does not exist
    :raises InvalidPath: for a file
    :raises SFTPBackendError: the first refusal, after all other entries are deleted
    """
    attributes, is_certain = call(lambda scheduler: scheduler.run(get_own_attributes(root)), idempotent=True)
    if isinstance(attributes, Attributes) and attributes.is_folder and not is_certain:
        raise ambiguous_link_error(root)
    if isinstance(attributes, StatusError) or not attributes.is_folder:
        # for a link, delete_folder removes the link; for a file or a missing path, it raises the error
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
    """Delete the files and links of each level, then all directories.

    Files and links are deleted from the top level down, directories from the bottom up.

    :returns: the errors
    :raises LimitExceeded: if the listings exceed the limits of ``tally``
    """
    folders: list[RemotePath] = []
    failures: list[SFTPBackendError] = []
    level = [root]
    depth = 0
    while level:
        tally.check_depth(depth)
        outcomes = _list_for_removal(call, tally, level)
        directories, level = level, []
        non_directories: list[tuple[RemotePath, bool]] = []  # path, and whether the listing contained its type
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
            for path, attributes in result_or_raise(outcome):
                if attributes.is_folder:
                    level.append(path)
                else:
                    non_directories.append((path, attributes.mode is not None))
        failures += _delete_entries(call, non_directories)
        depth += 1
    return failures + _remove_directories(call, folders)


class _BecameLink(SFTPBackendError):
    """A directory was replaced by a link after its type was checked."""


def _list_for_removal(
    call: SessionCall, tally: ListingTally, folders: Sequence[RemotePath]
) -> list[Listing | SFTPBackendError | OSError]:
    """List directories side by side, and refuse links.

    Raises LimitExceeded.
    """

    def operation(folder: RemotePath, read_ahead: int) -> Operation[Listing]:
        return _list_one_for_removal(folder, tally, read_ahead)

    return _raise_if_limit_exceeded(run_listings(call, [tally], folders, operation))


def _list_one_for_removal(path: RemotePath, tally: ListingTally, read_ahead: int) -> Operation[Listing]:
    """List a directory with links detected; check its type again.

    Raises _BecameLink, InvalidPath.
    """
    entries, rechecked = yield from list_and_recheck(path, tally, read_ahead)
    if isinstance(rechecked, Attributes) and not rechecked.is_folder:
        error_class = _BecameLink if rechecked.is_link else InvalidPath
        raise error_class("cannot delete the directory: the path is no longer a directory", path=path.key)
    if isinstance(rechecked, StatusError) and not (yield from server_traits()).lists_links_as_links:
        raise ambiguous_link_error(path)
    return (yield from with_links_detected(entries))


def _delete_entries(call: SessionCall, paths: Sequence[tuple[RemotePath, bool]]) -> list[SFTPBackendError]:
    """Delete files and links, and return the errors."""
    deletions = (delete(path, missing_ok=True, is_listed=is_listed) for path, is_listed in paths)
    outcomes = call(lambda scheduler: _raise_if_unavailable(scheduler.run_many(deletions, limit=256)))
    return [outcome for outcome in outcomes if isinstance(outcome, SFTPBackendError)]


def _remove_directories(call: SessionCall, folders: Sequence[RemotePath]) -> list[SFTPBackendError]:
    """Remove empty directories together, the deepest first, and return the errors."""
    deepest_first = sorted(folders, key=lambda folder: folder.key.count("/"), reverse=True)
    answers = call(lambda scheduler: scheduler.run(request_all([RemoveDir(folder.native) for folder in deepest_first])))
    failures: list[SFTPBackendError] = []
    for folder, answer in zip(deepest_first, answers, strict=True):
        if isinstance(answer, StatusError) and not answer.missing:  # the server may have changed the order: try again
            failures += _remove_directory(call, folder)
    return failures


def _remove_directory(call: SessionCall, folder: RemotePath) -> list[SFTPBackendError]:
    """Remove a directory after a refusal, and return the error if any."""
    try:
        call(lambda scheduler: scheduler.run(delete_folder(folder, missing_ok=True)))
    except BackendUnavailable:
        raise
    except SFTPBackendError as error:
        return [error]
    return []
