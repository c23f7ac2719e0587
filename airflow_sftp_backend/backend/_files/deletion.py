"""Deletion of one file, one link or one empty folder.

Where the server is not known to check the type, what has the name is looked at first: some servers remove folders by
REMOVE and files by RMDIR, follow links in RMDIR, or remove a folder with all it holds.
"""

from __future__ import annotations

from collections.abc import Callable

from airflow_sftp_backend.backend._limits import ListedNames
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import OpenDir, ReadDir, Remove, RemoveDir
from airflow_sftp_backend.backend._protocol.scheduler import Operation, request, server_traits
from airflow_sftp_backend.backend.errors import DirectoryNotEmpty, InvalidPath, NotFound, StatusError, from_status

from .links import own_attributes
from .operations import close_quietly, is_missing, with_type


def delete(
    place: RemotePath,
    *,
    missing_ok: bool,
    is_listed: bool = False,
    before: Callable[[], Operation[None]] | None = None,
) -> Operation[None]:
    """Remove a file, or a link and not its target.

    :param place: what to remove
    :param missing_ok: whether nothing under the name is no error
    :param is_listed: whether a listing has just shown that it is no folder
    :param before: run once it is known to be no folder, before anything is removed
    :raises InvalidPath: if it is a folder
    :raises NotFound: if nothing has the name
    """
    if not is_listed and not (yield from server_traits()).checks_type_at_removal:
        found = yield from _standing(place)
        if isinstance(found, Attributes) and found.is_folder:
            raise _is_a_folder(place)
    if before is not None:
        yield from before()
    try:
        yield from request(Remove(place.native))
    except StatusError as refused:
        found = yield from _standing(place)
        if isinstance(found, Attributes) and found.is_folder:
            raise _is_a_folder(place) from None
        if isinstance(found, Attributes) or not (yield from is_missing(place, found)):
            raise from_status(refused, "cannot delete", place.key) from None
        if not missing_ok:
            raise NotFound("cannot delete: no such file", path=place.key) from None


def delete_folder(place: RemotePath, *, missing_ok: bool) -> Operation[None]:
    """Remove an empty folder, or a link and not its target.

    :param place: what to remove
    :param missing_ok: whether nothing under the name is no error
    :raises InvalidPath: if it is a file
    :raises DirectoryNotEmpty: if it holds something
    :raises NotFound: if nothing has the name
    """
    if not (yield from server_traits()).checks_type_at_removal:
        found = yield from _standing(place)
        if isinstance(found, Attributes):
            if (yield from _delete_link(place, found, missing_ok=missing_ok)):
                return
            if (yield from _holds_something(place)):
                raise _is_full(place)
    try:
        yield from request(RemoveDir(place.native))
    except StatusError as refused:
        found = yield from _standing(place)
        if isinstance(found, Attributes):
            if (yield from _delete_link(place, found, missing_ok=missing_ok)):
                return
            if (yield from _holds_something(place)):
                raise _is_full(place) from None
        elif (yield from is_missing(place, found)):
            if not missing_ok:
                raise NotFound("cannot delete the folder: no such folder", path=place.key) from None
            return
        raise from_status(refused, "cannot delete the folder", place.key) from None


def _standing(place: RemotePath) -> Operation[Attributes | StatusError]:
    """What has the name, a link as a link; why nothing is shown if it is refused."""
    found, _ = yield from own_attributes(place)
    return found if isinstance(found, StatusError) else (yield from with_type(place, found))


def _delete_link(place: RemotePath, found: Attributes, *, missing_ok: bool) -> Operation[bool]:
    """Delete what was found if it is a link. Raises InvalidPath for a file."""
    if found.is_link:
        yield from delete(place, missing_ok=missing_ok, is_listed=True)
    elif found.is_file:
        raise InvalidPath("cannot delete the folder: it is a file; use delete", path=place.key)
    return found.is_link


def _is_a_folder(place: RemotePath) -> InvalidPath:
    return InvalidPath("cannot delete: it is a folder; use delete_folder", path=place.key)


def _is_full(place: RemotePath) -> DirectoryNotEmpty:
    return DirectoryNotEmpty(
        "the folder is not empty; pass recursive=True to delete what it holds as well", path=place.key
    )


def _holds_something(place: RemotePath) -> Operation[bool]:
    try:
        handle = yield from request(OpenDir(place.native))
    except StatusError:
        return False
    names = ListedNames(place.key)
    try:
        while batch := (yield from request(ReadDir(handle))):
            if any(entry.name not in (".", "..") for entry in batch):
                return True
            names.add(entry.name for entry in batch)
        return False
    except StatusError:
        return False
    finally:
        yield from close_quietly(handle)
