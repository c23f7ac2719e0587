"""Upload local files and objects to an SFTP server."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from airflow_sftp_backend._path_arguments import parse_target
from airflow_sftp_backend.backend import BackendUnavailable, BeforeRename
from airflow_sftp_backend.progress import ProgressLog

from ._base import Failures, TransferOperator, result_row, speakable
from ._object_storage import FileState, Outcome, is_url, send_object, state_of
from ._planning import Step, existing_files, uploads
from ._retry_state import Row, Try
from ._transfer_records import Version, uploaded_earlier, version_of, written_since

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend


class SFTPUploadOperator(TransferOperator):
    """Sends files to an SFTP server, each of which appears there only when it is whole.

    :param source: names of what to send, literal: a local path, the URL of any ``ObjectStoragePath``, a row of another
        task (of a download its ``target``), or a list of these; a text that ends with ``/`` means what the directory
        holds. (templated)
    :param pattern: globs (``**`` too) of local paths or URLs, in place of ``source``: a text or a list. (templated)
    :param target: path on the server, literal, relative to the connection's base path; a directory if it ends with
        ``/`` or if anything but one name is sent. (templated)
    :param include: globs of file names; of what a directory or pattern finds, only these count.
    :param exclude: globs of names, of files and directories, that do not count.
    :param sftp_conn_id: the Airflow connection, of type ``sftp_backend``, ``sftp`` or ``ssh``. (templated)
    :param if_exists: ``fail``, ``replace``, ``skip``, or ``skip_same``, which replaces only files that
        have another size or are older than their source; with ``verify="sha256"``, that have another content.
    :param create_parents: make missing folders on the server.
    :param verify: how an upload is proven: ``size``, ``sha256`` (read back), or ``none`` for drop boxes.
    :param dry_run: send nothing, return what would be done.
    """

    _action = "uploaded"

    def _work(self, backend: SFTPBackend, attempt: Try) -> tuple[list[Row], Failures]:
        target = parse_target(self.target)
        self._check_relative(backend, target, "target")
        steps, failures = uploads(self._selected(backend, end="local"), target, self._filters)
        steps = [Step(step.source, backend.resolve(step.target).key, step.size) for step in steps]
        steps, refused = speakable(steps, lambda step: (step.source, step.target))
        failures += refused
        looks = self.only_plan or self.if_exists in ("skip", "skip_same")
        there = [*existing_files(backend, [step.target for step in steps]).values()] if looks else []
        targets = {info.path: FileState.of_remote(info) for info in there}
        states = {
            step: (state_of(step.source) if step.target in targets else None, targets.get(step.target))
            for step in steps
        }  # fmt: skip
        pending, rows = self._pending(backend, states, "source")
        if self.only_plan:
            taken = {info.path for info in there} if self.if_exists == "fail" else set()
            rows += [
                result_row(s.target, s, "source", s.size, "would fail" if s.target in taken else "would upload")
                for s in pending
            ]
            return rows, failures
        versions: dict[Step, Version | None] = {step: version_of(step.source) for step in pending}
        sent = uploaded_earlier(attempt.transfers, backend, versions)
        pending = [step for step in pending if step not in sent]
        progress = self._progress = ProgressLog(self.log, sum(step.size or 0 for step in pending))
        record = attempt.transfers.recorder(versions)
        declined: list[Step] = []
        for step, outcome in zip(pending, self._send(backend, pending, attempt, progress, record), strict=True):
            row = result_row(step.target, step, "source", step.size, self._action)
            done = self._done_row(row, outcome, attempt, partial(written_since, backend, step, attempt.run_began))
            if isinstance(done, dict):
                sent[step] = done
            else:
                failures.append(done)
                declined += [] if isinstance(done, BackendUnavailable) else [step]
        if failures:
            attempt.transfers.close({step: versions[step] for step in sent}, sent, declined)
        return [*rows, *sent.values()], failures

    def _send(
        self,
        backend: SFTPBackend,
        steps: Sequence[Step],
        attempt: Try,
        progress: ProgressLog,
        record: BeforeRename | None,
    ) -> list[Outcome]:
        """What was sent or the failure, for each step."""
        overwrite = self.if_exists in ("replace", "skip_same")
        local = [step for step in steps if not is_url(step.source)]
        outcomes = backend.upload_many(
            [(step.source, step.target) for step in local],
            overwrite=overwrite,
            verify=self.verify,
            progress=progress,
            create_parents=self.create_parents,
            resume_key=attempt.resume_key,
            digest=bool(self.outlets),
            return_exceptions=True,
            before_rename=record,
        )
        done: dict[Step, Outcome] = dict(zip(local, outcomes, strict=True))
        for step in steps:
            if is_url(step.source):
                done[step] = send_object(
                    backend,
                    step.source,
                    step.target,
                    step.size,
                    overwrite=overwrite,
                    verify=self.verify,
                    create_parents=self.create_parents,
                    progress=progress,
                    before_rename=record,
                )
        return [done[step] for step in steps]
