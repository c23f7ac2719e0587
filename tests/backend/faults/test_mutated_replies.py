"""Mutated replies cause only public errors, no hang, no escape."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from airflow_sftp_backend import SFTPBackend, SFTPBackendError
from tests.support.faults.network import IO_TIMEOUT, Clock, Connection, ModelChannel, Network
from tests.support.faults.server_model import ModelServer, Traits

CASES: Final = 1_500
MOST_MESSAGES: Final = 20_000
MOST_MEMORY: Final = 64 << 20
CONTENT: Final = bytes(range(256)) * 80
NEW: Final = b"new content, " * 1_600
NUMBERS: Final = (0, 1, 2, 0x7F, 0xFF, 0x100, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
TYPES: Final = (2, 101, 102, 103, 104, 105, 201, 0, 255)


class Hang(BaseException):
    """The client does not come to an end."""


class FuzzedChannel(ModelChannel):
    """Channel that waits for its timeout if a reply is missing."""

    def recv(self, count: int, /) -> bytes:
        """The next bytes."""
        try:
            return super().recv(count)
        except AssertionError:  # nothing is owed: a mutated length promises more than there is
            self._network.clock.sleep(IO_TIMEOUT)
            raise TimeoutError from None


class FuzzedConnection(Connection):
    """Mutates the replies that its network has chosen."""

    def carry_out_next(self) -> None:
        """Lets the server carry out the next message."""
        message = self.queue.popleft()
        packet_reply = self.network.carry_out(message)
        assert isinstance(self.network, FuzzedNetwork)
        message.channel.inbox += self.network.delivered(
            message.number, struct.pack(">I", len(packet_reply)) + packet_reply
        )


class FuzzedNetwork(Network):
    """Network to a model server that mutates the ``chosen`` replies."""

    connection = FuzzedConnection
    channel = FuzzedChannel

    def __init__(self, server: ModelServer, clock: Clock, chance: random.Random, chosen: frozenset[int]) -> None:
        super().__init__(server, clock)
        self.mutations: Counter[str] = Counter()
        self._chance = chance
        self._chosen = chosen
        self._held = b""

    def next_number(self) -> int:
        """The number of a message that is being sent."""
        if self.sent > MOST_MESSAGES:
            raise Hang
        return super().next_number()

    def delivered(self, number: int, frame: bytes) -> bytes:
        """Return the bytes that the client receives in place of ``frame``."""
        if number in self._chosen:
            name, mutate = self._chance.choice(MUTATIONS)
            self.mutations[name] += 1
            frame = mutate(self._chance, frame)
        return frame


# -- mutations: each takes a whole packet, its length too -------------------------------------------------------------


def flip_bits(chance: random.Random, frame: bytes) -> bytes:
    changed = bytearray(frame)
    for _ in range(chance.choice((1, 1, 2, 8))):
        changed[chance.randrange(4, len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def set_number(chance: random.Random, frame: bytes) -> bytes:
    """Number of four bytes: a length, a count or a size."""
    at = chance.randrange(5, max(6, len(frame) - 3))
    return frame[:at] + struct.pack(">I", chance.choice(NUMBERS)) + frame[at + 4 :]


def set_type(chance: random.Random, frame: bytes) -> bytes:
    return frame[:4] + bytes([chance.choice(TYPES)]) + frame[5:]


def set_id(chance: random.Random, frame: bytes) -> bytes:
    number = int.from_bytes(frame[5:9], "big") + chance.choice((-2, -1, 1, 2, 1 << 31))
    return frame[:5] + struct.pack(">I", number & 0xFFFFFFFF) + frame[9:]


def cut_short(chance: random.Random, frame: bytes) -> bytes:
    """Ends early, and its length says so."""
    body = frame[4 : chance.randrange(4, len(frame) + 1)]
    return struct.pack(">I", len(body)) + body


def announce(chance: random.Random, frame: bytes) -> bytes:
    """Announces another length than it has."""
    length = chance.choice((*NUMBERS, len(frame) - 5, len(frame) - 3, len(frame) + 50, 4 << 20, (4 << 20) + 1))
    return struct.pack(">I", length) + frame[4:]


def grow(chance: random.Random, frame: bytes) -> bytes:
    """Has more bytes at its end, or somewhere in it."""
    at = chance.choice((len(frame), chance.randrange(4, len(frame) + 1)))
    body = frame[4:at] + chance.randbytes(chance.choice((1, 4, 300, 70_000))) + frame[at:]
    return struct.pack(">I", len(body)) + body


def repeat(_: random.Random, frame: bytes) -> bytes:
    return frame + frame


def swallow(_: random.Random, __: bytes) -> bytes:
    return b""


def answer_otherwise(chance: random.Random, frame: bytes) -> bytes:
    """Another whole reply to the same request."""
    status = struct.pack(">III", chance.choice((*range(12), 99, 0xFFFFFFFF)), 4, 0x41424344) + b"\0\0\0\0"
    many = struct.pack(">I", 30_000) + (struct.pack(">I", 3) + b"../" + b"\0" * 8) * 30_000
    kind, body = chance.choice(
        (
            (101, status),
            (101, status[:4]),
            (102, struct.pack(">I", 0)),
            (102, struct.pack(">I", 257) + bytes(257)),
            (103, struct.pack(">I", 0)),
            (103, struct.pack(">I", 300_000) + bytes(300_000)),
            (104, struct.pack(">I", 0)),
            (104, many),
            (104, struct.pack(">II", 1, 5_000) + b"n" * 5_000 + b"\0" * 8),
            (105, struct.pack(">IQ", 1, (1 << 64) - 1)),
            (105, struct.pack(">IQII", 5, 1 << 63, 0o120777, 0)[:16]),
            (105, struct.pack(">I", 0)),
            (105, struct.pack(">II", 0x80000000, 0xFFFFFFFF)),
            (201, struct.pack(">QQQQ", 1, 1, 1, 1)),
            (201, struct.pack(">QQQQ", *[(1 << 64) - 1] * 4)),
        )
    )
    packet = bytes([kind]) + frame[5:9] + body
    return struct.pack(">I", len(packet)) + packet


def make_noise(chance: random.Random, _: bytes) -> bytes:
    return chance.randbytes(chance.choice((1, 3, 50, 5_000)))


MUTATIONS: Final[tuple[tuple[str, Callable[[random.Random, bytes], bytes]], ...]] = tuple(
    (mutate.__name__, mutate)
    for mutate in (
        flip_bits, set_number, set_type, set_id, cut_short, announce, grow, repeat, swallow, answer_otherwise,
        answer_otherwise, make_noise,
    )
)  # fmt: skip


# -- what is done meanwhile -------------------------------------------------------------------------------------------


def read_and_seek(backend: SFTPBackend, _: Path) -> None:
    with backend.read("in/a") as file:
        file.read(5)
        file.seek(-7, 2)
        file.read()


def write_and_leave(backend: SFTPBackend, _: Path) -> None:
    with backend.open_atomic("in/new", overwrite=True) as file:
        file.write(NEW)


SCENARIOS: Final[dict[str, Callable[[SFTPBackend, Path], object]]] = {
    "look": lambda backend, _: (backend.exists("in/a"), backend.is_folder("in"), backend.get_file_info("in/a")),
    "look at many": lambda backend, _: backend.get_file_info_many(["in/a", "in/b", "no"], return_exceptions=True),
    "health": lambda backend, _: backend.check_health(),
    "list": lambda backend, _: list(backend.list_files("in", recursive=True)),
    "children": lambda backend, _: list(backend.iter_children("in")),
    "find": lambda backend, _: backend.find("**/*.csv", "in/a"),
    "sums": lambda backend, _: backend.get_folder_info("in"),
    "read": lambda backend, _: backend.read_bytes("in/a"),
    "read and seek": read_and_seek,
    "download": lambda backend, local: backend.download("in/a", local / "file", overwrite=True),
    "download unverified": lambda backend, local: backend.download("in/a", local / "file", verify="none"),
    "download many": lambda backend, local: backend.download_many([("in/a", local / "a"), ("in/b", local / "b")]),
    "write": lambda backend, _: backend.write("in/new", NEW),
    "write atomically": lambda backend, _: backend.write_atomic("new/er", NEW, verify="sha256"),
    "open atomically": write_and_leave,
    "upload": lambda backend, local: backend.upload(local / "source", "in/a", overwrite=True),
    "move": lambda backend, _: backend.move("in/a", "in/deep/x"),
    "copy": lambda backend, _: backend.copy("in/a", "copy", overwrite=True),
    "delete": lambda backend, _: backend.delete_many(["in/a", "in/b", "no"], missing_ok=True),
    "delete a tree": lambda backend, _: backend.delete_folder("in", recursive=True),
}


WRITTEN: Final = {
    "write": "/data/in/new",
    "write atomically": "/data/new/er",
    "open atomically": "/data/in/new",
    "upload": "/data/in/a",
}
"""Content that a successful scenario writes."""
KEEPS: Final = {*SCENARIOS} - {"delete", "delete a tree"}
"""The scenarios that must not lose what /data/in/a held, or must have replaced it as a whole."""


def model(clock: Clock, chance: random.Random) -> ModelServer:
    traits = Traits(
        posix_rename=chance.choice(("replaces", "absent")),
        copy_data=chance.random() < 0.5,
        limit=chance.choice((0, 4096)),
    )
    server = ModelServer(traits, clock)
    server.add("/precious/file", b"outside")
    server.add("/data/keep", b"kept")
    server.add("/data/in/a", CONTENT)
    server.add("/data/in/b", b"b")
    for number in range(6):
        server.add(f"/data/in/deep/{number}.csv", b"x" * number)
    server.add("/data/in/deep/er/c.csv", b"c")
    return server


@dataclass
class Case:
    """One run: the scenario and the mutations, by its seed."""

    seed: int
    messages: dict[str, int]
    """Count the messages of each scenario without a mutation."""

    def run(self, tmp_path: Path) -> Counter[str]:
        """The mutations made."""
        chance, clock = random.Random(self.seed), Clock()
        name = list(SCENARIOS)[self.seed % len(SCENARIOS)]
        chosen = frozenset(chance.randint(1, self.messages[name]) for _ in range(chance.choice((2, 3, 4, 6))))
        network = FuzzedNetwork(model(clock, chance), clock, chance, chosen)
        local = tmp_path / f"{self.seed}"
        local.mkdir()
        (local / "source").write_bytes(NEW)
        with network.backend() as backend:
            try:
                SCENARIOS[name](backend, local)
                if name in WRITTEN:  # the server works; only its replies are mutated
                    assert network.server.files()[WRITTEN[name]] == NEW
            except SFTPBackendError as error:
                assert str(error).replace("\n", "").isprintable()
            except ExceptionGroup as group:
                assert all(isinstance(error, SFTPBackendError) for error in group.exceptions), group.exceptions
            network._chosen = frozenset()
            assert backend.get_file_info("keep").size == 4  # over a new connection, if the first is of no more use
        files = network.server.files()
        assert (files["/precious/file"], files["/data/keep"]) == (b"outside", b"kept")
        assert name not in KEEPS or CONTENT in files.values() or files.get("/data/in/a") == NEW
        assert {path.name for path in local.iterdir()} <= {"source", "file", "a", "b"}
        return network.mutations


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Count the messages of each scenario."""
    found = {}
    for name, scenario in SCENARIOS.items():
        clock = Clock()
        network = FuzzedNetwork(model(clock, random.Random(1)), clock, random.Random(), frozenset())
        local = tmp_path_factory.mktemp("source")
        (local / "source").write_bytes(NEW)
        with network.backend() as backend:
            scenario(backend, local)
        found[name] = network.sent
    return found


@pytest.mark.parametrize("part", range(5))
def test_mutated_replies_raise_only_public_errors_and_change_nothing(
    part: int, messages: dict[str, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mutations: Counter[str] = Counter()
    caplog.set_level("ERROR")
    tracemalloc.start()
    try:
        for seed in range(part * CASES // 5, (part + 1) * CASES // 5):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                mutations += Case(seed, messages).run(tmp_path)
            except BaseException as error:
                error.add_note(f"seed {seed}")
                raise
            assert tracemalloc.get_traced_memory()[1] - before < MOST_MEMORY, f"seed {seed}"
    finally:
        tracemalloc.stop()
    assert mutations.total() >= 3_000 / 5
    assert len(mutations) == len(dict(MUTATIONS))
