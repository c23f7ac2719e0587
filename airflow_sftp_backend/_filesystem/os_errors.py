"""Convert errors of the backend to errors of the operating system.

Each class here is an error of the backend and one of Python's `OSError` classes. Both ``except NotFound`` and ``except
FileNotFoundError`` catch it, and its text is that of the backend.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from airflow_sftp_backend.backend import (
    AlreadyExists,
    AuthenticationFailed,
    BackendUnavailable,
    CapabilityNotSupported,
    DirectoryNotEmpty,
    HostKeyRejected,
    InvalidPath,
    NotFound,
    PermissionDenied,
    SFTPBackendError,
    TransferCorrupted,
)


class RemoteError(SFTPBackendError, OSError):
    """The server refuses the operation for a reason without a class here."""

    errno = errno.EIO


class RemoteFileNotFoundError(NotFound, FileNotFoundError):
    """The name does not exist."""

    errno = errno.ENOENT


class RemoteFileExistsError(AlreadyExists, FileExistsError):
    """The name is taken."""

    errno = errno.EEXIST


class RemotePermissionError(PermissionDenied, PermissionError):
    """The server refuses the operation to this user."""

    errno = errno.EACCES


class RemoteIsADirectoryError(InvalidPath, IsADirectoryError):
    """The path is a directory, and a file is needed."""

    errno = errno.EISDIR


class RemoteNotADirectoryError(InvalidPath, NotADirectoryError):
    """The path or its parent is a file, not a directory."""

    errno = errno.ENOTDIR


class RemotePathError(InvalidPath, OSError):
    """The path is outside the base path, or not a valid path."""

    errno = errno.EINVAL


class RemoteDirectoryNotEmptyError(DirectoryNotEmpty, OSError):
    """The directory has entries."""

    errno = errno.ENOTEMPTY


class RemoteUnsupportedError(CapabilityNotSupported, OSError):
    """The server lacks the capability."""

    errno = errno.ENOTSUP


class RemoteContentError(TransferCorrupted, OSError):
    """The content changed on the way, or while it was read."""

    errno = errno.EIO


class RemoteConnectionError(BackendUnavailable, ConnectionError):
    """The server cannot be reached, or the connection is lost."""

    errno = errno.ECONNABORTED


class RemoteAuthenticationError(AuthenticationFailed, ConnectionError):
    """The server refused the login."""

    errno = errno.ECONNREFUSED


class RemoteHostKeyError(HostKeyRejected, ConnectionError):
    """The server's host key is unknown, changed or revoked."""

    errno = errno.ECONNREFUSED


_OS_ERRORS: Final[dict[type[SFTPBackendError], type[SFTPBackendError]]] = {
    NotFound: RemoteFileNotFoundError,
    AlreadyExists: RemoteFileExistsError,
    PermissionDenied: RemotePermissionError,
    DirectoryNotEmpty: RemoteDirectoryNotEmptyError,
    CapabilityNotSupported: RemoteUnsupportedError,
    TransferCorrupted: RemoteContentError,
    AuthenticationFailed: RemoteAuthenticationError,
    HostKeyRejected: RemoteHostKeyError,
    BackendUnavailable: RemoteConnectionError,
    SFTPBackendError: RemoteError,
}
_INVALID_PATHS: Final[dict[str, type[InvalidPath]]] = {
    "directory": RemoteIsADirectoryError,
    "file": RemoteNotADirectoryError,
    "": RemotePathError,
}


def as_os_error(error: SFTPBackendError) -> SFTPBackendError:
    """Convert an error of the backend to an `OSError`.

    The converted error is still an error of the backend.

    :param error: the error
    :returns: the converted error, with the text and the attributes of ``error``
    """
    if isinstance(error, OSError):
        return error
    if isinstance(error, InvalidPath):
        os_error_class: type[SFTPBackendError] = _INVALID_PATHS[error.entry_type]
    else:
        os_error_class = next(_OS_ERRORS[base] for base in type(error).__mro__ if base in _OS_ERRORS)
    converted = os_error_class(error.message, path=error.path, server=error.server)
    vars(converted).update(vars(error))
    if isinstance(converted, AlreadyExists):
        converted.hint = ""  # names an argument of the backend, which the caller of a file system does not pass
    return converted


def with_message(error: SFTPBackendError, message: str) -> SFTPBackendError:
    """Return an error of the same type with another message.

    :param error: an error of the backend
    :param message: the failure, its cause and the remedy, in the terms of a file system
    :returns: the new error, for the same path
    """
    other = type(error)(message, path=error.path, server=error.server)
    other.native_path = error.native_path
    if isinstance(error, InvalidPath) and isinstance(other, InvalidPath):
        other.entry_type = error.entry_type
    return other


@contextmanager
def os_errors() -> Iterator[None]:
    """Convert errors of the backend that the block raises.

    :returns: a context manager without a value
    :raises OSError: as `as_os_error` chooses, with the error of the backend as its cause
    """
    try:
        yield
    except SFTPBackendError as error:
        if isinstance(error, OSError):
            raise
        raise as_os_error(error) from error
