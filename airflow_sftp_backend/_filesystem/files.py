"""Open files of the fsspec file system.

The reader reads ahead, the writer commits on close.
"""

from __future__ import annotations

import errno
import io
import logging
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn, cast

from airflow_sftp_backend.backend import SFTPBackendError, TransferCorrupted
from airflow_sftp_backend.backend.errors import escaped

from .os_errors import as_os_error, os_errors

if TYPE_CHECKING:
    from types import TracebackType

    from _typeshed import ReadableBuffer, WriteableBuffer

    from airflow_sftp_backend.backend import SFTPBackend
    from airflow_sftp_backend.backend._execution.open_files import AtomicWriter, RemoteFile

log = logging.getLogger(__name__)

_BUFFER: Final = 32 << 10
"""Bytes of the buffer: small, because after a seek a whole buffer is read where less is needed."""


class RemoteReader(io.BufferedReader):
    """File open for reading: seekable, buffered, with read-ahead.

    After a seek, only the requested bytes are transferred. Several threads may share the file, as in DuckDB: a read
    after a seek starts at the position of the thread's own seek, even if other threads seek and read in between.

    :param backend: the backend
    :param path: path of the file
    :param owner: kept alive while the file is open
    :raises OSError: if the file does not exist or cannot be read
    """

    _remote: RemoteFile | None = None
    mode = "rb"

    def __init__(self, backend: SFTPBackend, path: str, owner: object = None) -> None:
        self.path = path
        self.fs = owner
        with os_errors():
            self._remote = cast("RemoteFile", backend.read(path))
        self.size = self._remote.size_at_open
        """Size in bytes when the file was opened; None if the server does not report it."""
        self._lock = threading.RLock()
        self._seeks: dict[int, int] = {}  # the position of each thread that has not read since its seek
        self._mover = 0  # the thread that moved the position last
        super().__init__(_RawReader(self._remote, path), _BUFFER)

    def __reduce__(self) -> NoReturn:
        raise _pickling_error(self.path)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Set the position. See `io.IOBase.seek`."""
        with self._lock:
            if whence == io.SEEK_CUR:
                self._restore_position()
            position = super().seek(offset, whence)
            self._mover = threading.get_ident()
            self._seeks[self._mover] = position
            return position

    def tell(self) -> int:
        """Return the position in bytes from the start."""
        with self._lock:
            self._restore_position()
            return super().tell()

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to ``size`` bytes; all to the end if negative."""
        with self._lock:
            self._restore_position()
            return super().read(size)

    def read1(self, size: int = -1, /) -> bytes:
        """Read up to ``size`` bytes with at most one server call."""
        with self._lock:
            self._restore_position()
            return super().read1(size)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill ``buffer``, and return the number of bytes."""
        with self._lock:
            self._restore_position()
            return super().readinto(buffer)

    def readinto1(self, buffer: WriteableBuffer, /) -> int:
        """Read into ``buffer`` with at most one server call.

        :returns: the number of bytes
        """
        with self._lock:
            self._restore_position()
            return super().readinto1(buffer)

    def readline(self, size: int | None = -1, /) -> bytes:
        """Read a line of up to ``size`` bytes."""
        with self._lock:
            self._restore_position()
            return super().readline(size)

    def __next__(self) -> bytes:
        with self._lock:
            self._restore_position()
            return super().__next__()

    def _restore_position(self) -> None:
        """Return to this thread's seek position if another thread moved since."""
        thread = threading.get_ident()
        position = self._seeks.pop(thread, None)
        if self._mover != thread:
            if position is None:
                self._seeks.clear()  # a thread without a seek continues where the other thread stopped
            else:
                super().seek(position)
        self._mover = thread

    def close(self) -> None:
        """Close the file."""
        if self._remote is not None:
            with os_errors():
                self._remote.close()
        super().close()

    def __del__(self) -> None:
        # No request may be sent here: the garbage collector can run between a request and its reply.
        if self._remote is not None:
            self._remote.abandon()
            super().close()


