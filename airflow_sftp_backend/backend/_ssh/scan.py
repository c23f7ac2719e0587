"""Asking a server who it is and what it speaks, without logging in."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from airflow_sftp_backend.backend._protocol.codec import PacketReader, ProtocolError
from airflow_sftp_backend.backend.config import DEFAULT_PORT, BackendConfig, HostKeyPolicy
from airflow_sftp_backend.backend.errors import BackendUnavailable, printable, translate_connection_errors

from ._paramiko_compat import SHA1_RSA, SSHTransport
from .connect import end_transport, make_transport
from .host_certificates import fingerprint, key_type
from .known_hosts import known_hosts_line
from .private_keys import load_private_key
from .socket_stream import Stream, dial

_IDENTIFICATION: Final = b"SSH-2.0-airflow_sftp_backend\r\n"
_DISCONNECT, _IGNORE, _DEBUG, _KEXINIT = 1, 2, 4, 20
_LONGEST_LINE: Final = 8192
_LONGEST_PACKET: Final = 256 << 10
_MOST_LINES: Final = 100
_KEY_TYPES: Final = {
    **{name: name for name in ("ssh-ed25519", *(f"ecdsa-sha2-nistp{bits}" for bits in (256, 384, 521)))},
    **dict.fromkeys(("rsa-sha2-512", "rsa-sha2-256", SHA1_RSA), "ssh-rsa"),
}
"""The type of key behind each host key algorithm that can be asked for; SHA-1 last (RFC 8332 section 3)."""


@dataclass(frozen=True)
class HostKey:
    """A key of a server. ``str()`` is its known_hosts line; ``blob`` the key in SSH wire format."""

    host: str
    port: int
    blob: bytes

    @property
    def type(self) -> str:
        """As ``ssh-ed25519``."""
        return key_type(self.blob)

    @property
    def fingerprint(self) -> str:
        """``SHA256:`` and base64, as ``ssh-keygen -l`` prints it."""
        return fingerprint(self.blob)

    def __str__(self) -> str:
        return known_hosts_line(self.host, self.port, self.blob)


@dataclass(frozen=True, kw_only=True)
class HostAlgorithms:
    """What a server offers, in its order. Of ciphers, MACs and compression: what it offers in both directions."""

    key_exchange: tuple[str, ...]
    host_keys: tuple[str, ...]
    ciphers: tuple[str, ...]
    macs: tuple[str, ...]
    compression: tuple[str, ...]


def parse_kexinit(payload: bytes) -> HostAlgorithms:
    """Reads an SSH_MSG_KEXINIT payload (RFC 4253 section 7.1). ValueError if it is none."""
    if payload[:1] != bytes([_KEXINIT]):
        raise ValueError("not a KEXINIT message")
    cursor = PacketReader(memoryview(payload)[17:])  # after the cookie
    try:
        lists = [_names(bytes(cursor.view())) for _ in range(10)]  # the last two are languages
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


def _names(text: bytes) -> tuple[str, ...]:
    return tuple(name for name in text.decode("ascii").split(",") if name)


def scan_host_algorithms(host: str, port: int = DEFAULT_PORT, timeout: float = 10) -> HostAlgorithms:
    """What the server at ``host`` offers, read from its own announcement. ``timeout`` is in seconds, for connecting and
    for the answer each.

    ValueError for an impossible host or port, BackendUnavailable if no SSH server answers.
    """
    address = BackendConfig(host=host, port=port, timeout=timeout).address
    with translate_connection_errors(lambda: ("asking what the server offers", None), address):
        stream = dial(host, port, timeout=timeout, io_timeout=timeout)
        try:
            return _announced(_Reader(stream, timeout))
        except (EOFError, OSError):
            if stream.greeting and not stream.greeting.startswith(b"SSH-"):
                raise _no_ssh(stream.greeting) from None
            raise
        finally:
            stream.close()


def _no_ssh(greeting: bytes) -> BackendUnavailable:
    said = printable(greeting.decode("utf-8", "replace"), 60)
    return BackendUnavailable(f"the server does not speak SSH but says {said!r}; check the port")


def _announced(reader: _Reader) -> HostAlgorithms:
    reader.stream.send(_IDENTIFICATION)  # at once: a server of another kind waits for its client to speak first
    if not any(reader.line().startswith(b"SSH-") for _ in range(_MOST_LINES)):  # others may come first (section 4.2)
        raise _no_ssh(reader.stream.greeting)
    while (message := reader.packet())[:1] in (bytes([_IGNORE]), bytes([_DEBUG])):
        pass
    if message[:1] == bytes([_DISCONNECT]):
        raise BackendUnavailable(f"the server hung up, saying {printable(message[9:].decode('utf-8', 'replace'))!r}")
    return parse_kexinit(message)


class _Reader:
    """Reads lines and packets of a conversation that is not encrypted yet, all within ``timeout`` seconds."""

    def __init__(self, stream: Stream, timeout: float) -> None:
        self.stream = stream
        self._end = time.monotonic() + timeout
        self._rest = b""

    def line(self) -> bytes:
        """Up to and without the line feed. BackendUnavailable if it is too long."""
        while b"\n" not in self._rest:
            if len(self._rest) > _LONGEST_LINE:
                raise _no_ssh(self.stream.greeting)
            self._more()
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def packet(self) -> bytes:
        """The payload of a packet (RFC 4253 section 6)."""
        head = self._take(5)
        length, padding = int.from_bytes(head[:4], "big"), head[4]
        if not padding + 1 < length <= _LONGEST_PACKET:
            raise BackendUnavailable("the server does not speak SSH as it should: a packet of an impossible length")
        return self._take(length - 1)[: length - 1 - padding]

    def _take(self, count: int) -> bytes:
        while len(self._rest) < count:
            self._more()
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def _more(self) -> None:
        self.stream.settimeout(max(0.01, self._end - time.monotonic()))
        if time.monotonic() > self._end:
            raise TimeoutError
        received = self.stream.recv(_LONGEST_PACKET)
        if not received:
            raise EOFError
        self._rest += received


def scan_host_keys(host: str, port: int = DEFAULT_PORT, timeout: float = 10) -> list[HostKey]:
    """The keys the server at ``host`` has, one of each type, as it proves to own them; their ``str()`` are known_hosts
    lines. They are what the server at that address shows now: whether it is the right one, somebody else must say.

    Connects once and once more for each type; ``timeout`` is in seconds, for each step. A type that is not known here
    is left out. ValueError for an impossible host or port, BackendUnavailable if no SSH server answers.
    """
    offered = scan_host_algorithms(host, port, timeout).host_keys
    chosen: dict[str, str] = {}
    for algorithm, kind in _KEY_TYPES.items():
        if algorithm in offered:
            chosen.setdefault(kind, algorithm)
    return [HostKey(host, port, _fetch(host, port, timeout, algorithm)) for algorithm in chosen.values()]


def _fetch(host: str, port: int, timeout: float, algorithm: str) -> bytes:
    """The key the server shows where only ``algorithm`` is asked for."""
    address = BackendConfig(host=host, port=port).address
    stream: Stream | None = None
    transport: SSHTransport | None = None
    with translate_connection_errors(
        lambda: (f"asking for the {algorithm} key", stream.failure if stream else None), address
    ):
        stream = dial(host, port, timeout=timeout, io_timeout=timeout)
        try:
            transport = make_transport(stream, timeout, legacy=algorithm == SHA1_RSA)
            transport.get_security_options().key_types = (algorithm,)
            stream.limit(timeout, then=timeout)
            transport.start_client()
            return transport.get_remote_server_key().asbytes()
        finally:
            end_transport(transport, stream)


class SFTPUtils:
    """What goes with a backend: host key policies, private keys, and looking at a server from outside."""

    HostKeyPolicy = HostKeyPolicy
    load_private_key = staticmethod(load_private_key)
    scan_host_keys = staticmethod(scan_host_keys)
    scan_host_algorithms = staticmethod(scan_host_algorithms)
