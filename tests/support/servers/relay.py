"""Relay TCP to a server, and cut connections on request."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Literal

from tests.support.servers.server import HOST, PATIENCE, free_port

_PIECE = 1 << 16
Sender = Literal["client", "server"]


class Relay:
    """Relay connections to ``target_port`` until a cut.

    ``connections`` counts accepted connections. ``port`` is where clients connect.
    """

    def __init__(self, target_port: int) -> None:
        self.connections = 0
        self._target_port = target_port
        self._lock = threading.Lock()
        self._live: dict[threading.Thread, tuple[socket.socket, socket.socket]] = {}
        self._remaining: int | None = None
        for _ in range(5):  # another process may take the free port first
            self.port = free_port()
            with contextlib.suppress(OSError):
                self._listening = socket.create_server((HOST, self.port))
                break
        else:
            raise OSError("no free port for the relay")
        self._acceptor = threading.Thread(target=self._accept, name="relay", daemon=True)
        self._acceptor.start()

    def cut_all(self) -> None:
        """Close every connection on both sides.

        Returns when none is left. New connections are accepted.
        """
        with self._lock:
            live = dict(self._live)
        for pair in live.values():
            shut(pair)
        for thread in live:
            thread.join(PATIENCE)

    def cut_after(self, count: int) -> None:
        """Cut all connections once after ``count`` more bytes.

        Bytes from clients count.
        """
        self._remaining = count

    def close(self) -> None:
        """Stops to listen and cuts every connection."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(PATIENCE)
        self._listening.close()
        self.cut_all()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:  # closed
                return
            self.connections += 1
            try:
                server = socket.create_connection((HOST, self._target_port), PATIENCE)
            except OSError:  # the server is down: so is the relay, for this client
                client.close()
                continue
            server.settimeout(None)
            for side in (client, server):
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(client, server), name="relay-connection", daemon=True)
            with self._lock:
                self._live[thread] = (client, server)
            thread.start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        answers = threading.Thread(target=self._answer, args=(server, client), name="relay-answers", daemon=True)
        answers.start()
        with contextlib.suppress(OSError):
            while piece := client.recv(_PIECE):
                passed, goes_on = self.passed_on(piece, "client")
                server.sendall(passed)
                if not goes_on:
                    shut((client, server))
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)
        answers.join(PATIENCE)
        for side in (client, server):
            side.close()
        with self._lock:
            del self._live[threading.current_thread()]

    def passed_on(self, piece: bytes, sender: Sender) -> tuple[bytes, bool]:
        """Return the bytes to relay, and whether the connection continues."""
        if sender == "server" or self._remaining is None:
            return piece, True
        passed = piece[: self._remaining]
        self._remaining -= len(piece)
        if self._remaining > 0:
            return passed, True
        self._remaining = None
        return passed, False

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        """Relay the server's data to its end, then close the client."""
        with contextlib.suppress(OSError):
            while piece := server.recv(_PIECE):
                passed, goes_on = self.passed_on(piece, "server")
                client.sendall(passed)
                if not goes_on:
                    shut((client, server))
        shut((client,))


def shut(sides: tuple[socket.socket, ...]) -> None:
    """Ends both directions of sockets."""
    for side in sides:
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)


class CountingRelay(Relay):
    """Counts the bytes that the server has sent: ``received``."""

    received = 0

    def passed_on(self, piece: bytes, sender: Sender) -> tuple[bytes, bool]:
        """See `Relay.passed_on`."""
        if sender == "server":
            self.received += len(piece)
        return super().passed_on(piece, sender)
