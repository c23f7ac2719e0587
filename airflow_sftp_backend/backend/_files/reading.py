"""Reading of whole files."""

from __future__ import annotations

from collections.abc import Callable

from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes, OpenFlag
from airflow_sftp_backend.backend._protocol.messages import (
    Open,
)
from airflow_sftp_backend.backend._protocol.scheduler import (
    Operation,
    SFTPScheduler,
    request,
)
from airflow_sftp_backend.backend._receive_limits import (
    size_mismatch,
)
from airflow_sftp_backend.backend.errors import (
    InvalidPath,
    NotFound,
    SFTPBackendError,
    StatusError,
    from_status,
)

from .attributes import close_quietly, find_blocking_file, try_stat
from .listing import is_missing
from .pipelining import PipelinedReader


def open_for_reading(path: RemotePath) -> Operation[bytes]:
    """Open a file for reading.

    Raises NotFound, or InvalidPath for a directory (on some servers at the first read).
    """
    try:
        return (yield from request(Open(path.native, OpenFlag.READ)))
    except StatusError as refused:
        raise (yield from explain_read_failure(path, refused)) from None


def read_into(
    scheduler: SFTPScheduler, path: RemotePath, sink: Callable[[memoryview], object], *, max_bytes: int | None = None
) -> Operation[None]:
    """Read a file to its end.

    Two round trips for a small file.

    :param scheduler: the scheduler of the connection
    :param path: the file
    :param sink: called with each block in order
    :param max_bytes: maximum size of the file
    :raises TransferCorrupted: if the file ends before the stated size or exceeds ``max_bytes``
    """
    handle = yield from open_for_reading(path)
    try:
        reader = PipelinedReader(scheduler, handle, (yield from scheduler.server_limits()).read, path.key, to_end=True)
        while data := (yield from reader.read_next()):
            if max_bytes is not None and reader.size > max_bytes:
                raise size_mismatch(max_bytes, reader.size, path.key, reached_end=False)
            sink(data)
        if reader.size < (stated_size := reader.attributes.size or 0):
            raise size_mismatch(stated_size, reader.size, path.key)
    except StatusError as refused:
        raise (yield from explain_read_failure(path, refused)) from None
    finally:
        yield from close_quietly(handle)


def explain_read_failure(path: RemotePath, refused: StatusError) -> Operation[SFTPBackendError]:
    """Determine why a read was refused, and create the error."""
    if not refused.missing:
        followed = yield from try_stat(path, follow=True)
        if isinstance(followed, Attributes) and followed.is_folder:
            return InvalidPath(
                "cannot read: the path is a directory, not a file", path=path.key, entry_type="directory"
            )
        if (yield from find_blocking_file(path)) is not None:
            return NotFound("cannot read: a parent of the path is a file", path=path.key)
        if isinstance(followed, StatusError) and (yield from is_missing(path, followed)):
            return NotFound("cannot read: no such file", path=path.key)
    return from_status(refused, "cannot read", path.key)
