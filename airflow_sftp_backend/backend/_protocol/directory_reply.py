"""Read replies to READDIR without decoding each entry.

A reply has a name, a line of ``ls -l`` and attributes for each entry (filexfer-02 section 7). Regular files with the
attributes that most servers send stay bytes: in a large directory, most entries match no pattern. All other entries are
decoded at once.
"""

from __future__ import annotations

import stat
import struct
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from airflow_sftp_backend.backend._receive_limits import MAX_NAME_BYTES, check_name_bytes

from .codec import COMMON_FLAGS, TRUNCATED, UINT32, Attributes, DirEntry, PacketReader, ProtocolError

FILE_ATTRIBUTES: Final = struct.Struct(">QIIIII")
"""Attributes of a regular file without their flags: size, owner, group, mode, and the times of access and change."""
_SHORTEST_NAME: Final = 3
"""Bytes of the shortest name that stays bytes: shorter names may be empty, ``.`` or ``..``."""
_ENTRY_END: Final = struct.Struct(">I16xI8xI")
"""Flags and mode of an entry with the usual attributes, and the length of the next entry's name."""
_USUAL_ATTRIBUTES_BYTES: Final = UINT32.size + FILE_ATTRIBUTES.size
_PADDING: Final = bytes(_ENTRY_END.size)
"""Follows the packet, so that shorter attributes at its end can be read like the usual ones."""
_REGULAR_FILE: Final = stat.S_IFREG >> 12
_TYPE_LETTERS: Final = {b"d": stat.S_IFDIR, b"l": stat.S_IFLNK, b"-": stat.S_IFREG}


class OtherEntry(NamedTuple):
    """Entry that is not a regular file with the usual attributes.

    :ivar position: number of regular files before it in the reply
    """

    position: int
    name: bytes
    attributes: Attributes


class DirectoryReply:
    """Hold the entries of a reply in the order of the server.

    :param data: the packet after the number of its entries
    :param names: names of the regular files with the usual attributes
    :param offsets: for each name, the offset of its `FILE_ATTRIBUTES` in ``data``
    :param others: the other entries
    """

    __slots__ = ("_data", "_offsets", "encoding", "names", "others")

    def __init__(self, data: bytes, names: list[bytes], offsets: list[int], others: list[OtherEntry]) -> None:
        self._data = data
        self._offsets = offsets
        self.names = names
        """Names of the regular files."""
        self.others = others
        """Entries that are not regular files, or have unusual attributes or very short names."""
        self.encoding = "utf-8"
        """Encoding of the names."""

    def __len__(self) -> int:
        return len(self.names) + len(self.others)

    def __iter__(self) -> Iterator[DirEntry]:
        """Yield all entries, decoded."""
        first = 0
        for position, name, attributes in self.others:
            yield from map(self._entry, range(first, position))
            yield DirEntry(self.decode(name), attributes)
            first = position
        yield from map(self._entry, range(first, len(self.names)))

    @property
    def all_names(self) -> list[bytes]:
        """Names of all entries, in any order."""
        return [*self.names, *(entry.name for entry in self.others)] if self.others else self.names

    def decode(self, name: bytes) -> str:
        """Decode a name reversibly."""
        return str(name, self.encoding, "surrogateescape")

    def attributes(self, index: int) -> Attributes:
        """Return the attributes of a regular file.

        :param index: index of its name in `names`
        :returns: the attributes
        """
        return Attributes(*FILE_ATTRIBUTES.unpack_from(self._data, self._offsets[index]))

    def packed_attributes(self) -> bytes:
        """Return the `FILE_ATTRIBUTES` of all names."""
        data, size = self._data, FILE_ATTRIBUTES.size
        return b"".join([data[offset : offset + size] for offset in self._offsets])

    def remove(self, indexes: Sequence[int]) -> None:
        """Remove regular files.

        :param indexes: indexes of their names in `names`, ascending
        """
        removed = set(indexes)
        kept = [index for index in range(len(self.names)) if index not in removed]
        self.names = [self.names[index] for index in kept]
        self._offsets = [self._offsets[index] for index in kept]
        self.others = [
            entry._replace(position=entry.position - bisect_left(indexes, entry.position)) for entry in self.others
        ]

    def _entry(self, index: int) -> DirEntry:
        return DirEntry(self.decode(self.names[index]), self.attributes(index))


def read_entries(packet: memoryview, count: int) -> DirectoryReply:
    """Find the entries of a packet.

    A missing mode is derived from the first letter of the entry's ``ls -l`` line.

    :param packet: the packet after the number of its entries
    :param count: the number of its entries
    :returns: the entries
    :raises ProtocolError: if the packet ends before the last entry
    :raises LimitExceeded: for a name of more than `MAX_NAME_BYTES`
    """
    data = b"".join((packet, _PADDING))
    names: list[bytes] = []
    offsets: list[int] = []
    others: list[OtherEntry] = []
    # This loop runs for each name of a directory: it calls no function of Python, and looks up no attribute.
    add_name, add_offset = names.append, offsets.append
    read_length, read_entry_end = UINT32.unpack_from, _ENTRY_END.unpack_from
    start = UINT32.size  # of the name
    try:
        (length,) = read_length(data, 0)
        for _ in range(count):
            end = start + length
            attributes = end + 4 + read_length(data, end)[0]
            flags, mode, next_length = read_entry_end(data, attributes)
            if flags == COMMON_FLAGS and mode >> 12 == _REGULAR_FILE and _SHORTEST_NAME <= length <= MAX_NAME_BYTES:
                add_name(data[start:end])
                add_offset(attributes + 4)
                length, start = next_length, attributes + _USUAL_ATTRIBUTES_BYTES + 4
            else:
                check_name_bytes(length)
                reader = PacketReader(packet, attributes)
                line = data[end + 4 : attributes]
                others.append(OtherEntry(len(names), data[start:end], _with_type(reader.attributes(), line[:1])))
                (length,) = read_length(data, reader.offset)
                start = reader.offset + 4
    except struct.error:
        raise ProtocolError(TRUNCATED) from None
    if start - UINT32.size > len(packet):
        raise ProtocolError(TRUNCATED)
    return DirectoryReply(data, names, offsets, others)


def empty_reply() -> DirectoryReply:
    """Return the reply after the last entry."""
    return DirectoryReply(b"", [], [], [])


def _with_type(attributes: Attributes, letter: bytes) -> Attributes:
    """Add a missing mode."""
    if attributes.mode is None and letter in _TYPE_LETTERS:
        return Attributes(
            attributes.size,
            attributes.uid,
            attributes.gid,
            _TYPE_LETTERS[letter],
            attributes.atime,
            attributes.mtime,
        )
    return attributes
