"""One try to connect: TCP, key exchange, host key, login, SFTP; each step within its time.

Host certificates: paramiko negotiates ``...-cert-v01@openssh.com`` host key algorithms and verifies the server's
signature with the key in the certificate (read in paramiko 5.1, transport.py and pkey.py); whether the certificate is
worth anything, `host_key_policy` decides. They are asked for first where an authority for the host is known.
"""

from __future__ import annotations

import getpass
import inspect
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, cast

import paramiko
from paramiko.auth_strategy import AuthStrategy

from airflow_sftp_backend.backend._limits import Bounds
from airflow_sftp_backend.backend._protocol.scheduler import SFTPScheduler
from airflow_sftp_backend.backend._protocol.server_traits import is_openssh_banner
from airflow_sftp_backend.backend._protocol.striping import TransferSize
from airflow_sftp_backend.backend.config import BackendConfig, Secret, hidden_arguments
from airflow_sftp_backend.backend.errors import (
    AuthenticationFailed,
    BackendUnavailable,
    printable,
    translate_connection_errors,
)

from ._paramiko_compat import AgreedAlgorithms, SSHTransport, buffer_channel, certificate_of
from .auth import Login, LoginRecord, Places
from .extra_channels import ExtraChannels
from .host_certificates import fingerprint, key_type, plain_key
from .host_key_policy import HostKeyChecker
from .jump_host import Forbidden, Way
from .known_hosts import known_hosts_line
from .legacy_rsa import legacy_transport
from .socket_stream import SERVER_CLOSED, Stream, dial, dial_through

if TYPE_CHECKING:
    import socket

log = logging.getLogger(__name__)

CHANNEL_WINDOW: Final = 32 << 20
"""Bytes the server may send before the channel is read."""
_PACKET: Final = 32 << 10
_FIRST_CIPHER: Final = "aes128-gcm@openssh.com"
_OWN: Final = frozenset({"hostname", "port", "sock", "transport_factory"})
"""Arguments of ``SSHClient.connect`` that are not the caller's to give."""
CLOSED_MEANWHILE: Final = "the session was closed meanwhile"
_BANNER: Final = "waiting for the SSH banner"
_LOGIN: Final = "logging in"
_TOO_MANY: Final = b"Exceeded MaxStartups"
_PENALTY: Final = b"Not allowed at this time"
"""Both are sent by OpenSSH in place of its banner (sshd.c): while too many connections are not logged in yet, and to an
address that it refuses for a while (PerSourcePenalties)."""
_TEXT_BEFORE_SFTP: Final = (
    "the server lets {!r} in but sends text before SFTP starts: {!r}. If a login script prints it, have the script"
    " print in terminals only; if it says why SFTP is refused, have the account enabled there"
)
_SLACK: Final = 60.0
"""Seconds by which paramiko's own time limits lie after those kept here."""
_PATIENCE: Final = 5.0
"""Seconds a transport's thread has to end."""


@dataclass(frozen=True, kw_only=True)
class ConnectionFacts:
    """What a connection turned out to be, or a try to make one as far as it came, for logs and diagnosis; blank is what
    it did not come to."""

    username: str
    server_version: str
    """As ``SSH-2.0-OpenSSH_9.2``."""
    key_exchange: str
    """As ``curve25519-sha256@libssh.org``."""
    host_key_type: str
    """As ``ssh-ed25519``."""
    host_key_fingerprint: str
    """``SHA256:`` and base64."""
    host_key_line: str
    """The known_hosts line that vouches for it."""
    trust: str
    """Why the host key is trusted."""
    cipher: str
    mac: str
    """Blank where the cipher authenticates by itself."""
    compression: str
    strict_key_exchange: bool
    """The countermeasure to Terrapin (CVE-2023-48795) is in effect."""
    login_methods: tuple[str, ...]
    """What the server said it takes, if it was asked."""
    login_refused: tuple[str, ...]
    login_taken: tuple[str, ...]
    """What it took, as ``the password``."""
    logged_in: bool
    proposed: Mapping[str, tuple[str, ...]]
    """The algorithms asked for, by the names of `HostAlgorithms`."""
    incompatible: bool
    """It failed because the server knows none of them."""
    jump: ConnectionFacts | None
    """Of the connection to the jump server it goes through."""


