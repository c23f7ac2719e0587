"""Uploads and downloads: a file on its way to or from this machine, over as many connections as it takes."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from airflow_sftp_backend.backend._files.attributes import close_quietly
from airflow_sftp_backend.backend._files.pipelining import PipelinedReader, UploadSource
from airflow_sftp_backend.backend._files.progress import report_resumed, report_verified
from airflow_sftp_backend.backend._files.reading import explain_read_failure, open_for_reading
from airflow_sftp_backend.backend._limits import Bounds
from airflow_sftp_backend.backend._paths import RemotePath, fresh_token, resume_token, temp_name_token
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler
from airflow_sftp_backend.backend._protocol.striping import TransferSize
from airflow_sftp_backend.backend._writes.atomic_write import write_atomic
from airflow_sftp_backend.backend._writes.group_commit import GroupCommit, participation
from airflow_sftp_backend.backend._writes.resume import restart, samples_match
from airflow_sftp_backend.backend._writes.write_target import ResumeState, Verify, WriteTarget
from airflow_sftp_backend.backend.errors import (
    BackendUnavailable,
    ContentLost,
    SFTPBackendError,
    StatusError,
    TransferCorrupted,
)
from airflow_sftp_backend.backend.models import PreparedFile, Progress, WriteResult, utc

from .atomic_local_file import MIN_RESUME_SIZE, AtomicLocalFile, remove_abandoned
from .local_files import NamingBothEnds, NewFileModes, open_regular

logger = logging.getLogger(__name__)

_READ_SIZE: Final = 1 << 20  # bytes read at once of what is there already


class LocalFileSource(UploadSource):
    """A local file as content. TransferCorrupted if it has changed by the time it is read to its end.

    Raises OSError at once if it cannot be opened or is no regular file. ``path`` is where it goes, for errors. Use as
    a context manager.
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
        self._ends = NamingBothEnds(self._local, f"uploading to {target.native!r}")
        with self._ends:
            self._file = open(open_regular(self._local), "rb", buffering=0)  # noqa: SIM115 - closed by __exit__
        self.initial_status = initial_status or os.fstat(self._file.fileno())
        """What the file was when it was first opened, by an earlier try if there was one."""
        super().__init__(self._file, with_digest=with_digest)
        self.expected_size = self.initial_status.st_size

    def read_block(self, count: int) -> bytes | memoryview:
        """The next bytes; none at the end."""
        with self._ends:
            data = super().read_block(count)
        if not data:
            status = os.fstat(self._file.fileno())
            if (status.st_size, status.st_mtime_ns) != (self.initial_status.st_size, self.initial_status.st_mtime_ns):
                raise TransferCorrupted(
                    f"the local file {self._local!r} changed while it was read ({self.initial_status.st_size} bytes"
                    f" then, {status.st_size} now); the target was left as it was",
                    path=self._key,
                )
        return data

    @property
    def rereadable(self) -> bool:
        """True."""
        return True

    def read_at(self, offset: int, count: int) -> bytes:
        """Bytes anywhere in the file, untaken."""
        with self._ends:
            return os.pread(self._file.fileno(), count, offset)

    def skip(self, count: int) -> None:
        """Goes on after the first ``count`` bytes; they are read only if they are hashed."""
        if self._hash is not None:
            super().skip(count)
        else:
            self.size = self._file.seek(count)

    def __enter__(self) -> LocalFileSource:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()


@dataclass(slots=True)
class Upload:
    """Uploads a local file over one connection or, if the connection is lost, over several.

    With a ``resume_key`` it goes on with what an earlier try with that key left of the same file.
    """

    target: WriteTarget
    local: str | os.PathLike[str]
    progress: Progress | None = None
    resume_key: str | None = None
    with_digest: bool = False
    """What is sent has its SHA-256 taken, whatever the proof is."""
    resume_state: ResumeState = field(default_factory=ResumeState)
    _initial_status: os.stat_result | None = None

    @property
    def transfer_size(self) -> TransferSize | None:
        """What is to be sent; None where there is no such file."""
        try:
            return TransferSize(os.stat(self.local).st_size, self.target.channels)
        except OSError:
            return None

    def __call__(self, scheduler: SFTPScheduler) -> Operation[tuple[WriteResult, int | None]]:
        """Sends what is not sent yet; also the server's time, where it tells."""
        try:
            return (yield from self._send(scheduler))
        except ContentLost as error:
            if self.resume_state.must_open_once:
                raise TransferCorrupted(error.message, path=error.path) from None
            logger.warning("%s; sending the file again, without opening it twice", error)
        restart(self.resume_state.with_current_temp(self.target), self.resume_state, self.progress)
        self.resume_state.temp_file, self.resume_state.must_open_once = None, True
        return (yield from self._send(scheduler))

    def _send(self, scheduler: SFTPScheduler) -> Operation[tuple[WriteResult, int | None]]:
        path, with_digest = self.target.path, self.with_digest or self.target.verify == "sha256"
        group_commit = self.target.group_commit
        progress = self.progress if group_commit is None else group_commit.reporting(self.progress)
        with (
            participation(group_commit),
            LocalFileSource(
                self.local, target=path, with_digest=with_digest, initial_status=self._initial_status
            ) as source,
        ):
            self._initial_status = source.initial_status
            mtime = yield from write_atomic(
                scheduler, self._with_resumable_temp(source.initial_status), source, progress, self.resume_state
            )
            return WriteResult(path.key, source.size, digest=source.digest, last_modified=utc(mtime)), mtime

    def _with_resumable_temp(self, source: os.stat_result) -> WriteTarget:
        """The target, with a temporary name that the next attempt finds again if there is a resume key."""
        target = self.target
        if self.resume_key is None:
            return target
        token = resume_token(self.resume_key, source.st_size, source.st_mtime_ns)
        fresh_temp = target.path.temp(fresh_token(token, temp_name_token(target.temp.name)))
        target = replace(target, temp=target.path.temp(token), fresh_temp=fresh_temp)
        self.resume_state.temp = self.resume_state.temp or target.temp
        return target


