"""Send and receive SFTP version 3 packets on a channel.

A channel has framing, request ids and outstanding replies.

An SFTP channel is an SFTP conversation over an SSH channel. Further channels of a connection make transfers faster:
each SSH channel has its own receive window, which limits the bytes in flight to the server.
"""

from __future__ import annotations

import re
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Generic, Protocol, TypeVar, cast

from airflow_sftp_backend.backend._receive_limits import LimitExceeded
from airflow_sftp_backend.backend.errors import BackendUnavailable, StatusError, printable

from .codec import MAX_FRAME, UINT32, PacketReader, ProtocolError
from .messages import Request, decode_version, encode_init
from .name_encoding import NameEncoding
from .traffic import TrafficMeter

R = TypeVar("R")

_RECEIVE_SIZE: Final = 512 << 10
_REPLY_START: Final = struct.Struct(">BI")  # type, request id
_BATCH_BYTES: Final = 32 << 10
_MAX_SHOWN_BYTES: Final = 200
"""Maximum bytes of an invalid packet in an error text."""


class SSHChannel(Protocol):
    """Subset of ``paramiko.Channel`` used by `SFTPChannel`."""

    def send(self, data: bytes | memoryview, /) -> int:
        """Send a part of ``data`` and return its size in bytes.

        The size is 0 if the channel is closed.

        :raises TimeoutError: after the channel's timeout
        """

    def recv(self, count: int, /) -> bytes:
        """Receive up to ``count`` bytes; empty if the channel is closed.

        Raises TimeoutError after its timeout.
        """

    def send_ready(self) -> bool:
        """Return whether `send` would not wait."""

    def recv_ready(self) -> bool:
        """Return whether `recv` would not wait."""

    def close(self) -> None:
        """Close the channel."""


class Waiter(Protocol):
    """Interface of a running operation to channels."""

    queued: Request[Any] | None
    awaiting: Pending[Any] | None

    def wake(self, value: object = None, error: BaseException | None = None) -> None:
        """Schedule the operation's next step with a value or an exception."""


class Pending(Generic[R]):
    """Result of a sent request, set when its reply arrives.

    :param request: the request
    """

    __slots__ = ("_error", "_value", "_waiter", "_waiters", "abandoned", "done", "request", "sequence_number")

    def __init__(self, request: Request[R]) -> None:
        self.request = request
        self.abandoned = False
        """True if all waiting operations were interrupted."""
        self.sequence_number = 0
        """Number of the request, counted over all channels of the connection."""
        self.done = False
        self._value: R | None = None
        self._error: Exception | None = None
        self._waiter: Waiter | None = None
        self._waiters: list[Waiter] | None = None  # all but the first waiter; rarely any, so no list is created

    def set_result(self, outcome: R | None, error: Exception | None) -> None:
        """Store the reply or error and wake the waiting operations."""
        self.done, self._value, self._error = True, outcome, error
        waiter, self._waiter = self._waiter, None
        waiters, self._waiters = self._waiters, None
        if waiter is not None:
            waiter.wake(outcome, error)
        for other in waiters or ():
            other.wake(outcome, error)

    @property
    def reply_or_error(self) -> R | StatusError:
        """The reply, or a StatusError. Raises any other error."""
        if self._error is None:
            return cast(R, self._value)
        if isinstance(self._error, StatusError):
            return self._error
        raise self._error

    def add_waiter(self, waiter: Waiter) -> None:
        """Wake ``waiter`` with the result, at once if the result is set."""
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
        """Remove ``waiter``, so that the result does not wake it."""
        if self._waiter is waiter:
            self._waiter = None
        elif self._waiters is not None and waiter in self._waiters:
            self._waiters.remove(waiter)
        self.abandoned = self._waiter is None and not self._waiters


HandleReplyCallback = Callable[["SFTPChannel", Pending[Any], object, Exception | None], bool]
"""Called with a channel, a request, and its reply or error; returns False if the callback sets the result later.

May raise ProtocolError.
"""


