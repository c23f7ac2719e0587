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

from ._base import Failures, FileOperator, check_choice, distinct_failures, speakable
from ._object_storage import FileState, is_unchanged
from ._planning import (
    Found,
    IfExists,
    MoveIfExists,
    Step,
    check_rename,
    checked,
    crowded_targets,
    existing_files,
    missing_error,
    moves,
    numbered,
    numbered_names,
    on_server,
)
from ._retry_state import Row, Try

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend

_RACES = 20
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

    def _work(self, backend: SFTPBackend, attempt: Try) -> tuple[list[Row], Failures]:
        target = parse_target(self.target)
        self._check_relative(backend, target, "target")
        if self.rename is not None:
            check_rename(self.rename)
        selection = self._selected(backend, none_ok=self.missing_ok)
        matches = on_server(backend, selection, self._filters)
        found, refused = speakable(matches.files, lambda one: (one.info.path,))
        failures = matches.failures + refused
        wanted = moves(found, selection, target, self.rename, attempt.date)
        steps, there = self._plan(backend, wanted)
        rows = attempt.finished(backend)
        moved_earlier = {row["source"] for row in rows}
        for step in steps:
            if step.source in moved_earlier:
                self.log.info("%s was delivered again: left to the next run", escaped(step.source))
        wanted = [step for step in wanted if step.source not in moved_earlier]
        steps = [step for step in steps if step.source not in moved_earlier]
        sources = {one.info.path: one.info for one in found}
        skipped = {
            step for step in steps
            if (info := there.get(step.target)) is not None
            and (self.if_exists == "skip" or (self.if_exists == "skip_same" and _is_same(sources[step.source], info)))
        }  # fmt: skip
        # a name that fits nothing any more is done if the earlier try has moved what it fitted
        done = attempt.names_of(moved_earlier)
        if not self.missing_ok:
            failures += [missing_error(backend, selection, name) for name in matches.missing if name not in done]
        pending: list[Step] = []
        for step in steps:
            if step in skipped:
                rows.append({"path": step.source, "size": step.size, "action": "skipped", "target": step.target})
            elif self.only_plan:
                action = "would fail" if step.target in there and self.if_exists == "fail" else "would move"
                rows.append({"path": step.target, "size": step.size, "action": action, "source": step.source})
            else:
                pending.append(step)
        moved, not_moved = self._move_all(
            backend, pending, wanted, {one.info.path: one for one in found}, there, attempt
        )
        return rows + moved, failures + not_moved

    def _move_all(
        self,
        backend: SFTPBackend,
        pending: list[Step],
        wanted: Sequence[Step],
        found: Mapping[str, Found],
        there: Mapping[str, FileInfo],
        attempt: Try,
    ) -> tuple[list[Row], Failures]:
        """Rows for what was moved, and what failed. What finds its number taken, by another task in the meantime or by
        what is no file, gets another; ``wanted`` are the steps without numbers."""
        rows: list[Row] = []
        failures: Failures = []
        blocked: set[str] = set()
        races = _RACES if self.if_exists == "number" else 0
        while True:
            moved, refused = self._move(backend, pending, found, there, attempt)
            rows += moved
            beaten = {step.source: step.target for step, error in refused if races and _is_taken(step, error)}
            blocked.update(beaten.values())
            failures += distinct_failures(
                [
                    error
                    for step, error in refused
                    if step.source not in beaten and not (self.missing_ok and isinstance(error, NotFound))
                ]
            )
            if not beaten:
                return rows, failures
            races -= 1
            pending, there = self._plan(backend, [step for step in wanted if step.source in beaten], blocked)

    def _plan(
        self, backend: SFTPBackend, steps: Sequence[Step], blocked: Set[str] = frozenset()
    ) -> tuple[list[Step], dict[str, FileInfo]]:
        """The steps with the keys of their targets, and the targets that exist; ``blocked`` are targets
        found taken."""
        steps = [Step(step.source, backend.resolve(step.target).key, step.size) for step in steps]
        if self.if_exists != "number":
            steps = checked(steps)
        there = existing_files(backend, [step.target for step in steps])
        if self.if_exists == "number":
            taken = there.keys() | blocked
            others = backend.find(*(numbered_names(target) for target in crowded_targets(steps, taken)))
            steps = numbered(steps, taken | {info.path for info in others})
        return list(steps), there

    def _move(
        self,
        backend: SFTPBackend,
        steps: Sequence[Step],
        found: Mapping[str, Found],
        there: Mapping[str, FileInfo],
        attempt: Try,
    ) -> tuple[list[Row], list[tuple[Step, SFTPBackendError | OSError]]]:
        """Rows for what was moved, and what was not, and why."""
        attempt.note({step: found[step.source] for step in steps}, there)
        overwrite = self.if_exists in ("replace", "skip_same")
        outcomes = backend.move_many(
            [(step.source, step.target) for step in steps], overwrite=overwrite, return_exceptions=True
        )
        rows: list[Row] = []
        failed: list[tuple[Step, SFTPBackendError | OSError]] = []
        for step, outcome in zip(steps, outcomes, strict=True):
            if outcome is None:
                rows.append({"path": step.target, "size": step.size, "action": "moved", "source": step.source})
            else:
                failed.append((step, outcome))
        refused = [step for step, error in failed if not isinstance(error, BackendUnavailable)]
        if refused:
            attempt.forget(refused)
        return rows, failed


def _is_same(source: FileInfo, target: FileInfo) -> bool:
    return is_unchanged(FileState.of_remote(source), FileState.of_remote(target))


def _is_taken(step: Step, error: SFTPBackendError | OSError) -> bool:
    """True if something has the name of the target, a folder too."""
    return isinstance(error, AlreadyExists) or (isinstance(error, InvalidPath) and error.path == step.target)
