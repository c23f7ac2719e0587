"""Define the errors of the backend.

SFTP statuses and exceptions of paramiko are translated here.

SFTPBackendError
+-- NotFound                  the name does not exist
+-- AlreadyExists             the name is taken
+-- PermissionDenied          the server refuses the operation
+-- InvalidPath               outside base_path, or a directory in place of a file, or the reverse
+-- DirectoryNotEmpty         the directory has entries
+-- CapabilityNotSupported    the server or this backend lacks the capability
+-- TransferCorrupted         the received content differs from the sent content
+-- BackendUnavailable        no working connection
    +-- AuthenticationFailed  the login was refused
    +-- HostKeyRejected       the host key is unknown, changed or revoked
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal, TypeVar

T = TypeVar("T")
EntryType = Literal["", "directory", "file"]
"""Type of an entry on the server; empty if unknown."""


class SFTPBackendError(Exception):
    """Base class of all errors of the backend.

    ``str()`` gives the failure, the path, the server and the remedy.

    :param message: the failure, its cause and the remedy, without path and server
    :param path: the key of the file, relative to ``base_path``; None if no file is concerned
    :param server: the server as ``sftp://host:port``
    :ivar backend: the kind of backend, ``"sftp"``
    :ivar native_path: the path as it is sent to the server; None if no file is concerned
    """

    backend: Final = "sftp"

    def __init__(self, message: str, *, path: str | None = None, server: str | None = None) -> None:
        super().__init__(message)
        self._message = message
        self.path = path
        self.server = server
        self.native_path: str | None = None

    @property
    def message(self) -> str:
        """The failure, its cause and the remedy, without path and server."""
        return self._message

    def __str__(self) -> str:
        where: list[str] = []
        if self.path is not None:
            where.append(repr(self.path))
        if self.server is not None:
            where.append(f"on {self.server}")
        if self.native_path not in (None, self.path):
            where.append(f"as {self.native_path!r}")
        message = escaped(self.message, keep="\n")
        return f"{message} ({' '.join(where)})" if where else message

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._message,), vars(self)


class NotFound(SFTPBackendError):
    """The name does not exist."""


class AlreadyExists(SFTPBackendError):
    """The name is taken, and overwriting is not allowed.

    :param message: the failure, its cause and the remedy, without path and server
    :param path: the key of the file
    :param server: the server as ``sftp://host:port``
    :param hint: the argument that allows overwriting, in the terms of the caller's interface; may be empty
    """

    def __init__(self, message: str, *, path: str | None = None, server: str | None = None, hint: str = "") -> None:
        super().__init__(message, path=path, server=server)
        self.hint = hint

    def __str__(self) -> str:
        return f"{super().__str__()}; {self.hint}" if self.hint else super().__str__()


class PermissionDenied(SFTPBackendError):
    """The server refuses the operation to this user."""


class InvalidPath(SFTPBackendError):
    """The path is outside ``base_path`` or of the wrong type.

    The wrong type is a directory in place of a file, or the reverse.

    :param message: the failure, its cause and the remedy, without path and server
    :param path: the key of the file
    :param server: the server as ``sftp://host:port``
    :param entry_type: ``directory`` or ``file`` if such an entry is in the way; empty for any other cause
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        server: str | None = None,
        entry_type: EntryType = "",
    ) -> None:
        super().__init__(message, path=path, server=server)
        self.entry_type = entry_type


class DirectoryNotEmpty(SFTPBackendError):
    """The directory has entries."""


class CapabilityNotSupported(SFTPBackendError):
    """The server or this backend lacks the capability."""


class TransferCorrupted(SFTPBackendError):
    """The received content differs from the sent content."""


class ContentLost(TransferCorrupted):
    """The server cannot continue a reopened file.

    It lost content, or refuses to append. This error never reaches a caller.
    """


class BackendUnavailable(SFTPBackendError):
    """No connection works: unreachable, refused, lost, silent, or not an SFTP server.

    :ivar hop: the hop that failed, such as ``jump host``; blank for the server itself
    :ivar loss: the reason for a lost connection; blank if unknown, or part of the message already
    :ivar attempts: number of attempts to connect
    :ivar interrupted: the failure of a transfer that this connection was to resume; blank without such a transfer
    """

    hop: str = ""
    loss: str = ""
    attempts: int = 1
    interrupted: str = ""

    @property
    def message(self) -> str:
        """The failure, its cause and the remedy, without path and server."""
        text = f"{self.hop}: {self._message}" if self.hop else self._message
        if self.loss:
            text = f"{text}: {self.loss}"
        if self.attempts > 1:
            text = f"{text}; tried {self.attempts} times"
        return f"{self.interrupted}; cannot connect again: {text}" if self.interrupted else text


