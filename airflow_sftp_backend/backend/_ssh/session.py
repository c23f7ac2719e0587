"""The SSH connection: sole owner of it. Opens, closes, tries again, and notices a fork."""

from __future__ import annotations

import logging
import math
import os
import random
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, TypeVar

import paramiko

from airflow_sftp_backend.backend._forks import ForkAware
from airflow_sftp_backend.backend._paths import Jail, add_location
from airflow_sftp_backend.backend._protocol.handle_table import HandleTable
from airflow_sftp_backend.backend._protocol.scheduler import SFTPScheduler
from airflow_sftp_backend.backend._protocol.striping import TransferSize
from airflow_sftp_backend.backend.config import BackendConfig
from airflow_sftp_backend.backend.errors import (
    AuthenticationFailed,
    BackendUnavailable,
    HostKeyRejected,
    SFTPBackendError,
    translate_connection_errors,
)

from .connect import (
    CHANNEL_WINDOW,
    CLOSED_DURING_CONNECT,
    ConnectAttempt,
    ConnectionInfo,
    ConnectSettings,
    EstablishedConnection,
    Hop,
    end_transport,
)
from .host_key_policy import HostKeyChecker

__all__ = ["CHANNEL_WINDOW", "ConnectionInfo", "Session"]

T = TypeVar("T")
log = logging.getLogger(__name__)

_SLEEP_STEP: Final = 0.2  # seconds of sleep at a time
_RECONNECT_PAUSE: Final = (0.5, 5.0)  # least and most seconds between two attempts to connect again


class _Connection:
    """A connection in use."""

    def __init__(self, opened: EstablishedConnection, config: BackendConfig) -> None:
        self.client = opened.client
        self.scheduler = opened.scheduler
        self.info = opened.info
        self._transport = opened.transport
        self._stream = opened.stream
        self._config = config
        self._sftp: paramiko.SFTPClient | None = None
        self._closed = False

    @property
    def alive(self) -> bool:
        """False once it is of no more use."""
        return not self._closed and self.scheduler.broken is None and self._transport.is_active()

    @property
    def failure(self) -> str | None:
        """Why the line broke, where that is known."""
        return self._stream.failure

    def sftp_client(self) -> paramiko.SFTPClient:
        """paramiko's own client, on a channel of its own."""
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
        """Ends it in that many seconds at the latest. Takes no lock."""
        self._stream.abort_within(seconds)

    def abort(self) -> None:
        """Makes everything that waits on it fail. Takes no lock: fit for a signal handler and the collector."""
        self._stream.abort(CLOSED_DURING_CONNECT)
        self._transport.stop()

    def close(self) -> None:
        """Ends it and its threads. Idempotent."""
        if not self._closed:
            self._closed = True
            end_transport(self._transport, self._stream)
            self.client.close()
            self.scheduler.close()

    def abandon_after_fork(self) -> None:
        """Gives it up in a forked child, silently: it is the parent's."""
        self._closed = True
        self.scheduler.broken = "the connection belongs to the process that was forked"
        self._stream.abandon_after_fork()
        self._transport.stop()
        _NEVER_COLLECTED.append(self)

    def __del__(self) -> None:
        if self._closed:
            return
        was_open, self._closed = self._transport.is_active(), True
        self.abort()
        if isinstance(threading.current_thread(), paramiko.Transport):
            _NEVER_COLLECTED.append(self)
        if was_open:
            warnings.warn(f"unclosed connection to {self._config.address}", ResourceWarning, source=self, stacklevel=2)


_NEVER_COLLECTED: Final[list[_Connection]] = []
"""Connections whose channels must not be collected: a channel of paramiko then takes a lock, which a thread that does
not exist in a forked child, or the very thread that collects, may hold."""


class _Deadline:
    """When all is to be over, by the session's clock."""

    at = math.inf


