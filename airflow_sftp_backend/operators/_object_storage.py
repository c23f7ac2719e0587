"""Read and write the local end of a transfer.

The end is a path or the URL of an object.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, cast

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend._cancellation import shield_from_kill
from airflow_sftp_backend.backend import (
    AlreadyExists,
    BackendUnavailable,
    BeforeRename,
    InvalidPath,
    PreparedFile,
    SFTPBackendError,
    TransferCorrupted,
    WriteResult,
)
from airflow_sftp_backend.backend._paths import temp_name
from airflow_sftp_backend.backend._patterns import has_wildcard
from airflow_sftp_backend.backend._receive_limits import size_mismatch
from airflow_sftp_backend.backend._transfers.local_files import add_both_paths, open_regular
from airflow_sftp_backend.backend.models import Verify

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_sftp_backend.backend import FileInfo, Progress, SFTPBackend
    from airflow_sftp_backend.backend._execution.open_files import RemoteFile

Outcome = WriteResult | SFTPBackendError | OSError

_URL_START = re.compile(r"[a-z][a-z0-9+.-]+://")
_BLOCK_SIZE = 1 << 20
_MAX_EXCESS_COUNTED = 16 << 20
"""Bytes to read beyond the reported size of a file, so that the error can name the real size."""


def is_url(path: str) -> bool:
    """Tell whether a text is a URL, such as ``s3://bucket/key``.

    `parse_names` has already removed ``file://``, the prefix of local paths.

    :param path: a local path or URL
    :returns: True for a URL
    """
    return "://" in path and _URL_START.match(path) is not None


def key_below(key: str, top: str) -> str:
    """Return the part of an object's key below a directory.

    :param key: the key, with the name of its container
    :param top: the directory, without ``/`` at its end
    :returns: the rest of the key, which begins with ``/`` if the key has ``//`` there
    """
    return key[len(top) + 1 :] if key.startswith(f"{top}/") else key.removeprefix(top).lstrip("/")


def without_trailing_slash(url: str) -> str:
    """Return a URL without ``/`` at the end of its path.

    :param url: the URL
    :returns: the URL, to which ``/`` and a path can be added
    """
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rstrip('/')}"


def object_path(url: str) -> ObjectStoragePath:
    """Return the object of a URL, with every character taken literally.

    :param url: the URL
    :returns: the object
    :raises InvalidArgument: if no installed provider or fsspec package supports the scheme
    :raises InvalidPath: if the installed universal-pathlib reads another object than the URL names
    """
    with shield_from_kill():  # Airflow's API returns the store's connection
        try:
            path = _literal_path(url)
            fs = path.fs  # creates the file system, which fails for an unknown scheme
        except ValueError as error:
            scheme = url.partition("://")[0]
            raise InvalidArgument(
                f"cannot use {scheme}:// URLs: {error}. Install the provider of the store."
            ) from error
        assert fs is not None
    _check_segments(path, url)
    return path


def _literal_path(url: str) -> ObjectStoragePath:
    from airflow.sdk import ObjectStoragePath  # late import, because it loads fsspec

    scheme, _, rest = url.partition("://")
    container, _, key = rest.partition("/")
    root = f"{scheme}://{container}/"  # with the slash: ObjectStoragePath would take "s3://" for a path
    if "?" in key or "#" in key:
        return ObjectStoragePath(root) / key  # ObjectStoragePath(url) would drop query and fragment
    return ObjectStoragePath(root + key)


def _check_segments(path: ObjectStoragePath, url: str) -> None:
    """Raise if universal-pathlib has changed the key of a URL.

    universal-pathlib before 0.3, which Airflow 3.0 needs, removes empty segments and ``.``: ``a//b`` becomes ``a/b``.

    :raises InvalidPath: if the path is another object
    """
    if not re.search(r"/(\./|/|\.$)", url.partition("://")[2]):
        return
    named = str(path.fs._strip_protocol(url))
    if path.path.strip("/").count("/") < named.strip("/").count("/"):
        message = (
            f"universal-pathlib {version('universal-pathlib')} cannot name an object whose key has an empty segment"
            " (//) or a segment .; rename the object, or use an Airflow that works with universal-pathlib 0.3 or newer"
        )
        raise InvalidPath(message, path=url)


def time_of_object(info: Mapping[str, Any]) -> datetime | None:
    """Return the time of an object.

    Stores have different names for the time.

    :param info: the details from the store
    :returns: the time; None if the store reports none
    """
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        time = info.get(name)
        if isinstance(time, str):
            with suppress(ValueError):
                time = datetime.fromisoformat(time)
        if isinstance(time, int | float):
            return datetime.fromtimestamp(time, UTC)
        if isinstance(time, datetime):
            return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    return None


def rename_object(source: ObjectStoragePath, target: ObjectStoragePath) -> None:
    """Rename an object within its store.

    :param source: the object
    :param target: the new name
    """
    if not (has_wildcard(source.path) or has_wildcard(target.path)):
        source.fs.mv(source.path, target.path)
        return
    # mv and rm treat their arguments as patterns, and would match nothing, or another object.
    source.fs.copy([source.path], [target.path])
    source.fs.rm_file(source.path)


def remove_object(path: ObjectStoragePath) -> None:
    """Remove an object, if it exists.

    :param path: the object
    """
    if path.fs.exists(path.path):  # ObjectStoragePath's own methods may make a file system for each thread
        path.fs.rm_file(path.path)


class FileState(NamedTuple):
    """Hold the size of a file in bytes and its time.

    The time is in seconds since 1970. Unknown values are None.
    """

    size: int | None
    mtime: float | None

    @classmethod
    def of_remote(cls, info: FileInfo) -> FileState:
        """Return the state of a file on the server.

        :param info: the file
        :returns: the state
        """
        return cls(info.size, None if info.modified_at is None else info.modified_at.timestamp())

    @classmethod
    def of_local(cls, status: os.stat_result) -> FileState | None:
        """Return the state of a local file.

        :param status: the status of a path
        :returns: the state; None unless the path is a regular file
        """
        if not stat.S_ISREG(status.st_mode):
            return None
        # Not ``st_mtime``: a float rounds a time just below a full second up.
        return cls(status.st_size, status.st_mtime_ns // 1_000_000_000)


def local_state(path: str) -> FileState | None:
    """Return the state of a local file or object.

    :param path: local path or URL
    :returns: the state; None if the file does not exist
    """
    if is_url(path):
        target = object_path(path)
        if not target.is_file():
            return None
        return _object_state(target.stat())
    try:
        return FileState.of_local(os.stat(path))
    except (OSError, ValueError):  # as for os.path.isfile
        return None


def local_states(paths: Sequence[str]) -> dict[str, FileState]:
    """Return the states of local files or objects.

    The objects of a directory are listed once.

    :param paths: local paths and URLs
    :returns: the state of each existing file
    """
    directories: dict[str, list[str]] = {}
    for path in paths:
        if is_url(path):
            directories.setdefault(path.rpartition("/")[0], []).append(path)
    listed = {path for urls in directories.values() if len(urls) > 1 for path in urls}
    states = {path: state for path in paths if path not in listed and (state := local_state(path)) is not None}
    for urls in directories.values():
        if len(urls) > 1:
            states |= _listed_states(urls)
    return states


def _listed_states(urls: Sequence[str]) -> dict[str, FileState]:
    """Return the states of objects of one directory, from one listing."""
    objects = {object_path(url).path.strip("/"): url for url in urls}
    directory = object_path(urls[0]).parent
    directory.fs.invalidate_cache(directory.path)
    try:
        entries = cast("list[dict[str, Any]]", directory.fs.ls(directory.path, detail=True))
    except FileNotFoundError:
        return {}
    states: dict[str, FileState] = {}
    for entry in entries:
        url = objects.get(entry["name"].strip("/"))
        if url is not None and entry["type"] == "file":
            states[url] = _object_state(entry)
    return states


def _object_state(info: Mapping[str, Any]) -> FileState:
    modified_at = time_of_object(info)
    return FileState(info.get("size"), None if modified_at is None else modified_at.timestamp())


def is_up_to_date(source: FileState | None, target: FileState) -> bool:
    """Tell whether a target has its source's size and is not older.

    :param source: state of the source; None if it does not exist
    :param target: state of the target
    :returns: True for an equal size; unknown times do not matter
    """
    if source is None or source.size != target.size:
        return False
    if source.mtime is None or target.mtime is None:
        return True
    return int(source.mtime) <= int(target.mtime)  # SFTP has times in whole seconds


@contextmanager
def open_source(source: str) -> Iterator[BinaryIO]:
    """Open a local file or object for reading.

    :param source: local path or URL
    :returns: the stream
    :raises OSError: if the path is not a regular file
    """
    with open_object(object_path(source), "rb") if is_url(source) else open(open_regular(source), "rb") as stream:
        yield stream


def open_object(path: ObjectStoragePath, mode: Literal["rb", "wb"]) -> BinaryIO:
    """Open an object.

    :param path: the object
    :param mode: ``rb`` or ``wb``
    :returns: the stream
    """
    return cast("BinaryIO", path.open(mode))  # type: ignore[no-untyped-call] # Airflow leaves it untyped


def sha256_of_stream(stream: BinaryIO) -> str:
    """Return the digest of the remaining bytes of a stream.

    :param stream: the stream
    :returns: ``sha256:<hex>``
    """
    digest = hashlib.sha256()
    while block := stream.read(_BLOCK_SIZE):
        digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def sha256_if_equal(backend: SFTPBackend, key: str, local: str) -> str | None:
    """Compare a file on the server with a local file or object.

    :param backend: the backend of the task
    :param key: path on the server
    :param local: local path or URL
    :returns: ``sha256:<hex>`` of both; None if they differ or cannot be read
    :raises BackendUnavailable: if the connection is lost
    """
    try:
        with backend.read(key) as remote, open_source(local) as local_stream:
            digest = sha256_of_stream(remote)
            return digest if sha256_of_stream(local_stream) == digest else None
    except BackendUnavailable:
        raise
    except (SFTPBackendError, OSError):
        return None


class SizeCheckedStream:
    """Read a stream and check its length.

    The length must be the size that the store reports.

    :param stream: the stream to read
    :param size: expected bytes, None if unknown
    :param key: path of the target, for the error
    """

    def __init__(self, stream: BinaryIO, size: int | None, key: str) -> None:
        self._stream = stream
        self._size = size
        self._key = key
        self.count = 0
        """Bytes read so far."""
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Digest of the bytes read so far, as ``sha256:<hex>``."""
        return f"sha256:{self._hash.hexdigest()}"

    def read(self, size: int, /) -> bytes:
        """Return the next bytes; no bytes at the end.

        :param size: bytes to read at most
        :returns: the bytes
        :raises TransferCorrupted: if the stream is shorter or longer than expected
        """
        data = self._stream.read(size)
        self.count += len(data)
        if self._size is not None and (self.count > self._size or (not data and self.count < self._size)):
            message = f"read {self.count} bytes from the source, expected {self._size}; the target is unchanged"
            raise TransferCorrupted(message, path=self._key)
        self._hash.update(data)
        return data


