"""Load private keys for paramiko.

No message and no exception chain contains the text of a key.

Formats: OpenSSH (PROTOCOL.key), PKCS#1, SEC1 and PKCS#8 (RFC 8017, 5915, 5958), encrypted or not, in PEM (RFC 7468, RFC
1421 headers) or as base64 without BEGIN and END lines; PKCS#12 (RFC 7292) in base64, as exported by Key Vault.
Types: RSA, ECDSA on the three NIST curves, Ed25519.
"""

from __future__ import annotations

import base64
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

from airflow_sftp_backend.backend._pem import (
    BEGIN,
    BLOCK,
    CERTIFICATE_LINE,
    OPENSSH_MAGIC,
    PKCS12,
    PRIVATE,
    as_text,
    decode_base64,
    repair_pem,
    strip_wrapping,
)
from airflow_sftp_backend.backend._protocol.codec import PacketReader, ProtocolError
from airflow_sftp_backend.backend.config import BackendConfig, Secret
from airflow_sftp_backend.backend.errors import AuthenticationFailed

from ._paramiko_compat import certificate_of, openssh_text, to_cryptography, to_paramiko
from .host_certificates import CERTIFICATE_SUFFIX, key_type, plain_key

log = logging.getLogger(__name__)

_MAX_FILE_BYTES: Final = 1 << 20
"""Most bytes to read from a key file. Keys are shorter."""
_PUBLIC_LINE: Final = re.compile(r"(?:(?:ssh|ecdsa|sk)-[a-z0-9@.-]+\s+)?AAAA[A-Z]")

_CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")
_SUPPORTED: Final = "supported are RSA, ECDSA (nistp256, nistp384, nistp521) and Ed25519"
_UNSUPPORTED_TYPE: Final = f"has an unsupported type or encryption; {_SUPPORTED}"
_DSA_KEY: Final = "is a DSA key, refused by SSH servers; create another key with `ssh-keygen -t ed25519`"
_DAMAGED: Final = "is damaged or cut off; copy the key again from its file"
_IS_ENCRYPTED: Final = "is encrypted; set the passphrase"
_CANNOT_DECRYPT: Final = "cannot be decrypted: the passphrase is wrong, or the key is damaged"


class _UnusableKey(Exception):
    """Report an unusable key, without its content.

    The text continues a name: "is a public key; ...".
    """


# -- parsing ----------------------------------------------------------------------------------------------------------


