"""Set the time of a source on its copy.

The time is set by path between CLOSE and the rename.

Some servers change the time of a file once more when its handle is closed, and some refuse FSETSTAT only.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from airflow_sftp_backend.backend._protocol.channel import Pending
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import SetStat
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, reply, send
from airflow_sftp_backend.backend.errors import StatusCode, StatusError

from .write_state import ResumeState
from .write_target import WriteTarget

logger = logging.getLogger(__name__)

_TIME_LIMIT: Final = 1 << 32  # times are uint32, filexfer-02 section 5


def source_mtime(status: os.stat_result) -> int | None:
    """Return the time of a local file in seconds since 1970.

    The result is None for a time that SFTP 3 cannot carry.
    """
    seconds = status.st_mtime_ns // 1_000_000_000
    return seconds if 0 <= seconds < _TIME_LIMIT else None


def send_time(scheduler: SFTPScheduler, write_target: WriteTarget) -> Operation[Pending[None] | None]:
    """Request the time of the source for the temporary file, without waiting.

    :param scheduler: the connection
    :param write_target: the target with its time
    :returns: the request, for `await_time`; None without a time, or if the server cannot set times
    """
    if write_target.mtime is None or not scheduler.can_set_times:
        return None
    times = Attributes(atime=write_target.mtime, mtime=write_target.mtime)
    return (yield from send(SetStat(write_target.temp.native, times)))


def await_time(
    scheduler: SFTPScheduler, write_target: WriteTarget, resume_state: ResumeState, time_reply: Pending[None] | None
) -> Operation[None]:
    """Wait for the reply to SETSTAT.

    If the server refuses it, a warning is logged once for each connection.

    :param scheduler: the connection
    :param write_target: the target with its time
    :param resume_state: the state of the write; gets the time that was set
    :param time_reply: the result of `send_time`
    """
    if time_reply is None:
        return
    try:
        yield from reply(time_reply)
    except StatusError as refused:
        _warn_once(scheduler, write_target, refused)
    else:
        resume_state.kept_mtime = write_target.mtime


def _warn_once(scheduler: SFTPScheduler, write_target: WriteTarget, refused: StatusError) -> None:
    """Warn once for each connection. An unsupported request is not sent again."""
    if refused.missing:  # the server has taken the file for processing
        return
    if not scheduler.time_warning_logged:
        scheduler.time_warning_logged = True
        logger.warning(
            "%r: cannot keep the time of the source: %s. Files written over this connection may get the time of the"
            " transfer",
            write_target.path.key,
            refused,
        )
    if refused.code != StatusCode.PERMISSION_DENIED:
        scheduler.can_set_times = False
