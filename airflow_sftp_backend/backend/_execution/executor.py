"""Running landings on the session, one or many side by side, and tidying up after those that cannot do so themselves.

An operation removes its own temporary file as long as it can speak. When the connection breaks under it, the removal
is done on a new one; and what writers of other processes left behind is found by listing a folder once, along with
the first write into it.
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
from airflow_sftp_backend.backend._writes.cleanup import recover, sweep, temps_in
from airflow_sftp_backend.backend._writes.write_target import Landing, SoFar
from airflow_sftp_backend.backend.errors import BackendUnavailable, InvalidPath, SFTPBackendError

from .path_resolver import naming

T = TypeVar("T")
S = TypeVar("S")
logger = logging.getLogger(__name__)

_FRUITLESS: Final = 3  # new connections in turn that are lost without progress


@dataclass(frozen=True, slots=True)
class Job(Generic[T]):
    """What is to land, and the operation that does it: its result, and the server's time (seconds since 1970) where
    it tells.
    """

    landing: Landing
    operation: Callable[[SFTPScheduler], Operation[tuple[T, int | None]]]
    sweeps: bool = True
    """Whether the directory of the target is listed along with the job, for what others left there. It is listed
    afterwards where the job tells the server's time.
    """
    load: TransferSize | None = None
    """What it is to send, where that is known beforehand."""
    so_far: SoFar | None = None
    """Where the operation can go on over another connection, how far it is."""

    @property
    def resumable(self) -> bool:
        """True if it lost its connection and can go on."""
        return self.so_far is not None and self.so_far.resumable

    @property
    def left(self) -> bool:
        """True if its temporary file was left for the next try."""
        return self.so_far is not None and self.so_far.left

    @property
    def placed(self) -> Landing:
        """The landing, with the temporary file that is used."""
        return self.landing if self.so_far is None else self.so_far.placed(self.landing)

    @property
    def abandoned(self) -> list[Landing]:
        """The landing with each temporary file that was replaced by another."""
        return [] if self.so_far is None else [replace(self.landing, temp=temp) for temp in self.so_far.abandoned]

    @property
    def done(self) -> int:
        """Bytes that are done."""
        return 0 if self.so_far is None else self.so_far.acknowledged

    def give_up(self) -> None:
        """Note that no new connection can be had."""
        if self.so_far is not None:
            self.so_far.resumable = False


class Resumable(Protocol):
    """What may go on over another connection."""

    @property
    def resumable(self) -> bool:
        """True if it lost its connection and can go on."""

    @property
    def done(self) -> int:
        """Bytes that are done."""

    def give_up(self) -> None:
        """Note that no new connection can be had."""


W = TypeVar("W", bound=Resumable)


def go_on(
    session: Session,
    work: Sequence[W],
    outcomes: list[T | SFTPBackendError | OSError],
    again: Callable[[list[W], SFTPScheduler], list[T | SFTPBackendError | OSError]],
) -> None:
    """Resume, over new connections, what lost its connection, as long as that brings it forward.

    Connecting is tried for the session's ``reconnect_timeout`` each time. If several new connections in turn are lost
    without progress, the last loss stands.

    :param session: where new connections come from
    :param work: what is done
    :param outcomes: the outcomes of ``work``, which become those of the last attempt
    :param again: does part of the work once more over a connection
    """
    best, fruitless = -1, 0
    while left := [at for at, one in enumerate(work) if one.resumable]:
        done = sum(one.done for one in work)
        best, fruitless = (done, 0) if done > best else (best, fruitless + 1)
        if fruitless and (fruitless > _FRUITLESS or not session.reconnect_timeout):
            return
        lost = outcomes[left[0]]
        logger.warning("%s; resuming over a new connection after %d bytes", lost, done)
        if fruitless:  # the server accepts connections and drops them, as while it shuts down
            session.pause(2.0 ** (fruitless - 1))
        try:
            latest = session.call(partial(again, [work[at] for at in left]), reconnecting=True)
        except BackendUnavailable as error:
            logger.warning("cannot connect again: %s", error)
            error.message = f"{_text_of(lost)}; cannot connect again: {error.message}"
            latest = [error for _ in left]
            for one in left:
                work[one].give_up()
        for at, outcome in zip(left, latest, strict=True):
            outcomes[at] = outcome


def _text_of(outcome: object) -> str:
    return outcome.message if isinstance(outcome, SFTPBackendError) else str(outcome)


class Landings:
    """The landings of one backend."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._temps: dict[RemotePath, list[tuple[RemotePath, int]]] = {}
        self._unrecovered: list[Landing] = []

    def run(self, jobs: Sequence[Job[T]]) -> list[T | SFTPBackendError | OSError]:
        """Does the jobs side by side; the result or failure of each, in order."""
        used: list[SFTPScheduler] = []
        outcomes: list[T | SFTPBackendError | OSError] = []
        done = False
        load = max((job.load for job in jobs if job.load is not None), key=lambda load: load.size, default=None)
        try:
            outcomes = self._session.call(partial(self._land, used, jobs), load=load)
            go_on(self._session, jobs, outcomes, partial(self._land, used))
            done = True
            return outcomes
        finally:
            if any(scheduler.broken is not None for scheduler in used):
                # where files are replaced by two renames, a backup may be left though the file has landed
                every = not done or may_have_backups(used[0])
                lost = [every or isinstance(outcome, BackendUnavailable) for outcome in outcomes or jobs]
                unclean = [job.placed for job, is_lost in zip(jobs, lost, strict=True) if is_lost and not job.left]
                self.recover([*unclean, *chain.from_iterable(job.abandoned for job in jobs)])

    def recover(self, landings: Sequence[Landing]) -> None:
        """Tidies up over a new connection, if there is one to be had at the first try; else with the next write."""
        self._unrecovered += landings
        if not self._unrecovered:
            return
        try:
            self._session.call(self._recover_on, attempts=1, cleanup=True)
        except BackendUnavailable as error:
            names = ", ".join(repr(landing.temp.native) for landing in self._unrecovered)
            logger.warning(
                "temporary files may be left on the server (%s), the next write to them clears them: %s", names, error
            )

    def _recover_on(self, scheduler: SFTPScheduler) -> None:
        outcomes = scheduler.run_many(recover(scheduler, landing) for landing in self._unrecovered)
        lost = [isinstance(outcome, BackendUnavailable) for outcome in outcomes]
        self._unrecovered = [landing for landing, is_lost in zip(self._unrecovered, lost, strict=True) if is_lost]

    def tidy(self, target: RemotePath, now: int) -> None:
        """Clears what others left behind for a target that has just been written; ``now`` is the server's time."""

        def use(scheduler: SFTPScheduler) -> None:
            if target.parent not in self._temps:
                scheduler.run(self._note(target.parent, scheduler.bounds))
            scheduler.run(sweep(target, self._temps[target.parent], now))

        try:
            self._session.call(use, attempts=1)
        except BackendUnavailable as error:
            logger.warning("temporary files that others left behind for %r stay for now: %s", target.key, error)

    def forget(self) -> None:
        """Forgets what was seen in the folders."""
        self._temps.clear()

    def _land(
        self, used: list[SFTPScheduler], jobs: Sequence[Job[T]], scheduler: SFTPScheduler
    ) -> list[T | SFTPBackendError | OSError]:
        used.append(scheduler)
        if self._unrecovered:
            self._recover_on(scheduler)
        folders = {job.landing.target.parent for job in jobs if job.sweeps} - self._temps.keys()
        landed: list[tuple[Job[T], int]] = []
        notes = (self._note(folder, scheduler.bounds) for folder in folders)
        landings = (_timed(job, scheduler, landed) for job in jobs)
        outcomes = scheduler.run_many(chain[Operation[T] | Operation[None]](notes, landings))[len(folders) :]
        if scheduler.broken is None:
            unlisted = {job.landing.target.parent for job, _ in landed} - self._temps.keys()
            scheduler.run_many(self._note(folder, scheduler.bounds) for folder in unlisted)
            scheduler.run_many(
                sweep(job.landing.target, temps, now, job.so_far.temp if job.so_far is not None else None)
                for job, now in landed
                if (temps := self._temps.get(job.landing.target.parent))
            )
        return cast("list[T | SFTPBackendError | OSError]", outcomes)

    def _note(self, folder: RemotePath, bounds: Bounds) -> Operation[None]:
        self._temps[folder] = yield from temps_in(folder, bounds)


