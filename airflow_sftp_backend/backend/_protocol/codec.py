"""The pieces SFTP version 3 packets are made of, as bytes: draft-ietf-secsh-filexfer-02 sections 3 to 5.

Bounds are checked before anything is allocated: a packet comes from a server nobody here controls.
"""

from __future__ import annotations

import enum
import stat
import struct
from dataclasses import dataclass
from typing import Final

VERSION: Final = 3
MAX_FRAME: Final = 4 << 20
"""Longest packet accepted, in bytes. Replies to reads are at most 256 KiB, listings as long as the server likes."""

UINT32: Final = struct.Struct(">I")
UINT64: Final = struct.Struct(">Q")
TWO_UINT32: Final = struct.Struct(">II")
_COMMON_FLAGS: Final = 0xF  # size, owner and group, mode, times: what most servers send
_COMMON_FIELDS: Final = struct.Struct(">QIIIII")


class ProtocolError(Exception):
    """The server's bytes are no SFTP version 3. The wire drops the connection over it."""


class PacketType(enum.IntEnum):
    """Packet types (filexfer-02 section 3)."""

    INIT = 1
    VERSION = 2
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    LSTAT = 7
    FSTAT = 8
    SETSTAT = 9
    FSETSTAT = 10
    OPENDIR = 11
    READDIR = 12
    REMOVE = 13
    MKDIR = 14
    RMDIR = 15
    REALPATH = 16
    STAT = 17
    RENAME = 18
    READLINK = 19
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104
    ATTRS = 105
    EXTENDED = 200
    EXTENDED_REPLY = 201


class OpenFlag(enum.IntFlag):
    """How a file is opened (filexfer-02 section 6.3)."""

    READ = 0x01
    WRITE = 0x02
    APPEND = 0x04
    CREATE = 0x08
    TRUNCATE = 0x10
    EXCLUSIVE = 0x20


@dataclass(slots=True, unsafe_hash=True)  # not frozen: a listing makes one for each name, three times as dear
class Attributes:
    """What is known of a file (filexfer-02 section 5). A field is None where the server leaves it out.

    ``size`` in bytes; ``atime`` and ``mtime`` in seconds since 1970 UTC; ``mode`` with the file type bits.
    """

    size: int | None = None
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    atime: int | None = None
    mtime: int | None = None

    @property
    def is_folder(self) -> bool:
        """True if the mode says so."""
        return self.mode is not None and stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        """True if the mode says so."""
        return self.mode is not None and stat.S_ISLNK(self.mode)

    @property
    def is_file(self) -> bool:
        """True unless the mode says otherwise: a server that gives no type bits serves files."""
        return self.mode is None or stat.S_IFMT(self.mode) in (0, stat.S_IFREG)

    def encode(self) -> bytes:
        """The bytes of section 5."""
        flags, body = 0, b""
        if self.size is not None:
            flags, body = flags | 1, body + UINT64.pack(self.size)
        if self.uid is not None and self.gid is not None:
            flags, body = flags | 2, body + TWO_UINT32.pack(self.uid, self.gid)
        if self.mode is not None:
            flags, body = flags | 4, body + UINT32.pack(self.mode)
        if self.atime is not None and self.mtime is not None:
            flags, body = flags | 8, body + TWO_UINT32.pack(self.atime, self.mtime)
        return UINT32.pack(flags) + body


NO_ATTRIBUTES: Final = Attributes()


@dataclass(frozen=True, slots=True)
class DirEntry:
    """One name in a folder, with its own attributes (a link's, not its target's)."""

    name: str
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Limits:
    """Most bytes a request may ask for (``limits@openssh.com``). What the server does not say is its default here:
    32 KiB, which every server takes (filexfer-02 section 3)."""

    read: int = 32768
    write: int = 32768


_TRUNCATED: Final = "a reply ends in the middle"


class PacketReader:
    """Reads one packet from front to back; ProtocolError past its end."""

    __slots__ = ("_data", "_end", "_offset")

    def __init__(self, data: memoryview, offset: int = 0) -> None:
        self._data = data
        self._offset = offset
        self._end = len(data)

    def _advance(self, count: int) -> int:
        """Goes on by that many bytes; where they start."""
        start = self._offset
        self._offset = start + count
        if self._offset > self._end:
            self._offset = start
            raise ProtocolError(_TRUNCATED)
        return start

    @property
    def remaining(self) -> int:
        """Bytes not read yet."""
        return self._end - self._offset

    def uint32(self) -> int:
        """A number of four bytes."""
        offset = self._offset
        if offset + 4 > self._end:
            raise ProtocolError(_TRUNCATED)
        self._offset = offset + 4
        number: int = UINT32.unpack_from(self._data, offset)[0]
        return number

    def uint64(self) -> int:
        """A number of eight bytes."""
        (number,) = UINT64.unpack_from(self._data, self._advance(8))
        return int(number)

    def view(self) -> memoryview:
        """A counted string, as a view into the packet."""
        offset = self._offset
        if offset + 4 > self._end:
            raise ProtocolError(_TRUNCATED)
        (count,) = UINT32.unpack_from(self._data, offset)
        end = offset + 4 + count
        if end > self._end:
            raise ProtocolError(_TRUNCATED)
        self._offset = end
        return self._data[offset + 4 : end]

    def text(self) -> str:
        """A counted string, decoded so that `encode_name` gives the same bytes back."""
        return str(self.view(), "utf-8", "surrogateescape")

    def attributes(self) -> Attributes:
        """Attributes, extended ones passed over."""
        flags = self.uint32()
        if flags == _COMMON_FLAGS:
            return Attributes(*_COMMON_FIELDS.unpack_from(self._data, self._advance(_COMMON_FIELDS.size)))
        size = self.uint64() if flags & 1 else None
        uid, gid = (self.uint32(), self.uint32()) if flags & 2 else (None, None)
        mode = self.uint32() if flags & 4 else None
        atime, mtime = (self.uint32(), self.uint32()) if flags & 8 else (None, None)
        if flags & 0x80000000:
            for _ in range(self.count(smallest=8)):
                self.view(), self.view()
        return Attributes(size, uid, gid, mode, atime, mtime)

    def count(self, smallest: int) -> int:
        """A number of items of at least ``smallest`` bytes each, which must fit in the rest of the packet."""
        count = self.uint32()
        if count * smallest > self.remaining:
            raise ProtocolError(f"a reply announces {count} items and cannot hold them")
        return count


def encode_name(name: str) -> bytes:
    """A path or name as the server is sent it: UTF-8, and the server's own bytes where they were no UTF-8."""
    return name.encode("utf-8", "surrogateescape")


def encode_string(data: bytes) -> bytes:
    return UINT32.pack(len(data)) + data
