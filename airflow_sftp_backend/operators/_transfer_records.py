"""Records which files a task instance is about to give their names, and recognises these files in its next attempt.

A retry accepts a file that exists at its target only if an earlier attempt of the same task instance recorded it before
the rename, and if the file is still that one: the same size, the same time, the same source. Anything else at the
target was put there by somebody else, even if the content is the same.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from airflow_sftp_backend._state_store import RowTable
from airflow_sftp_backend.backend import AlreadyExists, BackendUnavailable, BeforeRename, FileInfo, PreparedFile
from airflow_sftp_backend.backend import SFTPBackendError as BackendError
from airflow_sftp_backend.backend.errors import escaped
from airflow_sftp_backend.progress import quantity

from ._object_storage import digest_of, is_url, object_path, opened_for_reading, same_digest
from ._planning import Step

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend

log = logging.getLogger(__name__)

Row = dict[str, Any]
Version = list[Any]
"""What another content of a source changes, as plain JSON: of a local file its size in bytes and time in ns."""

_READING: Final = "reading %s (%s) to compare it with %s"
_CLOSE_DELAY: Final = 2
"""Seconds by which a server's time of a file may still move on when its last handle is closed."""
_CLOCK_TOLERANCE: Final = 5.0
"""Seconds by which the clocks of a worker and of Airflow's other machines may differ."""


def version_of(path: str) -> Version | None:
    """Return the version of a local file; None if there is none, or if the path is a URL."""
    if is_url(path):
        return None
    try:
        state = os.stat(path)
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns]


def remote_version(info: FileInfo) -> Version:
    """Return the version of a file on the server."""
    return [info.size, None if info.modified_at is None else info.modified_at.isoformat()]


@dataclass(frozen=True, slots=True)
class TransferRecord:
    """A file as it was just before it got its name.

    ``version`` is that of the source; ``modified`` the time of the temporary file, which a rename keeps (see
    `PreparedFile`); ``done`` is True once the transfer is known to have succeeded.
    """

    size: int
    version: Version | None
    sha256: str | None
    temp: str
    modified: int | None
    done: bool

    def row(self, path: str, step: Step, action: str, end: str) -> Row:
        """Return the row of the file for the task's result."""
        row = {"path": path, "size": self.size, "action": action, end: getattr(step, end)}
        return row | ({} if self.sha256 is None else {"sha256": self.sha256})


class TransferRecords:
    """The records of one task instance since it was last cleared."""

    def __init__(self, table: RowTable) -> None:
        self._table = table
        self._recorded: set[tuple[str, str]] = set()

    def find(self, step: Step) -> TransferRecord | None:
        """Return the record of a file, None if there is none."""
        values = self._table.get((step.source, step.target))
        return None if values is None else TransferRecord(*values)

    def recorder(self, versions: Mapping[Step, Version | None]) -> BeforeRename | None:
        """Return what to pass as ``before_rename``: one write for each group of files; None if nothing is kept."""
        if not self._table.is_kept:
            return None
        steps = {step.target: step for step in versions}

        def record(files: Sequence[PreparedFile]) -> None:
            rows: dict[tuple[str, str], list[Any]] = {}
            for file in files:
                step = steps[file.path]
                digest = None if file.digest is None else file.digest.removeprefix("sha256:")
                rows[step.source, step.target] = [file.size, versions[step], digest, file.temp, file.modified, False]
            self._recorded.update(rows)
            self._table.put(rows, insist=False)

        return record

    def close(self, done: Mapping[Step, Version | None], rows: Mapping[Step, Row], refused: Iterable[Step]) -> None:
        """Write down what an attempt that failed has transferred, and forget what it was refused after all."""
        kept: dict[tuple[str, str], list[Any]] = {}
        for step, version in done.items():
            values = self._table.get((step.source, step.target))
            temp, modified = (values[3], values[4]) if values is not None else ("", None)
            row = rows[step]
            kept[step.source, step.target] = [row["size"], version, row.get("sha256"), temp, modified, True]
        self._table.put(kept, [ends for step in refused if (ends := (step.source, step.target)) in self._recorded])


# -- uploads ----------------------------------------------------------------------------------------------------------


def uploaded_earlier(
    records: TransferRecords, backend: SFTPBackend, versions: Mapping[Step, Version | None]
) -> dict[Step, Row]:
    """Return a row for each file that an earlier attempt has uploaded.

    :param records: what the earlier attempts have recorded.
    :param backend: the backend of the task.
    :param versions: the files to upload, with the current versions of their sources.
    :returns: a row for each file that is still on the server, or that was uploaded and has been taken away since.
    :raises BackendUnavailable: if the server does not answer.
    """
    found = {step: record for step in versions if (record := records.find(step)) is not None}
    if not found:
        return {}
    infos = backend.get_file_info_many([step.target for step in found], return_exceptions=True)
    present: dict[Step, TransferRecord] = {}
    accepted: list[Step] = []
    for (step, record), info in zip(found.items(), infos, strict=True):
        if isinstance(info, BackendUnavailable):
            raise info
        if isinstance(info, FileInfo):
            if _is_recorded_file(record, info):
                present[step] = record
        elif record.done and _source_unchanged(step, versions[step], record):  # a server may forbid to look, too
            accepted.append(step)
    accepted += _with_content_of(backend, present, versions)
    action = "uploaded by an earlier try"
    return {step: found[step].row(step.target, step, action, "source") for step in versions if step in accepted}


