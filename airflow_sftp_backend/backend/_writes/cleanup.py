"""Removal of temporary files that interrupted writes left behind, and restoring of backups."""

from __future__ import annotations

import logging

from airflow_sftp_backend.backend._files.operations import list_folder, or_stat
from airflow_sftp_backend.backend._limits import BoundExceeded, Bounds, ListingTally
from airflow_sftp_backend.backend._paths import STALE, JailedPath, is_temp_name, same_writer, token_of
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import LStat, Remove
from airflow_sftp_backend.backend._protocol.scheduler import Operation, Wire, ask_all, post, wait
from airflow_sftp_backend.backend.errors import Refused, SFTPBackendError

from .backups import may_have_backups, remove_backup, restore, settle_backup
from .write_target import Landing

logger = logging.getLogger(__name__)


def recover(wire: Wire, landing: Landing) -> Operation[None]:
    """Clean up after a write, move or copy whose connection was lost.

    A replaced file gets its name back unless another has the name by now. The temporary file is removed.

    :param wire: a new connection
    :param landing: the names of the target, of the temporary file and of the backup
    :raises BackendUnavailable: if the new connection is lost as well
    """
    removing = yield from post(Remove(landing.temp.native))
    if may_have_backups(wire):
        target = landing.target
        looks = [LStat(place.native) for place in (target, target.backup, landing.aside)]
        standing, backup, parked = yield from ask_all(looks)
        if isinstance(backup, Attributes) and isinstance(standing, Attributes):
            yield from remove_backup(target, landing.aside)
        elif isinstance(backup, Attributes):
            yield from restore(wire, target)
        if isinstance(parked, Attributes):
            yield from settle_backup(target, landing.aside)
    try:
        yield from wait(removing)
    except Refused as refused:
        if not refused.missing:
            logger.warning("the temporary file %r could not be removed: %s", landing.temp.native, refused)


def temps_in(folder: JailedPath, bounds: Bounds) -> Operation[list[tuple[JailedPath, int]]]:
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


def _still_old(places: list[JailedPath], now: int) -> Operation[list[JailedPath]]:
    """Look again at temporary files, and return those that nobody has written to for `STALE` seconds. One round trip
    if there are any."""
    answers = yield from ask_all([LStat(place.native) for place in places])
    old: list[JailedPath] = []
    for place, answer in zip(places, answers, strict=True):
        found = yield from or_stat(place, answer)
        if isinstance(found, Attributes) and found.mtime is not None and found.mtime < now - STALE:
            old.append(place)
    return old


def sweep(
    target: JailedPath, temps: list[tuple[JailedPath, int]], now: int, writer: JailedPath | None = None
) -> Operation[None]:
    """Removes those temporary files of ``target`` that nobody has written to for `STALE` seconds before ``now``, the
    server's time; those of the writer that has just landed, by its temporary name ``writer``, at once. Backups of
    ``target`` are removed if it exists, else restored.
    """
    stale: list[JailedPath] = []
    old: list[JailedPath] = []
    for place, written in temps:
        if not target.owns_temp(place.name):
            continue
        if writer is not None and same_writer(token_of(place.name), token_of(writer.name)):
            stale.append(place)
        elif written < now - STALE:
            old.append(place)
    stale += yield from _still_old(old, now)  # ``temps`` may be hours old, and a writer that lives has gone on
    for place in (place for place, _ in temps if target.owns_backup(place.name)):
        if place == target.backup:
            yield from remove_backup(target)
        else:
            yield from settle_backup(target, place)
    for place, answer in zip(stale, (yield from ask_all([Remove(place.native) for place in stale])), strict=True):
        if not isinstance(answer, Refused):
            logger.info("removed %r, left behind by a writer that ended", place.key)
