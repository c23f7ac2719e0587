"""Moving bytes: blocks in flight, in both directions.

Theory. One block per round trip is slow, all blocks at once exhausts a server's memory, so a window of blocks is kept
in flight, and the oldest is waited for first. Therefore all that is in flight lies within one window after the last
byte known to be done: a file whose transfer breaks off is whole up to that byte. Every reply is looked at; a short
read is asked for again; what is held in memory is one window, whatever the file's size. The window is as large as the
round trip asks for.
"""

from __future__ import annotations

import hashlib
import io
from collections import deque
from typing import Final, Protocol

from airflow_sftp_backend.backend._limits import size_mismatch
from airflow_sftp_backend.backend._protocol.channel import Pending
from airflow_sftp_backend.backend._protocol.codec import Attributes, Limits
from airflow_sftp_backend.backend._protocol.messages import FStat, Read, Write
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, reply, request_all, send
from airflow_sftp_backend.backend._protocol.striping import StripedFile, window_size
from airflow_sftp_backend.backend.errors import InvalidPath, SFTPBackendError, StatusError, TransferCorrupted
from airflow_sftp_backend.backend.models import Progress

WINDOW: Final = 20 << 20
"""Most bytes one download keeps in flight, and less than a channel's bound."""
SPAN: Final = 32 << 20
"""Most bytes of an upload from the first that is not acknowledged to the last that is sent."""
_SENT: Final = 8 << 20  # bytes of an upload in flight on one channel: what its window does not take waits there
_NEAR_UP: Final = 1 << 20  # bytes in flight where the server is next door: sshd is slow to enlarge its buffers
_NEAR_DOWN: Final = 4 << 20
_BLOCKS: Final = 64  # of 32 KiB in flight at most, as OpenSSH's client does: some servers keep every one in memory
_COUNTED: Final = 16 << 20  # bytes read of a file that is longer than the server says, to tell its size in the error
_SKIPPED: Final = 1 << 20  # bytes read at once of what need not be sent again
_FIRST_READS: Final = 2  # sent along with the question for the size: a small file is complete with them
_ALL_ASKED: Final = -1  # blocks to keep in flight where nothing is left to ask for


class Readable(Protocol):
    """Anything content can be read from."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes, none at the end."""


class Content:
    """What is to be written, taken block by block: bytes-like, or anything with ``.read``.

    Raises TypeError for anything else, at once where that can be told and while reading otherwise. ``size`` is the
    number of bytes taken so far; with ``hashed`` the SHA-256 of them is kept.
    """

    def __init__(self, content: object, *, hashed: bool = False) -> None:
        self.size = 0
        self.expected: int | None = None
        """Bytes there will be in all, where that is known beforehand."""
        self._hash = hashlib.sha256() if hashed else None
        self._view: memoryview | None = None
        self._source: Readable | None = None
        if isinstance(content, bytes | bytearray | memoryview):
            self._view = memoryview(content).cast("B")
            self.expected = len(self._view)
        elif isinstance(content, str | io.TextIOBase) or not hasattr(content, "read"):
            raise TypeError(
                f"content must be bytes-like or have .read() that returns bytes, not {type(content).__name__}"
            )
        else:
            self._source = content

    def take(self, count: int) -> bytes | memoryview:
        """The next ``count`` bytes, or fewer; none at the end."""
        if self._view is not None:
            data: bytes | memoryview = self._view[self.size : self.size + count]
        else:
            assert self._source is not None
            data = self._source.read(count)
            if not isinstance(data, bytes | bytearray | memoryview):
                raise TypeError(f"content's .read() must return bytes, not {type(data).__name__}")
        self.size += len(data)
        if self._hash is not None:
            self._hash.update(data)
        return data

    @property
    def rereadable(self) -> bool:
        """True if `at` gives bytes."""
        return self._view is not None

    def at(self, offset: int, count: int) -> bytes | memoryview | None:
        """Bytes anywhere in it, untaken; None if it can only be taken in order."""
        return None if self._view is None else self._view[offset : offset + count]

    def skip(self, count: int) -> None:
        """Takes the first ``count`` bytes, which need not be sent again."""
        while self.size < count:
            if not len(self.take(min(_SKIPPED, count - self.size))):
                return

    @property
    def digest(self) -> str | None:
        """``sha256:<hex>`` of the bytes taken, or None if it is not kept."""
        return f"sha256:{self._hash.hexdigest()}" if self._hash is not None else None


