"""Define servers that differ from OpenSSH in one way.

Each is a small subclass of `AsyncsshServer`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncssh
from asyncssh.packet import UInt32

from tests.support.servers.asyncssh_server import AsyncsshServer, Files, Packets

_STATUS = 101
_NO_SUCH_FILE, _FAILURE = UInt32(2), UInt32(4)
_NEW = asyncssh.FXF_CREAT | asyncssh.FXF_EXCL


class _TargetsListed(Files):
    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        self.before_listing(path)
        async for name in super().scandir(path):
            assert isinstance(name.filename, bytes)
            with suppress(FileNotFoundError):
                name.attrs = asyncssh.SFTPAttrs.from_local(os.stat(os.path.join(self.map_path(path), name.filename)))
            yield name

    def before_listing(self, path: bytes) -> None:
        """Called when a folder is opened for listing."""


class ListsLinksAsTargets(AsyncsshServer):
    """List links with the attributes of their targets.

    LSTAT shows the link.
    """

    files = _TargetsListed


class _Swapping(_TargetsListed):
    def before_listing(self, path: bytes) -> None:
        assert isinstance(self.server, SwapsFolderForLink)
        local = Path(os.fsdecode(self.map_path(path)))
        if local.name == self.server.swapped and not local.is_symlink():
            local.rename(self.server.link_to.with_name("moved away"))
            local.symlink_to(self.server.link_to)


class SwapsFolderForLink(ListsLinksAsTargets):
    """Replace the directory ``swapped`` by a link to ``link_to``.

    The replacement happens when the directory is opened for listing.
    """

    files = _Swapping

    def __init__(self, *, swapped: str) -> None:
        super().__init__()
        self.swapped = swapped
        self.link_to = Path("/missing")


class _NotExclusive(Files):
    def write(self, file_obj: object, offset: int, data: bytes) -> Any:
        assert isinstance(self.server, IgnoresExclusive)
        self.server.written += len(data)
        return super().write(file_obj, offset, data)

    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> Any:
        return super().open(path, pflags & ~asyncssh.FXF_EXCL, attrs)


class IgnoresExclusive(AsyncsshServer):
    """Ignore EXCL in OPEN, and keep the content."""

    files = _NotExclusive
    written = 0


class _ExclusiveTruncates(Files):
    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> Any:
        if pflags & _NEW == _NEW and not pflags & asyncssh.FXF_TRUNC:
            assert isinstance(self.server, NeedsTruncate)
            raise self.server.refusal
        return super().open(path, pflags, attrs)


class NeedsTruncate(AsyncsshServer):
    """Refuse CREAT with EXCL unless TRUNC is set.

    Such a request gets ``refusal``.
    """

    files = _ExclusiveTruncates

    def __init__(self, refusal: asyncssh.SFTPError) -> None:
        super().__init__()
        self.refusal = refusal


class _NoLStat(Files):
    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        for entry in os.scandir(self.map_path(path)):
            yield asyncssh.SFTPName(entry.name, attrs=asyncssh.SFTPAttrs.from_local(entry.stat(follow_symlinks=False)))

    def lstat(self, path: bytes) -> Any:
        assert isinstance(self.server, ForbidsLStat)
        raise self.server.refusal


class ForbidsLStat(AsyncsshServer):
    """Answers every LSTAT with ``refusal``."""

    files = _NoLStat

    def __init__(self, refusal: asyncssh.SFTPError) -> None:
        super().__init__()
        self.refusal = refusal


class _CurtPackets(Packets):
    def send_packet(self, pkttype: int, pktid: int | None, *args: bytes) -> None:
        if pkttype == _STATUS and args[1].startswith(_NO_SUCH_FILE):
            args = (args[0], _FAILURE + args[1].removeprefix(_NO_SUCH_FILE))
        super().send_packet(pkttype, pktid, *args)


class FailsForMissing(AsyncsshServer):
    """Says FAILURE where other servers say NO_SUCH_FILE."""

    packets = _CurtPackets


class _AllAtOnce(_TargetsListed, _NotExclusive, _NoLStat):
    def remove(self, path: bytes) -> Any:
        local = self.map_path(path)
        is_folder = os.path.isdir(local) and not os.path.islink(local)
        return Files.rmdir(self, path) if is_folder else Files.remove(self, path)

    rmdir = remove


class DiffersInAll(ListsLinksAsTargets, IgnoresExclusive, ForbidsLStat):
    """Differ from OpenSSH in links, flags and statuses.

    Lists links as what they lead to, ignores EXCL, forbids LSTAT, removes anything, says FAILURE for what is
    missing.
    """

    files = _AllAtOnce
    packets = _CurtPackets


class _AnyRemoval(Files):
    def remove(self, path: bytes) -> Any:
        local = self.map_path(path)
        is_folder = os.path.isdir(local) and not os.path.islink(local)
        return super().rmdir(path) if is_folder else super().remove(path)

    rmdir = remove


class RemovesAnything(AsyncsshServer):
    """REMOVE removes empty folders, and RMDIR files."""

    files = _AnyRemoval


class _RecursiveRemoval(Files):
    def rmdir(self, path: bytes) -> Any:
        shutil.rmtree(os.fsdecode(self.map_path(path)))


class RemovesFullFolders(AsyncsshServer):
    """RMDIR removes a folder with all it holds."""

    files = _RecursiveRemoval


class _RemovalBehindLinks(Files):
    def rmdir(self, path: bytes) -> Any:
        os.rmdir(os.path.realpath(self.map_path(path)))


class RemovesBehindLinks(AsyncsshServer):
    """RMDIR follows links."""

    files = _RemovalBehindLinks


class _BelowFiles(Files):
    def stat(self, path: bytes) -> Any:
        local = self.map_path(path)
        while not os.path.exists(local) and os.path.isfile(os.path.dirname(local)):
            local = os.path.dirname(local)
        return os.stat(local)

    lstat = stat


class ShowsFilesBelowFiles(AsyncsshServer):
    """STAT of ``file/x`` describes ``file``."""

    files = _BelowFiles


class _FollowsWhatItLists(Files):
    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        async for name in super().scandir(path):
            assert isinstance(name.filename, bytes)
            name.attrs = asyncssh.SFTPAttrs.from_local(os.stat(os.path.join(self.map_path(path), name.filename)))
            yield name


class HidesFoldersWithDanglingLinks(AsyncsshServer):
    """Refuse to list a directory with a dangling link.

    READDIR answers NO_SUCH_FILE.
    """

    files = _FollowsWhatItLists


class _AsciiOnly(Files):
    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        async for name in super().scandir(path):
            assert isinstance(name.filename, bytes)
            if not name.filename.isascii():
                self.server.cut(self.connection)
            yield name


class EndsAtForeignNames(AsyncsshServer):
    """Ends the connection when it lists a name that is not ASCII."""

    files = _AsciiOnly


class _SmallBuffer(Packets):
    async def _process_packet(self, pkttype: int, pktid: int, packet: Any) -> None:
        if len(packet.get_full_payload()) > BuffersPackets.most:
            self.hang_up()
            return
        await super()._process_packet(pkttype, pktid, packet)


class BuffersPackets(AsyncsshServer):
    """Fail on packets above 32 KiB.

    Every server must accept 32 KiB. The server does not announce its limit.
    """

    packets = _SmallBuffer
    offered = frozenset()
    most = 34_000  # filexfer-02 section 3: a packet with its header, of which 32768 bytes are data


class _FollowingFiles(Files):
    def lstat(self, path: bytes) -> Any:
        return super().stat(path)

    def rename(self, oldpath: bytes, newpath: bytes) -> Any:
        return super().rename(os.path.realpath(self.map_path(oldpath)), newpath)

    def posix_rename(self, oldpath: bytes, newpath: bytes) -> Any:
        return super().posix_rename(os.path.realpath(self.map_path(oldpath)), newpath)


class FollowsLinks(AsyncsshServer):
    """Follow links in LSTAT and RENAME.

    READDIR shows links, as in ProFTPD 1.3.
    """

    files = _FollowingFiles


class _ByPathOnly(Files):
    def fsetstat(self, file_obj: object, attrs: asyncssh.SFTPAttrs) -> None:
        raise asyncssh.SFTPFailure("attributes of open files cannot be set")


class RefusesFSetStat(AsyncsshServer):
    """Refuses FSETSTAT, and takes SETSTAT of a path."""

    files = _ByPathOnly
