"""SFTP version 3 over one channel: frames, request ids, and the table of replies owed.

An SFTP channel is one SFTP conversation over an SSH channel. A connection has one, and more where that makes a
transfer faster: each SSH channel has a receive window of its own, which bounds what is under way to the server.
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
from airflow_sftp_backend.backend.errors import BackendUnavailable, StatusError, printable

from .codec import MAX_FRAME, UINT32, PacketReader, ProtocolError
from .messages import Request, decode_version, encode_init

R = TypeVar("R")

_RECEIVE_SIZE: Final = 4 << 20
_REPLY_START: Final = struct.Struct(">BI")  # type, request id
_BATCH_BYTES: Final = 32 << 10
_MAX_SHOWN_BYTES: Final = 200
"""Bytes shown of what is not a packet."""


class SSHChannel(Protocol):
    """The part of ``paramiko.Channel`` that `SFTPChannel` uses."""

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
    """An operation under way, as channels know it."""

    queued: Request[Any] | None
    awaiting: Pending[Any] | None

    def wake(self, value: object = None, error: BaseException | None = None) -> None:
        """Lets it go on with a value or an exception."""


class Pending(Generic[R]):
    """The reply to a posted request, now or later."""

    __slots__ = ("_error", "_value", "_waiter", "_waiters", "abandoned", "done", "request", "sequence_number")

    def __init__(self, request: Request[R]) -> None:
        self.request = request
        self.abandoned = False
        """Nobody waits for the reply any more."""
        self.sequence_number = 0
        """Which request of the connection it is, counted over all channels."""
        self.done = False
        self._value: R | None = None
        self._error: Exception | None = None
        self._waiter: Waiter | None = None
        self._waiters: list[Waiter] | None = None  # those after the first: hardly ever any

    def set_result(self, outcome: R | None, error: Exception | None) -> None:
        """Notes the outcome and wakes the operations that wait for it."""
        self.done, self._value, self._error = True, outcome, error
        waiter, self._waiter = self._waiter, None
        waiters, self._waiters = self._waiters, None
        if waiter is not None:
            waiter.wake(outcome, error)
        for other in waiters or ():
            other.wake(outcome, error)

    @property
    def reply_or_error(self) -> R | StatusError:
        """What it was settled with. Raises what it was settled with if that is no answer."""
        if self._error is None:
            return cast(R, self._value)
        if isinstance(self._error, StatusError):
            return self._error
        raise self._error

    def add_waiter(self, waiter: Waiter) -> None:
        """Wakes ``waiter`` with the outcome, now or when it is there."""
        if self.done:
            waiter.wake(self._value, self._error)
            return
        waiter.awaiting = self
        if self._waiter is None:
            self._waiter = waiter
        elif self._waiters is None:
            self._waiters = [waiter]
        else:
            self._waiters.append(waiter)

    def detach(self, waiter: Waiter) -> None:
        """Does not wake ``waiter`` any more."""
        if self._waiter is waiter:
            self._waiter = None
        elif self._waiters is not None and waiter in self._waiters:
            self._waiters.remove(waiter)
        self.abandoned = self._waiter is None and not self._waiters


HandleReplyCallback = Callable[["SFTPChannel", Pending[Any], object, Exception | None], bool]
"""Is given a channel, a request, and its outcome or refusal; False if it settles the request itself.

