"""Runs writes on the session, one or many side by side, and cleans up after writes that lost their connection.

An operation removes its own temporary file while its connection works. If the connection breaks, the file is removed
over a new one. Temporary files that writers of other processes abandoned are found by one listing of the directory,
sent along with the first write into it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Final, Generic, Protocol, TypeVar, cast

from airflow_sftp_backend.backend._limits import Bounds
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler
from airflow_sftp_backend.backend._protocol.striping import TransferSize
from airflow_sftp_backend.backend._ssh.session import Session
from airflow_sftp_backend.backend._writes.backups import may_have_backups
from airflow_sftp_backend.backend._writes.cleanup import list_temps, remove_stale_temps, roll_back
from airflow_sftp_backend.backend._writes.write_target import ResumeState, WriteTarget
from airflow_sftp_backend.backend.config import RetryPolicy
from airflow_sftp_backend.backend.errors import BackendUnavailable, InvalidPath, SFTPBackendError

from .path_resolver import with_path_in_errors

T = TypeVar("T")
S = TypeVar("S")
logger = logging.getLogger(__name__)

_MAX_FRUITLESS_CONNECTIONS: Final = 3  # new connections in turn that are lost without progress
_FRUITLESS_BACKOFF: Final = RetryPolicy(jitter=0)


@dataclass(frozen=True, slots=True)
class WriteJob(Generic[T]):
    """A write: its target, and its operation, which returns a result and the server's time.

    The time is in seconds since 1970, None if the server does not tell it.
    """

    target: WriteTarget
    operation: Callable[[SFTPScheduler], Operation[tuple[T, int | None]]]
    cleans_directory: bool = True
    """Whether the directory of the target is listed along with the job, for what others left there. It is listed
    afterwards where the job tells the server's time.
    """
    transfer_size: TransferSize | None = None
    """What it is to send, where that is known beforehand."""
    resume_state: ResumeState | None = None
    """Where the operation can go on over another connection, how far it is."""

    @property
    def resumable(self) -> bool:
        """True if it lost its connection and can go on."""
        return self.resume_state is not None and self.resume_state.resumable

    @property
    def keeps_temp(self) -> bool:
        """True if its temporary file was left for the next try."""
        return self.resume_state is not None and self.resume_state.is_kept

    @property
    def current_target(self) -> WriteTarget:
        """The target with the temporary file in use."""
        return self.target if self.resume_state is None else self.resume_state.with_current_temp(self.target)

    @property
    def abandoned_targets(self) -> list[WriteTarget]:
        """The target with each temporary file that was replaced by another."""
        return (
            []
            if self.resume_state is None
            else [replace(self.target, temp=temp) for temp in self.resume_state.abandoned_temps]
        )

    @property
    def transferred_bytes(self) -> int:
        """Bytes that are done."""
        return 0 if self.resume_state is None else self.resume_state.acknowledged

    def mark_unresumable(self) -> None:
        """Note that no new connection can be had."""
        if self.resume_state is not None:
            self.resume_state.resumable = False


class Resumable(Protocol):
    """What may go on over another connection."""

    @property
    def resumable(self) -> bool:
        """True if it lost its connection and can go on."""

    @property
    def transferred_bytes(self) -> int:
        """Bytes that are done."""

    def mark_unresumable(self) -> None:
        """Note that no new connection can be had."""


W = TypeVar("W", bound=Resumable)


def resume_lost(
    session: Session,
    items: Sequence[W],
    outcomes: list[T | SFTPBackendError | OSError],
    retry: Callable[[list[W], SFTPScheduler], list[T | SFTPBackendError | OSError]],
) -> None:
    """Resume, over new connections, what lost its connection, as long as that brings it forward.

    Connecting is tried for the session's ``reconnect_timeout`` each time. If several new connections in turn are lost
    without progress, the last loss stands.

    :param session: where new connections come from
    :param items: what is done
    :param outcomes: the outcomes of ``items``, which become those of the last attempt
    :param retry: does part of the work once more over a connection
    """
    best, fruitless = -1, 0
    while lost_indexes := [index for index, item in enumerate(items) if item.resumable]:
        transferred = sum(item.transferred_bytes for item in items)
        best, fruitless = (transferred, 0) if transferred > best else (best, fruitless + 1)
        if fruitless and (fruitless > _MAX_FRUITLESS_CONNECTIONS or not session.reconnect_timeout):
            return
        first_failure = outcomes[lost_indexes[0]]
        logger.warning("%s; resuming over a new connection after %d bytes", first_failure, transferred)
        if fruitless:  # the server accepts connections and drops them, as while it shuts down
            session.pause(_FRUITLESS_BACKOFF.pause(fruitless, 0.0))
        try:
            retried = session.call(partial(retry, [items[index] for index in lost_indexes]), reconnecting=True)
        except BackendUnavailable as error:
            logger.warning("cannot connect again: %s", error)
            error.message = f"{_text_of(first_failure)}; cannot connect again: {error.message}"
            retried = [error for _ in lost_indexes]
            for index in lost_indexes:
                items[index].mark_unresumable()
        for index, outcome in zip(lost_indexes, retried, strict=True):
            outcomes[index] = outcome


def _text_of(outcome: object) -> str:
    return outcome.message if isinstance(outcome, SFTPBackendError) else str(outcome)


class WriteExecutor:
    """Runs the writes of one backend, and cleans up after them."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._temps_by_directory: dict[RemotePath, list[tuple[RemotePath, int]]] = {}
        self._to_roll_back: list[WriteTarget] = []

    def run(self, jobs: Sequence[WriteJob[T]]) -> list[T | SFTPBackendError | OSError]:
        """Does the jobs side by side; the result or failure of each, in order."""
        schedulers: list[SFTPScheduler] = []
        outcomes: list[T | SFTPBackendError | OSError] = []
        completed = False
        transfer_size = max(
            (job.transfer_size for job in jobs if job.transfer_size is not None),
            key=lambda transfer_size: transfer_size.size,
            default=None,
        )
        try:
            outcomes = self._session.call(partial(self._run_jobs, schedulers, jobs), transfer_size=transfer_size)
            resume_lost(self._session, jobs, outcomes, partial(self._run_jobs, schedulers))
            completed = True
            return outcomes
        finally:
            if any(scheduler.broken is not None for scheduler in schedulers):
                # where files are replaced by two renames, a backup may be left though the file has its name
                all_jobs = not completed or may_have_backups(schedulers[0])
                lost = [all_jobs or isinstance(outcome, BackendUnavailable) for outcome in outcomes or jobs]
                to_roll_back = [
                    job.current_target
                    for job, is_lost in zip(jobs, lost, strict=True)
                    if is_lost and not job.keeps_temp
                ]
                self.roll_back([*to_roll_back, *chain.from_iterable(job.abandoned_targets for job in jobs)])

    def roll_back(self, write_targets: Sequence[WriteTarget]) -> None:
        """Tidies up over a new connection, if there is one to be had at the first try; else with the next write."""
        self._to_roll_back += write_targets
        if not self._to_roll_back:
            return
        try:
            self._session.call(self._roll_back_on, attempts=1, cleanup=True)
        except BackendUnavailable as error:
            names = ", ".join(repr(write_target.temp.native) for write_target in self._to_roll_back)
            logger.warning(
                "temporary files may be left on the server (%s), the next write to them clears them: %s", names, error
            )

    def _roll_back_on(self, scheduler: SFTPScheduler) -> None:
        outcomes = scheduler.run_many(roll_back(scheduler, write_target) for write_target in self._to_roll_back)
        lost = [isinstance(outcome, BackendUnavailable) for outcome in outcomes]
        self._to_roll_back = [
            write_target for write_target, is_lost in zip(self._to_roll_back, lost, strict=True) if is_lost
        ]

    def clean_up(self, target: RemotePath, mtime: int) -> None:
        """Clears what others left behind for a target that has just been written; ``mtime`` is the server's time."""

        def use(scheduler: SFTPScheduler) -> None:
            if target.parent not in self._temps_by_directory:
                scheduler.run(self._list_temps(target.parent, scheduler.bounds))
            scheduler.run(remove_stale_temps(target, self._temps_by_directory[target.parent], mtime))

        try:
            self._session.call(use, attempts=1)
        except BackendUnavailable as error:
            logger.warning("temporary files that others left behind for %r stay for now: %s", target.key, error)

    def clear_cache(self) -> None:
        """Forgets what was seen in the folders."""
        self._temps_by_directory.clear()

    def _run_jobs(
        self, schedulers: list[SFTPScheduler], jobs: Sequence[WriteJob[T]], scheduler: SFTPScheduler
    ) -> list[T | SFTPBackendError | OSError]:
        schedulers.append(scheduler)
        if self._to_roll_back:
            self._roll_back_on(scheduler)
        folders = {job.target.path.parent for job in jobs if job.cleans_directory} - self._temps_by_directory.keys()
        written: list[tuple[WriteJob[T], int]] = []
        listings = (self._list_temps(folder, scheduler.bounds) for folder in folders)
        writes = (_run_job(job, scheduler, written) for job in jobs)
        outcomes = scheduler.run_many(chain[Operation[T] | Operation[None]](listings, writes))[len(folders) :]
        if scheduler.broken is None:
            unlisted = {job.target.path.parent for job, _ in written} - self._temps_by_directory.keys()
            scheduler.run_many(self._list_temps(folder, scheduler.bounds) for folder in unlisted)
            scheduler.run_many(
                remove_stale_temps(
                    job.target.path, temps, mtime, job.resume_state.temp if job.resume_state is not None else None
                )
                for job, mtime in written
                if (temps := self._temps_by_directory.get(job.target.path.parent))
            )
        return cast("list[T | SFTPBackendError | OSError]", outcomes)

    def _list_temps(self, folder: RemotePath, bounds: Bounds) -> Operation[None]:
        self._temps_by_directory[folder] = yield from list_temps(folder, bounds)


