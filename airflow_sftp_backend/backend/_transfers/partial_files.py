"""Finds temporary files and backups that nobody came back for, on the server and on this machine.

Only files whose names prove that this package made them are touched (`_paths.is_temp_name`), and no link is followed. A
temporary file is removed if nobody has written to it for long enough: by the server's clock on the server; on this
machine also if no living process has it locked. A backup holds the only copy of an old content while its file is
missing: then it gets the file's name back. It is removed only while the file exists.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from airflow_sftp_backend.backend._files.attributes import try_stat
from airflow_sftp_backend.backend._files.listing import is_missing
from airflow_sftp_backend.backend._files.tree import SessionCall, TreeEntry, walk
from airflow_sftp_backend.backend._paths import (
    STALE_SECONDS,
    RemotePath,
    is_backup_name,
    is_temp_name,
    name_digest,
    original_stem,
    temp_or_backup_digest,
)
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.messages import LStat, Remove
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, request_all
from airflow_sftp_backend.backend._writes.backups import remove_backup, resolve_backup
from airflow_sftp_backend.backend.errors import CapabilityNotSupported, InvalidPath, SFTPBackendError, StatusError
from airflow_sftp_backend.backend.models import PartialAction, PartialFile

from .atomic_local_file import open_abandoned
from .comparison import server_time

_RECHECK_DELAY: Final = 3.0
"""Seconds between two looks at a file that is missing beside its backup: a living writer makes its second rename."""


def check_age(older_than: timedelta) -> None:
    """Raise ValueError for an age in which a living writer may well not have written anything."""
    if older_than < timedelta(seconds=STALE_SECONDS):
        raise ValueError(f"older_than is at least one hour, not {older_than}: a living writer may pause for as long")


# -- on the server ----------------------------------------------------------------------------------------------------


def clean_server(call: SessionCall, folder: RemotePath, older_than: timedelta, *, dry_run: bool) -> list[PartialFile]:
    """Remove what nobody came back for below a directory.

    :param call: runs operations on the connection.
    :param folder: the directory; a link is refused.
    :param older_than: how long nobody may have written to a temporary file.
    :param dry_run: remove and restore nothing.
    :returns: what was found, with what was done.
    :raises CapabilityNotSupported: if the server does not tell the times of files.
    :raises SFTPBackendError: for a missing directory, for a file, and for what the server refuses.
    """
    if not folder.is_root:
        attributes = call(lambda scheduler: scheduler.run(try_stat(folder)), idempotent=True)
        if isinstance(attributes, Attributes) and attributes.is_link:
            raise InvalidPath("it is a link, which is not followed; name the directory itself", path=folder.key)
    entries = [entry for entry in walk(call, folder, must_exist=True, with_temps=True) if _is_ours(entry)]
    if not entries:
        return []
    now = call(lambda scheduler: scheduler.run(server_time(folder)))
    if now is None:
        raise CapabilityNotSupported("the server tells no times of files: which are old is unknown", path=folder.key)
    limit = now - older_than.total_seconds()
    temps = [entry for entry in entries if not is_backup_name(entry.path.name)]
    backups = [entry for entry in entries if is_backup_name(entry.path.name)]
    return [*_clean_temps(call, temps, limit, dry_run=dry_run), *_clean_backups(call, backups, dry_run=dry_run)]


def _is_ours(entry: TreeEntry) -> bool:
    return is_temp_name(entry.path.name) and entry.attributes.is_file and not entry.attributes.is_link


def _clean_temps(call: SessionCall, entries: list[TreeEntry], limit: float, *, dry_run: bool) -> list[PartialFile]:
    old = [entry for entry in entries if entry.attributes.mtime is not None and entry.attributes.mtime < limit]
    if dry_run:
        return [_to_partial_file(entry, "would remove") for entry in old]
    outcomes = call(lambda scheduler: scheduler.run_many(_remove_unchanged(entry) for entry in old)) if old else []
    return [
        _to_partial_file(entry, "removed") if outcome is True else _to_partial_file(entry, "left", _reason(outcome))
        for entry, outcome in zip(old, outcomes, strict=True)
    ]


def _remove_unchanged(entry: TreeEntry) -> Operation[bool]:
    """Remove a temporary file unless its writer came back since it was listed. SFTP cannot do both in one step."""
    (attributes,) = yield from request_all([LStat(entry.path.native)])
    if not isinstance(attributes, Attributes) or (attributes.size, attributes.mtime) != (
        entry.attributes.size,
        entry.attributes.mtime,
    ):
        return False
    (answer,) = yield from request_all([Remove(entry.path.native)])
    if isinstance(answer, StatusError):
        raise SFTPBackendError(f"the server refuses to remove it: {answer.text or answer.code}", path=entry.path.key)
    return True


def _reason(outcome: object) -> str:
    return outcome.message if isinstance(outcome, SFTPBackendError) else "its writer came back"


def _clean_backups(call: SessionCall, entries: list[TreeEntry], *, dry_run: bool) -> list[PartialFile]:
    """Remove backups whose files exist, and restore those whose files are missing.

    A backup has the time of the file that it was, so that its age says nothing.
    """
    cleaned: list[PartialFile] = []
    waited = False
    for entry in entries:
        target = _original_path(entry.path)
        if target is None:
            cleaned.append(
                _to_partial_file(entry, "left", "a backup whose name is too long to tell the name of its file")
            )
            continue
        missing = _is_missing(call, target)
        if missing and not waited:
            time.sleep(_RECHECK_DELAY)
            waited = True
        missing = missing and _is_missing(call, target)
        if dry_run:
            cleaned.append(_to_partial_file(entry, "would restore" if missing else "would remove"))
        else:
            cleaned.append(_clean_backup(call, entry, target, missing=missing))
    return cleaned


def _clean_backup(call: SessionCall, backup: TreeEntry, target: RemotePath, *, missing: bool) -> PartialFile:
    def use(scheduler: SFTPScheduler) -> None:
        # both look once more, and rename the backup first where another writer may make one of the same name
        if backup.path == target.backup and not missing:
            scheduler.run(remove_backup(target))
        else:
            scheduler.run(resolve_backup(target, backup.path))

    call(use)
    if _is_missing(call, backup.path):
        return _to_partial_file(backup, "restored" if missing else "removed")
    return _to_partial_file(backup, "left", "a backup that the server does not let this user rename or remove")


def _original_path(backup: RemotePath) -> RemotePath | None:
    """The file that a backup belongs to; None where its name was cut off."""
    stem = original_stem(backup.name)
    return backup.parent.child(stem) if stem and name_digest(stem) == temp_or_backup_digest(backup.name) else None


def _is_missing(call: SessionCall, path: RemotePath) -> bool:
    def operation() -> Operation[bool]:
        answer = yield from try_stat(path)
        return isinstance(answer, StatusError) and (yield from is_missing(path, answer))

    return call(lambda scheduler: scheduler.run(operation()), idempotent=True)


def _to_partial_file(entry: TreeEntry, action: PartialAction, reason: str = "") -> PartialFile:
    modified = None if entry.attributes.mtime is None else datetime.fromtimestamp(entry.attributes.mtime, UTC)
    return PartialFile(entry.path.key, entry.attributes.size or 0, modified, action, reason)


# -- on this machine --------------------------------------------------------------------------------------------------


def clean_local(folder: str | os.PathLike[str], older_than: timedelta, *, dry_run: bool = False) -> list[PartialFile]:
    """Remove partial downloads that nobody came back for below a local directory.

    :param folder: the directory; links below it are not followed.
    :param older_than: how long nobody may have written to a file; at least one hour.
    :param dry_run: remove nothing.
    :returns: what was found, with what was done; a file that a living process has locked is not among it.
    :raises ValueError: for an age below one hour.
    :raises OSError: if the directory cannot be read.
    """
    check_age(older_than)
    limit = time.time() - older_than.total_seconds()
    return [
        partial for path in _local_temps(Path(folder)) if (partial := _clean_local_file(path, limit, dry_run=dry_run))
    ]


def _local_temps(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        if error.filename == os.fspath(folder):
            raise error

    if folder.is_symlink():
        raise NotADirectoryError(f"{os.fspath(folder)!r} is a link, which is not followed; name the directory itself")
    for directory, folders, names in os.walk(folder, onerror=fail):  # enters no links
        folders.sort()
        yield from (Path(directory, name) for name in sorted(names) if is_temp_name(name) and not is_backup_name(name))


def _clean_local_file(path: Path, limit: float, *, dry_run: bool) -> PartialFile | None:
    """Remove a file unless its writer lives; None if it is locked, a link, another user's, or not old enough."""
    descriptor = open_abandoned(path)
    if descriptor is None:
        return None
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode) or state.st_mtime >= limit:
            return None
        modified = datetime.fromtimestamp(state.st_mtime, UTC)
        if dry_run:
            return PartialFile(os.fspath(path), state.st_size, modified, "would remove")
        try:
            with suppress(FileNotFoundError):
                os.unlink(path)
        except OSError as error:
            return PartialFile(os.fspath(path), state.st_size, modified, "left", str(error))
        return PartialFile(os.fspath(path), state.st_size, modified, "removed")
    finally:
        os.close(descriptor)
