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
from airflow_sftp_backend.backend.errors import Code, Refused

from .codec import (
    NO_ATTRIBUTES,
    UINT32,
    UINT64,
    VERSION,
    Attributes,
    Cursor,
    Entry,
    Kind,
    Limits,
    OpenFlag,
    ProtocolError,
    encode_name,
    string,
)

R_co = TypeVar("R_co", covariant=True)

_HEAD: Final = struct.Struct(">IBI")  # length, type, request id
_READ_TAIL: Final = struct.Struct(">QI")
_REPLY_HEAD: Final = 9  # bytes before the body of a reply: length, type, request id
_NO_DATA: Final = memoryview(b"")


class Request(ABC, Generic[R_co]):
    """One request; ``R_co`` is what its reply is decoded to.

    ``cost`` is the number of bytes it, or its reply, keeps in flight beyond a header.
    """

    __slots__ = ()
    kind: ClassVar[Kind]
    reply_kind: ClassVar[Kind] = Kind.STATUS
    tracked: ClassVar[bool] = False
    """The request opens or closes a handle, which `handle_table` keeps account of."""

    @property
    def cost(self) -> int:
        """Bytes in flight on behalf of this request."""
        return 0

    @abstractmethod
    def body(self) -> bytes:
        """All that follows the request id."""

    @abstractmethod
    def decode(self, cursor: Cursor) -> R_co:
        """The reply of ``reply_kind``; ProtocolError if it is none."""

    def frame(self, request_id: int) -> bytes:
        """The whole packet."""
        body = self.body()
        return _HEAD.pack(len(body) + 5, self.kind, request_id) + body

    def answer(self, kind: int, cursor: Cursor) -> R_co:
        """The decoded reply. Raises Refused for a status that is not OK, ProtocolError for a reply of another type."""
        if kind == Kind.STATUS:
            return self.on_status(cursor)
        if kind != self.reply_kind:
            raise ProtocolError(f"a {self.kind.name} was answered by a packet of type {kind}")
        return self.decode(cursor)

    def on_status(self, cursor: Cursor) -> R_co:
        """What a STATUS reply means to this request."""
        code = cursor.uint32()
        if code == Code.OK and self.reply_kind == Kind.STATUS:
            return self.decode(cursor)
        raise self._refusal(code, cursor)

    def _refusal(self, code: int, cursor: Cursor) -> Refused:
        """Read the rest of a status that is no success; ProtocolError if it is one."""
        if code == Code.OK:
            raise ProtocolError(f"a {self.kind.name} was answered by a bare OK")
        return Refused(code, cursor.text() if cursor.left else "")  # servers before version 3 leave the text out


class _Acknowledged(Request[None]):
    """Answered by a status alone."""

    __slots__ = ()

    def decode(self, cursor: Cursor) -> None:
        """OK."""


class _Handled(Request[bytes]):
    """Answered by a handle: opaque, at most 256 bytes (filexfer-02 section 6.2)."""

    __slots__ = ()
    reply_kind = Kind.HANDLE

    def decode(self, cursor: Cursor) -> bytes:
        """The handle."""
        handle = bytes(cursor.view())
        if len(handle) > 256:
            raise ProtocolError(f"a handle of {len(handle)} bytes")
        return handle


class _Described(Request[Attributes]):
    """Answered by attributes."""

    __slots__ = ()
    reply_kind = Kind.ATTRS

    def decode(self, cursor: Cursor) -> Attributes:
        """The attributes."""
        return cursor.attributes()


@dataclass(frozen=True, slots=True)
class _OfPath:
    path: str

    def body(self) -> bytes:
        """The path."""
        return string(encode_name(self.path))


@dataclass(frozen=True, slots=True)
class _OfHandle:
    handle: bytes

    def body(self) -> bytes:
        """The handle."""
        return string(self.handle)


class Stat(_OfPath, _Described):
    """Attributes of what a path leads to; follows links."""

    __slots__ = ()
    kind = Kind.STAT


class LStat(_OfPath, _Described):
    """Attributes of what stands under a path; a link is a link."""

    __slots__ = ()
    kind = Kind.LSTAT


class FStat(_OfHandle, _Described):
    """Attributes of an open file."""

    __slots__ = ()
    kind = Kind.FSTAT


class OpenDir(_OfPath, _Handled):
    """Opens a folder for listing."""

    __slots__ = ()
    kind = Kind.OPENDIR
    tracked = True


