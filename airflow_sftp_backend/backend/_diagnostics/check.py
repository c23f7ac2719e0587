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
from airflow_sftp_backend.backend._ssh.session import ConnectionFacts
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
_LISTS: Final = {
    "key_exchange": ("key exchange algorithms", "kex"),
    "host_keys": ("host key algorithms", "keys"),
    "ciphers": ("ciphers", "ciphers"),
    "macs": ("MACs", "macs"),
}
"""Fields of `HostAlgorithms`: what they are, and what ``disabled_algorithms`` calls them."""


@dataclass(frozen=True)
class Step:
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
    steps: tuple[Step, ...]
    error: SFTPBackendError | None = None
    advice: tuple[str, ...] = ()
    failed_at: ConnectionFacts | None = None
    """The facts of the server that connecting ended at: of the jump server, unless that has let us in."""

    @property
    def ok(self) -> bool:
        """Everything is as it should be."""
        return self.error is None

    def said(self, title: str) -> str:
        """The first line of a step; blank where it was not come to."""
        return next((step.lines[0] for step in self.steps if step.title == title and step.lines), "")


Probe = Callable[[SFTPBackend], Step]
"""A look at a server that can be connected to. Raises SFTPBackendError."""


def diagnose(config: BackendConfig, probes: Mapping[str, Probe] | None = None) -> Diagnosis:
    """Connects once, with one login, looks at the base path and then with each of ``probes``, which go by their titles.

    Raises ValueError for what `SFTPBackend.from_config` does not take; everything else is in the diagnosis.
    """
    config = replace(config, retry=RetryPolicy.disabled())
    steps = [Step("Settings", True, config.notes)] if config.notes else []
    further = {"SFTP": _sftp, "Base path": _base_path, "Round trip": _round_trip, **(probes or {})}
    with SFTPBackend.from_config(config) as backend:
        session = backend._session
        session.curious = True
        doing = "Name"
        try:
            steps.append(_name(config))
            doing = ""
            began = time.perf_counter()
            session.call(lambda _: None)
            seconds = time.perf_counter() - began
            assert session.found is not None
            steps += _found(config, session.found, seconds)
            for doing, probe in further.items():  # noqa: B007 - what fails is known by it
                steps.append(probe(backend))
        except SFTPBackendError as error:
            error.server = error.server or backend.address
            facts = session.found
            if not doing and facts is not None:
                steps += _found(config, facts, None)
            lines = (str(error), *getattr(error, "__notes__", ()))
            steps.append(Step(doing or _failed_at(error, facts), False, lines, {"error": type(error).__name__}))
            advice = tuple(_advice(config, error, facts, doing))
            return Diagnosis(backend.address, _user(config, facts), tuple(steps), error, advice, _at_fault(facts))
        return Diagnosis(backend.address, _user(config, session.found), tuple(steps))


def _user(config: BackendConfig, facts: ConnectionFacts | None) -> str:
    return (facts.username if facts is not None else "") or config.username or ""


# -- on the way -------------------------------------------------------------------------------------------------------


def _name(config: BackendConfig) -> Step:
    """What the host's name stands for."""
    if config.jump is not None or config.proxy_command is not None:
        by = "the jump server" if config.jump is not None else "the proxy command"
        return Step("Name", True, (f"{config.host} is for {by} to find",))
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise connection_error(error, "looking up the name", config.address) from None
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    meaning = "an address" if addresses == [config.host] else ", ".join(addresses)
    return Step("Name", True, (f"{config.host} is {meaning}",), {"addresses": addresses})


def _found(config: BackendConfig, facts: ConnectionFacts, seconds: float | None) -> Iterator[Step]:
    """What a connection, or a try to make one, came to; ``seconds`` is how long it took if it succeeded."""
    if config.jump is not None and facts.jump is not None:
        through = list(_found(config.jump, facts.jump, None))
        lines = [f"{config.jump.address} as {facts.jump.username}"] + [line for step in through for line in step.lines]
        if facts.jump.logged_in:
            yield Step("Jump server", True, tuple(lines), {"steps": [step.data for step in through]})
    if facts.server_version:
        took = f", connected and logged in within {seconds * 1000:.0f} ms" if seconds is not None else ""
        yield Step("Server", True, (f"{facts.server_version}{took}",), _server_data(facts, seconds))
    if facts.cipher:
        yield _encryption(facts)
    if facts.trust:
        shown = f"{facts.host_key_type} {facts.host_key_fingerprint}"
        yield Step("Host key", True, (shown, f"trusted: {facts.trust}"), _key_data(facts))
    if facts.logged_in:
        lines = [f"as {facts.username!r} with {' and '.join(facts.login_taken) or 'what the caller brought'}"]
        lines += [f"the server takes {', '.join(facts.login_methods)}"] if facts.login_methods else []
        lines += [f"refused before: {', '.join(facts.login_refused)}"] if facts.login_refused else []
        yield Step("Login", True, tuple(lines), _login_data(facts))


def _server_data(facts: ConnectionFacts, seconds: float | None) -> dict[str, object]:
    return {"version": facts.server_version, "seconds": seconds}


def _encryption(facts: ConnectionFacts) -> Step:
    mac = f", {facts.mac}" if facts.mac else ""
    packed = f", compression {facts.compression}" if facts.compression != "none" else ""
    strict = "in effect" if facts.strict_key_exchange else "not known to the server, which is older than 2024"
    data = {name: getattr(facts, name) for name in ("key_exchange", "cipher", "mac", "compression")}
    return Step(
        "Encryption",
        True,
        (
            f"{facts.key_exchange}, {facts.cipher}{mac}{packed}",
            f"strict key exchange, against the Terrapin attack (CVE-2023-48795): {strict}",
        ),
        {**data, "strict_key_exchange": facts.strict_key_exchange},
    )


