"""Relay connections to a server, limit their rate, and disturb them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from tests.support.servers.relay import shut
from tests.support.servers.server import HOST, PATIENCE

RATE: Final = 8 << 20
"""Bytes per second and direction of each connection."""
MAX_CREDIT: Final = 0.5
"""Seconds of an unused link that later bytes may use."""
_PIECE: Final = 1 << 16


class _Pace:
    """Keep one direction of a connection to a rate.

    :param rate: bytes per second
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._free_at = time.monotonic()

    def wait(self, count: int) -> None:
        """Wait as long as so many bytes occupy the link."""
        # A busy machine wakes the thread up late, and this delay counts for the next pieces.
        self._free_at = max(self._free_at, time.monotonic() - MAX_CREDIT) + count / self._rate
        time.sleep(max(0.0, self._free_at - time.monotonic()))


@dataclass
class _Pair:
    """The two sockets of a connection."""

    client: socket.socket
    server: socket.socket
    client_is_lost: bool = False
    server_is_lost: bool = False


class Link:
    """Relay connections from ``port`` to the port of a server.

    ``sent`` and ``received`` count the bytes from and to all clients, ``connections`` the connections.

    :param target_port: port of the server
    :param rate: bytes per second and direction of each connection
    """

    def __init__(self, target_port: int, rate: int = RATE) -> None:
        self.rate = rate
        self.sent = self.received = self.connections = 0
        self._target_port = target_port
        self._lock = threading.Condition()
        self._pairs: list[_Pair] = []
        self._hold_replies_when: Callable[[], bool] | None = None
        self._waiting = self._wanted = 0
        self._closed = False
        self._listening = socket.create_server((HOST, 0), backlog=128)
        # What the client has sent but the server has not received stays small: a client must wait for the link.
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE)
        self.port: int = self._listening.getsockname()[1]
        self._threads = [self._start(self._accept)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def open(self) -> int:
        """Return the number of open connections to the server."""
        with self._lock:
            return len(self._pairs)

    def hold_connections(self, count: int) -> None:
        """Open no connection to the server until ``count`` clients wait."""
        with self._lock:
            self._waiting, self._wanted = 0, count

    def hold_replies_when(self, condition: Callable[[], bool] | None) -> None:
        """Hold back the server's data from the time the condition holds."""
        with self._lock:
            self._hold_replies_when = condition
            self._lock.notify_all()

    def lose_clients(self) -> None:
        """Hide from the server that its present clients disconnect."""
        self._mark("client_is_lost")

    def lose_server(self) -> None:
        """Drop all replies to the present clients, but keep their connections."""
        self._mark("server_is_lost")
        with self._lock:
            pairs = list(self._pairs)
        shut(tuple(pair.server for pair in pairs))

    def forget_lost(self) -> None:
        """Close the connections whose other end was lost."""
        with self._lock:
            pairs = [pair for pair in self._pairs if pair.client_is_lost or pair.server_is_lost]
            self._pairs = [pair for pair in self._pairs if pair not in pairs]
            self._lock.notify_all()
        for pair in pairs:
            shut((pair.client, pair.server))

    def close(self) -> None:
        """Close the listening socket and every connection."""
        with self._lock:
            self._closed = True
            pairs = list(self._pairs)
            self._lock.notify_all()
        shut((self._listening, *(side for pair in pairs for side in (pair.client, pair.server))))
        for thread in self._threads:
            thread.join(PATIENCE)
        self._listening.close()

    def _mark(self, loss: str) -> None:
        with self._lock:
            for pair in self._pairs:
                setattr(pair, loss, True)

    def _start(self, function: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=function, args=arguments, name="link", daemon=True)
        thread.start()
        return thread

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:  # closed
                return
            self.connections += 1
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            self._threads.append(self._start(self._serve, client))

    def _serve(self, client: socket.socket) -> None:
        self._wait_for_others()
        try:
            server = socket.create_connection((HOST, self._target_port), PATIENCE)
        except OSError:  # the server is down: so is the link, for this client
            client.close()
            return
        server.settimeout(None)
        for side in (client, server):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = _Pair(client, server)
        with self._lock:
            self._pairs.append(pair)
        replies = self._start(self._relay_replies, pair)
        self._relay_requests(pair)
        replies.join()
        client.close()
        server.close()
        with self._lock, contextlib.suppress(ValueError):
            self._pairs.remove(pair)

    def _wait_for_others(self) -> None:
        with self._lock:
            self._waiting += 1
            self._lock.notify_all()
            self._lock.wait_for(lambda: self._closed or self._waiting >= self._wanted)

    def _relay_requests(self, pair: _Pair) -> None:
        pace = _Pace(self.rate)
        with contextlib.suppress(OSError):
            while piece := pair.client.recv(_PIECE):
                self.sent += len(piece)
                if pair.server_is_lost:  # the client sends until its window is full
                    self._wait_while_lost(pair)
                    break
                pair.server.sendall(piece)
                pace.wait(len(piece))
        self._wait_while_lost(pair)
        with contextlib.suppress(OSError):
            pair.server.shutdown(socket.SHUT_WR)

    def _relay_replies(self, pair: _Pair) -> None:
        pace = _Pace(self.rate)
        with contextlib.suppress(OSError):
            while piece := pair.server.recv(_PIECE):
                self._wait_while_held()
                self.received += len(piece)
                if not pair.client_is_lost:
                    pair.client.sendall(piece)
                    pace.wait(len(piece))
        self._wait_while_lost(pair)
        shut((pair.client,))

    def _wait_while_lost(self, pair: _Pair) -> None:
        """Wait until the link forgets a connection with a lost end."""
        with self._lock:
            if pair.client_is_lost or pair.server_is_lost:
                self._lock.wait_for(lambda: self._closed or pair not in self._pairs)

    def _wait_while_held(self) -> None:
        with self._lock:
            condition = self._hold_replies_when
            if condition is not None and condition():
                self._hold_replies_when = lambda: True
                self._lock.wait_for(lambda: self._closed or self._hold_replies_when is None)
