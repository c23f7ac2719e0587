"""The sensor that waits for files, in the worker or deferred; both poll and decide by `_polling.conditions`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn, cast

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend._cancellation import CancellableTask
from airflow_sftp_backend._file_filters import TEMPORARY_NAMES, parse_globs
from airflow_sftp_backend._file_rows import FoundFile
from airflow_sftp_backend._path_arguments import (
    Globs,
    Names,
    Patterns,
    Selection,
    parse_names,
    parse_patterns,
    require_one,
)
from airflow_sftp_backend._polling.conditions import (
    FileCondition,
    PollResult,
    StabilityState,
    condition_paths,
    evaluate,
    parse_newer_than,
    poll,
)
from airflow_sftp_backend._state_store import load_if_possible, save
from airflow_sftp_backend.backend import AuthenticationFailed, BackendUnavailable, HostKeyRejected, SFTPBackendError
from airflow_sftp_backend.backend.errors import escaped
from airflow_sftp_backend.hooks.sftp import SFTPBackendHook, translate_errors
from airflow_sftp_backend.progress import pluralize_files
from airflow_sftp_backend.triggers.sftp import SFTPFileTrigger
from airflow_sftp_backend.version_compat import AirflowFailException, AirflowSkipException, conf, task_state_store

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue

    from airflow_sftp_backend.backend import SFTPBackend

_STATE_KEY = "stability"
_PURPOSE = "tell for how long a file has not changed"


class SFTPFileSensor(CancellableTask, BaseSensorOperator):
    """Wait for files on an SFTP server and return them: a list of ``path``, ``size`` and ``modified_at``.

    A missing directory is waited for. A refused login, host key or operation fails the task at once. A lost connection,
    or a key vault that is away, is logged and retried until ``timeout``: in a worker by the connection's own retries
    within a poll and then every ``poke_interval``, deferred after pauses that grow to five minutes, for all waits on
    the connection together. Airflow's ``exponential_backoff`` and ``max_wait`` do not apply when deferred. With
    ``silent_fail`` a poll that failed for another reason counts as one without files; ``soft_fail`` and ``never_fail``
    skip the task as in Airflow, in the triggerer too. A file whose name is not UTF-8 is left out with a warning.

    :param path: names of what to wait for, literal, relative to the connection's base path: a path, a row of another
        task, or a list of these; a text that ends with ``/`` means any file in that directory. (templated)
    :param pattern: globs (``**`` too), in place of ``path``: a text or a list. (templated)
    :param sftp_conn_id: the Airflow connection, of type ``sftp_backend``, ``sftp`` or ``ssh``. (templated)
    :param min_files: how many files must satisfy all of this.
    :param min_size: bytes a file must have.
    :param newer_than: a time with its zone (datetime, or ISO 8601 text) after which a file must have changed, by the
        server's clock. SFTP tells times in whole seconds: the second in which a time with a fraction lies counts. A
        template that may have no time to say is written ``{{ prev_start_date_success or '' }}``: the first scheduled
        run then has no limit. A run without a logical date, which assets or the API start, has no earlier success to
        ask for: there a ``newer_than`` that is empty fails the task. (templated)
    :param stable_for: seconds, or timedelta, for which a file's size and time must not have changed. Deferred, what the
        worker has seen counts, so the clocks of worker and triggerer are to agree.
    :param done_file: name of a file that must stand beside each, such as ``{name}.done``, or ``{stem}.done`` without
        the file's suffix. It is not itself a file that is found, unless ``path`` names it.
        (templated)
    :param include: globs of file names; of what a directory or pattern finds, only these count.
    :param exclude: globs of names that do not count, of files and of directories that a wildcard leads into; by default
        the names programs give to unfinished files. A file given by name always counts.
    :param deferrable: wait in the triggerer; by default as Airflow's ``default_deferrable`` says.
    """

    template_fields: Sequence[str] = ("path", "pattern", "sftp_conn_id", "newer_than", "done_file")
    ui_color = "#dbe9f6"

    def __init__(
        self,
        *,
        path: Names | None = None,
        pattern: Patterns | None = None,
        sftp_conn_id: str = SFTPBackendHook.default_conn_name,
        min_files: int = 1,
        min_size: int = 0,
        newer_than: datetime | str | None = None,
        stable_for: float | timedelta = 0,
        done_file: str | None = None,
        include: Globs | None = None,
        exclude: Globs | None = TEMPORARY_NAMES,
        deferrable: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require_one(path, pattern, "path")
        self.path = path
        self.pattern = pattern
        self._by_pattern = pattern is not None
        self.sftp_conn_id = sftp_conn_id
        self.min_files = min_files
        self.min_size = min_size
        self.newer_than = newer_than
        self._has_newer_than = newer_than is not None
        self.stable_for = stable_for
        self.done_file = done_file
        self.include = include
        self.exclude = exclude
        if deferrable is None:
            deferrable = conf.getboolean("operators", "default_deferrable", fallback=False)
        self.deferrable = deferrable
        if isinstance(newer_than, date | int | float | list | tuple):  # anything else may be a template
            parse_newer_than(newer_than)
        self._static_condition(Selection(patterns=("*",)))
        self._hook: SFTPBackendHook | None = None
        self._stability: StabilityState = {}
        self._warning = ""
        self._start_logged = self._missing_warned = False

    def execute(self, context: Context) -> list[FoundFile]:
        """Poll until the wait is over, over one connection per process.

        :returns: a row for each file.
        :raises AirflowFailException: for what neither waiting nor a retry can fix.
        """
        with translate_errors():
            condition = self._condition(context)
            hook = self._hook = SFTPBackendHook(self.sftp_conn_id)
            self._start_logged = self._missing_warned = False
            try:
                if (
                    self.mode == "reschedule" and not self.deferrable
                ):  # there Airflow is asked for the state between polls
                    return cast("list[FoundFile]", super().execute(context))
                with self.cancellable(hook):
                    if not self.deferrable:
                        return cast("list[FoundFile]", super().execute(context))
                    result = self._poll_before_deferring(context, condition)
            finally:
                self._hook = None
                hook.close()
        if not result.done:
            self._defer_to_triggerer(condition, result)
        return result.files

    def _defer_to_triggerer(self, condition: FileCondition, result: PollResult) -> NoReturn:
        self.defer(
            trigger=SFTPFileTrigger(
                self.sftp_conn_id,
                condition.as_json(),
                self.poke_interval,
                result.stability,
                silent_fail=self.silent_fail,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout),
        )

    def _poll_before_deferring(self, context: Context, condition: FileCondition) -> PollResult:
        """Poll once before deferring; a failure skips the task, or is passed over, as that of any other poll."""
        try:
            with translate_errors():
                return self._poll(context, condition)
        except AirflowFailException as error:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(str(error)) from error
            raise
        except SFTPBackendError as error:
            if self.silent_fail:
                self.log.error("the poll failed, will poll again: %s", error)
                return PollResult(False, [], self._stability, str(error))
            if self.never_fail:
                raise AirflowSkipException(str(error)) from error
            raise

    def poke(self, context: Context) -> PokeReturnValue:
        """Poll once.

        :returns: whether the wait is over, and the files.
        :raises AirflowFailException: for what waiting cannot fix.
        """
        assert self._hook is not None
        with translate_errors(), self.cancellable(self._hook) if self.mode == "reschedule" else nullcontext():
            result = self._poll(context, self._condition(context))
        return PokeReturnValue(result.done, result.files if result.done else None)

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> list[FoundFile]:  # noqa: ARG002
        """Return the files that the trigger has found.

        :returns: a row for each file.
        :raises AirflowFailException: if the trigger gave up.
        :raises SFTPBackendError: if a retry of the task may help.
        :raises AirflowSkipException: if such a failure is to skip the task.
        """
        if event["status"] == "found":
            files: list[FoundFile] = event["files"]
            self.log.info("found %s", pluralize_files(len(files)))
            return files
        reason, may_retry = event["message"], event["status"] == "broken"
        if self.never_fail or (self.soft_fail and not may_retry):
            raise AirflowSkipException(reason)
        raise SFTPBackendError(reason) if may_retry else AirflowFailException(reason)

    def _condition(self, context: Context) -> FileCondition:
        selection = parse_patterns(self.pattern) if self._by_pattern else parse_names(self.path, "path")
        condition = self._static_condition(selection)
        newer_than = parse_newer_than(self.newer_than)
        if self._has_newer_than and newer_than is None and context.get("logical_date") is None:
            raise InvalidArgument(
                "newer_than is empty: this run has no logical date, so Airflow knows no earlier success of it. For runs"
                " that assets or the API start, leave newer_than out and move each file to an archive"
                " (SFTPMoveOperator), so that none is found twice"
            )
        return replace(condition, newer_than=newer_than, done_file=self.done_file)

    def _static_condition(self, selection: Selection) -> FileCondition:
        """Return the condition as far as it is known where the DAG is written."""
        stable_for = self.stable_for
        return FileCondition(
            **condition_paths(selection),
            min_files=self.min_files,
            min_size=self.min_size,
            stable_for=stable_for.total_seconds() if isinstance(stable_for, timedelta) else stable_for,
            include=parse_globs(self.include, "include"),
            exclude=parse_globs(self.exclude, "exclude"),
        )

    def _poll(self, context: Context, condition: FileCondition) -> PollResult:
        """Poll once. Without a state store in reschedule mode, poll again after ``stable_for``."""
        needs_store = self.mode == "reschedule" and condition.stable_for > 0
        store = task_state_store(context) if needs_store else None
        if store is not None:
            previous = load_if_possible(store, _STATE_KEY, _PURPOSE)
            if previous is None:
                store = None
            else:
                self._stability = previous
        result = self._poll_once(condition)
        saved = store is not None and save(store, _STATE_KEY, cast("JsonValue", result.stability), _PURPOSE)
        if needs_store and not saved and not self.deferrable and result.awaiting_stability:
            time.sleep(condition.stable_for)
            result = self._poll_once(condition)
        return result

    def _poll_once(self, condition: FileCondition, clock: Callable[[], float] = time.time) -> PollResult:
        try:
            backend = self._backend(condition)
            files, done_files = poll(backend, condition)
            if not files and not self._missing_warned:
                self._warn_of_missing_directories(backend, condition)
        except (AuthenticationFailed, HostKeyRejected):
            raise
        except BackendUnavailable as error:
            self.log.warning("cannot poll, will poll again: %s", error)
            return PollResult(False, [], self._stability, str(error))
        result = evaluate(condition, files, done_files, self._stability, clock())
        self._stability = result.stability
        if result.warning not in ("", self._warning):
            self.log.warning("%s", escaped(result.warning))
        self._warning = result.warning
        if not result.done:
            self.log.info("%s", escaped(result.missing))
        return result

    def _warn_of_missing_directories(self, backend: SFTPBackend, condition: FileCondition) -> None:
        """Warn once in a process: missing directories are waited for, but a misspelled one never appears."""
        self._missing_warned = True
        for name in condition.names_with_wildcards:
            self.log.warning("path %r is a name, always literal; a glob is passed as pattern=", name)
        for directory in condition.parent_directories:
            with suppress(SFTPBackendError):  # the next poll raises it, if it matters
                if directory and not backend.is_folder(directory):
                    path = escaped(backend.native_path(directory))
                    self.log.warning("there is no directory %s on %s yet", path, backend.address)

    def _backend(self, condition: FileCondition) -> SFTPBackend:
        """Return the backend; once it is there, log what is waited for."""
        assert self._hook is not None
        backend = self._hook.get_conn()
        if not self._start_logged:
            self._start_logged = True
            for description in condition.descriptions:
                resolved = backend.resolve(description)
                slash = "/" if description.endswith("/") else ""
                self.log.info("waiting for %s%s on %s", escaped(resolved.native_path), slash, backend.address)
        return backend
