"""Resolve paths inside ``base_path``, and add the server to errors."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TypeVar

from airflow_sftp_backend.backend._paths import (
    BESIDE_TARGET,
    Jail,
    RemotePath,
    TempNaming,
    add_location,
    check_temp_suffix,
    has_control_character,
)
from airflow_sftp_backend.backend._protocol.scheduler import Operation
from airflow_sftp_backend.backend._writes.rename_group import RenameGroup, create_rename_group
from airflow_sftp_backend.backend._writes.write_target import WriteTarget
from airflow_sftp_backend.backend.config import check_mode, epoch_seconds
from airflow_sftp_backend.backend.errors import BackendUnavailable, InvalidPath, SFTPBackendError
from airflow_sftp_backend.backend.models import BeforeRename, Verify

T = TypeVar("T")


def with_path_in_errors(path: RemotePath, operation: Operation[T]) -> Operation[T]:
    """Run an operation, and add its path to connection errors.

    :param path: the path
    :param operation: the operation
    :returns: the result of the operation
    :raises SFTPBackendError: as the operation
    """
    try:
        return (yield from operation)
    except BackendUnavailable as error:
        if error.path is None:
            error.path = path.key
        raise


class PathResolver:
    """Resolve paths, and add the server's address to errors.

    :param jail: the base path
    :param address: the server, ``sftp://host:port``
    """

    def __init__(self, jail: Jail, address: str) -> None:
        self.jail = jail
        self._address = address

    def resolve(self, path: str) -> RemotePath:
        """Resolve a path. Raises InvalidPath."""
        try:  # without the context manager `annotate_errors`, because many files are resolved one by one
            return self.jail.resolve(path)
        except InvalidPath as error:
            self.with_server(error)
            raise

    def resolve_writable(self, path: str) -> RemotePath:
        """Resolve a path to change. Raises InvalidPath also for the root."""
        remote = self.resolve(path)
        if remote.is_root:
            raise InvalidPath("cannot write, move or delete base_path itself", path=path, server=self._address)
        return remote

    def resolve_new(self, path: str) -> RemotePath:
        """Resolve a path to create.

        Raises InvalidPath also for a control character: listings omit such names.
        """
        remote = self.resolve_writable(path)
        if has_control_character(remote.key):
            raise self.with_server(
                InvalidPath("cannot create a name with control characters: listings omit such names", path=path)
            )
        return remote

    def write_target(
        self,
        path: str,
        overwrite: bool,
        verify: Verify,
        temp_naming: TempNaming = BESIDE_TARGET,
        *,
        create_parents: bool = True,
        rename_group: RenameGroup | None = None,
        channels: int | None = None,
        mtime: int | None = None,
        mode: int | None = None,
    ) -> WriteTarget:
        """Resolve the target of a write, and choose unique temporary names."""
        target = self.resolve_new(path)
        tokens = secrets.token_hex(12)
        temp, unique_backup = temp_naming.temp(target, tokens[:12]), target.unique_backup(tokens[12:])
        return WriteTarget(
            target, temp, unique_backup, overwrite, verify, create_parents, rename_group, channels, mtime, mode,
            temp_naming,
        )  # fmt: skip

    def temp_naming(self, suffix: str | None, folder: str | None) -> TempNaming:
        """Check the arguments for temporary names.

        Raises ValueError for an invalid suffix, and InvalidPath for an invalid directory.
        """
        if suffix is not None:
            check_temp_suffix(suffix)
        return TempNaming(suffix or "", None if folder is None else self.resolve(folder))

    def atomic_target(
        self,
        path: str,
        overwrite: bool,
        verify: Verify,
        create_parents: bool,
        modified_at: datetime | None,
        mode: int | None,
        before_rename: BeforeRename | None,
        temp_suffix: str | None,
        temp_folder: str | None,
    ) -> WriteTarget:
        """Resolve the target of an atomic write, and check its options."""
        if mode is not None:
            check_mode(mode)
        return self.write_target(
            path, overwrite, verify, self.temp_naming(temp_suffix, temp_folder),
            create_parents=create_parents, rename_group=create_rename_group(before_rename),
            mtime=None if modified_at is None else epoch_seconds("modified_at", modified_at),
            mode=mode,
        )  # fmt: skip

    def annotate_each(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and add the server to errors of their iterator."""
        with self.annotate_errors():
            yield from items

    @contextmanager
    def annotate_errors(self, path: RemotePath | None = None) -> Iterator[None]:
        """Add the server to errors of the block.

        Errors of a lost connection also get ``path``.
        """
        try:
            yield
        except SFTPBackendError as error:
            if path is not None and error.path is None and isinstance(error, BackendUnavailable):
                error.path = path.key
            self.with_server(error)
            raise

    def with_server(self, outcome: T) -> T:
        """Return the outcome.

        An error gets the server's address and the native path.
        """
        if isinstance(outcome, SFTPBackendError):
            add_location(outcome, self._address, self.jail)
        return outcome
