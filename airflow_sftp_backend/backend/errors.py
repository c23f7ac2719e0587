"""What can go wrong, and the one place where a status or a foreign exception becomes one of ours.

SFTPBackendError
+-- NotFound                  nothing has that name
+-- AlreadyExists             something has that name already
+-- PermissionDenied          the server refuses the operation
+-- InvalidPath               outside base_path, or a folder where a file is meant, or the reverse
+-- DirectoryNotEmpty         a folder still holds something
+-- CapabilityNotSupported    the server, or this backend, cannot do that
+-- TransferCorrupted         what arrived is not what was sent
+-- BackendUnavailable        no working connection
    +-- AuthenticationFailed  the login was refused
    +-- HostKeyRejected       the server is not who it should be
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final


class SFTPBackendError(Exception):
    """The root of all errors of this package.

    ``path`` is the key concerned (relative to base_path), ``native_path`` the path as the server is sent it, ``server``
    the server as ``sftp://host:port``; each is None where there is none. ``backend`` is the name of the kind of
    backend, ``"sftp"``. ``str()`` says what happened, to which path, on which server, and what to do.
    """

    backend: Final = "sftp"

    def __init__(self, message: str, *, path: str | None = None, server: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.server = server
        self.native_path: str | None = None

    def __str__(self) -> str:
        where = [repr(self.path)] if self.path is not None else []
        where += [f"on {self.server}"] if self.server is not None else []
        where += [f"as {self.native_path!r}"] if self.native_path not in (None, self.path) else []
        message = escaped(self.message, keep="\n")
        return f"{message} ({' '.join(where)})" if where else message

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.path, self.server, self.native_path)


class NotFound(SFTPBackendError):
    """Nothing has that name."""


class AlreadyExists(SFTPBackendError):
    """Something has that name already, and overwriting was not asked for.

    :ivar hint: what replaces it, in the words of the interface that was used; may be empty.
    """

    def __init__(self, message: str, *, path: str | None = None, server: str | None = None, hint: str = "") -> None:
        super().__init__(message, path=path, server=server)
        self.hint = hint

    def __str__(self) -> str:
        return f"{super().__str__()}; {self.hint}" if self.hint else super().__str__()

    def __reduce__(self) -> tuple[object, ...]:
        return *super().__reduce__(), {"hint": self.hint}


class PermissionDenied(SFTPBackendError):
    """The server refuses the operation to this user."""


class InvalidPath(SFTPBackendError):
    """The path leads outside base_path, or names a folder where a file is meant, or the reverse."""


class DirectoryNotEmpty(SFTPBackendError):
    """The folder still holds something."""


class CapabilityNotSupported(SFTPBackendError):
    """The server, or this backend, cannot do that."""


class TransferCorrupted(SFTPBackendError):
    """What arrived is not what was sent."""


class ContentLost(TransferCorrupted):
    """The server did not keep what was written to a file that was opened more than once, or refuses to add to it.

    Inside the backend only.
    """


class BackendUnavailable(SFTPBackendError):
    """There is no working connection: not reached, refused, lost, silent, or not speaking SFTP."""


class AuthenticationFailed(BackendUnavailable):
    """The server refused the login, or the private key cannot be used."""


class HostKeyRejected(BackendUnavailable):
    """The server's host key is not the one expected, or none is known.

    :ivar verdict: ``unknown``, ``changed`` or ``revoked``; empty where the key could not be checked.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        server: str | None = None,
        verdict: str = "",
    ) -> None:
        super().__init__(message, path=path, server=server)
        self.verdict = verdict

    def __reduce__(self) -> tuple[object, ...]:
        return *super().__reduce__(), {"verdict": self.verdict}


def _rebuild(
    kind: type[SFTPBackendError], message: str, path: str | None, server: str | None, native_path: str | None
) -> SFTPBackendError:
    error = kind(message, path=path, server=server)
    error.native_path = native_path
    return error


class Code(enum.IntEnum):
    """Status codes of SFTP version 3 (draft-ietf-secsh-filexfer-02 section 7), and those later drafts
    (draft-ietf-secsh-filexfer-13 section 9.1) added that servers send on version 3 as well."""

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


class Refused(Exception):
    """The server answered a request with a status other than OK. Inside the backend only: `from_refusal` turns
    it into an error of the tree before it reaches a caller."""

    def __init__(self, code: int, text: str = "") -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text

    @property
    def missing(self) -> bool:
        """Nothing has that name (or a file stands where the path has a folder: servers say both this way)."""
        return self.code in (Code.NO_SUCH_FILE, Code.NO_SUCH_PATH)

    @property
    def unsupported(self) -> bool:
        """The server does not know the request."""
        return self.code == Code.OP_UNSUPPORTED


