"""Provide files that stay open between calls.

They are a seekable reader with read-ahead, and the writer of `open_atomic`.

A file belongs to the connection it was opened on. If the connection is lost, its methods raise BackendUnavailable;
content is never incomplete or mixed.
"""

from __future__ import annotations

import io
import os
import warnings
from collections import deque
from typing import TYPE_CHECKING, Final, TypeVar

from airflow_sftp_backend.backend._files.attributes import close_quietly
from airflow_sftp_backend.backend._files.pipelining import PipelinedWriter, UploadSource
from airflow_sftp_backend.backend._files.reading import explain_read_failure, open_for_reading
from airflow_sftp_backend.backend._files.writing import remove_quietly
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.channel import Pending
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import FStat, Read
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, reply, request, send
from airflow_sftp_backend.backend._protocol.striping import StripedFile
from airflow_sftp_backend.backend._writes.atomic_write import commit
from airflow_sftp_backend.backend._writes.backups import may_have_backups, with_backup_restored
from airflow_sftp_backend.backend._writes.write_state import ResumeState, WriteState
from airflow_sftp_backend.backend._writes.write_target import WriteTarget, open_temp
from airflow_sftp_backend.backend.errors import (
    BackendUnavailable,
    CapabilityNotSupported,
    InvalidPath,
    SFTPBackendError,
    StatusError,
    from_status,
)
from airflow_sftp_backend.backend.models import utc

from .executor import WriteExecutor
from .path_resolver import with_path_in_errors

if TYPE_CHECKING:
    from datetime import datetime

    from _typeshed import ReadableBuffer, WriteableBuffer

    from airflow_sftp_backend.backend._ssh.session import Session

_T = TypeVar("_T")

READ_AHEAD: Final = 4 << 20
"""Maximum bytes requested by an open reader before its caller reads them."""
_BUFFER: Final = 128 << 10
_MAX_SIZE: Final = 1 << 62
"""Maximum size accepted from a server, in bytes: offsets near the end fit in signed 64-bit integers."""


class RemoteFile(io.BufferedReader):
    """File open for reading: seekable, buffered, with read-ahead.

    Closing it closes the server's handle.
    """

    _raw_file: _RawRemoteFile | None = None

    def __init__(self, session: Session, path: RemotePath) -> None:
        self._raw_file = _RawRemoteFile(session, path)
        super().__init__(self._raw_file, _BUFFER)

    @property
    def size_at_open(self) -> int | None:
        """Size in bytes when the file was opened; None if unknown."""
        return None if self._raw_file is None else self._raw_file.size_at_open

    @property
    def modified_at_open(self) -> datetime | None:
        """Time of the file (UTC) when it was opened; None if unknown."""
        return None if self._raw_file is None else self._raw_file.modified_at_open

    @property
    def blocks(self) -> io.RawIOBase:
        """Return the file without its buffer."""
        assert self._raw_file is not None
        return self._raw_file

    def close(self) -> None:
        """Close the file. Ignores a lost connection."""
        if self._raw_file is not None and not self.closed:
            self._raw_file.close_handle()
        super().close()

    def abandon(self) -> None:
        """Close the file without a request.

        The next request of the connection closes the server's handle.
        """
        if self._raw_file is not None and not self.closed:
            self._raw_file.abandon()
            super().close()

    def __del__(self) -> None:
        # No request may be sent here: the garbage collector can run between a request and its reply.
        if self._raw_file is not None and not self.closed:
            warnings.warn(f"unclosed {self._raw_file!r}", ResourceWarning, source=self, stacklevel=2)
            self.abandon()


