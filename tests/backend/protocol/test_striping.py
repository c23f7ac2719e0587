"""A file on several channels arrives unchanged, despite refused channels."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend import SFTPBackend
from airflow_sftp_backend.backend._files import pipelining
from airflow_sftp_backend.backend._files.pipelining import PipelinedWriter, UploadSource, write_source
from airflow_sftp_backend.backend._paths import Jail
from airflow_sftp_backend.backend._protocol.channel import SFTPChannel
from airflow_sftp_backend.backend._protocol.codec import Attributes, PacketType
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler
from airflow_sftp_backend.backend._protocol.striping import (
    ASSUMED_BYTES_PER_SECOND,
    OPENSSH_CHANNEL_WINDOW,
    StripedFile,
    channels_for,
)
from airflow_sftp_backend.backend.errors import StatusCode, StatusError
from tests.support.files import tree
from tests.support.scripted_channel import Packet, ScriptedChannel, contents, encode_string, packet_reply, status
from tests.support.servers import AsyncsshServer, OneChannel, OpenSSHServer, StallsOnFurtherChannels

PATH = Jail("/").resolve("in/a")
MiB = 1 << 20


# -- how many ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("round_trip", "size", "channels"),
    [
        (0.0002, 1 << 40, 1),
        (0.003, 1 << 40, 1),
        (0.02, 1 << 40, 6),
        (0.05, 1 << 40, 13),
        (0.05, 15 * MiB, 1),
        (0.05, 16 * MiB, 4),
        (math.inf, 1 << 40, 1),
        (0.05, 0, 1),
    ],
)
def test_the_number_of_channels_follows_from_round_trip_and_size(round_trip: float, size: int, channels: int) -> None:
    assert channels_for(round_trip, size) == channels


@given(st.floats(0, 10), st.integers(0, 1 << 50))
def test_extra_channels_are_used_only_for_files_large_enough(round_trip: float, size: int) -> None:
    channels = channels_for(round_trip, size)
    assert channels >= 1
    assert (
        channels * OPENSSH_CHANNEL_WINDOW >= ASSUMED_BYTES_PER_SECOND * round_trip
        or channels == 1
        or channels == size // (4 * MiB)
    )


# -- scripted ---------------------------------------------------------------------------------------------------------


class SharedFile:
    """File on several channels; writes numbered ``refused`` fail."""

    def __init__(self, refused: frozenset[int] = frozenset(), refused_opens: frozenset[int] = frozenset()) -> None:
        self.content = bytearray()
        self.open = {b"first"}
        self._refused = refused
        self._refused_opens = refused_opens
        self._writes = self._opens = 0

    def answer(self, packet: Packet) -> bytes:
        """The reply to a request on any channel."""
        reader = packet.reader
        if packet.kind == PacketType.OPEN:
            self._opens += 1
            if self._opens in self._refused_opens:
                return status(packet, StatusCode.PERMISSION_DENIED)
            handle = b"further %d" % self._opens
            self.open.add(handle)
            return packet_reply(packet, PacketType.HANDLE, encode_string(handle))
        handle = bytes(reader.view())
        assert handle in self.open, "a handle that is not open"
        if packet.kind == PacketType.CLOSE:
            self.open.remove(handle)
        elif packet.kind == PacketType.WRITE:
            self._writes += 1
            if self._writes in self._refused:
                return status(packet, StatusCode.FAILURE, "refused by the test")
            offset, data = reader.uint64(), bytes(reader.view())
            self.content += bytes(max(0, offset + len(data) - len(self.content)))
            self.content[offset : offset + len(data)] = data
        elif packet.kind == PacketType.FSTAT:
            return packet_reply(packet, PacketType.ATTRS, Attributes(len(self.content)).encode())
        return status(packet)


class FakeChannelSource:
    """Channels that open one at a time, after some requests."""

    def __init__(self, make: Callable[[], ScriptedChannel], late: list[int]) -> None:
        self._make = make
        self._late = late
        self._wanted = self._there = 1
        self._asked = 0

    def request(self, count: int) -> None:
        """Notes it."""
        self._wanted = max(self._wanted, count)

    def take_opened(self) -> list[SFTPChannel]:
        """The next one, if it is time."""
        self._asked += 1
        if self._wanted > self._there and self._late and self._asked > self._late[0]:
            self._late.pop(0)
            self._there += 1
            channel = SFTPChannel(self._make(), io_timeout=7)
            channel.handshake()
            return [channel]
        return []


def sending(content: bytes, out: PipelinedWriter, striped_file: StripedFile) -> Operation[None]:
    whole = False
    try:
        yield from write_source(UploadSource(content), out)
        yield from out.merge_channels()
        yield from out.drain()
        whole = True
    finally:
        if not whole:
            yield from striped_file.close_quietly()


@st.composite
def worlds(draw: st.DrawFn) -> tuple[SharedFile, SFTPScheduler, int]:
    """File and scheduler with later channels, and the requested number."""
    random = draw(st.randoms(use_true_random=False))
    file = SharedFile(
        frozenset(draw(st.lists(st.integers(1, 60), max_size=2))),
        frozenset(draw(st.lists(st.integers(1, 4), max_size=2))),
    )

    def channel() -> ScriptedChannel:
        return ScriptedChannel(
            file.answer,
            order=lambda waiting: random.randrange(waiting),
            cut=lambda size: random.randint(1, size),
            taken=lambda size: random.randint(1, size),
        )

    channels = draw(st.integers(1, 5))
    late = sorted(draw(st.lists(st.integers(0, 30), max_size=5)))
    scheduler = SFTPScheduler(channel(), io_timeout=7, channel_source=FakeChannelSource(channel, late))
    scheduler.handshake()
    return file, scheduler, channels


@given(worlds(), contents(), st.integers(1, 9))
def test_data_sent_over_channels_is_stored_or_refused_and_handles_closed(
    world: tuple[SharedFile, SFTPScheduler, int], content: bytes, block: int
) -> None:
    file, scheduler, channels = world
    striped_file = StripedFile(scheduler, PATH, b"first", size=len(content), channels=channels)
    out = PipelinedWriter(striped_file, block)
    try:
        scheduler.run(sending(content, out, striped_file))
    except StatusError as refused:
        assert refused.text == "refused by the test"
    else:
        assert bytes(file.content) == content
    assert file.open == {b"first"}
    assert scheduler.failure is None
    assert len(scheduler.channels) <= channels


@given(worlds(), contents(), st.integers(1, 9))
def test_the_bytes_in_flight_stay_within_the_bound_on_all_channels(
    world: tuple[SharedFile, SFTPScheduler, int], content: bytes, block: int
) -> None:
    file, scheduler, channels = world
    striped_file = StripedFile(scheduler, PATH, b"first", size=len(content), channels=channels)
    acknowledged = 0

    def progress(gained: int) -> None:
        nonlocal acknowledged
        acknowledged += gained

    def sent() -> Operation[None]:
        try:
            for start in range(0, len(content), block):
                yield from out.write(content[start : start + block])
                assert out.offset - acknowledged <= 20
            yield from out.merge_channels()
            yield from out.drain()
        finally:
            yield from striped_file.close_quietly()

    with patch.object(pipelining, "MAX_UNACKED_BYTES", 20):
        out = PipelinedWriter(striped_file, block, progress=progress)
        with suppress(StatusError):
            scheduler.run(sent())
            assert bytes(file.content) == content
            assert acknowledged == len(content)


def test_blocks_are_distributed_within_the_window_of_each_channel() -> None:
    file = SharedFile()
    channels: list[ScriptedChannel] = []

    def channel() -> ScriptedChannel:
        channels.append(ScriptedChannel(file.answer))
        return channels[-1]

    scheduler = SFTPScheduler(channel(), io_timeout=7, channel_source=FakeChannelSource(channel, [0, 0, 0]))
    scheduler.handshake()
    most = 0

    class Source:
        """64 MiB, watched while they go out."""

        left = 256

        def read(self, size: int, /) -> bytes:
            """The next block."""
            nonlocal most
            most = max([most, *(channel.in_flight for channel in scheduler.channels)])
            self.left -= 1
            return bytes(size) if self.left >= 0 else b""

    def sending_all() -> Operation[None]:
        yield from write_source(UploadSource(Source()), out)
        yield from out.merge_channels()

    striped_file = StripedFile(scheduler, PATH, b"first", size=None, channels=4)
    out = PipelinedWriter(striped_file, MiB // 4)
    scheduler.run(sending_all())
    written = [sum(packet.kind == PacketType.WRITE for packet in channel.requests) for channel in channels]
    assert sum(written) == 256
    assert len(written) == 4
    assert min(written) > 20
    assert most <= OPENSSH_CHANNEL_WINDOW + MiB


# -- real servers -----------------------------------------------------------------------------------------------------

BIG = bytes(range(256)) * (40 << 12)  # 40 MiB
Make = Callable[..., SFTPBackend]


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A large local file."""
    path = tmp_path / "big"
    path.write_bytes(BIG)
    return path


