"""Reads known_hosts lines, and tells whether they vouch for a host key.

Lines are those of sshd(8), SSH_KNOWN_HOSTS FILE FORMAT, and fingerprints beside: ``SHA256:...`` in place of a key.
Lines are matched as OpenSSH's client does (hostfile.c, sshconnect.c), except that

* a key that is not listed for a host that has other lines is a changed one, whatever its type: a server in between
  could else offer a type of which no key is known;
* the same holds where an authority is listed for the host and no valid certificate of it was offered;
* ``@revoked`` counts for all ports of a host.
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
"""Separates the fields of a line for ssh(1) (OpenSSH's hostfile.c): no other white space does."""
_TYPES_BY_LABEL: Final = {
    "(ED25519)": ("ssh-ed25519",),
    "(RSA)": ("ssh-rsa",),
    "(ECDSA)": ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
}
"""How ``ssh-keygen -l`` names key types at the end of a line."""
_CERTIFICATE_TYPES: Final = tuple(
    f"{kind}{CERTIFICATE_SUFFIX}" for kind in ("ssh-ed25519", *_TYPES_BY_LABEL["(ECDSA)"], "ssh-rsa")
)
MAX_LISTED: Final = 6
"""Most known keys named in one error."""


def host_pattern(host: str, port: int) -> str:
    """How known_hosts names a server: ``host``, or ``[host]:port`` where the port is not 22."""
    return host.lower() if port == DEFAULT_PORT else f"[{host.lower()}]:{port}"


def known_hosts_line(host: str, port: int, blob: bytes) -> str:
    """The line that vouches for the key, without a newline; of a certificate, for the key in it."""
    key = plain_key(blob)
    return f"{host_pattern(host, port)} {key_type(key)} {base64.b64encode(key).decode()}"


def _names_host(names: str, host: str) -> bool:
    """True if the first field of a line means ``host`` (as `host_pattern` spells it)."""
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
    """One line that could be read. ``names`` is None where it counts for any host; ``types`` is empty for a fingerprint
    that does not tell its key's type."""

    location: str
    marker: str
    names: str | None
    types: tuple[str, ...]
    fingerprint: str

    @classmethod
    def parse(cls, text: str, location: str, *, pinned: bool) -> Self:
        """ValueError says why it cannot be read."""
        fields = re.split(_SEPARATOR, text)
        marker = fields.pop(0) if fields[0].startswith("@") else ""
        if marker not in ("", _AUTHORITY, _REVOKED):
            raise ValueError(f"unknown marker {marker[:20]!r}; there are {_AUTHORITY} and {_REVOKED}")
        if len(fields) > 1 and fields[0].isdigit() and fields[1].startswith(_FINGERPRINT_PREFIXES):
            del fields[0]  # the key's bits, as `ssh-keygen -l` prints them
        if _has_no_host_name(fields):
            if not pinned:
                raise ValueError("a key or fingerprint without a host name in front of it")
            names = None
        else:
            names = _check_host_names(fields.pop(0)) if fields else ""
        if not fields:
            raise ValueError("no key; a line is: host key-type base64, or host SHA256:fingerprint")
        types, digest = _parse_key(fields)
        if types and types[0].endswith(CERTIFICATE_SUFFIX) and marker != _REVOKED:
            raise ValueError(f"a certificate; list its authority instead, with {_AUTHORITY}")
        return cls(location, marker, names, types, digest)

    def names_host(self, host: str) -> bool:
        """True if it counts for ``host``, as `host_pattern` spells it."""
        return self.names is None or _names_host(self.names, host)

    def __str__(self) -> str:
        name = "/".join(self.types) + " " if self.types else ""
        return f"{self.marker + ' ' if self.marker else ''}{name}{self.fingerprint} ({self.location})"


def _has_no_host_name(fields: list[str]) -> bool:
    """True for a key or a fingerprint with no host name before it."""
    kind, key = (*fields, "", "")[:2]
    return kind.startswith(_FINGERPRINT_PREFIXES) or (key.startswith("AAAA") and KEY_TYPE.fullmatch(kind) is not None)


def _check_host_names(names: str) -> str:
    if names.startswith("|"):
        parts = names.split("|")[1:]
        if parts[0] != "1" or [len(_decode_base64(part)) for part in parts[1:]] != [20, 20]:  # SHA-1 digests
            raise ValueError("a hashed host name that is damaged or of an unknown kind")
    return names


def _decode_base64(text: str) -> bytes:
    """The bytes of base64; none if it is damaged."""
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return b""


def _parse_key(fields: list[str]) -> tuple[tuple[str, ...], str]:
    """Key types and fingerprint of ``key-type base64 [comment]`` or ``SHA256:... [comment] [(TYPE)]``."""
    kind = fields[0]
    if kind.startswith("MD5:"):
        raise ValueError("an MD5 fingerprint, which proves nothing; use the SHA256 one")
    if kind.startswith(SHA256_PREFIX):
        digest = kind.rstrip("=")
        if len(_decode_base64(digest.removeprefix(SHA256_PREFIX) + "=")) != hashlib.sha256().digest_size:
            raise ValueError("the SHA256 fingerprint is damaged or cut off; it has 43 characters after SHA256:")
        return _TYPES_BY_LABEL.get(fields[-1].upper(), ()), digest
    if kind.isdigit():
        raise ValueError("a key of SSH version 1, or a number where the key type belongs")
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
        raise ValueError(f"the line says {kind}, the key in it is {actual_type}")
    return (kind,), digest


class HostKeyStatus(enum.Enum):
    """What the lines say of a key."""

    TRUSTED = "trusted"
    UNKNOWN = "unknown"  # nothing is known of the host
    CHANGED = "changed"  # other keys are known of the host
    REVOKED = "revoked"


@dataclass(frozen=True)
class HostKeyDecision:
    """``reason`` says which line vouches, or what contradicts."""

    status: HostKeyStatus
    reason: str


@dataclass(frozen=True)
class KnownHosts:
    """The lines of one source that could be read, and a text for each that could not."""

    source: str
    entries: tuple[KnownHostsEntry, ...] = ()
    problems: tuple[str, ...] = ()
    pinned: bool = False  # the lines were given for one server
    missing: bool = False  # the source is a file that does not exist

    @classmethod
    def parse(cls, text: str, source: str = "known_host_keys", pinned: bool = False) -> Self:
        """Reads known_hosts lines; a bad one becomes one of ``problems``, which name source, line number and reason.

        ``pinned``: the text was given for one server, so a key or a fingerprint may stand alone, and a line without
        port contradicts another key on any port.
        """
        lines: list[KnownHostsEntry] = []
        problems: list[str] = []
        for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
            stripped = line.removesuffix("\r").strip("\0 \t")
            if not stripped or stripped.startswith("#"):
                continue
            location = f"{source} line {number}"
            try:
                lines.append(KnownHostsEntry.parse(stripped, location, pinned=pinned))
            except ValueError as error:
                problems.append(f"{location}: {error}")
        return cls(source, tuple(lines), tuple(problems), pinned)

    def known_types(self, host: str, port: int) -> tuple[str, ...]:
        """Types of the keys known of the host, certificate types first where an authority is. Best negotiated first."""
        types = list(_CERTIFICATE_TYPES) if self._entries_for(host, port, _AUTHORITY) else []
        types += [kind for entry in self._entries_for(host, port, "") for kind in entry.types]
        return tuple(dict.fromkeys(types))

    def decide(self, host: str, port: int, blob: bytes, now: float) -> HostKeyDecision:
        """What they say of ``blob`` as that server's key at ``now`` (seconds since 1970). ValueError if it is none."""
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
            remark = f"; the certificate by the authority of {authority.location} does not count: {rejection_reason}"
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
                "; where a fingerprint is that of a key of another type, end its line with that type, as (RSA) or"
                " (ED25519), so that this key is asked for"
            )
        return HostKeyDecision(
            HostKeyStatus.CHANGED, f"{_format_entries(contradicting)} is what is known of {name}{remark}"
        )

    def _entries_naming(self, name: str, marker: str) -> list[KnownHostsEntry]:
        return [line for line in self.entries if line.marker == marker and line.names_host(name)]

    def _entries_for(self, host: str, port: int, marker: str) -> list[KnownHostsEntry]:
        """The lines with that marker that name the host with its port; if there are none, those without port."""
        return self._entries_naming(host_pattern(host, port), marker) or self._entries_naming(host.lower(), marker)

    def no_entry_text(self, name: str) -> str:
        """That no line names the host, in words; ``name`` as `host_pattern` spells it."""
        if self.missing:
            return f"{self.source} does not exist"
        return f"no line of {self.source} names {name}" if self.entries else f"{self.source} holds no usable line"

    def _other_names(self, key_fingerprint: str) -> str:
        """Where else the key is known: a server may go by several names."""
        same = [line for line in self.entries if not line.marker and line.fingerprint == key_fingerprint]
        names = (
            "a hashed name" if (line.names or "").startswith("|") else repr(line.names) for line in same[:MAX_LISTED]
        )
        return f", though the same key is known as that of {', '.join(names)} ({same[0].location})" if same else ""


def _format_entries(lines: list[KnownHostsEntry]) -> str:
    remainder = f" and {len(lines) - MAX_LISTED} more" if len(lines) > MAX_LISTED else ""
    return ", ".join(map(str, lines[:MAX_LISTED])) + remainder
