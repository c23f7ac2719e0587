"""Bounds on what a server may send, and the errors that name them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ._config import DEFAULT_MAX_ENTRIES, DEFAULT_MAX_FILE_BYTES, DEFAULT_MAX_LISTING_BYTES
from ._errors import SFTPBackendError, TransferCorrupted

MIN_BLOCK: Final = 4 << 10
"""Smallest block length, in bytes, that is taken from ``limits@openssh.com``."""


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
        :raises SFTPBackendError: if ``size`` is more than `max_file_bytes`.
        """
        if size > self.max_file_bytes:
            raise SFTPBackendError(
                f"cannot read: the server sends more than {self.max_file_bytes} bytes (max_file_bytes)."
                " Raise max_file_bytes if the file is that large",
                path=path,
            )


DEFAULT_BOUNDS: Final = Bounds()
"""The bounds of a connection that sets none."""


def size_mismatch(told: int, read: int, path: str, *, ended: bool = True) -> TransferCorrupted:
    """Describe a file that holds another number of bytes than the server says.

    :param told: the size, in bytes, that the server gave.
    :param read: bytes read.
    :param path: key of the file.
    :param ended: whether the end of the file was read; otherwise the file has more bytes than ``read``.
    :returns: the error, to be raised.
    """
    return TransferCorrupted(
        f"the server says that the file has {told} bytes, and sends {read if ended else f'more than {read}'}: it may"
        " convert text on the way (line ends, character sets), or the file is still being written. Wait until the file"
        ' is stable, turn the conversion off on the server, or download with verify="none"',
        path=path,
    )
