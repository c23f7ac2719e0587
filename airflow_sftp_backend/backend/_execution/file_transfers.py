"""Upload files to the server, and download files from it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Literal, TypeVar, overload

from airflow_sftp_backend.backend._garbage_collector import collector_paused
from airflow_sftp_backend.backend._paths import BESIDE_TARGET
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler
from airflow_sftp_backend.backend._ssh.session import Session
from airflow_sftp_backend.backend._transfers import local_transfer
from airflow_sftp_backend.backend._transfers.comparison import same_samples
from airflow_sftp_backend.backend._transfers.direct_upload import DirectUpload
from airflow_sftp_backend.backend._transfers.local_files import NewFileModes
from airflow_sftp_backend.backend._writes.backups import with_backup_restored
from airflow_sftp_backend.backend._writes.rename_group import create_rename_group
from airflow_sftp_backend.backend._writes.write_target import WriteTarget
from airflow_sftp_backend.backend.config import check_channels, check_mode
from airflow_sftp_backend.backend.errors import BackendUnavailable, SFTPBackendError, result_or_raise
from airflow_sftp_backend.backend.models import BeforeRename, Progress, Verify, WriteResult

from .executor import (
    WriteExecutor,
    WriteJob,
    check_distinct,
    merge_outcomes,
    raise_or_return,
    resume_lost,
    split_invalid,
)
from .path_resolver import PathResolver, with_path_in_errors

T = TypeVar("T")
logger = logging.getLogger(__name__)


class FileTransfers:
    """Methods of `SFTPBackend` that upload and download files."""

    _resolver: PathResolver
    _session: Session
    _executor: WriteExecutor

    def download(
        self,
        path: str,
        local: str | os.PathLike[str],
        overwrite: bool = False,
        *,
        verify: Verify = "size",
        progress: Progress | None = None,
        resume_key: str | None = None,
        digest: bool = False,
        keep_times: bool = False,
        mode: int | None = None,
    ) -> WriteResult:
        """Download a file. ``local`` appears only when it is complete and verified.

        A replaced file keeps its mode, a new file gets ``0666 & ~umask``. A lost connection is reopened and the
        download resumes.

        :param path: the key of the file
        :param local: the local path
        :param overwrite: replace an existing local file
        :param verify: comparison before the rename: ``"size"``, ``"sha256"`` (reads the local file back), or
            ``"none"``, which reads to the end of the file whatever size the server reports
        :param progress: called with the bytes gained since its last call; negative if the transfer starts over
        :param resume_key: name of the writer. If at least 1 MiB has arrived, an interrupted download stays, and the
            next call with this key resumes it.
        :param digest: compute the SHA-256 of the received bytes
        :param keep_times: give the local file the time of the file on the server
        :param mode: permission bits of the local file, such as ``0o640``
        :returns: key, size, digest and time of the file
        :raises NotFound: if the file does not exist
        :raises InvalidPath: if the key is a directory
        :raises AlreadyExists: if ``local`` exists
        :raises TransferCorrupted: if the file changes during the download, or the comparison fails
        :raises OSError: for local failures, and if ``local`` is not a regular file
        """
        (outcome,) = self.download_many(
            [(path, local)], overwrite, verify=verify, progress=progress, resume_key=resume_key, digest=digest,
            keep_times=keep_times, mode=mode, return_exceptions=True,
        )  # fmt: skip
        return result_or_raise(outcome)

    @overload
    def download_many(
        self,
        pairs: Iterable[tuple[str, str | os.PathLike[str]]],
        overwrite: bool = False,
        *,
        verify: Verify = "size",
        progress: Progress | None = None,
        resume_key: str | None = None,
        digest: bool = False,
        keep_times: bool = False,
        mode: int | None = None,
        return_exceptions: Literal[False] = False,
        before_rename: BeforeRename | None = None,
    ) -> list[WriteResult]: ...

    @overload
    def download_many(
        self,
        pairs: Iterable[tuple[str, str | os.PathLike[str]]],
        overwrite: bool = False,
        *,
        verify: Verify = "size",
        progress: Progress | None = None,
        resume_key: str | None = None,
        digest: bool = False,
        keep_times: bool = False,
        mode: int | None = None,
        return_exceptions: bool,
        before_rename: BeforeRename | None = None,
    ) -> list[WriteResult | SFTPBackendError | OSError]: ...

    def download_many(
        self,
        pairs: Iterable[tuple[str, str | os.PathLike[str]]],
        overwrite: bool = False,
        *,
        verify: Verify = "size",
        progress: Progress | None = None,
        resume_key: str | None = None,
        digest: bool = False,
        keep_times: bool = False,
        mode: int | None = None,
        return_exceptions: bool = False,
        before_rename: BeforeRename | None = None,
    ) -> list[WriteResult] | list[WriteResult | SFTPBackendError | OSError]:
        """Download several files concurrently, each as `download` does. Tries all of them.

        :param pairs: key and local path of each file
        :param overwrite: replace existing local files
        :param verify: as for `download`
        :param progress: called with the bytes gained since its last call; negative if the transfer starts over
        :param resume_key: as for `download`
        :param digest: compute the SHA-256 of each file
        :param keep_times: give each file the time of its source, as `download` does
        :param mode: permission bits of each local file
        :param return_exceptions: put failures into the result instead of raising them
        :param before_rename: called with complete files before their renames; one call may have several files
        :returns: one result for each pair, in order
        :raises ExceptionGroup: of all failures
        :raises ValueError: if two pairs have the same target; nothing is downloaded
        """
        check_verify(verify)
        if mode is not None:
            check_mode(mode)
        pairs = list(pairs)
        check_distinct([os.path.abspath(local) for _, local in pairs])
        options = (
            overwrite, verify, progress, resume_key, digest, create_rename_group(before_rename), keep_times,
            NewFileModes(mode),
        )  # fmt: skip
        downloads, errors = split_invalid(
            pairs, lambda pair: local_transfer.Download(self._resolver.resolve(pair[0]), pair[1], *options)
        )

        def download_one(download: local_transfer.Download, scheduler: SFTPScheduler) -> Operation[WriteResult]:
            return with_path_in_errors(
                download.remote, with_backup_restored(scheduler, download.remote, lambda: download(scheduler))
            )

        def fetch(
            pending_downloads: list[local_transfer.Download], scheduler: SFTPScheduler
        ) -> list[WriteResult | SFTPBackendError | OSError]:
            return scheduler.run_many(download_one(download, scheduler) for download in pending_downloads)

        outcomes = self._download(downloads, fetch)
        located = [self._resolver.with_server(outcome) for outcome in merge_outcomes(outcomes, errors)]
        return raise_or_return(located, "downloads", return_exceptions)

    def _download(
        self,
        downloads: list[local_transfer.Download],
        fetch: Callable[[list[local_transfer.Download], SFTPScheduler], list[WriteResult | SFTPBackendError | OSError]],
    ) -> list[WriteResult | SFTPBackendError | OSError]:
        with ExitStack() as stack:
            for download in downloads:
                stack.enter_context(download)
            outcomes = self._session.call(partial(fetch, downloads)) if downloads else []
            resume_lost(self._session, downloads, downloads, outcomes, fetch)
        local_transfer.remove_abandoned_files(downloads, outcomes, time.time())
        return outcomes

    def upload(
        self,
        local: str | os.PathLike[str],
        path: str,
        overwrite: bool = False,
        *,
        verify: Verify = "size",
        progress: Progress | None = None,
        create_parents: bool = True,
        channels: int | None = None,
        resume_key: str | None = None,
        digest: bool = False,
        keep_times: bool = False,
        mode: int | None = None,
        temp_suffix: str | None = None,
        temp_folder: str | None = None,
        direct: bool = False,
    ) -> WriteResult:
        """Upload a file.

        The file appears under its key only when it is complete and verified, unless ``direct`` is set. A lost
        connection is reopened and the upload resumes.

        :param local: the local path of a regular file, or of a link to one
        :param path: the key of the file
        :param overwrite: replace an existing file
        :param verify: comparison before the rename, as for `SFTPBackend.write_atomic`
        :param progress: called with the bytes gained since its last call; negative if the transfer starts over
        :param create_parents: create missing parent directories
        :param channels: number of channels of the connection to use; by default as many as the round trip requires
        :param resume_key: name of the writer. If more than 32 MiB have been sent, an interrupted upload stays, and the
            next call with this key resumes it.
        :param digest: compute the SHA-256 of the sent bytes
        :param keep_times: give the file the time of the local file, in whole seconds. If the server refuses, a warning
            is logged once for each connection.
        :param mode: permission bits of the file, such as ``0o640``. If the server refuses, the upload fails and the key
            does not change.
        :param temp_suffix: end of the name of the unfinished file, such as ``".tmp"``, for readers that ignore it
        :param temp_folder: the key of a directory for the unfinished file, on the file system of the target; created if
            it is missing, unless ``create_parents`` is False
        :param direct: write under the final name, for servers that forbid renames. Readers can see partial content, an
            interrupted upload does not resume. Once the file is open, a failure loses the old content; the incomplete
            file is removed if the server can be reached. A link of that name is refused.
        :returns: key, size, digest and time of the file
        :raises AlreadyExists: if the name is taken
        :raises InvalidPath: if the key is a directory, or a parent is a file
        :raises TransferCorrupted: if ``local`` changes during the upload, or the comparison fails
        :raises OSError: for local failures, and if ``local`` is not a regular file
        """
        (outcome,) = self.upload_many(
            [(local, path)], overwrite, verify=verify, progress=progress, create_parents=create_parents,
            channels=channels, resume_key=resume_key, digest=digest, keep_times=keep_times, mode=mode,
            temp_suffix=temp_suffix, temp_folder=temp_folder, direct=direct, return_exceptions=True,
        )  # fmt: skip
        return result_or_raise(outcome)

    @overload
    def upload_many(
        self,
        pairs: Iterable[tuple[str | os.PathLike[str], str]],
        overwrite: bool = False,
        *,
        verify: Verify = "size",
        progress: Progress | None = None,
        create_parents: bool = True,
        channels: int | None = None,
        resume_key: str | None = None,
        digest: bool = False,
        keep_times: bool = False,
        mode: int | None = None,
        temp_suffix: str | None = None,
        temp_folder: str | None = None,
        direct: bool = False,
        return_exceptions: Literal[False] = False,
        before_rename: BeforeRename | None = None,
    ) -> list[WriteResult]: ...

    @overload
    def upload_many(
        self,
        pairs: Iterable[tuple[str | os.PathLike[str], str]],
        overwrite: bool = False,
        *,
        verify: Verify = "size",
        progress: Progress | None = None,
        create_parents: bool = True,
        channels: int | None = None,
        resume_key: str | None = None,
        digest: bool = False,
        keep_times: bool = False,
        mode: int | None = None,
        temp_suffix: str | None = None,
        temp_folder: str | None = None,
        direct: bool = False,
        return_exceptions: bool,
        before_rename: BeforeRename | None = None,
    ) -> list[WriteResult | SFTPBackendError | OSError]: ...

    def upload_many(
        self,
        pairs: Iterable[tuple[str | os.PathLike[str], str]],
        overwrite: bool = False,
        *,
        verify: Verify = "size",
        progress: Progress | None = None,
        create_parents: bool = True,
        channels: int | None = None,
        resume_key: str | None = None,
        digest: bool = False,
        keep_times: bool = False,
        mode: int | None = None,
        temp_suffix: str | None = None,
        temp_folder: str | None = None,
        direct: bool = False,
        return_exceptions: bool = False,
        before_rename: BeforeRename | None = None,
    ) -> list[WriteResult] | list[WriteResult | SFTPBackendError | OSError]:
        """Upload several files concurrently, each as `upload` does. Tries all of them.

        :param pairs: local path and key of each file
        :param overwrite: replace existing files
        :param verify: as for `upload`
        :param progress: called with the bytes gained since its last call; negative if the transfer starts over
        :param create_parents: create missing parent directories
        :param channels: as for `upload`
        :param resume_key: as for `upload`
        :param digest: compute the SHA-256 of each file
        :param keep_times: give each file the time of its source, as `upload` does
        :param mode: permission bits of each file, as for `upload`
        :param temp_suffix: as for `upload`
        :param temp_folder: as for `upload`
        :param direct: as for `upload`; ``before_rename`` is then called with the complete files at the end
        :param return_exceptions: put failures into the result instead of raising them
        :param before_rename: called with complete files before their renames; one call may have several files. An
            exception ends the upload.
        :returns: one result for each pair, in order
        :raises ExceptionGroup: of all failures
        :raises ValueError: if two pairs have the same target; nothing is uploaded
        """
        check_verify(verify)
        temp_naming = self._resolver.temp_naming(temp_suffix, temp_folder)
        rename_group = create_rename_group(before_rename)
        if channels is not None:
            check_channels("channels", channels)
        if mode is not None:
            check_mode(mode)

        def target_of(path: str) -> WriteTarget:
            return self._resolver.write_target(
                path, overwrite, verify, temp_naming, create_parents=create_parents,
                rename_group=None if direct else rename_group, channels=channels, mode=mode,
            )  # fmt: skip

        if direct:
            if temp_naming != BESIDE_TARGET:
                raise ValueError("direct writes under the final name: pass neither temp_suffix nor temp_folder")
            uploads, errors = split_invalid(
                pairs, lambda pair: DirectUpload(target_of(pair[1]), pair[0], progress, digest, keep_times)
            )
            outcomes = merge_outcomes(self._upload_directly(uploads, before_rename), errors)
            return raise_or_return(outcomes, "uploads", return_exceptions)

        def job(pair: tuple[str | os.PathLike[str], str]) -> WriteJob[WriteResult]:
            write_target = target_of(pair[1])
            upload = local_transfer.Upload(write_target, pair[0], progress, resume_key, digest, keep_times)
            return WriteJob(write_target, upload, verify != "none", upload.channel_demand, upload.resume_state)

        with collector_paused():
            jobs, errors = split_invalid(pairs, job)
        check_distinct([job.target.path.key for job in jobs])
        return raise_or_return(merge_outcomes(self._run_jobs(jobs), errors), "uploads", return_exceptions)

    def _upload_directly(
        self, uploads: list[DirectUpload], before_rename: BeforeRename | None
    ) -> list[WriteResult | SFTPBackendError | OSError]:
        check_distinct([upload.target.path.key for upload in uploads])

        def send(scheduler: SFTPScheduler) -> list[WriteResult | SFTPBackendError | OSError]:
            return scheduler.run_many(with_path_in_errors(each.target.path, each(scheduler)) for each in uploads)

        def remove(scheduler: SFTPScheduler) -> None:
            scheduler.run_many(each.remove_partial() for each in partial_uploads)

        outcomes = self._session.call(send) if uploads else []
        partial_uploads = [
            upload
            for upload, outcome in zip(uploads, outcomes, strict=True)
            if isinstance(outcome, BackendUnavailable) and (upload.is_partial or upload.may_be_open)
        ]
        if partial_uploads:
            try:
                self._session.call(remove, attempts=1, cleanup=True)
            except BackendUnavailable as error:
                names = ", ".join(repr(upload.target.path.native) for upload in partial_uploads)
                logger.warning("incomplete files may remain under their final names (%s): %s", names, error)
        if before_rename is not None and (prepared := [each.prepared for each in uploads if each.prepared]):
            before_rename(prepared)
        return [self._resolver.with_server(outcome) for outcome in outcomes]

    @overload
    def same_samples_many(
        self, pairs: Iterable[tuple[str | os.PathLike[str], str]], *, return_exceptions: Literal[False] = False
    ) -> list[bool]: ...

    @overload
    def same_samples_many(
        self, pairs: Iterable[tuple[str | os.PathLike[str], str]], *, return_exceptions: bool
    ) -> list[bool | SFTPBackendError | OSError]: ...

    def same_samples_many(
        self, pairs: Iterable[tuple[str | os.PathLike[str], str]], *, return_exceptions: bool = False
    ) -> list[bool] | list[bool | SFTPBackendError | OSError]:
        """Compare local files with files on the server.

        Sizes and samples of up to 2 MiB for each file are compared.

        :param pairs: local path and key of each comparison
        :param return_exceptions: put failures into the result instead of raising them
        :returns: for each pair, in order, True if no difference was found. A file of up to 2 MiB is compared whole.
        :raises ExceptionGroup: of all failures
        """
        comparisons, errors = split_invalid(pairs, lambda pair: (self._resolver.resolve(pair[1]), pair[0]))
        outcomes = (
            self._session.call(
                lambda scheduler: scheduler.run_many(same_samples(remote, local) for remote, local in comparisons),
                idempotent=True,
            )
            if comparisons
            else []
        )
        located = [self._resolver.with_server(outcome) for outcome in merge_outcomes(outcomes, errors)]
        return raise_or_return(located, "comparisons", return_exceptions)

    def _run_jobs(self, jobs: list[WriteJob[T]]) -> list[T | SFTPBackendError | OSError]:
        return [self._resolver.with_server(outcome) for outcome in self._executor.run(jobs)] if jobs else []


def check_verify(verify: str) -> None:
    """Check the name of a comparison.

    :param verify: the name
    :raises ValueError: unless the name is ``"size"``, ``"sha256"`` or ``"none"``
    """
    if verify not in ("size", "sha256", "none"):
        raise ValueError(f"verify is 'size', 'sha256' or 'none', not {verify!r}")
