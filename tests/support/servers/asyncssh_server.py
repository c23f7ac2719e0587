"""Run asyncssh's server in a thread, complete or with fewer extensions."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import weakref
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar, cast

import asyncssh
from asyncssh.packet import SSHPacket
from asyncssh.public_key import SSHKey
from asyncssh.sftp import SFTPServerHandler
from asyncssh.stream import SSHReader, SSHServerStreamSession, SSHWriter

from tests.support.servers.server import PATIENCE, Server

asyncssh.set_log_level(logging.WARNING)  # what it says of each connection is for those who look into asyncssh

Channel = asyncssh.SSHServerChannel[bytes]


class Files(asyncssh.SFTPServer):
    """Serve the real file system below ``root``."""

    def __init__(self, server: AsyncsshServer, channel: asyncssh.SSHServerChannel[bytes]) -> None:
        super().__init__(channel)
        self.server = server

    def map_path(self, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self.server.root), path)


class Packets(SFTPServerHandler):
    """Count requests, and offer the configured extensions."""

    def __init__(
        self, server: AsyncsshServer, files: Files, reader: SSHReader[bytes], writer: SSHWriter[bytes]
    ) -> None:
        super().__init__(files, reader, writer, sftp_version=3)
        self.server = server
        offered = server.offered
        self._extensions = [(n, v) for n, v in self._extensions if offered is None or n in offered]
        names = {name for name, _ in self._extensions}
        self._packet_handlers = {k: h for k, h in self._packet_handlers.items() if isinstance(k, int) or k in names}

    async def _process_packet(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        kind = _REQUESTS.get(pkttype, str(pkttype))
        if kind == "extended":
            body = packet.get_remaining_payload()
            kind = SSHPacket(body).get_string().decode()
        self.server.requests[kind] += 1
        if await self.on_request(kind):
            await super()._process_packet(pkttype, pktid, packet)

    async def on_request(self, kind: str) -> bool:
        """Called before each request is served; False leaves it without a reply."""
        return True

    def hang_up(self) -> None:
        """Cuts the connection without a goodbye."""
        self.server.cut(self._files().connection)

    def _files(self) -> Files:
        assert isinstance(self._server, Files)
        return self._server


_REQUESTS = {
    3: "open", 4: "close", 5: "read", 6: "write", 7: "lstat", 8: "fstat", 9: "setstat", 10: "fsetstat", 11: "opendir",
    12: "readdir", 13: "remove", 14: "mkdir", 15: "rmdir", 16: "realpath", 17: "stat", 18: "rename", 19: "readlink",
    20: "symlink", 200: "extended",
}  # fmt: skip


class Session(SSHServerStreamSession[bytes]):
    """One channel: serves SFTP with the server's own packet and file classes."""

    def __init__(self, server: AsyncsshServer) -> None:
        super().__init__(None, lambda channel: server.files(server, cast(Channel, channel)))
        self._server = server

    def subsystem_requested(self, subsystem: str) -> bool:
        return subsystem == "sftp" and self._server.has_sftp

    def session_started(self) -> None:
        assert self._chan is not None
        assert self._conn is not None
        files = self._init_sftp_server()
        assert isinstance(files, Files)
        reader, writer = SSHReader[bytes](self, self._chan), SSHWriter[bytes](self, self._chan)
        self._conn.create_task(self._server.packets(self._server, files, reader, writer).run())

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.open_channels[self._conn] -= 1
        super().connection_lost(exc)


class Login(asyncssh.SSHServer):
    """Accept the server's user with password or client key only."""

    def __init__(self, server: AsyncsshServer) -> None:
        self.server = server
        self.connection: asyncssh.SSHServerConnection

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.connection = conn
        self.server.accepted(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.gone(self.connection)

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: SSHKey) -> bool:
        return username == self.server.username and key.public_data == self.server.login_key.public_data

    def password_auth_supported(self) -> bool:
        return self.server.password is not None

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == (self.server.username, self.server.password)

    def auth_completed(self) -> None:
        self.server.note_login()

    def session_requested(self) -> Any:  # asyncssh names the many types it takes in a private alias only
        channels = self.server.open_channels
        if channels[self.connection] >= self.server.max_channels:
            return False
        channels[self.connection] += 1
        return Session(self.server)


