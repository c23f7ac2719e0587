"""Query a file system: attributes, listings and searches."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias, cast

from airflow_sftp_backend.backend import FileInfo, FolderEntry, NotFound

from .base import BackendFileSystem, raise_first
from .os_errors import as_os_error, os_errors

Details: TypeAlias = dict[str, Any]
"""Attributes of a file or directory as fsspec describes them."""


class FileQueries(BackendFileSystem):
    """Calls that change nothing on the server."""

    def info(self, path: str, **kwargs: object) -> Details:
        """Return the attributes of a file or directory.

        Follows links. One round trip.

        :param path: the path
        :param kwargs: not used
        :returns: ``name``, ``size``, ``type`` (``file`` or ``directory``), and, if the server reports them, ``mtime``
            (seconds since 1970) and ``mode``
        :raises FileNotFoundError: if the path does not exist
        """
        with os_errors():
            return _details(self.backend.get_entry(self._strip_protocol(path)))

    def exists(self, path: str, **kwargs: object) -> bool:
        """Tell whether a file or directory exists. One round trip.

        :param path: the path
        :param kwargs: not used
        :returns: True if the path exists
        :raises OSError: if the server does not answer
        """
        with os_errors():
            return self.backend.exists(self._strip_protocol(path))

    def isfile(self, path: str) -> bool:
        """Tell whether a path is a file or a link to one.

        One round trip.

        :param path: the path
        :returns: True for a file
        :raises OSError: if the server does not answer
        """
        with os_errors():
            return self.backend.is_file(self._strip_protocol(path))

    def isdir(self, path: str) -> bool:
        """Tell whether a path is a directory or a link to one.

        One round trip.

        :param path: the path
        :returns: True for a directory
        :raises OSError: if the server does not answer
        """
        with os_errors():
            return self.backend.is_folder(self._strip_protocol(path))

    def sizes(self, paths: Sequence[str]) -> list[int | None]:
        """Return the sizes of several files in bytes, in one round trip.

        :param paths: the paths
        :returns: the sizes
        :raises OSError: if a path is not an existing file
        """
        outcomes = self.backend.get_file_info_many(
            [self._strip_protocol(path) for path in paths], return_exceptions=True
        )
        raise_first(outcomes)
        return [outcome.size for outcome in outcomes if isinstance(outcome, FileInfo)]

    def modified(self, path: str) -> datetime:
        """Return the modification time of a file or directory, in UTC.

        :param path: the path
        :returns: the time
        :raises NotImplementedError: if the server reports no times
        """
        with os_errors():
            modified_at = self.backend.get_entry(self._strip_protocol(path)).modified_at
        if modified_at is None:
            raise NotImplementedError("the server reports no modification times")
        return modified_at

    def created(self, path: str) -> datetime:
        """Raise NotImplementedError: SFTP reports no creation times.

        :param path: the path
        :raises NotImplementedError: always
        """
        raise NotImplementedError("SFTP servers report no creation times; modified() returns the modification time")

    def ls(self, path: str, detail: bool = True, **kwargs: object) -> list[Any]:
        """List a directory, sorted by name; a file is listed as itself.

        :param path: the path
        :param detail: return the attributes of each entry, as of `info`, in place of its path
        :param kwargs: not used
        :returns: the entries
        :raises FileNotFoundError: if the path does not exist
        """
        path = self._strip_protocol(path)
        with os_errors():
            entries = [*self.backend.iter_children(path)]
            if not entries and isinstance(entry := self.backend.get_entry(path), FileInfo):
                entries = [entry]
        rows = sorted(map(_details, entries), key=_name)
        return rows if detail else [*map(_name, rows)]

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: object
    ) -> Any:
        """List all files below a path.

        The directories of each level are listed side by side. Links to directories are not entered.

        :param path: the path; a file is listed as itself
        :param maxdepth: number of levels; None for all
        :param withdirs: list the directories too, and the path itself
        :param detail: return a dict of attributes by path
        :param kwargs: not used
        :returns: the sorted paths; nothing if the path does not exist
        :raises OSError: if a directory cannot be listed
        """
        path = self._strip_protocol(path)
        if maxdepth is not None and maxdepth < 1:
            raise ValueError(f"maxdepth must be a number from 1, not {maxdepth}")
        with os_errors():
            max_depth = None if maxdepth is None else maxdepth - 1
            entries: list[FileInfo | FolderEntry] = [
                entry
                for entry in self.backend.iter_children(path, recursive=True, max_depth=max_depth)
                if withdirs or isinstance(entry, FileInfo)
            ]
            if withdirs or not entries:
                try:
                    root = self.backend.get_entry(path)
                except NotFound:
                    entries = []
                else:
                    entries += [root] if withdirs or isinstance(root, FileInfo) else []
        rows = {row["name"]: row for row in sorted(map(_details, entries), key=_name)}
        return rows if detail else [*rows]

    def walk(
        self, path: str, maxdepth: int | None = None, topdown: bool = True, on_error: Any = "omit", **kwargs: Any
    ) -> Iterator[tuple[str, Any, Any]]:
        """Yield each directory with its directories and files.

        All come from one search. Links to directories are not entered.

        :param path: the path
        :param maxdepth: number of levels; None for all
        :param topdown: yield a directory before its subdirectories; names removed from its list are then not entered
        :param on_error: ``omit`` to yield nothing for a missing path, ``raise``, or a function that gets the error. Any
            other error is raised: a listing is complete or fails.
        :param kwargs: ``detail=True`` to yield dicts of attributes by name in place of names
        :returns: tuples of path, directories and files
        """
        path = self._strip_protocol(path)
        rows = self.find(path, maxdepth, withdirs=True, detail=True)
        if path not in rows:
            error = as_os_error(NotFound("no such directory", path=path, server=self.backend.address))
            if on_error == "raise":
                raise error
            if callable(on_error):
                on_error(error)
            return
        children: dict[str, tuple[Details, Details]] = {path: ({}, {})}
        for name, row in rows.items():
            directories, files = children.setdefault(path if name == path else self._parent(name), ({}, {}))
            if row["type"] == "file":
                files["" if name == path else name.rpartition("/")[2]] = row
            elif name != path:
                directories[name.rpartition("/")[2]] = row
        yield from _walk(children, path, topdown=topdown, detail=bool(kwargs.get("detail")))

    def du(
        self, path: str, total: bool = True, maxdepth: int | None = None, withdirs: bool = False, **kwargs: object
    ) -> Any:
        """Return the bytes of all files below a path, from one search.

        :param path: the path
        :param total: return the sum in place of a dict of sizes by path
        :param maxdepth: number of levels; None for all
        :param withdirs: list the directories too
        :param kwargs: not used
        :returns: the bytes
        """
        rows = self.find(path, maxdepth, withdirs=withdirs, detail=True)
        return sum(row["size"] for row in rows.values()) if total else {name: row["size"] for name, row in rows.items()}


def _details(entry: FileInfo | FolderEntry) -> Details:
    """Describe a file or directory in the terms of fsspec."""
    is_file = isinstance(entry, FileInfo)
    details: Details = {
        "name": f"/{entry.path}",
        "size": entry.size if isinstance(entry, FileInfo) else 0,
        "type": "file" if is_file else "directory",
    }
    if entry.modified_at is not None:
        details["mtime"] = entry.modified_at.timestamp()
    if entry.mode is not None:
        details["mode"] = entry.mode | (stat.S_IFREG if is_file else stat.S_IFDIR)
    return details


def _name(details: Details) -> str:
    return cast(str, details["name"])


def _walk(
    children: Mapping[str, tuple[Details, Details]], path: str, *, topdown: bool, detail: bool
) -> Iterator[tuple[str, Any, Any]]:
    """Yield a directory and its subdirectories, as `SFTPBackendFileSystem.walk` does."""
    directories, files = children.get(path, ({}, {}))
    row = (path, directories, files) if detail else (path, [*directories], [*files])
    if topdown:
        yield row
    for name in [*(row[1] if topdown else directories)]:
        yield from _walk(children, f"{path.rstrip('/')}/{name}", topdown=topdown, detail=detail)
    if not topdown:
        yield row
