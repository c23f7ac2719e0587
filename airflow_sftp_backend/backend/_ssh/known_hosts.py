"""Who a server is: known_hosts lines read, a host key judged by them, and the policy for keys nobody vouches for.

Keys are SSH wire-format blobs (RFC 4253 section 6.6, RFC 5656, RFC 8709; certificates: OpenSSH's PROTOCOL.certkeys).
Lines are those of sshd(8), SSH_KNOWN_HOSTS FILE FORMAT, and fingerprints beside: ``SHA256:...`` in place of a key.
Lines are matched and certificates judged as OpenSSH's client does (hostfile.c, sshconnect.c), except that

* a key that is not listed for a host that has other lines is a changed one, whatever its type: a server in between
  could else offer a type of which no key is known;
* the same holds where an authority is listed for the host and no valid certificate of it was offered;
* ``@revoked`` counts for all ports of a host;
* a certificate without principals is good for no host, and principals may be patterns; older releases take the
  former for every host and know no patterns.

The only input and output is the known_hosts file.
"""

from __future__ import annotations

import base64
import binascii
import enum
import fcntl
import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Self

from airflow_sftp_backend.backend._protocol.codec import PacketReader, ProtocolError
from airflow_sftp_backend.backend.config import DEFAULT_HOST_KEYS_PATH, DEFAULT_PORT, BackendConfig, HostKeyPolicy
from airflow_sftp_backend.backend.errors import HostKeyRejected

log = logging.getLogger(__name__)

ENVIRONMENT_VARIABLE: Final = "SFTP_KNOWN_HOST_KEYS"
CERTIFICATE: Final = "-cert-v01@openssh.com"

_AUTHORITY: Final = "@cert-authority"
_REVOKED: Final = "@revoked"
_SHA256: Final = "SHA256:"
_FINGERPRINTS: Final = (_SHA256, "MD5:")
_FIELDS: Final = {"ssh-rsa": 2, "ssh-dss": 4, "ssh-ed25519": 1} | {f"ecdsa-sha2-nistp{n}": 2 for n in (256, 384, 521)}
"""Fields of a public key after its type; a certificate has the same after its nonce."""
_SEPARATOR: Final = r"[ \t]+"
"""Separates the fields of a line for ssh(1) (OpenSSH's hostfile.c): no other white space does."""
_TYPE: Final = re.compile(r"(?:ssh|ecdsa|sk)-[a-z0-9.@-]+")
_HINTS: Final = {
    "(ED25519)": ("ssh-ed25519",),
    "(RSA)": ("ssh-rsa",),
    "(ECDSA)": ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
}
"""How ``ssh-keygen -l`` names key types at the end of a line."""
_CERTIFIED_TYPES: Final = tuple(f"{kind}{CERTIFICATE}" for kind in ("ssh-ed25519", *_HINTS["(ECDSA)"], "ssh-rsa"))
_HOST_CERTIFICATE: Final = 2
_LISTED: Final = 6
"""Most known keys named in one error."""


def key_type(blob: bytes) -> str:
    """The type a public key blob begins with, as ``ssh-ed25519``. ValueError if it is no public key."""
    return _fields(blob)[0].decode("ascii")


def _fields(blob: bytes) -> list[bytes]:
    """The strings a plain key consists of (multiple precision integers are strings too); a certificate's type only."""
    cursor = PacketReader(memoryview(blob))
    try:
        fields = [bytes(cursor.view())]
        if not _TYPE.fullmatch(fields[0].decode("ascii")):
            raise ValueError("not a public key")
        while cursor.remaining and not fields[0].endswith(CERTIFICATE.encode()):
            fields.append(bytes(cursor.view()))
    except (ProtocolError, UnicodeDecodeError):
        raise ValueError("not a public key") from None
    kind, count = fields[0].decode(), len(fields) - 1
    if count != _FIELDS.get(kind, count) or (not count and not cursor.remaining):
        raise ValueError("not a public key")
    return fields


def plain_key(blob: bytes) -> bytes:
    """The public key itself: the one inside a certificate, else the blob. ValueError if it is neither."""
    return _Certificate.read(blob).key if key_type(blob).endswith(CERTIFICATE) else blob


def fingerprint(blob: bytes) -> str:
    """``SHA256:`` and the digest of the key, or of a certificate's, in unpadded base64. ValueError if it is neither."""
    return _SHA256 + base64.b64encode(hashlib.sha256(plain_key(blob)).digest()).decode().rstrip("=")


def host_pattern(host: str, port: int) -> str:
    """How known_hosts names a server: ``host``, or ``[host]:port`` where the port is not 22."""
    return host.lower() if port == DEFAULT_PORT else f"[{host.lower()}]:{port}"


