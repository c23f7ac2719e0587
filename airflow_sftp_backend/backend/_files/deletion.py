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

from .links import get_own_attributes
from .operations import close_quietly, is_missing, with_file_type


def delete(
    path: RemotePath,
    *,
    missing_ok: bool,
    is_listed: bool = False,
    before_removal: Callable[[], Operation[None]] | None = None,
) -> Operation[None]:
    """Remove a file, or a link and not its target.

    :param path: what to remove
    :param missing_ok: whether nothing under the name is no error
    :param is_listed: whether a listing has just shown that it is no folder
    :param before_removal: run once it is known to be no folder, before anything is removed
    :raises InvalidPath: if it is a folder
    :raises NotFound: if nothing has the name
    """
    if not is_listed and not (yield from server_traits()).checks_type_at_removal:
        existing = yield from _own_attributes(path)
        if isinstance(existing, Attributes) and existing.is_folder:
            raise _is_directory_error(path)
    if before_removal is not None:
        yield from before_removal()
    try:
        yield from request(Remove(path.native))
    except StatusError as refused:
        existing = yield from _own_attributes(path)
        if isinstance(existing, Attributes) and existing.is_folder:
            raise _is_directory_error(path) from None
        if isinstance(existing, Attributes) or not (yield from is_missing(path, existing)):
            raise from_status(refused, "cannot delete", path.key) from None
        if not missing_ok:
            raise NotFound("cannot delete: no such file", path=path.key) from None


def delete_folder(path: RemotePath, *, missing_ok: bool) -> Operation[None]:
    """Remove an empty folder, or a link and not its target.

    :param path: what to remove
    :param missing_ok: whether nothing under the name is no error
    :raises InvalidPath: if it is a file
    :raises DirectoryNotEmpty: if it holds something
    :raises NotFound: if nothing has the name
    """
    if not (yield from server_traits()).checks_type_at_removal:
        existing = yield from _own_attributes(path)
        if isinstance(existing, Attributes):
            if (yield from _delete_link(path, existing, missing_ok=missing_ok)):
                return
            if (yield from _has_entries(path)):
                raise _not_empty_error(path)
    try:
        yield from request(RemoveDir(path.native))
    except StatusError as refused:
        existing = yield from _own_attributes(path)
        if isinstance(existing, Attributes):
            if (yield from _delete_link(path, existing, missing_ok=missing_ok)):
                return
            if (yield from _has_entries(path)):
                raise _not_empty_error(path) from None
        elif (yield from is_missing(path, existing)):
            if not missing_ok:
                raise NotFound("cannot delete the folder: no such folder", path=path.key) from None
            return
        raise from_status(refused, "cannot delete the folder", path.key) from None


def _own_attributes(path: RemotePath) -> Operation[Attributes | StatusError]:
    """What has the name, a link as a link; why nothing is shown if it is refused."""
    attributes, _ = yield from get_own_attributes(path)
    return attributes if isinstance(attributes, StatusError) else (yield from with_file_type(path, attributes))


def _delete_link(path: RemotePath, attributes: Attributes, *, missing_ok: bool) -> Operation[bool]:
    """Delete what was found if it is a link. Raises InvalidPath for a file."""
    if attributes.is_link:
        yield from delete(path, missing_ok=missing_ok, is_listed=True)
    elif attributes.is_file:
        raise InvalidPath("cannot delete the folder: it is a file; use delete", path=path.key)
    return attributes.is_link


def _is_directory_error(path: RemotePath) -> InvalidPath:
    return InvalidPath("cannot delete: it is a folder; use delete_folder", path=path.key)


def _not_empty_error(path: RemotePath) -> DirectoryNotEmpty:
    return DirectoryNotEmpty(
        "the folder is not empty; pass recursive=True to delete what it holds as well", path=path.key
    )


def _has_entries(path: RemotePath) -> Operation[bool]:
    try:
        handle = yield from request(OpenDir(path.native))
    except StatusError:
        return False
    names = ListedNames(path.key)
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