class Remove(_OfPath, _Acknowledged):
    """Removes a file or a link."""

    __slots__ = ()
    kind = Kind.REMOVE


class RemoveDir(_OfPath, _Acknowledged):
    """Removes an empty folder."""

    __slots__ = ()
    kind = Kind.RMDIR


class MakeDir(_OfPath, _Acknowledged):
    """Makes a folder, with the server's default mode."""

    __slots__ = ()
    kind = Kind.MKDIR

    def body(self) -> bytes:
        """The path and no attributes."""
        return _OfPath.body(self) + NO_ATTRIBUTES.encode()


class Close(_OfHandle, _Acknowledged):
    """Closes a handle. A write the server put off may fail only here."""

    __slots__ = ()
    kind = Kind.CLOSE
    tracked = True


@dataclass(frozen=True, slots=True)
class Open(_Handled):
    """Opens a file. ``attributes`` apply if it is made."""

    kind = Kind.OPEN
    tracked = True
    path: str
    flags: OpenFlag
    attributes: Attributes = NO_ATTRIBUTES

    def body(self) -> bytes:
        """Path, flags, attributes."""
        return string(encode_name(self.path)) + UINT32.pack(self.flags) + self.attributes.encode()


@dataclass(frozen=True, slots=True)
class Read(Request[memoryview]):
    """Reads up to ``length`` bytes at ``offset``.

    The reply is empty at the end of the file, and may be short before it.
    """

    kind = Kind.READ
    reply_kind = Kind.DATA
    handle: bytes
    offset: int
    length: int

    @property
    def cost(self) -> int:
        """The length of a full reply."""
        return self.length

    def body(self) -> bytes:
        """Handle, offset, length."""
        return string(self.handle) + _READ_TAIL.pack(self.offset, self.length)

    def decode(self, cursor: Cursor) -> memoryview:
        """The bytes; ProtocolError if more than were asked for, or none."""
        data = cursor.view()
        if not 0 < len(data) <= self.length:
            raise ProtocolError(f"a read of {self.length} bytes was answered with {len(data)}")
        return data

    def on_status(self, cursor: Cursor) -> memoryview:
        """EOF is an empty reply."""
        code = cursor.uint32()
        if code == Code.EOF:
            return _NO_DATA
        raise self._refusal(code, cursor)


@dataclass(frozen=True, slots=True)
class Write(_Acknowledged):
    """Writes ``data`` at ``offset``."""

    kind = Kind.WRITE
    handle: bytes
    offset: int
    data: bytes | memoryview = field(repr=False)

    @property
    def cost(self) -> int:
        """The length of the data."""
        return len(self.data)

    def body(self) -> bytes:
        """Handle, offset, data."""
        return b"".join((self._head(), self.data))

    def frame(self, request_id: int) -> bytes:
        """The whole packet, the data copied once."""
        head = self._head()
        start = _HEAD.pack(len(head) + len(self.data) + 5, self.kind, request_id)
        return b"".join((start, head, self.data))

    def _head(self) -> bytes:
        return string(self.handle) + UINT64.pack(self.offset) + UINT32.pack(len(self.data))


@dataclass(frozen=True, slots=True)
class ReadDir(_OfHandle, Request[list[Entry]]):
    """The next entries of an open folder, as many as the server likes to send; empty at the end.

    ``tally`` counts each reply before it is decoded, in whatever order replies come.
    """

    kind = Kind.READDIR
    reply_kind = Kind.NAME
    tally: ListingTally | None = field(default=None, compare=False, repr=False)

    def decode(self, cursor: Cursor) -> list[Entry]:
        """The entries. A missing mode is taken from the first letter of the ``ls -l`` line beside the name.

        Raises BoundExceeded.
        """
        entries = []
        size = cursor.left + _REPLY_HEAD
        count = cursor.count(smallest=12)
        if self.tally is not None:
            self.tally.take(count, size)
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
            entries.append(Entry(name, attributes))
        return entries

    def on_status(self, cursor: Cursor) -> list[Entry]:
        """EOF is an empty reply."""
        code = cursor.uint32()
        if code == Code.EOF:
            return []
        raise self._refusal(code, cursor)


_TYPE_LETTERS: Final = {b"d": stat.S_IFDIR, b"l": stat.S_IFLNK, b"-": stat.S_IFREG}


