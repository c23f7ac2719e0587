"""The mode of a replaced file, set on the file that replaces it.

FSETSTAT goes out with the other requests at the end of a write. Some servers refuse it and take SETSTAT of a path.
"""

from __future__ import annotations

import logging

from airflow_sftp_backend.backend._protocol.channel import Pending
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import FSetStat, SetStat
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, reply, request, send
from airflow_sftp_backend.backend.errors import StatusCode, StatusError

from .write_target import OpenTempFile, WriteTarget

logger = logging.getLogger(__name__)


def send_mode(scheduler: SFTPScheduler, temp_file: OpenTempFile) -> Operation[Pending[None] | None]:
    """Request the mode of the replaced file for the open temporary file, without waiting.

    :param temp_file: the temporary file, and what was found of the file that it replaces
    :returns: the request, for `await_mode`; None if there is no mode to keep, or the server is known to set none
    """
    if temp_file.existing is None or temp_file.existing.mode is None or not scheduler.can_set_modes:
        return None
    return (yield from send(FSetStat(temp_file.handle, Attributes(mode=temp_file.existing.mode & 0o777))))


def await_mode(
    scheduler: SFTPScheduler, write_target: WriteTarget, temp_file: OpenTempFile, mode_reply: Pending[None] | None
) -> Operation[None]:
    """Set the mode by path, before the rename, if the server refused to set it on the open file.

    A server that refuses this too is named in one warning for each connection; the write goes on.

    :param mode_reply: what `send_mode` returned
    """
    if mode_reply is None or temp_file.existing is None or temp_file.existing.mode is None:
        return
    mode = temp_file.existing.mode & 0o777
    try:
        yield from reply(mode_reply)
    except StatusError:
        try:
            yield from request(SetStat(write_target.temp.native, Attributes(mode=mode)))
        except StatusError as refused:
            _warn_once(scheduler, write_target, mode, refused)


def _warn_once(scheduler: SFTPScheduler, write_target: WriteTarget, mode: int, refused: StatusError) -> None:
    """Warn once for each connection. A server that does not know the request is not sent it again."""
    if refused.missing:  # the server has taken the file away, and its mode is the server's business
        return
    if not scheduler.mode_warning_logged:
        scheduler.mode_warning_logged = True
        logger.warning(
            "%r: cannot keep mode %03o of the replaced file: %s. Files that are replaced over this connection may get"
            " the mode that the server gives to new files",
            write_target.path.key,
            mode,
            refused,
        )
    if refused.code != StatusCode.PERMISSION_DENIED:
        scheduler.can_set_modes = False
