"""The requests of SFTP version 3 and their replies: draft-ietf-secsh-filexfer-02 sections 6 to 8, OpenSSH PROTOCOL
section 4.

A request knows how it is written and which replies may answer it. Nothing here sends or receives.
"""

from __future__ import annotations

import stat
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Final, Generic, TypeVar

from airflow_sftp_backend.backend._limits import MAX_NAME_BYTES, MIN_BLOCK, ListingTally, check_name_bytes
from airflow_sftp_backend.backend.errors import StatusCode, StatusError

from .codec import (
    NO_ATTRIBUTES,
    UINT32,
    UINT64,
    VERSION,
    Attributes,
    DirEntry,
    Limits,
    OpenFlag,
    PacketReader,
    PacketType,
    ProtocolError,
    encode_name,
    encode_string,
)

R_co = TypeVar("R_co", covariant=True)

_HEADER: Final = struct.Struct(">IBI")  # length, type, request id
_OFFSET_AND_LENGTH: Final = struct.Struct(">QI")
_REPLY_HEADER_BYTES: Final = 9  # bytes before the body of a reply: length, type, request id
_NO_DATA: Final = memoryview(b"")


class Request(ABC, Generic[R_co]):
    """One request; ``R_co`` is what its reply is decoded to.

    ``payload_size`` is the number of bytes it, or its reply, keeps in flight beyond a header.
    """

    __slots__ = ()
    packet_type: ClassVar[PacketType]
    reply_type: ClassVar[PacketType] = PacketType.STATUS
    tracked: ClassVar[bool] = False
    """The request opens or closes a handle, which `handle_table` keeps account of."""

    @property
    def payload_size(self) -> int:
        """Bytes in flight on behalf of this request."""
        return 0

    @abstractmethod
    def body(self) -> bytes:
        """All that follows the request id."""

    @abstractmethod
    def decode(self, cursor: PacketReader) -> R_co:
        """The reply of ``reply_type``; ProtocolError if it is none."""

    def frame(self, request_id: int) -> bytes:
        """The whole packet."""
        body = self.body()
        return _HEADER.pack(len(body) + 5, self.packet_type, request_id) + body

    def decode_reply(self, packet_type: int, cursor: PacketReader) -> R_co:
        """The decoded reply. Raises StatusError for a status that is not OK, ProtocolError for a reply of another
        type."""
        if packet_type == PacketType.STATUS:
            return self.decode_status(cursor)
        if packet_type != self.reply_type:
            raise ProtocolError(f"a {self.packet_type.name} was answered by a packet of type {packet_type}")
        return self.decode(cursor)

    def decode_status(self, cursor: PacketReader) -> R_co:
        """What a STATUS reply means to this request."""
        code = cursor.uint32()
        if code == StatusCode.OK and self.reply_type == PacketType.STATUS:
            return self.decode(cursor)
        raise self._status_error(code, cursor)

    def _status_error(self, code: int, cursor: PacketReader) -> StatusError:
        """Read the rest of a status that is no success; ProtocolError if it is one."""
        if code == StatusCode.OK:
            raise ProtocolError(f"a {self.packet_type.name} was answered by a bare OK")
        # servers before version 3 leave the text out
        return StatusError(code, cursor.text() if cursor.remaining else "")


class _StatusReply(Request[None]):
    """Answered by a status alone."""

    __slots__ = ()

    def decode(self, cursor: PacketReader) -> None:
        """OK."""


class _HandleReply(Request[bytes]):
    """Answered by a handle: opaque, at most 256 bytes (filexfer-02 section 6.2)."""

    __slots__ = ()
    reply_type = PacketType.HANDLE

    def decode(self, cursor: PacketReader) -> bytes:
        """The handle."""
        handle = bytes(cursor.view())
        if len(handle) > 256:
            raise ProtocolError(f"a handle of {len(handle)} bytes")
        return handle


class _AttributesReply(Request[Attributes]):
    """Answered by attributes."""

    __slots__ = ()
    reply_type = PacketType.ATTRS

    def decode(self, cursor: PacketReader) -> Attributes:
        """The attributes."""
        return cursor.attributes()


@dataclass(frozen=True, slots=True)
class _PathRequest:
    path: str

    def body(self) -> bytes:
        """The path."""
        return encode_string(encode_name(self.path))


@dataclass(frozen=True, slots=True)
class _HandleRequest:
    handle: bytes

    def body(self) -> bytes:
        """The handle."""
        return encode_string(self.handle)


class Stat(_PathRequest, _AttributesReply):
    """Attributes of what a path leads to; follows links."""

    __slots__ = ()
    packet_type = PacketType.STAT


class LStat(_PathRequest, _AttributesReply):
    """Attributes of what stands under a path; a link is a link."""

    __slots__ = ()
    packet_type = PacketType.LSTAT


class FStat(_HandleRequest, _AttributesReply):
    """Attributes of an open file."""

    __slots__ = ()
    packet_type = PacketType.FSTAT


class OpenDir(_PathRequest, _HandleReply):
    """Opens a folder for listing."""

    __slots__ = ()
    packet_type = PacketType.OPENDIR
    tracked = True


