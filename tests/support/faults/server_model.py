"""Model an SFTP 3 server in memory, from requests to replies.

The model decodes and encodes packets by itself, so that a fault in the package's codec cannot hide here. It behaves as
OpenSSH's sftp-server does (test_server_model.py compares the two request by request), unless `Traits` says otherwise.
"""

from __future__ import annotations

import errno
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

INIT, VERSION = 1, 2
OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT, SETSTAT, FSETSTAT, OPENDIR, READDIR = range(3, 13)
REMOVE, MKDIR, RMDIR, REALPATH, STAT, RENAME, READLINK = range(13, 20)
EXTENDED, STATUS, HANDLE, DATA, NAME, ATTRS, EXTENDED_REPLY = 200, 101, 102, 103, 104, 105, 201
NAMES: Final = {
    value: name for name, value in dict(globals()).items() if name.isupper() and isinstance(value, int)
}  # fmt: skip

_OK, _EOF, _MISSING, _DENIED, _FAILURE, _BAD_MESSAGE, _UNSUPPORTED = 0, 1, 2, 3, 4, 5, 8
_CODES: Final = {  # sftp-server.c: errno_to_portable
    errno.ENOENT: _MISSING, errno.ENOTDIR: _MISSING, errno.EBADF: _MISSING, errno.ELOOP: _MISSING,
    errno.EPERM: _DENIED, errno.EACCES: _DENIED, errno.EFAULT: _DENIED,
    errno.ENAMETOOLONG: _BAD_MESSAGE, errno.EINVAL: _BAD_MESSAGE, errno.ENOSYS: _UNSUPPORTED,
}  # fmt: skip
_FLAG_READ, _FLAG_WRITE, _FLAG_CREATE, _FLAG_TRUNCATE, _FLAG_EXCLUSIVE = 0x01, 0x02, 0x08, 0x10, 0x20


@dataclass(frozen=True)
class Traits:
    """Properties of the modelled server: extensions and renames."""

    posix_rename: Literal["replaces", "refuses", "absent"] = "replaces"
    plain_rename: Literal["refuses", "replaces"] = "refuses"
    renames_across: bool = True
    """False: renames between the directories of the second level fail, as between two file systems."""
    copy_data: bool = True
    limit: int = 4096
    """Most bytes of one READ or WRITE, in ``limits@openssh.com``; 0: the extension is absent."""
    banner: str = "SSH-2.0-Model"
    further_extensions: tuple[str, ...] = ()
    """Extensions that are announced and refused."""


@dataclass
class Node:
    """A file, directory or symbolic link."""

    kind: Literal["file", "directory", "link"]
    content: bytearray = field(default_factory=bytearray)
    mode: int = 0o644
    mtime: int = 0
    leads_to: str = ""

    def attributes(self) -> bytes:
        """The node's attributes, encoded."""
        types = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "link": stat.S_IFLNK}
        mode = types[self.kind] | self.mode
        return struct.pack(">IQIIIII", 0xF, len(self.content), 0, 0, mode, self.mtime, self.mtime)