class AsyncsshServer(Server):
    """asyncssh's server in a thread of its own.

    ``listen_options`` go to ``asyncssh.listen``: algorithms, ``server_version`` (the banner after ``SSH-2.0-``),
    ``server_host_certs`` and so on.

    A subclass lies by its own ``files``, ``packets`` or ``login`` class; ``offered`` are the extensions it has
    (None: all of asyncssh's).
    """

    kind = "asyncssh"
    files: ClassVar[type[Files]] = Files
    packets: ClassVar[type[Packets]] = Packets
    login: ClassVar[type[Login]] = Login
    offered: ClassVar[frozenset[bytes] | None] = None
    max_channels: ClassVar[int] = 100
    has_sftp: ClassVar[bool] = True
    username = "tester"
    password = "correct horse battery staple"

    def __init__(self, *, host_keys: Sequence[str] = ("ssh-ed25519",), **listen_options: Any) -> None:
        super().__init__(host_keys=host_keys)
        self.requests: Counter[str] = Counter()
        """SFTP requests received, by kind: "open", "write", "posix-rename@openssh.com" and so on."""
        self.open_channels: Counter[object] = Counter()
        self._listen_options = listen_options
        self._logins = self._connections = 0
        self._live: set[asyncssh.SSHServerConnection] = set()
        self._transports: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()
        self._thread: threading.Thread | None = None

    def logins(self) -> int:
        return self._logins

    def connections(self) -> int:
        return self._connections

    def kill_sessions(self) -> None:
        self._call(self._cut_all())

    def note_login(self) -> None:
        """Counts a login."""
        self._logins += 1

    def accepted(self, connection: asyncssh.SSHServerConnection) -> None:
        """Counts a connection and remembers it."""
        self._connections += 1
        self._live.add(connection)
        assert connection._transport is not None
        self._transports.add(connection._transport)

    def gone(self, connection: asyncssh.SSHServerConnection) -> None:
        """Forgets a connection."""
        self._live.discard(connection)
        self.open_channels.pop(connection, None)

    def cut(self, connection: asyncssh.SSHServerConnection) -> None:
        """End a connection without a message.

        Buffered data is lost.
        """
        connection.abort()

    async def _cut_all(self) -> None:
        live = list(self._live)
        for connection in live:
            self.cut(connection)
        for connection in live:
            await connection.wait_closed()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def _start(self) -> None:
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name=f"sftp-server-{self.kind}", daemon=True)
        self._thread.start()
        if not self._started.wait(PATIENCE):
            raise TimeoutError("the asyncssh server does not start")
        if self._failure is not None:
            raise self._failure

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits in _start
            self._failure = error
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        with socket.create_server((self.host, 0)) as listening:
            self.port = listening.getsockname()[1]
            acceptor = await asyncssh.listen(
                sock=listening,
                server_factory=lambda: self.login(self),
                server_host_keys=self.host_keys,
                **self._listen_options,
            )
            self._started.set()
            await self._ended.wait()
            self._loop.remove_reader(listening)
            await _rounds()  # until a connection accepted just now is known here
            acceptor.close()
            await self._cut_all()
            for transport in self._transports:  # also those whose client is gone and has left bytes unread
                transport.abort()
            await _rounds()  # until they have closed their sockets

    def _stop(self) -> None:
        if self._thread is None:
            return
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join(PATIENCE)
            assert not self._thread.is_alive(), "the asyncssh server does not stop"
        self._thread = None


async def _rounds() -> None:
    """Run the loop until connections are opened and closed.

    asyncio takes fewer rounds for this.
    """
    for _ in range(10):
        await asyncio.sleep(0)


_ALL = frozenset(name for name, _ in SFTPServerHandler._extensions)


class WithoutPosixRename(AsyncsshServer):
    """Has plain rename only, which refuses an existing target."""

    kind = "no-posix-rename"
    offered = _ALL - {b"posix-rename@openssh.com"}


class WithoutExtensions(AsyncsshServer):
    """Serve SFTP version 3 without any extension."""

    kind = "no-extensions"
    offered = frozenset()


class OneChannel(AsyncsshServer):
    """Refuses a second channel on a connection."""

    kind = "one-channel"
    max_channels = 1
