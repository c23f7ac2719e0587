"""Delete a file, a link or an empty directory.

Unless the server is known to check the type, the attributes of the path are requested first: some servers remove
directories by REMOVE and files by RMDIR, follow links in RMDIR, or remove a directory with all its entries.
"""

from __future__ import annotations

from collections.abc import Callable

from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import OpenDir, ReadDir, Remove, RemoveDir
from airflow_sftp_backend.backend._protocol.scheduler import Operation, request, request_all, server_traits
from airflow_sftp_backend.backend._receive_limits import ListedNames
from airflow_sftp_backend.backend.errors import DirectoryNotEmpty, InvalidPath, NotFound, StatusError, from_status

from .attributes import close_quietly, with_file_type
from .links import get_own_attributes
from .listing import is_missing


def delete(
    path: RemotePath,
    *,
    missing_ok: bool,
    is_listed: bool = False,
    before_removal: Callable[[], Operation[None]] | None = None,
) -> Operation[None]:
    """Remove a file, or a link and not its target.

    :param path: the path to remove
    :param missing_ok: whether to ignore a missing file
    :param is_listed: whether a listing has just shown that the path is not a directory
    :param before_removal: runs after the check of the type, before the removal
    :raises InvalidPath: for a directory
    :raises NotFound: if the path does not exist
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
        # Servers answer with different statuses: the type of the path shows the cause.
        existing = yield from _own_attributes(path)
        if isinstance(existing, Attributes) and existing.is_folder:
            raise _is_directory_error(path) from None
        if isinstance(existing, Attributes) or not (yield from is_missing(path, existing)):
            raise from_status(refused, "cannot delete", path.key) from None
        if not missing_ok:
            raise NotFound("cannot delete: no such file", path=path.key) from None


def delete_folder(path: RemotePath, *, missing_ok: bool) -> Operation[None]:
    """Remove an empty directory, or a link and not its target.

    :param path: the path to remove
    :param missing_ok: whether to ignore a missing directory
    :raises InvalidPath: for a file
    :raises DirectoryNotEmpty: if the directory has entries
    :raises NotFound: if the path does not exist
    """
    if not (yield from server_traits()).checks_type_at_removal:
        existing = yield from _own_attributes(path)
        if isinstance(existing, Attributes) and (yield from _delete_if_link(path, existing, missing_ok=missing_ok)):
            return
    (answer,) = yield from request_all([RemoveDir(path.native)])
    if not isinstance(answer, StatusError):
        return
    # Servers answer with different statuses: the type of the path shows the cause.
    existing = yield from _own_attributes(path)
    if isinstance(existing, Attributes):
        if (yield from _delete_if_link(path, existing, missing_ok=missing_ok)):
            return
    elif (yield from is_missing(path, existing)):
        if missing_ok:
            return
        raise NotFound("cannot delete the directory: no such directory", path=path.key)
    raise from_status(answer, "cannot delete the directory", path.key)


def _own_attributes(path: RemotePath) -> Operation[Attributes | StatusError]:
    """Return the attributes of a path itself, or the refusal.

    Does not follow a link.
    """
    attributes, _ = yield from get_own_attributes(path)
    return attributes if isinstance(attributes, StatusError) else (yield from with_file_type(path, attributes))


def _delete_if_link(path: RemotePath, attributes: Attributes, *, missing_ok: bool) -> Operation[bool]:
    """Delete a path if it is a link.

    :returns: True after deleting a link; False for a directory without known entries
    :raises InvalidPath: for a file
    :raises DirectoryNotEmpty: for a directory with entries
    """
    if attributes.is_link:
        # The type is known, so no further request asks for it.
        yield from delete(path, missing_ok=missing_ok, is_listed=True)
        return True
    if attributes.is_file:
        raise InvalidPath(
            "cannot delete the directory: the path is a file. Use delete", path=path.key, entry_type="file"
        )
    if (yield from _has_entries(path)):
        raise DirectoryNotEmpty(
            "the directory is not empty. Pass recursive=True to delete its content as well", path=path.key
        )
    return False


def _is_directory_error(path: RemotePath) -> InvalidPath:
    return InvalidPath(
        "cannot delete: the path is a directory. Use delete_folder", path=path.key, entry_type="directory"
    )


def _has_entries(path: RemotePath) -> Operation[bool]:
    """Return whether a directory has entries.

    The result is also False if the server refuses to list the directory.
    """
    try:
        handle = yield from request(OpenDir(path.native))
    except StatusError:
        return False
    names = ListedNames(path.key)
    try:
        while entries := (yield from request(ReadDir(handle))):
            if any(name not in (b".", b"..") for name in entries.all_names):
                return True
            # raises LimitExceeded if the server repeats '.' and '..' without end
            names.add(entries.all_names)
        return False
    except StatusError:
        return False
    finally:
        yield from close_quietly(handle)
