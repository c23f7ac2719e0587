"""List the two ends of a sync.

A listing contains no temporary files of this package.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from airflow_sftp_backend._file_filters import FileFilters
from airflow_sftp_backend.backend import BackendUnavailable, FileInfo, InvalidPath, NotFound
from airflow_sftp_backend.backend._paths import is_temp_name, name_digest, original_stem, temp_or_backup_digest
from airflow_sftp_backend.operators._object_storage import (
    FileState,
    is_url,
    key_below,
    object_path,
    sha256_if_equal,
    time_of_object,
    without_trailing_slash,
)
from airflow_sftp_backend.operators._transfer_planning import key_error

from .spellings import parents
from .tree_differences import TreeListing

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend

_MAX_TIME = 1 << 32  # SFTP has times from 1970 to 2106


def list_server(backend: SFTPBackend, path: str, filters: FileFilters, *, restores: bool = False) -> TreeListing | None:
    """List a directory on the server. One round trip for each level.

    :param backend: the backend of the task
    :param path: the directory
    :param filters: the filters of the sync
    :param restores: restore the files of interrupted replacements
    :returns: the entries; None if the directory does not exist
    :raises InvalidPath: if the path is a file
    """
    from airflow_sftp_backend.backend._tree_queries import list_tree  # not needed to parse DAGs

    top = backend.resolve(path).key
    start = len(top) + 1 if top else 0
    try:
        tree = list_tree(backend, path)
    except NotFound:
        return None
    files = {key[start:]: FileState(size, mtime) for key, (size, mtime) in tree.files.items()}
    backups = missing_files([key[start:] for key in tree.backups], files) if tree.backups else {}
    for place, relative in [*backups.items()]:
        if (info := _second_look(backend, f"{top}/{relative}" if top else relative, restores=restores)) is not None:
            files[relative] = FileState.of_remote(info)
            del backups[place]
    return _filtered(
        files,
        filters,
        others=frozenset(key[start:] for key in tree.others),
        links_to_files=frozenset(key[start:] for key in tree.links_to_files),
        directories=frozenset(key[start:] for key in tree.folders),
        backups=backups,
    )


def missing_files(backups: Iterable[str], files: Collection[str]) -> dict[tuple[str, str], str]:
    """Find the files that are not listed, but have a backup.

    A server without posix-rename replaces a file by two renames, and a listing between them lacks the file.

    :param backups: paths of listed backups
    :param files: the listed files
    :returns: the path of each missing file, by its directory and the digest of its name; a long name may be cut
    """
    missing = {}
    for backup in backups:
        directory, _, name = backup.rpartition("/")
        stem, digest = original_stem(name), temp_or_backup_digest(name)
        path = f"{directory}/{stem}" if directory else stem
        if name_digest(stem) != digest:  # the name was too long for the backup
            matches = (
                file for file in files if file.startswith(path) and name_digest(file.rpartition("/")[2]) == digest
            )
            path = next(matches, path)
        if path not in files:
            missing[directory, digest] = path
    return missing


def _second_look(backend: SFTPBackend, key: str, *, restores: bool) -> FileInfo | None:
    """Return a file that was being replaced when its directory was listed."""
    (outcome,) = backend.get_file_info_many([key], return_exceptions=True)
    if isinstance(outcome, BackendUnavailable):
        raise outcome
    if isinstance(outcome, NotFound) and restores:
        with suppress(NotFound, InvalidPath):
            return backend.get_file_info(key)
    return outcome if isinstance(outcome, FileInfo) else None


def backend_of_url(url: str) -> SFTPBackend | None:
    """Return the backend of a URL.

    :param url: the URL
    :returns: the backend; None for a URL of another package
    """
    return getattr(object_path(url).fs, "backend", None)


def list_local(path: str, filters: FileFilters, *, restores: bool = False) -> TreeListing | None:
    """List a local directory, or the objects below a URL.

    Objects are listed with one request.

    :param path: the directory or URL
    :param filters: the filters of the sync
    :param restores: restore the files of interrupted replacements on another server
    :returns: the entries; None if nothing exists there
    :raises OSError: if a directory cannot be read, or if the path is a file
    """
    if not is_url(path):
        return _list_directory(path, filters)
    if (backend := backend_of_url(path)) is not None:  # links count
        return list_server(backend, object_path(path).path, filters, restores=restores)
    return _list_objects(path, filters)


def _list_directory(top: str, filters: FileFilters) -> TreeListing | None:
    if not os.path.lexists(top):
        return None
    files: dict[str, FileState] = {}
    others: dict[str, bool] = {}  # with whether the entry is a link to a file
    directories: set[str] = set()
    pending = [("", top)]
    while pending:
        directory, path = pending.pop()
        try:
            entries = os.scandir(path)
        except (FileNotFoundError, NotADirectoryError):
            if not directory:
                raise
            continue  # removed since its parent was listed
        with entries:
            for entry in entries:
                name = entry.name
                relative = f"{directory}/{name}" if directory else name
                if entry.is_dir(follow_symlinks=False):
                    directories.add(relative)
                    pending.append((relative, entry.path))
                elif not entry.is_file(follow_symlinks=False):
                    others[relative] = entry.is_file()
                elif not is_temp_name(name) and (state := _local_state(entry)) is not None:
                    files[relative] = state
    links_to_files = frozenset(path for path, is_file in others.items() if is_file)
    return _filtered(files, filters, others=others.keys(), links_to_files=links_to_files, directories=directories)


def _local_state(entry: os.DirEntry[str]) -> FileState | None:
    """Return the state of a file; None if the file was removed."""
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    seconds = status.st_mtime_ns // 1_000_000_000
    return FileState(status.st_size, seconds if 0 <= seconds < _MAX_TIME else None)


def _list_objects(url: str, filters: FileFilters) -> TreeListing | None:
    top = without_trailing_slash(url)
    start = object_path(top)
    root = start.path.rstrip("/")
    details = cast("dict[str, dict[str, Any]]", start.fs.find(root, detail=True))
    if root in details:
        raise NotADirectoryError(20, "an object, not a directory", url)
    files = {}
    for path, info in details.items():
        relative = key_below(path, root)
        if info.get("type", "file") == "file" and not is_temp_name(relative.rpartition("/")[2]):
            files[relative] = FileState(info.get("size"), _object_mtime(info))
    if not details:
        return None
    listing = _filtered(files, filters)
    errors = {path: error for path in files if (error := key_error(path, f"{top}/{path}")) is not None}
    return replace(
        listing,
        files={path: state for path, state in listing.files.items() if path not in errors},
        left_out=listing.left_out - errors.keys(),
        directories={parent for path in files.keys() - errors.keys() for parent in parents(path)},
        invalid=[error for path, error in errors.items() if path in listing.files],
    )


def _object_mtime(info: dict[str, Any]) -> float | None:
    """Return the time of an object in epoch seconds.

    None for an unknown time, and for a time that SFTP cannot carry.
    """
    time = time_of_object(info)
    seconds = 0.0 if time is None else time.timestamp()
    return seconds if 0 < seconds < _MAX_TIME else None


def _filtered(
    files: dict[str, FileState],
    filters: FileFilters,
    *,
    others: Set[str] = frozenset(),
    links_to_files: Set[str] = frozenset(),
    directories: Set[str] = frozenset(),
    backups: Mapping[tuple[str, str], str] = MappingProxyType({}),
) -> TreeListing:
    """Return a listing with the files that the filters accept."""
    # A link stays an obstacle even if the filters do not accept its name.
    left_out: Set[str] = frozenset()
    if filters:
        accepts = filters.accepting(["**"])
        accepted = {path: state for path, state in files.items() if accepts(path)}
        left_out, files = files.keys() - accepted.keys(), accepted
    return TreeListing(files, others, links_to_files, left_out, directories, backups)


# -- content ----------------------------------------------------------------------------------------------------------


def paths_of_equal_content(
    backend: SFTPBackend, source: TreeListing, target: TreeListing, ends: Callable[[str], tuple[str, str]]
) -> set[str]:
    """Compare the content of all files with equal sizes.

    :param backend: the backend of the task
    :param source: the source
    :param target: the target
    :param ends: returns the path on the server and the local path or URL of a file
    :returns: the files with equal content
    :raises BackendUnavailable: if the connection is lost
    """
    from airflow_sftp_backend.backend._files.samples import WHOLE_SIZE  # not needed to parse DAGs

    candidates = [
        path for path, state in source.files.items() if path in target.files and target.files[path].size == state.size
    ]
    both = {path: ends(path) for path in candidates}
    local = [path for path, (_, other) in both.items() if not is_url(other)]
    outcomes = backend.same_samples_many([both[path][::-1] for path in local], return_exceptions=True) if local else []
    remaining = both.keys() - set(local)
    equal: set[str] = set()
    for path, outcome in zip(local, outcomes, strict=True):
        if isinstance(outcome, BackendUnavailable):
            raise outcome
        if outcome is True:
            # Samples are the whole content of a small file.
            (equal if (source.files[path].size or 0) <= WHOLE_SIZE else remaining).add(path)
    return equal | {path for path in remaining if sha256_if_equal(backend, *both[path]) is not None}
