"""SHA-1 ``ssh-rsa`` (RFC 4253 section 6.6) for one connection, to servers that know nothing better.

paramiko 5.0 took these signatures out. What puts them back overrides, in subclasses only, so that every other
connection of the process still refuses them (read in paramiko 5.0.1 and 5.1.0: transport.py, auth_handler.py and
rsakey.py):

* ``Transport._preferred_keys`` and ``_preferred_pubkeys``, the algorithms offered, in order: ``ssh-rsa`` comes last;
* ``Transport._key_info``, the class that verifies host key signatures of an algorithm;
* ``Transport.preferred_pubkeys``, from which ``AuthHandler._finalize_pubkey_algorithm`` takes an RSA key's algorithm;
* ``RSAKey.HASHES``, the hash of each algorithm, in verifying and in signing.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from typing import Any, Final

import paramiko
from cryptography.hazmat.primitives.hashes import SHA1

from ._hostkeys import CERTIFICATE

SHA1_RSA: Final = "ssh-rsa"
_BASE: Final = vars(paramiko.Transport)


class Sha1RSAKey(paramiko.RSAKey):
    """An RSA key that verifies and makes SHA-1 signatures beside SHA-2 ones."""

    # The stub says Final; paramiko reads it through self.
    HASHES = {  # type: ignore[misc] # noqa: RUF012
        **paramiko.RSAKey.HASHES,
        SHA1_RSA: SHA1,
        f"{SHA1_RSA}{CERTIFICATE}": SHA1,
    }

    @classmethod
    def of(cls, key: paramiko.RSAKey) -> Sha1RSAKey:
        """The same key, with its certificate if it has one."""
        twin = cls(key=key.key)
        twin.public_blob = key.public_blob
        return twin


class LegacyTransport(paramiko.Transport):
    """A transport that takes ``ssh-rsa`` where the server has nothing stronger, for its host key and for the login."""

    _preferred_keys = (*_BASE["_preferred_keys"], SHA1_RSA)
    _preferred_pubkeys = (*_BASE["_preferred_pubkeys"], SHA1_RSA)
    _key_info = {  # noqa: RUF012
        **_BASE["_key_info"],
        SHA1_RSA: Sha1RSAKey,
        f"{SHA1_RSA}{CERTIFICATE}": Sha1RSAKey,
    }

    _refused_stronger = False

    @property
    def preferred_pubkeys(self) -> Sequence[str]:
        """Login algorithms, best first; ``ssh-rsa`` before the other RSA ones where those would be refused.

        A server names those it takes (``server-sig-algs``, RFC 8308 section 3.1). One that does not is older than SHA-2
        signatures, unless it has just made one with its host key. One that does may still refuse them: OpenSSH 9.2
        names all it knows, whatever its PubkeyAcceptedAlgorithms.
        """
        names = super().preferred_pubkeys
        takes_stronger = bool(self._named_by_server()) or (self.host_key_type or "").startswith("rsa-sha2-")
        if SHA1_RSA not in names or (takes_stronger and not self._refused_stronger):
            return names
        return (SHA1_RSA, *(name for name in names if name != SHA1_RSA))

    def _named_by_server(self) -> list[str]:
        extensions: dict[str, bytes] = self.server_extensions  # type: ignore[attr-defined] # the stub leaves it out
        return [name for name in extensions.get("server-sig-algs", b"").decode("ascii", "replace").split(",") if name]

    def auth_publickey(self, username: str, key: paramiko.PKey, event: threading.Event | None = None) -> list[str]:
        """As in paramiko; an RSA key signs once more, with SHA-1, if the server refuses its stronger signature."""
        if not isinstance(key, paramiko.RSAKey):
            return super().auth_publickey(username, key, event)
        twin = Sha1RSAKey.of(key)
        try:
            return super().auth_publickey(username, twin, event)
        except paramiko.BadAuthenticationType:
            raise
        except paramiko.AuthenticationException:
            named = self._named_by_server()
            usable = [name for name in self.preferred_pubkeys if "rsa" in name and (not named or name in named)]
            if usable[:1] == [SHA1_RSA] or SHA1_RSA not in usable or not self.is_active():
                raise
        self._refused_stronger = True
        return super().auth_publickey(username, twin, event)


def legacy_transport(sock: socket.socket, **options: Any) -> paramiko.Transport:
    """A transport for ``SSHClient.connect(transport_factory=...)``; ``options`` are those of ``paramiko.Transport``."""
    return LegacyTransport(sock, **options)
