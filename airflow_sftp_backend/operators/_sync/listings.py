"""List the two ends of a sync.

A listing contains neither temporary files of this package nor excluded names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from airflow_sftp_backend._file_filters import FileFilters
from airflow_sftp_backend.backend import BackendUnavailable
from airflow_sftp_backend.backend._paths import is_temp_name
from airflow_sftp_backend.operators._object_storage import (
    FileState,
    is_url,
    object_path,
    sha256_if_equal,
    time_of_object,
)
from airflow_sftp_backend.operators._transfer_planning import local_path_below

from .tree_differences import TreeListing

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend

_MAX_TIME = 1 << 32  # SFTP has times from 1970 to 2106


def list_server(backend: SFTPBackend, path: str, filters: FileFilters) -> TreeListing | None:
    """List a directory on the server. One round trip for each level.

    :param backend: the backend of the task
    :param path: the directory
    :param filters: the filters of the sync
    :returns: the entries; None if the directory does not exist
    :raises InvalidPath: if the path is a file
    """
    from airflow_sftp_backend.backend import NotFound
    from airflow_sftp_backend.backend._tree_queries import list_tree  # late import, because it loads the engine

    top = backend.resolve(path).key
    start = len(top) + 1 if top else 0
    try:
        tree = list_tree(backend, path)
    except NotFound:
        return None
    files = ((info.path[start:], FileState.of_remote(info)) for info in tree.files)
    return _filtered(files, (key[start:] for key in tree.others), filters)


def list_local(path: str, filters: FileFilters) -> TreeListing | None:
    """List a local directory, or the objects below a URL.

    Objects are listed with one request.

    :param path: the directory or URL
    :param filters: the filters of the sync
    :returns: the entries; None if nothing exists there
    :raises OSError: if a directory cannot be read, or if the path is a file
    """
    return _list_objects(path, filters) if is_url(path) else _list_directory(path, filters)


def _list_directory(top: str, filters: FileFilters) -> TreeListing | None:
    if not os.path.lexists(top):
        return None
    files: list[tuple[str, FileState]] = []
    others: list[str] = []
    pending = [""]
    while pending:
        directory = pending.pop()
        with os.scandir(os.path.join(top, directory)) as entries:
            for entry in entries:
                relative = f"{directory}/{entry.name}" if directory else entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append(relative)
                elif entry.is_file(follow_symlinks=False):
                    files.append((relative, _local_state(entry)))
                else:
                    others.append(relative)
    return _filtered(files, others, filters)


def _local_state(entry: os.DirEntry[str]) -> FileState:
    status = entry.stat(follow_symlinks=False)
    seconds = status.st_mtime_ns // 1_000_000_000
    return FileState(status.st_size, seconds if 0 <= seconds < _MAX_TIME else None)


def _list_objects(url: str, filters: FileFilters) -> TreeListing | None:
    start = object_path(url.rstrip("/"))
    if (server := getattr(start.fs, "backend", None)) is not None:  # the file system of this package: links count
        return list_server(server, start.path, filters)
    root = start.path.rstrip("/")
    details = cast("dict[str, dict[str, Any]]", start.fs.find(root, detail=True))
    if root in details:
        raise NotADirectoryError(20, "an object, not a directory", url)
    files = (
        (path.removeprefix(root).lstrip("/"), FileState(info.get("size"), _object_mtime(info)))
        for path, info in details.items()
        if info.get("type", "file") == "file"
    )
    return _filtered(files, (), filters) if details else None


def _object_mtime(info: dict[str, Any]) -> float | None:
    """Return the time of an object in epoch seconds.

    None for an unknown time, and for a time that SFTP cannot carry.
    """
    time = time_of_object(info)
    seconds = 0.0 if time is None else time.timestamp()
    return seconds if 0 < seconds < _MAX_TIME else None


def _filtered(files: Iterable[tuple[str, FileState]], others: Iterable[str], filters: FileFilters) -> TreeListing:
    accepts = filters.accepting(["**"])
    return TreeListing(
        {path: state for path, state in files if not is_temp_name(path.rpartition("/")[2]) and accepts(path)},
        # A link stays an obstacle even if the filters do not accept its name.
        frozenset(others),
    )


# -- paths ------------------------------------------------------------------------------------------------------------


def server_path_of(backend: SFTPBackend, top: str) -> Callable[[str], str]:
    """Return a conversion from paths of a listing to server paths.

    :param backend: the backend of the task
    :param top: the directory on the server
    :returns: the function
    """
    prefix = backend.resolve(top).key
    return lambda path: f"{prefix}/{path}" if prefix else path


def local_path_of(top: str) -> Callable[[str], str]:
    """Return a conversion from paths of a listing to local paths.

    :param top: the local directory or URL
    :returns: the function; raises InvalidArgument for a name that is not valid for a local file
    """
    return lambda path: local_path_below(top, path)


def local_exists(path: str) -> bool:
    """Tell whether an object or a local path exists.

    A dangling link exists.
    """
    return object_path(path).exists() if is_url(path) else os.path.lexists(path)


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
    from airflow_sftp_backend.backend._files.samples import WHOLE_SIZE  # late import, because it loads the engine

    candidates = [
        path for path, state in source.files.items() if path in target.files and target.files[path].size == state.size
    ]
    local = [path for path in candidates if not is_url(ends(path)[1])]
    pairs = [ends(path)[::-1] for path in local]
    outcomes = backend.same_samples_many(pairs, return_exceptions=True) if pairs else []
    remaining = {path for path in candidates if is_url(ends(path)[1])}
    equal: set[str] = set()
    for path, outcome in zip(local, outcomes, strict=True):
        if isinstance(outcome, BackendUnavailable):
            raise outcome
        if outcome is True:
            # Samples are the whole content of a small file.
            (equal if (source.files[path].size or 0) <= WHOLE_SIZE else remaining).add(path)
    return equal | {path for path in remaining if sha256_if_equal(backend, *ends(path)) is not None}