def upload_object(
    backend: SFTPBackend,
    url: str,
    key: str,
    size: int | None,
    *,
    overwrite: bool,
    verify: Verify,
    create_parents: bool,
    mode: int | None,
    modified_at: datetime | None,
    temp_suffix: str | None,
    temp_folder: str | None,
    progress: Progress,
    before_rename: BeforeRename | None,
) -> Outcome:
    """Upload an object.

    :param backend: the backend of the task
    :param url: URL of the object
    :param key: path on the server
    :param size: size of the object in bytes, None if unknown
    :param overwrite: replace an existing target
    :param verify: verification after the transfer
    :param create_parents: create missing parent directories
    :param mode: permission bits of the target; None for the usual ones
    :param modified_at: time of the target; None for the time of the upload
    :param temp_suffix: end of the name of the unfinished file
    :param temp_folder: directory of the unfinished file
    :param progress: receives the transferred bytes
    :param before_rename: receives the prepared file, with its digest, before the rename
    :returns: the written file, or the error
    """
    try:
        with open_source(url) as stream:
            content = SizeCheckedStream(stream, size, key)

            def record(files: Sequence[PreparedFile]) -> None:
                if before_rename is not None:
                    before_rename([replace(file, digest=content.digest) for file in files])

            writer = backend.create_atomic(
                key, overwrite, verify=verify, create_parents=create_parents, mode=mode, modified_at=modified_at,
                temp_suffix=temp_suffix, temp_folder=temp_folder,
                before_rename=None if before_rename is None else record,
            )  # fmt: skip
            try:
                while block := content.read(_BLOCK_SIZE):
                    writer.write(block)
                    progress(len(block))
                last_modified = writer.commit()
            finally:
                writer.discard()
            return WriteResult(key, content.count, digest=content.digest, last_modified=last_modified)
    except SFTPBackendError as error:
        return error
    except OSError as error:
        return add_both_paths(error, url, f"uploading to {backend.native_path(key)!r}")


