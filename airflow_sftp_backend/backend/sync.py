"""Provide the backend: one short method for each promise.

Paths are confined to ``base_path`` here, and nowhere below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal, TypeVar, cast, overload

from airflow_sftp_backend.backend._execution.changes import Changes
from airflow_sftp_backend.backend._execution.executor import (
    WriteExecutor,
    WriteJob,
    check_distinct,
    merge_outcomes,
    raise_or_return,
    split_invalid,
    without_result,
)
from airflow_sftp_backend.backend._execution.file_transfers import FileTransfers, check_verify
from airflow_sftp_backend.backend._execution.maintenance import Maintenance
from airflow_sftp_backend.backend._execution.open_files import AtomicWriter, RemoteFile
from airflow_sftp_backend.backend._execution.path_resolver import PathResolver, with_path_in_errors
from airflow_sftp_backend.backend._execution.queries import Queries
from airflow_sftp_backend.backend._files.pipelining import UploadSource
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler
from airflow_sftp_backend.backend._ssh.session import Session
from airflow_sftp_backend.backend._writes.backups import with_backup_restored
from airflow_sftp_backend.backend._writes.write_state import ResumeState
from airflow_sftp_backend.backend._writes.write_target import WriteTarget

from ._files import reading, writing
from ._paths import Jail
from ._ssh import private_keys
from ._writes import atomic_write, copy, move
from .config import (
    CONFIG_KEYS,
    DEFAULT_PORT,
    BackendConfig,
    HostKeyPolicy,
    RetryPolicy,
    Secret,
    wrap_secrets,
)
from .errors import CapabilityNotSupported, SFTPBackendError, result_or_raise
from .models import BeforeRename, Capability, Progress, ResolutionPlan, Verify, WriteResult, utc

if TYPE_CHECKING:
    import paramiko


T = TypeVar("T")


class SFTPBackend(Queries, FileTransfers, Changes, Maintenance):
    """Store files on any SSH/SFTP server.

    The connection opens with the first call.

    Keys are paths relative to ``base_path``. Several threads can use a backend; their calls run one after the other. A
    forked process and a pickled copy open connections of their own. Use the backend as a context manager, or call
    `close`. Every method can raise `BackendUnavailable` (also as `AuthenticationFailed` or `HostKeyRejected`) and
    `PermissionDenied`.

    :param host: name or address of the server
    :param port: port of the SSH server
    :param username: user to log in as; the user of this process by default
    :param password: password of the user; also opens an encrypted private key
    :param pkey: a ``paramiko.PKey``, or the text of a private key
    :param base_path: directory that all keys are relative to; absolute, or relative to the login directory
    :param host_key_policy: treatment of unknown host keys, as `HostKeyPolicy` or its value
    :param known_host_keys: known_hosts lines (sshd(8)) or ``SHA256:`` fingerprints
    :param host_keys_path: a known_hosts file; ``~/.ssh/known_hosts`` by default
    :param config: further settings: ``known_host_keys``, ``banner_timeout``, ``auth_timeout``, ``keepalive_interval``,
        ``reconnect_timeout`` (all in seconds), ``compress``, ``ciphers``, ``disabled_algorithms``,
        ``allow_ssh_rsa_sha1``, ``proxy_command``, ``look_for_keys``, ``max_channels``, ``max_entries``,
        ``max_listing_bytes``, ``max_file_bytes``, ``max_rate``, ``max_sessions``, ``name_encoding`` (of the server's
        names: ``utf-8``, ``latin-1``, ``cp1252`` ...)
    :param timeout: seconds for each step of connecting
    :param connect_kwargs: further arguments of ``paramiko.SSHClient.connect``
    :param retry: policy for connecting; refused logins and host keys are never retried
    :param io_timeout: seconds that the server may be silent while replies are outstanding; None for no limit
    :raises ValueError: for a wrong argument; the constructor sends nothing
    """

    CAPABILITIES: ClassVar = frozenset(Capability) - {Capability.ATOMIC_MOVE, Capability.USER_METADATA}
    """Capabilities of every server."""

    def __init__(
        self,
        host: str,
        *,
        port: int = DEFAULT_PORT,
        username: str | None = None,
        password: str | Secret | None = None,
        pkey: paramiko.PKey | str | Secret | None = None,
        base_path: str = "/",
        host_key_policy: HostKeyPolicy | str = HostKeyPolicy.STRICT,
        known_host_keys: str | None = None,
        host_keys_path: str | None = None,
        config: Mapping[str, object] | None = None,
        timeout: float = 10,
        connect_kwargs: Mapping[str, object] | None = None,
        retry: RetryPolicy | None = None,
        io_timeout: float | None = 120.0,
    ) -> None:
        # From here on no local variable shows a secret, whichever argument is refused.
        password = None if password is None else Secret.of(password)
        pkey = Secret(pkey) if isinstance(pkey, str) else pkey
        connect_kwargs = wrap_secrets(connect_kwargs or {})
        config = extras = wrap_secrets(config or {})
        if unknown := sorted(extras.keys() - CONFIG_KEYS):
            raise ValueError(
                f"unknown names in config: {', '.join(unknown)}; it may hold {', '.join(sorted(CONFIG_KEYS))}"
            )
        inline = known_host_keys if known_host_keys is not None else extras.pop("known_host_keys", None)
        extras.pop("known_host_keys", None)
        values: dict[str, Any] = {  # the dataclass checks each of them
            **extras,
            "host": host,
            "port": port,
            "username": username,
            "password": password,
            "pkey": None if pkey is None else private_keys.load_pkey_argument(pkey),
            "base_path": base_path,
            "host_key_policy": HostKeyPolicy.parse(host_key_policy),
            "known_host_keys": inline,
            "host_keys_path": host_keys_path,
            "timeout": timeout,
            "io_timeout": io_timeout,
            "connect_kwargs": connect_kwargs,
            "retry": RetryPolicy() if retry is None else retry,
        }
        self._set_up(BackendConfig(**values))

    @classmethod
    def from_config(cls, config: BackendConfig, *, reconnects: bool = True) -> SFTPBackend:
        """Build a backend from a configuration.

        :param config: the configuration
        :param reconnects: False to connect only once: after the loss of the connection each call raises
            `BackendUnavailable`
        :returns: the backend
        """
        backend = cls.__new__(cls)
        backend._set_up(config, reconnects=reconnects)
        return backend

    def _set_up(self, config: BackendConfig, *, reconnects: bool = True) -> None:
        self.config = config
        self._resolver = PathResolver(Jail(config.base_path, config.name_encoding), config.address)
        self._session = Session(config, reconnects=reconnects)
        self._executor = WriteExecutor(self._session)

    def __repr__(self) -> str:
        config: BackendConfig | None = getattr(self, "config", None)  # absent if __init__ failed
        return f"<SFTPBackend {'not set up' if config is None else f'{config.address} base_path={config.base_path!r}'}>"

    def __reduce__(self) -> tuple[object, ...]:
        make = partial(SFTPBackend.from_config, reconnects=self._session.reconnects)
        return make, (private_keys.picklable_config(self.config),)

    def __enter__(self) -> SFTPBackend:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # -- identity ---------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Return the kind of backend: ``"sftp"``."""
        return "sftp"

    @property
    def address(self) -> str:
        """Return the server as ``sftp://host:port``."""
        return self.config.address

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Return the capabilities of every server, `CAPABILITIES`."""
        return self.CAPABILITIES

    @property
    def connections(self) -> int:
        """Return the number of connections opened so far."""
        return self._session.connection_count

    def resolve(self, path: str) -> ResolutionPlan:
        """Return the location of a key. No I/O.

        :param path: the key
        :returns: the location
        :raises InvalidPath: if the key leaves ``base_path``
        """
        remote = self._resolver.resolve(path)
        details: dict[str, str | int] = {
            "host": self.config.host,
            "port": self.config.port,
            "base_path": self._resolver.jail.base_path,
        }
        return ResolutionPlan(self.name, self.name, remote.key, remote.native, details)

    def native_path(self, path: str) -> str:
        """Return the path of a key on the server. No I/O.

        :param path: the key
        :returns: the path as it is sent to the server
        :raises InvalidPath: if the key leaves ``base_path``
        """
        return self._resolver.resolve(path).native

    def to_key(self, native_path: str) -> str:
        """Return the key of a path on the server.

        The inverse of `native_path`. No I/O.

        :param native_path: the path on the server. A relative path is a key already, unless ``base_path`` is relative.
        :returns: the key
        :raises InvalidPath: if the path is outside ``base_path``
        """
        with self._resolver.annotate_errors():
            return self._resolver.jail.to_key(native_path)

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, path: str) -> BinaryIO:
        """Open a file for reading: seekable, buffered, with read-ahead.

        The caller must close the file.

        :param path: the key of the file
        :returns: the open file. Reading raises an error, never a short read, if the connection is lost.
        :raises NotFound: if the file does not exist
        :raises InvalidPath: if the key is a directory
        """
        return RemoteFile(self._session, self._resolver.resolve(path))

    def read_seekable(self, path: str) -> BinaryIO:
        """Open a file for reading at any position. The same as `read`.

        :param path: the key of the file
        :returns: the open file
        :raises NotFound: if the file does not exist
        :raises InvalidPath: if the key is a directory
        """
        return self.read(path)

    def read_bytes(self, path: str) -> bytes:
        """Read a whole file. Two round trips for a small file.

        :param path: the key of the file
        :returns: the content
        :raises NotFound: if the file does not exist
        :raises InvalidPath: if the key is a directory
        :raises TransferCorrupted: if the size differs from the reported size
        """
        remote = self._resolver.resolve(path)

        def read_blocks(scheduler: SFTPScheduler) -> bytes:
            blocks: list[memoryview] = []
            read = partial(reading.read_into, scheduler, remote, blocks.append)
            scheduler.run(with_path_in_errors(remote, with_backup_restored(scheduler, remote, read)))
            return b"".join(blocks)

        return self._session.call(read_blocks, idempotent=True)

    def read_text(self, path: str, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Read a whole file as text. Line ends stay unchanged.

        :param path: the key of the file
        :param encoding: encoding of the content
        :param errors: treatment of bytes that are not valid in the encoding, as for ``bytes.decode``
        :returns: the text
        :raises NotFound: if the file does not exist
        :raises InvalidPath: if the key is a directory
        :raises UnicodeDecodeError: if the content is not valid in the encoding
        """
        content = self.read_bytes(path)
        try:
            return content.decode(encoding, errors)
        except UnicodeDecodeError as error:
            error.add_note(f"while reading {self._resolver.resolve(path).key!r} on {self.address}")
            raise

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(
        self, path: str, content: object, overwrite: bool = False, metadata: Mapping[str, str] | None = None
    ) -> WriteResult:
        """Write a file under its own name and create its parents.

        Two round trips for a small file.

        Other clients can see partial content; `write_atomic` prevents this. Without ``overwrite`` the file is created
        exclusively (SSH_FXF_EXCL). On a server that is not known to honour this flag, the name is examined first, and
        two writers can race.

        :param path: the key of the file
        :param content: a bytes-like object, or an object with ``read``
        :param overwrite: replace an existing file
        :param metadata: must be empty, because SFTP has no user metadata
        :returns: key, size and time of the file
        :raises AlreadyExists: if the name is taken
        :raises InvalidPath: if the key is a directory, or a parent is a file
        :raises TypeError: for any other content
        """
        remote, source = self._resolver.resolve_new(path), self._upload_source(path, content, metadata)
        mtime = self._session.call(
            lambda scheduler: scheduler.run(writing.write(scheduler, remote, source, overwrite=overwrite))
        )
        return WriteResult(remote.key, source.size, last_modified=utc(mtime))

    def write_atomic(
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
        """Write a file through a temporary file.

        The name has either the old content or all of the new content.

        Three round trips for a small file.

        :param path: the key of the file
        :param content: a bytes-like object, or an object with ``read``
        :param overwrite: replace an existing file
        :param metadata: must be empty, because SFTP has no user metadata
        :param verify: comparison before the rename: ``"size"``, ``"sha256"`` (reads the content back), or ``"none"``
            for servers that refuse to describe the file
        :param progress: called with the bytes gained since its last call; negative if the transfer starts over
        :param create_parents: create missing parent directories
        :param modified_at: time to set on the file, with a time zone, in whole seconds; None keeps the time of the
            write. If the server refuses, a warning is logged once for each connection.
        :param mode: permission bits of the file, such as ``0o640``. If the server refuses, the write fails and the key
            does not change.
        :param temp_suffix: end of the name of the unfinished file, as for `upload`
        :param temp_folder: directory for the unfinished file, as for `upload`
        :param before_rename: called when the temporary file is complete
        :returns: key, size, digest and time of the file
        :raises AlreadyExists: if the name is taken
        :raises InvalidPath: if the key is a directory, or a parent is a file
        :raises TransferCorrupted: if the comparison fails
        :raises TypeError: for any other content
        :raises ValueError: if ``modified_at`` has no time zone, or is not in the years 1970 to 2106, or if ``mode`` is
            not a number from 0 to 0o7777
        """
        check_verify(verify)
        source = self._upload_source(path, content, metadata, hashed=verify == "sha256")
        write_target = self._resolver.atomic_target(
            path, overwrite, verify, create_parents, modified_at, mode, before_rename, temp_suffix, temp_folder
        )

        def operation(scheduler: SFTPScheduler) -> Operation[tuple[WriteResult, int | None]]:
            state = ResumeState()
            mtime = yield from atomic_write.write_atomic(scheduler, write_target, source, progress, state)
            modified = utc(mtime if state.kept_mtime is None else state.kept_mtime)
            return WriteResult(write_target.path.key, source.size, digest=source.digest, last_modified=modified), mtime

        return result_or_raise(
            self._run_jobs([WriteJob(write_target, operation, cleans_directory=verify != "none")])[0]
        )

    def write_text(
        self, path: str, text: str, overwrite: bool = False, *, encoding: str = "utf-8", errors: str = "strict"
    ) -> WriteResult:
        """Write a text as `write_atomic` does. Line ends stay unchanged.

        :param path: the key of the file
        :param text: the content
        :param overwrite: replace an existing file
        :param encoding: encoding of the content
        :param errors: treatment of characters that the encoding lacks, as for ``str.encode``
        :returns: key, size and time of the file
        :raises AlreadyExists: if the name is taken
        :raises InvalidPath: if the key is a directory, or a parent is a file
        :raises TypeError: if ``text`` is not a text
        :raises UnicodeEncodeError: if the encoding lacks a character; nothing is written
        """
        if not isinstance(text, str):
            raise TypeError(f"write_text takes a text, not {type(text).__name__}; write_atomic takes bytes")
        return self.write_atomic(path, text.encode(encoding, errors), overwrite)

    @contextmanager
    def open_atomic(self, path: str, overwrite: bool = False) -> Iterator[BinaryIO]:
        """Open a file for atomic writing, as a context manager.

        The file appears under its name at the end of the block. If the block raises, the temporary file is removed.

        :param path: the key of the file
        :param overwrite: replace an existing file
        :returns: the open file
        :raises AlreadyExists: if the name is taken
        :raises InvalidPath: if the key is a directory, or a parent is a file
        """
        writer = self.create_atomic(path, overwrite)
        try:
            yield cast(BinaryIO, writer)
            writer.commit()
        finally:
            writer.discard()

    def create_atomic(
        self,
        path: str,
        overwrite: bool = False,
        *,
        verify: Verify = "size",
        create_parents: bool = True,
        modified_at: datetime | None = None,
        mode: int | None = None,
        temp_suffix: str | None = None,
        temp_folder: str | None = None,
        before_rename: BeforeRename | None = None,
    ) -> AtomicWriter:
        """Open a file for atomic writing, without a context manager.

        The caller must call ``commit`` or ``discard`` of the file. Files of several threads are written side by side.

        :param path: the key of the file
        :param overwrite: replace an existing file
        :param verify: as for `write_atomic`
        :param create_parents: create missing parent directories
        :param modified_at: as for `write_atomic`
        :param mode: as for `write_atomic`
        :param temp_suffix: as for `write_atomic`
        :param temp_folder: as for `write_atomic`
        :param before_rename: called when the temporary file is complete
        :returns: the open file, which appears under its name with ``commit``
        :raises AlreadyExists: if the name is taken
        :raises InvalidPath: if the key is a directory, or a parent is a file
        :raises ValueError: as for `write_atomic`
        """
        check_verify(verify)
        write_target = self._resolver.atomic_target(
            path, overwrite, verify, create_parents, modified_at, mode, before_rename, temp_suffix, temp_folder
        )
        return AtomicWriter(self._session, self._executor, write_target)

    # -- moves and copies ---------------------------------------------------------------------------------------------

    def move(self, src: str, dst: str, overwrite: bool = False) -> None:
        """Move a file, or a link itself.

        The parents of ``dst`` are created. Two round trips.

        The move is a rename; between two file systems it is a copy and a delete. With ``overwrite=False`` on a server
        whose plain rename replaces files (OpenSSH's does not), two writers can race.

        :param src: the key of the file
        :param dst: the new key; the same key changes nothing
        :param overwrite: replace an existing file
        :raises NotFound: if the file does not exist
        :raises AlreadyExists: if the new name is taken
        :raises InvalidPath: if a key is a directory
        """
        source, write_target = self._resolver.resolve_writable(src), self._resolver.write_target(dst, overwrite, "size")
        result_or_raise(
            self._run_moves([(write_target, partial(move.move, source=source, write_target=write_target))])[0]
        )

    @overload
    def move_many(
        self, pairs: Iterable[tuple[str, str]], overwrite: bool = False, *, return_exceptions: Literal[False] = False
    ) -> list[None]: ...

    @overload
    def move_many(
        self, pairs: Iterable[tuple[str, str]], overwrite: bool = False, *, return_exceptions: bool
    ) -> list[SFTPBackendError | OSError | None]: ...

    def move_many(
        self, pairs: Iterable[tuple[str, str]], overwrite: bool = False, *, return_exceptions: bool = False
    ) -> list[None] | list[SFTPBackendError | OSError | None]:
        """Move several files concurrently, each as `move` does. Tries all of them.

        :param pairs: source and target key of each file
        :param overwrite: replace existing files
        :param return_exceptions: put failures into the result instead of raising them
        :returns: None for each moved file, in order
        :raises ExceptionGroup: of all failures
        :raises ValueError: if two pairs share a key; nothing is moved
        """
        resolver = self._resolver
        moves, errors = split_invalid(
            pairs, lambda pair: (resolver.resolve_writable(pair[0]), resolver.write_target(pair[1], overwrite, "size"))
        )
        keys = (key for source, write_target in moves for key in {source.key, write_target.path.key})
        check_distinct(keys, "two pairs have a file in common")
        outcomes = self._run_moves(
            [
                (write_target, partial(move.move, source=source, write_target=write_target))
                for source, write_target in moves
            ]
        )
        return raise_or_return(merge_outcomes(outcomes, errors), "moves", return_exceptions)

    def copy(self, src: str, dst: str, overwrite: bool = False) -> None:
        """Copy a file atomically.

        The server copies if it can (copy-data, OpenSSH PROTOCOL), else the content passes this machine.

        :param src: the key of the file
        :param dst: the key of the copy; the same key changes nothing
        :param overwrite: replace an existing file
        :raises NotFound: if the file does not exist
        :raises AlreadyExists: if the name of the copy is taken
        :raises InvalidPath: if a key is a directory
        """
        source, write_target = self._resolver.resolve_writable(src), self._resolver.write_target(dst, overwrite, "size")
        resume_state = ResumeState()
        operation = partial(copy.copy, source=source, write_target=write_target, resume_state=resume_state)
        result_or_raise(
            self._run_jobs([WriteJob(write_target, partial(without_result, operation), resume_state=resume_state)])[0]
        )

    # -- the connection -----------------------------------------------------------------------------------------------

    def unwrap(self, kind: type[T]) -> T:
        """Return the open paramiko client of the connection.

        The backend remains its owner.

        :param kind: ``paramiko.SSHClient`` or ``paramiko.SFTPClient``
        :returns: the client
        :raises CapabilityNotSupported: for any other type
        """
        import paramiko  # a late import, because most callers do not need the types

        client: object
        if kind is paramiko.SSHClient:
            client = self._session.ssh_client()
        elif kind is paramiko.SFTPClient:
            client = self._session.sftp_client()
        else:
            raise CapabilityNotSupported(
                f"cannot unwrap {kind!r}: pass paramiko.SSHClient or paramiko.SFTPClient", server=self.address
            )
        return cast(T, client)

    def abort_within(self, seconds: float) -> None:
        """Abort the connection after a grace period.

        The period covers the current call, its clean-up and all later calls.

        Takes no lock, so that a signal handler can call it and then raise the exception that ends the call.

        :param seconds: the grace period
        """
        self._session.abort_within(seconds)

    def close(self) -> None:
        """Close the connection. The next call opens a new one."""
        self._executor.clear_cache()
        self._session.close()

    # -- internals ----------------------------------------------------------------------------------------------

    def _upload_source(
        self, path: str, content: object, metadata: Mapping[str, str] | None, *, hashed: bool = False
    ) -> UploadSource:
        if metadata:
            message = "SFTP servers keep no user metadata; leave metadata out"
            raise CapabilityNotSupported(message, path=path, server=self.address)
        return UploadSource(content, with_digest=hashed)

    def _run_moves(
        self,
        operations: Sequence[tuple[WriteTarget, Callable[[SFTPScheduler], Operation[int | None]]]],
    ) -> list[SFTPBackendError | OSError | None]:
        return self._run_jobs(
            [
                WriteJob(write_target, partial(without_result, operation), cleans_directory=False)
                for write_target, operation in operations
            ]
        )
