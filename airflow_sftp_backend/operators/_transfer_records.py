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

from airflow_sftp_backend._file_rows import Action, EarlierAction, FileResult
from airflow_sftp_backend._state_store import RowTable
from airflow_sftp_backend.backend import AlreadyExists, BackendUnavailable, BeforeRename, FileInfo, PreparedFile
from airflow_sftp_backend.backend import SFTPBackendError as BackendError
from airflow_sftp_backend.backend.errors import escaped
from airflow_sftp_backend.progress import format_size

from ._object_storage import is_url, object_path, open_source, sha256_if_equal, sha256_of_stream
from ._planning import LocalEnd, TransferItem, make_result

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend

log = logging.getLogger(__name__)

Version = list[Any]
"""What another content of a source changes, as plain JSON: of a local file its size in bytes and time in ns."""

_READING_LOG: Final = "reading %s (%s) to compare it with %s"
_CLOSE_DELAY: Final = 2
"""Seconds by which a server's time of a file may still move on when its last handle is closed."""
_CLOCK_TOLERANCE: Final = 5.0
"""Seconds by which the clocks of a worker and of Airflow's other machines may differ."""


def local_version(path: str) -> Version | None:
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

    def result(self, item: TransferItem, local_end: LocalEnd, action: Action) -> FileResult:
        """Return the file's result for the task."""
        result = make_result(item, local_end, self.size, action)
        if self.sha256 is not None:
            result["sha256"] = self.sha256
        return result


class TransferRecords:
    """The records of one task instance since it was last cleared."""

    def __init__(self, table: RowTable) -> None:
        self._table = table
        self._recorded: set[tuple[str, str]] = set()

    def find(self, item: TransferItem) -> TransferRecord | None:
        """Return the record of a file, None if there is none."""
        values = self._table.get((item.source, item.target))
        return None if values is None else TransferRecord(*values)

    def recorder(self, versions: Mapping[TransferItem, Version | None]) -> BeforeRename | None:
        """Return what to pass as ``before_rename``: one write for each group of files; None if nothing is kept."""
        if not self._table.is_persistent:
            return None
        items = {item.target: item for item in versions}

        def record(files: Sequence[PreparedFile]) -> None:
            rows: dict[tuple[str, str], list[Any]] = {}
            for file in files:
                item = items[file.path]
                digest = None if file.digest is None else file.digest.removeprefix("sha256:")
                rows[item.source, item.target] = [file.size, versions[item], digest, file.temp, file.modified, False]
            self._recorded.update(rows)
            self._table.put(rows, insist=False)

        return record

    def record_completed(
        self,
        versions: Mapping[TransferItem, Version | None],
        results: Mapping[TransferItem, FileResult],
        refused: Iterable[TransferItem],
    ) -> None:
        """Record what an attempt that failed has transferred, and discard the records of files that were refused."""
        rows: dict[tuple[str, str], list[Any]] = {}
        for item, version in versions.items():
            values = self._table.get((item.source, item.target))
            temp, modified = (values[3], values[4]) if values is not None else ("", None)
            result = results[item]
            rows[item.source, item.target] = [result["size"], version, result.get("sha256"), temp, modified, True]
        self._table.put(
            rows, [endpoints for item in refused if (endpoints := (item.source, item.target)) in self._recorded]
        )


# -- uploads ----------------------------------------------------------------------------------------------------------


def uploaded_earlier(
    records: TransferRecords, backend: SFTPBackend, versions: Mapping[TransferItem, Version | None]
) -> dict[TransferItem, FileResult]:
    """Return a row for each file that an earlier attempt has uploaded.

    :param records: what the earlier attempts have recorded.
    :param backend: the backend of the task.
    :param versions: the files to upload, with the current versions of their sources.
    :returns: a row for each file that is still on the server, or that was uploaded and has been taken away since.
    :raises BackendUnavailable: if the server does not answer.
    """
    recorded = {item: record for item in versions if (record := records.find(item)) is not None}
    if not recorded:
        return {}
    infos = backend.get_file_info_many([item.target for item in recorded], return_exceptions=True)
    present: dict[TransferItem, TransferRecord] = {}
    accepted: list[TransferItem] = []
    for (item, record), info in zip(recorded.items(), infos, strict=True):
        if isinstance(info, BackendUnavailable):
            raise info
        if isinstance(info, FileInfo):
            if _is_recorded_file(record, info):
                present[item] = record
        elif record.done and _is_source_unchanged(item, versions[item], record):  # a server may forbid to look, too
            accepted.append(item)
    accepted += _items_with_equal_content(backend, present, versions)
    action: EarlierAction = "uploaded by an earlier attempt"
    return {item: recorded[item].result(item, "source", action) for item in versions if item in accepted}


def _is_recorded_file(record: TransferRecord, info: FileInfo) -> bool:
    """True if a file on the server is the one that was about to be renamed."""
    if info.size != record.size:
        return False
    if record.modified is None or info.modified_at is None:
        return True
    return 0 <= info.modified_at.timestamp() - record.modified <= _CLOSE_DELAY


def _is_source_unchanged(item: TransferItem, version: Version | None, record: TransferRecord) -> bool:
    """True if the source is the one that was sent: a local file by its version, an object by its bytes."""
    if not is_url(item.source):
        return version is not None and version == record.version
    return _sha256_or_none(item.source) == record.sha256 is not None


