"""Write local files atomically: a download appears only when complete.

A temporary file is created beside the target (never through a link), readable only by its owner until the rename. Its
writer holds a lock (flock), so a temporary file without a lock is abandoned. The next attempt with the same resume key
resumes an abandoned file; other writers remove it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
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

from .local_files import BothPathsInErrors, NewFileModes, check_replaceable, set_mode

logger = logging.getLogger(__name__)

MIN_RESUME_SIZE: Final = 1 << 20
"""Minimum bytes of a partial file worth resuming."""
_READ_SIZE: Final = 1 << 20  # bytes per read for verification
_OPEN_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK  # opening a FIFO with such a name must not wait


class AtomicLocalFile:
    """Write a local file that appears under its name only when complete.

    Use as a context manager: without `commit` the temporary file is removed, unless ``keep_on_exit`` is set.

    :param local: path of the local file
    :param source: the file on the server, for errors
    :param overwrite: whether to replace an existing file
    :param resume_key: key of a resumable download, or None
    :param modes: modes of new files, shared by the files of a call
    :raises AlreadyExists: if the file exists and must not be replaced
    :raises OSError: if the temporary file cannot be created
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
        self.path = _path_text(local)
        self.keep_on_exit = False
        """Whether to keep the temporary file for the next attempt."""
        self._key = source.key
        self._both_paths_in_errors = BothPathsInErrors(self.path, f"downloading {source.native!r}")
        self._overwrite = overwrite
        self._modes = NewFileModes() if modes is None else modes
        self._resumable = resume_key is not None
        token = secrets.token_hex(6)
        if resume_key is not None:
            token = fresh_token(_writer_token(resume_key), token)
        self.temp = self._temp_path(token)
        self._descriptor: int | None = None
        self._has_temp = False
        with self._both_paths_in_errors:
            if check_replaceable(self.path) is not None and not overwrite:
                raise self._already_exists()
            try:
                self._descriptor = os.open(self.temp, _OPEN_FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
            except FileNotFoundError:
                raise FileNotFoundError(errno.ENOENT, "the local directory does not exist") from None
        self._has_temp = True
        _try_lock(self._descriptor)

    def adopt_partial(self, token: str, max_size: int) -> int:
        """Continue the partial file of an earlier attempt.

        Without a usable partial file, the temporary file gets the name of ``token``, for the next attempt. A partial
        file that another process has locked is left unchanged.

        :param token: the token of the resumable download
        :param max_size: maximum bytes of the partial file
        :returns: bytes of the partial file; 0 if there is none
        """
        with self._both_paths_in_errors:
            return self._adopt_partial(token, max_size)

    def _adopt_partial(self, token: str, max_size: int) -> int:
        """Continue a partial file as described by `adopt_partial`."""
        partial = self._temp_path(token)
        descriptor = open_abandoned(partial)
        if descriptor is None:
            self._rename_temp(partial)
            return 0
        status = os.fstat(descriptor)
        size = status.st_size
        # a file with a second hard link is not written to
        if status.st_nlink != 1 or not MIN_RESUME_SIZE <= size <= max_size:
            os.unlink(partial)
            os.close(descriptor)
            self._rename_temp(partial)
            return 0
        self._close()
        os.unlink(self.temp)
        self._descriptor, self.temp = descriptor, partial
        os.lseek(descriptor, 0, os.SEEK_END)
        return size

    def read_at(self, offset: int, count: int) -> bytes:
        """Return bytes written so far."""
        assert self._descriptor is not None
        with self._both_paths_in_errors:
            return os.pread(self._descriptor, count, offset)

    def digest(self, progress: Callable[[int], None]) -> str:
        """Read the file back from the disk.

        :param progress: called with the bytes read since the last call
        :returns: ``sha256:<hex>``
        :raises OSError: if the file cannot be read
        """
        digest = hashlib.sha256()
        with self._both_paths_in_errors, open(self.temp, "rb", buffering=0) as file:
            while data := file.read(_READ_SIZE):
                digest.update(data)
                progress(len(data))
        return f"sha256:{digest.hexdigest()}"

    def truncate(self) -> None:
        """Discard the bytes written so far."""
        assert self._descriptor is not None
        with self._both_paths_in_errors:
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)

    def write(self, data: memoryview) -> None:
        """Append all of ``data``."""
        assert self._descriptor is not None
        with self._both_paths_in_errors:
            while data:
                data = data[os.write(self._descriptor, data) :]

    def set_time(self, seconds: int) -> None:
        """Set the time of the file.

        If the file system refuses, a warning is logged.

        :param seconds: seconds since 1970
        """
        assert self._descriptor is not None
        try:
            os.utime(self._descriptor, (seconds, seconds))
        except OSError as error:
            logger.warning("cannot keep the time of the source on %r: %s", self.path, error)

    def commit(self) -> None:
        """Set the mode of the file and rename it to its target.

        :raises AlreadyExists: if the target was created meanwhile and ``overwrite`` is False
        """
        assert self._descriptor is not None
        with self._both_paths_in_errors:
            existing = check_replaceable(self.path) if self._overwrite else None
            set_mode(self._descriptor, self.temp, existing, self._modes)
            self._rename_to_target()

    def _rename_to_target(self) -> None:
        """Rename the temporary file, without replacing a file unless ``overwrite``."""
        if self._overwrite:
            self._replace()
            return
        try:
            os.link(self.temp, self.path)
        except FileExistsError:
            raise self._already_exists() from None
        except OSError:  # without hard links on the file system: check, then rename
            if os.path.lexists(self.path):
                raise self._already_exists() from None
            self._replace()

    def _replace(self) -> None:
        """Rename the temporary file to its target."""
        os.replace(self.temp, self.path)
        self._has_temp = False

    def _rename_temp(self, temp: str) -> None:
        """Rename the temporary file if possible.

        Without effect if the name exists, or the file system has no hard links.
        """
        try:
            os.link(self.temp, temp)
        except OSError:
            return
        os.unlink(self.temp)
        self.temp = temp

    def _temp_path(self, token: str) -> str:
        """Return the path of the temporary file with a token."""
        folder, slash, name = self.path.rpartition("/")
        return f"{folder}{slash}{temp_name(name, token)}"

    def _already_exists(self) -> AlreadyExists:
        """Create the error for an existing target."""
        message = f"the local file {self.path!r} exists"
        return AlreadyExists(message, path=self._key, hint="pass overwrite=True to replace it")

    def _close(self) -> None:
        """Close the file, which releases its lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> AtomicLocalFile:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._has_temp and not (self.keep_on_exit and self._resumable):
            with contextlib.suppress(FileNotFoundError), self._both_paths_in_errors:
                os.unlink(self.temp)
        self._has_temp = False
        self._close()  # last, because the lock protects the name of the temporary file


def remove_abandoned(resume_keys: Mapping[str | os.PathLike[str], str | None], now: float) -> None:
    """Remove temporary files that other writers abandoned beside downloaded files.

    Temporary files of earlier attempts with the same resume key are removed at once, others if they have not changed
    for `STALE_SECONDS`.

    :param resume_keys: the resume key of each downloaded file, or None
    :param now: the current time in seconds since 1970
    """
    names: dict[str, dict[str, str | None]] = {}
    for path, resume_key in resume_keys.items():
        folder, slash, name = _path_text(path).rpartition("/")
        names.setdefault(folder + slash, {})[name] = resume_key
    for folder, keys_by_name in names.items():
        temps = list(_list_temps(folder))
        targets = {name_digest(name): resume_key for name, resume_key in keys_by_name.items()} if temps else {}
        for temp in temps:
            if temp_name_digest(temp.name) in targets:
                resume_key = targets[temp_name_digest(temp.name)]
                is_own = resume_key is not None and same_writer(temp_name_token(temp.name), _writer_token(resume_key))
                _remove(temp.path, None if is_own else now - STALE_SECONDS)


def _writer_token(resume_key: str) -> str:
    """Return a token; its first half identifies the writer."""
    return resume_token(resume_key, 0, 0)


def _path_text(local: str | os.PathLike[str]) -> str:
    """Return a path as text without trailing slashes."""
    return os.fspath(local if isinstance(local, PurePath) else Path(local))


def _remove(temp: str, before: float | None) -> None:
    """Remove an abandoned temporary file.

    With ``before``, remove the file only if its last change was before this time.
    """
    descriptor = open_abandoned(temp)
    if descriptor is None:
        return
    if before is None or os.fstat(descriptor).st_mtime < before:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temp)
    os.close(descriptor)


def _list_temps(folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield the temporary files of a directory, none of an unreadable one."""
    with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
        for entry in entries:
            if temp_name_token(entry.name):
                yield entry


def open_abandoned(temp: str | os.PathLike[str]) -> int | None:
    """Open and lock an abandoned temporary file of this user.

    The result is None if the file is missing, locked by its writer, or of another user.
    """
    try:
        descriptor = os.open(temp, _OPEN_FLAGS)
    except OSError:
        return None
    status = os.fstat(descriptor)
    is_own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
    try:
        if is_own and _try_lock(descriptor) and os.path.samestat(os.lstat(temp), status):
            return descriptor
    except FileNotFoundError:  # the writer has just renamed or removed the file
        pass
    os.close(descriptor)
    return None


def _try_lock(descriptor: int) -> bool:
    """Lock a file without waiting.

    The result is False if another process holds the lock.
    """
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except OSError:
        return False
    return True
