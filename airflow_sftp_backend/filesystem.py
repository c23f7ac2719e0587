"""Files by URL: an fsspec file system over SFTPBackend.

pandas, pyarrow, DuckDB, polars and Airflow's ObjectStoragePath use it.

``sftpbackend://partner@/inbox/orders.csv`` is the file ``inbox/orders.csv`` below the base path of the Airflow
connection ``partner``. Airflow finds this module through the provider's ``filesystems``, fsspec and universal-pathlib
through their entry points.
"""

from __future__ import annotations

import atexit
import os
import shutil
import uuid
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from fsspec import register_implementation
from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.compression import compr
from fsspec.config import apply_config
from fsspec.core import get_compression
from fsspec.json import FilesystemJSONEncoder
from fsspec.spec import _Cached
from fsspec.transaction import Transaction
from fsspec.utils import isfilelike
from upath import UPath

from ._arguments import check_no_password
from ._filesystem.base import PROTOCOL
from ._filesystem.changes import FileChanges
from ._filesystem.files import RemoteReader, RemoteWriter
from ._filesystem.os_errors import os_errors
from ._filesystem.queries import FileQueries
from ._filesystem.secret_arguments import PLAIN_VALUES, hide_secrets, without_secrets
from .backend import InvalidPath
from .hooks.sftp import SFTPBackendHook

if TYPE_CHECKING:
    from .backend import SFTPBackend

schemes: Final = [PROTOCOL]
"""URL schemes of this module, for Airflow."""

_IGNORED_OPTIONS: Final = ("use_listings_cache", "listings_expiry_time", "max_paths")
"""Options for the cache of listings, which this file system does not have."""


def get_fs(conn_id: str | None, storage_options: Mapping[str, object] | None = None) -> SFTPBackendFileSystem:
    """Return the file system of an Airflow connection.

    Airflow calls this for an ``ObjectStoragePath``.

    :param conn_id: id of the connection; None for ``sftp_backend_default``
    :param storage_options: further arguments of `SFTPBackendFileSystem`
    :returns: the file system, which reads the connection at its first call
    """
    options: dict[str, Any] = dict(storage_options or {})
    return SFTPBackendFileSystem(conn_id=conn_id, **options)