@dataclass(frozen=True, slots=True)
class Rename(_Acknowledged):
    """Renames; refused by most servers if ``target`` exists (OpenSSH: always, for a file)."""

    kind = Kind.RENAME
    source: str
    target: str

    def body(self) -> bytes:
        """Both paths."""
        return string(encode_name(self.source)) + string(encode_name(self.target))


@dataclass(frozen=True, slots=True)
class SetStat(_Acknowledged):
    """Sets attributes of a path; follows links."""

    kind = Kind.SETSTAT
    path: str
    attributes: Attributes

    def body(self) -> bytes:
        """Path and attributes."""
        return string(encode_name(self.path)) + self.attributes.encode()


@dataclass(frozen=True, slots=True)
class FSetStat(_Acknowledged):
    """Sets attributes of an open file."""

    kind = Kind.FSETSTAT
    handle: bytes
    attributes: Attributes

    def body(self) -> bytes:
        """Handle and attributes."""
        return string(self.handle) + self.attributes.encode()


class _Named(Request[str]):
    __slots__ = ()
    reply_kind = Kind.NAME

    def decode(self, cursor: Cursor) -> str:
        """The one name of the reply."""
        if cursor.count(smallest=12) != 1:
            raise ProtocolError(f"a {self.kind.name} was not answered by one name")
        return cursor.text()


class RealPath(_OfPath, _Named):
    """The absolute path a path leads to, as the server sees it."""

    __slots__ = ()
    kind = Kind.REALPATH


class ReadLink(_OfPath, _Named):
    """Request the target of a link, as the link stores it."""

    __slots__ = ()
    kind = Kind.READLINK


class _Extended(Request[R_co]):
    """A request named by text (filexfer-02 section 8)."""

    __slots__ = ()
    kind = Kind.EXTENDED
    extension: ClassVar[str]

    def body(self) -> bytes:
        """The extension's name and its arguments."""
        return string(self.extension.encode("ascii")) + self.arguments()

    @abstractmethod
    def arguments(self) -> bytes:
        """What follows the name."""


@dataclass(frozen=True, slots=True)
class PosixRename(_Extended[None], _Acknowledged):
    """``rename(2)``: replaces ``target`` in one step (OpenSSH PROTOCOL section 4.3)."""

    extension = "posix-rename@openssh.com"
    source: str
    target: str

    def arguments(self) -> bytes:
        """Both paths."""
        return string(encode_name(self.source)) + string(encode_name(self.target))


@dataclass(frozen=True, slots=True)
class CopyData(_Extended[None], _Acknowledged):
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
            string(self.source)
            + UINT64.pack(self.source_offset)
            + UINT64.pack(self.length)
            + string(self.target)
            + UINT64.pack(self.target_offset)
        )


@dataclass(frozen=True, slots=True)
class AskLimits(_Extended[Limits]):
    """Most bytes a request may carry (``limits@openssh.com``, OpenSSH PROTOCOL section 4.8)."""

    extension = "limits@openssh.com"
    reply_kind = Kind.EXTENDED_REPLY

    def arguments(self) -> bytes:
        """None."""
        return b""

    def decode(self, cursor: Cursor) -> Limits:
        """The limits, 0 meaning that none is stated."""
        packet, read, write = cursor.uint64(), cursor.uint64(), cursor.uint64()
        room = max(packet - 1024, 0) or Limits().read  # handle, offset and headers take less than 1 KiB
        return Limits(_block(read or Limits().read, room), _block(write or Limits().write, room))


def _block(stated: int, room: int) -> int:
    """The block length to use: at least `MIN_BLOCK`, so that no server makes a transfer of one-byte blocks."""
    return max(MIN_BLOCK, min(stated, room, 1 << 20))


def encode_init() -> bytes:
    """The packet that opens the conversation."""
    return _HEAD.pack(5, Kind.INIT, VERSION)


def decode_version(frame: memoryview) -> dict[str, str]:
    """The server's extensions by name. ProtocolError if it does not speak version 3."""
    cursor = Cursor(frame[1:])
    if frame[0] != Kind.VERSION:
        raise ProtocolError(f"the first packet is of type {frame[0]}, not VERSION")
    version = cursor.uint32()
    if version != VERSION:
        raise ProtocolError(f"the server speaks SFTP version {version}, not {VERSION}")
    extensions = {}
    while cursor.left:
        name, data = cursor.text(), cursor.text()
        extensions[name] = data
    return extensions
