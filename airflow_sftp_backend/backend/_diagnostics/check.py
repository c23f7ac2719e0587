"""Check a connection and its server step by step."""

from __future__ import annotations

import enum
import json
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from airflow_sftp_backend.backend._files import tree
from airflow_sftp_backend.backend._protocol.codec import ServerLimits
from airflow_sftp_backend.backend._protocol.messages import RealPath
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, request
from airflow_sftp_backend.backend._ssh.host_key_verification import HostKeyStatus
from airflow_sftp_backend.backend._ssh.scan import scan_host_algorithms
from airflow_sftp_backend.backend.config import BackendConfig, RetryPolicy
from airflow_sftp_backend.backend.errors import (
    AuthenticationFailed,
    BackendUnavailable,
    HostKeyRejected,
    InvalidPath,
    NotFound,
    SFTPBackendError,
    StatusError,
    connection_error,
)
from airflow_sftp_backend.backend.models import ConnectionInfo
from airflow_sftp_backend.backend.sync import SFTPBackend

_ROUND_TRIPS: Final = 7
_ALGORITHM_LISTS: Final = {
    "key_exchange": ("key exchange algorithms", "kex"),
    "host_keys": ("host key algorithms", "keys"),
    "ciphers": ("ciphers", "ciphers"),
    "macs": ("MACs", "macs"),
}
"""Names of the fields of `HostAlgorithms` in messages and in ``disabled_algorithms``."""
_NO_SETTING_HELPS: Final = "no setting helps: the server must allow one of"


class CheckTitle(enum.StrEnum):
    """Title of a step."""

    SETTINGS = "Settings"
    NAME = "Name"
    CONNECTION = "Connection"
    JUMP_HOST = "Jump host"
    SERVER = "Server"
    ENCRYPTION = "Encryption"
    HOST_KEY = "Host key"
    LOGIN = "Login"
    SFTP = "SFTP"
    BASE_PATH = "Base path"
    ROUND_TRIP = "Round trip"
    WRITING = "Writing"
    SPEED = "Speed"
    ALL_HOST_KEYS = "All host keys"


@dataclass(frozen=True)
class CheckResult:
    """Result of one step.

    :ivar ok: False if the step failed
    :ivar lines: text for users
    :ivar data: values for programs
    """

    title: CheckTitle
    ok: bool
    lines: tuple[str, ...]
    data: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """Results of all steps, in order.

    A failed step is the last one.

    :ivar server: the server as ``sftp://host:port``
    :ivar username: name of the login; blank if unknown
    :ivar error: error of the failed step; None if all steps succeeded
    :ivar advice: remedies beyond the text of the error
    :ivar connection: properties of the connection; None unless all steps succeeded
    :ivar failed_connection: properties of the failed connection: the connection to the jump host until its login has
        succeeded, then the connection to the server
    """

    server: str
    username: str
    steps: tuple[CheckResult, ...]
    error: SFTPBackendError | None = None
    advice: tuple[str, ...] = ()
    connection: ConnectionInfo | None = None
    failed_connection: ConnectionInfo | None = None

    @property
    def ok(self) -> bool:
        """True if all steps succeeded."""
        return self.error is None


Probe = Callable[[SFTPBackend], CheckResult]
"""Additional step with an open connection. Raises SFTPBackendError if it fails."""


