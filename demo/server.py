"""Run the partner's SFTP server, and answer orders with receipts.

The server listens on a loopback port.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

HOST = "127.0.0.1"
USER = "airflow"
_PATIENCE = 30.0

logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each client that leaves first


@dataclass
class Partner:
    """Hold address, host key, login and files of the server.

    The files are below ``root``.
    """

    root: Path
    port: int = 0
    host_key: str = ""
    fingerprint: str = ""
    client_key: str = ""
    logins: int = 0
    received: dict[str, str] = field(default_factory=dict)
    """Name -> SHA-256 of each order, as it lay in the outbox."""


class _Login(asyncssh.SSHServer):
    def __init__(self, partner: Partner, key: asyncssh.SSHKey) -> None:
        self._partner = partner
        self._key = key

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username == USER and key.public_data == self._key.public_data

    def auth_completed(self) -> None:
        self._partner.logins += 1


@contextmanager
def partner(root: Path) -> Iterator[Partner]:
    """Run a server with new host and login keys.

    It is stopped at the end of the block.
    """
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    client_key = asyncssh.generate_private_key("ssh-ed25519")
    there = Partner(root)
    there.host_key = host_key.export_public_key().decode().strip()
    there.fingerprint = host_key.get_fingerprint()
    there.client_key = client_key.export_private_key().decode()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="partner", daemon=True)
    thread.start()

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            HOST,
            0,
            server_host_keys=[host_key],
            server_factory=lambda: _Login(there, client_key),
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=os.fsencode(root)),
        )

    async def close(acceptor: asyncssh.SSHAcceptor) -> None:
        acceptor.close()
        await acceptor.wait_closed()

    acceptor = asyncio.run_coroutine_threadsafe(listen(), loop).result(_PATIENCE)
    there.port = acceptor.get_port()
    try:
        yield there
    finally:
        asyncio.run_coroutine_threadsafe(close(acceptor), loop).result(_PATIENCE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_PATIENCE)
        loop.close()


def answer(there: Partner, orders: set[str], receipt: bytes, stop: threading.Event) -> None:
    """Wait for all orders, and put a receipt into the inbox.

    The receipt follows after a few seconds.
    """
    outbox, inbox = there.root / "outbox", there.root / "inbox"
    while not stop.is_set():
        if orders <= {path.name for path in outbox.glob("*")}:
            break
        time.sleep(0.05)
    there.received = {path.name: sha256(path) for path in outbox.glob("*")}
    if stop.wait(3):
        return
    inbox.mkdir(exist_ok=True)
    unfinished = inbox / ".receipt-0001.csv.tmp"
    unfinished.write_bytes(receipt)
    unfinished.rename(inbox / "receipt-0001.csv")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
