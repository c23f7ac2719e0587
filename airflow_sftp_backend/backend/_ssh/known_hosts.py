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
    CERTIFICATE,
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
_FINGERPRINTS: Final = (SHA256_PREFIX, "MD5:")
_SEPARATOR: Final = r"[ \t]+"
"""Separates the fields of a line for ssh(1) (OpenSSH's hostfile.c): no other white space does."""
_HINTS: Final = {
    "(ED25519)": ("ssh-ed25519",),
    "(RSA)": ("ssh-rsa",),
    "(ECDSA)": ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
}
"""How ``ssh-keygen -l`` names key types at the end of a line."""
_CERTIFIED_TYPES: Final = tuple(f"{kind}{CERTIFICATE}" for kind in ("ssh-ed25519", *_HINTS["(ECDSA)"], "ssh-rsa"))
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
        _, _, salt, digest = names.split("|")
        found = hmac.digest(base64.b64decode(salt), host.encode(), "sha1")
        return hmac.compare_digest(found, base64.b64decode(digest))
    patterns = [pattern for pattern in names.lower().split(",") if pattern]
    if any(p.startswith("!") and matches_host(p[1:], host) for p in patterns):
        return False
    return any(not p.startswith("!") and matches_host(p, host) for p in patterns)


@dataclass(frozen=True)
class _Line:
    """One line that could be read. ``names`` is None where it counts for any host; ``types`` is empty for a fingerprint
    that does not tell its key's type."""

    place: str
    marker: str
    names: str | None
    types: tuple[str, ...]
    fingerprint: str

    @classmethod
    def read(cls, text: str, place: str, *, pinned: bool) -> Self:
        """ValueError says why it cannot be read."""
        fields = re.split(_SEPARATOR, text)
        marker = fields.pop(0) if fields[0].startswith("@") else ""
        if marker not in ("", _AUTHORITY, _REVOKED):
            raise ValueError(f"unknown marker {marker[:20]!r}; there are {_AUTHORITY} and {_REVOKED}")
        if len(fields) > 1 and fields[0].isdigit() and fields[1].startswith(_FINGERPRINTS):
            del fields[0]  # the key's bits, as `ssh-keygen -l` prints them
        if _stands_alone(fields):
            if not pinned:
                raise ValueError("a key or fingerprint without a host name in front of it")
            names = None
        else:
            names = _checked_names(fields.pop(0)) if fields else ""
        if not fields:
            raise ValueError("no key; a line is: host key-type base64, or host SHA256:fingerprint")
        types, digest = _identity(fields)
        if types and types[0].endswith(CERTIFICATE) and marker != _REVOKED:
            raise ValueError(f"a certificate; list its authority instead, with {_AUTHORITY}")
        return cls(place, marker, names, types, digest)

    def names_host(self, host: str) -> bool:
        """True if it counts for ``host``, as `host_pattern` spells it."""
        return self.names is None or _names_host(self.names, host)

    def __str__(self) -> str:
        name = "/".join(self.types) + " " if self.types else ""
        return f"{self.marker + ' ' if self.marker else ''}{name}{self.fingerprint} ({self.place})"


def _stands_alone(fields: list[str]) -> bool:
    """True for a key or a fingerprint with no host name before it."""
    kind, key = (*fields, "", "")[:2]
    return kind.startswith(_FINGERPRINTS) or (key.startswith("AAAA") and KEY_TYPE.fullmatch(kind) is not None)


def _checked_names(names: str) -> str:
    if names.startswith("|"):
        parts = names.split("|")[1:]
        if parts[0] != "1" or [len(_decoded(part)) for part in parts[1:]] != [20, 20]:  # SHA-1 digests
            raise ValueError("a hashed host name that is damaged or of an unknown kind")
    return names


def _decoded(text: str) -> bytes:
    """The bytes of base64; none if it is damaged."""
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return b""


def _identity(fields: list[str]) -> tuple[tuple[str, ...], str]:
    """Key types and fingerprint of ``key-type base64 [comment]`` or ``SHA256:... [comment] [(TYPE)]``."""
    kind = fields[0]
    if kind.startswith("MD5:"):
        raise ValueError("an MD5 fingerprint, which proves nothing; use the SHA256 one")
    if kind.startswith(SHA256_PREFIX):
        digest = kind.rstrip("=")
        if len(_decoded(digest.removeprefix(SHA256_PREFIX) + "=")) != hashlib.sha256().digest_size:
            raise ValueError("the SHA256 fingerprint is damaged or cut off; it has 43 characters after SHA256:")
        return _HINTS.get(fields[-1].upper(), ()), digest
    if kind.isdigit():
        raise ValueError("a key of SSH version 1, or a number where the key type belongs")
    if not KEY_TYPE.fullmatch(kind):
        raise ValueError(f"unknown key type {kind[:40]!r}")
    if len(fields) < 2:
        raise ValueError(f"no key after the type {kind}")
    try:
        blob = _decoded(fields[1])
        found, digest = key_type(blob), fingerprint(blob)
    except ValueError:
        raise ValueError(f"the {kind} key is damaged or cut off") from None
    if found != kind:
        raise ValueError(f"the line says {kind}, the key in it is {found}")
    return (kind,), digest


