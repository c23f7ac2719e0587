"""Open additional SFTP channels in the background, without another login."""

from __future__ import annotations

import logging
import threading
from collections import deque
from contextlib import suppress
from typing import Final

import paramiko

from airflow_sftp_backend.backend._protocol.channel import SFTPChannel
from airflow_sftp_backend.backend._protocol.name_encoding import NameEncoding
from airflow_sftp_backend.backend.errors import BackendUnavailable, printable

from ._paramiko_compat import buffer_channel

log = logging.getLogger(__name__)

EXTRA_CHANNEL_WINDOW: Final = 2 << 20
"""Receive window of an additional channel, in bytes. These channels carry writes, and replies to writes are short."""


class ExtraChannels:
    """Opens channels up to a maximum, or until the server refuses.

    :param maximum: number of channels of the connection, with the first
    :param timeout: longest time in seconds to open a channel
    :param io_timeout: longest silence of a channel in seconds while a reply is outstanding
    :param name_encoding: converts the names of files; None for UTF-8
    """

    def __init__(
        self,
        transport: paramiko.Transport,
        *,
        maximum: int,
        timeout: float,
        io_timeout: float | None,
        name_encoding: NameEncoding | None = None,
    ) -> None:
        self._name_encoding = name_encoding
        self._transport = transport
        self._maximum = maximum
        self._timeout = timeout
        self._io_timeout = io_timeout
        self._requested = self._open_count = 1
        self._opened_channels: deque[SFTPChannel] = deque()

    def request(self, count: int) -> None:
        """Start opening channels up to a number of channels in total.

        Returns at once.
        """
        while self._requested < min(count, self._maximum):
            self._requested += 1
            threading.Thread(target=self._open, name="sftp channel", daemon=True).start()

    def take_opened(self) -> list[SFTPChannel]:
        """Return the channels opened since the last call."""
        return [self._opened_channels.popleft() for _ in range(len(self._opened_channels))]

    def _open(self) -> None:
        ssh_channel: paramiko.Channel | None = None
        try:
            ssh_channel = self._transport.open_session(window_size=EXTRA_CHANNEL_WINDOW, timeout=self._timeout)
            ssh_channel.settimeout(self._timeout)
            ssh_channel.invoke_subsystem("sftp")
            channel = SFTPChannel(
                buffer_channel(ssh_channel), io_timeout=self._io_timeout, name_encoding=self._name_encoding
            )
            channel.handshake()
            ssh_channel.settimeout(self._io_timeout)
        except (paramiko.SSHException, BackendUnavailable, OSError, EOFError) as error:
            self._maximum = self._requested = self._open_count
            if self._transport.is_active():
                log.info("the server refuses another channel, using %d: %s", self._open_count, printable(str(error)))
            if ssh_channel is not None:
                with suppress(OSError):
                    ssh_channel.close()
        else:
            self._open_count += 1
            self._opened_channels.append(channel)
