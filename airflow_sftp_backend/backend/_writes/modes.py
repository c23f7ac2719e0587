"""Set the mode of a written file.

The mode is the one that the caller specifies, or that of a replaced file.

FSETSTAT is sent with the last requests of a write. Some servers refuse FSETSTAT but accept SETSTAT by path.
"""

from __future__ import annotations

import logging

from airflow_sftp_backend.backend._files.attribute_changes import MODE_BITS
from airflow_sftp_backend.backend._protocol.channel import Pending
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import FSetStat, SetStat, Stat
from airflow_sftp_backend.backend._protocol.scheduler import (
    Operation,
    SFTPScheduler,
    reply,
    request,
    request_all,
    send,
)
from airflow_sftp_backend.backend.errors import CapabilityNotSupported, StatusCode, StatusError, from_status

from .write_state import ResumeState
from .write_target import WriteTarget

logger = logging.getLogger(__name__)


def send_mode(
    scheduler: SFTPScheduler, write_target: WriteTarget, resume_state: ResumeState
) -> Operation[Pending[None] | None]:
    """Send FSETSTAT with the target's mode for the temporary file.

    Does not wait for the reply.

    :param scheduler: the connection
    :param write_target: the target, with its mode if specified
    :param resume_state: the open temporary file, with the attributes of the file to replace
    :returns: the request, for `await_mode`; None without a mode to set, or if the server cannot keep modes
    """
    mode = _mode_to_set(write_target, resume_state.existing)
    if mode is None or (write_target.mode is None and not scheduler.can_set_modes):
        return None
    return (yield from send(FSetStat(resume_state.handle, Attributes(mode=mode))))


def _mode_to_set(write_target: WriteTarget, existing: Attributes | None) -> int | None:
    if write_target.mode is not None:
        return write_target.mode
    return None if existing is None or existing.mode is None else existing.mode & 0o777


def await_mode(
    scheduler: SFTPScheduler, write_target: WriteTarget, existing: Attributes | None, mode_reply: Pending[None] | None
) -> Operation[None]:
    """Wait for the reply to FSETSTAT.

    If the server refuses it, the mode is set by path before the rename.

    If the server refuses both, the write continues with a warning, logged once for each connection.

    :param scheduler: the connection
    :param write_target: the target
    :param existing: the attributes of the file to replace
    :param mode_reply: the result of `send_mode`
    :raises SFTPBackendError: if the server refuses a mode that the caller has specified
    """
    mode = _mode_to_set(write_target, existing)
    if mode_reply is None or mode is None:
        return
    try:
        yield from reply(mode_reply)
    except StatusError:
        try:
            yield from request(SetStat(write_target.temp.native, Attributes(mode=mode)))
        except StatusError as refused:
            if write_target.mode is not None:
                raise from_status(refused, f"cannot set mode {mode:03o}", write_target.path.key) from None
            _warn_once(scheduler, write_target, mode, refused)


def verify_mode(write_target: WriteTarget, written: Attributes) -> Operation[None]:
    """Compare the mode of the temporary file with the specified mode.

    :param write_target: the target
    :param written: the attributes of the temporary file, requested after FSETSTAT
    :raises CapabilityNotSupported: if the server has accepted the mode without effect
    """
    if write_target.mode is None or written.mode is None or written.mode & MODE_BITS == write_target.mode:
        return
    # the mode may have been set by path, or FSTAT answered before FSETSTAT
    (answer,) = yield from request_all([Stat(write_target.temp.native)])
    actual_mode = written.mode if isinstance(answer, StatusError) or answer.mode is None else answer.mode
    if actual_mode & MODE_BITS != write_target.mode:
        raise CapabilityNotSupported(
            f"cannot set mode {write_target.mode:03o}: the server gives the file mode {actual_mode & MODE_BITS:03o}",
            path=write_target.path.key,
        )


def _warn_once(scheduler: SFTPScheduler, write_target: WriteTarget, mode: int, refused: StatusError) -> None:
    """Warn once for each connection.

    FSETSTAT of kept modes is not sent again, unless the refusal is PERMISSION_DENIED or the file is missing.
    """
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
