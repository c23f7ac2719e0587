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

from .operations import Listing, is_missing, list_folder, or_stat

_LINK: Final = stat.S_IFLNK | 0o777


def own_attributes(place: RemotePath) -> Operation[tuple[Attributes | StatusError, bool]]:
    """Find what stands under a path, a link as a link, also where LSTAT is refused or follows links.

    :param place: the path, of which the last segment is not followed
    :returns: its attributes, or why nothing is shown; and whether a link would have been told from a folder
    """
    (own,) = yield from lstat_all([place])
    found = yield from or_stat(place, own)
    if isinstance(own, Attributes) or isinstance(found, StatusError) or not found.is_folder:
        return found, True
    if (yield from server_traits()).lists_links_as_links:
        for entry, attributes in (yield from list_folder(place.parent, ListingTally(place.parent.key))):
            if entry == place:
                return attributes, True
    return found, False


def lstat_all(places: list[RemotePath]) -> Operation[list[Attributes | StatusError]]:
    """Ask for the attributes of many paths themselves. One round trip.

    :param places: the paths, of which the last segments are not followed
    :returns: the answer to LSTAT for each; attributes of a link also where only READLINK shows that it is one
    """
    if (yield from server_traits()).lstat_shows_links:
        return (yield from request_all([LStat(place.native) for place in places]))
    requests: list[Request[Attributes] | Request[str]] = [LStat(place.native) for place in places]
    answers = yield from request_all([*requests, *(ReadLink(place.native) for place in places)])
    owns = cast("list[Attributes | StatusError]", answers[: len(places)])
    return [
        _as_link(own) if _is_target(place, target) else own
        for place, own, target in zip(places, owns, answers[len(places) :], strict=True)
    ]


def renames_links(place: RemotePath) -> Operation[bool]:
    """Tell whether the server may be trusted to rename a link itself. One round trip, none on a known server.

    :param place: a link, as `lstat_all` has found it
    :returns: False if LSTAT describes what it leads to: ProFTPD, where this was seen, also renames that
    """
    if (yield from server_traits()).lstat_shows_links:
        return True
    (own,) = yield from request_all([LStat(place.native)])
    return isinstance(own, StatusError) or own.mode is None or own.is_link


def _is_target(place: RemotePath, target: object) -> bool:
    """Tell whether a READLINK shows a link: some servers answer with the name itself for what is no link."""
    return isinstance(target, str) and target not in ("", place.native, place.name)


def _as_link(own: Attributes | StatusError) -> Attributes:
    return replace(own, mode=_LINK) if isinstance(own, Attributes) else Attributes(mode=_LINK)


def with_links_told(entries: Listing) -> Operation[Listing]:
    """Ask again (LSTAT) for the entries listed as folders, if the server may list a link as what it leads to.

    :returns: the entries with their own attributes, without folders that are gone by now
    :raises SFTPBackendError: if the server does not say which of the folders are links
    """
    if (yield from server_traits()).lists_links_as_links:
        return entries
    folders = [index for index, (_, attributes) in enumerate(entries) if attributes.is_folder]
    answers = dict(zip(folders, (yield from lstat_all([entries[index][0] for index in folders])), strict=True))
    told: Listing = []
    for index, (place, attributes) in enumerate(entries):
        answer = answers.get(index, attributes)
        if isinstance(answer, Attributes):
            told.append((place, answer))
        elif not (yield from is_missing(place, answer)):
            raise unknown_link(place)
    return told


def unknown_link(place: RemotePath) -> SFTPBackendError:
    """The error for a folder that may be a link, and so is neither entered nor emptied."""
    return SFTPBackendError(
        "cannot tell whether this folder is a link: the server refuses LSTAT. It is therefore neither searched nor"
        " emptied; have LSTAT allowed on the server, or work on the folder itself without recursion",
        path=place.key,
    )
