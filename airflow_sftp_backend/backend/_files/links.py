"""Links told from what they lead to, on servers that do not tell them apart in every reply.

READDIR of some servers describes a link as what it leads to, and LSTAT of others does. READLINK is refused for what is
no link, so it is sent along with LSTAT where the server is not known to answer this for the link.
"""

from __future__ import annotations

import stat
from dataclasses import replace
from typing import Final, cast

from airflow_sftp_backend.backend._limits import ListingTally
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import LStat, ReadLink, Request
from airflow_sftp_backend.backend._protocol.scheduler import Operation, request_all, server_traits
from airflow_sftp_backend.backend.errors import SFTPBackendError, StatusError

from .operations import Listing, fall_back_to_stat, is_missing, list_folder

_LINK: Final = stat.S_IFLNK | 0o777


def get_own_attributes(path: RemotePath) -> Operation[tuple[Attributes | StatusError, bool]]:
    """Find what stands under a path, a link as a link, also where LSTAT is refused or follows links.

    :param path: the path, of which the last segment is not followed
    :returns: its attributes, or why nothing is shown; and whether a link would have been told from a folder
    """
    (own_answer,) = yield from lstat_all([path])
    answer = yield from fall_back_to_stat(path, own_answer)
    if isinstance(own_answer, Attributes) or isinstance(answer, StatusError) or not answer.is_folder:
        return answer, True
    if (yield from server_traits()).lists_links_as_links:
        for entry, attributes in (yield from list_folder(path.parent, ListingTally(path.parent.key))):
            if entry == path:
                return attributes, True
    return answer, False


def lstat_all(paths: list[RemotePath]) -> Operation[list[Attributes | StatusError]]:
    """Ask for the attributes of many paths themselves. One round trip.

    :param paths: the paths, of which the last segments are not followed
    :returns: the answer to LSTAT for each; attributes of a link also where only READLINK shows that it is one
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
    """Tell whether the server may be trusted to rename a link itself. One round trip, none on a known server.

    :param path: a link, as `lstat_all` has found it
    :returns: False if LSTAT describes what it leads to: ProFTPD, where this was seen, also renames that
    """
    if (yield from server_traits()).lstat_shows_links:
        return True
    (answer,) = yield from request_all([LStat(path.native)])
    return isinstance(answer, StatusError) or answer.mode is None or answer.is_link


def _is_link_target(path: RemotePath, target: object) -> bool:
    """Tell whether a READLINK shows a link: some servers answer with the name itself for what is no link."""
    return isinstance(target, str) and target not in ("", path.native, path.name)


def _as_link(answer: Attributes | StatusError) -> Attributes:
    return replace(answer, mode=_LINK) if isinstance(answer, Attributes) else Attributes(mode=_LINK)


def with_links_detected(entries: Listing) -> Operation[Listing]:
    """Ask again (LSTAT) for the entries listed as folders, if the server may list a link as what it leads to.

    :returns: the entries with their own attributes, without folders that are gone by now
    :raises SFTPBackendError: if the server does not say which of the folders are links
    """
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
    """The error for a folder that may be a link, and so is neither entered nor emptied."""
    return SFTPBackendError(
        "cannot tell whether this folder is a link: the server refuses LSTAT. It is therefore neither searched nor"
        " emptied; have LSTAT allowed on the server, or work on the folder itself without recursion",
        path=path.key,
    )
