"""Verify host keys: known keys, certificates, and the policy for unknown keys.

The only I/O is that of the known_hosts file. The rules are those of OpenSSH's client (hostfile.c, sshconnect.c) with
these exceptions:

* If a host has lines and its key is not among them, the key is changed, whatever its type. Otherwise an attacker could
  offer a key of a type without a known key. In lines that are not pinned to one server, a line that names the
  host without a port does not contradict a key on another port than 22.
* If an authority is listed for a host, a key without a valid certificate of the authority is changed too.
* An ``@revoked`` line without a port applies to all ports of its host.
"""

from __future__ import annotations

import enum
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from airflow_sftp_backend.backend.config import DEFAULT_HOST_KEYS_PATH, BackendConfig, HostKeyPolicy
from airflow_sftp_backend.backend.errors import HostKeyRejected

from .host_certificates import CERTIFICATE_SUFFIX, HostCertificate, fingerprint, key_type, matches_host, plain_key
from .known_hosts import (
    AUTHORITY,
    REVOKED,
    KnownHosts,
    KnownHostsEntry,
    append_line,
    host_pattern,
    known_hosts_line,
    open_locked,
    restore_line_ends,
)

log = logging.getLogger(__name__)

ENVIRONMENT_VARIABLE: Final = "SFTP_KNOWN_HOST_KEYS"
_MAX_LISTED: Final = 6
"""Largest number of known keys in one error."""
_HOST_CERTIFICATE: Final = 2


class HostKeyStatus(enum.Enum):
    """Trust in a host key."""

    TRUSTED = "trusted"
    UNKNOWN = "unknown"  # no line applies to the host
    CHANGED = "changed"  # only other keys are known of the host
    REVOKED = "revoked"


@dataclass(frozen=True)
class HostKeyDecision:
    """Decision on a host key.

    ``reason`` names the line with the key, or the contradiction.
    """

    status: HostKeyStatus
    reason: str


