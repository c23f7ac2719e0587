"""The model server replies to each request as OpenSSH's sftp-server does."""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.faults import server_model
from tests.support.faults.network import Clock
from tests.support.faults.server_model import Fields, Handles, ModelServer, Traits, encode_string
from tests.support.servers import sftp_server_path

NAMES: Final = ("a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "l", "l/a", "m", "missing/a", "a/b", "d/..x")
SEQUENCES, LENGTH = 100, 80


class SftpServer:
    """OpenSSH's sftp-server program on standard input and output."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [str(sftp_server_path()), "-u", "022"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.version = self.reply(struct.pack(">BI", 1, 3))

    def reply(self, packet: bytes) -> bytes:
        """The reply to one packet, both without their lengths."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(struct.pack(">I", len(packet)) + packet)
        self._process.stdin.flush()
        length = int.from_bytes(self._process.stdout.read(4), "big")
        return self._process.stdout.read(length)

    def end(self) -> None:
        """Ends it."""
        self._process.communicate()


@pytest.fixture
def real(sshd: str) -> Iterator[SftpServer]:
    """OpenSSH's sftp-server."""
    assert sshd
    server = SftpServer()
    yield server
    server.end()


def request(chance: random.Random, base: str, handles: list[bytes]) -> bytes:
    """A request with arguments drawn at random, without its id."""

    def path() -> bytes:
        return encode_string(f"{base}/{chance.choice(NAMES)}".encode())

    def handle() -> bytes:
        return encode_string(chance.choice([*handles, *handles, *handles, b"\0\0\0\x63"]))

    attributes = chance.choice([struct.pack(">I", 0), struct.pack(">II", 4, 0o640), struct.pack(">III", 8, 7, 9)])
    mode = chance.choice([struct.pack(">I", 0), struct.pack(">II", 4, 0o700)])
    flags = chance.choice([1, 2, 3, 2 | 8, 2 | 8 | 16, 2 | 8 | 32, 1 | 2 | 8 | 32, 2 | 16])
    offset, data = chance.randrange(12), bytes(chance.randrange(256) for _ in range(chance.randrange(9)))
    makers: dict[int, Callable[[], bytes]] = {
        server_model.OPEN: lambda: path() + struct.pack(">I", flags) + mode,
        server_model.CLOSE: handle,
        server_model.READ: lambda: handle() + struct.pack(">QI", offset, 1 + chance.randrange(20)),
        server_model.WRITE: lambda: handle() + struct.pack(">Q", offset) + encode_string(data or b"."),
        server_model.LSTAT: path,
        server_model.STAT: path,
        server_model.FSTAT: handle,
        server_model.SETSTAT: lambda: path() + attributes,
        server_model.FSETSTAT: lambda: handle() + attributes,
        server_model.OPENDIR: path,
        server_model.READLINK: path,
        server_model.READDIR: handle,
        server_model.REMOVE: path,
        server_model.MKDIR: lambda: path() + mode,
        server_model.RMDIR: path,
        server_model.RENAME: lambda: path() + path(),
    }
    if chance.random() < 0.2:
        if chance.random() < 0.6:
            return bytes([server_model.EXTENDED]) + encode_string(b"posix-rename@openssh.com") + path() + path()
        numbers = struct.pack(">QQ", 1, 2)
        return (
            bytes([server_model.EXTENDED])
            + encode_string(b"copy-data")
            + handle()
            + numbers
            + handle()
            + struct.pack(">Q", 2)
        )
    kind = chance.choice([*makers, server_model.OPEN, server_model.OPEN, server_model.WRITE, server_model.RENAME])
    return bytes([kind]) + makers[kind]()


def is_unusual_copy(packet_body: bytes, handles: Handles) -> bool:
    """Return whether the status of a copy is not comparable.

    True for a copy between other than two open files, or of bytes that are not there: which status that has depends
    on what the server did before.
    """
    fields = Fields(packet_body[1:])
    if packet_body[0] != server_model.EXTENDED or fields.string() != b"copy-data":
        return False
    source, end = handles.get(fields.string()), fields.uint64() + fields.uint64()
    target = handles.get(fields.string())
    if source is None or target is None or source.node is target.node:
        return True
    return not source.readable or not target.writable or end > len(source.node.content)


def meaning(packet_reply: bytes) -> tuple[object, ...]:
    """Reduce a reply to the parts that both servers must share."""
    kind, fields = packet_reply[0], Fields(packet_reply[5:])
    if kind == server_model.STATUS:
        return kind, fields.uint32()
    if kind == server_model.ATTRS:
        return kind, described(fields)
    if kind == server_model.NAME:
        entries = []
        for _ in range(fields.uint32()):
            name, _ = fields.string(), fields.string()
            attributes = described(fields)
            entries.append((name, (0o4,) if name == b".." else attributes))
        return kind, sorted(entries)
    return kind, fields.string()


def described(fields: Fields) -> tuple[int, ...]:
    """Return type, mode and size, and the time if it was set."""
    flags = fields.uint32()
    if not flags:  # of a name that READLINK gives
        return ()
    assert flags == 0xF
    size, _, _, mode = fields.uint64(), fields.uint32(), fields.uint32(), fields.uint32()
    mtime = (fields.uint32(), fields.uint32())[1]
    kind = mode >> 12
    if kind == 0o12:  # a link: mode bits mean nothing
        return (kind,)
    if kind == 0o4:  # its time and size change with what it holds
        return (kind, mode & 0o7777)
    return (kind, mode & 0o7777, min(100, mtime), size)


@pytest.mark.parametrize("seed", range(SEQUENCES))
def test_the_model_answers_as_openssh_does(real: SftpServer, tmp_path: Path, seed: int) -> None:
    chance, base = random.Random(seed), str(tmp_path)
    server, handles = ModelServer(Traits(limit=0), Clock()), Handles()
    server.add(base)
    for name, content in (("a", b"content"), ("d", None), ("d/a", b""), ("d/b", b"bb")):
        server.add(f"{base}/{name}", content)
        if content is None:
            (tmp_path / name).mkdir(mode=0o755)
        else:
            (tmp_path / name).write_bytes(content)
            (tmp_path / name).chmod(0o644)
    for link, leads_to in (("l", "d"), ("m", "nothing")):
        (tmp_path / link).symlink_to(leads_to)
        server.nodes[f"{base}/{link}"] = server_model.Node("link", leads_to=leads_to)
    known: list[bytes] = []
    transcript: list[str] = []
    for number in range(LENGTH):
        packet_body = request(chance, base, known)
        if is_unusual_copy(packet_body, handles):
            continue
        packet = packet_body[:1] + struct.pack(">I", number) + packet_body[1:]
        ours, theirs = server.reply(handles, packet), real.reply(packet)
        transcript.append(
            f"{server_model.NAMES[packet_body[0]]} {packet_body[1:]!r}: {meaning(theirs)}, not {meaning(ours)}".replace(
                base, ""
            )
        )
        assert meaning(ours) == meaning(theirs), "\n".join(transcript[-12:])
        if theirs[0] == server_model.HANDLE:
            known.append(Fields(theirs[5:]).string())
    listed = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert listed == {name.removeprefix(f"{base}/") for name in server.nodes if name.startswith(f"{base}/")}
    real_files = {name: (tmp_path / name).read_bytes() for name in listed if stat_is_file(tmp_path / name)}
    assert {f"{base}/{name}": content for name, content in real_files.items()} == server.files()


def stat_is_file(path: Path) -> bool:
    """True for a file that is no link."""
    return path.is_file() and not path.is_symlink()


def test_the_comparison_covers_every_kind_of_reply(real: SftpServer, tmp_path: Path) -> None:
    chance, server, handles = random.Random(1), ModelServer(Traits(limit=0), Clock()), Handles()
    server.add("/x/a", b"content")
    server.add("/x/d/b", b"")
    seen: set[tuple[int, object]] = set()
    known: list[bytes] = []
    for number in range(3000):
        packet_body = request(chance, "/x", known)
        reply = server.reply(handles, packet_body[:1] + struct.pack(">I", number) + packet_body[1:])
        reply_meaning = meaning(reply)
        seen.add((reply[0], reply_meaning[1] if reply[0] == server_model.STATUS else None))
        if reply[0] == server_model.HANDLE and len(known) < 20:
            known.append(Fields(reply[5:]).string())
    expected = {(server_model.STATUS, code) for code in (0, 1, 2, 4, 5)} | {(kind, None) for kind in range(102, 106)}
    assert seen >= expected


def test_the_model_announces_the_same_extensions_as_openssh(real: SftpServer) -> None:
    fields = Fields(real.version[5:])
    theirs = {}
    while fields.left:
        name = fields.string().decode()
        theirs[name] = fields.string().decode()
    ours = ModelServer(Traits(), Clock()).extensions()
    assert ours.items() <= theirs.items()
