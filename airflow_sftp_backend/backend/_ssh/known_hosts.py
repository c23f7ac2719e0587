"""Parse known_hosts lines, and decide whether they trust a host key.

The format is that of sshd(8), SSH_KNOWN_HOSTS FILE FORMAT, but a fingerprint, ``SHA256:...``, may replace a key.
The rules are those of OpenSSH's client (hostfile.c, sshconnect.c) with these exceptions:

* If a host has lines and its key is not among them, the key is changed, whatever its type. Otherwise an attacker could
  offer a key of a type without a known key. In lines that are not pinned to one server, a line that names the
  host without a port does not contradict a key on another port than 22.
* If an authority is listed for a host, a key without a valid certificate of the authority is changed too.
* An ``@revoked`` line without a port applies to all ports of its host.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final, Self

from airflow_sftp_backend.backend.config import DEFAULT_PORT

from .host_certificates import (
    CERTIFICATE_SUFFIX,
    KEY_TYPE,
    SHA256_PREFIX,
    HostCertificate,
    fingerprint,
    key_type,
    matches_host,
    plain_key,
)

_AUTHORITY: Final = "@cert-authority"
_REVOKED: Final = "@revoked"
_FINGERPRINT_PREFIXES: Final = (SHA256_PREFIX, "MD5:")
_SEPARATOR: Final = r"[ \t]+"
"""Separator of the fields of a line: no other white space, as in OpenSSH's hostfile.c."""
_TYPES_BY_LABEL: Final = {
    "(ED25519)": ("ssh-ed25519",),
    "(RSA)": ("ssh-rsa",),
    "(ECDSA)": ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
}
"""Key types by their name at the end of a line of ``ssh-keygen -l``."""
_CERTIFICATE_TYPES: Final = tuple(
    f"{kind}{CERTIFICATE_SUFFIX}" for kind in ("ssh-ed25519", *_TYPES_BY_LABEL["(ECDSA)"], "ssh-rsa")
)
MAX_LISTED: Final = 6
"""Largest number of known keys in one error."""


def host_pattern(host: str, port: int) -> str:
    """Return ``host``, or ``[host]:port`` if the port is not 22."""
    return host.lower() if port == DEFAULT_PORT else f"[{host.lower()}]:{port}"


def known_hosts_line(host: str, port: int, blob: bytes) -> str:
    """Return the known_hosts line, without newline, for a key or certificate."""
    key = plain_key(blob)
    return f"{host_pattern(host, port)} {key_type(key)} {base64.b64encode(key).decode()}"


def _names_host(names: str, host: str) -> bool:
    """Return whether the first field matches a `host_pattern`."""
    if names.startswith("|"):
        _, _, salt, expected = names.split("|")
        digest_of_host = hmac.digest(base64.b64decode(salt), host.encode(), "sha1")
        return hmac.compare_digest(digest_of_host, base64.b64decode(expected))
    patterns = [pattern for pattern in names.lower().split(",") if pattern]
    if any(p.startswith("!") and matches_host(p[1:], host) for p in patterns):
        return False
    return any(not p.startswith("!") and matches_host(p, host) for p in patterns)


@dataclass(frozen=True)
class KnownHostsEntry:
    """Valid line of known_hosts.

    :ivar location: source and line number
    :ivar names: first field; None if the line applies to any host
    :ivar types: types of the key; empty for a fingerprint without a type
    """

    location: str
    marker: str
    names: str | None
    types: tuple[str, ...]
    fingerprint: str

    @classmethod
    def parse(cls, text: str, location: str, *, pinned: bool) -> Self:
        """Parse a line.

        :raises ValueError: with the reason, if the line is invalid
        """
        fields = re.split(_SEPARATOR, text)
        marker = fields.pop(0) if fields[0].startswith("@") else ""
        if marker not in ("", _AUTHORITY, _REVOKED):
            raise ValueError(f"unknown marker {marker[:20]!r}; expected {_AUTHORITY} or {_REVOKED}")
        if len(fields) > 1 and fields[0].isdigit() and fields[1].startswith(_FINGERPRINT_PREFIXES):
            del fields[0]  # the key's bits, as `ssh-keygen -l` prints them
        if _has_no_host_name(fields):
            if not pinned:
                raise ValueError("a key or fingerprint without a host name before it")
            names = None
        else:
            names = _check_host_names(fields.pop(0)) if fields else ""
        if not fields:
            raise ValueError("no key; expected: host key-type base64, or host SHA256:fingerprint")
        types, digest = _parse_key(fields)
        if types and types[0].endswith(CERTIFICATE_SUFFIX) and marker != _REVOKED:
            raise ValueError(f"a certificate; list its authority instead, with {_AUTHORITY}")
        return cls(location, marker, names, types, digest)

    def names_host(self, host: str) -> bool:
        """Return whether the line applies to a `host_pattern`."""
        return self.names is None or _names_host(self.names, host)

    def __str__(self) -> str:
        name = "/".join(self.types) + " " if self.types else ""
        return f"{self.marker + ' ' if self.marker else ''}{name}{self.fingerprint} ({self.location})"


