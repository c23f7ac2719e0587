"""Use the unpublished parts of paramiko, in no other module but `_paramiko_packets`.

The facts come from the sources of paramiko 5.0 and 5.1. pyproject.toml limits the version, and the tests of this module
name a part that is missing or changed in a later version.
"""

from __future__ import annotations

import io
import logging
import math
import socket
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, cast

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA1
from paramiko.auth_handler import AuthOnlyHandler

from ._paramiko_packets import CHANNEL_DATA, ChannelData, FastPacketizer, Inbox, ReceivedData
from .host_certificates import CERTIFICATE_SUFFIX

if TYPE_CHECKING:
    from paramiko.buffered_pipe import BufferedPipe

    from airflow_sftp_backend.backend._protocol.channel import SSHChannel

SHA1_RSA: Final = "ssh-rsa"
_SHA1_CERTIFICATE: Final = f"{SHA1_RSA}{CERTIFICATE_SUFFIX}"
_COOKIE: Final = 16
"""Bytes before the first list of a KEXINIT message (RFC 4253 section 7.1)."""
_SERVICE_REQUEST, _SERVICE_ACCEPT, _AUTH_REQUEST = 5, 6, 50
"""Message numbers (RFC 4250 section 4.1.2)."""
_POLL: Final = 0.1
"""Seconds between two checks whether the connection is alive, as in paramiko's own loop."""
_MAX_SENT: Final = 256 << 10
"""Maximum bytes that are sent on a channel with one call."""
_INHERITED: Final = vars(paramiko.Transport)

PrivateKey = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey


# -- transport --------------------------------------------------------------------------------------------------------


class SocketLike:
    """Base of a substitute for a transport's socket."""

    @property
    def _closed(self) -> bool:
        # ``Transport.stop_thread`` reads this private attribute of a socket.
        return self.is_closed()

    def is_closed(self) -> bool:
        """Tell whether `close` was called.

        :returns: True if it was.
        """
        raise NotImplementedError


class _DebugLog(logging.LoggerAdapter[logging.Logger]):
    """Lowers records to level DEBUG.

    paramiko logs each failure, with a traceback, before raising.
    """

    def log(self, level: int, msg: object, *args: object, **options: Any) -> None:
        """Pass a record on, at level DEBUG at most."""
        self.logger.log(min(level, logging.DEBUG), msg, *args, **options)


@dataclass(frozen=True)
class AgreedAlgorithms:
    """Algorithms agreed on by client and server; blank before the agreement.

    :ivar mac: blank if the cipher authenticates by itself.
    :ivar strict_key_exchange: True if the countermeasure to Terrapin (CVE-2023-48795) is in effect.
    """

    key_exchange: str = ""
    cipher: str = ""
    mac: str = ""
    compression: str = ""
    strict_key_exchange: bool = False


def _feed(channel: paramiko.Channel, message: paramiko.Message | ReceivedData) -> None:
    """Give received content to the channel, if possible without a copy."""
    if isinstance(message, ReceivedData) and isinstance(channel.in_buffer, Inbox):
        channel.in_buffer.feed(message.content)
    else:
        channel._feed(message)  # type: ignore[attr-defined] # the stub leaves it out


