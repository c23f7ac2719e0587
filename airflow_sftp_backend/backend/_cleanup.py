"""Removal of temporary files that interrupted writes left behind, and restoring of backups."""

from __future__ import annotations

import logging

from ._codec import Attributes
from ._errors import Refused, SFTPBackendError
from ._limits import BoundExceeded, Bounds, ListingTally
from ._messages import LStat, Remove, Rename
from ._operations import discard, list_folder
from ._paths import STALE, JailedPath, is_temp_name, same_writer, token_of
from ._wire import Operation, ask_all
from ._write_target import Landing

logger = logging.getLogger(__name__)


def recover(landing: Landing) -> Operation[None]:
    """Tidies up after a landing whose connection was lost: a replaced file that still stands aside gets its name back,
    unless something has it by now; what is left of the new one is removed.
    """
    standing, aside = yield from ask_all([LStat(landing.target.native), LStat(landing.aside.native)])
    if isinstance(aside, Attributes):
        if isinstance(standing, Attributes):
            yield from discard(landing.aside)
        elif standing.missing:
            yield from ask_all([Rename(landing.aside.native, landing.target.native)])
    yield from discard(landing.temp)


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


def sweep(
    target: JailedPath, temps: list[tuple[JailedPath, int]], now: int, writer: JailedPath | None = None
) -> Operation[None]:
    """Removes those temporary files of ``target`` that nobody has written to for `STALE` seconds before ``now``, the
    server's time; those of the writer that has just landed, by its temporary name ``writer``, at once.
    """
    stale = [
        place
        for place, written in temps
        if target.owns_temp(place.name)
        and (written < now - STALE or (writer is not None and same_writer(token_of(place.name), token_of(writer.name))))
    ]
    for place, answer in zip(stale, (yield from ask_all([Remove(place.native) for place in stale])), strict=True):
        if not isinstance(answer, Refused):
            logger.info("removed %r, left behind by a writer that ended", place.key)
