"""Changes of modes and times."""

from __future__ import annotations

from typing import Final, TypeVar

from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.channel import Pending
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import SetStat, Stat
from airflow_sftp_backend.backend._protocol.scheduler import Operation, reply, request_all, send
from airflow_sftp_backend.backend.errors import (
    CapabilityNotSupported,
    NotFound,
    SFTPBackendError,
    StatusError,
    from_status,
)
from airflow_sftp_backend.backend.models import utc

from .listing import is_missing

R = TypeVar("R")

MODE_BITS: Final = 0o7777
"""Bits of a mode without the type of the file."""
_TIME_RESOLUTION: Final = 2
"""Seconds by which a file system may round a time: FAT keeps even seconds."""


def set_attributes(path: RemotePath, wanted: Attributes) -> Operation[None]:
    """Set mode or times of a path, and check the result.

    Follows links. One round trip.

    :param path: the path
    :param wanted: the mode, or both times
    :raises NotFound: if the path does not exist
    :raises CapabilityNotSupported: if the server does not set the attributes
    """
    set_reply = yield from send(SetStat(path.native, wanted))
    stat_reply = yield from send(Stat(path.native))
    refused: StatusError | None = None
    try:
        yield from reply(set_reply)
    except StatusError as error:
        refused = error
    answer = yield from _reply_or_refusal(stat_reply)
    if isinstance(answer, StatusError) and (yield from is_missing(path, answer)):
        raise NotFound(f"cannot set {noun_of(wanted)}: no such file or directory", path=path.key)
    if refused is not None:
        raise refusal_error(path, wanted, refused)
    if isinstance(answer, Attributes) and difference(wanted, answer) is not None:
        # some servers answer requests in any order, so STAT may have been answered before SETSTAT
        (answer,) = yield from request_all([Stat(path.native)])
    if isinstance(answer, Attributes) and (text := difference(wanted, answer)) is not None:
        raise CapabilityNotSupported(f"the server accepted the change without effect: {text}", path=path.key)


def _reply_or_refusal(pending: Pending[R]) -> Operation[R | StatusError]:
    """Wait for a reply; return a refusal in place of raising it."""
    try:
        return (yield from reply(pending))
    except StatusError as refused:
        return refused


def refusal_error(path: RemotePath, wanted: Attributes, refused: StatusError) -> SFTPBackendError:
    """Create the error for attributes that the server refuses to set."""
    return from_status(refused, f"cannot set {noun_of(wanted)}", path.key)


def noun_of(attributes: Attributes) -> str:
    """Describe the attributes to set, for errors."""
    if attributes.mode is not None:
        return f"mode {attributes.mode & MODE_BITS:03o}"
    return f"the time {_format_time(attributes.mtime)}"


def difference(wanted: Attributes, attributes: Attributes) -> str | None:
    """Describe how the attributes of the file differ.

    :param wanted: the mode, or both times
    :param attributes: the attributes that the server reports
    :returns: None without a difference, and if the server does not report the attribute
    """
    if wanted.mode is not None and attributes.mode is not None:
        bits = attributes.mode & MODE_BITS
        return None if bits == wanted.mode & MODE_BITS else f"the mode is {bits:03o}, not {wanted.mode & MODE_BITS:03o}"
    if wanted.mtime is not None and attributes.mtime is not None:
        if abs(attributes.mtime - wanted.mtime) < _TIME_RESOLUTION:
            return None
        return f"the time is {_format_time(attributes.mtime)}, not {_format_time(wanted.mtime)}"
    return None


def _format_time(seconds: int | None) -> str:
    time = utc(seconds)
    return "unknown" if time is None else time.isoformat()
