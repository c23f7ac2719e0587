"""Transfer planned files.

Local files are transferred side by side by the backend, objects side by side in threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypedDict

from airflow_sftp_backend.backend import AlreadyExists, BackendUnavailable, BeforeRename, SFTPBackendError
from airflow_sftp_backend.backend._transfers.local_files import add_both_paths
from airflow_sftp_backend.backend.models import Verify

from ._object_storage import Outcome, download_object, is_url, upload_object
from ._transfer_planning import TransferItem
from ._worker_threads import WorkerThreads

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import Progress, SFTPBackend


class TempOptions(TypedDict, total=False):
    """Hold the options for unfinished files on the server."""

    temp_suffix: str | None
    temp_folder: str | None
    direct: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferOptions:
    """Hold the options of all transfers of a task.

    :ivar overwrite: replace existing targets
    :ivar verify: verification after a transfer
    :ivar create_parents: create missing parent directories of the targets
    :ivar resume_key: name of the task instance, for the resumption of interrupted transfers
    :ivar digest: compute the SHA-256 of each file
    :ivar progress: receives the transferred bytes
    :ivar before_rename: receives complete files before they are renamed; None without a state store
    :ivar mode: permission bits of the targets; None for the usual ones
    :ivar keep_times: give each target the time of its source
    :ivar temp_suffix: end of the names of unfinished files on the server
    :ivar temp_folder: directory of unfinished files on the server
    :ivar direct: write local files under their final names
    """

    overwrite: bool
    verify: Verify
    create_parents: bool
    resume_key: str
    digest: bool
    progress: Progress
    before_rename: BeforeRename | None
    mode: int | None = None
    keep_times: bool = False
    temp_suffix: str | None = None
    temp_folder: str | None = None
    direct: bool = False


class _FileArguments(TypedDict):
    """Hold the arguments that uploads and downloads of local files share."""

    overwrite: bool
    verify: Verify
    progress: Progress
    resume_key: str
    digest: bool
    mode: int | None
    keep_times: bool
    before_rename: BeforeRename | None


class _ObjectArguments(TypedDict):
    """Hold the arguments that uploads and downloads of objects share."""

    overwrite: bool
    verify: Verify
    progress: Progress
    before_rename: BeforeRename | None


def _file_arguments(options: TransferOptions) -> _FileArguments:
    return _FileArguments(
        overwrite=options.overwrite,
        verify=options.verify,
        progress=options.progress,
        resume_key=options.resume_key,
        digest=options.digest,
        mode=options.mode,
        keep_times=options.keep_times,
        before_rename=options.before_rename,
    )


def _object_arguments(options: TransferOptions, workers: WorkerThreads[Outcome]) -> _ObjectArguments:
    return _ObjectArguments(
        overwrite=options.overwrite,
        verify=options.verify,
        progress=_WorkerProgress(workers, options.progress),
        before_rename=_record_in_task(workers, options.before_rename),
    )


def upload_items(backend: SFTPBackend, items: Sequence[TransferItem], options: TransferOptions) -> list[Outcome]:
    """Upload files.

    :param backend: the backend of the task
    :param items: the files
    :param options: the options
    :returns: the outcome of each file, in order
    """
    local = [item for item in items if not is_url(item.source)]
    outcomes = backend.upload_many(
        [(item.source, item.target) for item in local],
        **_file_arguments(options),
        create_parents=options.create_parents,
        temp_suffix=options.temp_suffix,
        temp_folder=options.temp_folder,
        direct=options.direct,
        return_exceptions=True,
    )
    results: dict[TransferItem, Outcome] = dict(zip(local, outcomes, strict=True))
    objects = [item for item in items if is_url(item.source)]
    results |= zip(objects, _upload_objects(backend, objects, options), strict=True)
    return [results[item] for item in items]


def _upload_objects(backend: SFTPBackend, items: Sequence[TransferItem], options: TransferOptions) -> list[Outcome]:
    """Upload objects side by side."""

    def upload(item: TransferItem, workers: WorkerThreads[Outcome]) -> Outcome:
        return upload_object(
            backend,
            item.source,
            item.target,
            item.size,
            **_object_arguments(options, workers),
            create_parents=options.create_parents,
            mode=options.mode,
            modified_at=item.modified_at if options.keep_times else None,
            temp_suffix=options.temp_suffix,
            temp_folder=options.temp_folder,
        )

    return _run_side_by_side([partial(upload, item) for item in items])


def download_items(backend: SFTPBackend, items: Sequence[TransferItem], options: TransferOptions) -> list[Outcome]:
    """Download files.

    :param backend: the backend of the task
    :param items: the files
    :param options: the options
    :returns: the outcome of each file, in order
    """
    local = [item for item in items if not is_url(item.target)]
    results: dict[TransferItem, Outcome] = {}
    if options.create_parents:
        local, results = _make_parents(backend, local)
    outcomes = backend.download_many(
        [(item.source, item.target) for item in local], **_file_arguments(options), return_exceptions=True
    )
    results |= zip(local, outcomes, strict=True)
    objects = [item for item in items if is_url(item.target)]
    results |= zip(objects, _download_objects(backend, objects, options), strict=True)
    return [results[item] for item in items]


def _download_objects(backend: SFTPBackend, items: Sequence[TransferItem], options: TransferOptions) -> list[Outcome]:
    """Download files to objects side by side."""

    def download(item: TransferItem, workers: WorkerThreads[Outcome]) -> Outcome:
        return download_object(
            backend,
            item.source,
            item.target,
            **_object_arguments(options, workers),
        )

    return _run_side_by_side([partial(download, item) for item in items])


def _run_side_by_side(jobs: Sequence[Callable[[WorkerThreads[Outcome]], Outcome]]) -> list[Outcome]:
    """Run jobs side by side, and repeat failed ones alone."""
    outcomes = WorkerThreads(jobs).run()
    if len(jobs) == 1:
        return outcomes
    for index, outcome in enumerate(outcomes):
        # the server may permit few open files
        if isinstance(outcome, SFTPBackendError) and not isinstance(outcome, AlreadyExists | BackendUnavailable):
            (outcomes[index],) = WorkerThreads([jobs[index]]).run()
    return outcomes


class _WorkerProgress:
    """Report the progress of a worker, or stop the worker."""

    _lock = threading.Lock()

    def __init__(self, workers: WorkerThreads[Outcome], progress: Progress) -> None:
        self._workers = workers
        self._progress = progress

    def __call__(self, gained: int, /) -> None:
        self._workers.check()
        with self._lock:
            self._progress(gained)


def _record_in_task(workers: WorkerThreads[Outcome], before_rename: BeforeRename | None) -> BeforeRename | None:
    """Let the thread of the task record files."""
    # Only this thread makes requests to Airflow.
    if before_rename is None:
        return None
    return lambda files: workers.call_in_task(partial(before_rename, files))


def _make_parents(
    backend: SFTPBackend, items: Sequence[TransferItem]
) -> tuple[list[TransferItem], dict[TransferItem, Outcome]]:
    """Create the parent directories of local targets.

    :returns: the items with a directory, and a failure for each other item
    """
    ready: list[TransferItem] = []
    failed: dict[TransferItem, Outcome] = {}
    for item in items:
        try:
            os.makedirs(os.path.dirname(item.target) or ".", exist_ok=True)
            ready.append(item)
        except OSError as error:
            failed[item] = add_both_paths(error, item.target, f"downloading {backend.native_path(item.source)!r}")
    return ready, failed
