"""Encode the requests of SFTP version 3 and decode their replies.

Sources: draft-ietf-secsh-filexfer-02 sections 6 to 8, and OpenSSH PROTOCOL section 4. Nothing is sent or received here.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Final, Generic, TypeVar

from airflow_sftp_backend.backend._receive_limits import MIN_BLOCK, ListingTally
from airflow_sftp_backend.backend.errors import StatusCode, StatusError

from .codec import (
    NO_ATTRIBUTES,
    UINT32,
    UINT64,
    VERSION,
    Attributes,
    OpenFlag,
    PacketReader,
    PacketType,
    ProtocolError,
    ServerLimits,
    encode_name,
    encode_string,
)
from .directory_reply import DirectoryReply, empty_reply, read_entries

R_co = TypeVar("R_co", covariant=True)

_HEADER: Final = struct.Struct(">IBI")  # length, type, request id
_OFFSET_AND_LENGTH: Final = struct.Struct(">QI")
_REPLY_HEADER_BYTES: Final = 9  # bytes before the body of a reply: length, type, request id
_NO_DATA: Final = memoryview(b"")


class Request(ABC, Generic[R_co]):
    """Encode a request, and decode its reply to ``R_co``."""

    __slots__ = ()
    packet_type: ClassVar[PacketType]
    reply_type: ClassVar[PacketType] = PacketType.STATUS
    tracked: ClassVar[bool] = False
    """True if the request opens or closes a handle, for `handle_table`."""
    has_payload: ClassVar[bool] = False
    """True if `payload_size` may be more than 0."""

    @property
    def payload_size(self) -> int:
        """Bytes that the request or its reply keeps in flight, without headers."""
        return 0

    @abstractmethod
    def body(self) -> bytes:
        """Encode the fields after the request id."""

    @abstractmethod
    def decode(self, reader: PacketReader) -> R_co:
        """Decode a reply of ``reply_type``. Raises ProtocolError if the reply is invalid."""

    def packet(self, request_id: int) -> bytes:
        """Encode the packet, with its length, type and request id."""
        body = self.body()
        return _HEADER.pack(len(body) + 5, self.packet_type, request_id) + body

    def decode_reply(self, packet_type: int, reader: PacketReader) -> R_co:
        """Decode a reply of any type.

        :raises StatusError: for a status other than OK
        :raises ProtocolError: for an invalid reply, or a reply of another type
        """
        if packet_type == PacketType.STATUS:
            return self.decode_status(reader)
        if packet_type != self.reply_type:
            raise ProtocolError(f"a {self.packet_type.name} was answered by a packet of type {packet_type}")
        return self.decode(reader)

    def decode_status(self, reader: PacketReader) -> R_co:
        """Interpret a STATUS reply to the request."""
        code = reader.uint32()
        if code == StatusCode.OK and self.reply_type == PacketType.STATUS:
            return self.decode(reader)
        raise self._status_error(code, reader)

    def _status_error(self, code: int, reader: PacketReader) -> StatusError:
        """Create the error of a STATUS reply.

        Raises ProtocolError if the status is OK.
        """
        if code == StatusCode.OK:
            raise ProtocolError(f"a {self.packet_type.name} was answered by a bare OK")
        # servers of protocol versions before 3 omit the text
        return StatusError(code, reader.text() if reader.remaining else "")


class _StatusReply(Request[None]):
    """Base of requests that are answered by a STATUS."""

    __slots__ = ()

    def decode(self, reader: PacketReader) -> None:
        """Accept the status OK."""


class _HandleReply(Request[bytes]):
    """Base of requests that are answered by a handle.

    A handle is opaque, and has at most 256 bytes (filexfer-02 section 6.2).
    """

    __slots__ = ()
    reply_type = PacketType.HANDLE

    def decode(self, reader: PacketReader) -> bytes:
        """Return the handle."""
        handle = bytes(reader.view())
        if len(handle) > 256:
            raise ProtocolError(f"a handle of {len(handle)} bytes")
        return handle


class _AttributesReply(Request[Attributes]):
    """Base of requests that are answered by attributes."""

    __slots__ = ()
    reply_type = PacketType.ATTRS

    def decode(self, reader: PacketReader) -> Attributes:
        """Return the attributes."""
        return reader.attributes()


@dataclass(frozen=True, slots=True)
class _PathRequest:
    path: str

    def body(self) -> bytes:
        """Encode the path."""
        return encode_string(encode_name(self.path))


@dataclass(frozen=True, slots=True)
class _HandleRequest:
    handle: bytes

    def body(self) -> bytes:
        """Encode the handle."""
        return encode_string(self.handle)


class Stat(_PathRequest, _AttributesReply):
    """Request the attributes of a path. Follows links."""

    __slots__ = ()
    packet_type = PacketType.STAT


class LStat(_PathRequest, _AttributesReply):
    """Request the attributes of a path.

    Does not follow a link in its last segment.
    """

    __slots__ = ()
    packet_type = PacketType.LSTAT


class FStat(_HandleRequest, _AttributesReply):
    """Request the attributes of an open file."""

    __slots__ = ()
    packet_type = PacketType.FSTAT


class OpenDir(_PathRequest, _HandleReply):
    """Open a directory for listing."""

    __slots__ = ()
    packet_type = PacketType.OPENDIR
    tracked = True


class Remove(_PathRequest, _StatusReply):
    """Remove a file or a link."""

    __slots__ = ()
    packet_type = PacketType.REMOVE


class RemoveDir(_PathRequest, _StatusReply):
    """Remove an empty directory."""

    __slots__ = ()
    packet_type = PacketType.RMDIR


class MakeDir(_PathRequest, _StatusReply):
    """Create a directory with the server's default mode."""

    __slots__ = ()
    packet_type = PacketType.MKDIR

    def body(self) -> bytes:
        """Encode the path without attributes."""
        return _PathRequest.body(self) + NO_ATTRIBUTES.encode()


