"""Queries: existence, attributes, listings and searches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from airflow_sftp_backend.backend._files import operations, tree
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler
from airflow_sftp_backend.backend._ssh.session import Session
from airflow_sftp_backend.backend._writes.backups import restoring
from airflow_sftp_backend.backend.errors import SFTPBackendError
from airflow_sftp_backend.backend.models import FileInfo, FolderEntry, FolderInfo

from .executor import gathered, put_back, sorted_out
from .path_resolver import Door, naming

T = TypeVar("T")


class Queries:
    """Methods of `SFTPBackend` that change nothing on the server."""

    _door: Door
    _session: Session

    def exists(self, path: str) -> bool:
        """Tell whether a file or directory exists. Follows links. One round trip, none for the root.

        :param path: the key
        :returns: True if the key exists
        """
        place = self._door.at(path)
        return place.is_root or self._look(place) is not None

    def is_file(self, path: str) -> bool:
        """Tell whether a key is a file or a link to a file. One round trip.

        :param path: the key
        :returns: True for a file
        """
        place = self._door.at(path)
        found = None if place.is_root else self._look(place)
        return found is not None and found.is_file

    def is_folder(self, path: str) -> bool:
        """Tell whether a key is a directory or a link to a directory. One round trip, none for the root.

        :param path: the key
        :returns: True for a directory
        """
        place = self._door.at(path)
        if place.is_root:
            return True
        found = self._look(place)
        return found is not None and found.is_folder

    def get_file_info(self, path: str) -> FileInfo:
        """Return size, time and mode of a file. One round trip.

        :param path: the key of the file
        :returns: the attributes
        :raises NotFound: if the file does not exist
        :raises InvalidPath: if the key is a directory
        """
        place = self._door.at(path)
        return self._ask(place, lambda scheduler: restoring(scheduler, place, lambda: operations.info(place)))

    def get_file_info_many(
        self, paths: Iterable[str], *, return_exceptions: bool = False
    ) -> list[FileInfo | SFTPBackendError | OSError]:
        """Return the attributes of several files, in one round trip.

        :param paths: the keys of the files
        :param return_exceptions: put failures into the result instead of raising them
        :returns: for each key, in order, the result of `get_file_info`
        :raises ExceptionGroup: of all failures
        """
        places, refused = sorted_out(paths, self._door.at)
        outcomes = tree.file_infos(self._session.call, places) if places else []
        located = [self._door.located(outcome) for outcome in put_back(outcomes, refused)]
        return gathered(located, "looks", return_exceptions)

    def get_folder_info(self, path: str) -> FolderInfo:
        """Return the totals of a directory at any depth. One round trip for each level.

        :param path: the key of the directory
        :returns: number of files, bytes and latest time
        :raises NotFound: if the directory does not exist
        :raises InvalidPath: if the key is a file
        """
        place = self._door.at(path)
        with self._door.named():
            return tree.folder_info(self._session.call, place)

    def check_health(self) -> None:
        """Examine ``base_path``, in one round trip. Connects first if necessary.

        :raises NotFound: if ``base_path`` does not exist
        :raises InvalidPath: if ``base_path`` is a file
        """
        self._ask(self._door.jail.root, lambda _: operations.check_folder(self._door.jail.root))

    def list_files(self, path: str, recursive: bool = False, max_depth: int | None = None) -> Iterator[FileInfo]:
        """List the files in a directory. Yields nothing if the directory does not exist.

        A link to a file is listed as the file. Links to directories are not entered.

        :param path: the key of the directory
        :param recursive: list the subdirectories too, level by level
        :param max_depth: levels of subdirectories to list; 0 for none, None for all. Ignored without ``recursive``.
        :returns: an iterator over the files
        :raises ValueError: if ``max_depth`` is negative
        """
        if recursive and max_depth is not None and max_depth < 0:
            raise ValueError(f"max_depth must be a number from 0, not {max_depth}")
        walk = tree.walk(self._session.call, self._door.at(path), max_depth if recursive else 0)
        return self._door.each(found.info() for found in walk if found.is_file)

    def list_folders(self, path: str) -> Iterator[FolderEntry]:
        """List the directories in a directory, and links to directories. Yields nothing if it does not exist.

        :param path: the key of the directory
        :returns: an iterator over the directories
        """
        found_here = tree.children(self._session.call, self._door.at(path))
        return self._door.each(
            FolderEntry(found.place.key, found.place.name) for found in found_here if found.is_folder
        )

    def iter_children(self, path: str) -> Iterator[FileInfo | FolderEntry]:
        """List the files and directories in a directory. Yields nothing if the directory does not exist.

        :param path: the key of the directory
        :returns: an iterator over the entries
        """
        found_here = tree.children(self._session.call, self._door.at(path))
        return self._door.each(
            FolderEntry(found.place.key, found.place.name) if found.is_folder else found.info()
            for found in found_here
            if found.is_folder or found.is_file
        )

    def find(self, *patterns: str | FileInfo) -> list[FileInfo]:
        """Find the files that match any of the patterns.

        :param patterns: globs: ``*``, ``?`` and ``[...]`` within a segment, ``**`` across directories; ``glob.escape``
            turns a name into a pattern. A `FileInfo` matches the file of exactly that path.
        :returns: the files, sorted by path. Each directory is listed once, and only if a match can be in it.
        :raises InvalidPath: for ``..`` in a pattern
        """
        with self._door.named():
            return tree.find(self._session.call, self._door.jail.root, map(tree.Pattern.of, patterns))

    def find_each(
        self, groups: Sequence[Sequence[str | FileInfo]], *, return_exceptions: bool = False
    ) -> list[list[FileInfo] | SFTPBackendError | OSError]:
        """Find the files of several groups of patterns, in one search.

        :param groups: the arguments of one `find` each
        :param return_exceptions: put failures into the result instead of raising them
        :returns: for each group, in order, the result of `find`. A refused directory fails the groups that need it.
        :raises ExceptionGroup: of all failures
        """
        with self._door.named():
            outcomes = tree.find_each(self._session.call, self._door.jail.root, groups)
        return gathered([self._door.located(outcome) for outcome in outcomes], "searches", return_exceptions)

    def glob(self, pattern: str) -> Iterator[FileInfo]:
        """Find the files that match a pattern.

        :param pattern: the glob, as for `find`
        :returns: an iterator over the files, sorted by path
        """
        return iter(self.find(pattern))

    def _look(self, place: RemotePath) -> Attributes | None:
        return self._ask(place, lambda _: operations.look(place))

    def _ask(self, place: RemotePath, operation: Callable[[SFTPScheduler], Operation[T]]) -> T:
        return self._session.call(lambda scheduler: scheduler.run(naming(place, operation(scheduler))), idempotent=True)
