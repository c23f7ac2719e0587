"""Upload local files and objects to an SFTP server."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend._file_rows import FileResult
from airflow_sftp_backend._path_arguments import parse_target
from airflow_sftp_backend.backend import BackendUnavailable
from airflow_sftp_backend.backend._paths import check_temp_suffix
from airflow_sftp_backend.backend.errors import result_or_raise

from ._base import TransferOperator, TransferPlan, drop_non_utf8
from ._named_files import existing_files
from ._object_storage import FileState, is_url
from ._rename_template import split_nameless
from ._reporting.failures import Failures
from ._retry_state import RetryState
from ._sync.ends import SyncEnds
from ._sync.merged_names import check_distinct_targets
from ._transfer_planning import LocalFile, TransferItem, find_local_files, plan_uploads
from ._transfer_records import local_version, uploaded_earlier, uploaded_since
from ._transfers import TempOptions, upload_items

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend


class SFTPUploadOperator(TransferOperator):
    """Upload local files and objects to an SFTP server.

    Each file appears under its name only after the transfer is complete and verified.

    :param source: literal names of the files to send: a local path, the URL of any ``ObjectStoragePath``, a row of
        another task (the ``target`` of a download), or a list of these. A text that ends with ``/`` selects all files
        below the directory. (templated)
    :param pattern: globs (with ``**``) of local paths or URLs, in place of ``source``: a text or a list. (templated)
    :param target: literal path on the server, relative to the connection's base path; a directory if the text ends with
        ``/`` or if ``source`` is not a single file name, or if ``rename`` is set. (templated)
    :param rename: template for the path of each file below the target, such as ``{date}/{stem}-old{suffix}``.
        ``{name}`` is the file name, ``{stem}`` and ``{suffix}`` (``.csv``) its parts. ``{date}`` (2026-01-31),
        ``{time}`` (063000) and ``{timestamp}`` (20260131T063000) are the run's time in UTC, equal in all attempts.
        (templated)
    :param from_manifest: path or URL of a manifest of another task, in place of ``source``: its rows are the names. Or
        the result of a task with ``manifest``, or a list of these. (templated)
    :param include: globs of file names; only matching files of a directory or pattern count
    :param exclude: globs of file and directory names; matching entries of a directory or pattern do not count
    :param newer_than: earliest time of a local file: a datetime with a time zone, ISO 8601 text, or a timedelta
        that counts back from the time when the run was due. Applies to names too. (templated)
    :param older_than: time before which a file must be modified, in the same forms. (templated)
    :param min_size: size that a file must have at least, in bytes
    :param max_files: number of files to transfer, the oldest first; the next run takes the others
    :param sftp_conn_id: id of an Airflow connection of type ``sftp_backend``, ``sftp`` or ``ssh``. (templated)
    :param if_exists: ``fail``, ``replace``, ``skip`` or ``skip_same`` for an existing target. ``skip_same`` replaces
        only files that differ in size or are older than their source; with ``verify="sha256"``, only files that differ
        in content.
    :param create_parents: create missing parent directories on the server
    :param verify: verification of an upload: ``size``, ``sha256`` (reads the file back), or ``none`` for servers that
        hide uploaded files
    :param mode: permission bits of each file on the server, such as ``0o640``, also in place of a replaced file's own.
        If the server refuses the mode, the file fails and its target does not change.
    :param keep_times: give each file on the server the time of its source, in whole seconds.
        If the server refuses the time, a warning is logged.
    :param temp_suffix: end of the names of unfinished files, such as ``.tmp``, for readers that ignore such names
    :param temp_folder: directory for unfinished files, relative to the connection's base path and on the file system of
        the target. (templated)
    :param direct: write local files under their final names, for servers that forbid renames. Readers can see partial
        content, an interrupted upload does not resume. Once the file is open, a failure loses the old content;
        the incomplete file is removed if the server can be reached.
    :param dry_run: return the planned results, send nothing
    :param manifest: local path or URL of a file to write the rows to, one JSON object a line. The task then returns
        ``{"manifest": path, "count": rows, "size": bytes}`` in place of the list. (templated)
    :param kwargs: arguments of ``BaseOperator``
    """

    _action = "uploaded"
    _planned_action = "would upload"
    _earlier_action = "uploaded by an earlier attempt"
    _local_end = "source"

    template_fields: Sequence[str] = (*TransferOperator.template_fields, "temp_folder")

    def __init__(
        self,
        *,
        temp_suffix: str | None = None,
        temp_folder: str | None = None,
        direct: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.temp_suffix = temp_suffix
        self.temp_folder = temp_folder
        self.direct = direct
        if direct and (temp_suffix is not None or temp_folder is not None):
            raise InvalidArgument("direct writes under the final names; omit temp_suffix and temp_folder")
        if temp_suffix is not None:
            try:
                check_temp_suffix(temp_suffix)
            except ValueError as error:
                raise InvalidArgument(str(error)) from None

    def _temp_options(self) -> TempOptions:
        folder = None if self.temp_folder is None else parse_target(self.temp_folder, "temp_folder")
        return {"temp_suffix": self.temp_suffix, "temp_folder": folder, "direct": self.direct}

    def _plan(self, backend: SFTPBackend, retry_state: RetryState) -> TransferPlan:
        from airflow_sftp_backend.backend._tree_queries import resolve_keys  # not needed to parse DAGs

        target = parse_target(self.target)
        self._check_relative(backend, target, "target")
        if self.temp_folder is not None:
            self._check_relative(backend, parse_target(self.temp_folder, "temp_folder"), "temp_folder")
        selection = self._parse_selection(backend, end="local")
        matched, failures = find_local_files(selection, self._filters, none_ok=self._limits.has_time)
        if self.direct and any(is_url(file.path) for file in matched):
            raise InvalidArgument("direct applies to local files, but the source has URLs")
        files, undecided = self._within_limits(matched, lambda file: file)
        by_path = {file.path: file for file in files}
        rename = self._rename_template(retry_state)
        files, nameless = split_nameless(files, rename, lambda file: (file.name, file.path))
        items = plan_uploads(files, selection, target, rename)
        items = [
            TransferItem(item.source, result_or_raise(key), item.size, by_path[item.source].modified_at)
            for item, key in zip(items, resolve_keys(backend, [item.target for item in items]), strict=True)
        ]
        items, not_utf8 = drop_non_utf8(items, lambda item: (item.source, item.target))
        check_distinct_targets(SyncEnds(backend, "upload", target, ""), [item.target for item in items])
        targets: dict[str, FileState] = {}
        # With "fail" and "replace" the upload itself handles existing targets, which saves a round trip.
        if self.is_dry_run or self.if_exists in ("skip", "skip_same"):
            existing = existing_files(backend, [item.target for item in items])
            targets = {path: FileState.of_remote(info) for path, info in existing.items()}
        states = {
            item: (_source_state(by_path[item.source]) if item.target in targets else None, targets.get(item.target))
            for item in items
        }  # fmt: skip
        pending, skipped = self._split_skipped(backend, states)
        pending = self._take_oldest(pending, lambda item: by_path[item.source], retry_state)
        versions = {item: local_version(item.source) for item in pending}
        return TransferPlan(pending, skipped, [*failures, *undecided, *nameless, *not_utf8], targets.keys(), versions)

    def _execute_plan(
        self, backend: SFTPBackend, plan: TransferPlan, retry_state: RetryState
    ) -> tuple[list[FileResult], Failures]:
        completed = uploaded_earlier(retry_state.transfers, backend, plan.versions)
        pending = [item for item in plan.items if item not in completed]
        progress = self._start_progress(sum(item.size or 0 for item in pending))
        options = self._transfer_options(retry_state, plan, progress)
        failures = [*plan.failures]
        declined: list[TransferItem] = []
        for item, outcome in zip(pending, upload_items(backend, pending, options), strict=True):
            find_earlier_digest = partial(uploaded_since, backend, item, retry_state.run_started)
            result = self._result_of(item, outcome, retry_state, find_earlier_digest)
            if isinstance(result, dict):
                completed[item] = result
            else:
                failures.append(result)
                declined += [] if isinstance(result, BackendUnavailable) else [item]
        if failures:
            done = {item: plan.versions[item] for item in completed}
            retry_state.transfers.record_completed(done, completed, declined)
        return [*plan.skipped, *completed.values()], failures


def _source_state(file: LocalFile) -> FileState | None:
    """Return the state of a source.

    That of an object is known from its listing.
    """
    if not is_url(file.path):
        return file.state
    return FileState(file.size, None if file.modified_at is None else file.modified_at.timestamp())
