"""The local end of a transfer: files on this machine, read unchanged and written as safely as remote ones."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from dataclasses import InitVar, dataclass, field, replace
from pathlib import Path

from ._codec import Attributes
from ._errors import AlreadyExists, Refused, TransferCorrupted
from ._landing import Landing, SoFar, Verify, write_atomic
from ._models import Progress, WriteResult
from ._operations import close_quietly, open_for_reading, why_unreadable
from ._paths import JailedPath, resume_token, spare_token, temp_name, token_of
from ._transfer import Content, Incoming
from ._wire import Operation, Wire


class LocalContent(Content):
    """A local file as content. TransferCorrupted if it has changed by the time it is read to its end.

    Raises FileNotFoundError, PermissionError or IsADirectoryError at once. ``key`` is where it goes, for errors. Use as
    a context manager.
    """

    def __init__(
        self, local: str | os.PathLike[str], *, key: str, hashed: bool, at_first: os.stat_result | None = None
    ) -> None:
        self._local = os.fspath(local)
        self._key = key
        self._file = open(self._local, "rb", buffering=0)  # noqa: SIM115 - closed by __exit__
        self.at_first = at_first or os.fstat(self._file.fileno())
        """What the file was when it was first opened, by an earlier try if there was one."""
        super().__init__(self._file, hashed=hashed)
        self.expected = self.at_first.st_size

    def take(self, count: int) -> bytes | memoryview:
        """The next bytes; none at the end."""
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

    def at(self, offset: int, count: int) -> bytes:
        """Bytes anywhere in the file, untaken."""
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


class LocalLanding:
    """A local file that appears under its name only when it is whole.

    Use as a context manager: without `commit` nothing stays. ``key`` is where it comes from, for errors.

    The temporary file is made anew beside the target (never through a link), readable by its owner only.
    """

    def __init__(self, local: str | os.PathLike[str], *, key: str, overwrite: bool) -> None:
        self.path = Path(local)
        self._key = key
        self._overwrite = overwrite
        if self.path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder, not a file", os.fspath(local))
        if not overwrite and os.path.lexists(self.path):
            raise self._taken()
        self.temp = self.path.with_name(temp_name(self.path.name, secrets.token_hex(6)))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(self.temp, flags, 0o600)
        except FileNotFoundError:
            raise FileNotFoundError(
                errno.ENOENT, "the local folder does not exist", os.fspath(self.path.parent)
            ) from None

    def write(self, data: memoryview) -> None:
        """Appends all of ``data``."""
        assert self._descriptor is not None
        while data:
            data = data[os.write(self._descriptor, data) :]

    def commit(self) -> None:
        """Gives the file its name. AlreadyExists if that was taken meanwhile and ``overwrite`` is False."""
        self._close()
        if self._overwrite:
            os.replace(self.temp, self.path)
            return
        try:
            os.link(self.temp, self.path)
        except FileExistsError:
            raise self._taken() from None
        except OSError:  # a file system without hard links: looked at, then renamed
            if os.path.lexists(self.path):
                raise self._taken() from None
            os.replace(self.temp, self.path)

    def _taken(self) -> AlreadyExists:
        message = f"the local file {os.fspath(self.path)!r} exists; pass overwrite=True to replace it"
        return AlreadyExists(message, path=self._key)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> LocalLanding:
        return self

    def __exit__(self, *raised: object) -> None:
        self._close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.temp)


@dataclass(slots=True)
class Upload:
    """A local file on its way to where it lands, over one connection or, where that is lost, over several.

    With a ``resume_key`` it goes on with what an earlier try with that key left of the same file.
    """

    landing: Landing
    local: str | os.PathLike[str]
    progress: Progress | None = None
    resume_key: InitVar[str | None] = None
    so_far: SoFar = field(default_factory=SoFar)
    _at_first: os.stat_result | None = None

    def __post_init__(self, resume_key: str | None) -> None:
        if resume_key is None:
            return
        try:
            self._at_first = found = os.stat(self.local)
        except OSError:  # said again, and raised, when it is opened
            return
        target, temp = self.landing.target, self.landing.temp
        token = resume_token(resume_key, found.st_size, found.st_mtime_ns)
        self.landing = replace(
            self.landing, temp=target.temp(token), spare=target.temp(spare_token(token, token_of(temp.name)))
        )

    def __call__(self, wire: Wire) -> Operation[tuple[WriteResult, int | None]]:
        """Sends what is not sent yet; also the server's time, where it tells."""
        landing = self.landing
        hashed = landing.verify == "sha256"
        with LocalContent(self.local, key=landing.target.key, hashed=hashed, at_first=self._at_first) as content:
            self._at_first = content.at_first
            now = yield from write_atomic(wire, landing, content, self.progress, self.so_far)
            return WriteResult(landing.target.key, content.size, digest=content.digest), now


