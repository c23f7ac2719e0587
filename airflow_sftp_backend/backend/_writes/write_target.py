"""Name and open the temporary file of an atomic write, and track the state of the write."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Literal

from airflow_sftp_backend.backend._files.writing import already_exists, is_directory_error, open_new, remove_quietly
from airflow_sftp_backend.backend._paths import RemotePath
from airflow_sftp_backend.backend._protocol.codec import Attributes, OpenFlag
from airflow_sftp_backend.backend._protocol.scheduler import Operation

from .rename_group import RenameGroup

Verify = Literal["size", "sha256", "none"]

_NEW: Final = OpenFlag.WRITE | OpenFlag.CREATE | OpenFlag.EXCLUSIVE


@dataclass(frozen=True, slots=True)
class WriteTarget:
    """Path and options of a file to write.

    ``temp`` is the unique path of the new content, and ``unique_backup`` that of a backup to remove.
    """

    path: RemotePath
    temp: RemotePath
    unique_backup: RemotePath
    overwrite: bool
    verify: Verify = "size"
    create_parents: bool = True
    rename_group: RenameGroup | None = None
    """Records files before their renames; None if not requested."""
    channels: int | None = None
    """Number of channels; None chooses by size."""
    mtime: int | None = None
    """Time to set on the file, in seconds since 1970; None keeps the time of the transfer."""
    fresh_temp: RemotePath | None = None
    """Temporary path to use if ``temp`` cannot be resumed.

    Set only if ``temp`` is the path of an earlier attempt by the same writer for the same source.
    """


@dataclass(slots=True)
class OpenTempFile:
    """Open temporary file, with the attributes of an existing target.

    ``open_handle`` is the handle until CLOSE is sent, then None. A second CLOSE could close the file of another
    operation, because servers reuse closed handles.
    """

    handle: bytes
    existing: Attributes | None
    open_handle: bytes | None
    renaming: bool = False
    """Whether the temporary file may already have its final name."""
    resumed: bool = False
    """Whether the file existed before it was opened."""
    was_striped: bool = False
    """Whether the file was opened on several channels."""
    kept_mtime: int | None = None
    """Time of the source in seconds since 1970, after the server has set it."""


@dataclass(slots=True)
class ResumeState:
    """State of a write that may resume over another connection; ``acknowledged`` is in bytes from the start."""

    acknowledged: int = 0
    temp_file: OpenTempFile | None = None
    resumable: bool = False
    """Whether the connection was lost during the transfer, with the temporary file still on the server."""
    temp: RemotePath | None = None
    """Temporary file for the next attempt; None for that of the target."""
    is_kept: bool = False
    """Whether the temporary file was kept for the next attempt."""
    started: bool = False
    """Whether the temporary file may have been created."""
    must_open_once: bool = False
    """Whether the file must be opened only once: the server emptied it, or returned its handle for another file."""

    @property
    def renaming(self) -> bool:
        """True if the temporary file may already have its final name."""
        return self.temp_file is not None and self.temp_file.renaming

    @property
    def kept_mtime(self) -> int | None:
        """Time of the source in seconds since 1970, if the server has set it."""
        return None if self.temp_file is None else self.temp_file.kept_mtime

    abandoned_temps: list[RemotePath] = field(default_factory=list)
    """Replaced temporary files. Their removal may have been lost with a connection."""

    def with_current_temp(self, write_target: WriteTarget) -> WriteTarget:
        """Return the target with the current temporary file."""
        if self.temp is None or self.temp == write_target.temp:
            return write_target
        return replace(write_target, temp=self.temp, fresh_temp=None)  # a random name, which no later attempt finds


def open_temp(write_target: WriteTarget) -> Operation[OpenTempFile]:
    """Open the temporary file. Raises AlreadyExists, or InvalidPath if the target is a directory."""
    handle, existing = yield from open_new(
        write_target.temp, write_target.path, _NEW, create_parents=write_target.create_parents,
        may_exist=write_target.fresh_temp is not None,  # otherwise the name has 12 random digits
    )  # fmt: skip
    return (yield from check_existing(write_target, OpenTempFile(handle, existing, open_handle=handle)))


def check_existing(write_target: WriteTarget, temp_file: OpenTempFile) -> Operation[OpenTempFile]:
    """Remove the temporary file and raise an error if the target must not be replaced."""
    existing = temp_file.existing
    if existing is not None and (existing.is_folder or not write_target.overwrite):
        yield from remove_quietly(write_target.temp, temp_file.handle)
        raise is_directory_error(write_target.path) if existing.is_folder else already_exists(write_target.path)
    return temp_file
