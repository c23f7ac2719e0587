"""The rate limit bounds each interval without needless delay."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend.backend._protocol.codec import PacketType, ServerLimits
from airflow_sftp_backend.backend._protocol.messages import Close, Read, Write
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler, reply, request, send
from airflow_sftp_backend.backend._protocol.traffic import BURST_SECONDS, TokenBucket, TrafficMeter
from airflow_sftp_backend.backend.errors import StatusCode, StatusError
from tests.support.scripted_channel import (
    Packet,
    ScriptedChannel,
    connected,
    encode_string,
    packet_reply,
    status,
    version,
)


class Clock:
    """Seconds that pass only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let the time pass."""
        self.slept.append(seconds)
        self.now += seconds


SIZES = st.lists(st.integers(1, 300_000), min_size=1, max_size=40)
IDLE = st.lists(st.floats(0, 5), min_size=40, max_size=40)


def transfers(rate: int, sizes: list[int], idle: list[float]) -> list[tuple[float, int]]:
    """Return time and size of each request of a limited client."""
    clock = Clock()
    limit = TokenBucket(rate, clock)
    sent = []
    for size, pause in zip(sizes, idle, strict=False):
        clock.now += pause
        clock.now += limit.wait_time()
        sent.append((clock.now, size))
        limit.take(size)
    return sent


@given(st.integers(1, 1_000_000), SIZES, IDLE)
def test_no_interval_has_more_bytes_than_its_rate_and_a_burst(rate: int, sizes: list[int], idle: list[float]) -> None:
    sent = transfers(rate, sizes, idle)
    for first, (start, _) in enumerate(sent):
        total = 0
        for end, size in sent[first:]:
            assert total <= rate * (end - start + BURST_SECONDS) * (1 + 1e-9) + 1
            total += size


@given(st.integers(1, 1_000_000), SIZES)
def test_a_client_that_always_sends_gets_the_whole_rate(rate: int, sizes: list[int]) -> None:
    sent = transfers(rate, sizes, [0.0] * len(sizes))
    start, end = sent[0][0], sent[-1][0]
    assert end - start <= sum(sizes[:-1]) / rate * (1 + 1e-9) + 1e-6


@given(st.integers(1, 1_000_000), SIZES)
def test_bytes_that_were_not_transferred_cost_nothing(rate: int, sizes: list[int]) -> None:
    clock = Clock()
    limit = TokenBucket(rate, clock)
    limit.take(1)
    before = limit.wait_time()
    for size in sizes:
        limit.take(size)
        limit.give_back(size)
    assert limit.wait_time() == pytest.approx(before, abs=1e-6)


def test_without_a_limit_nothing_waits() -> None:
    pauses: list[float] = []
    traffic = TrafficMeter(pause=pauses.append)
    traffic.start(1 << 40)
    assert not traffic.is_exhausted
    traffic.pause()
    assert pauses == []


@pytest.mark.parametrize(("rate", "block"), [(100, 4096), (1 << 20, (1 << 20) // 10), (1 << 30, 200_000)])
def test_blocks_are_a_tenth_of_a_second_where_the_rate_is_low(rate: int, block: int) -> None:
    limits = struct.pack(">QQQQ", 262_144, 200_000, 200_000, 0)
    channel = ScriptedChannel(
        lambda packet: packet_reply(packet, PacketType.EXTENDED_REPLY, limits),
        hello=version({"limits@openssh.com": "1"}),
    )
    scheduler = connected(channel)
    scheduler.use_traffic(TrafficMeter(rate))
    assert scheduler.run(scheduler.server_limits()) == ServerLimits(read=block, write=block)


# -- the scheduler ----------------------------------------------------------------------------------------------------


def answered(packet: Packet) -> bytes:
    """Confirm requests; reads return half, and end at offset 1000."""
    if packet.kind != PacketType.READ:
        return status(packet)
    reader = packet.reader
    reader.view()
    if reader.uint64() > 1000:
        return status(packet, StatusCode.EOF)
    return packet_reply(packet, PacketType.DATA, encode_string(bytes(reader.uint32() // 2)))


def writes(sizes: list[int]) -> Operation[int]:
    """Send all blocks before the first reply is awaited."""
    pending = []
    for size in sizes:
        pending += [(yield from send(Write(b"h", 0, bytes(size))))]
    for one in pending:
        yield from reply(one)
    return sum(sizes)


def limited(channel: ScriptedChannel, rate: int, clock: Clock) -> tuple[SFTPScheduler, TrafficMeter]:
    scheduler = connected(channel)
    traffic = TrafficMeter(rate, pause=clock.sleep, clock=clock)
    scheduler.use_traffic(traffic)
    return scheduler, traffic


@given(st.lists(st.lists(st.integers(1, 2000), max_size=8), min_size=1, max_size=6), st.integers(100, 5000))
def test_all_operations_of_a_session_share_the_rate(sizes: list[list[int]], rate: int) -> None:
    clock = Clock()
    scheduler, traffic = limited(ScriptedChannel(answered), rate, clock)
    start = clock.now
    assert scheduler.run_many(writes(blocks) for blocks in sizes) == [sum(blocks) for blocks in sizes]
    total = sum(map(sum, sizes))
    assert traffic.bytes_sent == total
    last = max((size for blocks in sizes for size in blocks), default=0)
    assert total - last <= rate * (clock.now - start + BURST_SECONDS) * (1 + 1e-9) + 1
    assert clock.now - start <= total / rate + 1e-6


def test_requests_without_content_pass_while_content_waits() -> None:
    clock = Clock()
    channel = ScriptedChannel(answered)
    scheduler, _ = limited(channel, 1000, clock)

    def others() -> Operation[None]:
        for _ in range(5):
            yield from request(Close(b"x"))
        assert not clock.slept

    scheduler.run_many([writes([1000, 1000]), others()])
    assert [packet.kind for packet in channel.requests] == [PacketType.WRITE, *[PacketType.CLOSE] * 5, PacketType.WRITE]
    assert clock.slept


def test_reads_are_charged_with_the_bytes_received() -> None:
    clock = Clock()
    scheduler, traffic = limited(ScriptedChannel(answered), 1000, clock)
    start = clock.now
    for _ in range(20):
        assert len(scheduler.run(request(Read(b"h", 0, 400)))) == 200
    assert traffic.bytes_received == 4000
    assert clock.now - start == pytest.approx(4000 / 1000 - BURST_SECONDS, abs=0.5)
    slept = len(clock.slept)
    for _ in range(3):
        assert not len(scheduler.run(request(Read(b"h", 2000, 1))))
    assert len(clock.slept) <= slept + 1
    assert traffic.bytes_received == 4000


def test_a_refused_write_is_not_counted() -> None:
    traffic = TrafficMeter()
    scheduler = connected(ScriptedChannel(lambda packet: status(packet, StatusCode.FAILURE)))
    scheduler.use_traffic(traffic)
    with pytest.raises(StatusError):
        scheduler.run(request(Write(b"h", 0, b"content")))
    assert (traffic.bytes_sent, traffic.bytes_received) == (0, 0)


def test_an_interrupted_pause_keeps_the_connection_for_the_clean_up() -> None:
    clock = Clock()
    channel = ScriptedChannel(answered)
    scheduler = connected(channel)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    scheduler.use_traffic(TrafficMeter(1, pause=interrupted, clock=clock))

    def cleaning() -> Operation[int]:
        try:
            return (yield from writes([100, 100]))
        finally:
            yield from request(Close(b"h"))

    with pytest.raises(KeyboardInterrupt):
        scheduler.run(cleaning())
    assert scheduler.failure is None
    assert [packet.kind for packet in channel.requests] == [PacketType.WRITE, PacketType.CLOSE]
    assert scheduler.run(request(Close(b"x"))) is None


def test_a_pause_that_ends_early_does_not_spin() -> None:
    pauses: list[float] = []
    clock = Clock()
    channel = ScriptedChannel(answered)
    scheduler = connected(channel)
    scheduler.use_traffic(TrafficMeter(1, pause=pauses.append, clock=clock))
    assert scheduler.run(writes([10, 10, 10])) == 30
    assert len(pauses) == 2


def test_a_connection_lost_during_a_pause_fails_the_operation() -> None:
    clock = Clock()
    channel = ScriptedChannel(answered)
    scheduler = connected(channel)

    def lose(seconds: float) -> None:
        clock.sleep(seconds)
        channel.close()

    scheduler.use_traffic(TrafficMeter(100, pause=lose, clock=clock))
    (outcome,) = scheduler.run_many([writes([100, 100])])
    assert "the connection was lost" in str(outcome)
