"""Stripe a file over several channels.

The module chooses the number of channels and holds a handle of the file on each.

A server accepts at most its receive window on a channel before it acknowledges: 2 MiB in OpenSSH. So a channel carries
2 MiB per round trip at any bandwidth, and several channels carry a multiple. If the round trip is short, a single
channel is enough.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend.errors import BackendUnavailable, ContentLost, StatusError

from .channel import Pending, SFTPChannel
from .codec import OpenFlag
from .messages import Close, FStat, Open
from .scheduler import Operation, SFTPScheduler, reply, request, send

logger = logging.getLogger(__name__)

ASSUMED_BYTES_PER_SECOND: Final = 512 << 20
"""Bandwidth assumed for window sizes, in bytes per second: above what one SSH connection reaches in practice."""
OPENSSH_CHANNEL_WINDOW: Final = 2 << 20
"""Bytes that an OpenSSH channel accepts before the server reads them."""
_EXTRA_QUEUED_BYTES: Final = 1 << 20  # bytes beyond the window that may wait in the channel until the window opens
_MIN_STRIPED_SIZE: Final = 16 << 20  # minimum bytes of a file that justify the round trips of opening channels
_MIN_SIZE_PER_CHANNEL: Final = 4 << 20  # minimum bytes of a file per channel


def window_size(round_trip: float, minimum: int, maximum: int) -> int:
    """Return the bytes to keep in flight.

    :param round_trip: seconds
    :param minimum: lower limit in bytes
    :param maximum: upper limit in bytes
    :returns: the size of the window in bytes
    """
    # No more bytes than the round trip needs: a longer queue does not make the transfer faster.
    return int(max(minimum, min(maximum, ASSUMED_BYTES_PER_SECOND * round_trip)))


def channels_for(round_trip: float, size: int) -> int:
    """Return the number of channels for ``size`` bytes.

    The round trip is in seconds.
    """
    if size < _MIN_STRIPED_SIZE or math.isinf(round_trip):
        return 1
    for_bandwidth = math.ceil(ASSUMED_BYTES_PER_SECOND * round_trip / OPENSSH_CHANNEL_WINDOW)
    return max(1, min(for_bandwidth, size // _MIN_SIZE_PER_CHANNEL))


@dataclass(frozen=True, slots=True)
class ChannelHandle:
    """Handle of a file on a channel."""

    channel: SFTPChannel
    handle: bytes


@dataclass(frozen=True, slots=True)
class ChannelDemand:
    """Size of a transfer in bytes, and its number of channels.

    If the number is None, it follows from size and round trip.
    """

    size: int
    channels: int | None = None

    def channel_count(self, round_trip: float, *, supports_striping: bool) -> int:
        """Return the number of channels.

        Without an explicit number, only servers that are known to support several channels get more than one.

        :param round_trip: seconds
        :param supports_striping: whether the server is known to support several channels
        :returns: the number of channels
        """
        if self.channels is not None:
            return self.channels
        return channels_for(round_trip, self.size) if supports_striping else 1


class StripedFile:
    """Handles of a file on the channels over which it is written.

    The first handle is open from the start. `add_channels` opens more.

    :param scheduler: the scheduler of the connection
    :param path: the path of the file
    :param handle: its handle on the first channel
    :param size: size of the file in bytes; None if unknown
    :param channels: as in `ChannelDemand`
    """

    def __init__(
        self, scheduler: SFTPScheduler, path: RemotePath, handle: bytes, *, size: int | None, channels: int | None
    ) -> None:
        self.handle = handle
        self._scheduler = scheduler
        self._path = path
        self._size = size or 0
        self._channels = channels
        self._is_striped = False
        self._handles = [ChannelHandle(scheduler.channels[0], handle)]
        self._opening: dict[SFTPChannel, Pending[bytes]] = {}
        self.was_striped = False
        """True if the file was opened on further channels."""

    @property
    def is_single_channel(self) -> bool:
        """True while the file is open on the first channel only."""
        return len(self._handles) == 1

    @property
    def round_trip(self) -> float:
        """Shortest time between a request and its reply so far, in seconds."""
        return self._scheduler.round_trip

    def add_channels(self, sent: int, drain: Callable[[], Operation[None]]) -> Operation[None]:
        """Open the file on further channels if its size justifies them.

        :param sent: bytes sent so far, counted from the start of the file
        :param drain: waits until all sent bytes are acknowledged
        :raises ContentLost: if the server emptied the file when it was opened again
        """
        channel_count = self._desired_channels(sent)
        self._is_striped = channel_count > 1
        if not self._is_striped:
            return
        self._scheduler.request_channels(channel_count)
        used = {channel_handle.channel for channel_handle in self._handles} | self._opening.keys()
        channels = [channel for channel in self._scheduler.channels[:channel_count] if channel not in used]
        if self._scheduler.traits.keeps_content_at_open:
            yield from self._open(channels)
            for channel in [channel for channel, pending in self._opening.items() if pending.done]:
                yield from self._finish_open(channel)
        elif channels:
            yield from drain()
            yield from self._open_checked(channels, sent)

    def _desired_channels(self, sent: int) -> int:
        if self._scheduler.handles.limit is not None:  # other files need the handles
            return 1
        demand = ChannelDemand(max(sent, self._size), self._channels)
        return demand.channel_count(
            self._scheduler.round_trip, supports_striping=self._scheduler.traits.allows_parallel_writers
        )

    def _open(self, channels: list[SFTPChannel]) -> Operation[None]:
        for channel in channels:
            self.was_striped = True
            self._opening[channel] = yield from send(Open(self._path.native, OpenFlag.WRITE), channel)

    def _open_checked(self, channels: list[SFTPChannel], sent: int) -> Operation[None]:
        """Open the file on ``channels``, and compare its size before and after.

        Some servers empty a file when it is opened.

        :raises ContentLost: if the server emptied the file when it was opened again
        """
        if (yield from self._stated_size()) != sent:
            # the server reports wrong sizes, so lost content would not be detected: write on the first channel only
            self._channels, self._is_striped = 1, False
            return
        yield from self._open(channels)
        for channel in channels:
            yield from self._finish_open(channel)
        if (yield from self._stated_size()) != sent:
            raise ContentLost("the server empties a file when it is opened again", path=self._path.key)

    def _stated_size(self) -> Operation[int | None]:
        """Return the size that the server reports; None if unknown."""
        try:
            return (yield from request(FStat(self.handle))).size
        except StatusError:
            return None

    @property
    def least_loaded(self) -> ChannelHandle:
        """Handle on the channel with the fewest bytes in flight."""
        if not self._is_striped:
            return self._handles[0]
        return min(self._handles, key=lambda channel_handle: channel_handle.channel.in_flight)

    def has_room(self, count: int) -> bool:
        """Return whether ``count`` bytes fit into a channel's window and queue."""
        in_flight = self.least_loaded.channel.in_flight
        if not self._is_striped or not in_flight:
            return True
        return in_flight + count <= OPENSSH_CHANNEL_WINDOW + _EXTRA_QUEUED_BYTES

    def close(self) -> Operation[list[Pending[None]]]:
        """Send CLOSE for all handles but the first.

        On each channel, CLOSE follows the data.

        :returns: the pending replies
        """
        for channel in list(self._opening):
            yield from self._finish_open(channel)
        closing = []
        for channel, extra_handle in self._pop_extra_handles():
            closing.append((yield from send(Close(extra_handle), channel)))
        return closing

    def close_quietly(self) -> Operation[None]:
        """Close the further handles and ignore errors."""
        try:
            for pending in (yield from self.close()):
                yield from reply(pending)
        except (StatusError, BackendUnavailable):
            logger.debug("%r: not every handle could be closed", self._path.native)

    def _pop_extra_handles(self) -> Iterator[tuple[SFTPChannel, bytes]]:
        while len(self._handles) > 1:
            handle = self._handles.pop()
            yield handle.channel, handle.handle

    def _finish_open(self, channel: SFTPChannel) -> Operation[None]:
        pending = self._opening.pop(channel)
        try:
            self._handles.append(ChannelHandle(channel, (yield from reply(pending))))
        except StatusError as refused:
            logger.debug("%r: opening on another channel was refused: %s", self._path.native, refused)
