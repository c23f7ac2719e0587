"""Share state between the attempts of one task instance."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Set
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_sftp_backend._file_rows import FileResult
from airflow_sftp_backend._state_store import RowTable
from airflow_sftp_backend.backend import BackendUnavailable, FileInfo
from airflow_sftp_backend.version_compat import task_state_store

from ._planning import RemoteMatch, TransferItem
from ._transfer_records import FileVersion, TransferRecords, remote_version

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_sftp_backend.backend import SFTPBackend


log = logging.getLogger(__name__)


class RetryState:
    """Hold the state that all attempts of one task instance share: planned moves and deletions, completed transfers.

    From Airflow 3.3, the state is in Airflow's task state store. State of another server does not count: the connection
    may have been corrected between attempts. Without a store, a retry of a move fails for missing files, a retry of a
    delete treats missing files as deleted, and a retry of an upload sends again any file that the partner has already
    taken away.

    :param context: the context of the task
    :param backend: the backend of the task
    """

    def __init__(self, context: Context, backend: SFTPBackend) -> None:
        instance = context["ti"]
        self.is_retry = (instance.try_number or 1) > 1
        """True unless this attempt is the first."""
        self.resume_key = f"{instance.dag_id}/{instance.task_id}/{instance.run_id}/{instance.map_index}"
        """Name of the task instance, equal in all its attempts."""
        self._context = context
        self._store = task_state_store(context)
        base = backend.resolve("")
        server_id = f"{backend.config.username}@{backend.address}{base.native_path}"
        # When a task is cleared, Airflow raises max_tries by the task's retries. A user who clears a transfer wants to
        # transfer all files again, so attempts before the clearing do not count.
        self._cleared_after = instance.max_tries - (instance.task.retries or 0)
        self.is_retry_since_cleared = (instance.try_number or 1) > self._cleared_after + 1
        """True unless this attempt is the first, or the first since the task was cleared."""
        if self._store is None and (self.is_retry or instance.task.retries):
            log.info(
                "this Airflow keeps no state between the attempts of a task (Airflow 3.3 does): a retry recognises the"
                " files of an earlier attempt by their times and content only"
            )
        purpose = "recognise the files of this one"
        self._moves = RowTable(self._store, "moves", server_id, purpose, read=self.is_retry)
        upload_scope = f"{self._cleared_after} {server_id}"
        self.transfers = TransferRecords(
            RowTable(self._store, "transfers", upload_scope, purpose, read=self.is_retry_since_cleared)
        )

    @property
    def date(self) -> str:
        """Date of the run in UTC, equal in all attempts.

        The date of the logical date or, without one, of the time when the run was due.
        """
        time = self._context.get("logical_date") or self._context["dag_run"].run_after
        return time.astimezone(UTC).date().isoformat()

    @property
    def run_started(self) -> datetime | None:
        """Start of the DAG run; None if unknown."""
        return self._context["dag_run"].start_date

    @property
    def has_store(self) -> bool:
        """True if the results of earlier attempts are known."""
        return self._store is not None

    # -- moves and deletions ------------------------------------------------------------------------------------------

    def record_planned_moves(self, items: Mapping[TransferItem, RemoteMatch], existing: Mapping[str, FileInfo]) -> None:
        """Record moves before their execution.

        :param items: the files, each with the argument that selected it
        :param existing: the existing files at the targets, by path
        """
        rows = {
            (item.source, item.target): [
                file.source,
                *_version(file.info),
                *_version(existing.get(item.target)),
                self._cleared_after,
            ]
            for item, file in items.items()
        }
        if rows:
            self._moves.put(rows)

    def record_planned_deletions(self, files: Iterable[RemoteMatch], directories: Iterable[str]) -> None:
        """Record deletions before their execution.

        :param files: the files, each with the argument that selected it
        :param directories: the arguments that name directories or links
        """
        rows = {(name, ""): [name, None, None, None, None, self._cleared_after] for name in directories}
        rows |= {
            (file.info.path, ""): [file.source, *_version(file.info), None, None, self._cleared_after] for file in files
        }
        if rows:
            self._moves.put(rows)

    def was_redelivered(self, info: FileInfo) -> bool:
        """Tell whether a file arrived after an earlier attempt deleted, or planned to delete, its predecessor.

        :param info: the file
        :returns: True for a new delivery
        """
        record = self._moves.get((info.path, "")) if self.is_retry_since_cleared else None
        return (
            record is not None
            and record[5] == self._cleared_after
            and record[1:3] not in (_version(info), [None, None])
        )

    def discard_planned(self, items: Iterable[TransferItem]) -> None:
        """Remove the records of moves that the server refused.

        :param items: the files
        """
        self._moves.put({}, [(item.source, item.target) for item in items])

    def arguments_naming(self, sources: Set[str] | None) -> set[str]:
        """Return the arguments that selected files in an earlier attempt.

        :param sources: paths of the files; None for all files
        :returns: the arguments
        """
        return {values[0] for (source, _), values in self._moves.rows.items() if sources is None or source in sources}

    def moved_earlier(self, backend: SFTPBackend) -> list[FileResult]:
        """Return the files that an earlier attempt moved.

        The target must be the planned file. The source must be missing, or replaced by a later delivery. After the task
        was cleared, a later delivery is a new file to move.

        :param backend: the backend of the task
        :returns: a row for each file
        :raises BackendUnavailable: if the server does not answer
        """
        if not self.is_retry or not (rows := self._moves.rows):
            return []
        paths = sorted({path for source, target in rows if target for path in (source, target)})
        infos = backend.get_file_info_many(paths, return_exceptions=True)
        current = {path: info for path, info in zip(paths, infos, strict=True) if isinstance(info, FileInfo)}
        for info in infos:
            if isinstance(info, BackendUnavailable):
                raise info
        return [
            {"path": target, "size": values[1], "action": "moved by an earlier attempt", "source": source}
            for (source, target), values in rows.items()
            if target and _is_moved(values[1:3], values[3:5], current.get(source), current.get(target))
            if source not in current or values[5] == self._cleared_after
        ]


def _version(info: FileInfo | None) -> FileVersion:
    return [None, None] if info is None else remote_version(info)


def _is_moved(planned: list[Any], replaced: list[Any], source: FileInfo | None, target: FileInfo | None) -> bool:
    """Tell whether a move was completed: the planned file is at the target only.

    :param planned: size and time of the source before the move
    :param replaced: size and time of the target before the move, None each if the target did not exist
    :param source: the file at the source now
    :param target: the file at the target now
    """
    if target is None or target.size != planned[0] or (source is not None and _version(source) == planned):
        return False
    # A rename keeps the time. A copy, if the server cannot rename, sets a new time.
    return _version(target) == planned or _version(target) != replaced