@dataclass(frozen=True)
class Opened:
    """A connection with SFTP on it. Whoever has it ends it, with `end_transport`."""

    client: paramiko.SSHClient
    transport: SSHTransport
    stream: Stream
    scheduler: SFTPScheduler
    facts: ConnectionFacts


@dataclass(frozen=True)
class Settings:
    """The configuration with ``connect_kwargs`` worked in, and what only those can say."""

    config: BackendConfig
    places: Places
    channel_timeout: float
    strategy: AuthStrategy | None

    @classmethod
    def of(cls, config: BackendConfig) -> Settings:
        """ValueError for what ``connect_kwargs`` may not hold."""
        given: dict[str, Any] = {
            name: value for name, value in hidden_arguments(config.connect_kwargs).items() if value is not None
        }
        if own := sorted(given.keys() & _OWN):
            raise ValueError(
                f"connect_kwargs must not hold {', '.join(own)}: the backend connects by itself, see host, port and"
                " proxy_command"
            )
        if unknown := sorted(given.keys() - inspect.signature(paramiko.SSHClient.connect).parameters.keys()):
            raise ValueError(f"connect_kwargs holds {', '.join(unknown)}, unknown to paramiko's SSHClient.connect")
        changes = {name: given[name] for name in given.keys() & vars(config).keys()}
        if "pkey" in changes:
            changes |= {"private_key": None, "key_file": None}
        config = replace(config, **changes)
        named = given.get("key_filename", ())
        files = (os.fspath(named),) if isinstance(named, str | os.PathLike) else tuple(map(os.fspath, named))
        has_some = any((config.password, config.pkey, config.private_key, config.key_file, files))
        looks = not has_some if config.look_for_keys is None else config.look_for_keys
        places = Places(files, agent=bool(given.get("allow_agent", looks)), home=looks)
        return cls(config, places, given.get("channel_timeout", config.timeout), given.get("auth_strategy"))

    @property
    def banner_timeout(self) -> float:
        """Seconds until the server says something."""
        return self.config.banner_timeout or self.config.timeout

    @property
    def auth_timeout(self) -> float:
        """Seconds until the server answers a question of the login."""
        return self.config.auth_timeout or self.config.timeout

    @property
    def slowest(self) -> float:
        """The longest of the time limits, in seconds."""
        return max(self.config.timeout, self.banner_timeout, self.auth_timeout, self.channel_timeout)


@dataclass(frozen=True)
class Hop:
    """A server to log in to. ``password`` is that of the settings as they are now; ``checker`` judges its host key;
    ``through`` is the jump server it is reached through.
    """

    settings: Settings
    password: Secret | None
    checker: HostKeyChecker
    through: Hop | None = None


# -- paramiko's transport ---------------------------------------------------------------------------------------------


def make_transport(stream: Stream, slowest: float, *, legacy: bool, **options: Any) -> SSHTransport:
    """A transport over ``stream``. ``slowest`` is the longest time limit of the stream, in seconds; the transport's own
    lie well behind. ``legacy`` takes SHA-1 ``ssh-rsa`` too.
    """
    make = legacy_transport if legacy else SSHTransport
    transport = make(cast("socket.socket", stream), **options)
    transport.set_timeouts(2 * slowest + _SLACK)
    return transport


def end_transport(transport: SSHTransport | None, stream: Stream) -> None:
    """Ends a conversation at once, its threads with it."""
    stream.hang_up()
    if transport is not None and not transport.end(_PATIENCE):
        log.warning("a thread of paramiko does not end: %r", transport)
        return
    stream.release()


# -- step by step -----------------------------------------------------------------------------------------------------


