"""A look at a server step by step: what was found, where it fails, and what to do then."""

from __future__ import annotations

import json
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from airflow_sftp_backend.backend._files import tree
from airflow_sftp_backend.backend._protocol.codec import Limits
from airflow_sftp_backend.backend._protocol.messages import RealPath
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, request
from airflow_sftp_backend.backend._ssh.scan import scan_host_algorithms
from airflow_sftp_backend.backend._ssh.session import ConnectionInfo
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
from airflow_sftp_backend.backend.sync import SFTPBackend

_ROUND_TRIPS: Final = 7
_ALGORITHM_LISTS: Final = {
    "key_exchange": ("key exchange algorithms", "kex"),
    "host_keys": ("host key algorithms", "keys"),
    "ciphers": ("ciphers", "ciphers"),
    "macs": ("MACs", "macs"),
}
"""Fields of `HostAlgorithms`: what they are, and what ``disabled_algorithms`` calls them."""


@dataclass(frozen=True)
class CheckResult:
    """One thing that was looked at: whether it is as it should be, lines to read, and values for programs."""

    title: str
    ok: bool
    lines: tuple[str, ...]
    data: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """What was found of ``server`` (``sftp://host:port``), in order. ``error`` is what the step that failed ended with,
    the last one; ``advice`` is what to do beyond what that says itself.
    """

    server: str
    username: str
    steps: tuple[CheckResult, ...]
    error: SFTPBackendError | None = None
    advice: tuple[str, ...] = ()
    failed_connection: ConnectionInfo | None = None
    """The facts of the server that connecting ended at: of the jump server, unless that has let us in."""
    connection: ConnectionInfo | None = None
    """Facts of the connection to the server; None unless all steps passed."""

    @property
    def ok(self) -> bool:
        """Everything is as it should be."""
        return self.error is None


Probe = Callable[[SFTPBackend], CheckResult]
"""A look at a server that can be connected to. Raises SFTPBackendError."""


def diagnose(config: BackendConfig, probes: Mapping[str, Probe] | None = None) -> Diagnosis:
    """Connects once, with one login, looks at the base path and then with each of ``probes``, which go by their titles.

    Raises ValueError for what `SFTPBackend.from_config` does not take; everything else is in the diagnosis.
    """
    config = replace(config, retry=RetryPolicy.disabled())
    steps = [CheckResult("Settings", True, config.notes)] if config.notes else []
    checks = {"SFTP": _check_sftp, "Base path": _check_base_path, "Round trip": _check_round_trip, **(probes or {})}
    with SFTPBackend.from_config(config) as backend:
        session = backend._session
        session.query_auth_methods = True
        phase = "Name"
        try:
            steps.append(_check_name(config))
            phase = ""
            started = time.perf_counter()
            session.call(lambda _: None)
            seconds = time.perf_counter() - started
            assert session.last_attempt_info is not None
            steps += _connection_results(config, session.last_attempt_info, seconds)
            for phase, probe in checks.items():  # noqa: B007 - what fails is known by it
                steps.append(probe(backend))
        except SFTPBackendError as error:
            error.server = error.server or backend.address
            info = session.last_attempt_info
            if not phase and info is not None:
                steps += _connection_results(config, info, None)
            lines = (str(error), *getattr(error, "__notes__", ()))
            steps.append(CheckResult(phase or _failed_step(error, info), False, lines, {"error": type(error).__name__}))
            advice = tuple(_advice(config, error, info, phase))
            return Diagnosis(
                backend.address, _username(config, info), tuple(steps), error, advice, _failed_connection(info)
            )
        connection = session.last_attempt_info
        return Diagnosis(backend.address, _username(config, connection), tuple(steps), connection=connection)


def _username(config: BackendConfig, info: ConnectionInfo | None) -> str:
    return (info.username if info is not None else "") or config.username or ""


# -- on the way -------------------------------------------------------------------------------------------------------


