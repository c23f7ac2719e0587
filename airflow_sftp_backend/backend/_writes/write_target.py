"""The temporary file of an atomic write: its names, its handle, and how far the write is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Literal

from airflow_sftp_backend.backend._files.operations import already_exists, is_directory_error, open_new, remove_quietly
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes, OpenFlag
from airflow_sftp_backend.backend._protocol.scheduler import Operation

from .group_commit import GroupCommit

Verify = Literal["size", "sha256", "none"]

_NEW: Final = OpenFlag.WRITE | OpenFlag.CREATE | OpenFlag.EXCLUSIVE


@dataclass(frozen=True, slots=True)
class WriteTarget:
    """Where and how a file is to arrive.

    ``temp`` and ``unique_backup`` are names nobody else uses: for the new content, and for a backup that is to be
    removed.
    """

    path: RemotePath
    temp: RemotePath
    unique_backup: RemotePath
    overwrite: bool
    verify: Verify = "size"
    create_parents: bool = True
    group_commit: GroupCommit | None = None
    """Records what is about to be renamed, where the caller wants that."""
    channels: int | None = None
    """How many channels the content may be sent over; None: as many as it is worth."""
    fresh_temp: RemotePath | None = None
    """Where ``temp`` is the name that an earlier try of the same writer gave to the same source: the name to use if
    what is there cannot be gone on with.
    """


@dataclass(slots=True)
class OpenTempFile:
    """A temporary file: its handle, what stood under the final name when it was made, and the handle again until its
    close is sent. To close it twice could close somebody else's: servers give a handle that is free to the next file.
    """

    handle: bytes
    existing: Attributes | None
    open_handle: bytes | None
    renaming: bool = False
    """The temporary file may have its final name by now."""
    resumed: bool = False
    """The file was there before it was opened."""
    was_striped: bool = False
    """The file was opened on several channels."""


@dataclass(slots=True)
class ResumeState:
    """How far a write is that may go on over another connection: ``acknowledged`` bytes from the start are written."""

    acknowledged: int = 0
    temp_file: OpenTempFile | None = None
    resumable: bool = False
    """The connection was lost while bytes were sent, and the temporary file is still there."""
    temp: RemotePath | None = None
    """The temporary file that the next try finds again, or the one in its place."""
    is_kept: bool = False
    """The temporary file was left for the next try."""
    started: bool = False
    """The temporary file may have been made."""
    must_open_once: bool = False
    """The file may be opened only once: the server did not keep its content, or gave its handle to another file too."""

    @property
    def renaming(self) -> bool:
        """True if the temporary file may have its final name by now."""
        return self.temp_file is not None and self.temp_file.renaming

    abandoned_temps: list[RemotePath] = field(default_factory=list)
    """Temporary files that were replaced by others. Their removal may have been lost with a connection."""

    def with_current_temp(self, write_target: WriteTarget) -> WriteTarget:
        """Return the target with the temporary file in use."""
        if self.temp is None or self.temp == write_target.temp:
            return write_target
        return replace(write_target, temp=self.temp, fresh_temp=None)  # under that name nobody finds it again


def open_temp(write_target: WriteTarget) -> Operation[OpenTempFile]:
    """Opens the temporary file. Raises AlreadyExists, InvalidPath for a folder under the final name."""
    handle, existing = yield from open_new(
        write_target.temp, write_target.path, _NEW, create_parents=write_target.create_parents,
        may_exist=write_target.fresh_temp is not None,  # else it has 12 random digits
    )  # fmt: skip
    return (yield from check_existing(write_target, OpenTempFile(handle, existing, open_handle=handle)))


def check_existing(write_target: WriteTarget, temp_file: OpenTempFile) -> Operation[OpenTempFile]:
    existing = temp_file.existing
    if existing is not None and (existing.is_folder or not write_target.overwrite):
        yield from remove_quietly(write_target.temp, temp_file.handle)
        raise is_directory_error(write_target.path) if existing.is_folder else already_exists(write_target.path)
    return temp_file