def _key_data(facts: ConnectionFacts) -> dict[str, object]:
    return {
        "type": facts.host_key_type,
        "fingerprint": facts.host_key_fingerprint,
        "known_hosts": facts.host_key_line,
        "trust": facts.trust,
    }


def _login_data(facts: ConnectionFacts) -> dict[str, object]:
    return {
        "username": facts.username,
        "methods": list(facts.login_methods),
        "refused": list(facts.login_refused),
        "taken": list(facts.login_taken),
    }


def _failed_at(error: SFTPBackendError, facts: ConnectionFacts | None) -> str:
    """The title of the step at which connecting failed."""
    if facts is None or (facts.jump is not None and not facts.jump.logged_in):
        return "Connection" if facts is None else "Jump server"
    if isinstance(error, HostKeyRejected):
        return "Host key"
    if isinstance(error, AuthenticationFailed) or (facts.trust and not facts.logged_in):
        return "Login"
    if not facts.server_version:
        return "Connection"
    return "SFTP" if facts.logged_in else "Encryption"


# -- what is there ----------------------------------------------------------------------------------------------------


def _sftp(backend: SFTPBackend) -> Step:
    """What the server can do."""

    def look(scheduler: SFTPScheduler) -> tuple[Limits, dict[str, str]]:
        return scheduler.run(scheduler.limits()), dict(scheduler.extensions)

    limits, extensions = backend._session.call(look, idempotent=True)
    return Step(
        "SFTP",
        True,
        (
            f"version 3, reads of {limits.read >> 10} KiB and writes of {limits.write >> 10} KiB at most",
            f"extensions: {', '.join(sorted(extensions)) or 'none'}",
        ),
        {"version": 3, "limits": {"read": limits.read, "write": limits.write}, "extensions": extensions},
    )


def _base_path(backend: SFTPBackend) -> Step:
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
    return Step("Base path", True, (shown, holds), {"path": root.native, "real_path": where, "entries": names})


def _real_path(path: str) -> Operation[str | None]:
    """The absolute path, where the server tells."""
    try:
        return (yield from request(RealPath(path)))
    except StatusError:
        return None


def _round_trip(backend: SFTPBackend) -> Step:
    """How long the server takes to answer the simplest question."""
    taken = []
    for _ in range(_ROUND_TRIPS):
        began = time.perf_counter()
        backend.check_health()
        taken.append(time.perf_counter() - began)
    median = statistics.median(taken)
    return Step("Round trip", True, (f"{median * 1000:.1f} ms (the median of {_ROUND_TRIPS})",), {"seconds": median})


# -- what to do -------------------------------------------------------------------------------------------------------


def _advice(config: BackendConfig, error: SFTPBackendError, facts: ConnectionFacts | None, doing: str) -> Iterator[str]:
    """What the error's text does not say."""
    if (shown := _at_fault(facts)) is not facts:
        assert config.jump is not None
        config, facts = config.jump, shown
    if isinstance(error, HostKeyRejected) and facts is not None and error.verdict != "revoked":
        yield from _pinning(facts)
    elif facts is not None and facts.incompatible:
        yield from _widening(config, facts)
    elif doing == "Base path" and isinstance(error, NotFound | InvalidPath):
        yield "base_path is a folder on the server: absolute, or relative to the one that a login starts in"


def _at_fault(facts: ConnectionFacts | None) -> ConnectionFacts | None:
    """The facts of the server that the attempt ended at: the jump server, unless that has let us in."""
    if facts is not None and facts.jump is not None and not facts.jump.logged_in:
        return facts.jump
    return facts


def _pinning(facts: ConnectionFacts) -> Iterator[str]:
    if facts.host_key_line:
        yield f"once the server's owner has confirmed {facts.host_key_fingerprint}, set Known host keys to that line,"
        yield f"or in the connection's Extra: {json.dumps({'known_host_keys': facts.host_key_line})}"


def _widening(config: BackendConfig, facts: ConnectionFacts) -> Iterator[str]:
    """Which list to widen, where that helps."""
    if config.proxy_command is not None or config.jump is not None:
        yield "what the server offers can be asked only without jump server and proxy command"
        return
    try:
        theirs = scan_host_algorithms(config.host, config.port, config.timeout)
    except BackendUnavailable as error:
        yield f"what the server offers could not be asked: {error}"
        return
    for name, (what, key) in _LISTS.items():
        offered = getattr(theirs, name)
        if not set(offered) & set(facts.proposed.get(name, ())):
            yield f"{what} in common: none; the server takes {', '.join(offered)}"
            yield _way_out(config, name, key, offered) or f"{_HELPLESS} {', '.join(facts.proposed.get(name, ()))}"


_HELPLESS: Final = "no setting here helps: the server has to allow one of"


def _way_out(config: BackendConfig, name: str, key: str, offered: tuple[str, ...]) -> str | None:
    disabled = [one for one in config.disabled_algorithms.get(key, ()) if one in offered]
    if disabled:
        return f"take {', '.join(disabled)} out of disabled_algorithms ({key})"
    if name == "ciphers" and config.ciphers:
        return "ciphers allows none of these: leave it out, or add one of them"
    if name == "host_keys" and "ssh-rsa" in offered and not config.allow_ssh_rsa_sha1:
        return (
            'set in Extra: {"allow_ssh_rsa_sha1": true}, as the server signs with SHA-1 only; better, have it updated'
        )
    return None
