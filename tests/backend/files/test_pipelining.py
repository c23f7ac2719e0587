"""Pipelined transfers keep every byte, for any blocks and replies."""

from __future__ import annotations

import array
import hashlib
import io
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from airflow_sftp_backend import InvalidPath, TransferCorrupted
from airflow_sftp_backend.backend._files.pipelining import (
    MAX_READ_WINDOW,
    PipelinedReader,
    PipelinedWriter,
    UploadSource,
    write_source,
)
from airflow_sftp_backend.backend._paths import Jail
from airflow_sftp_backend.backend._protocol.codec import PacketType
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler
from airflow_sftp_backend.backend._protocol.server_traits import OPENSSH
from airflow_sftp_backend.backend._protocol.striping import StripedFile
from airflow_sftp_backend.backend.errors import StatusError
from airflow_sftp_backend.backend.models import Progress
from tests.support.scripted_channel import Packet, ScriptedChannel, ScriptedFile, connected, contents

H = ScriptedFile.HANDLE
BLOCKS = st.integers(1, 7)


@st.composite
def channels(draw: st.DrawFn) -> Callable[[ScriptedFile], ScriptedChannel]:
    """Channels that deliver the replies of a file in any order."""
    random = draw(st.randoms(use_true_random=False))
    return lambda file: ScriptedChannel(file, order=lambda waiting: random.randrange(waiting))


def writer_to(
    scheduler: SFTPScheduler, block: int, *, offset: int = 0, progress: Progress | None = None
) -> PipelinedWriter:
    """Over one channel."""
    striped_file = StripedFile(scheduler, Jail("/").resolve("in/a"), H, size=None, channels=1)
    return PipelinedWriter(striped_file, block, offset=offset, progress=progress)


def sending(content: UploadSource, out: PipelinedWriter) -> Operation[None]:
    yield from write_source(content, out)
    yield from out.merge_channels()
    yield from out.drain()


def received(scheduler: SFTPScheduler, block: int, *, to_end: bool = False) -> Operation[tuple[bytes, PipelinedReader]]:
    reader = PipelinedReader(scheduler, H, block, "in/a", to_end=to_end)
    whole = b""
    while data := (yield from reader.read_next()):
        whole += data
    assert not (yield from reader.read_next())  # the end stays the end
    return whole, reader


def receive(channel: ScriptedChannel, block: int, *, to_end: bool = False) -> tuple[bytes, PipelinedReader]:
    scheduler = connected(channel)
    return scheduler.run(received(scheduler, block, to_end=to_end))


# -- out --------------------------------------------------------------------------------------------------------------


@given(channels(), contents(most=300), BLOCKS, st.integers(0, 20))
def test_every_sent_byte_is_stored_and_acknowledged(
    channel: Callable[[ScriptedFile], ScriptedChannel], data: bytes, block: int, offset: int
) -> None:
    file = ScriptedFile(bytes(offset))
    progress: list[int] = []
    scheduler = connected(channel(file))
    out = writer_to(scheduler, block, offset=offset, progress=progress.append)
    scheduler.run(sending(UploadSource(data), out))
    assert bytes(file.content) == bytes(offset) + data
    assert (sum(progress), out.offset, file.written) == (len(data), offset + len(data), len(data))


