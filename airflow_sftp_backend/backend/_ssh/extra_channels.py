"""Further channels of a connection, opened in the background for channels beside the first: no new login."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Final

import paramiko

from airflow_sftp_backend.backend._protocol.channel import SFTPChannel
from airflow_sftp_backend.backend.errors import BackendUnavailable, printable

from ._paramiko_compat import buffer_channel

log = logging.getLogger(__name__)

EXTRA_CHANNEL_WINDOW: Final = 2 << 20
"""Bytes the server may send before the channel is read: further channels carry writes, whose replies are short."""


class ExtraChannels:
    """Opens up to ``maximum`` channels in all; fewer once the server refuses one, which is remembered.

    ``timeout`` bounds the opening of one, ``io_timeout`` a channel's silence, both in seconds.
    """

    def __init__(
        self, transport: paramiko.Transport, *, maximum: int, timeout: float, io_timeout: float | None
    ) -> None:
        self._transport = transport
        self._maximum = maximum
        self._timeout = timeout
        self._io_timeout = io_timeout
        self._requested = self._open_count = 1
        self._opened_channels: deque[SFTPChannel] = deque()

    def request(self, count: int) -> None:
        """Has that many opened in all, as far as the server bears them, without waiting."""
        while self._requested < min(count, self._maximum):
            self._requested += 1
            threading.Thread(target=self._open, name="sftp channel", daemon=True).start()

    def take_opened(self) -> list[SFTPChannel]:
        """Those that have been opened since it was last asked."""
        return [self._opened_channels.popleft() for _ in range(len(self._opened_channels))]

    def _open(self) -> None:
        ssh_channel: paramiko.Channel | None = None
        try:
            ssh_channel = self._transport.open_session(window_size=EXTRA_CHANNEL_WINDOW, timeout=self._timeout)
            ssh_channel.settimeout(self._timeout)
            ssh_channel.invoke_subsystem("sftp")
            channel = SFTPChannel(buffer_channel(ssh_channel), io_timeout=self._io_timeout)
            channel.handshake()
            ssh_channel.settimeout(self._io_timeout)
        except (paramiko.SSHException, BackendUnavailable, OSError, EOFError) as error:
            self._maximum = self._requested = self._open_count
            if self._transport.is_active():
                log.info(
                    "the server bears no further channel (%s): going on with those there are", printable(str(error))
                )
            if ssh_channel is not None:
                ssh_channel.close()
        else:
            self._open_count += 1
            self._opened_channels.append(channel)
