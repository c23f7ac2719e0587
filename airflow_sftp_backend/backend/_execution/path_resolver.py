"""Resolves the caller's paths inside ``base_path``, and adds the server's name to errors."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from airflow_sftp_backend.backend._paths import Jail, RemotePath, add_location, has_control_character
from airflow_sftp_backend.backend._protocol.scheduler import Operation
from airflow_sftp_backend.backend._writes.write_target import Verify, WriteTarget
from airflow_sftp_backend.backend.errors import BackendUnavailable, InvalidPath, SFTPBackendError

T = TypeVar("T")


def with_path_in_errors(path: RemotePath, operation: Operation[T]) -> Operation[T]:
    """Run an operation; the error of a lost connection names the path that the operation is about.

    :param path: the path
    :param operation: what to run
    :returns: what the operation returns
    :raises SFTPBackendError: as the operation
    """
    try:
        return (yield from operation)
    except BackendUnavailable as error:
        if error.path is None:
            error.path = path.key
        raise


class PathResolver:
    """Resolves paths inside ``jail``, on the server at ``address`` (``sftp://host:port``)."""

    def __init__(self, jail: Jail, address: str) -> None:
        self.jail = jail
        self._address = address

    def resolve(self, path: str) -> RemotePath:
        """The place of a path. InvalidPath if it has none."""
        with self.annotate_errors():
            return self.jail.resolve(path)

    def resolve_writable(self, path: str) -> RemotePath:
        """The place of what is to be changed. InvalidPath also for the root."""
        remote = self.resolve(path)
        if remote.is_root:
            raise InvalidPath("base_path itself is not written, moved or deleted", path=path, server=self._address)
        return remote

    def resolve_new(self, path: str) -> RemotePath:
        """The place of what is to be made. InvalidPath also for names that no listing would show."""
        remote = self.resolve_writable(path)
        if has_control_character(remote.key):
            raise self.with_server(InvalidPath("a name with control characters would not be listed again", path=path))
        return remote

    def write_target(self, path: str, overwrite: bool, verify: Verify) -> WriteTarget:
        """Where a file is to arrive, with temporary names that nobody else uses."""
        target = self.resolve_new(path)
        temp, unique_backup = target.temp(secrets.token_hex(6)), target.unique_backup(secrets.token_hex(6))
        return WriteTarget(target, temp, unique_backup, overwrite, verify)

    def annotate_each(self, items: Iterable[T]) -> Iterator[T]:
        """The items; errors on the way to them name this server."""
        with self.annotate_errors():
            yield from items

    @contextmanager
    def annotate_errors(self, path: RemotePath | None = None) -> Iterator[None]:
        """Errors of the block name this server, and those of a lost connection the path ``path``."""
        try:
            yield
        except SFTPBackendError as error:
            if path is not None and error.path is None and isinstance(error, BackendUnavailable):
                error.path = path.key
            self.with_server(error)
            raise

    def with_server(self, outcome: T) -> T:
        """The outcome; if it is an error, it names this server and the path there."""
        if isinstance(outcome, SFTPBackendError):
            add_location(outcome, self._address, self.jail)
        return outcome
