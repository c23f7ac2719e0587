"""Attributes of paths: generators of requests without a socket (see `_protocol.scheduler`).

Servers report most refusals as a bare failure. So an operation sends its request first, and explains a refusal with
further requests afterwards. It never checks in advance a condition that the request itself reports.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from dataclasses import replace

from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import (
    Close,
    LStat,
    OpenDir,
    ReadDir,
    Stat,
)
from airflow_sftp_backend.backend._protocol.scheduler import (
    Operation,
    request,
    request_all,
    send,
    server_traits,
)
from airflow_sftp_backend.backend.errors import (
    SFTPBackendError,
    StatusCode,
    StatusError,
)

logger = logging.getLogger(__name__)


def try_stat(path: RemotePath, *, follow: bool = False) -> Operation[Attributes | StatusError]:
    """Return the attributes of a path or the refusal.

    Follows links only with ``follow``.
    """
    (answer,) = yield from request_all([Stat(path.native) if follow else LStat(path.native)])
    if not follow:
        answer = yield from fall_back_to_stat(path, answer)
    return answer if isinstance(answer, StatusError) else (yield from with_file_type(path, answer))


def fall_back_to_stat(path: RemotePath, answer: Attributes | StatusError) -> Operation[Attributes | StatusError]:
    """Fall back to STAT if LSTAT is refused.

    :param path: the path
    :param answer: the reply to LSTAT of ``path``
    :returns: the reply, or the reply to STAT if only STAT finds the path or reports it missing
    """
    # Some servers forbid or do not support LSTAT.
    if isinstance(answer, Attributes) or answer.missing:
        return answer
    (followed,) = yield from request_all([Stat(path.native)])
    return followed if isinstance(followed, Attributes) or followed.missing else answer


def parent_is_missing(path: RemotePath, refused: StatusError) -> Operation[bool]:
    """Determine whether a missing parent may explain a refusal."""
    if refused.missing:
        return True
    if refused.code != StatusCode.FAILURE or (yield from server_traits()).reports_no_such_file:
        return False
    return isinstance((yield from try_stat(path.parent, follow=True)), StatusError)


def with_file_type(path: RemotePath, attributes: Attributes) -> Operation[Attributes]:
    """Add the file type.

    If the server sends none, a path that can be listed is a directory.
    """
    if attributes.mode is not None:
        return attributes
    try:
        handle = yield from request(OpenDir(path.native))
        try:
            yield from request(ReadDir(handle))  # some servers accept OPENDIR for a file and refuse only READDIR
        finally:
            yield from close_quietly(handle)
    except StatusError:
        return attributes
    return replace(attributes, mode=stat.S_IFDIR)


def find_blocking_file(path: RemotePath) -> Operation[RemotePath | None]:
    """Return the nearest parent that is a file, or None."""
    ancestors = list(ancestors_of(path))
    for ancestor, attributes in zip(
        ancestors, (yield from request_all([Stat(a.native) for a in ancestors])), strict=True
    ):
        if isinstance(attributes, Attributes) and attributes.mode is not None and not attributes.is_folder:
            return ancestor
    return None


def ancestors_of(path: RemotePath) -> Iterator[RemotePath]:
    """Yield the parents of a path, the nearest first, without the root."""
    while not (path := path.parent).is_root:
        yield path


def close_quietly(handle: bytes) -> Operation[None]:
    """Close a handle that was only read, without waiting."""
    # Its reply does not matter
    try:
        yield from send(Close(handle))
    except SFTPBackendError:  # the handle ends with the connection
        logger.debug("the connection ended before a handle was closed")
