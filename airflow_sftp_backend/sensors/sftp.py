"""Wait for files on an SFTP server, in the worker or deferred.

Both evaluate the condition in `_polling.conditions`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, cast

from airflow.sdk import BaseSensorOperator, PokeReturnValue
from airflow.sdk.exceptions import AirflowRuntimeError

from airflow_sftp_backend._arguments import check_conn_id
from airflow_sftp_backend._cancellation import CancellableTask
from airflow_sftp_backend._file_filters import TEMPORARY_NAMES, LimitArguments, TimeLimit, parse_globs
from airflow_sftp_backend._file_rows import FoundFile
from airflow_sftp_backend._map_labels import LabelledOperator
from airflow_sftp_backend._path_arguments import (
    Globs,
    Names,
    Patterns,
    Selection,
    check_names_or_patterns,
    parse_names,
    parse_patterns,
)
from airflow_sftp_backend._polling.conditions import (
    FileCondition,
    PollResult,
    StabilityState,
    condition_paths,
    evaluate,
    poll,
)
from airflow_sftp_backend._state_store import load_if_possible, save
from airflow_sftp_backend._text_rendering import PlainTextOperator
from airflow_sftp_backend.backend import AuthenticationFailed, BackendUnavailable, HostKeyRejected, SFTPBackendError
from airflow_sftp_backend.backend.errors import escaped
from airflow_sftp_backend.hooks.sftp import SFTPBackendHook, translate_errors
from airflow_sftp_backend.progress import pluralize_files
from airflow_sftp_backend.triggers.sftp import FilesFound, SFTPFileTrigger, WaitFailed
from airflow_sftp_backend.version_compat import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    conf,
    task_state_store,
)

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import JsonValue

    from airflow_sftp_backend.backend import SFTPBackend

_STATE_KEY = "stability"
_PURPOSE = "tell for how long a file has not changed"


class SFTPFileSensor(CancellableTask, LabelledOperator, PlainTextOperator, BaseSensorOperator):
    """Wait for files on an SFTP server and return their rows.

    A row has ``path``, ``size`` and ``modified_at``.

    The sensor also waits while a directory is missing. A refused login, host key or operation fails the task at once.
    After a lost connection, or while a key vault cannot be reached, the sensor logs the error and polls again, until
    ``timeout``. In a worker, each poll includes the connection's own retries, and the next poll follows after
    ``poke_interval``. Deferred, all waits on the connection pause together, up to five minutes; Airflow's
    ``exponential_backoff`` and ``max_wait`` do not apply.

    ``silent_fail`` treats any other failed poll as a poll without files. ``soft_fail`` and ``never_fail`` skip the task
    as in every Airflow sensor, also when deferred. A file whose name is not UTF-8 is left out with a warning.

    :param path: literal names to wait for, relative to the connection's base path: a path, a row of another task, or a
        list of these. A text that ends with ``/`` waits for any file below the directory. (templated)
    :param pattern: globs (with ``**``), in place of ``path``: a text or a list. (templated)
    :param sftp_conn_id: id of an Airflow connection of type ``sftp_backend``, ``sftp`` or ``ssh``. (templated)
    :param min_files: number of files that must satisfy all conditions
    :param min_size: size that a file must have at least, in bytes
    :param newer_than: earliest time of a file by the server's clock: a datetime with a time zone, ISO 8601 text, or a
        timedelta that counts back from the time when the run was due (``dag_run.run_after``). SFTP has times in whole
        seconds, so a fraction is cut off. A template that may render no time is written
        ``{{ prev_start_date_success or '' }}``: the first scheduled run then has no limit. A run without a logical date
        (started by an asset or the API) has no earlier success; an empty ``newer_than`` fails the task there.
        (templated)
    :param older_than: time before which a file must be modified, in the same forms; must not be empty. (templated)
    :param max_files: number of files to return at most, the oldest first
    :param stable_for: seconds, or a timedelta, without a change of a file's size and time. A deferred sensor continues
        from the worker's observations, so the clocks of worker and triggerer must agree.
    :param done_file: name of a file that must exist beside each file, such as ``{name}.done``, or ``{stem}.done``
        without the file's suffix. The done file itself does not count, unless ``path`` names it. (templated)
    :param include: globs of file names; only matching files of a directory or pattern count
    :param exclude: globs of names that do not count, for files and for the directories on their paths that ``pattern``
        does not name. By default, the names that programs give to unfinished files. A file in ``path`` always
        counts.
    :param deferrable: wait in the triggerer; by default, Airflow's ``default_deferrable`` decides
    :param kwargs: arguments of ``BaseSensorOperator``, such as ``poke_interval`` and ``timeout`` in seconds
    """

    template_fields: Sequence[str] = ("path", "pattern", "sftp_conn_id", "newer_than", "older_than", "done_file")
    ui_color = "#dbe9f6"
    _names = "path"

    def __init__(
        self,
        *,
        path: Names | None = None,
        pattern: Patterns | None = None,
        sftp_conn_id: str = SFTPBackendHook.default_conn_name,
        min_files: int = 1,
        min_size: int = 0,
        newer_than: TimeLimit = None,
        older_than: TimeLimit = None,
        max_files: int | None = None,
        stable_for: float | timedelta = 0,
        done_file: str | None = None,
        include: Globs | None = None,
        exclude: Globs | None = TEMPORARY_NAMES,
        deferrable: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_names_or_patterns(path, pattern, "path")
        self.path = path
        self.pattern = pattern
        self._by_pattern = pattern is not None
        check_conn_id(sftp_conn_id)
        self.sftp_conn_id = sftp_conn_id
        self.min_files = min_files
        self.min_size = min_size
        self.newer_than = newer_than
        self.older_than = older_than
        self.max_files = max_files
        self._limit_arguments = LimitArguments.checked(newer_than, older_than, min_size, max_files)
        self.stable_for = stable_for
        self.done_file = done_file
        self.include = include
        self.exclude = exclude
        if deferrable is None:
            deferrable = conf.getboolean("operators", "default_deferrable", fallback=False)
        self.deferrable = deferrable
        self._static_condition(Selection(patterns=("*",)))  # raises for invalid arguments; the paths may be templates
        self._hook: SFTPBackendHook | None = None
        self._stability: StabilityState = {}
        self._warning = ""
        self._start_logged = self._missing_warned = False

    def execute(self, context: Context) -> list[FoundFile]:
        """Run the sensor: poll in this process, or poll once and defer.

        All polls in one process share one connection.

        :param context: the context of the task
        :returns: a row for each file
        :raises AirflowFailException: if a retry cannot help
        :raises SFTPBackendError: if a poll fails and a retry may help
        :raises AirflowSkipException: if ``soft_fail`` or ``never_fail`` skips the task
        :raises TaskDeferred: if the wait continues in the triggerer
        :raises AirflowRescheduleException: if the next poll is rescheduled
        :raises AirflowSensorTimeout: if the wait exceeds ``timeout``
        """
        with translate_errors():
            condition = self._condition(context)
            hook = self._hook = SFTPBackendHook(self.sftp_conn_id)
            self._start_logged = self._missing_warned = False
            try:
                # In reschedule mode the base class sends requests to Airflow between polls. A kill must not interrupt
                # these, so `poke` makes only the poll cancellable.
                if self.mode == "reschedule" and not self.deferrable:
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
        """Poll once in the worker.

        Failures are treated as in the triggerer and in Airflow's other sensors.
        """
        try:
            with translate_errors():
                return self._poll(context, condition)
        except AirflowFailException as error:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(str(error)) from error
            raise
        except (SFTPBackendError, AirflowException, AirflowRuntimeError) as error:  # the latter: no such connection
            if self.silent_fail:
                self.log.error("the poll failed, will poll again: %s", error)
                return PollResult(False, [], self._stability, str(error))
            if self.never_fail:
                raise AirflowSkipException(str(error)) from error
            raise

    def poke(self, context: Context) -> PokeReturnValue:
        """Poll once.

        :param context: the context of the task
        :returns: whether the wait is over, and the files
        :raises AirflowFailException: if waiting cannot help
        """
        assert self._hook is not None
        with translate_errors(), self.cancellable(self._hook) if self.mode == "reschedule" else nullcontext():
            result = self._poll(context, self._condition(context))
        return PokeReturnValue(result.done, result.files if result.done else None)

    def execute_complete(self, context: Context, event: FilesFound | WaitFailed) -> list[FoundFile]:  # noqa: ARG002
        """Return the files that the trigger found.

        :param context: the context of the task
        :param event: the event of `SFTPFileTrigger`
        :returns: a row for each file
        :raises AirflowFailException: if the trigger failed and a retry cannot help
        :raises SFTPBackendError: if the trigger failed and a retry may help
        :raises AirflowSkipException: if the trigger failed and ``soft_fail`` or ``never_fail`` skips the task
        """
        if event["status"] == "found":
            files = event["files"]
            self.log.info("found %s", pluralize_files(len(files)))
            return files
        reason, retryable = event["message"], event["retryable"]
        if self.never_fail or (self.soft_fail and not retryable):
            raise AirflowSkipException(reason)
        raise SFTPBackendError(reason) if retryable else AirflowFailException(reason)

    def _condition(self, context: Context) -> FileCondition:
        selection = parse_patterns(self.pattern) if self._by_pattern else parse_names(self.path, "path")
        condition = self._static_condition(selection)
        limits = self._limit_arguments.resolve(
            self.newer_than,
            self.older_than,
            run_after=context["dag_run"].run_after,
            is_scheduled=context.get("logical_date") is not None,
        )
        return replace(
            condition,
            newer_than=None if limits.newer_than is None else limits.newer_than.isoformat(),
            older_than=None if limits.older_than is None else limits.older_than.isoformat(),
            done_file=self.done_file,
        )

    def _static_condition(self, selection: Selection) -> FileCondition:
        """Return the condition without templated values.

        It checks the arguments when the DAG is parsed.
        """
        stable_for = self.stable_for
        return FileCondition(
            **condition_paths(selection),
            min_files=self.min_files,
            min_size=self.min_size,
            max_files=self.max_files,
            stable_for=stable_for.total_seconds() if isinstance(stable_for, timedelta) else stable_for,
            include=parse_globs(self.include, "include"),
            exclude=parse_globs(self.exclude, "exclude"),
        )

    def _poll(self, context: Context, condition: FileCondition) -> PollResult:
        """Poll once, and keep the observations for the next poll.

        If these cannot be kept in reschedule mode, poll again after ``stable_for``.
        """
        if self.mode != "reschedule" or condition.stable_for <= 0:
            return self._poll_once(condition)
        store = task_state_store(context)
        previous = None if store is None else load_if_possible(store, _STATE_KEY, _PURPOSE)
        if previous is not None:
            self._stability = previous
        result = self._poll_once(condition)
        is_saved = (
            store is not None
            and previous is not None
            and save(store, _STATE_KEY, cast("JsonValue", result.stability), _PURPOSE)
        )
        if is_saved or self.deferrable or not result.awaiting_stability:
            return result
        self.log.info("no state is kept between polls: polling again after stable_for, %s s", condition.stable_for)
        time.sleep(condition.stable_for)
        return self._poll_once(condition)

    def _poll_once(self, condition: FileCondition, clock: Callable[[], float] = time.time) -> PollResult:
        try:
            backend = self._backend(condition)
            files, done_files = poll(backend, condition)
            if not files and not self._missing_warned:
                self._warn_of_missing_directories(backend, condition)
        except (AuthenticationFailed, HostKeyRejected):  # subclasses of BackendUnavailable, but permanent
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
            self.log.info("%s", escaped(result.reason))
        return result

    def _warn_of_missing_directories(self, backend: SFTPBackend, condition: FileCondition) -> None:
        """Warn of wildcards in names and of missing directories.

        Called once in a process, at the first poll that finds no file.
        """
        # a missing directory can be a misspelled path
        self._missing_warned = True
        for name in condition.names_with_wildcards:
            self.log.warning("path %r has a wildcard, but names are literal; pass globs as pattern=", name)
        for directory in condition.parent_directories:
            with suppress(SFTPBackendError):  # the next poll raises a lasting error
                if directory and not backend.is_folder(directory):
                    path = escaped(backend.native_path(directory))
                    self.log.warning("there is no directory %s on %s yet", path, backend.address)

    def _backend(self, condition: FileCondition) -> SFTPBackend:
        """Return the backend; log the condition once."""
        assert self._hook is not None
        backend = self._hook.get_conn()
        if not self._start_logged:
            self._start_logged = True
            for description in condition.descriptions:
                resolved = backend.resolve(description)
                slash = "/" if description.endswith("/") else ""
                self.log.info("waiting for %s%s on %s", escaped(resolved.native_path), slash, backend.address)
        return backend