class SSHTransport(paramiko.Transport):
    """Transport that keeps facts which paramiko only logs.

    Its own log records have level DEBUG.

    :ivar disconnect_message: the server's reason for the end of the connection (RFC 4253 section 11.1), unchanged;
        None without a reason
    """

    disconnect_message: str | None = None
    _key_exchange = ""

    _channel_handler_table = {**_INHERITED["_channel_handler_table"], CHANNEL_DATA: _feed}  # noqa: RUF012

    def __init__(self, sock: socket.socket, **options: Any) -> None:
        super().__init__(sock, **options)
        self.logger = cast("logging.Logger", _DebugLog(self.logger))

    def _parse_disconnect(self, message: paramiko.Message) -> None:
        code = message.get_int()
        self.disconnect_message = message.get_string().decode("utf-8", "replace")
        self.logger.debug("Disconnect (code %d): %s", code, self.disconnect_message)

    def _parse_kex_init(self, message: paramiko.Message) -> None:
        message.get_bytes(_COOKIE)
        offered = message.get_list()
        message.rewind()
        # The first of the client's methods that the server offers (RFC 4253 section 7.1), kept by paramiko nowhere.
        self._key_exchange = next((name for name in self.preferred_kex if name in offered), "")
        super()._parse_kex_init(message)  # type: ignore[misc] # the stub leaves it out

    def open_channel(self, kind: str, *args: Any, **options: Any) -> paramiko.Channel:
        """Open a channel; a session receives into an `Inbox`."""
        channel = super().open_channel(kind, *args, **options)
        # The server sends nothing on a session before a program is requested, so nothing is lost here.
        if kind == "session" and isinstance(self.packetizer, FastPacketizer):
            channel.in_buffer = cast("BufferedPipe[Any]", Inbox(self.packetizer))
        return channel

    @property
    def server_version(self) -> str:
        """The server's identification, as ``SSH-2.0-OpenSSH_9.2``; blank before it arrived."""
        return self.remote_version

    def agreed_algorithms(self) -> AgreedAlgorithms:
        """Return the result of the key exchange.

        :returns: the algorithms; fields are blank before the agreement.
        """
        cipher = self.local_cipher
        strict: bool = self.agreed_on_strict_kex  # type: ignore[attr-defined] # the stub leaves it out
        return AgreedAlgorithms(
            key_exchange=self._key_exchange,
            cipher=cipher,
            mac="" if "gcm@" in cipher else self.local_mac or "",
            compression=(self.local_compression or "none") if cipher else "",
            strict_key_exchange=strict,
        )

    def proposed_algorithms(self) -> dict[str, tuple[str, ...]]:
        """Return the algorithms proposed to the server.

        :returns: algorithm names, best first, by the field names of `HostAlgorithms`.
        """
        return {
            "key_exchange": tuple(self.preferred_kex),
            "host_keys": tuple(self.preferred_keys),
            "ciphers": tuple(self.preferred_ciphers),
            "macs": tuple(self.preferred_macs),
        }

    def set_timeouts(self, seconds: float) -> None:
        """Set all time limits of the transport.

        :param seconds: limit for the banner, the key exchange, each authentication request and each channel.
        """
        self.banner_timeout = self.handshake_timeout = seconds
        self.auth_timeout = self.channel_timeout = seconds

    def watch_connection(self, keepalive_seconds: float, io_timeout: float | None) -> None:
        """Send keepalives, and limit the time of each key exchange.

        :param keepalive_seconds: silence before a keepalive; 0 for none.
        :param io_timeout: longest key exchange in seconds; None for no limit.
        """
        self.clear_to_send_timeout = math.inf if io_timeout is None else io_timeout
        transport = weakref.proxy(self)

        def keep_alive() -> None:
            # During a key exchange, this thread would wait for itself: it is the one that reads the server's part.
            if transport.clear_to_send.is_set():
                transport.global_request("keepalive@lag.net", wait=False)

        self.packetizer.set_keepalive(keepalive_seconds, keep_alive)

    def _send_user_message(self, data: paramiko.Message) -> None:
        try:
            super()._send_user_message(data)  # type: ignore[misc] # the stub leaves it out
        except paramiko.SSHException:  # its only cause: the key exchange does not end
            raise TimeoutError from None

    def abort(self) -> None:
        """Let the transport's thread end, without waiting.

        Takes no lock: signal handlers and the garbage collector may call this.
        """
        self.stop_thread()

    def stop_threads(self, seconds: float) -> bool:
        """Stop the threads of the transport and wait for them.

        :param seconds: longest time to wait.
        :returns: False if the thread still runs.
        """
        self.stop_thread()
        if self.is_alive():
            self.join(seconds)
        self.packetizer.complete_handshake()  # ends the timer's thread
        return not self.is_alive()


class FastChannel:
    """Sends several packets at once.

    :param channel: the channel
    """

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._transport: Any = channel.transport  # the stub leaves out the method that sends
        self.recv_ready, self.send_ready, self.recv = channel.recv_ready, channel.send_ready, channel.recv
        self.close = channel.close

    def send(self, data: bytes | memoryview) -> int:
        """Send a part of the data.

        :returns: size of the part in bytes; 0 if the channel is closed while the call waits
        :raises OSError: if the channel is already closed
        """
        channel = self._channel
        with channel.lock:
            if channel.closed:
                raise OSError("Socket is closed")
            size: int = channel._wait_for_send_window(len(data))  # type: ignore[attr-defined] # the stub leaves it out
            if not size:
                return 0
            remaining = min(len(data), _MAX_SENT) - size
            if remaining > 0:
                additional = min(remaining, channel.out_window_size)
                channel.out_window_size -= additional
                size += additional
            content = ChannelData(channel.remote_chanid, memoryview(data)[:size], channel.out_max_packet_size - 64)
        self._transport._send_user_message(content)
        return size


