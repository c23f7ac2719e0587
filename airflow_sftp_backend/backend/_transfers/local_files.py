"""Local files that are opened, replaced and given their mode: regular files only, and errors that name both ends."""

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
_NEW_FILE = 0o666
_STATUS = "/proc/self/status"
_PERMISSIONS = 0o777


def open_regular(path: str | os.PathLike[str]) -> int:
    """Open a regular file, or a link to one, for reading.

    A FIFO is not waited for, and a device is not opened.

    :param path: the local file.
    :returns: a file descriptor.
    :raises OSError: if the file cannot be opened; IsADirectoryError for a directory; EINVAL for anything else that is
        not a regular file.
    """
    # before it is opened: opening a device may do something, opening a FIFO waits
    _check_file_type(path, os.stat(path))
    descriptor = os.open(path, _OPEN_FLAGS)
    try:
        _check_file_type(path, os.fstat(descriptor))  # another file may have taken the name meanwhile
        os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_replaceable(path: str | os.PathLike[str]) -> os.stat_result | None:
    """Check that a path may become a file: nothing, a regular file, or a link to one has that name.

    :param path: the local target.
    :returns: what ``os.stat`` says of the file that has the name; None if nothing has.
    :raises OSError: IsADirectoryError for a directory; EINVAL for anything else, a link to nothing too.
    """
    try:
        status = os.lstat(path)  # asks once where nothing has the name, which is the usual case
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(status.st_mode):
        try:
            status = os.stat(path)
        except FileNotFoundError:
            raise _not_regular(path, "a link to nothing") from None
    _check_file_type(path, status)
    return status


def _check_file_type(path: str | os.PathLike[str], status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a directory, not a file", os.fspath(path))
    raise _not_regular(
        path, next((file_type for test, file_type in _FILE_TYPES if test(status.st_mode)), "something else")
    )


def _not_regular(path: str | os.PathLike[str], file_type: str) -> OSError:
    return OSError(errno.EINVAL, f"{file_type}, not a regular file", os.fspath(path))


class NewFileModes:
    """Finds out the mode of new files, ``0666 & ~umask``, once for each directory.

    os.umask() cannot read the umask without setting it, for all threads of the process.
    """

    __slots__ = ("_modes",)

    def __init__(self) -> None:
        self._modes: dict[str, int] = {}

    def of(self, directory: str) -> int:
        """Return the mode of a new file in a directory."""
        if directory not in self._modes:
            self._modes[directory] = _new_file_mode(Path(directory))
        return self._modes[directory]


def set_mode(descriptor: int, temp: str, existing: os.stat_result | None, modes: NewFileModes) -> None:
    """Give a temporary file the mode of the file it becomes: that of the file it replaces, else what the umask leaves.

    A file system that refuses is left alone, with a warning.

    :param descriptor: the open temporary file.
    :param temp: its path.
    :param existing: the file that it replaces; None if it is a new one.
    :param modes: the modes of new files.
    """
    mode = modes.of(os.path.dirname(temp)) if existing is None else existing.st_mode & _PERMISSIONS
    try:
        os.fchmod(descriptor, mode)
    except OSError as error:
        logger.warning("cannot give %r the mode %o: %s", temp, mode, error)


def _new_file_mode(directory: Path) -> int:
    try:
        with open(_STATUS, "rb") as status:
            for line in status:
                if line.startswith(b"Umask:"):
                    return _NEW_FILE & ~int(line.split()[1], 8)
    except OSError:  # no Linux, or no /proc here
        pass
    return _mode_of_probe_file(directory)


def _mode_of_probe_file(directory: Path) -> int:
    probe = directory / f".umask-{secrets.token_hex(8)}"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _NEW_FILE)
    try:
        return os.fstat(descriptor).st_mode & _PERMISSIONS
    finally:
        os.close(descriptor)
        os.unlink(probe)


class NamingBothEnds:
    """Names both ends of a transfer in every OSError of a block; a context manager for any number of blocks.

    :param local: the local file or URL; it becomes the error's ``filename``.
    :param doing: what the block does to which path on the server, as "downloading '/in/a'".
    """

    __slots__ = ("_doing", "_local")

    def __init__(self, local: str | os.PathLike[str], doing: str) -> None:
        self._local = local
        self._doing = doing

    def __enter__(self) -> None:
        """Begin a block."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Name the ends in the error that ends the block, if one does."""
        if isinstance(error, OSError):
            add_both_paths(error, self._local, self._doing)


def add_both_paths(error: OSError, local: str | os.PathLike[str], action: str) -> OSError:
    """Put both ends of a transfer into an OSError, once. Parameters as of `NamingBothEnds`. Returns the error."""
    cause = error.strerror or str(error) or type(error).__name__
    if action in cause:
        return error
    error.errno = error.errno or errno.EIO
    error.strerror = f"{cause} ({action})"
    error.filename = os.fspath(local)
    if error.filename2 is not None:
        del error.filename2  # as None it would be part of the text
    error.args = (error.errno, error.strerror, error.filename)
    return error
