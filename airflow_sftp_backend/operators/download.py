"""Download files of an SFTP server to local paths and objects."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend._file_rows import FileResult
from airflow_sftp_backend._path_arguments import Selection, parse_target
from airflow_sftp_backend.progress import pluralize_files

from ._base import TransferOperator, TransferPlan, drop_non_utf8
from ._object_storage import FileState, is_url, local_states
from ._rename_template import split_nameless
from ._reporting.failures import Failures
from ._retry_state import RetryState
from ._sync.ends import SyncEnds
from ._sync.merged_names import check_distinct_targets
from ._taken_files import TakenFiles, find_asset
from ._transfer_planning import RemoteMatch, match_remote, missing_error, plan_downloads
from ._transfer_records import downloaded_earlier, downloaded_since, remote_version
from ._transfers import download_items

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend


class SFTPDownloadOperator(TransferOperator):
    """Download files from an SFTP server to local paths and objects.

    Each local file appears under its name only after the transfer is complete and verified.

    :param source: literal names of the files to fetch, relative to the connection's base path: a path, a row of another
        task, or a list of these. A text that ends with ``/`` selects all files below the directory. (templated)
    :param pattern: globs (with ``**``) of paths on the server, in place of ``source``: a text or a list. (templated)
    :param target: literal local path, or URL of any ``ObjectStoragePath``; a directory if the text ends with ``/`` or
        if ``source`` is not a single file name, or if ``rename`` is set. (templated)
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
    :param max_files: number of files to transfer, the oldest first; the next run takes the others
    :param sftp_conn_id: id of an Airflow connection of type ``sftp_backend``, ``sftp`` or ``ssh``. (templated)
    :param if_exists: ``fail``, ``replace``, ``skip`` or ``skip_same`` for an existing target. ``skip_same`` replaces
        only files that differ in size or are older than their source; with ``verify="sha256"``, only files that differ
        in content.
    :param create_parents: create missing local parent directories
    :param verify: verification of a download: ``size``, ``sha256`` (reads the local file again), or ``none``
    :param mode: permission bits of each local file, such as ``0o640``, also in place of a replaced file's own.
        Objects have no mode.
    :param keep_times: give each local file the time of its source, in whole seconds.
        Objects have no times to set.
    :param only_new: fetch only files that no earlier run has taken, and files with another size or time since. Needs
        Airflow 3.3, and exactly one ``Asset`` among ``inlets`` and ``outlets``, whose state store remembers the files.
    :param dry_run: return the planned results, fetch nothing
    :param manifest: local path or URL of a file to write the rows to, one JSON object a line. The task then returns
        ``{"manifest": path, "count": rows, "size": bytes}`` in place of the list. (templated)
    :param kwargs: arguments of ``BaseOperator``
    """

    _action = "downloaded"
    _planned_action = "would download"
    _earlier_action = "downloaded by an earlier attempt"
    _local_end = "target"

    def __init__(self, *, only_new: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.only_new = only_new
        self._asset = find_asset(self.inlets, self.outlets) if only_new else None
        self._taken: TakenFiles | None = None

    @property
    def _may_find_nothing(self) -> bool:
        return self.only_new or super()._may_find_nothing

    def _plan(self, backend: SFTPBackend, retry_state: RetryState) -> TransferPlan:
        target = parse_target(self.target, end="local")
        if is_url(target) and (self.mode is not None or self.keep_times):
            raise InvalidArgument("mode and keep_times apply to local targets, but target is a URL")
        selection = self._parse_selection(backend)
        matches = match_remote(backend, selection, self._filters, restores=not self.is_dry_run)
        missing = self._without_empty_directories(backend, selection, matches.missing)
        files, undecided = self._within_limits(matches.files, lambda file: file.info)
        files, not_utf8 = drop_non_utf8(files, lambda file: (file.info.path,))
        files = self._new_files(files, matches.files, selection, retry_state)
        rename = self._rename_template(retry_state)
        files, nameless = split_nameless(files, rename, lambda file: (file.info.name, file.info.path))
        planned = plan_downloads(files, selection, target, rename)
        items, not_utf8_targets = drop_non_utf8(planned, lambda item: (item.source, item.target))
        check_distinct_targets(SyncEnds(backend, "download", "", target), [item.target for item in items])
        infos = {file.info.path: file.info for file in files}
        target_states = local_states([item.target for item in items])
        targets = set(target_states)
        states = {item: (FileState.of_remote(infos[item.source]), target_states.get(item.target)) for item in items}
        pending, skipped = self._split_skipped(backend, states)
        pending = self._take_oldest(pending, lambda item: infos[item.source], retry_state)
        failures = [*matches.failures, *undecided, *(missing_error(backend, selection, name) for name in missing)]
        versions = {item: remote_version(infos[item.source]) for item in pending}
        return TransferPlan(pending, skipped, [*failures, *nameless, *not_utf8, *not_utf8_targets], targets, versions)

    def _new_files(
        self, files: list[RemoteMatch], matched: Sequence[RemoteMatch], selection: Selection, retry_state: RetryState
    ) -> list[RemoteMatch]:
        """Return the files that no earlier run has taken, with ``only_new``."""
        if self._asset is None:
            return files
        if not selection.searches:
            raise InvalidArgument("only_new applies to directories and patterns, but source names files")
        self._taken = TakenFiles(retry_state.context, self._asset, retry_state, [*selection])
        new = self._taken.new_among(files, (file.info.path for file in matched))
        if len(new) < len(files):
            self.log.info("%s left out by only_new", pluralize_files(len(files) - len(new)))
        return new

    def _execute_plan(
        self, backend: SFTPBackend, plan: TransferPlan, retry_state: RetryState
    ) -> tuple[list[FileResult], Failures]:
        completed = downloaded_earlier(retry_state.transfers, plan.versions)
        pending = [item for item in plan.items if item not in completed]
        progress = self._start_progress(sum(item.size or 0 for item in pending))
        options = self._transfer_options(retry_state, plan, progress)
        failures = [*plan.failures]
        for item, outcome in zip(pending, download_items(backend, pending, options), strict=True):
            find_earlier_digest = partial(downloaded_since, backend, item, retry_state.run_started)
            result = self._result_of(item, outcome, retry_state, find_earlier_digest)
            if isinstance(result, dict):
                completed[item] = result
            else:
                failures.append(result)
        results = [*plan.skipped, *completed.values()]
        if self._taken is not None:
            self._taken.save([result["path"] for result in results], time.time())
        return results, failures
