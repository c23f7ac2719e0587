"""The end of a transfer that is not the server: a path of this machine, or the URL of any `ObjectStoragePath`."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend._cancellation import shield_from_kill
from airflow_sftp_backend._path_arguments import has_wildcard
from airflow_sftp_backend.backend import (
    AlreadyExists,
    BeforeRename,
    PreparedFile,
    SFTPBackendError,
    TransferCorrupted,
    WriteResult,
)
from airflow_sftp_backend.backend._limits import size_mismatch
from airflow_sftp_backend.backend._paths import temp_name
from airflow_sftp_backend.backend._transfers.local_files import add_both_paths, open_regular

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_sftp_backend.backend import FileInfo, Progress, SFTPBackend
    from airflow_sftp_backend.backend._execution.open_files import RemoteFile

Verify = Literal["size", "sha256", "none"]
Outcome = WriteResult | SFTPBackendError | OSError

_BLOCK_SIZE = 1 << 20
_MAX_EXCESS_COUNTED = (
    16 << 20
)  # bytes read of a file that is longer than the server says, to tell its size in the error


def is_url(path: str) -> bool:
    """True for a URL such as ``s3://bucket/key``; a ``file://`` URL is a path of this machine, see `parse_names`."""
    return re.match(r"[a-z][a-z0-9+.-]+://", path) is not None


def object_path(url: str) -> ObjectStoragePath:
    """Return the object of a URL, every character of which stands for itself.

    :raises InvalidArgument: for a scheme that no installed provider or fsspec package knows.
    """
    from airflow.sdk import ObjectStoragePath  # here, because it loads fsspec

    root, key = url, ""
    if "?" in url or "#" in url:  # as the end of a URL they would be dropped
        scheme, _, after_scheme = url.partition("://")
        container, _, key = after_scheme.partition("/")
        root = f"{scheme}://{container}"
    with shield_from_kill():  # the store's connection is asked of Airflow
        try:
            path = ObjectStoragePath(root) / key if key else ObjectStoragePath(root)
            fs = path.fs
        except ValueError as error:
            scheme = url.partition("://")[0]
            raise InvalidArgument(
                f"{scheme}:// URLs cannot be used: {error}. Install the provider for them."
            ) from error
        assert fs is not None
    return path


def rename_object(source: ObjectStoragePath, target: ObjectStoragePath) -> None:
    """Rename an object within its store."""
    if not (has_wildcard(source.path) or has_wildcard(target.path)):
        source.fs.mv(source.path, target.path)
        return
    # mv and rm take their arguments for patterns, and would find nothing, or another object
    source.fs.copy([source.path], [target.path])
    source.fs.rm_file(source.path)


def remove_object(path: ObjectStoragePath) -> None:
    """Remove an object, if it exists."""
    if not path.exists():
        return
    if has_wildcard(path.path):
        path.fs.rm_file(path.path)  # unlink() takes the name for a pattern
    else:
        path.unlink()


@dataclass(frozen=True, slots=True)
class FileState:
    """What a listing says of a file: its size in bytes and its time in epoch seconds, each None if it is not told."""

    size: int | None
    modified: float | None

    @classmethod
    def of_remote(cls, info: FileInfo) -> FileState:
        """Return the state of a file on the server."""
        return cls(info.size, None if info.modified_at is None else info.modified_at.timestamp())


def local_state(path: str) -> FileState | None:
    """Return the state of a local file or object; None if there is none."""
    if is_url(path):
        target = object_path(path)
        if not target.is_file():
            return None
        stat = target.stat()
        return FileState(stat.st_size, stat.st_mtime or None)
    if not os.path.isfile(path):
        return None
    state = os.stat(path)
    return FileState(state.st_size, state.st_mtime)


def is_up_to_date(source: FileState | None, target: FileState) -> bool:
    """Return True if a target of the same size was written after the source, as far as times are told."""
    if source is None or source.size != target.size:
        return False
    if source.modified is None or target.modified is None:
        return True
    return int(source.modified) <= int(target.modified)  # SFTP tells times in whole seconds


