"""Bounds on what a server may send, and the errors that name them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from .config import DEFAULT_MAX_ENTRIES, DEFAULT_MAX_FILE_BYTES, DEFAULT_MAX_LISTING_BYTES
from .errors import InvalidPath, SFTPBackendError, TransferCorrupted

logger = logging.getLogger(__name__)

MAX_NAME_BYTES: Final = 4 << 10
"""Longest name, in bytes, that a listing may contain."""
MAX_DEPTH: Final = 256
"""Levels of directories that a recursive listing, search or deletion enters."""
MAX_IDLE_BATCHES: Final = 100
"""Successive replies of a listing that bring no new name."""
MAX_NAMES_AHEAD: Final = 100_000
"""Names that a listing may have requested ahead, as far as the replies so far can tell."""
_MAX_LOGGED_NAMES: Final = 10  # unsafe names that are logged one by one
MIN_BLOCK: Final = 4 << 10
"""Smallest block length, in bytes, that is taken from ``limits@openssh.com``."""


class BoundExceeded(SFTPBackendError):
    """The server sends more than a bound allows."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds that a connection sets: entries and bytes of one listing, bytes of a file whose size is not trusted."""

    max_entries: int = DEFAULT_MAX_ENTRIES
    max_listing_bytes: int = DEFAULT_MAX_LISTING_BYTES
    max_file_bytes: int = DEFAULT_MAX_FILE_BYTES

    def check_file_bytes(self, size: int, path: str) -> None:
        """Check the number of bytes that a file has delivered.

        :param size: bytes read so far.
        :param path: key of the file, for the error.
        :raises BoundExceeded: if ``size`` is more than `max_file_bytes`.
        """
        if size > self.max_file_bytes:
            raise BoundExceeded(
                f"cannot read: the server sends more than {self.max_file_bytes} bytes (max_file_bytes)."
                " Raise max_file_bytes if the file is that large",
                path=path,
            )


DEFAULT_BOUNDS: Final = Bounds()
"""The bounds of a connection that sets none."""


class ListingTally:
    """Counts what the server sends for one call that lists: a listing, search or recursive deletion as a whole.

    ``path`` is the key that the call lists, for errors.
    """

    __slots__ = ("_entries", "_size", "_unsafe", "bounds", "exceeded", "path")

    def __init__(self, path: str, bounds: Bounds = DEFAULT_BOUNDS) -> None:
        self.bounds = bounds
        self.exceeded: str | None = None
        """The message of the bound that was exceeded: no other directory is listed for this call."""
        self._entries = 0
        self.path = path
        self._size = 0
        self._unsafe = 0

    def add_reply(self, entries: int, size: int) -> None:
        """Count a reply, before it is decoded.

        :param entries: entries in the reply.
        :param size: length of the reply in bytes.
        :raises BoundExceeded: if there are more of either, in all, than the bounds allow.
        """
        self._entries += entries
        self._size += size
        if self._entries > self.bounds.max_entries:
            self._exceed(f"{self.bounds.max_entries} entries (max_entries)", "max_entries")
        elif self._size > self.bounds.max_listing_bytes:
            self._exceed(f"{self.bounds.max_listing_bytes} bytes of replies (max_listing_bytes)", "max_listing_bytes")
        self.check()

    def check(self) -> None:
        """Check that no bound has been exceeded so far.

        :raises BoundExceeded: if one has.
        """
        if self.exceeded is not None:
            raise BoundExceeded(self.exceeded, path=self.path)

    def check_depth(self, depth: int) -> None:
        """Check the number of levels below the path.

        :raises BoundExceeded: if ``depth`` is more than `MAX_DEPTH`.
        """
        if depth > MAX_DEPTH:
            raise BoundExceeded(
                f"cannot list: the directories are nested more than {MAX_DEPTH} deep. List one further down",
                path=self.path,
            )

    def add_unsafe_name(self, error: InvalidPath) -> None:
        """Count an entry with an unsafe name. The first few are logged."""
        self._unsafe += 1
        if self._unsafe <= _MAX_LOGGED_NAMES:
            logger.warning("%s", error)

    def finish(self) -> None:
        """Log how many entries with unsafe names were left out without being logged."""
        if self._unsafe > _MAX_LOGGED_NAMES:
            logger.warning(
                "%d more entries with unsafe names are left out below %r", self._unsafe - _MAX_LOGGED_NAMES, self.path
            )

    def mark(self) -> tuple[int, int, int]:
        """Get the state to which `rewind` can return, for what is requested once more on another connection."""
        return self._entries, self._size, self._unsafe

    def rewind(self, mark: tuple[int, int, int]) -> None:
        """Return to an earlier state."""
        self.exceeded = None
        self._entries, self._size, self._unsafe = mark

    def _exceed(self, bound: str, setting: str) -> None:
        self.exceeded = (
            f"cannot list: the server sends more than {bound}. List a directory further down, or raise {setting}"
        )


