"""Run writes on the session, and clean up after lost connections.

An operation removes its temporary file itself while its connection works; otherwise the file is removed over a new
connection. Temporary files abandoned by writers of other processes are found by a single listing of the directory, sent
with the first write into it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Final, Generic, Protocol, TypeVar, cast

from airflow_sftp_backend.backend._backoff import Backoff
from airflow_sftp_backend.backend._paths import RemotePath, name_digest
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler
from airflow_sftp_backend.backend._protocol.striping import ChannelDemand
from airflow_sftp_backend.backend._receive_limits import ReceiveLimits
from airflow_sftp_backend.backend._ssh.session import Session
from airflow_sftp_backend.backend._writes.backups import may_have_backups
from airflow_sftp_backend.backend._writes.cleanup import (
    TempsByDigest,
    list_temps,
    remove_stale_temps,
    roll_back,
    temps_of,
)
from airflow_sftp_backend.backend._writes.write_state import ResumeState
from airflow_sftp_backend.backend._writes.write_target import WriteTarget
from airflow_sftp_backend.backend.config import RetryPolicy
from airflow_sftp_backend.backend.errors import BackendUnavailable, InvalidPath, SFTPBackendError

from .path_resolver import with_path_in_errors

T = TypeVar("T")
S = TypeVar("S")
W = TypeVar("W")
logger = logging.getLogger(__name__)

_FRUITLESS_CONNECTIONS: Final = RetryPolicy(max_attempts=4, jitter=0)
"""Limit on successive new connections that are lost without progress, and the pauses between them."""


@dataclass(frozen=True, slots=True)
class WriteJob(Generic[T]):
    """Target of a write, with its operation.

    The operation returns its result, and the server's time in seconds since 1970 (None if unknown).
    """

    target: WriteTarget
    operation: Callable[[SFTPScheduler], Operation[tuple[T, int | None]]]
    cleans_directory: bool = True
    """Whether to list the directory of the target together with the job, for abandoned temporary files.

    Without it, the directory is listed after the job if the operation returns the server's time.
    """
    channel_demand: ChannelDemand | None = None
    """Size of the transfer, if known in advance."""
    resume_state: ResumeState = field(default_factory=ResumeState)
    """State of the write; stays NEW if the operation cannot resume over another connection."""

    @property
    def abandoned_targets(self) -> list[WriteTarget]:
        """The target with each replaced temporary file."""
        return [self.target.with_temp(temp) for temp in self.resume_state.abandoned_temps]


class Resumable(Protocol):
    """State of a transfer that may resume over another connection."""

    @property
    def resumable(self) -> bool:
        """True if the transfer lost its connection and can resume."""

    @property
    def transferred_bytes(self) -> int:
        """Bytes transferred so far."""

    def mark_unresumable(self) -> None:
        """Record that no new connection is available."""


def resume_lost(
    session: Session,
    items: Sequence[W],
    states: Sequence[Resumable],
    outcomes: list[T | SFTPBackendError | OSError],
    retry: Callable[[list[W], SFTPScheduler], list[T | SFTPBackendError | OSError]],
) -> None:
    """Resume interrupted transfers over new connections while each attempt makes progress.

    Each attempt to connect takes up to the session's ``reconnect_timeout``. After several successive connections
    without progress, the last errors remain.

    :param session: opens the new connections
    :param items: the transfers
    :param states: their states
    :param outcomes: their outcomes, replaced by those of the last attempt
    :param retry: resumes some of the transfers over a connection
    """
    backoff, best = Backoff(_FRUITLESS_CONNECTIONS), -1
    while lost_indexes := [index for index, state in enumerate(states) if state.resumable]:
        transferred = sum(state.transferred_bytes for state in states)
        pause = 0.0
        if transferred > best:
            best = transferred
            backoff.reset()
        else:  # the server accepts connections and closes them, for example during a shutdown
            pause = backoff.fail()
            if backoff.exhausted or not session.reconnect_timeout:
                return
        first_failure = outcomes[lost_indexes[0]]
        logger.warning("%s; resuming over a new connection after %d bytes", first_failure, transferred)
        if pause:
            session.pause(pause)
        try:
            retried = session.call(partial(retry, [items[index] for index in lost_indexes]), reconnecting=True)
        except BackendUnavailable as error:
            logger.warning("cannot connect again: %s", error)
            error.interrupted = _text_of(first_failure)
            retried = [error for _ in lost_indexes]
            for index in lost_indexes:
                states[index].mark_unresumable()
        else:
            session.resumed_count += len(lost_indexes)
        for index, outcome in zip(lost_indexes, retried, strict=True):
            outcomes[index] = outcome


def _text_of(outcome: object) -> str:
    """Return the text of an error."""
    return outcome.message if isinstance(outcome, SFTPBackendError) else str(outcome)


class WriteExecutor:
    """Run the writes of a backend, and clean up after them.

    :param session: the session of the backend
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._temps_by_directory: dict[RemotePath, TempsByDigest] = {}
        self._to_roll_back: list[WriteTarget] = []

    def run(self, jobs: Sequence[WriteJob[T]]) -> list[T | SFTPBackendError | OSError]:
        """Run jobs side by side.

        :param jobs: the jobs
        :returns: their results or errors, in the order of the jobs
        """
        schedulers: list[SFTPScheduler] = []
        outcomes: list[T | SFTPBackendError | OSError] = []
        completed = False
        channel_demand = max(
            (job.channel_demand for job in jobs if job.channel_demand is not None),
            key=lambda channel_demand: channel_demand.size,
            default=None,
        )
        try:
            outcomes = self._session.call(partial(self._run_jobs, schedulers, jobs), channel_demand=channel_demand)
            states = [job.resume_state for job in jobs]
            resume_lost(self._session, jobs, states, outcomes, partial(self._run_jobs, schedulers))
            completed = True
            return outcomes
        finally:
            if any(scheduler.failure is not None for scheduler in schedulers):
                # with replacement by two renames, a backup may remain after a complete write
                all_jobs = not completed or may_have_backups(schedulers[0])
                lost = [all_jobs or isinstance(outcome, BackendUnavailable) for outcome in outcomes or jobs]
                to_roll_back = [
                    job.target.with_temp(job.resume_state.temp)
                    for job, is_lost in zip(jobs, lost, strict=True)
                    if is_lost and not job.resume_state.keeps_temp
                ]
                self.roll_back([*to_roll_back, *chain.from_iterable(job.abandoned_targets for job in jobs)])

    def roll_back(self, write_targets: Sequence[WriteTarget]) -> None:
        """Roll back lost writes over a new connection, as `cleanup.roll_back`.

        There is one attempt to connect. After a failure, the next write cleans up.
        """
        self._to_roll_back += write_targets
        if not self._to_roll_back:
            return
        try:
            self._session.call(self._roll_back_on, attempts=1, cleanup=True)
        except BackendUnavailable as error:
            names = ", ".join(repr(write_target.temp.native) for write_target in self._to_roll_back)
            logger.warning(
                "temporary files may remain on the server (%s) until the next write to their targets: %s", names, error
            )

    def _roll_back_on(self, scheduler: SFTPScheduler) -> None:
        """Clean up over a connection.

        Targets that are not reached before a loss of the connection are kept.
        """
        outcomes = scheduler.run_many(roll_back(scheduler, write_target) for write_target in self._to_roll_back)
        lost = [isinstance(outcome, BackendUnavailable) for outcome in outcomes]
        self._to_roll_back = [
            write_target for write_target, is_lost in zip(self._to_roll_back, lost, strict=True) if is_lost
        ]

    def clean_up(self, target: RemotePath, now: int) -> None:
        """Remove abandoned temporary files of a written target.

        :param target: the target
        :param now: the server's time in seconds since 1970
        """

        def use(scheduler: SFTPScheduler) -> None:
            if target.parent not in self._temps_by_directory:
                scheduler.run(self._list_temps(target.parent, scheduler.receive_limits))
            temps = self._temps_by_directory[target.parent].get(name_digest(target.name), [])
            scheduler.run(remove_stale_temps(target, temps, now))

        try:
            self._session.call(use, attempts=1)
        except BackendUnavailable as error:
            logger.warning("abandoned temporary files of %r are not removed: %s", target.key, error)

    def clear_cache(self) -> None:
        """Discard the listings of directories."""
        self._temps_by_directory.clear()

    def _run_jobs(
        self, schedulers: list[SFTPScheduler], jobs: Sequence[WriteJob[T]], scheduler: SFTPScheduler
    ) -> list[T | SFTPBackendError | OSError]:
        """Run jobs on a connection, then remove abandoned temporary files.

        The directories are listed together with the jobs.
        """
        schedulers.append(scheduler)
        if self._to_roll_back:
            self._roll_back_on(scheduler)
        # a directory is listed only once until `clear_cache`
        cleaned = {folder for job in jobs if job.cleans_directory for folder in job.target.directories}
        folders = cleaned - self._temps_by_directory.keys()
        written: list[tuple[WriteJob[T], int]] = []
        listings = (self._list_temps(folder, scheduler.receive_limits) for folder in folders)
        writes = (_run_job(job, scheduler, written) for job in jobs)
        outcomes = scheduler.run_many(chain[Operation[T] | Operation[None]](listings, writes))[len(folders) :]
        if scheduler.failure is None:
            unlisted = {folder for job, _ in written for folder in job.target.directories}
            unlisted -= self._temps_by_directory.keys()
            scheduler.run_many(self._list_temps(folder, scheduler.receive_limits) for folder in unlisted)
            scheduler.run_many(
                remove_stale_temps(job.target.path, temps, mtime, job.resume_state.temp)
                for job, mtime in written
                if (temps := temps_of(job.target, self._temps_by_directory))
            )
        return cast("list[T | SFTPBackendError | OSError]", outcomes)

    def _list_temps(self, folder: RemotePath, limits: ReceiveLimits) -> Operation[None]:
        """List the temporary files of a directory and store them."""
        self._temps_by_directory[folder] = yield from list_temps(folder, limits)


