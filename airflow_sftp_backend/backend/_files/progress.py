"""Report the progress of a transfer to its caller."""

from __future__ import annotations

from typing import Protocol

from airflow_sftp_backend.backend.models import Progress


class TransferProgress(Protocol):
    """A progress callback that tells bytes that are transferred now from others."""

    def __call__(self, gained: int, /) -> None:
        """Note bytes that were transferred.

        :param gained: bytes since the last call; negative if the transfer had to go back
        """

    def resumed(self, count: int, /) -> None:
        """Note bytes that an earlier attempt has transferred.

        :param count: bytes
        """

    def verified(self, count: int, /) -> None:
        """Note bytes that were read back for verification.

        :param count: bytes since the last call
        """


def report_resumed(progress: Progress | None, count: int) -> None:
    """Report bytes that an earlier attempt has transferred.

    :param progress: the callback; without a method ``resumed`` it is called as for transferred bytes
    :param count: bytes
    """
    if progress is not None:
        report = getattr(progress, "resumed", progress)
        report(count)


def report_verified(progress: Progress | None, count: int) -> None:
    """Report bytes that were read back for verification.

    :param progress: the callback; without a method ``verified`` it is not called
    :param count: bytes since the last call
    """
    report = getattr(progress, "verified", None)
    if report is not None:
        report(count)
