"""Read the host keys and algorithms of a server, without a login."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from airflow_sftp_backend.backend._protocol.codec import PacketReader, ProtocolError
from airflow_sftp_backend.backend.config import DEFAULT_PORT, BackendConfig
from airflow_sftp_backend.backend.errors import BackendUnavailable, printable, translate_connection_errors

from ._paramiko_compat import SHA1_RSA, SSHTransport
from .connect import close_transport, make_transport
from .host_certificates import fingerprint, key_type
from .known_hosts import known_hosts_line
from .socket_stream import SocketStream, connect_tcp

_IDENTIFICATION: Final = b"SSH-2.0-airflow_sftp_backend\r\n"
_DISCONNECT, _IGNORE, _DEBUG, _KEXINIT = 1, 2, 4, 20
_MAX_LINE_BYTES: Final = 8192
_MAX_PACKET_BYTES: Final = 256 << 10
_MOST_LINES: Final = 100
_KEY_TYPE_BY_ALGORITHM: Final = {
    **{name: name for name in ("ssh-ed25519", *(f"ecdsa-sha2-nistp{bits}" for bits in (256, 384, 521)))},
    **dict.fromkeys(("rsa-sha2-512", "rsa-sha2-256", SHA1_RSA), "ssh-rsa"),
}
"""Key type of each supported host key algorithm, SHA-1 last (RFC 8332 section 3)."""


@dataclass(frozen=True)
class HostKey:
    """Host key of a server. ``str()`` is its known_hosts line.

    :param host: name or address of the server
    :param port: port of the server
    :param blob: the key in SSH wire format (RFC 4253 section 6.6)
    """

    host: str
    port: int
    blob: bytes

    @property
    def type(self) -> str:
        """Type of the key, such as ``ssh-ed25519``."""
        return key_type(self.blob)

    @property
    def fingerprint(self) -> str:
        """Fingerprint as printed by ``ssh-keygen -l``: ``SHA256:`` and base64."""
        return fingerprint(self.blob)

    def __str__(self) -> str:
        return known_hosts_line(self.host, self.port, self.blob)


@dataclass(frozen=True, kw_only=True)
class HostAlgorithms:
    """Algorithms offered by a server, in its order.

    Ciphers, MACs and compression methods are those offered in both directions.
    """

    key_exchange: tuple[str, ...]
    host_keys: tuple[str, ...]
    ciphers: tuple[str, ...]
    macs: tuple[str, ...]
    compression: tuple[str, ...]


def parse_kexinit(payload: bytes) -> HostAlgorithms:
    """Parse the payload of an SSH_MSG_KEXINIT message (RFC 4253 section 7.1).

    :raises ValueError: if the payload is invalid
    """
    if payload[:1] != bytes([_KEXINIT]):
        raise ValueError("not a KEXINIT message")
    reader = PacketReader(memoryview(payload)[17:])  # after the cookie
    try:
        lists = [_parse_names(bytes(reader.view())) for _ in range(10)]  # the last two are languages
    except (ProtocolError, UnicodeDecodeError) as error:
        raise ValueError(f"a damaged KEXINIT message: {error}") from None
    exchange, keys, ciphers_in, ciphers_out, macs_in, macs_out, compression_in, compression_out, *_ = lists
    return HostAlgorithms(
        key_exchange=exchange,
        host_keys=keys,
        ciphers=tuple(name for name in ciphers_in if name in ciphers_out),
        macs=tuple(name for name in macs_in if name in macs_out),
        compression=tuple(name for name in compression_in if name in compression_out),
    )


def _parse_names(text: bytes) -> tuple[str, ...]:
    return tuple(name for name in text.decode("ascii").split(",") if name)


def scan_host_algorithms(host: str, port: int = DEFAULT_PORT, timeout: float = 10) -> HostAlgorithms:
    """Read the algorithms offered by a server from its first messages.

    Opens one connection without a login.

    :param host: name or address of the server
    :param port: port of the server
    :param timeout: longest time in seconds to connect, and again for the reply
    :returns: the algorithms
    :raises ValueError: if host or port are invalid
    :raises BackendUnavailable: if no SSH server answers
    """
    address = BackendConfig(host=host, port=port, timeout=timeout).address
    with translate_connection_errors(lambda: ("reading the server's algorithms", None), address):
        stream = connect_tcp(host, port, timeout=timeout, io_timeout=timeout)
        try:
            return _read_algorithms(_UnencryptedReader(stream, timeout))
        except (EOFError, OSError):
            if stream.greeting and not stream.greeting.startswith(b"SSH-"):
                raise _not_ssh_error(stream.greeting) from None
            raise
        finally:
            stream.close()


def _not_ssh_error(greeting: bytes) -> BackendUnavailable:
    text = printable(greeting.decode("utf-8", "replace"), 60)
    return BackendUnavailable(f"the server does not speak SSH but says {text!r}; check the port")


def _read_algorithms(reader: _UnencryptedReader) -> HostAlgorithms:
    reader.stream.send(_IDENTIFICATION)  # first: a server of another protocol may wait for its client
    # Other lines may precede the identification (RFC 4253 section 4.2).
    if not any(reader.line().startswith(b"SSH-") for _ in range(_MOST_LINES)):
        raise _not_ssh_error(reader.stream.greeting)
    while (message := reader.packet())[:1] in (bytes([_IGNORE]), bytes([_DEBUG])):
        pass
    if message[:1] == bytes([_DISCONNECT]):
        raise BackendUnavailable(f"the server disconnected: {printable(message[9:].decode('utf-8', 'replace'))!r}")
    return parse_kexinit(message)


class _UnencryptedReader:
    """Reads lines and packets before encryption starts, all within ``timeout`` seconds."""

    def __init__(self, stream: SocketStream, timeout: float) -> None:
        self.stream = stream
        self._deadline = time.monotonic() + timeout
        self._buffer = b""

    def line(self) -> bytes:
        """Read a line, without its line feed.

        :raises BackendUnavailable: if the line is too long
        """
        while b"\n" not in self._buffer:
            if len(self._buffer) > _MAX_LINE_BYTES:
                raise _not_ssh_error(self.stream.greeting)
            self._receive()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def packet(self) -> bytes:
        """Read the payload of a packet (RFC 4253 section 6)."""
        head = self._read_exactly(5)
        length, padding = int.from_bytes(head[:4], "big"), head[4]
        if not padding + 1 < length <= _MAX_PACKET_BYTES:
            raise BackendUnavailable("the server violates the SSH protocol: invalid packet length")
        return self._read_exactly(length - 1)[: length - 1 - padding]

    def _read_exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._receive()
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    def _receive(self) -> None:
        self.stream.settimeout(max(0.01, self._deadline - time.monotonic()))
        if time.monotonic() > self._deadline:
            raise TimeoutError
        received = self.stream.recv(_MAX_PACKET_BYTES)
        if not received:
            raise EOFError
        self._buffer += received


def scan_host_keys(host: str, port: int = DEFAULT_PORT, timeout: float = 10) -> list[HostKey]:
    """Read the host keys of a server, one of each supported type.

    Opens one connection to read the list of algorithms, then one connection for each key type.

    The server proves possession of each key. The caller must verify that the keys belong to the right server.

    :param host: name or address of the server
    :param port: port of the server
    :param timeout: longest time in seconds for each step
    :returns: the keys; their ``str()`` are known_hosts lines
    :raises ValueError: if host or port are invalid
    :raises BackendUnavailable: if no SSH server answers
    """
    offered = scan_host_algorithms(host, port, timeout).host_keys
    chosen: dict[str, str] = {}
    for algorithm, host_key_type in _KEY_TYPE_BY_ALGORITHM.items():
        if algorithm in offered:
            chosen.setdefault(host_key_type, algorithm)
    return [HostKey(host, port, _fetch_host_key(host, port, timeout, algorithm)) for algorithm in chosen.values()]


def _fetch_host_key(host: str, port: int, timeout: float, algorithm: str) -> bytes:
    """Return the server's key for one host key algorithm."""
    address = BackendConfig(host=host, port=port).address
    stream: SocketStream | None = None
    transport: SSHTransport | None = None
    with translate_connection_errors(
        lambda: (f"requesting the {algorithm} key", stream.failure if stream else None), address
    ):
        stream = connect_tcp(host, port, timeout=timeout, io_timeout=timeout)
        try:
            transport = make_transport(stream, timeout, legacy=algorithm == SHA1_RSA)
            transport.get_security_options().key_types = (algorithm,)
            stream.set_deadline(timeout, after_first_bytes=timeout)
            transport.start_client()
            return transport.get_remote_server_key().asbytes()
        finally:
            close_transport(transport, stream)