class Trust(enum.Enum):
    """What the lines say of a key."""

    TRUSTED = "trusted"
    UNKNOWN = "unknown"  # nothing is known of the host
    CHANGED = "changed"  # other keys are known of the host
    REVOKED = "revoked"


@dataclass(frozen=True)
class Verdict:
    """``reason`` says which line vouches, or what contradicts."""

    trust: Trust
    reason: str


@dataclass(frozen=True)
class KnownHosts:
    """The lines of one source that could be read, and a text for each that could not."""

    source: str
    lines: tuple[_Line, ...] = ()
    problems: tuple[str, ...] = ()
    pinned: bool = False  # the lines were given for one server
    missing: bool = False  # the source is a file that does not exist

    @classmethod
    def parse(cls, text: str, source: str = "known_host_keys", pinned: bool = False) -> Self:
        """Reads known_hosts lines; a bad one becomes one of ``problems``, which name source, line number and reason.

        ``pinned``: the text was given for one server, so a key or a fingerprint may stand alone, and a line without
        port contradicts another key on any port.
        """
        lines: list[_Line] = []
        problems: list[str] = []
        for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
            stripped = line.removesuffix("\r").strip("\0 \t")
            if not stripped or stripped.startswith("#"):
                continue
            place = f"{source} line {number}"
            try:
                lines.append(_Line.read(stripped, place, pinned=pinned))
            except ValueError as error:
                problems.append(f"{place}: {error}")
        return cls(source, tuple(lines), tuple(problems), pinned)

    def known_types(self, host: str, port: int) -> tuple[str, ...]:
        """Types of the keys known of the host, certificate types first where an authority is. Best negotiated first."""
        found = list(_CERTIFIED_TYPES) if self._of(host, port, _AUTHORITY) else []
        found += [kind for line in self._of(host, port, "") for kind in line.types]
        return tuple(dict.fromkeys(found))

    def verdict(self, host: str, port: int, blob: bytes, now: float) -> Verdict:
        """What they say of ``blob`` as that server's key at ``now`` (seconds since 1970). ValueError if it is none."""
        certificate = HostCertificate.read(blob) if key_type(blob).endswith(CERTIFICATE) else None
        shown = fingerprint(blob)
        signer = fingerprint(certificate.authority) if certificate else ""
        for line in self._named(host_pattern(host, port), _REVOKED) + self._named(host.lower(), _REVOKED):
            if line.fingerprint in (shown, signer):
                what = "the key" if line.fingerprint == shown else "the authority of the certificate"
                return Verdict(Trust.REVOKED, f"{what} is revoked by {line.place}")
        authorities, keys = self._of(host, port, _AUTHORITY), self._of(host, port, "")
        remark = ""
        signed = next((line for line in authorities if line.fingerprint == signer), None)
        if certificate is not None and signed is not None:
            refusal = certificate.refusal(host, now)
            if refusal is None:
                return Verdict(Trust.TRUSTED, f"certified by the authority of {signed.place}")
            remark = f"; the certificate by the authority of {signed.place} does not count: {refusal}"
        for line in keys:
            if line.fingerprint == shown:
                return Verdict(Trust.TRUSTED, line.place)
        name = host_pattern(host, port)
        known = [*authorities, *(line for line in keys if self.pinned or line.names_host(name))]
        if not known:
            return Verdict(Trust.UNKNOWN, f"{self.nothing_on(name)}{self._other_names(shown)}")
        if not all(line.types for line in known):
            remark += (
                "; where a fingerprint is that of a key of another type, end its line with that type, as (RSA) or"
                " (ED25519), so that this key is asked for"
            )
        return Verdict(Trust.CHANGED, f"{_listed(known)} is what is known of {name}{remark}")

    def _named(self, name: str, marker: str) -> list[_Line]:
        return [line for line in self.lines if line.marker == marker and line.names_host(name)]

    def _of(self, host: str, port: int, marker: str) -> list[_Line]:
        """The lines with that marker that name the host with its port; if there are none, those without port."""
        return self._named(host_pattern(host, port), marker) or self._named(host.lower(), marker)

    def nothing_on(self, name: str) -> str:
        """That no line names the host, in words; ``name`` as `host_pattern` spells it."""
        if self.missing:
            return f"{self.source} does not exist"
        return f"no line of {self.source} names {name}" if self.lines else f"{self.source} holds no usable line"

    def _other_names(self, shown: str) -> str:
        """Where else the key is known: a server may go by several names."""
        same = [line for line in self.lines if not line.marker and line.fingerprint == shown]
        names = (
            "a hashed name" if (line.names or "").startswith("|") else repr(line.names) for line in same[:MAX_LISTED]
        )
        return f", though the same key is known as that of {', '.join(names)} ({same[0].place})" if same else ""


def _listed(lines: list[_Line]) -> str:
    more = f" and {len(lines) - MAX_LISTED} more" if len(lines) > MAX_LISTED else ""
    return ", ".join(map(str, lines[:MAX_LISTED])) + more