class Fields:
    """Reads the fields of a packet from front to back."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        start, self._position = self._position, self._position + count
        assert self._position <= len(self._data), "the client sent a packet that is cut short"
        return self._data[start : self._position]

    def uint32(self) -> int:
        """A number of four bytes."""
        return int.from_bytes(self.take(4), "big")

    def uint64(self) -> int:
        """A number of eight bytes."""
        return int.from_bytes(self.take(8), "big")

    def string(self) -> bytes:
        """A counted string."""
        return self.take(self.uint32())

    def path(self) -> str:
        """Read a path; relative paths start at the root."""
        text = self.string().decode("utf-8", "surrogateescape")
        return "/" + "/".join(part for part in text.split("/") if part not in ("", "."))

    def mode_and_mtime(self) -> tuple[int | None, int | None]:
        """Mode and modification time of encoded attributes."""
        flags = self.uint32()
        if flags & 1:
            self.uint64()
        if flags & 2:
            self.take(8)
        mode = self.uint32() if flags & 4 else None
        mtime = (self.uint32(), self.uint32())[1] if flags & 8 else None
        return mode, mtime

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._position

    def rest(self) -> None:
        """Passes over everything that is left."""
        self._position = len(self._data)

    def end(self) -> None:
        """Fails unless everything was read."""
        assert self._position == len(self._data), "the client sent a packet with bytes at its end"


def encode_string(data: bytes) -> bytes:
    """A string of the protocol: its length, then its bytes."""
    return struct.pack(">I", len(data)) + data


@dataclass
class OpenFile:
    """Open handle of a file, or a directory with remaining entries."""

    node: Node
    readable: bool = True
    writable: bool = False
    is_directory: bool = False
    path: str = ""
    entries: list[tuple[str, Node]] | None = None


class Handles(dict[bytes, OpenFile]):
    """The open handles of one channel.

    The one that was closed last is given to the next file, as OpenSSH does it: a handle that is used after its CLOSE is
    soon another file's.
    """

    def __init__(self) -> None:
        super().__init__()
        self._free: list[bytes] = []
        self._made = 0

    def new(self, opened: OpenFile) -> bytes:
        """A handle for an open file."""
        if self._free:
            name = self._free.pop()
        else:
            name = struct.pack(">I", self._made)
            self._made += 1
        self[name] = opened
        return name

    def release(self, name: bytes) -> bool:
        """Closes a handle; False if it is not open."""
        if self.pop(name, None) is None:
            return False
        self._free.append(name)
        return True


@dataclass
class ModelServer:
    """Directory tree, and a clock in seconds since 1970."""

    traits: Traits
    clock: Callable[[], float]
    nodes: dict[str, Node] = field(default_factory=lambda: {"/": Node("directory", mode=0o755)})

    def add(self, path: str, content: bytes | None = None, *, age: int = 0, mode: int = 0o644) -> None:
        """Add a file, or without ``content`` a directory, with its parents."""
        parent = path.rpartition("/")[0] or "/"
        if parent not in self.nodes:
            self.add(parent)
        mtime = int(self.clock()) - age
        if content is None:
            self.nodes[path] = Node("directory", mode=0o755, mtime=mtime)
        else:
            self.nodes[path] = Node("file", bytearray(content), mode, mtime)

    def files(self) -> dict[str, bytes]:
        """The content of each file by its path."""
        return {path: bytes(node.content) for path, node in self.nodes.items() if node.kind == "file"}

    def extensions(self) -> dict[str, str]:
        """The extensions the server announces."""
        found = {}
        if self.traits.posix_rename != "absent":
            found["posix-rename@openssh.com"] = "1"
        if self.traits.copy_data:
            found["copy-data"] = "1"
        if self.traits.limit:
            found["limits@openssh.com"] = "1"
        return found | dict.fromkeys(self.traits.further_extensions, "2")

    def version(self) -> bytes:
        """The reply to INIT, without its length."""
        pairs = (
            encode_string(name.encode()) + encode_string(data.encode()) for name, data in self.extensions().items()
        )
        return struct.pack(">BI", VERSION, 3) + b"".join(pairs)

    def reply(self, handles: Handles, packet: bytes) -> bytes:
        """Carries out one request and returns its reply, both without their lengths."""
        if packet[0] == INIT:
            return self.version()
        fields = Fields(packet[5:])
        try:
            kind, body = self._carry_out(packet[0], fields, handles)
            fields.end()
        except OSError as error:
            kind, body = _status(_CODES.get(error.errno or 0, _FAILURE))
        return struct.pack(">B", kind) + packet[1:5] + body

    def _carry_out(self, kind: int, fields: Fields, handles: Handles) -> tuple[int, bytes]:
        if kind == EXTENDED:
            return self._extended(fields.string().decode(), fields, handles)
        if kind in (CLOSE, READ, WRITE, FSTAT, FSETSTAT, READDIR):
            return self._on_handle(kind, fields, handles)
        if kind == OPEN:
            return self._open(fields, handles)
        path = fields.path()
        if kind == OPENDIR:
            return _handle(handles.new(OpenFile(self._directory(path), is_directory=True, path=path)))
        if kind in (STAT, LSTAT, REALPATH, READLINK):
            return self._described(kind, path)
        if kind in (RENAME, SETSTAT, MKDIR, REMOVE, RMDIR):
            self._change(kind, path, fields)
            return _status(_OK)
        return _status(_UNSUPPORTED)

    def _described(self, kind: int, path: str) -> tuple[int, bytes]:
        """The attributes of a path, or a name for it."""
        if kind in (STAT, LSTAT):
            return ATTRS, self._resolved(path, follow=kind == STAT)[1].attributes()
        name = path if kind == REALPATH else self._read_link(path)
        return NAME, struct.pack(">I", 1) + encode_string(name.encode()) * 2 + struct.pack(">I", 0)

    def _change(self, kind: int, path: str, fields: Fields) -> None:
        """Carries out a request that changes the tree."""
        if kind == RENAME:
            self._rename(path, fields.path())
        elif kind == SETSTAT:
            mode, mtime = fields.mode_and_mtime()
            if (mode, mtime) != (None, None):
                _set(self._resolved(path)[1], mode, mtime)
        elif kind == MKDIR:
            self._make_directory(path, fields)
        else:
            self._remove(path, directory=kind == RMDIR)

    # -- paths --------------------------------------------------------------------------------------------------------

    def _resolved(self, path: str, *, follow: bool = True) -> tuple[str, Node]:
        """Return real path and node; links in parents are followed."""
        real, missing = self._real(path, follow=follow)
        if missing:
            raise OSError(errno.ENOENT, path)
        return real, self.nodes[real]

    def _real(self, path: str, *, follow: bool = True) -> tuple[str, bool]:
        """The real path of a name, and whether nothing has that name.

        OSError if a parent is missing.
        """
        here, left, links = "", [part for part in path.split("/") if part], 0
        while left:
            if self.nodes[here or "/"].kind != "directory":
                raise OSError(errno.ENOTDIR, path)
            here = f"{here}/{left.pop(0)}"
            node = self.nodes.get(here)
            if node is None:
                if left:
                    raise OSError(errno.ENOENT, path)
                return here, True
            if node.kind == "link" and (left or follow):
                links += 1
                if links > 40:
                    raise OSError(errno.ELOOP, path)
                start = "" if node.leads_to.startswith("/") else here.rpartition("/")[0]
                left = [part for part in f"{start}/{node.leads_to}".split("/") if part] + left
                here = ""
        return here or "/", False

    def _read_link(self, path: str) -> str:
        node = self._resolved(path, follow=False)[1]
        if node.kind != "link":
            raise OSError(errno.EINVAL, path)
        return node.leads_to

    def _directory(self, path: str) -> Node:
        node = self._resolved(path)[1]
        if node.kind != "directory":
            raise OSError(errno.ENOTDIR, path)
        return node

    def _listing(self, path: str) -> Iterator[tuple[str, Node]]:
        real, node = self._resolved(path)
        yield from ((".", node), ("..", node))
        prefix = real.rstrip("/") + "/"
        for name, child in self.nodes.items():
            if name.startswith(prefix) and name != "/" and "/" not in name[len(prefix) :]:
                yield name[len(prefix) :], child

    # -- requests with a path -----------------------------------------------------------------------------------------

    def _open(self, fields: Fields, handles: Handles) -> tuple[int, bytes]:
        path, flags = fields.path(), fields.uint32()
        mode, _ = fields.mode_and_mtime()
        exclusive = flags & _FLAG_EXCLUSIVE and flags & _FLAG_CREATE
        real, missing = self._real(path, follow=not exclusive)
        if missing:
            if not flags & _FLAG_CREATE:
                raise OSError(errno.ENOENT, path)
            self.nodes[real] = Node("file", mode=0o644 if mode is None else mode & 0o755, mtime=int(self.clock()))
        elif exclusive:
            raise OSError(errno.EEXIST, path)
        node = self.nodes[real]
        if node.kind == "directory" and flags & (_FLAG_WRITE | _FLAG_CREATE):
            raise OSError(errno.EISDIR, path)
        if flags & _FLAG_TRUNCATE and flags & _FLAG_WRITE:
            node.content.clear()
            node.mtime = int(self.clock())
        return _handle(handles.new(OpenFile(node, bool(flags & _FLAG_READ), bool(flags & _FLAG_WRITE))))

    def _rename(self, source: str, target: str) -> None:
        """Handle RENAME as OpenSSH does.

        RENAME: OpenSSH links and unlinks files, so that the new name must be free; what else there is it renames
        where STAT of the new name fails (sftp-server.c: process_rename).
        """
        source, node = self._resolved(source, follow=False)
        follows = node.kind != "file"
        try:
            taken = not self._real(target, follow=follows)[1]
        except OSError:
            taken = False
        if taken and self.traits.plain_rename == "refuses":
            raise OSError(errno.EEXIST, target)
        self._put(source, node, self._real(target, follow=False)[0])

    def _posix_rename(self, source: str, target: str) -> None:
        source, node = self._resolved(source, follow=False)
        target, free = self._real(target, follow=False)
        if not free and self.traits.posix_rename == "refuses":
            raise OSError(errno.EEXIST, target)
        self._put(source, node, target)

    def _put(self, source: str, node: Node, target: str) -> None:
        taken = self.nodes.get(target)
        if not self.traits.renames_across and source.split("/")[2:3] != target.split("/")[2:3]:
            raise OSError(errno.EXDEV, target)
        if source == target:
            return
        if node.kind == "directory" and target.startswith(f"{source}/"):
            raise OSError(errno.EINVAL, target)
        if taken is not None:
            if node.kind == "directory" and taken.kind != "directory":
                raise OSError(errno.ENOTDIR, target)
            if taken.kind == "directory" and (node.kind != "directory" or len([*self._listing(target)]) > 2):
                raise OSError(errno.EISDIR if node.kind != "directory" else errno.ENOTEMPTY, target)
        moved = {name: child for name, child in self.nodes.items() if name == source or name.startswith(f"{source}/")}
        for name, child in moved.items():
            del self.nodes[name]
            self.nodes[target + name[len(source) :]] = child

    def _make_directory(self, path: str, fields: Fields) -> None:
        mode, _ = fields.mode_and_mtime()
        real, free = self._real(path, follow=False)
        if not free:
            raise OSError(errno.EEXIST, path)
        self.nodes[real] = Node("directory", mode=0o755 if mode is None else mode & 0o755, mtime=int(self.clock()))

    def _remove(self, path: str, *, directory: bool) -> None:
        real, node = self._resolved(path, follow=False)
        if directory != (node.kind == "directory"):
            raise OSError(errno.ENOTDIR if directory else errno.EISDIR, path)
        if directory and len([*self._listing(real)]) > 2:
            raise OSError(errno.ENOTEMPTY, path)
        del self.nodes[real]

    # -- requests with a handle ---------------------------------------------------------------------------------------

    def _on_handle(self, kind: int, fields: Fields, handles: Handles) -> tuple[int, bytes]:
        name = fields.string()
        opened = handles.get(name)
        if kind == CLOSE:
            return _status(_OK if handles.release(name) else _MISSING)
        if kind == READ:
            return _read(opened, fields.uint64(), fields.uint32())
        if kind == WRITE:
            return self._write(opened, fields.uint64(), fields.string())
        if opened is None or (kind == READDIR) != (opened.is_directory):
            if kind == FSETSTAT:
                fields.mode_and_mtime()
            return _status(_FAILURE)
        if kind == FSTAT:
            return ATTRS, opened.node.attributes()
        if kind == FSETSTAT:
            _set(opened.node, *fields.mode_and_mtime())
            return _status(_OK)
        if opened.entries is None:
            opened.entries = self._entries(opened)
        return _names(opened)

    def _entries(self, opened: OpenFile) -> list[tuple[str, Node]]:
        """Return a directory's entries; none if it was replaced."""
        try:
            real, node = self._resolved(opened.path)
        except OSError:
            return []
        return [*self._listing(real)] if node is opened.node else []

    def _write(self, opened: OpenFile | None, offset: int, data: bytes) -> tuple[int, bytes]:
        if opened is None or opened.is_directory:
            return _status(_FAILURE)
        if not opened.writable:
            raise OSError(errno.EBADF, "not open for writing")
        content = opened.node.content
        content += bytes(max(0, offset + len(data) - len(content)))
        content[offset : offset + len(data)] = data
        opened.node.mtime = int(self.clock())
        return _status(_OK)

    # -- extensions ---------------------------------------------------------------------------------------------------

    def _extended(self, name: str, fields: Fields, handles: Handles) -> tuple[int, bytes]:
        if name not in self.extensions() or name in self.traits.further_extensions:
            fields.rest()
            return _status(_UNSUPPORTED)
        if name == "posix-rename@openssh.com":
            self._posix_rename(fields.path(), fields.path())
            return _status(_OK)
        if name == "limits@openssh.com":
            limit = self.traits.limit
            return EXTENDED_REPLY, struct.pack(">QQQQ", limit + 1024, limit, limit, 1000)
        source, start, length = fields.string(), fields.uint64(), fields.uint64()
        target, offset = fields.string(), fields.uint64()
        read, written = handles.get(source), handles.get(target)
        if read is None or written is None or read.node is written.node:
            return _status(_FAILURE)
        end = start + length if length else len(read.node.content)
        return self._write(written, offset, bytes(read.node.content[start:end]))