class Remove(_PathRequest, _StatusReply):
    """Removes a file or a link."""

    __slots__ = ()
    packet_type = PacketType.REMOVE


class RemoveDir(_PathRequest, _StatusReply):
    """Removes an empty folder."""

    __slots__ = ()
    packet_type = PacketType.RMDIR


class MakeDir(_PathRequest, _StatusReply):
    """Makes a folder, with the server's default mode."""

    __slots__ = ()
    packet_type = PacketType.MKDIR

    def body(self) -> bytes:
        """The path and no attributes."""
        return _PathRequest.body(self) + NO_ATTRIBUTES.encode()


class Close(_HandleRequest, _StatusReply):
    """Closes a handle. A write the server put off may fail only here."""

    __slots__ = ()
    packet_type = PacketType.CLOSE
    tracked = True


@dataclass(frozen=True, slots=True)
class Open(_HandleReply):
    """Opens a file. ``attributes`` apply if it is made."""

    packet_type = PacketType.OPEN
    tracked = True
    path: str
    flags: OpenFlag
    attributes: Attributes = NO_ATTRIBUTES

    def body(self) -> bytes:
        """Path, flags, attributes."""
        return encode_string(encode_name(self.path)) + UINT32.pack(self.flags) + self.attributes.encode()


@dataclass(frozen=True, slots=True)
class Read(Request[memoryview]):
    """Reads up to ``length`` bytes at ``offset``.

    The reply is empty at the end of the file, and may be short before it.
    """

    packet_type = PacketType.READ
    reply_type = PacketType.DATA
    handle: bytes
    offset: int
    length: int

    @property
    def payload_size(self) -> int:
        """The length of a full reply."""
        return self.length

    def body(self) -> bytes:
        """Handle, offset, length."""
        return encode_string(self.handle) + _OFFSET_AND_LENGTH.pack(self.offset, self.length)

    def decode(self, cursor: PacketReader) -> memoryview:
        """The bytes; ProtocolError if more than were asked for, or none."""
        data = cursor.view()
        if not 0 < len(data) <= self.length:
            raise ProtocolError(f"a read of {self.length} bytes was answered with {len(data)}")
        return data

    def decode_status(self, cursor: PacketReader) -> memoryview:
        """EOF is an empty reply."""
        code = cursor.uint32()
        if code == StatusCode.EOF:
            return _NO_DATA
        raise self._status_error(code, cursor)


@dataclass(frozen=True, slots=True)
class Write(_StatusReply):
    """Writes ``data`` at ``offset``."""

    packet_type = PacketType.WRITE
    handle: bytes
    offset: int
    data: bytes | memoryview = field(repr=False)

    @property
    def payload_size(self) -> int:
        """The length of the data."""
        return len(self.data)

    def body(self) -> bytes:
        """Handle, offset, data."""
        return b"".join((self._body_before_data(), self.data))

    def frame(self, request_id: int) -> bytes:
        """The whole packet, the data copied once."""
        head = self._body_before_data()
        start = _HEADER.pack(len(head) + len(self.data) + 5, self.packet_type, request_id)
        return b"".join((start, head, self.data))

    def _body_before_data(self) -> bytes:
        return encode_string(self.handle) + UINT64.pack(self.offset) + UINT32.pack(len(self.data))


@dataclass(frozen=True, slots=True)
class ReadDir(_HandleRequest, Request[list[DirEntry]]):
    """The next entries of an open folder, as many as the server likes to send; empty at the end.

    ``tally`` counts each reply before it is decoded, in whatever order replies come.
    """

    packet_type = PacketType.READDIR
    reply_type = PacketType.NAME
    tally: ListingTally | None = field(default=None, compare=False, repr=False)

    def decode(self, cursor: PacketReader) -> list[DirEntry]:
        """The entries. A missing mode is taken from the first letter of the ``ls -l`` line beside the name.

        Raises BoundExceeded.
        """
        entries = []
        size = cursor.remaining + _REPLY_HEADER_BYTES
        count = cursor.count(smallest=12)
        if self.tally is not None:
            self.tally.add_reply(count, size)
        for _ in range(count):
            raw = cursor.view()
            if len(raw) > MAX_NAME_BYTES:
                check_name_bytes(len(raw))
            name, line, attributes = str(raw, "utf-8", "surrogateescape"), cursor.view(), cursor.attributes()
            if attributes.mode is None and (letter := bytes(line[:1])) in _TYPE_LETTERS:
                attributes = Attributes(
                    attributes.size,
                    attributes.uid,
                    attributes.gid,
                    _TYPE_LETTERS[letter],
                    attributes.atime,
                    attributes.mtime,
                )
            entries.append(DirEntry(name, attributes))
        return entries

    def decode_status(self, cursor: PacketReader) -> list[DirEntry]:
        """EOF is an empty reply."""
        code = cursor.uint32()
        if code == StatusCode.EOF:
            return []
        raise self._status_error(code, cursor)


_TYPE_LETTERS: Final = {b"d": stat.S_IFDIR, b"l": stat.S_IFLNK, b"-": stat.S_IFREG}