def known_hosts_line(host: str, port: int, blob: bytes) -> str:
    """The line that vouches for the key, without a newline; of a certificate, for the key in it."""
    key = plain_key(blob)
    return f"{host_pattern(host, port)} {key_type(key)} {base64.b64encode(key).decode()}"


# -- certificates -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Certificate:
    """What a certificate says (PROTOCOL.certkeys); whether it is true, `refusal` finds out. Times are in seconds."""

    blob: bytes
    key: bytes
    kind: int
    principals: tuple[str, ...]
    valid_after: int
    valid_before: int
    critical_options: bytes
    authority: bytes
    signature_type: str

    @classmethod
    def read(cls, blob: bytes) -> Self:
        """ValueError if the blob is no certificate of a type known here."""
        cursor = PacketReader(memoryview(blob))
        try:
            plain = bytes(cursor.view()).decode("ascii").removesuffix(CERTIFICATE)
            if plain not in _FIELDS:
                raise ValueError("a certificate of an unknown type")
            cursor.view()  # nonce
            key = [plain.encode(), *(bytes(cursor.view()) for _ in range(_FIELDS[plain]))]
            cursor.uint64()  # serial number
            kind = cursor.uint32()
            cursor.view()  # key id
            names = PacketReader(cursor.view())
            principals = []
            while names.remaining:
                principals.append(names.text())
            after, before = cursor.uint64(), cursor.uint64()
            options = bytes(cursor.view())
            cursor.view()  # extensions
            cursor.view()  # reserved
            authority, signature = bytes(cursor.view()), PacketReader(cursor.view())
            signature_type = signature.text()
        except (ProtocolError, UnicodeDecodeError):
            raise ValueError("not a certificate") from None
        if key_type(authority).endswith(CERTIFICATE):
            raise ValueError("a certificate signed with another certificate")
        key_blob = b"".join(len(field).to_bytes(4, "big") + field for field in key)
        return cls(blob, key_blob, kind, tuple(principals), after, before, options, authority, signature_type)

    def refusal(self, host: str, now: float) -> str | None:
        """Why it does not prove that its key is ``host``'s at ``now`` (seconds since 1970); None where it does."""
        if self.kind != _HOST_CERTIFICATE:
            return "it is not a host certificate"
        if now < self.valid_after:
            return "it is not valid yet"
        if now >= self.valid_before:
            return "it has expired"
        if not any(_glob(name.lower()).fullmatch(host.lower()) for name in self.principals):
            return f"it is made out for {', '.join(map(repr, self.principals)) or 'no host'}"
        if self.critical_options:
            return "it has critical options, which no host certificate may have"
        if self.signature_type == "ssh-rsa":
            return "it is signed with SHA-1"
        return None if self._is_signed() else "its signature is wrong"

    def _is_signed(self) -> bool:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import SSHCertificate, load_ssh_public_identity

        line = key_type(self.blob).encode() + b" " + base64.b64encode(self.blob)
        try:
            certificate = load_ssh_public_identity(line)
            assert isinstance(certificate, SSHCertificate)
            certificate.verify_cert_signature()
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, NotImplementedError):
            return False
        return True


# -- lines ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _glob(pattern: str) -> re.Pattern[str]:
    """A host pattern: ``*`` and ``?`` stand for characters, all else for itself."""
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in re.sub(r"\*+", "*", pattern))
    return re.compile("".join(parts), re.DOTALL)


def _names_host(names: str, host: str) -> bool:
    """True if the first field of a line means ``host`` (as `host_pattern` spells it)."""
    if names.startswith("|"):
        _, _, salt, digest = names.split("|")
        found = hmac.digest(base64.b64decode(salt), host.encode(), "sha1")
        return hmac.compare_digest(found, base64.b64decode(digest))
    patterns = [pattern for pattern in names.lower().split(",") if pattern]
    if any(p.startswith("!") and _glob(p[1:]).fullmatch(host) for p in patterns):
        return False
    return any(not p.startswith("!") and _glob(p).fullmatch(host) for p in patterns)


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
    return kind.startswith(_FINGERPRINTS) or (key.startswith("AAAA") and _TYPE.fullmatch(kind) is not None)


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
    if kind.startswith(_SHA256):
        digest = kind.rstrip("=")
        if len(_decoded(digest.removeprefix(_SHA256) + "=")) != hashlib.sha256().digest_size:
            raise ValueError("the SHA256 fingerprint is damaged or cut off; it has 43 characters after SHA256:")
        return _HINTS.get(fields[-1].upper(), ()), digest
    if kind.isdigit():
        raise ValueError("a key of SSH version 1, or a number where the key type belongs")
    if not _TYPE.fullmatch(kind):
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