@given(channels(), contents(1, 100), BLOCKS, st.data())
def test_a_block_that_is_refused_is_always_noticed(
    channel: Callable[[ScriptedFile], ScriptedChannel], data: bytes, block: int, draw: st.DataObject
) -> None:
    count = -(-len(data) // block)
    file = ScriptedFile(refused=frozenset([draw.draw(st.integers(0, count - 1))]))
    scheduler = connected(channel(file))
    with pytest.raises(StatusError, match="refused by the test"):
        scheduler.run(sending(UploadSource(data), writer_to(scheduler, block)))


@given(channels(), st.integers(1, 400), st.integers(0, 399))
def test_all_bytes_before_the_last_window_are_acknowledged(
    channel: Callable[[ScriptedFile], ScriptedChannel], count: int, failing: int
) -> None:
    file = ScriptedFile(refused=frozenset([failing]))
    progress: list[int] = []
    scheduler = connected(channel(file))
    out = writer_to(scheduler, 1, progress=progress.append)
    try:
        scheduler.run(sending(UploadSource(b"x" * count), out))
    except StatusError:
        assert sum(progress) == failing  # in order: all before the refused block, and nothing after it
        assert out.offset - failing <= 64
    else:
        assert failing >= count


@pytest.mark.parametrize(("block", "count"), [(1 << 10, 100), (1 << 17, 100), (1 << 20, 40), (10 << 20, 4)])
def test_no_more_is_in_flight_than_a_window_of_blocks(block: int, count: int) -> None:
    channel = ScriptedChannel(ScriptedFile())
    scheduler = connected(channel)
    in_flight: list[int] = []

    class Source:
        """Ends after ``count`` blocks."""

        def read(self, size: int, /) -> bytes:
            """The next block."""
            in_flight.append(len(channel.replies))
            return bytes(size) if len(in_flight) <= count else b""

    scheduler.run(sending(UploadSource(Source()), writer_to(scheduler, block)))
    assert max(in_flight) <= max(1, min(64, (8 << 20) // block))
    assert len(channel.requests) == count


# -- in ---------------------------------------------------------------------------------------------------------------


@given(channels(), contents(most=200), BLOCKS, st.sampled_from(["stated_size", "refused"]), st.data())
def test_a_read_gives_the_content_of_the_file(
    channel: Callable[[ScriptedFile], ScriptedChannel], content: bytes, block: int, size: str, draw: st.DataObject
) -> None:
    random = draw.draw(st.randoms(use_true_random=False))
    stated_size = {"stated_size": len(content), "refused": None}[size]
    file = ScriptedFile(content, stated_size=stated_size, short=lambda count: random.randint(1, count))
    whole, reader = receive(channel(file), block)
    assert whole == content
    assert reader.size == len(content)


@given(channels(), st.integers(0, 60), st.integers(0, 60), BLOCKS, st.data())
def test_a_file_of_unexpected_size_is_read_to_its_end_on_request(
    channel: Callable[[ScriptedFile], ScriptedChannel], held: int, stated_size: int, block: int, draw: st.DataObject
) -> None:
    random = draw.draw(st.randoms(use_true_random=False))
    content = bytes(range(held))
    file = ScriptedFile(content, stated_size=stated_size, short=lambda count: random.randint(1, count))
    whole, reader = receive(channel(file), block, to_end=True)
    assert whole == content
    assert reader.attributes.size == stated_size


@given(channels(), st.integers(0, 60), st.integers(0, 60), BLOCKS, st.data())
def test_a_file_of_unexpected_size_is_never_complete(
    channel: Callable[[ScriptedFile], ScriptedChannel], held: int, stated_size: int, block: int, draw: st.DataObject
) -> None:
    assume(held != stated_size)
    random = draw.draw(st.randoms(use_true_random=False))
    file = ScriptedFile(bytes(held), stated_size=stated_size, short=lambda count: random.randint(1, count))
    with pytest.raises(
        TransferCorrupted, match=f"is {stated_size} bytes, but the server sends {held}. The server may convert"
    ) as caught:
        receive(channel(file), block)
    assert caught.value.path == "in/a"


@given(channels(), st.integers(1, 60), st.integers(1, 60), BLOCKS)
def test_a_file_that_changes_size_during_a_read_is_reported_as_changed(
    channel: Callable[[ScriptedFile], ScriptedChannel], stated_size: int, more: int, block: int
) -> None:
    class Growing(ScriptedFile):
        """Report the original size first, then the current size."""

        def __call__(self, packet: Packet) -> bytes:
            answer = super().__call__(packet)
            if packet.kind == PacketType.FSTAT:
                self.stated_size = stated_size + more
            return answer

    file = Growing(bytes(stated_size + more), stated_size=stated_size)
    with pytest.raises(TransferCorrupted, match=f"from {stated_size} to {stated_size + more} bytes"):
        receive(channel(file), block)


@given(channels(), contents(20, 60), BLOCKS, st.integers(1, 3))
def test_a_read_that_is_refused_is_raised(
    channel: Callable[[ScriptedFile], ScriptedChannel], content: bytes, block: int, refused: int
) -> None:
    with pytest.raises(StatusError):
        receive(channel(ScriptedFile(content, refused=frozenset([refused]))), block)


def test_a_folder_opened_by_a_lax_server_is_refused() -> None:
    with pytest.raises(InvalidPath, match="a directory, not a file"):
        receive(ScriptedChannel(ScriptedFile(mode=0o040755, stated_size=4096)), 4)


def test_a_small_file_is_requested_in_one_round_trip() -> None:
    asked_before_the_first_reply: list[int] = []
    channel = ScriptedChannel(ScriptedFile(b"abc"))
    scheduler = connected(channel)

    def order(waiting: int) -> int:
        asked_before_the_first_reply.append(len(channel.requests))
        return 0

    channel._order = order
    scheduler.traits = OPENSSH
    whole, _ = scheduler.run(received(scheduler, 16))
    assert whole == b"abc"
    assert asked_before_the_first_reply[0] == len(channel.requests) == 3  # its size, a block, the end


def test_the_read_window_fills_once_and_requests_no_byte_twice() -> None:
    block = 1 << 15
    content = bytes(200) * 40_000
    most = 0

    def order(waiting: int) -> int:
        nonlocal most
        most = max(most, waiting)
        return 0

    channel = ScriptedChannel(ScriptedFile(content), order=order)
    whole, _ = receive(channel, block)
    assert whole == content
    assert most == min(64, MAX_READ_WINDOW // block)

    def offset(packet: Packet) -> int:
        reader = packet.reader
        reader.view()
        return reader.uint64()

    offsets = [offset(packet) for packet in channel.requests if packet.kind == PacketType.READ]
    assert len(offsets) == len(set(offsets)) == -(-len(content) // block) + 1


# -- content ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"abcdef",
        bytearray(b"abcdef"),
        memoryview(b"abcdef"),
        memoryview(array.array("H", b"abcdef")),
        io.BytesIO(b"abcdef"),
        io.BufferedReader(io.BytesIO(b"abcdef")),
    ],
    ids=lambda content: type(content).__name__,
)
def test_content_is_taken_block_by_block(content: object) -> None:
    taken = UploadSource(content, with_digest=True)
    assert [bytes(taken.read_block(4)), bytes(taken.read_block(4)), bytes(taken.read_block(4))] == [b"abcd", b"ef", b""]
    assert taken.size == 6
    assert taken.digest == f"sha256:{hashlib.sha256(b'abcdef').hexdigest()}"


def test_a_digest_is_computed_only_on_request() -> None:
    assert UploadSource(b"").digest is None


@pytest.mark.parametrize(
    "content", ["text", io.StringIO("text"), None, 5, ["a"], object()], ids=lambda content: type(content).__name__
)
def test_content_that_is_not_bytes_is_refused_at_once(content: Any) -> None:
    with pytest.raises(TypeError, match="must be bytes-like"):
        UploadSource(content)


def test_a_source_that_gives_text_is_refused_at_its_first_block() -> None:
    class Lines:
        """Opened in text mode."""

        def read(self, size: int) -> str:
            """Text."""
            return "text"

    with pytest.raises(TypeError, match="must return bytes, not str"):
        UploadSource(Lines()).read_block(4)