class _RawReader(io.RawIOBase):
    """Read the blocks of an open file of the backend."""

    def __init__(self, remote: RemoteFile, path: str) -> None:
        self._blocks = remote.blocks
        self._size = remote.size_at_open
        self._path = path

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes from the start."""
        return self._blocks.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Set the position. See `io.IOBase.seek`."""
        with os_errors():
            return self._blocks.seek(offset, whence)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read into a part of ``buffer``; return 0 at the end."""
        with os_errors():
            count = self._blocks.readinto(buffer) or 0
        if count == 0 and memoryview(buffer).nbytes:
            self._check_end()
        return count

    def readall(self) -> bytes:
        """Read from the position to the end."""
        with os_errors():
            content = self._blocks.readall()
        self._check_end()
        return content

    def _check_end(self) -> None:
        """Raise an error if the file ends before its former size.

        It was truncated while it was read.
        """
        if self._size is not None and (position := self._blocks.tell()) < self._size:
            message = f"the file ended after {position} of {self._size} bytes: it was changed while it was read. Retry"
            raise as_os_error(TransferCorrupted(message, path=self._path))


class RemoteWriter(io.RawIOBase):
    """File that appears under its name, complete, when it is closed.

    The name does not appear in these cases:

    * a ``with`` block raises
    * ``close`` is called while an exception is handled that was raised after the file was opened
    * a write has failed
    * the file is never closed

    :param writer: the open temporary file
    :param path: path of the file
    :param owner: kept alive while the file is open
    :param autocommit: False to wait for `commit` after the file is closed, as in a transaction of fsspec
    """

    mode = "wb"
    _writer: AtomicWriter | None = None

    def __init__(self, writer: AtomicWriter, path: str, owner: object = None, *, autocommit: bool = True) -> None:
        self.path = path
        self.fs = owner
        self._autocommit = autocommit
        self._is_abandoned = False
        # A file that is opened while an exception is handled may be closed while that exception is still handled.
        self._handled_at_open = sys.exc_info()[1]
        self._writer = writer

    def __reduce__(self) -> NoReturn:
        raise _pickling_error(self.path)

    def writable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the bytes written so far."""
        return self._open_writer().tell()

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of ``data``.

        :param data: the bytes
        :returns: the number of bytes
        :raises OSError: if the server refuses the write, or the connection is lost
        """
        if self._is_abandoned:
            return memoryview(data).nbytes
        if self.closed:
            raise ValueError("write to a closed file")
        with os_errors():
            return self._open_writer().write(data)

    def close(self) -> None:
        """Commit the file, or discard the file after an exception.

        :raises OSError: if the file cannot be committed
        """
        if self.closed:
            return
        super().close()
        if self._is_abandoned:
            return
        handled = sys.exc_info()[1]
        if handled is not None and handled is not self._handled_at_open:
            self._discard_after(handled)
        elif self._writer is not None and self._writer.has_failed:
            self.discard()
            raise OSError(errno.EIO, f"{self.path!r} was not written: an earlier write to the file failed")
        elif self._autocommit:
            self.commit()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not self.closed:
            super().close()
            self._discard_after(error)
        self.close()

    def commit(self) -> None:
        """Commit the file under its name.

        :raises OSError: if the name is a directory, or the server refuses
        """
        if self.closed and self._writer is None:
            return  # discarded after an exception, in a transaction
        if not self.closed:  # at the end of a transaction
            self.discard()
            raise ValueError(f"{self.path!r} is not written: it was not closed before the transaction ended")
        writer, self._writer = self._open_writer(), None
        with os_errors():
            writer.commit()

    def discard(self) -> None:
        """Remove what was written."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with os_errors():
                writer.discard()

    def _discard_after(self, error: BaseException) -> None:
        """Remove what was written, without an exception that would hide ``error``."""
        log.warning("%s is not written, because of %s", escaped(repr(self.path)), type(error).__name__)
        with suppress(SFTPBackendError):
            self.discard()

    def _open_writer(self) -> AtomicWriter:
        if self._writer is None:
            raise ValueError("the file is committed or discarded")
        return self._writer

    def abandon(self) -> None:
        """Send no more requests. What was written stays in a temporary file.

        A wrapper that is collected still writes its buffer and closes the file, without effect.
        """
        self._is_abandoned = True
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abandon()
            log.warning("%s is not written, because the file was never closed", escaped(repr(self.path)))

    def _dealloc_warn(self, source: object) -> None:
        """Abandon the file.

        The io module calls this when the garbage collector finds an open wrapper, such as ``io.BufferedWriter``.
        """
        self.abandon()

    def __del__(self) -> None:
        # No request may be sent here: the garbage collector can run between a request and its reply.
        self.abandon()


def _pickling_error(path: str) -> TypeError:
    return TypeError(f"cannot pickle the open file {path!r}; pickle the file system and the path")