def load_private_key(
    source: str | bytes | Secret | os.PathLike[str], from_file: bool = False, passphrase: str | Secret | None = None
) -> paramiko.PKey:
    """Load a private key, with its certificate if it has one.

    The certificate is an OpenSSH certificate line after the key's text, or the file ``<file>-cert.pub`` if it belongs
    to the key.

    :param source: text of the key, or path of its file
    :param from_file: ``source`` is a path, also if it is a str or bytes
    :param passphrase: passphrase of the key; ignored if the key is not encrypted
    :returns: the key
    :raises AuthenticationFailed: with cause and remedy, if the key cannot be used
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
        text = _read_file(path) if path is not None else _text_of(source)
        key, certificate = _parse(text, secret.encode("utf-8", "surrogatepass"))
        pkey = _to_pkey(key)
        if certificate is not None:
            _attach_certificate(pkey, certificate)
        elif path is not None:
            _attach_certificate_file(pkey, Path(f"{path}-cert.pub"))
        return pkey
    except _UnusableKey as error:
        problem = str(error)
    # Raised outside the handler and after clearing the variables: a traceback would show exceptions and variables that
    # contain the key.
    source = secret = text = ""
    passphrase = None
    raise AuthenticationFailed(f"{name} {problem}")


def _read_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES)
    except FileNotFoundError:
        raise _UnusableKey(
            "does not exist on this machine; copy it to each machine that connects, or set private_key to its text"
        ) from None
    except PermissionError:
        raise _UnusableKey(f"may not be read by user id {os.geteuid()}; check its owner and mode") from None
    except IsADirectoryError:
        raise _UnusableKey("is a directory; set the path of the file") from None
    except OSError as error:
        raise _UnusableKey(f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise _UnusableKey("has a NUL character in its name") from None
    return _text_of(data)


def _text_of(source: str | bytes | os.PathLike[str]) -> str:
    if isinstance(source, str):
        return source
    if isinstance(source, (bytes, bytearray)):
        text = as_text(bytes(source))
        if text is None and source:
            raise _UnusableKey("is not a private key: neither text nor a known binary format")
        return text or ""
    raise TypeError(f"a private key must be a str, bytes or Secret, not {type(source).__name__}")


def _parse(text: str, passphrase: bytes) -> tuple[object, bytes | None]:
    """Parse the private key in a text, and its certificate."""
    text = repair_pem(text)
    blocks = {match[1]: match for match in reversed(list(BLOCK.finditer(text)))}  # the first of each label
    label = next((label for label in (*PRIVATE, PKCS12) if label in blocks), None)
    if label is None:
        raise _UnusableKey(_describe_other_content(strip_wrapping(text), set(blocks)))
    block = blocks[label][0].encode("ascii", "replace")
    line = CERTIFICATE_LINE.search(BLOCK.sub("\n", text))
    certificate = decode_base64(line[2]) if line else None
    if label == "OPENSSH PRIVATE KEY":
        cipher = _openssh_cipher(decode_base64(blocks[label][2]))
        return _load(serialization.load_ssh_private_key, block, passphrase, encrypted=cipher != b"none"), certificate
    if label == PKCS12:
        return _load_pkcs12(decode_base64(blocks[label][2]), passphrase), certificate
    encrypted = label == "ENCRYPTED PRIVATE KEY" or b"Proc-Type" in block
    return _load(serialization.load_pem_private_key, block, passphrase, encrypted=encrypted), certificate


def _describe_other_content(text: str, labels: set[str]) -> str:
    """Describe a text without a private key, with a hint."""
    if not text:
        return "is empty"
    if text.startswith("PuTTY-User-Key-File-"):
        return (
            "is a PuTTY key (.ppk); convert it with `puttygen KEY.ppk -O private-openssh -o KEY`, or in PuTTYgen with"
            " Conversions, Export OpenSSH key"
        )
    if "DSA PRIVATE KEY" in labels:
        return _DSA_KEY
    if "SSH2 ENCRYPTED PRIVATE KEY" in labels:
        return "has the format of ssh.com; convert it with `ssh-keygen -i -f KEY`"
    if CERTIFICATE_LINE.match(text) or "CERTIFICATE" in labels:
        return "is a certificate only; set its private key, alone or before the certificate"
    if _PUBLIC_LINE.match(text) or any("PUBLIC KEY" in label for label in labels):
        return "is a public key; set the private key: the file of the same name without .pub"
    if BEGIN.search(text):
        return "is cut off or mixed up: no pair of BEGIN and END lines encloses a private key"
    if text.startswith(("/", "~", "./", "../")) and "\n" not in text:
        return "is not a private key; for the path of a key use key_file, or from_file=True"
    return "is not a private key; expected a text such as -----BEGIN OPENSSH PRIVATE KEY-----"


def _openssh_cipher(data: bytes) -> bytes:
    """Return the cipher of an OpenSSH key; ``none`` without encryption.

    Refuses unsupported types.
    """
    reader = PacketReader(memoryview(data.removeprefix(OPENSSH_MAGIC)))
    try:
        cipher = bytes(reader.view())
        reader.view(), reader.view(), reader.uint32()  # key derivation, its options, count of keys
        public_key_type = bytes(PacketReader(reader.view()).view())
    except ProtocolError:
        raise _UnusableKey(_DAMAGED) from None
    if public_key_type.startswith(b"sk-"):
        raise _UnusableKey(
            "belongs to a hardware token (sk-...), which must be touched for each login; create another key with"
            " `ssh-keygen -t ed25519`"
        )
    if public_key_type == b"ssh-dss":
        raise _UnusableKey(_DSA_KEY)
    return cipher


def _load(
    loader: Callable[[bytes, bytes | None], object], block: bytes, passphrase: bytes, *, encrypted: bool
) -> object:
    if encrypted and not passphrase:
        raise _UnusableKey(_IS_ENCRYPTED)
    try:
        return loader(block, passphrase if encrypted else None)
    except UnsupportedAlgorithm:
        raise _UnusableKey(_UNSUPPORTED_TYPE) from None
    except (ValueError, TypeError, InvalidTag, NotImplementedError):
        raise _UnusableKey(_CANNOT_DECRYPT if encrypted else _DAMAGED) from None


def _load_pkcs12(data: bytes, passphrase: bytes) -> object:
    """Return the private key of a PKCS#12 file."""
    # Key Vault exports without a password, which is None or empty in the file. The configured passphrase may belong to
    # something else.
    for password in (passphrase or None, None, b""):
        try:
            key = pkcs12.load_pkcs12(data, password).key
        except ValueError:
            continue
        if key is None:
            raise _UnusableKey("is a PKCS#12 file without a private key; export it with its key")
        return key
    raise _UnusableKey(_CANNOT_DECRYPT if passphrase else _IS_ENCRYPTED)


