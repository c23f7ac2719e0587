"""Connect through a jump host.

The socket is a ``direct-tcpip`` channel of the jump host's connection (RFC 4254 section 7.2).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, cast

import paramiko

from airflow_sftp_backend.backend.errors import BackendUnavailable, printable

from .socket_stream import SocketStream

_PROHIBITED: Final = 1
"""SSH_OPEN_ADMINISTRATIVELY_PROHIBITED (RFC 4254 section 5.1)."""
# The originator's address, which a server only logs (RFC 4254 section 7.2).
_ORIGIN: Final = ("127.0.0.1", 0)
_WINDOW: Final = 32 << 20
"""Receive window of the channel, in bytes."""
_MAX_PACKET_SIZE: Final = 32 << 10


class ForwardingDenied(BackendUnavailable):
    """The jump host refuses to forward to the target.

    Another attempt would fail in the same way.
    """


class JumpHost:
    """Connection to a jump host, for one channel to the target.

    :param transport: the SSH connection
    :param stream: the stream under the SSH connection
    :param address: the jump host as ``sftp://host:port``
    :param close: ends the connection with its threads
    """

    def __init__(
        self, transport: paramiko.Transport, stream: SocketStream, address: str, close: Callable[[], None]
    ) -> None:
        self.stream = stream
        self.close = close
        self._transport = transport
        self._address = address
        self._failure_reason: str | None = None

    def failure_reason(self) -> str:
        """Return the reason for a lost connection.

        Blank without a reason, or if `abort` ended the connection.
        """
        if self._failure_reason is None:
            failure = self.stream.failure
            self._failure_reason = f"the jump host {self._address}: {failure}" if failure else ""
        return self._failure_reason

    def abort(self) -> None:
        """End the connection. Takes no lock."""
        self.failure_reason()  # stored before the abort itself becomes the reason
        self.stream.abort()

    def open_stream(self, host: str, port: int, *, timeout: float, io_timeout: float | None) -> SocketStream:
        """Open a ``direct-tcpip`` channel to a server (RFC 4254 section 7.2).

        :param host: name or address of the server
        :param port: port of the server
        :param timeout: longest time in seconds to open the channel
        :param io_timeout: longest time in seconds in which nothing can be sent
        :raises ForwardingDenied: if the jump host may not connect to the server
        :raises BackendUnavailable: if the jump host cannot connect to the server
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
                    f"the jump host {self._address} does not forward to {host}:{port} ({server_text}); have the"
                    " forwarding allowed (in OpenSSH's sshd_config: AllowTcpForwarding yes, and"
                    f" {host}:{port} in PermitOpen if PermitOpen is set)"
                ) from None
            raise BackendUnavailable(
                f"the jump host {self._address} cannot reach {host}:{port} ({server_text}); check host and port"
                " as seen from the jump host, and the firewalls between"
            ) from None
        channel_socket = cast("socket.socket", _ChannelSocket(channel, self, (host, port)))
        return SocketStream(channel_socket, io_timeout=io_timeout, tunnel=self)


class _ChannelSocket:
    """Adapt a channel to the socket methods used by `SocketStream`."""

    family = socket.AF_UNSPEC

    def __init__(self, channel: paramiko.Channel, jump_host: JumpHost, target: tuple[str, int]) -> None:
        self._channel = channel
        self._jump_host = jump_host
        self._target = target
        self._closed = False

    def settimeout(self, seconds: float | None) -> None:
        """Set the longest time in seconds for one read or write."""
        self._channel.settimeout(seconds)

    def recv_into(self, buffer: memoryview) -> int:
        """Read into the buffer.

        Returns the number of bytes, 0 at the end.
        """
        data = self._channel.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def send(self, data: bytes) -> int:
        """Write a part of the data. Returns the number of bytes written."""
        return self._channel.send(data)

    def shutdown(self, how: int) -> None:  # noqa: ARG002 - the connection has no other use
        """End the connection to the jump host. Takes no lock."""
        self._jump_host.abort()

    def close(self) -> None:
        """Mark as closed.

        The connection to the jump host ends with the stream.
        """
        self._closed = True

    def fileno(self) -> int:
        """Return -1 after `close`, otherwise 0."""
        # SocketStream only compares with -1: a channel has no descriptor.
        return -1 if self._closed else 0

    def getpeername(self) -> tuple[str, int]:
        """Return host and port of the target."""
        return self._target
