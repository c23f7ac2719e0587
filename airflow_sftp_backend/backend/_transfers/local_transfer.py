"""Upload and download local files, over several connections if connections are lost."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass, field, replace
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Final

from airflow_sftp_backend.backend._files.attributes import close_quietly
from airflow_sftp_backend.backend._files.pipelining import PipelinedReader, UploadSource
from airflow_sftp_backend.backend._files.progress import report_resumed, report_verified
from airflow_sftp_backend.backend._files.reading import explain_read_failure, open_for_reading
from airflow_sftp_backend.backend._files.samples import samples_match
from airflow_sftp_backend.backend._paths import RemotePath, fresh_token, resume_token, temp_name_token
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler
from airflow_sftp_backend.backend._protocol.striping import ChannelDemand
from airflow_sftp_backend.backend._receive_limits import ReceiveLimits
from airflow_sftp_backend.backend._writes.atomic_write import write_atomic
from airflow_sftp_backend.backend._writes.rename_group import RenameGroup, active_transfer_of
from airflow_sftp_backend.backend._writes.resume import restart
from airflow_sftp_backend.backend._writes.times import source_mtime
from airflow_sftp_backend.backend._writes.write_state import ResumeState
from airflow_sftp_backend.backend._writes.write_target import WriteTarget
from airflow_sftp_backend.backend.errors import (
    BackendUnavailable,
    ContentLost,
    SFTPBackendError,
    StatusError,
    TransferCorrupted,
)
from airflow_sftp_backend.backend.models import PreparedFile, Progress, Verify, WriteResult, utc

from .atomic_local_file import MIN_RESUME_SIZE, AtomicLocalFile, remove_abandoned
from .local_files import BothPathsInErrors, NewFileModes, open_regular

logger = logging.getLogger(__name__)

_READ_SIZE: Final = 1 << 20  # bytes per read of a partial file


class LocalFileSource(UploadSource):
    """Read a local file as the content of an upload.

    Use as a context manager.

    :param local: the local file
    :param target: the path on the server, for errors
    :param with_digest: whether to compute the SHA-256
    :param initial_status: status of the file in an earlier attempt
    :raises OSError: if the file cannot be opened or is not a regular file
    """

    def __init__(
        self,
        local: str | os.PathLike[str],
        *,
        target: RemotePath,
        with_digest: bool,
        initial_status: os.stat_result | None = None,
    ) -> None:
        self._local = os.fspath(local)
        self._key = target.key
        self._both_paths_in_errors = BothPathsInErrors(self._local, f"uploading to {target.native!r}")
        with self._both_paths_in_errors:
            self._file = FileIO(open_regular(self._local))
        self.initial_status = initial_status or os.fstat(self._file.fileno())
        """Status of the file when it was first opened, possibly by an earlier attempt."""
        super().__init__(self._file, with_digest=with_digest)
        self.expected_size = self.initial_status.st_size

    def read_block(self, count: int) -> bytes | memoryview:
        """Return the next bytes; empty at the end.

        Raises TransferCorrupted if the file has changed.
        """
        with self._both_paths_in_errors:
            data = super().read_block(count)
        if not data:
            # A file that changes while it is read would arrive as parts of two versions.
            status = os.fstat(self._file.fileno())
            if (status.st_size, status.st_mtime_ns) != (self.initial_status.st_size, self.initial_status.st_mtime_ns):
                raise TransferCorrupted(
                    f"the local file {self._local!r} changed while it was read, from {self.initial_status.st_size} to"
                    f" {status.st_size} bytes; the target is unchanged",
                    path=self._key,
                )
        return data

    @property
    def rereadable(self) -> bool:
        """True: a local file supports `read_at`."""
        return True

    def read_at(self, offset: int, count: int) -> bytes:
        """Return bytes at an offset without moving the position."""
        with self._both_paths_in_errors:
            return os.pread(self._file.fileno(), count, offset)

    def skip(self, count: int) -> None:
        """Skip the first ``count`` bytes; they are read only for the SHA-256."""
        if self._hash is not None:
            super().skip(count)
        elif count:
            self.size = self._file.seek(count)

    def __enter__(self) -> LocalFileSource:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()


@dataclass(slots=True)
class Upload:
    """Upload a local file, over several connections if a connection is lost.

    With a ``resume_key``, the upload resumes the partial file of an earlier attempt with this key for the same file.
    """

    target: WriteTarget
    local: str | os.PathLike[str]
    progress: Progress | None = None
    resume_key: str | None = None
    with_digest: bool = False
    """Whether to compute the SHA-256 even if ``verify`` does not need it."""
    keep_times: bool = False
    """Whether the file on the server gets the time of the local file."""
    resume_state: ResumeState = field(default_factory=ResumeState)
    _initial_status: os.stat_result | None = None

    @property
    def channel_demand(self) -> ChannelDemand | None:
        """Size and channels of the upload; None if unreadable."""
        try:
            return ChannelDemand(os.stat(self.local).st_size, self.target.channels)
        except OSError:
            return None

    def __call__(self, scheduler: SFTPScheduler) -> Operation[tuple[WriteResult, int | None]]:
        """Send the remaining bytes.

        Also returns the server's time in seconds since 1970, or None if unknown.
        """
        try:
            return (yield from self._send(scheduler))
        except ContentLost as error:
            if self.resume_state.must_open_once:
                raise TransferCorrupted(error.message, path=error.path) from None
            logger.warning("%s; sending the file again, without opening it twice", error)
        restart(self.target.with_temp(self.resume_state.temp), self.resume_state, self.progress)
        self.resume_state.must_open_once = True
        return (yield from self._send(scheduler))

    def _send(self, scheduler: SFTPScheduler) -> Operation[tuple[WriteResult, int | None]]:
        """Send the remaining bytes once."""
        path, with_digest = self.target.path, self.with_digest or self.target.verify == "sha256"
        rename_group = self.target.rename_group
        progress = self.progress if rename_group is None else rename_group.wrap_progress(self.progress)
        with (
            active_transfer_of(rename_group),
            LocalFileSource(
                self.local, target=path, with_digest=with_digest, initial_status=self._initial_status
            ) as source,
        ):
            self._initial_status = source.initial_status
            self._name_resumable_temp(source.initial_status)
            target = self.target
            if self.keep_times:
                target = replace(target, mtime=source_mtime(source.initial_status))
            mtime = yield from write_atomic(scheduler, target, source, progress, self.resume_state)
            file_mtime = mtime if self.resume_state.kept_mtime is None else self.resume_state.kept_mtime
            return WriteResult(path.key, source.size, digest=source.digest, last_modified=utc(file_mtime)), mtime

    def _name_resumable_temp(self, source: os.stat_result) -> None:
        """Choose a temporary name that later calls can find.

        They find it by the resume key. A name chosen before is kept.
        """
        if self.resume_key is None or self.resume_state.temp is not None:
            return
        target, token = self.target, resume_token(self.resume_key, source.st_size, source.st_mtime_ns)
        new_token = fresh_token(token, temp_name_token(target.temp.name))
        self.resume_state.temp = target.temp_naming.temp(target.path, token)
        self.resume_state.fresh_temp = target.temp_naming.temp(target.path, new_token)


@dataclass(slots=True)
class Download:
    """Download a file, over several connections if a connection is lost.

    Use as a context manager.

    Without success the partial file is removed. With a ``resume_key``, the download resumes the partial file of an
    earlier attempt with this key for the same file, and keeps its own after an interruption or a lost connection.
    """

    remote: RemotePath
    local: str | os.PathLike[str]
    overwrite: bool
    verify: Verify
    progress: Progress | None = None
    resume_key: str | None = None
    with_digest: bool = False
    """Whether to compute the SHA-256 even if ``verify`` does not need it."""
    rename_group: RenameGroup | None = None
    """Records files before their renames; None if not requested."""
    keep_times: bool = False
    """Whether the local file gets the time of the file on the server."""
    modes: NewFileModes | None = None
    """Modes of new local files, shared by the downloads of a call."""
    transferred_bytes: int = 0
    """Bytes received so far."""
    resumable: bool = False
    """Whether the connection was lost during the transfer."""
    _is_handle_shared: bool = False
    """Whether the server returned the same handle for another file."""
    _local_file: AtomicLocalFile | None = None
    _source: Attributes | None = None
    _digest: hashlib._Hash | None = None

    def __call__(self, scheduler: SFTPScheduler) -> Operation[WriteResult]:
        """Receive the remaining bytes and rename the file.

        :param scheduler: the connection
        :returns: the result of the download
        :raises TransferCorrupted: if the local file does not have the SHA-256 of the received bytes (``"sha256"``), if
            the size is not the stated size, or if the file changes meanwhile (both unless ``"none"``)
        """
        return self._fetch(scheduler) if self.rename_group is None else self._grouped(self.rename_group, scheduler)

    def _grouped(self, group: RenameGroup, scheduler: SFTPScheduler) -> Operation[WriteResult]:
        """Receive the file as an active transfer of a group."""
        with group.active_transfer():
            return (yield from self._fetch(scheduler))

    def _fetch(self, scheduler: SFTPScheduler) -> Operation[WriteResult]:
        """Receive the remaining bytes, and rename or clean up."""
        # with a shared handle or without a stated size, received bytes may be those of another file
        if self.resumable and (self._is_handle_shared or self._source is None or self._source.size is None):
            self._restart()
        self.resumable = False
        failed_by_file = True
        try:
            yield from self._receive(scheduler)
            return (yield from self._commit())
        except BaseException as error:
            # After an interruption or a lost connection, the received bytes are worth keeping.
            failed_by_file = isinstance(error, Exception) and not isinstance(error, BackendUnavailable)
            raise
        finally:
            if self._local_file is not None:
                self._local_file.keep_on_exit = not failed_by_file and self.transferred_bytes >= MIN_RESUME_SIZE
            if not self.resumable:
                self.__exit__()

    def _receive(self, scheduler: SFTPScheduler) -> Operation[None]:
        """Receive the remaining bytes into the temporary file."""
        if self._local_file is None:
            self._local_file = AtomicLocalFile(
                self.local,
                source=self.remote,
                overwrite=self.overwrite,
                resume_key=self.resume_key,
                modes=self.modes,
            )
            self._digest = hashlib.sha256() if self.with_digest or self.verify == "sha256" else None
        handle: bytes | None = None
        complete = False
        try:
            handle = yield from open_for_reading(self.remote)
            if self.transferred_bytes:
                yield from self._verify_prefix(handle)
            block = (yield from scheduler.server_limits()).read
            reader = self._new_reader(scheduler, handle, block)
            while data := (yield from reader.read_next()):
                if self._source is None:
                    self._check_disk_space(reader.attributes.size, scheduler.receive_limits)
                    if self.resume_key is not None and (yield from self._try_resume(handle, reader.attributes)):
                        reader = self._new_reader(scheduler, handle, block)
                        continue
                # The file may have been replaced since an earlier connection.
                self._check_same(reader.attributes)
                self._write(data)
            if self._source is None:  # an empty file
                self._source = reader.attributes
            if self.verify != "none":
                yield from reader.check_unchanged()
            complete = True
        except StatusError as refused:
            raise (yield from explain_read_failure(self.remote, refused)) from None
        finally:
            # a partial file of an earlier attempt is not known before the first reply
            is_known = self._source is not None or not self.transferred_bytes
            self.resumable = not complete and is_known and scheduler.failure is not None
            self._is_handle_shared = scheduler.handles.shares_handles
            if handle is not None:
                yield from close_quietly(handle)

    def _restart(self) -> None:
        """Discard the received bytes, which may be of another file."""
        if self._local_file is not None:
            self._local_file.truncate()
        if self.progress is not None and self.transferred_bytes:
            self.progress(-self.transferred_bytes)
        self.transferred_bytes = 0
        self._source = None
        self._digest = None if self._digest is None else hashlib.sha256()

    def _new_reader(self, scheduler: SFTPScheduler, handle: bytes, block: int) -> PipelinedReader:
        """Create a reader for the remaining bytes."""
        to_end = self.verify == "none"
        return PipelinedReader(scheduler, handle, block, self.remote.key, offset=self.transferred_bytes, to_end=to_end)

    def _check_disk_space(self, size: int | None, limits: ReceiveLimits) -> None:
        """Refuse a stated size beyond the limit and the free space."""
        if size is None or size <= limits.max_file_bytes or self.verify == "none":
            return
        # f_bavail leaves out the blocks that are reserved for root.
        disk = os.statvfs(Path(self.local).parent)
        if size > disk.f_bavail * disk.f_frsize:
            raise TransferCorrupted(
                f"cannot download: the stated size is {size} bytes, more than the free space of the local disk",
                path=self.remote.key,
            )

    def _try_resume(self, handle: bytes, source: Attributes) -> Operation[bool]:
        """Continue the partial file of an earlier attempt.

        The result is False if there is none for the same file.
        """
        local_file = self._local_file
        assert local_file is not None
        if self.resume_key is None or source.size is None or source.mtime is None:
            return False
        size = local_file.adopt_partial(resume_token(self.resume_key, source.size, source.mtime), source.size)
        if not size:
            return False
        self.transferred_bytes = size  # kept if the connection is lost during the comparison
        if not (yield from samples_match(handle, size, local_file.read_at)):
            logger.warning("%r: restarting, because the %d bytes of an earlier attempt differ", self.remote.key, size)
            local_file.truncate()
            self.transferred_bytes = 0
            return False
        logger.info("%r: resuming after %d bytes of an earlier attempt", self.remote.key, size)
        if self._digest is not None:
            for start in range(0, size, _READ_SIZE):
                self._digest.update(local_file.read_at(start, min(_READ_SIZE, size - start)))
        self._source = source
        report_resumed(self.progress, size)
        return True

    def _check_same(self, source: Attributes) -> None:
        """Check that the file is that of the earlier connection. Raises TransferCorrupted."""
        if self._source is None:
            self._source = source
        elif (source.size, source.mtime) != (self._source.size, self._source.mtime):
            raise self._changed_error()

    def _verify_prefix(self, handle: bytes) -> Operation[None]:
        """Compare samples of the received bytes with the reopened file. Raises TransferCorrupted."""
        # The time alone proves nothing: many servers report whole seconds.
        assert self._local_file is not None
        if self._source is not None and not (
            yield from samples_match(handle, self.transferred_bytes, self._local_file.read_at)
        ):
            raise self._changed_error()

    def _changed_error(self) -> TransferCorrupted:
        """Create the error for a file changed between two connections."""
        return TransferCorrupted(
            "the file changed while it was read over a lost connection. Wait until the file is stable",
            path=self.remote.key,
        )

    def _write(self, data: memoryview) -> None:
        """Write received bytes and report them."""
        assert self._local_file is not None
        self._local_file.write(data)
        self.transferred_bytes += len(data)
        if self.rename_group is not None:
            self.rename_group.record_if_due()
        if self._digest is not None:
            self._digest.update(data)
        if self.progress is not None:
            self.progress(len(data))

    def _commit(self) -> Operation[WriteResult]:
        """Verify the temporary file and rename it."""
        local_file = self._local_file
        assert local_file is not None
        received_digest = None if self._digest is None else f"sha256:{self._digest.hexdigest()}"
        if (
            self.verify == "sha256"
            and (stored_digest := local_file.digest(partial(report_verified, self.progress))) != received_digest
        ):
            raise TransferCorrupted(
                f"received {received_digest}, but {local_file.temp!r} contains {stored_digest}", path=self.remote.key
            )
        if self.keep_times and self._source is not None and self._source.mtime:  # 0: the server reports no time
            local_file.set_time(self._source.mtime)
        if self.rename_group is not None:
            mtime = os.stat(local_file.temp).st_mtime_ns
            temp = os.path.basename(local_file.temp)
            yield from self.rename_group.wait_until_recorded(
                PreparedFile(os.fspath(self.local), temp, self.transferred_bytes, mtime, received_digest)
            )
        local_file.commit()
        last_modified = None if self._source is None else utc(self._source.mtime)
        return WriteResult(self.remote.key, self.transferred_bytes, digest=received_digest, last_modified=last_modified)

    def mark_unresumable(self) -> None:
        """Record that no new connection is available."""
        self.resumable = False

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *raised: object) -> None:
        local_file, self._local_file = self._local_file, None
        if local_file is not None:
            local_file.__exit__()


def remove_abandoned_files(
    downloads: list[Download], outcomes: list[WriteResult | SFTPBackendError | OSError], now: float
) -> None:
    """Remove files that other writers abandoned beside successful downloads.

    :param downloads: the downloads
    :param outcomes: their results or errors
    :param now: the current time in seconds since 1970
    """
    finished = zip(downloads, outcomes, strict=True)
    remove_abandoned(
        {download.local: download.resume_key for download, outcome in finished if isinstance(outcome, WriteResult)},
        now,
    )