def download_object(
    backend: SFTPBackend,
    key: str,
    url: str,
    *,
    overwrite: bool,
    verify: Verify,
    progress: Progress,
    before_rename: BeforeRename | None,
) -> Outcome:
    """Download a file to an object.

    The object appears under its name only after verification.

    :param backend: the backend of the task
    :param key: path on the server
    :param url: URL of the object
    :param overwrite: replace an existing object
    :param verify: verification after the transfer
    :param progress: receives the transferred bytes
    :param before_rename: receives the prepared object before the rename
    :returns: the written file, or the error
    """
    target = object_path(url)
    temp = target.parent / temp_name(target.name, secrets.token_hex(6))
    try:
        if target.fs.isdir(target.path):  # fs.mv would move the file into it
            return InvalidPath(f"{url!r} is a directory", path=key, entry_type="directory")
        if not overwrite and target.fs.exists(target.path):
            return AlreadyExists(f"{url!r} exists", path=key)
        try:
            written = _copy(backend, key, temp, progress, to_end=verify == "none")
            if verify == "sha256":
                with open_object(temp, "rb") as stream:
                    if sha256_of_stream(stream) != written.digest:
                        return TransferCorrupted(f"{url!r} does not have the SHA-256 of the received bytes", path=key)
            if before_rename is not None:
                before_rename([PreparedFile(url, temp.name, written.size, None, written.digest)])
            rename_object(temp, target)
        finally:
            remove_object(temp)
    except SFTPBackendError as error:
        return error
    except OSError as error:
        return add_both_paths(error, url, f"downloading {backend.native_path(key)!r}")
    return written


def _copy(backend: SFTPBackend, key: str, temp: ObjectStoragePath, progress: Progress, *, to_end: bool) -> WriteResult:
    """Copy a file of the server to an object.

    :param to_end: accept any size, read until the end
    :raises TransferCorrupted: if the file does not have the reported size, unless ``to_end``
    """
    digest, count = hashlib.sha256(), 0
    with cast("RemoteFile", backend.read(key)) as source, open_object(temp, "wb") as target:
        size = None if to_end else source.size_at_open
        modified_at = source.modified_at_open
        while block := source.read(_BLOCK_SIZE):
            count += len(block)
            if size is not None and count > size:  # only count the excess, for the error
                if count > size + _MAX_EXCESS_COUNTED:
                    raise size_mismatch(size, count, key, reached_end=False)
                continue
            target.write(block)
            digest.update(block)
            progress(len(block))
    if size is not None and count != size:
        raise size_mismatch(size, count, key)
    return WriteResult(key, count, digest=f"sha256:{digest.hexdigest()}", last_modified=modified_at)
