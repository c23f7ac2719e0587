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

MAX_READ_WINDOW: Final = 20 << 20
"""Most bytes one download keeps in flight, and less than a channel's bound."""
MAX_UNACKED_BYTES: Final = 32 << 20
"""Most bytes of an upload from the first that is not acknowledged to the last that is sent."""
# bytes of an upload in flight on one channel: what its window does not take waits there
_MAX_WRITE_WINDOW: Final = 8 << 20
_MIN_WRITE_WINDOW: Final = 1 << 20  # bytes in flight where the server is next door: sshd is slow to enlarge its buffers
_MIN_READ_WINDOW: Final = 4 << 20
# of 32 KiB in flight at most, as OpenSSH's client does: some servers keep every one in memory
_MAX_SMALL_BLOCKS: Final = 64
# bytes read of a file that is longer than the server says, to tell its size in the error
_MAX_EXCESS_COUNTED: Final = 16 << 20
_SKIP_BLOCK: Final = 1 << 20  # bytes read at once of what need not be sent again
_INITIAL_READS: Final = 2  # sent along with the question for the size: a small file is complete with them
_ALL_ASKED: Final = -1  # blocks to keep in flight where nothing is left to ask for


class Readable(Protocol):
    """Anything content can be read from."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes, none at the end."""


class UploadSource:
    """What is to be written, taken block by block: bytes-like, or anything with ``.read``.

    Raises TypeError for anything else, at once where that can be told and while reading otherwise. ``size`` is the
    number of bytes taken so far; with ``with_digest`` the SHA-256 of them is kept.
    """

    def __init__(self, content: object, *, with_digest: bool = False) -> None:
        self.size = 0
        self.expected_size: int | None = None
        """Bytes there will be in all, where that is known beforehand."""
        self._hash = hashlib.sha256() if with_digest else None
        self._view: memoryview | None = None
        self._source: Readable | None = None
        if isinstance(content, bytes | bytearray | memoryview):
            self._view = memoryview(content).cast("B")
            self.expected_size = len(self._view)
        elif isinstance(content, str | io.TextIOBase) or not hasattr(content, "read"):
            raise TypeError(
                f"content must be bytes-like or have .read() that returns bytes, not {type(content).__name__}"
            )
        else:
            self._source = content

    def read_block(self, count: int) -> bytes | memoryview:
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
        """True if `read_at` gives bytes."""
        return self._view is not None

    def read_at(self, offset: int, count: int) -> bytes | memoryview | None:
        """Bytes anywhere in it, untaken; None if it can only be taken in order."""
        return None if self._view is None else self._view[offset : offset + count]

    def skip(self, count: int) -> None:
        """Takes the first ``count`` bytes, which need not be sent again."""
        while self.size < count:
            if not len(self.read_block(min(_SKIP_BLOCK, count - self.size))):
                return

    @property
    def digest(self) -> str | None:
        """``sha256:<hex>`` of the bytes taken, or None if it is not kept."""
        return f"sha256:{self._hash.hexdigest()}" if self._hash is not None else None