@pytest.mark.parametrize("channels", [2, 8])
def test_a_large_upload_over_channels_needs_one_login(
    openssh: OpenSSHServer, make_backend: Make, big: Path, channels: int
) -> None:
    before = openssh.logins()
    folder = openssh.fresh()
    backend = make_backend(openssh, base_path=folder.base_path)
    seen: list[int] = []
    result = backend.upload(big, "in/big", channels=channels, verify="sha256", progress=seen.append)
    assert (folder.path / "in/big").read_bytes() == BIG
    assert [path.name for path in (folder.path / "in").iterdir()] == ["big"]
    assert (result.size, sum(seen)) == (len(BIG), len(BIG))
    outcomes = backend.upload_many([(big, f"many/{number}") for number in range(4)], channels=channels)
    assert [getattr(outcome, "size", outcome) for outcome in outcomes] == [len(BIG)] * 4
    assert all((folder.path / f"many/{number}").read_bytes() == BIG for number in range(4))
    assert openssh.logins() == before + 1


def test_many_files_share_the_channels(openssh: OpenSSHServer, make_backend: Make, tmp_path: Path) -> None:
    content = BIG[: 4 << 20]
    (tmp_path / "local").write_bytes(content)
    folder = openssh.fresh()
    backend = make_backend(openssh, base_path=folder.base_path)
    pairs = [(tmp_path / "local", f"{number}") for number in range(40)]
    outcomes = backend.upload_many(pairs, channels=3, return_exceptions=True)
    assert [getattr(outcome, "size", outcome) for outcome in outcomes] == [len(content)] * 40
    assert all((folder.path / f"{number}").read_bytes() == content for number in range(40))