def _items_with_equal_content(
    backend: SFTPBackend,
    present: Mapping[TransferItem, TransferRecord],
    versions: Mapping[TransferItem, Version | None],
) -> list[TransferItem]:
    """Return those whose source has the content that is on the server.

    Samples are compared if the source is known to be unchanged, else all of it.
    """
    unchanged = [item for item, record in present.items() if _is_source_unchanged(item, versions[item], record)]
    local = [item for item in unchanged if not is_url(item.source)]
    if local:
        log.info("comparing samples of %d files with what an earlier attempt has uploaded", len(local))
    outcomes = backend.same_samples_many([(item.source, item.target) for item in local], return_exceptions=True)
    same = [item for item in unchanged if is_url(item.source)]
    # a server that lets nobody read what was uploaded has told its size and time
    same += [item for item, is_equal in zip(local, outcomes, strict=True) if is_equal is True or _is_refusal(is_equal)]
    for item, record in present.items():
        if item in unchanged or item.size not in (None, record.size):
            continue
        if record.sha256 is not None:
            is_equal = _sha256_or_none(item.source) == record.sha256
        else:
            log.info(_READING_LOG, escaped(item.target), format_size(record.size), escaped(item.source))
            is_equal = sha256_if_equal(backend, item.target, item.source) is not None
        same += [item] if is_equal else []
    return same


def _is_refusal(outcome: object) -> bool:
    if isinstance(outcome, BackendUnavailable):
        raise outcome
    return isinstance(outcome, BackendError)


def _sha256_or_none(source: str) -> str | None:
    try:
        with open_source(source) as stream:
            return sha256_of_stream(stream).removeprefix("sha256:")
    except OSError:
        return None


# -- downloads --------------------------------------------------------------------------------------------------------


def downloaded_earlier(
    records: TransferRecords, versions: Mapping[TransferItem, Version | None]
) -> dict[TransferItem, FileResult]:
    """Return a row for each file that an earlier attempt has downloaded and that is still at its target.

    :param records: what the earlier attempts have recorded.
    :param versions: the files to download, with the current versions of their sources.
    """
    rows: dict[TransferItem, FileResult] = {}
    for item, version in versions.items():
        record = records.find(item)
        if record is not None and record.version == version and _is_recorded_target(item.target, record):
            rows[item] = record.result(item, "target", "downloaded by an earlier attempt")
    return rows


def _is_recorded_target(target: str, record: TransferRecord) -> bool:
    try:
        if is_url(target):
            return object_path(target).stat().st_size == record.size and _sha256_or_none(target) == record.sha256
        state = os.lstat(target)
    except OSError:
        return False
    return (state.st_size, state.st_mtime_ns) == (record.size, record.modified)


# -- without a state store --------------------------------------------------------------------------------------------


def uploaded_since(backend: SFTPBackend, item: TransferItem, run_started: datetime | None) -> str | None:
    """Return the digest of an uploaded file if the server's times show that it was written since ``run_started``.

    :param backend: the backend of the task.
    :param item: the file.
    :param run_started: when the DAG run began: Airflow before 3.3 does not tell when the first attempt did.
    :returns: ``sha256:<hex>`` if the file also has the content of its source; None if not, or if in doubt.
    """
    try:
        local_time = datetime.now().timestamp()
        server_time = backend.server_time(item.target.rpartition("/")[0])
        info = backend.get_file_info(item.target)
        size = os.stat(item.source).st_size if not is_url(item.source) else object_path(item.source).stat().st_size
    except BackendUnavailable:
        raise
    except (BackendError, OSError):
        return None
    if run_started is None or server_time is None or info.modified_at is None or info.size != size:
        return None
    max_clock_lead = server_time.timestamp() + 1.0 - local_time  # at most: the server tells whole seconds
    if info.modified_at.timestamp() < run_started.timestamp() + max_clock_lead + _CLOCK_TOLERANCE:
        return None
    if not is_url(item.source):
        (is_equal,) = backend.same_samples_many([(item.source, item.target)], return_exceptions=True)
        if is_equal is not True:
            return None
    log.info(_READING_LOG, escaped(item.target), format_size(info.size), escaped(item.source))
    return sha256_if_equal(backend, item.target, item.source)


def downloaded_since(backend: SFTPBackend, item: TransferItem, run_started: datetime | None) -> str | None:
    """Return the digest of a downloaded file if the disk's times show that it was named since ``run_started``.

    :param backend: the backend of the task.
    :param item: the file.
    :param run_started: when the DAG run began.
    :returns: ``sha256:<hex>`` if the file also has the content of its source; None if not, or if in doubt.
    """
    if run_started is None or is_url(item.target):
        return None
    try:
        state = os.lstat(item.target)
    except OSError:
        return None
    if state.st_ctime < run_started.timestamp() + _CLOCK_TOLERANCE or item.size not in (None, state.st_size):
        return None
    log.info(_READING_LOG, escaped(item.source), format_size(state.st_size), escaped(item.target))
    return sha256_if_equal(backend, item.source, item.target)


def unproven_target_error(error: AlreadyExists) -> AlreadyExists:
    """Return the error of a retry whose target no earlier attempt is known to have written."""
    hint = (
        "no record shows that an earlier attempt of this task wrote it; if that file will do, set if_exists='skip_same'"
    )
    return AlreadyExists(f"{error.message}; {hint}", path=error.path, server=error.server, hint=error.hint)
