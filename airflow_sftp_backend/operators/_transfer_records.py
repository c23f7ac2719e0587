"""Record files before their rename to the targets.

The task's next attempt recognizes its own files by the records.

A retry accepts an existing target only if an earlier attempt of the same task instance recorded the file before the
rename, and if the file is unchanged: equal size, equal time, equal source. Any other file at the target belongs to
another program, even if the content is equal.
"""

from __future__ import annotations

import dataclasses
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
from ._transfer_planning import LocalEnd, TransferItem, make_result

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend

log = logging.getLogger(__name__)

FileVersion = list[Any]
"""Version of a source as plain JSON: for a local file the size in bytes and the time in ns."""

_READING_LOG: Final = "reading %s (%s) to compare it with %s"
_CLOSE_DELAY: Final = 2
"""Seconds by which a server may advance a file's time when the last handle is closed."""
_CLOCK_TOLERANCE: Final = 5.0
"""Difference in seconds that is accepted between the clocks of a worker and of Airflow's other machines."""


def local_version(path: str) -> FileVersion | None:
    """Return the version of a local file.

    :param path: local path or URL
    :returns: the version; None for a missing file or a URL
    """
    if is_url(path):
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def remote_version(info: FileInfo) -> FileVersion:
    """Return the version of a file on the server.

    :param info: the file
    :returns: the version
    """
    return [info.size, None if info.modified_at is None else info.modified_at.isoformat()]


@dataclass(frozen=True, slots=True)
class TransferRecord:
    """Describe a file just before its rename to the target.

    :ivar size: size in bytes
    :ivar version: version of the source
    :ivar sha256: hexadecimal digest of the content, if known
    :ivar temp: name of the temporary file
    :ivar mtime: time of the temporary file, which a rename keeps, in the unit of `PreparedFile`
    :ivar done: True after the transfer has succeeded
    """

    size: int
    version: FileVersion | None
    sha256: str | None
    temp: str
    mtime: int | None
    done: bool

    def as_row(self) -> list[Any]:
        """Return the values for a `RowTable`, as plain JSON."""
        return list(dataclasses.astuple(self))

    def result(self, item: TransferItem, local_end: LocalEnd, action: Action) -> FileResult:
        """Return the file's result for the task.

        :param item: the file
        :param local_end: the end of the transfer that is not on the server
        :param action: the completed action
        :returns: the result
        """
        result = make_result(item, local_end, self.size, action)
        if self.sha256 is not None:
            result["sha256"] = self.sha256
        return result


class TransferRecords:
    """Keep the records of one task instance since it was last cleared.

    :param table: the table to keep the records in
    """

    def __init__(self, table: RowTable) -> None:
        self._table = table
        self._recorded: set[tuple[str, str]] = set()

    def find(self, item: TransferItem) -> TransferRecord | None:
        """Return the record of a file.

        :param item: the file
        :returns: the record; None if there is none
        """
        values = self._table.get((item.source, item.target))
        return None if values is None else TransferRecord(*values)

    def recorder(self, versions: Mapping[TransferItem, FileVersion | None]) -> BeforeRename | None:
        """Return the ``before_rename`` callback that records files.

        Each group of files takes one write.

        :param versions: the files to transfer, with the current versions of their sources
        :returns: the callback; None without a state store
        """
        if not self._table.is_persistent:
            return None
        items = {item.target: item for item in versions}

        def record_group(files: Sequence[PreparedFile]) -> None:
            rows: dict[tuple[str, str], list[Any]] = {}
            for file in files:
                item = items[file.path]
                digest = None if file.digest is None else file.digest.removeprefix("sha256:")
                record = TransferRecord(file.size, versions[item], digest, file.temp, file.mtime, done=False)
                rows[item.source, item.target] = record.as_row()
            self._recorded.update(rows)
            self._table.put(rows, even_after_failure=False)

        return record_group

    def record_completed(
        self,
        versions: Mapping[TransferItem, FileVersion | None],
        results: Mapping[TransferItem, FileResult],
        refused: Iterable[TransferItem],
    ) -> None:
        """Record the completed files of a failed attempt.

        The records of refused files are removed.

        :param versions: the completed files, with the versions of their sources
        :param results: the results of the completed files
        :param refused: the files that the server refused
        """
        rows: dict[tuple[str, str], list[Any]] = {}
        for item, version in versions.items():
            planned = self.find(item)
            temp, mtime = ("", None) if planned is None else (planned.temp, planned.mtime)
            result = results[item]
            assert result["size"] is not None  # known for every completed transfer
            record = TransferRecord(result["size"], version, result.get("sha256"), temp, mtime, done=True)
            rows[item.source, item.target] = record.as_row()
        self._table.put(
            rows, [endpoints for item in refused if (endpoints := (item.source, item.target)) in self._recorded]
        )


# -- uploads ----------------------------------------------------------------------------------------------------------


