"""Open local files, set modes, and name paths in errors.

Only regular files are accepted.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
from pathlib import Path

logger = logging.getLogger(__name__)

_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FILE_TYPES = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)
_NEW_FILE_MODE = 0o666
_PERMISSION_BITS = 0o777
_PROC_STATUS = "/proc/self/status"


def open_regular(path: str | os.PathLike[str]) -> int:
    """Open a regular file, or a link to one, for reading.

    Does not wait for a FIFO, and does not open a device.

    :param path: the local file
    :returns: a file descriptor
    :raises OSError: if the file cannot be opened; IsADirectoryError for a directory; EINVAL for any other type
    """
    # before the file is opened: opening a device may have an effect, and opening a FIFO waits
    _check_file_type(path, os.stat(path))
    descriptor = os.open(path, _OPEN_FLAGS)
    try:
        _check_file_type(path, os.fstat(descriptor))  # the file may have been replaced meanwhile
        # O_NONBLOCK was needed to open the file only
        os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_replaceable(path: str | os.PathLike[str]) -> os.stat_result | None:
    """Check that a path may be a target.

    It must be missing, a regular file, or a link to a regular file.

    :param path: the local target
    :returns: the ``os.stat`` result of the existing file; None if the path is missing
    :raises OSError: IsADirectoryError for a directory; EINVAL for any other type, including a dangling link
    """
    try:
        status = os.lstat(path)  # the only system call for a missing path, the usual case
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(status.st_mode):
        try:
            status = os.stat(path)
        except FileNotFoundError:
            raise _not_regular(path, "a dangling link") from None
    _check_file_type(path, status)
    return status


def _check_file_type(path: str | os.PathLike[str], status: os.stat_result) -> None:
    """Check that a file is a regular file. Raises OSError."""
    if stat.S_ISREG(status.st_mode):
        return
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a directory, not a file", os.fspath(path))
    raise _not_regular(
        path, next((file_type for test, file_type in _FILE_TYPES if test(status.st_mode)), "something else")
    )


def _not_regular(path: str | os.PathLike[str], file_type: str) -> OSError:
    """Create the error for a file of another type."""
    return OSError(errno.EINVAL, f"{file_type}, not a regular file", os.fspath(path))


class NewFileModes:
    """Determine the mode of new files, ``0666 & ~umask``, once per directory.

    :param required: mode that every file must have, also a replaced file; None if not specified
    """

    # os.umask() cannot read the umask without changing it for all threads of the process.
    __slots__ = ("_modes", "required")

    def __init__(self, required: int | None = None) -> None:
        self.required = required
        self._modes: dict[str, int] = {}

    def of(self, directory: str) -> int:
        """Return the mode of a new file in a directory."""
        if directory not in self._modes:
            self._modes[directory] = _new_file_mode(Path(directory))
        return self._modes[directory]


def set_mode(descriptor: int, temp: str, existing: os.stat_result | None, modes: NewFileModes) -> None:
    """Set the mode of a temporary file.

    The mode is the required mode, that of the file to replace, or the mode of a new file.

    If the file system refuses a mode that is not required, a warning is logged.

    :param descriptor: the open temporary file
    :param temp: its path
    :param existing: the file to replace; None for a new file
    :param modes: the modes of new files
    :raises OSError: if the file system refuses a required mode
    """
    if modes.required is not None:
        os.fchmod(descriptor, modes.required)
        actual = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if actual != modes.required:
            message = f"cannot set mode {modes.required:03o}: the file system gives the file mode {actual:03o}"
            raise OSError(errno.EPERM, message, temp)
        return
    mode = modes.of(os.path.dirname(temp)) if existing is None else existing.st_mode & _PERMISSION_BITS
    try:
        os.fchmod(descriptor, mode)
    except OSError as error:
        logger.warning("cannot give %r the mode %o: %s", temp, mode, error)


def _new_file_mode(directory: Path) -> int:
    """Return the mode of a new file, from the umask."""
    try:
        with open(_PROC_STATUS, "rb") as lines:
            for line in lines:
                if line.startswith(b"Umask:"):
                    return _NEW_FILE_MODE & ~int(line.split()[1], 8)
    except OSError:  # not on Linux, or without /proc
        pass
    return _mode_of_probe_file(directory)


def _mode_of_probe_file(directory: Path) -> int:
    """Create a file, return its mode and remove it."""
    probe = directory / f".umask-{secrets.token_hex(8)}"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _NEW_FILE_MODE)
    try:
        return os.fstat(descriptor).st_mode & _PERMISSION_BITS
    finally:
        os.close(descriptor)
        os.unlink(probe)


class BothPathsInErrors:
    """Add both paths of a transfer to every OSError of a block.

    Reusable context manager.

    :param local: the local file or URL; becomes the error's ``filename``
    :param action: the action with the path on the server, such as ``downloading '/in/a'``
    """

    __slots__ = ("_action", "_local")

    def __init__(self, local: str | os.PathLike[str], action: str) -> None:
        self._local = local
        self._action = action

    def __enter__(self) -> None:
        """Start a block."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Add the paths to an OSError of the block."""
        if isinstance(error, OSError):
            add_both_paths(error, self._local, self._action)


def add_both_paths(error: OSError, local: str | os.PathLike[str], action: str) -> OSError:
    """Add both paths of a transfer to an OSError, once.

    :param error: the error
    :param local: the local file or URL; becomes the error's ``filename``
    :param action: the action with the path on the server, such as ``downloading '/in/a'``
    :returns: ``error``
    """
    cause = error.strerror or str(error) or type(error).__name__
    if action in cause:
        return error
    error.errno = error.errno or errno.EIO
    error.strerror = f"{cause} ({action})"
    error.filename = os.fspath(local)
    if error.filename2 is not None:
        del error.filename2  # None would appear in the text
    error.args = (error.errno, error.strerror, error.filename)
    return error
