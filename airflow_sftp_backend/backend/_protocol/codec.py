"""Encode and decode the parts of SFTP version 3 packets.

The source is draft-ietf-secsh-filexfer-02, sections 3 to 5.

Limits are checked before memory is allocated, because the server is not trusted.
"""

from __future__ import annotations

import enum
import stat
import struct
from dataclasses import dataclass
from typing import Final

VERSION: Final = 3
MAX_FRAME: Final = 4 << 20
"""Maximum bytes of a received packet. Replies to reads have at most 256 KiB; the server sets the size of listings."""

UINT32: Final = struct.Struct(">I")
UINT64: Final = struct.Struct(">Q")
TWO_UINT32: Final = struct.Struct(">II")
COMMON_FLAGS: Final = 0xF  # size, owner and group, mode, times: sent by most servers
_COMMON_FIELDS: Final = struct.Struct(">QIIIII")


class ProtocolError(Exception):
    """Invalid SFTP version 3 data from the server.

    The scheduler closes the connection.
    """


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
    """Flags to open a file (filexfer-02 section 6.3)."""

    READ = 0x01
    WRITE = 0x02
    APPEND = 0x04
    CREATE = 0x08
    TRUNCATE = 0x10
    EXCLUSIVE = 0x20


@dataclass(slots=True, unsafe_hash=True)  # frozen creation takes three times as long, for each name of a listing
class Attributes:
    """Attributes of a file (filexfer-02 section 5).

    A field omitted by the server is None.

    ``size`` is in bytes; ``atime`` and ``mtime`` in seconds since 1970 UTC; ``mode`` includes the file type bits.
    """

    size: int | None = None
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    atime: int | None = None
    mtime: int | None = None

    @property
    def is_folder(self) -> bool:
        """True if the mode's type bits are those of a directory."""
        return self.mode is not None and stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        """True if the mode's type bits are those of a symbolic link."""
        return self.mode is not None and stat.S_ISLNK(self.mode)

    @property
    def is_file(self) -> bool:
        """True for a regular file, and if the type is unknown."""
        return self.mode is None or stat.S_IFMT(self.mode) in (0, stat.S_IFREG)

    def encode(self) -> bytes:
        """Encode the attributes as in filexfer-02 section 5."""
        flags, body = 0, b""
        if self.size is not None:
            flags, body = flags | 1, body + UINT64.pack(self.size)  # SSH_FILEXFER_ATTR_SIZE
        if self.uid is not None and self.gid is not None:
            flags, body = flags | 2, body + TWO_UINT32.pack(self.uid, self.gid)  # SSH_FILEXFER_ATTR_UIDGID
        if self.mode is not None:
            flags, body = flags | 4, body + UINT32.pack(self.mode)  # SSH_FILEXFER_ATTR_PERMISSIONS
        if self.atime is not None and self.mtime is not None:
            flags, body = flags | 8, body + TWO_UINT32.pack(self.atime, self.mtime)  # SSH_FILEXFER_ATTR_ACMODTIME
        return UINT32.pack(flags) + body


NO_ATTRIBUTES: Final = Attributes()


@dataclass(frozen=True, slots=True)
class DirEntry:
    """Name in a directory with its own attributes.

    A link does not have the attributes of its target.
    """

    name: str
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Maximum bytes of a read and a write (``limits@openssh.com``).

    The defaults apply to limits that the server does not announce: every server accepts 32 KiB (filexfer-02 section 3).
    """

    read: int = 32768
    write: int = 32768


TRUNCATED: Final = "a reply is truncated"


class PacketReader:
    """Read the fields of a packet in order.

    Every method raises ProtocolError beyond the end.

    :param data: the packet
    :param offset: offset of the first field, in bytes
    """

    __slots__ = ("_data", "_end", "_offset")

    def __init__(self, data: memoryview, offset: int = 0) -> None:
        self._data = data
        self._offset = offset
        self._end = len(data)

    def _advance(self, count: int) -> int:
        """Skip ``count`` bytes and return their offset."""
        start = self._offset
        if start + count > self._end:
            raise ProtocolError(TRUNCATED)
        self._offset = start + count
        return start

    @property
    def remaining(self) -> int:
        """Number of unread bytes."""
        return self._end - self._offset

    @property
    def offset(self) -> int:
        """Offset of the next field."""
        return self._offset

    def rest(self) -> memoryview:
        """Read all remaining bytes."""
        return self._data[self._advance(self.remaining) :]

    def uint32(self) -> int:
        """Read a number of four bytes."""
        offset = self._offset
        if offset + 4 > self._end:
            raise ProtocolError(TRUNCATED)
        self._offset = offset + 4
        number: int = UINT32.unpack_from(self._data, offset)[0]
        return number

    def uint64(self) -> int:
        """Read a number of eight bytes."""
        (number,) = UINT64.unpack_from(self._data, self._advance(8))
        return int(number)

    def view(self) -> memoryview:
        """Read a string with a length prefix.

        The result is a view into the packet.
        """
        offset = self._offset
        if offset + 4 > self._end:
            raise ProtocolError(TRUNCATED)
        (count,) = UINT32.unpack_from(self._data, offset)
        end = offset + 4 + count
        if end > self._end:
            raise ProtocolError(TRUNCATED)
        self._offset = end
        return self._data[offset + 4 : end]

    def text(self) -> str:
        """Read a string with a length prefix, decoded reversibly for `encode_name`."""
        return str(self.view(), "utf-8", "surrogateescape")

    def attributes(self) -> Attributes:
        """Read attributes and skip extended attributes."""
        flags = self.uint32()
        if flags == COMMON_FLAGS:
            return Attributes(*_COMMON_FIELDS.unpack_from(self._data, self._advance(_COMMON_FIELDS.size)))
        # The flags SIZE, UIDGID, PERMISSIONS, ACMODTIME and EXTENDED (filexfer-02 section 5).
        size = self.uint64() if flags & 1 else None
        uid, gid = (self.uint32(), self.uint32()) if flags & 2 else (None, None)
        mode = self.uint32() if flags & 4 else None
        atime, mtime = (self.uint32(), self.uint32()) if flags & 8 else (None, None)
        if flags & 0x80000000:
            for _ in range(self.count(smallest=8)):
                self.view(), self.view()
        return Attributes(size, uid, gid, mode, atime, mtime)

    def count(self, smallest: int) -> int:
        """Read a number of items that the packet can hold.

        An item has at least ``smallest`` bytes.
        """
        count = self.uint32()
        if count * smallest > self.remaining:
            raise ProtocolError(f"a reply announces {count} items but is too short")
        return count


def encode_name(name: str) -> bytes:
    """Encode a path or name in UTF-8.

    Bytes of the server that are not UTF-8 are kept.
    """
    return name.encode("utf-8", "surrogateescape")


def encode_string(data: bytes) -> bytes:
    return UINT32.pack(len(data)) + data
