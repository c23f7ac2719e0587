"""Servers that treat times, names or users differently."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import asyncssh
from asyncssh.public_key import SSHKey

from airflow_sftp_backend.backend._paths import RemotePath
from tests.support.servers.asyncssh_server import AsyncsshServer, Files, Login, WithoutPosixRename


class _OtherClock(Files):
    def setstat(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        raise asyncssh.SFTPOpUnsupported("setstat is not supported")

    def fsetstat(self, file_obj: object, attrs: asyncssh.SFTPAttrs) -> None:
        raise asyncssh.SFTPOpUnsupported("fsetstat is not supported")

    def stat(self, path: bytes) -> Any:
        return self._shifted(os.stat(self.map_path(path)))

    def lstat(self, path: bytes) -> Any:
        return self._shifted(os.lstat(self.map_path(path)))

    def fstat(self, file_obj: Any) -> Any:
        return self._shifted(os.fstat(file_obj.fileno()))

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        async for name in super().scandir(path):
            assert isinstance(name.filename, bytes)
            yield asyncssh.SFTPName(name.filename, b"", self.lstat(os.path.join(path, name.filename)))

    def _shifted(self, status: os.stat_result) -> asyncssh.SFTPAttrs:
        assert isinstance(self.server, OtherClock)
        attributes = asyncssh.SFTPAttrs.from_local(status)
        assert attributes.mtime is not None
        attributes.mtime = int(attributes.mtime + self.server.lead)
        return attributes


class OtherClock(AsyncsshServer):
    """Report times ``lead`` seconds ahead, and refuse to set times."""

    files = _OtherClock

    def __init__(self, *, lead: float) -> None:
        super().__init__()
        self.lead = lead


class _CaselessFiles(Files):
    def map_path(self, path: bytes) -> bytes:
        found = b"/"
        for segment in super().map_path(path).split(b"/"):
            there = os.path.join(found, segment)
            if not os.path.lexists(there) and os.path.isdir(found):
                names = (name for name in os.listdir(found) if name.lower() == segment.lower())
                there = os.path.join(found, next(names, segment))
            found = there
        return found


class IgnoresCase(AsyncsshServer):
    """Ignore case, as a server on Windows or macOS."""

    files = _CaselessFiles


class _SpelledFiles(_CaselessFiles):
    def realpath(self, path: bytes) -> bytes:
        return os.path.normpath(os.path.join(b"/", super(_CaselessFiles, self).map_path(path)))


class KeepsSpellings(IgnoresCase):
    """Ignore case, but return the client's spelling in REALPATH."""

    files = _SpelledFiles


class _WindowsFiles(_CaselessFiles):
    def map_path(self, path: bytes) -> bytes:
        segments = path.replace(b"\\", b"/").split(b"/")
        return super().map_path(b"/".join(segment.rstrip(b". ") or segment for segment in segments))


class LikeWindows(IgnoresCase):
    """Treat names as Windows does.

    Case is ignored, dots and blanks at the end are dropped, and a backslash is a slash.
    """

    files = _WindowsFiles


class _ReplacingFiles(Files):
    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        assert isinstance(self.server, ReplacesDuringListing)
        folder, names = self.map_path(path), (os.fsencode(self.server.name), os.fsencode(self.server.backup))
        file, backup = (os.path.join(folder, name) for name in names)
        with suppress(FileNotFoundError):
            os.rename(file, backup)
        async for name in super().scandir(path):
            yield name
        with suppress(FileNotFoundError):
            os.rename(backup, file)


class ReplacesDuringListing(WithoutPosixRename):
    """List the backup in place of the file, as between two renames."""

    files = _ReplacingFiles

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.backup = RemotePath("x", "x").entry(name).backup.name


class _SeparateLogin(Login):
    def validate_public_key(self, username: str, key: SSHKey) -> bool:
        return super().validate_public_key(self.server.username, key)


class _SeparateFiles(Files):
    def map_path(self, path: bytes) -> bytes:
        user = self.channel.get_extra_info("username")
        return os.path.join(os.fsencode(self.server.root), user.encode(), path.lstrip(b"/"))

    def realpath(self, path: bytes) -> bytes:
        return os.path.normpath(b"/" + path.lstrip(b"/"))


class SeparatesUsers(AsyncsshServer):
    """Accept any user, each with a directory of its own."""

    files = _SeparateFiles
    login = _SeparateLogin
