"""Each operation gets its own replies, or the lost connection."""

from __future__ import annotations

import gc
import struct
from collections.abc import Callable
from contextlib import suppress
from types import NoneType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend import BackendUnavailable, NotFound, SFTPBackendError
from airflow_sftp_backend.backend._protocol.codec import MAX_FRAME, Attributes, PacketType, ServerLimits
from airflow_sftp_backend.backend._protocol.messages import Close, CopyData, PosixRename, Read, Stat
from airflow_sftp_backend.backend._protocol.scheduler import (
    MAX_BYTES_IN_FLIGHT,
    Operation,
    SFTPScheduler,
    reply,
    request,
    request_all,
    send,
)
from airflow_sftp_backend.backend.errors import StatusCode, StatusError
from tests.support.scripted_channel import (
    Packet,
    ScriptedChannel,
    connected,
    encode_string,
    framed,
    packet_reply,
    status,
    version,
)


def sized(packet: Packet) -> bytes | None:
    """Answer STAT of "12" with 12 bytes, refuse "no", ignore "hush"."""
    if packet.kind != PacketType.STAT:
        return status(packet)
    path = packet.reader.text()
    if path == "hush":
        return None
    if path == "no":
        return status(packet, StatusCode.NO_SUCH_FILE, "no such file")
    return packet_reply(packet, PacketType.ATTRS, Attributes(size=int(path)).encode())


def size_of(path: str) -> Operation[int | None]:
    return (yield from request(Stat(path))).size


def all_sizes(paths: list[str]) -> Operation[list[int | None]]:
    answers = yield from request_all([Stat(path) for path in paths])
    return [None if isinstance(answer, StatusError) else answer.size for answer in answers]


# -- replies find their operations ------------------------------------------------------------------------------------


@st.composite
def channels(draw: st.DrawFn) -> ScriptedChannel:
    """Channels that deliver replies in any order and in pieces."""
    random = draw(st.randoms(use_true_random=False))
    most = draw(st.integers(1, 40))
    return ScriptedChannel(
        sized,
        order=lambda waiting: random.randrange(waiting),
        cut=lambda size: random.randint(1, min(size, most)),
        taken=lambda size: random.randint(1, min(size, most)),
    )


@given(channels(), st.lists(st.lists(st.integers(0, 99), max_size=6), max_size=12), st.integers(1, 5))
def test_replies_in_any_order_and_pieces_reach_their_operation(
    channel: ScriptedChannel, wanted: list[list[int]], limit: int
) -> None:
    scheduler = connected(channel)
    outcomes = scheduler.run_many((all_sizes([str(size) for size in sizes]) for sizes in wanted), limit)
    assert outcomes == wanted
    assert scheduler.failure is None
    assert len({packet.request_id for packet in channel.requests}) == sum(map(len, wanted))


@given(channels(), st.lists(st.sampled_from(["7", "no"]), max_size=12))
def test_a_refusal_reaches_only_its_own_operation(channel: ScriptedChannel, paths: list[str]) -> None:
    def seen(path: str) -> Operation[int | None]:
        try:
            return (yield from size_of(path))
        except StatusError:
            raise NotFound("gone", path=path) from None

    outcomes = connected(channel).run_many(seen(path) for path in paths)
    assert [7 if outcome == 7 else type(outcome) for outcome in outcomes] == [
        7 if path == "7" else NotFound for path in paths
    ]


def test_one_operation_gives_its_result_and_raises_its_error() -> None:
    scheduler = connected(ScriptedChannel(sized))
    assert scheduler.run(size_of("5")) == 5
    with pytest.raises(StatusError):
        scheduler.run(size_of("no"))
    assert scheduler.run(size_of("6")) == 6


def missing(_number: int) -> Operation[int | None]:
    try:
        return (yield from size_of("no"))
    except StatusError:
        return None