@contextmanager
def open_source(source: str) -> Iterator[BinaryIO]:
    """The bytes of a local file or object. OSError for a path that is no regular file."""
    with open_object(object_path(source), "rb") if is_url(source) else open(open_regular(source), "rb") as stream:
        yield stream


def open_object(path: ObjectStoragePath, mode: Literal["rb", "wb"]) -> BinaryIO:
    """The object, open."""
    return cast("BinaryIO", path.open(mode))  # type: ignore[no-untyped-call] # Airflow leaves it untyped


def sha256_of_stream(stream: BinaryIO) -> str:
    """``sha256:<hex>`` of what is left of it."""
    digest = hashlib.sha256()
    while block := stream.read(_BLOCK_SIZE):
        digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def sha256_if_equal(backend: SFTPBackend, key: str, local: str) -> str | None:
    """``sha256:<hex>`` of a file on the server and a local file or object if both hold the same bytes; None if not."""
    try:
        with backend.read(key) as remote, open_source(local) as local_stream:
            digest = sha256_of_stream(remote)
            return digest if sha256_of_stream(local_stream) == digest else None
    except (SFTPBackendError, OSError):
        return None


class SizeCheckedStream:
    """A stream that must give as many bytes as its store says it has. TransferCorrupted if it ends before, or goes on.

    ``size`` in bytes, None if it is not known; ``key`` is where it goes.
    """

    def __init__(self, stream: BinaryIO, size: int | None, key: str) -> None:
        self._stream = stream
        self._size = size
        self._key = key
        self._count = 0
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of what it gave so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def read(self, size: int, /) -> bytes:
        """The next bytes, none at the end."""
        data = self._stream.read(size)
        self._count += len(data)
        if self._size is not None and (self._count > self._size or (not data and self._count < self._size)):
            message = f"the source gave {self._count} bytes, and has {self._size}; the target was left as it was"
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
    progress: Progress,
    before_rename: BeforeRename | None,
) -> Outcome:
    """Sends an object of ``size`` bytes to the server; what was written, or why not."""
    try:
        with open_source(url) as stream:
            content = SizeCheckedStream(stream, size, key)

            def record(files: Sequence[PreparedFile]) -> None:
                if before_rename is not None:
                    before_rename([replace(file, digest=content.digest) for file in files])

            written = backend.write_atomic(
                key, content, overwrite=overwrite, verify=verify, progress=progress, create_parents=create_parents,
                before_rename=record,
            )  # fmt: skip
            return replace(written, digest=content.digest)
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
    """Fetches a file into an object, which has its name only when it is whole and proven."""
    target = object_path(url)
    temp = target.parent / temp_name(target.name, secrets.token_hex(6))
    try:
        if not overwrite and target.exists():
            return AlreadyExists(f"{url!r} exists", path=key)
        try:
            written = _copy(backend, key, temp, progress, to_end=verify == "none")
            if verify == "sha256":
                with open_object(temp, "rb") as stream:
                    if sha256_of_stream(stream) != written.digest:
                        return TransferCorrupted(f"{url!r} does not hold the bytes that came", path=key)
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

    :raises TransferCorrupted: if the file has another size than the server says, unless it is read ``to_end``.
    """
    digest, count = hashlib.sha256(), 0
    with cast("RemoteFile", backend.read(key)) as source, open_object(temp, "wb") as target:
        size = None if to_end else source.size_at_open
        modified_at = source.modified_at_open
        while block := source.read(_BLOCK_SIZE):
            count += len(block)
            if size is not None and count > size:  # written no further: counted, to be named in the error
                if count > size + _MAX_EXCESS_COUNTED:
                    raise size_mismatch(size, count, key, reached_end=False)
                continue
            target.write(block)
            digest.update(block)
            progress(len(block))
    if size is not None and count != size:
        raise size_mismatch(size, count, key)
    return WriteResult(key, count, digest=f"sha256:{digest.hexdigest()}", last_modified=modified_at)
