"""Operators that move files: arguments in, one backend for the task instance, a list of what was done out.

Every operator returns plain JSON, one object a file: ``path`` (on the server), ``size`` in bytes, ``action``, and
``source`` or ``target`` where there is another end. One bad file does not stop the others: all are tried, then the
task fails with every failure named. A task that is tried again finds what its earlier try has done. A file whose name
is not UTF-8 is left alone and fails: Airflow could not be told of it.
"""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

from airflow.sdk import BaseOperator

from .backend import (
    AlreadyExists,
    BackendUnavailable,
    InvalidPath,
    NotFound,
    SFTPBackendError,
    WriteResult,
)
from .ends import (
    Outcome,
    Verify,
    fetch_object,
    is_url,
    same_digest,
    send_object,
    size_of,
    stamp_of,
)
from .hooks import SFTPBackendHook, translate_errors
from .killed import Killable
from .lineage import Deed, deeds, facets, tell_assets
from .plans import (
    Found,
    IfExists,
    MoveIfExists,
    Step,
    checked,
    crowded_targets,
    downloads,
    is_glob,
    literally,
    moves,
    numbered,
    numbered_names,
    on_server,
    one_path,
    paths,
    unspeakable,
    uploads,
)
from .progress import ProgressLog, counted, duration, quantity
from .tries import Row, Try

if TYPE_CHECKING:
    from airflow.sdk import Context

    from .backend import SFTPBackend
    from .lineage import Facets

T = TypeVar("T")
Failures = list[SFTPBackendError | OSError]
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_RACES = 20
"""How often a file is given another number because another task has taken its own."""