def test_refusals_leave_nothing_for_the_garbage_collector() -> None:
    scheduler = connected(ScriptedChannel(sized))
    gc.collect()
    gc.disable()
    try:
        assert scheduler.run(all_sizes(["no", "7"] * 50)) == [None, 7] * 50
        assert gc.collect() == 0
        assert {type(outcome) for outcome in scheduler.run_many(map(missing, range(50)))} == {NoneType}
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_an_operation_without_requests_sends_nothing() -> None:
    def silent() -> Operation[str]:
        yield from ()
        return "done"

    channel = ScriptedChannel(sized)
    assert connected(channel).run(silent()) == "done"
    assert channel.requests == []


def test_requests_are_sent_in_order_and_unbroken() -> None:
    sends: list[int] = []
    channel = ScriptedChannel(sized, taken=lambda size: sends.append(size) or size)  # type: ignore[func-returns-value]
    scheduler = connected(channel)
    sends.clear()
    assert scheduler.run(all_sizes(["1", "2", "3"])) == [1, 2, 3]
    assert [packet.reader.text() for packet in channel.requests] == ["1", "2", "3"]
    assert len(sends) == 1


def test_an_early_reply_is_available_when_it_is_awaited() -> None:
    def late() -> Operation[list[int | None]]:
        first = yield from send(Stat("1"))
        second = yield from send(Stat("2"))
        return [(yield from reply(second)).size, (yield from reply(first)).size]

    assert connected(ScriptedChannel(sized)).run(late()) == [2, 1]


@pytest.mark.parametrize("limit", [1, 3, 64])
def test_no_more_operations_run_at_once_than_allowed(limit: int) -> None:
    running = most = 0

    def counted_one() -> Operation[None]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        yield from request(Stat("1"))
        yield from request(Stat("1"))
        running -= 1

    connected(ScriptedChannel(sized)).run_many((counted_one() for _ in range(10)), limit)
    assert most == min(limit, 10)


# -- how much is in flight --------------------------------------------------------------------------------------------


def test_reads_and_writes_in_flight_stay_within_their_bound() -> None:
    block = 1 << 20
    waiting = most = 0

    def answer(packet: Packet) -> bytes:
        nonlocal waiting, most
        waiting += block
        most = max(most, waiting)
        return packet_reply(packet, PacketType.DATA, encode_string(b"x"))

    def choose(count: int) -> int:
        nonlocal waiting
        waiting -= block
        return count - 1

    def reading() -> Operation[int]:
        answers = yield from request_all([Read(b"h", 0, block)] * 20)
        return sum(len(answer) for answer in answers if not isinstance(answer, StatusError))

    assert connected(ScriptedChannel(answer, order=choose)).run_many(reading() for _ in range(3)) == [20, 20, 20]
    assert MAX_BYTES_IN_FLIGHT - block < most <= MAX_BYTES_IN_FLIGHT


def test_a_single_block_larger_than_the_bound_still_goes() -> None:
    def reading() -> Operation[bytes]:
        return bytes((yield from request(Read(b"h", 0, MAX_BYTES_IN_FLIGHT + 1))))

    scheduler = connected(ScriptedChannel(lambda packet: packet_reply(packet, PacketType.DATA, encode_string(b"x"))))
    assert scheduler.run_many([reading(), reading()]) == [b"x", b"x"]


def test_queries_are_not_delayed_by_blocks_in_flight() -> None:
    channel = ScriptedChannel(
        lambda packet: (
            sized(packet)
            if packet.kind == PacketType.STAT
            else packet_reply(packet, PacketType.DATA, encode_string(b"x"))
        )
    )

    def reading() -> Operation[None]:
        yield from request(Read(b"h", 0, MAX_BYTES_IN_FLIGHT))

    connected(channel).run_many([reading(), reading(), size_of("1")])
    assert [packet.kind for packet in channel.requests] == [PacketType.READ, PacketType.STAT, PacketType.READ]


# -- the handshake ----------------------------------------------------------------------------------------------------


def test_limits_are_requested_only_if_the_server_announces_them() -> None:
    channel = ScriptedChannel(sized, hello=version({"posix-rename@openssh.com": "1"}))
    scheduler = connected(channel)
    assert (scheduler.supports(PosixRename), scheduler.supports(CopyData), scheduler.supports(Stat)) == (
        True,
        False,
        False,
    )
    assert scheduler.run(scheduler.server_limits()) == ServerLimits(32768, 32768)
    assert channel.requests == []