class HostKeyVerifier:
    """Verify the host key of one server.

    Known keys are those of ``config.known_host_keys``, else of the environment variable, else of the known_hosts file.
    With a policy other than STRICT, the file is also read if the first two have no line for the host.

    :param config: configuration of the server
    :param environ: environment variables
    :param now: returns seconds since 1970
    """

    def __init__(self, config: BackendConfig, environ: Mapping[str, str], now: Callable[[], float] = time.time) -> None:
        self._config = config
        self._now = now
        self._path = os.path.expanduser(config.host_keys_path or DEFAULT_HOST_KEYS_PATH)
        self._warned: set[str] = set()
        self._inline: KnownHosts | None = None
        if inline := (config.known_host_keys or "").strip():
            self._inline = KnownHosts.parse(restore_line_ends(inline), pinned=True)
        elif inline := environ.get(ENVIRONMENT_VARIABLE, "").strip():
            self._inline = KnownHosts.parse(restore_line_ends(inline), source=ENVIRONMENT_VARIABLE)

    def preferred_types(self) -> tuple[str, ...]:
        """Return the algorithms of the known keys, to propose first.

        The key type ``ssh-rsa`` becomes the algorithms ``rsa-sha2-512``, ``rsa-sha2-256`` and, if allowed, ``ssh-rsa``
        (RFC 8332 section 3).

        :returns: algorithms, best first; empty if no key is known
        :raises HostKeyRejected: if the known_hosts file cannot be read
        """
        for known_hosts in self._sources():
            if types := known_hosts.known_types(self._config.host, self._config.port):
                return tuple(algorithm for type_name in types for algorithm in self._algorithms(type_name))
        return ()

    def _algorithms(self, type_name: str) -> list[str]:
        if not type_name.startswith("ssh-rsa"):
            return [type_name]
        suffix = type_name.removeprefix("ssh-rsa")
        sha1 = [type_name] if self._config.allow_ssh_rsa_sha1 else []
        return [f"rsa-sha2-512{suffix}", f"rsa-sha2-256{suffix}", *sha1]

    def check(self, blob: bytes) -> str:
        """Check a host key.

        With the policy TRUST_ON_FIRST_USE, an unknown key is stored in the file.

        :param blob: the server's key or certificate
        :returns: the reason why the key is trusted
        :raises HostKeyRejected: with the key, the known keys, their source and the remedy
        """
        try:
            plain_key(blob)
        except ValueError as error:
            raise self._cannot_check(f"the server sent {error}") from None
        searched: list[KnownHosts] = []
        decision = HostKeyDecision(HostKeyStatus.UNKNOWN, "")
        for known_hosts in self._sources():
            searched.append(known_hosts)
            decision = self._decide(known_hosts, blob)
            if decision.status is not HostKeyStatus.UNKNOWN:
                break
        policy = self._config.host_key_policy
        if decision.status is HostKeyStatus.TRUSTED:
            return decision.reason
        if decision.status is not HostKeyStatus.UNKNOWN or policy is HostKeyPolicy.STRICT:
            raise self._rejection(blob, decision, searched)
        if policy is HostKeyPolicy.TRUST_ON_FIRST_USE:
            return self._store_on_first_use(blob, searched)
        log.warning(
            "accepting the host key of %s unchecked (host_key_policy 'auto'): %s %s. To pin the key, set"
            " known_host_keys to this line: %s",
            self._config.address, key_type(blob), fingerprint(blob), self._known_hosts_line(blob),
        )  # fmt: skip
        return "accepted unchecked: host_key_policy is 'auto'"

    def _sources(self) -> Iterator[KnownHosts]:
        if self._inline is not None:
            yield self._warn_of_problems(self._inline)
        if self._inline is None or self._config.host_key_policy is not HostKeyPolicy.STRICT:
            try:
                known_hosts = self._parse_file(Path(self._path).read_bytes())
            except FileNotFoundError:
                known_hosts = KnownHosts(self._path, missing=True)
            except OSError as error:
                raise self._cannot_check(f"{self._path} cannot be read: {error.strerror}") from None
            yield self._warn_of_problems(known_hosts)

    def _parse_file(self, content: bytes) -> KnownHosts:
        return KnownHosts.parse(content.decode("utf-8", "replace"), source=self._path)

    def _warn_of_problems(self, known_hosts: KnownHosts) -> KnownHosts:
        for problem in (p for p in known_hosts.problems if p not in self._warned):
            log.warning("ignoring a line: %s", problem)
        self._warned.update(known_hosts.problems)
        return known_hosts

    def _decide(self, known_hosts: KnownHosts, blob: bytes) -> HostKeyDecision:
        return decide(known_hosts, self._config.host, self._config.port, blob, self._now())

    def _known_hosts_line(self, blob: bytes) -> str:
        return known_hosts_line(self._config.host, self._config.port, blob)

    def _cannot_check(self, reason: str) -> HostKeyRejected:
        return HostKeyRejected(f"the host key cannot be checked: {reason}", server=self._config.address)

    def _rejection(self, blob: bytes, decision: HostKeyDecision, searched: list[KnownHosts]) -> HostKeyRejected:
        offered = f"the server's key is {key_type(blob)} {fingerprint(blob)}"
        problems = [problem for known_hosts in searched for problem in known_hosts.problems]
        ignored = f". Ignored lines: {'; '.join(problems[:_MAX_LISTED])}" if problems else ""
        if decision.status is HostKeyStatus.REVOKED:
            text = f"revoked host key: {offered}, and {decision.reason}. Do not connect until the server has a new key"
            return HostKeyRejected(text + ignored, server=self._config.address, status=decision.status.value)
        source = searched[0].source
        place = f"known_host_keys, or to {source} on this machine" if source == self._path else source
        add = f"add this line to {place}:\n{self._known_hosts_line(blob)}\n"
        if decision.status is HostKeyStatus.CHANGED:
            text = (
                f"wrong host key: {offered}, but {decision.reason}{ignored}. Either the server has a new key, or an"
                f" attacker poses as the server. If the server's owner confirms the new fingerprint, {add}"
                "and remove the lines of replaced keys"
            )
        else:
            name = host_pattern(self._config.host, self._config.port)
            nothing_known = "".join(f"{known_hosts.no_entry_text(name)}; " for known_hosts in searched[:-1])
            text = (
                f"unknown host key: {offered}, and {nothing_known}{decision.reason}{ignored}. Compare the"
                f" fingerprint with that of the server's owner; if they are equal, {add}"
            )
        return HostKeyRejected(text, server=self._config.address, status=decision.status.value)

    def _store_on_first_use(self, blob: bytes, searched: list[KnownHosts]) -> str:
        """Append the key to the file.

        If another process has added a key of the host meanwhile, that key decides.
        """
        try:
            os.makedirs(os.path.dirname(self._path) or ".", mode=0o700, exist_ok=True)
            with open_locked(self._path, self._config.timeout) as descriptor:
                with open(descriptor, "rb", closefd=False) as file:
                    content = file.read()
                # Read again under the lock: a parallel task may have added a key since the first search.
                known_hosts = self._parse_file(content)
                decision = self._decide(known_hosts, blob)
                if decision.status is HostKeyStatus.UNKNOWN:
                    append_line(descriptor, content, f"{self._known_hosts_line(blob)}\n".encode())
        except OSError as error:
            raise self._cannot_check(
                f"no key of the server is known, and its key {key_type(blob)} {fingerprint(blob)} cannot be stored in"
                f" {self._path}: {error.strerror or error}. Set host_keys_path to a writable file, or known_host_keys"
                f" to this line:\n{self._known_hosts_line(blob)}\n"
            ) from None
        if decision.status is HostKeyStatus.TRUSTED:
            return decision.reason
        if decision.status is not HostKeyStatus.UNKNOWN:
            raise self._rejection(blob, decision, [*searched[:-1], known_hosts])
        log.info("%s: first use, host key %s added to %s", self._config.address, fingerprint(blob), self._path)
        return f"first use; added to {self._path}"