def buffer_channel(channel: paramiko.Channel) -> SSHChannel:
    """Wrap a channel to send several packets at once.

    :param channel: the channel
    :returns: the wrapper; ``channel`` itself without an `Inbox`
    """
    if isinstance(getattr(channel, "in_buffer", None), Inbox):
        return FastChannel(channel)
    return cast("SSHChannel", channel)


# -- SHA-1 ------------------------------------------------------------------------------------------------------------


class Sha1RSAKey(paramiko.RSAKey):
    """RSA key that also makes and verifies SHA-1 signatures."""

    # The stub says Final; paramiko reads it through self.
    HASHES = {  # type: ignore[misc] # noqa: RUF012
        **paramiko.RSAKey.HASHES,
        SHA1_RSA: SHA1,
        _SHA1_CERTIFICATE: SHA1,
    }

    @classmethod
    def of(cls, key: paramiko.RSAKey) -> Sha1RSAKey:
        """Copy a key with its certificate.

        :param key: any RSA key.
        :returns: the same key, with SHA-1.
        """
        twin = cls(key=key.key)
        twin.public_blob = key.public_blob
        return twin


class Sha1Transport(SSHTransport):
    """Transport with SHA-1 ``ssh-rsa`` as last choice for host key and login.

    paramiko 5.0 removed these signatures. Only this subclass restores them, so every other connection of the process
    still refuses them.
    """

    # The proposed algorithms in order, and the class for the signatures of each.
    _preferred_keys = (*_INHERITED["_preferred_keys"], SHA1_RSA)
    _preferred_pubkeys = (*_INHERITED["_preferred_pubkeys"], SHA1_RSA)
    _key_info = {  # noqa: RUF012
        **_INHERITED["_key_info"],
        SHA1_RSA: Sha1RSAKey,
        _SHA1_CERTIFICATE: Sha1RSAKey,
    }

    @property
    def preferred_pubkeys(self) -> Sequence[str]:
        """Login algorithms, best first.

        The authentication handler takes the algorithm of an RSA key from here.
        """
        return self.order_login_algorithms(super().preferred_pubkeys)

    def order_login_algorithms(self, names: Sequence[str]) -> Sequence[str]:
        """Order the login algorithms; a subclass overrides this.

        :param names: those that are enabled, ``ssh-rsa`` last.
        :returns: the same names, best first.
        """
        return names

    @property
    def login_algorithms(self) -> Sequence[str]:
        """The login algorithms in the order of `order_login_algorithms`."""
        return self.preferred_pubkeys

    @property
    def host_key_algorithm(self) -> str:
        """Agreed algorithm of the host key; blank before the agreement."""
        return self.host_key_type or ""

    @property
    def server_login_algorithms(self) -> list[str]:
        """Algorithms of the server's ``server-sig-algs`` (RFC 8308 section 3.1).

        Empty if the server sent none.
        """
        extensions: dict[str, bytes] = self.server_extensions  # type: ignore[attr-defined] # the stub leaves it out
        return [name for name in extensions.get("server-sig-algs", b"").decode("ascii", "replace").split(",") if name]


# -- login ------------------------------------------------------------------------------------------------------------


class PasswordExpired(paramiko.AuthenticationException):
    """The server asks for a new password.

    :ivar prompt: its text.
    """

    def __init__(self, prompt: str) -> None:
        super().__init__(prompt)
        self.prompt = prompt


