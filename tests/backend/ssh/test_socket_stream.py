"""The socket stream loses no bytes and bounds every wait."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend.backend._ssh.socket_stream import SocketStream, connect_tcp
from tests.support.servers import free_port, mute_listener

Pair = tuple[SocketStream, socket.socket]


def pair(io_timeout: float | None = None) -> Pair:
    """A stream and the other end of its line."""
    near, far = socket.socketpair()
    stream = SocketStream(near, io_timeout=io_timeout)
    stream.settimeout(0.02)
    return stream, far


@pytest.fixture
def line() -> Iterator[Pair]:
    """Stream and the other end of its socket, closed afterwards."""
    stream, far = pair()
    yield stream, far
    far.close()
    stream.close_descriptor()


@given(
    sent=st.lists(st.binary(min_size=1, max_size=5000), min_size=1, max_size=10),
    counts=st.lists(st.integers(1, 3000), min_size=1, max_size=5),
)
def test_what_is_sent_is_read_in_pieces_of_any_size(sent: list[bytes], counts: list[int]) -> None:
    stream, far = pair()
    for piece in sent:
        far.sendall(piece)
    far.close()
    received = bytearray()
    number = 0
    while piece := stream.recv(counts[number % len(counts)]):
        assert len(piece) <= counts[number % len(counts)]
        received += piece
        number += 1
    stream.close()
    assert received == b"".join(sent)
    assert stream.failure == "the server closed the connection"


def read_until_eof_error(stream: SocketStream) -> None:
    """Reads as paramiko does: past every TimeoutError."""
    while True:
        try:
            if not stream.recv(100):
                return
        except TimeoutError:
            continue


def test_a_pause_is_not_an_end_of_file(line: Pair) -> None:
    stream, far = line
    with pytest.raises(TimeoutError):
        stream.recv(1)
    far.sendall(b"x")
    assert stream.recv(1) == b"x"
    assert (stream.failure, stream.timed_out) == (None, False)


def pauses(stream: SocketStream, seconds: float) -> int:
    """Count the wake-ups of a read that waits for that long."""
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        with pytest.raises(TimeoutError):
            stream.recv(1)
        count += 1
    return count


def test_a_long_wait_wakes_rarely_unless_a_deadline_is_set(line: Pair) -> None:
    stream, far = line
    assert pauses(stream, 1.2) <= 4
    stream.set_deadline(60)
    assert pauses(stream, 1.2) >= 10
    stream.set_deadline(None)
    assert pauses(stream, 1.2) <= 4
    stream.abort_within(60)
    assert pauses(stream, 1.2) >= 10
    far.sendall(b"x")
    assert stream.recv(1) == b"x"


@pytest.mark.parametrize("ends", [lambda stream: stream.set_deadline(0.1), lambda stream: stream.abort_within(0.1)])
def test_a_deadline_set_during_a_long_wait_applies(line: Pair, ends: Callable[[SocketStream], None]) -> None:
    stream, _ = line
    ended = threading.Event()

    def read() -> None:
        with pytest.raises(EOFError):
            read_until_eof_error(stream)
        ended.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert not ended.wait(0.3)
        ends(stream)
        assert ended.wait(2)
    finally:
        stream.abort()
        reader.join()


def test_a_deadline_ends_the_wait(line: Pair) -> None:
    stream, _ = line
    stream.set_deadline(0.1)
    with pytest.raises(EOFError):
        read_until_eof_error(stream)
    assert (stream.failure, stream.timed_out) == ("no answer within 0.1 s", True)


def test_slowly_arriving_bytes_do_not_extend_the_deadline(line: Pair) -> None:
    stream, far = line
    stream.set_deadline(0.1)
    with pytest.raises(EOFError):
        while True:
            far.sendall(b"x")
            assert stream.recv(1) == b"x"
    assert stream.failure == "no answer within 0.1 s"


def test_the_first_bytes_start_the_next_deadline(line: Pair) -> None:
    stream, far = line
    far.sendall(b"SSH-2.0-x\r\n")
    stream.set_deadline(3000, after_first_bytes=0.1)
    assert stream.recv(100) == b"SSH-2.0-x\r\n"
    with pytest.raises(EOFError):
        read_until_eof_error(stream)
    assert stream.failure == "no answer within 0.1 s"
    assert stream.greeting == b"SSH-2.0-x\r\n"


def test_a_deadline_can_be_removed(line: Pair) -> None:
    stream, far = line
    stream.set_deadline(0.001)
    stream.set_deadline(None)
    with pytest.raises(TimeoutError):
        stream.recv(1)
    far.sendall(b"x")
    assert stream.recv(1) == b"x"


def write_until_it_ends(stream: SocketStream) -> None:
    """Writes as paramiko does: again after every TimeoutError."""
    while True:
        try:
            stream.send(bytes(1 << 20))
        except TimeoutError:
            continue


def test_a_blocked_write_times_out() -> None:
    stream, far = pair(io_timeout=0.1)
    with far, pytest.raises(EOFError):
        write_until_it_ends(stream)
    assert stream.failure == "nothing could be sent for 0.1 s: the server or the network has stalled"
    stream.close()


def test_a_deadline_applies_to_writing_too(line: Pair) -> None:
    stream, _ = line
    stream.set_deadline(0.1)
    with pytest.raises(EOFError):
        write_until_it_ends(stream)
    assert stream.failure == "no answer within 0.1 s"


def test_writing_to_a_closed_peer_fails(line: Pair) -> None:
    stream, far = line
    far.close()
    with pytest.raises(EOFError, match="the server closed the connection"):
        write_until_it_ends(stream)


def test_closing_wakes_the_reader_which_releases_the_descriptor(line: Pair) -> None:
    stream, _ = line
    stream.settimeout(None)
    started = threading.Event()

    def read() -> None:
        started.set()
        while stream.recv(1):
            pass
        open_then.append(not stream._closed)
        stream.close()

    open_then: list[bool] = []
    reader = threading.Thread(target=read)
    reader.start()
    started.wait()
    while stream._reader is None:
        pass
    stream.close()
    reader.join()
    assert open_then == [True]
    assert stream._closed
    assert stream.failure is None


def test_closing_without_a_reader_releases_the_descriptor(line: Pair) -> None:
    stream, far = line
    stream.close()
    assert stream._closed
    assert far.recv(1) == b""
    stream.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_closes_its_copy_and_leaves_the_parent_connected(line: Pair) -> None:
    stream, far = line
    child = os.fork()
    if not child:
        is_closed = stream.is_closed()
        stream.close()
        os._exit(0 if is_closed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    stream.send(b"x")
    assert far.recv(1) == b"x"


def addresses(*ports: int) -> Any:
    """A resolver that knows these, all on loopback."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]
    return lambda *_args, **_options: found


