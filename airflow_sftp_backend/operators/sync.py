"""Sync a directory with a local directory or an object store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend._file_rows import Action, FileResult, SyncResult
from airflow_sftp_backend._path_arguments import Target, parse_target
from airflow_sftp_backend.backend import BackendUnavailable, InvalidPath, NotFound, SFTPBackendError, WriteResult
from airflow_sftp_backend.backend.errors import escaped
from airflow_sftp_backend.backend.models import Verify
from airflow_sftp_backend.progress import pluralize_files

from ._base import Failures, PlanningOperator, check_choice, check_mode_argument, distinct_failures, drop_non_utf8
from ._object_storage import FileState, is_url
from ._retry_state import RetryState
from ._sync.deletion_limit import check_max_delete, exceeds_max_delete
from ._sync.deletions import delete_local, delete_on_server
from ._sync.listings import list_local, list_server, local_exists, local_path_of, paths_of_equal_content, server_path_of
from ._sync.overlap import check_overlap
from ._sync.tree_differences import (
    Differences,
    TimeRule,
    TreeListing,
    blocking_entry,
    classify,
    compare_by_state,
    depends_on_time_rule,
    doubtful_spellings,
    emptied_directories,
    untimed,
)
from ._transfer_planning import LocalEnd, TransferItem, make_result
from ._transfer_records import FileVersion
from ._transfers import TransferOptions, download_items, upload_items

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_sftp_backend.backend import SFTPBackend

Direction: TypeAlias = Literal["upload", "download"]
Compare: TypeAlias = Literal["time", "sha256"]

_NAMED_IN_LOG = 3
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class SyncEnds:
    """Hold the two directories of a sync.

    :ivar direction: the end on the server: the target of an upload, the source of a download
    :ivar server: the directory on the server
    :ivar other: the local directory or URL
    :ivar server_path: returns the path on the server for a path of a listing
    :ivar local_path: returns the local path or URL for a path of a listing
    """

    direction: Direction
    server: str
    other: str
    server_path: Callable[[str], str]
    local_path: Callable[[str], str]

    def both(self, path: str) -> tuple[str, str]:
        """Return the paths of a file at both ends.

        :param path: the path in the listings
        :returns: the path on the server, and the local path or URL
        """
        return self.server_path(path), self.local_path(path)

    def item(self, path: str, state: FileState) -> TransferItem:
        """Return the transfer of a file.

        :param path: the path in the listings
        :param state: the state of the source
        :returns: the transfer
        """
        server_path, local_path = self.both(path)
        if self.direction == "upload":
            time = None if state.mtime is None else datetime.fromtimestamp(state.mtime, UTC)
            return TransferItem(local_path, server_path, state.size, time)
        return TransferItem(server_path, local_path, state.size)

    @property
    def local_end(self) -> LocalEnd:
        """The end of a transfer that is not on the server."""
        return "source" if self.direction == "upload" else "target"


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """Hold the changes of a sync.

    :ivar ends: the two directories
    :ivar differences: the paths of both ends by their states
    :ivar items: the files to transfer, by their paths
    :ivar doubtful: for a path that a target could mistake for another path, the prefix to look up
    :ivar versions: versions of the sources of ``items``
    :ivar earlier: results of files that an earlier attempt transferred
    :ivar deletions: the files to delete, with their sizes
    :ivar directories: directories to remove after the deletions, if they are empty
    :ivar exceeds_limit: True if the deletions exceed ``max_delete``
    :ivar failures: failures of planning
    """

    ends: SyncEnds
    differences: Differences
    items: Mapping[str, TransferItem]
    doubtful: Mapping[str, str]
    versions: Mapping[TransferItem, FileVersion | None]
    earlier: list[FileResult]
    deletions: Mapping[str, int | None]
    directories: Sequence[str]
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
    :param kwargs: arguments of ``BaseOperator``
    """

    template_fields: Sequence[str] = ("source", "target", "sftp_conn_id")

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

    def execute(self, context: Context) -> SyncResult:
        """Compare the directories, transfer and delete files.

        :param context: the context of the task
        :returns: counts, and a row for each transferred and each deleted file; with ``dry_run``, as planned
        :raises AirflowFailException: if a retry cannot help
        :raises SFTPBackendError: if the only file failed, and a retry may help
        :raises FilesFailed: if some of several files failed, and a retry may help
        """
        plan, files = self._run_plan(context)
        differences = plan.differences
        size = sum(row["size"] or 0 for row in files if row["action"] not in ("deleted", "would delete", "would fail"))
        return SyncResult(
            new=len(differences.new),
            changed=len(differences.changed) + len(plan.earlier),
            unchanged=len(differences.unchanged) - len(plan.earlier),
            extra=len(differences.extra),
            deleted=sum(row["action"] == "deleted" for row in files),
            size=size,
            files=files,
        )

    # -- planning -----------------------------------------------------------------------------------------------------

    def _plan(self, backend: SFTPBackend, retry_state: RetryState) -> SyncPlan:
        ends = self._parse_ends(backend)
        check_overlap(backend, ends.server, ends.other)
        listings = list_server(backend, ends.server, self._filters), list_local(ends.other, self._filters)
        found_target, found_source = listings if self.direction == "upload" else listings[::-1]
        source, target = self._require_source(backend, found_source), found_target or TreeListing()
        differences = self._compare(backend, ends, source, target)
        self.log.info(
            "%d new, %d changed, %d unchanged, %d extra files",
            len(differences.new), len(differences.changed), len(differences.unchanged), len(differences.extra),
        )  # fmt: skip
        items, failures = self._plan_items(backend, ends, differences, source, target)
        deletions = {
            path: target.files[path].size
            for path in differences.extra
            if self.delete and path not in source.others and blocking_entry(path, source.others) is None
        }
        kept, not_utf8 = drop_non_utf8([*deletions], lambda path: (path,))
        exceeds_limit = exceeds_max_delete(self.max_delete, deletions, target.files)
        self._check_limit(len(deletions), len(target.files), exceeds_limit)
        doubtful = _doubtful(items, source, target)
        states = {item: source.files[path] for path, item in items.items()}
        return SyncPlan(
            ends=ends,
            differences=differences,
            items=items,
            doubtful=doubtful,
            versions={item: _version(state) for item, state in states.items()},
            earlier=[*self._transferred_earlier(retry_state, ends, differences, source, target)],
            deletions={path: deletions[path] for path in kept},
            directories=emptied_directories(kept, source.files),
            exceeds_limit=exceeds_limit,
            failures=[*failures, *not_utf8],
        )

    def _parse_ends(self, backend: SFTPBackend) -> SyncEnds:
        is_upload = self.direction == "upload"
        source = parse_target(self.source, "source", end="local" if is_upload else "server")
        target = parse_target(self.target, "target", end="server" if is_upload else "local")
        server, other = (target, source) if is_upload else (source, target)
        if self.mode is not None and not is_upload and is_url(target):
            raise InvalidArgument("mode applies to local targets and to the server, but target is a URL")
        self._check_relative(backend, server, "target" if is_upload else "source")
        return SyncEnds(self.direction, server, other, server_path_of(backend, server), local_path_of(other))

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
        if source.others:
            self.log.warning(
                "left out links and special files of the source, %d in total: %s",
                len(source.others),
                ", ".join(escaped(path) for path in islice(sorted(source.others), _NAMED_IN_LOG)),
            )
        return source

    def _compare(self, backend: SFTPBackend, ends: SyncEnds, source: TreeListing, target: TreeListing) -> Differences:
        if self.compare == "sha256":
            return classify(source, target, paths_of_equal_content(backend, source, target, ends.both))
        differences = compare_by_state(source, target, self._time_rule(backend, ends, source, target))
        if paths := untimed(source, target, differences.unchanged):
            self.log.warning(
                "only sizes were compared of %s without times, such as %s; compare='sha256' compares the content",
                pluralize_files(len(paths)),
                escaped(paths[0]),
            )
        return differences

    def _time_rule(self, backend: SFTPBackend, ends: SyncEnds, source: TreeListing, target: TreeListing) -> TimeRule:
        """Return the comparison of times.

        The server is tested only if the test decides about a file.
        """
        from airflow_sftp_backend.backend._time_support import query_time_support  # late import: loads the engine

        if self.direction == "download":
            return TimeRule(is_kept=self.keep_times and not is_url(ends.other))
        if not depends_on_time_rule(source, target):
            return TimeRule(is_kept=True)
        try:
            support = query_time_support(backend, ends.server)
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

    def _plan_items(
        self, backend: SFTPBackend, ends: SyncEnds, differences: Differences, source: TreeListing, target: TreeListing
    ) -> tuple[dict[str, TransferItem], Failures]:
        failures: Failures = []
        allowed: list[str] = []
        for path in [*differences.new, *differences.changed]:
            if (link := blocking_entry(path, target.others)) is None:
                allowed.append(path)
            else:
                message = f"{link!r} in the target is a link or a special file, and links are not followed; remove it"
                failures.append(InvalidPath(message, path=path, server=backend.address))
        paths, not_utf8 = drop_non_utf8(allowed, lambda path: ends.both(path))
        return {path: ends.item(path, source.files[path]) for path in paths}, [*failures, *not_utf8]

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
        results = [make_result(item, plan.ends.local_end, item.size, planned) for item in plan.items.values()]
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
        certain = [item for path, item in plan.items.items() if path not in plan.doubtful]
        results, failures = self._transfer(backend, plan, certain, options)
        results, failures = [*plan.earlier, *results], [*plan.failures, *failures]
        if plan.doubtful and not failures:  # the check needs the files that the others could be mistaken for
            distinct, failures = self._split_mistaken(backend, plan)
            transferred, refused = self._transfer(backend, plan, distinct, options)
            results, failures = [*results, *transferred], [*failures, *refused]
        if not plan.deletions:
            return results, failures
        if failures:
            self.log.warning("deleted nothing, because not all transfers succeeded")
            return results, failures
        deleted, refused = self._delete(backend, plan)
        return [*results, *deleted], refused

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

    def _split_mistaken(self, backend: SFTPBackend, plan: SyncPlan) -> tuple[list[TransferItem], Failures]:
        """Separate the doubtful files that the target mistakes for others.

        A path that exists now is another file under another spelling.
        """
        exists: dict[str, bool] = {}
        for prefix in plan.doubtful.values():
            if prefix not in exists:
                server_path, local_path = plan.ends.both(prefix)
                is_upload = self.direction == "upload"
                exists[prefix] = backend.exists(server_path) if is_upload else local_exists(local_path)
        failures: Failures = []
        for path, prefix in plan.doubtful.items():
            if exists[prefix]:
                message = (
                    "the target does not distinguish this path from a path in another spelling (case or Unicode form);"
                    " rename one of the two in the source or in the target"
                )
                failures.append(InvalidPath(message, path=path, server=backend.address))
        return [plan.items[path] for path, prefix in plan.doubtful.items() if not exists[prefix]], failures

    def _delete(self, backend: SFTPBackend, plan: SyncPlan) -> tuple[list[FileResult], Failures]:
        if self.direction == "upload":
            convert = plan.ends.server_path
            outcomes = delete_on_server(backend, map(convert, plan.deletions), map(convert, plan.directories))
        else:
            convert = plan.ends.local_path
            outcomes = delete_local(map(convert, plan.deletions), map(convert, plan.directories))
        paths = [path for path, outcome in zip(plan.deletions, outcomes, strict=True) if outcome is None]
        return [self._deletion(plan, path, "deleted") for path in paths], distinct_failures(outcomes)

    def _deletion(self, plan: SyncPlan, path: str, action: Action) -> FileResult:
        row: FileResult = {"path": plan.ends.server_path(path), "size": plan.deletions[path], "action": action}
        if self.direction == "download":
            row["target"] = plan.ends.local_path(path)
        return row


def _doubtful(items: Mapping[str, TransferItem], source: TreeListing, target: TreeListing) -> dict[str, str]:
    spellings = doubtful_spellings(source.files, [*target.files, *target.others])
    return {path: prefix for path, prefix in spellings.items() if path in items}


def _version(state: FileState) -> FileVersion:
    return [state.size, state.mtime]
