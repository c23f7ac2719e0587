"""Parse known_hosts lines, and append lines to the file.

The format is that of sshd(8), SSH_KNOWN_HOSTS FILE FORMAT, but a fingerprint, ``SHA256:...``, may replace a key.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import hmac
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Self

from airflow_sftp_backend.backend.config import DEFAULT_PORT

from .host_certificates import (
    CERTIFICATE_SUFFIX,
    KEY_TYPE,
    SHA256_PREFIX,
    fingerprint,
    key_type,
    matches_host,
    plain_key,
)

AUTHORITY: Final = "@cert-authority"
REVOKED: Final = "@revoked"
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
        if marker not in ("", AUTHORITY, REVOKED):
            raise ValueError(f"unknown marker {marker[:20]!r}; expected {AUTHORITY} or {REVOKED}")
        if len(fields) > 1 and fields[0].isdigit() and fields[1].startswith(_FINGERPRINT_PREFIXES):
            del fields[0]  # the key's bits, as `ssh-keygen -l` prints them
        if _has_no_host_name(fields):
            if not pinned:
                raise ValueError("a key or fingerprint without a host name before it")
            names = None
        else:
            names = fields.pop(0) if fields else ""
            _check_host_names(names)
        if not fields:
            raise ValueError("no key; expected: host key-type base64, or host SHA256:fingerprint")
        types, digest = _parse_key(fields)
        if types and types[0].endswith(CERTIFICATE_SUFFIX) and marker != REVOKED:
            raise ValueError(f"a certificate; list its authority instead, with {AUTHORITY}")
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


def _check_host_names(names: str) -> None:
    if names.startswith("|"):
        parts = names.split("|")[1:]
        if parts[0] != "1" or [len(_decode_base64(part)) for part in parts[1:]] != [20, 20]:  # salt, HMAC-SHA1
            raise ValueError("a hashed host name that is damaged or of an unknown kind")


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
        types = list(_CERTIFICATE_TYPES) if self.entries_for(host, port, AUTHORITY) else []
        types += [kind for entry in self.entries_for(host, port, "") for kind in entry.types]
        return tuple(dict.fromkeys(types))

    def entries_naming(self, name: str, marker: str) -> list[KnownHostsEntry]:
        """Return the lines with a marker that name a `host_pattern`."""
        return [entry for entry in self.entries if entry.marker == marker and entry.names_host(name)]

    def entries_for(self, host: str, port: int, marker: str) -> list[KnownHostsEntry]:
        """Return the lines for host and port, else for the host."""
        return self.entries_naming(host_pattern(host, port), marker) or self.entries_naming(host.lower(), marker)

    def no_entry_text(self, name: str) -> str:
        """Return a text for a `host_pattern` without a line."""
        if self.missing:
            return f"{self.source} does not exist"
        return f"no line of {self.source} names {name}" if self.entries else f"{self.source} holds no usable line"


_ENTRY_START: Final = r"(?=(?:@[a-z-]+[ \t]+)?(?:[^\s(]\S*[ \t]+)?(?:(?:ssh|ecdsa|sk)-\S+[ \t]+AAAA|SHA256:))"
_JOINED_ENTRIES: Final = re.compile(rf"((?:AAAA|SHA256:)\S+)([^\n]*?)[ \t]+{_ENTRY_START}")


def restore_line_ends(text: str) -> str:
    """Restore line ends replaced by a literal ``\\n`` or by blanks."""
    # Forms and environment variables turn line ends into blanks or into a literal backslash and n.
    return _JOINED_ENTRIES.sub(r"\1\2\n", re.sub(r"\\+r\\+n|\\+[rn]", "\n", text))


@contextmanager
def open_locked(path: str, timeout: float) -> Iterator[int]:
    """Open a file with an exclusive lock.

    A missing file is created with mode 0600.

    :param timeout: longest time in seconds to wait for the lock
    :raises TimeoutError: if another process holds the lock for longer
    :raises OSError: if the file cannot be opened
    """
    deadline = time.monotonic() + timeout
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError("another process holds the lock")
                time.sleep(0.01)
            # `ssh-keygen -R` replaces the file: if the locked file is not the current one any more, open it again.
            if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def append_line(descriptor: int, content: bytes, line: bytes) -> None:
    """Append a line to a file with the given content.

    If the disk is full, leave the file unchanged.
    """
    # The last line of a file edited by hand may lack its newline.
    remaining = line if not content or content.endswith(b"\n") else b"\n" + line
    try:
        while remaining:
            remaining = remaining[os.write(descriptor, remaining) :]
    except OSError:
        os.ftruncate(descriptor, len(content))
        raise
