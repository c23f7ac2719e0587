"""Upload a local file directly under its final name."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

from airflow_sftp_backend.backend._files.attributes import try_stat
from airflow_sftp_backend.backend._files.writing import remove_quietly
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler
from airflow_sftp_backend.backend._writes.direct_write import write_directly
from airflow_sftp_backend.backend._writes.times import source_mtime
from airflow_sftp_backend.backend._writes.write_state import ResumeState, WriteState
from airflow_sftp_backend.backend._writes.write_target import WriteTarget
from airflow_sftp_backend.backend.models import PreparedFile, Progress, WriteResult, utc

from .local_transfer import LocalFileSource


@dataclass(slots=True)
class DirectUpload:
    """Upload a file without a temporary file, over one connection."""

    target: WriteTarget
    local: str | os.PathLike[str]
    progress: Progress | None = None
    with_digest: bool = False
    keep_times: bool = False
    prepared: PreparedFile | None = None
    """The file, once it is complete."""
    _state: ResumeState = field(default_factory=ResumeState)

    @property
    def is_partial(self) -> bool:
        """True if the file may be incomplete on the server."""
        return self.prepared is None and self._state.state in {WriteState.OPEN, WriteState.SENT}

    @property
    def may_be_open(self) -> bool:
        """True if the reply to OPEN may be lost.

        The server may then have emptied the file to replace.
        """
        return self.target.overwrite and self._state.state is WriteState.STARTED

    def remove_partial(self) -> Operation[None]:
        """Remove the incomplete file over another connection.

        After a lost reply to OPEN, only an empty file is removed.
        """
        if not self.is_partial:
            existing = yield from try_stat(self.target.path)
            if not isinstance(existing, Attributes) or not existing.is_file or existing.size:
                return  # OPEN was not executed
        yield from remove_quietly(self.target.path)

    def __call__(self, scheduler: SFTPScheduler) -> Operation[WriteResult]:
        """Send the file."""
        with_digest = self.with_digest or self.target.verify == "sha256"
        with LocalFileSource(self.local, target=self.target.path, with_digest=with_digest) as source:
            mtime = source_mtime(source.initial_status) if self.keep_times else None
            target = replace(self.target, mtime=mtime)
            self.prepared = yield from write_directly(scheduler, target, source, self._state, self.progress)
        last_modified = utc(self.prepared.mtime)
        return WriteResult(self.prepared.path, self.prepared.size, digest=source.digest, last_modified=last_modified)
