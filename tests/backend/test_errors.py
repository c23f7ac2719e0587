"""Errors name the cause, the path, the server and a remedy."""

from __future__ import annotations

import pickle
import socket

import paramiko
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend import (
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
from airflow_sftp_backend.backend.errors import (
    StatusCode,
    StatusError,
    connection_error,
    escaped,
    from_status,
    printable,
    translate_connection_errors,
)

KINDS = [
    SFTPBackendError,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    InvalidPath,
    DirectoryNotEmpty,
    CapabilityNotSupported,
    TransferCorrupted,
    BackendUnavailable,
    AuthenticationFailed,
    HostKeyRejected,
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_pickling_with_all_attributes(kind: type[SFTPBackendError]) -> None:
    error = pickle.loads(pickle.dumps(kind("it broke", path="in/a", server="sftp://h:22")))
    assert type(error) is kind
    assert (error.message, error.path, error.server) == ("it broke", "in/a", "sftp://h:22")
    assert str(error) == "it broke ('in/a' on sftp://h:22)"


def test_a_lost_connection_keeps_its_facts_and_notes_when_pickled() -> None:
    error = AuthenticationFailed("refused", server="sftp://h:22")
    error.hop, error.loss, error.attempts, error.interrupted = "jump host", "the line broke", 3, "cannot read"
    error.add_note("a note")
    twin = pickle.loads(pickle.dumps(error))
    assert (type(twin), twin.hop, twin.attempts, twin.__notes__) == (AuthenticationFailed, "jump host", 3, ["a note"])
    assert (
        str(twin)
        == str(error)
        == ("cannot read; cannot connect again: jump host: refused: the line broke; tried 3 times (on sftp://h:22)")
    )


def test_a_rejected_host_key_keeps_its_status_when_pickled() -> None:
    error = pickle.loads(pickle.dumps(HostKeyRejected("it broke", status="changed")))
    assert error.status == "changed"


@pytest.mark.parametrize(
    ("path", "server", "text"),
    [(None, None, "x"), ("a", None, "x ('a')"), (None, "sftp://h:22", "x (on sftp://h:22)"), ("", None, "x ('')")],
)
def test_an_error_names_path_and_server_if_known(path: str | None, server: str | None, text: str) -> None:
    assert str(SFTPBackendError("x", path=path, server=server)) == text


def test_refused_logins_and_host_keys_are_backend_unavailable() -> None:
    assert issubclass(AuthenticationFailed, BackendUnavailable)
    assert issubclass(HostKeyRejected, BackendUnavailable)
    assert all(issubclass(kind, SFTPBackendError) for kind in KINDS)


@pytest.mark.parametrize(
    ("code", "kind", "cause"),
    [
        (StatusCode.NO_SUCH_FILE, NotFound, "no such file or directory"),
        (StatusCode.NO_SUCH_PATH, NotFound, "no such file or directory"),
        (StatusCode.PERMISSION_DENIED, PermissionDenied, "check the rights of the login user"),
        (StatusCode.WRITE_PROTECT, PermissionDenied, "write-protected"),
        (StatusCode.FILE_ALREADY_EXISTS, AlreadyExists, "taken"),
        (StatusCode.DIR_NOT_EMPTY, DirectoryNotEmpty, "not empty"),
        (StatusCode.NOT_A_DIRECTORY, InvalidPath, "not a directory"),
        (StatusCode.FILE_IS_A_DIRECTORY, InvalidPath, "not a file"),
        (StatusCode.INVALID_FILENAME, InvalidPath, "does not accept this name"),
        (StatusCode.OP_UNSUPPORTED, CapabilityNotSupported, "does not support"),
        (StatusCode.FAILURE, SFTPBackendError, "full disk, a quota or a read-only file system"),
        (StatusCode.NO_SPACE_ON_FILESYSTEM, SFTPBackendError, "disk is full"),
        (StatusCode.QUOTA_EXCEEDED, SFTPBackendError, "quota"),
        (StatusCode.LOCK_CONFLICT, SFTPBackendError, "locked"),
        (StatusCode.CONNECTION_LOST, BackendUnavailable, "lost its storage"),
        (StatusCode.BAD_MESSAGE, SFTPBackendError, "status 5"),
        (4711, SFTPBackendError, "status 4711"),
    ],
)
def test_a_refusal_becomes_the_error_of_its_code(code: int, kind: type[SFTPBackendError], cause: str) -> None:
    error = from_status(StatusError(code), "cannot write", "in/a")
    assert type(error) is kind
    assert error.message.startswith("cannot write: ")
    assert cause in error.message
    assert error.path == "in/a"


@pytest.mark.parametrize("text", ["", "Failure", "failure.", "Operation failed"])
def test_likely_causes_are_named_where_the_server_gives_none(text: str) -> None:
    assert from_status(StatusError(StatusCode.FAILURE, text), "cannot write", "a").message == (
        "cannot write: the server refuses without saying why; a full disk, a quota or a read-only file system are"
        " common reasons"
    )


@pytest.mark.parametrize(
    ("code", "text", "message"),
    [
        (StatusCode.FAILURE, "No space left on device", "cannot write: the server says: No space left on device"),
        (StatusCode.FAILURE, "a\x1b[31m\nb", r"cannot write: the server says: a\x1b[31m b"),
        (
            StatusCode.QUOTA_EXCEEDED,
            "7 of 7",
            "cannot write: the quota on the server is used up (the server says: 7 of 7)",
        ),
        (StatusCode.QUOTA_EXCEEDED, "failure", "cannot write: the quota on the server is used up"),
    ],
)
def test_the_servers_message_is_the_cause(code: int, text: str, message: str) -> None:
    assert from_status(StatusError(code, text), "cannot write", "a").message == message


@given(st.text())
def test_foreign_text_is_one_short_line(text: str) -> None:
    shown = printable(text)
    assert len(shown) <= 200
    assert shown.isprintable()


@pytest.mark.parametrize(
    ("raised", "cause"),
    [
        (socket.gaierror(-2, "Name or service not known"), r"cannot be resolved \(Name or service not known\)"),
        (UnicodeError("label too long"), "cannot be resolved"),
        (ConnectionRefusedError(), "refuses connections; check host, port and firewall"),
        (TimeoutError(), "no answer in time"),
        (EOFError(), "the server closed the connection"),
        (ConnectionResetError(), "the server closed the connection"),
        (paramiko.ssh_exception.IncompatiblePeer("no kex"), r"no algorithm in common \(no kex\).*allow_ssh_rsa_sha1"),
        (paramiko.ChannelException(1, "Administratively prohibited"), "administratively prohibited.*no SFTP"),
        (paramiko.SSHException("odd packet"), "connecting: odd packet"),
        (paramiko.SSHException(), "connecting: SSHException"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_socket_and_paramiko_errors_are_translated(raised: Exception, cause: str) -> None:
    with (
        pytest.raises(BackendUnavailable, match=cause) as caught,
        translate_connection_errors(lambda: ("connecting", None), "sftp://h:22"),
    ):
        raise raised
    assert caught.value.server == "sftp://h:22"
    assert caught.value.__cause__ is raised


def test_a_known_cause_replaces_the_raw_message() -> None:
    error = connection_error(EOFError(), "logging in", "sftp://h:22", "too many tries")
    assert error.message == "logging in: too many tries"


def test_a_public_error_passes_unchanged_and_gets_the_server() -> None:
    error = AuthenticationFailed("refused")
    with pytest.raises(AuthenticationFailed) as caught, translate_connection_errors(lambda: ("", None), "sftp://h:22"):
        raise error
    assert caught.value is error
    assert error.server == "sftp://h:22"
    assert connection_error(error, "connecting", "sftp://x:1") is error


def test_an_interruption_passes_unchanged() -> None:
    with pytest.raises(KeyboardInterrupt), translate_connection_errors(lambda: ("", None), "sftp://h:22"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "character", ["\x1b", "\x7f", "\x80", "\x9b", "\u2028", "\u2029", "\u202e", "\u2066", "\udcff"]
)
def test_control_characters_are_escaped_in_every_message(character: str) -> None:
    shown = ascii(character)[1:-1]
    for error in (
        SFTPBackendError(f"a message with {character}", path=f"in/{character}", server="sftp://h:22"),
        from_status(StatusError(StatusCode.FAILURE, f"said {character}"), "cannot write", f"in/{character}"),
    ):
        assert str(error).isprintable()
        assert str(error).count(shown) == 2
    assert escaped(f"ä {character}") == f"ä {shown}"


def test_line_breaks_of_a_message_are_kept() -> None:
    assert str(SFTPBackendError("two\nlines\x9b")) == "two\nlines\\x9b"
    assert escaped("two\nlines") == "two\\nlines"
