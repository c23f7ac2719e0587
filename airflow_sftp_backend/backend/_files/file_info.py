"""Attributes and existence of files and directories, as callers see them."""

from __future__ import annotations

from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import (
    Stat,
)
from airflow_sftp_backend.backend._protocol.scheduler import (
    Operation,
    request_all,
    server_traits,
)
from airflow_sftp_backend.backend.errors import (
    InvalidPath,
    NotFound,
    SFTPBackendError,
    StatusCode,
    StatusError,
    from_status,
)
from airflow_sftp_backend.backend.models import FileInfo, FolderEntry, utc

from .attributes import with_file_type
from .listing import is_missing


def stat_or_none(path: RemotePath) -> Operation[Attributes | None]:
    """Return the attributes of a path. Follows links.

    :param path: the path
    :returns: None if the path does not exist, or if a parent is a file
    :raises SFTPBackendError: if the server refuses the request for another reason
    """
    checks_parent = not (yield from server_traits()).finds_nothing_below_files and not path.parent.is_root
    paths = [path, path.parent] if checks_parent else [path]
    answer, *parent_answers = yield from request_all([Stat(requested.native) for requested in paths])
    if is_parent_a_file(*parent_answers):
        return None
    if isinstance(answer, StatusError):
        if (yield from is_missing(path, answer)):
            return None
        is_unclear = answer.code == StatusCode.FAILURE and not (yield from server_traits()).reports_no_such_file
        remark = "the server does not say whether the path exists, and does not list its parent directory"
        raise from_status(answer, "cannot get attributes", path.key, remark=remark if is_unclear else "") from None
    return (yield from with_file_type(path, answer))


def get_file_info(path: RemotePath) -> Operation[FileInfo]:
    """Return the FileInfo of a file.

    Raises NotFound, or InvalidPath for a directory.
    """
    outcome = file_info_or_error(path, (yield from stat_or_none(path)))
    if isinstance(outcome, SFTPBackendError):
        raise outcome
    return outcome


def file_info_or_error(path: RemotePath, attributes: Attributes | None) -> FileInfo | NotFound | InvalidPath:
    """Convert the result of `stat_or_none` for a file, or return the error."""
    if attributes is None:
        return NotFound("no such file", path=path.key)
    if not attributes.is_file:
        return InvalidPath("the path is a directory, not a file", path=path.key, entry_type="directory")
    return to_file_info(path, attributes)


def to_file_info(path: RemotePath, attributes: Attributes) -> FileInfo:
    """Convert attributes to a FileInfo."""
    mode = None if attributes.mode is None else attributes.mode & 0o7777
    return FileInfo(path.key, path.name, attributes.size or 0, utc(attributes.mtime), mode)


def get_entry(path: RemotePath) -> Operation[FileInfo | FolderEntry]:
    """Return the attributes of a file or directory. Raises NotFound."""
    attributes = yield from stat_or_none(path)
    if attributes is None:
        raise NotFound("no such file or directory", path=path.key)
    return to_folder_entry(path, attributes) if attributes.is_folder else to_file_info(path, attributes)


def to_folder_entry(path: RemotePath, attributes: Attributes) -> FolderEntry:
    """Convert attributes to a FolderEntry."""
    mode = None if attributes.mode is None else attributes.mode & 0o7777
    return FolderEntry(path.key, path.name, utc(attributes.mtime), mode)


def check_folder(path: RemotePath) -> Operation[None]:
    """Check that a path is a directory.

    One round trip. Raises NotFound, or InvalidPath for a file.
    """
    attributes = yield from stat_or_none(path)
    if attributes is None:
        raise NotFound("no such directory", path=path.key)
    if attributes.mode is not None and not attributes.is_folder:
        raise InvalidPath("the path is a file, not a directory", path=path.key, entry_type="file")


def is_parent_a_file(answer: Attributes | StatusError | None = None) -> bool:
    """Return whether a reply to STAT describes a file."""
    return isinstance(answer, Attributes) and answer.mode is not None and not answer.is_folder