def _check_name(config: BackendConfig) -> CheckResult:
    """What the host's name stands for."""
    if config.jump is not None or config.proxy_command is not None:
        by = "the jump server" if config.jump is not None else "the proxy command"
        return CheckResult("Name", True, (f"{config.host} is for {by} to find",))
    try:
        addresses_found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise connection_error(error, "looking up the name", config.address) from None
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in addresses_found))
    meaning = "an address" if addresses == [config.host] else ", ".join(addresses)
    return CheckResult("Name", True, (f"{config.host} is {meaning}",), {"addresses": addresses})


def _connection_results(config: BackendConfig, info: ConnectionInfo, seconds: float | None) -> Iterator[CheckResult]:
    """What a connection, or a try to make one, came to; ``seconds`` is how long it took if it succeeded."""
    if config.jump is not None and info.jump is not None:
        jump_results = list(_connection_results(config.jump, info.jump, None))
        lines = [f"{config.jump.address} as {info.jump.username}"] + [
            line for step in jump_results for line in step.lines
        ]
        if info.jump.logged_in:
            yield CheckResult("Jump server", True, tuple(lines), {"steps": [step.data for step in jump_results]})
    if info.server_version:
        duration = f", connected and logged in within {seconds * 1000:.0f} ms" if seconds is not None else ""
        yield CheckResult("Server", True, (f"{info.server_version}{duration}",), _server_data(info, seconds))
    if info.cipher:
        yield _encryption(info)
    if info.trust_reason:
        shown = f"{info.host_key_type} {info.host_key_fingerprint}"
        yield CheckResult("Host key", True, (shown, f"trusted: {info.trust_reason}"), _key_data(info))
    if info.logged_in:
        lines = [f"as {info.username!r} with {' and '.join(info.login_accepted) or 'what the caller brought'}"]
        lines += [f"the server takes {', '.join(info.login_methods)}"] if info.login_methods else []
        lines += [f"refused before: {', '.join(info.login_refused)}"] if info.login_refused else []
        yield CheckResult("Login", True, tuple(lines), _login_data(info))


def _server_data(info: ConnectionInfo, seconds: float | None) -> dict[str, object]:
    return {"version": info.server_version, "seconds": seconds}