def _has_no_host_name(fields: list[str]) -> bool:
    """Return whether a line lacks a host name."""
    kind, key = (*fields, "", "")[:2]
    return kind.startswith(_FINGERPRINT_PREFIXES) or (key.startswith("AAAA") and KEY_TYPE.fullmatch(kind) is not None)


def _check_host_names(names: str) -> str:
    if names.startswith("|"):
        parts = names.split("|")[1:]
        if parts[0] != "1" or [len(_decode_base64(part)) for part in parts[1:]] != [20, 20]:  # SHA-1 digests
            raise ValueError("a hashed host name that is damaged or of an unknown kind")
    return names


def _decode_base64(text: str) -> bytes:
    """Decode base64; empty if the text is invalid."""
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return b""


def _parse_key(fields: list[str]) -> tuple[tuple[str, ...], str]:
    """Parse key types and fingerprint.

    The fields are ``key-type base64 [comment]`` or ``SHA256:... [comment] [(TYPE)]``.
    """
    kind = fields[0]
    if kind.startswith("MD5:"):
        raise ValueError("an MD5 fingerprint, which is not secure; use the SHA256 fingerprint")
    if kind.startswith(SHA256_PREFIX):
        digest = kind.rstrip("=")
        if len(_decode_base64(digest.removeprefix(SHA256_PREFIX) + "=")) != hashlib.sha256().digest_size:
            raise ValueError("the SHA256 fingerprint is damaged or cut off; it has 43 characters after SHA256:")
        return _TYPES_BY_LABEL.get(fields[-1].upper(), ()), digest
    if kind.isdigit():
        raise ValueError("a key of SSH version 1, or a number in place of the key type")
    if not KEY_TYPE.fullmatch(kind):
        raise ValueError(f"unknown key type {kind[:40]!r}")
    if len(fields) < 2:
        raise ValueError(f"no key after the type {kind}")
    try:
        blob = _decode_base64(fields[1])
        actual_type, digest = key_type(blob), fingerprint(blob)
    except ValueError:
        raise ValueError(f"the {kind} key is damaged or cut off") from None
    if actual_type != kind:
        raise ValueError(f"the type is {kind}, but the key is of type {actual_type}")
    return (kind,), digest


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


