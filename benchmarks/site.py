"""Start OpenSSH's sshd on a loopback port.

Its files are in memory if the machine allows.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.support.servers import OpenSSHServer

CIPHER = "aes128-gcm@openssh.com"
"""Usual cipher of every client, so that clients are compared and not ciphers."""
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a file system in memory, where there is one
_ROOM = 6 << 30  # bytes wanted free


@dataclass(frozen=True)
class Site:
    """Hold a server and the way to reach it.

    ``here`` and ``there`` are the directories of the client and of the server. A client sees ``there`` as
    ``remote_top``, unless that is None.
    """

    host: str
    port: int
    username: str
    client_key: Path
    known_hosts: Path
    here: Path
    there: Path
    cipher: str = CIPHER
    remote_top: Path | None = None

    def remote(self, path: Path) -> Path:
        """Return the path for clients of a path below ``there``."""
        return path if self.remote_top is None else self.remote_top / path.relative_to(self.there)

    def to_json(self) -> str:
        """Return the site as JSON, for another process."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Site:
        """Return the site that `to_json` wrote."""
        values = json.loads(text)
        for name in ("client_key", "known_hosts", "here", "there", "remote_top"):
            if values[name] is not None:
                values[name] = Path(values[name])
        return cls(**values)

    @property
    def ssh_options(self) -> list[str]:
        """Options for OpenSSH's own clients."""
        return [
            *("-i", str(self.client_key)),
            *("-o", f"UserKnownHostsFile={self.known_hosts}"),
            *("-o", "GlobalKnownHostsFile=none"),
            *("-o", "StrictHostKeyChecking=yes"),
            *("-o", "BatchMode=yes"),
            *("-o", "IdentitiesOnly=yes"),
            *("-o", f"Ciphers={self.cipher}"),
        ]


@contextmanager
def site() -> Iterator[Site]:
    """A running server; everything is removed at the end."""
    in_memory = os.access(_SHARED_MEMORY, os.W_OK) and shutil.disk_usage(_SHARED_MEMORY).free > _ROOM
    with (
        tempfile.TemporaryDirectory(prefix="sftp-bench-", dir=_SHARED_MEMORY if in_memory else None) as folder,
        OpenSSHServer() as server,
    ):
        top = Path(folder)
        known_hosts = top / "known_hosts"
        known_hosts.write_text(server.known_hosts + "\n")
        (top / "here").mkdir()
        (top / "there").mkdir()
        yield Site(
            server.host, server.port, server.username, server.client_key, known_hosts, top / "here", top / "there"
        )


def site_at(near: Site, port: int) -> Site:
    """The site by another port."""
    known_hosts = near.known_hosts.with_name(f"known_hosts-{port}")
    known_hosts.write_text(near.known_hosts.read_text().replace(f"]:{near.port}", f"]:{port}"))
    return replace(near, port=port, known_hosts=known_hosts)