def _encryption(info: ConnectionInfo) -> CheckResult:
    mac = f", {info.mac}" if info.mac else ""
    packed = f", compression {info.compression}" if info.compression != "none" else ""
    strict = "in effect" if info.strict_key_exchange else "not known to the server, which is older than 2024"
    data = {name: getattr(info, name) for name in ("key_exchange", "cipher", "mac", "compression")}
    return CheckResult(
        "Encryption",
        True,
        (
            f"{info.key_exchange}, {info.cipher}{mac}{packed}",
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
        "taken": list(info.login_accepted),
    }


def _failed_step(error: SFTPBackendError, info: ConnectionInfo | None) -> str:
    """The title of the step at which connecting failed."""
    if info is None or (info.jump is not None and not info.jump.logged_in):
        return "Connection" if info is None else "Jump server"
    if isinstance(error, HostKeyRejected):
        return "Host key"
    if isinstance(error, AuthenticationFailed) or (info.trust_reason and not info.logged_in):
        return "Login"
    if not info.server_version:
        return "Connection"
    return "SFTP" if info.logged_in else "Encryption"


# -- what is there ----------------------------------------------------------------------------------------------------


def _check_sftp(backend: SFTPBackend) -> CheckResult:
    """What the server can do."""

    def query(scheduler: SFTPScheduler) -> tuple[Limits, dict[str, str]]:
        return scheduler.run(scheduler.limits()), dict(scheduler.extensions)

    limits, extensions = backend._session.call(query, idempotent=True)
    return CheckResult(
        "SFTP",
        True,
        (
            f"version 3, reads of {limits.read >> 10} KiB and writes of {limits.write >> 10} KiB at most",
            f"extensions: {', '.join(sorted(extensions)) or 'none'}",
        ),
        {"version": 3, "limits": {"read": limits.read, "write": limits.write}, "extensions": extensions},
    )


def _check_base_path(backend: SFTPBackend) -> CheckResult:
    """Where the base path is, and what it holds."""
    root = backend._resolver.jail.root
    try:
        where = backend._session.call(lambda scheduler: scheduler.run(_real_path(root.native)), idempotent=True)
        backend.check_health()
        names = sum(1 for _ in tree.list_children(backend._session.call, root))
    except SFTPBackendError as error:
        error.path = error.path or root.native
        raise
    shown = root.native if where in (None, root.native) else f"{root.native}, which is {where}"
    holds = f"can be listed and holds {names} {'entry' if names == 1 else 'entries'}"
    return CheckResult("Base path", True, (shown, holds), {"path": root.native, "real_path": where, "entries": names})


def _real_path(path: str) -> Operation[str | None]:
    """The absolute path, where the server tells."""
    try:
        return (yield from request(RealPath(path)))
    except StatusError:
        return None


def _check_round_trip(backend: SFTPBackend) -> CheckResult:
    """How long the server takes to answer the simplest question."""
    durations = []
    for _ in range(_ROUND_TRIPS):
        started = time.perf_counter()
        backend.check_health()
        durations.append(time.perf_counter() - started)
    median = statistics.median(durations)
    return CheckResult(
        "Round trip", True, (f"{median * 1000:.1f} ms (the median of {_ROUND_TRIPS})",), {"seconds": median}
    )


# -- what to do -------------------------------------------------------------------------------------------------------


def _advice(config: BackendConfig, error: SFTPBackendError, info: ConnectionInfo | None, phase: str) -> Iterator[str]:
    """What the error's text does not say."""
    if (failed := _failed_connection(info)) is not info:
        assert config.jump is not None
        config, info = config.jump, failed
    if isinstance(error, HostKeyRejected) and info is not None and error.status != "revoked":
        yield from _advise_pinning(info)
    elif info is not None and info.incompatible:
        yield from _advise_algorithms(config, info)
    elif phase == "Base path" and isinstance(error, NotFound | InvalidPath):
        yield "base_path is a folder on the server: absolute, or relative to the one that a login starts in"


def _failed_connection(info: ConnectionInfo | None) -> ConnectionInfo | None:
    """The facts of the server that the attempt ended at: the jump server, unless that has let us in."""
    if info is not None and info.jump is not None and not info.jump.logged_in:
        return info.jump
    return info


def _advise_pinning(info: ConnectionInfo) -> Iterator[str]:
    if info.host_key_line:
        yield f"once the server's owner has confirmed {info.host_key_fingerprint}, set Known host keys to that line,"
        yield f"or in the connection's Extra: {json.dumps({'known_host_keys': info.host_key_line})}"


def _advise_algorithms(config: BackendConfig, info: ConnectionInfo) -> Iterator[str]:
    """Which list to widen, where that helps."""
    if config.proxy_command is not None or config.jump is not None:
        yield "what the server offers can be asked only without jump server and proxy command"
        return
    try:
        server_algorithms = scan_host_algorithms(config.host, config.port, config.timeout)
    except BackendUnavailable as error:
        yield f"what the server offers could not be asked: {error}"
        return
    for name, (what, key) in _ALGORITHM_LISTS.items():
        offered = getattr(server_algorithms, name)
        if not set(offered) & set(info.proposed.get(name, ())):
            yield f"{what} in common: none; the server takes {', '.join(offered)}"
            yield (
                _suggest_setting(config, name, key, offered)
                or f"{_NO_SETTING_HELPS} {', '.join(info.proposed.get(name, ()))}"
            )


_NO_SETTING_HELPS: Final = "no setting here helps: the server has to allow one of"


def _suggest_setting(config: BackendConfig, name: str, key: str, offered: tuple[str, ...]) -> str | None:
    disabled = [algorithm for algorithm in config.disabled_algorithms.get(key, ()) if algorithm in offered]
    if disabled:
        return f"take {', '.join(disabled)} out of disabled_algorithms ({key})"
    if name == "ciphers" and config.ciphers:
        return "ciphers allows none of these: leave it out, or add one of them"
    if name == "host_keys" and "ssh-rsa" in offered and not config.allow_ssh_rsa_sha1:
        return (
            'set in Extra: {"allow_ssh_rsa_sha1": true}, as the server signs with SHA-1 only; better, have it updated'
        )
    return None
