"""Hostile listings are limited in time, memory and log lines."""

from __future__ import annotations

import logging
import struct
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import asyncssh
import pytest

from airflow_sftp_backend import DirectoryNotEmpty, SFTPBackend, SFTPBackendError
from airflow_sftp_backend.backend._files.deletion import delete_folder
from airflow_sftp_backend.backend._files.glob import Pattern, find, find_each
from airflow_sftp_backend.backend._files.tree import delete_tree, folder_info, list_children, walk
from airflow_sftp_backend.backend._paths import Jail
from airflow_sftp_backend.backend._protocol.codec import Attributes, PacketType
from airflow_sftp_backend.backend._protocol.messages import OpenDir, Stat
from airflow_sftp_backend.backend._protocol.scheduler import SFTPScheduler, request
from airflow_sftp_backend.backend._protocol.server_traits import OPENSSH
from airflow_sftp_backend.backend._receive_limits import LimitExceeded, ReceiveLimits
from airflow_sftp_backend.backend.errors import StatusCode
from tests.support.memory_server import MemoryServer
from tests.support.scripted_channel import Packet, ScriptedChannel, encode_string, packet_reply, status
from tests.support.servers import AsyncsshServer, Files, Folder, Server

T = TypeVar("T")
FILE = 0o100644
DIRECTORY = 0o040755
TOP = Jail("/").resolve("in")

Batch = Sequence[tuple[bytes, int]]
"""Names, and their modes."""


class HostileDirectories:
    """Answer READDIR with the ``batches`` of a directory; everything is one."""

    def __init__(self, batches: Callable[[], Iterator[Batch]]) -> None:
        self.seen: Counter[PacketType] = Counter()
        self._batches = batches
        self._open: dict[bytes, Iterator[Batch]] = {}

    def __call__(self, packet: Packet) -> bytes:
        self.seen[packet.kind] += 1
        if packet.kind == PacketType.OPENDIR:
            handle = struct.pack(">I", len(self._open))
            self._open[handle] = self._batches()
            return packet_reply(packet, PacketType.HANDLE, encode_string(handle))
        if packet.kind == PacketType.READDIR:
            batch = next(self._open[bytes(packet.reader.view())], None)
            return (
                status(packet, StatusCode.EOF) if batch is None else packet_reply(packet, PacketType.NAME, names(batch))
            )
        if packet.kind in (PacketType.LSTAT, PacketType.STAT):
            return packet_reply(packet, PacketType.ATTRS, Attributes(0, mode=DIRECTORY).encode())
        return status(packet, StatusCode.FAILURE if packet.kind == PacketType.RMDIR else StatusCode.OK)


def names(batch: Batch) -> bytes:
    entries = (encode_string(name) + encode_string(b"") + Attributes(0, mode=mode).encode() for name, mode in batch)
    return struct.pack(">I", len(batch)) + b"".join(entries)


def endless_files() -> Iterator[Batch]:
    for start in count(0, 100):
        yield [(b"file-%d" % number, FILE) for number in range(start, start + 100)]


def dots_only() -> Iterator[Batch]:
    while True:
        yield [(b".", DIRECTORY), (b"..", DIRECTORY)]


def same_names() -> Iterator[Batch]:
    yield [(b"%d" % number, FILE) for number in range(200)]
    for start in count():
        yield [(b"%d" % ((start + number) % 200), FILE) for number in range(7)]


def unsafe_without_end() -> Iterator[Batch]:
    for start in count(0, 100):
        yield [(b"../%d" % number, FILE) for number in range(start, start + 100)]


def fifty_directories() -> Iterator[Batch]:
    yield [(b"%d" % number, DIRECTORY) for number in range(50)]


def long_names() -> Iterator[Batch]:
    for number in count():
        yield [(b"%d-" % number + bytes([97 + letter]) * 4_000, FILE) for letter in range(20)]


def reach(scheduler: SFTPScheduler) -> Any:
    """Return a session call that uses this scheduler."""

    def call(use: Callable[[SFTPScheduler], T], *, idempotent: bool = False) -> T:
        assert idempotent in (True, False)
        return use(scheduler)

    return call


LISTS: dict[str, Callable[[Any], object]] = {
    "children": lambda call: list(list_children(call, TOP)),
    "walk": lambda call: list(walk(call, TOP)),
    "find": lambda call: find(call, TOP, [Pattern.parse("**")]),
    "folder_info": lambda call: folder_info(call, TOP),
    "delete_tree": lambda call: delete_tree(call, TOP, missing_ok=False),
}


