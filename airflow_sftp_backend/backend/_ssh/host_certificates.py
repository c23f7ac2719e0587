"""Public keys of servers, and the certificates that vouch for them.

Keys are SSH wire-format blobs (RFC 4253 section 6.6, RFC 5656, RFC 8709; certificates: OpenSSH's PROTOCOL.certkeys).
Certificates are judged as OpenSSH's client does (sshconnect.c), except that a certificate without principals is good
for no host, and principals may be patterns; older releases take the former for every host and know no patterns.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import Final, Self

from airflow_sftp_backend.backend._patterns import name_matcher
from airflow_sftp_backend.backend._protocol.codec import PacketReader, ProtocolError

CERTIFICATE_SUFFIX: Final = "-cert-v01@openssh.com"
SHA256_PREFIX: Final = "SHA256:"
KEY_FIELDS: Final = {"ssh-rsa": 2, "ssh-dss": 4, "ssh-ed25519": 1} | {
    f"ecdsa-sha2-nistp{n}": 2 for n in (256, 384, 521)
}
"""Fields of a public key after its type; a certificate has the same after its nonce."""
KEY_TYPE: Final = re.compile(r"(?:ssh|ecdsa|sk)-[a-z0-9.@-]+")
_HOST_CERTIFICATE: Final = 2


def key_type(blob: bytes) -> str:
    """The type a public key blob begins with, as ``ssh-ed25519``. ValueError if it is no public key."""
    return _fields(blob)[0].decode("ascii")


def _fields(blob: bytes) -> list[bytes]:
    """The strings a plain key consists of (multiple precision integers are strings too); a certificate's type only."""
    cursor = PacketReader(memoryview(blob))
    try:
        fields = [bytes(cursor.view())]
        if not KEY_TYPE.fullmatch(fields[0].decode("ascii")):
            raise ValueError("not a public key")
        while cursor.remaining and not fields[0].endswith(CERTIFICATE_SUFFIX.encode()):
            fields.append(bytes(cursor.view()))
    except (ProtocolError, UnicodeDecodeError):
        raise ValueError("not a public key") from None
    kind, count = fields[0].decode(), len(fields) - 1
    if count != KEY_FIELDS.get(kind, count) or (not count and not cursor.remaining):
        raise ValueError("not a public key")
    return fields


def plain_key(blob: bytes) -> bytes:
    """The public key itself: the one inside a certificate, else the blob. ValueError if it is neither."""
    return HostCertificate.parse(blob).key if key_type(blob).endswith(CERTIFICATE_SUFFIX) else blob


def fingerprint(blob: bytes) -> str:
    """``SHA256:`` and the digest of the key, or of a certificate's, in unpadded base64. ValueError if it is neither."""
    return SHA256_PREFIX + base64.b64encode(hashlib.sha256(plain_key(blob)).digest()).decode().rstrip("=")


def matches_host(pattern: str, host: str) -> bool:
    """Return True if a host pattern matches a host: ``*`` and ``?`` stand for characters.

    :param pattern: a pattern of a known_hosts line, or a principal of a certificate
    :param host: host name, or ``[host]:port``
    """
    if not ("*" in pattern or "?" in pattern):  # nearly all lines of a long known_hosts file: compile nothing for them
        return pattern == host
    # sshd(8) knows no [...]: a bracket is part of the name.
    return name_matcher(pattern.replace("[", "[[]"))(host) is not None


@dataclass(frozen=True)
class HostCertificate:
    """What a certificate says (PROTOCOL.certkeys); whether it is true, `rejection_reason` finds out. Times are in
    seconds."""

    blob: bytes
    key: bytes
    certificate_type: int
    principals: tuple[str, ...]
    valid_after: int
    valid_before: int
    critical_options: bytes
    authority: bytes
    signature_type: str

    @classmethod
    def parse(cls, blob: bytes) -> Self:
        """ValueError if the blob is no certificate of a type known here."""
        cursor = PacketReader(memoryview(blob))
        try:
            plain = bytes(cursor.view()).decode("ascii").removesuffix(CERTIFICATE_SUFFIX)
            if plain not in KEY_FIELDS:
                raise ValueError("a certificate of an unknown type")
            cursor.view()  # nonce
            key = [plain.encode(), *(bytes(cursor.view()) for _ in range(KEY_FIELDS[plain]))]
            cursor.uint64()  # serial number
            certificate_type = cursor.uint32()
            cursor.view()  # key id
            names = PacketReader(cursor.view())
            principals = []
            while names.remaining:
                principals.append(names.text())
            valid_after, valid_before = cursor.uint64(), cursor.uint64()
            options = bytes(cursor.view())
            cursor.view()  # extensions
            cursor.view()  # reserved
            authority, signature = bytes(cursor.view()), PacketReader(cursor.view())
            signature_type = signature.text()
        except (ProtocolError, UnicodeDecodeError):
            raise ValueError("not a certificate") from None
        if key_type(authority).endswith(CERTIFICATE_SUFFIX):
            raise ValueError("a certificate signed with another certificate")
        key_blob = b"".join(len(field).to_bytes(4, "big") + field for field in key)
        return cls(
            blob,
            key_blob,
            certificate_type,
            tuple(principals),
            valid_after,
            valid_before,
            options,
            authority,
            signature_type,
        )

    def rejection_reason(self, host: str, now: float) -> str | None:
        """Why it does not prove that its key is ``host``'s at ``now`` (seconds since 1970); None where it does."""
        if self.certificate_type != _HOST_CERTIFICATE:
            return "it is not a host certificate"
        if now < self.valid_after:
            return "it is not valid yet"
        if now >= self.valid_before:
            return "it has expired"
        if not any(matches_host(name.lower(), host.lower()) for name in self.principals):
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
