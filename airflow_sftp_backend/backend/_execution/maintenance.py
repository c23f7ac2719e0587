"""Maintenance methods of the backend: the server's clock, and partial files that nobody came back for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow_sftp_backend.backend._ssh.session import Session
from airflow_sftp_backend.backend._transfers.comparison import server_time
from airflow_sftp_backend.backend._transfers.partial_files import check_age, clean_server
from airflow_sftp_backend.backend.models import PartialFile

from .path_resolver import Door


class Maintenance:
    """The methods of `SFTPBackend` that look after what interrupted work left behind."""

    _door: Door
    _session: Session

    def clean_partials(self, path: str, older_than: timedelta, *, dry_run: bool = False) -> list[PartialFile]:
        """Remove temporary files that nobody came back for, in a directory and below it.

        Only files whose names prove that this package made them. Links are not followed. A backup whose file is missing
        holds the only copy of its content: it gets the file's name back. The age is measured by the server's clock,
        which is read by making an empty temporary file in the directory, in a dry run too.

        :param path: the directory.
        :param older_than: how long nobody may have written to a file; at least one hour, as nothing on a server shows
            whether its writer lives.
        :param dry_run: remove and restore nothing.
        :returns: what was found, with what was done.
        :raises ValueError: for an age below one hour.
        :raises SFTPBackendError: NotFound; InvalidPath for a file or a link; CapabilityNotSupported if the server does
            not tell the times of files.
        """
        check_age(older_than)
        place = self._door.at(path)
        with self._door.named():
            return clean_server(self._session.call, place, older_than, dry_run=dry_run)

    def server_time(self, path: str) -> datetime | None:
        """Read the server's clock by making an empty temporary file and removing it.

        :param path: an existing directory to make the file in.
        :returns: UTC, in whole seconds, rounded down; None if the server does not tell the times of files.
        :raises SFTPBackendError: if the file cannot be made.
        """
        place = self._door.at(path)
        with self._door.named():
            seconds = self._session.call(lambda scheduler: scheduler.run(server_time(place)))
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
