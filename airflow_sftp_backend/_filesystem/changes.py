"""Changes on the server: copies, moves, deletions and directories."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from fsspec.utils import other_paths, stringify_path

from airflow_sftp_backend.backend import DirectoryNotEmpty, InvalidPath, NotFound, SFTPBackendError

from .base import BackendFileSystem, raise_first
from .os_errors import os_errors, with_message


class FileChanges(BackendFileSystem):
    """Calls that copy, move and delete files, and create and delete directories."""

    def cp_file(self, path1: str, path2: str, **kwargs: object) -> None:
        """Copy a file atomically.

        The server copies it if it can. For a directory, the target is created.

        :param path1: the path
        :param path2: path of the copy, which is replaced
        :param kwargs: not used
        :raises OSError: if the file cannot be copied
        """
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        with os_errors():
            try:
                self.backend.copy(source, target, overwrite=True)
            except InvalidPath as error:
                if error.entry_type != "directory" or not self.backend.is_folder(source):
                    raise
                self.backend.make_folder(target)

    def mv(
        self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: object
    ) -> None:
        """Move files by renaming them.

        This is atomic where the server's rename is.

        :param path1: a path, a pattern, or a list of paths
        :param path2: the new path, the directory to move to, or a list of paths
        :param recursive: move directories with their files. If a directory gets new files meanwhile, the directory
            remains and the call raises OSError.
        :param maxdepth: number of levels of ``recursive``
        :param kwargs: not used
        :raises OSError: if a file cannot be moved
        """
        pairs = self._pairs(path1, path2, recursive=recursive, maxdepth=maxdepth)
        outcomes = self.backend.move_many(pairs, overwrite=True, return_exceptions=True)
        directories = [
            pair
            for pair, outcome in zip(pairs, outcomes, strict=True)
            if isinstance(outcome, InvalidPath) and outcome.entry_type == "directory" and self.isdir(pair[0])
        ]
        raise_first(
            outcome for pair, outcome in zip(pairs, outcomes, strict=True) if pair not in directories or not recursive
        )
        for _, target in directories:
            self.makedirs(target, exist_ok=True)
        with os_errors():
            for source, _ in sorted(directories, reverse=True):
                self.backend.delete_folder(source, missing_ok=True)

    def _pairs(self, sources: Any, target: Any, *, recursive: bool, maxdepth: int | None) -> list[tuple[str, str]]:
        """Return the new path of each path, by the rules of `fsspec.spec.AbstractFileSystem.copy`."""
        if isinstance(sources, list) and isinstance(target, list):
            return [*zip(self._strip_protocol(sources), self._strip_protocol(target), strict=True)]
        is_text = not isinstance(sources, list)
        is_pattern = is_text and re.search(r"[*?[]", stringify_path(sources)) is not None and not self.exists(sources)
        if is_text and not is_pattern and not recursive:
            paths = [self._strip_protocol(sources)]
        else:
            paths = self.expand_path(sources, recursive=recursive, maxdepth=maxdepth)
        goes_into = isinstance(target, str) and (target.endswith("/") or self.isdir(target))
        exists = is_text and (
            (is_pattern and len(paths) == 1)
            or (not is_pattern and goes_into and not stringify_path(sources).endswith("/"))
        )
        targets = other_paths(paths, self._strip_protocol(target), exists=exists, flatten=not is_text)
        return [*zip(paths, self._strip_protocol(targets), strict=True)]

    def rm_file(self, path: str) -> None:
        """Remove a file, or a link itself.

        One round trip on OpenSSH, more on other servers.

        :param path: the path, taken literally
        :raises FileNotFoundError: if the file does not exist
        :raises IsADirectoryError: for a directory
        """
        with os_errors():
            self.backend.delete(self._strip_protocol(path))

    def _rm(self, path: str) -> None:
        self.rm_file(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files, and directories with ``recursive``.

        Links are removed, never followed. All paths are tried.

        :param path: a path, a pattern, or a list of these
        :param recursive: remove directories with everything in them
        :param maxdepth: number of levels of files to remove; directories then remain
        :raises FileNotFoundError: if a path does not exist
        :raises IsADirectoryError: for a directory without ``recursive``
        """
        if recursive and maxdepth is not None:
            paths = [name for directory in self.expand_path(path) for name in self.find(directory, maxdepth)]
        elif isinstance(path, str) and re.search(r"[*?[]", path) and self.exists(path):
            paths = [self._strip_protocol(path)]  # UPath.unlink passes a name
        else:
            paths = self.expand_path(path)
        outcomes = self.backend.delete_many(paths, return_exceptions=True)
        failures: list[SFTPBackendError | OSError] = []
        # The deepest directories come first.
        for name, outcome in sorted(zip(paths, outcomes, strict=True), key=lambda pair: pair[0], reverse=True):
            is_directory = isinstance(outcome, InvalidPath) and outcome.entry_type == "directory"
            if recursive and is_directory:
                try:
                    self.backend.delete_folder(name, recursive=True, missing_ok=True)
                except SFTPBackendError as error:
                    failures.append(error)
            elif isinstance(outcome, InvalidPath) and is_directory:
                failures.append(with_message(outcome, "cannot delete: the path is a directory. Pass recursive=True"))
            elif outcome is not None:
                failures.append(outcome)
        raise_first(reversed(failures))

    def rmdir(self, path: str) -> None:
        """Remove an empty directory.

        :param path: the path
        :raises OSError: if the directory is not empty or does not exist
        """
        with os_errors():
            try:
                self.backend.delete_folder(self._strip_protocol(path))
            except DirectoryNotEmpty as error:
                message = "cannot delete: the directory is not empty. Use rm with recursive=True"
                raise with_message(error, message) from None

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: object) -> None:
        """Create a directory.

        :param path: the path
        :param create_parents: create missing parents
        :param kwargs: not used
        :raises FileExistsError: if the path exists
        :raises FileNotFoundError: if a parent does not exist and ``create_parents`` is False
        :raises NotADirectoryError: if a parent is a file
        """
        path = self._strip_protocol(path)
        with os_errors():
            if not create_parents and not self.backend.exists(parent := self._parent(path)):
                raise NotFound("cannot create the directory: its parent does not exist", path=parent)
            self.backend.make_folder(path, exist_ok=False)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Create a directory and its missing parents.

        :param path: the path
        :param exist_ok: accept an existing directory
        :raises FileExistsError: if the path exists and ``exist_ok`` is False, or if it is a file
        """
        path = self._strip_protocol(path)
        if path == self.root_marker and exist_ok:
            return  # the first write creates a missing base path
        with os_errors():
            self.backend.make_folder(path, exist_ok=exist_ok)

    def touch(self, path: str, truncate: bool = True, **kwargs: object) -> None:
        """Create an empty file.

        Without ``truncate``, the time of an existing file is set to that of this machine.

        :param path: the path
        :param truncate: empty an existing file
        :param kwargs: not used
        """
        path = self._strip_protocol(path)
        if truncate or not self.exists(path):
            self.pipe_file(path, b"", mode="overwrite" if truncate else "create")
        else:
            with os_errors():
                self.backend.set_times(path, datetime.now().astimezone())
