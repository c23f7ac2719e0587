"""TCP listeners that do not speak SSH."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self

from tests.support.servers.server import HOST, PATIENCE


class Listener:
    """Send ``greeting`` to each client, and nothing more.

    With ``hangs_up``, the connection is closed then.
    """

    host = HOST

    def __init__(self, greeting: bytes = b"", *, hangs_up: bool = False) -> None:
        self._greeting = greeting
        self._hangs_up = hangs_up
        self._held: list[socket.socket] = []
        self.connections = 0
        """TCP connections accepted so far."""

    def __enter__(self) -> Self:
        self._socket = socket.create_server((self.host, 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="listener", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        for held in [self._socket, *self._held]:
            held.close()

    def _serve(self) -> None:
        while True:
            try:
                accepted, _ = self._socket.accept()
            except OSError:  # closed by __exit__
                return
            self.connections += 1
            with contextlib.suppress(OSError):  # the client may be gone already
                accepted.sendall(self._greeting)
            if self._hangs_up:
                accepted.close()
            else:
                self._held.append(accepted)


def mute_listener() -> Listener:
    """Accepts and says nothing."""
    return Listener()


def closing_listener() -> Listener:
    """Accepts and closes at once."""
    return Listener(hangs_up=True)


def chatty_listener() -> Listener:
    """Speaks, but not SSH."""
    return Listener(b"220 mail.example.org ESMTP ready\r\n" * 200, hangs_up=True)


def banner_listener() -> Listener:
    """Sends an SSH banner and then nothing: the key exchange never starts."""
    return Listener(b"SSH-2.0-Quiet\r\n")
