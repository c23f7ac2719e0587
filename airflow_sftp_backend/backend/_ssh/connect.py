"""Attempt to connect: TCP, key exchange, host key, login, SFTP.

Each step has a time limit.

Host certificates: paramiko negotiates ``...-cert-v01@openssh.com`` host key algorithms and verifies the server's
signature with the key in the certificate (read in paramiko 5.1, transport.py and pkey.py). `host_key_verification`
validates the certificate itself. If an authority for the host is known, these algorithms are proposed first.
"""

from __future__ import annotations

import enum
import getpass
import inspect
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, cast

import paramiko
from paramiko.auth_strategy import AuthStrategy

from airflow_sftp_backend.backend._protocol.name_encoding import create_name_encoding
from airflow_sftp_backend.backend._protocol.scheduler import SFTPScheduler
from airflow_sftp_backend.backend._protocol.server_traits import is_openssh_banner
from airflow_sftp_backend.backend._protocol.striping import ChannelDemand
from airflow_sftp_backend.backend._receive_limits import ReceiveLimits
from airflow_sftp_backend.backend.config import BackendConfig, Secret, wrap_secrets
from airflow_sftp_backend.backend.errors import (
    AuthenticationFailed,
    BackendUnavailable,
    printable,
    translate_connection_errors,
)
from airflow_sftp_backend.backend.models import ConnectionInfo

from ._paramiko_compat import AgreedAlgorithms, SSHTransport, buffer_channel, certificate_of
from ._paramiko_packets import packetizer_class
from .auth import Authenticator, AuthRecord, KeySources
from .extra_channels import ExtraChannels
from .host_certificates import fingerprint, key_type, plain_key
from .host_key_verification import HostKeyVerifier
from .jump_host import ForwardingDenied, JumpHost
from .known_hosts import known_hosts_line
from .legacy_rsa import legacy_transport
from .socket_stream import SocketStream, connect_command, connect_tcp

if TYPE_CHECKING:
    import socket

log = logging.getLogger(__name__)

CHANNEL_WINDOW: Final = 32 << 20
"""Receive window of the SFTP channel, in bytes (RFC 4254 section 5.2)."""
_MAX_PACKET_SIZE: Final = 32 << 10
_PREFERRED_CIPHER: Final = "aes128-gcm@openssh.com"
_RESERVED_ARGUMENTS: Final = frozenset({"hostname", "port", "sock", "transport_factory"})
"""Arguments of ``SSHClient.connect`` set by the backend itself."""
CLOSED_DURING_CONNECT: Final = "the session was closed meanwhile"
_MAX_STARTUPS_REPLY: Final = b"Exceeded MaxStartups"
_PENALTY_REPLY: Final = b"Not allowed at this time"
"""Replies of OpenSSH in place of its banner (sshd.c): too many connections before their login (MaxStartups), and an
address with penalties (PerSourcePenalties)."""
_TEXT_BEFORE_SFTP: Final = (
    "the server accepts the login of {!r} but sends text before SFTP starts: {!r}. If a login script prints the text,"
    " have the script print in terminals only; if the text refuses SFTP, have SFTP enabled for the account"
)
_EXTRA_SECONDS: Final = 60.0
"""Margin of paramiko's own time limits over the limits of this module, in seconds, so that the latter apply first."""
_THREAD_EXIT_SECONDS: Final = 5.0
"""Longest time in seconds to wait for the end of a transport's thread."""


class _Phase(enum.StrEnum):
    """Phase of an attempt to connect, in the words of messages."""

    CONNECTING = "connecting"
    WAITING_FOR_BANNER = "waiting for the SSH banner"
    EXCHANGING_KEYS = "exchanging keys"
    CHECKING_HOST_KEY = "checking the host key"
    LOGGING_IN = "logging in"
    OPENING_CHANNEL = "opening a channel"
    STARTING_SFTP = "starting SFTP"
    AGREEING_ON_VERSION = "agreeing on the SFTP version"


@dataclass(frozen=True)
class EstablishedConnection:
    """SSH connection with an SFTP channel. The owner ends it with `close_transport`."""

    client: paramiko.SSHClient
    transport: SSHTransport
    stream: SocketStream
    scheduler: SFTPScheduler
    info: ConnectionInfo