_KINDS: dict[int, tuple[type[SFTPBackendError], str]] = {
    Code.NO_SUCH_FILE: (NotFound, "no such file or folder"),
    Code.NO_SUCH_PATH: (NotFound, "no such file or folder"),
    Code.PERMISSION_DENIED: (PermissionDenied, "permission denied; check the rights of the login user on the server"),
    Code.WRITE_PROTECT: (PermissionDenied, "the file system is write-protected"),
    Code.FILE_ALREADY_EXISTS: (AlreadyExists, "the name is taken"),
    Code.DIR_NOT_EMPTY: (DirectoryNotEmpty, "the folder is not empty"),
    Code.NOT_A_DIRECTORY: (InvalidPath, "not a folder"),
    Code.FILE_IS_A_DIRECTORY: (InvalidPath, "a folder, not a file"),
    Code.INVALID_FILENAME: (InvalidPath, "the server does not take this name"),
    Code.OP_UNSUPPORTED: (CapabilityNotSupported, "the server does not support this operation"),
    Code.FAILURE: (
        SFTPBackendError,
        "the server refuses without saying why; a full disk, a quota or a read-only file system are common reasons",
    ),
    Code.NO_CONNECTION: (BackendUnavailable, "the server lost its storage"),
    Code.CONNECTION_LOST: (BackendUnavailable, "the server lost its storage"),
    Code.NO_SPACE_ON_FILESYSTEM: (SFTPBackendError, "the server's disk is full"),
    Code.QUOTA_EXCEEDED: (SFTPBackendError, "the quota on the server is used up"),
    Code.LOCK_CONFLICT: (SFTPBackendError, "the file is locked by another process on the server"),
}


_NO_REASONS: Final = ("", "failure", "failed", "general failure", "operation failed", "error", "unknown error")
"""Texts of servers that say nothing of the cause, as they are compared: lower case, without a full stop."""


def from_refusal(refused: Refused, doing: str, path: str) -> SFTPBackendError:
    """The error for a refusal met while ``doing`` ("cannot open for reading") something to the key ``path``."""
    kind, cause = _KINDS.get(refused.code, (SFTPBackendError, f"the server answered with status {refused.code}"))
    said = printable(refused.text)
    if said.lower().rstrip(".! ") in (*_NO_REASONS, cause):
        return kind(f"{doing}: {cause}", path=path)
    if refused.code == Code.FAILURE:  # which means anything: the server's words are all that is known
        return kind(f"{doing}: the server says: {said}", path=path)
    return kind(f"{doing}: {cause} (the server says: {said})", path=path)


def unavailable(error: BaseException, doing: str, server: str, why: str | None = None) -> BackendUnavailable:
    """The error for what a socket or paramiko raised while ``doing`` ("connecting", "exchanging keys") something with
    ``server`` (``sftp://host:port``). ``why`` is what is known better than the exception tells.
    """
    import paramiko  # here, because the error tree is imported where paramiko is not wanted

    if isinstance(error, BackendUnavailable):
        return error
    said = printable(str(error)) or type(error).__name__
    if why is not None:
        cause = why
    elif isinstance(error, socket.gaierror | UnicodeError):
        cause = f"the host name cannot be resolved ({getattr(error, 'strerror', said)}); check its spelling and DNS"
    elif isinstance(error, ConnectionRefusedError):
        cause = "the server refuses connections; check host, port and firewall, and that the server runs"
    elif isinstance(error, TimeoutError):
        cause = "no answer in time; check host, port and firewall, or raise the timeout"
    elif isinstance(error, EOFError | ConnectionError):
        cause = "the server closed the connection"
    elif isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
        cause = (
            f"the server and this client have no algorithm in common ({said}); an old server may need one enabled, see"
            " allow_ssh_rsa_sha1, ciphers and disabled_algorithms"
        )
    elif isinstance(error, paramiko.ChannelException):
        cause = (
            f"the server refuses a channel ({error.text.lower()}); it may allow this user no SFTP, or no more channels"
        )
    else:
        cause = said
    return BackendUnavailable(f"{doing}: {cause}", server=server)


@contextmanager
def connecting(situation: Callable[[], tuple[str, str | None]], server: str) -> Iterator[None]:
    """Turns whatever a server can make paramiko raise into BackendUnavailable.

    ``situation()``, asked only then, tells `unavailable` what was being done, and why it failed if that is known.
    """
    try:
        yield
    except SFTPBackendError as error:
        error.server = error.server or server
        raise
    except Exception as error:
        doing, why = situation()
        raise unavailable(error, doing, server, why) from error


def escaped(text: str, keep: str = "") -> str:
    """Escape what a log or terminal must not take raw: control characters (C0 and C1), line and paragraph separators,
    bidirectional overrides, surrogates and the like.

    :param text: a name or text that a server or a file system gave.
    :param keep: characters that are left as they are, as ``"\\n"``.
    :returns: the text, with ``\\x9b`` or ``\\u202e`` in place of each such character.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def printable(text: str, longest: int = 200) -> str:
    """A foreign text made fit for a message: one line, escaped, not long."""
    return escaped("".join(" " if c in "\t\n\r\v\f" else c for c in text[:longest])).strip()
