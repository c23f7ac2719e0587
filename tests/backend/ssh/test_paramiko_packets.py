"""The packetizer and paramiko read each other's AES-GCM packets."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import paramiko
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from paramiko.buffered_pipe import PipeTimeout
from paramiko.compress import ZlibCompressor, ZlibDecompressor
from paramiko.packet import Packetizer

from airflow_sftp_backend import BackendUnavailable, SFTPBackend
from airflow_sftp_backend.backend._ssh import _paramiko_packets as packets
from airflow_sftp_backend.backend._ssh.socket_stream import SocketStream
from tests.support.servers import OpenSSHServer

MakeBackend = Callable[..., SFTPBackend]
KEY, NONCE = bytes(range(16)), bytes(range(12))
CHANNEL = 7
CONTENT = st.binary(min_size=1, max_size=2000) | st.integers(1, 80_000).map(
    lambda size: (b"0123456789abcdef" * 5000)[:size]
)


@contextmanager
def connected(
    sender: type[Packetizer], receiver: type[Packetizer], *, compress: bool = False
) -> Iterator[tuple[Packetizer, Packetizer]]:
    """A sender and a receiver with the same key."""
    ends = socket.socketpair()
    streams = [SocketStream(end, io_timeout=None) for end in ends]
    for stream in streams:
        stream.settimeout(5)
    one, other = sender(cast("socket.socket", streams[0])), receiver(cast("socket.socket", streams[1]))
    facts = {"block_engine": AESGCM(KEY), "block_size": 16, "mac_engine": None, "mac_size": 16, "mac_key": None}
    one.set_outbound_cipher(**facts, aead=True, iv_out=NONCE)  # type: ignore[arg-type] # as in paramiko
    other.set_inbound_cipher(**facts, aead=True, iv_in=NONCE)  # type: ignore[arg-type] # as in paramiko
    if compress:
        one.set_outbound_compressor(ZlibCompressor())
        other.set_inbound_compressor(ZlibDecompressor())
    try:
        yield one, other
    finally:
        for end in ends:
            end.close()


def content_message(content: bytes) -> paramiko.Message:
    """A message of paramiko with content for a channel."""
    message = paramiko.Message()
    message.add_byte(bytes([packets.CHANNEL_DATA]))
    message.add_int(CHANNEL)
    message.add_string(content)
    return message


def read_content(packetizer: Packetizer) -> bytes:
    """Content of the next packet."""
    number, message = packetizer.read_message()
    assert (number, message.get_int()) == (packets.CHANNEL_DATA, CHANNEL)
    return message.get_binary()


def send_all(packetizer: Packetizer, messages: list[paramiko.Message]) -> None:
    """Send messages in their order."""
    for message in messages:
        packetizer.send_message(message)


def run_beside(work: Callable[[], object]) -> threading.Thread:
    """Start a thread: a socket holds fewer bytes than the longest content."""
    thread = threading.Thread(target=work)
    thread.start()
    return thread


@given(contents=st.lists(CONTENT, max_size=6), compress=st.booleans())
def test_paramiko_reads_what_the_fast_packetizer_sends(contents: list[bytes], compress: bool) -> None:
    with connected(packets.FastPacketizer, Packetizer, compress=compress) as (fast, reference):
        sent = [packets.ChannelData(CHANNEL, memoryview(content), 30_000) for content in contents]
        thread = run_beside(lambda: send_all(fast, cast("list[paramiko.Message]", sent)))
        for content in contents:
            parts = -(-len(content) // 30_000)
            assert b"".join(read_content(reference) for _ in range(parts)) == content
        thread.join()


@given(contents=st.lists(CONTENT, max_size=6), compress=st.booleans())
def test_the_fast_packetizer_reads_what_paramiko_sends(contents: list[bytes], compress: bool) -> None:
    with connected(Packetizer, packets.FastPacketizer, compress=compress) as (reference, fast):
        thread = run_beside(lambda: send_all(reference, [content_message(content) for content in contents]))
        for content in contents:
            assert read_content(fast) == content
        thread.join()


@given(payloads=st.lists(st.binary(min_size=2, max_size=300).filter(lambda payload: payload[0] != 94), max_size=8))
def test_messages_without_content_arrive_unchanged_and_numbered(payloads: list[bytes]) -> None:
    with connected(packets.FastPacketizer, packets.FastPacketizer) as (sender, receiver):
        for number, payload in enumerate(payloads):
            sender.send_message(paramiko.Message(payload))
            kind, message = receiver.read_message()
            assert (bytes([kind]) + message.asbytes(), message.seqno) == (payload, number)


def raw_packet(change: Callable[[bytearray], None]) -> bytes:
    """A packet as it is sent, after a change."""
    with connected(packets.FastPacketizer, Packetizer) as (sender, receiver):
        written = bytearray()
        sender.write_all = written.extend  # type: ignore[method-assign, assignment] # the packet is not to be sent
        sender.send_message(content_message(b"x" * 100))
        change(written)
        del receiver
        return bytes(written)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda packet: packet.__setitem__(20, packet[20] ^ 1), "wrong authentication tag"),
        (lambda packet: packet.__setitem__(-1, packet[-1] ^ 1), "wrong authentication tag"),
        (lambda packet: packet.__setitem__(slice(0, 4), struct.pack(">I", 0xFFFFFFF0)), "a packet of 4294967280 bytes"),
        (lambda packet: packet.__setitem__(slice(0, 4), struct.pack(">I", 0)), "a packet of 0 bytes"),
        (lambda packet: packet.__setitem__(slice(0, 4), struct.pack(">I", 33)), "a packet of 33 bytes"),
    ],
)
def test_an_invalid_packet_ends_the_connection(change: Callable[[bytearray], None], reason: str) -> None:
    packet = raw_packet(change)
    with connected(Packetizer, packets.FastPacketizer) as (sender, receiver):
        sender.write_all(packet)
        with pytest.raises(paramiko.SSHException, match=reason):
            receiver.read_message()


def test_a_packet_of_padding_alone_is_invalid() -> None:
    plain, length = bytes([31]) + bytes(31), struct.pack(">I", 32)
    with connected(Packetizer, packets.FastPacketizer) as (sender, receiver):
        sender.write_all(length + AESGCM(KEY).encrypt(NONCE, plain, length))
        with pytest.raises(paramiko.SSHException, match="31 bytes of padding"):
            receiver.read_message()


def test_a_server_that_ignores_requests_for_new_keys_is_left() -> None:
    with connected(packets.FastPacketizer, packets.FastPacketizer) as (sender, receiver):
        receiver.REKEY_BYTES, receiver.REKEY_BYTES_OVERFLOW_MAX = 1000, 1000
        for _ in range(20):
            sender.send_message(content_message(b"x" * 100))
        with pytest.raises(paramiko.SSHException, match="ignores requests for new keys"):
            for _ in range(20):
                receiver.read_message()
        assert receiver.need_rekey()


def test_new_keys_are_requested_after_enough_bytes_were_sent() -> None:
    with connected(packets.FastPacketizer, packets.FastPacketizer) as (sender, _):
        sender.REKEY_BYTES = 1000
        sender.send_message(content_message(b"x" * 500))
        assert not sender.need_rekey()
        sender.send_message(content_message(b"x" * 500))
        assert sender.need_rekey()


def test_a_change_to_another_kind_of_cipher_is_refused() -> None:
    with (
        connected(packets.FastPacketizer, packets.FastPacketizer) as (sender, _),
        pytest.raises(paramiko.SSHException, match="changed the cipher"),
    ):
        sender.set_outbound_cipher(None, 16, None, 20, b"")  # type: ignore[arg-type] # as in paramiko


# -- received content -------------------------------------------------------------------------------------------------


@pytest.fixture
def inbox() -> Iterator[packets.Inbox]:
    """An inbox without a transport."""
    with connected(packets.FastPacketizer, packets.FastPacketizer) as (_, receiver):
        yield packets.Inbox(cast("packets.FastPacketizer", receiver))


@given(
    steps=st.lists(
        st.integers(1, 300_000).map(lambda size: ("feed", size)) | st.integers(1, 700_000).map(lambda n: ("read", n)),
        max_size=12,
    )
)
def test_an_inbox_gives_all_content_in_its_order(steps: list[tuple[str, int]]) -> None:
    with connected(packets.FastPacketizer, packets.FastPacketizer) as (_, receiver):
        inbox = packets.Inbox(cast("packets.FastPacketizer", receiver))
        fed, read = bytearray(), bytearray()
        views = []
        for step, size in steps:
            if step == "feed":
                data = os.urandom(16) * (size // 16 + 1)
                fed += data
                inbox.feed(memoryview(data))
            elif inbox.read_ready():
                taken = inbox.read(size)
                assert 0 < len(taken) <= size
                views.append(taken)
        views.append(inbox.empty())
        for view in views:  # read late: content that was handed over must not be overwritten
            read += view
        assert read == fed
        assert len(inbox) == 0


def test_a_reader_is_woken_by_content_and_by_the_end(inbox: packets.Inbox) -> None:
    read: list[bytes] = []

    def read_twice() -> None:
        read.append(bytes(inbox.read(10, 5)))
        read.append(bytes(inbox.read(10, 5)))

    thread = run_beside(read_twice)
    inbox.feed(b"content")
    inbox.notify()
    while not read:
        pass
    inbox.close()
    thread.join()
    assert read == [b"content", b""]


@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_a_read_without_content_ends_in_time(inbox: packets.Inbox, seconds: float) -> None:
    with pytest.raises(PipeTimeout):
        inbox.read(1, seconds)


# -- real servers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content() -> bytes:
    """Content of many packets and of several keys."""
    return os.urandom(1 << 20) * 6


@pytest.mark.parametrize(
    "settings",
    [{}, {"compress": True}, {"ciphers": ("aes256-gcm@openssh.com",)}, {"ciphers": ("aes128-ctr",)}],
    ids=lambda settings: str(*settings.values()) or "default",
)
@pytest.mark.usefixtures("sshd")
def test_content_is_equal_across_key_exchanges(
    make_backend: MakeBackend, tmp_path: Path, content: bytes, settings: dict[str, object]
) -> None:
    (tmp_path / "local").write_bytes(content)
    with OpenSSHServer({"RekeyLimit": "1M", "Compression": "yes"}) as server:
        backend = make_backend(server, config=settings)
        backend.upload(tmp_path / "local", "remote")
        backend.download("remote", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


@pytest.mark.parametrize("missing", ["version", "part"])
def test_an_unknown_paramiko_is_used_unchanged(
    openssh: OpenSSHServer,
    make_backend: MakeBackend,
    content: bytes,
    missing: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if missing == "version":
        monkeypatch.setattr(paramiko, "__version__", "5.9.0")
    else:
        monkeypatch.setattr(packets, "PARTS", (*packets.PARTS, (Packetizer, "a_part_that_is_gone")))
    packets.packetizer_class.cache_clear()
    try:
        assert packets.packetizer_class() is Packetizer
        (tmp_path / "local").write_bytes(content)
        backend = make_backend(openssh)
        backend.upload(tmp_path / "local", "remote")
        backend.download("remote", tmp_path / "back")
    finally:
        packets.packetizer_class.cache_clear()
    assert (tmp_path / "back").read_bytes() == content


def test_this_paramiko_is_known() -> None:
    assert packets.packetizer_class() is packets.FastPacketizer


def test_a_connection_whose_packets_are_damaged_reports_the_cause(
    openssh: OpenSSHServer, make_backend: MakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make_backend(openssh)
    backend.write_text("file", "content")
    monkeypatch.setattr(packets._Direction, "next_nonce", lambda _: bytes(12))
    with pytest.raises(BackendUnavailable):
        backend.read_text("file")
