"""Describe a connection, or an attempt to connect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ConnectionInfo:
    """Properties of a connection or of a failed attempt.

    Unknown values are blank.

    :ivar server_version: identification of the server, such as ``SSH-2.0-OpenSSH_9.2``
    :ivar key_exchange: key exchange algorithm, such as ``curve25519-sha256@libssh.org``
    :ivar host_key_type: type of the host key, such as ``ssh-ed25519``
    :ivar host_key_fingerprint: ``SHA256:`` and base64
    :ivar host_key_line: known_hosts line for the host key
    :ivar trust_reason: reason why the host key is trusted
    :ivar mac: blank if the cipher authenticates by itself
    :ivar strict_key_exchange: True if the countermeasure to Terrapin (CVE-2023-48795) is in effect
    :ivar login_methods: authentication methods of the server, if it has listed them
    :ivar login_refused: refused credentials, such as ``the password``
    :ivar login_accepted: accepted credentials
    :ivar proposed: proposed algorithms by the field names of `HostAlgorithms`
    :ivar incompatible: True if the attempt failed because there is no algorithm in common
    :ivar jump: properties of the connection to the jump host
    """

    username: str
    server_version: str
    key_exchange: str
    host_key_type: str
    host_key_fingerprint: str
    host_key_line: str
    trust_reason: str
    cipher: str
    mac: str
    compression: str
    strict_key_exchange: bool
    login_methods: tuple[str, ...]
    login_refused: tuple[str, ...]
    login_accepted: tuple[str, ...]
    logged_in: bool
    proposed: Mapping[str, tuple[str, ...]]
    incompatible: bool
    jump: ConnectionInfo | None
