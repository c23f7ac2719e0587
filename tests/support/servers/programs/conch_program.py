"""Serve SFTP with Twisted Conch until killed.

Run with ``python conch_program.py PORT ROOT HOST_KEY AUTHORIZED_KEYS``.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.conch.checkers import InMemorySSHKeyDB, SSHPublicKeyChecker
from twisted.conch.ssh import factory
from twisted.conch.ssh.keys import Key
from twisted.conch.unix import UnixConchUser
from twisted.cred.portal import IRealm, Portal
from twisted.internet import reactor
from twisted.python.filepath import FilePath
from zope.interface import implementer


class User(UnixConchUser):
    """The user this process runs as, at home in ``root``."""

    def __init__(self, root: str) -> None:
        super().__init__(pwd.getpwuid(os.geteuid()).pw_name)
        self._root = root

    def getHomeDir(self) -> FilePath[str]:  # noqa: N802 - Twisted's name
        return FilePath(self._root)

    def _runAsUser(self, f: Any, *args: Any, **kw: Any) -> Any:  # noqa: N802 - Twisted's name
        """Call ``f`` without a change of the user.

        The change needs root.
        """
        result = None
        for function, arguments, *keywords in [(f, args, kw)] if callable(f) else f:
            result = function(*arguments, **(keywords[0] if keywords else {}))
        return result


@implementer(IRealm)
class Realm:
    """Makes each login a `User`, and says so."""

    def __init__(self, root: str) -> None:
        self._root = root

    def requestAvatar(  # noqa: N802 - Twisted's name
        self, username: bytes, mind: object, *interfaces: Any
    ) -> tuple[Any, User, Callable[[], None]]:
        user = User(self._root)
        sys.stdout.write("accepted a login\n")
        sys.stdout.flush()
        return interfaces[0], user, user.logout


def main(port: str, root: str, host_key: str, authorized_keys: str) -> None:
    """Serves until the process is killed."""
    served = factory.SSHFactory()
    key = Key.fromFile(host_key)
    served.publicKeys = {key.sshType(): key.public()}
    served.privateKeys = {key.sshType(): key}
    known = InMemorySSHKeyDB({b"tester": [Key.fromString(Path(authorized_keys).read_bytes())]})
    served.portal = Portal(Realm(root), [SSHPublicKeyChecker(known)])
    reactor.listenTCP(int(port), served, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
