"""How a file arrives on this machine: under its name only when it is whole, as safely as on a server.

A temporary file stands beside the target, made anew (never through a link) and readable by its owner only until it
gets its name. While its writer lives it is locked (flock), so that what a writer left that was killed can be told,
taken over by the next try with the same resume key, or removed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path, PurePath
from typing import Final

from airflow_sftp_backend.backend._paths import (
    STALE_SECONDS,
    RemotePath,
    fresh_token,
    name_digest,
    resume_token,
    same_writer,
    temp_name,
    temp_name_digest,
    temp_name_token,
)
from airflow_sftp_backend.backend.errors import AlreadyExists

from .local_files import NamingBothEnds, NewFileModes, check_replaceable, give_mode

LEAST: Final = 1 << 20
"""Bytes from which on a part is worth going on with."""
_PIECE: Final = 1 << 20  # bytes read at once of what is verified
_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe under such a name must not be waited for


class LocalLanding:
    """A local file that appears under its name only when it is whole.

    Use as a context manager: without `commit` nothing stays, unless it ``lasts``. ``source`` is where it comes from,
    for errors. ``writer`` is the resume key, if there is one; ``modes`` are shared by the files of one call.
    """

    def __init__(
        self,
        local: str | os.PathLike[str],
        *,
        source: RemotePath,
        overwrite: bool,
        writer: str | None = None,
        modes: NewFileModes | None = None,
    ) -> None:
        self.path = _text_of(local)
        self.lasts = False
        """What there is stays for the next try."""
        self._key = source.key
        self._ends = NamingBothEnds(self.path, f"downloading {source.native!r}")
        self._overwrite = overwrite
        self._modes = NewFileModes() if modes is None else modes
        self._resumable = writer is not None
        token = secrets.token_hex(6)
        if writer is not None:
            token = fresh_token(resume_token(writer, 0, 0), token)
        self.temp = self._named(token)
        self._descriptor: int | None = None
        self._has_temp = False
        with self._ends:
            if check_replaceable(self.path) is not None and not overwrite:
                raise self._taken()
            try:
                self._descriptor = os.open(self.temp, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
            except FileNotFoundError:
                raise FileNotFoundError(errno.ENOENT, "the local directory does not exist") from None
        self._has_temp = True
        _locked(self._descriptor)

    def take_over(self, token: str, most: int) -> int:
        """Goes on in the file of that token if an earlier try left one of up to ``most`` bytes; how many it holds.

        Otherwise the temporary file is given that token, for the next try. A living writer's is left alone.
        """
        with self._ends:
            return self._take_over(token, most)

    def _take_over(self, token: str, most: int) -> int:
        left = self._named(token)
        descriptor = left_behind(left)
        if descriptor is None:
            self._rename(left)
            return 0
        found = os.fstat(descriptor)
        size = found.st_size
        if found.st_nlink != 1 or not LEAST <= size <= most:  # what has another name as well is not written to
            os.unlink(left)
            os.close(descriptor)
            self._rename(left)
            return 0
        self._close()
        os.unlink(self.temp)
        self._descriptor, self.temp = descriptor, left
        os.lseek(descriptor, 0, os.SEEK_END)
        return size

    def at(self, offset: int, count: int) -> bytes:
        """Bytes of what has been written so far."""
        assert self._descriptor is not None
        with self._ends:
            return os.pread(self._descriptor, count, offset)

    def digest(self, progress: Callable[[int], None]) -> str:
        """Read what the disk holds.

        :param progress: called with the bytes read since the last call
        :returns: ``sha256:<hex>``
        :raises OSError: what this machine refuses
        """
        digest = hashlib.sha256()
        with self._ends, open(self.temp, "rb", buffering=0) as file:
            while data := file.read(_PIECE):
                digest.update(data)
                progress(len(data))
        return f"sha256:{digest.hexdigest()}"

    def clear(self) -> None:
        """Starts anew."""
        assert self._descriptor is not None
        with self._ends:
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)

    def write(self, data: memoryview) -> None:
        """Appends all of ``data``."""
        assert self._descriptor is not None
        with self._ends:
            while data:
                data = data[os.write(self._descriptor, data) :]

    def commit(self) -> None:
        """Gives the file its name and its mode. AlreadyExists if the name was taken meanwhile and ``overwrite`` is
        False."""
        assert self._descriptor is not None
        with self._ends:
            replaced = check_replaceable(self.path) if self._overwrite else None
            give_mode(self._descriptor, self.temp, replaced, self._modes)
            self._give_name()

    def _give_name(self) -> None:
        if self._overwrite:
            self._replace()
            return
        try:
            os.link(self.temp, self.path)
        except FileExistsError:
            raise self._taken() from None
        except OSError:  # a file system without hard links: looked at, then renamed
            if os.path.lexists(self.path):
                raise self._taken() from None
            self._replace()

    def _replace(self) -> None:
        os.replace(self.temp, self.path)
        self._has_temp = False

    def _rename(self, temp: str) -> None:
        """Another name for the temporary file, unless that is taken or the file system has no hard links."""
        try:
            os.link(self.temp, temp)
        except OSError:
            return
        os.unlink(self.temp)
        self.temp = temp

    def _named(self, token: str) -> str:
        folder, slash, name = self.path.rpartition("/")
        return f"{folder}{slash}{temp_name(name, token)}"

    def _taken(self) -> AlreadyExists:
        message = f"the local file {self.path!r} exists"
        return AlreadyExists(message, path=self._key, hint="pass overwrite=True to replace it")

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> LocalLanding:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._has_temp and not (self.lasts and self._resumable):
            with contextlib.suppress(FileNotFoundError), self._ends:
                os.unlink(self.temp)
        self._has_temp = False
        self._close()  # and with it the lock, under which alone the name was ours


def remove_left(landed: Mapping[str | os.PathLike[str], str | None], now: float) -> None:
    """Removes what dead writers left of files that have landed now: what earlier tries with the same resume key left,
    which stands beside each file, at once; what others left after `STALE_SECONDS` seconds. ``now`` in seconds since
    1970.
    """
    names: dict[str, dict[str, str | None]] = {}
    for path, writer in landed.items():
        folder, slash, name = _text_of(path).rpartition("/")
        names.setdefault(folder + slash, {})[name] = writer
    for folder, wanted in names.items():
        temps = list(_temps(folder))
        targets = {name_digest(name): writer for name, writer in wanted.items()} if temps else {}
        for temp in temps:
            if temp_name_digest(temp.name) in targets:
                writer = targets[temp_name_digest(temp.name)]
                ours = writer is not None and same_writer(temp_name_token(temp.name), resume_token(writer, 0, 0))
                _remove(temp.path, None if ours else now - STALE_SECONDS)


def _text_of(local: str | os.PathLike[str]) -> str:
    """A path as text, without the slashes at its end."""
    return os.fspath(local if isinstance(local, PurePath) else Path(local))


def _remove(temp: str, before: float | None) -> None:
    """Removes it unless its writer lives, or it was written to since ``before``."""
    descriptor = left_behind(temp)
    if descriptor is None:
        return
    if before is None or os.fstat(descriptor).st_mtime < before:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temp)
    os.close(descriptor)


def _temps(folder: str) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
        for entry in entries:
            if temp_name_token(entry.name):
                yield entry


def left_behind(temp: str | os.PathLike[str]) -> int | None:
    """A descriptor of a file of this user, locked; None if there is none, or its writer lives."""
    try:
        descriptor = os.open(temp, _FLAGS)
    except OSError:
        return None
    found = os.fstat(descriptor)
    ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
    try:
        if ours and _locked(descriptor) and os.path.samestat(os.lstat(temp), found):
            return descriptor
    except FileNotFoundError:  # its writer has just ended it
        pass
    os.close(descriptor)
    return None


def _locked(descriptor: int) -> bool:
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except OSError:
        return False
    return True
