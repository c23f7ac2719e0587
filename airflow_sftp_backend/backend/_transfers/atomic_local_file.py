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

from .local_files import NamingBothEnds, NewFileModes, check_replaceable, set_mode

MIN_RESUME_SIZE: Final = 1 << 20
"""Bytes from which on a part is worth going on with."""
_READ_SIZE: Final = 1 << 20  # bytes read at once of what is verified
_OPEN_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe under such a name must not be waited for


class AtomicLocalFile:
    """A local file that appears under its name only when it is whole.

    Use as a context manager: without `commit` nothing stays, unless it ``keep_on_exit``. ``source`` is where it comes
    from, for errors. ``resume_key`` is the resume key, if there is one; ``modes`` are shared by the files of one call.
    """

    def __init__(
        self,
        local: str | os.PathLike[str],
        *,
        source: RemotePath,
        overwrite: bool,
        resume_key: str | None = None,
        modes: NewFileModes | None = None,
    ) -> None:
        self.path = _text_of(local)
        self.keep_on_exit = False
        """What there is stays for the next try."""
        self._key = source.key
        self._ends = NamingBothEnds(self.path, f"downloading {source.native!r}")
        self._overwrite = overwrite
        self._modes = NewFileModes() if modes is None else modes
        self._resumable = resume_key is not None
        token = secrets.token_hex(6)
        if resume_key is not None:
            token = fresh_token(resume_token(resume_key, 0, 0), token)
        self.temp = self._temp_path(token)
        self._descriptor: int | None = None
        self._has_temp = False
        with self._ends:
            if check_replaceable(self.path) is not None and not overwrite:
                raise self._already_exists()
            try:
                self._descriptor = os.open(self.temp, _OPEN_FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
            except FileNotFoundError:
                raise FileNotFoundError(errno.ENOENT, "the local directory does not exist") from None
        self._has_temp = True
        _try_lock(self._descriptor)

    def adopt_partial(self, token: str, max_size: int) -> int:
        """Goes on in the file of that token if an earlier try left one of up to ``max_size`` bytes; how many it holds.

        Otherwise the temporary file is given that token, for the next try. A living writer's is left alone.
        """
        with self._ends:
            return self._adopt_partial(token, max_size)

    def _adopt_partial(self, token: str, max_size: int) -> int:
        partial = self._temp_path(token)
        descriptor = open_abandoned(partial)
        if descriptor is None:
            self._rename(partial)
            return 0
        status = os.fstat(descriptor)
        size = status.st_size
        # what has another name as well is not written to
        if status.st_nlink != 1 or not MIN_RESUME_SIZE <= size <= max_size:
            os.unlink(partial)
            os.close(descriptor)
            self._rename(partial)
            return 0
        self._close()
        os.unlink(self.temp)
        self._descriptor, self.temp = descriptor, partial
        os.lseek(descriptor, 0, os.SEEK_END)
        return size

    def read_at(self, offset: int, count: int) -> bytes:
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
            while data := file.read(_READ_SIZE):
                digest.update(data)
                progress(len(data))
        return f"sha256:{digest.hexdigest()}"

    def truncate(self) -> None:
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
            existing = check_replaceable(self.path) if self._overwrite else None
            set_mode(self._descriptor, self.temp, existing, self._modes)
            self._give_name()

    def _give_name(self) -> None:
        if self._overwrite:
            self._replace()
            return
        try:
            os.link(self.temp, self.path)
        except FileExistsError:
            raise self._already_exists() from None
        except OSError:  # a file system without hard links: looked at, then renamed
            if os.path.lexists(self.path):
                raise self._already_exists() from None
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

    def _temp_path(self, token: str) -> str:
        folder, slash, name = self.path.rpartition("/")
        return f"{folder}{slash}{temp_name(name, token)}"

    def _already_exists(self) -> AlreadyExists:
        message = f"the local file {self.path!r} exists"
        return AlreadyExists(message, path=self._key, hint="pass overwrite=True to replace it")

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> AtomicLocalFile:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._has_temp and not (self.keep_on_exit and self._resumable):
            with contextlib.suppress(FileNotFoundError), self._ends:
                os.unlink(self.temp)
        self._has_temp = False
        self._close()  # and with it the lock, under which alone the name was ours


def remove_abandoned(resume_keys: Mapping[str | os.PathLike[str], str | None], timestamp: float) -> None:
    """Remove temporary files that ended writers left beside finished downloads.

    Files of the same resume key are removed at once, others after `STALE_SECONDS` without a change.

    :param resume_keys: path of each finished download, and its resume key
    :param timestamp: the time now, in seconds since 1970
    """
    names: dict[str, dict[str, str | None]] = {}
    for path, resume_key in resume_keys.items():
        folder, slash, name = _text_of(path).rpartition("/")
        names.setdefault(folder + slash, {})[name] = resume_key
    for folder, keys_by_name in names.items():
        temps = list(_list_temps(folder))
        targets = {name_digest(name): resume_key for name, resume_key in keys_by_name.items()} if temps else {}
        for temp in temps:
            if temp_name_digest(temp.name) in targets:
                resume_key = targets[temp_name_digest(temp.name)]
                is_own = resume_key is not None and same_writer(
                    temp_name_token(temp.name), resume_token(resume_key, 0, 0)
                )
                _remove(temp.path, None if is_own else timestamp - STALE_SECONDS)


def _text_of(local: str | os.PathLike[str]) -> str:
    """A path as text, without the slashes at its end."""
    return os.fspath(local if isinstance(local, PurePath) else Path(local))


def _remove(temp: str, before: float | None) -> None:
    """Removes it unless its writer lives, or it was written to since ``before``."""
    descriptor = open_abandoned(temp)
    if descriptor is None:
        return
    if before is None or os.fstat(descriptor).st_mtime < before:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temp)
    os.close(descriptor)


def _list_temps(folder: str) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
        for entry in entries:
            if temp_name_token(entry.name):
                yield entry


def open_abandoned(temp: str | os.PathLike[str]) -> int | None:
    """A descriptor of a file of this user, locked; None if there is none, or its writer lives."""
    try:
        descriptor = os.open(temp, _OPEN_FLAGS)
    except OSError:
        return None
    status = os.fstat(descriptor)
    is_own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
    try:
        if is_own and _try_lock(descriptor) and os.path.samestat(os.lstat(temp), status):
            return descriptor
    except FileNotFoundError:  # its writer has just ended it
        pass
    os.close(descriptor)
    return None


def _try_lock(descriptor: int) -> bool:
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except OSError:
        return False
    return True
