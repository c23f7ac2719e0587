"""Name and open the temporary file of an atomic write."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from airflow_sftp_backend.backend._files.writing import (
    already_exists,
    is_directory_error,
    make_folders,
    open_new,
    remove_quietly,
)
from airflow_sftp_backend.backend._paths import BESIDE_TARGET, RemotePath, TempNaming
from airflow_sftp_backend.backend._protocol.codec import Attributes, OpenFlag
from airflow_sftp_backend.backend._protocol.scheduler import Operation
from airflow_sftp_backend.backend.models import Verify

from .rename_group import RenameGroup
from .write_state import ResumeState, WriteState

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
    mode: int | None = None
    """Permission bits that the file must have; None keeps those of a replaced file, if the server can."""

    temp_naming: TempNaming = BESIDE_TARGET
    """Names of the temporary files."""

    @property
    def directories(self) -> set[RemotePath]:
        """Directories that may hold temporary files and backups of the target."""
        parent = self.path.parent
        return {parent} if self.temp_naming.folder is None else {parent, self.temp_naming.folder}

    def with_temp(self, temp: RemotePath | None) -> WriteTarget:
        """Return the target with another temporary file; None for its own."""
        return self if temp is None or temp == self.temp else replace(self, temp=temp)


def open_temp(write_target: WriteTarget, resume_state: ResumeState) -> Operation[None]:
    """Open a new temporary file.

    Raises AlreadyExists, or InvalidPath if the target is a directory.
    """
    resume_state.advance(WriteState.STARTED)
    if write_target.temp_naming.folder is not None and write_target.create_parents:
        yield from make_folders(write_target.path.parent)  # opening the temporary file creates only its own directory
    handle, existing = yield from open_new(
        write_target.temp, write_target.path, _NEW, create_parents=write_target.create_parents,
        may_exist=resume_state.fresh_temp is not None,  # otherwise the name has 12 random digits
    )  # fmt: skip
    yield from check_replaceable(write_target, handle, existing)
    resume_state.opened(handle, existing, resumed=False)


def check_replaceable(write_target: WriteTarget, handle: bytes, existing: Attributes | None) -> Operation[None]:
    """Remove the temporary file of a target that must stay.

    Raises the error of the target.
    """
    if existing is not None and (existing.is_folder or not write_target.overwrite):
        yield from remove_quietly(write_target.temp, handle)
        raise is_directory_error(write_target.path) if existing.is_folder else already_exists(write_target.path)