class Session(ForkAware):
    """One connection at a time, opened when it is first needed and again when it was lost; with ``reconnects=False``
    once: every call after its loss raises BackendUnavailable.

    Calls from several threads take turns. What ``config.connect_kwargs`` says wins over the rest of ``config``; it may
    hold the arguments of ``paramiko.SSHClient.connect``, but not ``hostname``, ``port``, ``sock`` and
    ``transport_factory`` (ValueError). ``clock``, ``sleep`` and ``random`` are for trying again.
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
        self._interruption = threading.Event()
        self._deadline_before = math.inf
        self._sleep = sleep
        self._random = random
        self._lock = threading.RLock()
        self._connection: _Connection | None = None
        self._attempt: ConnectAttempt | None = None
        self._in_use: _Connection | None = None
        self._aborted = False
        self._deadline = _Deadline()
        self._handles = HandleTable()
        self.query_auth_methods = False
        """A login begins with the question which methods the server takes."""
        self.last_attempt_info: ConnectionInfo | None = None
        """What the last try to connect has found, whether it succeeded or not."""
        self.connection_count = 0
        """Connections made so far."""
        super().__init__()

    def _apply_config(self, config: BackendConfig) -> None:
        self._original_config = config
        self._settings = ConnectSettings.of(config)
        self._config = self._settings.config
        self._checker = HostKeyChecker(self._config, self._environ)

    @property
    def is_connected(self) -> bool:
        """True while there is a connection that is not known to be lost."""
        connection = self._connection
        return connection is not None and connection.alive

    @property
    def info(self) -> ConnectionInfo | None:
        """What the connection is; None while there is none."""
        connection = self._connection
        return connection.info if connection is not None and connection.alive else None

    def call(
        self,
        use: Callable[[SFTPScheduler], T],
        *,
        idempotent: bool = False,
        attempts: int | None = None,
        transfer_size: TransferSize | None = None,
        cleanup: bool = False,
        reconnecting: bool = False,
    ) -> T:
        """Runs ``use`` on the connection, which is opened first if need be. Raises what it raises, BackendUnavailable.

        An idempotent call that loses the connection is made once more on a new one, if there may be one. ``attempts``
        bounds the tries of connecting in place of the retry policy; ``transfer_size`` is what will be sent. ``cleanup``
        calls are made even after `interrupt`. With ``reconnecting`` connecting is tried for `reconnect_timeout`,
        whatever the retry policy. A call made from within ``use`` gets the same connection, even if it is lost.
        """
        with self._lock:
            if self._in_use is not None:
                return self._run(use, self._in_use)
            if self._clock() >= self._deadline.at:
                raise BackendUnavailable("it was told to end", server=self._config.address)
            if self._interruption.is_set() and not cleanup:
                raise BackendUnavailable("the call was cancelled", server=self._config.address)
            connection = self._get_connection(attempts, transfer_size, self.reconnect_timeout if reconnecting else 0)
            known_shared = self._handles.shares_handles
            try:
                return self._run_exclusively(use, connection)
            except BackendUnavailable as error:
                found_shared = self._handles.shares_handles and not known_shared  # it is not lost: this side ends it
                retries = idempotent and (self.reconnects or found_shared) and self._clock() < self._deadline.at
                if not retries or self._interruption.is_set() or connection.scheduler.broken is None:
                    raise
                log.info("%s; asking again on a new connection", error)
            return self._run_exclusively(use, self._get_connection(attempts, even_if_single=found_shared))

    def _run_exclusively(self, use: Callable[[SFTPScheduler], T], connection: _Connection) -> T:
        self._in_use = connection
        try:
            return self._run(use, connection)
        finally:
            self._in_use = None
            if not connection.alive:
                if connection.scheduler.stalled_multichannel:
                    log.warning("%s stalled with several channels: it gets one from now on", self._config.address)
                    self._settings = replace(self._settings, config=replace(self._settings.config, max_channels=1))
                self._drop(connection)

    def _run(self, use: Callable[[SFTPScheduler], T], connection: _Connection) -> T:
        try:
            return use(connection.scheduler)
        except SFTPBackendError as error:
            add_location(error, self._config.address, Jail(self._config.base_path))
            failure = connection.failure if connection.scheduler.broken is not None else None
            if isinstance(error, BackendUnavailable) and failure is not None and failure not in error.message:
                error.message += f": {failure}"
            raise

    def ssh_client(self) -> paramiko.SSHClient:
        """The open client of the connection, which stays its owner."""
        with self._lock:
            return (self._in_use or self._get_connection(None)).client

    def sftp_client(self) -> paramiko.SFTPClient:
        """paramiko's SFTP client on the same connection, opened once and closed with it."""
        with self._lock:
            return (self._in_use or self._get_connection(None)).sftp_client()

    def close(self) -> None:
        """Closes the connection, after the calls of other threads; from within a call, which then fails, at once.

        Idempotent. The next call connects again, unless the session connects but once.
        """
        with self._lock:
            self._aborted = True
            if self._attempt is not None:
                self._attempt.abort()
            elif self._in_use is not None:
                self._in_use.abort()
            elif self._connection is not None:
                self._drop(self._connection)

    def abort_within(self, seconds: float) -> None:
        """Gives the call under way and all that follow that many seconds together; a try to connect has none left if
        there are none. Takes no lock: fit for a signal handler."""
        self._deadline.at = self._clock() + seconds
        attempt = self._attempt
        if attempt is not None and seconds <= 0:
            attempt.abort()
        for connection in (self._in_use, self._connection):
            if connection is not None:
                connection.abort_within(seconds)

    def interrupt(self, seconds: float) -> None:
        """End the call that another thread makes: its connection at once, its cleanup after some seconds.

        Until `end_interruption`, calls are refused but for those that clean up. Takes no lock.

        :param seconds: time for the cleanup, over a connection of its own.
        """
        self._deadline_before = self._deadline.at
        self._deadline.at = min(self._deadline.at, self._clock() + seconds)
        self._interruption.set()
        attempt, connection = self._attempt, self._in_use
        if attempt is not None:
            attempt.abort()
        if connection is not None:
            connection.abort()

    def end_interruption(self) -> None:
        """Allow calls again after `interrupt`."""
        self._deadline.at = self._deadline_before
        self._interruption.clear()

    def _drop(self, connection: _Connection) -> None:
        if self._connection is connection:
            self._connection = None
        connection.close()

    def _get_connection(
        self,
        attempts: int | None,
        transfer_size: TransferSize | None = None,
        retry_seconds: float = 0,
        *,
        even_if_single: bool = False,
    ) -> _Connection:
        if self._connection is not None and not self._connection.alive:
            log.info("the connection to %s was lost since it was last used", self._config.address)
            self._drop(self._connection)
        if self._connection is None:
            if self.connection_count and not self.reconnects and not even_if_single:
                raise BackendUnavailable("the connection was lost and is not made again", server=self._config.address)
            max_attempts = self._config.retry.max_attempts if attempts is None else attempts
            try:
                self._connection = self._connect(max_attempts, transfer_size, retry_seconds)
            except (AuthenticationFailed, HostKeyRejected) as error:
                if (refreshed := _refreshed_config(self._original_config)) is None or self._aborted:
                    raise
                log.warning("%s; trying once more with the secrets as they are now", error)
                self._apply_config(refreshed)
                self._connection = self._connect(max_attempts, transfer_size, retry_seconds)
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

    def _connect(self, attempts: int, transfer_size: TransferSize | None, retry_seconds: float) -> _Connection:
        policy, clock = self._config.retry, self._clock
        deadline = math.inf if policy.timeout is None else clock() + policy.timeout
        deadline = clock() + retry_seconds if retry_seconds else deadline
        busy_until = clock() + (_BUSY_RETRY_SECONDS if policy.timeout is None else policy.timeout)

        end = self._deadline  # not self, which what lives as long as the connection must not hold

        def remaining_time() -> float:
            return min(deadline, end.at) - clock()

        hop = Hop(self._settings, self._config.password, self._checker, self._jump_hop(self._original_config.jump))
        self._aborted = False
        attempt_number = 0
        while True:
            attempt_number += 1
            attempt = self._attempt = ConnectAttempt(
                hop, remaining_time, transfer_size, query_auth_methods=self.query_auth_methods
            )
            try:
                return _Connection(attempt.run(), self._config)
            except BackendUnavailable as error:
                add_location(error, self._config.address, Jail(self._config.base_path))
                refused = isinstance(error, AuthenticationFailed | HostKeyRejected) or attempt.is_permanent
                # A server that is busy soon has room: the number of attempts bounds other failures only.
                busy = attempt.is_server_busy and attempts > 1 and clock() < busy_until
                pause = policy.pause(min(attempt_number, attempts - 1) if busy else attempt_number, self._random())
                if retry_seconds:
                    pause = min(max(pause, _RECONNECT_PAUSE[0]), _RECONNECT_PAUSE[1])
                is_last = attempt_number >= attempts and not busy and not retry_seconds
                stopped = self._aborted or self._interruption.is_set()
                if refused or stopped or is_last or pause >= remaining_time():
                    if attempt_number > 1:
                        error.message += f"; tried {attempt_number} times"
                    raise
                if busy or retry_seconds:
                    log.warning("%s; attempt %d follows in %.1f s", error, attempt_number + 1, pause)
                else:
                    log.warning("%s; try %d of %d follows in %.1f s", error, attempt_number + 1, attempts, pause)
                failure = error
            finally:
                self._attempt = None
                self.last_attempt_info = attempt.info()
            self.pause(pause)
            if self._aborted or self._interruption.is_set():
                raise failure

    @property
    def reconnect_timeout(self) -> float:
        """Seconds for which a transfer that lost its connection tries to connect again."""
        return self._config.reconnect_timeout

    def pause(self, seconds: float) -> None:
        """Sleep until the time is over or `close`, `interrupt` or `abort_within` is called.

        :param seconds: how long
        """
        if self._sleep is not None:
            self._sleep(seconds)
            return
        while seconds > 0 and not self._aborted and self._clock() < self._deadline.at:
            step = min(seconds, _SLEEP_STEP)
            if self._interruption.wait(step):
                return
            seconds -= step

    def _jump_hop(self, jump: BackendConfig | None) -> Hop | None:
        """The jump server, and those before it."""
        if jump is None:
            return None
        settings = ConnectSettings.of(jump)
        checker = HostKeyChecker(settings.config, self._environ)
        return Hop(settings, settings.config.password, checker, self._jump_hop(jump.jump))

    def abandon_after_fork(self) -> None:
        """In a forked child: forgets the parent's connection, and whoever held the lock there."""
        connection, self._connection = self._connection, None
        self._lock = threading.RLock()
        self._interruption = threading.Event()
        self._attempt = self._in_use = None
        if connection is not None:
            connection.abandon_after_fork()


_BUSY_RETRY_SECONDS: Final = 60.0
"""Seconds for which connecting to a server with too many connections is retried, unless the retry policy has a time."""
_REFRESHED_FIELDS: Final = ("username", "password", "private_key", "key_file", "passphrase", "known_host_keys")


def _refreshed_config(config: BackendConfig) -> BackendConfig | None:
    """The same with the login and the known keys of now, its own and those of the server it goes through; None if
    nothing has changed."""
    refreshed = config
    if config.refresh is not None and (current := config.refresh()) is not None:
        refreshed = replace(config, **{name: getattr(current, name) for name in _REFRESHED_FIELDS})
    if config.jump is not None and (jump := _refreshed_config(config.jump)) is not None:
        refreshed = replace(refreshed, jump=jump)
    return refreshed if refreshed != config else None
