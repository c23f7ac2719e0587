"""Refuse a sync of overlapping directories."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend.backend.config import DEFAULT_PORT
from airflow_sftp_backend.operators._object_storage import is_url, object_path

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SFTP_SCHEMES = ("sftp", "ssh")


def check_overlap(backend: SFTPBackend, server_path: str, other: str) -> None:
    """Check that the two ends of a sync are separate directories.

    :param backend: the backend of the task
    :param server_path: the directory on the server
    :param other: the local directory or URL
    :raises InvalidArgument: if one end is the other, or inside the other
    """
    overlaps = _url_overlaps if is_url(other) else _local_overlaps
    if overlaps(backend, server_path, other):
        raise InvalidArgument(
            f"source and target overlap: {other!r} is the directory {backend.native_path(server_path)!r} on"
            f" {backend.address}, or one is inside the other; sync separate directories"
        )


def is_inside(path: str, directory: str) -> bool:
    """Tell whether a normalized path is a directory, or inside that directory.

    :param path: the path
    :param directory: the directory
    :returns: True for the directory itself too
    """
    return path == directory or path.startswith(f"{directory.rstrip('/')}/")


def _overlap(first: str, second: str) -> bool:
    first, second = os.path.normpath(first), os.path.normpath(second)
    return is_inside(first, second) or is_inside(second, first)


def _url_overlaps(backend: SFTPBackend, server_path: str, url: str) -> bool:
    native_path = backend.native_path(server_path)
    parts = urlsplit(url)
    if parts.scheme in _SFTP_SCHEMES:  # the file system of another package
        host, port = (parts.hostname or "").lower(), parts.port or DEFAULT_PORT
        is_same_server = (host, port) == (backend.config.host.lower(), backend.config.port)
        return is_same_server and _overlap(native_path, parts.path or "/")
    path = object_path(url)
    other: SFTPBackend | None = getattr(path.fs, "backend", None)  # the file system of this package
    if other is None or getattr(other, "address", None) != backend.address:
        return False
    return _overlap(native_path, other.native_path(path.path))


def _local_overlaps(backend: SFTPBackend, server_path: str, local: str) -> bool:
    native_path, local = backend.native_path(server_path), os.path.realpath(local)
    if backend.config.host.lower() not in (*_LOOPBACK, socket.gethostname().lower()):
        return False
    if not native_path.startswith("/") or not _overlap(os.path.realpath(native_path), local):
        return False
    # A server in a container may have other directories under the same paths.
    return _is_same_machine(backend, server_path)


def _is_same_machine(backend: SFTPBackend, server_path: str) -> bool:
    """Compare the time of a directory at both ends.

    If the directory does not exist, its nearest existing parent counts.
    """
    from airflow_sftp_backend.backend._tree_queries import directory_mtime  # late import, because it loads the engine

    key = backend.resolve(server_path).key
    while (mtime := directory_mtime(backend, key)) is None and key:
        key = key.rpartition("/")[0]
    try:
        return mtime == int(os.stat(backend.native_path(key)).st_mtime)
    except OSError:
        return False
