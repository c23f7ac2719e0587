"""Seal and open packets of AES-GCM with fewer copies than paramiko.

paramiko copies each packet of 32 KiB several times into new buffers, whose memory the system maps page by page. The
packetizer of this module keeps its buffers, seals several packets before it sends them with one call, and announces
received data once per read from the socket. With any other cipher, it is paramiko's packetizer.

The facts come from the sources of paramiko 5.0 and 5.1. The packets are those of RFC 4253 section 6, RFC 4254 section
5.2 and RFC 5647 section 7.
"""

from __future__ import annotations

import functools
import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import paramiko
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from paramiko.buffered_pipe import PipeTimeout
from paramiko.packet import Packetizer

if TYPE_CHECKING:
    import socket

    from paramiko.compress import ZlibCompressor, ZlibDecompressor


CHANNEL_DATA: Final = 94
"""Message number of SSH_MSG_CHANNEL_DATA (RFC 4254 section 9)."""
_LENGTH: Final = struct.Struct(">I")
_HEAD: Final = struct.Struct(">BII")
"""Message number, channel, and length of the data."""
_BLOCK: Final = 16
"""Block size of AES in bytes: the encrypted part of a packet is a multiple of it."""
_TAG: Final = 16
"""Bytes of the authentication tag that ends a packet."""
_MIN_PADDING: Final = 4
_OVERHEAD: Final = 1 + _MIN_PADDING + _BLOCK
"""Maximum bytes of a packet beside length, payload and tag."""
_MAX_PACKET: Final = 256 << 10
"""Maximum bytes of a received packet, as in OpenSSH."""
_MAX_SEALED: Final = 256 << 10
"""Maximum bytes of content that are sealed before they are sent."""
_INBOX_BLOCK: Final = 512 << 10
_KEPT_BLOCKS: Final = 8
"""Blocks of an inbox that are used again after they were read: the system maps the memory of new ones page by page."""
_SMALL: Final = 64 << 10
"""Maximum bytes that are copied out of an inbox; the buffer of more is handed over."""
_KNOWN_VERSIONS: Final = ((5, 0), (5, 1))
PARTS: Final[tuple[tuple[type, str], ...]] = (
    (AESGCM, "encrypt_into"),
    (AESGCM, "decrypt_into"),
    (Packetizer, "_trigger_rekey"),
    (Packetizer, "need_rekey"),
    (Packetizer, "read_all"),
    (Packetizer, "reset_seqno_in"),
    (Packetizer, "set_inbound_compressor"),
    (Packetizer, "set_outbound_compressor"),
    (Packetizer, "write_all"),
    (paramiko.Channel, "_feed"),
    (paramiko.Channel, "_wait_for_send_window"),
    (paramiko.Transport, "_channel_handler_table"),
    (paramiko.Transport, "_send_user_message"),
)
"""Unpublished or recent parts that this module and `SSHTransport` use for content, by their owners."""
_NOTIFY_BYTES: Final = 256 << 10
"""Bytes received since the last notification, after which a waiting reader is notified."""


Payload = tuple[bytes, bytes | memoryview]
"""Start and content of the payload of a packet."""


class ReceivingStream(Protocol):
    """Connection that gives received bytes without a copy."""

    def take(self, count: int, /) -> memoryview | None:
        """Take ``count`` bytes that have been received; None if fewer have been."""


class ChannelData:
    """Content for a channel, which becomes one packet or several.

    :param channel: number of the channel on the server
    :param data: the content
    :param max_packet: maximum bytes of content in a packet
    """

    def __init__(self, channel: int, data: memoryview, max_packet: int) -> None:
        self._channel = channel
        self._parts = [data[start : start + max_packet] for start in range(0, len(data), max_packet)]

    def payloads(self) -> Sequence[Payload]:
        """Return start and content of each packet's payload."""
        return [(_HEAD.pack(CHANNEL_DATA, self._channel, len(part)), part) for part in self._parts]

    def messages(self) -> Sequence[paramiko.Message]:
        """Return the messages of paramiko with the same content."""
        return [paramiko.Message(b"".join(payload)) for payload in self.payloads()]


class ReceivedData(paramiko.Message):
    """Message with content for a channel.

    It has only the methods that ``paramiko.Transport`` and ``paramiko.Channel`` call.

    :param channel: number of the channel
    :param content: the content; valid until the next packet is received
    """

    def __init__(self, channel: int, content: memoryview) -> None:
        # Without the buffer of the base class, which would copy the content.
        self._channel = channel
        self.content = content

    def get_int(self) -> int:
        """Return the number of the channel."""
        return self._channel

    def get_binary(self) -> bytes:
        """Return a copy of the content."""
        return bytes(self.content)


