"""Private keys: repaired, parsed, handed to paramiko. The text of a key is in no message and in no exception chain.

Formats: OpenSSH (PROTOCOL.key), PKCS#1, SEC1 and PKCS#8 (RFC 8017, 5915, 5958), encrypted or not, in PEM (RFC 7468, RFC
1421 headers) or without its frame; PKCS#12 (RFC 7292) in base64, as Key Vault hands out certificates. Types: RSA, ECDSA
on the three NIST curves, Ed25519.
"""

from __future__ import annotations

import base64
import binascii
import io
import logging
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import paramiko
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.dsa import DSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import pkcs12

from ._codec import Cursor, ProtocolError
from ._config import BackendConfig, Secret
from ._errors import AuthenticationFailed
from ._hostkeys import CERTIFICATE, key_type, plain_key

log = logging.getLogger(__name__)

_LONGEST: Final = 1 << 20
"""Bytes of a file that are read at most: no key is as long."""
_OPENSSH_MAGIC: Final = b"openssh-key-v1\0"
_PKCS12: Final = "PKCS12"
"""Label of a frame made here for PKCS#12, which has none of its own."""
_PRIVATE: Final = ("OPENSSH PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "PRIVATE KEY")
_LABELS: Final = (
    *_PRIVATE, "DSA PRIVATE KEY", "EC PARAMETERS", "CERTIFICATE", "TRUSTED CERTIFICATE", "CERTIFICATE REQUEST",
    "PUBLIC KEY", "RSA PUBLIC KEY", "EC PUBLIC KEY", "SSH2 PUBLIC KEY", "SSH2 ENCRYPTED PRIVATE KEY", _PKCS12,
)  # fmt: skip
_SQUASHED: Final = {label.replace(" ", ""): label for label in _LABELS}

_INVISIBLE: Final = re.compile("[\0\u200b-\u200d\u2060\ufeff]")
_AROUND: Final = " \t\n\"'`"
_BEGIN: Final = re.compile(r"-\s*BEGIN")
_BLOCK: Final = re.compile(r"-{4,5}\s*BEGIN\s*([A-Z0-9 \n]+?)\s*-{4,5}(.*?)-{4,5}\s*END\s*\1\s*-{4,5}", re.DOTALL)
_ENCRYPTION: Final = re.compile(
    r"\s*Proc-Type:\s*4\s*,\s*ENCRYPTED\s*DEK-Info:\s*([A-Z0-9-]+?)\s*,\s*"
    r"((?<=DES-EDE3-CBC,)[0-9A-F]{16}|(?<=DES-CBC,)[0-9A-F]{16}|[0-9A-F]{32})",
    re.IGNORECASE,
)
_PASSWORD_BASED: Final = re.compile(rb"\x30.{1,3}?\x06.\x2a\x86\x48\x86\xf7\x0d\x01[\x05\x0c]", re.DOTALL)
"""An AlgorithmIdentifier of PKCS#5 or PKCS#12 encryption."""
_DER_LABELS: Final = {
    b"\x02\x01\x00\x30": "PRIVATE KEY",
    b"\x02\x01\x01\x30": "PRIVATE KEY",
    b"\x02\x01\x00\x02": "RSA PRIVATE KEY",
    b"\x02\x01\x01\x04": "EC PRIVATE KEY",
    b"\x02\x01\x03\x30": _PKCS12,
}
"""By version number and the tag after it."""
_CERTIFICATE_LINE: Final = re.compile(rf"((?:ssh|ecdsa|sk)-[a-z0-9@.-]*?{re.escape(CERTIFICATE)})\s+([A-Za-z0-9+/=]+)")
_PUBLIC_LINE: Final = re.compile(r"(?:(?:ssh|ecdsa|sk)-[a-z0-9@.-]+\s+)?AAAA[A-Z]")

_CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")
_SUPPORTED: Final = "there are RSA, ECDSA (nistp256, nistp384, nistp521) and Ed25519"
_UNSUPPORTED: Final = f"is of a type, or encrypted in a way, that is not supported; {_SUPPORTED}"
_DSA: Final = "is a DSA key, which SSH servers no longer take; make a new one with `ssh-keygen -t ed25519`"
_DAMAGED: Final = "is damaged or cut off; copy it again from its file"
_LOCKED: Final = "is encrypted, and no passphrase was given; set the passphrase"
_WRONG: Final = "cannot be opened with the passphrase given: it is wrong, or the key is damaged"

PrivateKey = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey


class _Unusable(Exception):
    """Why a key cannot be used, in words that show nothing of it: "is a public key; ..."."""


# -- repair -----------------------------------------------------------------------------------------------------------


def repair_pem(text: str) -> str:
    """A private key as it was before forms, variables and vaults had their way with it.

    Puts right: line ends turned to blanks, to a literal ``\\n`` or removed; CRLF; base64 of the whole; a missing
    frame; quotes, blanks and a byte order mark around it; a missing final newline. Keeps all framed blocks, and
    OpenSSH certificate lines after them. Text without any block is returned as it is.
    """
    unwrapped = _unwrapped(text)
    frames = [_framed(match[1], match[2]) for match in _BLOCK.finditer(unwrapped)]
    lines = [f"{match[1]} {match[2]}\n" for match in _CERTIFICATE_LINE.finditer(_BLOCK.sub("\n", unwrapped))]
    return "".join(frames + lines) if frames else text


def _unwrapped(text: str) -> str:
    """The text without what was put around it, its line ends as ``\\n``."""
    for _ in range(4):  # base64 may be wrapped in base64
        text = re.sub(r"\\+r\\+n|\\+[nr]|\r\n?", "\n", _INVISIBLE.sub("", text)).strip(_AROUND)
        unpacked = None if _BEGIN.search(text) else _unpacked(text)
        if unpacked is None:
            break
        text = unpacked
    return text


def _framed(label: str, body: str) -> str:
    """One block in its canonical form, 64 characters a line (RFC 7468 section 2)."""
    squashed = "".join(label.split())
    label = _SQUASHED.get(squashed, " ".join(label.split()))
    headers = ""
    if match := _ENCRYPTION.match(body):
        headers = f"Proc-Type: 4,ENCRYPTED\nDEK-Info: {match[1].upper()},{match[2].upper()}\n\n"
        body = body[match.end() :]
    elif ":" in body:  # other headers are of no use to anybody here
        body = re.sub(r"(?m)^[^\n:]*:[^\n]*$", "", body)
    body = "".join(body.split())
    lines = "".join(f"{body[at : at + 64]}\n" for at in range(0, len(body), 64))
    return f"-----BEGIN {label}-----\n{headers}{lines}-----END {label}-----\n"


def _unpacked(text: str) -> str | None:
    """The text that ``text`` is the base64 of, with a frame if it is a bare key; None if it is no base64 of text."""
    data = _decoded(text)
    unpacked = _as_text(data) if data else None
    return unpacked if unpacked and (unpacked.isascii() or _BEGIN.search(unpacked)) else None


def _decoded(text: str) -> bytes:
    """The bytes of base64 in either alphabet, with or without padding and blanks; none if it is damaged."""
    packed = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (ValueError, binascii.Error):
        return b""


def _as_text(data: bytes) -> str | None:
    """A key's bytes as text: binary ones in a frame, others decoded. None if they are neither."""
    if label := _label_of(data):
        return _framed(label, base64.b64encode(data).decode())
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-16-le" if data[1:2] == b"\0" else "utf-8"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def _label_of(data: bytes) -> str | None:
    """The frame that bytes of a private key belong in, by their first fields (DER: ITU-T X.690)."""
    if data.startswith(_OPENSSH_MAGIC):
        return "OPENSSH PRIVATE KEY"
    if len(data) < 32 or data[0] != 0x30:
        return None
    body = data[2 + (data[1] & 0x7F if data[1] & 0x80 else 0) :]
    if _PASSWORD_BASED.match(body):
        return "ENCRYPTED PRIVATE KEY"
    return _DER_LABELS.get(body[:4])


# -- parsing ----------------------------------------------------------------------------------------------------------


def load_private_key(
    source: str | bytes | Secret | os.PathLike[str], from_file: bool = False, passphrase: str | Secret | None = None
) -> paramiko.PKey:
    """The key in a text or, with ``from_file`` or a path object, in a file; ``passphrase`` is ignored if it has none.

    A certificate counts with its key: an OpenSSH certificate line after the key's text, or the file ``<file>-cert.pub``
    where it belongs to the key. Raises AuthenticationFailed, whose text says what is wrong and what to do.
    """
    if isinstance(source, Secret):
        source = source.reveal()
    secret = passphrase.reveal() if isinstance(passphrase, Secret) else passphrase or ""
    problem, path = "", None
    name = "the private key"
    if from_file or isinstance(source, os.PathLike):
        path = Path(os.path.expanduser(os.fsdecode(source)))
        name = f"the private key file {str(path)!r}"
    try:
        text = _content(path) if path is not None else _text_of(source)
        key, certificate = _parsed(text, secret.encode("utf-8", "surrogatepass"))
        found = _to_paramiko(key)
        if certificate is not None:
            _certify(found, certificate)
        elif path is not None:
            _certify_from_file(found, Path(f"{path}-cert.pub"))
        return found
    except _Unusable as error:
        problem = str(error)
    # Raised outside of the handler: the chain of exceptions may quote the key.
    raise AuthenticationFailed(f"{name} {problem}")


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST)
    except FileNotFoundError:
        raise _Unusable("does not exist") from None
    except PermissionError:
        raise _Unusable(f"may not be read by user id {os.geteuid()}; check its owner and mode") from None
    except IsADirectoryError:
        raise _Unusable("is a folder; name the file in it") from None
    except OSError as error:
        raise _Unusable(f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise _Unusable("has a NUL in its name") from None
    return _text_of(data)


def _text_of(source: str | bytes | os.PathLike[str]) -> str:
    if isinstance(source, str):
        return source
    if isinstance(source, (bytes, bytearray)):
        text = _as_text(bytes(source))
        if text is None and source:
            raise _Unusable("is not a private key: it is neither text nor a known binary form")
        return text or ""
    raise TypeError(f"a private key is a str, bytes or Secret, not {type(source).__name__}")


def _parsed(text: str, passphrase: bytes) -> tuple[object, bytes | None]:
    """The key of a text, and the certificate that follows it."""
    text = repair_pem(text)
    found = {match[1]: match for match in reversed(list(_BLOCK.finditer(text)))}
    label = next((label for label in (*_PRIVATE, _PKCS12) if label in found), None)
    if label is None:
        raise _Unusable(_what_else(_unwrapped(text), set(found)))
    block = found[label][0].encode("ascii", "replace")
    line = _CERTIFICATE_LINE.search(_BLOCK.sub("\n", text))
    certificate = _decoded(line[2]) if line else None
    if label == "OPENSSH PRIVATE KEY":
        cipher = _openssh_cipher(_decoded(found[label][2]))
        return _open(serialization.load_ssh_private_key, block, passphrase, encrypted=cipher != b"none"), certificate
    if label == _PKCS12:
        return _open_pkcs12(_decoded(found[label][2]), passphrase), certificate
    encrypted = label == "ENCRYPTED PRIVATE KEY" or b"Proc-Type" in block
    return _open(serialization.load_pem_private_key, block, passphrase, encrypted=encrypted), certificate


def _what_else(text: str, labels: set[str]) -> str:
    """What a text without a private key is instead, and what to do."""
    if not text:
        return "is empty"
    if text.startswith("PuTTY-User-Key-File-"):
        return (
            "is a PuTTY key (.ppk); convert it with `puttygen KEY.ppk -O private-openssh -o KEY`, or in PuTTYgen with"
            " Conversions, Export OpenSSH key"
        )
    if "DSA PRIVATE KEY" in labels:
        return _DSA
    if "SSH2 ENCRYPTED PRIVATE KEY" in labels:
        return "has the format of ssh.com; convert it with `ssh-keygen -i -f KEY`"
    if _CERTIFICATE_LINE.match(text) or "CERTIFICATE" in labels:
        return "is a certificate only; the private key that belongs to it is needed, before it or in its place"
    if _PUBLIC_LINE.match(text) or any("PUBLIC KEY" in label for label in labels):
        return "is a public key; the private one is needed: the file of the same name without .pub"
    if _BEGIN.search(text):
        return "is cut off or mixed up: no block with a BEGIN line and its END line holds a private key"
    if text.startswith(("/", "~", "./", "../")) and "\n" not in text:
        return "is not a private key; if it is the path of one, give it as key_file, or with from_file=True"
    return "is not a private key; one begins with -----BEGIN OPENSSH PRIVATE KEY----- or the like"


def _openssh_cipher(data: bytes) -> bytes:
    """What encrypts a key of OpenSSH's format: ``none`` if nothing does. Its type is in the clear, and refused here."""
    cursor = Cursor(memoryview(data.removeprefix(_OPENSSH_MAGIC)))
    try:
        cipher = bytes(cursor.view())
        cursor.view(), cursor.view(), cursor.uint32()  # key derivation, its options, count of keys
        kind = bytes(Cursor(cursor.view()).view())
    except ProtocolError:
        raise _Unusable(_DAMAGED) from None
    if kind.startswith(b"sk-"):
        raise _Unusable(
            "belongs to a hardware token (sk-...), which has to be touched for each login; make one without with"
            " `ssh-keygen -t ed25519`"
        )
    if kind == b"ssh-dss":
        raise _Unusable(_DSA)
    return cipher


def _open(load: Callable[[bytes, bytes | None], object], block: bytes, passphrase: bytes, *, encrypted: bool) -> object:
    if encrypted and not passphrase:
        raise _Unusable(_LOCKED)
    try:
        return load(block, passphrase if encrypted else None)
    except UnsupportedAlgorithm:
        raise _Unusable(_UNSUPPORTED) from None
    except (ValueError, TypeError, InvalidTag, NotImplementedError):
        raise _Unusable(_WRONG if encrypted else _DAMAGED) from None


def _open_pkcs12(data: bytes, passphrase: bytes) -> object:
    """A vault's export has no passphrase, spelled in one of two ways; the one given may be meant for something else."""
    for password in (passphrase or None, None, b""):
        try:
            key = pkcs12.load_pkcs12(data, password).key
        except ValueError:
            continue
        if key is None:
            raise _Unusable("is a PKCS#12 file without a private key; export it with its key")
        return key
    raise _Unusable(_WRONG if passphrase else _LOCKED)


# -- paramiko ---------------------------------------------------------------------------------------------------------


def _to_paramiko(key: object) -> paramiko.PKey:
    if isinstance(key, RSAPrivateKey):
        return paramiko.RSAKey(key=key)
    if isinstance(key, EllipticCurvePrivateKey):
        if key.curve.name not in _CURVES:
            raise _Unusable(f"is on the elliptic curve {key.curve.name}, which SSH does not know; {_SUPPORTED}")
        return paramiko.ECDSAKey(vals=(key, key.public_key()))
    if isinstance(key, Ed25519PrivateKey):
        return paramiko.Ed25519Key.from_private_key(io.StringIO(_openssh_text(key)))
    raise _Unusable(_DSA if isinstance(key, DSAPrivateKey) else _UNSUPPORTED)


def _openssh_text(key: PrivateKey) -> str:
    form = serialization.PrivateFormat.OpenSSH
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def _certify(key: paramiko.PKey, certificate: bytes) -> None:
    """Makes ``key`` log in with the certificate."""
    try:
        fits = key_type(certificate).endswith(CERTIFICATE) and plain_key(certificate) == key.asbytes()
    except ValueError:
        raise _Unusable("comes with a certificate that is damaged or cut off") from None
    if not fits:
        raise _Unusable("comes with a certificate of another key")
    key.load_certificate(paramiko.Message(certificate))


def _certify_from_file(key: paramiko.PKey, path: Path) -> None:
    try:
        line = _CERTIFICATE_LINE.match(path.read_text("utf-8", "replace"))
        _certify(key, _decoded(line[2]) if line else b"")
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s cannot be read and does not count: %s", path, error.strerror)
    except _Unusable as unusable:
        log.warning("%s does not count: the key %s", path, unusable)


def config_key(config: BackendConfig) -> paramiko.PKey | None:
    """The private key a backend is to log in with; None if it has none. AuthenticationFailed if it cannot be used."""
    if isinstance(config.pkey, paramiko.PKey):
        return config.pkey
    source = config.pkey if isinstance(config.pkey, str | bytes | Secret) else config.private_key or config.key_file
    if not source:
        return None
    from_file = source is config.key_file
    problem = ""
    try:
        return load_private_key(source, from_file=from_file, passphrase=config.passphrase)
    except AuthenticationFailed as error:
        problem = error.message
    raise AuthenticationFailed(problem, server=config.address)


def check_pkey(value: object, passphrase: str | Secret | None = None) -> paramiko.PKey:
    """The key that is, or is in the text of, ``value``. ValueError if there is none or it cannot sign."""
    if isinstance(value, paramiko.PKey):
        if isinstance(value, paramiko.RSAKey | paramiko.ECDSAKey | paramiko.Ed25519Key) and not value.can_sign():
            raise ValueError("pkey is a public key; logging in needs the private one")
        return value
    if not isinstance(value, str | bytes | Secret):
        raise ValueError(f"pkey must be a paramiko.PKey or the text of a private key, not {type(value).__name__}")
    problem = ""
    try:
        return load_private_key(value, passphrase=passphrase)
    except AuthenticationFailed as error:
        problem = error.message
    raise ValueError(f"pkey: {problem}")


def export(pkey: paramiko.PKey) -> Secret:
    """The key as unencrypted OpenSSH text, its certificate after it; `load_private_key` makes the same key of it.

    TypeError for a key that cannot leave where it is, as one of an SSH agent.
    """
    key = _to_cryptography(pkey)
    if key is None:
        raise TypeError(f"a {type(pkey).__name__} cannot be copied; give the key as text or as key_file instead")
    text = _openssh_text(key)
    blob = getattr(pkey, "public_blob", None)
    if blob is not None and blob.key_type.endswith(CERTIFICATE):
        text += f"{blob.key_type} {base64.b64encode(blob.key_blob).decode()}\n"
    return Secret(text)


def _to_cryptography(pkey: paramiko.PKey) -> PrivateKey | None:
    """Ed25519Key shows its private part in a private attribute only (paramiko 5.0 and 5.1, ed25519key.py)."""
    if isinstance(pkey, paramiko.RSAKey) and isinstance(pkey.key, RSAPrivateKey):
        return pkey.key
    if isinstance(pkey, paramiko.ECDSAKey) and isinstance(pkey.signing_key, EllipticCurvePrivateKey):
        return pkey.signing_key
    if isinstance(pkey, paramiko.Ed25519Key) and (seed := getattr(pkey, "_signing_key", None)) is not None:
        return Ed25519PrivateKey.from_private_bytes(bytes(seed))
    return None


def portable(config: BackendConfig) -> BackendConfig:
    """The same configuration as plain values, which can be pickled. TypeError if its key cannot be copied."""
    if config.jump is not None:
        config = replace(config, jump=portable(config.jump))
    if not isinstance(config.pkey, paramiko.PKey):
        return config
    return replace(config, pkey=None, private_key=export(config.pkey), passphrase=None)