def decide(known_hosts: KnownHosts, host: str, port: int, blob: bytes, now: float) -> HostKeyDecision:
    """Decide whether known lines trust the key or certificate of a server.

    :param known_hosts: the lines of one source
    :param host: name or address of the server
    :param port: port of the server
    :param blob: the key or the certificate
    :param now: seconds since 1970
    :returns: the decision and its reason
    :raises ValueError: if the blob is neither a key nor a certificate
    """
    certificate = HostCertificate.parse(blob) if key_type(blob).endswith(CERTIFICATE_SUFFIX) else None
    key_fingerprint = fingerprint(blob)
    authority_fingerprint = fingerprint(certificate.authority) if certificate else ""
    name = host_pattern(host, port)
    revoked = known_hosts.entries_naming(name, REVOKED) + known_hosts.entries_naming(host.lower(), REVOKED)
    for entry in revoked:
        if entry.fingerprint in (key_fingerprint, authority_fingerprint):
            subject = "the key" if entry.fingerprint == key_fingerprint else "the authority of the certificate"
            return HostKeyDecision(HostKeyStatus.REVOKED, f"{subject} is revoked by {entry.location}")
    authorities, keys = known_hosts.entries_for(host, port, AUTHORITY), known_hosts.entries_for(host, port, "")
    remark = ""
    authority = next((entry for entry in authorities if entry.fingerprint == authority_fingerprint), None)
    if certificate is not None and authority is not None:
        rejection_reason = certificate_rejection_reason(certificate, host, now)
        if rejection_reason is None:
            return HostKeyDecision(HostKeyStatus.TRUSTED, f"certified by the authority of {authority.location}")
        remark = f"; the certificate by the authority of {authority.location} is not valid: {rejection_reason}"
    for entry in keys:
        if entry.fingerprint == key_fingerprint:
            return HostKeyDecision(HostKeyStatus.TRUSTED, entry.location)
    return _untrusted(known_hosts, name, key_fingerprint, authorities, keys, remark)


def _untrusted(
    known_hosts: KnownHosts,
    name: str,
    key_fingerprint: str,
    authorities: Sequence[KnownHostsEntry],
    keys: Sequence[KnownHostsEntry],
    remark: str,
) -> HostKeyDecision:
    """Decide whether a key that no line trusts is unknown or changed."""
    contradicting = [*authorities, *(entry for entry in keys if known_hosts.pinned or entry.names_host(name))]
    if not contradicting:
        return HostKeyDecision(
            HostKeyStatus.UNKNOWN, f"{known_hosts.no_entry_text(name)}{_other_names(known_hosts, key_fingerprint)}"
        )
    if not all(entry.types for entry in contradicting):
        remark += (
            "; if a fingerprint belongs to a key of another type, end its line with the type, as (RSA) or"
            " (ED25519), so that the server is asked for this key"
        )
    return HostKeyDecision(HostKeyStatus.CHANGED, f"known for {name}: {_format_entries(contradicting)}{remark}")


def certificate_rejection_reason(certificate: HostCertificate, host: str, now: float) -> str | None:
    """Return why the certificate is invalid for a host, else None.

    :param certificate: the certificate of the server
    :param host: name of the server, without port
    :param now: seconds since 1970
    """
    if certificate.certificate_type != _HOST_CERTIFICATE:
        return "it is not a host certificate"
    if now < certificate.valid_after:
        return "it is not valid yet"
    if now >= certificate.valid_before:
        return "it has expired"
    if not any(matches_host(name.lower(), host.lower()) for name in certificate.principals):
        names = ", ".join(map(repr, certificate.principals))
        return f"it is valid for {names} only" if names else "it is valid for no host"
    if certificate.critical_options:
        return "it has critical options, which are not allowed in host certificates"
    if certificate.signature_type == "ssh-rsa":
        return "it is signed with SHA-1"
    return None if certificate.has_valid_signature() else "its signature is wrong"


def _other_names(known_hosts: KnownHosts, key_fingerprint: str) -> str:
    """Return a text with other names of the same key."""
    same = [entry for entry in known_hosts.entries if not entry.marker and entry.fingerprint == key_fingerprint]
    if not same:
        return ""
    names = [_shown_names(entry) for entry in same[:_MAX_LISTED]]
    return f", but the same key is known for {', '.join(names)} ({same[0].location})"


def _shown_names(entry: KnownHostsEntry) -> str:
    is_hashed = entry.names is not None and entry.names.startswith("|")
    return "a hashed name" if is_hashed else repr(entry.names)


def _format_entries(lines: list[KnownHostsEntry]) -> str:
    remainder = f" and {len(lines) - _MAX_LISTED} more" if len(lines) > _MAX_LISTED else ""
    return ", ".join(map(str, lines[:_MAX_LISTED])) + remainder
