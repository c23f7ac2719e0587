"""Files that stay open between calls: a seekable reader that reads ahead, and the writer of `open_atomic`.

Each belongs to the connection it was opened on. Once that is lost they raise BackendUnavailable; never is content
short or mixed.
"""

from __future__ import annotations

import io
import warnings
from collections import deque
from typing import TYPE_CHECKING, Final, TypeVar

from airflow_sftp_backend.backend._files.operations import close_quietly, discard, open_for_reading, why_unreadable
from airflow_sftp_backend.backend._files.pipelining import Outgoing
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.channel import Pending
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import FStat, Read
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, reply, request, send
from airflow_sftp_backend.backend._protocol.striping import StripedFile
from airflow_sftp_backend.backend._writes.atomic_write import land
from airflow_sftp_backend.backend._writes.backups import restoring
from airflow_sftp_backend.backend._writes.write_target import Landing, Opened, open_landing
from airflow_sftp_backend.backend.errors import (
    BackendUnavailable,
    CapabilityNotSupported,
    InvalidPath,
    SFTPBackendError,
    StatusError,
    from_status,
)
from airflow_sftp_backend.backend.models import utc

from .path_resolver import naming

if TYPE_CHECKING:
    from datetime import datetime

    from _typeshed import ReadableBuffer, WriteableBuffer

    from airflow_sftp_backend.backend._ssh.session import Session

_T = TypeVar("_T")

READ_AHEAD: Final = 4 << 20
"""Most bytes an open reader has asked for ahead of its caller."""
_BUFFER: Final = 128 << 10
_LARGEST: Final = 1 << 62
"""Largest size, in bytes, that is believed: offsets near the end of such a file still fit in 64 bits with a sign."""


class RemoteFile(io.BufferedReader):
    """A file open for reading: seekable, buffered, reading ahead. Closing it closes the server's handle."""

    _blocks: _Blocks | None = None

    def __init__(self, session: Session, place: RemotePath) -> None:
        self._blocks = _Blocks(session, place)
        super().__init__(self._blocks, _BUFFER)

    @property
    def size_at_open(self) -> int | None:
        """The size, in bytes, that the server gave when the file was opened; None if it gave none."""
        return None if self._blocks is None else self._blocks.size_at_open

    @property
    def modified_at_open(self) -> datetime | None:
        """The time (UTC) that the server gave when the file was opened; None if it gave none."""
        return None if self._blocks is None else self._blocks.modified_at_open

    def close(self) -> None:
        """Closes it; a lost connection is no error here."""
        if self._blocks is not None and not self.closed:
            self._blocks.release()
        super().close()

    def __del__(self) -> None:
        # Nothing may be sent from here: the collector can run in the middle of a conversation.
        if self._blocks is not None and not self.closed:
            self._blocks.forsake()
            warnings.warn(f"unclosed {self._blocks!r}", ResourceWarning, source=self, stacklevel=2)
            super().close()