It may raise ProtocolError.
"""


class SFTPChannel:
    """An SFTP conversation over ``ssh_channel``.

    The channel's own timeout measures the silence; ``io_timeout``, in seconds, is what error texts call it. ``clock``
    gives seconds.
    """

    def __init__(
        self, ssh_channel: SSHChannel, *, io_timeout: float | None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._ssh_channel = ssh_channel
        self.io_timeout = io_timeout
        """Seconds of silence after which the channel gives up, as error texts call it."""
        self._clock = clock
        self._outstanding: dict[int, Pending[Any]] = {}
        self._next_id = 0
        self._inbox = bytearray()
        self._outbox: deque[bytes | memoryview] = deque()
        self._outbox_size = 0
        self._round_trip_probe: tuple[int, float] | None = None
        self.queued: deque[Waiter] = deque()
        """Operations whose next request waits until fewer bytes are in flight."""
        self.in_flight = 0
        """Bytes of reads and writes on their way."""
        self.round_trip = float("inf")
        """Seconds of the fastest reply so far."""
        self.broken: str | None = None
        """Why nothing more can be sent, or None."""
        self.stalled = False
        """It ended because no answer came in time."""
        self.on_handle_reply: HandleReplyCallback | None = None
        """Asked about the reply to each request that opens or closes a handle."""
        self.extensions: dict[str, str] = {}
        """The server's extensions by name, with their data; known after `handshake`."""
        self.unexpected_text = ""
        """Text that came where a packet was expected, such as the output of a login script."""

    def handshake(self) -> None:
        """Agrees on version 3 (filexfer-02 section 4). Raises BackendUnavailable."""
        self._outbox.append(encode_init())
        self._outbox_size += len(self._outbox[0])
        started = self._clock()
        self.flush()
        while not (frames := self._packets()):
            pass
        self.round_trip = self._clock() - started
        try:
            if len(frames) != 1:
                raise ProtocolError("it answers before it is asked")
            self.extensions = decode_version(frames[0])
        except ProtocolError as error:
            raise self._protocol_error(error) from None

    @property
    def oldest_outstanding(self) -> float:
        """The number of the oldest request whose reply is owed; infinite if none is."""
        for pending in self._outstanding.values():
            return pending.sequence_number
        return float("inf")

    def close(self) -> None:
        """Ends the conversation."""
        if self.broken is None:
            self.fail_all("the connection was closed")
        self._ssh_channel.close()

    def send(self, pending: Pending[R]) -> Pending[R]:
        """Takes a request on; it goes out with the next `flush`, or at once if enough has come together."""
        request_id = self._next_id
        self._next_id = (request_id + 1) & 0xFFFFFFFF
        frame = pending.request.frame(request_id)
        self._outstanding[request_id] = pending
        self.in_flight += pending.request.payload_size
        self._outbox.append(frame)
        self._outbox_size += len(frame)
        if self._round_trip_probe is None:
            self._round_trip_probe = request_id, self._clock()
        return pending

    @property
    def has_batch(self) -> bool:
        """True if enough has come together to be sent."""
        return self._outbox_size >= _BATCH_BYTES

    def flush(self) -> None:
        """Sends all that was taken on. Raises BackendUnavailable."""
        self._write(lambda: True)

    def flush_some(self) -> None:
        """Sends what can be sent without waiting. Raises BackendUnavailable."""
        self._write(self._ssh_channel.send_ready)

    def _write(self, can_write: Callable[[], bool]) -> None:
        if self.broken is not None:
            return
        with self._break_on_error():
            while self._outbox and can_write():
                data = memoryview(self._next_chunk())
                sent = self._ssh_channel.send(data)
                if not sent:
                    raise EOFError
                self._outbox_size -= sent
                if sent < len(data):
                    self._outbox.appendleft(data[sent:])

    def _next_chunk(self) -> bytes | memoryview:
        """What is sent next: one large packet, or small ones together."""
        chunk = self._outbox.popleft()
        if len(chunk) >= _BATCH_BYTES or not self._outbox:
            return chunk
        chunks, size = [chunk], len(chunk)
        while self._outbox and size < _BATCH_BYTES:
            chunks.append(self._outbox.popleft())
            size += len(chunks[-1])
        return b"".join(chunks)

    def receive(self) -> None:
        """Takes in what has come, and waits for some of it. Raises BackendUnavailable."""
        try:
            for packet in self._packets():
                self._dispatch(packet)
        except ProtocolError as error:
            raise self._protocol_error(error) from None

    def receive_ready(self) -> None:
        """Takes in what has come, if anything has. Raises BackendUnavailable."""
        while self.broken is None and self._ssh_channel.recv_ready():
            self.receive()

    def fail_all(self, reason: str) -> BackendUnavailable:
        """Fails all that is owed."""
        self.broken = self.broken or reason
        outstanding, self._outstanding = self._outstanding, {}
        self.in_flight = 0
        for pending in outstanding.values():
            pending.set_result(None, BackendUnavailable(reason))
        while self.queued:
            self.queued.popleft().wake(error=BackendUnavailable(reason))
        return BackendUnavailable(reason)

    def _packets(self) -> list[memoryview]:
        """The packets that have come, without their lengths; waits for some bytes."""
        received = b""
        with self._break_on_error():
            received = self._ssh_channel.recv(_RECEIVE_SIZE)
            if not received:
                raise EOFError
        if self._inbox:
            self._inbox += received
        data = self._inbox or received
        packets, view, offset, end = [], memoryview(data), 0, len(data)
        while end - offset >= 4:
            (length,) = UINT32.unpack_from(view, offset)
            if not 1 <= length <= MAX_FRAME:
                raise self._bad_length_error(bytes(view[offset : offset + _MAX_SHOWN_BYTES]))
            next_offset = offset + 4 + length
            if next_offset > end:
                break
            packets.append(view[offset + 4 : next_offset])
            offset = next_offset
        if offset or data is not self._inbox:
            self._inbox = bytearray(view[offset:])  # a new one: the packets still look into the old
        else:
            view.release()
        return packets

    def _dispatch(self, packet: memoryview) -> None:
        if len(packet) < 5:
            raise ProtocolError("a packet without a request id")
        packet_type, request_id = _REPLY_START.unpack_from(packet)
        pending = self._outstanding.get(request_id)
        if pending is None:
            raise ProtocolError("a reply to a request that was never made")
        outcome: object = None
        error: Exception | None = None
        request = pending.request
        try:
            outcome = request.decode_reply(packet_type, PacketReader(packet, _REPLY_START.size))
        except (StatusError, BoundExceeded) as refused:
            # a traceback has this frame, which has what is pending, which has the refusal
            error = refused.with_traceback(None)
        observe = self.on_handle_reply if request.tracked else None
        is_final = observe is None or observe(self, pending, outcome, error)  # while it is owed: it may end the channel
        del self._outstanding[request_id]
        self.in_flight -= request.payload_size
        if self._round_trip_probe is not None and self._round_trip_probe[0] == request_id:
            self.round_trip = min(self.round_trip, self._clock() - self._round_trip_probe[1])
            self._round_trip_probe = None
        if is_final:
            pending.set_result(outcome, error)

    @contextmanager
    def _break_on_error(self) -> Iterator[None]:
        """Around the channel's calls: what interrupts one leaves the stream at an unknown place, so it ends here."""
        reason = "interrupted in the middle of a packet"
        try:
            yield
            reason = ""
        except TimeoutError:
            self.stalled = True
            seconds = "" if self.io_timeout is None else f" for {self.io_timeout:g} s"
            reason = (
                f"no answer{seconds} while replies are owed: the server or the line has stalled;"
                " raise io_timeout if this server is that slow"
            )
            raise BackendUnavailable(reason) from None
        except (EOFError, OSError) as error:
            reason = "the connection was lost"
            raise BackendUnavailable(f"{reason} ({error})" if str(error) else reason) from None
        finally:
            if reason:
                self.fail_all(reason)

    def _bad_length_error(self, start: bytes) -> BackendUnavailable:
        self.unexpected_text = _as_text(start)
        if self.unexpected_text:
            shown = (
                f"it sends text ({self.unexpected_text!r}); a login script on the server that prints is the usual cause"
            )
            return self._protocol_error(ProtocolError(shown))
        announced = int.from_bytes(start[:4], "big")
        return self._protocol_error(ProtocolError(f"a packet is announced as {announced} bytes long"))

    def _protocol_error(self, error: ProtocolError) -> BackendUnavailable:
        return self.fail_all(f"the server does not speak SFTP version 3 as it should: {error}")


def _as_text(start: bytes) -> str:
    """Decode bytes that a login script may have printed, without its colours; empty if they are not text."""
    plain = re.sub(rb"\x1b\[[0-?]*[ -/]*[@-~]", b"", start)  # ECMA-48 section 5.4: control sequences
    text = plain.decode("utf-8", "replace").split("\0")[0].rstrip("\ufffd")  # the last character may be cut
    shown = printable(text)
    return shown if shown and "\ufffd" not in shown and start[0] else ""