class AuthRequestHandler(AuthOnlyHandler):
    """Sends one authentication request and waits for its reply.

    paramiko's own handlers request the service again with each request, and some servers then disconnect. They can
    miss a quick reply, and mistake a request for a new password for a broken connection.
    """

    @classmethod
    def attach(cls, transport: paramiko.Transport) -> Self:
        """Make a handler and let the transport give it the server's replies.

        :param transport: the connection.
        :returns: the handler, in place of an earlier one.
        """
        transport.auth_handler = handler = cls(transport)
        return handler

    @property
    def _client_handler_table(self) -> dict[int, Callable[[paramiko.Message], None]]:
        inherited = super()._client_handler_table  # type: ignore[misc] # the stub leaves it out
        return {**inherited, _SERVICE_ACCEPT: self._service_accepted}

    def _service_accepted(self, _message: paramiko.Message) -> None:
        self._accepted.set()

    def request_service(self) -> None:
        """Request the service of all authentication requests (RFC 4252 section 4).

        :raises EOFError: if the connection ends before the reply.
        """
        self._accepted = threading.Event()
        request = paramiko.Message()
        request.add_byte(bytes([_SERVICE_REQUEST]))
        request.add_string("ssh-userauth")
        self.transport.packetizer.send_message(request)
        while not self._accepted.wait(_POLL):
            if not self.transport.is_active():
                raise self.transport.get_exception() or EOFError()

    def _parse_userauth_info_request(self, message: paramiko.Message) -> None:
        if self.auth_method != "password":
            super()._parse_userauth_info_request(message)  # type: ignore[misc] # the stub leaves it out
            return
        # Within the password method this number is SSH_MSG_USERAUTH_PASSWD_CHANGEREQ (RFC 4252 section 8).
        prompt = message.get_string().decode("utf-8", "replace")
        self.transport.saved_exception = PasswordExpired(prompt)
        self.authenticated = False
        if self.auth_event is not None:
            self.auth_event.set()

    def send_auth_request(
        self, username: str, method: str, finish_message: Callable[[paramiko.Message], None] | None = None
    ) -> list[str]:
        """Send a request and wait for the reply.

        :param username: the name to log in with.
        :param method: the authentication method, such as ``publickey``.
        :param finish_message: adds the fields of the method.
        :returns: the methods wanted next by the server; empty once the user is logged in.
        :raises paramiko.AuthenticationException: if the server refuses the request.
        """
        self.auth_method = method
        self.username = username
        self.auth_event = threading.Event()
        request = paramiko.Message()
        request.add_byte(bytes([_AUTH_REQUEST]))
        for text in (username, "ssh-connection", method):
            request.add_string(text)
        if finish_message is not None:
            finish_message(request)
        self.transport.packetizer.send_message(request)
        return self.wait_for_response(self.auth_event)


# -- keys -------------------------------------------------------------------------------------------------------------


def to_paramiko(key: PrivateKey) -> paramiko.PKey:
    """Convert a private key from cryptography to paramiko.

    :param key: the key; only elliptic curves of SSH are supported.
    :returns: the same key.
    """
    if isinstance(key, RSAPrivateKey):
        return paramiko.RSAKey(key=key)
    if isinstance(key, EllipticCurvePrivateKey):
        return paramiko.ECDSAKey(vals=(key, key.public_key()))
    return paramiko.Ed25519Key.from_private_key(io.StringIO(openssh_text(key)))


def to_cryptography(pkey: paramiko.PKey) -> PrivateKey | None:
    """Convert a private key from paramiko to cryptography.

    :param pkey: the key.
    :returns: the same key; None if its private part cannot be read, as with the keys of an SSH agent.
    """
    if isinstance(pkey, paramiko.RSAKey) and isinstance(pkey.key, RSAPrivateKey):
        return pkey.key
    if isinstance(pkey, paramiko.ECDSAKey) and isinstance(pkey.signing_key, EllipticCurvePrivateKey):
        return pkey.signing_key
    if isinstance(pkey, paramiko.Ed25519Key) and (seed := getattr(pkey, "_signing_key", None)) is not None:
        return Ed25519PrivateKey.from_private_bytes(bytes(seed))
    return None


def openssh_text(key: PrivateKey) -> str:
    """Write a private key as unencrypted OpenSSH text.

    :param key: the key.
    :returns: lines that begin with ``-----BEGIN OPENSSH PRIVATE KEY-----``.
    """
    form = serialization.PrivateFormat.OpenSSH
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def certificate_of(pkey: paramiko.PKey) -> tuple[str, bytes] | None:
    """Return the certificate of a private key or a host key.

    :param pkey: the key.
    :returns: type, such as ``ssh-ed25519-cert-v01@openssh.com``, and content in wire format; None without certificate.
    """
    blob = getattr(pkey, "public_blob", None)  # keys of a caller's own class may lack the attribute
    return None if blob is None else (blob.key_type, blob.key_blob)
