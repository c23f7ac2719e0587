"""Define the base of all operators.

An operator plans, executes the plan, and reports results and failures.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args

from airflow_sftp_backend._arguments import InvalidArgument, check_conn_id, check_mode_argument
from airflow_sftp_backend._cancellation import CancellableTask
from airflow_sftp_backend._file_filters import (
    FileFilters,
    FileLimits,
    LimitArguments,
    LimitedFile,
    LimitName,
    TimeLimit,
    parse_globs,
    split_by_limits,
    take_oldest,
)
from airflow_sftp_backend._file_rows import (
    Action,
    CompletedAction,
    EarlierAction,
    FileResult,
    ManifestResult,
    PlannedAction,
)
from airflow_sftp_backend._map_labels import LabelledOperator
from airflow_sftp_backend._metrics import send_file_metrics
from airflow_sftp_backend._path_arguments import (
    End,
    Globs,
    Manifests,
    Names,
    Patterns,
    Selection,
    Target,
    check_relative,
    check_selectors,
    parse_names,
    parse_patterns,
    parse_rows,
    split_pattern,
)
from airflow_sftp_backend._text_rendering import PlainTextOperator
from airflow_sftp_backend.backend import (
    AlreadyExists,
    BackendUnavailable,
    CapabilityNotSupported,
    SFTPBackendError,
    WriteResult,
)
from airflow_sftp_backend.backend._garbage_collector import collector_paused
from airflow_sftp_backend.backend.errors import escaped
from airflow_sftp_backend.backend.models import Verify
from airflow_sftp_backend.hooks.sftp import SFTPBackendHook, translate_errors
from airflow_sftp_backend.progress import ProgressLog, format_size, pluralize_files

from ._lineage import FileEvent, file_events, openlineage_facets, update_outlet_events
from ._object_storage import FileState, Outcome, is_up_to_date, sha256_if_equal
from ._rename_template import RenameTemplate, check_rename_early
from ._reporting.failures import Failures, raise_failures
from ._reporting.file_log import log_files, log_total
from ._reporting.manifest import parse_manifest, read_manifests, write_manifest
from ._retry_state import RetryState
from ._transfer_planning import IfExists, LocalEnd, TransferItem, make_result, utf8_error
from ._transfer_records import FileVersion, unproven_target_error
from ._transfers import TempOptions, TransferOptions

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_sftp_backend.backend import BackendConfig, SFTPBackend

    from ._lineage import Facets

T = TypeVar("T")
PlanT = TypeVar("PlanT")


class PlanningOperator(CancellableTask, LabelledOperator, PlainTextOperator, Generic[PlanT]):
    """Plan, execute and report a task.

    A task instance has one backend.

    :param include: globs of file names; only matching files of a directory or pattern count
    :param exclude: globs of file and directory names; matching entries of a directory or pattern do not count
    :param sftp_conn_id: id of an Airflow connection of type ``sftp_backend``, ``sftp`` or ``ssh``. (templated)
    :param dry_run: return the planned results, change nothing
    :param manifest: local path or URL to write the rows to, see `_reporting.manifest`. (templated)
    :param kwargs: arguments of ``BaseOperator``
    """

    ui_color = "#dbe9f6"
    _names: ClassVar[str] = "source"
    _action: CompletedAction

    def __init__(
        self,
        *,
        include: Globs | None = None,
        exclude: Globs | None = None,
        sftp_conn_id: str = SFTPBackendHook.default_conn_name,
        dry_run: bool = False,
        manifest: Target | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.include = include
        self.exclude = exclude
        check_conn_id(sftp_conn_id)
        self.sftp_conn_id = sftp_conn_id
        self.is_dry_run = dry_run
        self.manifest = manifest
        # Remembered, because a template may render to None.
        self._writes_manifest = manifest is not None
        self._manifest_path = ""
        self._filters = FileFilters(parse_globs(include, "include"), parse_globs(exclude, "exclude"))
        self._file_events: Callable[[], Iterable[FileEvent]] = tuple
        self._progress: ProgressLog | None = None
        self._hook: SFTPBackendHook | None = None

    def _run_plan(self, context: Context) -> tuple[PlanT, list[FileResult], ManifestResult | None]:
        """Plan and execute the task, and report its files.

        :param context: the context of the task
        :returns: the plan, a row for each completed or skipped file (with ``dry_run``, for each planned file), and with
            ``manifest`` the location of the written rows
        :raises AirflowFailException: if a retry cannot help
        :raises SFTPBackendError: if the only file failed, and a retry may help
        :raises FilesFailed: if some of several files failed, and a retry may help
        """
        hook = self._hook = SFTPBackendHook(self.sftp_conn_id)
        started = time.monotonic()
        with translate_errors():
            if self._writes_manifest:
                self._manifest_path = parse_manifest(self.manifest)
            try:
                with self.cancellable(hook):
                    backend = hook.get_conn()
                    self.log.info("working in %s on %s", escaped(backend.resolve("").native_path), backend.address)
                    retry_state = RetryState(context, backend)
                    with collector_paused():
                        plan = self._plan(backend, retry_state)
                    if self.is_dry_run:
                        results, failures = self._preview(plan)
                    else:
                        results, failures = self._execute_plan(backend, plan, retry_state)
            finally:
                self._hook = None
                hook.close()
            seconds = time.monotonic() - started
            self._send_metrics(context, results, failures, seconds)
            self._report(context, backend.config, results, failures, seconds)
            with self.cancellable(hook):
                manifest = write_manifest(self._manifest_path, results) if self._writes_manifest else None
        return plan, results, manifest

    @abstractmethod
    def _plan(self, backend: SFTPBackend, retry_state: RetryState) -> PlanT:
        """Decide on the action for each file.

        Changes nothing on the server or on this machine.
        """

    @abstractmethod
    def _preview(self, plan: PlanT) -> tuple[list[FileResult], Failures]:
        """Return the planned result of each file, and the failures of planning."""

    @abstractmethod
    def _execute_plan(
        self, backend: SFTPBackend, plan: PlanT, retry_state: RetryState
    ) -> tuple[list[FileResult], Failures]:
        """Execute a plan; return rows of completed files, and failures."""

    def _report(
        self,
        context: Context,
        config: BackendConfig,
        results: list[FileResult],
        failures: Failures,
        seconds: float,
    ) -> None:
        """Log the results, update the events of outlets, and raise the failures."""
        self._log_summary(results, seconds, failed=bool(failures))
        # Created only if needed: creating the events of many files takes longer than deleting the files.
        self._file_events = partial(file_events, config, results)
        if self.outlets:
            update_outlet_events(context, self.outlets, list(self._file_events()))
        raise_failures(self.log, failures, len(results) + len(failures))

    def _send_metrics(
        self, context: Context, results: Sequence[FileResult], failures: Failures, seconds: float
    ) -> None:
        if not self.is_dry_run:
            instance = context["ti"]
            tags = {"conn_id": self.sftp_conn_id, "dag_id": instance.dag_id, "task_id": instance.task_id}
            send_file_metrics([row["action"] for row in results], len(failures), self._action, seconds, tags)

    def _start_progress(self, total: int | None) -> ProgressLog:
        """Create the progress log of the task's transfers.

        Each of its lines also sends the metrics so far.

        :param total: bytes of all files, None if unknown
        """
        hook = self._hook
        self._progress = ProgressLog(self.log, total, on_line=None if hook is None else hook.send_metrics)
        return self._progress

    def get_openlineage_facets_on_complete(self, task_instance: object) -> Facets | None:  # noqa: ARG002
        """Return the datasets that the task read and wrote.

        Airflow's OpenLineage provider calls this method.

        :param task_instance: the task instance; not used
        :returns: the datasets, also of a task that failed for some files; None without the OpenLineage provider
        """
        return openlineage_facets(list(self._file_events()))

    @staticmethod
    def _check_relative(backend: SFTPBackend, path: str, argument: str) -> None:
        check_relative(path, backend.resolve("").native_path, argument)

    def _log_summary(self, results: Sequence[FileResult], seconds: float, *, failed: bool) -> None:
        """Log the files, and a summary."""
        log_files(self.log, results, self._action, self._list_location(failed=failed))
        sizes = [result["size"] or 0 for result in results if result["action"] == self._action]
        if self.is_dry_run or not sizes:
            return
        size, rate = sum(sizes), 0.0
        if self._progress is not None:
            size, seconds, rate = self._progress.done, self._progress.elapsed, self._progress.rate
        log_total(self.log, self._action, sizes, size, seconds, rate)

    def _list_location(self, *, failed: bool) -> str:
        """Return the place of the list of all files, for the log."""
        if failed:
            return "no list is kept, because files failed"
        if self._writes_manifest:
            return f"the list is the manifest {self._manifest_path!r}"
        if self.do_xcom_push:
            return "the list is the result of the task (XCom)"
        return "no list is kept, because do_xcom_push is False"


class FileOperator(PlanningOperator[PlanT]):
    """Return a row for each file that the arguments select.

    :param pattern: globs that select files, in place of names: a text or a list. (templated)
    :param newer_than: earliest time of a file, see `_file_filters`. (templated)
    :param older_than: time before which a file must be modified. (templated)
    :param min_size: size that a file must have at least, in bytes
    :param max_files: number of files to take, the oldest first
    :param from_manifest: manifests whose rows are the names, in place of names. (templated)
    :param kwargs: arguments of `PlanningOperator` and ``BaseOperator``
    """

    def __init__(
        self,
        *,
        pattern: Patterns | None = None,
        newer_than: TimeLimit = None,
        older_than: TimeLimit = None,
        min_size: int = 0,
        max_files: int | None = None,
        from_manifest: Manifests | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pattern = pattern
        self.from_manifest = from_manifest
        # Remembered, because a template may render to None.
        self._by_pattern = pattern is not None
        self._by_manifest = from_manifest is not None
        self.newer_than = newer_than
        self.older_than = older_than
        self.min_size = min_size
        self.max_files = max_files
        self._limit_arguments = LimitArguments.checked(newer_than, older_than, min_size, max_files)
        self._limits = FileLimits()

    def execute(self, context: Context) -> list[FileResult] | ManifestResult:
        """Plan and execute the task.

        :param context: the context of the task
        :returns: a row for each completed or skipped file; with ``dry_run``, a row for each planned file; with
            ``manifest``, the location of the rows
        :raises AirflowFailException: if a retry cannot help
        :raises SFTPBackendError: if the only file failed, and a retry may help
        :raises FilesFailed: if some of several files failed, and a retry may help
        """
        with translate_errors():
            self._limits = self._limit_arguments.resolve(
                self.newer_than,
                self.older_than,
                run_after=context["dag_run"].run_after,
                is_scheduled=context.get("logical_date") is not None,
            )
        _, rows, manifest = self._run_plan(context)
        return rows if manifest is None else manifest

    def _parse_selection(self, backend: SFTPBackend, *, end: End = "server", none_ok: bool = False) -> Selection:
        """Parse the arguments that select files, after their templates are rendered.

        :raises InvalidArgument: if a value is empty or has a wrong type, or if ``include`` or ``exclude`` apply to
            names
        :raises InvalidPath: if a path on the server repeats the base path
        """
        names = "from_manifest" if self._by_manifest else self._names
        if self._by_pattern:
            selection = parse_patterns(self.pattern)
        elif self._by_manifest:
            selection = parse_rows(read_manifests(self.from_manifest), names, end=end, none_ok=none_ok)
        else:
            selection = parse_names(getattr(self, names), names, end=end, none_ok=none_ok)
        if self._filters and not selection.searches and selection.names:
            raise InvalidArgument(
                "include and exclude filter the files of a directory or pattern;"
                f" {names} names files, and names are not filtered"
            )
        if end == "server":
            base_path = backend.resolve("").native_path
            for name in selection.names:
                check_relative(name.path, base_path, names)
            for pattern in selection.patterns:
                check_relative(pattern, base_path, "pattern")
        return selection

    @property
    def _may_find_nothing(self) -> bool:
        return self._limits.has_time

    def _within_limits(
        self, files: Sequence[T], file_of: Callable[[T], LimitedFile]
    ) -> tuple[list[T], list[CapabilityNotSupported]]:
        """Return the files within the limits of time and size.

        A file with an unknown size or time becomes a failure.
        """
        if not self._limits.excludes:
            return list(files), []
        split = split_by_limits(files, self._limits, file_of)
        for limit, number in split.left_out.items():
            self.log.info("%s left out by %s", pluralize_files(number), limit)
        return split.accepted, [_undecided_error(file_of(item), limit) for item, limit in split.undecided]

    def _take_oldest(self, files: Sequence[T], file_of: Callable[[T], LimitedFile], retry_state: RetryState) -> list[T]:
        """Return the oldest ``max_files`` files.

        A retry gets the files that the first attempt selected.
        """
        if self._limits.max_files is None:
            return list(files)
        earlier = retry_state.selected_earlier
        taken = take_oldest(files, self._limits.max_files, file_of, earlier)
        if not self.is_dry_run:
            retry_state.record_selected(path for item in taken if (path := file_of(item).path) not in earlier)
        if len(taken) < len(files):
            self.log.info("%s left to the next run by max_files", pluralize_files(len(files) - len(taken)))
        return taken

    def _without_empty_directories(
        self, backend: SFTPBackend, selection: Selection, missing: Sequence[str]
    ) -> list[str]:
        """Return the missing names and patterns without empty directories.

        Empty directories are accepted only if a limit of time or ``only_new`` selects the files.

        A retention or an incremental load often finds nothing. A directory that does not exist is still a mistake.
        """
        if not self._may_find_nothing:
            return list(missing)
        literal = {name.path for name in selection.names if not name.is_directory}
        return [
            name
            for name in missing
            if name in literal or not backend.is_folder(name if selection.names else split_pattern(name)[0])
        ]


@dataclass(frozen=True, slots=True)
class TransferPlan:
    """Hold the files to upload or download.

    :ivar items: files to transfer
    :ivar skipped: results of files that stay unchanged
    :ivar failures: failures of planning
    :ivar occupied: existing targets, as far as they were looked up
    :ivar versions: current versions of the sources of ``items``
    """

    items: list[TransferItem]
    skipped: list[FileResult]
    failures: Failures
    occupied: Set[str]
    versions: Mapping[TransferItem, FileVersion | None]


class TransferOperator(FileOperator[TransferPlan]):
    """Plan and report transfers between this machine and the server.

    :param source: names of the files to transfer. (templated)
    :param target: path to write to. (templated)
    :param rename: template for the path of each file below the target. (templated)
    :param if_exists: treatment of existing targets, see `IfExists`
    :param create_parents: create missing parent directories of the targets
    :param verify: verification after the transfer, see `Verify`
    :param mode: permission bits of the targets; None for the usual ones
    :param keep_times: give each target the time of its source
    :param kwargs: arguments of `FileOperator` and ``BaseOperator``
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
    _planned_action: ClassVar[PlannedAction]
    _earlier_action: ClassVar[EarlierAction]
    _local_end: ClassVar[LocalEnd]

    def __init__(
        self,
        *,
        source: Names | None = None,
        target: Target,
        rename: str | None = None,
        if_exists: IfExists = "fail",
        create_parents: bool = True,
        verify: Verify = "size",
        mode: int | None = None,
        keep_times: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.target = target
        self.rename = rename
        self.if_exists = if_exists
        self.create_parents = create_parents
        self.verify = verify
        self.mode = mode
        self.keep_times = keep_times
        self._lost_connection: BackendUnavailable | None = None
        check_selectors(source, self.pattern, self.from_manifest, "source")
        check_rename_early(rename)
        check_choice("if_exists", if_exists, get_args(IfExists))
        check_choice("verify", verify, get_args(Verify))
        check_mode_argument(mode)

    def _rename_template(self, retry_state: RetryState) -> RenameTemplate | None:
        return RenameTemplate.parse(self.rename, retry_state.run_time)

    def _preview(self, plan: TransferPlan) -> tuple[list[FileResult], Failures]:
        results = [*plan.skipped]
        for item in plan.items:
            fails = self.if_exists == "fail" and item.target in plan.occupied
            results.append(self._result(item, item.size, "would fail" if fails else self._planned_action))
        return results, plan.failures

    def _transfer_options(self, retry_state: RetryState, plan: TransferPlan, progress: ProgressLog) -> TransferOptions:
        return TransferOptions(
            overwrite=self.if_exists in ("replace", "skip_same"),
            verify=self.verify,
            create_parents=self.create_parents,
            resume_key=retry_state.resume_key,
            digest=bool(self.outlets),
            progress=progress,
            before_rename=retry_state.transfers.recorder(plan.versions),
            mode=self.mode,
            keep_times=self.keep_times,
            **self._temp_options(),
        )

    def _temp_options(self) -> TempOptions:
        return {}

    def _result(self, item: TransferItem, size: int | None, action: Action) -> FileResult:
        return make_result(item, self._local_end, size, action)

    def _split_skipped(
        self, backend: SFTPBackend, states: Mapping[TransferItem, tuple[FileState | None, FileState | None]]
    ) -> tuple[list[TransferItem], list[FileResult]]:
        """Return the files to transfer, and results for the files to skip.

        :param states: the states of source and target for each file; None for a file that does not exist
        """
        pending: list[TransferItem] = []
        skipped: list[FileResult] = []
        for item, (source, target) in states.items():
            if target is not None and self._is_skipped(backend, item, source, target):
                skipped.append(self._result(item, target.size, "skipped"))
            else:
                pending.append(item)
        return pending, skipped

    def _is_skipped(
        self, backend: SFTPBackend, item: TransferItem, source: FileState | None, target: FileState
    ) -> bool:
        if self.if_exists == "skip":
            return True
        remote, local = (item.target, item.source) if self._local_end == "source" else (item.source, item.target)
        return self.if_exists == "skip_same" and self._has_same_content(backend, remote, local, source, target)

    def _has_same_content(
        self, backend: SFTPBackend, path: str, local: str, source: FileState | None, target: FileState
    ) -> bool:
        if self.verify != "sha256" or source is None or source.size != target.size:
            return is_up_to_date(source, target)
        self.log.info("comparing %s with %s (%s)", escaped(path), escaped(local), format_size(target.size or 0))
        return sha256_if_equal(backend, path, local) is not None

    def _result_of(
        self,
        item: TransferItem,
        outcome: Outcome,
        retry_state: RetryState,
        find_earlier_digest: Callable[[], str | None],
    ) -> FileResult | SFTPBackendError | OSError:
        """Return the result of a completed file, or the failure.

        The result has the file's SHA-256 if known.

        :param find_earlier_digest: returns the digest of the target if the times prove that an earlier attempt wrote
            the target. Called only for a retry with an existing target and without a state store.
        """
        result = self._result(item, item.size, self._action)
        if isinstance(outcome, WriteResult):
            digest = outcome.digest
            result["size"] = outcome.size
        elif not isinstance(outcome, AlreadyExists) or not retry_state.is_retry_since_cleared:
            return outcome
        else:
            try:
                digest = self._earlier_digest(retry_state, find_earlier_digest)
            except BackendUnavailable as error:  # the rows of the other files are kept
                self._lost_connection = error
                return error
            if digest is None:
                return unproven_target_error(outcome)
            result["action"] = self._earlier_action
        if digest is not None:
            result["sha256"] = digest.removeprefix("sha256:")
        return result

    def _earlier_digest(self, retry_state: RetryState, find_earlier_digest: Callable[[], str | None]) -> str | None:
        if retry_state.has_store:
            return None
        if self._lost_connection is not None:  # do not reconnect for each file
            raise self._lost_connection
        return find_earlier_digest()


def _undecided_error(file: LimitedFile, limit: LimitName) -> CapabilityNotSupported:
    attribute = "size" if limit == "min_size" else "time"
    message = f"the {attribute} of the file is unknown, so {limit} cannot be decided; the file is left unchanged"
    return CapabilityNotSupported(message, path=file.path)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Check an argument that takes one of a few values.

    :param name: the name of the argument
    :param value: the value to check
    :param choices: the permitted values
    :raises InvalidArgument: if the value is not permitted
    """
    if value not in choices:
        raise InvalidArgument(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def drop_non_utf8(items: Sequence[T], names: Callable[[T], tuple[str, ...]]) -> tuple[list[T], Failures]:
    """Separate items with UTF-8 names from all others.

    :param items: the items
    :param names: returns the names of an item
    :returns: the items with UTF-8 names, and a failure for each other item
    """
    # Airflow cannot carry the others in XCom.
    errors = {item: error for item in items if (error := utf8_error(*names(item))) is not None}
    if not errors:
        return list(items), []
    return [item for item in items if item not in errors], [*errors.values()]
