"""Query the treatment of times by a server."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from airflow_sftp_backend.backend._files.writing import remove_quietly
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes, OpenFlag
from airflow_sftp_backend.backend._protocol.messages import Close, FStat, Open, SetStat, Stat
from airflow_sftp_backend.backend._protocol.scheduler import Operation, request, request_all

from .errors import StatusError, from_status

if TYPE_CHECKING:
    from .sync import SFTPBackend

_NEW: Final = OpenFlag.WRITE | OpenFlag.CREATE | OpenFlag.EXCLUSIVE
_PROBE_MTIME: Final = 1_000_000_001
"""Time for a probe file: long ago, and odd, because some file systems keep even seconds only."""


@dataclass(frozen=True, slots=True)
class TimeSupport:
    """Describe the treatment of times by a server.

    :ivar is_kept: True if the server keeps a time that is set on a file
    :ivar now: the server's time in seconds since 1970, rounded down; None if the server reports no times
    """

    is_kept: bool
    now: int | None


def query_time_support(backend: SFTPBackend, path: str) -> TimeSupport:
    """Set a time on a temporary file, and read the server's clock.

    Six round trips. The file is empty, and is removed.

    :param backend: the server
    :param path: the key of an existing directory for the temporary file
    :returns: the server's treatment of times
    :raises SFTPBackendError: if the file cannot be created
    """
    folder = backend._resolver.resolve(path)
    with backend._resolver.annotate_errors():
        return backend._session.call(lambda scheduler: scheduler.run(_query_time_support(folder)))


def _query_time_support(folder: RemotePath) -> Operation[TimeSupport]:
    probe = folder.child("times").temp(secrets.token_hex(6))
    try:
        handle = yield from request(Open(probe.native, _NEW, Attributes()))
    except StatusError as refused:
        raise from_status(refused, "cannot create a file to test the times of the server", folder.key) from None
    try:
        answers = yield from request_all([FStat(handle), Stat(probe.native)])
        yield from request_all([Close(handle)])
        times = Attributes(atime=_PROBE_MTIME, mtime=_PROBE_MTIME)
        # One after the other, because some servers handle requests in any order.
        (set_answer,) = yield from request_all([SetStat(probe.native, times)])
        (after,) = yield from request_all([Stat(probe.native)])
    finally:
        yield from remove_quietly(probe)
    is_kept = not isinstance(set_answer, StatusError) and isinstance(after, Attributes) and after.mtime == _PROBE_MTIME
    mtimes = [answer.mtime for answer in answers if isinstance(answer, Attributes) and answer.mtime is not None]
    return TimeSupport(is_kept, mtimes[0] if mtimes else None)