def diagnose(config: BackendConfig, probes: Mapping[CheckTitle, Probe] | None = None) -> Diagnosis:
    """Connect once, check server and base path, and run probes.

    :param config: the configuration; its retry policy is ignored
    :param probes: additional steps by title
    :returns: the results, also of a failed attempt to connect
    :raises ValueError: if the configuration is invalid
    """
    config = replace(config, retry=RetryPolicy.disabled())  # a diagnosis reports the first failure
    steps = [CheckResult(CheckTitle.SETTINGS, True, config.notes)] if config.notes else []
    checks: dict[CheckTitle, Probe] = {
        CheckTitle.SFTP: _diagnose_sftp,
        CheckTitle.BASE_PATH: _diagnose_base_path,
        CheckTitle.ROUND_TRIP: _diagnose_round_trip,
        **(probes or {}),
    }
    with SFTPBackend.from_config(config) as backend:
        session = backend._session
        session.query_auth_methods = True
        title: CheckTitle | None = CheckTitle.NAME  # of the current step; None while connecting
        try:
            steps.append(_diagnose_name(config))
            title = None
            started = time.perf_counter()
            # A call without requests only connects.
            session.call(lambda _: None)
            seconds = time.perf_counter() - started
            assert session.last_attempt_info is not None
            steps += _connection_results(config, session.last_attempt_info, seconds)
            for title, probe in checks.items():  # noqa: B007 - used by the handler below
                steps.append(probe(backend))
        except SFTPBackendError as error:
            error.server = error.server or backend.address
            return _failed_diagnosis(config, steps, title, error, session.last_attempt_info)
        connection = session.last_attempt_info
        return Diagnosis(backend.address, _username(config, connection), tuple(steps), connection=connection)


def _failed_diagnosis(
    config: BackendConfig,
    steps: list[CheckResult],
    title: CheckTitle | None,
    error: SFTPBackendError,
    info: ConnectionInfo | None,
) -> Diagnosis:
    """Add the failed step to the results.

    :param steps: the results of the steps before
    :param title: the failed step; None if connecting failed
    :param info: properties of the connection
    """
    if title is None and info is not None:
        steps = [*steps, *_connection_results(config, info, None)]
    lines = (str(error), *getattr(error, "__notes__", ()))
    failed_step = CheckResult(title or _failed_title(error, info), False, lines, {"error": type(error).__name__})
    return Diagnosis(
        config.address,
        _username(config, info),
        (*steps, failed_step),
        error=error,
        advice=tuple(_advice(config, error, info, title)),
        failed_connection=_failed_connection(info),
    )


def _username(config: BackendConfig, info: ConnectionInfo | None) -> str:
    return (info.username if info is not None else "") or config.username or ""


# -- connection -------------------------------------------------------------------------------------------------------


def _diagnose_name(config: BackendConfig) -> CheckResult:
    """Resolve the host name."""
    if config.jump is not None or config.proxy_command is not None:
        resolver = "the jump host" if config.jump is not None else "the proxy command"
        return CheckResult(CheckTitle.NAME, True, (f"{config.host} is resolved by {resolver}",))
    try:
        results = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise connection_error(error, "resolving the name", config.address) from None
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in results))
    meaning = "an address" if addresses == [config.host] else ", ".join(addresses)
    return CheckResult(CheckTitle.NAME, True, (f"{config.host} is {meaning}",), {"addresses": addresses})


def _connection_results(config: BackendConfig, info: ConnectionInfo, seconds: float | None) -> Iterator[CheckResult]:
    """Yield the results of an attempt to connect.

    ``seconds`` is the duration of a successful attempt.
    """
    if config.jump is not None and info.jump is not None:
        jump_results = list(_connection_results(config.jump, info.jump, None))
        lines = [f"{config.jump.address} as {info.jump.username}"] + [
            line for step in jump_results for line in step.lines
        ]
        if info.jump.logged_in:
            jump_data = [step.data for step in jump_results]
            yield CheckResult(CheckTitle.JUMP_HOST, True, tuple(lines), {"steps": jump_data})
    if info.server_version:
        duration = f", connected and logged in within {seconds * 1000:.0f} ms" if seconds is not None else ""
        yield CheckResult(CheckTitle.SERVER, True, (f"{info.server_version}{duration}",), _server_data(info, seconds))
    if info.cipher:
        yield _encryption(info)
    if info.trust_reason:
        key = f"{info.host_key_type} {info.host_key_fingerprint}"
        yield CheckResult(CheckTitle.HOST_KEY, True, (key, f"trusted: {info.trust_reason}"), _key_data(info))
    if info.logged_in:
        lines = [f"as {info.username!r} with {' and '.join(info.login_accepted) or 'a method of the caller'}"]
        lines += [f"accepted methods: {', '.join(info.login_methods)}"] if info.login_methods else []
        lines += [f"refused: {', '.join(info.login_refused)}"] if info.login_refused else []
        yield CheckResult(CheckTitle.LOGIN, True, tuple(lines), _login_data(info))


