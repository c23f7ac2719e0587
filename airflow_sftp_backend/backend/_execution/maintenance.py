"""Count work, read the server's clock, and remove abandoned temporary files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow_sftp_backend.backend._files.server_clock import read_server_clock
from airflow_sftp_backend.backend._ssh.session import Session
from airflow_sftp_backend.backend._transfers.partial_files import check_age, clean_server
from airflow_sftp_backend.backend.models import BackendStatistics, PartialFile

from .path_resolver import PathResolver


class Maintenance:
    """Methods of `SFTPBackend` that count work, and remove abandoned files."""

    _resolver: PathResolver
    _session: Session

    @property
    def statistics(self) -> BackendStatistics:
        """Return the counters since the creation of the backend. No I/O."""
        return self._session.statistics

    def clean_partials(self, path: str, older_than: timedelta, *, dry_run: bool = False) -> list[PartialFile]:
        """Remove abandoned temporary files in a directory and below.

        Only files whose names prove that this package created them are removed. Links are not followed. A backup whose
        file is missing holds the only copy of its content, so it gets the file's name back. The age is measured by the
        server's clock. To read the clock, an empty temporary file is created in the directory, in a dry run too.

        :param path: the key of the directory
        :param older_than: minimum time since the last modification; at least one hour, because a server does not show
            whether a writer lives
        :param dry_run: remove and restore nothing
        :returns: the files and the action for each
        :raises ValueError: if ``older_than`` is less than one hour
        :raises NotFound: if the directory does not exist
        :raises InvalidPath: if the key is a file or a link
        :raises CapabilityNotSupported: if the server reports no times of files
        """
        check_age(older_than)
        remote = self._resolver.resolve(path)
        with self._resolver.annotate_errors():
            return clean_server(self._session.call, remote, older_than, dry_run=dry_run)

    def server_time(self, path: str) -> datetime | None:
        """Read the server's clock. Creates an empty temporary file and removes it.

        :param path: the key of an existing directory for the file
        :returns: UTC in whole seconds, rounded down; None if the server reports no times of files
        :raises SFTPBackendError: if the file cannot be created
        """
        remote = self._resolver.resolve(path)
        with self._resolver.annotate_errors():
            seconds = self._session.call(lambda scheduler: scheduler.run(read_server_clock(remote)))
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
