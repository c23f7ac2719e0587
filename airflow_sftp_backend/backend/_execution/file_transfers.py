"""Uploads and downloads of the backend: whole files between this machine and the server."""

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
    """The methods of `SFTPBackend` that send and fetch files."""

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
        """Fetches a file; ``local`` appears only when it is whole, with its own mode, or as the umask says.

        Goes on after a lost connection and, with a ``resume_key``, in the next call, as `upload` does. The result has
        the SHA-256 of what came with ``verify="sha256"``, which compares it with what the disk holds, or ``digest``.

        Raises NotFound, InvalidPath for a folder, AlreadyExists if ``local`` exists, TransferCorrupted if the file
        changes meanwhile, OSError for what this machine refuses and for a target that is no regular file.
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
        """Fetches many files side by side, each as `download` does; one result per pair (key, local path), in order.

        All are tried. If any fails, an ExceptionGroup of the failures is raised at the end, or they stand in their
        places with ``return_exceptions``. ValueError, before anything is sent, if two pairs have one target.
        ``before_rename`` is called with complete files before they get their names, once for many.
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
        """Sends a local file, as `write_atomic` does, over ``channels`` channels of the connection, or as many as pay.

        A lost connection is made anew and the upload goes on. With a ``resume_key``, which names the writer, what was
        sent (from some 32 MiB on) outlives even an interruption, and the next call with that key goes on with it. The
        result has the SHA-256 of what was sent with ``verify="sha256"``, which reads it back, or with ``digest``.

        OSError for what this machine refuses or is no regular file; TransferCorrupted if ``local`` changes meanwhile.
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
        """Sends many files side by side, each as `upload` does; one result per pair (local path, key), in order.

        All are tried. If any fails, an ExceptionGroup of the failures is raised at the end, or they stand in their
        places with ``return_exceptions``. ValueError, before anything is sent, if two pairs have one target.
        ``before_rename`` is called with complete files before they get their names, once for many; what it raises ends
        the call.
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

        :param pairs: local path and key of each comparison.
        :param return_exceptions: put failures in their places, in place of raising an ExceptionGroup.
        :returns: for each pair, in order, True if no difference was found; a file of up to 2 MiB is compared whole.
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
    """Raise ValueError unless ``verify`` is one of the ways to prove a transfer."""
    if verify not in ("size", "sha256", "none"):
        raise ValueError(f"verify is 'size', 'sha256' or 'none', not {verify!r}")
