"""Move files on an SFTP server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, get_args

from airflow_sftp_backend._path_arguments import Names, Target, parse_target, require_one
from airflow_sftp_backend.backend import (
    AlreadyExists,
    BackendUnavailable,
    FileInfo,
    InvalidPath,
    NotFound,
    SFTPBackendError,
)
from airflow_sftp_backend.backend.errors import escaped

from ._base import Failures, FileOperator, check_choice, distinct_failures, drop_non_utf8
from ._object_storage import FileState, is_up_to_date
from ._planning import (
    IfExists,
    MoveIfExists,
    RemoteMatch,
    TransferItem,
    assign_numbers,
    check_rename,
    conflicting_targets,
    existing_files,
    match_remote,
    missing_error,
    numbered_pattern,
    plan_moves,
    require_unique_targets,
)
from ._retry_state import FileResult, RetryState

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend

_MAX_NUMBER_CONFLICTS = 20
"""How often a file is given another number because another task has taken its own."""


class SFTPMoveOperator(FileOperator):
    """Moves files on an SFTP server.

    :param source: names of what to move, literal, relative to the connection's base path: a path, a row of another
        task, or a list of these; a text that ends with ``/`` means what the directory holds. (templated)
    :param pattern: globs (``**`` too), in place of ``source``: a text or a list. (templated)
    :param target: path, literal; a directory if it ends with ``/``, if anything but one name is moved, or if there is
        a ``rename``. (templated)
    :param rename: template of what each file is called below the target, such as ``{date}/{stem}-old{suffix}``:
        ``{name}`` is the file's name, ``{stem}`` and ``{suffix}`` (``.csv``) its two parts, ``{date}`` the run's date
        in UTC as 2026-01-31, the same in every try. (templated)
    :param include: globs of file names; of what a directory or pattern finds, only these count.
    :param exclude: globs of names, of files and directories, that do not count.
    :param sftp_conn_id: the Airflow connection, of type ``sftp_backend``, ``sftp`` or ``ssh``. (templated)
    :param if_exists: ``fail``, ``replace``, ``skip``, ``skip_same``, which replaces only files that have
        another size or are older, or
        ``number``, which keeps both: ``report.csv`` becomes ``report-1.csv``, or the next number that is free.
    :param missing_ok: nothing to move is no failure, nor is an empty list.
    :param dry_run: move nothing, return what would be done.
    """

    template_fields: Sequence[str] = ("source", "pattern", "target", "rename", "sftp_conn_id")
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
        require_one(source, self.pattern, "source")
        if isinstance(rename, str) and not {"{{", "{%"} & {rename[at : at + 2] for at in range(len(rename))}:
            check_rename(rename)  # a text with Jinja in it is checked once it is rendered
        check_choice("if_exists", if_exists, [*get_args(IfExists), "number"])

    def _work(self, backend: SFTPBackend, retry_state: RetryState) -> tuple[list[FileResult], Failures]:
        target = parse_target(self.target)
        self._check_relative(backend, target, "target")
        if self.rename is not None:
            check_rename(self.rename)
        selection = self._parse_selection(backend, none_ok=self.missing_ok)
        matches = match_remote(backend, selection, self._filters)
        found, refused = drop_non_utf8(matches.files, lambda one: (one.info.path,))
        failures = matches.failures + refused
        wanted = plan_moves(found, selection, target, self.rename, retry_state.date)
        items, there = self._plan(backend, wanted)
        rows = retry_state.moved_earlier(backend)
        moved_earlier = {row["source"] for row in rows}
        for item in items:
            if item.source in moved_earlier:
                self.log.info("%s was delivered again: left to the next run", escaped(item.source))
        wanted = [item for item in wanted if item.source not in moved_earlier]
        items = [item for item in items if item.source not in moved_earlier]
        sources = {one.info.path: one.info for one in found}
        skipped = {
            item for item in items
            if (info := there.get(item.target)) is not None
            and (self.if_exists == "skip" or (self.if_exists == "skip_same" and _is_same(sources[item.source], info)))
        }  # fmt: skip
        # a name that fits nothing any more is done if the earlier try has moved what it fitted
        done = retry_state.arguments_naming(moved_earlier)
        if not self.missing_ok:
            failures += [missing_error(backend, selection, name) for name in matches.missing if name not in done]
        pending: list[TransferItem] = []
        for item in items:
            if item in skipped:
                rows.append({"path": item.source, "size": item.size, "action": "skipped", "target": item.target})
            elif self.is_dry_run:
                action = "would fail" if item.target in there and self.if_exists == "fail" else "would move"
                rows.append({"path": item.target, "size": item.size, "action": action, "source": item.source})
            else:
                pending.append(item)
        moved, not_moved = self._move_all(
            backend, pending, wanted, {one.info.path: one for one in found}, there, retry_state
        )
        return rows + moved, failures + not_moved

    def _move_all(
        self,
        backend: SFTPBackend,
        pending: list[TransferItem],
        wanted: Sequence[TransferItem],
        found: Mapping[str, RemoteMatch],
        there: Mapping[str, FileInfo],
        retry_state: RetryState,
    ) -> tuple[list[FileResult], Failures]:
        """Rows for what was moved, and what failed. What finds its number taken, by another task in the meantime or by
        what is no file, gets another; ``wanted`` are the steps without numbers."""
        rows: list[FileResult] = []
        failures: Failures = []
        blocked: set[str] = set()
        races = _MAX_NUMBER_CONFLICTS if self.if_exists == "number" else 0
        while True:
            moved, refused = self._move(backend, pending, found, there, retry_state)
            rows += moved
            beaten = {item.source: item.target for item, error in refused if races and _is_name_taken(item, error)}
            blocked.update(beaten.values())
            failures += distinct_failures(
                [
                    error
                    for item, error in refused
                    if item.source not in beaten and not (self.missing_ok and isinstance(error, NotFound))
                ]
            )
            if not beaten:
                return rows, failures
            races -= 1
            pending, there = self._plan(backend, [item for item in wanted if item.source in beaten], blocked)

    def _plan(
        self, backend: SFTPBackend, items: Sequence[TransferItem], blocked: Set[str] = frozenset()
    ) -> tuple[list[TransferItem], dict[str, FileInfo]]:
        """The steps with the keys of their targets, and the targets that exist; ``blocked`` are targets
        found taken."""
        items = [TransferItem(item.source, backend.resolve(item.target).key, item.size) for item in items]
        if self.if_exists != "number":
            items = require_unique_targets(items)
        there = existing_files(backend, [item.target for item in items])
        if self.if_exists == "number":
            taken = there.keys() | blocked
            others = backend.find(*(numbered_pattern(target) for target in conflicting_targets(items, taken)))
            items = assign_numbers(items, taken | {info.path for info in others})
        return list(items), there

    def _move(
        self,
        backend: SFTPBackend,
        items: Sequence[TransferItem],
        found: Mapping[str, RemoteMatch],
        there: Mapping[str, FileInfo],
        retry_state: RetryState,
    ) -> tuple[list[FileResult], list[tuple[TransferItem, SFTPBackendError | OSError]]]:
        """Rows for what was moved, and what was not, and why."""
        retry_state.record_planned_moves({item: found[item.source] for item in items}, there)
        overwrite = self.if_exists in ("replace", "skip_same")
        outcomes = backend.move_many(
            [(item.source, item.target) for item in items], overwrite=overwrite, return_exceptions=True
        )
        rows: list[FileResult] = []
        failed: list[tuple[TransferItem, SFTPBackendError | OSError]] = []
        for item, outcome in zip(items, outcomes, strict=True):
            if outcome is None:
                rows.append({"path": item.target, "size": item.size, "action": "moved", "source": item.source})
            else:
                failed.append((item, outcome))
        refused = [item for item, error in failed if not isinstance(error, BackendUnavailable)]
        if refused:
            retry_state.discard_planned(refused)
        return rows, failed


def _is_same(source: FileInfo, target: FileInfo) -> bool:
    return is_up_to_date(FileState.of_remote(source), FileState.of_remote(target))


def _is_name_taken(item: TransferItem, error: SFTPBackendError | OSError) -> bool:
    """True if something has the name of the target, a folder too."""
    return isinstance(error, AlreadyExists) or (isinstance(error, InvalidPath) and error.path == item.target)
