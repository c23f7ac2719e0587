"""Download files of an SFTP server to local paths and objects."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from airflow_sftp_backend._path_arguments import parse_target
from airflow_sftp_backend.backend import BeforeRename
from airflow_sftp_backend.backend._transfers.local_files import name_ends
from airflow_sftp_backend.progress import ProgressLog

from ._base import Failures, TransferOperator, result_row, speakable
from ._object_storage import FileState, Outcome, fetch_object, is_url, state_of
from ._planning import Step, downloads, missing_error, on_server
from ._retry_state import Row, Try
from ._transfer_records import Version, downloaded_earlier, fetched_since, remote_version

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend


class SFTPDownloadOperator(TransferOperator):
    """Fetches files from an SFTP server; each local file appears only when it is whole.

    :param source: names of what to fetch, literal, relative to the connection's base path: a path, a row of another
        task, or a list of these; a text that ends with ``/`` means what the directory holds. (templated)
    :param pattern: globs (``**`` too), in place of ``source``: a text or a list. (templated)
    :param target: local path, or URL of any ``ObjectStoragePath``, literal; a directory if it ends with ``/`` or if
        anything but one name is fetched. (templated)
    :param include: globs of file names; of what a directory or pattern finds, only these count.
    :param exclude: globs of names, of files and directories, that do not count.
    :param sftp_conn_id: the Airflow connection, of type ``sftp_backend``, ``sftp`` or ``ssh``. (templated)
    :param if_exists: ``fail``, ``replace``, ``skip``, or ``skip_same``, which replaces only files that
        have another size or are older than their source; with ``verify="sha256"``, that have another content.
    :param create_parents: make missing local folders.
    :param verify: how a download is proven: ``size``, ``sha256`` (the local file is read again), or ``none``.
    :param dry_run: fetch nothing, return what would be done.
    """

    _action = "downloaded"

    def _work(self, backend: SFTPBackend, attempt: Try) -> tuple[list[Row], Failures]:
        target = parse_target(self.target, end="local")
        selection = self._selected(backend)
        matches = on_server(backend, selection, self._filters)
        failures: Failures = [*matches.failures, *(missing_error(backend, selection, name) for name in matches.missing)]
        planned = downloads(matches.files, selection, target)
        steps, refused = speakable(planned, lambda step: (step.source, step.target))
        failures += refused
        infos = {one.info.path: one.info for one in matches.files}
        targets = {step.target: state for step in steps if (state := state_of(step.target)) is not None}
        states = {step: (FileState.of_remote(infos[step.source]), targets.get(step.target)) for step in steps}
        pending, rows = self._pending(backend, states, "target")
        if self.only_plan:
            taken = targets if self.if_exists == "fail" else {}
            rows += [
                result_row(s.source, s, "target", s.size, "would fail" if s.target in taken else "would download")
                for s in pending
            ]
            return rows, failures
        versions: dict[Step, Version | None] = {step: remote_version(infos[step.source]) for step in pending}
        fetched = downloaded_earlier(attempt.transfers, versions)
        pending = [step for step in pending if step not in fetched]
        progress = self._progress = ProgressLog(self.log, sum(step.size or 0 for step in pending))
        record = attempt.transfers.recorder(versions)
        for step, outcome in zip(pending, self._fetch(backend, pending, attempt, progress, record), strict=True):
            row = result_row(step.source, step, "target", step.size, self._action)
            done = self._done_row(row, outcome, attempt, partial(fetched_since, backend, step, attempt.run_began))
            if isinstance(done, dict):
                fetched[step] = done
            else:
                failures.append(done)
        return [*rows, *fetched.values()], failures

    def _fetch(
        self,
        backend: SFTPBackend,
        steps: Sequence[Step],
        attempt: Try,
        progress: ProgressLog,
        record: BeforeRename | None,
    ) -> list[Outcome]:
        """What was fetched or the failure, for each step."""
        overwrite = self.if_exists in ("replace", "skip_same")
        local = [step for step in steps if not is_url(step.target)]
        done: dict[Step, Outcome] = {}
        if self.create_parents:
            local, done = _with_parents(backend, local)
        outcomes = backend.download_many(
            [(step.source, step.target) for step in local],
            overwrite=overwrite,
            verify=self.verify,
            progress=progress,
            resume_key=attempt.resume_key,
            digest=bool(self.outlets),
            return_exceptions=True,
            before_rename=record,
        )
        done |= zip(local, outcomes, strict=True)
        for step in steps:
            if is_url(step.target):
                done[step] = fetch_object(
                    backend,
                    step.source,
                    step.target,
                    overwrite=overwrite,
                    verify=self.verify,
                    progress=progress,
                    before_rename=record,
                )
        return [done[step] for step in steps]


def _with_parents(backend: SFTPBackend, steps: Sequence[Step]) -> tuple[list[Step], dict[Step, Outcome]]:
    """Makes the folders of local targets: the steps whose folder is there now, and why it is not for the others."""
    ready: list[Step] = []
    failed: dict[Step, Outcome] = {}
    for step in steps:
        try:
            os.makedirs(os.path.dirname(step.target) or ".", exist_ok=True)
            ready.append(step)
        except OSError as error:
            failed[step] = name_ends(error, step.target, f"downloading {backend.native_path(step.source)!r}")
    return ready, failed