class AuthenticationFailed(BackendUnavailable):
    """The server refused the login, or the private key cannot be used."""


class HostKeyRejected(BackendUnavailable):
    """The server's host key is unknown, changed or revoked.

    :param message: the failure, its cause and the remedy, without path and server
    :param path: always None
    :param server: the server as ``sftp://host:port``
    :param status: ``unknown``, ``changed`` or ``revoked``; empty if the key could not be checked
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        server: str | None = None,
        status: str = "",
    ) -> None:
        super().__init__(message, path=path, server=server)
        self.status = status


class StatusCode(enum.IntEnum):
    """Status codes of SFTP version 3 (draft-ietf-secsh-filexfer-02 section 7).

    Codes above 8 are of later drafts (draft-ietf-secsh-filexfer-13 section 9.1). Servers send them on version 3 too.
    """

    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    BAD_MESSAGE = 5
    NO_CONNECTION = 6
    CONNECTION_LOST = 7
    OP_UNSUPPORTED = 8
    INVALID_HANDLE = 9
    NO_SUCH_PATH = 10
    FILE_ALREADY_EXISTS = 11
    WRITE_PROTECT = 12
    NO_SPACE_ON_FILESYSTEM = 14
    QUOTA_EXCEEDED = 15
    LOCK_CONFLICT = 17
    DIR_NOT_EMPTY = 18
    NOT_A_DIRECTORY = 19
    INVALID_FILENAME = 20
    CANNOT_DELETE = 22
    FILE_IS_A_DIRECTORY = 24


class StatusError(Exception):
    """The server answered a request with a status other than OK.

    `from_status` translates it into a `SFTPBackendError` before a caller sees it.

    :param code: the status code
    :param text: the error message of the reply
    """

    def __init__(self, code: int, text: str = "") -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    @property
    def missing(self) -> bool:
        """Tell whether the server reports a missing name.

        Servers report the same if a parent of the name is a file.
        """
        return self.code in (StatusCode.NO_SUCH_FILE, StatusCode.NO_SUCH_PATH)

    @property
    def unsupported(self) -> bool:
        """Tell whether the server does not know the request."""
        return self.code == StatusCode.OP_UNSUPPORTED


_ERROR_BY_STATUS: dict[int, tuple[type[SFTPBackendError], str]] = {
    StatusCode.NO_SUCH_FILE: (NotFound, "no such file or directory"),
    StatusCode.NO_SUCH_PATH: (NotFound, "no such file or directory"),
    StatusCode.PERMISSION_DENIED: (
        PermissionDenied,
        "permission denied; check the rights of the login user on the server",
    ),
    StatusCode.WRITE_PROTECT: (PermissionDenied, "the file system is write-protected"),
    StatusCode.FILE_ALREADY_EXISTS: (AlreadyExists, "the name is taken"),
    StatusCode.DIR_NOT_EMPTY: (DirectoryNotEmpty, "the directory is not empty"),
    StatusCode.NOT_A_DIRECTORY: (InvalidPath, "not a directory"),
    StatusCode.FILE_IS_A_DIRECTORY: (InvalidPath, "a directory, not a file"),
    StatusCode.INVALID_FILENAME: (InvalidPath, "the server does not accept this name"),
    StatusCode.OP_UNSUPPORTED: (CapabilityNotSupported, "the server does not support this operation"),
    StatusCode.FAILURE: (
        SFTPBackendError,
        "the server refuses without saying why; a full disk, a quota or a read-only file system are common reasons",
    ),
    StatusCode.NO_CONNECTION: (BackendUnavailable, "the server lost its storage"),
    StatusCode.CONNECTION_LOST: (BackendUnavailable, "the server lost its storage"),
    StatusCode.NO_SPACE_ON_FILESYSTEM: (SFTPBackendError, "the server's disk is full"),
    StatusCode.QUOTA_EXCEEDED: (SFTPBackendError, "the quota on the server is used up"),
    StatusCode.LOCK_CONFLICT: (SFTPBackendError, "the file is locked by another process on the server"),
}


_ENTRY_TYPE_BY_STATUS: dict[int, EntryType] = {
    StatusCode.NOT_A_DIRECTORY: "file",
    StatusCode.FILE_IS_A_DIRECTORY: "directory",
}
_UNINFORMATIVE_TEXTS: Final = ("", "failure", "failed", "general failure", "operation failed", "error", "unknown error")
"""Error messages without a cause, in lower case and without a full stop."""


def from_status(error: StatusError, action: str, path: str, *, remark: str = "") -> SFTPBackendError:
    """Translate a refused request.

    :param error: the server's status
    :param action: the failed operation, such as ``"cannot open for reading"``
    :param path: the key of the file
    :param remark: a further fact for the message; may be blank
    :returns: the error to raise, with the server's own words
    """
    error_class, cause = _ERROR_BY_STATUS.get(
        error.code, (SFTPBackendError, f"the server answered with status {error.code}")
    )
    text = printable(error.text)
    if text.lower().rstrip(".! ") in (*_UNINFORMATIVE_TEXTS, cause):
        message = f"{action}: {cause}"
    elif error.code == StatusCode.FAILURE:  # stands for any cause, so only the text tells it
        message = f"{action}: the server says: {text}"
    else:
        message = f"{action}: {cause} (the server says: {text})"
    translated = error_class(f"{message}; {remark}" if remark else message, path=path)
    if isinstance(translated, InvalidPath):
        translated.entry_type = _ENTRY_TYPE_BY_STATUS.get(error.code, "")
    return translated


def connection_error(error: BaseException, action: str, server: str, reason: str | None = None) -> BackendUnavailable:
    """Translate an exception of a socket or of paramiko.

    :param error: the exception
    :param action: the phase that failed, such as ``"connecting"`` or ``"exchanging keys"``
    :param server: the server as ``sftp://host:port``
    :param reason: the cause, if it is known better than from the exception
    :returns: the error to raise
    """
    import paramiko  # a late import, because callers without paramiko import the errors

    if isinstance(error, BackendUnavailable):
        return error
    text = printable(str(error)) or type(error).__name__
    if reason is not None:
        cause = reason
    elif isinstance(error, socket.gaierror | UnicodeError):
        cause = f"the host name cannot be resolved ({getattr(error, 'strerror', text)}); check its spelling and DNS"
    # Before its base class ConnectionError.
    elif isinstance(error, ConnectionRefusedError):
        cause = "the server refuses connections; check host, port and firewall, and that the server runs"
    elif isinstance(error, TimeoutError):
        cause = "no answer in time; check host, port and firewall, or raise the timeout"
    elif isinstance(error, EOFError | ConnectionError):
        cause = "the server closed the connection"
    elif isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
        cause = (
            f"the server and this client have no algorithm in common ({text}); an old server may need one enabled, see"
            " allow_ssh_rsa_sha1, ciphers and disabled_algorithms"
        )
    elif isinstance(error, paramiko.ChannelException):
        cause = (
            f"the server refuses a channel ({error.text.lower()}); it may allow this user no SFTP, or no more channels"
        )
    else:
        cause = text
    return BackendUnavailable(f"{action}: {cause}", server=server)


@contextmanager
def translate_connection_errors(
    failure_context: Callable[[], tuple[str, str | None]], server: str, *, hop: str = ""
) -> Iterator[None]:
    """Translate exceptions while connecting into `BackendUnavailable`.

    :param failure_context: returns the current phase and, if known, the cause; called after a failure only
    :param server: the server as ``sftp://host:port``
    :param hop: kind of the server, such as ``jump host``; blank for the target
    :returns: a context manager without a value
    :raises BackendUnavailable: for any exception but `SFTPBackendError`
    :raises SFTPBackendError: as raised in the block, with the server added; BackendUnavailable also gets the hop
    """
    try:
        yield
    except SFTPBackendError as error:
        error.server = error.server or server
        if isinstance(error, BackendUnavailable):
            error.hop = error.hop or hop
        raise
    except Exception as error:
        action, reason = failure_context()
        failure = connection_error(error, action, server, reason)
        failure.hop = hop
        raise failure from error


def result_or_raise(outcome: T | SFTPBackendError | OSError) -> T:
    """Return a result, or raise the error in its place.

    :param outcome: the result or the error
    :returns: the result
    :raises SFTPBackendError: if the outcome is such an error
    :raises OSError: if the outcome is such an error
    """
    if isinstance(outcome, SFTPBackendError | OSError):
        raise outcome
    return outcome


def escaped(text: str, keep: str = "") -> str:
    """Escape the characters that are not printable.

    Examples are terminal control sequences and bidirectional overrides.

    :param text: a name or text from a server or a file system
    :param keep: characters to leave unchanged, such as ``"\\n"``
    :returns: the text with ``\\x9b`` or ``\\u202e`` in place of each character that is not printable
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def printable(text: str, longest: int = 200) -> str:
    """Prepare a text of a server for a message.

    The result is one line: at most ``longest`` characters of the text, escaped.

    :param text: the text
    :param longest: number of characters of the text to keep, before escaping
    :returns: the line
    """
    return escaped("".join(" " if c in "\t\n\r\v\f" else c for c in text[:longest])).strip()
