"""Own the SSH connection of a backend.

A session opens and closes the connection, reconnects, retries, and handles a fork.
"""

from __future__ import annotations

import logging
import math
import os
import random
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, TypeVar

import paramiko

from airflow_sftp_backend.backend._backoff import Backoff
from airflow_sftp_backend.backend._forks import ForkAware
from airflow_sftp_backend.backend._paths import Jail, add_location
from airflow_sftp_backend.backend._protocol.handle_table import HandleTable
from airflow_sftp_backend.backend._protocol.scheduler import SFTPScheduler
from airflow_sftp_backend.backend._protocol.striping import ChannelDemand
from airflow_sftp_backend.backend._protocol.traffic import TrafficMeter
from airflow_sftp_backend.backend.config import BackendConfig
from airflow_sftp_backend.backend.errors import (
    AuthenticationFailed,
    BackendUnavailable,
    HostKeyRejected,
    SFTPBackendError,
    translate_connection_errors,
)
from airflow_sftp_backend.backend.models import BackendStatistics, ConnectionInfo

from . import session_limit
from .connect import (
    CHANNEL_WINDOW,
    CLOSED_DURING_CONNECT,
    ConnectAttempt,
    ConnectSettings,
    EstablishedConnection,
    Hop,
    close_transport,
)
from .host_key_verification import HostKeyVerifier
from .socket_stream import TCPAddress

__all__ = ["CHANNEL_WINDOW", "Session"]

T = TypeVar("T")
log = logging.getLogger(__name__)

_SLEEP_STEP: Final = 0.2
"""Seconds between two checks for the end of a pause."""
_RECONNECT_PAUSE: Final = (0.5, 5.0)
"""Shortest and longest pause between two attempts to reconnect, in seconds."""


class _Connection:
    """Open connection with its resources."""

    def __init__(self, opened: EstablishedConnection, config: BackendConfig) -> None:
        self.client = opened.client
        self.scheduler = opened.scheduler
        self.info = opened.info
        self._transport = opened.transport
        self._stream = opened.stream
        self._config = config
        self._sftp: paramiko.SFTPClient | None = None
        self._closed = False
        self.slot: session_limit.SessionSlot | None = None
        """Permission of `session_limit`, given back with the end of the connection."""

    @property
    def alive(self) -> bool:
        """True until the connection is closed or lost."""
        return not self._closed and self.scheduler.failure is None and self._transport.is_active()

    @property
    def failure(self) -> str | None:
        """Reason for the end of the connection; None if unknown."""
        return self._stream.failure

    def tcp_addresses(self) -> tuple[TCPAddress, TCPAddress] | None:
        """Return the addresses of both ends."""
        return self._stream.tcp_addresses()

    def sftp_client(self) -> paramiko.SFTPClient:
        """Return paramiko's SFTP client on a second channel."""
        if self._sftp is None:
            with translate_connection_errors(lambda: ("opening a second channel", self.failure), self._config.address):
                self._sftp = self._open_sftp_client()
        return self._sftp

    def _open_sftp_client(self) -> paramiko.SFTPClient:
        try:
            self._stream.set_deadline(self._config.timeout)
            channel = self._transport.open_session()
            self._stream.set_deadline(self._config.timeout)
            channel.invoke_subsystem("sftp")
            client = paramiko.SFTPClient(channel)
            channel.settimeout(self._config.io_timeout)
            return client
        finally:
            self._stream.set_deadline(None)

    def abort_within(self, seconds: float) -> None:
        """Abort the connection after some seconds. Takes no lock."""
        self._stream.abort_within(seconds)

    def abort(self) -> None:
        """Make all pending operations fail.

        Takes no lock: signal handlers and the garbage collector may call this.
        """
        self._stream.abort(CLOSED_DURING_CONNECT)
        self._transport.abort()

    def close(self) -> None:
        """Close the connection and end its threads. Idempotent."""
        if not self._closed:
            self._closed = True
            close_transport(self._transport, self._stream)
            self.client.close()
            self.scheduler.close()
            self._release_slot()

    def abandon_after_fork(self) -> None:
        """Drop the connection in a forked child without ending the parent's connection."""
        self._closed = True
        self.scheduler.failure = "the connection belongs to the parent process"
        self._stream.abandon_after_fork()
        self._transport.abort()
        self._release_slot()
        _NEVER_COLLECTED.append(self)

    def _release_slot(self) -> None:
        if self.slot is not None:
            self.slot.release()

    def __del__(self) -> None:
        if self._closed:
            return
        self._release_slot()
        was_open, self._closed = self._transport.is_active(), True
        self.abort()
        if isinstance(threading.current_thread(), paramiko.Transport):
            _NEVER_COLLECTED.append(self)
        if was_open:
            warnings.warn(f"unclosed connection to {self._config.address}", ResourceWarning, source=self, stacklevel=2)


