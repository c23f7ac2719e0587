"""Over how many lanes a file is sent, and its handles on them.

A server reads no further ahead on a channel than its receive window: 2 MiB in OpenSSH. So one channel carries 2 MiB a
round trip, however fast the line is, and several carry that many times more. Where the server is near, one is enough.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from airflow_sftp_backend.backend._paths import JailedPath
from airflow_sftp_backend.backend.errors import BackendUnavailable, ContentLost, Refused

from .channel import Lane, Pending
from .codec import OpenFlag
from .messages import Close, FStat, Open
from .scheduler import Operation, Wire, ask, post, wait

logger = logging.getLogger(__name__)

RATE: Final = 512 << 20
"""Bytes a second that a window is made for: more than one connection carries anywhere."""
LANE_WINDOW: Final = 2 << 20
"""Bytes that an OpenSSH channel takes before it is read."""
_AT_HAND: Final = 1 << 20  # bytes beyond that wait at the lane for the window to open
_WORTHWHILE: Final = 16 << 20  # bytes from which on the round trips to open lanes pay
_SHARE: Final = 4 << 20  # bytes that each lane should have to carry


def window(round_trip: float, least: int, most: int) -> int:
    """Bytes to keep in flight. No more than the round trip asks for: what waits in buffers makes nothing faster."""
    return int(max(least, min(most, RATE * round_trip)))


def lanes_for(round_trip: float, size: int) -> int:
    """How many lanes ``size`` bytes are worth at that round trip, in seconds."""
    if size < _WORTHWHILE or math.isinf(round_trip):
        return 1
    return max(1, min(math.ceil(RATE * round_trip / LANE_WINDOW), size // _SHARE))


@dataclass(frozen=True, slots=True)
class Way:
    """A lane, and the handle of the file on it."""

    lane: Lane
    handle: bytes


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be sent: ``size`` bytes, over ``lanes`` lanes or, where that is None, as many as pay."""

    size: int
    lanes: int | None = None

    def lanes_at(self, round_trip: float, *, spreads: bool) -> int:
        """How many lanes it is worth; by itself only where the server is known to bear several (``spreads``)."""
        if self.lanes is not None:
            return self.lanes
        return lanes_for(round_trip, self.size) if spreads else 1


class Spread:
    """The ways over which one file is written: its handle on the first lane, and those that come to be had on others.

    ``size`` in bytes, as far as it is known; ``lanes`` as in `Load`.
    """

    def __init__(self, wire: Wire, place: JailedPath, handle: bytes, *, size: int | None, lanes: int | None) -> None:
        self.handle = handle
        self._wire = wire
        self._place = place
        self._size = size or 0
        self._lanes = lanes
        self._widens = False
        self._ways = [Way(wire.lanes[0], handle)]
        self._opening: dict[Lane, Pending[bytes]] = {}
        self.widened = False
        """The file was opened on further lanes."""

    @property
    def single(self) -> bool:
        """True while there is one way only."""
        return len(self._ways) == 1

    @property
    def round_trip(self) -> float:
        """Seconds of the wire's fastest reply so far."""
        return self._wire.round_trip

    def widen(self, sent: int, drain: Callable[[], Operation[None]]) -> Operation[None]:
        """Open the file on further lanes if it is worth them.

        :param sent: bytes of the file that were sent, counted from its start
        :param drain: waits until all of them are acknowledged
        :raises ContentLost: the server emptied the file when it was opened once more
        """
        load = Load(max(sent, self._size), self._lanes)
        wanted = load.lanes_at(self._wire.round_trip, spreads=self._wire.traits.takes_several_writers)
        if self._wire.handles.limit is not None:  # the handles are needed for other files
            wanted = 1
        self._widens = wanted > 1
        if not self._widens:
            return
        self._wire.want_lanes(wanted)
        taken = {way.lane for way in self._ways} | self._opening.keys()
        lanes = [lane for lane in self._wire.lanes[:wanted] if lane not in taken]
        if lanes and not self._wire.traits.keeps_content_at_open:
            yield from drain()
            yield from self._open_checked(lanes, sent)
            return
        yield from self._open(lanes)
        for lane in [lane for lane, pending in self._opening.items() if pending.done]:
            yield from self._take_up(lane)

    def _open(self, lanes: list[Lane]) -> Operation[None]:
        for lane in lanes:
            self.widened = True
            self._opening[lane] = yield from post(Open(self._place.native, OpenFlag.WRITE), lane)

    def _open_checked(self, lanes: list[Lane], sent: int) -> Operation[None]:
        """Open the file on ``lanes``, between two questions for its size: some servers empty a file they open."""
        if (yield from self._told_size()) != sent:
            self._lanes, self._widens = 1, False  # its answers prove nothing, so the file is not opened again
            return
        yield from self._open(lanes)
        for lane in lanes:
            yield from self._take_up(lane)
        if (yield from self._told_size()) != sent:
            raise ContentLost("the server empties a file when it is opened once more", path=self._place.key)

    def _told_size(self) -> Operation[int | None]:
        try:
            return (yield from ask(FStat(self.handle))).size
        except Refused:
            return None

    @property
    def roomiest(self) -> Way:
        """The way with the least under way."""
        return min(self._ways, key=lambda way: way.lane.in_flight) if self._widens else self._ways[0]

    def has_room(self, count: int) -> bool:
        """True if the lane of that way takes ``count`` bytes more without making them wait for long."""
        under_way = self.roomiest.lane.in_flight
        return not self._widens or not under_way or under_way + count <= LANE_WINDOW + _AT_HAND

    def close(self) -> Operation[list[Pending[None]]]:
        """Closes the further handles, after what was sent over them: the replies to be waited for."""
        for lane in list(self._opening):
            yield from self._take_up(lane)
        closing = []
        for lane, handle in self._further():
            closing.append((yield from post(Close(handle), lane)))
        return closing

    def abandon(self) -> Operation[None]:
        """Closes the further handles, whatever is said to it."""
        try:
            for pending in (yield from self.close()):
                yield from wait(pending)
        except (Refused, BackendUnavailable):
            logger.debug("%r: not every handle could be closed", self._place.native)

    def _further(self) -> Iterator[tuple[Lane, bytes]]:
        while len(self._ways) > 1:
            way = self._ways.pop()
            yield way.lane, way.handle

    def _take_up(self, lane: Lane) -> Operation[None]:
        pending = self._opening.pop(lane)
        try:
            self._ways.append(Way(lane, (yield from wait(pending))))
        except Refused as refused:
            logger.debug("%r: not opened once more (%s)", self._place.native, refused)
