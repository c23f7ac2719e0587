"""Further channels of a connection, opened in the background for lanes beside the first: no new login."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Final

import paramiko

from airflow_sftp_backend.backend._protocol.channel import Lane
from airflow_sftp_backend.backend.errors import BackendUnavailable, printable

from ._paramiko_compat import buffer_channel

log = logging.getLogger(__name__)

WINDOW: Final = 2 << 20
"""Bytes the server may send before the channel is read: further lanes carry writes, whose replies are short."""


class FurtherChannels:
    """Opens up to ``most`` lanes in all; fewer once the server refuses one, which is remembered.

    ``timeout`` bounds the opening of one, ``io_timeout`` a lane's silence, both in seconds.
    """

    def __init__(self, transport: paramiko.Transport, *, most: int, timeout: float, io_timeout: float | None) -> None:
        self._transport = transport
        self._most = most
        self._timeout = timeout
        self._io_timeout = io_timeout
        self._wanted = self._opened = 1
        self._arrived: deque[Lane] = deque()

    def want(self, count: int) -> None:
        """Has that many opened in all, as far as the server bears them, without waiting."""
        while self._wanted < min(count, self._most):
            self._wanted += 1
            threading.Thread(target=self._open, name="sftp lane", daemon=True).start()

    def arrived(self) -> list[Lane]:
        """Those that have been opened since it was last asked."""
        return [self._arrived.popleft() for _ in range(len(self._arrived))]

    def _open(self) -> None:
        channel: paramiko.Channel | None = None
        try:
            channel = self._transport.open_session(window_size=WINDOW, timeout=self._timeout)
            channel.settimeout(self._timeout)
            channel.invoke_subsystem("sftp")
            lane = Lane(buffer_channel(channel), io_timeout=self._io_timeout)
            lane.handshake()
            channel.settimeout(self._io_timeout)
        except (paramiko.SSHException, BackendUnavailable, OSError, EOFError) as error:
            self._most = self._wanted = self._opened
            if self._transport.is_active():
                log.info(
                    "the server bears no further channel (%s): going on with those there are", printable(str(error))
                )
            if channel is not None:
                channel.close()
        else:
            self._opened += 1
            self._arrived.append(lane)