class PipelinedWriter:
    """Writes to one open file from ``offset`` on, a window of blocks in flight, over the channels that ``striped_file``
    has."""

    def __init__(
        self, striped_file: StripedFile, block_size: int, *, offset: int = 0, progress: Progress | None = None
    ) -> None:
        self.block_size = block_size
        self.offset = offset
        self.handle = striped_file.handle
        self._striped_file = striped_file
        self._progress = progress
        self._queue: deque[tuple[int, Pending[None]]] = deque()
        self._unacknowledged = 0

    def write(self, data: bytes | memoryview) -> Operation[None]:
        """Sends bytes on their way. Raises StatusError for an earlier block that the server refused."""
        view = memoryview(data).cast("B")
        max_blocks = max(
            1,
            min(
                _MAX_SMALL_BLOCKS,
                window_size(self._striped_file.round_trip, _MIN_WRITE_WINDOW, _MAX_WRITE_WINDOW) // self.block_size,
            ),
        )
        for start in range(0, len(view), self.block_size):
            chunk = view[start : start + self.block_size]
            yield from self._striped_file.add_channels(self.offset, self.drain)
            # with nothing of its own to wait for, it waits where the wire lets it: behind what others send
            while self._queue and (
                not self._striped_file.has_room(len(chunk))
                or (self._striped_file.is_single_channel and len(self._queue) >= max_blocks)
                or self._unacknowledged + len(chunk) > MAX_UNACKED_BYTES
            ):
                yield from self._await_oldest()
            channel_handle = self._striped_file.least_loaded
            self._queue.append(
                (
                    len(chunk),
                    (yield from send(Write(channel_handle.handle, self.offset, chunk), channel_handle.channel)),
                )
            )
            self._unacknowledged += len(chunk)
            self.offset += len(chunk)

    def merge_channels(self) -> Operation[None]:
        """Leaves one handle open. With several channels, waits until every byte is acknowledged. Raises StatusError."""
        close_replies = yield from self._striped_file.close()
        if close_replies:
            yield from self.drain()
        for pending in close_replies:
            yield from reply(pending)

    def drain(self) -> Operation[None]:
        """Waits until every byte is acknowledged. Raises StatusError."""
        while self._queue:
            yield from self._await_oldest()

    def _await_oldest(self) -> Operation[None]:
        size, pending = self._queue.popleft()
        self._unacknowledged -= size
        yield from reply(pending)
        if self._progress is not None:
            self._progress(size)


def write_source(source: UploadSource, writer: PipelinedWriter) -> Operation[None]:
    """Sends all of ``source``; the last blocks are still in flight when it returns: see `PipelinedWriter.drain`."""
    while len(data := source.read_block(writer.block_size)):
        yield from writer.write(data)


