"""Write and read files with a window of blocks in flight.

A single block per round trip is slow, and all blocks at once exhaust the memory of a server. So a window of blocks is
in flight. Its size depends on the round trip, and limits the memory for files of any size. The reply to the oldest
block is awaited first: the bytes before that block are complete, and an interrupted transfer resumes there. Every reply
is checked, and the rest of a short read is requested again.
"""

from __future__ import annotations

import hashlib
import io
from collections import deque
from typing import Final, Protocol

from airflow_sftp_backend.backend._protocol.channel import Pending
from airflow_sftp_backend.backend._protocol.codec import Attributes, ServerLimits
from airflow_sftp_backend.backend._protocol.messages import FStat, Read, Write
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, reply, request_all, send
from airflow_sftp_backend.backend._protocol.striping import StripedFile, window_size
from airflow_sftp_backend.backend._receive_limits import size_mismatch
from airflow_sftp_backend.backend.errors import InvalidPath, SFTPBackendError, StatusError, TransferCorrupted
from airflow_sftp_backend.backend.models import Progress

MAX_READ_WINDOW: Final = 20 << 20
"""Maximum bytes of a download in flight, below the limit of a channel."""
MAX_UNACKED_BYTES: Final = 32 << 20
"""Maximum bytes of an upload from the first unacknowledged to the last sent byte."""
# bytes of an upload in flight on a channel; bytes beyond the channel's receive window wait in its queue
_MAX_WRITE_WINDOW: Final = 8 << 20
_MIN_WRITE_WINDOW: Final = 1 << 20  # bytes in flight for a short round trip: sshd enlarges its buffers slowly
_MIN_READ_WINDOW: Final = 4 << 20
# maximum of 32 KiB blocks in flight, as in OpenSSH's client: some servers keep each in memory
_MAX_SMALL_BLOCKS: Final = 64
# bytes read beyond the stated size of a file, to report its actual size in the error
_MAX_EXCESS_COUNTED: Final = 16 << 20
_SKIP_BLOCK: Final = 1 << 20  # bytes per read of a source, to skip bytes already on the server
_INITIAL_READS: Final = 2  # reads sent together with FSTAT, enough for a small file
_ALL_REQUESTED: Final = -1  # value of the window size after the last read was sent


class Readable(Protocol):
    """Source with a ``read`` method."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; empty at the end."""


class UploadSource:
    """Read the content of an upload block by block.

    :param content: bytes-like, or a file object with ``read``
    :param with_digest: whether to compute the SHA-256 of the bytes read
    :raises TypeError: for any other content, either here or in `read_block`
    """

    def __init__(self, content: object, *, with_digest: bool = False) -> None:
        self.size = 0
        self.expected_size: int | None = None
        """Total bytes, if known in advance."""
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
        """Return the next ``count`` bytes or fewer; empty at the end."""
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

    def add_to_digest(self, data: memoryview) -> None:
        """Add bytes to the digest that are sent without `read_block`."""
        if self._hash is not None:
            self._hash.update(data)

    @property
    def rereadable(self) -> bool:
        """True if `read_at` is supported."""
        return self._view is not None

    def read_at(self, offset: int, count: int) -> bytes | memoryview | None:
        """Return bytes at an offset without moving the position.

        The result is None if the content can be read in order only.
        """
        return None if self._view is None else self._view[offset : offset + count]

    def skip(self, count: int) -> None:
        """Skip the first ``count`` bytes, which the server already has."""
        while self.size < count:
            if not len(self.read_block(min(_SKIP_BLOCK, count - self.size))):
                return

    @property
    def digest(self) -> str | None:
        """``sha256:<hex>`` of the bytes read so far; None without ``with_digest``."""
        return f"sha256:{self._hash.hexdigest()}" if self._hash is not None else None