def _server_data(info: ConnectionInfo, seconds: float | None) -> dict[str, object]:
    return {"version": info.server_version, "seconds": seconds}


def _encryption(info: ConnectionInfo) -> CheckResult:
    mac = f", {info.mac}" if info.mac else ""
    compression = f", compression {info.compression}" if info.compression != "none" else ""
    strict = "in effect" if info.strict_key_exchange else "not supported by the server (OpenSSH supports it from 9.6)"
    data = {name: getattr(info, name) for name in ("key_exchange", "cipher", "mac", "compression")}
    return CheckResult(
        CheckTitle.ENCRYPTION,
        True,
        (
            f"{info.key_exchange}, {info.cipher}{mac}{compression}",
            f"strict key exchange, against the Terrapin attack (CVE-2023-48795): {strict}",
        ),
        {**data, "strict_key_exchange": info.strict_key_exchange},
    )


def _key_data(info: ConnectionInfo) -> dict[str, object]:
    return {
        "type": info.host_key_type,
        "fingerprint": info.host_key_fingerprint,
        "known_hosts": info.host_key_line,
        "trust": info.trust_reason,
    }


def _login_data(info: ConnectionInfo) -> dict[str, object]:
    return {
        "username": info.username,
        "methods": list(info.login_methods),
        "refused": list(info.login_refused),
        "accepted": list(info.login_accepted),
    }


def _failed_title(error: SFTPBackendError, info: ConnectionInfo | None) -> CheckTitle:
    """Return the title of the failed step of connecting."""
    # Each property that is known shows how far the attempt came.
    if info is None or (info.jump is not None and not info.jump.logged_in):
        return CheckTitle.CONNECTION if info is None else CheckTitle.JUMP_HOST
    if isinstance(error, HostKeyRejected):
        return CheckTitle.HOST_KEY
    if isinstance(error, AuthenticationFailed) or (info.trust_reason and not info.logged_in):
        return CheckTitle.LOGIN
    if not info.server_version:
        return CheckTitle.CONNECTION
    return CheckTitle.SFTP if info.logged_in else CheckTitle.ENCRYPTION


# -- server -----------------------------------------------------------------------------------------------------------


def _diagnose_sftp(backend: SFTPBackend) -> CheckResult:
    """Read the limits and extensions of the server."""

    def query(scheduler: SFTPScheduler) -> tuple[ServerLimits, dict[str, str]]:
        return scheduler.run(scheduler.server_limits()), dict(scheduler.extensions)

    limits, extensions = backend._session.call(query, idempotent=True)
    return CheckResult(
        CheckTitle.SFTP,
        True,
        (
            f"version 3, reads of {limits.read >> 10} KiB and writes of {limits.write >> 10} KiB at most",
            f"extensions: {', '.join(sorted(extensions)) or 'none'}",
        ),
        {"version": 3, "limits": {"read": limits.read, "write": limits.write}, "extensions": extensions},
    )


def _diagnose_base_path(backend: SFTPBackend) -> CheckResult:
    """Resolve the base path, and count its entries."""
    root = backend._resolver.jail.root
    try:
        real_path = backend._session.call(lambda scheduler: scheduler.run(_real_path(root.native)), idempotent=True)
        backend.check_health()
        names = sum(1 for _ in tree.list_children(backend._session.call, root))
    except SFTPBackendError as error:
        error.path = error.path or root.native
        raise
    path = root.native if real_path in (None, root.native) else f"{root.native}, which is {real_path}"
    entries = f"can be listed and holds {names} {'entry' if names == 1 else 'entries'}"
    return CheckResult(
        CheckTitle.BASE_PATH, True, (path, entries), {"path": root.native, "real_path": real_path, "entries": names}
    )