class _RawRemoteFile(io.RawIOBase):
    """Blocks of an open file, some of them requested in advance."""

    def __init__(self, session: Session, path: RemotePath) -> None:
        self._session = session
        self._path = path
        self._position = 0
        self._current = memoryview(b"")
        self._queue: deque[tuple[Read, Pending[memoryview]]] = deque()
        self._requested_end = 0
        self._sequential_reads = 1
        self._scheduler: SFTPScheduler | None = None
        self._handle = b""
        self.size_at_open: int | None = None
        self.modified_at_open: datetime | None = None
        session.call(self._open, idempotent=True)

    def __repr__(self) -> str:
        path: RemotePath | None = getattr(self, "_path", None)  # missing until __init__ has set it
        return f"<remote file {'not open yet' if path is None else repr(path.key)}>"

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes from the start."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Set the position.

        The end of the file is requested from the server.

        :param offset: bytes, relative to ``whence``
        :param whence: as of `io.IOBase.seek`
        :returns: the position in bytes from the start
        :raises ValueError: for a negative position
        :raises CapabilityNotSupported: if the server does not report the size of the file
        :raises SFTPBackendError: if the reported size is impossible
        """
        if whence == io.SEEK_CUR:
            offset += self._position
        elif whence == io.SEEK_END:
            offset += self._run(self._stat_size())
        elif whence != io.SEEK_SET:
            raise ValueError(f"whence must be 0, 1 or 2, not {whence}")
        if offset < 0:
            raise ValueError(f"negative seek position {offset}")
        distance = offset - self._position
        if 0 <= distance <= len(self._current):
            # within the current block: requested blocks stay in flight
            self._current = self._current[distance:]
        else:
            self._current = memoryview(b"")
            self._queue.clear()
            self._requested_end, self._sequential_reads = offset, 0
        self._position = offset
        return offset

    def readall(self) -> bytes:
        """Read from the position to the end."""
        blocks = [self._current]
        self._position += len(self._current)
        self._current = memoryview(b"")
        while block := self._run(self._next_block(self._remaining_size())):
            blocks.append(block)
            self._position += len(block)
        return b"".join(blocks)

    def _remaining_size(self) -> int:
        """Return the bytes to the end, at least 1.

        The size is that of the file when it was opened.
        """
        return max(1, (self.size_at_open or 0) - self._position)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read into a part of ``buffer``; return 0 at the end."""
        view = memoryview(buffer).cast("B")
        if not self._current:
            try:
                self._current = self._run(self._next_block(len(view)))
            except BaseException:  # the queue may lack a block
                self._queue.clear()
                self._requested_end, self._sequential_reads = self._position, 0
                raise
        count = min(len(view), len(self._current))
        view[:count] = self._current[:count]
        self._current = self._current[count:]
        self._position += count
        return count

    def close_handle(self) -> None:
        """Close the handle unless its connection is lost."""
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None and scheduler.failure is None:
            try:
                self._session.call(
                    lambda current: current.run(close_quietly(self._handle)) if current is scheduler else None
                )
            except BackendUnavailable:  # the handle ended with the connection
                return

    def abandon(self) -> None:
        """Let the scheduler close the handle with its next request."""
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            scheduler.close_later(self._handle)

    def _open(self, scheduler: SFTPScheduler) -> None:
        """Open the file, after restoring its backup if necessary."""
        opening = with_backup_restored(scheduler, self._path, lambda: self._open_on(scheduler))
        self._handle = scheduler.run(with_path_in_errors(self._path, opening))
        self._scheduler = scheduler

    def _open_on(self, scheduler: SFTPScheduler) -> Operation[bytes]:
        """Open the file, with its attributes and its first block.

        Two round trips.
        """
        handle = yield from open_for_reading(self._path)
        opened = False
        try:
            stat_reply = yield from send(FStat(handle))
            first_read = Read(handle, 0, (yield from scheduler.server_limits()).read)
            first_reply = yield from send(first_read)
            try:
                attributes = yield from reply(stat_reply)
            except StatusError:  # some servers do not support FSTAT; for a directory, they refuse the first read
                attributes = Attributes()
                yield from reply(first_reply)
            if attributes.is_folder:
                raise InvalidPath(
                    "cannot read: the path is a directory, not a file", path=self._path.key, entry_type="directory"
                )
            self.size_at_open, self.modified_at_open = attributes.size, utc(attributes.mtime)
            self._queue.clear()
            self._queue.append((first_read, first_reply))
            opened = True
        except StatusError as refused:
            raise (yield from explain_read_failure(self._path, refused)) from None
        finally:
            if not opened:
                yield from close_quietly(handle)
        return handle

    def _run(self, operation: Operation[_T]) -> _T:
        """Run an operation on the connection of the file."""
        return _run_on(self._session, self._scheduler, operation, self._path)

    def _stat_size(self) -> Operation[int]:
        """Request the size of the file in bytes."""
        try:
            size = (yield from request(FStat(self._handle))).size
        except StatusError as refused:
            raise from_status(refused, "cannot find the end of the file", self._path.key) from None
        if size is None:
            raise CapabilityNotSupported(
                "cannot find the end of the file: the server does not report its size", path=self._path.key
            )
        if size > _MAX_SIZE:
            raise SFTPBackendError(
                f"cannot find the end of the file: the server reports an impossible size of {size} bytes",
                path=self._path.key,
            )
        return size

    def _next_block(self, size: int) -> Operation[memoryview]:
        """Send reads for ``size`` bytes and read-ahead; return the next block.

        The block is empty at the end.
        """
        assert self._scheduler is not None
        yield from self._send_reads(self._scheduler, size)
        read, pending = self._queue.popleft()
        try:
            data = yield from reply(pending)
        except StatusError as refused:
            raise (yield from explain_read_failure(self._path, refused)) from None
        self._scheduler.receive_limits.check_file_bytes(read.offset + len(data), self._path.key)
        if not data:
            self._queue.clear()
        elif len(data) < read.length:
            remainder = Read(self._handle, read.offset + len(data), read.length - len(data))
            self._queue.appendleft((remainder, (yield from send(remainder))))
        return data

    def _send_reads(self, scheduler: SFTPScheduler, size: int) -> Operation[None]:
        """Fill the queue with reads for ``size`` bytes and for read-ahead."""
        block_size = (yield from scheduler.server_limits()).read
        max_blocks = max(2, min(64, READ_AHEAD // block_size))
        if self._position + size > self._requested_end:
            self._requested_end = self._position + size
            self._sequential_reads += 1
        # Read-ahead doubles with each sequential read, and starts with the third read after a seek: one read of
        # `io.BufferedReader` can be two of this class, whole buffers and one more buffer for the rest.
        blocks_ahead = (1 << min(max(0, self._sequential_reads - 2), 6)) - 1
        offset = self._queue[-1][0].offset + self._queue[-1][0].length if self._queue else self._position
        end = self._requested_end + blocks_ahead * block_size
        while len(self._queue) < max_blocks and (offset < end or not self._queue):
            read = Read(self._handle, offset, max(1, min(block_size, end - offset)))
            self._queue.append((read, (yield from send(read))))
            offset += read.length


class AtomicWriter(io.RawIOBase):
    """Write a file under a temporary name.

    `commit` renames it to its target, `discard` removes it.

    A writer that is neither committed nor discarded leaves its temporary file on the server, where the next write to
    the target or `SFTPBackend.clean_partials` finds it.

    :param session: the session
    :param executor: cleans up after the write
    :param target: the target and its temporary file
    :raises SFTPBackendError: AlreadyExists, InvalidPath for a directory or a file as parent, and others
    """

    def __init__(self, session: Session, executor: WriteExecutor, target: WriteTarget) -> None:
        self._session = session
        self._executor = executor
        self._target = target
        self._buffer = bytearray()
        self._state = ResumeState()
        self._scheduler: SFTPScheduler | None = None
        self._finished = False
        self.has_failed = False
        """True if a write has failed, so that the file cannot be committed."""
        self._process_id = os.getpid()
        # holds no content, only the digest of the bytes written
        self._content = UploadSource(b"", with_digest=True) if target.verify == "sha256" else None
        try:
            session.call(self._open)
        except BaseException:
            self.discard()
            raise

    def _open(self, scheduler: SFTPScheduler) -> None:
        """Create the temporary file on a connection."""
        self._scheduler = scheduler

        def open_temp_file() -> Operation[None]:
            yield from open_temp(self._target, self._state)
            striped_file = StripedFile(scheduler, self._target.temp, self._state.handle, size=None, channels=1)
            self._writer = PipelinedWriter(striped_file, (yield from scheduler.server_limits()).write)

        scheduler.run(with_path_in_errors(self._target.path, open_temp_file()))

    def writable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the bytes written so far."""
        return self._writer.offset + len(self._buffer)

    def write(self, data: ReadableBuffer, /) -> int:
        """Buffer or send all of ``data``, without waiting for acknowledgement."""
        if self.closed:
            raise ValueError("write to a closed file")
        view = memoryview(data).cast("B")
        try:
            if self._content is not None:
                self._content.add_to_digest(view)
            self._buffer += view
            whole_blocks = len(self._buffer) - len(self._buffer) % self._writer.block_size
            if whole_blocks:
                blocks, self._buffer = self._buffer[:whole_blocks], self._buffer[whole_blocks:]
                self._run(self._writer.write(memoryview(blocks)))
        except BaseException:  # an interruption can lose the block too
            self.has_failed = True
            raise
        return len(view)

    def commit(self) -> datetime | None:
        """Rename the complete file to its target, and close it.

        After a failure the target is as before.

        :returns: the server's time of the file in UTC, None if unknown
        :raises AlreadyExists: if the name is taken
        :raises TransferCorrupted: if the size on the server differs
        :raises BackendUnavailable: if the connection was lost since the file was opened
        """
        if self._finished:
            raise ValueError("commit of a closed file")
        committed = False
        try:
            if self.has_failed:
                raise SFTPBackendError("not written: an earlier write to the file failed", path=self._target.path.key)
            mtime = self._run(self._commit())
            committed = True
            if mtime is not None:
                self._executor.clean_up(self._target.path, mtime)
            return utc(mtime)
        finally:
            self._finish(committed=committed)

    def discard(self) -> None:
        """Remove the temporary file, and close the file.

        Without effect after `commit`.
        """
        if not self._finished:
            self._finish(committed=False)

    def abandon(self) -> None:
        """Close the file without a request.

        The next request of the connection closes the server's handle.
        """
        if not self._finished:
            self._finished = True
            if self._scheduler is not None and (handle := self._state.open_handle) is not None:
                self._scheduler.close_later(handle)
            self.close()

    def _finish(self, *, committed: bool) -> None:
        """Remove the temporary file if it was not committed.

        A lost connection is replaced by a new one.
        """
        self._finished = True
        scheduler = self._scheduler
        if os.getpid() != self._process_id:  # the parent process still writes the temporary file
            self.close()
            return
        try:
            is_opened = self._state.state not in {WriteState.NEW, WriteState.STARTED}
            if not committed and is_opened and scheduler is not None and scheduler.failure is None:
                handle = self._state.open_handle
                self._state.advance(WriteState.ABANDONED)
                self._run(remove_quietly(self._target.temp, handle))
        finally:
            if (
                scheduler is not None
                and scheduler.failure is not None
                and (not committed or may_have_backups(scheduler))
            ):
                self._executor.roll_back([self._target])
            self.close()

    def _commit(self) -> Operation[int | None]:
        """Send the buffer and commit the file."""
        assert self._scheduler is not None
        yield from self._writer.write(memoryview(self._buffer))
        return (yield from commit(self._scheduler, self._target, self._state, self._writer, self._content))

    def _run(self, operation: Operation[_T]) -> _T:
        """Run an operation on the connection of the file."""
        return _run_on(self._session, self._scheduler, self._with_status_errors(operation), self._target.path)

    def _with_status_errors(self, operation: Operation[_T]) -> Operation[_T]:
        """Run an operation, and convert its StatusError."""
        try:
            return (yield from operation)
        except StatusError as refused:
            raise from_status(refused, "cannot write", self._target.path.key) from None


def _run_on(session: Session, scheduler: SFTPScheduler | None, operation: Operation[_T], path: RemotePath) -> _T:
    """Run an operation on the connection of its handle.

    Raises BackendUnavailable on any other connection.
    """

    def use(current: SFTPScheduler) -> _T:
        if current is not scheduler:
            operation.close()
            raise BackendUnavailable("the connection of the open file was lost. Open the file again", path=path.key)
        return current.run(with_path_in_errors(path, operation))

    return session.call(use)