class SFTPChannel:
    """Hold an SFTP conversation over an SSH channel.

    :param ssh_channel: the SSH channel; its timeout limits the silence of the server
    :param io_timeout: the timeout of ``ssh_channel`` in seconds, for error texts
    :param clock: returns seconds, to measure the round trip
    :param name_encoding: converts the names of files; None for UTF-8
    """

    def __init__(
        self,
        ssh_channel: SSHChannel,
        *,
        io_timeout: float | None,
        clock: Callable[[], float] = time.perf_counter,
        name_encoding: NameEncoding | None = None,
    ) -> None:
        self._name_encoding = name_encoding
        self._ssh_channel = ssh_channel
        self.io_timeout = io_timeout
        """Seconds of silence after which the channel fails, for error texts."""
        self._clock = clock
        self._outstanding: dict[int, Pending[Any]] = {}
        self._next_id = 0
        self._incomplete = bytearray()
        self._outbox: deque[bytes | memoryview] = deque()
        self._outbox_size = 0
        self._round_trip_probe: tuple[int, float] | None = None
        self.queued: deque[Waiter] = deque()
        """Operations whose next request waits until fewer bytes are in flight."""
        self.in_flight = 0
        """Bytes of reads and writes without a reply."""
        self.round_trip = float("inf")
        """Seconds of the fastest reply so far."""
        self.failure: str | None = None
        """Reason why requests can no longer be sent, or None."""
        self.stalled = False
        """True if the channel failed because a reply timed out."""
        self.on_handle_reply: HandleReplyCallback | None = None
        """Called with each reply to a request that opens or closes a handle."""
        self.traffic = TrafficMeter()
        """Counts the content of answered reads and writes."""
        self.extensions: dict[str, str] = {}
        """The server's extensions by name, with their data; set by `handshake`."""
        self.unexpected_text = ""
        """Text received in place of a packet, such as the output of a login script."""

    def handshake(self) -> None:
        """Negotiate version 3 (filexfer-02 section 4). Raises BackendUnavailable."""
        self._outbox.append(encode_init())
        self._outbox_size += len(self._outbox[0])
        started = self._clock()
        self.flush()
        # the first packet may arrive in several parts
        while not (packets := self._packets()):
            pass
        self.round_trip = self._clock() - started
        try:
            if len(packets) != 1:
                raise ProtocolError("a reply before the first request")
            self.extensions = decode_version(packets[0])
        except ProtocolError as error:
            raise self._protocol_error(error) from None

    @property
    def oldest_outstanding(self) -> float:
        """Number of the oldest request without a reply.

        The number is infinite if all replies have arrived.
        """
        # a dict keeps the order of insertion: the first request is the oldest
        for pending in self._outstanding.values():
            return pending.sequence_number
        return float("inf")

    def close(self) -> None:
        """Close the channel and fail outstanding requests."""
        if self.failure is None:
            self.fail_all("the connection was closed")
        self._ssh_channel.close()

    def send(self, pending: Pending[R]) -> Pending[R]:
        """Queue the packet of a request for the next flush."""
        request_id = self._next_id
        self._next_id = (request_id + 1) & 0xFFFFFFFF
        request = pending.request
        if self._name_encoding is not None:
            request = self._name_encoding.encode_request(request)
        packet = request.packet(request_id)
        self._outstanding[request_id] = pending
        if request.has_payload:
            self.in_flight += pending.request.payload_size
        self._outbox.append(packet)
        self._outbox_size += len(packet)
        # the round trip is measured for a single request at a time
        if self._round_trip_probe is None:
            self._round_trip_probe = request_id, self._clock()
        return pending

    @property
    def has_batch(self) -> bool:
        """True if the queued packets fill a batch."""
        return self._outbox_size >= _BATCH_BYTES

    def flush(self) -> None:
        """Send all queued packets. Raises BackendUnavailable."""
        self._write(lambda: True)

    def flush_some(self) -> None:
        """Send queued packets while the channel does not block.

        Raises BackendUnavailable.
        """
        self._write(self._ssh_channel.send_ready)

    def _write(self, can_write: Callable[[], bool]) -> None:
        if self.failure is not None:
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
        """Take a large packet, or several small packets, from the queue."""
        chunk = self._outbox.popleft()
        if len(chunk) >= _BATCH_BYTES or not self._outbox:
            return chunk
        chunks, size = [chunk], len(chunk)
        while self._outbox and size < _BATCH_BYTES:
            chunks.append(self._outbox.popleft())
            size += len(chunks[-1])
        return b"".join(chunks)

    def receive(self) -> None:
        """Wait for data and process its packets. Raises BackendUnavailable."""
        try:
            for packet in self._packets():
                self._dispatch(packet)
        except ProtocolError as error:
            raise self._protocol_error(error) from None

    def receive_ready(self) -> None:
        """Process received packets without waiting. Raises BackendUnavailable."""
        while self.failure is None and self._ssh_channel.recv_ready():
            self.receive()

    def fail_all(self, reason: str) -> BackendUnavailable:
        """Fail all outstanding and queued requests, and return the error."""
        self.failure = self.failure or reason
        outstanding, self._outstanding = self._outstanding, {}
        self.in_flight = 0
        for pending in outstanding.values():
            pending.set_result(None, BackendUnavailable(reason))
        while self.queued:
            self.queued.popleft().wake(error=BackendUnavailable(reason))
        return BackendUnavailable(reason)

    def _packets(self) -> list[memoryview]:
        """Wait for data and return the complete packets without their lengths."""
        received = memoryview(b"")
        with self._break_on_error():
            received = memoryview(self._ssh_channel.recv(_RECEIVE_SIZE))
            if not received:
                raise EOFError
        packets = []
        incomplete, self._incomplete = self._incomplete, bytearray()
        # A packet that arrived in part is completed by a copy. All other packets are views of what was received.
        if 0 < len(incomplete) < UINT32.size:
            received = memoryview(b"".join((incomplete, received)))
        elif incomplete:
            missing = self._missing_bytes(incomplete)
            incomplete += received[:missing]
            if missing > len(received):
                self._incomplete = incomplete
                return []
            packets.append(memoryview(incomplete)[UINT32.size :])
            received = received[missing:]
        while len(received) >= UINT32.size and (missing := self._missing_bytes(received)) <= 0:
            end = len(received) + missing
            packets.append(received[UINT32.size : end])
            received = received[end:]
        self._incomplete = bytearray(received)
        return packets

    def _missing_bytes(self, start: bytearray | memoryview) -> int:
        """Return the bytes that the first packet lacks.

        Negative if further packets follow it.
        """
        (length,) = UINT32.unpack_from(start)
        if not 1 <= length <= MAX_FRAME:
            raise self._bad_length_error(bytes(start[:_MAX_SHOWN_BYTES]))
        return cast(int, length) + UINT32.size - len(start)

    def _dispatch(self, packet: memoryview) -> None:
        if len(packet) < 5:
            raise ProtocolError("a packet without a request id")
        packet_type, request_id = _REPLY_START.unpack_from(packet)
        pending = self._outstanding.get(request_id)
        if pending is None:
            raise ProtocolError("a reply with an unknown request id")
        outcome: object = None
        error: Exception | None = None
        request = pending.request
        try:
            outcome = request.decode_reply(packet_type, PacketReader(packet, _REPLY_START.size))
            if self._name_encoding is not None:
                outcome = self._name_encoding.decode_reply(outcome)
        except (StatusError, LimitExceeded) as refused:
            # the traceback references this frame, which references the pending request and so the error: a cycle
            error = refused.with_traceback(None)
        observe = self.on_handle_reply if request.tracked else None
        # before the request is removed: if the callback fails the channel, the request must fail as well
        is_final = observe is None or observe(self, pending, outcome, error)
        del self._outstanding[request_id]
        if request.has_payload and (size := request.payload_size):
            self.in_flight -= size
            self.traffic.finish(size, outcome, failed=error is not None)
        if self._round_trip_probe is not None and self._round_trip_probe[0] == request_id:
            self.round_trip = min(self.round_trip, self._clock() - self._round_trip_probe[1])
            self._round_trip_probe = None
        if is_final:
            pending.set_result(outcome, error)

    @contextmanager
    def _break_on_error(self) -> Iterator[None]:
        """Fail the channel if the block is interrupted."""
        # The position in the byte stream is then unknown
        reason = "interrupted in the middle of a packet"
        try:
            yield
            reason = ""
        except TimeoutError:
            self.stalled = True
            seconds = "" if self.io_timeout is None else f" for {self.io_timeout:g} s"
            reason = (
                f"no answer{seconds}: the server or the network has stalled. Increase io_timeout if the server is slow"
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
            cause = f"received text ({self.unexpected_text!r}); a login script with output is the usual cause"
            return self._protocol_error(ProtocolError(cause))
        announced = int.from_bytes(start[:4], "big")
        return self._protocol_error(ProtocolError(f"a packet is announced as {announced} bytes long"))

    def _protocol_error(self, error: ProtocolError) -> BackendUnavailable:
        return self.fail_all(f"the server violates SFTP version 3: {error}")


class ChannelSource(Protocol):
    """Source of channels beside the first."""

    def request(self, count: int) -> None:
        """Start to open channels, up to ``count`` in all, without waiting."""

    def take_opened(self) -> list[SFTPChannel]:
        """Return the channels opened since the last call."""


def _as_text(start: bytes) -> str:
    """Decode the output of a login script, without control sequences.

    The text is empty for binary data.
    """
    plain = re.sub(rb"\x1b\[[0-?]*[ -/]*[@-~]", b"", start)  # ECMA-48 section 5.4: control sequences
    text = plain.decode("utf-8", "replace").split("\0")[0].rstrip("\ufffd")  # the last character may be cut
    shown = printable(text)
    # a first byte of 0 starts the length of a packet, not text
    return shown if shown and "\ufffd" not in shown and start[0] else ""
