"""Set the mode of a replaced file on its replacement.

FSETSTAT is sent with the last requests of a write. Some servers refuse FSETSTAT but accept SETSTAT by path.
"""

from __future__ import annotations

import logging

from airflow_sftp_backend.backend._protocol.channel import Pending
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import FSetStat, SetStat
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, reply, request, send
from airflow_sftp_backend.backend.errors import StatusCode, StatusError

from .write_state import ResumeState
from .write_target import WriteTarget

logger = logging.getLogger(__name__)


def send_mode(scheduler: SFTPScheduler, resume_state: ResumeState) -> Operation[Pending[None] | None]:
    """Set the replaced file's mode on the temporary file.

    Does not wait for the reply.

    :param scheduler: the connection
    :param resume_state: the open temporary file, with the attributes of the file to replace
    :returns: the request, for `await_mode`; None if no file is replaced, or if the server cannot set modes
    """
    existing = resume_state.existing
    if existing is None or existing.mode is None or not scheduler.can_set_modes:
        return None
    return (yield from send(FSetStat(resume_state.handle, Attributes(mode=existing.mode & 0o777))))


def await_mode(
    scheduler: SFTPScheduler, write_target: WriteTarget, existing: Attributes | None, mode_reply: Pending[None] | None
) -> Operation[None]:
    """Wait for the reply to FSETSTAT.

    If the server refuses it, the mode is set by path before the rename.

    If the server refuses both, a warning is logged once for each connection, and the write continues.

    :param scheduler: the connection
    :param write_target: the target
    :param existing: the attributes of the file to replace
    :param mode_reply: the result of `send_mode`
    """
    if mode_reply is None or existing is None or existing.mode is None:
        return
    mode = existing.mode & 0o777
    try:
        yield from reply(mode_reply)
    except StatusError:
        try:
            yield from request(SetStat(write_target.temp.native, Attributes(mode=mode)))
        except StatusError as refused:
            _warn_once(scheduler, write_target, mode, refused)


def _warn_once(scheduler: SFTPScheduler, write_target: WriteTarget, mode: int, refused: StatusError) -> None:
    """Warn once for each connection. An unsupported request is not sent again."""
    if refused.missing:  # the server has taken the file for processing, and sets its mode itself
        return
    if not scheduler.mode_warning_logged:
        scheduler.mode_warning_logged = True
        logger.warning(
            "%r: cannot keep mode %03o of the replaced file: %s. Files replaced over this connection may get the"
            " server's default mode for new files",
            write_target.path.key,
            mode,
            refused,
        )
    if refused.code != StatusCode.PERMISSION_DENIED:
        scheduler.can_set_modes = False
