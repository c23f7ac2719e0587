"""Uploads and downloads: files between this machine and the server."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TypeVar

from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler
from airflow_sftp_backend.backend._ssh.session import Session
from airflow_sftp_backend.backend._transfers import local_transfer
from airflow_sftp_backend.backend._transfers.comparison import same_samples
from airflow_sftp_backend.backend._transfers.local_files import NewFileModes
from airflow_sftp_backend.backend._writes.backups import restoring
from airflow_sftp_backend.backend._writes.group_commit import GroupCommit, group_of
from airflow_sftp_backend.backend._writes.write_target import Verify
from airflow_sftp_backend.backend.config import check_channels
from airflow_sftp_backend.backend.errors import SFTPBackendError
from airflow_sftp_backend.backend.models import BeforeRename, Progress, WriteResult

from .executor import Job, Landings, check_distinct, gathered, go_on, or_raise, put_back, sorted_out
from .path_resolver import Door, naming

T = TypeVar("T")


class FileTransfers:
    """Methods of `SFTPBackend` that upload and download files."""

    _door: Door
    _session: Session
    _landings: Landings

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
    ) -> WriteResult:
        """Download a file. ``local`` appears only when it is complete and verified.

        A replaced file keeps its mode, a new file gets ``0666 & ~umask``. A lost connection is reopened and the
        download resumes.

        :param path: the key of the file
        :param local: the local path
        :param overwrite: replace an existing local file
        :param verify: comparison before the rename: ``"size"``, ``"sha256"`` (reads the local file back), or
            ``"none"``, which reads to the end of the file whatever size the server reports
        :param progress: receives the bytes gained
        :param resume_key: name of the writer; an interrupted download stays, and the next call with this key resumes it
        :param digest: compute the SHA-256 of the received bytes
        :returns: key, size, digest and time of the file
        :raises NotFound: if the file does not exist
        :raises InvalidPath: if the key is a directory
        :raises AlreadyExists: if ``local`` exists
        :raises TransferCorrupted: if the file changes during the download, or the comparison fails
        :raises OSError: for local failures, and if ``local`` is not a regular file
        """
        (outcome,) = self._download([(path, local)], overwrite, verify, progress, resume_key, digest)
        return or_raise(outcome)

    def download_many(
        self,
        pairs: Iterable[tuple[str, str | os.PathLike[str]]],
        overwrite: bool = False,
        *,
        verify: Verify = "size",
        progress: Progress | None = None,
        resume_key: str | None = None,
        digest: bool = False,
        return_exceptions: bool = False,
        before_rename: BeforeRename | None = None,
    ) -> list[WriteResult | SFTPBackendError | OSError]:
        """Download several files concurrently, each as `download` does. Tries all of them.

        :param pairs: key and local path of each file
        :param overwrite: replace existing local files
        :param verify: as for `download`
        :param progress: receives the bytes gained
        :param resume_key: as for `download`
        :param digest: compute the SHA-256 of each file
        :param return_exceptions: put failures into the result instead of raising them
        :param before_rename: called with complete files before they are renamed, once for several files
        :returns: one result for each pair, in order
        :raises ExceptionGroup: of all failures
        :raises ValueError: if two pairs have the same target; nothing is downloaded
        """
        outcomes = self._download(list(pairs), overwrite, verify, progress, resume_key, digest, group_of(before_rename))
        return gathered(outcomes, "downloads", return_exceptions)

    def _download(
        self,
        pairs: list[tuple[str, str | os.PathLike[str]]],
        overwrite: bool,
        verify: Verify,
        progress: Progress | None,
        resume_key: str | None,
        digest: bool,
        commits: GroupCommit | None = None,
    ) -> list[WriteResult | SFTPBackendError | OSError]:
        check_verify(verify)
        check_distinct([os.path.abspath(local) for _, local in pairs])
        more = (overwrite, verify, progress, resume_key, digest, commits, NewFileModes())
        downloads, refused = sorted_out(
            pairs, lambda pair: local_transfer.Download(self._door.at(pair[0]), pair[1], *more)
        )

        def one_of(one: local_transfer.Download, scheduler: SFTPScheduler) -> Operation[WriteResult]:
            return naming(one.place, restoring(scheduler, one.place, lambda: one(scheduler)))

        def fetch(
            wanted: list[local_transfer.Download], scheduler: SFTPScheduler
        ) -> list[WriteResult | SFTPBackendError | OSError]:
            return scheduler.run_many(one_of(one, scheduler) for one in wanted)

        with ExitStack() as stack:
            for one in downloads:
                stack.enter_context(one)
            outcomes = self._session.call(partial(fetch, downloads)) if downloads else []
            go_on(self._session, downloads, outcomes, fetch)
        local_transfer.sweep(downloads, outcomes, time.time())
        return [self._door.located(outcome) for outcome in put_back(outcomes, refused)]

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
    ) -> WriteResult:
        """Upload a file. The key appears only when the file is complete and verified.

        A lost connection is reopened and the upload resumes.

        :param local: the local path of a regular file, or of a link to one
        :param path: the key of the file
        :param overwrite: replace an existing file
        :param verify: comparison before the rename, as for `SFTPBackend.write_atomic`
        :param progress: receives the bytes gained
        :param create_parents: create missing parent directories
        :param channels: number of channels of the connection to use; by default as many as the round trip requires
        :param resume_key: name of the writer; an interrupted upload of 32 MiB or more stays, and the next call with
            this key resumes it
        :param digest: compute the SHA-256 of the sent bytes
        :returns: key, size, digest and time of the file
        :raises AlreadyExists: if the name is taken
        :raises InvalidPath: if the key is a directory, or a parent is a file
        :raises TransferCorrupted: if ``local`` changes during the upload, or the comparison fails
        :raises OSError: for local failures, and if ``local`` is not a regular file
        """
        (outcome,) = self.upload_many(
            [(local, path)], overwrite, verify=verify, progress=progress, create_parents=create_parents,
            channels=channels, resume_key=resume_key, digest=digest, return_exceptions=True,
        )  # fmt: skip
        return or_raise(outcome)

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
        return_exceptions: bool = False,
        before_rename: BeforeRename | None = None,
    ) -> list[WriteResult | SFTPBackendError | OSError]:
        """Upload several files concurrently, each as `upload` does. Tries all of them.

        :param pairs: local path and key of each file
        :param overwrite: replace existing files
        :param verify: as for `upload`
        :param progress: receives the bytes gained
        :param create_parents: create missing parent directories
        :param channels: as for `upload`
        :param resume_key: as for `upload`
        :param digest: compute the SHA-256 of each file
        :param return_exceptions: put failures into the result instead of raising them
        :param before_rename: called with complete files before they are renamed, once for several files; an exception
            ends the call
        :returns: one result for each pair, in order
        :raises ExceptionGroup: of all failures
        :raises ValueError: if two pairs have the same target; nothing is uploaded
        """
        check_verify(verify)
        commits = group_of(before_rename)
        if channels is not None:
            check_channels("channels", channels)

        def job(pair: tuple[str | os.PathLike[str], str]) -> Job[WriteResult]:
            landing = self._door.landing(pair[1], overwrite, verify)
            landing = replace(landing, create_parents=create_parents, channels=channels, commits=commits)
            sending = local_transfer.Upload(landing, pair[0], progress, resume_key, digest)
            return Job(landing, sending, verify != "none", sending.load, sending.so_far)

        jobs, refused = sorted_out(pairs, job)
        check_distinct([job.landing.target.key for job in jobs])
        return gathered(put_back(self._land(jobs), refused), "uploads", return_exceptions)

    def same_samples_many(
        self, pairs: Iterable[tuple[str | os.PathLike[str], str]], *, return_exceptions: bool = False
    ) -> list[bool | SFTPBackendError | OSError]:
        """Compare local files with files on the server by their sizes and by samples of up to 2 MiB each.

        :param pairs: local path and key of each comparison
        :param return_exceptions: put failures into the result instead of raising them
        :returns: for each pair, in order, True if no difference was found. A file of up to 2 MiB is compared whole.
        :raises ExceptionGroup: of all failures
        """
        comparisons, refused = sorted_out(pairs, lambda pair: (self._door.at(pair[1]), pair[0]))
        outcomes = (
            self._session.call(
                lambda scheduler: scheduler.run_many(same_samples(place, local) for place, local in comparisons),
                idempotent=True,
            )
            if comparisons
            else []
        )
        located = [self._door.located(outcome) for outcome in put_back(outcomes, refused)]
        return gathered(located, "comparisons", return_exceptions)

    def _land(self, jobs: list[Job[T]]) -> list[T | SFTPBackendError | OSError]:
        return [self._door.located(outcome) for outcome in self._landings.run(jobs)] if jobs else []


def check_verify(verify: str) -> None:
    """Check the name of a comparison.

    :param verify: the name
    :raises ValueError: unless the name is ``"size"``, ``"sha256"`` or ``"none"``
    """
    if verify not in ("size", "sha256", "none"):
        raise ValueError(f"verify is 'size', 'sha256' or 'none', not {verify!r}")
