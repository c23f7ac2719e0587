"""Detect links on servers whose replies may describe the targets instead.

READDIR of some servers, and LSTAT of others, return the attributes of a link's target. READLINK is refused for anything
but a link, and is therefore sent together with LSTAT unless LSTAT of the server is known to describe links.
"""

from __future__ import annotations

import stat
from dataclasses import replace
from typing import Final, cast

from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import LStat, ReadLink, Request
from airflow_sftp_backend.backend._protocol.scheduler import Operation, request_all, server_traits
from airflow_sftp_backend.backend._receive_limits import ListingTally
from airflow_sftp_backend.backend.errors import SFTPBackendError, StatusError

from .attributes import fall_back_to_stat
from .listing import Listing, is_missing, list_folder

_LINK: Final = stat.S_IFLNK | 0o777


def get_own_attributes(path: RemotePath) -> Operation[tuple[Attributes | StatusError, bool]]:
    """Return the attributes of a path without following a link.

    :param path: the path; its last segment is not followed
    :returns: its attributes or the refusal, and whether the type is certain: False for a directory that may be a link
    """
    # The server may refuse LSTAT, or follow links in it.
    (own_answer,) = yield from lstat_all([path])
    answer = yield from fall_back_to_stat(path, own_answer)
    if isinstance(own_answer, Attributes) or isinstance(answer, StatusError) or not answer.is_folder:
        return answer, True
    if (yield from server_traits()).lists_links_as_links:
        # LSTAT was refused, but the listing of the parent describes links
        for entry, attributes in (yield from list_folder(path.parent, ListingTally(path.parent.key))):
            if entry == path:
                return attributes, True
    return answer, False


def lstat_all(paths: list[RemotePath]) -> Operation[list[Attributes | StatusError]]:
    """Request the attributes of many paths without following links. One round trip.

    :param paths: the paths; their last segments are not followed
    :returns: the reply to LSTAT for each path; attributes of a link also if only READLINK shows the link
    """
    if (yield from server_traits()).lstat_shows_links:
        return (yield from request_all([LStat(path.native) for path in paths]))
    requests: list[Request[Attributes] | Request[str]] = [LStat(path.native) for path in paths]
    answers = yield from request_all([*requests, *(ReadLink(path.native) for path in paths)])
    own_answers = cast("list[Attributes | StatusError]", answers[: len(paths)])
    return [
        _as_link(answer) if _is_link_target(path, target) else answer
        for path, answer, target in zip(paths, own_answers, answers[len(paths) :], strict=True)
    ]


def renames_links(path: RemotePath) -> Operation[bool]:
    """Return whether the server renames a link itself.

    One round trip, none on a known server.

    :param path: a link found by `lstat_all`
    :returns: False if LSTAT describes the link's target: such a server (ProFTPD) also renames the target
    """
    if (yield from server_traits()).lstat_shows_links:
        return True
    (answer,) = yield from request_all([LStat(path.native)])
    return isinstance(answer, StatusError) or answer.mode is None or answer.is_link


def _is_link_target(path: RemotePath, target: object) -> bool:
    """Return whether a READLINK reply proves a link."""
    # For other files, some servers return the name itself
    return isinstance(target, str) and target not in ("", path.native, path.name)


def _as_link(answer: Attributes | StatusError) -> Attributes:
    return replace(answer, mode=_LINK) if isinstance(answer, Attributes) else Attributes(mode=_LINK)


def with_links_detected(entries: Listing) -> Operation[Listing]:
    """Request LSTAT for entries listed as directories.

    :param entries: the entries of a listing
    :returns: the entries with their own attributes, without directories removed meanwhile
    :raises SFTPBackendError: if the server does not distinguish links from directories
    """
    # Needed if the server may list links as their targets.
    if (yield from server_traits()).lists_links_as_links:
        return entries
    folders = [index for index, (_, attributes) in enumerate(entries) if attributes.is_folder]
    answers = dict(zip(folders, (yield from lstat_all([entries[index][0] for index in folders])), strict=True))
    checked: Listing = []
    for index, (path, attributes) in enumerate(entries):
        answer = answers.get(index, attributes)
        if isinstance(answer, Attributes):
            checked.append((path, answer))
        elif not (yield from is_missing(path, answer)):
            raise ambiguous_link_error(path)
    return checked


def ambiguous_link_error(path: RemotePath) -> SFTPBackendError:
    """Create the error for a directory that may be a link.

    The caller neither enters nor empties it.
    """
    return SFTPBackendError(
        "cannot determine whether this directory is a link: the server refuses LSTAT. The directory is neither searched"
        " nor emptied. Allow LSTAT on the server, or use a call without recursion",
        path=path.key,
    )