class _SharedIfPlain(_Cached):
    """Share file systems with equal arguments, if fsspec can compare these.

    fsspec compares the texts of arguments, hashes them, and keeps the arguments. The texts of two backends can be
    equal. Secrets have comparable texts.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - of a metaclass
        kwargs = hide_secrets(apply_config(cls, kwargs))
        is_plain = all(isinstance(value, PLAIN_VALUES) for value in (*args, *kwargs.values()))
        if not is_plain:
            kwargs["skip_instance_cache"] = True
        instance = super().__call__(*args, **kwargs)
        if not is_plain:
            instance._fs_token_ = uuid.uuid4().hex
        return instance


class _Transaction(Transaction):
    """End a transaction even if the commit of a file fails.

    The files after it are discarded.
    """

    def complete(self, commit: bool = True) -> None:
        fs = self.fs
        try:
            super().complete(commit)
        finally:  # fsspec before 2026 leaves the file system in the transaction
            while self.files:
                self.files.popleft().discard()
            fs._intrans, fs._transaction = False, None


class SFTPBackendFileSystem(FileQueries, FileChanges, metaclass=_SharedIfPlain):
    """Files on an SFTP server, as fsspec sees them.

    Paths are relative to the base path of the connection, with or without a leading ``/``. A written file appears under
    its name when it is closed, complete, and never after an exception. Errors are `OSError` classes and errors of the
    backend at the same time.

    The connection opens with the first call. Calls from several threads run one after the other; a forked process and a
    pickled copy connect on their own. The connection closes with `close` and at the end of the process.

    :param host: name or address of the server; further arguments are those of `SFTPBackend`
    :param conn_id: id of an Airflow connection; ``sftp_backend_default`` without ``host`` and ``backend``
    :param backend: an existing backend, which remains the caller's: `close` does not close it
    :param options: arguments of `SFTPBackend`, with ``host``
    :raises ValueError: for more than one of ``host``, ``conn_id`` and ``backend``, or a wrong value
    :raises TypeError: for an unknown argument
    """

    transaction_type = _Transaction

    def __init__(
        self,
        host: str | None = None,
        *,
        conn_id: str | None = None,
        backend: SFTPBackend | None = None,
        **options: Any,
    ) -> None:
        if self._cached:
            return
        super().__init__(use_listings_cache=False)
        for name in _IGNORED_OPTIONS:
            options.pop(name, None)
        if sum(value is not None for value in (host, conn_id, backend)) > 1:
            raise ValueError("pass only one of host, conn_id and backend")
        if options and host is None:
            raise TypeError(f"unexpected arguments without host: {', '.join(sorted(options))}")
        self.conn_id = conn_id or (None if host or backend else SFTPBackendHook.default_conn_name)
        self._is_owner = backend is None
        self._backends: dict[str | None, SFTPBackend] = {}  # one by the connection id, or none yet
        if backend is not None:
            self._backends[None] = backend
        elif host is not None:
            from .backend import SFTPBackend  # a late import, because it loads paramiko

            self._backends[None] = SFTPBackend(host, **options)
        _FILE_SYSTEMS[id(self)] = self

    @property
    def backend(self) -> SFTPBackend:
        """Return the backend. Reads the Airflow connection if necessary.

        :raises InvalidArgument: if the connection id is that of a URL with a password
        :raises InvalidConnection: if fields of the connection are invalid
        :raises AirflowNotFoundException: if the connection does not exist
        :raises BackendUnavailable: if a vault does not answer now
        """
        backend = self._backends.get(self.conn_id)
        if backend is None:
            assert self.conn_id is not None
            # Not earlier: after an error of `get_fs`, Airflow uses the default connection.
            check_no_password(f"{PROTOCOL}://{self.conn_id}@", "the path")
            # Of several threads, the first one wins. The backends of the others are not connected yet.
            backend = self._backends.setdefault(self.conn_id, SFTPBackendHook(self.conn_id).get_conn())
        return backend

    def close(self) -> None:
        """Close the connection, unless the caller owns the backend.

        The next call opens a new one.
        """
        if not self._is_owner:
            return
        # Without an entry, the next call reads the Airflow connection again.
        backend = self._backends.get(None) if self.conn_id is None else self._backends.pop(self.conn_id, None)
        if backend is not None:
            backend.close()

    def to_dict(self, *, include_password: bool = True) -> dict[str, Any]:
        """Return the arguments of this file system for JSON.

        `to_json` calls this method. The result never has a secret.

        :param include_password: False to leave out secrets; otherwise they are an error
        :returns: class, protocol and arguments
        :raises ValueError: if an argument is a secret, unless ``include_password`` is False
        """
        arguments = without_secrets(self.storage_options)
        if include_password and arguments != self.storage_options:
            raise ValueError(
                "to_json and to_dict show no secrets, and this file system has a password or private key among its"
                " arguments. Use conn_id, leave the secrets out with include_password=False, or pickle the file system"
            )
        encoder = FilesystemJSONEncoder()
        return {
            "cls": f"{type(self).__module__}:{type(self).__name__}",
            "protocol": PROTOCOL,
            "args": encoder.make_serializable(self.storage_args),
            **encoder.make_serializable(arguments),
        }

    def unstrip_protocol(self, name: str) -> str:
        """Return the URL of a path, with the connection id.

        :param name: the path
        :returns: the URL
        """
        user = f"{self.conn_id}@" if self.conn_id is not None else ""
        return f"{PROTOCOL}://{user}{self._strip_protocol(name)}"

    # -- reading ------------------------------------------------------------------------------------------------------

    def open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: Any = None,
        compression: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Open a file. See `fsspec.spec.AbstractFileSystem.open`.

        A file opened for writing appears under its name when it is closed. To discard it, leave a ``with`` block by an
        exception.

        :param path: the path
        :param mode: ``r`` to read, ``w`` to replace or create, ``x`` to create only; with ``b`` for bytes
        :param block_size: not used; reading ahead depends on how the file is read
        :param cache_options: not used
        :param compression: name of a compression, or ``infer``
        :param kwargs: ``encoding``, ``errors`` and ``newline`` of text
        :returns: the open file
        :raises OSError: if the file cannot be opened
        :raises NotImplementedError: for the modes ``a`` and ``+``: a file is replaced as a whole
        """
        compression = get_compression(path, compression)
        if compression is None or "b" not in mode or "r" in mode:
            return super().open(path, mode, block_size, cache_options, compression, **kwargs)
        # The files of compressions do not close the file below them, and only closing lets the file appear.
        target = super().open(path, mode, block_size, cache_options, None, **kwargs)
        compressing = compr[compression](target, mode=mode[0])
        try:
            close, get_file = compressing.close, weakref.ref(compressing)
        except TypeError:
            return compressing  # zstandard, which closes the file below it

        def close_both() -> None:
            file = get_file()
            if file is None or getattr(file, "_finalizing", False):  # the io module sets this before it closes
                target.abandon()
            with target:
                close()

        compressing.close, compressing._dealloc_warn = close_both, target._dealloc_warn
        return compressing

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: Any = None,
        **kwargs: Any,
    ) -> RemoteReader | RemoteWriter:
        """Open a file for bytes."""
        if mode == "rb":
            return RemoteReader(self.backend, path, self)
        if mode not in ("wb", "xb"):
            raise NotImplementedError(
                f"cannot open {path!r} with mode {mode!r}: a file is replaced as a whole. Use 'wb' or 'xb'"
            )
        with os_errors():
            writer = self.backend.create_atomic(path, overwrite=mode == "wb")
        return RemoteWriter(writer, path, self, autocommit=autocommit)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: object) -> bytes:
        """Return the bytes of a file, or of a slice of it.

        :param path: the path
        :param start: first byte, from the end if negative
        :param end: byte after the last one, from the end if negative
        :param kwargs: not used
        :returns: the bytes
        :raises OSError: if the file cannot be read
        """
        if not start and end is None:
            with os_errors():
                return self.backend.read_bytes(self._strip_protocol(path))
        with RemoteReader(self.backend, self._strip_protocol(path), self) as file:
            return _read_slice(file, start, end)

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | list[int | None] | None,
        ends: int | list[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: object,
    ) -> list[bytes | Exception]:
        """Return slices of several files.

        Each file is opened once, so its slices belong to one version of it.

        :param paths: the path of each slice
        :param starts: first byte of each slice, or of all
        :param ends: byte after the last one of each slice, or of all
        :param max_gap: not supported
        :param on_error: ``return`` errors in place of bytes, or ``raise`` the first
        :param kwargs: not used
        :returns: the slices
        """
        if max_gap is not None:
            raise NotImplementedError("max_gap is not supported")
        starts = starts if isinstance(starts, list) else [starts] * len(paths)
        ends = ends if isinstance(ends, list) else [ends] * len(paths)
        if not len(paths) == len(starts) == len(ends):
            raise ValueError("paths, starts and ends differ in length")
        slices: dict[str, list[int]] = {}
        for index, path in enumerate(paths):
            slices.setdefault(self._strip_protocol(path), []).append(index)
        results: list[bytes | Exception] = [b""] * len(paths)
        for path, indices in slices.items():
            try:
                with RemoteReader(self.backend, path, self) as file:
                    for index in indices:
                        results[index] = _read_slice(file, starts[index], ends[index])
            except OSError as error:
                if on_error != "return":
                    raise
                for index in indices:
                    results[index] = error
        return results

    def get_file(
        self,
        rpath: str,
        lpath: Any,
        callback: Callback = DEFAULT_CALLBACK,
        outfile: Any = None,
        **kwargs: object,
    ) -> None:
        """Download a file atomically and verify it.

        For a directory, a local directory is created.

        :param rpath: path on the server
        :param lpath: local path, or an open file
        :param callback: is told the size and the progress
        :param outfile: an open file in place of ``lpath``
        :param kwargs: not used
        :raises OSError: if the file cannot be read or written
        """
        rpath = self._strip_protocol(rpath)
        if callback is not DEFAULT_CALLBACK:
            callback.set_size(self.size(rpath))
        target = outfile if outfile is not None else lpath if isfilelike(lpath) else None
        if target is not None:
            with RemoteReader(self.backend, rpath, self) as source:
                while block := source.read(self.blocksize):
                    target.write(block)
                    callback.relative_update(len(block))
            return
        local = os.fspath(lpath)
        os.makedirs(os.path.dirname(local) or ".", exist_ok=True)
        with os_errors():
            if os.path.isdir(local) and self.backend.is_folder(rpath):
                return
            try:
                self.backend.download(rpath, local, overwrite=True, progress=callback.relative_update)
            except InvalidPath as error:
                if error.entry_type != "directory":
                    raise
                os.makedirs(local, exist_ok=True)

    # -- writing ------------------------------------------------------------------------------------------------------

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: object) -> None:
        """Write a file atomically. Three round trips for a small file.

        :param path: the path
        :param value: the content
        :param mode: ``overwrite``, or ``create`` to refuse an existing file
        :param kwargs: not used
        :raises FileExistsError: if the file exists and ``mode`` is ``create``
        """
        if self._intrans:
            with self.open(path, "xb" if mode == "create" else "wb") as file:
                file.write(value)
            return
        with os_errors():
            self.backend.write_atomic(self._strip_protocol(path), value, overwrite=mode != "create")

    def put_file(
        self,
        lpath: Any,
        rpath: str,
        callback: Callback = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        **kwargs: object,
    ) -> None:
        """Upload a file atomically and verify it.

        For a directory, a directory is created.

        :param lpath: local path
        :param rpath: path on the server
        :param callback: is told the size and the progress
        :param mode: ``overwrite``, or ``create`` to refuse an existing file
        :param kwargs: not used
        :raises OSError: if the file cannot be read or written
        """
        local = os.fspath(lpath)
        if os.path.isdir(local):
            self.makedirs(rpath, exist_ok=True)
            return
        callback.set_size(os.stat(local).st_size)
        if self._intrans:
            with open(local, "rb") as source, self.open(rpath, "xb" if mode == "create" else "wb") as target:
                shutil.copyfileobj(source, target, self.blocksize)
            return
        with os_errors():
            self.backend.upload(
                local, self._strip_protocol(rpath), overwrite=mode != "create", progress=callback.relative_update
            )


class SFTPBackendPath(UPath):
    """Path of universal-pathlib for this file system."""

    __slots__ = ()


_FILE_SYSTEMS: Final[weakref.WeakValueDictionary[int, SFTPBackendFileSystem]] = weakref.WeakValueDictionary()


@atexit.register
def _close_all() -> None:
    """Close the connections that file systems own.

    Neither fsspec nor Airflow closes file systems.
    """
    for file_system in [*_FILE_SYSTEMS.values()]:
        file_system.close()


def _read_slice(file: RemoteReader, start: int | None, end: int | None) -> bytes:
    """Read a slice of an open file."""
    size = file.size if file.size is not None else file.seek(0, os.SEEK_END)
    first, behind, _ = slice(start, end).indices(size)
    file.seek(first)
    return file.read(max(0, behind - first))


register_implementation(PROTOCOL, SFTPBackendFileSystem, clobber=True)