class Opening(paramiko.MissingHostKeyPolicy):
    """One try to connect, and paramiko's way of asking about the host key meanwhile.

    ``left()`` gives the seconds left for all steps together; ``load`` is what is to be sent first, so that the channels
    for it are opened beside the first one. With ``curious`` the server is asked which login methods it takes.
    """

    def __init__(
        self, hop: Hop, left: Callable[[], float], load: TransferSize | None = None, *, curious: bool = False
    ) -> None:
        self._settings = hop.settings
        self._load = load
        self._config = hop.settings.config
        self._password = hop.password
        self._checker = hop.checker
        self._left = left
        self._curious = curious
        self._jump = None if hop.through is None else Opening(hop.through, left, curious=curious)
        self._doing = "connecting"
        self._preferred: tuple[str, ...] = ()
        self._username = ""
        self._login: Login | None = None
        self._record = LoginRecord()
        self._stream: Stream | None = None
        self._transport: SSHTransport | None = None
        self._host_key = b""
        self._trust = ""
        self._incompatible = self._logged_in = False
        self._aborted = False
        self.hopeless = False
        """Another try would end the same way."""
        self.busy = False
        """The server has too many connections that are not logged in yet; another try soon may succeed."""

    def run(self) -> Opened:
        """Connects, logs in and starts SFTP. Raises BackendUnavailable; nothing of the try is left then."""
        try:
            with translate_connection_errors(self._situation, self._config.address):
                client, transport, stream = self._reach()
                scheduler = self._start_sftp(stream, transport)
                return Opened(client, transport, stream, scheduler, self.facts())
        except BaseException:
            if self._stream is not None:
                end_transport(self._transport, self._stream)
            raise
        finally:
            self._login = None  # which refers back to this

    def _lead(self) -> Way:
        """Connects and logs in, for a way through. Raises BackendUnavailable; nothing of the try is left then."""
        address = self._config.address
        try:
            with translate_connection_errors(self._situation, address):
                _, transport, stream = self._reach()
                return Way(transport, stream, address, lambda: end_transport(transport, stream))
        except BaseException as error:
            if self._stream is not None:
                end_transport(self._transport, self._stream)
            if isinstance(error, BackendUnavailable):
                error.message = f"jump server: {error.message}"
            raise
        finally:
            self._login = None

    def abort(self) -> None:
        """Makes `run` fail soon. Takes no lock: fit for a signal handler."""
        self._aborted = self.hopeless = True
        if self._jump is not None:
            self._jump.abort()
        if self._stream is not None:
            self._stream.hang_up(CLOSED_MEANWHILE)

    def _reach(self) -> tuple[paramiko.SSHClient, SSHTransport, Stream]:
        config = self._config
        self._preferred = self._checker.preferred_types()
        self._username = config.username or _local_user()
        if self._settings.strategy is None:
            self._login = Login(
                config, self._settings.places, self._username, self._password, self._limit_login,
                record=self._record, curious=self._curious,
            )  # fmt: skip
        self._stream = self._dial()
        if self._aborted:
            self._stream.hang_up(CLOSED_MEANWHILE)
        client = self._log_in(self._stream)
        transport = self._transport
        assert transport is not None
        if not transport.is_authenticated():
            raise AuthenticationFailed(f"the login as {self._username!r} is not complete: the server wants more")
        self._logged_in = True
        transport.set_keepalive(config.keepalive_interval)
        self._stream.limit(None)
        return client, transport, self._stream

    def _dial(self) -> Stream:
        config = self._config
        if self._jump is not None:
            return self._dial_behind(self._jump)
        if config.proxy_command is None:
            return dial(config.host, config.port, timeout=self._within(config.timeout), io_timeout=config.io_timeout)
        return dial_through(
            config.proxy_command,
            host=config.host,
            port=config.port,
            username=self._username,
            io_timeout=config.io_timeout,
        )

    def _dial_behind(self, jump: Opening) -> Stream:
        """The line through the jump server."""
        config = self._config
        try:
            way = jump._lead()
        finally:
            self.hopeless = self.hopeless or jump.hopeless
        way.stream.limit(self._within(config.timeout))
        try:
            return way.to(config.host, config.port, timeout=config.timeout + _SLACK, io_timeout=config.io_timeout)
        except BaseException as error:
            self.hopeless = self.hopeless or isinstance(error, Forbidden)
            way.end()
            raise
        finally:
            way.stream.limit(None)

    def _log_in(self, stream: Stream) -> paramiko.SSHClient:
        config = self._config
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(self)
        self._doing = _BANNER
        stream.limit(self._within(self._settings.banner_timeout), then=self._within(config.timeout))
        try:
            client.connect(
                config.host,
                config.port,
                username=self._username,
                compress=config.compress,
                sock=cast("socket.socket", stream),
                disabled_algorithms=config.disabled_algorithms,
                transport_factory=self._make_transport,
                auth_strategy=self._settings.strategy or self._login,
            )
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self._explained(error, stream) from error
        finally:
            client.set_missing_host_key_policy(paramiko.RejectPolicy())  # which knows nothing of this try
        return client

    def _make_transport(self, sock: object, /, **options: Any) -> SSHTransport:
        config = self._config
        stream = cast(Stream, sock)
        transport = make_transport(stream, self._settings.slowest, legacy=config.allow_ssh_rsa_sha1, **options)
        self._transport = transport
        security = transport.get_security_options()
        known = security.ciphers
        if unknown := [name for name in config.ciphers if name not in known]:
            self.hopeless = True
            raise BackendUnavailable(f"unknown ciphers: {', '.join(unknown)}; known are {', '.join(known)}")
        security.ciphers = config.ciphers or tuple(dict.fromkeys((_FIRST_CIPHER, *known)))
        possible = {*transport.proposed_algorithms()["host_keys"]}
        first = [name for name in self._preferred if name in possible]
        security.key_types = tuple(dict.fromkeys((*first, *security.key_types)))
        return transport

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:  # noqa: ARG002
        """Asks the checker, as paramiko itself is told of no host keys. Raises HostKeyRejected."""
        assert self._stream is not None
        self._doing = "checking the host key"
        self._stream.limit(None)
        certificate = certificate_of(key)
        blob = key.asbytes() if certificate is None else certificate[1]
        with suppress(ValueError):  # which the checker says better
            plain_key(blob)
            self._host_key = blob
        self._trust = self._checker.check(blob)
        self._limit_login()

    def _limit_login(self) -> None:
        """Each question to the server has its own time."""
        assert self._stream is not None
        self._doing = _LOGIN
        self._stream.limit(self._within(self._settings.auth_timeout))

    def _explained(self, error: Exception, stream: Stream) -> Exception:
        """What to raise for a failure of paramiko's: a refused login, or the failure itself.

        Who closes the connection during the login may mean to refuse it, so that is not tried again.
        """
        why = self._situation()[1]
        if self._login is not None and (self._record.refused or self._record.asked):
            return self._login.failed(f"then {why or 'it closed the connection'}")
        if why is None and isinstance(error, paramiko.AuthenticationException):
            return AuthenticationFailed(f"the login as {self._username!r} is refused: {printable(str(error))}")
        assert self._transport is not None
        if not self._transport.server_version and stream.greeting and not stream.timed_out:
            said = printable(stream.greeting.decode("utf-8", "replace"), 60)
            if stream.greeting.startswith(_TOO_MANY):
                self.busy = True
                return BackendUnavailable(
                    f"too many connections at once: the server says {said!r}; have fewer tasks connect at the same"
                    " time (an Airflow pool), or have MaxStartups raised there"
                )
            if stream.greeting.startswith(_PENALTY):
                return BackendUnavailable(
                    f"the server refuses this address for a while: it says {said!r}; too many failed logins or"
                    " connections are usual causes (PerSourcePenalties of OpenSSH)"
                )
            return BackendUnavailable(f"the server does not speak SSH but says {said!r}; check the port")
        self.hopeless = self.hopeless or (self._doing == _LOGIN and not stream.timed_out)
        self._incompatible = isinstance(error, paramiko.ssh_exception.IncompatiblePeer)
        self.hopeless = self.hopeless or self._incompatible
        return error

    def _start_sftp(self, stream: Stream, transport: SSHTransport) -> SFTPScheduler:
        config = self._config
        self._doing = "opening a channel"
        stream.limit(self._within(self._settings.channel_timeout))
        started = time.perf_counter()
        ssh_channel = transport.open_session(window_size=CHANNEL_WINDOW, max_packet_size=_PACKET)
        round_trip = time.perf_counter() - started
        banner = transport.server_version
        extra_channels = self._extra_channels(transport)
        if self._load is not None:
            extra_channels.request(self._load.channel_count(round_trip, supports_striping=is_openssh_banner(banner)))
        self._doing = "starting SFTP"
        stream.limit(self._within(config.timeout))
        try:
            ssh_channel.invoke_subsystem("sftp")
        except paramiko.SSHException:
            if self._situation()[1] is not None:
                raise
            self.hopeless = True
            raise BackendUnavailable(
                "the server has no SFTP subsystem, or not for this user; have it enabled there (in OpenSSH's"
                " sshd_config: Subsystem sftp internal-sftp)"
            ) from None
        self._doing = "agreeing on the SFTP version"
        stream.limit(self._within(config.timeout))
        ssh_channel.settimeout(config.timeout + _SLACK)
        bounds = Bounds(config.max_entries, config.max_listing_bytes, config.max_file_bytes)
        scheduler = SFTPScheduler(
            buffer_channel(ssh_channel),
            io_timeout=config.io_timeout,
            channel_source=extra_channels,
            banner=banner,
            bounds=bounds,
        )
        try:
            scheduler.handshake()
        except BackendUnavailable as error:
            if scheduler.unexpected_text:
                raise AuthenticationFailed(
                    _TEXT_BEFORE_SFTP.format(self._username, scheduler.unexpected_text)
                ) from None
            if self._situation()[1] is None:
                raise
            raise EOFError(error.message) from error
        stream.limit(None)
        ssh_channel.settimeout(config.io_timeout)
        return scheduler

    def _extra_channels(self, transport: paramiko.Transport) -> ExtraChannels:
        config = self._config
        return ExtraChannels(
            transport, maximum=config.max_channels, timeout=config.timeout + _SLACK, io_timeout=config.io_timeout
        )

    def facts(self) -> ConnectionFacts:
        """What has been found so far."""
        transport, key = self._transport, self._host_key
        agreed = AgreedAlgorithms() if transport is None else transport.agreed_algorithms()
        return ConnectionFacts(
            username=self._username,
            server_version=printable(transport.server_version) if transport is not None else "",
            key_exchange=agreed.key_exchange,
            host_key_type=key_type(key) if key else "",
            host_key_fingerprint=fingerprint(key) if key else "",
            host_key_line=known_hosts_line(self._config.host, self._config.port, key) if key else "",
            trust=self._trust,
            cipher=agreed.cipher,
            mac=agreed.mac,
            compression=agreed.compression,
            strict_key_exchange=agreed.strict_key_exchange,
            login_methods=tuple(self._record.offered),
            login_refused=tuple(self._record.refused),
            login_taken=tuple(self._record.taken),
            logged_in=self._logged_in,
            proposed={} if transport is None else transport.proposed_algorithms(),
            incompatible=self._incompatible,
            jump=None if self._jump is None else self._jump.facts(),
        )

    def _within(self, seconds: float) -> float:
        return max(0.01, min(seconds, self._left()))

    def _situation(self) -> tuple[str, str | None]:
        """What is being done, and why the line broke if it did."""
        doing, transport = self._doing, self._transport
        if doing == _BANNER and transport is not None and transport.server_version:
            doing = "exchanging keys"
        if transport is not None and transport.disconnect_message is not None:
            return doing, f"the server hung up, saying {printable(transport.disconnect_message)!r}"
        failure = self._stream.failure if self._stream is not None else None
        if failure == SERVER_CLOSED and doing == _BANNER:
            failure += "; too many connections at once, an address ban or a firewall are usual causes"
        return doing, failure


def _local_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # which of them depends on the version of Python
        raise AuthenticationFailed("no user name is given, and the local user has none; set username") from None
