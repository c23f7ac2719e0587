"""The line under SSH: a connected socket, or what carries it instead, as paramiko wants to read and write it."""

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
"""Seconds for which a read waits where nothing has come of late: to look up ten times a second costs more than an idle
connection may, and what is set meanwhile must still be seen in time."""
_PROXY_EXIT_SECONDS: Final = 1.0
"""Seconds a proxy command has to end by itself."""


class Tunnel(Protocol):
    """What a line goes through, if not straight to the server."""

    def failure_reason(self) -> str:
        """Why it has failed, as far as it says; blank where it does not."""

    def end(self) -> None:
        """Ends it."""


class SocketStream(ForkAware, SocketLike):
    """A connected socket. One thread reads it, others write; anyone may end it.

    Reads come out of a large buffer: one system call for many packets. What ends it shows as EOFError, and ``failure``
    says why, since paramiko waits for ever on TimeoutError and forgets most other reasons. ``io_timeout`` bounds, in
    seconds, the time in which nothing can be written.
    """

    def __init__(self, connected: socket.socket, *, io_timeout: float | None, tunnel: Tunnel | None = None) -> None:
        self._socket = connected
        self._io_timeout = io_timeout
        self._tunnel = tunnel
        self._buffer = memoryview(bytearray(_BUFFER_SIZE))
        self._start = self._end = 0
        self._deadline: float | None = None
        self._abort_at = math.inf
        self._seconds = self._after_first_bytes = 0.0
        self._stalled_since: float | None = None
        self._timeout: float | None = None
        self._idle = False
        self._reader: int | None = None
        self._uses_quickack = _QUICKACK is not None and connected.family in (socket.AF_INET, socket.AF_INET6)
        self._writing = threading.Lock()
        self._ended = False
        self.greeting = b""
        """The first bytes that came, no more than a line or two."""
        self.failure: str | None = None
        """Why it ended, if not because this side closed it."""
        self.timed_out = False
        """It ended because a limit was over."""
        super().__init__()

    def set_deadline(self, seconds: float | None, *, after_first_bytes: float = 0.0) -> None:
        """Ends the conversation in that many seconds, unless called again before; None: no more.

        With ``after_first_bytes``, the first bytes that come set the limit to that many seconds from there.
        """
        now = time.monotonic()
        self._deadline = None
        self._seconds, self._after_first_bytes = seconds or 0.0, after_first_bytes
        self._deadline = None if seconds is None else now + seconds

    def abort_within(self, seconds: float) -> None:
        """Ends the conversation in that many seconds, whatever `set_deadline` says. Takes no lock."""
        self._abort_at = time.monotonic() + seconds

    def settimeout(self, seconds: float | None) -> None:
        """How long one read or write may block, in seconds, until it raises TimeoutError; up to `_IDLE_TIMEOUT` where
        nothing has come in that time and no limit is set."""
        self._timeout, self._idle = seconds, False
        self._socket.settimeout(seconds)

    def recv(self, count: int) -> bytes:
        """Up to ``count`` bytes; none at the end."""
        self._reader = threading.get_ident()
        if self._start == self._end:
            self._fill()
        start, self._start = self._start, min(self._start + count, self._end)
        return bytes(self._buffer[start : self._start])

    def _fill(self) -> None:
        self._check_limit()
        try:
            self._start, self._end = 0, self._socket.recv_into(self._buffer)
        except OSError as error:
            if _is_timeout(error):
                self._set_idle(self._deadline is None and self._abort_at == math.inf)
                raise
            raise self._fail(_failure_reason(error)) from None
        self._set_idle(False)
        if not self._end:
            self._fail(SERVER_CLOSED)
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
        with suppress(OSError):  # the line is ending, which the next read or write says better
            self._socket.settimeout(max(self._timeout, _IDLE_TIMEOUT) if idle else self._timeout)

    def _set_quickack(self) -> None:
        """Has the next bytes acknowledged at once: sshd keeps small packets back until those before are (Nagle), which
        costs 40 ms where our side waits as long to acknowledge (tcp(7): TCP_QUICKACK is not permanent)."""
        assert _QUICKACK is not None
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        except OSError:  # the line is ending, which the next read or write says better
            self._uses_quickack = False

    def send(self, data: bytes) -> int:
        """Writes some of it; the number of bytes written."""
        with self._writing:
            try:
                sent = self._socket.send(data)
            except OSError as error:
                if not _is_timeout(error):
                    raise self._fail(_failure_reason(error)) from None
                self._check_limit()
                self._check_stall()
                raise
            self._stalled_since = None
            return sent

    def _check_limit(self) -> None:
        now = time.monotonic()
        if now >= self._abort_at:
            raise self._fail("it was told to end")
        if self._deadline is not None and now >= self._deadline:
            self.timed_out = True
            raise self._fail(f"no answer within {self._seconds:g} s")

    def _check_stall(self) -> None:
        now = time.monotonic()
        if self._stalled_since is None:
            self._stalled_since = now
        elif self._io_timeout is not None and now - self._stalled_since >= self._io_timeout:
            raise self._fail(f"nothing could be sent for {self._io_timeout:g} s: the server or the line has stalled")

    def _fail(self, reason: str) -> EOFError:
        first, tunnel = self.failure is None and not self._ended, self._tunnel
        if first:
            self.failure = reason
        self.abort()
        if first and tunnel is not None and (tunnel_reason := tunnel.failure_reason()):
            self.failure = f"{reason} ({tunnel_reason})"
        return EOFError(reason)

    def abort(self, reason: str | None = None) -> None:
        """Ends the conversation, both ways and at once; ``reason`` becomes the reason, if there is none yet.

        Takes no lock: fit for a signal handler and the collector.
        """
        self.failure = self.failure or reason
        if not self.is_inherited:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends the conversation. The descriptor is given back by the reading thread, or here where there is none:
        it would else be another connection's while that thread still waits on its number.
        """
        self._ended = True
        self.abort()
        if self._reader in (None, threading.get_ident()):
            self.release()

    def release(self) -> None:
        """Gives the descriptor back and ends what carries the line. For when nobody reads any more."""
        with self._writing:
            self._socket.close()
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            tunnel.end()

    def abandon_after_fork(self) -> None:
        """Gives up a forked child's copy of the descriptor; the parent's connection goes on."""
        self._socket.close()

    def is_closed(self) -> bool:
        """Return True once the socket is closed."""
        return self._socket.fileno() == -1

    def getpeername(self) -> object:
        """The other side's address, as the socket says it."""
        return self._socket.getpeername()


