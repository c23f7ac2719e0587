"""Host keys and host certificates, the same in every test."""

from __future__ import annotations

import base64
from functools import cache
from typing import Any

import asyncssh

NOW = 1_800_000_000.0


HOST, PORT = "sftp.example.com", 2222


NAME = f"[{HOST}]:{PORT}"


def new_key(kind: str = "ssh-ed25519", number: int = 0) -> asyncssh.SSHKey:
    """The ``number``-th key of that type, the same for all tests."""
    return _made(kind, number)


@cache
def _made(kind: str, number: int) -> asyncssh.SSHKey:
    sizes = {"key_size": 2048} if kind == "ssh-rsa" else {}
    return asyncssh.generate_private_key(kind, f"{number}", **sizes)


def blob(kind: str = "ssh-ed25519", number: int = 0) -> bytes:
    """It in wire format."""
    data: bytes = new_key(kind, number).public_data
    return data


def text(kind: str = "ssh-ed25519", number: int = 0) -> str:
    """Type and base64 of it, as in known_hosts."""
    return f"{kind} {base64.b64encode(blob(kind, number)).decode()}"


def certificate(*principals: str, kind: str = "ssh-ed25519", signer: str = "ssh-ed25519", **arguments: Any) -> bytes:
    """Create a host certificate by authority 9 of type ``signer``."""
    made = new_key(signer, 9).generate_host_certificate(new_key(kind), "id", principals=principals, **arguments)
    data: bytes = made.public_data
    return data


AUTHORITY = f"@cert-authority *.example.com {text(number=9)}"