def test_a_server_that_refuses_a_second_channel_costs_nothing_but_speed(
    one_channel: OneChannel, make_backend: Make, big: Path
) -> None:
    folder = one_channel.fresh()
    backend = make_backend(one_channel, base_path=folder.base_path)
    for name in ("a", "b"):
        assert backend.upload(big, name, channels=8).size == len(BIG)
        assert (folder.path / name).read_bytes() == BIG


def test_a_server_that_stalls_with_several_channels_gets_one_afterwards(make_backend: Make, big: Path) -> None:
    with StallsOnFurtherChannels() as stalling:
        folder = stalling.fresh()
        backend = make_backend(stalling, base_path=folder.base_path, io_timeout=1)
        assert backend.upload(big, "a", channels=4).size == len(BIG)
        assert stalling.logins() == 2
        assert backend.upload(big, "b", channels=4).size == len(BIG)
        assert stalling.logins() == 2
        assert tree(folder.path) == {"a": BIG, "b": BIG}


def test_an_unknown_server_gets_extra_channels_only_if_configured(
    asyncssh_plain: AsyncsshServer, make_backend: Make, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[int] = []
    want = SFTPScheduler.request_channels

    def want_counted(scheduler: SFTPScheduler, count: int) -> None:
        requested.append(count)
        want(scheduler, count)

    monkeypatch.setattr(SFTPScheduler, "request_channels", want_counted)
    folder = asyncssh_plain.fresh()
    backend = make_backend(asyncssh_plain, base_path=folder.base_path)
    backend.upload(big, "a")
    assert set(requested) <= {1}
    backend.upload(big, "b", channels=3)
    assert 3 in requested
    assert (folder.path / "a").read_bytes() == (folder.path / "b").read_bytes() == BIG


def test_max_channels_bounds_the_channels(openssh: OpenSSHServer, make_backend: Make, big: Path) -> None:
    backend = make_backend(openssh, config={"max_channels": 1})
    assert backend.upload(big, "a", channels=8).size == len(BIG)


@pytest.mark.parametrize("channels", [0, 11, True, "2"])
def test_an_invalid_number_of_channels_is_refused_before_any_io(channels: Any, big: Path) -> None:
    backend = SFTPBackend("127.0.0.1", port=1)
    with pytest.raises(ValueError, match="channels must be a whole number from 1 to 10"):
        backend.upload(big, "a", channels=channels)
    with pytest.raises(ValueError, match="max_channels must be a whole number from 1 to 10"):
        SFTPBackend("h", config={"max_channels": channels})