def _set(node: Node, mode: int | None, mtime: int | None) -> None:
    node.mode = node.mode if mode is None else mode & 0o7777
    node.mtime = node.mtime if mtime is None else mtime


def _status(code: int) -> tuple[int, bytes]:
    return STATUS, struct.pack(">I", code) + encode_string(b"as the model says") + encode_string(b"")


def _handle(name: bytes) -> tuple[int, bytes]:
    return HANDLE, encode_string(name)


def _read(opened: OpenFile | None, offset: int, length: int) -> tuple[int, bytes]:
    if opened is None or opened.is_directory:
        return _status(_FAILURE)
    if opened.node.kind == "directory":
        raise OSError(errno.EISDIR, "a directory")
    if not opened.readable:
        raise OSError(errno.EBADF, "not open for reading")
    data = bytes(opened.node.content[offset : offset + length])
    return (DATA, encode_string(data)) if data or not length else _status(_EOF)


def _names(opened: OpenFile) -> tuple[int, bytes]:
    assert opened.entries is not None
    batch, opened.entries = opened.entries[:100], opened.entries[100:]
    if not batch:
        return _status(_EOF)
    entries = (
        encode_string(name.encode("utf-8", "surrogateescape")) + encode_string(b"?") + node.attributes()
        for name, node in batch
    )
    return NAME, struct.pack(">I", len(batch)) + b"".join(entries)