@dataclass(frozen=True)
class KnownHosts:
    """Lines of one source, and a text for each invalid line.

    :ivar pinned: True if the lines were configured for one server
    :ivar missing: True if the source is a file that does not exist
    """

    source: str
    entries: tuple[KnownHostsEntry, ...] = ()
    problems: tuple[str, ...] = ()
    pinned: bool = False
    missing: bool = False

    @classmethod
    def parse(cls, text: str, source: str = "known_host_keys", pinned: bool = False) -> Self:
        """Parse known_hosts lines.

        :param text: the lines
        :param source: name of the source for messages
        :param pinned: the lines are for one server: keys and fingerprints may lack a host name, and a line without a
            port contradicts another key on any port
        :returns: the valid lines; each invalid line is one of ``problems``, with source, line number and reason
        """
        entries: list[KnownHostsEntry] = []
        problems: list[str] = []
        for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
            stripped = line.removesuffix("\r").strip("\0 \t")
            if not stripped or stripped.startswith("#"):
                continue
            location = f"{source} line {number}"
            try:
                entries.append(KnownHostsEntry.parse(stripped, location, pinned=pinned))
            except ValueError as error:
                problems.append(f"{location}: {error}")
        return cls(source, tuple(entries), tuple(problems), pinned)

    def known_types(self, host: str, port: int) -> tuple[str, ...]:
        """Return the types of a host's known keys, certificates first."""
        types = list(_CERTIFICATE_TYPES) if self._entries_for(host, port, _AUTHORITY) else []
        types += [kind for entry in self._entries_for(host, port, "") for kind in entry.types]
        return tuple(dict.fromkeys(types))

    def decide(self, host: str, port: int, blob: bytes, now: float) -> HostKeyDecision:
        """Decide on the key or certificate of a server.

        :param host: name or address of the server
        :param port: port of the server
        :param blob: the key or the certificate
        :param now: seconds since 1970
        :raises ValueError: if the blob is neither a key nor a certificate
        """
        certificate = HostCertificate.parse(blob) if key_type(blob).endswith(CERTIFICATE_SUFFIX) else None
        key_fingerprint = fingerprint(blob)
        authority_fingerprint = fingerprint(certificate.authority) if certificate else ""
        for entry in self._entries_naming(host_pattern(host, port), _REVOKED) + self._entries_naming(
            host.lower(), _REVOKED
        ):
            if entry.fingerprint in (key_fingerprint, authority_fingerprint):
                subject = "the key" if entry.fingerprint == key_fingerprint else "the authority of the certificate"
                return HostKeyDecision(HostKeyStatus.REVOKED, f"{subject} is revoked by {entry.location}")
        authorities, keys = self._entries_for(host, port, _AUTHORITY), self._entries_for(host, port, "")
        remark = ""
        authority = next((entry for entry in authorities if entry.fingerprint == authority_fingerprint), None)
        if certificate is not None and authority is not None:
            rejection_reason = certificate.rejection_reason(host, now)
            if rejection_reason is None:
                return HostKeyDecision(HostKeyStatus.TRUSTED, f"certified by the authority of {authority.location}")
            remark = f"; the certificate by the authority of {authority.location} is not valid: {rejection_reason}"
        for entry in keys:
            if entry.fingerprint == key_fingerprint:
                return HostKeyDecision(HostKeyStatus.TRUSTED, entry.location)
        name = host_pattern(host, port)
        contradicting = [*authorities, *(entry for entry in keys if self.pinned or entry.names_host(name))]
        if not contradicting:
            return HostKeyDecision(
                HostKeyStatus.UNKNOWN, f"{self.no_entry_text(name)}{self._other_names(key_fingerprint)}"
            )
        if not all(entry.types for entry in contradicting):
            remark += (
                "; if a fingerprint belongs to a key of another type, end its line with the type, as (RSA) or"
                " (ED25519), so that the server is asked for this key"
            )
        return HostKeyDecision(HostKeyStatus.CHANGED, f"known for {name}: {_format_entries(contradicting)}{remark}")

    def _entries_naming(self, name: str, marker: str) -> list[KnownHostsEntry]:
        return [entry for entry in self.entries if entry.marker == marker and entry.names_host(name)]

    def _entries_for(self, host: str, port: int, marker: str) -> list[KnownHostsEntry]:
        """Return the lines for host and port, else for the host."""
        return self._entries_naming(host_pattern(host, port), marker) or self._entries_naming(host.lower(), marker)

    def no_entry_text(self, name: str) -> str:
        """Return a text for a `host_pattern` without a line."""
        if self.missing:
            return f"{self.source} does not exist"
        return f"no line of {self.source} names {name}" if self.entries else f"{self.source} holds no usable line"

    def _other_names(self, key_fingerprint: str) -> str:
        """Return a text with other names of the same key."""
        same = [entry for entry in self.entries if not entry.marker and entry.fingerprint == key_fingerprint]
        if not same:
            return ""
        names = [_shown_names(entry) for entry in same[:MAX_LISTED]]
        return f", but the same key is known for {', '.join(names)} ({same[0].location})"


def _shown_names(entry: KnownHostsEntry) -> str:
    is_hashed = entry.names is not None and entry.names.startswith("|")
    return "a hashed name" if is_hashed else repr(entry.names)


def _format_entries(lines: list[KnownHostsEntry]) -> str:
    remainder = f" and {len(lines) - MAX_LISTED} more" if len(lines) > MAX_LISTED else ""
    return ", ".join(map(str, lines[:MAX_LISTED])) + remainder
