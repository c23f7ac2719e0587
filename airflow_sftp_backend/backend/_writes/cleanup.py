"""Remove temporary files of interrupted writes, and restore backups."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from airflow_sftp_backend.backend._files.attributes import fall_back_to_stat
from airflow_sftp_backend.backend._files.listing import list_folder
from airflow_sftp_backend.backend._paths import (
    STALE_SECONDS,
    RemotePath,
    is_backup_name,
    name_digest,
    same_writer,
    temp_name_token,
    temp_or_backup_digest,
)
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import LStat, Remove
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, reply, request_all, send
from airflow_sftp_backend.backend._receive_limits import LimitExceeded, ListingTally, ReceiveLimits
from airflow_sftp_backend.backend.errors import SFTPBackendError, StatusError

from .backups import may_have_backups, remove_backup, remove_or_restore_backup, restore
from .write_target import WriteTarget

logger = logging.getLogger(__name__)

TempsByDigest = dict[str, list[tuple[RemotePath, int]]]
"""Temporary files and backups in a directory with their times in seconds since 1970, by the digest of their target."""


def roll_back(scheduler: SFTPScheduler, write_target: WriteTarget) -> Operation[None]:
    """Clean up after a write, move or copy with a lost connection.

    Removes the temporary file. A backup is restored unless its target exists, and otherwise removed.

    :param scheduler: a new connection
    :param write_target: the names of the target, the temporary file and the backup
    :raises BackendUnavailable: if the new connection is lost too
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
            yield from remove_or_restore_backup(target, write_target.unique_backup)
    try:
        yield from reply(removal_reply)
    except StatusError as refused:
        if not refused.missing:
            logger.warning("the temporary file %r could not be removed: %s", write_target.temp.native, refused)


def list_temps(folder: RemotePath, limits: ReceiveLimits) -> Operation[TempsByDigest]:
    """Return the temporary files and backups in a directory.

    :param folder: the directory
    :param limits: the limits of the connection
    :returns: the files; empty if the directory cannot be listed
    """
    tally = ListingTally(folder.key, limits)
    try:
        entries = yield from list_folder(folder, tally)
    except LimitExceeded as error:
        logger.warning("temporary files of other writers are not removed: %s", error)
        return {}
    except SFTPBackendError:
        return {}
    finally:
        tally.finish()
    temps: TempsByDigest = {}
    for path, attributes in entries:
        if attributes.mtime and (digest := temp_or_backup_digest(path.name)):
            temps.setdefault(digest, []).append((path, attributes.mtime))
    return temps


def temps_of(
    write_target: WriteTarget, temps_by_directory: Mapping[RemotePath, TempsByDigest]
) -> list[tuple[RemotePath, int]]:
    """Return the temporary files and backups of a target.

    :param write_target: the target
    :param temps_by_directory: the files of each listed directory, as of `list_temps`
    :returns: the files with their times in seconds since 1970
    """
    target, naming = write_target.path, write_target.temp_naming
    temps = temps_by_directory.get(target.parent, {}).get(name_digest(target.name), [])
    if naming.folder is None:
        return temps
    return temps + temps_by_directory.get(naming.folder, {}).get(naming.digest(target), [])


def _recheck_stale(paths: list[RemotePath], now: int) -> Operation[list[RemotePath]]:
    """Return the temporary files unchanged for `STALE_SECONDS` seconds.

    One round trip if there are any.
    """
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
    target: RemotePath, temps: Iterable[tuple[RemotePath, int]], now: int, writer: RemotePath | None = None
) -> Operation[None]:
    """Remove a target's temporary files; remove or restore its backups.

    Only abandoned files are removed.

    A temporary file is abandoned after `STALE_SECONDS` seconds without a change; that of ``writer``, at once.
    Backups are removed if the target exists, and otherwise restored.

    :param target: the target
    :param temps: temporary files and backups of the target, with their times in seconds since 1970
    :param now: the time of the server in seconds since 1970
    :param writer: temporary file of the writer that has just finished
    """
    stale: list[RemotePath] = []
    maybe_stale: list[RemotePath] = []
    backups: list[RemotePath] = []
    for path, mtime in temps:
        if is_backup_name(path.name):
            backups.append(path)
        elif writer is not None and same_writer(temp_name_token(path.name), temp_name_token(writer.name)):
            stale.append(path)
        elif mtime < now - STALE_SECONDS:
            maybe_stale.append(path)
    # ``temps`` may be hours old, and an active writer has changed its file since
    stale += yield from _recheck_stale(maybe_stale, now)
    for path in backups:
        if path == target.backup:
            yield from remove_backup(target)
        else:
            yield from remove_or_restore_backup(target, path)
    for path, answer in zip(stale, (yield from request_all([Remove(path.native) for path in stale])), strict=True):
        if not isinstance(answer, StatusError):
            logger.info("removed %r, abandoned by another writer", path.key)
