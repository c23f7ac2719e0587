"""Uploads and downloads: a file on its way to or from this machine, over as many connections as it takes."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from airflow_sftp_backend.backend._files.operations import close_quietly, open_for_reading, why_unreadable
from airflow_sftp_backend.backend._files.pipelining import Content, Incoming
from airflow_sftp_backend.backend._files.progress import report_resumed, report_verified
from airflow_sftp_backend.backend._limits import Bounds
from airflow_sftp_backend.backend._paths import RemotePath, fresh_token, resume_token, temp_name_token
from airflow_sftp_backend.backend._protocol.codec import Attributes
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler
from airflow_sftp_backend.backend._protocol.striping import TransferSize
from airflow_sftp_backend.backend._writes.atomic_write import write_atomic
from airflow_sftp_backend.backend._writes.group_commit import GroupCommit, participation
from airflow_sftp_backend.backend._writes.resume import holds, start_over
from airflow_sftp_backend.backend._writes.write_target import Landing, SoFar, Verify
from airflow_sftp_backend.backend.errors import (
    BackendUnavailable,
    ContentLost,
    SFTPBackendError,
    StatusError,
    TransferCorrupted,
)
from airflow_sftp_backend.backend.models import PreparedFile, Progress, WriteResult, utc

from .atomic_local_file import LEAST, LocalLanding, remove_left
from .local_files import NamingBothEnds, NewFileModes, open_regular

logger = logging.getLogger(__name__)

_READ: Final = 1 << 20  # bytes read at once of what is there already


class LocalContent(Content):
    """A local file as content. TransferCorrupted if it has changed by the time it is read to its end.

    Raises OSError at once if it cannot be opened or is no regular file. ``target`` is where it goes, for errors. Use as
    a context manager.
    """

    def __init__(
        self,
        local: str | os.PathLike[str],
        *,
        target: RemotePath,
        hashed: bool,
        at_first: os.stat_result | None = None,
    ) -> None:
        self._local = os.fspath(local)
        self._key = target.key
        self._ends = NamingBothEnds(self._local, f"uploading to {target.native!r}")
        with self._ends:
            self._file = open(open_regular(self._local), "rb", buffering=0)  # noqa: SIM115 - closed by __exit__
        self.at_first = at_first or os.fstat(self._file.fileno())
        """What the file was when it was first opened, by an earlier try if there was one."""
        super().__init__(self._file, hashed=hashed)
        self.expected = self.at_first.st_size

    def take(self, count: int) -> bytes | memoryview:
        """The next bytes; none at the end."""
        with self._ends:
            data = super().take(count)
        if not data:
            now = os.fstat(self._file.fileno())
            if (now.st_size, now.st_mtime_ns) != (self.at_first.st_size, self.at_first.st_mtime_ns):
                raise TransferCorrupted(
                    f"the local file {self._local!r} changed while it was read ({self.at_first.st_size} bytes then,"
                    f" {now.st_size} now); the target was left as it was",
                    path=self._key,
                )
        return data

    @property
    def rereadable(self) -> bool:
        """True."""
        return True

    def at(self, offset: int, count: int) -> bytes:
        """Bytes anywhere in the file, untaken."""
        with self._ends:
            return os.pread(self._file.fileno(), count, offset)

    def skip(self, count: int) -> None:
        """Goes on after the first ``count`` bytes; they are read only if they are hashed."""
        if self._hash is not None:
            super().skip(count)
        else:
            self.size = self._file.seek(count)

    def __enter__(self) -> LocalContent:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()


@dataclass(slots=True)
class Upload:
    """A local file on its way to where it lands, over one connection or, where that is lost, over several.

    With a ``resume_key`` it goes on with what an earlier try with that key left of the same file.
    """

    landing: Landing
    local: str | os.PathLike[str]
    progress: Progress | None = None
    resume_key: str | None = None
    hashed: bool = False
    """What is sent has its SHA-256 taken, whatever the proof is."""
    so_far: SoFar = field(default_factory=SoFar)
    _at_first: os.stat_result | None = None

    @property
    def load(self) -> TransferSize | None:
        """What is to be sent; None where there is no such file."""
        try:
            return TransferSize(os.stat(self.local).st_size, self.landing.channels)
        except OSError:
            return None

    def __call__(self, scheduler: SFTPScheduler) -> Operation[tuple[WriteResult, int | None]]:
        """Sends what is not sent yet; also the server's time, where it tells."""
        try:
            return (yield from self._send(scheduler))
        except ContentLost as lost:
            if self.so_far.single:
                raise TransferCorrupted(lost.message, path=lost.path) from None
            logger.warning("%s; sending the file again, without opening it twice", lost)
        start_over(self.so_far.placed(self.landing), self.so_far, self.progress)
        self.so_far.opened, self.so_far.single = None, True
        return (yield from self._send(scheduler))

    def _send(self, scheduler: SFTPScheduler) -> Operation[tuple[WriteResult, int | None]]:
        target, hashed = self.landing.target, self.hashed or self.landing.verify == "sha256"
        commits = self.landing.commits
        progress = self.progress if commits is None else commits.reporting(self.progress)
        with (
            participation(commits),
            LocalContent(self.local, target=target, hashed=hashed, at_first=self._at_first) as content,
        ):
            self._at_first = content.at_first
            now = yield from write_atomic(scheduler, self._place(content.at_first), content, progress, self.so_far)
            return WriteResult(target.key, content.size, digest=content.digest, last_modified=utc(now)), now

    def _place(self, source: os.stat_result) -> Landing:
        """Where it lands: under a temporary name that the next try finds again, if there is a resume key."""
        landing = self.landing
        if self.resume_key is None:
            return landing
        token = resume_token(self.resume_key, source.st_size, source.st_mtime_ns)
        spare = landing.target.temp(fresh_token(token, temp_name_token(landing.temp.name)))
        landing = replace(landing, temp=landing.target.temp(token), spare=spare)
        self.so_far.temp = self.so_far.temp or landing.temp
        return landing


