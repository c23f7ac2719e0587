"""Delete files, create directories, and set modes and times."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal, overload

from airflow_sftp_backend.backend._files import attribute_changes, deletion, tree, writing
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.scheduler import SFTPScheduler
from airflow_sftp_backend.backend._ssh.session import Session
from airflow_sftp_backend.backend._writes.backups import delete_with_backup
from airflow_sftp_backend.backend.config import check_mode, epoch_seconds
from airflow_sftp_backend.backend.errors import SFTPBackendError

from .executor import merge_outcomes, raise_or_return, split_invalid
from .path_resolver import PathResolver, with_path_in_errors


class Changes:
    """Provide the methods that delete files and change attributes."""

    _resolver: PathResolver
    _session: Session

    def make_folder(self, path: str, exist_ok: bool = True) -> None:
        """Create a directory and its missing parents.

        :param path: the key of the directory
        :param exist_ok: accept an existing directory
        :raises AlreadyExists: if the directory exists and ``exist_ok`` is False
        :raises InvalidPath: if the key or a parent is a file
        """
        remote = self._resolver.resolve_new(path)
        self._session.call(
            lambda scheduler: scheduler.run(with_path_in_errors(remote, writing.make_folder(remote, exist_ok=exist_ok)))
        )

    def set_mode(self, path: str, mode: int) -> None:
        """Set the permission bits of a file or directory.

        Follows links. One round trip.

        :param path: the key
        :param mode: the permission bits, such as ``0o640``
        :raises NotFound: if the key does not exist
        :raises PermissionDenied: if the login user may not set the mode
        :raises CapabilityNotSupported: if the server does not set modes, or reports another mode afterwards
        :raises ValueError: if ``mode`` is not a number from 0 to 0o7777
        """
        check_mode(mode)
        self._set_attributes(self._resolver.resolve_writable(path), Attributes(mode=mode))

    def set_times(self, path: str, modified_at: datetime, accessed_at: datetime | None = None) -> None:
        """Set the times of a file or directory.

        Follows links. One round trip.

        SFTP has whole seconds; fractions are cut off.

        :param path: the key
        :param modified_at: time of the last change, with a time zone
        :param accessed_at: time of the last read, with a time zone; ``modified_at`` by default
        :raises NotFound: if the key does not exist
        :raises PermissionDenied: if the login user may not set the times
        :raises CapabilityNotSupported: if the server does not set times, or reports another time afterwards
        :raises ValueError: if a time has no time zone, or is not in the years 1970 to 2106
        """
        mtime = epoch_seconds("modified_at", modified_at)
        atime = mtime if accessed_at is None else epoch_seconds("accessed_at", accessed_at)
        self._set_attributes(self._resolver.resolve_writable(path), Attributes(atime=atime, mtime=mtime))

    def _set_attributes(self, remote: RemotePath, attributes: Attributes) -> None:
        self._session.call(
            lambda scheduler: scheduler.run(
                with_path_in_errors(remote, attribute_changes.set_attributes(remote, attributes))
            ),
            idempotent=True,
        )

    def delete(self, path: str, missing_ok: bool = False) -> None:
        """Remove a file, or a link itself. One round trip.

        :param path: the key of the file
        :param missing_ok: accept a missing file
        :raises NotFound: if the file does not exist
        :raises InvalidPath: if the key is a directory
        """
        remote = self._resolver.resolve_writable(path)
        self._session.call(
            lambda scheduler: scheduler.run(
                with_path_in_errors(remote, delete_with_backup(scheduler, remote, missing_ok=missing_ok))
            )
        )

    @overload
    def delete_many(
        self, paths: Iterable[str], missing_ok: bool = False, *, return_exceptions: Literal[False] = False
    ) -> list[None]: ...

    @overload
    def delete_many(
        self, paths: Iterable[str], missing_ok: bool = False, *, return_exceptions: bool
    ) -> list[SFTPBackendError | OSError | None]: ...

    def delete_many(
        self, paths: Iterable[str], missing_ok: bool = False, *, return_exceptions: bool = False
    ) -> list[None] | list[SFTPBackendError | OSError | None]:
        """Remove several files concurrently, each as `delete` does. Tries all of them.

        :param paths: the keys of the files
        :param missing_ok: accept missing files
        :param return_exceptions: put failures into the result instead of raising them
        :returns: None for each removed file, in order
        :raises ExceptionGroup: of all failures
        """
        remotes, errors = split_invalid(paths, self._resolver.resolve_writable)

        def use(scheduler: SFTPScheduler) -> list[SFTPBackendError | OSError | None]:
            return scheduler.run_many(
                with_path_in_errors(remote, delete_with_backup(scheduler, remote, missing_ok=missing_ok))
                for remote in remotes
            )

        outcomes = self._session.call(use) if remotes else []
        outcomes = [self._resolver.with_server(outcome) for outcome in merge_outcomes(outcomes, errors)]
        return raise_or_return(outcomes, "deletions", return_exceptions)

    def delete_folder(self, path: str, recursive: bool = False, missing_ok: bool = False) -> None:
        """Remove a directory. Links in the directory are removed, never entered.

        :param path: the key of the directory
        :param recursive: remove the contents first; otherwise the directory must be empty
        :param missing_ok: accept a missing directory
        :raises NotFound: if the directory does not exist
        :raises DirectoryNotEmpty: if the directory has entries
        :raises InvalidPath: if the key is a file
        """
        remote = self._resolver.resolve_writable(path)
        if recursive:
            with self._resolver.annotate_errors(remote):
                tree.delete_tree(self._session.call, remote, missing_ok=missing_ok)
        else:
            self._session.call(
                lambda scheduler: scheduler.run(
                    with_path_in_errors(remote, deletion.delete_folder(remote, missing_ok=missing_ok))
                )
            )