class _Direction:
    """Key, nonce and traffic of one direction of the connection.

    :param cipher: encrypts or decrypts
    :param nonce: that of the first packet: four fixed bytes and a counter (RFC 5647 section 7.1)
    """

    def __init__(self, cipher: AESGCM, nonce: bytes) -> None:
        self.cipher = cipher
        self._fixed, self._counter = nonce[:4], int.from_bytes(nonce[4:], "big")
        self.packets = self.bytes = 0

    def next_nonce(self) -> bytes:
        """Return the nonce of the next packet."""
        nonce = self._fixed + self._counter.to_bytes(8, "big")
        self._counter += 1
        return nonce

    def count(self, size: int) -> None:
        """Count a packet of ``size`` bytes."""
        self.packets += 1
        self.bytes += size


@functools.cache
def packetizer_class() -> type[Packetizer]:
    """Return the packetizer for new connections.

    :returns: `FastPacketizer` if this is a version of paramiko that it was written for, and the parts that it uses are
        there; else paramiko's own
    """
    version = tuple(map(int, paramiko.__version__.split(".")[:2]))
    is_known = version in _KNOWN_VERSIONS and all(hasattr(owner, name) for owner, name in PARTS)
    return FastPacketizer if is_known else Packetizer


class FastPacketizer(Packetizer):
    """Packetizer that handles packets itself if AES-GCM encrypts them.

    :param stream: the connection
    """

    def __init__(self, stream: ReceivingStream) -> None:
        super().__init__(cast("socket.socket", stream))
        self._stream = stream
        self._sending = threading.RLock()
        self._outbound: _Direction | None = None
        self._inbound: _Direction | None = None
        self._compress: Callable[[bytes], bytes] | None = None
        self._decompress: Callable[[bytes], bytes] | None = None
        self._sealed = self._plain = memoryview(b"")
        self._opened = memoryview(bytearray(_MAX_PACKET))
        self._received = 0
        self._at_rekey = 0, 0
        self._inboxes_to_notify: list[Inbox] = []

    # -- keys ---------------------------------------------------------------------------------------------------------

    def set_outbound_cipher(self, *args: Any, **options: Any) -> None:
        """Encrypt all further packets with a new key."""
        super().set_outbound_cipher(*args, **options)
        self._outbound = _direction(self._outbound, options, "iv_out")

    def set_inbound_cipher(self, *args: Any, **options: Any) -> None:
        """Decrypt all further packets with a new key."""
        super().set_inbound_cipher(*args, **options)
        self._inbound = _direction(self._inbound, options, "iv_in")

    def set_outbound_compressor(self, compressor: ZlibCompressor) -> None:
        """Compress all further packets."""
        super().set_outbound_compressor(compressor)
        self._compress = compressor

    def set_inbound_compressor(self, compressor: ZlibDecompressor) -> None:
        """Decompress all further packets."""
        super().set_inbound_compressor(compressor)
        self._decompress = compressor

    def reset_seqno_in(self) -> None:
        """Number the received packets from 0 again."""
        super().reset_seqno_in()
        self._received = 0

    # -- sending ------------------------------------------------------------------------------------------------------

    def send_message(self, data: paramiko.Message | ChannelData) -> None:
        """Encrypt and send a message, or the packets of some content."""
        with self._sending:
            outbound = self._outbound
            if outbound is None:
                for message in data.messages() if isinstance(data, ChannelData) else (data,):
                    super().send_message(message)
                return
            payloads = data.payloads() if isinstance(data, ChannelData) else [(b"", data.asbytes())]
            if self._compress is not None:
                payloads = [(b"", self._compress(b"".join(payload))) for payload in payloads]
            self.write_all(self._seal(outbound, payloads))
            if not self.need_rekey() and (outbound.packets >= self.REKEY_PACKETS or outbound.bytes >= self.REKEY_BYTES):
                self._request_rekey()

    def _seal(self, outbound: _Direction, payloads: Sequence[Payload]) -> memoryview:
        """Write packets into the buffer, and return its filled part."""
        sizes = [len(start) + len(content) for start, content in payloads]
        needed = sum(sizes) + len(sizes) * (_LENGTH.size + _OVERHEAD + _TAG)
        if needed > len(self._sealed):
            self._sealed = memoryview(bytearray(needed))
        if max(sizes) + _OVERHEAD > len(self._plain):
            self._plain = memoryview(bytearray(max(sizes) + _OVERHEAD))
        sealed, plain, end = self._sealed, self._plain, 0
        for (start, content), size in zip(payloads, sizes, strict=True):
            padding = _MIN_PADDING + -(1 + size + _MIN_PADDING) % _BLOCK
            length = 1 + size + padding
            plain[0] = padding
            plain[1 : 1 + len(start)] = start
            plain[1 + len(start) : 1 + size] = content
            plain[1 + size : length] = os.urandom(padding)
            associated = _LENGTH.pack(length)
            sealed[end : end + 4] = associated
            begin, end = end, end + 4 + length + _TAG
            outbound.cipher.encrypt_into(outbound.next_nonce(), plain[:length], associated, sealed[begin + 4 : end])
            outbound.count(end - begin)
        return sealed[:end]

    def _request_rekey(self) -> None:
        inbound = self._inbound
        self._at_rekey = (inbound.packets, inbound.bytes) if inbound is not None else (0, 0)
        self._trigger_rekey()  # type: ignore[attr-defined] # the stub leaves it out

    # -- receiving ----------------------------------------------------------------------------------------------------

    def read_message(self) -> tuple[int, paramiko.Message]:
        """Receive and decrypt a packet. Only the transport's thread may call this.

        :returns: the message's number, and the message without it
        :raises paramiko.SSHException: if the packet is invalid
        """
        inbound = self._inbound
        if inbound is None:
            received: tuple[int, paramiko.Message] = super().read_message()
            self._received += 1
            return received
        payload = self._open(inbound)
        if self._decompress is not None:
            payload = memoryview(self._decompress(bytes(payload)))
        number, self._received = self._received, (self._received + 1) & 0xFFFFFFFF
        if self.need_rekey():
            self._check_rekey_is_answered(inbound)
        elif inbound.packets >= self.REKEY_PACKETS or inbound.bytes >= self.REKEY_BYTES:
            self._request_rekey()
        if payload[0] == CHANNEL_DATA and len(payload) >= _HEAD.size:
            _, channel, size = _HEAD.unpack_from(payload)
            if size == len(payload) - _HEAD.size:
                return CHANNEL_DATA, ReceivedData(channel, payload[_HEAD.size :])
        message = paramiko.Message(bytes(payload[1:]))
        message.seqno = number
        return payload[0], message

    def _open(self, inbound: _Direction) -> memoryview:
        """Receive and decrypt a packet.

        :returns: the payload, valid until the next call
        """
        head = self._take(_LENGTH.size, check_rekey=True)
        (length,) = _LENGTH.unpack(head)
        if not _BLOCK <= length <= _MAX_PACKET or length % _BLOCK:
            raise paramiko.SSHException(f"a packet of {length} bytes")
        associated = bytes(head)
        sealed = self._take(length + _TAG)
        opened = self._opened[:length]
        try:
            inbound.cipher.decrypt_into(inbound.next_nonce(), sealed, associated, opened)
        except InvalidTag:
            raise paramiko.SSHException("a packet with a wrong authentication tag") from None
        inbound.count(_LENGTH.size + length + _TAG)
        end = length - opened[0]
        if end < 2:
            raise paramiko.SSHException(f"a packet of {length} bytes with {opened[0]} bytes of padding")
        return opened[1:end]

    def _take(self, size: int, *, check_rekey: bool = False) -> bytes | memoryview:
        """Receive ``size`` bytes, if possible without a copy."""
        taken = self._stream.take(size)
        return self.read_all(size, check_rekey=check_rekey) if taken is None else taken

    def read_all(self, n: int, check_rekey: bool = False) -> bytes:
        """Receive ``n`` bytes, after the readers of received content are notified."""
        for inbox in self._inboxes_to_notify:
            inbox.notify()
        self._inboxes_to_notify.clear()
        return super().read_all(n, check_rekey=check_rekey)

    def _check_rekey_is_answered(self, inbound: _Direction) -> None:
        """Bound what a server may send after the request for new keys."""
        packets, size = inbound.packets - self._at_rekey[0], inbound.bytes - self._at_rekey[1]
        if packets >= self.REKEY_PACKETS_OVERFLOW_MAX or size >= self.REKEY_BYTES_OVERFLOW_MAX:
            raise paramiko.SSHException("the server ignores requests for new keys")

    def notify_later(self, inbox: Inbox) -> None:
        """Notify the reader of an inbox before the next receive."""
        self._inboxes_to_notify.append(inbox)


