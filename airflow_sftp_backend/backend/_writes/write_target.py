"""The temporary file of an atomic write: its names, its handle, and how far the write is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Literal

from airflow_sftp_backend.backend._files.operations import discard, is_a_folder, open_new, taken
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes, OpenFlag
from airflow_sftp_backend.backend._protocol.scheduler import Operation

from .group_commit import GroupCommit

Verify = Literal["size", "sha256", "none"]

_NEW: Final = OpenFlag.WRITE | OpenFlag.CREATE | OpenFlag.EXCLUSIVE


@dataclass(frozen=True, slots=True)
class Landing:
    """Where and how a file is to arrive.

    ``temp`` and ``aside`` are names nobody else uses: for the new content, and for a backup that is to be removed.
    """

    target: RemotePath
    temp: RemotePath
    aside: RemotePath
    overwrite: bool
    verify: Verify = "size"
    create_parents: bool = True
    commits: GroupCommit | None = None
    """Records what is about to be renamed, where the caller wants that."""
    channels: int | None = None
    """How many channels the content may be sent over; None: as many as it is worth."""
    spare: RemotePath | None = None
    """Where ``temp`` is the name that an earlier try of the same writer gave to the same source: the name to use if
    what is there cannot be gone on with.
    """


@dataclass(slots=True)
class Opened:
    """A temporary file: its handle, what stood under the final name when it was made, and the handle again until its
    close is sent. To close it twice could close somebody else's: servers give a handle that is free to the next file.
    """

    handle: bytes
    replaced: Attributes | None
    unclosed: bytes | None
    renaming: bool = False
    """The temporary file may have its final name by now."""
    resumed: bool = False
    """The file was there before it was opened."""
    spread: bool = False
    """The file was opened on several channels."""


@dataclass(slots=True)
class SoFar:
    """How far a write is that may go on over another connection: ``acknowledged`` bytes from the start are written."""

    acknowledged: int = 0
    opened: Opened | None = None
    resumable: bool = False
    """The connection was lost while bytes were sent, and the temporary file is still there."""
    temp: RemotePath | None = None
    """The temporary file that the next try finds again, or the one in its place."""
    left: bool = False
    """The temporary file was left for the next try."""
    begun: bool = False
    """The temporary file may have been made."""
    single: bool = False
    """The file may be opened only once: the server did not keep its content, or gave its handle to another file too."""

    @property
    def renaming(self) -> bool:
        """True if the temporary file may have its final name by now."""
        return self.opened is not None and self.opened.renaming

    abandoned: list[RemotePath] = field(default_factory=list)
    """Temporary files that were replaced by others. Their removal may have been lost with a connection."""

    def placed(self, landing: Landing) -> Landing:
        """The landing, with the temporary file that is used."""
        if self.temp is None or self.temp == landing.temp:
            return landing
        return replace(landing, temp=self.temp, spare=None)  # under that name nobody finds it again


def open_landing(landing: Landing) -> Operation[Opened]:
    """Opens the temporary file. Raises AlreadyExists, InvalidPath for a folder under the final name."""
    handle, replaced = yield from open_new(
        landing.temp, landing.target, _NEW, create_parents=landing.create_parents,
        may_exist=landing.spare is not None,  # else it has 12 random digits
    )  # fmt: skip
    return (yield from checked(landing, Opened(handle, replaced, unclosed=handle)))


def checked(landing: Landing, opened: Opened) -> Operation[Opened]:
    replaced = opened.replaced
    if replaced is not None and (replaced.is_folder or not landing.overwrite):
        yield from discard(landing.temp, opened.handle)
        raise is_a_folder(landing.target) if replaced.is_folder else taken(landing.target)
    return opened