def wire_to(server: HostileDirectories, *, last_first: bool = False, **limits: int) -> SFTPScheduler:
    channel = ScriptedChannel(server, order=(lambda waiting: waiting - 1) if last_first else (lambda waiting: 0))
    scheduler = SFTPScheduler(channel, io_timeout=7, receive_limits=ReceiveLimits(**limits))
    scheduler.handshake()
    scheduler.traits = OPENSSH
    return scheduler


@pytest.mark.parametrize("last_first", [False, True])
@pytest.mark.parametrize("use", LISTS.values(), ids=LISTS)
def test_an_endless_listing_ends_at_max_entries(use: Callable[[Any], object], last_first: bool) -> None:
    server = HostileDirectories(endless_files)
    scheduler = wire_to(server, last_first=last_first, max_entries=5_000)
    tracemalloc.start()
    try:
        with pytest.raises(
            SFTPBackendError, match=r"more than 5000 entries \(max_entries\).*raise max_entries"
        ) as caught:
            use(reach(scheduler))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.path == "in"
    assert server.seen[PacketType.READDIR] <= 50 + 130
    assert server.seen[PacketType.REMOVE] == 0
    assert scheduler.run(request(Stat("/in"))).is_folder  # the connection is still of use


@pytest.mark.parametrize("batches", [dots_only, same_names])
@pytest.mark.parametrize("use", LISTS.values(), ids=LISTS)
def test_batches_without_a_new_name_end(use: Callable[[Any], object], batches: Callable[[], Iterator[Batch]]) -> None:
    server = HostileDirectories(batches)
    with pytest.raises(SFTPBackendError, match="100 successive replies of the server bring no new name") as caught:
        use(reach(wire_to(server)))
    assert caught.value.path == "in"
    assert server.seen[PacketType.READDIR] <= 101 + 130


def test_endless_dot_entries_do_not_keep_a_deletion_busy() -> None:
    server = HostileDirectories(dots_only)
    with pytest.raises(SFTPBackendError, match="bring no new name"):
        wire_to(server).run(delete_folder(TOP, missing_ok=False))


@pytest.mark.parametrize("use", LISTS.values(), ids=LISTS)
def test_a_name_of_more_than_4_kib_is_an_error(use: Callable[[Any], object]) -> None:
    at_most = HostileDirectories(lambda: iter([[(b"x" * 4096, FILE)]]))
    assert list(list_children(reach(wire_to(at_most)), TOP))
    for size in (4097, 3 << 20):
        server = HostileDirectories(lambda size=size: iter([[(b"x" * size, FILE)]]))  # type: ignore[misc]  # bound now
        with pytest.raises(SFTPBackendError, match=rf"a name of {size} bytes \(at most 4096\)"):
            use(reach(wire_to(server)))


@pytest.mark.parametrize("use", LISTS.values(), ids=LISTS)
def test_the_bytes_of_a_listing_are_bounded(use: Callable[[Any], object]) -> None:
    server = HostileDirectories(long_names)
    with pytest.raises(SFTPBackendError, match=r"more than 1000000 bytes of replies \(max_listing_bytes\)"):
        use(reach(wire_to(server, max_listing_bytes=1_000_000)))


@pytest.mark.parametrize("name", ["walk", "find", "folder_info", "delete_tree"])
def test_entries_of_nested_directories_are_counted_together(name: str) -> None:
    server = HostileDirectories(fifty_directories)
    with pytest.raises(SFTPBackendError, match=r"more than 10000 entries \(max_entries\)"):
        LISTS[name](reach(wire_to(server, max_entries=10_000)))
    assert server.seen[PacketType.OPENDIR] <= 10_000 / 50 + 66  # 64 are listed at once


@pytest.mark.parametrize("use", LISTS.values(), ids=LISTS)
def test_many_unsafe_names_are_logged_as_a_few_lines_and_a_count(
    use: Callable[[Any], object], caplog: pytest.LogCaptureFixture
) -> None:
    many = 20_000
    server = HostileDirectories(lambda: iter([[(b"../%d" % number, FILE) for number in range(many)]]))
    caplog.set_level(logging.WARNING)
    with suppress(DirectoryNotEmpty):
        use(reach(wire_to(server)))
    lines = [record.getMessage() for record in caplog.records if "unsafe" in record.getMessage()]
    assert lines[:10] == [line for line in lines if "unsafe name '../" in line]
    assert lines[10:] == [f"{many - 10} more entries with unsafe names are omitted below 'in'"]


