"""Compare directories by their real paths on servers."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from airflow_sftp_backend.backend._files.listing import list_folder
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import ReadLink, RealPath, Stat
from airflow_sftp_backend.backend._protocol.scheduler import Operation, request_all
from airflow_sftp_backend.backend._receive_limits import ListingTally

from .errors import SFTPBackendError

if TYPE_CHECKING:
    from .sync import SFTPBackend

_MAX_LINKS: Final = 40  # as Linux


def is_same_server(backend: SFTPBackend, other: SFTPBackend) -> bool:
    """Tell whether two backends are connected to one server. Connects both.

    Name, address or host key must be equal: one server may have several names.

    :param backend: a backend
    :param other: another backend
    :returns: True for one server; its users may still have separate directories
    """
    sessions = backend._session, other._session
    addresses, other_addresses = (session.tcp_addresses() for session in sessions)
    if addresses is not None and other_addresses is not None:
        _, server = addresses
        _, other_server = other_addresses
        if backend.address == other.address or server == other_server:
            return True
    keys = [info.host_key_fingerprint for session in sessions if (info := session.info) is not None]
    return len(keys) == 2 and keys[0] == keys[1]


def leads_to_this_machine(backend: SFTPBackend) -> bool:
    """Tell whether the connection of a backend leads to this machine.

    Connects if necessary.

    :param backend: the backend
    :returns: True if both ends have the same address; False for another machine, and through a jump host
    """
    addresses = backend._session.tcp_addresses()
    return addresses is not None and addresses[0][0] == addresses[1][0]


def real_path(backend: SFTPBackend, native_path: str) -> str:
    """Resolve a path and its links on a server.

    Two round trips, and one for each link that REALPATH of the server leaves.

    :param backend: the server
    :param native_path: the path, which may be missing
    :returns: the absolute path; a missing end is kept
    """
    return backend._session.call(lambda scheduler: scheduler.run(_real_path(native_path)), idempotent=True)


def _real_path(native_path: str) -> Operation[str]:
    """Resolve a path as described by `real_path`."""
    path = native_path
    # Many servers refuse REALPATH of a missing path, so the parents are resolved too.
    prefixes = list(_prefixes(native_path))[::-1]
    answers = yield from request_all([RealPath(prefix) for prefix in prefixes])
    for prefix, answer in zip(prefixes, answers, strict=True):
        if isinstance(answer, str):
            path = posixpath.join(answer, native_path[len(prefix) :].lstrip("/"))
            break
    for _ in range(_MAX_LINKS):
        path = posixpath.normpath(path).replace("//", "/", 1)
        prefixes = list(_prefixes(path))
        targets = yield from request_all([ReadLink(prefix) for prefix in prefixes])
        links = [
            (prefix, answer)
            for prefix, answer in zip(prefixes, targets, strict=True)
            # For other files, some servers return the name itself.
            if isinstance(answer, str) and answer not in ("", prefix, posixpath.basename(prefix))
        ]
        if not links:
            break
        link, target = links[0]
        path = posixpath.join(posixpath.dirname(link), target, path[len(link) :].lstrip("/"))
    return path


def _prefixes(path: str) -> Iterator[str]:
    """Yield the parents of a path from the top, and the path."""
    for index, character in enumerate(path):
        if character == "/" and path[:index].strip("/"):
            yield path[:index]
    yield path


def directory_mtime(backend: SFTPBackend, native_path: str) -> int | None:
    """Return the time of a directory on a server. One round trip.

    :param backend: the server
    :param native_path: the directory
    :returns: seconds since 1970; None if the directory does not exist or has no time
    """
    attributes = _attributes(backend, native_path)
    return None if attributes is None else attributes.mtime


def exists(backend: SFTPBackend, native_path: str) -> bool:
    """Tell whether a path exists on a server. One round trip.

    :param backend: the server
    :param native_path: the path
    :returns: True for any file or directory
    """
    return _attributes(backend, native_path) is not None


def _attributes(backend: SFTPBackend, native_path: str) -> Attributes | None:
    (answer,) = backend._session.call(
        lambda scheduler: scheduler.run(request_all([Stat(native_path)])), idempotent=True
    )
    return answer if isinstance(answer, Attributes) else None


def is_listed(backend: SFTPBackend, directory: str, names: set[str]) -> bool:
    """Tell whether a directory of a server lists all of some names.

    :param backend: the server
    :param directory: native path of the directory
    :param names: the names
    :returns: False if the directory cannot be listed
    """
    path = RemotePath(directory, directory)
    try:
        entries = backend._session.call(
            lambda scheduler: scheduler.run(list_folder(path, ListingTally(directory))), idempotent=True
        )
    except SFTPBackendError:
        return False
    return names <= {entry.name for entry, _ in entries}
