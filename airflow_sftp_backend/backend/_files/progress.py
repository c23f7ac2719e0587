"""Report the progress of a transfer to its caller."""

from __future__ import annotations

from airflow_sftp_backend.backend.models import Progress


def report_resumed(progress: Progress | None, count: int) -> None:
    """Report bytes transferred by an earlier attempt.

    :param progress: the callback; without a method ``resumed``, the callback itself is called
    :param count: bytes
    """
    if progress is not None:
        report = getattr(progress, "resumed", progress)
        report(count)


def report_verified(progress: Progress | None, count: int) -> None:
    """Report bytes read back for verification.

    :param progress: the callback; not called without a method ``verified``
    :param count: bytes since the last call
    """
    report = getattr(progress, "verified", None)
    if report is not None:
        report(count)
