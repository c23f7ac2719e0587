"""The backend's door: where a caller's paths become places in the jail, and errors get the server's name."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from airflow_sftp_backend.backend._paths import Jail, RemotePath, add_location, has_control_character
from airflow_sftp_backend.backend._protocol.scheduler import Operation
from airflow_sftp_backend.backend._writes.write_target import Landing, Verify
from airflow_sftp_backend.backend.errors import BackendUnavailable, InvalidPath, SFTPBackendError

T = TypeVar("T")


def naming(place: RemotePath, operation: Operation[T]) -> Operation[T]:
    """Run an operation; the error of a lost connection names the path that the operation is about.

    :param place: the path
    :param operation: what to run
    :returns: what the operation returns
    :raises SFTPBackendError: as the operation
    """
    try:
        return (yield from operation)
    except BackendUnavailable as lost:
        if lost.path is None:
            lost.path = place.key
        raise


class Door:
    """The way into ``jail``, on the server at ``address`` (``sftp://host:port``)."""

    def __init__(self, jail: Jail, address: str) -> None:
        self.jail = jail
        self._address = address

    def at(self, path: str) -> RemotePath:
        """The place of a path. InvalidPath if it has none."""
        with self.named():
            return self.jail.resolve(path)

    def changed(self, path: str) -> RemotePath:
        """The place of what is to be changed. InvalidPath also for the root."""
        place = self.at(path)
        if place.is_root:
            raise InvalidPath("base_path itself is not written, moved or deleted", path=path, server=self._address)
        return place

    def target(self, path: str) -> RemotePath:
        """The place of what is to be made. InvalidPath also for names that no listing would show."""
        place = self.changed(path)
        if has_control_character(place.key):
            raise self.located(InvalidPath("a name with control characters would not be listed again", path=path))
        return place

    def landing(self, path: str, overwrite: bool, verify: Verify) -> Landing:
        """Where a file is to arrive, with temporary names that nobody else uses."""
        target = self.target(path)
        temp, aside = target.temp(secrets.token_hex(6)), target.unique_backup(secrets.token_hex(6))
        return Landing(target, temp, aside, overwrite, verify)

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """The items; errors on the way to them name this server."""
        with self.named():
            yield from items

    @contextmanager
    def named(self, place: RemotePath | None = None) -> Iterator[None]:
        """Errors of the block name this server, and those of a lost connection the path ``place``."""
        try:
            yield
        except SFTPBackendError as error:
            if place is not None and error.path is None and isinstance(error, BackendUnavailable):
                error.path = place.key
            self.located(error)
            raise

    def located(self, outcome: T) -> T:
        """The outcome; if it is an error, it names this server and the path there."""
        if isinstance(outcome, SFTPBackendError):
            add_location(outcome, self._address, self.jail)
        return outcome