class Outgoing:
    """Writes to one open file from ``offset`` on, a window of blocks in flight, over the channels that ``spread``
    has."""

    def __init__(self, spread: StripedFile, block: int, *, offset: int = 0, progress: Progress | None = None) -> None:
        self.block = block
        self.offset = offset
        self.handle = spread.handle
        self._spread = spread
        self._progress = progress
        self._queue: deque[tuple[int, Pending[None]]] = deque()
        self._sent = 0

    def push(self, data: bytes | memoryview) -> Operation[None]:
        """Sends bytes on their way. Raises Refused for an earlier block that the server refused."""
        view = memoryview(data).cast("B")
        most = max(1, min(_BLOCKS, window_size(self._spread.round_trip, _NEAR_UP, _SENT) // self.block))
        for start in range(0, len(view), self.block):
            piece = view[start : start + self.block]
            yield from self._spread.add_channels(self.offset, self.drain)
            # with nothing of its own to wait for, it waits where the wire lets it: behind what others send
            while self._queue and (
                not self._spread.has_room(len(piece))
                or (self._spread.is_single_channel and len(self._queue) >= most)
                or self._sent + len(piece) > SPAN
            ):
                yield from self._acknowledge()
            way = self._spread.least_loaded
            self._queue.append((len(piece), (yield from send(Write(way.handle, self.offset, piece), way.channel))))
            self._sent += len(piece)
            self.offset += len(piece)

    def join(self) -> Operation[None]:
        """Leaves one handle open. With several channels, waits until every byte is acknowledged. Raises Refused."""
        closing = yield from self._spread.close()
        if closing:
            yield from self.drain()
        for pending in closing:
            yield from reply(pending)

    def drain(self) -> Operation[None]:
        """Waits until every byte is acknowledged. Raises Refused."""
        while self._queue:
            yield from self._acknowledge()

    def _acknowledge(self) -> Operation[None]:
        size, pending = self._queue.popleft()
        self._sent -= size
        yield from reply(pending)
        if self._progress is not None:
            self._progress(size)


def write_source(content: Content, out: Outgoing) -> Operation[None]:
    """Sends all of ``content``; the last blocks are still in flight when it returns: see `Outgoing.drain`."""
    while len(data := content.take(out.block)):
        yield from out.push(data)


class Incoming:
    """Reads one open file from front to back, a window of reads in flight. ``path`` is its key, for errors.

    The size is asked for along with the first two blocks, so that a small file takes one round trip; after a file of
    less than a block, along with the first block alone. The file must have that size. With ``to_end`` the file is read
    to its end whatever the size; so is a file whose size the server does not tell. Both are bounded by
    `Bounds.max_file_bytes`.
    """

    def __init__(
        self, scheduler: SFTPScheduler, handle: bytes, block: int, path: str, *, offset: int = 0, to_end: bool = False
    ) -> None:
        self.size = offset
        """Bytes delivered so far, those before ``offset`` among them."""
        self.attributes = Attributes()
        """What the server says of the file; known after the first `next`."""
        self._handle = handle
        self._block = block
        self._path = path
        self._to_end = to_end
        self._queue: deque[tuple[Read, Pending[memoryview]]] = deque()
        self._offset = self._following = offset
        self._promised: int | None = None
        self._scheduler = scheduler
        self._depth = 0
        self._first = _FIRST_READS
        self._last: Pending[Attributes] | None = None

    def check_unchanged(self) -> Operation[None]:
        """Compare size and time of the file with those it had at first, after its last bytes.

        The question went out with the last read. A file that a few reads complete is not asked for again.

        :raises TransferCorrupted: another has written to the file meanwhile
        """
        if self._last is None:
            return
        try:
            now = yield from reply(self._last)
        except StatusError:
            return
        if (now.size, now.mtime) != (self.attributes.size, self.attributes.mtime):
            raise TransferCorrupted("the file changed while it was read. Wait until it is stable", path=self._path)

    def next(self) -> Operation[memoryview]:
        """The next bytes; none at the end.

        Raises TransferCorrupted if the file has another size than the server says (unless it is read ``to_end``),
        SFTPBackendError if it has more bytes than `Bounds.max_file_bytes`, InvalidPath if it is a folder, Refused if
        the server refuses a read.
        """
        if not self._depth:
            yield from self._begin()
        if len(self._queue) < self._depth:
            yield from self._ask_ahead()
        if not self._queue:
            return memoryview(b"")
        request, pending = self._queue.popleft()
        data: memoryview = yield pending
        size = self.size + len(data)
        if self._to_end or self._promised is None:
            self._scheduler.bounds.check_file_bytes(size, self._path)
        if self._promised is not None and (size > self._promised or (not data and size < self._promised)):
            if not self._to_end:
                raise (yield from self._mismatch(size, ended=not data))
            self._promised = None  # the size is not trusted any more: what follows is read as of unknown size
            self._depth = self._most
        self.size = size
        is_short = len(data) < request.length
        if not data or (is_short and size == self._promised and self._scheduler.traits.reads_whole_blocks):
            self._queue.clear()
            self._promised = self._following = size
            self._depth = _ALL_ASKED
        elif is_short:  # which proves the end only on some servers; elsewhere the end is read as well
            rest = Read(self._handle, self.size, request.length - len(data))
            self._queue.appendleft((rest, (yield from send(rest))))
        return data

    def _mismatch(self, size: int, *, ended: bool) -> Operation[TransferCorrupted]:
        """Find out why the file has another number of bytes than the server says; reads on to count them."""
        told = self._promised
        assert told is not None
        (now,) = yield from request_all([FStat(self._handle)])
        if isinstance(now, Attributes) and now.size not in (None, told):
            return TransferCorrupted(
                f"the file changed while it was read: it had {told} bytes and has {now.size} now. Wait until it is"
                " stable",
                path=self._path,
            )
        rest = Incoming(self._scheduler, self._handle, self._block, self._path, offset=size, to_end=True)
        most = min(size + _COUNTED, self._scheduler.bounds.max_file_bytes)
        while not ended and rest.size < most:
            try:
                ended = not (yield from rest.next())
            except (StatusError, SFTPBackendError):
                break
        return size_mismatch(told, rest.size, self._path, reached_end=ended)

    @property
    def _most(self) -> int:
        """Blocks to keep in flight."""
        if self._block <= Limits().read:
            return _BLOCKS
        return max(_FIRST_READS, window_size(self._scheduler.round_trip, _NEAR_DOWN, WINDOW) // self._block)

    def _begin(self) -> Operation[None]:
        self._depth = self._first = 1 if self._scheduler.reads_small_files else _FIRST_READS
        asked: Pending[Attributes] = yield FStat(self._handle)
        yield from self._ask_ahead()
        try:
            self.attributes = yield asked
        except StatusError:  # some servers have no FSTAT
            return
        if self.attributes.is_folder:
            raise InvalidPath("cannot read: it is a folder, not a file", path=self._path)
        if (told := self.attributes.size) is not None:
            self._promised = told
            self._depth = self._most if self._following <= told else _ALL_ASKED
            self._scheduler.reads_small_files = told < self._block

    def _ask_ahead(self) -> Operation[None]:
        """Keeps the window full; the last read of a file of known size asks for the byte after its end."""
        while len(self._queue) < self._depth:
            length = self._block
            if self._promised is not None:  # the first reads are sent
                if self._following > self._promised:
                    if self._last is None and self._following - self._offset > self._first * self._block:
                        self._last = yield from send(FStat(self._handle))
                    self._depth = _ALL_ASKED
                    return
                length = max(1, min(length, self._promised - self._following))
            request = Read(self._handle, self._following, length)
            self._queue.append((request, (yield request)))
            self._following += length
        if self._promised is None:
            self._depth = min(2 * self._depth, self._most)