class _Blocks(io.RawIOBase):
    """The blocks of an open file, a few of them asked for before they are wanted."""

    def __init__(self, session: Session, place: RemotePath) -> None:
        self._session = session
        self._place = place
        self._position = 0
        self._current = memoryview(b"")
        self._queue: deque[tuple[Read, Pending[memoryview]]] = deque()
        self._ahead = 1
        self._scheduler: SFTPScheduler | None = None
        self._handle = b""
        self.size_at_open: int | None = None
        self.modified_at_open: datetime | None = None
        session.call(self._open, idempotent=True)

    def __repr__(self) -> str:
        place: RemotePath | None = getattr(self, "_place", None)  # none yet while it is being set up
        return f"<remote file {'not open yet' if place is None else repr(place.key)}>"

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Bytes from the start."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves to an offset in bytes; the end is where the server says it is now.

        Raises ValueError for a negative position, as files do; CapabilityNotSupported if the server does not say where
        the end is, SFTPBackendError if no file can have one there.
        """
        if whence == io.SEEK_CUR:
            offset += self._position
        elif whence == io.SEEK_END:
            offset += self._run(self._ask_size())
        elif whence != io.SEEK_SET:
            raise ValueError(f"whence must be 0, 1 or 2, not {whence}")
        if offset < 0:
            raise ValueError(f"negative seek position {offset}")
        step = offset - self._position
        if 0 <= step <= len(self._current):
            self._current = self._current[step:]
        else:
            self._current = memoryview(b"")
            self._queue.clear()
            self._ahead = 1
        self._position = offset
        return offset

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fills some of ``buffer``; 0 at the end."""
        if not self._current:
            self._current = self._run(self._next_block())
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._current))
        view[:count] = self._current[:count]
        self._current = self._current[count:]
        self._position += count
        return count

    def release(self) -> None:
        """Closes the handle, if its connection is still there."""
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None and scheduler.broken is None:
            try:
                self._session.call(lambda now: now.run(close_quietly(self._handle)) if now is scheduler else None)
            except BackendUnavailable:  # the handle went with the connection
                return

    def forsake(self) -> None:
        """Leaves the handle to be closed with the next thing sent."""
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            scheduler.close_later(self._handle)

    def _open(self, scheduler: SFTPScheduler) -> None:
        opening = restoring(scheduler, self._place, lambda: self._open_here(scheduler))
        self._handle = scheduler.run(naming(self._place, opening))
        self._scheduler = scheduler

    def _open_here(self, scheduler: SFTPScheduler) -> Operation[bytes]:
        handle = yield from open_for_reading(self._place)
        opened = False
        try:
            asked = yield from send(FStat(handle))
            request = Read(handle, 0, (yield from scheduler.limits()).read)
            first = yield from send(request)
            try:
                attributes = yield from reply(asked)
            except StatusError:  # some servers have no FSTAT; a folder refuses the first read
                attributes = Attributes()
                yield from reply(first)
            if attributes.is_folder:
                raise InvalidPath("cannot read: it is a folder, not a file", path=self._place.key)
            self.size_at_open, self.modified_at_open = attributes.size, utc(attributes.mtime)
            self._queue.clear()
            self._queue.append((request, first))
            opened = True
        except StatusError as refused:
            raise (yield from why_unreadable(self._place, refused)) from None
        finally:
            if not opened:
                yield from close_quietly(handle)
        return handle

    def _run(self, operation: Operation[_T]) -> _T:
        return _run_on(self._session, self._scheduler, operation, self._place)

    def _ask_size(self) -> Operation[int]:
        try:
            size = (yield from request(FStat(self._handle))).size
        except StatusError as refused:
            raise from_status(refused, "cannot find its end", self._place.key) from None
        if size is None:
            raise CapabilityNotSupported(
                "cannot find its end: the server does not tell the size of the file", path=self._place.key
            )
        if size > _LARGEST:
            raise SFTPBackendError(
                f"cannot find its end: the server says that the file has {size} bytes, more than a file can have",
                path=self._place.key,
            )
        return size

    def _next_block(self) -> Operation[memoryview]:
        assert self._scheduler is not None
        block = (yield from self._scheduler.limits()).read
        most = max(2, min(64, READ_AHEAD // block))
        at = self._queue[-1][0].offset + self._queue[-1][0].length if self._queue else self._position
        while len(self._queue) < self._ahead:
            request = Read(self._handle, at, block)
            self._queue.append((request, (yield from send(request))))
            at += block
        self._ahead = min(2 * self._ahead, most)
        request, pending = self._queue.popleft()
        try:
            data = yield from reply(pending)
        except StatusError as refused:
            raise (yield from why_unreadable(self._place, refused)) from None
        self._scheduler.bounds.check_file_bytes(request.offset + len(data), self._place.key)
        if not data:
            self._queue.clear()
        elif len(data) < request.length:
            rest = Read(self._handle, request.offset + len(data), request.length - len(data))
            self._queue.appendleft((rest, (yield from send(rest))))
        return data


class AtomicWriter(io.RawIOBase):
    """A file being written under a temporary name; `commit` gives it its own, `abort` removes it.

    Nothing is sent before `open`.
    """

    def __init__(self, session: Session, landing: Landing) -> None:
        self._session = session
        self._landing = landing
        self._buffer = bytearray()
        self._opened: Opened | None = None
        self.scheduler: SFTPScheduler | None = None
        """The connection it is open on, or was being opened on."""

    def open(self) -> None:
        """Make the temporary file.

        :raises SFTPBackendError: AlreadyExists, InvalidPath for a directory or a file in the way, and others
        """
        self._session.call(self._open)

    def _open(self, scheduler: SFTPScheduler) -> None:
        self.scheduler = scheduler

        def opening() -> Operation[None]:
            self._opened = yield from open_landing(self._landing)
            spread = StripedFile(scheduler, self._landing.temp, self._opened.handle, size=None, channels=1)
            self._out = Outgoing(spread, (yield from scheduler.limits()).write)

        scheduler.run(naming(self._landing.target, opening()))

    def writable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self._out.offset + len(self._buffer)

    def write(self, data: ReadableBuffer, /) -> int:
        """Takes all of ``data``; it is on its way, not yet acknowledged, when this returns."""
        if self.closed:
            raise ValueError("write to a closed file")
        view = memoryview(data).cast("B")
        self._buffer += view
        whole = len(self._buffer) - len(self._buffer) % self._out.block
        if whole:
            blocks, self._buffer = self._buffer[:whole], self._buffer[whole:]
            self._run(self._out.push(memoryview(blocks)))
        return len(view)

    def commit(self) -> int | None:
        """Lands the file. The server's time, where it tells."""
        return self._run(self._finish())

    def abort(self) -> None:
        """Removes the temporary file, if the connection is still there."""
        if self._opened is not None and self.scheduler is not None and self.scheduler.broken is None:
            self._run(discard(self._landing.temp, self._opened.unclosed))

    def _finish(self) -> Operation[int | None]:
        assert self.scheduler is not None
        assert self._opened is not None
        yield from self._out.push(memoryview(self._buffer))
        return (yield from land(self.scheduler, self._landing, self._opened, self._out, None))

    def _run(self, operation: Operation[_T]) -> _T:
        return _run_on(self._session, self.scheduler, self._explained(operation), self._landing.target)

    def _explained(self, operation: Operation[_T]) -> Operation[_T]:
        try:
            return (yield from operation)
        except StatusError as refused:
            raise from_status(refused, "cannot write", self._landing.target.key) from None


def _run_on(session: Session, scheduler: SFTPScheduler | None, operation: Operation[_T], place: RemotePath) -> _T:
    """Runs it on that very connection: a handle means nothing to another."""

    def use(now: SFTPScheduler) -> _T:
        if now is not scheduler:
            operation.close()
            raise BackendUnavailable("the connection this file was opened on is gone; open it again", path=place.key)
        return now.run(naming(place, operation))

    return session.call(use)