class PipelinedReader:
    """Reads one open file from front to back, a window of reads in flight. ``path`` is its key, for errors.

    The size is asked for along with the first two blocks, so that a small file takes one round trip; after a file of
    less than a block, along with the first block alone. The file must have that size. With ``to_end`` the file is read
    to its end whatever the size; so is a file whose size the server does not tell. Both are bounded by
    `Bounds.max_file_bytes`.
    """

    def __init__(
        self,
        scheduler: SFTPScheduler,
        handle: bytes,
        block_size: int,
        path: str,
        *,
        offset: int = 0,
        to_end: bool = False,
    ) -> None:
        self.size = offset
        """Bytes delivered so far, those before ``offset`` among them."""
        self.attributes = Attributes()
        """What the server says of the file; known after the first `read_next`."""
        self._handle = handle
        self._block_size = block_size
        self._path = path
        self._to_end = to_end
        self._queue: deque[tuple[Read, Pending[memoryview]]] = deque()
        self._offset = self._next_offset = offset
        self._expected_size: int | None = None
        self._scheduler = scheduler
        self._window_blocks = 0
        self._first = _INITIAL_READS
        self._final_stat: Pending[Attributes] | None = None

    def check_unchanged(self) -> Operation[None]:
        """Compare size and time of the file with those it had at first, after its last bytes.

        The question went out with the last read. A file that a few reads complete is not asked for again.

        :raises TransferCorrupted: another has written to the file meanwhile
        """
        if self._final_stat is None:
            return
        try:
            attributes = yield from reply(self._final_stat)
        except StatusError:
            return
        if (attributes.size, attributes.mtime) != (self.attributes.size, self.attributes.mtime):
            raise TransferCorrupted("the file changed while it was read. Wait until it is stable", path=self._path)

    def read_next(self) -> Operation[memoryview]:
        """The next bytes; none at the end.

        Raises TransferCorrupted if the file has another size than the server says (unless it is read ``to_end``),
        SFTPBackendError if it has more bytes than `Bounds.max_file_bytes`, InvalidPath if it is a folder, StatusError
        if the server refuses a read.
        """
        if not self._window_blocks:
            yield from self._start()
        if len(self._queue) < self._window_blocks:
            yield from self._fill_window()
        if not self._queue:
            return memoryview(b"")
        request, pending = self._queue.popleft()
        data: memoryview = yield pending
        size = self.size + len(data)
        if self._to_end or self._expected_size is None:
            self._scheduler.bounds.check_file_bytes(size, self._path)
        if self._expected_size is not None and (
            size > self._expected_size or (not data and size < self._expected_size)
        ):
            if not self._to_end:
                raise (yield from self._size_error(size, reached_end=not data))
            self._expected_size = None  # the size is not trusted any more: what follows is read as of unknown size
            self._window_blocks = self._max_blocks
        self.size = size
        is_short = len(data) < request.length
        if not data or (is_short and size == self._expected_size and self._scheduler.traits.reads_whole_blocks):
            self._queue.clear()
            self._expected_size = self._next_offset = size
            self._window_blocks = _ALL_ASKED
        elif is_short:  # which proves the end only on some servers; elsewhere the end is read as well
            remainder = Read(self._handle, self.size, request.length - len(data))
            self._queue.appendleft((remainder, (yield from send(remainder))))
        return data

    def _size_error(self, size: int, *, reached_end: bool) -> Operation[TransferCorrupted]:
        """Find out why the file has another number of bytes than the server says; reads on to count them."""
        stated_size = self._expected_size
        assert stated_size is not None
        (current,) = yield from request_all([FStat(self._handle)])
        if isinstance(current, Attributes) and current.size not in (None, stated_size):
            return TransferCorrupted(
                f"the file changed while it was read: it had {stated_size} bytes and has {current.size} now. Wait"
                " until it is stable",
                path=self._path,
            )
        rest_reader = PipelinedReader(
            self._scheduler, self._handle, self._block_size, self._path, offset=size, to_end=True
        )
        max_size = min(size + _MAX_EXCESS_COUNTED, self._scheduler.bounds.max_file_bytes)
        while not reached_end and rest_reader.size < max_size:
            try:
                reached_end = not (yield from rest_reader.read_next())
            except (StatusError, SFTPBackendError):
                break
        return size_mismatch(stated_size, rest_reader.size, self._path, reached_end=reached_end)

    @property
    def _max_blocks(self) -> int:
        """Blocks to keep in flight."""
        if self._block_size <= Limits().read:
            return _MAX_SMALL_BLOCKS
        return max(
            _INITIAL_READS,
            window_size(self._scheduler.round_trip, _MIN_READ_WINDOW, MAX_READ_WINDOW) // self._block_size,
        )

    def _start(self) -> Operation[None]:
        self._window_blocks = self._first = 1 if self._scheduler.reads_small_files else _INITIAL_READS
        stat_reply: Pending[Attributes] = yield FStat(self._handle)
        yield from self._fill_window()
        try:
            self.attributes = yield stat_reply
        except StatusError:  # some servers have no FSTAT
            return
        if self.attributes.is_folder:
            raise InvalidPath("cannot read: it is a folder, not a file", path=self._path)
        if (stated_size := self.attributes.size) is not None:
            self._expected_size = stated_size
            self._window_blocks = self._max_blocks if self._next_offset <= stated_size else _ALL_ASKED
            self._scheduler.reads_small_files = stated_size < self._block_size

    def _fill_window(self) -> Operation[None]:
        """Keeps the window full; the last read of a file of known size asks for the byte after its end."""
        while len(self._queue) < self._window_blocks:
            length = self._block_size
            if self._expected_size is not None:  # the first reads are sent
                if self._next_offset > self._expected_size:
                    if self._final_stat is None and self._next_offset - self._offset > self._first * self._block_size:
                        self._final_stat = yield from send(FStat(self._handle))
                    self._window_blocks = _ALL_ASKED
                    return
                length = max(1, min(length, self._expected_size - self._next_offset))
            request = Read(self._handle, self._next_offset, length)
            self._queue.append((request, (yield request)))
            self._next_offset += length
        if self._expected_size is None:
            self._window_blocks = min(2 * self._window_blocks, self._max_blocks)