@dataclass(frozen=True)
class ConnectSettings:
    """Configuration with ``connect_kwargs`` applied, and settings without a field in the configuration.

    :ivar config: the configuration
    :ivar channel_timeout: longest time in seconds to open the channel
    :ivar strategy: authentication strategy of the caller, in place of `Authenticator`
    """

    config: BackendConfig
    key_sources: KeySources
    channel_timeout: float
    strategy: AuthStrategy | None

    @classmethod
    def of(cls, config: BackendConfig) -> ConnectSettings:
        """Apply ``connect_kwargs`` to a configuration.

        :raises ValueError: if ``connect_kwargs`` holds a reserved or unknown argument
        """
        arguments: dict[str, Any] = {
            name: value for name, value in wrap_secrets(config.connect_kwargs).items() if value is not None
        }
        if reserved := sorted(arguments.keys() & _RESERVED_ARGUMENTS):
            raise ValueError(
                f"connect_kwargs must not hold {', '.join(reserved)}: the backend connects by itself, see host, port"
                " and proxy_command"
            )
        if unknown := sorted(arguments.keys() - inspect.signature(paramiko.SSHClient.connect).parameters.keys()):
            raise ValueError(f"connect_kwargs holds {', '.join(unknown)}, unknown to paramiko's SSHClient.connect")
        changes = {name: arguments[name] for name in arguments.keys() & vars(config).keys()}
        if "pkey" in changes:
            # A key object replaces the configured text and file.
            changes |= {"private_key": None, "key_file": None}
        config = replace(config, **changes)
        key_filename = arguments.get("key_filename", ())
        files = (
            (os.fspath(key_filename),)
            if isinstance(key_filename, str | os.PathLike)
            else tuple(map(os.fspath, key_filename))
        )
        has_credentials = any((config.password, config.pkey, config.private_key, config.key_file, files))
        # Each key that is found and refused counts toward the server's limit of attempts (MaxAuthTries of OpenSSH).
        searches_for_keys = not has_credentials if config.look_for_keys is None else config.look_for_keys
        key_sources = KeySources(
            files, use_agent=bool(arguments.get("allow_agent", searches_for_keys)), use_home_directory=searches_for_keys
        )
        return cls(
            config, key_sources, arguments.get("channel_timeout", config.timeout), arguments.get("auth_strategy")
        )

    @property
    def banner_timeout(self) -> float:
        """Longest time in seconds until the server sends its banner."""
        return self.config.banner_timeout or self.config.timeout

    @property
    def auth_timeout(self) -> float:
        """Longest time in seconds until the server answers an authentication request."""
        return self.config.auth_timeout or self.config.timeout

    @property
    def slowest(self) -> float:
        """Longest of the time limits, in seconds."""
        return max(self.config.timeout, self.banner_timeout, self.auth_timeout, self.channel_timeout)


@dataclass(frozen=True)
class Hop:
    """Server on the way to the target, or the target itself.

    :ivar password: current password of the settings
    :ivar checker: checker of the server's host key
    :ivar jump: jump host before this server
    """

    settings: ConnectSettings
    password: Secret | None
    checker: HostKeyVerifier
    jump: Hop | None = None


# -- paramiko's transport ---------------------------------------------------------------------------------------------


def make_transport(stream: SocketStream, slowest: float, *, legacy: bool, **options: Any) -> SSHTransport:
    """Create a transport over a stream.

    :param slowest: longest time limit of the stream in seconds; the limits of the transport are longer
    :param legacy: also accept ``ssh-rsa`` with SHA-1
    :param options: arguments of ``paramiko.Transport``
    """
    factory = legacy_transport if legacy else SSHTransport
    transport = factory(cast("socket.socket", stream), packetizer_class=packetizer_class(), **options)
    transport.set_timeouts(2 * slowest + _EXTRA_SECONDS)
    return transport


def close_transport(transport: SSHTransport | None, stream: SocketStream) -> None:
    """End a connection at once, with its threads."""
    stream.abort()
    if transport is not None and not transport.stop_threads(_THREAD_EXIT_SECONDS):
        log.warning("thread of paramiko still running: %r", transport)
        return
    stream.close_descriptor()


# -- step by step -----------------------------------------------------------------------------------------------------


