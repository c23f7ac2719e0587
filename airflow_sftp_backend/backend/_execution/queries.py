"""Query existence and attributes, list directories, and search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, TypeVar, overload

from airflow_sftp_backend.backend._files import file_info, glob, tree
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler
from airflow_sftp_backend.backend._ssh.session import Session
from airflow_sftp_backend.backend._writes.backups import with_backup_restored
from airflow_sftp_backend.backend.errors import SFTPBackendError
from airflow_sftp_backend.backend.models import FileInfo, FolderEntry, FolderInfo

from .executor import merge_outcomes, raise_or_return, split_invalid
from .path_resolver import PathResolver, with_path_in_errors

T = TypeVar("T")


class Queries:
    """Methods of `SFTPBackend` that change nothing on the server."""

    _resolver: PathResolver
    _session: Session

    def exists(self, path: str) -> bool:
        """Tell whether a file or directory exists.

        Follows links. One round trip, none for the root.

        :param path: the key
        :returns: True if the key exists
        """
        remote = self._resolver.resolve(path)
        return remote.is_root or self._stat_or_none(remote) is not None

    def is_file(self, path: str) -> bool:
        """Tell whether a key is a file.

        A link to a file counts. One round trip.

        :param path: the key
        :returns: True for a file
        """
        remote = self._resolver.resolve(path)
        attributes = None if remote.is_root else self._stat_or_none(remote)
        return attributes is not None and attributes.is_file

    def is_folder(self, path: str) -> bool:
        """Tell whether a key is a directory.

        A link to a directory counts. One round trip, none for the root.

        :param path: the key
        :returns: True for a directory
        """
        remote = self._resolver.resolve(path)
        if remote.is_root:
            return True
        attributes = self._stat_or_none(remote)
        return attributes is not None and attributes.is_folder

    def get_file_info(self, path: str) -> FileInfo:
        """Return size, time and mode of a file. One round trip.

        :param path: the key of the file
        :returns: the attributes
        :raises NotFound: if the file does not exist
        :raises InvalidPath: if the key is a directory
        """
        remote = self._resolver.resolve(path)
        return self._run_read(
            remote, lambda scheduler: with_backup_restored(scheduler, remote, lambda: file_info.get_file_info(remote))
        )

    def get_entry(self, path: str) -> FileInfo | FolderEntry:
        """Return the attributes of a file or directory.

        Follows links. One round trip.

        :param path: the key
        :returns: the attributes
        :raises NotFound: if the key does not exist
        """
        remote = self._resolver.resolve(path)
        return self._run_read(
            remote, lambda scheduler: with_backup_restored(scheduler, remote, lambda: file_info.get_entry(remote))
        )

    @overload
    def get_file_info_many(
        self, paths: Iterable[str], *, return_exceptions: Literal[False] = False
    ) -> list[FileInfo]: ...

    @overload
    def get_file_info_many(
        self, paths: Iterable[str], *, return_exceptions: bool
    ) -> list[FileInfo | SFTPBackendError | OSError]: ...

    def get_file_info_many(
        self, paths: Iterable[str], *, return_exceptions: bool = False
    ) -> list[FileInfo] | list[FileInfo | SFTPBackendError | OSError]:
        """Return the attributes of several files, in one round trip.

        :param paths: the keys of the files
        :param return_exceptions: put failures into the result instead of raising them
        :returns: for each key, in order, the result of `get_file_info`
        :raises ExceptionGroup: of all failures
        """
        remotes, errors = split_invalid(paths, self._resolver.resolve)
        outcomes = tree.get_file_infos(self._session.call, remotes) if remotes else []
        annotated = [self._resolver.with_server(outcome) for outcome in merge_outcomes(outcomes, errors)]
        return raise_or_return(annotated, "queries", return_exceptions)

    def get_folder_info(self, path: str) -> FolderInfo:
        """Return the totals of a directory at any depth.

        One round trip for each level.

        :param path: the key of the directory
        :returns: number of files, bytes and latest time
        :raises NotFound: if the directory does not exist
        :raises InvalidPath: if the key is a file
        """
        remote = self._resolver.resolve(path)
        with self._resolver.annotate_errors():
            return tree.folder_info(self._session.call, remote)

    def check_health(self) -> None:
        """Examine ``base_path``, in one round trip. Connects first if necessary.

        :raises NotFound: if ``base_path`` does not exist
        :raises InvalidPath: if ``base_path`` is a file
        """
        self._run_read(self._resolver.jail.root, lambda _: file_info.check_folder(self._resolver.jail.root))

    def list_files(self, path: str, recursive: bool = False, max_depth: int | None = None) -> Iterator[FileInfo]:
        """List the files in a directory.

        Yields nothing if the directory does not exist.

        A link to a file is listed as the file. Links to directories are not entered.

        :param path: the key of the directory
        :param recursive: list the subdirectories too, level by level
        :param max_depth: levels of subdirectories to list; 0 for none, None for all. Ignored without ``recursive``.
        :returns: an iterator over the files
        :raises ValueError: if ``max_depth`` is negative
        """
        if recursive and max_depth is not None and max_depth < 0:
            raise ValueError(f"max_depth must be a number from 0, not {max_depth}")
        remote = self._resolver.resolve(path)
        return self._resolver.annotate_each(tree.walk_files(self._session.call, remote, max_depth if recursive else 0))

    def list_folders(self, path: str) -> Iterator[FolderEntry]:
        """List the directories in a directory, and links to directories.

        Yields nothing if it does not exist.

        :param path: the key of the directory
        :returns: an iterator over the directories
        """
        entries = tree.list_children(self._session.call, self._resolver.resolve(path))
        return self._resolver.annotate_each(entry.to_folder_entry() for entry in entries if entry.is_folder)

    def iter_children(
        self, path: str, recursive: bool = False, max_depth: int | None = None
    ) -> Iterator[FileInfo | FolderEntry]:
        """List the files and directories in a directory.

        Yields nothing if the directory does not exist.

        A link is listed as its target. Links to directories are not entered.

        :param path: the key of the directory
        :param recursive: list the subdirectories too, level by level
        :param max_depth: levels of subdirectories to list; 0 for none, None for all. Ignored without ``recursive``.
        :returns: an iterator over the entries
        :raises ValueError: if ``max_depth`` is negative
        """
        if recursive and max_depth is not None and max_depth < 0:
            raise ValueError(f"max_depth must be a number from 0, not {max_depth}")
        remote = self._resolver.resolve(path)
        call = self._session.call
        entries = tree.walk(call, remote, max_depth) if recursive else tree.list_children(call, remote)
        return self._resolver.annotate_each(
            entry.to_folder_entry() if entry.is_folder else entry.to_file_info()
            for entry in entries
            if entry.is_folder or entry.is_file
        )

    def find(self, *patterns: str | FileInfo) -> list[FileInfo]:
        """Find the files that match any of the patterns.

        :param patterns: globs: ``*``, ``?`` and ``[...]`` within a segment, ``**`` across directories; ``glob.escape``
            turns a name into a pattern. A `FileInfo` matches the file of exactly that path.
        :returns: the files, sorted by path. Each directory is listed once, and only if a match can be in it.
        :raises InvalidPath: for ``..`` in a pattern
        """
        with self._resolver.annotate_errors():
            jail = self._resolver.jail
            parsed = [glob.Pattern.of(pattern, jail.name_encoding) for pattern in patterns]
            return glob.find(self._session.call, jail.root, parsed)

    @overload
    def find_each(
        self, groups: Sequence[Sequence[str | FileInfo]], *, return_exceptions: Literal[False] = False
    ) -> list[list[FileInfo]]: ...

    @overload
    def find_each(
        self, groups: Sequence[Sequence[str | FileInfo]], *, return_exceptions: bool
    ) -> list[list[FileInfo] | SFTPBackendError | OSError]: ...

    def find_each(
        self, groups: Sequence[Sequence[str | FileInfo]], *, return_exceptions: bool = False
    ) -> list[list[FileInfo]] | list[list[FileInfo] | SFTPBackendError | OSError]:
        """Find the files of several groups of patterns, in one search.

        :param groups: the arguments of one `find` each
        :param return_exceptions: put failures into the result instead of raising them
        :returns: for each group, in order, the result of `find`. A refused directory fails the groups that need it.
        :raises ExceptionGroup: of all failures
        """
        with self._resolver.annotate_errors():
            jail = self._resolver.jail
            outcomes = glob.find_each(self._session.call, jail.root, groups, jail.name_encoding)
        return raise_or_return(
            [self._resolver.with_server(outcome) for outcome in outcomes], "searches", return_exceptions
        )

    def glob(self, pattern: str) -> Iterator[FileInfo]:
        """Find the files that match a pattern.

        :param pattern: the glob, as for `find`
        :returns: an iterator over the files, sorted by path
        """
        return iter(self.find(pattern))

    def _stat_or_none(self, remote: RemotePath) -> Attributes | None:
        return self._run_read(remote, lambda _: file_info.stat_or_none(remote))

    def _run_read(self, remote: RemotePath, operation: Callable[[SFTPScheduler], Operation[T]]) -> T:
        return self._session.call(
            lambda scheduler: scheduler.run(with_path_in_errors(remote, operation(scheduler))), idempotent=True
        )
