"""Call `before_rename` once for a group of complete files.

A transfer with a complete temporary file waits until its group is recorded. A group is recorded as soon as all active
transfers wait, or after its first file has waited for a second and another transfer makes progress.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

from airflow_sftp_backend.backend._files.progress import report_resumed, report_verified
from airflow_sftp_backend.backend._protocol.channel import Pending
from airflow_sftp_backend.backend._protocol.messages import LimitsRequest
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, reply
from airflow_sftp_backend.backend.errors import BackendUnavailable, SFTPBackendError
from airflow_sftp_backend.backend.models import BeforeRename, PreparedFile, Progress

_MAX_WAIT_SECONDS: Final = 1.0
"""Seconds that a complete file waits for its group while other transfers make progress."""
_NOT_RECORDED: Final = "not renamed: before_rename raised an exception"
_NEVER_SENT: Final = LimitsRequest()  # a Pending needs a request; this request is not sent


class RenameGroup:
    """Group the transfers of a call before their renames.

    :param record: called with the files of a group before any is renamed
    :param clock: returns seconds
    """

    def __init__(self, record: BeforeRename, clock: Callable[[], float] = time.monotonic) -> None:
        self._record = record
        self._clock = clock
        self._waiting: list[tuple[PreparedFile, Pending[object]]] = []
        self._active_transfers = 0
        self._since = 0.0
        self._closed = False
        """True after a failure: no file of the call is renamed any more."""

    @contextmanager
    def active_transfer(self) -> Iterator[None]:
        """Count a transfer as active in the block."""
        self._active_transfers += 1
        try:
            yield
        # the error of a file does not stop its group
        except Exception:
            raise
        except BaseException:
            self._closed = True  # the other transfers are interrupted next and must not rename
            raise
        finally:
            self._active_transfers -= 1
            self._record_if_all_wait()

    def wrap_progress(self, progress: Progress | None) -> Progress:
        """Return a progress callback that also calls `record_if_due`."""
        return _GroupProgress(self, progress)

    def record_if_due(self) -> None:
        """Record the group if its first file has waited long enough."""
        if self._waiting and self._clock() - self._since >= _MAX_WAIT_SECONDS and not self._closed:
            self._record_group()

    def wait_until_recorded(self, prepared: PreparedFile, scheduler: SFTPScheduler | None = None) -> Operation[None]:
        """Wait until the file is recorded.

        :param prepared: the file
        :param scheduler: the connection of the rename; None for a local file
        :raises BackendUnavailable: if the connection is lost meanwhile
        :raises SFTPBackendError: if an earlier record failed
        """
        pending = Pending[object](_NEVER_SENT)
        entry = (prepared, pending)
        if self._closed:
            raise SFTPBackendError(_NOT_RECORDED, path=prepared.path)
        if not self._waiting:
            self._since = self._clock()
        self._waiting.append(entry)
        try:
            self._record_if_all_wait()
            yield from reply(pending)
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)
        if scheduler is not None and scheduler.failure is not None:
            raise BackendUnavailable(scheduler.failure)

    def _record_if_all_wait(self) -> None:
        if self._waiting and len(self._waiting) >= self._active_transfers and not self._closed:
            self._record_group()

    def _record_group(self) -> None:
        group, self._waiting = self._waiting, []
        recorded = False
        try:
            self._record([prepared for prepared, _ in group])
            recorded = True
        finally:
            error = None if recorded else SFTPBackendError(_NOT_RECORDED)
            self._closed = self._closed or not recorded
            for _, pending in group:  # also after an error, so that no transfer waits forever
                pending.set_result(None, error)


class _GroupProgress:
    """Forward progress reports, and record the group if it is due."""

    def __init__(self, group: RenameGroup, progress: Progress | None) -> None:
        self._group = group
        self._progress = progress

    def __call__(self, gained: int, /) -> None:
        self._group.record_if_due()
        if self._progress is not None:
            self._progress(gained)

    def resumed(self, count: int, /) -> None:
        """Report bytes transferred by an earlier attempt."""
        report_resumed(self._progress, count)

    def verified(self, count: int, /) -> None:
        """Report bytes read back for verification."""
        self._group.record_if_due()
        report_verified(self._progress, count)


def create_rename_group(before_rename: BeforeRename | None) -> RenameGroup | None:
    """Create the group of a call; None without a callback."""
    return None if before_rename is None else RenameGroup(before_rename)


def active_transfer_of(rename_group: RenameGroup | None) -> AbstractContextManager[None]:
    """Count a transfer as active in its group, if any."""
    return nullcontext() if rename_group is None else rename_group.active_transfer()
