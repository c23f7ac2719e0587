"""Maintenance methods of the backend: the server's clock, and partial files that nobody came back for."""

from __future__ import annotations

from datetime import UTC, datetime

from ._comparison import server_time
from ._door import Door
from ._session import Session


class Maintenance:
    """The methods of `SFTPBackend` that look after what interrupted work left behind."""

    _door: Door
    _session: Session

    def server_time(self, path: str) -> datetime | None:
        """Read the server's clock by making an empty temporary file and removing it.

        :param path: an existing directory to make the file in.
        :returns: UTC, in whole seconds, rounded down; None if the server does not tell the times of files.
        :raises SFTPBackendError: if the file cannot be made.
        """
        place = self._door.at(path)
        with self._door.named():
            seconds = self._session.call(lambda wire: wire.run(server_time(place)))
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