_NEVER_COLLECTED: Final[list[_Connection]] = []
"""Connections with channels that must never be garbage collected. A collected channel of paramiko takes a lock. In a
forked child, the lock may be held by a thread that no longer exists; in a transport's thread, by the thread itself."""


class _Deadline:
    """End of all calls of a session, by the session's clock."""

    at = math.inf


class Session(ForkAware):
    """Runs calls on a connection, reopened after a loss.

    The first call opens the connection.

    Calls from several threads run one after the other.

    :param config: the configuration; ``connect_kwargs`` takes precedence over the other fields
    :param reconnects: False to connect only once: after a loss every call raises BackendUnavailable
    :param environ: environment variables
    :param clock: returns monotonic time in seconds
    :param sleep: waits for a number of seconds between attempts
    :param random: returns a random number from 0 to 1 for the pauses
    :raises ValueError: if ``connect_kwargs`` holds ``hostname``, ``port``, ``sock``, ``transport_factory``, or a name
        that is not an argument of ``paramiko.SSHClient.connect``
    :ivar query_auth_methods: True to ask the server for its authentication methods before each login
    :ivar last_attempt_info: properties of the last attempt to connect, successful or not
    :ivar connection_count: number of connections opened so far
    :ivar retry_count: number of attempts to connect that followed a failed attempt
    :ivar resumed_count: number of transfers resumed over a new connection
    """

    def __init__(
        self,
        config: BackendConfig,
        *,
        reconnects: bool = True,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.reconnects = reconnects
        self._environ = environ
        self._apply_config(config)
        self._clock = clock
        self._cancelled = threading.Event()
        self._deadline_before = math.inf
        self._sleep = sleep
        self._random = random
        self._lock = threading.RLock()
        self._connection: _Connection | None = None
        self._attempt: ConnectAttempt | None = None
        self._in_use: _Connection | None = None
        self._close_requested = False
        self._deadline = _Deadline()
        self._handles = HandleTable()
        self.query_auth_methods = False
        self.last_attempt_info: ConnectionInfo | None = None
        self.connection_count = self.retry_count = self.resumed_count = 0
        self._traffic = TrafficMeter(config.max_rate, pause=_weak_pause(self), clock=clock)
        super().__init__()

    def _apply_config(self, config: BackendConfig) -> None:
        self._original_config = config
        self._settings = ConnectSettings.of(config)
        self._config = self._settings.config
        self._checker = HostKeyVerifier(self._config, self._environ)

    @property
    def is_connected(self) -> bool:
        """True if there is a connection without a known loss."""
        connection = self._connection
        return connection is not None and connection.alive

    @property
    def info(self) -> ConnectionInfo | None:
        """Properties of the connection; None without a connection."""
        connection = self._connection
        return connection.info if connection is not None and connection.alive else None

    @property
    def statistics(self) -> BackendStatistics:
        """Counters of all connections so far."""
        traffic = self._traffic
        return BackendStatistics(
            bytes_sent=traffic.bytes_sent,
            bytes_received=traffic.bytes_received,
            logins=self.connection_count,
            connection_retries=self.retry_count,
            resumed_transfers=self.resumed_count,
        )

    def call(
        self,
        function: Callable[[SFTPScheduler], T],
        *,
        idempotent: bool = False,
        attempts: int | None = None,
        channel_demand: ChannelDemand | None = None,
        cleanup: bool = False,
        reconnecting: bool = False,
    ) -> T:
        """Run a function on the connection, opened first if necessary.

        A call made within the function runs on the same connection, even if the connection is lost.

        :param function: called with the scheduler of the connection; its exceptions pass unchanged
        :param idempotent: repeat the call once on a new connection if the connection is lost
        :param attempts: number of attempts to connect, in place of the retry policy
        :param channel_demand: size of the following upload, for additional channels
        :param cleanup: run the call also after `cancel_call`
        :param reconnecting: retry connecting for `reconnect_timeout`, in place of the retry policy
        :returns: the result of the function
        :raises BackendUnavailable: if there is no connection, or the connection is lost
        """
        with self._lock:
            if self._in_use is not None:
                return self._run(function, self._in_use)
            if self._clock() >= self._deadline.at:
                raise BackendUnavailable("the session was aborted", server=self._config.address)
            if self._cancelled.is_set() and not cleanup:
                raise BackendUnavailable("the call was cancelled", server=self._config.address)
            connection = self._get_connection(attempts, channel_demand, self.reconnect_timeout if reconnecting else 0)
            known_shared = self._handles.shares_handles
            try:
                return self._run_exclusively(function, connection)
            except BackendUnavailable as error:
                # The call has found that the server gives several files one handle: the connection was closed by this
                # side, not lost, so the call is repeated even by a session that does not reconnect.
                found_shared = self._handles.shares_handles and not known_shared
                retries = idempotent and (self.reconnects or found_shared) and self._clock() < self._deadline.at
                if not retries or self._cancelled.is_set() or connection.scheduler.failure is None:
                    raise
                log.info("%s; repeating the call on a new connection", error)
            return self._run_exclusively(function, self._get_connection(attempts, even_if_single=found_shared))

    def _run_exclusively(self, function: Callable[[SFTPScheduler], T], connection: _Connection) -> T:
        self._in_use = connection
        try:
            return self._run(function, connection)
        except BackendUnavailable as error:
            if connection.scheduler.failure is not None and connection.failure is not None:
                error.loss = connection.failure
            raise
        finally:
            self._in_use = None
            if not connection.alive:
                if connection.scheduler.stalled_multichannel:
                    log.warning("%s stalled with several channels: using one channel from now on", self._config.address)
                    self._settings = replace(self._settings, config=replace(self._settings.config, max_channels=1))
                self._drop(connection)

    def _run(self, function: Callable[[SFTPScheduler], T], connection: _Connection) -> T:
        try:
            return function(connection.scheduler)
        except SFTPBackendError as error:
            add_location(error, self._config.address, Jail(self._config.base_path))
            raise

    def tcp_addresses(self) -> tuple[TCPAddress, TCPAddress] | None:
        """Return the addresses of both ends of the connection.

        Connects if necessary.

        :returns: the own address and that of the server; None through a jump host or a command
        """
        with self._lock:
            return (self._in_use or self._get_connection(None)).tcp_addresses()

    def ssh_client(self) -> paramiko.SSHClient:
        """Return paramiko's SSH client of the connection. The session remains its owner."""
        with self._lock:
            return (self._in_use or self._get_connection(None)).client

    def sftp_client(self) -> paramiko.SFTPClient:
        """Return paramiko's SFTP client on the same connection.

        The client is opened once, and closed with the connection.
        """
        with self._lock:
            return (self._in_use or self._get_connection(None)).sftp_client()

    def close(self) -> None:
        """Close the connection after the calls of other threads.

        From within a call, the connection is closed at once.

        A call that closes its own connection fails. Idempotent. The next call reconnects, if the session may reconnect.
        """
        with self._lock:
            self._close_requested = True
            if self._attempt is not None:
                self._attempt.abort()
            elif self._in_use is not None:
                self._in_use.abort()
            elif self._connection is not None:
                self._drop(self._connection)

    def abort_within(self, seconds: float) -> None:
        """Limit the time for the current call and all later calls.

        Takes no lock: signal handlers may call this.

        :param seconds: time for all calls together; 0 also aborts an attempt to connect
        """
        self._deadline.at = self._clock() + seconds
        attempt = self._attempt
        if attempt is not None and seconds <= 0:
            attempt.abort()
        for connection in (self._in_use, self._connection):
            if connection is not None:
                connection.abort_within(seconds)

    def cancel_call(self, seconds: float) -> None:
        """Cancel another thread's call, and limit its cleanup.

        Until `allow_calls`, only cleanup calls are accepted. Takes no lock.

        :param seconds: time for the cleanup, which uses another connection
        """
        self._deadline_before = self._deadline.at
        self._deadline.at = min(self._deadline.at, self._clock() + seconds)
        self._cancelled.set()
        attempt, connection = self._attempt, self._in_use
        if attempt is not None:
            attempt.abort()
        if connection is not None:
            connection.abort()

    def allow_calls(self) -> None:
        """Allow calls again after `cancel_call`."""
        self._deadline.at = self._deadline_before
        self._cancelled.clear()

    def _drop(self, connection: _Connection) -> None:
        if self._connection is connection:
            self._connection = None
        connection.close()

    def _get_connection(
        self,
        attempts: int | None,
        channel_demand: ChannelDemand | None = None,
        retry_seconds: float = 0,
        *,
        even_if_single: bool = False,
    ) -> _Connection:
        if self._connection is not None and not self._connection.alive:
            log.info("the connection to %s was lost since its last use", self._config.address)
            self._drop(self._connection)
        if self._connection is None:
            if self.connection_count and not self.reconnects and not even_if_single:
                raise BackendUnavailable(
                    "the connection was lost, and reconnecting is off", server=self._config.address
                )
            max_attempts = self._config.retry.max_attempts if attempts is None else attempts
            self._connection = self._open_connection(max_attempts, channel_demand, retry_seconds)
            self._connection.scheduler.use_traffic(self._traffic)
            handles = HandleTable(limit=self._handles.limit, shares_handles=self._handles.shares_handles)
            self._handles = self._connection.scheduler.handles = handles
            if self._deadline.at < math.inf:
                self._connection.abort_within(self._deadline.at - self._clock())
            self.connection_count += 1
            info = self._connection.info
            log.info(
                "connected to %s as %s: %s, host key %s (%s), %s", self._config.address, info.username,
                info.server_version, info.host_key_fingerprint, info.trust_reason, info.cipher,
            )  # fmt: skip
        return self._connection

    def _open_connection(
        self, attempts: int, channel_demand: ChannelDemand | None, retry_seconds: float
    ) -> _Connection:
        """Open a connection as soon as ``max_sessions`` allows."""
        self._close_requested = False
        slot = self._wait_for_slot()
        try:
            connection = self._connect_refreshing(attempts, channel_demand, retry_seconds)
        except BaseException:
            slot.release()  # not left to the garbage collector: the traceback references the slot
            raise
        connection.slot, slot.connection = slot, weakref.ref(connection)
        return connection

    def _wait_for_slot(self) -> session_limit.SessionSlot:
        config, timeout = self._config, self._config.retry.timeout
        seconds = _BUSY_RETRY_SECONDS if timeout is None else timeout
        give_up_at = self._clock() + seconds
        logged = False
        while isinstance(slot := session_limit.slots.acquire(config), BackendConfig):
            crowded = slot
            now = self._clock()
            if self._close_requested or self._cancelled.is_set() or now >= self._deadline.at:
                raise BackendUnavailable("the session was aborted", server=config.address)
            if now >= give_up_at:
                raise BackendUnavailable(
                    f"no session is opened: this process has {crowded.max_sessions} open to {crowded.address} as"
                    f" {crowded.username or 'the local user'}, the most that max_sessions allows, and none has ended"
                    f" within {seconds:g} s. Close other backends and hooks, or increase max_sessions",
                    server=config.address,
                )
            if not logged:
                log.info("waiting until fewer than max_sessions (%d) sessions to %s are open in this process",
                         crowded.max_sessions, crowded.address)  # fmt: skip
                logged = True
            self.pause(_SLEEP_STEP)
        return slot

    def _connect_refreshing(
        self, attempts: int, channel_demand: ChannelDemand | None, retry_seconds: float
    ) -> _Connection:
        """Connect; after a refusal once more with changed secrets."""
        try:
            return self._connect(attempts, channel_demand, retry_seconds)
        except (AuthenticationFailed, HostKeyRejected) as error:
            # The secrets may have been rotated since they were fetched.
            if (refreshed := _refreshed_config(self._original_config)) is None or self._close_requested:
                raise
            log.warning("%s; retrying with the current secrets", error)
            self._apply_config(refreshed)
            return self._connect(attempts, channel_demand, retry_seconds)

    def _connect(self, attempts: int, channel_demand: ChannelDemand | None, retry_seconds: float) -> _Connection:
        policy, clock = self._config.retry, self._clock
        deadline = math.inf if policy.timeout is None else clock() + policy.timeout
        deadline = clock() + retry_seconds if retry_seconds else deadline
        busy_until = clock() + (_BUSY_RETRY_SECONDS if policy.timeout is None else policy.timeout)

        end = self._deadline  # not self: the connection keeps this closure, and must not keep the session alive

        def remaining_time() -> float:
            return min(deadline, end.at) - clock()

        hop = Hop(self._settings, self._config.password, self._checker, self._jump_hop(self._original_config.jump))
        backoff = Backoff(replace(policy, max_attempts=sys.maxsize if retry_seconds else attempts), self._random)
        while True:
            attempt = self._attempt = ConnectAttempt(
                hop, remaining_time, channel_demand, query_auth_methods=self.query_auth_methods
            )
            try:
                return _Connection(attempt.run(), self._config)
            except BackendUnavailable as error:
                add_location(error, self._config.address, Jail(self._config.base_path))
                refused = isinstance(error, AuthenticationFailed | HostKeyRejected) or attempt.is_permanent
                # A busy server accepts connections again soon: the number of attempts limits other failures only.
                busy = attempt.is_server_busy and attempts > 1 and clock() < busy_until
                pause = backoff.fail()
                if retry_seconds:
                    pause = min(max(pause, _RECONNECT_PAUSE[0]), _RECONNECT_PAUSE[1])
                is_last = backoff.exhausted and not busy
                stopped = self._close_requested or self._cancelled.is_set()
                if refused or stopped or is_last or pause >= remaining_time():
                    error.attempts = backoff.failures
                    raise
                limit = "" if busy or retry_seconds else f" of {attempts}"
                log.warning("%s; retrying in %.1f s (attempt %d%s)", error, pause, backoff.failures + 1, limit)
                failure = error
            finally:
                self._attempt = None
                self.last_attempt_info = attempt.info()
            self.pause(pause)
            if self._close_requested or self._cancelled.is_set():
                raise failure
            self.retry_count += 1

    @property
    def reconnect_timeout(self) -> float:
        """Time in seconds for which a transfer with a lost connection reconnects."""
        return self._config.reconnect_timeout

    def pause(self, seconds: float) -> None:
        """Sleep for some seconds, or until `close`, `cancel_call` or `abort_within` is called.

        :param seconds: longest time to sleep
        """
        if self._sleep is not None:
            self._sleep(seconds)
            return
        while seconds > 0 and not self._close_requested and self._clock() < self._deadline.at:
            step = min(seconds, _SLEEP_STEP)
            if self._cancelled.wait(step):
                return
            seconds -= step

    def _jump_hop(self, jump: BackendConfig | None) -> Hop | None:
        """Return the jump host with the jump hosts before it."""
        if jump is None:
            return None
        settings = ConnectSettings.of(jump)
        checker = HostKeyVerifier(settings.config, self._environ)
        return Hop(settings, settings.config.password, checker, self._jump_hop(jump.jump))

    def abandon_after_fork(self) -> None:
        """Drop the parent's connection and locks in a forked child."""
        connection, self._connection = self._connection, None
        self._lock = threading.RLock()
        self._cancelled = threading.Event()
        self._attempt = self._in_use = None
        if connection is not None:
            connection.abandon_after_fork()


def _weak_pause(session: Session) -> Callable[[float], object]:
    """Return `Session.pause` without a strong reference to the session."""
    # The connection holds the function, and must not keep the session alive.
    method = weakref.WeakMethod(session.pause)

    def pause(seconds: float) -> None:
        if (bound := method()) is not None:
            bound(seconds)

    return pause


_BUSY_RETRY_SECONDS: Final = 60.0
"""Seconds for which connecting to a busy server is retried, unless the retry policy has a timeout.

Also the seconds for which a session waits for the end of others (``max_sessions``).
"""
_REFRESHED_FIELDS: Final = ("username", "password", "private_key", "key_file", "passphrase", "known_host_keys")


def _refreshed_config(config: BackendConfig) -> BackendConfig | None:
    """Return the configuration with current secrets; None if unchanged.

    The secrets of the jump hosts are included.
    """
    refreshed = config
    if config.refresh is not None and (current := config.refresh()) is not None:
        refreshed = replace(config, **{name: getattr(current, name) for name in _REFRESHED_FIELDS})
    if config.jump is not None and (jump := _refreshed_config(config.jump)) is not None:
        refreshed = replace(refreshed, jump=jump)
    return refreshed if refreshed != config else None