def _timed(job: Job[T], scheduler: SFTPScheduler, landed: list[tuple[Job[T], int]]) -> Operation[T]:
    result, now = yield from naming(job.landing.target, job.operation(scheduler))
    if now is not None:
        landed.append((job, now))
    return result


def without_result(
    work: Callable[[SFTPScheduler], Operation[int | None]], scheduler: SFTPScheduler
) -> Operation[tuple[None, int | None]]:
    """The operation of a job that has no result but the server's time, where that is known."""
    return None, (yield from work(scheduler))


# -- many -------------------------------------------------------------------------------------------------------------


def check_distinct(names: Iterable[str], why: str = "two pairs have the same target") -> None:
    """ValueError, for the reason ``why``, if a name is there twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{why}: {name!r}")
        seen.add(name)


def or_raise(outcome: T | SFTPBackendError | OSError) -> T:
    """The result; a failure is raised."""
    if isinstance(outcome, SFTPBackendError | OSError):
        raise outcome
    return outcome


def sorted_out(items: Iterable[S], make: Callable[[S], T]) -> tuple[list[T], list[InvalidPath | None]]:
    """What ``make`` makes of the items, without those whose path is none; and for each item None or what is wrong."""
    made: list[T] = []
    refused: list[InvalidPath | None] = []
    for item in items:
        try:
            made.append(make(item))
            refused.append(None)
        except InvalidPath as error:
            refused.append(error)
    return made, refused


def put_back(
    outcomes: list[T | SFTPBackendError | OSError], refused: list[InvalidPath | None]
) -> list[T | SFTPBackendError | OSError]:
    """The outcomes, with those that were sorted out in their places."""
    rest = iter(outcomes)
    return [next(rest) if error is None else error for error in refused]


def gathered(
    outcomes: list[T | SFTPBackendError | OSError], what: str, return_exceptions: bool
) -> list[T | SFTPBackendError | OSError]:
    """The outcomes; with failures among them, an ExceptionGroup unless those are to be returned."""
    failures = [outcome for outcome in outcomes if isinstance(outcome, SFTPBackendError | OSError)]
    if failures and not return_exceptions:
        raise ExceptionGroup(f"{len(failures)} of {len(outcomes)} {what} failed", failures)
    return outcomes
