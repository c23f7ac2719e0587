"""Provide the backend for asyncio.

All calls are made on one thread, so that `asyncio.gather` is safe.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from typing import BinaryIO, ClassVar, Final, Literal, ParamSpec, TypeVar, overload

from airflow_sftp_backend.backend.models import Verify

from .errors import SFTPBackendError
from .models import (
    BackendStatistics,
    BeforeRename,
    Capability,
    FileInfo,
    FolderEntry,
    FolderInfo,
    PartialFile,
    Progress,
    ResolutionPlan,
    WriteResult,
)
from .sync import SFTPBackend

P = ParamSpec("P")
T = TypeVar("T")

_CLEANUP_SECONDS: Final = 1.5
"""Seconds for a cancelled call to remove its temporary file."""
_CLOSING_SECONDS: Final = 2.0
"""Seconds after which `SyncBackendAdapter.close` returns, whatever the server does."""


class SyncBackendAdapter:
    """Make the calls of a backend awaitable.

    The adapter owns the backend and the thread that makes all calls.

    Each method has the results and errors of the backend's method of the same name; listings are lists. The thread has
    the context variables of the caller. Use the adapter as an async context manager, or await `close`.

    A call that is cancelled before its turn is not made. A call that is cancelled while it runs ends as if its process
    was killed: its connection is closed, and no file appears under its final name unless the rename was sent. Its
    temporary file is removed within 1.5 s or, with a ``resume_key``, kept for the next call. The next call connects
    again. A name look-up and a blocking read of a local file cannot be cancelled: the call ends after them.

    :param backend: the backend, which must not be used elsewhere
    """

    CAPABILITIES: ClassVar = SFTPBackend.CAPABILITIES
    """Capabilities of every server."""

    def __init__(self, backend: SFTPBackend) -> None:
        self._backend = backend
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"{backend.address} adapter")
        self._runner = _CallRunner(backend)

    async def __aenter__(self) -> SyncBackendAdapter:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        # Unlike asyncio.to_thread, run_in_executor does not pass context variables on.
        call, context = _Call(), contextvars.copy_context()
        run = partial(self._runner.run, call, partial(context.run, partial(function, *args, **kwargs)))
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, run)
        except asyncio.CancelledError:
            self._runner.cancel(call)
            raise

    async def close(self) -> None:
        """Close the connection and end the thread, within 2 s.

        Cancels a call that still runs.

        Idempotent. The adapter cannot be used afterwards.
        """
        try:
            closing = asyncio.get_running_loop().run_in_executor(self._thread, self._backend.close)
        except RuntimeError:  # the thread is ended already
            return
        self._thread.shutdown(wait=False)
        self._runner.cancel()
        # If this task is cancelled or the call cannot be cancelled, the thread closes the connection later.
        await asyncio.wait([closing], timeout=_CLOSING_SECONDS)

    @property
    def name(self) -> str:
        """Return the kind of backend: ``"sftp"``."""
        return self._backend.name

    @property
    def address(self) -> str:
        """Return the server as ``sftp://host:port``."""
        return self._backend.address

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Return the capabilities of every server."""
        return self._backend.capabilities

    @property
    def connections(self) -> int:
        """Return the number of connections opened so far."""
        return self._backend.connections

    @property
    def statistics(self) -> BackendStatistics:
        """Return the counters since the creation of the backend. No I/O."""
        return self._backend.statistics

    def resolve(self, path: str) -> ResolutionPlan:
        """See `SFTPBackend.resolve`. Not a coroutine, because it needs no I/O."""
        return self._backend.resolve(path)

    def native_path(self, path: str) -> str:
        """See `SFTPBackend.native_path`."""
        return self._backend.native_path(path)

    def to_key(self, native_path: str) -> str:
        """See `SFTPBackend.to_key`."""
        return self._backend.to_key(native_path)

    async def exists(self, path: str) -> bool:
        """See `SFTPBackend.exists`."""
        return await self._call(self._backend.exists, path)

    async def is_file(self, path: str) -> bool:
        """See `SFTPBackend.is_file`."""
        return await self._call(self._backend.is_file, path)

    async def is_folder(self, path: str) -> bool:
        """See `SFTPBackend.is_folder`."""
        return await self._call(self._backend.is_folder, path)

    async def get_file_info(self, path: str) -> FileInfo:
        """See `SFTPBackend.get_file_info`."""
        return await self._call(self._backend.get_file_info, path)

    async def get_entry(self, path: str) -> FileInfo | FolderEntry:
        """See `SFTPBackend.get_entry`."""
        return await self._call(self._backend.get_entry, path)

    @overload
    async def get_file_info_many(
        self, paths: Iterable[str], *, return_exceptions: Literal[False] = False
    ) -> list[FileInfo]: ...

    @overload
    async def get_file_info_many(
        self, paths: Iterable[str], *, return_exceptions: bool
    ) -> list[FileInfo | SFTPBackendError | OSError]: ...

    async def get_file_info_many(
        self, paths: Iterable[str], *, return_exceptions: bool = False
    ) -> list[FileInfo] | list[FileInfo | SFTPBackendError | OSError]:
        """See `SFTPBackend.get_file_info_many`."""
        return await self._call(self._backend.get_file_info_many, paths, return_exceptions=return_exceptions)

    async def get_folder_info(self, path: str) -> FolderInfo:
        """See `SFTPBackend.get_folder_info`."""
        return await self._call(self._backend.get_folder_info, path)

    async def check_health(self) -> None:
        """See `SFTPBackend.check_health`."""
        await self._call(self._backend.check_health)

    async def list_files(self, path: str, recursive: bool = False, max_depth: int | None = None) -> list[FileInfo]:
        """See `SFTPBackend.list_files`."""
        return await self._call(lambda: list(self._backend.list_files(path, recursive, max_depth)))

    async def list_folders(self, path: str) -> list[FolderEntry]:
        """See `SFTPBackend.list_folders`."""
        return await self._call(lambda: list(self._backend.list_folders(path)))

    async def iter_children(
        self, path: str, recursive: bool = False, max_depth: int | None = None
    ) -> list[FileInfo | FolderEntry]:
        """See `SFTPBackend.iter_children`."""
        return await self._call(lambda: list(self._backend.iter_children(path, recursive, max_depth)))

    async def find(self, *patterns: str | FileInfo) -> list[FileInfo]:
        """See `SFTPBackend.find`."""
        return await self._call(self._backend.find, *patterns)

    @overload
    async def find_each(
        self, groups: Sequence[Sequence[str | FileInfo]], *, return_exceptions: Literal[False] = False
    ) -> list[list[FileInfo]]: ...

    @overload
    async def find_each(
        self, groups: Sequence[Sequence[str | FileInfo]], *, return_exceptions: bool
    ) -> list[list[FileInfo] | SFTPBackendError | OSError]: ...

    async def find_each(
        self, groups: Sequence[Sequence[str | FileInfo]], *, return_exceptions: bool = False
    ) -> list[list[FileInfo]] | list[list[FileInfo] | SFTPBackendError | OSError]:
        """See `SFTPBackend.find_each`."""
        return await self._call(self._backend.find_each, groups, return_exceptions=return_exceptions)

    async def glob(self, pattern: str) -> list[FileInfo]:
        """See `SFTPBackend.glob`."""
        return await self._call(self._backend.find, pattern)

    async def read(self, path: str) -> BinaryIO:
        """See `SFTPBackend.read`. The file's own methods block: use them in a thread."""
        return await self._call(self._backend.read, path)

    async def read_seekable(self, path: str) -> BinaryIO:
        """See `SFTPBackend.read_seekable`."""
        return await self._call(self._backend.read_seekable, path)

    async def read_bytes(self, path: str) -> bytes:
        """See `SFTPBackend.read_bytes`."""
        return await self._call(self._backend.read_bytes, path)

    async def read_text(self, path: str, encoding: str = "utf-8", errors: str = "strict") -> str:
        """See `SFTPBackend.read_text`."""
        return await self._call(self._backend.read_text, path, encoding, errors)

    async def write(
        self, path: str, content: object, overwrite: bool = False, metadata: Mapping[str, str] | None = None
    ) -> WriteResult:
        """See `SFTPBackend.write`."""
        return await self._call(self._backend.write, path, content, overwrite, metadata)

    async def write_atomic(
        self,
        path: str,
        content: object,
        overwrite: bool = False,
        metadata: Mapping[str, str] | None = None,
        *,
        verify: Verify = "size",
        progress: Progress | None = None,
        create_parents: bool = True,
        modified_at: datetime | None = None,
        mode: int | None = None,
        temp_suffix: str | None = None,
        temp_folder: str | None = None,
        before_rename: BeforeRename | None = None,
    ) -> WriteResult:
        """See `SFTPBackend.write_atomic`; ``progress`` is called on the adapter's thread."""
        call = partial(
            self._backend.write_atomic,
            create_parents=create_parents,
            modified_at=modified_at,
            mode=mode,
            temp_suffix=temp_suffix,
            temp_folder=temp_folder,
            before_rename=before_rename,
        )
        return await self._call(call, path, content, overwrite, metadata, verify=verify, progress=progress)

    async def write_text(
        self, path: str, text: str, overwrite: bool = False, *, encoding: str = "utf-8", errors: str = "strict"
    ) -> WriteResult:
        """See `SFTPBackend.write_text`."""
        return await self._call(self._backend.write_text, path, text, overwrite, encoding=encoding, errors=errors)

    async def upload(
        self,
        local: str | os.PathLike[str],
        path: str,
        overwrite: bool = False,
        *,
        verify: Verify = "size",
        progress: Progress | None = None,
        create_parents: bool = True,
        channels: int | None = None,
        resume_key: str | None = None,
        digest: bool = False,
        keep_times: bool = False,
        mode: int | None = None,
        temp_suffix: str | None = None,
        temp_folder: str | None = None,
        direct: bool = False,
    ) -> WriteResult:
        """See `SFTPBackend.upload`; ``progress`` is called on the adapter's thread."""
        call = partial(
            self._backend.upload,
            create_parents=create_parents,
            channels=channels,
            resume_key=resume_key,
            digest=digest,
            keep_times=keep_times,
            mode=mode,
            temp_suffix=temp_suffix,
            temp_folder=temp_folder,
            direct=direct,
        )
        return await self._call(call, local, path, overwrite, verify=verify, progress=progress)

    @overload
    async def upload_many(
        self,
        pairs: Iterable[tuple[str | os.PathLike[str], str]],
        overwrite: bool = False,
        *,
        verify: Verify = "size",
        progress: Progress | None = None,
        create_parents: bool = True,
        channels: int | None = None,
        resume_key: str | None = None,
        digest: bool = False,
        keep_times: bool = False,
        mode: int | None = None,
        temp_suffix: str | None = None,
        temp_folder: str | None = None,
        direct: bool = False,
        return_exceptions: Literal[False] = False,
        before_rename: BeforeRename | None = None,
    ) -> list[WriteResult]: ...

    @overload
    async def upload_many(
        self,
        pairs: Iterable[tuple[str | os.PathLike[str], str]],
        overwrite: bool = False,
        *,
        verify: Verify = "size",
        progress: Progress | None = None,
        create_parents: bool = True,
        channels: int | None = None,
        resume_key: str | None = None,
        digest: bool = False,
        keep_times: bool = False,
        mode: int | None = None,
        temp_suffix: str | None = None,
        temp_folder: str | None = None,
        direct: bool = False,
        return_exceptions: bool,
        before_rename: BeforeRename | None = None,
    ) -> list[WriteResult | SFTPBackendError | OSError]: ...

    async def upload_many(
        self,
        pairs: Iterable[tuple[str | os.PathLike[str], str]],
        overwrite: bool = False,
        *,
        verify: Verify = "size",
        progress: Progress | None = None,
        create_parents: bool = True,
        channels: int | None = None,
        resume_key: str | None = None,
        digest: bool = False,
        keep_times: bool = False,
        mode: int | None = None,
        temp_suffix: str | None = None,
        temp_folder: str | None = None,
        direct: bool = False,
        return_exceptions: bool = False,
        before_rename: BeforeRename | None = None,
    ) -> list[WriteResult] | list[WriteResult | SFTPBackendError | OSError]:
        """See `SFTPBackend.upload_many`; ``progress`` is called on the adapter's thread."""
        return await self._call(
            self._backend.upload_many,
            pairs,
            overwrite,
            verify=verify,
            progress=progress,
            create_parents=create_parents,
            channels=channels,
            resume_key=resume_key,
            digest=digest,
            keep_times=keep_times,
            mode=mode,
            temp_suffix=temp_suffix,
            temp_folder=temp_folder,
            direct=direct,
            return_exceptions=return_exceptions,
            before_rename=before_rename,
        )

    async def download(
        self,
        path: str,
        local: str | os.PathLike[str],
        overwrite: bool = False,
        *,
        verify: Verify = "size",
        progress: Progress | None = None,
        resume_key: str | None = None,
        digest: bool = False,
        keep_times: bool = False,
        mode: int | None = None,
    ) -> WriteResult:
        """See `SFTPBackend.download`; ``progress`` is called on the adapter's thread."""
        call = partial(self._backend.download, resume_key=resume_key, digest=digest, keep_times=keep_times, mode=mode)
        return await self._call(call, path, local, overwrite, verify=verify, progress=progress)

    @overload
    async def download_many(
        self,
        pairs: Iterable[tuple[str, str | os.PathLike[str]]],
        overwrite: bool = False,
        *,
        verify: Verify = "size",
        progress: Progress | None = None,
        resume_key: str | None = None,
        digest: bool = False,
        keep_times: bool = False,
        mode: int | None = None,
        return_exceptions: Literal[False] = False,
        before_rename: BeforeRename | None = None,
    ) -> list[WriteResult]: ...

    @overload
    async def download_many(
        self,
        pairs: Iterable[tuple[str, str | os.PathLike[str]]],
        overwrite: bool = False,
        *,
        verify: Verify = "size",
        progress: Progress | None = None,
        resume_key: str | None = None,
        digest: bool = False,
        keep_times: bool = False,
        mode: int | None = None,
        return_exceptions: bool,
        before_rename: BeforeRename | None = None,
    ) -> list[WriteResult | SFTPBackendError | OSError]: ...

    async def download_many(
        self,
        pairs: Iterable[tuple[str, str | os.PathLike[str]]],
        overwrite: bool = False,
        *,
        verify: Verify = "size",
        progress: Progress | None = None,
        resume_key: str | None = None,
        digest: bool = False,
        keep_times: bool = False,
        mode: int | None = None,
        return_exceptions: bool = False,
        before_rename: BeforeRename | None = None,
    ) -> list[WriteResult] | list[WriteResult | SFTPBackendError | OSError]:
        """See `SFTPBackend.download_many`; ``progress`` is called on the adapter's thread."""
        return await self._call(
            self._backend.download_many,
            pairs,
            overwrite,
            verify=verify,
            progress=progress,
            resume_key=resume_key,
            digest=digest,
            keep_times=keep_times,
            mode=mode,
            return_exceptions=return_exceptions,
            before_rename=before_rename,
        )

    @overload
    async def same_samples_many(
        self, pairs: Iterable[tuple[str | os.PathLike[str], str]], *, return_exceptions: Literal[False] = False
    ) -> list[bool]: ...

    @overload
    async def same_samples_many(
        self, pairs: Iterable[tuple[str | os.PathLike[str], str]], *, return_exceptions: bool
    ) -> list[bool | SFTPBackendError | OSError]: ...

    async def same_samples_many(
        self, pairs: Iterable[tuple[str | os.PathLike[str], str]], *, return_exceptions: bool = False
    ) -> list[bool] | list[bool | SFTPBackendError | OSError]:
        """See `SFTPBackend.same_samples_many`."""
        return await self._call(self._backend.same_samples_many, pairs, return_exceptions=return_exceptions)

    async def clean_partials(self, path: str, older_than: timedelta, *, dry_run: bool = False) -> list[PartialFile]:
        """See `SFTPBackend.clean_partials`."""
        return await self._call(self._backend.clean_partials, path, older_than, dry_run=dry_run)

    async def server_time(self, path: str) -> datetime | None:
        """See `SFTPBackend.server_time`."""
        return await self._call(self._backend.server_time, path)

    async def move(self, src: str, dst: str, overwrite: bool = False) -> None:
        """See `SFTPBackend.move`."""
        await self._call(self._backend.move, src, dst, overwrite)

    @overload
    async def move_many(
        self, pairs: Iterable[tuple[str, str]], overwrite: bool = False, *, return_exceptions: Literal[False] = False
    ) -> list[None]: ...

    @overload
    async def move_many(
        self, pairs: Iterable[tuple[str, str]], overwrite: bool = False, *, return_exceptions: bool
    ) -> list[SFTPBackendError | OSError | None]: ...

    async def move_many(
        self, pairs: Iterable[tuple[str, str]], overwrite: bool = False, *, return_exceptions: bool = False
    ) -> list[None] | list[SFTPBackendError | OSError | None]:
        """See `SFTPBackend.move_many`."""
        return await self._call(self._backend.move_many, pairs, overwrite, return_exceptions=return_exceptions)

    async def copy(self, src: str, dst: str, overwrite: bool = False) -> None:
        """See `SFTPBackend.copy`."""
        await self._call(self._backend.copy, src, dst, overwrite)

    async def make_folder(self, path: str, exist_ok: bool = True) -> None:
        """See `SFTPBackend.make_folder`."""
        await self._call(self._backend.make_folder, path, exist_ok)

    async def set_mode(self, path: str, mode: int) -> None:
        """See `SFTPBackend.set_mode`."""
        await self._call(self._backend.set_mode, path, mode)

    async def set_times(self, path: str, modified_at: datetime, accessed_at: datetime | None = None) -> None:
        """See `SFTPBackend.set_times`."""
        await self._call(self._backend.set_times, path, modified_at, accessed_at)

    async def delete(self, path: str, missing_ok: bool = False) -> None:
        """See `SFTPBackend.delete`."""
        await self._call(self._backend.delete, path, missing_ok)

    @overload
    async def delete_many(
        self, paths: Iterable[str], missing_ok: bool = False, *, return_exceptions: Literal[False] = False
    ) -> list[None]: ...

    @overload
    async def delete_many(
        self, paths: Iterable[str], missing_ok: bool = False, *, return_exceptions: bool
    ) -> list[SFTPBackendError | OSError | None]: ...

    async def delete_many(
        self, paths: Iterable[str], missing_ok: bool = False, *, return_exceptions: bool = False
    ) -> list[None] | list[SFTPBackendError | OSError | None]:
        """See `SFTPBackend.delete_many`."""
        return await self._call(self._backend.delete_many, paths, missing_ok, return_exceptions=return_exceptions)

    async def delete_folder(self, path: str, recursive: bool = False, missing_ok: bool = False) -> None:
        """See `SFTPBackend.delete_folder`."""
        await self._call(self._backend.delete_folder, path, recursive, missing_ok)


class _Call:
    """One call, which may be cancelled before or while it runs."""

    cancelled = False


class _CallRunner:
    """Current call of the adapter's thread.

    Other threads may cancel it.
    """

    def __init__(self, backend: SFTPBackend) -> None:
        self._session = backend._session
        self._lock = threading.Lock()
        self._running: _Call | None = None
        self._cancels_running = False

    def run(self, call: _Call, function: Callable[[], T]) -> T:
        """Run ``function`` as ``call``.

        :raises CancelledError: if the call was cancelled between its start and this.
        """
        with self._lock:
            if call.cancelled:
                raise CancelledError
            self._running = call
        try:
            return function()
        finally:
            with self._lock:
                self._running = None
                if self._cancels_running:
                    self._cancels_running = False
                    self._session.allow_calls()

    def cancel(self, call: _Call | None = None) -> None:
        """Cancel a call, or the one that runs."""
        with self._lock:
            if call is not None:
                call.cancelled = True
            if self._running is not None and call in (None, self._running) and not self._cancels_running:
                self._cancels_running = True
                self._session.cancel_call(_CLEANUP_SECONDS)
