"""Hold the entries of a listed directory in little memory.

A caller may delete or move files while it takes entries of a listing. Many servers then skip entries that they have not
sent yet, or send new ones. Therefore a directory is read to its end before the first entry is returned. Until an entry
is taken, its name and attributes stay bytes, which are compressed in large directories.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from airflow_sftp_backend.backend._paths import RemotePath, is_temp_name
from airflow_sftp_backend.backend._protocol.codec import Attributes, DirEntry
from airflow_sftp_backend.backend._protocol.directory_reply import FILE_ATTRIBUTES, DirectoryReply
from airflow_sftp_backend.backend._protocol.scheduler import Operation
from airflow_sftp_backend.backend._receive_limits import ListingTally
from airflow_sftp_backend.backend.models import FileInfo, FolderEntry, create_file_info, utc

from .file_info import to_file_info, to_folder_entry
from .links import with_links_detected
from .listing import Listing, read_directory, remove_unsafe_files, safe_entries, stat_links, with_file_types

_FILE_INFO: Final = struct.Struct(">Q8xI4xI")
"""Size, mode and time of change in `FILE_ATTRIBUTES`."""
_BLOCK_FILES: Final = 2000
"""Number of files that are compressed together."""
_SEPARATOR: Final = "/"
"""Separates names in a block: no name contains it."""


@dataclass(slots=True)
class TreeEntry:
    """Entry found on a walk.

    A link has its own attributes and those of its target (None if dangling).
    """

    path: RemotePath
    attributes: Attributes
    target_attributes: Attributes | None

    @property
    def is_file(self) -> bool:
        """True for a file or a link to a file."""
        return self.target_attributes is not None and self.target_attributes.is_file

    @property
    def is_folder(self) -> bool:
        """True for a directory or a link to a directory."""
        return self.target_attributes is not None and self.target_attributes.is_folder

    def to_file_info(self) -> FileInfo:
        """Convert the entry to a FileInfo."""
        return to_file_info(self.path, self.target_attributes or self.attributes)

    def to_folder_entry(self) -> FolderEntry:
        """Convert the entry to a FolderEntry."""
        return to_folder_entry(self.path, self.target_attributes or self.attributes)


class _FileBlocks:
    """Store names and attributes of regular files, compressed if they are many."""

    def __init__(self) -> None:
        self.count = 0
        self._names: list[bytes] = []
        self._attributes: list[bytes] = []
        self._blocks: list[tuple[bytes, bytes]] = []

    def add(self, reply: DirectoryReply) -> None:
        """Store the regular files of a reply, whose names are safe."""
        self.count += len(reply.names)
        self._names += reply.names
        self._attributes.append(reply.packed_attributes())
        if len(self._names) >= _BLOCK_FILES:
            # The fastest level: it takes a few per cent of the listing's time, and makes a tenth of usual names.
            self._blocks.append((zlib.compress(self._joined_names, 1), zlib.compress(b"".join(self._attributes), 1)))
            self._names, self._attributes = [], []

    @property
    def _joined_names(self) -> bytes:
        return _SEPARATOR.encode().join(self._names)

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield joined names and joined attributes of some files at a time."""
        for names, attributes in self._blocks:
            yield zlib.decompress(names), zlib.decompress(attributes)
        if self._names:
            yield self._joined_names, b"".join(self._attributes)


class _Files(NamedTuple):
    """Successive regular files of a directory."""

    names: list[str]
    attributes: bytes
    may_have_temps: bool