def _run_job(job: WriteJob[T], scheduler: SFTPScheduler, written: list[tuple[WriteJob[T], int]]) -> Operation[T]:
    result, mtime = yield from with_path_in_errors(job.target.path, job.operation(scheduler))
    if mtime is not None:
        written.append((job, mtime))
    return result


def without_result(
    operation: Callable[[SFTPScheduler], Operation[int | None]], scheduler: SFTPScheduler
) -> Operation[tuple[None, int | None]]:
    """The operation of a job that has no result but the server's time, where that is known."""
    return None, (yield from operation(scheduler))


# -- many -------------------------------------------------------------------------------------------------------------


def check_distinct(names: Iterable[str], reason: str = "two pairs have the same target") -> None:
    """ValueError, for the reason ``reason``, if a name is there twice."""
    known: set[str] = set()
    for name in names:
        if name in known:
            raise ValueError(f"{reason}: {name!r}")
        known.add(name)


def unwrap(outcome: T | SFTPBackendError | OSError) -> T:
    """The result; a failure is raised."""
    if isinstance(outcome, SFTPBackendError | OSError):
        raise outcome
    return outcome


def split_invalid(items: Iterable[S], convert: Callable[[S], T]) -> tuple[list[T], list[InvalidPath | None]]:
    """What ``convert`` makes of the items, without those whose path is none; and for each item None or what is
    wrong."""
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
    """The outcomes, with those that were sorted out in their places."""
    remaining = iter(outcomes)
    return [next(remaining) if error is None else error for error in errors]


def raise_or_return(
    outcomes: list[T | SFTPBackendError | OSError], noun: str, return_exceptions: bool
) -> list[T | SFTPBackendError | OSError]:
    """The outcomes; with failures among them, an ExceptionGroup unless those are to be returned."""
    failures = [outcome for outcome in outcomes if isinstance(outcome, SFTPBackendError | OSError)]
    if failures and not return_exceptions:
        raise ExceptionGroup(f"{len(failures)} of {len(outcomes)} {noun} failed", failures)
    return outcomes