# -- verdicts ---------------------------------------------------------------------------------------------------------


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
        certificate = _Certificate.read(blob) if key_type(blob).endswith(CERTIFICATE) else None
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
        names = ("a hashed name" if (line.names or "").startswith("|") else repr(line.names) for line in same[:_LISTED])
        return f", though the same key is known as that of {', '.join(names)} ({same[0].place})" if same else ""


def _listed(lines: list[_Line]) -> str:
    more = f" and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return ", ".join(map(str, lines[:_LISTED])) + more


# -- policy -----------------------------------------------------------------------------------------------------------


class HostKeyChecker:
    """Decides whether a server's key is to be trusted, as its configuration says.

    Keys come from ``config.known_host_keys``, else from the environment, else from the known_hosts file. The policies
    other than STRICT look into the file too where the first two know nothing of the host.
    """

    def __init__(self, config: BackendConfig, environ: Mapping[str, str], now: Callable[[], float] = time.time) -> None:
        self._config = config
        self._now = now
        self._path = os.path.expanduser(config.host_keys_path or DEFAULT_HOST_KEYS_PATH)
        self._warned: set[str] = set()
        self._inline: KnownHosts | None = None
        if given := (config.known_host_keys or "").strip():
            self._inline = KnownHosts.parse(_unfolded(given), pinned=True)
        elif given := environ.get(ENVIRONMENT_VARIABLE, "").strip():
            self._inline = KnownHosts.parse(_unfolded(given), source=ENVIRONMENT_VARIABLE)

    def preferred_types(self) -> tuple[str, ...]:
        """Host key algorithms that lead to a key somebody vouches for, to be negotiated first; empty if none is known.

        They are algorithms, not key types: an RSA key stands for ``rsa-sha2-512``, ``rsa-sha2-256`` and, where the
        configuration allows it, ``ssh-rsa``, a certificate likewise. HostKeyRejected if the file cannot be read.
        """
        for known in self._sources():
            if types := known.known_types(self._config.host, self._config.port):
                return tuple(name for kind in types for name in self._algorithms(kind))
        return ()

    def _algorithms(self, kind: str) -> list[str]:
        if not kind.startswith("ssh-rsa"):
            return [kind]
        suffix = kind.removeprefix("ssh-rsa")
        return [f"rsa-sha2-512{suffix}", f"rsa-sha2-256{suffix}", *([kind] if self._config.allow_ssh_rsa_sha1 else [])]

    def check(self, blob: bytes) -> str:
        """Why the key is trusted. ``blob`` is what the server sent: its key, or its certificate.

        Raises HostKeyRejected, whose text shows the key, what is known, where it was looked for and what to do.
        """
        try:
            plain_key(blob)
        except ValueError as error:
            raise self._unchecked(f"what the server sent as its key is {error}") from None
        looked: list[KnownHosts] = []
        verdict = Verdict(Trust.UNKNOWN, "")
        for known in self._sources():
            looked.append(known)
            verdict = self._verdict(known, blob)
            if verdict.trust is not Trust.UNKNOWN:
                break
        policy = self._config.host_key_policy
        if verdict.trust is Trust.TRUSTED:
            return verdict.reason
        if verdict.trust is not Trust.UNKNOWN or policy is HostKeyPolicy.STRICT:
            raise self._rejection(blob, verdict, looked)
        if policy is HostKeyPolicy.TRUST_ON_FIRST_USE:
            return self._remember(blob, looked)
        log.warning(
            "the host key of %s is accepted unchecked, as host_key_policy 'auto' says: %s %s. To pin it, set"
            " known_host_keys to this line: %s",
            self._config.address, key_type(blob), fingerprint(blob), self._line(blob),
        )  # fmt: skip
        return "accepted unchecked: host_key_policy is 'auto'"

    def _sources(self) -> Iterator[KnownHosts]:
        if self._inline is not None:
            yield self._warn(self._inline)
        if self._inline is None or self._config.host_key_policy is not HostKeyPolicy.STRICT:
            try:
                known = self._parsed(Path(self._path).read_bytes())
            except FileNotFoundError:
                known = KnownHosts(self._path, missing=True)
            except OSError as error:
                raise self._unchecked(f"{self._path} cannot be read: {error.strerror}") from None
            yield self._warn(known)

    def _parsed(self, content: bytes) -> KnownHosts:
        return KnownHosts.parse(content.decode("utf-8", "replace"), source=self._path)

    def _warn(self, known: KnownHosts) -> KnownHosts:
        for problem in (p for p in known.problems if p not in self._warned):
            log.warning("%s; the line does not count", problem)
        self._warned.update(known.problems)
        return known

    def _verdict(self, known: KnownHosts, blob: bytes) -> Verdict:
        return known.verdict(self._config.host, self._config.port, blob, self._now())

    def _line(self, blob: bytes) -> str:
        return known_hosts_line(self._config.host, self._config.port, blob)

    def _unchecked(self, why: str) -> HostKeyRejected:
        return HostKeyRejected(f"the host key cannot be checked: {why}", server=self._config.address)

    def _rejection(self, blob: bytes, verdict: Verdict, looked: list[KnownHosts]) -> HostKeyRejected:
        shown = f"the server shows {key_type(blob)} {fingerprint(blob)}"
        problems = [problem for known in looked for problem in known.problems]
        unread = f". Lines that do not count: {'; '.join(problems[:_LISTED])}" if problems else ""
        if verdict.trust is Trust.REVOKED:
            text = f"revoked host key: {shown}, and {verdict.reason}. Do not connect before its owner has a new key"
            return HostKeyRejected(text + unread, server=self._config.address, verdict="revoked")
        add = f"add this line to {looked[0].source}:\n{self._line(blob)}\n"
        if verdict.trust is Trust.CHANGED:
            text = (
                f"wrong host key: {shown}, but {verdict.reason}{unread}. Either the server has another key now, or"
                f" somebody in between poses as it. If its owner confirms the new fingerprint, {add}"
                "and remove the lines of keys that are gone"
            )
        else:
            name = host_pattern(self._config.host, self._config.port)
            where = "".join(f"{known.nothing_on(name)}; " for known in looked[:-1])
            text = (
                f"unknown host key: {shown}, and {where}{verdict.reason}{unread}. Ask the server's owner whether the"
                f" fingerprint is right; if it is, {add}"
            )
        return HostKeyRejected(text, server=self._config.address, verdict=verdict.trust.value)

    def _remember(self, blob: bytes, looked: list[KnownHosts]) -> str:
        """Appends the key to the file unless it, or another key of the host, has come to stand there meanwhile."""
        try:
            os.makedirs(os.path.dirname(self._path) or ".", mode=0o700, exist_ok=True)
            with _locked(self._path, self._config.timeout) as descriptor:
                with open(descriptor, "rb", closefd=False) as file:
                    content = file.read()
                known = self._parsed(content)
                verdict = self._verdict(known, blob)
                if verdict.trust is Trust.UNKNOWN:
                    _append(descriptor, content, f"{self._line(blob)}\n".encode())
        except OSError as error:
            raise self._unchecked(
                f"nothing is known of the server yet, and its key {key_type(blob)} {fingerprint(blob)} cannot be"
                f" remembered in {self._path}: {error.strerror or error}. Name a file that can be written in"
                f" host_keys_path, or set known_host_keys to this line:\n{self._line(blob)}\n"
            ) from None
        if verdict.trust is Trust.TRUSTED:
            return verdict.reason
        if verdict.trust is not Trust.UNKNOWN:
            raise self._rejection(blob, verdict, [*looked[:-1], known])
        log.info("%s: first use, host key %s added to %s", self._config.address, fingerprint(blob), self._path)
        return f"first use; added to {self._path}"


