"""Servers with faults of open files: each a small subclass of `AsyncsshServer`."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import asyncssh

from tests.support.servers.asyncssh_server import AsyncsshServer, Files, Packets
from tests.support.servers.faulty_servers import FAILURE, Status


class _TruncatingFiles(Files):
    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> Any:
        server = self.server
        assert isinstance(server, TruncatesAtOpen)
        there = self.map_path(path)
        if server.one_way and pflags & asyncssh.FXF_READ and pflags & asyncssh.FXF_WRITE:
            raise asyncssh.SFTPOpUnsupported("a file is opened for reading or for writing")
        if pflags & asyncssh.FXF_WRITE and not pflags & asyncssh.FXF_EXCL and os.path.isfile(there):
            server.truncated += 1
            if server.hides:
                server.hidden[there] = Path(os.fsdecode(there)).read_bytes()
            pflags |= asyncssh.FXF_TRUNC
        elif there in server.hidden:
            return _file_of(server.hidden[there])
        return super().open(path, pflags, attrs)

    def fstat(self, file_obj: Any) -> Any:
        found = super().fstat(file_obj)
        assert isinstance(self.server, TruncatesAtOpen)
        assert isinstance(found, os.stat_result)
        if not self.server.tells_old_size:
            return found
        return asyncssh.SFTPAttrs(size=max(found.st_size, self.server.largest[file_obj.name]), permissions=0o100644)

    def write(self, file_obj: Any, offset: int, data: bytes) -> Any:
        assert isinstance(self.server, TruncatesAtOpen)
        largest = self.server.largest
        largest[file_obj.name] = max(largest[file_obj.name], offset + len(data))
        return super().write(file_obj, offset, data)

    def close(self, file_obj: Any) -> None:
        assert isinstance(self.server, TruncatesAtOpen)
        if file_obj.mode.startswith("w"):
            self.server.hidden.pop(file_obj.name, None)
        super().close(file_obj)


class TruncatesAtOpen(AsyncsshServer):
    """Empty each file that is opened for writing.

    ``tells_old_size``: FSTAT gives the largest size that the file has ever had. ``one_way``: no file is opened for
    reading and writing at once. ``hides``: until the writer closes the file, readers are given its old content.
    """

    files = _TruncatingFiles

    def __init__(self, *, tells_old_size: bool = False, one_way: bool = False, hides: bool = False) -> None:
        super().__init__()
        self.tells_old_size = tells_old_size
        self.one_way = one_way
        self.hides = hides
        self.truncated = 0
        """Times a file was opened once more and so emptied."""
        self.largest: Counter[str | bytes] = Counter()
        self.hidden: dict[str | bytes, bytes] = {}


def _file_of(content: bytes) -> Any:
    file = tempfile.TemporaryFile("r+b")  # noqa: SIM115 - closed with its handle
    file.write(content)
    return file


class _ForgettingFiles(Files):
    def write(self, file_obj: Any, offset: int, data: bytes) -> Any:
        assert isinstance(self.server, ForgetsTheTail)
        self.server.written[file_obj.name] = offset + len(data)
        return super().write(file_obj, offset, data)

    def exit(self) -> None:
        server = self.server
        assert isinstance(server, ForgetsTheTail)
        for name, size in server.written.items():
            if os.path.exists(name):
                os.truncate(name, max(0, size - server.tail))
                os.truncate(name, size)
        server.written.clear()


class ForgetsTheTail(AsyncsshServer):
    """Lose acknowledged bytes when the connection ends.

    Acknowledges writes and forgets the last ``tail`` bytes of a file when the connection ends: the file has its
    size, and a hole at its end.
    """

    files = _ForgettingFiles

    def __init__(self, *, tail: int) -> None:
        super().__init__()
        self.tail = tail
        self.written: dict[str | bytes, int] = {}


class _OneHandle(Packets):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._replaced: list[Any] = []

    def _get_next_handle(self) -> bytes:
        handle = b"the handle"
        assert isinstance(self.server, SharesHandles)
        file, folder = self._file_handles.pop(handle, None), self._dir_handles.pop(handle, None)
        if file is not None:
            self._replaced.append(file)
        self.server.collisions += file is not None or folder is not None
        return handle

    async def _cleanup(self, exc: Exception | None) -> None:
        for file in self._replaced:
            file.close()
        await super()._cleanup(exc)


class SharesHandles(AsyncsshServer):
    """Return the same handle for all open files.

    Gives every open file and folder the same handle, which means the one opened last. ``collisions`` counts the
    files that were open when their handle was given to another.
    """

    packets = _OneHandle
    collisions = 0


class _CountedFiles(Files):
    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> Any:
        server = self.server
        assert isinstance(server, LimitsOpenFiles)
        if os.fsdecode(path).endswith(server.forbidden):
            raise Status(server.code, "this one is forbidden")
        if server.open >= server.limit:
            server.refused += 1
            raise Status(server.code, "too many open files")
        file = super().open(path, pflags, attrs)
        server.open += 1
        server.most = max(server.most, server.open)
        return file

    def close(self, file_obj: Any) -> None:
        assert isinstance(self.server, LimitsOpenFiles)
        self.server.open -= 1
        super().close(file_obj)


class LimitsOpenFiles(AsyncsshServer):
    """Limit the number of open files.

    Has ``limit`` files open at once and refuses to open another, with ``code``; a path that ends with ``forbidden``
    always. ``refused`` counts the files that were one too many, ``most`` those that were open at once.
    """

    files = _CountedFiles

    def __init__(self, *, limit: int, code: int = FAILURE, forbidden: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.limit = limit
        self.code = code
        self.forbidden = forbidden
        self.open = self.refused = self.most = 0


class _DroppingFiles(Files):
    def posix_rename(self, oldpath: bytes, newpath: bytes) -> Any:
        server = self.server
        assert isinstance(server, DropsAtRename)
        drops = server.drops > 0
        server.drops -= 1
        if drops and not server.after:
            server.cut(self.connection)
            raise Status(FAILURE, "nobody hears this")
        renamed = super().posix_rename(oldpath, newpath)
        if drops:
            server.cut(self.connection)
        return renamed

    def rename(self, oldpath: bytes, newpath: bytes) -> Any:
        server = self.server
        assert isinstance(server, DropsAtRename)
        if os.path.lexists(self.map_path(newpath)):
            return super().rename(oldpath, newpath)
        return self.posix_rename(oldpath, newpath)


class DropsAtRename(AsyncsshServer):
    """Cut the connection at the first ``drops`` renames.

    Cuts the connection in place of the reply to the first renames, ``drops`` of them: before they are carried out,
    or ``after``.
    """

    files = _DroppingFiles

    def __init__(self, *, after: bool, drops: int = 1) -> None:
        super().__init__()
        self.after = after
        self.drops = drops
