"""Answer a channel from a script, without socket or thread.

Replies come in any order and in pieces.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from hypothesis import strategies as st

from airflow_sftp_backend.backend._protocol.codec import Attributes, PacketReader, PacketType
from airflow_sftp_backend.backend._protocol.scheduler import SFTPScheduler
from airflow_sftp_backend.backend.errors import StatusCode


@dataclass(frozen=True)
class Packet:
    """Hold a request as the server sees it.

    ``body`` is all data after the request id.
    """

    kind: PacketType
    request_id: int
    body: bytes

    @property
    def reader(self) -> PacketReader:
        """Reads the body."""
        return PacketReader(memoryview(self.body))


Answer = Callable[[Packet], bytes | None]
"""The packet that answers a request, or None for silence."""


def framed(kind: int, body: bytes) -> bytes:
    """A packet with its length."""
    return struct.pack(">IB", len(body) + 1, kind) + body


def encode_string(data: bytes) -> bytes:
    """A string of the protocol: its length, then it."""
    return struct.pack(">I", len(data)) + data


def status(packet: Packet, code: int = StatusCode.OK, text: str = "") -> bytes:
    """A STATUS in reply to ``packet``."""
    return packet_reply(
        packet, PacketType.STATUS, struct.pack(">I", code) + encode_string(text.encode()) + encode_string(b"en")
    )


def packet_reply(packet: Packet, kind: int, body: bytes) -> bytes:
    """A reply to ``packet``."""
    return framed(kind, struct.pack(">I", packet.request_id) + body)


def version(extensions: Mapping[str, str] | None = None, number: int = 3) -> bytes:
    """The packet a server begins with."""
    pairs = b"".join(
        encode_string(name.encode()) + encode_string(data.encode()) for name, data in (extensions or {}).items()
    )
    return framed(PacketType.VERSION, struct.pack(">I", number) + pairs)


class ScriptedChannel:
    """Answers what is sent to it with ``answer``.

    ``order(n)`` tells which of n replies that wait is delivered next, ``cut(n)`` how many of n bytes a `recv` gives (at
    least 1), ``taken(n)`` how many of n bytes a `send` takes. ``hello`` answers INIT. Once ``answer`` has stayed silent
    and nothing else waits, `recv` ends as a real channel does after its timeout; with ``lost`` it ends the stream.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        hello: bytes | None = None,
        order: Callable[[int], int] = lambda waiting: 0,
        cut: Callable[[int], int] = lambda size: size,
        taken: Callable[[int], int] = lambda size: size,
        lost: bool = False,
    ) -> None:
        self.requests: list[Packet] = []
        """Requests, without INIT."""
        self.closed = False
        self.replies: list[bytes] = []
        """Replies that are not delivered yet."""
        self._answer = answer
        self._hello = version() if hello is None else hello
        self._order = order
        self._cut = cut
        self._taken = taken
        self._lost = lost
        self._sent = b""
        self._stream = b""

    def send(self, data: bytes | memoryview, /) -> int:
        """Takes some of it."""
        if self.closed:
            return 0
        count = self._taken(len(data))
        self._sent += bytes(data[:count])
        for packet in self._packets():
            self.requests.append(packet)
            if (answer := self._answer(packet)) is not None:
                self.replies.append(answer)
        return count

    def _packets(self) -> Iterator[Packet]:
        while len(self._sent) >= 4:
            (length,) = struct.unpack_from(">I", self._sent)
            if len(self._sent) < length + 4:
                return
            frame, self._sent = self._sent[4 : length + 4], self._sent[length + 4 :]
            if frame[0] == PacketType.INIT:
                assert frame[1:] == struct.pack(">I", 3)
                self._stream += self._hello
            else:
                yield Packet(PacketType(frame[0]), int.from_bytes(frame[1:5], "big"), frame[5:])

    def recv(self, count: int, /) -> bytes:
        """Delivers some of what waits."""
        if not self._stream and self.replies:
            self._stream = self.replies.pop(self._order(len(self.replies)))
        if self.closed or (not self._stream and self._lost):
            return b""
        if not self._stream:
            raise TimeoutError
        size = self._cut(min(count, len(self._stream)))
        data, self._stream = self._stream[:size], self._stream[size:]
        return data

    def send_ready(self) -> bool:
        """It always takes something."""
        return True

    def recv_ready(self) -> bool:
        """True if something waits."""
        return bool(self._stream or self.replies)

    def close(self) -> None:
        """Ends it."""
        self.closed = True


def connected(channel: ScriptedChannel, io_timeout: float | None = 7) -> SFTPScheduler:
    """A scheduler over it, after the handshake."""
    scheduler = SFTPScheduler(channel, io_timeout=io_timeout)
    scheduler.handshake()
    return scheduler


class ScriptedFile:
    """Serve one open file.

    It answers FSTAT, READ, WRITE and CLOSE of its handle.

    ``stated_size`` is the size in the reply to FSTAT (None: a refusal). ``short(n)`` returns how many of the n bytes of
    a READ are sent, at least 1. The requests in ``refused``, by number from 0, are refused.
    """

    HANDLE = b"a handle"

    def __init__(
        self,
        content: bytes = b"",
        *,
        stated_size: int | None = -1,
        mode: int = 0o100644,
        short: Callable[[int], int] = lambda size: size,
        refused: frozenset[int] = frozenset(),
    ) -> None:
        self.content = bytearray(content)
        self.stated_size = len(content) if stated_size == -1 else stated_size
        self.mode = mode
        self.written = 0
        """Bytes of WRITEs answered with OK."""
        self._short = short
        self._refused = refused
        self._asked = 0

    def __call__(self, packet: Packet) -> bytes:
        """The answer to a request."""
        reader = packet.reader
        assert bytes(reader.view()) == self.HANDLE
        number, self._asked = self._asked, self._asked + 1
        if number in self._refused:
            return status(packet, StatusCode.FAILURE, "refused by the test")
        if packet.kind == PacketType.FSTAT:
            if self.stated_size is None:
                return status(packet, StatusCode.OP_UNSUPPORTED)
            return packet_reply(packet, PacketType.ATTRS, Attributes(self.stated_size, mode=self.mode).encode())
        if packet.kind == PacketType.READ:
            offset, length = reader.uint64(), reader.uint32()
            data = bytes(self.content[offset : offset + length])
            if not data:
                return status(packet, StatusCode.EOF)
            return packet_reply(packet, PacketType.DATA, encode_string(data[: self._short(len(data))]))
        if packet.kind == PacketType.WRITE:
            offset, data = reader.uint64(), bytes(reader.view())
            self.content += bytes(max(0, offset + len(data) - len(self.content)))
            self.content[offset : offset + len(data)] = data
            self.written += len(data)
        return status(packet)


def contents(least: int = 0, most: int = 400) -> st.SearchStrategy[bytes]:
    """Generate bytes without near repeats.

    Long and short texts are equally likely.
    """
    return st.integers(least, most).map(lambda size: bytes(number % 251 for number in range(size)))
