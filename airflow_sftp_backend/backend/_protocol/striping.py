"""Over how many channels a file is sent, and its handles on them.

A server reads no further ahead on a channel than its receive window: 2 MiB in OpenSSH. So one channel carries 2 MiB a
round trip, however fast the line is, and several carry that many times more. Where the server is near, one is enough.
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
"""Bytes a second that a window is made for: more than one connection carries anywhere."""
OPENSSH_CHANNEL_WINDOW: Final = 2 << 20
"""Bytes that an OpenSSH channel takes before it is read."""
_EXTRA_QUEUED_BYTES: Final = 1 << 20  # bytes beyond that wait at the channel for the window to open
_MIN_STRIPED_SIZE: Final = 16 << 20  # bytes from which on the round trips to open channels pay
_MIN_SIZE_PER_CHANNEL: Final = 4 << 20  # bytes that each channel should have to carry


def window_size(round_trip: float, minimum: int, maximum: int) -> int:
    """Bytes to keep in flight. No more than the round trip asks for: what waits in buffers makes nothing faster."""
    return int(max(minimum, min(maximum, ASSUMED_BYTES_PER_SECOND * round_trip)))


def channels_for(round_trip: float, size: int) -> int:
    """How many channels ``size`` bytes are worth at that round trip, in seconds."""
    if size < _MIN_STRIPED_SIZE or math.isinf(round_trip):
        return 1
    return max(
        1, min(math.ceil(ASSUMED_BYTES_PER_SECOND * round_trip / OPENSSH_CHANNEL_WINDOW), size // _MIN_SIZE_PER_CHANNEL)
    )


@dataclass(frozen=True, slots=True)
class ChannelHandle:
    """A channel, and the handle of the file on it."""

    channel: SFTPChannel
    handle: bytes


@dataclass(frozen=True, slots=True)
class TransferSize:
    """What is to be sent: ``size`` bytes, over ``channels`` channels or, where that is None, as many as pay."""

    size: int
    channels: int | None = None

    def channel_count(self, round_trip: float, *, supports_striping: bool) -> int:
        """How many channels it is worth; by itself only where the server is known to bear several
        (``supports_striping``)."""
        if self.channels is not None:
            return self.channels
        return channels_for(round_trip, self.size) if supports_striping else 1


class StripedFile:
    """The ways over which one file is written: its handle on the first channel, and those that come to be had on
    others.

    ``size`` in bytes, as far as it is known; ``channels`` as in `TransferSize`.
    """

    def __init__(
        self, scheduler: SFTPScheduler, path: RemotePath, handle: bytes, *, size: int | None, channels: int | None
    ) -> None:
        self.handle = handle
        self._scheduler = scheduler
        self._path = path
        self._size = size or 0
        self._max_channels = channels
        self._is_striped = False
        self._handles = [ChannelHandle(scheduler.channels[0], handle)]
        self._opening: dict[SFTPChannel, Pending[bytes]] = {}
        self.was_striped = False
        """The file was opened on further channels."""

    @property
    def is_single_channel(self) -> bool:
        """True while there is one way only."""
        return len(self._handles) == 1

    @property
    def round_trip(self) -> float:
        """Seconds of the wire's fastest reply so far."""
        return self._scheduler.round_trip

    def add_channels(self, sent: int, drain: Callable[[], Operation[None]]) -> Operation[None]:
        """Open the file on further channels if it is worth them.

        :param sent: bytes of the file that were sent, counted from its start
        :param drain: waits until all of them are acknowledged
        :raises ContentLost: the server emptied the file when it was opened once more
        """
        transfer = TransferSize(max(sent, self._size), self._max_channels)
        wanted = transfer.channel_count(
            self._scheduler.round_trip, supports_striping=self._scheduler.traits.allows_parallel_writers
        )
        if self._scheduler.handles.limit is not None:  # the handles are needed for other files
            wanted = 1
        self._is_striped = wanted > 1
        if not self._is_striped:
            return
        self._scheduler.request_channels(wanted)
        used = {way.channel for way in self._handles} | self._opening.keys()
        channels = [channel for channel in self._scheduler.channels[:wanted] if channel not in used]
        if channels and not self._scheduler.traits.keeps_content_at_open:
            yield from drain()
            yield from self._open_checked(channels, sent)
            return
        yield from self._open(channels)
        for channel in [channel for channel, pending in self._opening.items() if pending.done]:
            yield from self._finish_open(channel)

    def _open(self, channels: list[SFTPChannel]) -> Operation[None]:
        for channel in channels:
            self.was_striped = True
            self._opening[channel] = yield from send(Open(self._path.native, OpenFlag.WRITE), channel)

    def _open_checked(self, channels: list[SFTPChannel], sent: int) -> Operation[None]:
        """Open the file on ``channels``, between two questions for its size: some servers empty a file they open."""
        if (yield from self._stated_size()) != sent:
            # its answers prove nothing, so the file is not opened again
            self._max_channels, self._is_striped = 1, False
            return
        yield from self._open(channels)
        for channel in channels:
            yield from self._finish_open(channel)
        if (yield from self._stated_size()) != sent:
            raise ContentLost("the server empties a file when it is opened once more", path=self._path.key)

    def _stated_size(self) -> Operation[int | None]:
        try:
            return (yield from request(FStat(self.handle))).size
        except StatusError:
            return None

    @property
    def least_loaded(self) -> ChannelHandle:
        """The way with the least under way."""
        return min(self._handles, key=lambda way: way.channel.in_flight) if self._is_striped else self._handles[0]

    def has_room(self, count: int) -> bool:
        """True if the channel of that way takes ``count`` bytes more without making them wait for long."""
        in_flight = self.least_loaded.channel.in_flight
        return (
            not self._is_striped or not in_flight or in_flight + count <= OPENSSH_CHANNEL_WINDOW + _EXTRA_QUEUED_BYTES
        )

    def close(self) -> Operation[list[Pending[None]]]:
        """Closes the further handles, after what was sent over them: the replies to be waited for."""
        for channel in list(self._opening):
            yield from self._finish_open(channel)
        closing = []
        for channel, extra_handle in self._pop_extra_handles():
            closing.append((yield from send(Close(extra_handle), channel)))
        return closing

    def close_quietly(self) -> Operation[None]:
        """Closes the further handles, whatever is said to it."""
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
            logger.debug("%r: not opened once more (%s)", self._path.native, refused)
