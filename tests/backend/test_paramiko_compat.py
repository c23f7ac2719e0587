"""The private parts of paramiko in use exist and work."""

from __future__ import annotations

import inspect
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import paramiko
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from paramiko.auth_handler import AuthHandler, AuthOnlyHandler

from airflow_sftp_backend.backend._ssh._paramiko_compat import (
    AuthRequestHandler,
    PasswordExpired,
    PrivateKey,
    Sha1RSAKey,
    SocketLike,
    SSHTransport,
    certificate_of,
    to_cryptography,
    to_paramiko,
)

KEX = "ecdh-sha2-nistp384"


class Server(paramiko.ServerInterface):
    """Takes one password, and accepts any channel."""

    def check_auth_password(self, username: str, password: str) -> int:
        """Accept the password ``right``."""
        return paramiko.common.AUTH_SUCCESSFUL if password == "right" else paramiko.common.AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        """Return one method."""
        return "password"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        """Accept every channel."""
        return paramiko.common.OPEN_SUCCEEDED


class Pair:
    """A client and a server in this process, after the key exchange."""

    def __init__(self) -> None:
        self.sockets = ours, theirs = socket.socketpair()
        self.server = paramiko.Transport(theirs)
        self.server.add_server_key(paramiko.ECDSAKey.generate())
        self.client = SSHTransport(ours, disabled_algorithms={"ciphers": ["aes128-ctr"]})
        self.client.set_timeouts(20)
        self.server.get_security_options().kex = (KEX,)
        self.server.start_server(event=threading.Event(), server=Server())
        self.client.start_client(timeout=20)

    def request(self) -> AuthRequestHandler:
        """Make a handler for a login, the service requested."""
        handler = AuthRequestHandler.attach(self.client)
        handler.request_service()
        return handler

    def send_to_client(self, number: int, *texts: bytes, code: int | None = None) -> None:
        """Send a message of the server."""
        message = paramiko.Message()
        message.add_byte(bytes([number]))
        if code is not None:
            message.add_int(code)
        for text in texts:
            message.add_string(text)
        self.server.packetizer.send_message(message)


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A client and a server."""
    pair = Pair()
    yield pair
    pair.client.stop_threads(5)
    pair.server.stop_thread()
    pair.server.join(5)
    for end in pair.sockets:
        end.close()


PARTS: list[tuple[object, str, str | None]] = [
    (paramiko.Transport, "_parse_disconnect", "(self, m)"),
    (paramiko.Transport, "_parse_kex_init", "(self, m)"),
    (paramiko.Transport, "stop_thread", "(self)"),
    (paramiko.Transport, "_preferred_keys", None),
    (paramiko.Transport, "_preferred_pubkeys", None),
    (paramiko.Transport, "_key_info", None),
    (paramiko.Transport, "preferred_pubkeys", None),
    (paramiko.Transport, "preferred_kex", None),
    (paramiko.Transport, "preferred_keys", None),
    (paramiko.Transport, "preferred_ciphers", None),
    (paramiko.Transport, "preferred_macs", None),
    (paramiko.packet.Packetizer, "complete_handshake", "(self)"),
    (paramiko.packet.Packetizer, "send_message", "(self, data)"),
    (paramiko.RSAKey, "HASHES", None),
    (AuthHandler, "_parse_userauth_info_request", "(self, m)"),
    (AuthHandler, "wait_for_response", "(self, event)"),
    (AuthOnlyHandler, "_client_handler_table", None),
    (AuthOnlyHandler, "send_auth_request", "(self, username, method, finish_message=None)"),
    (AuthOnlyHandler, "auth_none", "(self, username)"),
    (AuthOnlyHandler, "auth_password", "(self, username, password)"),
    (AuthOnlyHandler, "auth_publickey", "(self, username, key)"),
    (AuthOnlyHandler, "auth_interactive", "(self, username, handler, submethods='')"),
]


@pytest.mark.parametrize(("owner", "name", "signature"), PARTS)
def test_a_part_exists_with_its_signature(owner: Any, name: str, signature: str | None) -> None:
    where = f"paramiko {paramiko.__version__}: {owner.__name__}.{name}"
    part = inspect.getattr_static(owner, name, None)
    assert part is not None, f"{where} is gone; adapt _paramiko_compat before the version limit is raised"
    if signature is not None:
        found = str(inspect.signature(part))
        assert found == signature, f"{where} takes {found}, not {signature}; adapt _paramiko_compat"


@pytest.mark.parametrize(
    "name",
    [
        "agreed_on_strict_kex", "auth_handler", "auth_timeout", "banner_timeout", "channel_timeout",
        "handshake_timeout", "host_key_type", "local_cipher", "local_compression", "local_mac", "logger",
        "packetizer", "remote_version", "saved_exception", "server_extensions",
    ],
)  # fmt: skip
def test_a_transport_has_the_attribute(name: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport = paramiko.Transport(ours)
        assert name in vars(transport), f"paramiko {paramiko.__version__}: Transport.{name} is gone"
        transport.close()


def test_the_agreed_algorithms_are_told(pair: Pair) -> None:
    agreed = pair.client.agreed_algorithms()
    assert agreed.key_exchange == KEX
    assert (agreed.cipher, agreed.mac, agreed.compression, agreed.strict_key_exchange) == (
        pair.server.local_cipher, pair.server.local_mac or "", "none", True,
    )  # fmt: skip
    assert pair.client.server_version.startswith("SSH-2.0-paramiko")


def test_the_proposal_leaves_out_what_is_disabled(pair: Pair) -> None:
    proposed = pair.client.proposed_algorithms()
    assert KEX in proposed["key_exchange"]
    assert "aes128-ctr" not in proposed["ciphers"]
    assert "ssh-ed25519-cert-v01@openssh.com" in proposed["host_keys"]


@pytest.mark.parametrize("reason", [b"maintenance: back at 8", b"\xe9teint"])
def test_the_reason_for_a_disconnect_is_kept(pair: Pair, reason: bytes) -> None:
    pair.send_to_client(1, reason, b"", code=2)
    pair.client.join(10)
    assert pair.client.disconnect_message == reason.decode("utf-8", "replace")


def test_failures_are_logged_at_level_debug(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="paramiko.transport"):
        pair.send_to_client(20, b"")  # a key exchange without algorithms
        pair.client.join(10)
    levels = {record.levelno for record in caplog.records if "client" in record.getMessage()}
    assert levels == {logging.DEBUG}


def test_a_transport_is_aborted_while_its_lock_is_held(pair: Pair) -> None:
    with pair.client.lock:
        stopping = threading.Thread(target=pair.client.abort, daemon=True)
        stopping.start()
        stopping.join(10)
        assert not stopping.is_alive()


def test_the_socket_is_asked_whether_it_is_closed(pair: Pair) -> None:
    called = threading.Event()

    class Closed(SocketLike):
        def is_closed(self) -> bool:
            called.set()
            return True

        def close(self) -> None:
            """The transport's thread calls it."""

    pair.client.sock = Closed()  # type: ignore[assignment] # what stop_thread uses of it
    # Without this, the thread may end before it is asked.
    pair.client.is_alive = lambda: True  # type: ignore[method-assign] # of this object alone
    pair.client.abort()
    del pair.client.is_alive
    assert called.is_set()