@dataclass(slots=True)
class Download:
    """A file on its way to where it lands on this machine, over one connection or, where that is lost, over several.

    Use as a context manager: without success nothing stays. But with a ``resume_key`` it goes on with what an earlier
    try with that key left of the same file, and leaves that itself where it is interrupted or its connection is lost.
    """

    place: RemotePath
    local: str | os.PathLike[str]
    overwrite: bool
    verify: Verify
    progress: Progress | None = None
    resume_key: str | None = None
    hashed: bool = False
    """What comes has its SHA-256 taken, whatever the proof is."""
    commits: GroupCommit | None = None
    """Records what is about to be renamed, where the caller wants that."""
    modes: NewFileModes | None = None
    """Modes of new local files, shared by the downloads of one call."""
    done: int = 0
    """Bytes that have come."""
    resumable: bool = False
    """The connection was lost while they came."""
    _distrusted: bool = False
    """The server gave the handle of the file to another one too."""
    _landing: LocalLanding | None = None
    _source: Attributes | None = None
    _digest: hashlib._Hash | None = None

    def __call__(self, scheduler: SFTPScheduler) -> Operation[WriteResult]:
        """Fetches what has not come yet.

        Raises TransferCorrupted if the file has another size than the server says or changes meanwhile (with
        ``verify="none"`` it is read to its end), or if with ``"sha256"`` the disk does not hold what came.
        """
        return self._fetched(scheduler) if self.commits is None else self._grouped(self.commits, scheduler)

    def _grouped(self, commits: GroupCommit, scheduler: SFTPScheduler) -> Operation[WriteResult]:
        with commits.participant():
            return (yield from self._fetched(scheduler))

    def _fetched(self, scheduler: SFTPScheduler) -> Operation[WriteResult]:
        if self.resumable and (self._distrusted or self._source is None or self._source.size is None):
            self._start_over()
        self.resumable = False
        fault = True
        try:
            yield from self._received(scheduler)
            return (yield from self._landed())
        except BaseException as error:
            fault = isinstance(error, Exception) and not isinstance(error, BackendUnavailable)
            raise
        finally:
            if self._landing is not None:
                self._landing.lasts = not fault and self.done >= LEAST
            if not self.resumable:
                self.__exit__()

    def _received(self, scheduler: SFTPScheduler) -> Operation[None]:
        if self._landing is None:
            writer = self.resume_key
            self._landing = LocalLanding(
                self.local, source=self.place, overwrite=self.overwrite, writer=writer, modes=self.modes
            )
            self._digest = hashlib.sha256() if self.hashed or self.verify == "sha256" else None
        handle: bytes | None = None
        whole = False
        try:
            handle = yield from open_for_reading(self.place)
            if self.done:
                yield from self._check_prefix(handle)
            block = (yield from scheduler.limits()).read
            incoming = self._incoming(scheduler, handle, block)
            while data := (yield from incoming.next()):
                if self._source is None:
                    self._check_room(incoming.attributes.size, scheduler.bounds)
                    if self.resume_key is not None and (yield from self._gone_on(handle, incoming.attributes)):
                        incoming = self._incoming(scheduler, handle, block)
                        continue
                self._check_same(incoming.attributes)
                self._take(data)
            if self.verify != "none":
                yield from incoming.check_unchanged()
            whole = True
        except StatusError as refused:
            raise (yield from why_unreadable(self.place, refused)) from None
        finally:
            known = self._source is not None or not self.done  # not what an earlier attempt left, unread yet
            self.resumable = not whole and known and scheduler.broken is not None
            self._distrusted = scheduler.handles.shares_handles
            if handle is not None:
                yield from close_quietly(handle)

    def _start_over(self) -> None:
        """Forget what has come: it cannot be told whether it is of this file."""
        if self._landing is not None:
            self._landing.clear()
        if self.progress is not None and self.done:
            self.progress(-self.done)
        self.done = 0
        self._source = None
        self._digest = None if self._digest is None else hashlib.sha256()

    def _incoming(self, scheduler: SFTPScheduler, handle: bytes, block: int) -> Incoming:
        to_end = self.verify == "none"
        return Incoming(scheduler, handle, block, self.place.key, offset=self.done, to_end=to_end)

    def _check_room(self, size: int | None, bounds: Bounds) -> None:
        """Refuse a size that is over the bound of an untrusted one and that no disk here could hold."""
        if size is None or size <= bounds.max_file_bytes or self.verify == "none":
            return
        disk = os.statvfs(Path(self.local).parent)
        if size > disk.f_bavail * disk.f_frsize:
            raise TransferCorrupted(
                f"cannot download: the server says that the file has {size} bytes, more than the local disk can hold",
                path=self.place.key,
            )

    def _gone_on(self, handle: bytes, source: Attributes) -> Operation[bool]:
        """True if an earlier try has left a part of this very file, which is taken over."""
        landing = self._landing
        assert landing is not None
        if self.resume_key is None or source.size is None or source.mtime is None:
            return False
        size = landing.take_over(resume_token(self.resume_key, source.size, source.mtime), source.size)
        if not size:
            return False
        self.done = size  # which it keeps if the connection is lost now
        if not (yield from holds(handle, size, landing.at)):
            logger.warning("%r: an earlier try left %d bytes of other content: starting anew", self.place.key, size)
            landing.clear()
            self.done = 0
            return False
        logger.info("%r: going on after %d bytes that an earlier try has fetched", self.place.key, size)
        if self._digest is not None:
            for start in range(0, size, _READ):
                self._digest.update(landing.at(start, min(_READ, size - start)))
        self._source = source
        report_resumed(self.progress, size)
        return True

    def _check_same(self, source: Attributes) -> None:
        """TransferCorrupted if the file is not the one of the earlier try."""
        if self._source is None:
            self._source = source
        elif (source.size, source.mtime) != (self._source.size, self._source.mtime):
            raise self._changed()

    def _check_prefix(self, handle: bytes) -> Operation[None]:
        """TransferCorrupted if the file that is open again does not begin with what has come of it.

        Its time may be the same: many servers tell whole seconds.
        """
        assert self._landing is not None
        if self._source is not None and not (yield from holds(handle, self.done, self._landing.at)):
            raise self._changed()

    def _changed(self) -> TransferCorrupted:
        return TransferCorrupted(
            "the file changed while it was read, over a connection that was lost; wait until it is stable",
            path=self.place.key,
        )

    def _take(self, data: memoryview) -> None:
        assert self._landing is not None
        self._landing.write(data)
        self.done += len(data)
        if self.commits is not None:
            self.commits.made_progress()
        if self._digest is not None:
            self._digest.update(data)
        if self.progress is not None:
            self.progress(len(data))

    def _landed(self) -> Operation[WriteResult]:
        landing = self._landing
        assert landing is not None
        held = None if self._digest is None else f"sha256:{self._digest.hexdigest()}"
        if self.verify == "sha256" and (found := landing.digest(partial(report_verified, self.progress))) != held:
            raise TransferCorrupted(f"{held} came and {landing.temp!r} holds {found}", path=self.place.key)
        if self.commits is not None:
            modified = os.stat(landing.temp).st_mtime_ns
            temp = os.path.basename(landing.temp)
            yield from self.commits.join(PreparedFile(os.fspath(self.local), temp, self.done, modified, held))
        landing.commit()
        changed = None if self._source is None else utc(self._source.mtime)
        return WriteResult(self.place.key, self.done, digest=held, last_modified=changed)

    def give_up(self) -> None:
        """Note that no new connection can be had."""
        self.resumable = False

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *raised: object) -> None:
        landing, self._landing = self._landing, None
        if landing is not None:
            landing.__exit__()


def sweep(downloads: list[Download], outcomes: list[WriteResult | SFTPBackendError | OSError], now: float) -> None:
    """Removes what dead writers left of what has landed now; ``now`` in seconds since 1970."""
    landed = zip(downloads, outcomes, strict=True)
    remove_left({one.local: one.resume_key for one, outcome in landed if isinstance(outcome, WriteResult)}, now)