def test_all_addresses_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with mute_listener() as listener:
        monkeypatch.setattr(socket, "getaddrinfo", addresses(free_port(), free_port(), listener.port))
        stream = connect_tcp("host", 22, timeout=10, io_timeout=5)
        try:
            assert stream.getpeername() == ("127.0.0.1", listener.port)
            for level, option in (
                (socket.IPPROTO_TCP, socket.TCP_NODELAY),
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            ):
                assert stream._socket.getsockopt(level, option) == 1
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                assert stream._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5001
        finally:
            stream.close()


def test_all_refusing_addresses_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", addresses(free_port(), free_port()))
    with pytest.raises(ConnectionRefusedError):
        connect_tcp("host", 22, timeout=10, io_timeout=None)
    monkeypatch.setattr(socket, "getaddrinfo", addresses())
    with pytest.raises(OSError, match="no address"):
        connect_tcp("host", 22, timeout=10, io_timeout=None)


def test_an_address_that_does_not_answer_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        waiting: list[SocketStream] = []
        try:
            with pytest.raises(TimeoutError):
                while len(waiting) < 50:  # the queue takes an unknown few
                    waiting.append(connect_tcp("127.0.0.1", port, timeout=0.3, io_timeout=None))
        finally:
            for stream in waiting:
                stream.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="Linux only")
def test_received_data_is_acknowledged_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
        stream = SocketStream(near, io_timeout=None)
        for _ in range(30):  # after so much back and forth Linux would wait for data to send along
            stream.send(b"ping")
            assert far.recv(4) == b"ping"
            far.sendall(b"pong")
            assert stream.recv(4) == b"pong"
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 1
        far.close()
        near.close()
