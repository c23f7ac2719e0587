"""Support SHA-1 ``ssh-rsa`` for old servers (RFC 4253 section 6.6)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from typing import Any

import paramiko

from ._paramiko_compat import SHA1_RSA, Sha1RSAKey, Sha1Transport


class LegacyTransport(Sha1Transport):
    """Transport with ``ssh-rsa`` if the server supports nothing stronger."""

    _refused_stronger = False

    def order_login_algorithms(self, names: Sequence[str]) -> Sequence[str]:
        """Put ``ssh-rsa`` first if the server would refuse other RSA algorithms.

        :param names: the enabled algorithms, ``ssh-rsa`` last
        :returns: the same names, best first
        """
        # A server lists its algorithms in ``server-sig-algs`` (RFC 8308 section 3.1). A server without the list is
        # older than SHA-2 signatures, unless its host key has just made such a signature. The list may contain refused
        # algorithms: OpenSSH 9.2 ignores its PubkeyAcceptedAlgorithms in the list.
        takes_stronger = bool(self.server_login_algorithms) or self.host_key_algorithm.startswith("rsa-sha2-")
        if SHA1_RSA not in names or (takes_stronger and not self._refused_stronger):
            return names
        return (SHA1_RSA, *(name for name in names if name != SHA1_RSA))

    def auth_publickey(self, username: str, key: paramiko.PKey, event: threading.Event | None = None) -> list[str]:
        """Log in with a key.

        If the server refuses an RSA key's SHA-2 signature, sign again with SHA-1.

        See `paramiko.Transport.auth_publickey`.
        """
        if not isinstance(key, paramiko.RSAKey):
            return super().auth_publickey(username, key, event)
        twin = Sha1RSAKey.of(key)
        try:
            return super().auth_publickey(username, twin, event)
        except paramiko.BadAuthenticationType:
            raise
        except paramiko.AuthenticationException:
            named = self.server_login_algorithms
            usable = [name for name in self.login_algorithms if "rsa" in name and (not named or name in named)]
            if usable[:1] == [SHA1_RSA] or SHA1_RSA not in usable or not self.is_active():
                raise
        self._refused_stronger = True
        return super().auth_publickey(username, twin, event)


def legacy_transport(sock: socket.socket, **options: Any) -> LegacyTransport:
    """Create a transport for ``SSHClient.connect(transport_factory=...)``.

    :param sock: the connected socket
    :param options: arguments of ``paramiko.Transport``
    """
    return LegacyTransport(sock, **options)
