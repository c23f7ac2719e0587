"""Relay SSH, and lose the connection at a chosen message."""

from __future__ import annotations

import threading
from typing import Literal

from tests.support.servers.relay import Relay, Sender

_NEWKEYS = 21
_TAG = 16
"""Bytes after each packet once AES-GCM is in use (RFC 5647 section 6.1). It leaves the packet's length readable."""


class _Messages:
    """Split the data of a side into identification and packets.

    The source is RFC 4253, sections 4.2 and 6.
    """

    def __init__(self) -> None:
        self._held = b""
        self._tag: int | None = None

    def take(self, piece: bytes) -> list[bytes]:
        """The messages that are complete with this piece."""
        self._held += piece
        found = []
        while (length := self._length()) is not None and len(self._held) >= length:
            message, self._held = self._held[:length], self._held[length:]
            found.append(message)
            if self._tag is None:
                self._tag = 0
            elif self._tag == 0 and message[5] == _NEWKEYS:
                self._tag = _TAG
        return found

    def _length(self) -> int | None:
        """Bytes of the next message, as far as known."""
        if self._tag is None:
            return self._held.find(b"\n") + 1 or None
        return None if len(self._held) < 4 else 4 + int.from_bytes(self._held[:4], "big") + self._tag


class SSHRelay(Relay):
    """Relay one SSH connection up to a numbered message.

    The cipher is AES-GCM.

    That message and all later ones are lost: the connection is cut there, or it stalls for ever. An identification is
    the message 1. ``fired`` is set then; ``sent`` counts the messages of each side up to there.
    """

    def __init__(self, target_port: int, kind: Literal["cut", "stall"], sender: Sender, number: int) -> None:
        self.fired = threading.Event()
        self.sent = {"client": 0, "server": 0}
        self._kind = kind
        self._at = sender, number
        self._messages = {"client": _Messages(), "server": _Messages()}
        super().__init__(target_port)

    def passed_on(self, piece: bytes, sender: Sender) -> tuple[bytes, bool]:
        """Return the bytes to relay, and whether the connection continues."""
        passed = b""
        for message in self._messages[sender].take(piece):
            if self.fired.is_set():
                break
            self.sent[sender] += 1
            if (sender, self.sent[sender]) == self._at:
                self.fired.set()
                break
            passed += message
        return passed, not (self.fired.is_set() and self._kind == "cut")
