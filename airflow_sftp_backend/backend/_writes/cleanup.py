"""Removal of temporary files that interrupted writes left behind, and restoring of backups."""

from __future__ import annotations

import logging

from airflow_sftp_backend.backend._files.operations import fall_back_to_stat, list_folder
from airflow_sftp_backend.backend._limits import BoundExceeded, Bounds, ListingTally
from airflow_sftp_backend.backend._paths import STALE_SECONDS, RemotePath, is_temp_name, same_writer, temp_name_token
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import LStat, Remove
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, reply, request_all, send
from airflow_sftp_backend.backend.errors import SFTPBackendError, StatusError

from .backups import may_have_backups, remove_backup, resolve_backup, restore
from .write_target import WriteTarget

logger = logging.getLogger(__name__)


def roll_back(scheduler: SFTPScheduler, write_target: WriteTarget) -> Operation[None]:
    """Clean up after a write, move or copy whose connection was lost.

    A replaced file gets its name back unless another has the name by now. The temporary file is removed.

    :param scheduler: a new connection
    :param write_target: the names of the target, of the temporary file and of the backup
    :raises BackendUnavailable: if the new connection is lost as well
    """
    removal_reply = yield from send(Remove(write_target.temp.native))
    if may_have_backups(scheduler):
        target = write_target.path
        requests = [LStat(path.native) for path in (target, target.backup, write_target.unique_backup)]
        existing, backup, unique_backup = yield from request_all(requests)
        if isinstance(backup, Attributes) and isinstance(existing, Attributes):
            yield from remove_backup(target, write_target.unique_backup)
        elif isinstance(backup, Attributes):
            yield from restore(scheduler, target)
        if isinstance(unique_backup, Attributes):
            yield from resolve_backup(target, write_target.unique_backup)
    try:
        yield from reply(removal_reply)
    except StatusError as refused:
        if not refused.missing:
            logger.warning("the temporary file %r could not be removed: %s", write_target.temp.native, refused)


def list_temps(folder: RemotePath, bounds: Bounds) -> Operation[list[tuple[RemotePath, int]]]:
    """The temporary files in a folder, with the times (seconds since 1970) they were last written; none where it
    cannot be listed.
    """
    tally = ListingTally(folder.key, bounds)
    try:
        entries = yield from list_folder(folder, tally)
    except BoundExceeded as error:
        logger.warning("temporary files that others left behind stay for now: %s", error)
        return []
    except SFTPBackendError:
        return []
    finally:
        tally.finish()
    return [(path, attributes.mtime) for path, attributes in entries if attributes.mtime and is_temp_name(path.name)]


def _recheck_stale(paths: list[RemotePath], now: int) -> Operation[list[RemotePath]]:
    """Look again at temporary files, and return those that nobody has written to for `STALE_SECONDS` seconds. One round
    trip if there are any."""
    answers = yield from request_all([LStat(path.native) for path in paths])
    old: list[RemotePath] = []
    for path, answer in zip(paths, answers, strict=True):
        attributes = yield from fall_back_to_stat(path, answer)
        if (
            isinstance(attributes, Attributes)
            and attributes.mtime is not None
            and attributes.mtime < now - STALE_SECONDS
        ):
            old.append(path)
    return old


def remove_stale_temps(
    target: RemotePath, temps: list[tuple[RemotePath, int]], now: int, writer: RemotePath | None = None
) -> Operation[None]:
    """Removes those temporary files of ``target`` that nobody has written to for `STALE_SECONDS` seconds before
    ``now``, the server's time; those of the writer that has just landed, by its temporary name ``writer``, at once.
    Backups of ``target`` are removed if it exists, else restored.
    """
    stale: list[RemotePath] = []
    maybe_stale: list[RemotePath] = []
    for path, mtime in temps:
        if not target.owns_temp(path.name):
            continue
        if writer is not None and same_writer(temp_name_token(path.name), temp_name_token(writer.name)):
            stale.append(path)
        elif mtime < now - STALE_SECONDS:
            maybe_stale.append(path)
    # ``temps`` may be hours old, and a writer that lives has gone on
    stale += yield from _recheck_stale(maybe_stale, now)
    for path in (path for path, _ in temps if target.owns_backup(path.name)):
        if path == target.backup:
            yield from remove_backup(target)
        else:
            yield from resolve_backup(target, path)
    for path, answer in zip(stale, (yield from request_all([Remove(path.native) for path in stale])), strict=True):
        if not isinstance(answer, StatusError):
            logger.info("removed %r, left behind by a writer that ended", path.key)
