"""Report the failures of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

from airflow_sftp_backend.backend import AlreadyExists, BackendUnavailable, SFTPBackendError
from airflow_sftp_backend.progress import pluralize_files

Failures: TypeAlias = list[SFTPBackendError | OSError]


class ErrorLog(Protocol):
    """Accept error lines with arguments: Airflow's task log, or any logger."""

    def error(self, message: str, /, *arguments: object) -> object:
        """Log a line.

        :param message: the line, with placeholders
        :param arguments: the values of the placeholders
        :returns: not used
        """


def raise_failures(log: ErrorLog, failures: Failures, file_count: int) -> None:
    """Log and raise the failures of a task, if there are any.

    :param log: the log
    :param failures: the failures
    :param file_count: number of files of the task
    :raises SFTPBackendError: if the only file failed
    :raises OSError: if the only file failed on this machine
    :raises ExceptionGroup: of the failures of several files
    """
    for failure in failures:
        if isinstance(failure, AlreadyExists):
            # The backend's hint names its argument ``overwrite``.
            failure.hint = "set if_exists='replace' to replace the file"
        _drop_tracebacks(failure)
    if len(failures) == 1 and file_count == 1:
        raise failures[0]  # a plain error reads better than a group of one
    if failures:
        for failure in failures:
            log.error("%s", failure)
        raise ExceptionGroup(f"{len(failures)} of {pluralize_files(file_count)} failed", failures)


def _drop_tracebacks(failure: BaseException) -> None:
    """Remove the tracebacks of a failure and its causes, whose texts suffice."""
    error: BaseException | None = failure
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def distinct_failures(outcomes: Sequence[SFTPBackendError | OSError | None]) -> Failures:
    """Return the failures, with one for each lost connection.

    :param outcomes: a failure or None for each file
    :returns: the failures
    """
    failures: Failures = []
    connection_lost = False
    for outcome in outcomes:
        if outcome is not None and not (connection_lost and isinstance(outcome, BackendUnavailable)):
            failures.append(outcome)
            connection_lost = connection_lost or isinstance(outcome, BackendUnavailable)
    return failures
