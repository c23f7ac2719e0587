"""The way through another server: a ``direct-tcpip`` channel (RFC 4254 section 7.2) of a connection, as a socket."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, cast

import paramiko

from airflow_sftp_backend.backend.errors import BackendUnavailable, printable

from .socket_stream import SocketStream

_PROHIBITED: Final = 1
"""SSH_OPEN_ADMINISTRATIVELY_PROHIBITED (RFC 4254 section 5.1)."""
_ORIGIN: Final = ("127.0.0.1", 0)
_WINDOW: Final = 32 << 20
"""Bytes the jump server may send on before the channel is read."""
_MAX_PACKET_SIZE: Final = 32 << 10


class ForwardingDenied(BackendUnavailable):
    """The jump server forwards nothing there: another try would end the same way."""


class JumpHost:
    """A connection to a jump server, for one channel through it. ``end`` ends it for good, its threads with it."""

    def __init__(
        self, transport: paramiko.Transport, stream: SocketStream, address: str, end: Callable[[], None]
    ) -> None:
        self.stream = stream
        self.end = end
        self._transport = transport
        self._address = address
        self._failure_reason: str | None = None

    def failure_reason(self) -> str:
        """Why the jump server was gone before the way was left, if it was."""
        if self._failure_reason is None:
            failure = self.stream.failure
            self._failure_reason = f"the jump server {self._address}: {failure}" if failure else ""
        return self._failure_reason

    def abort(self) -> None:
        """Leaves the way. Takes no lock."""
        self.failure_reason()  # what follows is of this side's making
        self.stream.abort()

    def open_stream(self, host: str, port: int, *, timeout: float, io_timeout: float | None) -> SocketStream:
        """The line to a server behind. Raises BackendUnavailable if the jump server does not get there, Forbidden if it
        may not.
        """
        try:
            channel = self._transport.open_channel(
                "direct-tcpip",
                (host, port),
                _ORIGIN,
                window_size=_WINDOW,
                max_packet_size=_MAX_PACKET_SIZE,
                timeout=timeout,
            )
        except paramiko.ChannelException as error:
            server_text = printable(error.text).lower()
            if error.code == _PROHIBITED:
                raise ForwardingDenied(
                    f"the jump server {self._address} does not forward to {host}:{port} ({server_text}); have it"
                    " allowed there (in OpenSSH's sshd_config: AllowTcpForwarding yes, and"
                    f" {host}:{port} in PermitOpen if it is set)"
                ) from None
            raise BackendUnavailable(
                f"the jump server {self._address} does not reach {host}:{port} ({server_text}); check host and port"
                " as they are seen from there, and the firewalls between"
            ) from None
        channel_socket = cast("socket.socket", _ChannelSocket(channel, self, (host, port)))
        return SocketStream(channel_socket, io_timeout=io_timeout, tunnel=self)


class _ChannelSocket:
    """A channel, as `SocketStream` uses a socket."""

    family = socket.AF_UNSPEC

    def __init__(self, channel: paramiko.Channel, jump_host: JumpHost, target: tuple[str, int]) -> None:
        self._channel = channel
        self._jump_host = jump_host
        self._target = target
        self._closed = False

    def settimeout(self, seconds: float | None) -> None:
        """How long one read or write may block."""
        self._channel.settimeout(seconds)

    def recv_into(self, buffer: memoryview) -> int:
        """Reads into the buffer; the number of bytes, 0 at the end."""
        data = self._channel.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def send(self, data: bytes) -> int:
        """Writes some of it; the number of bytes written."""
        return self._channel.send(data)

    def shutdown(self, how: int) -> None:  # noqa: ARG002 - the way has no other use
        """Leaves the way. Takes no lock."""
        self._jump_host.abort()

    def close(self) -> None:
        """Mark as closed. The connection to the jump host ends with the stream."""
        self._closed = True

    def fileno(self) -> int:
        """-1 once it is closed; no descriptor to wait on otherwise."""
        return -1 if self._closed else 0

    def getpeername(self) -> tuple[str, int]:
        """The server behind."""
        return self._target