@pytest.mark.parametrize("refused", [False, True])
def test_limits_are_requested_along_with_the_first_request(refused: bool) -> None:
    def answer(packet: Packet) -> bytes | None:
        if packet.kind != PacketType.EXTENDED:
            return sized(packet)
        if refused:
            return status(packet, StatusCode.OP_UNSUPPORTED)
        return packet_reply(packet, PacketType.EXTENDED_REPLY, struct.pack(">QQQQ", 262144, 10_000, 20_000, 0))

    channel = ScriptedChannel(answer, hello=version({"limits@openssh.com": "1"}))
    scheduler = connected(channel)
    assert channel.requests == []  # nothing is sent for them alone
    assert scheduler.run(size_of("4")) == 4
    assert [packet.kind for packet in channel.requests] == [PacketType.EXTENDED, PacketType.STAT]
    assert scheduler.run(scheduler.server_limits()) == (ServerLimits() if refused else ServerLimits(10_000, 20_000))
    assert len(channel.requests) == 2


@pytest.mark.parametrize("answered", [True, False])
def test_several_operations_wait_for_the_limits(answered: bool) -> None:
    def answer(packet: Packet) -> bytes | None:
        if packet.kind != PacketType.EXTENDED:
            return sized(packet)
        if not answered:
            return None
        return packet_reply(packet, PacketType.EXTENDED_REPLY, struct.pack(">QQQQ", 262144, 10_000, 20_000, 0))

    # the limits come last, when every operation waits for them
    channel = ScriptedChannel(answer, hello=version({"limits@openssh.com": "1"}), order=lambda waiting: waiting - 1)
    scheduler = connected(channel)

    def operation(number: int) -> Operation[ServerLimits]:
        yield from size_of(f"{number}")
        return (yield from scheduler.server_limits())

    outcomes = scheduler.run_many(operation(number) for number in range(5))
    if answered:
        assert outcomes == [ServerLimits(10_000, 20_000)] * 5
    else:
        assert [type(outcome) for outcome in outcomes] == [BackendUnavailable] * 5


@pytest.mark.parametrize("stated", [1, 4095, 4096])
@pytest.mark.parametrize("packet_length", [0, 1, 1025, 262144])
def test_a_block_length_below_4_kib_counts_as_4_kib(stated: int, packet_length: int) -> None:
    def answer(packet: Packet) -> bytes | None:
        if packet.kind != PacketType.EXTENDED:
            return sized(packet)
        return packet_reply(packet, PacketType.EXTENDED_REPLY, struct.pack(">QQQQ", packet_length, stated, stated, 0))

    scheduler = connected(ScriptedChannel(answer, hello=version({"limits@openssh.com": "1"})))
    assert scheduler.run(scheduler.server_limits()) == ServerLimits(4096, 4096)


@pytest.mark.parametrize(
    ("hello", "why"),
    [
        (version(number=4), "version 4, not 3"),
        (framed(PacketType.STATUS, bytes(12)), "not VERSION"),
        (b"Welcome to the bank!\r\n", "login script"),
        ("Willkommen, heute ist 😀\n".encode()[:-2], "text .'Willkommen, heute ist'.; a login script"),
        (b"\xff\xff\xff\xff\xff", "announced as 4294967295 bytes"),
        (bytes(4) + b"\1", "announced as 0 bytes"),
        (version() + framed(PacketType.STATUS, bytes(12)), "before the first request"),
        (version()[:-2] + b"\0", "no answer for 7 s"),  # the rest never comes
        (framed(PacketType.VERSION, b"\0"), "is truncated"),
    ],
)
def test_a_server_that_does_not_speak_sftp_3_is_unavailable(hello: bytes, why: str) -> None:
    scheduler = SFTPScheduler(ScriptedChannel(sized, hello=hello), io_timeout=7)
    with pytest.raises(BackendUnavailable, match=why):
        scheduler.handshake()
    assert scheduler.failure is not None