def _run_job(job: WriteJob[T], scheduler: SFTPScheduler, written: list[tuple[WriteJob[T], int]]) -> Operation[T]:
    """Run a job, and record it in ``written``.

    It is recorded only if the server's time is known.
    """
    result, mtime = yield from with_path_in_errors(job.target.path, job.operation(scheduler))
    if mtime is not None:
        written.append((job, mtime))
    return result


def without_result(
    operation: Callable[[SFTPScheduler], Operation[int | None]], scheduler: SFTPScheduler
) -> Operation[tuple[None, int | None]]:
    """Adapt an operation that returns only the server's time to `WriteJob`."""
    return None, (yield from operation(scheduler))


# -- several items ----------------------------------------------------------------------------------------------------


def check_distinct(names: Iterable[str], reason: str = "two pairs have the same target") -> None:
    """Check that no name occurs twice. Raises ValueError with the text ``reason``."""
    known: set[str] = set()
    for name in names:
        if name in known:
            raise ValueError(f"{reason}: {name!r}")
        known.add(name)


def split_invalid(items: Iterable[S], convert: Callable[[S], T]) -> tuple[list[T], list[InvalidPath | None]]:
    """Convert items, and separate those with an invalid path.

    :param items: the items
    :param convert: raises InvalidPath for an invalid item
    :returns: the converted valid items; for each item the error or None
    """
    valid: list[T] = []
    errors: list[InvalidPath | None] = []
    for item in items:
        try:
            valid.append(convert(item))
            errors.append(None)
        except InvalidPath as error:
            errors.append(error)
    return valid, errors


def merge_outcomes(
    outcomes: list[T | SFTPBackendError | OSError], errors: list[InvalidPath | None]
) -> list[T | SFTPBackendError | OSError]:
    """Insert the errors of `split_invalid` between the outcomes of the valid items."""
    remaining = iter(outcomes)
    return [next(remaining) if error is None else error for error in errors]


def raise_or_return(
    outcomes: list[T | SFTPBackendError | OSError], noun: str, return_exceptions: bool
) -> list[T | SFTPBackendError | OSError]:
    """Return the outcomes, or raise their errors as an ExceptionGroup unless ``return_exceptions``."""
    failures = [outcome for outcome in outcomes if isinstance(outcome, SFTPBackendError | OSError)]
    if failures and not return_exceptions:
        raise ExceptionGroup(f"{len(failures)} of {len(outcomes)} {noun} failed", failures)
    return outcomes