class Close(_HandleRequest, _StatusReply):
    """Close a handle.

    The error of a delayed write may appear only here.
    """

    __slots__ = ()
    packet_type = PacketType.CLOSE
    tracked = True


@dataclass(frozen=True, slots=True)
class Open(_HandleReply):
    """Open a file. ``attributes`` apply to a created file."""

    packet_type = PacketType.OPEN
    tracked = True
    path: str
    flags: OpenFlag
    attributes: Attributes = NO_ATTRIBUTES

    def body(self) -> bytes:
        """Encode path, flags and attributes."""
        return encode_string(encode_name(self.path)) + UINT32.pack(self.flags) + self.attributes.encode()


@dataclass(frozen=True, slots=True)
class Read(Request[memoryview]):
    """Read up to ``length`` bytes at ``offset``.

    The reply is empty at the end of the file, and may be short before the end.
    """

    packet_type = PacketType.READ
    has_payload = True
    reply_type = PacketType.DATA
    handle: bytes
    offset: int
    length: int

    @property
    def payload_size(self) -> int:
        """Bytes of a full reply."""
        return self.length

    def body(self) -> bytes:
        """Encode handle, offset and length."""
        return encode_string(self.handle) + _OFFSET_AND_LENGTH.pack(self.offset, self.length)

    def decode(self, reader: PacketReader) -> memoryview:
        """Return the data.

        Raises ProtocolError for an empty reply or more than ``length`` bytes.
        """
        data = reader.view()
        if not 0 < len(data) <= self.length:
            raise ProtocolError(f"a read of {self.length} bytes was answered with {len(data)}")
        return data

    def decode_status(self, reader: PacketReader) -> memoryview:
        """Return no data for the status EOF."""
        code = reader.uint32()
        if code == StatusCode.EOF:
            return _NO_DATA
        raise self._status_error(code, reader)


@dataclass(frozen=True, slots=True)
class Write(_StatusReply):
    """Write ``data`` at ``offset``."""

    packet_type = PacketType.WRITE
    has_payload = True
    handle: bytes
    offset: int
    data: bytes | memoryview = field(repr=False)

    @property
    def payload_size(self) -> int:
        """Bytes of the data."""
        return len(self.data)

    def body(self) -> bytes:
        """Encode handle, offset and data."""
        return b"".join((self._body_before_data(), self.data))

    def packet(self, request_id: int) -> bytes:
        """Encode the packet and copy the data only once."""
        head = self._body_before_data()
        start = _HEADER.pack(len(head) + len(self.data) + 5, self.packet_type, request_id)
        return b"".join((start, head, self.data))

    def _body_before_data(self) -> bytes:
        return encode_string(self.handle) + UINT64.pack(self.offset) + UINT32.pack(len(self.data))


@dataclass(frozen=True, slots=True)
class ReadDir(_HandleRequest, Request[DirectoryReply]):
    """Read the next entries of an open directory.

    The server sets their number; the last reply is empty.

    :param handle: the handle of the directory
    :param tally: counts each reply before it is decoded, in the order of arrival
    """

    packet_type = PacketType.READDIR
    reply_type = PacketType.NAME
    tally: ListingTally | None = field(default=None, compare=False, repr=False)

    def decode(self, reader: PacketReader) -> DirectoryReply:
        """Return the entries.

        :raises LimitExceeded: if the listing exceeds the limits of ``tally``
        """
        size = reader.remaining + _REPLY_HEADER_BYTES
        count = reader.count(smallest=12)
        if self.tally is not None:
            self.tally.add_reply(count, size)
        return read_entries(reader.rest(), count)

    def decode_status(self, reader: PacketReader) -> DirectoryReply:
        """Return no entries for the status EOF."""
        code = reader.uint32()
        if code == StatusCode.EOF:
            return empty_reply()
        raise self._status_error(code, reader)


@dataclass(frozen=True, slots=True)
class Rename(_StatusReply):
    """Rename a file or directory.

    Most servers refuse an existing ``target`` (OpenSSH: always, for a file).
    """

    packet_type = PacketType.RENAME
    source: str
    target: str

    def body(self) -> bytes:
        """Encode both paths."""
        return encode_string(encode_name(self.source)) + encode_string(encode_name(self.target))