@dataclass(slots=True)
class Download:
    """A file on its way to where it lands on this machine, over one connection or, where that is lost, over several.

    Use as a context manager: without success nothing stays.
    """

    place: JailedPath
    local: str | os.PathLike[str]
    overwrite: bool
    verify: Verify
    progress: Progress | None = None
    done: int = 0
    """Bytes that have come."""
    resumable: bool = False
    """The connection was lost while they came."""
    _landing: LocalLanding | None = None
    _source: Attributes | None = None
    _digest: hashlib._Hash | None = None

    def __call__(self, wire: Wire) -> Operation[WriteResult]:
        """Fetches what has not come yet.

        Raises TransferCorrupted if the file changes meanwhile (growth is let pass with ``verify="none"``), or if with
        ``"sha256"`` the disk does not hold what came.
        """
        self.resumable = False
        try:
            incoming = yield from self._received(wire)
            if incoming.grew and self.verify != "none":
                raise TransferCorrupted(
                    f"the file grew past {incoming.size} bytes while it was read: it is still being written;"
                    " wait until it is stable",
                    path=self.place.key,
                )
            return self._landed()
        finally:
            if not self.resumable:
                self.__exit__()

    def _received(self, wire: Wire) -> Operation[Incoming]:
        if self._landing is None:
            self._landing = LocalLanding(self.local, key=self.place.key, overwrite=self.overwrite)
            self._digest = hashlib.sha256() if self.verify == "sha256" else None
        handle = yield from open_for_reading(self.place)
        whole = False
        try:
            incoming = Incoming(wire, handle, (yield from wire.limits()).read, self.place.key, offset=self.done)
            while data := (yield from incoming.next()):
                self._check_same(incoming.attributes)
                self._take(data)
            whole = True
            return incoming
        except Refused as refused:
            raise (yield from why_unreadable(self.place, refused)) from None
        finally:
            known = self._source is not None and self._source.size is not None
            self.resumable = not whole and known and wire.broken is not None
            yield from close_quietly(handle)

    def _check_same(self, source: Attributes) -> None:
        """TransferCorrupted if the file is not the one of the earlier try."""
        if self._source is None:
            self._source = source
        elif (source.size, source.mtime) != (self._source.size, self._source.mtime):
            raise TransferCorrupted(
                "the file changed while it was read, over a connection that was lost; wait until it is stable",
                path=self.place.key,
            )

    def _take(self, data: memoryview) -> None:
        assert self._landing is not None
        self._landing.write(data)
        self.done += len(data)
        if self._digest is not None:
            self._digest.update(data)
        if self.progress is not None:
            self.progress(len(data))

    def _landed(self) -> WriteResult:
        landing = self._landing
        assert landing is not None
        held = None if self._digest is None else f"sha256:{self._digest.hexdigest()}"
        if held is not None and (found := _digest_of(landing.temp)) != held:
            raise TransferCorrupted(f"{held} came and {os.fspath(landing.temp)!r} holds {found}", path=self.place.key)
        landing.commit()
        return WriteResult(self.place.key, self.done, digest=held)

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *raised: object) -> None:
        landing, self._landing = self._landing, None
        if landing is not None:
            landing.__exit__()


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