def _is_recorded_file(record: TransferRecord, info: FileInfo) -> bool:
    """True if a file on the server is the one that was about to be renamed."""
    if info.size != record.size:
        return False
    if record.modified is None or info.modified_at is None:
        return True
    return 0 <= info.modified_at.timestamp() - record.modified <= _CLOSE_DELAY


def _source_unchanged(step: Step, version: Version | None, record: TransferRecord) -> bool:
    """True if the source is the one that was sent: a local file by its version, an object by its bytes."""
    if not is_url(step.source):
        return version is not None and version == record.version
    return _digest(step.source) == record.sha256 is not None


def _with_content_of(
    backend: SFTPBackend, present: Mapping[Step, TransferRecord], versions: Mapping[Step, Version | None]
) -> list[Step]:
    """Return those whose source has the content that is on the server.

    Samples are compared if the source is known to be unchanged, else all of it.
    """
    unchanged = [step for step, record in present.items() if _source_unchanged(step, versions[step], record)]
    local = [step for step in unchanged if not is_url(step.source)]
    if local:
        log.info("comparing samples of %d files with what an earlier try has uploaded", len(local))
    outcomes = backend.same_samples_many([(step.source, step.target) for step in local], return_exceptions=True)
    same = [step for step in unchanged if is_url(step.source)]
    # a server that lets nobody read what was uploaded has told its size and time
    same += [step for step, equal in zip(local, outcomes, strict=True) if equal is True or _is_refusal(equal)]
    for step, record in present.items():
        if step in unchanged or step.size not in (None, record.size):
            continue
        if record.sha256 is not None:
            equal = _digest(step.source) == record.sha256
        else:
            log.info(_READING, escaped(step.target), quantity(record.size), escaped(step.source))
            equal = same_digest(backend, step.target, step.source) is not None
        same += [step] if equal else []
    return same


def _is_refusal(outcome: object) -> bool:
    if isinstance(outcome, BackendUnavailable):
        raise outcome
    return isinstance(outcome, BackendError)


def _digest(source: str) -> str | None:
    try:
        with opened_for_reading(source) as stream:
            return digest_of(stream).removeprefix("sha256:")
    except OSError:
        return None


# -- downloads --------------------------------------------------------------------------------------------------------


def downloaded_earlier(records: TransferRecords, versions: Mapping[Step, Version | None]) -> dict[Step, Row]:
    """Return a row for each file that an earlier attempt has downloaded and that is still at its target.

    :param records: what the earlier attempts have recorded.
    :param versions: the files to download, with the current versions of their sources.
    """
    rows: dict[Step, Row] = {}
    for step, version in versions.items():
        record = records.find(step)
        if record is not None and record.version == version and _is_recorded_target(step.target, record):
            rows[step] = record.row(step.source, step, "downloaded by an earlier try", "target")
    return rows


def _is_recorded_target(target: str, record: TransferRecord) -> bool:
    try:
        if is_url(target):
            return object_path(target).stat().st_size == record.size and _digest(target) == record.sha256
        state = os.lstat(target)
    except OSError:
        return False
    return (state.st_size, state.st_mtime_ns) == (record.size, record.modified)


# -- without a state store --------------------------------------------------------------------------------------------


def written_since(backend: SFTPBackend, step: Step, began: datetime | None) -> str | None:
    """Return the digest of an uploaded file if the server's times show that it was written since ``began``.

    :param backend: the backend of the task.
    :param step: the file.
    :param began: when the DAG run began: Airflow before 3.3 does not tell when the first attempt did.
    :returns: ``sha256:<hex>`` if the file also has the content of its source; None if not, or if in doubt.
    """
    try:
        before = datetime.now().timestamp()
        clock = backend.server_time(step.target.rpartition("/")[0])
        info = backend.get_file_info(step.target)
        size = os.stat(step.source).st_size if not is_url(step.source) else object_path(step.source).stat().st_size
    except BackendUnavailable:
        raise
    except (BackendError, OSError):
        return None
    if began is None or clock is None or info.modified_at is None or info.size != size:
        return None
    ahead = clock.timestamp() + 1.0 - before  # at most: the server tells whole seconds
    if info.modified_at.timestamp() < began.timestamp() + ahead + _CLOCK_TOLERANCE:
        return None
    if not is_url(step.source):
        (same,) = backend.same_samples_many([(step.source, step.target)], return_exceptions=True)
        if same is not True:
            return None
    log.info(_READING, escaped(step.target), quantity(info.size), escaped(step.source))
    return same_digest(backend, step.target, step.source)


def fetched_since(backend: SFTPBackend, step: Step, began: datetime | None) -> str | None:
    """Return the digest of a downloaded file if the disk's times show that it was named since ``began``.

    :param backend: the backend of the task.
    :param step: the file.
    :param began: when the DAG run began.
    :returns: ``sha256:<hex>`` if the file also has the content of its source; None if not, or if in doubt.
    """
    if began is None or is_url(step.target):
        return None
    try:
        state = os.lstat(step.target)
    except OSError:
        return None
    if state.st_ctime < began.timestamp() + _CLOCK_TOLERANCE or step.size not in (None, state.st_size):
        return None
    log.info(_READING, escaped(step.source), quantity(state.st_size), escaped(step.target))
    return same_digest(backend, step.source, step.target)


def unproven(error: AlreadyExists) -> AlreadyExists:
    """Return the error of a retry whose target no earlier attempt is known to have written."""
    hint = "no record shows that an earlier try of this task wrote it; if that file will do, set if_exists='skip_same'"
    return AlreadyExists(f"{error.message}; {hint}", path=error.path, server=error.server, hint=error.hint)