_LINE_BEGINS: Final = r"(?=(?:@[a-z-]+[ \t]+)?(?:[^\s(]\S*[ \t]+)?(?:(?:ssh|ecdsa|sk)-\S+[ \t]+AAAA|SHA256:))"
_FOLDED: Final = re.compile(rf"((?:AAAA|SHA256:)\S+)([^\n]*?)[ \t]+{_LINE_BEGINS}")


def _unfolded(text: str) -> str:
    """The line ends that a form or a variable has turned to a literal ``\\n`` or to blanks, put back."""
    return _FOLDED.sub(r"\1\2\n", re.sub(r"\\+r\\+n|\\+[rn]", "\n", text))


@contextmanager
def _locked(path: str, patience: float) -> Iterator[int]:
    """A descriptor of the file, made (mode 0600) where it is missing, that this process alone holds locked.

    OSError if it cannot be opened, TimeoutError if others hold the lock for longer than ``patience`` seconds.
    """
    end = time.monotonic() + patience
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if time.monotonic() > end:
                    raise TimeoutError("another process holds its lock")
                time.sleep(0.01)
            # `ssh-keygen -R` replaces the file.
            if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _append(descriptor: int, content: bytes, line: bytes) -> None:
    """Adds the line after ``content``, which is what the file holds; leaves that as it was if the disk is full."""
    rest = line if not content or content.endswith(b"\n") else b"\n" + line
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        os.ftruncate(descriptor, len(content))
        raise
