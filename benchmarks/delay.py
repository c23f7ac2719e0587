"""Delay all bytes of TCP connections by a fixed time.

The delay applies in both directions, as on a long link.

Run as ``python -m benchmarks.delay PORT SECONDS``: it prints the port it listens on, and forwards to PORT on this
machine, SECONDS late in each direction, until its standard input ends. It delays and does not throttle.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

_CHUNK: Final = 256 << 10
_HOST: Final = "127.0.0.1"


class _Pipe:
    """Copy one direction of a connection with a delay."""

    def __init__(self, source: socket.socket, sink: socket.socket, delay: float) -> None:
        self._source = source
        self._sink = sink
        self._delay = delay
        self._late: deque[tuple[float, bytes]] = deque()
        self._something = threading.Condition()

    def start(self) -> None:
        """Forwards until the source ends."""
        for work in (self._read, self._write):
            threading.Thread(target=work, daemon=True).start()

    def _read(self) -> None:
        data = b"-"
        while data:
            try:
                data = self._source.recv(_CHUNK)
            except OSError:
                data = b""
            with self._something:
                self._late.append((time.monotonic() + self._delay, data))
                self._something.notify()

    def _write(self) -> None:
        while True:
            with self._something:
                while not self._late:
                    self._something.wait()
                due, data = self._late.popleft()
            if (pause := due - time.monotonic()) > 0:
                time.sleep(pause)
            try:
                if not data:
                    self._sink.shutdown(socket.SHUT_WR)
                    return
                self._sink.sendall(data)
            except OSError:
                with suppress(OSError):
                    self._source.shutdown(socket.SHUT_RDWR)
                return


def serve(port: int, delay: float) -> None:
    """Listens, says where, and forwards until standard input ends."""
    listening = socket.create_server((_HOST, 0))
    print(listening.getsockname()[1], flush=True)
    threading.Thread(target=_accept, args=(listening, port, delay), daemon=True).start()
    sys.stdin.read()


def _accept(listening: socket.socket, port: int, delay: float) -> None:
    while True:
        near, _ = listening.accept()
        far = socket.create_connection((_HOST, port))
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _Pipe(near, far, delay).start()
        _Pipe(far, near, delay).start()


@contextmanager
def delayed(port: int, round_trip: float) -> Iterator[int]:
    """Provide a local port that leads to ``port`` with a delay.

    The round trip takes the given seconds. The port exists during the block.
    """
    command = [sys.executable, "-m", "benchmarks.delay", str(port), str(round_trip / 2)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait()


if __name__ == "__main__":
    serve(int(sys.argv[1]), float(sys.argv[2]))