@dataclass(slots=True)
class Download:
    """Downloads a file over one connection or, if the connection is lost, over several.

    Use as a context manager: without success nothing stays. But with a ``resume_key`` it goes on with what an earlier
    try with that key left of the same file, and leaves that itself where it is interrupted or its connection is lost.
    """

    remote: RemotePath
    local: str | os.PathLike[str]
    overwrite: bool
    verify: Verify
    progress: Progress | None = None
    resume_key: str | None = None
    with_digest: bool = False
    """What comes has its SHA-256 taken, whatever the proof is."""
    group_commit: GroupCommit | None = None
    """Records what is about to be renamed, where the caller wants that."""
    modes: NewFileModes | None = None
    """Modes of new local files, shared by the downloads of one call."""
    transferred_bytes: int = 0
    """Bytes that have come."""
    resumable: bool = False
    """The connection was lost while they came."""
    _is_handle_shared: bool = False
    """The server gave the handle of the file to another one too."""
    _local_file: AtomicLocalFile | None = None
    _source: Attributes | None = None
    _digest: hashlib._Hash | None = None

    def __call__(self, scheduler: SFTPScheduler) -> Operation[WriteResult]:
        """Fetches what has not come yet.

        Raises TransferCorrupted if the file has another size than the server says or changes meanwhile (with
        ``verify="none"`` it is read to its end), or if with ``"sha256"`` the disk does not hold what came.
        """
        return self._fetch(scheduler) if self.group_commit is None else self._grouped(self.group_commit, scheduler)

    def _grouped(self, commits: GroupCommit, scheduler: SFTPScheduler) -> Operation[WriteResult]:
        with commits.participant():
            return (yield from self._fetch(scheduler))

    def _fetch(self, scheduler: SFTPScheduler) -> Operation[WriteResult]:
        if self.resumable and (self._is_handle_shared or self._source is None or self._source.size is None):
            self._restart()
        self.resumable = False
        failed_by_file = True
        try:
            yield from self._receive(scheduler)
            return (yield from self._commit())
        except BaseException as error:
            failed_by_file = isinstance(error, Exception) and not isinstance(error, BackendUnavailable)
            raise
        finally:
            if self._local_file is not None:
                self._local_file.keep_on_exit = not failed_by_file and self.transferred_bytes >= MIN_RESUME_SIZE
            if not self.resumable:
                self.__exit__()

    def _receive(self, scheduler: SFTPScheduler) -> Operation[None]:
        if self._local_file is None:
            writer = self.resume_key
            self._local_file = AtomicLocalFile(
                self.local, source=self.remote, overwrite=self.overwrite, resume_key=writer, modes=self.modes
            )
            self._digest = hashlib.sha256() if self.with_digest or self.verify == "sha256" else None
        handle: bytes | None = None
        complete = False
        try:
            handle = yield from open_for_reading(self.remote)
            if self.transferred_bytes:
                yield from self._check_prefix(handle)
            block = (yield from scheduler.limits()).read
            reader = self._new_reader(scheduler, handle, block)
            while data := (yield from reader.read_next()):
                if self._source is None:
                    self._check_disk_space(reader.attributes.size, scheduler.bounds)
                    if self.resume_key is not None and (yield from self._try_resume(handle, reader.attributes)):
                        reader = self._new_reader(scheduler, handle, block)
                        continue
                self._check_same(reader.attributes)
                self._write(data)
            if self.verify != "none":
                yield from reader.check_unchanged()
            complete = True
        except StatusError as refused:
            raise (yield from explain_read_failure(self.remote, refused)) from None
        finally:
            # not what an earlier attempt left, unread yet
            is_known = self._source is not None or not self.transferred_bytes
            self.resumable = not complete and is_known and scheduler.broken is not None
            self._is_handle_shared = scheduler.handles.shares_handles
            if handle is not None:
                yield from close_quietly(handle)

    def _restart(self) -> None:
        """Forget what has come: it cannot be told whether it is of this file."""
        if self._local_file is not None:
            self._local_file.truncate()
        if self.progress is not None and self.transferred_bytes:
            self.progress(-self.transferred_bytes)
        self.transferred_bytes = 0
        self._source = None
        self._digest = None if self._digest is None else hashlib.sha256()

    def _new_reader(self, scheduler: SFTPScheduler, handle: bytes, block: int) -> PipelinedReader:
        to_end = self.verify == "none"
        return PipelinedReader(scheduler, handle, block, self.remote.key, offset=self.transferred_bytes, to_end=to_end)

    def _check_disk_space(self, size: int | None, bounds: Bounds) -> None:
        """Refuse a size that is over the bound of an untrusted one and that no disk here could hold."""
        if size is None or size <= bounds.max_file_bytes or self.verify == "none":
            return
        disk = os.statvfs(Path(self.local).parent)
        if size > disk.f_bavail * disk.f_frsize:
            raise TransferCorrupted(
                f"cannot download: the server says that the file has {size} bytes, more than the local disk can hold",
                path=self.remote.key,
            )

    def _try_resume(self, handle: bytes, source: Attributes) -> Operation[bool]:
        """True if an earlier try has left a part of this very file, which is taken over."""
        local_file = self._local_file
        assert local_file is not None
        if self.resume_key is None or source.size is None or source.mtime is None:
            return False
        size = local_file.adopt_partial(resume_token(self.resume_key, source.size, source.mtime), source.size)
        if not size:
            return False
        self.transferred_bytes = size  # which it keeps if the connection is lost now
        if not (yield from samples_match(handle, size, local_file.read_at)):
            logger.warning("%r: an earlier try left %d bytes of other content: starting anew", self.remote.key, size)
            local_file.truncate()
            self.transferred_bytes = 0
            return False
        logger.info("%r: going on after %d bytes that an earlier try has fetched", self.remote.key, size)
        if self._digest is not None:
            for start in range(0, size, _READ_SIZE):
                self._digest.update(local_file.read_at(start, min(_READ_SIZE, size - start)))
        self._source = source
        report_resumed(self.progress, size)
        return True

    def _check_same(self, source: Attributes) -> None:
        """TransferCorrupted if the file is not the one of the earlier try."""
        if self._source is None:
            self._source = source
        elif (source.size, source.mtime) != (self._source.size, self._source.mtime):
            raise self._changed_error()

    def _check_prefix(self, handle: bytes) -> Operation[None]:
        """TransferCorrupted if the file that is open again does not begin with what has come of it.

        Its time may be the same: many servers tell whole seconds.
        """
        assert self._local_file is not None
        if self._source is not None and not (
            yield from samples_match(handle, self.transferred_bytes, self._local_file.read_at)
        ):
            raise self._changed_error()

    def _changed_error(self) -> TransferCorrupted:
        return TransferCorrupted(
            "the file changed while it was read, over a connection that was lost; wait until it is stable",
            path=self.remote.key,
        )

    def _write(self, data: memoryview) -> None:
        assert self._local_file is not None
        self._local_file.write(data)
        self.transferred_bytes += len(data)
        if self.group_commit is not None:
            self.group_commit.made_progress()
        if self._digest is not None:
            self._digest.update(data)
        if self.progress is not None:
            self.progress(len(data))

    def _commit(self) -> Operation[WriteResult]:
        local_file = self._local_file
        assert local_file is not None
        received_digest = None if self._digest is None else f"sha256:{self._digest.hexdigest()}"
        if (
            self.verify == "sha256"
            and (stored_digest := local_file.digest(partial(report_verified, self.progress))) != received_digest
        ):
            raise TransferCorrupted(
                f"{received_digest} came and {local_file.temp!r} holds {stored_digest}", path=self.remote.key
            )
        if self.group_commit is not None:
            modified = os.stat(local_file.temp).st_mtime_ns
            temp = os.path.basename(local_file.temp)
            yield from self.group_commit.wait_until_recorded(
                PreparedFile(os.fspath(self.local), temp, self.transferred_bytes, modified, received_digest)
            )
        local_file.commit()
        mtime = None if self._source is None else utc(self._source.mtime)
        return WriteResult(self.remote.key, self.transferred_bytes, digest=received_digest, last_modified=mtime)

    def mark_unresumable(self) -> None:
        """Note that no new connection can be had."""
        self.resumable = False

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *raised: object) -> None:
        local_file, self._local_file = self._local_file, None
        if local_file is not None:
            local_file.__exit__()


def remove_abandoned_files(
    downloads: list[Download], outcomes: list[WriteResult | SFTPBackendError | OSError], timestamp: float
) -> None:
    """Remove abandoned temporary files of finished downloads; ``timestamp`` in seconds since 1970."""
    finished = zip(downloads, outcomes, strict=True)
    remove_abandoned(
        {download.local: download.resume_key for download, outcome in finished if isinstance(outcome, WriteResult)},
        timestamp,
    )