def test_a_handler_logs_in_after_a_refusal(pair: Pair) -> None:
    handler = pair.request()
    with pytest.raises(paramiko.AuthenticationException):
        handler.auth_password("user", "wrong")
    assert AuthRequestHandler.attach(pair.client).auth_password("user", "right") == []
    assert pair.client.is_authenticated()


def test_a_request_for_a_new_password_is_an_error(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask_for_another(*_: object) -> int:
        pair.send_to_client(60, b"New password:", b"")
        return paramiko.common.AUTH_FAILED

    handler = pair.request()
    monkeypatch.setattr(Server, "check_auth_password", ask_for_another)
    with pytest.raises(PasswordExpired) as raised:
        handler.auth_password("user", "old")
    assert raised.value.prompt == "New password:"


def test_a_channel_sends_any_buffer(pair: Pair) -> None:
    pair.request().auth_password("user", "right")
    channel = pair.client.open_session()
    assert channel.send(memoryview(b"buffer")) == 6  # type: ignore[arg-type] # what the test is about
    accepted = pair.server.accept(10)
    assert accepted is not None
    assert accepted.recv(6) == b"buffer"


KEYS: dict[str, Callable[[], PrivateKey]] = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "ECDSA": lambda: ec.generate_private_key(ec.SECP256R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_is_converted_there_and_back(kind: str) -> None:
    key = KEYS[kind]()
    pkey = to_paramiko(key)
    assert pkey.can_sign()
    back = to_cryptography(pkey)
    assert back is not None
    assert back.public_key() == key.public_key()
    assert certificate_of(pkey) is None


def test_an_rsa_key_signs_with_sha1() -> None:
    pkey = to_paramiko(KEYS["RSA"]())
    assert isinstance(pkey, paramiko.RSAKey)
    twin = Sha1RSAKey.of(pkey)
    signature = twin.sign_ssh_data(b"data", "ssh-rsa")
    signature.rewind()
    assert twin.verify_ssh_sig(b"data", signature)