def _real_path(path: str) -> Operation[str | None]:
    """Return the absolute path; None if the server refuses."""
    try:
        return (yield from request(RealPath(path)))
    except StatusError:
        return None


def _diagnose_round_trip(backend: SFTPBackend) -> CheckResult:
    """Measure the round trip of a small request."""
    durations = []
    for _ in range(_ROUND_TRIPS):
        started = time.perf_counter()
        backend.check_health()
        durations.append(time.perf_counter() - started)
    # The median ignores single replies that were slow.
    median = statistics.median(durations)
    return CheckResult(
        CheckTitle.ROUND_TRIP, True, (f"{median * 1000:.1f} ms (the median of {_ROUND_TRIPS})",), {"seconds": median}
    )


# -- advice -----------------------------------------------------------------------------------------------------------


def _advice(
    config: BackendConfig, error: SFTPBackendError, info: ConnectionInfo | None, title: CheckTitle | None
) -> Iterator[str]:
    """Yield remedies beyond the text of the error."""
    if (failed := _failed_connection(info)) is not info:
        assert config.jump is not None
        config, info = config.jump, failed
    if isinstance(error, HostKeyRejected) and info is not None and error.status != HostKeyStatus.REVOKED.value:
        yield from _advise_pinning(info)
    elif info is not None and info.incompatible:
        yield from _advise_algorithms(config, info)
    elif title is CheckTitle.BASE_PATH and isinstance(error, NotFound | InvalidPath):
        yield "base_path is a directory on the server: absolute, or relative to the login directory"


def _failed_connection(info: ConnectionInfo | None) -> ConnectionInfo | None:
    """Return the failed connection.

    It is the connection to the jump host until its login has succeeded, then the connection to the server.
    """
    if info is not None and info.jump is not None and not info.jump.logged_in:
        return info.jump
    return info


def _advise_pinning(info: ConnectionInfo) -> Iterator[str]:
    if info.host_key_line:
        yield f"after the server's owner has confirmed {info.host_key_fingerprint}, set Known host keys to the line"
        yield f"{info.host_key_line}"
        yield f"or set in the connection's Extra: {json.dumps({'known_host_keys': info.host_key_line})}"


def _advise_algorithms(config: BackendConfig, info: ConnectionInfo) -> Iterator[str]:
    """Yield the algorithms of the server, and settings to allow them."""
    # A scan opens a TCP connection of its own.
    if config.proxy_command is not None or config.jump is not None:
        yield "the server's algorithms can be read only without a jump host or proxy command"
        return
    try:
        server_algorithms = scan_host_algorithms(config.host, config.port, config.timeout)
    except BackendUnavailable as error:
        yield f"the server's algorithms could not be read: {error}"
        return
    for name, (label, key) in _ALGORITHM_LISTS.items():
        offered = getattr(server_algorithms, name)
        if not set(offered) & set(info.proposed.get(name, ())):
            yield f"{label} in common: none; the server offers {', '.join(offered)}"
            yield (
                _suggest_setting(config, name, key, offered)
                or f"{_NO_SETTING_HELPS} {', '.join(info.proposed.get(name, ()))}"
            )


def _suggest_setting(config: BackendConfig, name: str, key: str, offered: tuple[str, ...]) -> str | None:
    disabled = [algorithm for algorithm in config.disabled_algorithms.get(key, ()) if algorithm in offered]
    if disabled:
        return f"remove {', '.join(disabled)} from disabled_algorithms ({key})"
    if name == "ciphers" and config.ciphers:
        return "ciphers allows none of these: remove the setting, or add one of these"
    if name == "host_keys" and "ssh-rsa" in offered and not config.allow_ssh_rsa_sha1:
        return (
            'set in Extra: {"allow_ssh_rsa_sha1": true}, as the server signs with SHA-1 only; better, update the server'
        )
    return None
