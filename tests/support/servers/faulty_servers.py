"""Servers with one fault or limit: each a small subclass of `AsyncsshServer`."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import asyncssh
from asyncssh.packet import UInt32

from tests.support.servers.asyncssh_server import AsyncsshServer, Files, Login, Packets, Session

FAILURE = 4
NO_SPACE_ON_FILESYSTEM = 14


class _NoTimes(Files):
    def setstat(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        raise asyncssh.SFTPOpUnsupported("setstat is not supported")

    def fsetstat(self, file_obj: object, attrs: asyncssh.SFTPAttrs) -> None:
        raise asyncssh.SFTPOpUnsupported("fsetstat is not supported")


class WithoutSetstat(AsyncsshServer):
    """Refuses every setstat and fsetstat: no modes, no times."""

    files = _NoTimes


class _NoReplacing(Files):
    def posix_rename(self, oldpath: bytes, newpath: bytes) -> Any:
        return self.rename(oldpath, newpath)


class PosixRenameRefusesTaken(AsyncsshServer):
    """Refuses a taken name in posix-rename too, as Azure Blob Storage does."""

    files = _NoReplacing


class _AlwaysReplacing(Files):
    def rename(self, oldpath: bytes, newpath: bytes) -> Any:
        return self.posix_rename(oldpath, newpath)


class RenameReplaces(AsyncsshServer):
    """Replaces a taken name in plain rename too."""

    files = _AlwaysReplacing


class _NoRenaming(Files):
    def rename(self, oldpath: bytes, newpath: bytes) -> Any:
        raise asyncssh.SFTPFailure("renaming is not possible here")

    posix_rename = rename


class RefusesRename(AsyncsshServer):
    """Refuses every rename, as between two file systems."""

    files = _NoRenaming


class _DropBoxFiles(Files):
    def stat(self, path: bytes) -> Any:
        raise asyncssh.SFTPPermissionDenied("a drop box shows nothing")

    lstat = stat

    def fstat(self, file_obj: object) -> Any:
        raise asyncssh.SFTPPermissionDenied("a drop box shows nothing")

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        async for _ in super().scandir(path):
            raise asyncssh.SFTPPermissionDenied("a drop box lists nothing")
        yield asyncssh.SFTPName()  # never reached; it makes this an async generator

    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> Any:
        if pflags & asyncssh.FXF_READ:
            raise asyncssh.SFTPPermissionDenied("a drop box gives nothing back")
        return super().open(path, pflags, attrs)


class DropBox(AsyncsshServer):
    """Refuse STAT, listing and reading.

    Writing and renaming work.
    """

    files = _DropBoxFiles


class _CurtDropBoxFiles(_DropBoxFiles):
    def stat(self, path: bytes) -> Any:
        raise asyncssh.SFTPFailure("no")

    lstat = stat


class CurtDropBox(DropBox):
    """A drop box that does not say why it shows nothing."""

    files = _CurtDropBoxFiles


class _MovesAwayFiles(Files):
    def close(self, file_obj: Any) -> None:
        super().close(file_obj)
        if file_obj.mode.startswith(("w", "x", "a")):
            assert isinstance(self.server, MovesAway)
            shutil.move(os.fsdecode(file_obj.name), self.server.taken)


class MovesAway(AsyncsshServer):
    """Move every file to ``taken`` when it is closed."""

    files = _MovesAwayFiles

    @property
    def taken(self) -> Path:
        """Return the directory that accepted files are moved to."""
        folder = self._home / "taken"
        folder.mkdir(exist_ok=True)
        return folder


class Status(asyncssh.SFTPError):
    """Refuse with a code, also outside SFTP version 3."""

    def encode(self, version: int) -> bytes:
        text = str(self.reason).encode()
        return UInt32(self.code) + UInt32(len(text)) + text + UInt32(0)


class _DiskFullFiles(Files):
    def write(self, file_obj: Any, offset: int, data: bytes) -> Any:
        assert isinstance(self.server, DiskFull)
        if offset + len(data) > self.server.capacity:
            raise Status(self.server.code, "no space left on device")
        return super().write(file_obj, offset, data)


class DiskFull(AsyncsshServer):
    """Refuse every write beyond ``capacity`` bytes.

    Refuses every write that ends beyond ``capacity`` bytes of a file, with ``code``: NO_SPACE_ON_FILESYSTEM, or
    FAILURE as OpenSSH does.
    """

    files = _DiskFullFiles

    def __init__(self, *, capacity: int, code: int = NO_SPACE_ON_FILESYSTEM) -> None:
        super().__init__()
        self.capacity = capacity
        self.code = code


class _FailsWriteFiles(Files):
    def write(self, file_obj: Any, offset: int, data: bytes) -> Any:
        assert isinstance(self.server, FailsWrite)
        if self.server.requests["write"] == self.server.nth:
            raise Status(FAILURE, "write failed")
        return super().write(file_obj, offset, data)


class FailsWrite(AsyncsshServer):
    """Fail only the write number ``nth``.

    The first write has number 1.
    """

    files = _FailsWriteFiles

    def __init__(self, *, nth: int) -> None:
        super().__init__()
        self.nth = nth


class _ShortReadFiles(Files):
    def read(self, file_obj: object, offset: int, size: int) -> Any:
        assert isinstance(self.server, ShortReads)
        return super().read(file_obj, offset, min(size, self.server.at_most))


class ShortReads(AsyncsshServer):
    """Answers a read with ``at_most`` bytes, however many were requested."""

    files = _ShortReadFiles

    def __init__(self, *, at_most: int) -> None:
        super().__init__()
        self.at_most = at_most


class _ReorderedPackets(Packets):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._held: list[tuple[int, int, tuple[bytes, ...]]] = []

    def send_packet(self, pkttype: int, pktid: int | None, *args: bytes) -> None:
        if pktid is None:
            super().send_packet(pkttype, pktid, *args)
            return
        if not self._held:
            asyncio.get_running_loop().call_later(0.01, self._release)
        self._held.append((pkttype, pktid, args))

    def _release(self) -> None:
        held, self._held = self._held[::-1], []
        assert isinstance(self.server, OutOfOrder)
        self.server.reordered += len(held) > 1
        for packet in held if self._writer else ():
            super().send_packet(packet[0], packet[1], *packet[2])


class OutOfOrder(AsyncsshServer):
    """Send delayed replies in reverse order.

    ``reordered`` counts the batches of several replies.
    """

    packets = _ReorderedPackets
    reordered = 0


class _HostileFiles(Files):
    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        async for name in super().scandir(path):
            yield name
        assert isinstance(self.server, HostileNames)
        attrs = asyncssh.SFTPAttrs(size=5, permissions=self.server.mode, uid=0, gid=0, atime=0, mtime=0)
        for hostile in self.server.names:
            yield asyncssh.SFTPName(hostile, b"", attrs)


class HostileNames(AsyncsshServer):
    """List ``names`` in every directory, after the real entries.

    They are files, or have another ``mode``.
    """

    files = _HostileFiles
    NAMES: ClassVar[tuple[bytes, ...]] = (
        b"../escaped", b"a/b", b"/etc/passwd", b"..", b"", b"line\nbreak", b"nul\0byte", b"..\\escaped",
    )  # fmt: skip

    def __init__(self, *, names: Sequence[bytes] = NAMES, mode: int = 0o100644) -> None:
        super().__init__()
        self.names = names
        self.mode = mode


class _BareFiles(Files):
    def stat(self, path: bytes) -> Any:
        return self._bare(os.stat(self.map_path(path)))

    def lstat(self, path: bytes) -> Any:
        return self._bare(os.lstat(self.map_path(path)))

    def fstat(self, file_obj: Any) -> Any:
        return self._bare(os.fstat(file_obj.fileno()))

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        async for name in super().scandir(path):
            assert isinstance(name.filename, bytes)
            there = os.path.join(self.map_path(path), name.filename)
            yield asyncssh.SFTPName(name.filename, b"", self._bare(os.lstat(there)))

    def _bare(self, found: os.stat_result) -> asyncssh.SFTPAttrs:
        assert isinstance(self.server, BareAttributes)
        return asyncssh.SFTPAttrs(size=found.st_size) if self.server.with_size else asyncssh.SFTPAttrs()


class BareAttributes(AsyncsshServer):
    """Send attributes without permissions, owner and times.

    The size is sent only with ``with_size``.
    """

    files = _BareFiles

    def __init__(self, *, with_size: bool = True) -> None:
        super().__init__()
        self.with_size = with_size


class _StallingPackets(Packets):
    async def on_request(self, kind: str) -> bool:
        assert isinstance(self.server, StallsAfter)
        only, requests = self.server.kind_counted, self.server.requests
        if (requests.total() if only is None else requests[only]) > self.server.limit:
            self.server.unanswered += 1
            return False
        return True


class StallsAfter(AsyncsshServer):
    """Stop answering after ``requests`` requests.

    Answers ``requests`` requests (its version reply not counted), then none; the connection stays open. Its
    ``limit`` may be changed while it runs. With ``kind``, only requests of that kind count.
    """

    packets = _StallingPackets

    def __init__(self, *, requests: int, kind: str | None = None) -> None:
        super().__init__()
        self.limit = requests
        self.kind_counted = kind
        self.unanswered = 0
        """Requests that have come and get no answer."""


class _FirstChannelOnly(Packets):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._is_first = self.server.open_channels[self._files().connection] == 1

    async def on_request(self, kind: str) -> bool:
        return self._is_first or kind != "write"


class StallsOnFurtherChannels(AsyncsshServer):
    """Answer writes on the first channel only.

    Any number of channels can be opened.
    """

    packets = _FirstChannelOnly


class _DroppingFiles(Files):
    def read(self, file_obj: object, offset: int, size: int) -> Any:
        content = super().read(file_obj, offset, size)
        assert isinstance(content, bytes)
        assert isinstance(self.server, DropsAfter)
        self.server.moved += len(content)
        return content

    def write(self, file_obj: object, offset: int, data: bytes) -> Any:
        assert isinstance(self.server, DropsAfter)
        self.server.moved += len(data)
        return super().write(file_obj, offset, data)


class _DroppingPackets(Packets):
    async def on_request(self, kind: str) -> bool:
        server = self.server
        assert isinstance(server, DropsAfter)
        if server.dropped or (server.requests.total() <= server.limit and server.moved < server.volume):
            return True
        server.dropped = True
        self.hang_up()
        return False


class DropsAfter(AsyncsshServer):
    """Cut the connection once, in place of a reply.

    Cuts the connection, once in its life, in place of a reply: after ``requests`` answered requests, or after the
    request that brought the bytes of files it has read and written to ``volume``.
    """

    files = _DroppingFiles
    packets = _DroppingPackets

    def __init__(self, *, requests: float = math.inf, volume: float = math.inf) -> None:
        super().__init__()
        self.limit = requests
        self.volume = volume
        self.moved = 0
        self.dropped = False


class _DenyingFiles(Files):
    def map_path(self, path: bytes) -> bytes:
        raise asyncssh.SFTPPermissionDenied("permission denied")


class DeniesEverything(AsyncsshServer):
    """Lets the user in and refuses every request that names a path."""

    files = _DenyingFiles


class NoSubsystem(AsyncsshServer):
    """Has no SFTP: the subsystem request is refused."""

    has_sftp = False


class NoChannel(AsyncsshServer):
    """Refuses every channel."""

    max_channels = 0


class _SilentLogin(Login):
    async def begin_auth(self, username: str) -> bool:
        await asyncio.Event().wait()
        return True


class SilentLogin(AsyncsshServer):
    """Never answers the first authentication request."""

    login = _SilentLogin


async def _never() -> Any:
    await asyncio.Event().wait()


class _SilentChannel(Login):
    def session_requested(self) -> Any:
        return _never()


class SilentChannel(AsyncsshServer):
    """Never answers the request for a channel."""

    login = _SilentChannel


class _SilentSubsystem(Login):
    def session_requested(self) -> Any:
        channel = self.connection.create_server_channel(encoding=None)
        vars(channel)["_process_subsystem_request"] = lambda _packet: None  # None: the answer comes later
        return channel, Session(self.server)


class SilentSubsystem(AsyncsshServer):
    """Opens the channel and never answers the request for SFTP."""

    login = _SilentSubsystem


class _SilentPackets(Packets):
    async def run(self) -> None:
        await asyncio.Event().wait()


class SilentSFTP(AsyncsshServer):
    """Starts SFTP and never sends its version."""

    packets = _SilentPackets


class _OtherSizesFiles(_BareFiles):
    def _bare(self, found: os.stat_result) -> asyncssh.SFTPAttrs:
        assert isinstance(self.server, SaysOtherSizes)
        attrs = asyncssh.SFTPAttrs.from_local(found)
        attrs.size = self.server.stated_size(found.st_size)
        return attrs

    def read(self, file_obj: Any, offset: int, size: int) -> Any:
        assert isinstance(self.server, SaysOtherSizes)
        if self.server.endless:
            return bytes(size)
        return super().read(file_obj, offset, min(size, self.server.at_most))


class SaysOtherSizes(AsyncsshServer):
    """State ``stated_size(size)``, as a server that converts text does.

    A read returns ``at_most`` bytes, or zeros without end if ``endless``."""

    files = _OtherSizesFiles

    def __init__(
        self, stated_size: Callable[[int], int | None], *, endless: bool = False, at_most: int = 1 << 20
    ) -> None:
        super().__init__()
        self.stated_size = stated_size
        self.endless = endless
        self.at_most = at_most
