"""Removal of temporary files that interrupted writes left behind, and restoring of backups."""

from __future__ import annotations

import logging

from airflow_sftp_backend.backend._files.operations import list_folder, or_stat
from airflow_sftp_backend.backend._limits import BoundExceeded, Bounds, ListingTally
from airflow_sftp_backend.backend._paths import STALE_SECONDS, RemotePath, is_temp_name, same_writer, temp_name_token
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import LStat, Remove
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, reply, request_all, send
from airflow_sftp_backend.backend.errors import SFTPBackendError, StatusError

from .backups import may_have_backups, remove_backup, restore, settle_backup
from .write_target import Landing

logger = logging.getLogger(__name__)


def recover(scheduler: SFTPScheduler, landing: Landing) -> Operation[None]:
    """Clean up after a write, move or copy whose connection was lost.

    A replaced file gets its name back unless another has the name by now. The temporary file is removed.

    :param wire: a new connection
    :param landing: the names of the target, of the temporary file and of the backup
    :raises BackendUnavailable: if the new connection is lost as well
    """
    removing = yield from send(Remove(landing.temp.native))
    if may_have_backups(scheduler):
        target = landing.target
        looks = [LStat(place.native) for place in (target, target.backup, landing.aside)]
        standing, backup, parked = yield from request_all(looks)
        if isinstance(backup, Attributes) and isinstance(standing, Attributes):
            yield from remove_backup(target, landing.aside)
        elif isinstance(backup, Attributes):
            yield from restore(scheduler, target)
        if isinstance(parked, Attributes):
            yield from settle_backup(target, landing.aside)
    try:
        yield from reply(removing)
    except StatusError as refused:
        if not refused.missing:
            logger.warning("the temporary file %r could not be removed: %s", landing.temp.native, refused)


def temps_in(folder: RemotePath, bounds: Bounds) -> Operation[list[tuple[RemotePath, int]]]:
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
    return [(place, found.mtime) for place, found in entries if found.mtime and is_temp_name(place.name)]


def _still_old(places: list[RemotePath], now: int) -> Operation[list[RemotePath]]:
    """Look again at temporary files, and return those that nobody has written to for `STALE_SECONDS` seconds. One round
    trip if there are any."""
    answers = yield from request_all([LStat(place.native) for place in places])
    old: list[RemotePath] = []
    for place, answer in zip(places, answers, strict=True):
        found = yield from or_stat(place, answer)
        if isinstance(found, Attributes) and found.mtime is not None and found.mtime < now - STALE_SECONDS:
            old.append(place)
    return old


def sweep(
    target: RemotePath, temps: list[tuple[RemotePath, int]], now: int, writer: RemotePath | None = None
) -> Operation[None]:
    """Removes those temporary files of ``target`` that nobody has written to for `STALE_SECONDS` seconds before
    ``now``, the server's time; those of the writer that has just landed, by its temporary name ``writer``, at once.
    Backups of ``target`` are removed if it exists, else restored.
    """
    stale: list[RemotePath] = []
    old: list[RemotePath] = []
    for place, written in temps:
        if not target.owns_temp(place.name):
            continue
        if writer is not None and same_writer(temp_name_token(place.name), temp_name_token(writer.name)):
            stale.append(place)
        elif written < now - STALE_SECONDS:
            old.append(place)
    stale += yield from _still_old(old, now)  # ``temps`` may be hours old, and a writer that lives has gone on
    for place in (place for place, _ in temps if target.owns_backup(place.name)):
        if place == target.backup:
            yield from remove_backup(target)
        else:
            yield from settle_backup(target, place)
    for place, answer in zip(stale, (yield from request_all([Remove(place.native) for place in stale])), strict=True):
        if not isinstance(answer, StatusError):
            logger.info("removed %r, left behind by a writer that ended", place.key)