# -- the end of the line ----------------------------------------------------------------------------------------------


def misfit(packet: Packet, kind: PacketType = PacketType.NAME) -> bytes:
    return packet_reply(packet, kind, bytes(8))


NONSENSE: dict[str, tuple[Callable[[Packet], bytes | None], str]] = {
    "a reply of another type": (misfit, "answered by a packet of type 104"),
    "a reply to nobody": (lambda packet: framed(PacketType.STATUS, b"\xff\xff\xff\xff" + bytes(12)), "unknown request"),
    "a packet without an id": (lambda packet: framed(PacketType.STATUS, b"\0\0"), "without a request id"),
    "a length of 0": (lambda packet: bytes(8), "announced as 0 bytes"),
    "a length too long": (lambda packet: struct.pack(">I", MAX_FRAME + 1) + b"\xff" * 20, "announced as"),
    "a cut reply": (lambda packet: packet_reply(packet, PacketType.ATTRS, b"\0\0\0\1\0"), "is truncated"),
    "text": (lambda packet: b"logout\r\n", "login script"),
    "silence": (lambda packet: None, "no answer for 7 s"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_a_malformed_reply_fails_every_operation_and_ends_requests(name: str) -> None:
    answer, why = NONSENSE[name]
    channel = ScriptedChannel(lambda packet: answer(packet) if packet.reader.text() == "9" else None)
    scheduler = connected(channel)
    outcomes = scheduler.run_many([size_of("1"), size_of("9"), size_of("2")])
    assert [type(outcome) for outcome in outcomes] == [BackendUnavailable] * 3
    assert all(why in str(outcome) for outcome in outcomes)
    request_count = len(channel.requests)
    with pytest.raises(BackendUnavailable, match=why):
        scheduler.run(size_of("1"))
    assert len(channel.requests) == request_count


@given(st.binary(min_size=1, max_size=60))
def test_any_bytes_end_in_an_answer_or_in_an_unavailable_backend(data: bytes) -> None:
    scheduler = connected(ScriptedChannel(lambda packet: data, lost=True))
    with suppress(StatusError, BackendUnavailable):
        scheduler.run(size_of("1"))


def test_a_lost_connection_fails_every_operation_without_clean_up_requests() -> None:
    cleaned: list[str] = []

    def tidy(path: str) -> Operation[None]:
        try:
            yield from request(Stat(path))
        finally:
            with pytest.raises(BackendUnavailable, match="the connection was lost"):
                yield from send(Close(b"h"))
            cleaned.append(path)

    channel = ScriptedChannel(sized, lost=True)
    outcomes = connected(channel).run_many([tidy("hush"), tidy("hush")])
    assert all(isinstance(outcome, BackendUnavailable) for outcome in outcomes)
    assert cleaned == ["hush", "hush"]
    assert all(packet.kind == PacketType.STAT for packet in channel.requests)


def test_a_channel_that_accepts_no_data_is_lost() -> None:
    channel = ScriptedChannel(sized)
    scheduler = connected(channel)
    channel.closed = True
    with pytest.raises(BackendUnavailable, match="the connection was lost"):
        scheduler.run(size_of("1"))


def test_a_socket_error_is_named() -> None:
    def broken(size: int) -> int:
        raise ConnectionResetError(104, "Connection reset by peer")

    channel = ScriptedChannel(sized, cut=broken)
    with pytest.raises(BackendUnavailable, match=r"lost.*reset by peer"):
        connected(channel)


def test_a_closed_scheduler_refuses_operations() -> None:
    channel = ScriptedChannel(sized)
    scheduler = connected(channel)
    scheduler.close()
    scheduler.close()
    assert channel.closed
    with pytest.raises(BackendUnavailable, match="the connection was closed"):
        scheduler.run(size_of("1"))


def test_a_stall_without_io_timeout_is_still_detected() -> None:
    with pytest.raises(BackendUnavailable, match=r"no answer: .*io_timeout"):
        connected(ScriptedChannel(sized), io_timeout=None).run(size_of("hush"))


# -- interruptions ----------------------------------------------------------------------------------------------------


def closing(cleaned: list[str], path: str) -> Operation[int | None]:
    """Asks, and cleans up with a request of its own."""
    try:
        return (yield from size_of(path))
    finally:
        with suppress(SFTPBackendError):
            yield from request(Close(path.encode()))
            cleaned.append(path)


def test_an_unexpected_error_ends_all_operations_after_their_clean_up() -> None:
    cleaned: list[str] = []

    def faulty() -> Operation[int | None]:
        yield from request(Stat("1"))
        raise ZeroDivisionError

    channel = ScriptedChannel(sized)
    scheduler = connected(channel)
    with pytest.raises(ZeroDivisionError):
        scheduler.run_many([closing(cleaned, "hush"), faulty(), closing(cleaned, "5")])
    assert sorted(cleaned) == ["5", "hush"]
    assert scheduler.run(size_of("3")) == 3  # the line is whole


def test_no_operation_starts_after_one_failed() -> None:
    begun: list[int] = []

    def one(number: int) -> Operation[None]:
        begun.append(number)
        yield from request(Stat("1"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        connected(ScriptedChannel(sized)).run_many((one(number) for number in range(5)), limit=1)
    assert begun == [0]


def test_an_interruption_within_a_packet_ends_the_connection() -> None:
    cleaned: list[str] = []
    armed: list[bool] = []

    def cut(size: int) -> int:
        if armed:
            raise KeyboardInterrupt
        return size

    channel = ScriptedChannel(sized, cut=cut)
    scheduler = connected(channel)
    armed.append(True)
    with pytest.raises(KeyboardInterrupt):
        scheduler.run_many([closing(cleaned, "5"), closing(cleaned, "6")])
    assert cleaned == []  # it was tried, and there was no line any more
    assert scheduler.failure == "interrupted in the middle of a packet"
    assert [packet.kind for packet in channel.requests] == [PacketType.STAT, PacketType.STAT]


def test_an_interruption_inside_an_operation_keeps_the_connection() -> None:
    cleaned: list[str] = []

    def interrupted() -> Operation[int | None]:
        yield from request(Stat("1"))
        raise KeyboardInterrupt

    scheduler = connected(ScriptedChannel(sized))
    with pytest.raises(KeyboardInterrupt):
        scheduler.run_many([interrupted(), closing(cleaned, "hush")])
    assert cleaned == ["hush"]
    assert scheduler.failure is None


def test_queued_operations_fail_when_the_connection_is_lost() -> None:
    def reading() -> Operation[None]:
        yield from request(Read(b"h", 0, MAX_BYTES_IN_FLIGHT))

    scheduler = connected(ScriptedChannel(lambda packet: None, lost=True))
    outcomes = scheduler.run_many([reading(), reading(), reading()])
    assert all(isinstance(outcome, BackendUnavailable) for outcome in outcomes)

    def faulty() -> Operation[None]:
        yield from request(Stat("1"))
        raise ZeroDivisionError

    scheduler = connected(ScriptedChannel(lambda packet: sized(packet) if packet.kind == PacketType.STAT else None))
    with pytest.raises(ZeroDivisionError):
        scheduler.run_many([reading(), reading(), faulty()])


# -- handles nobody waits for -----------------------------------------------------------------------------------------


def test_an_abandoned_handle_is_closed_with_the_next_request() -> None:
    channel = ScriptedChannel(sized)
    scheduler = connected(channel)
    scheduler.close_later(b"left")
    assert channel.requests == []
    assert scheduler.run(size_of("1")) == 1
    assert [packet.kind for packet in channel.requests] == [PacketType.CLOSE, PacketType.STAT]
    assert scheduler.run(size_of("2")) == 2
    assert [packet.kind for packet in channel.requests].count(PacketType.CLOSE) == 1


def test_unawaited_requests_are_sent_before_the_call_returns() -> None:
    def leaving() -> Operation[None]:
        yield from send(Close(b"h"))

    channel = ScriptedChannel(sized)
    connected(channel).run(leaving())
    assert [packet.kind for packet in channel.requests] == [PacketType.CLOSE]