class ConnectAttempt(paramiko.MissingHostKeyPolicy):
    """One attempt to connect, and paramiko's callback for the host key.

    :param hop: the server, with the jump hosts on the way to it
    :param remaining_time: returns the time in seconds for all remaining steps
    :param channel_demand: size of the first upload; its extra channels are opened together with the first channel
    :param query_auth_methods: ask the server for its authentication methods before the login
    :ivar is_permanent: True if another attempt would fail in the same way
    :ivar is_server_busy: True if too many connections to the server have not logged in yet; a later attempt may succeed
    """

    def __init__(
        self,
        hop: Hop,
        remaining_time: Callable[[], float],
        channel_demand: ChannelDemand | None = None,
        *,
        query_auth_methods: bool = False,
    ) -> None:
        self._settings = hop.settings
        self._channel_demand = channel_demand
        self._config = hop.settings.config
        self._password = hop.password
        self._checker = hop.checker
        self._remaining_time = remaining_time
        self._query_auth_methods = query_auth_methods
        self._jump = (
            None
            if hop.jump is None
            else ConnectAttempt(hop.jump, remaining_time, query_auth_methods=query_auth_methods)
        )
        self._phase = _Phase.CONNECTING
        self._preferred_host_keys: tuple[str, ...] = ()
        self._username = ""
        self._authenticator: Authenticator | None = None
        self._auth_record = AuthRecord()
        self._stream: SocketStream | None = None
        self._transport: SSHTransport | None = None
        self._host_key = b""
        self._trust_reason = ""
        self._incompatible = self._logged_in = False
        self._aborted = False
        self.is_permanent = False
        self.is_server_busy = False

    def run(self) -> EstablishedConnection:
        """Connect, log in and start SFTP.

        :raises BackendUnavailable: if a step fails; the connection is closed then
        """
        try:
            with translate_connection_errors(self._failure_context, self._config.address):
                client, transport, stream = self._connect_and_authenticate()
                scheduler = self._start_sftp(stream, transport)
                return EstablishedConnection(client, transport, stream, scheduler, self.info())
        except BaseException:
            if self._stream is not None:
                close_transport(self._transport, self._stream)
            raise
        finally:
            self._authenticator = None  # breaks a reference cycle

    def _open_jump_host(self) -> JumpHost:
        """Connect and log in to a jump host.

        :raises BackendUnavailable: if a step fails; the connection is closed then
        """
        address = self._config.address
        try:
            with translate_connection_errors(self._failure_context, address, hop="jump host"):
                _, transport, stream = self._connect_and_authenticate()
                return JumpHost(transport, stream, address, lambda: close_transport(transport, stream))
        except BaseException:
            if self._stream is not None:
                close_transport(self._transport, self._stream)
            raise
        finally:
            self._authenticator = None

    def abort(self) -> None:
        """Make `run` fail soon.

        Takes no lock, so that a signal handler may call it.
        """
        self._aborted = self.is_permanent = True
        if self._jump is not None:
            self._jump.abort()
        if self._stream is not None:
            self._stream.abort(CLOSED_DURING_CONNECT)

    def _connect_and_authenticate(self) -> tuple[paramiko.SSHClient, SSHTransport, SocketStream]:
        config = self._config
        self._preferred_host_keys = self._checker.preferred_types()
        self._username = config.username or _local_user()
        if self._settings.strategy is None:
            self._authenticator = Authenticator(
                config, self._settings.key_sources, self._username, self._password, self._set_auth_deadline,
                record=self._auth_record, query_auth_methods=self._query_auth_methods,
            )  # fmt: skip
        self._stream = self._open_stream()
        # `abort` may have run while the stream did not exist yet.
        if self._aborted:
            self._stream.abort(CLOSED_DURING_CONNECT)
        client = self._log_in(self._stream)
        transport = self._transport
        assert transport is not None
        if not transport.is_authenticated():
            raise AuthenticationFailed(
                f"the login as {self._username!r} is incomplete: the server wants another method"
            )
        self._logged_in = True
        transport.watch_connection(config.keepalive_interval, config.io_timeout)
        self._stream.set_deadline(None)
        return client, transport, self._stream

    def _open_stream(self) -> SocketStream:
        config = self._config
        if self._jump is not None:
            return self._open_stream_through(self._jump)
        if config.proxy_command is None:
            return connect_tcp(
                config.host, config.port, timeout=self._clamp(config.timeout), io_timeout=config.io_timeout
            )
        return connect_command(
            config.proxy_command,
            host=config.host,
            port=config.port,
            username=self._username,
            io_timeout=config.io_timeout,
        )

    def _open_stream_through(self, jump: ConnectAttempt) -> SocketStream:
        """Open a stream to the server through the jump host."""
        config = self._config
        try:
            jump_host = jump._open_jump_host()
        finally:
            self.is_permanent = self.is_permanent or jump.is_permanent
        jump_host.stream.set_deadline(self._clamp(config.timeout))
        try:
            return jump_host.open_stream(
                config.host, config.port, timeout=config.timeout + _EXTRA_SECONDS, io_timeout=config.io_timeout
            )
        except BaseException as error:
            self.is_permanent = self.is_permanent or isinstance(error, ForwardingDenied)
            jump_host.close()
            raise
        finally:
            jump_host.stream.set_deadline(None)

    def _log_in(self, stream: SocketStream) -> paramiko.SSHClient:
        config = self._config
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(self)
        self._phase = _Phase.WAITING_FOR_BANNER
        stream.set_deadline(self._clamp(self._settings.banner_timeout), after_first_bytes=self._clamp(config.timeout))
        try:
            client.connect(
                config.host,
                config.port,
                username=self._username,
                compress=config.compress,
                sock=cast("socket.socket", stream),
                disabled_algorithms=config.disabled_algorithms,
                transport_factory=self._make_transport,
                auth_strategy=self._settings.strategy or self._authenticator,
            )
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self._translate(error, stream) from error
        finally:
            client.set_missing_host_key_policy(paramiko.RejectPolicy())  # breaks a reference cycle
        return client

    def _make_transport(self, sock: object, /, **options: Any) -> SSHTransport:
        config = self._config
        stream = cast(SocketStream, sock)
        transport = make_transport(stream, self._settings.slowest, legacy=config.allow_ssh_rsa_sha1, **options)
        self._transport = transport
        security = transport.get_security_options()
        supported = security.ciphers
        if unknown := [name for name in config.ciphers if name not in supported]:
            self.is_permanent = True
            raise BackendUnavailable(f"unknown ciphers: {', '.join(unknown)}; supported are {', '.join(supported)}")
        security.ciphers = config.ciphers or tuple(dict.fromkeys((_PREFERRED_CIPHER, *supported)))
        possible = {*transport.proposed_algorithms()["host_keys"]}
        preferred = [name for name in self._preferred_host_keys if name in possible]
        security.key_types = tuple(dict.fromkeys((*preferred, *security.key_types)))
        return transport

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:  # noqa: ARG002
        """Check the host key.

        :raises HostKeyRejected: if the key is not trusted
        """
        # paramiko calls this method for every server, because its own list of host keys is empty.
        # The check sends no request, and may wait for the lock of the file of host keys.
        assert self._stream is not None
        self._phase = _Phase.CHECKING_HOST_KEY
        self._stream.set_deadline(None)
        certificate = certificate_of(key)
        blob = key.asbytes() if certificate is None else certificate[1]
        with suppress(ValueError):  # an invalid key is reported by the checker below
            plain_key(blob)
            self._host_key = blob
        self._trust_reason = self._checker.check(blob)
        self._set_auth_deadline()

    def _set_auth_deadline(self) -> None:
        """Set the deadline of the next authentication request."""
        assert self._stream is not None
        self._phase = _Phase.LOGGING_IN
        self._stream.set_deadline(self._clamp(self._settings.auth_timeout))

    def _translate(self, error: Exception, stream: SocketStream) -> Exception:
        """Return the error for an exception of paramiko.

        Sets `is_permanent` and `is_server_busy`.
        """
        reason = self._failure_context()[1]
        if self._authenticator is not None and (self._auth_record.refused or self._auth_record.prompts):
            return self._authenticator.failure(f"then {reason or 'the server closed the connection'}")
        if reason is None and isinstance(error, paramiko.AuthenticationException):
            return AuthenticationFailed(f"the login as {self._username!r} is refused: {printable(str(error))}")
        assert self._transport is not None
        if not self._transport.server_version and stream.greeting and not stream.timed_out:
            server_text = printable(stream.greeting.decode("utf-8", "replace"), 60)
            if stream.greeting.startswith(_MAX_STARTUPS_REPLY):
                self.is_server_busy = True
                return BackendUnavailable(
                    f"too many connections at once: the server says {server_text!r}; limit the number of concurrent"
                    " tasks (an Airflow pool), or have MaxStartups raised on the server"
                )
            if stream.greeting.startswith(_PENALTY_REPLY):
                return BackendUnavailable(
                    f"the server refuses this address for a while: {server_text!r}; usual causes are too many failed"
                    " logins or connections (PerSourcePenalties of OpenSSH)"
                )
            return BackendUnavailable(f"the server does not speak SSH but says {server_text!r}; check the port")
        # A server that closes the connection during the login may refuse the login in this way.
        self.is_permanent = self.is_permanent or (self._phase is _Phase.LOGGING_IN and not stream.timed_out)
        self._incompatible = isinstance(error, paramiko.ssh_exception.IncompatiblePeer)
        self.is_permanent = self.is_permanent or self._incompatible
        return error

    def _start_sftp(self, stream: SocketStream, transport: SSHTransport) -> SFTPScheduler:
        config = self._config
        self._phase = _Phase.OPENING_CHANNEL
        stream.set_deadline(self._clamp(self._settings.channel_timeout))
        # Opening a channel takes one request and one reply: a round trip.
        started = time.perf_counter()
        ssh_channel = transport.open_session(window_size=CHANNEL_WINDOW, max_packet_size=_MAX_PACKET_SIZE)
        round_trip = time.perf_counter() - started
        banner = transport.server_version
        extra_channels = self._extra_channels(transport)
        if self._channel_demand is not None:
            # Requested now, so that all channels open in the same round trip.
            extra_channels.request(
                self._channel_demand.channel_count(round_trip, supports_striping=is_openssh_banner(banner))
            )
        self._phase = _Phase.STARTING_SFTP
        stream.set_deadline(self._clamp(config.timeout))
        try:
            ssh_channel.invoke_subsystem("sftp")
        except paramiko.SSHException:
            if self._failure_context()[1] is not None:
                raise
            self.is_permanent = True
            raise BackendUnavailable(
                "the server has no SFTP subsystem, or not for this user; have SFTP enabled on the server (in OpenSSH's"
                " sshd_config: Subsystem sftp internal-sftp)"
            ) from None
        self._phase = _Phase.AGREEING_ON_VERSION
        stream.set_deadline(self._clamp(config.timeout))
        ssh_channel.settimeout(config.timeout + _EXTRA_SECONDS)
        receive_limits = ReceiveLimits(config.max_entries, config.max_listing_bytes, config.max_file_bytes)
        scheduler = SFTPScheduler(
            buffer_channel(ssh_channel),
            io_timeout=config.io_timeout,
            channel_source=extra_channels,
            banner=banner,
            receive_limits=receive_limits,
            name_encoding=create_name_encoding(config.name_encoding),
        )
        try:
            scheduler.handshake()
        except BackendUnavailable as error:
            if scheduler.unexpected_text:
                raise AuthenticationFailed(
                    _TEXT_BEFORE_SFTP.format(self._username, scheduler.unexpected_text)
                ) from None
            phase, reason = self._failure_context()
            if reason is None:
                raise
            raise BackendUnavailable(f"{phase}: {reason}") from error
        stream.set_deadline(None)
        ssh_channel.settimeout(config.io_timeout)
        return scheduler

    def _extra_channels(self, transport: paramiko.Transport) -> ExtraChannels:
        config = self._config
        return ExtraChannels(
            transport,
            maximum=config.max_channels,
            timeout=config.timeout + _EXTRA_SECONDS,
            io_timeout=config.io_timeout,
            name_encoding=create_name_encoding(config.name_encoding),
        )

    def info(self) -> ConnectionInfo:
        """Return the properties of the connection, as far as they are known."""
        transport, key = self._transport, self._host_key
        agreed = AgreedAlgorithms() if transport is None else transport.agreed_algorithms()
        return ConnectionInfo(
            username=self._username,
            server_version=printable(transport.server_version) if transport is not None else "",
            key_exchange=agreed.key_exchange,
            host_key_type=key_type(key) if key else "",
            host_key_fingerprint=fingerprint(key) if key else "",
            host_key_line=known_hosts_line(self._config.host, self._config.port, key) if key else "",
            trust_reason=self._trust_reason,
            cipher=agreed.cipher,
            mac=agreed.mac,
            compression=agreed.compression,
            strict_key_exchange=agreed.strict_key_exchange,
            login_methods=tuple(self._auth_record.offered),
            login_refused=tuple(self._auth_record.refused),
            login_accepted=tuple(self._auth_record.accepted),
            logged_in=self._logged_in,
            proposed={} if transport is None else transport.proposed_algorithms(),
            incompatible=self._incompatible,
            jump=None if self._jump is None else self._jump.info(),
        )

    def _clamp(self, seconds: float) -> float:
        return max(0.01, min(seconds, self._remaining_time()))

    def _failure_context(self) -> tuple[str, str | None]:
        """Return the current phase, and the reason for a lost connection."""
        phase, transport = self._phase, self._transport
        if phase is _Phase.WAITING_FOR_BANNER and transport is not None and transport.server_version:
            phase = _Phase.EXCHANGING_KEYS
        if transport is not None and transport.disconnect_message is not None:
            return phase, f"the server disconnected: {printable(transport.disconnect_message)!r}"
        stream = self._stream
        failure = stream.failure if stream is not None else None
        if stream is not None and stream.closed_by_server and phase is _Phase.WAITING_FOR_BANNER:
            failure = f"{failure}; too many connections at once, an address ban or a firewall are usual causes"
        return phase, failure


def _local_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # depends on the version of Python
        raise AuthenticationFailed("no user name is set, and the local user has no name; set username") from None
