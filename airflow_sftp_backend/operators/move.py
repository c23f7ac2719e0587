"""Move files on an SFTP server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from airflow_sftp_backend._file_rows import Action, FileResult
from airflow_sftp_backend._path_arguments import Names, Selection, Target, check_selectors, parse_target
from airflow_sftp_backend.backend import (
    AlreadyExists,
    BackendUnavailable,
    FileInfo,
    InvalidPath,
    NotFound,
    SFTPBackendError,
)

from ._base import FileOperator, check_choice, drop_non_utf8
from ._named_files import existing_files
from ._object_storage import FileState, is_up_to_date
from ._rename_template import RenameTemplate, check_rename_early, split_nameless
from ._reporting.failures import Failures, distinct_failures
from ._reporting.file_log import log_each
from ._retry_state import RetryState
from ._sync.ends import SyncEnds
from ._sync.merged_names import check_distinct_targets
from ._transfer_planning import (
    IfExists,
    Matches,
    MoveIfExists,
    RemoteMatch,
    TransferItem,
    assign_numbers,
    check_unique_targets,
    conflicting_targets,
    match_remote,
    missing_error,
    numbered_pattern,
    plan_moves,
)

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend

_MAX_NUMBER_CONFLICTS = 20
"""Retries of a move with another number after another process took the number."""


@dataclass(frozen=True, slots=True)
class MovePlan:
    """Hold the files to move.

    :ivar items: all files, with the skipped ones
    :ivar skipped: items that stay unchanged
    :ivar unnumbered: the same files with targets before numbers are assigned
    :ivar matches: the matched file of each source path
    :ivar existing: the existing file at each target path
    :ivar moved_earlier: results of files that an earlier attempt moved
    :ivar failures: failures of planning
    """

    items: list[TransferItem]
    skipped: Set[TransferItem]
    unnumbered: list[TransferItem]
    matches: Mapping[str, RemoteMatch]
    existing: Mapping[str, FileInfo]
    moved_earlier: list[FileResult]
    failures: Failures


class SFTPMoveOperator(FileOperator[MovePlan]):
    """Move files on an SFTP server.

    :param source: literal names of the files to move, relative to the connection's base path: a path, a row of another
        task, or a list of these. A text that ends with ``/`` selects all files below the directory. (templated)
    :param pattern: globs (with ``**``) of paths on the server, in place of ``source``: a text or a list. (templated)
    :param target: literal path on the server; a directory if the text ends with ``/``, if ``source`` is not a single
        file name, or if ``rename`` is set. (templated)
    :param rename: template for the path of each file below the target, such as ``{date}/{stem}-old{suffix}``.
        ``{name}`` is the file name, ``{stem}`` and ``{suffix}`` (``.csv``) its parts. ``{date}`` (2026-01-31),
        ``{time}`` (063000) and ``{timestamp}`` (20260131T063000) are the run's time in UTC, equal in all attempts.
        (templated)
    :param from_manifest: path or URL of a manifest of another task, in place of ``source``: its rows are the names. Or
        the result of a task with ``manifest``, or a list of these. (templated)
    :param include: globs of file names; only matching files of a directory or pattern count
    :param exclude: globs of file and directory names; matching entries of a directory or pattern do not count
    :param newer_than: earliest time of a file by the server's clock: a datetime with a time zone, ISO 8601 text, or a
        timedelta that counts back from the time when the run was due. Applies to names too. (templated)
    :param older_than: time before which a file must be modified, in the same forms. (templated)
    :param min_size: size that a file must have at least, in bytes
    :param max_files: number of files to move, the oldest first; the next run takes the others
    :param sftp_conn_id: id of an Airflow connection of type ``sftp_backend``, ``sftp`` or ``ssh``. (templated)
    :param if_exists: ``fail``, ``replace``, ``skip``, ``skip_same`` or ``number`` for an existing target. ``skip_same``
        replaces only files that differ in size or are older. ``number`` keeps both files: ``report.csv`` becomes
        ``report-1.csv``, or the next free number.
    :param missing_ok: accept missing files and an empty list
    :param dry_run: return the planned results, move nothing
    :param manifest: local path or URL of a file to write the rows to, one JSON object a line. The task then returns
        ``{"manifest": path, "count": rows, "size": bytes}`` in place of the list. (templated)
    :param kwargs: arguments of ``BaseOperator``
    """

    template_fields: Sequence[str] = (
        "source",
        "pattern",
        "target",
        "rename",
        "sftp_conn_id",
        "newer_than",
        "older_than",
        "from_manifest",
        "manifest",
    )
    _action = "moved"

    def __init__(
        self,
        *,
        source: Names | None = None,
        target: Target,
        rename: str | None = None,
        if_exists: MoveIfExists = "fail",
        missing_ok: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.target = target
        self.rename = rename
        self.if_exists = if_exists
        self.missing_ok = missing_ok
        check_selectors(source, self.pattern, self.from_manifest, "source")
        check_rename_early(rename)
        check_choice("if_exists", if_exists, [*get_args(IfExists), "number"])

    def _plan(self, backend: SFTPBackend, retry_state: RetryState) -> MovePlan:
        target = parse_target(self.target)
        self._check_relative(backend, target, "target")
        rename = RenameTemplate.parse(self.rename, retry_state.run_time)
        selection = self._parse_selection(backend, none_ok=self.missing_ok)
        matches = match_remote(backend, selection, self._filters, restores=not self.is_dry_run)
        files, refusals = self._movable_files(matches, rename)
        may_skip = self.if_exists in ("skip", "skip_same")
        if not may_skip:
            files = self._take_oldest(files, lambda file: file.info, retry_state)
        unnumbered = plan_moves(files, selection, target, rename)
        items, existing = self._final_targets(backend, unnumbered)
        moved_earlier = retry_state.moved_earlier(backend)
        moved = {result["source"] for result in moved_earlier}
        items = self._without_redelivered(items, moved)
        by_path = {file.info.path: file for file in files}
        skipped = {item for item in items if self._is_skipped(by_path[item.source].info, existing.get(item.target))}
        if may_skip:  # `max_files` does not count skipped files: otherwise every run would take the same files
            pending = [item for item in items if item not in skipped]
            taken = {*self._take_oldest(pending, lambda item: by_path[item.source].info, retry_state)}
            items = [item for item in items if item in skipped or item in taken]
        missing_errors = self._missing_errors(backend, selection, matches, retry_state.arguments_naming(moved))
        return MovePlan(
            items=items,
            skipped=skipped,
            unnumbered=[item for item in unnumbered if item.source not in moved],
            matches=by_path,
            existing=existing,
            moved_earlier=moved_earlier,
            failures=[*matches.failures, *refusals, *missing_errors],
        )

    def _movable_files(self, matches: Matches, rename: RenameTemplate | None) -> tuple[list[RemoteMatch], Failures]:
        """Return the files within the limits, and the failures of others."""
        within_limits, undecided = self._within_limits(matches.files, lambda file: file.info)
        files, not_utf8 = drop_non_utf8(within_limits, lambda file: (file.info.path,))
        files, nameless = split_nameless(files, rename, lambda file: (file.info.name, file.info.path))
        return files, [*undecided, *not_utf8, *nameless]

    def _without_redelivered(self, items: Sequence[TransferItem], moved: Set[str]) -> list[TransferItem]:
        """Leave out new files under the names of moved files."""
        # The targets hold the files that an earlier attempt moved.
        redelivered = [item.source for item in items if item.source in moved]
        log_each(self.log, "skipping %s: delivered again, left to the next run", redelivered)
        return [item for item in items if item.source not in moved]

    def _missing_errors(
        self, backend: SFTPBackend, selection: Selection, matches: Matches, completed: Set[str]
    ) -> Failures:
        """Return the failures of missing names.

        :param completed: names of which an earlier attempt moved all files
        """
        if self.missing_ok:
            return []
        missing = self._without_empty_directories(backend, selection, matches.missing)
        return [missing_error(backend, selection, name) for name in missing if name not in completed]

    def _is_skipped(self, source: FileInfo, target: FileInfo | None) -> bool:
        if target is None:
            return False
        return self.if_exists == "skip" or (self.if_exists == "skip_same" and _is_same(source, target))

    def _preview(self, plan: MovePlan) -> tuple[list[FileResult], Failures]:
        results = [*plan.moved_earlier]
        for item in plan.items:
            if item in plan.skipped:
                results.append(_skipped_result(item))
            else:
                fails = self.if_exists == "fail" and item.target in plan.existing
                results.append(_moved_result(item, "would fail" if fails else "would move"))
        return results, plan.failures

    def _execute_plan(
        self, backend: SFTPBackend, plan: MovePlan, retry_state: RetryState
    ) -> tuple[list[FileResult], Failures]:
        """Move the files.

        A file gets another number if its number is occupied by now.
        """
        results = plan.moved_earlier + [_skipped_result(item) for item in plan.items if item in plan.skipped]
        failures = [*plan.failures]
        pending, existing = [item for item in plan.items if item not in plan.skipped], plan.existing
        occupied: set[str] = set()
        retries = _MAX_NUMBER_CONFLICTS if self.if_exists == "number" else 0
        while True:
            moved, refused = self._move(backend, pending, plan.matches, existing, retry_state)
            results += moved
            conflicts: set[str] = set()
            errors: list[SFTPBackendError | OSError] = []
            for item, error in refused:
                if retries and _is_name_taken(item, error):
                    conflicts.add(item.source)
                    occupied.add(item.target)
                elif not (self.missing_ok and isinstance(error, NotFound)):
                    errors.append(error)
            failures += distinct_failures(errors)
            if not conflicts:
                return results, failures
            retries -= 1
            unnumbered = [item for item in plan.unnumbered if item.source in conflicts]
            try:
                pending, existing = self._final_targets(backend, unnumbered, occupied)
            except SFTPBackendError as error:  # the rows of moved files are kept
                return results, [*failures, error]

    def _final_targets(
        self, backend: SFTPBackend, items: Sequence[TransferItem], occupied: Set[str] = frozenset()
    ) -> tuple[list[TransferItem], Mapping[str, FileInfo]]:
        """Return items with resolved targets, and the existing targets.

        Targets are numbered if ``if_exists`` is ``number``.

        :param occupied: targets that a move found occupied
        """
        items = [TransferItem(item.source, backend.resolve(item.target).key, item.size) for item in items]
        if self.if_exists != "number":
            items = check_unique_targets(items)
            check_distinct_targets(SyncEnds(backend, "upload", str(self.target), ""), [item.target for item in items])
        existing = existing_files(backend, [item.target for item in items])
        if self.if_exists == "number":
            taken = existing.keys() | occupied
            others = backend.find(*(numbered_pattern(target) for target in conflicting_targets(items, taken)))
            items = assign_numbers(items, taken | {info.path for info in others})
        return list(items), existing

    def _move(
        self,
        backend: SFTPBackend,
        items: Sequence[TransferItem],
        matches: Mapping[str, RemoteMatch],
        existing: Mapping[str, FileInfo],
        retry_state: RetryState,
    ) -> tuple[list[FileResult], list[tuple[TransferItem, SFTPBackendError | OSError]]]:
        """Move files; return results, and failed items with their errors."""
        retry_state.record_planned_moves({item: matches[item.source] for item in items}, existing)
        overwrite = self.if_exists in ("replace", "skip_same")
        outcomes = backend.move_many(
            [(item.source, item.target) for item in items], overwrite=overwrite, return_exceptions=True
        )
        results: list[FileResult] = []
        failed: list[tuple[TransferItem, SFTPBackendError | OSError]] = []
        for item, outcome in zip(items, outcomes, strict=True):
            if outcome is None:
                results.append(_moved_result(item, "moved"))
            else:
                failed.append((item, outcome))
        # After a lost connection the move may have happened, so its record stays for the next attempt.
        refused = [item for item, error in failed if not isinstance(error, BackendUnavailable)]
        if refused:
            retry_state.discard_planned(refused)
        return results, failed


def _moved_result(item: TransferItem, action: Action) -> FileResult:
    return {"path": item.target, "size": item.size, "action": action, "source": item.source}


def _skipped_result(item: TransferItem) -> FileResult:
    return {"path": item.source, "size": item.size, "action": "skipped", "target": item.target}


def _is_same(source: FileInfo, target: FileInfo) -> bool:
    return is_up_to_date(FileState.of_remote(source), FileState.of_remote(target))


def _is_name_taken(item: TransferItem, error: SFTPBackendError | OSError) -> bool:
    """Tell whether the target exists already."""
    return isinstance(error, AlreadyExists) or (isinstance(error, InvalidPath) and error.path == item.target)
