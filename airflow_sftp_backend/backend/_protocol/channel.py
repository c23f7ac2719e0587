"""SFTP version 3 over one channel: frames, request ids, and the table of replies owed.

A lane is one SFTP conversation. A connection has one, and more beside it where that makes a transfer faster: each
channel has a receive window of its own, which bounds what is under way to the server.
"""

from __future__ import annotations

import re
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Generic, Protocol, TypeVar, cast

from airflow_sftp_backend.backend._limits import BoundExceeded
from airflow_sftp_backend.backend.errors import BackendUnavailable, Refused, printable

from .codec import MAX_FRAME, UINT32, Cursor, ProtocolError
from .messages import Request, decode_version, encode_init

R = TypeVar("R")

_RECEIVE: Final = 4 << 20
_REPLY_START: Final = struct.Struct(">BI")  # type, request id
_BATCH: Final = 32 << 10
_SHOWN: Final = 200
"""Bytes shown of what is not a packet."""


class Channel(Protocol):
    """What a lane needs of a ``paramiko.Channel``."""

    def send(self, data: bytes | memoryview, /) -> int:
        """Sends some of it; the number of bytes sent, 0 if the channel is closed; TimeoutError after the channel's
        timeout.
        """

    def recv(self, count: int, /) -> bytes:
        """Some bytes, none if the channel is closed; TimeoutError after the channel's timeout."""

    def send_ready(self) -> bool:
        """True if `send` would not wait."""

    def recv_ready(self) -> bool:
        """True if `recv` would not wait."""

    def close(self) -> None:
        """Ends the channel."""


class Waiter(Protocol):
    """An operation under way, as lanes know it."""

    parked: Request[Any] | None
    waits_for: Pending[Any] | None

    def wake(self, value: object = None, error: BaseException | None = None) -> None:
        """Lets it go on with a value or an exception."""


class Pending(Generic[R]):
    """The reply to a posted request, now or later."""

    __slots__ = ("_error", "_outcome", "_waiter", "_waiters", "abandoned", "done", "number", "request")

    def __init__(self, request: Request[R]) -> None:
        self.request = request
        self.abandoned = False
        """Nobody waits for the reply any more."""
        self.number = 0
        """Which request of the connection it is, counted over all lanes."""
        self.done = False
        self._outcome: R | None = None
        self._error: Exception | None = None
        self._waiter: Waiter | None = None
        self._waiters: list[Waiter] | None = None  # those after the first: hardly ever any

    def settle(self, outcome: R | None, error: Exception | None) -> None:
        """Notes the outcome and wakes the operations that wait for it."""
        self.done, self._outcome, self._error = True, outcome, error
        waiter, self._waiter = self._waiter, None
        waiters, self._waiters = self._waiters, None
        if waiter is not None:
            waiter.wake(outcome, error)
        for other in waiters or ():
            other.wake(outcome, error)

    @property
    def answer(self) -> R | Refused:
        """What it was settled with. Raises what it was settled with if that is no answer."""
        if self._error is None:
            return cast(R, self._outcome)
        if isinstance(self._error, Refused):
            return self._error
        raise self._error

    def await_by(self, run: Waiter) -> None:
        """Wakes ``run`` with the outcome, now or when it is there."""
        if self.done:
            run.wake(self._outcome, self._error)
            return
        run.waits_for = self
        if self._waiter is None:
            self._waiter = run
        elif self._waiters is None:
            self._waiters = [run]
        else:
            self._waiters.append(run)

    def give_up(self, run: Waiter) -> None:
        """Does not wake ``run`` any more."""
        if self._waiter is run:
            self._waiter = None
        elif self._waiters is not None and run in self._waiters:
            self._waiters.remove(run)
        self.abandoned = self._waiter is None and not self._waiters


Observer = Callable[["Lane", Pending[Any], object, Exception | None], bool]
"""Is given a lane, a request, and its outcome or refusal; False if it settles the request itself.

It may raise ProtocolError.
"""


