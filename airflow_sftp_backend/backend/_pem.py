"""Repair the text of private keys.

Line ends and BEGIN and END lines are restored, and base64 around a key is decoded.

Formats: PEM (RFC 7468, RFC 1421 headers) with or without line ends, base64 of PEM, and base64 of binary keys (DER:
ITU-T X.690; OpenSSH: PROTOCOL.key; PKCS#12: RFC 7292). This module neither decrypts nor parses keys.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

OPENSSH_MAGIC: Final = b"openssh-key-v1\0"
PKCS12: Final = "PKCS12"
"""Label for PKCS#12, which has no label of its own."""
PRIVATE: Final = ("OPENSSH PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "PRIVATE KEY")
_LABELS: Final = (
    *PRIVATE, "DSA PRIVATE KEY", "EC PARAMETERS", "CERTIFICATE", "TRUSTED CERTIFICATE", "CERTIFICATE REQUEST",
    "PUBLIC KEY", "RSA PUBLIC KEY", "EC PUBLIC KEY", "SSH2 PUBLIC KEY", "SSH2 ENCRYPTED PRIVATE KEY", PKCS12,
)  # fmt: skip
_LABEL_BY_COMPACT_LABEL: Final = {label.replace(" ", ""): label for label in _LABELS}

_INVISIBLE: Final = re.compile("[\0\u200b-\u200d\u2060\ufeff]")
_SURROUNDING_CHARACTERS: Final = " \t\n\"'`"
_MAX_LAYERS: Final = 4
"""Most texts to inspect in nested base64, so that hostile input cannot cause unbounded work."""
BEGIN: Final = re.compile(r"-\s*BEGIN")
BLOCK: Final = re.compile(r"-{4,5}\s*BEGIN\s*([A-Z0-9 \n]+?)\s*-{4,5}(.*?)-{4,5}\s*END\s*\1\s*-{4,5}", re.DOTALL)
_FRAME: Final = re.compile(r"-{1,5}\s*(?:BEGIN|END)[A-Z0-9 ]*-{0,5}")
_PUTTY: Final = re.compile(r"\APuTTY-User-Key-File-.*\nPrivate-Lines:[^\n]*\n(.*)", re.DOTALL)
_BASE64: Final = re.compile(r"[A-Za-z0-9+/=]+")
_ENCRYPTION: Final = re.compile(
    r"\s*Proc-Type:\s*4\s*,\s*ENCRYPTED\s*DEK-Info:\s*([A-Z0-9-]+?)\s*,\s*"
    r"((?<=DES-EDE3-CBC,)[0-9A-F]{16}|(?<=DES-CBC,)[0-9A-F]{16}|[0-9A-F]{32})",
    re.IGNORECASE,
)
_PASSWORD_BASED: Final = re.compile(rb"\x30.{1,3}?\x06.\x2a\x86\x48\x86\xf7\x0d\x01[\x05\x0c]", re.DOTALL)
"""Start of an AlgorithmIdentifier of PKCS#5 or PKCS#12 encryption."""
_DER_LABELS: Final = {
    b"\x02\x01\x00\x30": "PRIVATE KEY",
    b"\x02\x01\x01\x30": "PRIVATE KEY",
    b"\x02\x01\x00\x02": "RSA PRIVATE KEY",
    b"\x02\x01\x01\x04": "EC PRIVATE KEY",
    b"\x02\x01\x03\x30": PKCS12,
}
"""Labels by version number and the tag after the number."""
CERTIFICATE_LINE: Final = re.compile(r"((?:ssh|ecdsa|sk)-[a-z0-9@.-]*?-cert-v01@openssh\.com)\s+([A-Za-z0-9+/=]+)")


def repair_pem(text: str) -> str:
    """Restore a private key changed by forms, variables or vaults.

    Repaired are: line ends replaced by blanks or a literal ``\\n``, or removed; CRLF; base64 of the whole; missing
    BEGIN and END lines; quotes, blanks and a byte order mark around the key; a missing final newline.

    :param text: the key
    :returns: all PEM blocks of the text, and the OpenSSH certificate lines after them; a text without a block unchanged
    """
    plain = strip_wrapping(text)
    frames = [_add_frame(match[1], match[2]) for match in BLOCK.finditer(plain)]
    lines = [f"{match[1]} {match[2]}\n" for match in CERTIFICATE_LINE.finditer(BLOCK.sub("\n", plain))]
    return "".join(frames + lines) if frames else text


def strip_wrapping(text: str) -> str:
    """Decode base64 around a key, and remove blanks and quotes.

    Line ends become ``\n``.
    """
    return _decode_layers(text)[-1]


def _decode_layers(text: str) -> list[str]:
    """Return the text, the text decoded from its base64, and so on.

    Line ends become ``\n``.
    """
    layers: list[str] = []
    unpacked: str | None = text
    while unpacked is not None and len(layers) < _MAX_LAYERS:
        text = re.sub(r"\\+r\\+n|\\+[nr]|\r\n?", "\n", _INVISIBLE.sub("", unpacked)).strip(_SURROUNDING_CHARACTERS)
        layers.append(text)
        unpacked = None if BEGIN.search(text) else _decode_base64_text(text)
    return layers


def key_bodies(text: str) -> list[list[str]]:
    """Find the base64 texts that hold private keys.

    These are the bodies of the keys, and the base64 around them.

    :param text: private key in any form supported by `repair_pem`, PuTTY key, or text with keys
    :returns: for each base64 text its lines, unchanged; empty if there is no private key
    """
    *encoded_layers, key_text = _decode_layers(text)
    if BEGIN.search(key_text):
        private_bodies = [_base64_lines(match[2]) for match in BLOCK.finditer(key_text) if _is_private(match[1])]
        if not BLOCK.search(key_text):  # cut off, or damaged BEGIN and END lines: any line may belong to the key
            private_bodies = [_base64_lines(_FRAME.sub("\n", key_text))]
    elif putty := _PUTTY.search(key_text):
        private_bodies = [_base64_lines(putty[1])]
    else:
        return []
    lines_by_body: dict[str, list[str]] = {}
    for lines in [*(layer.split() for layer in encoded_layers), *private_bodies]:
        lines_by_body.setdefault("".join(lines), lines)
    return [lines for lines in lines_by_body.values() if lines]


def remove_keys(text: str) -> str:
    """Remove private keys, certificates and base64 around them from a text.

    :returns: the rest, stripped; empty for a key in any form supported by `repair_pem`
    """
    remaining = CERTIFICATE_LINE.sub("", BLOCK.sub("", strip_wrapping(text)))
    return remaining.strip()


def _is_private(label: str) -> bool:
    compact_label = "".join(label.split())
    return "PRIVATEKEY" in compact_label or compact_label == PKCS12


def _base64_lines(body: str) -> list[str]:
    """Return the base64 lines of a block, without headers."""
    return [word for word in _split_headers(body)[1].split() if _BASE64.fullmatch(word)]


def _add_frame(label: str, body: str) -> str:
    """Return a PEM block with lines of 64 characters.

    The source is RFC 7468, section 2.
    """
    compact_label = "".join(label.split())
    label = _LABEL_BY_COMPACT_LABEL.get(compact_label, " ".join(label.split()))
    headers, body = _split_headers(body)
    body = "".join(body.split())
    lines = "".join(f"{body[start : start + 64]}\n" for start in range(0, len(body), 64))
    return f"-----BEGIN {label}-----\n{headers}{lines}-----END {label}-----\n"


def _split_headers(body: str) -> tuple[str, str]:
    """Split the body of a block into encryption headers and base64."""
    if match := _ENCRYPTION.match(body):
        headers = f"Proc-Type: 4,ENCRYPTED\nDEK-Info: {match[1].upper()},{match[2].upper()}\n\n"
        return headers, body[match.end() :]
    if ":" in body:  # other headers have no meaning for a key
        body = re.sub(r"(?m)^[^\n:]*:[^\n]*$", "", body)
    return "", body


def _decode_base64_text(text: str) -> str | None:
    """Decode base64 of a text or a binary key.

    A binary key becomes a PEM block. Returns None for other content.
    """
    data = decode_base64(text)
    unpacked = as_text(data) if data else None
    return unpacked if unpacked and (unpacked.isascii() or BEGIN.search(unpacked)) else None


def decode_base64(text: str) -> bytes:
    """Decode base64 in either alphabet; empty if the text is invalid.

    Padding is optional, and blanks are ignored.
    """
    packed = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (ValueError, binascii.Error):
        return b""


def as_text(data: bytes) -> str | None:
    """Convert the content of a key file to text.

    A binary key becomes a PEM block. Returns None for other content.
    """
    if label := _label_of(data):
        return _add_frame(label, base64.b64encode(data).decode())
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-16-le" if data[1:2] == b"\0" else "utf-8"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def _label_of(data: bytes) -> str | None:
    """Return the PEM label of a binary private key, else None.

    The first fields decide (DER: ITU-T X.690).
    """
    if data.startswith(OPENSSH_MAGIC):
        return "OPENSSH PRIVATE KEY"
    if len(data) < 32 or data[0] != 0x30:
        return None
    body = data[2 + (data[1] & 0x7F if data[1] & 0x80 else 0) :]
    if _PASSWORD_BASED.match(body):
        return "ENCRYPTED PRIVATE KEY"
    return _DER_LABELS.get(body[:4])