def _is_timeout(error: OSError) -> bool:
    """True if the socket's timeout has passed, and not the one of TCP, after which the connection is gone."""
    return isinstance(error, TimeoutError | BlockingIOError) and error.errno != errno.ETIMEDOUT


def _failure_reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "the line is dead: nothing that is sent arrives any more"
    if isinstance(error, ConnectionError):
        return SERVER_CLOSED
    return f"the connection broke: {error.strerror or error}"


def connect_tcp(host: str, port: int, *, timeout: float, io_timeout: float | None) -> SocketStream:
    """Connects by TCP to the first of the host's addresses that answers; all are tried within ``timeout`` seconds.

    Resolving the name is bounded by the system's resolver alone. Raises OSError, UnicodeError for an impossible name.
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
        with suppress(OSError):  # a kernel may not have it
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


class ProxyCommand:
    """A command that carries the connection over its standard input and output. It runs in a session of its own."""

    def __init__(self, words: list[str], connection: socket.socket) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - `deadline` closes it
        descriptor = connection.fileno()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - to run it is what the configuration asks for
                words, stdin=descriptor, stdout=descriptor, stderr=self._errors, start_new_session=True
            )
        except BaseException:
            self._errors.close()
            raise

    def failure_reason(self) -> str:
        """What it has written to standard error, cut short."""
        if self._errors.closed:
            return ""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PROXY_EXIT_SECONDS)  # the last words come after the end of the line
        output = printable(os.pread(self._errors.fileno(), 1000, 0).decode("utf-8", "replace"))
        return f"the proxy command says: {output}" if output else ""

    def end(self) -> None:
        """Ends it and all it has started, by force if need be."""
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal_number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_PROXY_EXIT_SECONDS)
                break
        self._errors.close()


def connect_command(command: str, *, host: str, port: int, username: str, io_timeout: float | None) -> SocketStream:
    """Connects through a proxy command. It is split into words as a shell does and run without one; ``%h``, ``%p``
    and ``%r`` in a word stand for host, port and user, ``%%`` for a percent sign.

    Raises BackendUnavailable if it cannot be started.
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
