"""Examine files on the server by their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from airflow_sftp_backend.backend import BackendUnavailable, FileInfo, InvalidPath, NotFound, SFTPBackendError

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend

InfoOrFailure: TypeAlias = FileInfo | SFTPBackendError | OSError

_MIN_PATHS_TO_LIST: Final = 1000
"""Number of paths of one directory that take a listing: fewer would cost less than a listing of a large directory."""


def file_infos(backend: SFTPBackend, paths: Sequence[str]) -> list[InfoOrFailure]:
    """Return the attributes of files.

    Many paths of one directory take one listing, all others one round trip.

    :param backend: the backend of the task
    :param paths: keys of files
    :returns: for each path, the file or the failure
    :raises BackendUnavailable: if the connection is lost during a listing
    """
    if len(paths) < _MIN_PATHS_TO_LIST:
        return backend.get_file_info_many(paths, return_exceptions=True) if paths else []
    found: dict[str, InfoOrFailure] = {**_listed_files(backend, paths)}
    # A file that is not listed may exist all the same: the server may ignore case, or hide names.
    unlisted = [key for key in dict.fromkeys(paths) if key not in found]
    if unlisted:
        outcomes = backend.get_file_info_many(unlisted, return_exceptions=True)
        found |= zip(unlisted, outcomes, strict=True)
    return [found[key] for key in paths]


def existing_files(backend: SFTPBackend, paths: Sequence[str]) -> dict[str, FileInfo]:
    """Find the existing files among paths.

    Many paths of one directory take one listing, all others one round trip.

    :param backend: the backend of the task
    :param paths: keys of files
    :returns: the files by path; missing paths and directories are left out
    :raises SFTPBackendError: if the server refuses to examine a path
    """
    files: dict[str, FileInfo] = {}
    for outcome in file_infos(backend, paths):
        if isinstance(outcome, FileInfo):
            files[outcome.path] = outcome
        elif not isinstance(outcome, NotFound | InvalidPath):
            raise outcome
    return files


def _listed_files(backend: SFTPBackend, paths: Sequence[str]) -> dict[str, FileInfo]:
    """List directories with many of the paths; return the files found.

    A directory that cannot be listed is skipped.
    """
    directories: dict[str, set[str]] = {}
    for path in paths:
        directories.setdefault(path.rpartition("/")[0], set()).add(path)
    files: dict[str, FileInfo] = {}
    for directory, wanted in directories.items():
        if len(wanted) < _MIN_PATHS_TO_LIST:
            continue
        try:
            for info in backend.list_files(directory):
                if info.path in wanted:
                    files[info.path] = info
        except BackendUnavailable:
            raise
        except SFTPBackendError:
            continue  # a server that refuses the listing may still permit STAT of each file
    return files
