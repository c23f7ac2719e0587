"""Remove abandoned temporary files, on the server and on this machine.

Only files with the names of this package are changed (`_paths.is_temp_name`). Links are not followed.

* On the server, a temporary file is removed if it has not changed for long enough by the server's clock.
* On this machine, a temporary file is removed if it has not changed for long enough and no live process has locked it.
* A backup is removed if its file exists. Otherwise the backup is the only copy of the old content, and is restored.
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
from airflow_sftp_backend.backend._files.listed_directory import TreeEntry
from airflow_sftp_backend.backend._files.listing import is_missing
from airflow_sftp_backend.backend._files.server_clock import read_server_clock
from airflow_sftp_backend.backend._files.tree import SessionCall, walk
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
from airflow_sftp_backend.backend._writes.backups import remove_backup, remove_or_restore_backup
from airflow_sftp_backend.backend.errors import CapabilityNotSupported, InvalidPath, SFTPBackendError, StatusError
from airflow_sftp_backend.backend.models import PartialAction, PartialFile

from .atomic_local_file import open_abandoned

_RECHECK_DELAY: Final = 3.0
"""Seconds between two checks for a file missing beside its backup: time for a live writer to rename again."""


def check_age(older_than: timedelta) -> None:
    """Check that an age exceeds the pauses of live writers. Raises ValueError."""
    if older_than < timedelta(seconds=STALE_SECONDS):
        raise ValueError(f"older_than must be at least one hour, not {older_than}: a live writer may pause as long")


# -- on the server ----------------------------------------------------------------------------------------------------


def clean_server(call: SessionCall, folder: RemotePath, older_than: timedelta, *, dry_run: bool) -> list[PartialFile]:
    """Remove abandoned temporary files and backups below a directory.

    :param call: the session
    :param folder: the directory; a link is refused
    :param older_than: minimum time since the last modification of a temporary file
    :param dry_run: whether to only report
    :returns: the files, with the action for each
    :raises CapabilityNotSupported: if the server does not report the times of files
    :raises SFTPBackendError: for a missing directory, for a file, and for a refusal of the server
    """
    if not folder.is_root:
        attributes = call(lambda scheduler: scheduler.run(try_stat(folder)), idempotent=True)
        if isinstance(attributes, Attributes) and attributes.is_link:
            raise InvalidPath(
                "the path is a link, and links are not followed. Name the directory itself", path=folder.key
            )
    entries = [entry for entry in walk(call, folder, must_exist=True, with_temps=True) if _is_ours(entry)]
    if not entries:
        return []
    now = call(lambda scheduler: scheduler.run(read_server_clock(folder)))
    if now is None:
        raise CapabilityNotSupported("cannot determine the age of files: the server reports no times", path=folder.key)
    limit = now - older_than.total_seconds()
    temps = [entry for entry in entries if not is_backup_name(entry.path.name)]
    backups = [entry for entry in entries if is_backup_name(entry.path.name)]
    return [*_clean_temps(call, temps, limit, dry_run=dry_run), *_clean_backups(call, backups, dry_run=dry_run)]


def _is_ours(entry: TreeEntry) -> bool:
    """Return whether an entry is a temporary file or a backup."""
    return is_temp_name(entry.path.name) and entry.attributes.is_file and not entry.attributes.is_link


def _clean_temps(call: SessionCall, entries: list[TreeEntry], limit: float, *, dry_run: bool) -> list[PartialFile]:
    """Remove temporary files unchanged since ``limit``, in seconds since 1970."""
    old = [entry for entry in entries if entry.attributes.mtime is not None and entry.attributes.mtime < limit]
    if dry_run:
        return [_to_partial_file(entry, "would remove") for entry in old]
    if not old:
        return []  # without a request
    outcomes = call(lambda scheduler: scheduler.run_many(_remove_unchanged(entry) for entry in old))
    files: list[PartialFile] = []
    for entry, outcome in zip(old, outcomes, strict=True):
        if outcome is True:
            files.append(_to_partial_file(entry, "removed"))
        else:
            files.append(_to_partial_file(entry, "kept", _reason(outcome)))
    return files


def _remove_unchanged(entry: TreeEntry) -> Operation[bool]:
    """Remove a temporary file unless it has changed since the listing."""
    # SFTP cannot compare and remove in one step: a change in between is lost.
    (attributes,) = yield from request_all([LStat(entry.path.native)])
    if not isinstance(attributes, Attributes) or (attributes.size, attributes.mtime) != (
        entry.attributes.size,
        entry.attributes.mtime,
    ):
        return False
    (answer,) = yield from request_all([Remove(entry.path.native)])
    if isinstance(answer, StatusError):
        raise SFTPBackendError(f"the server refuses the removal: {answer.text or answer.code}", path=entry.path.key)
    return True


def _reason(outcome: object) -> str:
    """Say why a file was not removed."""
    return outcome.message if isinstance(outcome, SFTPBackendError) else "its writer is active again"


def _clean_backups(call: SessionCall, entries: list[TreeEntry], *, dry_run: bool) -> list[PartialFile]:
    """Remove backups of existing files, and restore missing files from their backups."""
    # The age of a backup is not checked, because a backup keeps the time of its file.
    cleaned: list[PartialFile] = []
    waited = False
    for entry in entries:
        target = _original_path(entry.path)
        if target is None:
            cleaned.append(
                _to_partial_file(entry, "kept", "a backup whose name is too long to contain the name of its file")
            )
            continue
        missing = _is_missing(call, target)
        if missing and not waited:
            time.sleep(_RECHECK_DELAY)
            # a single wait serves all backups, which were listed before it
            waited = True
        missing = missing and _is_missing(call, target)
        if dry_run:
            cleaned.append(_to_partial_file(entry, "would restore" if missing else "would remove"))
        else:
            cleaned.append(_clean_backup(call, entry, target, missing=missing))
    return cleaned


def _clean_backup(call: SessionCall, backup: TreeEntry, target: RemotePath, *, missing: bool) -> PartialFile:
    """Remove or restore a backup, and report the result."""

    def clean(scheduler: SFTPScheduler) -> None:
        # Both operations check again whether the file exists. `target.backup` is the name that all writers of the file
        # use, so remove_backup first renames the backup to a unique name.
        if backup.path == target.backup and not missing:
            scheduler.run(remove_backup(target))
        else:
            scheduler.run(remove_or_restore_backup(target, backup.path))

    call(clean)
    if _is_missing(call, backup.path):
        return _to_partial_file(backup, "restored" if missing else "removed")
    return _to_partial_file(backup, "kept", "the server refuses to rename or remove the backup")


def _original_path(backup: RemotePath) -> RemotePath | None:
    """Return the file of a backup.

    The result is None if the backup's name does not contain the whole name.
    """
    stem = original_stem(backup.name)
    return backup.parent.child(stem) if stem and name_digest(stem) == temp_or_backup_digest(backup.name) else None


def _is_missing(call: SessionCall, path: RemotePath) -> bool:
    """Return whether a file is known to be missing."""

    def operation() -> Operation[bool]:
        answer = yield from try_stat(path)
        return isinstance(answer, StatusError) and (yield from is_missing(path, answer))

    return call(lambda scheduler: scheduler.run(operation()), idempotent=True)


def _to_partial_file(entry: TreeEntry, action: PartialAction, reason: str = "") -> PartialFile:
    """Convert an entry to a PartialFile."""
    modified_at = None if entry.attributes.mtime is None else datetime.fromtimestamp(entry.attributes.mtime, UTC)
    return PartialFile(entry.path.key, entry.attributes.size or 0, modified_at, action, reason)


# -- on this machine --------------------------------------------------------------------------------------------------


def clean_local(folder: str | os.PathLike[str], older_than: timedelta, *, dry_run: bool = False) -> list[PartialFile]:
    """Remove abandoned partial downloads below a local directory.

    :param folder: the directory; links below it are not followed
    :param older_than: minimum time since the last modification of a file; at least one hour
    :param dry_run: whether to only report
    :returns: the files, with the action for each; without files locked by a live process
    :raises ValueError: for an age below one hour
    :raises OSError: if the directory cannot be read
    """
    check_age(older_than)
    limit = time.time() - older_than.total_seconds()
    return [
        partial for path in _local_temps(Path(folder)) if (partial := _clean_local_file(path, limit, dry_run=dry_run))
    ]


def _local_temps(folder: Path) -> Iterator[Path]:
    """Yield the temporary files below a local directory."""

    def fail(error: OSError) -> None:
        if error.filename == os.fspath(folder):
            raise error

    if folder.is_symlink():
        raise NotADirectoryError(
            f"{os.fspath(folder)!r} is a link, and links are not followed. Name the directory itself"
        )
    for directory, folders, names in os.walk(folder, onerror=fail):  # does not follow links
        folders.sort()
        yield from (Path(directory, name) for name in sorted(names) if is_temp_name(name) and not is_backup_name(name))


def _clean_local_file(path: Path, limit: float, *, dry_run: bool) -> PartialFile | None:
    """Remove an abandoned file.

    The result is None if it is locked, a link, another user's, or too new.
    """
    descriptor = open_abandoned(path)
    if descriptor is None:
        return None
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode) or state.st_mtime >= limit:
            return None
        modified_at = datetime.fromtimestamp(state.st_mtime, UTC)
        if dry_run:
            return PartialFile(os.fspath(path), state.st_size, modified_at, "would remove")
        try:
            with suppress(FileNotFoundError):
                os.unlink(path)
        except OSError as error:
            return PartialFile(os.fspath(path), state.st_size, modified_at, "kept", str(error))
        return PartialFile(os.fspath(path), state.st_size, modified_at, "removed")
    finally:
        os.close(descriptor)