@dataclass(frozen=True, slots=True)
class Rename(_StatusReply):
    """Renames; refused by most servers if ``target`` exists (OpenSSH: always, for a file)."""

    packet_type = PacketType.RENAME
    source: str
    target: str

    def body(self) -> bytes:
        """Both paths."""
        return encode_string(encode_name(self.source)) + encode_string(encode_name(self.target))


@dataclass(frozen=True, slots=True)
class SetStat(_StatusReply):
    """Sets attributes of a path; follows links."""

    packet_type = PacketType.SETSTAT
    path: str
    attributes: Attributes

    def body(self) -> bytes:
        """Path and attributes."""
        return encode_string(encode_name(self.path)) + self.attributes.encode()


@dataclass(frozen=True, slots=True)
class FSetStat(_StatusReply):
    """Sets attributes of an open file."""

    packet_type = PacketType.FSETSTAT
    handle: bytes
    attributes: Attributes

    def body(self) -> bytes:
        """Handle and attributes."""
        return encode_string(self.handle) + self.attributes.encode()


class _NameReply(Request[str]):
    __slots__ = ()
    reply_type = PacketType.NAME

    def decode(self, cursor: PacketReader) -> str:
        """The one name of the reply."""
        if cursor.count(smallest=12) != 1:
            raise ProtocolError(f"a {self.packet_type.name} was not answered by one name")
        return cursor.text()


class RealPath(_PathRequest, _NameReply):
    """The absolute path a path leads to, as the server sees it."""

    __slots__ = ()
    packet_type = PacketType.REALPATH


class ReadLink(_PathRequest, _NameReply):
    """Request the target of a link, as the link stores it."""

    __slots__ = ()
    packet_type = PacketType.READLINK


class _ExtendedRequest(Request[R_co]):
    """A request named by text (filexfer-02 section 8)."""

    __slots__ = ()
    packet_type = PacketType.EXTENDED
    extension: ClassVar[str]

    def body(self) -> bytes:
        """The extension's name and its arguments."""
        return encode_string(self.extension.encode("ascii")) + self.arguments()

    @abstractmethod
    def arguments(self) -> bytes:
        """What follows the name."""


@dataclass(frozen=True, slots=True)
class PosixRename(_ExtendedRequest[None], _StatusReply):
    """``rename(2)``: replaces ``target`` in one step (OpenSSH PROTOCOL section 4.3)."""

    extension = "posix-rename@openssh.com"
    source: str
    target: str

    def arguments(self) -> bytes:
        """Both paths."""
        return encode_string(encode_name(self.source)) + encode_string(encode_name(self.target))


@dataclass(frozen=True, slots=True)
class CopyData(_ExtendedRequest[None], _StatusReply):
    """Copies bytes between two open files on the server, to the end if ``length`` is 0
    (draft-ietf-secsh-filexfer-extensions-00 section 7)."""

    extension = "copy-data"
    source: bytes
    source_offset: int
    length: int
    target: bytes
    target_offset: int

    def arguments(self) -> bytes:
        """Handle, offset and length of the source, handle and offset of the target."""
        return (
            encode_string(self.source)
            + UINT64.pack(self.source_offset)
            + UINT64.pack(self.length)
            + encode_string(self.target)
            + UINT64.pack(self.target_offset)
        )


@dataclass(frozen=True, slots=True)
class LimitsRequest(_ExtendedRequest[Limits]):
    """Most bytes a request may carry (``limits@openssh.com``, OpenSSH PROTOCOL section 4.8)."""

    extension = "limits@openssh.com"
    reply_type = PacketType.EXTENDED_REPLY

    def arguments(self) -> bytes:
        """None."""
        return b""

    def decode(self, cursor: PacketReader) -> Limits:
        """The limits, 0 meaning that none is stated."""
        packet, read, write = cursor.uint64(), cursor.uint64(), cursor.uint64()
        most = max(packet - 1024, 0) or Limits().read  # handle, offset and headers take less than 1 KiB
        return Limits(_block_size(read or Limits().read, most), _block_size(write or Limits().write, most))


def _block_size(stated: int, most: int) -> int:
    """The block length to use: at least `MIN_BLOCK`, so that no server makes a transfer of one-byte blocks."""
    return max(MIN_BLOCK, min(stated, most, 1 << 20))


def encode_init() -> bytes:
    """The packet that opens the conversation."""
    return _HEADER.pack(5, PacketType.INIT, VERSION)


def decode_version(frame: memoryview) -> dict[str, str]:
    """The server's extensions by name. ProtocolError if it does not speak version 3."""
    cursor = PacketReader(frame[1:])
    if frame[0] != PacketType.VERSION:
        raise ProtocolError(f"the first packet is of type {frame[0]}, not VERSION")
    version = cursor.uint32()
    if version != VERSION:
        raise ProtocolError(f"the server speaks SFTP version {version}, not {VERSION}")
    extensions = {}
    while cursor.remaining:
        name, data = cursor.text(), cursor.text()
        extensions[name] = data
    return extensions