def test_unsafe_names_without_end_are_bounded_too(caplog: pytest.LogCaptureFixture) -> None:
    server = HostileDirectories(unsafe_without_end)
    with pytest.raises(SFTPBackendError, match="max_entries"):
        list(walk(reach(wire_to(server, max_entries=5_000)), TOP))
    assert len(caplog.records) <= 11


def test_a_listing_of_exactly_max_entries_is_complete() -> None:
    server = HostileDirectories(lambda: iter([[(b"%d" % number, FILE) for number in range(500)]]))
    assert len(list(list_children(reach(wire_to(server, max_entries=500)), TOP))) == 500


def test_an_entry_count_larger_than_the_packet_is_refused() -> None:
    def answer(packet: Packet) -> bytes:
        if packet.kind == PacketType.OPENDIR:
            return packet_reply(packet, PacketType.HANDLE, encode_string(b"h"))
        return packet_reply(packet, PacketType.NAME, struct.pack(">I", 0xFFFFFFFF))

    scheduler = SFTPScheduler(ScriptedChannel(answer), io_timeout=7)
    scheduler.handshake()
    with pytest.raises(SFTPBackendError, match="announces 4294967295 items but is too short"):
        list(list_children(reach(scheduler), TOP))


def test_searches_made_together_have_bounds_of_their_own() -> None:
    files = {f"/{folder}/{number}": b"" for folder in ("few", "many") for number in range(30)}
    files |= {f"/many/more-{number}": b"" for number in range(30)}
    server = MemoryServer({"/few": None, "/many": None, **files})
    server.receive_limits = ReceiveLimits(max_entries=50)
    call = reach(server)
    groups = [["few/*"], ["many/*"], ["few/1*"], ["many/*", "few/2"], ["few/*", "few/**"]]
    outcomes = find_each(call, Jail("/").root, groups)
    assert [len(outcome) if isinstance(outcome, list) else type(outcome) for outcome in outcomes] == [
        30, LimitExceeded, 11, LimitExceeded, 30,
    ]  # fmt: skip
    listed = Counter(request.path for request in server.requests if isinstance(request, OpenDir))
    assert listed == {"/few": 1, "/many": 1}


# -- writes, which list for what others left behind -------------------------------------------------------------------


class _EndlessFiles(Files):
    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        for number in count():
            yield asyncssh.SFTPName(b"%d" % number, b"", asyncssh.SFTPAttrs(permissions=FILE))


class _EndlessListing(AsyncsshServer):
    """Lists names without end in every directory."""

    files = _EndlessFiles


@pytest.mark.parametrize("way", ["write_atomic", "upload", "open_atomic"])
def test_a_write_into_an_endless_directory_succeeds(
    make_backend: Callable[..., SFTPBackend], tmp_path: Path, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    (tmp_path / "local").write_bytes(b"content")
    with _EndlessListing() as server:
        folder = server.fresh()
        backend = make_backend(server, base_path=folder.base_path, config={"max_entries": 2_000})
        if way == "write_atomic":
            backend.write_atomic("file", b"content")
        elif way == "upload":
            backend.upload(tmp_path / "local", "file")
        else:
            with backend.open_atomic("file") as file:
                file.write(b"content")
        assert (folder.path / "file").read_bytes() == b"content"
        assert server.requests["readdir"] <= 2_000 / 100 + 130
    assert "are not removed: cannot list: the server sends more than 2000 entries (max_entries)" in caplog.text


@pytest.mark.parametrize("method", ["list_files", "iter_children", "list_folders", "find", "glob", "delete_folder"])
def test_every_method_that_lists_names_its_bound_and_setting(
    make_backend: Callable[..., SFTPBackend], openssh: Server, folder: Folder, method: str
) -> None:
    for number in range(30):
        (folder.path / f"{number}").touch()
    backend = make_backend(openssh, base_path=folder.path.parent.as_posix(), config={"max_entries": 20})
    name = folder.path.name
    calls: dict[str, Callable[[], object]] = {
        "list_files": lambda: list(backend.list_files(name, recursive=True)),
        "iter_children": lambda: list(backend.iter_children(name)),
        "list_folders": lambda: list(backend.list_folders(name)),
        "find": lambda: backend.find(f"{name}/*"),
        "glob": lambda: list(backend.glob(f"{name}/*")),
        "delete_folder": lambda: backend.delete_folder(name, recursive=True),
    }
    with pytest.raises(SFTPBackendError, match="max_entries") as caught:
        calls[method]()
    assert caught.value.server == backend.address
    assert len(list(folder.path.iterdir())) == 30


@pytest.fixture
def server(openssh: Server) -> Server:
    """OpenSSH's."""
    return openssh
