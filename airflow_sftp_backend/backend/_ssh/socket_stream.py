"""Connect by TCP or a proxy command, for paramiko."""

from __future__ import annotations

import errno
import math
import os
import re
import shlex
import signal
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from typing import IO, Final, Protocol

from airflow_sftp_backend.backend._forks import ForkAware
from airflow_sftp_backend.backend.errors import BackendUnavailable, printable

from ._paramiko_compat import SocketLike

SERVER_CLOSED: Final = "the server closed the connection"
_BUFFER_SIZE: Final = 256 << 10
_QUICKACK: Final[int | None] = getattr(socket, "TCP_QUICKACK", None)  # Linux only
_IDLE_TIMEOUT: Final = 0.5
"""Longest time in seconds for one read of an idle connection. paramiko's ten reads per second would cost too much CPU
time for an idle connection; a deadline set during a read must still be noticed in time."""
_PROXY_EXIT_SECONDS: Final = 1.0
"""Seconds to wait for the exit of a proxy command before it is killed."""

TCPAddress = tuple[str, int]


class Tunnel(Protocol):
    """Carries a connection through a jump host or a proxy command."""

    def failure_reason(self) -> str:
        """Return the reason for a failure of the tunnel; blank if unknown."""

    def close(self) -> None:
        """End the tunnel."""