class PipelinedWriter:
    """Write to an open file with blocks in flight.

    One or more channels carry the blocks.

    :param striped_file: the handles of the file
    :param block_size: bytes of a block
    :param offset: offset of the first byte written
    :param progress: called with acknowledged bytes
    """

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
        """Send bytes. Raises StatusError if the server refused an earlier block."""
        view = memoryview(data).cast("B")
        window = window_size(self._striped_file.round_trip, _MIN_WRITE_WINDOW, _MAX_WRITE_WINDOW)
        max_blocks = max(1, min(_MAX_SMALL_BLOCKS, window // self.block_size))
        for start in range(0, len(view), self.block_size):
            chunk = view[start : start + self.block_size]
            yield from self._striped_file.add_channels(self.offset, self.drain)
            # with an empty queue, `send` waits instead, in the scheduler's flow control
            while self._queue and not self._has_room(len(chunk), max_blocks):
                yield from self._await_oldest()
            target = self._striped_file.least_loaded
            pending = yield from send(Write(target.handle, self.offset, chunk), target.channel)
            self._queue.append((len(chunk), pending))
            self._unacknowledged += len(chunk)
            self.offset += len(chunk)

    def _has_room(self, count: int, max_blocks: int) -> bool:
        """Return whether ``count`` more bytes may be in flight."""
        if self._unacknowledged + count > MAX_UNACKED_BYTES:
            return False
        if self._striped_file.is_single_channel and len(self._queue) >= max_blocks:
            return False
        return self._striped_file.has_room(count)

    def merge_channels(self) -> Operation[None]:
        """Close all handles but the first.

        Waits for their data if there are any. Raises StatusError.
        """
        close_replies = yield from self._striped_file.close()
        if close_replies:
            yield from self.drain()
        for pending in close_replies:
            yield from reply(pending)

    def drain(self) -> Operation[None]:
        """Wait until every byte is acknowledged. Raises StatusError."""
        while self._queue:
            yield from self._await_oldest()

    def _await_oldest(self) -> Operation[None]:
        size, pending = self._queue.popleft()
        self._unacknowledged -= size
        yield from reply(pending)
        if self._progress is not None:
            self._progress(size)


def write_source(source: UploadSource, writer: PipelinedWriter) -> Operation[None]:
    """Send all bytes of ``source``.

    The last blocks stay in flight until `PipelinedWriter.drain`.
    """
    while len(data := source.read_block(writer.block_size)):
        yield from writer.write(data)


class PipelinedReader:
    """Read an open file sequentially with a window of reads in flight.

    FSTAT is sent together with the first two reads, so that a small file takes a single round trip. If the previous
    file was smaller than a block, only one read is sent with FSTAT. The content must have the size that FSTAT states.
    With ``to_end`` or without a stated size, the file is read to its end, up to `ReceiveLimits.max_file_bytes`.

    :param scheduler: the scheduler of the connection
    :param handle: the handle of the file
    :param block_size: bytes of a read
    :param path: key of the file, for errors
    :param offset: offset of the first byte read
    :param to_end: whether to ignore the stated size
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
        """Bytes returned so far, including those before ``offset``."""
        self.attributes = Attributes()
        """Attributes of the file, set by the first `read_next`."""
        self._handle = handle
        self._block_size = block_size
        self._path = path
        self._to_end = to_end
        self._queue: deque[tuple[Read, Pending[memoryview]]] = deque()
        self._offset = self._next_offset = offset
        self._expected_size: int | None = None
        self._scheduler = scheduler
        self._window_blocks = 0
        self._first_reads = _INITIAL_READS
        self._final_stat: Pending[Attributes] | None = None

    def check_unchanged(self) -> Operation[None]:
        """Compare size and time of the file with those at its opening.

        FSTAT was sent again with the last read. A file that the first requests read as a whole is not checked.

        :raises TransferCorrupted: if the file was changed meanwhile
        """
        if self._final_stat is None:
            return
        try:
            attributes = yield from reply(self._final_stat)
        except StatusError:
            return
        if (attributes.size, attributes.mtime) != (self.attributes.size, self.attributes.mtime):
            raise TransferCorrupted(
                "the file changed while it was read. Wait until the file is stable", path=self._path
            )

    def read_next(self) -> Operation[memoryview]:
        """Return the next bytes; empty at the end.

        :raises TransferCorrupted: if the size of the file is not the stated size (unless ``to_end``)
        :raises SFTPBackendError: if the file has more than `ReceiveLimits.max_file_bytes`
        :raises InvalidPath: for a directory
        :raises StatusError: if the server refuses a read
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
            self._scheduler.receive_limits.check_file_bytes(size, self._path)
        if self._contradicts_stated_size(size, reached_end=not data):
            if not self._to_end:
                raise (yield from self._size_error(size, reached_end=not data))
            self._expected_size = None  # the stated size is wrong: continue as with an unknown size
            self._window_blocks = self._max_blocks
        self.size = size
        is_short = len(data) < request.length
        if not data or (is_short and size == self._expected_size and self._scheduler.traits.reads_whole_blocks):
            self._queue.clear()
            self._expected_size = self._next_offset = size
            self._window_blocks = _ALL_REQUESTED
        elif is_short:  # on some servers, a short reply does not mean the end of the file: read the rest of the block
            remainder = Read(self._handle, self.size, request.length - len(data))
            self._queue.appendleft((remainder, (yield from send(remainder))))
        return data

    def _contradicts_stated_size(self, size: int, *, reached_end: bool) -> bool:
        """Return whether ``size`` bytes are too many, or too few."""
        if self._expected_size is None:
            return False
        return size > self._expected_size or (reached_end and size < self._expected_size)

    def _size_error(self, size: int, *, reached_end: bool) -> Operation[TransferCorrupted]:
        """Determine why a file differs from its stated size.

        Bytes beyond the stated size are counted.
        """
        stated_size = self._expected_size
        assert stated_size is not None
        (current,) = yield from request_all([FStat(self._handle)])
        if isinstance(current, Attributes) and current.size not in (None, stated_size):
            return TransferCorrupted(
                f"the file changed while it was read, from {stated_size} to {current.size} bytes. Wait until the file"
                " is stable",
                path=self._path,
            )
        rest_reader = PipelinedReader(
            self._scheduler, self._handle, self._block_size, self._path, offset=size, to_end=True
        )
        max_size = min(size + _MAX_EXCESS_COUNTED, self._scheduler.receive_limits.max_file_bytes)
        while not reached_end and rest_reader.size < max_size:
            try:
                reached_end = not (yield from rest_reader.read_next())
            except (StatusError, SFTPBackendError):
                break
        return size_mismatch(stated_size, rest_reader.size, self._path, reached_end=reached_end)

    @property
    def _max_blocks(self) -> int:
        """Size of the window in blocks."""
        if self._block_size <= ServerLimits().read:
            return _MAX_SMALL_BLOCKS
        return max(
            _INITIAL_READS,
            window_size(self._scheduler.round_trip, _MIN_READ_WINDOW, MAX_READ_WINDOW) // self._block_size,
        )

    def _start(self) -> Operation[None]:
        self._window_blocks = self._first_reads = 1 if self._scheduler.reads_small_files else _INITIAL_READS
        stat_reply: Pending[Attributes] = yield FStat(self._handle)
        yield from self._fill_window()
        try:
            self.attributes = yield stat_reply
        except StatusError:  # some servers do not support FSTAT
            return
        if self.attributes.is_folder:
            raise InvalidPath(
                "cannot read: the path is a directory, not a file", path=self._path, entry_type="directory"
            )
        if (stated_size := self.attributes.size) is not None:
            self._expected_size = stated_size
            self._window_blocks = self._max_blocks if self._next_offset <= stated_size else _ALL_REQUESTED
            self._scheduler.reads_small_files = stated_size < self._block_size

    def _fill_window(self) -> Operation[None]:
        """Send reads until the window is full.

        The last read of a known size includes the byte after the end.
        """
        while len(self._queue) < self._window_blocks:
            length = self._block_size
            if self._expected_size is not None:
                if self._next_offset > self._expected_size:
                    first_bytes = self._first_reads * self._block_size
                    if self._final_stat is None and self._next_offset - self._offset > first_bytes:
                        self._final_stat = yield from send(FStat(self._handle))
                    self._window_blocks = _ALL_REQUESTED
                    return
                length = max(1, min(length, self._expected_size - self._next_offset))
            request = Read(self._handle, self._next_offset, length)
            self._queue.append((request, (yield request)))
            self._next_offset += length
        if self._expected_size is None:
            self._window_blocks = min(2 * self._window_blocks, self._max_blocks)