# -- paramiko ---------------------------------------------------------------------------------------------------------


def _to_pkey(key: object) -> paramiko.PKey:
    if not isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey):
        raise _UnusableKey(_DSA_KEY if isinstance(key, DSAPrivateKey) else _UNSUPPORTED_TYPE)
    if isinstance(key, EllipticCurvePrivateKey) and key.curve.name not in _CURVES:
        raise _UnusableKey(f"is on the elliptic curve {key.curve.name}, not supported by SSH; {_SUPPORTED}")
    return to_paramiko(key)


def _attach_certificate(key: paramiko.PKey, certificate: bytes) -> None:
    """Attach a certificate to its key for the login."""
    try:
        matches = key_type(certificate).endswith(CERTIFICATE_SUFFIX) and plain_key(certificate) == key.asbytes()
    except ValueError:
        raise _UnusableKey("has a certificate that is damaged or cut off") from None
    if not matches:
        raise _UnusableKey("has a certificate of another key")
    key.load_certificate(paramiko.Message(certificate))


def _attach_certificate_file(key: paramiko.PKey, path: Path) -> None:
    try:
        line = CERTIFICATE_LINE.match(path.read_text("utf-8", "replace"))
        _attach_certificate(key, decode_base64(line[2]) if line else b"")
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("ignoring %s: cannot be read: %s", path, error.strerror)
    except _UnusableKey as unusable:
        log.warning("ignoring %s: the key %s", path, unusable)


def config_key(config: BackendConfig) -> paramiko.PKey | None:
    """Load the private key of a configuration; None if it has none.

    :raises AuthenticationFailed: if the key cannot be used
    """
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


def load_pkey_argument(value: object, passphrase: str | Secret | None = None) -> paramiko.PKey:
    """Load the argument ``pkey``, a key or the text of a key.

    :param value: the argument
    :param passphrase: passphrase of the text
    :raises ValueError: if there is no key, or the key cannot sign
    """
    if isinstance(value, paramiko.PKey):
        if isinstance(value, paramiko.RSAKey | paramiko.ECDSAKey | paramiko.Ed25519Key) and not value.can_sign():
            raise ValueError("pkey is a public key; expected the private key")
        return value
    if not isinstance(value, str | bytes | Secret):
        raise ValueError(f"pkey must be a paramiko.PKey or the text of a private key, not {type(value).__name__}")
    problem = ""
    try:
        return load_private_key(value, passphrase=passphrase)
    except AuthenticationFailed as error:
        problem = error.message
    value = passphrase = None  # a traceback with local variables would show them
    raise ValueError(f"pkey: {problem}")


def export_private_key(pkey: paramiko.PKey) -> Secret:
    """Write a key and its certificate as unencrypted OpenSSH text.

    :raises TypeError: if the private part is not accessible, as with keys of an SSH agent
    """
    key = to_cryptography(pkey)
    if key is None:
        raise TypeError(f"a {type(pkey).__name__} cannot be copied; set the key as text or as key_file instead")
    text = openssh_text(key)
    certificate = certificate_of(pkey)
    if certificate is not None and certificate[0].endswith(CERTIFICATE_SUFFIX):
        text += f"{certificate[0]} {base64.b64encode(certificate[1]).decode()}\n"
    return Secret(text)


def picklable_config(config: BackendConfig) -> BackendConfig:
    """Return the configuration with keys as text, for pickling.

    :raises TypeError: if a key cannot be copied
    """
    if config.jump is not None:
        config = replace(config, jump=picklable_config(config.jump))
    if not isinstance(config.pkey, paramiko.PKey):
        return config
    return replace(config, pkey=None, private_key=export_private_key(config.pkey), passphrase=None)