class Lane:
    """An SFTP conversation over ``channel``.

    The channel's own timeout measures the silence; ``io_timeout``, in seconds, is what error texts call it. ``clock``
    gives seconds.
    """

    def __init__(
        self, channel: Channel, *, io_timeout: float | None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._channel = channel
        self.io_timeout = io_timeout
        """Seconds of silence after which the channel gives up, as error texts call it."""
        self._clock = clock
        self._owed: dict[int, Pending[Any]] = {}
        self._next_id = 0
        self._inbox = bytearray()
        self._outbox: deque[bytes | memoryview] = deque()
        self._outbox_size = 0
        self._timed: tuple[int, float] | None = None
        self.parked: deque[Waiter] = deque()
        """Operations whose next request waits until fewer bytes are in flight."""
        self.in_flight = 0
        """Bytes of reads and writes on their way."""
        self.round_trip = float("inf")
        """Seconds of the fastest reply so far."""
        self.broken: str | None = None
        """Why nothing more can be sent, or None."""
        self.stalled = False
        """It ended because no answer came in time."""
        self.observe: Observer | None = None
        """Asked about the reply to each request that opens or closes a handle."""
        self.extensions: dict[str, str] = {}
        """The server's extensions by name, with their data; known after `handshake`."""
        self.unexpected_text = ""
        """Text that came where a packet was expected, such as the output of a login script."""

    def handshake(self) -> None:
        """Agrees on version 3 (filexfer-02 section 4). Raises BackendUnavailable."""
        self._outbox.append(encode_init())
        self._outbox_size += len(self._outbox[0])
        asked = self._clock()
        self.flush()
        while not (frames := self._packets()):
            pass
        self.round_trip = self._clock() - asked
        try:
            if len(frames) != 1:
                raise ProtocolError("it answers before it is asked")
            self.extensions = decode_version(frames[0])
        except ProtocolError as error:
            raise self._protocol_broken(error) from None

    @property
    def oldest(self) -> float:
        """The number of the oldest request whose reply is owed; infinite if none is."""
        for pending in self._owed.values():
            return pending.number
        return float("inf")

    def close(self) -> None:
        """Ends the conversation."""
        if self.broken is None:
            self.end("the connection was closed")
        self._channel.close()

    def send(self, pending: Pending[R]) -> Pending[R]:
        """Takes a request on; it goes out with the next `flush`, or at once if enough has come together."""
        request_id = self._next_id
        self._next_id = (request_id + 1) & 0xFFFFFFFF
        frame = pending.request.frame(request_id)
        self._owed[request_id] = pending
        self.in_flight += pending.request.cost
        self._outbox.append(frame)
        self._outbox_size += len(frame)
        if self._timed is None:
            self._timed = request_id, self._clock()
        return pending

    @property
    def has_batch(self) -> bool:
        """True if enough has come together to be sent."""
        return self._outbox_size >= _BATCH

    def flush(self) -> None:
        """Sends all that was taken on. Raises BackendUnavailable."""
        self._send_out(lambda: True)

    def flush_some(self) -> None:
        """Sends what can be sent without waiting. Raises BackendUnavailable."""
        self._send_out(self._channel.send_ready)

    def _send_out(self, may_go_on: Callable[[], bool]) -> None:
        if self.broken is not None:
            return
        with self._unbroken():
            while self._outbox and may_go_on():
                data = memoryview(self._next_piece())
                sent = self._channel.send(data)
                if not sent:
                    raise EOFError
                self._outbox_size -= sent
                if sent < len(data):
                    self._outbox.appendleft(data[sent:])

    def _next_piece(self) -> bytes | memoryview:
        """What is sent next: one large packet, or small ones together."""
        piece = self._outbox.popleft()
        if len(piece) >= _BATCH or not self._outbox:
            return piece
        pieces, size = [piece], len(piece)
        while self._outbox and size < _BATCH:
            pieces.append(self._outbox.popleft())
            size += len(pieces[-1])
        return b"".join(pieces)

    def receive(self) -> None:
        """Takes in what has come, and waits for some of it. Raises BackendUnavailable."""
        try:
            for packet in self._packets():
                self._dispatch(packet)
        except ProtocolError as error:
            raise self._protocol_broken(error) from None

    def receive_ready(self) -> None:
        """Takes in what has come, if anything has. Raises BackendUnavailable."""
        while self.broken is None and self._channel.recv_ready():
            self.receive()

    def end(self, why: str) -> BackendUnavailable:
        """Fails all that is owed."""
        self.broken = self.broken or why
        owed, self._owed = self._owed, {}
        self.in_flight = 0
        for pending in owed.values():
            pending.settle(None, BackendUnavailable(why))
        while self.parked:
            self.parked.popleft().wake(error=BackendUnavailable(why))
        return BackendUnavailable(why)

    def _packets(self) -> list[memoryview]:
        """The packets that have come, without their lengths; waits for some bytes."""
        received = b""
        with self._unbroken():
            received = self._channel.recv(_RECEIVE)
            if not received:
                raise EOFError
        if self._inbox:
            self._inbox += received
        data = self._inbox or received
        packets, view, at, end = [], memoryview(data), 0, len(data)
        while end - at >= 4:
            (length,) = UINT32.unpack_from(view, at)
            if not 1 <= length <= MAX_FRAME:
                raise self._not_a_length(bytes(view[at : at + _SHOWN]))
            following = at + 4 + length
            if following > end:
                break
            packets.append(view[at + 4 : following])
            at = following
        if at or data is not self._inbox:
            self._inbox = bytearray(view[at:])  # a new one: the packets still look into the old
        else:
            view.release()
        return packets

    def _dispatch(self, packet: memoryview) -> None:
        if len(packet) < 5:
            raise ProtocolError("a packet without a request id")
        kind, request_id = _REPLY_START.unpack_from(packet)
        pending = self._owed.get(request_id)
        if pending is None:
            raise ProtocolError("a reply to a request that was never made")
        outcome: object = None
        error: Exception | None = None
        request = pending.request
        try:
            outcome = request.answer(kind, Cursor(packet, _REPLY_START.size))
        except (Refused, BoundExceeded) as refused:
            # a traceback has this frame, which has what is pending, which has the refusal
            error = refused.with_traceback(None)
        observe = self.observe if request.tracked else None
        is_final = observe is None or observe(self, pending, outcome, error)  # while it is owed: it may end the lane
        del self._owed[request_id]
        self.in_flight -= request.cost
        if self._timed is not None and self._timed[0] == request_id:
            self.round_trip = min(self.round_trip, self._clock() - self._timed[1])
            self._timed = None
        if is_final:
            pending.settle(outcome, error)

    @contextmanager
    def _unbroken(self) -> Iterator[None]:
        """Around the channel's calls: what interrupts one leaves the stream at an unknown place, so it ends here."""
        why = "interrupted in the middle of a packet"
        try:
            yield
            why = ""
        except TimeoutError:
            self.stalled = True
            seconds = "" if self.io_timeout is None else f" for {self.io_timeout:g} s"
            why = (
                f"no answer{seconds} while replies are owed: the server or the line has stalled;"
                " raise io_timeout if this server is that slow"
            )
            raise BackendUnavailable(why) from None
        except (EOFError, OSError) as error:
            why = "the connection was lost"
            raise BackendUnavailable(f"{why} ({error})" if str(error) else why) from None
        finally:
            if why:
                self.end(why)

    def _not_a_length(self, start: bytes) -> BackendUnavailable:
        self.unexpected_text = _as_text(start)
        if self.unexpected_text:
            shown = (
                f"it sends text ({self.unexpected_text!r}); a login script on the server that prints is the usual cause"
            )
            return self._protocol_broken(ProtocolError(shown))
        announced = int.from_bytes(start[:4], "big")
        return self._protocol_broken(ProtocolError(f"a packet is announced as {announced} bytes long"))

    def _protocol_broken(self, error: ProtocolError) -> BackendUnavailable:
        return self.end(f"the server does not speak SFTP version 3 as it should: {error}")


def _as_text(start: bytes) -> str:
    """Decode bytes that a login script may have printed, without its colours; empty if they are not text."""
    plain = re.sub(rb"\x1b\[[0-?]*[ -/]*[@-~]", b"", start)  # ECMA-48 section 5.4: control sequences
    text = plain.decode("utf-8", "replace").split("\0")[0].rstrip("\ufffd")  # the last character may be cut
    shown = printable(text)
    return shown if shown and "\ufffd" not in shown and start[0] else ""
