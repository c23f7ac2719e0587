"""Refuse a sync of overlapping directories."""

from __future__ import annotations

import os
import posixpath
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend.backend.config import DEFAULT_PORT
from airflow_sftp_backend.operators._object_storage import is_url, object_path

from .spellings import ANY_RULES

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SFTP_SCHEMES = ("sftp", "ssh")

Distinguishes = Callable[[str, str, str], bool]
"""Tells whether two names in a directory are separate entries: directory, name, name."""


def check_overlap(backend: SFTPBackend, server_path: str, other: str) -> None:
    """Check that the two ends of a sync are separate directories.

    :param backend: the backend of the task
    :param server_path: the directory on the server
    :param other: the local directory or URL
    :raises InvalidArgument: if one end is the other, or inside the other
    """
    overlaps = _url_overlaps if is_url(other) else _local_overlaps
    if overlaps(backend, backend.native_path(server_path), other):
        raise InvalidArgument(
            f"source and target overlap: {other!r} is the directory {backend.native_path(server_path)!r} on"
            f" {backend.address}, or one is inside the other; sync separate directories"
        )


def overlap(first: str, second: str, distinguishes: Distinguishes) -> bool:
    """Tell whether one absolute path contains the other.

    :param first: a path without links
    :param second: another path without links
    :param distinguishes: decides about names with different spellings
    :returns: True if they overlap
    """
    directory = "/"
    for name, other in zip(_segments(first), _segments(second), strict=False):
        if name != other and (ANY_RULES.fold(name) != ANY_RULES.fold(other) or distinguishes(directory, name, other)):
            return False
        directory = posixpath.join(directory, name)
    return True


def _segments(path: str) -> list[str]:
    return [segment for segment in posixpath.normpath(path).split("/") if segment]


# -- URLs -------------------------------------------------------------------------------------------------------------


def _url_overlaps(backend: SFTPBackend, native_path: str, url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme in _SFTP_SCHEMES:  # the file system of another package
        host, port = (parts.hostname or "").lower(), parts.port or DEFAULT_PORT
        if (host, port) != (backend.config.host.lower(), backend.config.port):
            return False
        return _overlap_on_server(backend, native_path, parts.path or "/")
    path = object_path(url)
    other: SFTPBackend | None = getattr(path.fs, "backend", None)  # the file system of this package
    return other is not None and _backends_overlap(backend, native_path, other, other.native_path(path.path))


def _backends_overlap(backend: SFTPBackend, native_path: str, other: SFTPBackend, other_native_path: str) -> bool:
    from airflow_sftp_backend.backend import _real_paths  # not needed to parse DAGs

    if not _real_paths.is_same_server(backend, other):
        return False
    path, other_path = _real_paths.real_path(backend, native_path), _real_paths.real_path(other, other_native_path)
    if not overlap(path, other_path, _server_distinguishes(backend)):
        return False
    if (backend.address, backend.config.username) == (other.address, other.config.username):
        return True
    # Users may have separate directories with equal paths.
    return _is_same_directory(
        min(path, other_path, key=lambda path: path.count("/")),
        lambda path: _real_paths.directory_mtime(backend, path),
        lambda path: _real_paths.directory_mtime(other, path),
    )


def _overlap_on_server(backend: SFTPBackend, native_path: str, other: str) -> bool:
    from airflow_sftp_backend.backend._real_paths import real_path  # not needed to parse DAGs

    return overlap(real_path(backend, native_path), real_path(backend, other), _server_distinguishes(backend))


def _server_distinguishes(backend: SFTPBackend) -> Distinguishes:
    """Return a function that asks the server."""
    from airflow_sftp_backend.backend import _real_paths  # not needed to parse DAGs

    def distinguishes(directory: str, name: str, other: str) -> bool:
        if not all(_real_paths.exists(backend, posixpath.join(directory, spelling)) for spelling in (name, other)):
            return True
        return _real_paths.is_listed(backend, directory, {name, other})

    return distinguishes


# -- local directories ------------------------------------------------------------------------------------------------


def _local_overlaps(backend: SFTPBackend, native_path: str, local: str) -> bool:
    from airflow_sftp_backend.backend import _real_paths  # not needed to parse DAGs

    has_local_name = backend.config.host.lower() in (*_LOOPBACK, socket.gethostname().lower())
    if not has_local_name and not _real_paths.leads_to_this_machine(backend):
        return False
    if not native_path.startswith("/"):  # relative to the login directory
        native_path = _real_paths.real_path(backend, native_path)
    if not overlap(os.path.realpath(native_path), os.path.realpath(local), _distinguishes_locally):
        return False
    # A server in a container may have other directories under the same paths.
    return _is_same_directory(native_path, lambda path: _real_paths.directory_mtime(backend, path), _local_mtime)


def _distinguishes_locally(directory: str, name: str, other: str) -> bool:
    try:
        return not os.path.samefile(os.path.join(directory, name), os.path.join(directory, other))
    except OSError:
        return True


def _local_mtime(path: str) -> int | None:
    try:
        return int(os.stat(path).st_mtime)
    except OSError:
        return None


def _is_same_directory(path: str, mtime: Callable[[str], int | None], other_mtime: Callable[[str], int | None]) -> bool:
    """Compare the times of a directory in two views.

    If the directory does not exist, its nearest existing parent counts.
    """
    while (before := mtime(path)) is None and path != "/":
        path = posixpath.dirname(path)
    other_time = other_mtime(path)
    after = mtime(path)  # the directory may change meanwhile
    return before is None or after is None or (other_time is not None and before <= other_time <= after)
