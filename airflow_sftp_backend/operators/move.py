"""Move files on an SFTP server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, get_args

from airflow_sftp_backend.backend import AlreadyExists, BackendUnavailable, InvalidPath, NotFound, SFTPBackendError
from airflow_sftp_backend.plans import (
    Found,
    IfExists,
    MoveIfExists,
    Step,
    checked,
    crowded_targets,
    literally,
    moves,
    numbered,
    numbered_names,
    on_server,
    one_path,
    paths,
)
from airflow_sftp_backend.tries import Row, Try

from ._base import Failures, FileOperator, Paths, check_choice, distinct_failures, missing_failures, speakable

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend

_RACES = 20
"""How often a file is given another number because another task has taken its own."""


class SFTPMoveOperator(FileOperator):
    """Moves files on an SFTP server.

    :param source: what to move: a path, a glob (``**`` too), a folder ending with ``/`` (all files in it), or a list of
        these. (templated)
    :param target: path, or a folder if it ends with ``/`` or if ``source`` is anything but one plain path; or, with
        ``{name}`` or ``{stem}`` in it, the path of each file, such as ``archive/{date}/{name}``. ``{name}`` is the
        file's name, ``{stem}`` and ``{suffix}`` (``.csv``) its two parts, ``{date}`` the run's date in UTC as
        2026-01-31, the same in every try. (templated)
    :param sftp_conn_id: the Airflow connection, of type ``sftp_backend``, ``sftp`` or ``ssh``. (templated)
    :param if_exists: ``fail``, ``replace``, ``skip``, ``skip_same``, which replaces only files of another size, or
        ``number``, which keeps both: ``report.csv`` becomes ``report-1.csv``, or the next number that is free.
    :param missing_ok: nothing to move is no failure, nor is an empty list.
    :param dry_run: move nothing, return what would be done.
    """

    template_fields: Sequence[str] = ("source", "target", "sftp_conn_id")
    _action = "moved"

    def __init__(
        self, *, source: Paths, target: str, if_exists: MoveIfExists = "fail", missing_ok: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.target = target
        self.if_exists = if_exists
        self.missing_ok = missing_ok
        check_choice("if_exists", if_exists, [*get_args(IfExists), "number"])

    def _work(self, backend: SFTPBackend, attempt: Try) -> tuple[list[Row], Failures]:
        target = one_path(self.target, "target")
        sources = paths(self.source, "source", none_ok=self.missing_ok)
        if not sources:
            return [], []
        found, missing = on_server(backend, sources)
        found, failures = speakable(found, lambda one: (one.info.path,))
        wanted = moves(found, sources, target, attempt.date)
        steps, there = self._plan(backend, wanted)
        skipped = {
            step for step in steps
            if (size := there.get(step.target)) is not None
            and (self.if_exists == "skip" or (self.if_exists == "skip_same" and size == step.size))
        }  # fmt: skip
        rows = attempt.finished(backend, [step for step in steps if step not in skipped]) if attempt.again else []
        # a name that fits nothing any more is done if the earlier try has moved what it fitted
        done = attempt.names_of({row["source"] for row in rows})
        failures += missing_failures(backend, [name for name in missing if name not in done], ok=self.missing_ok)
        pending: list[Step] = []
        for step in steps:
            size = there.get(step.target)
            if step in skipped:
                rows.append({"path": step.source, "size": step.size, "action": "skipped", "target": step.target})
            elif self.only_plan:
                action = "would fail" if size is not None and self.if_exists == "fail" else "would move"
                rows.append({"path": step.target, "size": step.size, "action": action, "source": step.source})
            else:
                pending.append(step)
        moved, refused = self._move_all(backend, pending, wanted, {one.info.path: one for one in found}, attempt)
        return rows + moved, failures + refused

    def _move_all(
        self,
        backend: SFTPBackend,
        pending: list[Step],
        wanted: Sequence[Step],
        found: Mapping[str, Found],
        attempt: Try,
    ) -> tuple[list[Row], Failures]:
        """Rows for what was moved, and what failed. What finds its number taken, by another task in the meantime or by
        what is no file, gets another; ``wanted`` are the steps without numbers."""
        rows: list[Row] = []
        failures: Failures = []
        blocked: set[str] = set()
        races = _RACES if self.if_exists == "number" else 0
        while True:
            moved, refused = self._move(backend, pending, found, attempt)
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
            pending, _ = self._plan(backend, [step for step in wanted if step.source in beaten], blocked)

    def _plan(
        self, backend: SFTPBackend, steps: Sequence[Step], blocked: Set[str] = frozenset()
    ) -> tuple[list[Step], dict[str, int]]:
        """The steps with the keys of their targets, and the sizes of the targets that exist; ``blocked`` are targets
        found taken."""
        steps = [Step(step.source, backend.resolve(step.target).key, step.size) for step in steps]
        if self.if_exists != "number":
            steps = checked(steps)
        there = {info.path: info.size for info in backend.find(*(literally(step.target) for step in steps))}
        if self.if_exists == "number":
            taken = there.keys() | blocked
            others = backend.find(*(numbered_names(target) for target in crowded_targets(steps, taken)))
            steps = numbered(steps, taken | {info.path for info in others})
        return list(steps), there

    def _move(
        self, backend: SFTPBackend, steps: Sequence[Step], found: Mapping[str, Found], attempt: Try
    ) -> tuple[list[Row], list[tuple[Step, SFTPBackendError | OSError]]]:
        """Rows for what was moved, and what was not, and why."""
        attempt.note({step: found[step.source] for step in steps})
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


def _is_taken(step: Step, error: SFTPBackendError | OSError) -> bool:
    """True if something has the name of the target, a folder too."""
    return isinstance(error, AlreadyExists) or (isinstance(error, InvalidPath) and error.path == step.target)
