"""Parse public keys of servers, and validate host certificates.

Keys are blobs in SSH wire format (RFC 4253 section 6.6, RFC 5656, RFC 8709; certificates: OpenSSH's PROTOCOL.certkeys).
The rules for certificates are those of a recent OpenSSH client (sshconnect.c): a certificate without principals is
valid for no host, and principals may be patterns. In older releases of OpenSSH, a certificate without principals is
valid for every host, and principals are not patterns.
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
"""Number of fields of a public key after its type. A certificate has the same fields after its nonce."""
KEY_TYPE: Final = re.compile(r"(?:ssh|ecdsa|sk)-[a-z0-9.@-]+")


def key_type(blob: bytes) -> str:
    """Return the type of a public key, such as ``ssh-ed25519``.

    :raises ValueError: if the blob is not a public key
    """
    return _fields(blob)[0].decode("ascii")


def _fields(blob: bytes) -> list[bytes]:
    """Return the fields of a key, or a certificate's type only."""
    # Multiple precision integers are read as strings: both start with their length (RFC 4251 section 5).
    reader = PacketReader(memoryview(blob))
    try:
        fields = [bytes(reader.view())]
        if not KEY_TYPE.fullmatch(fields[0].decode("ascii")):
            raise ValueError("not a public key")
        while reader.remaining and not fields[0].endswith(CERTIFICATE_SUFFIX.encode()):
            fields.append(bytes(reader.view()))
    except (ProtocolError, UnicodeDecodeError):
        raise ValueError("not a public key") from None
    kind, count = fields[0].decode(), len(fields) - 1
    is_empty = not count and not reader.remaining
    if is_empty or count != KEY_FIELDS.get(kind, count):
        raise ValueError("not a public key")
    return fields


def plain_key(blob: bytes) -> bytes:
    """Return the key inside a certificate, or a plain key unchanged.

    :raises ValueError: if the blob is neither
    """
    return HostCertificate.parse(blob).key if key_type(blob).endswith(CERTIFICATE_SUFFIX) else blob


def fingerprint(blob: bytes) -> str:
    """Return ``SHA256:`` and the digest of the plain key in unpadded base64.

    :raises ValueError: if the blob is neither a public key nor a certificate
    """
    return SHA256_PREFIX + base64.b64encode(hashlib.sha256(plain_key(blob)).digest()).decode().rstrip("=")


def matches_host(pattern: str, host: str) -> bool:
    """Return whether a pattern with ``*`` and ``?`` matches a host.

    :param pattern: a pattern of a known_hosts line, or a principal of a certificate
    :param host: host name, or ``[host]:port``
    """
    if not ("*" in pattern or "?" in pattern):  # most lines of a long known_hosts file need no matcher
        return pattern == host
    # Unlike in a glob, a bracket is part of the name (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT).
    return name_matcher(pattern.replace("[", "[[]"))(host) is not None


@dataclass(frozen=True)
class HostCertificate:
    """Fields of a certificate (PROTOCOL.certkeys), not validated.

    Times are in seconds since 1970.
    """

    # Not cryptography's SSHCertificate: that verifies the signature, but publishes neither the algorithm of the
    # signature, which is needed to refuse SHA-1, nor the bytes of the key as sent.

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
        """Parse a certificate.

        :raises ValueError: if the blob is not a certificate of a supported type
        """
        reader = PacketReader(memoryview(blob))
        try:
            plain = bytes(reader.view()).decode("ascii").removesuffix(CERTIFICATE_SUFFIX)
            if plain not in KEY_FIELDS:
                raise ValueError("a certificate of an unknown type")
            reader.view()  # nonce
            key = [plain.encode(), *(bytes(reader.view()) for _ in range(KEY_FIELDS[plain]))]
            reader.uint64()  # serial number
            certificate_type = reader.uint32()
            reader.view()  # key id
            names = PacketReader(reader.view())
            principals = []
            while names.remaining:
                principals.append(names.text())
            valid_after, valid_before = reader.uint64(), reader.uint64()
            options = bytes(reader.view())
            reader.view()  # extensions
            reader.view()  # reserved
            authority, signature = bytes(reader.view()), PacketReader(reader.view())
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

    def has_valid_signature(self) -> bool:
        """Tell whether the authority signed the certificate."""
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
