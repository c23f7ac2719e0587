"""Sync a directory with a local directory or an object store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from airflow_sftp_backend._arguments import InvalidArgument, check_mode_argument
from airflow_sftp_backend._file_rows import Action, FileResult, SyncCounts, SyncManifestResult, SyncResult
from airflow_sftp_backend._path_arguments import Target, parse_target
from airflow_sftp_backend.backend import BackendUnavailable, InvalidPath, NotFound, SFTPBackendError, WriteResult
from airflow_sftp_backend.backend.errors import escaped
from airflow_sftp_backend.backend.models import Verify
from airflow_sftp_backend.progress import pluralize_files

from ._base import PlanningOperator, check_choice, drop_non_utf8
from ._object_storage import FileState, is_url
from ._reporting.failures import Failures, distinct_failures
from ._retry_state import RetryState
from ._sync.changes import Changes, plan_changes
from ._sync.deletion_limit import check_max_delete, exceeds_max_delete
from ._sync.deletions import delete_local, delete_on_server
from ._sync.ends import Direction, SyncEnds
from ._sync.listings import paths_of_equal_content
from ._sync.overlap import check_overlap
from ._sync.tree_differences import (
    Differences,
    TimeRule,
    TreeListing,
    classify,
    compare_by_state,
    depends_on_time_rule,
    untimed,
)
from ._transfer_planning import TransferItem, make_result
from ._transfer_records import FileVersion
from ._transfers import TransferOptions, download_items, upload_items

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_sftp_backend.backend import SFTPBackend

Compare: TypeAlias = Literal["time", "sha256"]

_NAMED_IN_LOG = 3
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """Hold the plan of a sync.

    :ivar ends: the two directories
    :ivar differences: the paths of both ends by their states
    :ivar changes: the changes of the target
    :ivar items: the files to transfer, by their paths
    :ivar versions: versions of the sources of ``items``
    :ivar earlier: results of files that an earlier attempt transferred
    :ivar deletions: the files to delete, with their sizes
    :ivar exceeds_limit: True if the deletions exceed ``max_delete``
    :ivar failures: failures of planning
    """

    ends: SyncEnds
    differences: Differences
    changes: Changes
    items: Mapping[str, TransferItem]
    versions: Mapping[TransferItem, FileVersion | None]
    earlier: list[FileResult]
    deletions: Mapping[str, int | None]
    exceeds_limit: bool
    failures: Failures


class SFTPSyncOperator(PlanningOperator[SyncPlan]):
    """Make a target directory like a source directory.

    Only new and changed files are transferred. A file is unchanged if size and time are equal. On a target that keeps
    no times, a file is unchanged if the size is equal and the target is not older. A run without changes lists both
    directories and does nothing else. Links and special files are left out on both sides: never followed, transferred
    or deleted.

    :param source: literal path of the source directory: for an upload a local path, or the URL of any
        ``ObjectStoragePath``; for a download a path on the server, relative to the connection's base path. (templated)
    :param target: literal path of the target directory, at the other end. (templated)
    :param direction: ``upload`` to the server, or ``download`` from the server
    :param compare: ``time`` compares sizes and times; ``sha256`` reads files of equal size at both ends and compares
        their content
    :param delete: delete files of the target that the source lacks, after all transfers have succeeded
    :param max_delete: maximum of files to delete: a number, or a percentage of the target's files such as ``"10%"``. If
        more files would be deleted, the task fails before it changes anything.
    :param include: globs of file names; only matching files are transferred and deleted
    :param exclude: globs of file and directory names; matching entries are neither transferred nor deleted
    :param allow_empty: accept a source directory that is missing, or, with ``delete``, has no files
    :param keep_times: give each file of the target the time of its source. If a server refuses, its files count as
        unchanged by the rule for targets that keep no times.
    :param verify: verification of a transfer: ``size``, ``sha256`` (reads the file back) or ``none``
    :param mode: permission bits of each transferred file, such as ``0o640``, also in place of a replaced file's own. If
        the target refuses the mode, the file fails and does not change. Unchanged files keep theirs, objects have none.
    :param sftp_conn_id: id of an Airflow connection of type ``sftp_backend``, ``sftp`` or ``ssh``. (templated)
    :param dry_run: return the planned result, change nothing
    :param manifest: local path or URL of a file to write the rows to, one JSON object a line. The task then returns
        the counts with ``manifest`` and ``count`` in place of ``files``. (templated)
    :param kwargs: arguments of ``BaseOperator``
    """

    template_fields: Sequence[str] = ("source", "target", "sftp_conn_id", "manifest")

    def __init__(
        self,
        *,
        source: Target,
        target: Target,
        direction: Direction,
        compare: Compare = "time",
        delete: bool = False,
        max_delete: int | str | None = None,
        allow_empty: bool = False,
        keep_times: bool = True,
        verify: Verify = "size",
        mode: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.target = target
        self.direction = direction
        self.compare = compare
        self.delete = delete
        self.max_delete = max_delete
        self.allow_empty = allow_empty
        self.keep_times = keep_times
        self.verify = verify
        self.mode = mode
        check_choice("direction", direction, get_args(Direction))
        check_choice("compare", compare, get_args(Compare))
        check_choice("verify", verify, get_args(Verify))
        check_max_delete(max_delete, deletes=delete)
        check_mode_argument(mode)
        self._action = "uploaded" if direction == "upload" else "downloaded"

    def execute(self, context: Context) -> SyncResult | SyncManifestResult:
        """Compare the directories, transfer and delete files.

        :param context: the context of the task
        :returns: counts, and a row for each transferred and each deleted file; with ``dry_run``, as planned; with
            ``manifest``, counts and the location of the rows
        :raises AirflowFailException: if a retry cannot help
        :raises SFTPBackendError: if the only file failed, and a retry may help
        :raises FilesFailed: if some of several files failed, and a retry may help
        """
        plan, files, manifest = self._run_plan(context)
        differences = plan.differences
        size = sum(row["size"] or 0 for row in files if row["action"] not in ("deleted", "would delete", "would fail"))
        counts = SyncCounts(
            new=len(differences.new),
            changed=len(differences.changed) + len(plan.earlier),
            unchanged=len(differences.unchanged) - len(plan.earlier),
            extra=len(differences.extra),
            deleted=sum(row["action"] == "deleted" for row in files),
            size=size,
        )
        if manifest is None:
            return SyncResult(**counts, files=files)
        return SyncManifestResult(**counts, manifest=manifest["manifest"], count=manifest["count"])

    # -- planning -----------------------------------------------------------------------------------------------------

    def _plan(self, backend: SFTPBackend, retry_state: RetryState) -> SyncPlan:
        ends = self._parse_ends(backend)
        check_overlap(backend, ends.server, ends.other)
        found_source, found_target = ends.list_both(self._filters, restores=not self.is_dry_run)
        source, target = self._require_source(backend, found_source), found_target or TreeListing()
        differences = self._compare(ends, source, target)
        self.log.info(
            "%d new, %d changed, %d unchanged, %d extra files",
            len(differences.new), len(differences.changed), len(differences.unchanged), len(differences.extra),
        )  # fmt: skip
        written, failures = drop_non_utf8([*differences.new, *differences.changed], ends.both)
        extra, not_utf8 = drop_non_utf8(differences.extra if self.delete else (), lambda path: (path,))
        changes = plan_changes(ends, source, target, written, extra if self.delete else None)
        failures += [*not_utf8, *source.invalid]
        failures += [InvalidPath(reason, path=path, server=backend.address) for path, reason in changes.refused.items()]
        exceeds_limit = exceeds_max_delete(self.max_delete, changes.deletions, target.files)
        self._check_limit(len(changes.deletions), len(target.files), exceeds_limit)
        items = {path: ends.item(path, source.files[path]) for path in changes.transfers}
        return SyncPlan(
            ends=ends,
            differences=differences,
            changes=changes,
            items=items,
            versions={item: _version(source.files[path]) for path, item in items.items()},
            earlier=[*self._transferred_earlier(retry_state, ends, differences, source, target)],
            deletions={path: target.files[path].size for path in changes.deletions},
            exceeds_limit=exceeds_limit,
            failures=failures,
        )

    def _parse_ends(self, backend: SFTPBackend) -> SyncEnds:
        is_upload = self.direction == "upload"
        source = parse_target(self.source, "source", end="local" if is_upload else "server")
        target = parse_target(self.target, "target", end="server" if is_upload else "local")
        server, other = (target, source) if is_upload else (source, target)
        if self.mode is not None and not is_upload and is_url(target):
            raise InvalidArgument("mode applies to local targets and to the server, but target is a URL")
        self._check_relative(backend, server, "target" if is_upload else "source")
        return SyncEnds(backend, self.direction, server, other)

    def _require_source(self, backend: SFTPBackend, source: TreeListing | None) -> TreeListing:
        """Return the listing of the source.

        A missing directory is an empty one for ``allow_empty``.

        :raises NotFound: if the source is missing, or empty although files would be deleted
        """
        name = str(self.source)
        server = backend.address if self.direction == "download" else None
        if source is None and not self.allow_empty:
            message = "the source directory does not exist; nothing was changed. allow_empty=True accepts this"
            raise NotFound(message, path=name, server=server)
        if not (source and source.files) and self.delete and not self.allow_empty:
            message = (
                "the source directory has no file to transfer, and delete=True would delete all files of the target;"
                " nothing was changed. allow_empty=True accepts this"
            )
            raise NotFound(message, path=name, server=server)
        if source is None:
            return TreeListing()
        for message, paths in (
            ("left out links and special files of the source", source.others),
            ("left alone files of the source that are being replaced, or whose replacement was interrupted",
             source.backups.values()),
        ):  # fmt: skip
            if paths:
                names = ", ".join(escaped(path) for path in islice(sorted(paths), _NAMED_IN_LOG))
                self.log.warning("%s, %d in total: %s", message, len(paths), names)
        return source

    def _compare(self, ends: SyncEnds, source: TreeListing, target: TreeListing) -> Differences:
        if self.compare == "sha256":
            return classify(source, target, paths_of_equal_content(ends.backend, source, target, ends.both))
        differences = compare_by_state(source, target, self._time_rule(ends, source, target))
        if paths := untimed(source, target, differences.unchanged):
            self.log.warning(
                "only sizes were compared of %s without times, such as %s; compare='sha256' compares the content",
                pluralize_files(len(paths)),
                escaped(paths[0]),
            )
        return differences

    def _time_rule(self, ends: SyncEnds, source: TreeListing, target: TreeListing) -> TimeRule:
        """Return the comparison of times.

        The server is tested only if the test decides about a file.
        """
        from airflow_sftp_backend.backend._time_support import query_time_support  # not needed to parse DAGs

        if self.direction == "download":
            return TimeRule(is_kept=self.keep_times and not is_url(ends.other))
        if not depends_on_time_rule(source, target):
            return TimeRule(is_kept=True)
        try:
            support = query_time_support(ends.backend, ends.server)
        except BackendUnavailable:
            raise
        except SFTPBackendError as error:
            self.log.warning("files of unequal times are transferred, because times cannot be tested: %s", error)
            return TimeRule(is_kept=True)
        if self.keep_times and support.is_kept:
            return TimeRule(is_kept=True)
        lead = 0.0 if support.now is None else support.now + 1 - time.time()  # + 1, because SFTP has whole seconds
        self.log.info("the target keeps no times: files of equal size that are not older are unchanged")
        return TimeRule(is_kept=False, clock_lead=lead)

    def _check_limit(self, deletions: int, target_files: int, exceeds_limit: bool) -> None:
        if not exceeds_limit:
            return
        message = (
            f"{deletions} of {pluralize_files(target_files)} of the target would be deleted, more than"
            f" max_delete={self.max_delete!r} allows; nothing was changed. Check the source, or raise max_delete"
        )
        if not self.is_dry_run:
            raise InvalidArgument(message)
        self.log.warning("%s", message)

    def _transferred_earlier(
        self,
        retry_state: RetryState,
        ends: SyncEnds,
        differences: Differences,
        source: TreeListing,
        target: TreeListing,
    ) -> Iterator[FileResult]:
        """Yield the results of unchanged files that an earlier attempt transferred."""
        if not retry_state.is_retry_since_cleared:
            return
        is_upload = self.direction == "upload"
        action: Action = "uploaded by an earlier attempt" if is_upload else "downloaded by an earlier attempt"
        for path in differences.unchanged:
            item, state = ends.item(path, source.files[path]), target.files[path]
            record = retry_state.transfers.find(item)
            if record is None or record.size != state.size or record.version != _version(source.files[path]):
                continue
            seconds = record.mtime if is_upload or record.mtime is None else record.mtime // _NS
            if seconds is None or state.mtime is None or seconds == int(state.mtime):
                yield record.result(item, ends.local_end, action)

    # -- execution ----------------------------------------------------------------------------------------------------

    def _preview(self, plan: SyncPlan) -> tuple[list[FileResult], Failures]:
        planned: Action = "would upload" if self.direction == "upload" else "would download"
        items = plan.items
        if plan.failures and (plan.deletions or plan.changes.late):
            self.log.warning("would delete nothing, because files cannot be transferred")
            items = {path: item for path, item in items.items() if path not in plan.changes.late}
        results = [make_result(item, plan.ends.local_end, item.size, planned) for item in items.values()]
        if plan.failures:
            return results, plan.failures
        action: Action = "would fail" if plan.exceeds_limit else "would delete"
        return results + [self._deletion(plan, path, action) for path in plan.deletions], plan.failures

    def _execute_plan(
        self, backend: SFTPBackend, plan: SyncPlan, retry_state: RetryState
    ) -> tuple[list[FileResult], Failures]:
        progress = self._start_progress(sum(item.size or 0 for item in plan.items.values()))
        options = TransferOptions(
            overwrite=True,
            verify=self.verify,
            create_parents=True,
            mode=self.mode,
            keep_times=self.keep_times,
            resume_key=retry_state.resume_key,
            digest=bool(self.outlets),
            progress=progress,
            before_rename=retry_state.transfers.recorder(plan.versions) if plan.items else None,
        )
        prompt = [item for path, item in plan.items.items() if path not in plan.changes.late]
        transferred, failures = self._transfer(backend, plan, prompt, options)
        results, failures = [*plan.earlier, *transferred], [*plan.failures, *failures]
        if not plan.deletions and not plan.changes.late:
            return results, failures
        if failures:
            self.log.warning("deleted nothing, because not all transfers succeeded")
            return results, failures
        deleted, failures = self._delete(backend, plan)
        if failures:
            return [*results, *deleted], failures
        late = [item for path, item in plan.items.items() if path in plan.changes.late]
        transferred, failures = self._transfer(backend, plan, late, options)
        return [*results, *deleted, *transferred], failures

    def _transfer(
        self, backend: SFTPBackend, plan: SyncPlan, items: Sequence[TransferItem], options: TransferOptions
    ) -> tuple[list[FileResult], Failures]:
        if not items:
            return [], []
        transfer = upload_items if self.direction == "upload" else download_items
        results: list[FileResult] = []
        failures: Failures = []
        for item, outcome in zip(items, transfer(backend, items, options), strict=True):
            if isinstance(outcome, WriteResult):
                result = make_result(item, plan.ends.local_end, outcome.size, self._action)
                if outcome.digest is not None:
                    result["sha256"] = outcome.digest.removeprefix("sha256:")
                results.append(result)
            else:
                failures.append(outcome)
        return results, distinct_failures(failures)

    def _delete(self, backend: SFTPBackend, plan: SyncPlan) -> tuple[list[FileResult], Failures]:
        if self.direction == "upload":
            convert = plan.ends.server_path
            outcomes = delete_on_server(backend, map(convert, plan.deletions), map(convert, plan.changes.directories))
        else:
            convert = plan.ends.local_path
            outcomes = delete_local(map(convert, plan.deletions), map(convert, plan.changes.directories))
        paths = [path for path, outcome in zip(plan.deletions, outcomes, strict=True) if outcome is None]
        return [self._deletion(plan, path, "deleted") for path in paths], distinct_failures(outcomes)

    def _deletion(self, plan: SyncPlan, path: str, action: Action) -> FileResult:
        row: FileResult = {"path": plan.ends.server_path(path), "size": plan.deletions[path], "action": action}
        if self.direction == "download":
            row["target"] = plan.ends.local_path(path)
        return row


def _version(state: FileState) -> FileVersion:
    return [state.size, state.mtime]