class SocketStream(ForkAware, SocketLike):
    """Adapts a connected socket to paramiko.

    A single thread reads, others write, and any thread may end the stream.

    Reads use a large buffer: a system call reads many packets. The end of the stream is an EOFError with the reason in
    ``failure``, because paramiko waits forever after TimeoutError and drops most other reasons.

    :param connected: the socket
    :param io_timeout: longest time in seconds in which nothing can be written
    :param tunnel: tunnel to end together with the stream
    :ivar greeting: first bytes received, at most 200
    :ivar failure: reason for the end of the stream; None if this side closed it
    :ivar closed_by_server: True if the server closed the connection, not a jump host or proxy command
    :ivar timed_out: True if the stream ended at a deadline
    """

    def __init__(self, connected: socket.socket, *, io_timeout: float | None, tunnel: Tunnel | None = None) -> None:
        self._socket = connected
        self._io_timeout = io_timeout
        self._tunnel = tunnel
        self._buffer = memoryview(bytearray(_BUFFER_SIZE))
        self._start = self._end = 0
        self._deadline: float | None = None
        self._abort_at = math.inf
        self._deadline_seconds = self._after_first_bytes = 0.0
        self._stalled_since: float | None = None
        self._timeout: float | None = None
        self._idle = False
        self._reader: int | None = None
        self._uses_quickack = _QUICKACK is not None and connected.family in (socket.AF_INET, socket.AF_INET6)
        self._write_lock = threading.Lock()
        self._ended = False
        self.greeting = b""
        self.failure: str | None = None
        self.closed_by_server = False
        self.timed_out = False
        super().__init__()

    def set_deadline(self, seconds: float | None, *, after_first_bytes: float = 0.0) -> None:
        """Set the end of the stream, in place of the last deadline.

        :param seconds: time until the end; None for no deadline
        :param after_first_bytes: set a new deadline of that many seconds with the first bytes received; 0 for none
        """
        now = time.monotonic()
        self._deadline = None
        self._deadline_seconds, self._after_first_bytes = seconds or 0.0, after_first_bytes
        self._deadline = None if seconds is None else now + seconds

    def abort_within(self, seconds: float) -> None:
        """End the stream after some seconds, independent of `set_deadline`. Takes no lock."""
        self._abort_at = time.monotonic() + seconds

    def settimeout(self, seconds: float | None) -> None:
        """Set the time after which a read or write raises TimeoutError.

        Reads of an idle stream without a deadline block for up to `_IDLE_TIMEOUT`.

        :param seconds: the time; None for no limit
        """
        self._timeout, self._idle = seconds, False
        self._socket.settimeout(seconds)

    def recv(self, count: int) -> bytes:
        """Read up to ``count`` bytes; empty at the end of the stream."""
        self._reader = threading.get_ident()
        if self._start == self._end:
            self._fill()
        start, self._start = self._start, min(self._start + count, self._end)
        return bytes(self._buffer[start : self._start])

    def take(self, count: int) -> memoryview | None:
        """Take ``count`` bytes that have been received, without a copy.

        :param count: the bytes
        :returns: a view, valid until the next `recv`; None if fewer bytes have been received
        """
        start, end = self._start, self._start + count
        if end > self._end:
            return None
        self._start = end
        return self._buffer[start:end]

    def _fill(self) -> None:
        self._check_deadlines()
        try:
            self._start, self._end = 0, self._socket.recv_into(self._buffer)
        except OSError as error:
            if _is_timeout(error):
                self._set_idle(self._deadline is None and self._abort_at == math.inf)
                raise
            raise self._fail_on(error) from None
        self._set_idle(False)
        if not self._end:
            self._fail(SERVER_CLOSED, by_server=True)
        elif self._uses_quickack:
            self._set_quickack()
        if not self.greeting:
            self.greeting = bytes(self._buffer[: min(self._end, 200)])
        if self._after_first_bytes and self._end:
            self.set_deadline(self._after_first_bytes)

    def _set_idle(self, idle: bool) -> None:
        if idle == self._idle or self._timeout is None:
            return
        self._idle = idle
        with suppress(OSError):  # the stream has ended: the next read or write reports the reason
            self._socket.settimeout(max(self._timeout, _IDLE_TIMEOUT) if idle else self._timeout)

    def _set_quickack(self) -> None:
        """Acknowledge the next bytes without delay."""
        # sshd delays small packets until earlier packets are acknowledged (Nagle's algorithm). With a delayed
        # acknowledgement on this side, each such packet takes 40 ms. TCP_QUICKACK is not permanent (tcp(7)).
        assert _QUICKACK is not None
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        except OSError:  # the stream has ended: the next read or write reports the reason
            self._uses_quickack = False

    def send(self, data: bytes) -> int:
        """Write a part of the data. Returns the number of bytes written."""
        with self._write_lock:
            try:
                sent = self._socket.send(data)
            except OSError as error:
                if not _is_timeout(error):
                    raise self._fail_on(error) from None
                self._check_deadlines()
                self._check_stall()
                raise
            self._stalled_since = None
            return sent

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        if now >= self._abort_at:
            raise self._fail("the connection was aborted")
        if self._deadline is not None and now >= self._deadline:
            self.timed_out = True
            raise self._fail(f"no answer within {self._deadline_seconds:g} s")

    def _check_stall(self) -> None:
        now = time.monotonic()
        if self._stalled_since is None:
            self._stalled_since = now
        elif self._io_timeout is not None and now - self._stalled_since >= self._io_timeout:
            raise self._fail(f"nothing could be sent for {self._io_timeout:g} s: the server or the network has stalled")

    def _fail_on(self, error: OSError) -> EOFError:
        if isinstance(error, TimeoutError):
            return self._fail("the network is interrupted: the server acknowledges no data")
        if isinstance(error, ConnectionError):
            return self._fail(SERVER_CLOSED, by_server=True)
        return self._fail(f"the connection broke: {error.strerror or error}")

    def _fail(self, reason: str, *, by_server: bool = False) -> EOFError:
        first, tunnel = self.failure is None and not self._ended, self._tunnel
        if first:
            self.failure, self.closed_by_server = reason, by_server
        self.abort()
        if first and tunnel is not None and (tunnel_reason := tunnel.failure_reason()):
            self.failure, self.closed_by_server = f"{reason} ({tunnel_reason})", False
        return EOFError(reason)

    def abort(self, reason: str | None = None) -> None:
        """End the stream at once in both directions.

        Takes no lock: signal handlers and the garbage collector may call this.

        :param reason: reason for the end, unless there is an earlier one
        """
        self.failure = self.failure or reason
        if not self.is_inherited:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the stream."""
        self._ended = True
        self.abort()
        # The descriptor is closed by the reading thread, or here without one. Otherwise another connection could get
        # the same descriptor while the thread still reads from it.
        if self._reader in (None, threading.get_ident()):
            self.close_descriptor()

    def close_descriptor(self) -> None:
        """Close the descriptor and end the tunnel.

        Call this only after all reading threads have ended.
        """
        with self._write_lock:
            self._socket.close()
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            tunnel.close()

    def abandon_after_fork(self) -> None:
        """Close a forked child's copy of the descriptor.

        The parent's connection stays open.
        """
        self._socket.close()

    def is_closed(self) -> bool:
        """Return whether the socket is closed."""
        return self._socket.fileno() == -1

    def getpeername(self) -> object:
        """Return the address of the peer, in the format of the socket."""
        return self._socket.getpeername()

    def tcp_addresses(self) -> tuple[TCPAddress, TCPAddress] | None:
        """Return the local and the remote address; None without TCP."""
        if self._socket.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        try:
            own, peer = self._socket.getsockname(), self._socket.getpeername()
        except OSError:  # the connection is lost
            return None
        return (own[0], own[1]), (peer[0], peer[1])


def _is_timeout(error: OSError) -> bool:
    """Return whether the error is the timeout of the socket.

    TCP's own timeout (ETIMEDOUT) ends the connection.
    """
    return isinstance(error, TimeoutError | BlockingIOError) and error.errno != errno.ETIMEDOUT


def connect_tcp(host: str, port: int, *, timeout: float, io_timeout: float | None) -> SocketStream:
    """Connect by TCP to the first reachable address of a host.

    :param host: name or address of the server
    :param port: port of the server
    :param timeout: longest time in seconds for all addresses together, without the name resolution
    :param io_timeout: longest time in seconds in which nothing can be written
    :raises OSError: if the name cannot be resolved, or no address accepts the connection
    :raises UnicodeError: if the name is invalid
    """
    deadline = time.monotonic() + timeout
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure = OSError(errno.EADDRNOTAVAIL, "the host has no address")
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        candidate = socket.socket(family, kind, protocol)
        try:
            candidate.settimeout(max(0.01, (deadline - time.monotonic()) / (len(addresses) - number)))
            candidate.connect(address)
            _set_socket_options(candidate, io_timeout)
            return SocketStream(candidate, io_timeout=io_timeout)
        except OSError as error:
            candidate.close()
            failure = error
        except BaseException:
            candidate.close()
            raise
    raise failure


def _set_socket_options(connected: socket.socket, io_timeout: float | None) -> None:
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if io_timeout is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = min(int(io_timeout * 1000) + 1, 0x7FFFFFFF)
        with suppress(OSError):  # not supported by every kernel
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


class ProxyCommand:
    """Runs a command with the connection on standard input and output.

    The command has a process group of its own.
    """

    def __init__(self, words: list[str], connection: socket.socket) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        descriptor = connection.fileno()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the command is part of the configuration
                words, stdin=descriptor, stdout=descriptor, stderr=self._errors, start_new_session=True
            )
        except BaseException:
            self._errors.close()
            raise

    def failure_reason(self) -> str:
        """Return the start of the command's standard error."""
        if self._errors.closed:
            return ""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PROXY_EXIT_SECONDS)  # the command may write its last error after closing its output
        output = printable(os.pread(self._errors.fileno(), 1000, 0).decode("utf-8", "replace"))
        return f"the proxy command says: {output}" if output else ""

    def close(self) -> None:
        """Terminate the command and its children, if necessary by force."""
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal_number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_PROXY_EXIT_SECONDS)
                break
        self._errors.close()


def connect_command(command: str, *, host: str, port: int, username: str, io_timeout: float | None) -> SocketStream:
    """Connect through a proxy command.

    :param command: the command, split into words like in a shell, but run without a shell; the tokens ``%h``, ``%p``,
        ``%r`` and ``%%`` stand for host, port, user and a percent sign (ssh_config(5))
    :param host: name or address of the server
    :param port: port of the server
    :param username: name to log in with
    :param io_timeout: longest time in seconds in which nothing can be written
    :raises BackendUnavailable: if the command cannot be started
    """
    tokens = {"h": host, "p": str(port), "r": username, "%": "%"}
    local_end, remote_end = socket.socketpair()
    try:
        with remote_end:
            words = [re.sub("%([hpr%])", lambda m: tokens[m[1]], word) for word in shlex.split(command)]
            proxy = ProxyCommand(words, remote_end)
    except (OSError, ValueError, IndexError) as error:
        local_end.close()
        raise BackendUnavailable(f"the proxy command cannot be started: {printable(str(error))}") from None
    except BaseException:
        local_end.close()
        raise
    return SocketStream(local_end, io_timeout=io_timeout, tunnel=proxy)