def uploaded_earlier(
    records: TransferRecords, backend: SFTPBackend, versions: Mapping[TransferItem, FileVersion | None]
) -> dict[TransferItem, FileResult]:
    """Return the files that an earlier attempt uploaded.

    :param records: the records of earlier attempts
    :param backend: the backend of the task
    :param versions: the files to upload, with the current versions of their sources
    :returns: a row for each file that is still on the server, or that was uploaded and then taken away
    :raises BackendUnavailable: if the server does not answer
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
        elif record.done and _is_source_unchanged(item, versions[item], record):
            # The file was taken away, or the server refuses to examine it.
            accepted.append(item)
    accepted += _items_with_equal_content(backend, present, versions)
    action: EarlierAction = "uploaded by an earlier attempt"
    return {item: recorded[item].result(item, "source", action) for item in versions if item in accepted}


def _is_recorded_file(record: TransferRecord, info: FileInfo) -> bool:
    """Tell whether a file on the server is the recorded file."""
    if info.size != record.size:
        return False
    if record.mtime is None or info.modified_at is None:
        return True
    return 0 <= info.modified_at.timestamp() - record.mtime <= _CLOSE_DELAY


def _is_source_unchanged(item: TransferItem, version: FileVersion | None, record: TransferRecord) -> bool:
    """Tell whether a source is unchanged.

    The version of a local file or the digest of an object decides.
    """
    if not is_url(item.source):
        return version is not None and version == record.version
    return _sha256_or_none(item.source) == record.sha256 is not None


def _items_with_equal_content(
    backend: SFTPBackend,
    present: Mapping[TransferItem, TransferRecord],
    versions: Mapping[TransferItem, FileVersion | None],
) -> list[TransferItem]:
    """Return the files whose source and target have equal content.

    Compare samples if the version of the source is unchanged, otherwise the whole content.
    """
    unchanged = [item for item, record in present.items() if _is_source_unchanged(item, versions[item], record)]
    local = [item for item in unchanged if not is_url(item.source)]
    if local:
        log.info("comparing samples of %d files with the uploads of an earlier attempt", len(local))
    outcomes = backend.same_samples_many([(item.source, item.target) for item in local], return_exceptions=True)
    same = [item for item in unchanged if is_url(item.source)]  # their digests were compared
    # If the server refuses to read uploaded files, equal size and time must suffice.
    same += [item for item, is_equal in zip(local, outcomes, strict=True) if is_equal is True or _is_refusal(is_equal)]
    changed = [(item, record) for item, record in present.items() if item not in unchanged]
    return same + [item for item, record in changed if _has_equal_content(backend, item, record)]


def _has_equal_content(backend: SFTPBackend, item: TransferItem, record: TransferRecord) -> bool:
    """Compare the whole content of a source with its target."""
    if item.size not in (None, record.size):
        return False
    if record.sha256 is not None:
        return _sha256_or_none(item.source) == record.sha256
    log.info(_READING_LOG, escaped(item.target), format_size(record.size), escaped(item.source))
    return sha256_if_equal(backend, item.target, item.source) is not None


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
    records: TransferRecords, versions: Mapping[TransferItem, FileVersion | None]
) -> dict[TransferItem, FileResult]:
    """Return the files that an earlier attempt downloaded.

    They must still be at their targets.

    :param records: the records of earlier attempts
    :param versions: the files to download, with the current versions of their sources
    :returns: a row for each file
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
    return (state.st_size, state.st_mtime_ns) == (record.size, record.mtime)


# -- without a state store --------------------------------------------------------------------------------------------


def uploaded_since(backend: SFTPBackend, item: TransferItem, run_started: datetime | None) -> str | None:
    """Return the digest of a file that this run uploaded.

    The server's times prove that the file is not older than the run.

    The proof are the server's times, for use without a state store.

    :param backend: the backend of the task
    :param item: the file
    :param run_started: start of the DAG run; before 3.3, Airflow does not report the start of the first attempt
    :returns: ``sha256:<hex>`` if the source has the same content; None if the content differs or in doubt
    :raises BackendUnavailable: if the server does not answer
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
    max_clock_lead = server_time.timestamp() + 1.0 - local_time  # + 1, because SFTP has times in whole seconds
    if info.modified_at.timestamp() < run_started.timestamp() + max_clock_lead + _CLOCK_TOLERANCE:
        return None
    if not is_url(item.source):
        (is_equal,) = backend.same_samples_many([(item.source, item.target)], return_exceptions=True)
        if is_equal is not True:
            return None
    log.info(_READING_LOG, escaped(item.target), format_size(info.size), escaped(item.source))
    return sha256_if_equal(backend, item.target, item.source)


def downloaded_since(backend: SFTPBackend, item: TransferItem, run_started: datetime | None) -> str | None:
    """Return the digest of a file that this run downloaded.

    The local times prove that the file is not older than the run.

    The proof is the local change time, for use without a state store.

    :param backend: the backend of the task
    :param item: the file
    :param run_started: start of the DAG run
    :returns: ``sha256:<hex>`` if the source has the same content; None if the content differs or in doubt
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
    """Return the error for an existing target without a record.

    A record proves that an earlier attempt wrote the file.

    :param error: the error of the transfer
    :returns: the error with a hint
    """
    hint = (
        "no record proves that an earlier attempt of this task wrote the file; to accept it, set if_exists='skip_same'"
    )
    # In the message, because the operator replaces the hint by one with its own arguments.
    unproven = AlreadyExists(f"{error.message}; {hint}", path=error.path, server=error.server, hint=error.hint)
    unproven.native_path = error.native_path
    return unproven
