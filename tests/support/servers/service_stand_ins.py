"""Simulate hosted services: asyncssh's server with their documented refusals."""

from __future__ import annotations

import os
import stat
from typing import Any

import asyncssh

from tests.support.servers.asyncssh_server import AsyncsshServer, Files


class _AzureFiles(Files):
    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> Any:
        if pflags & asyncssh.FXF_READ and pflags & asyncssh.FXF_WRITE:
            raise asyncssh.SFTPOpUnsupported("reading and writing at once is not supported")
        return super().open(path, pflags, attrs)

    def posix_rename(self, oldpath: bytes, newpath: bytes) -> Any:
        return self.rename(oldpath, newpath)

    def symlink(self, oldpath: bytes, newpath: bytes) -> Any:
        raise asyncssh.SFTPOpUnsupported("symbolic links are not supported")

    def readlink(self, path: bytes) -> Any:
        raise asyncssh.SFTPOpUnsupported("symbolic links are not supported")


class AzureBlobLike(AsyncsshServer):
    """Simulate the SFTP of Azure Blob Storage.

    Azure Blob Storage's SFTP as documented: posix-rename refuses an existing target; no other extension, no
    links, no opening for reading and writing at once.
    """

    kind = "azure-like"
    files = _AzureFiles
    offered = frozenset({b"posix-rename@openssh.com"})

    def __init__(self) -> None:
        super().__init__(server_version="AzureSSH_1.0.0")


class _AWSFiles(Files):
    def __init__(self, server: AsyncsshServer, channel: asyncssh.SSHServerChannel[bytes]) -> None:
        super().__init__(server, channel)
        self._ends: dict[object, int] = {}

    def setstat(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        raise asyncssh.SFTPOpUnsupported("setstat is not supported")

    def fsetstat(self, file_obj: object, attrs: asyncssh.SFTPAttrs) -> None:
        raise asyncssh.SFTPOpUnsupported("fsetstat is not supported")

    def write(self, file_obj: Any, offset: int, data: bytes) -> Any:
        end = self._ends.get(file_obj, 0)
        if offset != end:
            raise asyncssh.SFTPFailure(f"writes must be in order: {end} is next, not {offset}")
        self._ends[file_obj] = end + len(data)
        return super().write(file_obj, offset, data)

    def close(self, file_obj: Any) -> Any:
        self._ends.pop(file_obj, None)
        return super().close(file_obj)


class AWSTransferLike(AsyncsshServer):
    """Simulate AWS Transfer Family in front of S3.

    AWS Transfer Family before S3 as documented: modes and times refused, and each file is written from its start in
    order, so that an interrupted one cannot be continued. No extensions.
    """

    kind = "aws-like"
    files = _AWSFiles
    offered = frozenset()

    def __init__(self) -> None:
        super().__init__(server_version="AWS_SFTP_1.1")


class _MailboxFiles(Files):
    def _refuse_used(self, path: bytes) -> None:
        assert isinstance(self.server, SterlingLike)
        remote = self.map_path(path)
        if os.path.exists(remote) and os.stat(remote).st_ino in self.server.used:
            raise asyncssh.SFTPFailure("the message has been extracted")

    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> Any:
        self._refuse_used(path)
        file: Any = super().open(path, pflags, attrs)
        assert isinstance(self.server, SterlingLike)
        self.server.used.add(os.fstat(file.fileno()).st_ino)
        return file

    def stat(self, path: bytes) -> Any:
        if not stat.S_ISDIR(os.stat(self.map_path(path)).st_mode):
            self._refuse_used(path)
        return super().stat(path)

    def lstat(self, path: bytes) -> Any:
        if not stat.S_ISDIR(os.lstat(self.map_path(path)).st_mode):
            self._refuse_used(path)
        return super().lstat(path)


class SterlingLike(AsyncsshServer):
    """Simulate a mailbox of IBM Sterling File Gateway.

    A mailbox, as IBM Sterling File Gateway has them: a file is opened once, and neither opened nor described
    afterwards. Renaming and removing work.
    """

    kind = "sterling-like"
    files = _MailboxFiles
    offered = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.used: set[int] = set()
        """Inodes of the files that have been opened."""