class SharedTally(ListingTally):
    """Counts the replies of one directory that several searches list together, for each of them.

    The listing goes on as long as it is within the bounds of one of them. ``log`` counts unsafe names, once.
    """

    __slots__ = ("_log", "_shares")

    def __init__(self, path: str, shares: Sequence[ListingTally], log: ListingTally) -> None:
        super().__init__(path)
        self._shares = shares
        self._log = log

    def add_reply(self, entries: int, size: int) -> None:
        """Count a reply for each search that has not exceeded a bound yet."""
        for share in self._shares:
            if share.exceeded is None:
                with suppress(BoundExceeded):
                    share.add_reply(entries, size)
        self.check()

    def check(self) -> None:
        """Check that one of the searches is within its bounds.

        :raises BoundExceeded: if none is.
        """
        if all(share.exceeded is not None for share in self._shares):
            self.exceeded = self._shares[0].exceeded
        super().check()

    def add_unsafe_name(self, error: InvalidPath) -> None:
        """Count an entry with an unsafe name."""
        self._log.add_unsafe_name(error)


class ListedNames:
    """The names of one directory, to find out when its listing brings no new ones."""

    __slots__ = ("_idle", "_names", "path")

    def __init__(self, path: str) -> None:
        self._names = {".", ".."}
        self._idle = 0
        self.path = path

    def add(self, names: Iterable[str]) -> None:
        """Add the names of one reply.

        :raises BoundExceeded: if `MAX_IDLE_BATCHES` successive replies have brought no new name.
        """
        before = len(self._names)
        self._names.update(names)
        self._idle = 0 if len(self._names) > before else self._idle + 1
        if self._idle >= MAX_IDLE_BATCHES:
            raise BoundExceeded(
                f"cannot list: {MAX_IDLE_BATCHES} successive replies of the server bring no new name", path=self.path
            )


def check_name_bytes(size: int) -> None:
    """Check the length of a listed name.

    :raises BoundExceeded: if ``size`` is more than `MAX_NAME_BYTES`.
    """
    if size > MAX_NAME_BYTES:
        raise BoundExceeded(f"cannot list: the server sends a name of {size} bytes, the most is {MAX_NAME_BYTES}")


def size_mismatch(stated_size: int, bytes_read: int, path: str, *, reached_end: bool = True) -> TransferCorrupted:
    """Describe a file that holds another number of bytes than the server says.

    :param stated_size: the size, in bytes, that the server gave.
    :param bytes_read: bytes read.
    :param path: key of the file.
    :param reached_end: whether the end of the file was read; otherwise the file has more bytes than ``bytes_read``.
    :returns: the error, to be raised.
    """
    return TransferCorrupted(
        f"the server says that the file has {stated_size} bytes, and sends"
        f" {bytes_read if reached_end else f'more than {bytes_read}'}: it may convert"
        " text on the way (line ends, character sets), or the file is still being written. Wait until the file"
        ' is stable, turn the conversion off on the server, or download with verify="none"',
        path=path,
    )
