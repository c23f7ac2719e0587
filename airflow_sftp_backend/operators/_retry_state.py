"""What the tries of one task instance know of each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_sftp_backend._file_rows import FileResult
from airflow_sftp_backend._state_store import RowTable
from airflow_sftp_backend.backend import BackendUnavailable, FileInfo
from airflow_sftp_backend.version_compat import task_state_store

from ._planning import RemoteMatch, TransferItem
from ._transfer_records import TransferRecords, Version, remote_version

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_sftp_backend.backend import SFTPBackend


class RetryState:
    """State shared by all attempts of one task instance.

    ``is_retry`` is True unless this is the first attempt, ``resume_key`` is the same in all of them, ``_moves`` and
    ``transfers`` are what the earlier ones have set out to do. That is kept in Airflow's task state store (from 3.3).
    What was done elsewhere, before the connection was corrected, does not count. Without the store, the next attempt of
    a move fails for what is gone, that of a delete takes what is gone for deleted, and that of an upload sends again
    what the partner has taken away.
    """

    def __init__(self, context: Context, backend: SFTPBackend) -> None:
        instance = context["ti"]
        self.is_retry = (instance.try_number or 1) > 1
        self.resume_key = f"{instance.dag_id}/{instance.task_id}/{instance.run_id}/{instance.map_index}"
        self._context = context
        self._store = task_state_store(context)
        base = backend.resolve("")
        server_id = f"{backend.config.username}@{backend.address}{base.native_path}"
        # Airflow gives a task that is cleared as many attempts more as it has retries. Whoever clears a transfer wants
        # all of it transferred again.
        self._cleared_after = instance.max_tries - (instance.task.retries or 0)
        self.is_retry_since_cleared = (instance.try_number or 1) > self._cleared_after + 1
        purpose = "recognise what this one has done"
        self._moves = RowTable(self._store, "moves", server_id, purpose, read=self.is_retry)
        upload_scope = f"{self._cleared_after} {server_id}"
        self.transfers = TransferRecords(
            RowTable(self._store, "transfers", upload_scope, purpose, read=self.is_retry_since_cleared)
        )

    @property
    def date(self) -> str:
        """The date of the run in UTC, the same in every try: its logical date or, without one, when it was to run."""
        time = self._context.get("logical_date") or self._context["dag_run"].run_after
        return time.astimezone(UTC).date().isoformat()

    @property
    def run_started(self) -> datetime | None:
        """When the DAG run began, None if Airflow does not tell."""
        return self._context["dag_run"].start_date

    @property
    def has_store(self) -> bool:
        """True if it can know what an earlier attempt did."""
        return self._store is not None

    # -- moves and deletions ------------------------------------------------------------------------------------------

    def record_planned_moves(self, items: Mapping[TransferItem, RemoteMatch], existing: Mapping[str, FileInfo]) -> None:
        """Record what is about to be moved.

        :param items: the files, each with the argument that named it.
        :param existing: what is at the targets now, by path.
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
        """Record what is about to be deleted.

        :param files: each with the argument that named it.
        :param directories: the arguments that name directories.
        """
        rows = {(name, ""): [name, None, None, None, None, self._cleared_after] for name in directories}
        rows |= {
            (file.info.path, ""): [file.source, *_version(file.info), None, None, self._cleared_after] for file in files
        }
        if rows:
            self._moves.put(rows)

    def was_redelivered(self, info: FileInfo) -> bool:
        """True if an earlier attempt has deleted the file that had this name, or was about to."""
        record = self._moves.get((info.path, "")) if self.is_retry_since_cleared else None
        return (
            record is not None
            and record[5] == self._cleared_after
            and record[1:3] not in (_version(info), [None, None])
        )

    def discard_planned(self, items: Iterable[TransferItem]) -> None:
        """Remove what was refused after all."""
        self._moves.put({}, [(item.source, item.target) for item in items])

    def arguments_naming(self, sources: Set[str] | None) -> set[str]:
        """Return the arguments that named these files in an earlier attempt, or any (None)."""
        return {values[0] for (source, _), values in self._moves.rows.items() if sources is None or source in sources}

    def moved_earlier(self, backend: SFTPBackend) -> list[FileResult]:
        """Return a row for each file that an earlier attempt has moved.

        Its target is what was moved, and its source is gone or is another file, which was delivered since. Once the
        task was cleared, what was delivered since is its business again.
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


def _version(info: FileInfo | None) -> Version:
    return [None, None] if info is None else remote_version(info)


def _is_moved(planned: list[Any], replaced: list[Any], source: FileInfo | None, target: FileInfo | None) -> bool:
    """Tell whether a move was made: the target is what was to be moved, and the source is not that any more.

    :param planned: size and time of the source before the move.
    :param replaced: size and time of what was at the target then, None each if nothing was.
    :param source: what is at the source now.
    :param target: what is at the target now.
    """
    if target is None or target.size != planned[0] or (source is not None and _version(source) == planned):
        return False
    # a rename keeps the time; a copy, where no rename is possible, makes a new one
    return _version(target) == planned or _version(target) != replaced