def _direction(earlier: _Direction | None, options: dict[str, Any], nonce: str) -> _Direction | None:
    """Return the state of a direction with new keys.

    :returns: None if paramiko handles the packets
    """
    cipher = options.get("block_engine")
    if options.get("aead") and isinstance(cipher, AESGCM):
        return _Direction(cipher, options[nonce])
    if earlier is not None:  # paramiko's own numbers of packets are not those of the packets handled here
        raise paramiko.SSHException("the server changed the cipher in the middle of the connection")
    return None


def _is_unused(block: bytearray) -> bool:
    """Return whether no view of a block is left."""
    # The size of a bytearray can change only then.
    try:
        block.append(0)
    except BufferError:
        return False
    del block[-1]
    return True


class Inbox:
    """Content received for a channel, in place of ``paramiko.buffered_pipe.BufferedPipe``.

    The transport's thread feeds it, and another thread reads.

    :param packetizer: notifies the reader before the next receive
    """

    def __init__(self, packetizer: FastPacketizer) -> None:
        self._packetizer = packetizer
        self._condition = threading.Condition(threading.Lock())
        self._full: deque[memoryview] = deque()
        self._blocks: deque[bytearray] = deque()
        self._block = self._next_block()
        self._used = self._size = self._unnotified_bytes = 0
        self._is_closed = False
        self._event: threading.Event | None = None

    def __len__(self) -> int:
        return self._size

    def set_event(self, event: threading.Event) -> None:
        """Set an event while there is content or the inbox is closed."""
        with self._condition:
            self._event = event
            if self._is_closed or self._size:
                event.set()
            else:
                event.clear()

    def feed(self, data: bytes | memoryview) -> None:
        """Append received content."""
        with self._condition:
            if not self._unnotified_bytes:
                self._packetizer.notify_later(self)
            self._size += len(data)
            self._unnotified_bytes += len(data)
            while data:
                if self._used == len(self._block):
                    self._full.append(self._block)
                    self._block, self._used = self._next_block(), 0
                size = min(len(data), len(self._block) - self._used)
                self._block[self._used : self._used + size] = data[:size]
                self._used += size
                data = data[size:]
            if self._unnotified_bytes >= _NOTIFY_BYTES:
                self._notify()
            if self._event is not None:
                self._event.set()

    def notify(self) -> None:
        """Notify a waiting reader of the received content."""
        with self._condition:
            self._notify()

    def _notify(self) -> None:
        if self._unnotified_bytes:
            self._unnotified_bytes = 0
            self._condition.notify_all()

    def read_ready(self) -> bool:
        """Return whether there is content."""
        return self._size > 0

    def read(self, nbytes: int, timeout: float | None = None) -> bytes | memoryview:
        """Wait for content and take up to ``nbytes`` bytes.

        :param nbytes: maximum bytes
        :param timeout: longest time to wait in seconds; None for no limit
        :returns: the content; empty if the inbox is closed
        :raises PipeTimeout: if no content arrives in time
        """
        with self._condition:
            if not self._size and not self._is_closed:
                if timeout == 0.0:
                    raise PipeTimeout
                if not self._condition.wait_for(lambda: self._size or self._is_closed, timeout):
                    raise PipeTimeout
            taken = self._take(nbytes)
            self._size -= len(taken)
            if self._event is not None and not self._size and not self._is_closed:
                self._event.clear()
            return taken

    def _take(self, count: int) -> bytes | memoryview:
        if self._full:
            block = self._full.popleft()
        elif self._used <= min(count, _SMALL):
            taken = bytes(self._block[: self._used])
            self._used = 0
            return taken
        else:
            block = self._block[: self._used]
            self._block, self._used = self._next_block(), 0
        if len(block) > count:
            self._full.appendleft(block[count:])
        return block[:count]

    def _next_block(self) -> memoryview:
        """Return an earlier block that nobody reads, or a new one."""
        block = self._blocks.popleft() if self._blocks and _is_unused(self._blocks[0]) else bytearray(_INBOX_BLOCK)
        self._blocks.append(block)
        if len(self._blocks) > _KEPT_BLOCKS:
            self._blocks.popleft()
        return memoryview(block)

    def empty(self) -> bytes:
        """Take all content."""
        with self._condition:
            content = b"".join((*self._full, self._block[: self._used]))
            self._full.clear()
            self._used = self._size = 0
            return content

    def close(self) -> None:
        """Let readers find the end after the content."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
            if self._event is not None:
                self._event.set()
