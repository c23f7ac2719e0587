"""Share state between the attempts of one task instance."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Set
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from airflow_sftp_backend._file_rows import FileResult
from airflow_sftp_backend._state_store import Endpoints, RowTable
from airflow_sftp_backend.backend import BackendUnavailable, FileInfo
from airflow_sftp_backend.version_compat import task_state_store

from ._transfer_planning import RemoteMatch, TransferItem
from ._transfer_records import FileVersion, TransferRecords, remote_version

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_sftp_backend.backend import SFTPBackend


log = logging.getLogger(__name__)

_NO_VERSION: Final[FileVersion] = [None, None]
"""Version of a missing file."""


class _PlannedChange(NamedTuple):
    """Hold the record of a move or deletion.

    Airflow's state store keeps the record.
    """

    argument: str
    """The argument that selected the file."""
    version: FileVersion
    """Version of the file before the change; `_NO_VERSION` for a directory or link."""
    replaced_version: FileVersion
    """Version of the file at the target before a move; `_NO_VERSION` without one."""
    cleared_after: int
    """Number of attempts before the task was last cleared."""

    @property
    def size(self) -> int | None:
        """Size before the change in bytes; None unless a file."""
        size: int | None = self.version[0]
        return size


class RetryState:
    """Hold the state that all attempts of one task instance share.

    It has planned moves and deletions, and completed transfers.

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
        self.context = context
        """Context of the task."""
        self._store = task_state_store(context)
        base = backend.resolve("")
        self.server_id = server_id = f"{backend.config.username}@{backend.address}{base.native_path}"
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
        self._planned = RowTable(self._store, "moves", server_id, purpose, may_exist=self.is_retry)
        scope_since_cleared = f"{self._cleared_after} {server_id}"
        self.transfers = TransferRecords(
            RowTable(self._store, "transfers", scope_since_cleared, purpose, may_exist=self.is_retry_since_cleared)
        )
        self._selected = RowTable(
            self._store,
            "selected",
            scope_since_cleared,
            "select the same files",
            may_exist=self.is_retry_since_cleared,
        )
        self._taken = RowTable(self._store, "taken", server_id, "take the same files again", may_exist=self.is_retry)

    @property
    def run_time(self) -> datetime:
        """Logical date of the run, equal in all attempts.

        Without a logical date, the time when the run was due.
        """
        return self.context.get("logical_date") or self.context["dag_run"].run_after

    @property
    def run_started(self) -> datetime | None:
        """Start of the DAG run; None if unknown."""
        return self.context["dag_run"].start_date

    @property
    def has_store(self) -> bool:
        """True if the results of earlier attempts are known."""
        return self._store is not None

    # -- selections limited by max_files ------------------------------------------------------------------------------

    @property
    def selected_earlier(self) -> Set[str]:
        """Paths that earlier attempts selected; empty without a store.

        Attempts before the task was cleared do not count.
        """
        return {path for path, _ in self._selected.rows}

    def record_selected(self, paths: Iterable[str]) -> None:
        """Record selected files before the plan is executed.

        :param paths: paths of the files, without those of earlier attempts
        """
        if rows := {(path, ""): list[str]() for path in paths}:
            self._selected.put(rows)

    # -- files that only_new remembers --------------------------------------------------------------------------------

    @property
    def taken_earlier(self) -> Set[str]:
        """Paths that any attempt has taken, also before the task was cleared."""
        return {path for path, _ in self._taken.rows}

    def record_taken(self, paths: Iterable[str]) -> None:
        """Record files that this attempt has taken.

        :param paths: paths of the files
        """
        if rows := {(path, ""): list[str]() for path in paths}:
            self._taken.put(rows)

    # -- moves and deletions ------------------------------------------------------------------------------------------

    def record_planned_moves(self, items: Mapping[TransferItem, RemoteMatch], existing: Mapping[str, FileInfo]) -> None:
        """Record moves before their execution.

        :param items: the files, each with the argument that selected it
        :param existing: the existing files at the targets, by path
        """
        changes = {
            (item.source, item.target): _PlannedChange(
                file.source, _version(file.info), _version(existing.get(item.target)), self._cleared_after
            )
            for item, file in items.items()
        }
        self._record_planned(changes)

    def record_planned_deletions(self, files: Iterable[RemoteMatch], directories: Iterable[str]) -> None:
        """Record deletions before their execution.

        :param files: the files, each with the argument that selected it
        :param directories: the arguments that name directories or links
        """
        if not self.has_store:
            return
        changes = {
            (name, ""): _PlannedChange(name, _NO_VERSION, _NO_VERSION, self._cleared_after) for name in directories
        }
        changes |= {
            (file.info.path, ""): _PlannedChange(file.source, _version(file.info), _NO_VERSION, self._cleared_after)
            for file in files
        }
        self._record_planned(changes)

    def _record_planned(self, changes: Mapping[Endpoints, _PlannedChange]) -> None:
        if changes:
            self._planned.put({endpoints: list(change) for endpoints, change in changes.items()})

    @property
    def deletions_planned_earlier(self) -> dict[str, str]:
        """Paths that earlier attempts planned to delete, with their arguments.

        Attempts before the task was cleared do not count.
        """
        if not self.is_retry_since_cleared:
            return {}
        changes = ((endpoints, _PlannedChange(*values)) for endpoints, values in self._planned.rows.items())
        return {
            source: change.argument
            for (source, target), change in changes
            if not target and change.cleared_after == self._cleared_after
        }

    def was_redelivered(self, info: FileInfo) -> bool:
        """Tell whether a file has the name of a deleted file.

        An earlier attempt deleted, or planned to delete, a file with this path and another size or time.

        :param info: the file
        :returns: True for a new delivery
        """
        values = self._planned.get((info.path, "")) if self.is_retry_since_cleared else None
        if values is None:
            return False
        deletion = _PlannedChange(*values)
        return deletion.cleared_after == self._cleared_after and deletion.version not in (_version(info), _NO_VERSION)

    def discard_planned(self, items: Iterable[TransferItem]) -> None:
        """Remove the records of moves that the server refused.

        :param items: the files
        """
        self._planned.put({}, [(item.source, item.target) for item in items])

    def arguments_naming(self, sources: Set[str] | None) -> set[str]:
        """Return the arguments that selected files in an earlier attempt.

        :param sources: paths of the files; None for all files
        :returns: the arguments
        """
        return {
            _PlannedChange(*values).argument
            for (source, _), values in self._planned.rows.items()
            if sources is None or source in sources
        }

    def moved_earlier(self, backend: SFTPBackend) -> list[FileResult]:
        """Return the files that an earlier attempt moved.

        The target must be the planned file. The source must be missing, or replaced by a later delivery. After the task
        was cleared, a later delivery is a new file to move.

        :param backend: the backend of the task
        :returns: a row for each file
        :raises BackendUnavailable: if the server does not answer
        """
        if not self.is_retry or not (rows := self._planned.rows):
            return []
        moves = {endpoints: _PlannedChange(*values) for endpoints, values in rows.items() if endpoints[1]}
        paths = sorted({path for endpoints in moves for path in endpoints})
        infos = backend.get_file_info_many(paths, return_exceptions=True)
        current = {path: info for path, info in zip(paths, infos, strict=True) if isinstance(info, FileInfo)}
        for info in infos:
            if isinstance(info, BackendUnavailable):
                raise info
        return [
            {"path": target, "size": move.size, "action": "moved by an earlier attempt", "source": source}
            for (source, target), move in moves.items()
            if _is_moved(move, current.get(source), current.get(target))
            and (source not in current or move.cleared_after == self._cleared_after)
        ]


def _version(info: FileInfo | None) -> FileVersion:
    return _NO_VERSION if info is None else remote_version(info)


def _is_moved(move: _PlannedChange, source: FileInfo | None, target: FileInfo | None) -> bool:
    """Tell whether a move was completed.

    The planned file is then at the target only.

    :param move: the planned move
    :param source: the file at the source now
    :param target: the file at the target now
    """
    if target is None or target.size != move.size or (source is not None and _version(source) == move.version):
        return False
    # A rename keeps the time. A copy, if the server cannot rename, sets a new time.
    return _version(target) == move.version or _version(target) != move.replaced_version
