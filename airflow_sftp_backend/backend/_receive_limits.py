"""Limit the data accepted from a server."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from .config import DEFAULT_MAX_ENTRIES, DEFAULT_MAX_FILE_BYTES, DEFAULT_MAX_LISTING_BYTES
from .errors import InvalidPath, SFTPBackendError, TransferCorrupted

logger = logging.getLogger(__name__)

MAX_NAME_BYTES: Final = 4 << 10
"""Maximum bytes of a name in a listing."""
MAX_DEPTH: Final = 256
"""Maximum depth of directories in a recursive listing, search or deletion."""
MAX_REPEATED_REPLIES: Final = 100
"""Maximum number of successive replies of a listing without a new name."""
MAX_NAMES_AHEAD: Final = 100_000
"""Maximum number of names requested ahead in a listing, estimated from the replies so far."""
_FIRST_FORGET: Final = 256
"""Number of the reply at which `ListedNames` first replaces its names by later ones."""
_MAX_KEPT_REPLIES: Final = MAX_REPEATED_REPLIES + 2  # repeated replies may begin and end at other names
_MAX_KEPT_NAMES: Final = 100_000
_MAX_LOGGED_NAMES: Final = 10  # unsafe names logged one by one; the others are counted
MIN_BLOCK: Final = 4 << 10
"""Minimum block size in bytes accepted from ``limits@openssh.com``."""


class LimitExceeded(SFTPBackendError):
    """The server sends more data than a limit allows."""


@dataclass(frozen=True, slots=True)
class ReceiveLimits:
    """Limits on the data of a server.

    They are the entries and bytes of a listing, and the bytes of a file whose size is not verified.
    """

    max_entries: int = DEFAULT_MAX_ENTRIES
    max_listing_bytes: int = DEFAULT_MAX_LISTING_BYTES
    max_file_bytes: int = DEFAULT_MAX_FILE_BYTES

    def check_file_bytes(self, size: int, path: str) -> None:
        """Check the number of bytes read from a file.

        :param size: bytes read so far
        :param path: key of the file, for the error
        :raises LimitExceeded: if ``size`` is more than `max_file_bytes`
        """
        if size > self.max_file_bytes:
            raise LimitExceeded(
                f"cannot read: the server sends more than {self.max_file_bytes} bytes (max_file_bytes)."
                " Raise max_file_bytes if the file is that large",
                path=path,
            )


DEFAULT_RECEIVE_LIMITS: Final = ReceiveLimits()
"""Limits of a connection without settings."""


class ListingTally:
    """Count the data of a whole listing, search or deletion.

    :param path: key of the listed directory, for errors
    :param limits: the limits of the connection
    """

    __slots__ = ("_entries", "_size", "_unsafe", "exceeded", "limits", "path")

    def __init__(self, path: str, limits: ReceiveLimits = DEFAULT_RECEIVE_LIMITS) -> None:
        self.limits = limits
        self.exceeded: str | None = None
        """Message of the exceeded limit, after which no further directory is listed; otherwise None."""
        self._entries = 0
        self.path = path
        self._size = 0
        self._unsafe = 0

    def add_reply(self, entries: int, size: int) -> None:
        """Count a reply before it is decoded.

        :param entries: number of entries in the reply
        :param size: length of the reply in bytes
        :raises LimitExceeded: if the sums of all replies exceed the limits
        """
        self._entries += entries
        self._size += size
        if self._entries > self.limits.max_entries:
            self._exceed(f"{self.limits.max_entries} entries (max_entries)", "max_entries")
        elif self._size > self.limits.max_listing_bytes:
            self._exceed(f"{self.limits.max_listing_bytes} bytes of replies (max_listing_bytes)", "max_listing_bytes")
        self.check()

    def check(self) -> None:
        """Check that no limit has been exceeded so far.

        :raises LimitExceeded: if a limit was exceeded
        """
        if self.exceeded is not None:
            raise LimitExceeded(self.exceeded, path=self.path)

    def check_depth(self, depth: int) -> None:
        """Check the number of levels below the path.

        :param depth: levels of directories
        :raises LimitExceeded: if ``depth`` is more than `MAX_DEPTH`
        """
        if depth > MAX_DEPTH:
            raise LimitExceeded(
                f"cannot list: directories are nested more than {MAX_DEPTH} deep. List a directory further down",
                path=self.path,
            )

    def add_unsafe_name(self, error: InvalidPath) -> None:
        """Count an entry with an unsafe name, and log the first few."""
        self._unsafe += 1
        if self._unsafe <= _MAX_LOGGED_NAMES:
            logger.warning("%s", error)

    def finish(self) -> None:
        """Log the number of entries with unsafe names beyond the logged ones."""
        if self._unsafe > _MAX_LOGGED_NAMES:
            logger.warning(
                "%d more entries with unsafe names are omitted below %r", self._unsafe - _MAX_LOGGED_NAMES, self.path
            )

    def mark(self) -> tuple[int, int, int]:
        """Return the current state for `rewind`.

        Called before requests that another connection may repeat.
        """
        return self._entries, self._size, self._unsafe

    def rewind(self, mark: tuple[int, int, int]) -> None:
        """Restore a state returned by `mark`."""
        self.exceeded = None
        self._entries, self._size, self._unsafe = mark

    def _exceed(self, limit: str, setting: str) -> None:
        self.exceeded = (
            f"cannot list: the server sends more than {limit}. List a directory further down, or raise {setting}"
        )


class SharedTally(ListingTally):
    """Count the replies of a directory listed once for several searches.

    The listing continues while any of the searches is within its limits.

    :param path: key of the directory
    :param shares: the tallies of the searches
    :param log: counts unsafe names, once for all searches
    """

    __slots__ = ("_log", "_shares")

    def __init__(self, path: str, shares: Sequence[ListingTally], log: ListingTally) -> None:
        super().__init__(path)
        self._shares = shares
        self._log = log

    def add_reply(self, entries: int, size: int) -> None:
        """Count a reply for each search within its limits."""
        for share in self._shares:
            if share.exceeded is None:
                with suppress(LimitExceeded):
                    share.add_reply(entries, size)
        self.check()

    def check(self) -> None:
        """Check that any of the searches is within its limits.

        :raises LimitExceeded: if all searches have exceeded a limit
        """
        if all(share.exceeded is not None for share in self._shares):
            self.exceeded = self._shares[0].exceeded
        super().check()

    def add_unsafe_name(self, error: InvalidPath) -> None:
        """Count an entry with an unsafe name, once for all searches."""
        self._log.add_unsafe_name(error)


class ListedNames:
    """Detect a listing that repeats names without end, in constant memory.

    This is Brent's cycle detection. Hashes of the names in the first replies are kept, and replaced by those after
    reply 256, 512, 1024 and so on. A reply with kept names only is a repeated one. If the listing repeats a cycle of
    replies, one of these numbers is beyond the start of the cycle and greater than its length. The next cycle then
    begins with `MAX_REPEATED_REPLIES` repeated replies.

    :param path: key of the directory, for the error
    """

    __slots__ = ("_forget_at", "_hashes", "_kept_replies", "_repeated", "_replies", "path")

    def __init__(self, path: str) -> None:
        self._forget_at = _FIRST_FORGET
        self._replies = 0
        self._repeated = 0
        self._forget()
        self.path = path

    def add(self, names: Collection[bytes]) -> None:
        """Add the names of a reply.

        :param names: the names
        :raises LimitExceeded: if `MAX_REPEATED_REPLIES` successive replies contained no new name
        """
        self._replies += 1
        if self._replies == self._forget_at:
            self._forget_at *= 2
            self._forget()
        hashes = self._hashes
        if all(hash(name) in hashes for name in names):
            self._repeated += 1
            if self._repeated >= MAX_REPEATED_REPLIES:
                raise LimitExceeded(
                    f"cannot list: {MAX_REPEATED_REPLIES} successive replies of the server bring no new name",
                    path=self.path,
                )
            return
        self._repeated = 0
        if self._kept_replies < _MAX_KEPT_REPLIES and len(hashes) < _MAX_KEPT_NAMES:
            self._kept_replies += 1
            hashes.update(map(hash, names))

    def _forget(self) -> None:
        self._hashes = {hash(b"."), hash(b"..")}
        self._kept_replies = 0


def check_name_bytes(size: int) -> None:
    """Check the length of a listed name.

    :param size: bytes of the name
    :raises LimitExceeded: if ``size`` is more than `MAX_NAME_BYTES`
    """
    if size > MAX_NAME_BYTES:
        raise LimitExceeded(f"cannot list: the server sends a name of {size} bytes (at most {MAX_NAME_BYTES})")


def size_mismatch(stated_size: int, bytes_read: int, path: str, *, reached_end: bool = True) -> TransferCorrupted:
    """Create the error for a file that differs from its stated size.

    :param stated_size: the stated size in bytes
    :param bytes_read: bytes read
    :param path: key of the file
    :param reached_end: whether the end of the file was read; otherwise the file has more than ``bytes_read`` bytes
    :returns: the error to raise
    """
    return TransferCorrupted(
        f"the stated size of the file is {stated_size} bytes, but the server sends"
        f" {bytes_read if reached_end else f'more than {bytes_read}'}. The server may convert"
        " text (line ends, character sets), or the file is still being written. Wait until the file"
        ' is stable, turn the conversion off on the server, or download with verify="none"',
        path=path,
    )