class ListedDirectory:
    """Hold the entries of a directory in the order of the server.

    :param path: the directory
    :param tally: counts the entries with unsafe names
    """

    __slots__ = ("_encoding", "_files", "_others", "_path", "_positions", "_tally", "others")

    def __init__(self, path: RemotePath, tally: ListingTally) -> None:
        self._path = path
        self._tally = tally
        self._encoding = "utf-8"
        self._files = _FileBlocks()
        self._others: Listing = []
        self._positions: dict[RemotePath, int] = {}
        self.others: list[TreeEntry] = []
        """Entries that are not regular files, or have unusual attributes or very short names."""

    def add(self, reply: DirectoryReply) -> None:
        """Take the entries of a reply."""
        self._encoding = reply.encoding
        remove_unsafe_files(self._path, reply, self._tally)
        for position, name, attributes in reply.others:
            for path, _ in safe_entries(self._path, [DirEntry(reply.decode(name), attributes)], self._tally):
                self._positions[path] = self._files.count + position
                self._others.append((path, attributes))
        self._files.add(reply)

    def examine_others(self, *, descends: bool) -> Operation[None]:
        """Request missing types, and the targets of links.

        :param descends: distinguish links from directories
        """
        self.others = yield from with_targets(self._others, descends=descends)
        self._others = []

    def __iter__(self) -> Iterator[TreeEntry]:
        """Yield all entries."""
        for part in self._parts():
            if isinstance(part, TreeEntry):
                yield part
                continue
            for name, fields in zip(part.names, FILE_ATTRIBUTES.iter_unpack(part.attributes), strict=True):
                attributes = Attributes(*fields)
                yield TreeEntry(self._path.entry(name), attributes, attributes)

    def file_infos(self) -> Iterator[FileInfo]:
        """Yield the files and the links to files, without temporary files."""
        prefix = f"{self._path.key}/" if self._path.key else ""
        for part in self._parts():
            if isinstance(part, TreeEntry):
                if part.is_file and not is_temp_name(part.path.name):
                    yield part.to_file_info()
                continue
            for name, (size, mode, mtime) in zip(part.names, _FILE_INFO.iter_unpack(part.attributes), strict=True):
                if not (part.may_have_temps and is_temp_name(name)):
                    yield create_file_info(prefix + name, name, size, utc(mtime), mode & 0o7777)

    def _parts(self) -> Iterator[_Files | TreeEntry]:
        """Yield the entries in order, regular files together."""
        others = deque(self.others)
        count, width = 0, FILE_ATTRIBUTES.size  # the number of files so far
        for joined, attributes in self._files:
            names = str(joined, self._encoding, "surrogateescape").split(_SEPARATOR)
            may_have_temps = b".part" in joined or b".backup" in joined
            first = 0
            while others and (end := self._positions[others[0].path] - count) < len(names):
                yield _Files(names[first:end], attributes[first * width : end * width], may_have_temps)
                yield others.popleft()
                first = max(first, end)  # a server may list a name twice, and its last position counts
            yield _Files(names[first:], attributes[first * width :], may_have_temps)
            count += len(names)
        yield from others


def with_targets(entries: Listing, *, descends: bool) -> Operation[list[TreeEntry]]:
    """Request the missing types of entries, and the targets of links.

    :param entries: the entries
    :param descends: distinguish links from directories
    :returns: the entries, without directories removed meanwhile
    :raises SFTPBackendError: if the server does not distinguish links from directories
    """
    entries = yield from with_file_types(entries)
    if descends:
        entries = yield from with_links_detected(entries)
    targets = yield from stat_links(entries)
    return [TreeEntry(path, attributes, targets.get(path, attributes)) for path, attributes in entries]


def list_directory(
    path: RemotePath, tally: ListingTally, read_ahead: int, *, descends: bool
) -> Operation[ListedDirectory]:
    """List a directory with the targets of its links.

    :param path: the directory
    :param tally: counts the replies
    :param read_ahead: number of READDIR requests to send at first
    :param descends: distinguish links from directories
    :returns: the entries, with temporary files
    :raises SFTPBackendError: as for `read_directory`, or if the server does not distinguish links from directories
    """
    listed, _ = yield from read_directory(path, tally, read_ahead, lambda: ListedDirectory(path, tally))
    yield from listed.examine_others(descends=descends)
    return listed