class _FileOperator(Killable, BaseOperator):
    """What the operators share: one backend, opened for the task instance and closed after it in every case."""

    ui_color = "#dbe9f6"
    _action: ClassVar[Literal["uploaded", "downloaded", "moved", "deleted"]]

    def __init__(
        self, *, sftp_conn_id: str = SFTPBackendHook.default_conn_name, dry_run: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.sftp_conn_id = sftp_conn_id
        self.only_plan = dry_run
        self._done: Sequence[Deed] = ()
        self._progress: ProgressLog | None = None

    def execute(self, context: Context) -> list[Row]:
        """Does the work. What retrying cannot mend fails the task at once."""
        hook = SFTPBackendHook(self.sftp_conn_id)
        started = time.monotonic()
        with translate_errors():
            try:
                with self.interruptible(hook):
                    backend = hook.get_conn()
                    folder = backend.resolve("")
                    self.log.info("working in %s on %s", folder.native_path, folder.backend)
                    rows, failures = self._work(backend, Try(context, backend))
            finally:
                hook.close()
            self._tell(rows, time.monotonic() - started)
            self._done = list(deeds(backend.config, rows))
            tell_assets(context, self.outlets, self._done)
            self._raise(failures, len(rows) + len(failures))
        return rows

    def get_openlineage_facets_on_complete(self, task_instance: object) -> Facets | None:  # noqa: ARG002
        """What was read and written, for Airflow's OpenLineage provider; also of a task that failed over some files."""
        return facets(self._done)

    @abstractmethod
    def _work(self, backend: SFTPBackend, attempt: Try) -> tuple[list[Row], Failures]:
        """A row for each file that is done, and what failed."""

    def _raise(self, failures: Failures, count: int) -> None:
        if len(failures) == 1 and count == 1:
            raise failures[0]
        if failures:
            for failure in failures:
                self.log.error("%s", failure)
            raise ExceptionGroup(f"{len(failures)} of {counted(count)} failed", failures)

    def _tell(self, rows: Sequence[Row], seconds: float) -> None:
        """A line in the log for each file, and one for all that was done."""
        for row in rows:
            origin = f" from {row['source']}" if self._action == "moved" and "source" in row else ""
            self.log.info("%s %s%s (%s)", row["action"], row["path"], origin, quantity(row["size"] or 0))
        if self.only_plan:
            return
        done = [row["size"] or 0 for row in rows if row["action"] == self._action]
        size, rate = sum(done), ""
        if self._progress is not None:
            size, seconds = self._progress.done, self._progress.elapsed
            rate = f", {quantity(size / seconds)}/s" if seconds > 0 and size else ""
        self.log.info("%s %s, %s in %s%s", self._action, counted(len(done)), quantity(size), duration(seconds), rate)


class _TransferOperator(_FileOperator):
    """What upload and download share."""

    template_fields: Sequence[str] = ("source", "target", "sftp_conn_id")

    def __init__(
        self,
        *,
        source: Paths,
        target: str | os.PathLike[str],
        if_exists: IfExists = "fail",
        create_parents: bool = True,
        verify: Verify = "size",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.target = target
        self.if_exists = if_exists
        self.create_parents = create_parents
        self.verify = verify
        _check("if_exists", if_exists, get_args(IfExists))
        _check("verify", verify, get_args(Verify))

    def _pending(self, steps: Sequence[Step], sizes: Mapping[str, int], end: str) -> tuple[list[Step], list[Row]]:
        """The steps to take, and rows for those to leave out; ``sizes`` are of the targets that exist."""
        pending, rows = [], []
        for step in steps:
            size = sizes.get(step.target)
            if size is not None and (self.if_exists == "skip" or (self.if_exists == "skip_same" and size == step.size)):
                rows.append(_row(step.target if end == "source" else step.source, step, end, size, "skipped"))
            else:
                pending.append(step)
        return pending, rows

    def _done_row(self, row: Row, outcome: Outcome, backend: SFTPBackend, local: str, again: str | None) -> Row | None:
        """The row of a file that is done: by this try, as the outcome says, or ``again``, by an earlier one, whose file
        is at both ends. None if it is not. With the file's SHA-256 where that is known."""
        if isinstance(outcome, WriteResult):
            row, digest = row | {"size": outcome.size}, outcome.digest
        else:
            comparable = again is not None and isinstance(outcome, AlreadyExists)
            digest = same_digest(backend, row["path"], local) if comparable else None
            if digest is None:
                return None
            row = row | {"action": again}
        return row | ({} if digest is None else {"sha256": digest.removeprefix("sha256:")})


class SFTPUploadOperator(_TransferOperator):
    """Sends files to an SFTP server, each of which appears there only when it is whole.

    :param source: what to send: a local path, a folder (all it holds, but for what a download has not finished), a glob
        (``**`` too), the URL of any ``ObjectStoragePath``, or a list of these. (templated)
    :param target: path on the server, relative to the connection's base path; a folder if it ends with ``/`` or if
        ``source`` is anything but one plain file. (templated)
    :param sftp_conn_id: the Airflow connection, of type ``sftp_backend``, ``sftp`` or ``ssh``. (templated)
    :param if_exists: ``fail``, ``replace``, ``skip``, or ``skip_same``, which replaces only files of another size.
    :param create_parents: make missing folders on the server.
    :param verify: how an upload is proven: ``size``, ``sha256`` (read back), or ``none`` for drop boxes.
    :param dry_run: send nothing, return what would be done.
    """

    _action = "uploaded"

    def _work(self, backend: SFTPBackend, attempt: Try) -> tuple[list[Row], Failures]:
        target = one_path(self.target, "target")
        steps = uploads(paths(self.source, "source"), target)
        steps = [Step(step.source, backend.resolve(step.target).key, step.size) for step in steps]
        steps, failures = _speakable(steps, lambda step: (step.source, step.target))
        looks = self.only_plan or self.if_exists in ("skip", "skip_same")
        there = backend.find(*(literally(step.target) for step in steps)) if looks else []
        pending, rows = self._pending(steps, {info.path: info.size for info in there}, "source")
        if self.only_plan:
            taken = {info.path for info in there} if self.if_exists == "fail" else set()
            rows += [
                _row(s.target, s, "source", s.size, "would fail" if s.target in taken else "would upload")
                for s in pending
            ]
            return rows, failures
        stamps = {step: stamp_of(step.source) for step in pending}
        sent = attempt.taken(backend, stamps)
        pending = [step for step in pending if step not in sent]
        progress = self._progress = ProgressLog(self.log, sum(step.size or 0 for step in pending))
        again = "uploaded by an earlier try" if attempt.again else None
        for step, outcome in zip(pending, self._send(backend, pending, attempt, progress), strict=True):
            row = _row(step.target, step, "source", step.size, self._action)
            done = self._done_row(row, outcome, backend, step.source, again)
            if done is not None:
                sent[step] = done
            elif not isinstance(outcome, WriteResult):
                failures.append(outcome)
        if failures:
            attempt.note_sent([(row, stamps[step]) for step, row in sent.items()])
        else:
            attempt.forget_sent()
        return [*rows, *sent.values()], failures

    def _send(self, backend: SFTPBackend, steps: Sequence[Step], attempt: Try, progress: ProgressLog) -> list[Outcome]:
        """What was sent or the failure, for each step."""
        overwrite = self.if_exists in ("replace", "skip_same")
        local = [step for step in steps if not is_url(step.source)]
        outcomes = backend.upload_many(
            [(step.source, step.target) for step in local],
            overwrite=overwrite,
            verify=self.verify,
            progress=progress,
            create_parents=self.create_parents,
            resume_key=attempt.resume_key,
            digest=bool(self.outlets),
            return_exceptions=True,
        )
        done: dict[Step, Outcome] = dict(zip(local, outcomes, strict=True))
        for step in steps:
            if is_url(step.source):
                done[step] = send_object(
                    backend,
                    step.source,
                    step.target,
                    step.size,
                    overwrite=overwrite,
                    verify=self.verify,
                    create_parents=self.create_parents,
                    progress=progress,
                )
        return [done[step] for step in steps]


class SFTPDownloadOperator(_TransferOperator):
    """Fetches files from an SFTP server; each local file appears only when it is whole.

    :param source: what to fetch, relative to the connection's base path: a path, a glob (``**`` too), a folder ending
        with ``/`` (all it holds), or a list of these. (templated)
    :param target: local path, or URL of any ``ObjectStoragePath``; a folder if it ends with ``/`` or if ``source`` is
        anything but one plain path. (templated)
    :param sftp_conn_id: the Airflow connection, of type ``sftp_backend``, ``sftp`` or ``ssh``. (templated)
    :param if_exists: ``fail``, ``replace``, ``skip``, or ``skip_same``, which replaces only files of another size.
    :param create_parents: make missing local folders.
    :param verify: how a download is proven: ``size``, ``sha256`` (the local file is read again), or ``none``.
    :param dry_run: fetch nothing, return what would be done.
    """

    _action = "downloaded"

    def _work(self, backend: SFTPBackend, attempt: Try) -> tuple[list[Row], Failures]:
        sources, target = paths(self.source, "source"), one_path(self.target, "target")
        found, missing = on_server(backend, sources)
        failures: Failures = [_not_found(backend, name) for name in missing]
        steps, refused = _speakable(downloads(found, sources, target), lambda step: (step.source, step.target))
        failures += refused
        sizes = {step.target: size for step in steps if (size := size_of(step.target)) is not None}
        pending, rows = self._pending(steps, sizes, "target")
        if self.only_plan:
            taken = sizes if self.if_exists == "fail" else {}
            rows += [
                _row(s.source, s, "target", s.size, "would fail" if s.target in taken else "would download")
                for s in pending
            ]
            return rows, failures
        progress = self._progress = ProgressLog(self.log, sum(step.size or 0 for step in pending))
        again = "downloaded by an earlier try" if attempt.again else None
        for step, outcome in zip(pending, self._fetch(backend, pending, attempt, progress), strict=True):
            row = _row(step.source, step, "target", step.size, self._action)
            done = self._done_row(row, outcome, backend, step.target, again)
            if done is not None:
                rows.append(done)
            elif not isinstance(outcome, WriteResult):
                failures.append(outcome)
        return rows, failures

    def _fetch(self, backend: SFTPBackend, steps: Sequence[Step], attempt: Try, progress: ProgressLog) -> list[Outcome]:
        """What was fetched or the failure, for each step."""
        overwrite = self.if_exists in ("replace", "skip_same")
        local = [step for step in steps if not is_url(step.target)]
        done: dict[Step, Outcome] = {}
        if self.create_parents:
            local, done = _with_parents(local)
        outcomes = backend.download_many(
            [(step.source, step.target) for step in local],
            overwrite=overwrite,
            verify=self.verify,
            progress=progress,
            resume_key=attempt.resume_key,
            digest=bool(self.outlets),
            return_exceptions=True,
        )
        done |= zip(local, outcomes, strict=True)
        for step in steps:
            if is_url(step.target):
                done[step] = fetch_object(
                    backend, step.source, step.target, step.size,
                    overwrite=overwrite, verify=self.verify, progress=progress,
                )  # fmt: skip
        return [done[step] for step in steps]


class SFTPMoveOperator(_FileOperator):
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
        _check("if_exists", if_exists, [*get_args(IfExists), "number"])

    def _work(self, backend: SFTPBackend, attempt: Try) -> tuple[list[Row], Failures]:
        target = one_path(self.target, "target")
        sources = paths(self.source, "source", none_ok=self.missing_ok)
        if not sources:
            return [], []
        found, missing = on_server(backend, sources)
        found, failures = _speakable(found, lambda one: (one.info.path,))
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
        failures += _missing(backend, [name for name in missing if name not in done], ok=self.missing_ok)
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
            failures += _told(
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


class SFTPDeleteOperator(_FileOperator):
    """Deletes files on an SFTP server.

    :param path: what to delete: a path, a glob (``**`` too), a folder ending with ``/`` (the folder and all it holds),
        or a list of these. (templated)
    :param sftp_conn_id: the Airflow connection, of type ``sftp_backend``, ``sftp`` or ``ssh``. (templated)
    :param missing_ok: nothing to delete is no failure, nor is an empty list.
    :param dry_run: delete nothing, return what would be done.
    """

    template_fields: Sequence[str] = ("path", "sftp_conn_id")
    _action = "deleted"

    def __init__(self, *, path: Paths, missing_ok: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.missing_ok = missing_ok

    def _work(self, backend: SFTPBackend, attempt: Try) -> tuple[list[Row], Failures]:
        wanted = paths(self.path, "path", none_ok=self.missing_ok)
        folders = [name for name in wanted if name.endswith("/") and not is_glob(name)]
        if any(backend.resolve(name).key == "" for name in folders):
            raise ValueError("path names the base path itself, which is not deleted; say '**' for all files below it")
        everything, missing = on_server(backend, wanted)
        found, failures = _speakable(everything, lambda one: (one.info.path,))
        # an empty folder holds no file that fits, and is there to be deleted
        missing = [name for name in missing if name not in folders or not backend.is_folder(name)]
        forgiven = attempt.names_of(None) if attempt.again else set()
        ok = self.missing_ok or (attempt.again and not attempt.remembers)
        failures += _missing(backend, [name for name in missing if name not in forgiven], ok=ok)
        if not self.only_plan:
            names = {one.source for one in found} | {name for name in folders if name not in missing}
            attempt.note_names(names)
        rows: list[Row] = []
        outcomes: list[SFTPBackendError | OSError | None] = [None for _ in found]
        if not self.only_plan:
            outcomes = backend.delete_many([one.info.path for one in found], missing_ok=True, return_exceptions=True)
        for one, outcome in zip(found, outcomes, strict=True):
            if outcome is None:
                action = "would delete" if self.only_plan else "deleted"
                rows.append({"path": one.info.path, "size": one.info.size, "action": action})
        failures += _told(outcomes)
        if any(isinstance(failure, BackendUnavailable) for failure in failures):
            return rows, failures
        kept = {one.info.path for one in everything} - {one.info.path for one in found}
        for name in [] if self.only_plan else folders:
            if any(path.startswith(f"{backend.resolve(name).key}/") for path in kept):
                continue
            try:
                backend.delete_folder(name, recursive=True, missing_ok=True)
            except SFTPBackendError as error:
                failures.append(error)
        return rows, failures


def _check(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(map(repr, choices))}, not {value!r}")


def _row(path: str, step: Step, end: str, size: int | None, action: str) -> Row:
    return {"path": path, "size": size, "action": action, end: step.source if end == "source" else step.target}


def _speakable(items: Sequence[T], names: Callable[[T], tuple[str, ...]]) -> tuple[list[T], Failures]:
    """Those whose names Airflow can be told, and why it cannot be told of the others, which are left as they are."""
    refused = {item: error for item in items if (error := unspeakable(*names(item))) is not None}
    return [item for item in items if item not in refused], [*refused.values()]


def _is_taken(step: Step, error: SFTPBackendError | OSError) -> bool:
    """True if something has the name of the target, a folder too."""
    return isinstance(error, AlreadyExists) or (isinstance(error, InvalidPath) and error.path == step.target)


def _missing(backend: SFTPBackend, names: Sequence[str], *, ok: bool) -> Failures:
    """What is wrong with names that no file on the server fits: a folder without its slash, or, unless that is ``ok``,
    nothing there."""
    failures: Failures = []
    for name in names:
        if not is_glob(name) and not name.endswith("/") and backend.is_folder(name):
            message = "it is a folder; end its name with '/' if that is meant"
            failures.append(InvalidPath(message, path=name, backend=backend.name))
        elif not ok:
            failures.append(_not_found(backend, name))
    return failures


def _told(outcomes: Sequence[SFTPBackendError | OSError | None]) -> Failures:
    """The failures among them. Of those that a lost connection caused, the first: the others say the same."""
    failures: Failures = []
    lost = False
    for outcome in outcomes:
        if outcome is not None and not (lost and isinstance(outcome, BackendUnavailable)):
            failures.append(outcome)
            lost = lost or isinstance(outcome, BackendUnavailable)
    return failures


def _not_found(backend: SFTPBackend, name: str) -> NotFound:
    return NotFound("no file on the server fits", path=name, backend=backend.name)


def _with_parents(steps: Sequence[Step]) -> tuple[list[Step], dict[Step, Outcome]]:
    """Makes the folders of local targets: the steps whose folder is there now, and why it is not for the others."""
    ready: list[Step] = []
    failed: dict[Step, Outcome] = {}
    for step in steps:
        try:
            os.makedirs(os.path.dirname(step.target) or ".", exist_ok=True)
            ready.append(step)
        except OSError as error:
            failed[step] = error
    return ready, failed