@dataclass(frozen=True, slots=True)
class SetStat(_StatusReply):
    """Set attributes of a path. Follows links."""

    packet_type = PacketType.SETSTAT
    path: str
    attributes: Attributes

    def body(self) -> bytes:
        """Encode path and attributes."""
        return encode_string(encode_name(self.path)) + self.attributes.encode()


@dataclass(frozen=True, slots=True)
class FSetStat(_StatusReply):
    """Set attributes of an open file."""

    packet_type = PacketType.FSETSTAT
    handle: bytes
    attributes: Attributes

    def body(self) -> bytes:
        """Encode handle and attributes."""
        return encode_string(self.handle) + self.attributes.encode()


class _NameReply(Request[str]):
    __slots__ = ()
    reply_type = PacketType.NAME

    def decode(self, reader: PacketReader) -> str:
        """Return the single name of the reply."""
        if reader.count(smallest=12) != 1:
            raise ProtocolError(f"a {self.packet_type.name} was not answered by one name")
        return reader.text()


class RealPath(_PathRequest, _NameReply):
    """Request the absolute path of a path on the server."""

    __slots__ = ()
    packet_type = PacketType.REALPATH


class ReadLink(_PathRequest, _NameReply):
    """Request the stored target of a link."""

    __slots__ = ()
    packet_type = PacketType.READLINK


class _ExtendedRequest(Request[R_co]):
    """Send a request identified by name (filexfer-02 section 8)."""

    __slots__ = ()
    packet_type = PacketType.EXTENDED
    extension: ClassVar[str]

    def body(self) -> bytes:
        """Encode the name of the extension and its arguments."""
        return encode_string(self.extension.encode("ascii")) + self.arguments()

    @abstractmethod
    def arguments(self) -> bytes:
        """Encode the fields after the name."""


@dataclass(frozen=True, slots=True)
class PosixRename(_ExtendedRequest[None], _StatusReply):
    """Rename and replace ``target`` in one step.

    The server uses ``rename(2)`` (OpenSSH PROTOCOL section 4.3).
    """

    extension = "posix-rename@openssh.com"
    source: str
    target: str

    def arguments(self) -> bytes:
        """Encode both paths."""
        return encode_string(encode_name(self.source)) + encode_string(encode_name(self.target))


@dataclass(frozen=True, slots=True)
class CopyData(_ExtendedRequest[None], _StatusReply):
    """Copy bytes between two open files on the server.

    A ``length`` of 0 means up to the end.

    Source: draft-ietf-secsh-filexfer-extensions-00 section 7.
    """

    extension = "copy-data"
    source: bytes
    source_offset: int
    length: int
    target: bytes
    target_offset: int

    def arguments(self) -> bytes:
        """Encode the ranges of source and target.

        These are handle, offset and length of the source, then handle and offset of the target.
        """
        return (
            encode_string(self.source)
            + UINT64.pack(self.source_offset)
            + UINT64.pack(self.length)
            + encode_string(self.target)
            + UINT64.pack(self.target_offset)
        )


@dataclass(frozen=True, slots=True)
class LimitsRequest(_ExtendedRequest[ServerLimits]):
    """Request the maximum sizes of requests (``limits@openssh.com``, OpenSSH PROTOCOL section 4.8)."""

    extension = "limits@openssh.com"
    reply_type = PacketType.EXTENDED_REPLY

    def arguments(self) -> bytes:
        """Encode no arguments."""
        return b""

    def decode(self, reader: PacketReader) -> ServerLimits:
        """Return the sizes for reads and writes.

        The default replaces a limit of 0, which is not stated.
        """
        packet, read, write = reader.uint64(), reader.uint64(), reader.uint64()
        default = ServerLimits()
        maximum = max(packet - 1024, 0) or default.read  # handle, offset and headers take less than 1 KiB
        return ServerLimits(_block_size(read or default.read, maximum), _block_size(write or default.write, maximum))


def _block_size(stated: int, maximum: int) -> int:
    """Return the block size to use, at least `MIN_BLOCK`."""
    # A server must not force blocks of a byte
    return max(MIN_BLOCK, min(stated, maximum, 1 << 20))


def encode_init() -> bytes:
    """Encode the first packet of a channel."""
    return _HEADER.pack(5, PacketType.INIT, VERSION)


def decode_version(packet: memoryview) -> dict[str, str]:
    """Return the server's extensions by name.

    Raises ProtocolError unless the server uses version 3.
    """
    reader = PacketReader(packet[1:])
    if packet[0] != PacketType.VERSION:
        raise ProtocolError(f"the first packet is of type {packet[0]}, not VERSION")
    version = reader.uint32()
    if version != VERSION:
        raise ProtocolError(f"the server speaks SFTP version {version}, not {VERSION}")
    extensions = {}
    while reader.remaining:
        name, data = reader.text(), reader.text()
        extensions[name] = data
    return extensions
