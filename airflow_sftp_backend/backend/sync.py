"""SFTPBackend: one short method per promise. Paths are jailed here; below, only jailed paths travel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, TypeVar, cast

from airflow_sftp_backend.backend._execution.executor import (
    Job,
    Landings,
    check_distinct,
    gathered,
    or_raise,
    put_back,
    sorted_out,
    without_result,
)
from airflow_sftp_backend.backend._execution.file_transfers import FileTransfers, check_verify
from airflow_sftp_backend.backend._execution.maintenance import Maintenance
from airflow_sftp_backend.backend._execution.open_files import AtomicWriter, RemoteFile
from airflow_sftp_backend.backend._execution.path_resolver import Door, naming
from airflow_sftp_backend.backend._files.pipelining import Content
from airflow_sftp_backend.backend._protocol.scheduler import Operation, SFTPScheduler
from airflow_sftp_backend.backend._ssh.session import Session
from airflow_sftp_backend.backend._writes.backups import delete, may_have_backups, restoring
from airflow_sftp_backend.backend._writes.group_commit import group_of
from airflow_sftp_backend.backend._writes.write_target import Landing, SoFar, Verify

from ._files import deletion, operations, tree
from ._paths import Jail, RemotePath
from ._ssh import private_keys
from ._writes import atomic_write, copy
from .config import CONFIG_KEYS, DEFAULT_PORT, BackendConfig, HostKeyPolicy, RetryPolicy, Secret, hidden_arguments
from .errors import CapabilityNotSupported, SFTPBackendError
from .models import (
    BeforeRename,
    Capability,
    FileInfo,
    FolderEntry,
    FolderInfo,
    Progress,
    ResolutionPlan,
    WriteResult,
    utc,
)

if TYPE_CHECKING:
    import paramiko

    from airflow_sftp_backend.backend._protocol.codec import Attributes

T = TypeVar("T")


class SFTPBackend(FileTransfers, Maintenance):
    """Stores files on any SSH/SFTP server, over one connection that opens with the first call.

    Keys are relative to ``base_path``. Safe to use from several threads, which take turns; a forked process and a
    pickled copy get a connection of their own. Use as a context manager, or call `close`.

    ``host`` is a name or address; ``pkey`` a ``paramiko.PKey`` or the text of a private key; ``base_path`` absolute
    or relative to the login folder; ``known_host_keys`` known_hosts lines or ``SHA256:`` fingerprints,
    ``host_keys_path`` a known_hosts file; ``timeout`` bounds each step of connecting and ``io_timeout`` silence
    afterwards, in seconds; ``connect_kwargs`` go to ``paramiko.SSHClient.connect``. ``config`` may hold
    ``known_host_keys``, ``banner_timeout``, ``auth_timeout``, ``keepalive_interval`` (seconds), ``compress``,
    ``ciphers``, ``disabled_algorithms``, ``allow_ssh_rsa_sha1``, ``proxy_command``, ``look_for_keys``,
    ``max_channels``, ``reconnect_timeout`` (seconds for which a transfer that lost its connection tries to connect
    again, 60 by default), ``max_entries``, ``max_listing_bytes``, ``max_file_bytes``.

    Raises ValueError for a wrong argument; nothing is sent before the first call. Every call may raise
    BackendUnavailable (with its kinds AuthenticationFailed and HostKeyRejected) and PermissionDenied beside what it
    names itself.
    """

    CAPABILITIES: ClassVar = frozenset(Capability) - {Capability.ATOMIC_MOVE, Capability.USER_METADATA}
    """Capabilities that every server has."""

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
        connect_kwargs = hidden_arguments(connect_kwargs or {})
        config = extras = hidden_arguments(config or {})
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
            "pkey": None if pkey is None else private_keys.check_pkey(pkey),
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
        """A backend with everything it is told in one value. With ``reconnects=False`` it connects but once: after the
        loss of its connection each call raises BackendUnavailable."""
        backend = cls.__new__(cls)
        backend._set_up(config, reconnects=reconnects)
        return backend

    def _set_up(self, config: BackendConfig, *, reconnects: bool = True) -> None:
        self.config = config
        self._door = Door(Jail(config.base_path), config.address)
        self._session = Session(config, reconnects=reconnects)
        self._landings = Landings(self._session)

    def __repr__(self) -> str:
        config: BackendConfig | None = getattr(self, "config", None)  # none where __init__ has not come to its end
        return f"<SFTPBackend {'not set up' if config is None else f'{config.address} base_path={config.base_path!r}'}>"

    def __reduce__(self) -> tuple[object, ...]:
        make = partial(SFTPBackend.from_config, reconnects=self._session.reconnects)
        return make, (private_keys.portable(self.config),)

    def __enter__(self) -> SFTPBackend:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The kind of backend: ``"sftp"``."""
        return "sftp"

    @property
    def address(self) -> str:
        """The server, as errors and logs name it: ``sftp://host:port``."""
        return self.config.address

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Capabilities that every server has: `CAPABILITIES`."""
        return self.CAPABILITIES

    @property
    def connections(self) -> int:
        """How many connections it has made so far."""
        return self._session.generation

    def resolve(self, path: str) -> ResolutionPlan:
        """Where a key leads, without asking the server. Raises InvalidPath."""
        place = self._door.at(path)
        details: dict[str, str | int] = {
            "host": self.config.host,
            "port": self.config.port,
            "base_path": self._door.jail.base_path,
        }
        return ResolutionPlan(self.name, self.name, place.key, place.native, details)

    def native_path(self, path: str) -> str:
        """The path of a key on the server. Raises InvalidPath."""
        return self._door.at(path).native

    def to_key(self, native_path: str) -> str:
        """The key of a path on the server; a relative path is a key already, unless base_path is relative too.

        Raises InvalidPath outside base_path.
        """
        with self._door.named():
            return self._door.jail.to_key(native_path)

    # -- looking ------------------------------------------------------------------------------------------------------

    def exists(self, path: str) -> bool:
        """True for a file or folder; links are followed. One round trip, none for the root."""
        place = self._door.at(path)
        return place.is_root or self._look(place) is not None

    def is_file(self, path: str) -> bool:
        """True for a file or a link to one. One round trip."""
        place = self._door.at(path)
        found = None if place.is_root else self._look(place)
        return found is not None and found.is_file

    def is_folder(self, path: str) -> bool:
        """True for a folder or a link to one. One round trip, none for the root."""
        place = self._door.at(path)
        if place.is_root:
            return True
        found = self._look(place)
        return found is not None and found.is_folder

    def get_file_info(self, path: str) -> FileInfo:
        """Size and time of a file. One round trip. Raises NotFound, InvalidPath for a folder."""
        place = self._door.at(path)
        return self._ask(place, lambda scheduler: restoring(scheduler, place, lambda: operations.info(place)))

    def get_file_info_many(
        self, paths: Iterable[str], *, return_exceptions: bool = False
    ) -> list[FileInfo | SFTPBackendError | OSError]:
        """Each as `get_file_info` gives it, in order, in one round trip. Failures as in `upload_many`."""
        places, refused = sorted_out(paths, self._door.at)
        outcomes = tree.file_infos(self._session.call, places) if places else []
        located = [self._door.located(outcome) for outcome in put_back(outcomes, refused)]
        return gathered(located, "looks", return_exceptions)

    def get_folder_info(self, path: str) -> FolderInfo:
        """Sums over all files below a folder. Raises NotFound, InvalidPath for a file."""
        place = self._door.at(path)
        with self._door.named():
            return tree.folder_info(self._session.call, place)

    def check_health(self) -> None:
        """Connects if need be and looks at base_path: one round trip. Raises NotFound, InvalidPath if it is a file."""
        self._ask(self._door.jail.root, lambda _: operations.check_folder(self._door.jail.root))

    def list_files(self, path: str, recursive: bool = False, max_depth: int | None = None) -> Iterator[FileInfo]:
        """The files in a folder, level by level with ``recursive``; ``max_depth`` 0 is this folder alone.

        A link to a file is listed as what it points to; links to folders are not entered. Empty where there is no
        such folder. ``max_depth`` is ignored without ``recursive``.
        """
        if recursive and max_depth is not None and max_depth < 0:
            raise ValueError(f"max_depth must be a number from 0, not {max_depth}")
        walk = tree.walk(self._session.call, self._door.at(path), max_depth if recursive else 0)
        return self._door.each(found.info() for found in walk if found.is_file)

    def list_folders(self, path: str) -> Iterator[FolderEntry]:
        """The folders in a folder, and links to such. Empty where there is no such folder."""
        found_here = tree.children(self._session.call, self._door.at(path))
        return self._door.each(
            FolderEntry(found.place.key, found.place.name) for found in found_here if found.is_folder
        )

    def iter_children(self, path: str) -> Iterator[FileInfo | FolderEntry]:
        """Files and folders in a folder. Empty where there is no such folder."""
        found_here = tree.children(self._session.call, self._door.at(path))
        return self._door.each(
            FolderEntry(found.place.key, found.place.name) if found.is_folder else found.info()
            for found in found_here
            if found.is_folder or found.is_file
        )

    def find(self, *patterns: str | FileInfo) -> list[FileInfo]:
        """Find the files that match any of the patterns.

        :param patterns: globs: ``*``, ``?`` and ``[...]`` within a segment, ``**`` across directories; ``glob.escape``
            makes a name a pattern of its own. A `FileInfo` means the file of exactly that path.
        :returns: the files, sorted by path; each directory is listed once, and only if it can hold a match.
        :raises InvalidPath: for ``..`` in a pattern.
        """
        with self._door.named():
            return tree.find(self._session.call, self._door.jail.root, map(tree.Pattern.of, patterns))

    def find_each(
        self, groups: Sequence[Sequence[str | FileInfo]], *, return_exceptions: bool = False
    ) -> list[list[FileInfo] | SFTPBackendError | OSError]:
        """What `find` gives for each group of patterns, with one search for all. Failures as in `upload_many`: a folder
        that is refused fails the groups that must look into it."""
        with self._door.named():
            outcomes = tree.find_each(self._session.call, self._door.jail.root, groups)
        return gathered([self._door.located(outcome) for outcome in outcomes], "searches", return_exceptions)

    def glob(self, pattern: str) -> Iterator[FileInfo]:
        """As `find`, for one pattern."""
        return iter(self.find(pattern))

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, path: str) -> BinaryIO:
        """An open file: seekable, buffered, reading ahead. Close it. Raises NotFound, InvalidPath for a folder."""
        return RemoteFile(self._session, self._door.at(path))

    def read_seekable(self, path: str) -> BinaryIO:
        """Open a file for reading at any position: `read` under the name that asks for it.

        :param path: the key of the file
        :returns: the open file: seekable, buffered, reading ahead; the caller closes it
        :raises NotFound: if nothing has the name
        :raises InvalidPath: for a folder
        """
        return self.read(path)

    def read_bytes(self, path: str) -> bytes:
        """The whole content: two round trips for a small file.

        Raises NotFound, InvalidPath for a folder, TransferCorrupted.
        """
        place = self._door.at(path)

        def use(scheduler: SFTPScheduler) -> bytes:
            pieces: list[memoryview] = []
            reading = partial(operations.read_into, scheduler, place, pieces.append)
            scheduler.run(naming(place, restoring(scheduler, place, reading)))
            return b"".join(pieces)

        return self._session.call(use, idempotent=True)

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(
        self, path: str, content: object, overwrite: bool = False, metadata: Mapping[str, str] | None = None
    ) -> WriteResult:
        """Writes ``content``, bytes-like or with ``.read``, straight to its name; parents are made.

        Two round trips for a small one.

        Who looks meanwhile sees a part of it: `write_atomic` has no such moment. Without ``overwrite`` the file is
        created exclusively; a server that is not known to honour this is asked first whether the name is taken, and
        two writers can then race. Raises AlreadyExists, InvalidPath for a folder or a file in the way, TypeError for
        other content.
        """
        place, taken = self._door.target(path), self._content(path, content, metadata)
        now = self._session.call(
            lambda scheduler: scheduler.run(operations.write(scheduler, place, taken, overwrite=overwrite))
        )
        return WriteResult(place.key, taken.size, last_modified=utc(now))

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
        before_rename: BeforeRename | None = None,
    ) -> WriteResult:
        """Writes ``content`` so that the name holds all of it or what it held before.

        Three round trips for a small one.

        ``verify`` proves it before it gets its name: ``"size"``, ``"sha256"`` (read back), or ``"none"`` for servers
        that refuse to look at what was sent. ``before_rename`` is called before that name is given. Raises
        AlreadyExists, InvalidPath for a folder or a file in the way, TransferCorrupted, TypeError for other content.
        """
        check_verify(verify)
        taken = self._content(path, content, metadata, hashed=verify == "sha256")
        landing = replace(
            self._door.landing(path, overwrite, verify),
            create_parents=create_parents, commits=group_of(before_rename),
        )  # fmt: skip

        def operation(scheduler: SFTPScheduler) -> Operation[tuple[WriteResult, int | None]]:
            now = yield from atomic_write.write_atomic(scheduler, landing, taken, progress)
            return WriteResult(landing.target.key, taken.size, digest=taken.digest, last_modified=utc(now)), now

        return or_raise(self._land([Job(landing, operation, sweeps=verify != "none")])[0])

    @contextmanager
    def open_atomic(self, path: str, overwrite: bool = False) -> Iterator[BinaryIO]:
        """A file to write to, as a context manager: what was written gets its name at the end of the block, and is
        gone if the block raises.

        Raises AlreadyExists, InvalidPath for a folder or a file in the way.
        """
        landing = self._door.landing(path, overwrite, "size")
        writer = AtomicWriter(self._session, landing)
        landed = False
        try:
            writer.open()
            yield cast(BinaryIO, writer)
            now = writer.commit()
            landed = True
            if now is not None:
                self._landings.tidy(landing.target, now)
        finally:
            if not landed:
                writer.abort()
            scheduler = writer.scheduler
            if scheduler is not None and scheduler.broken is not None and (not landed or may_have_backups(scheduler)):
                self._landings.recover([landing])
            writer.close()

    # -- changing -----------------------------------------------------------------------------------------------------

    def move(self, src: str, dst: str, overwrite: bool = False) -> None:
        """Moves a file, or a link as a link; parents of ``dst`` are made. Two round trips.

        One rename where the server allows it; between two file systems a copy and a delete. With ``overwrite=False``
        on a server whose plain rename replaces (OpenSSH's does not), two writers can race. Raises NotFound,
        AlreadyExists, InvalidPath for folders.
        """
        source, landing = self._door.changed(src), self._door.landing(dst, overwrite, "size")
        or_raise(self._exchange([(landing, partial(copy.move, source=source, landing=landing))])[0])

    def move_many(
        self, pairs: Iterable[tuple[str, str]], overwrite: bool = False, *, return_exceptions: bool = False
    ) -> list[SFTPBackendError | OSError | None]:
        """Moves many files side by side, each as `move` does; None for each pair (from, to) that was, in order.

        Failures as in `upload_many`. ValueError, before anything is sent, if two pairs have a key in common.
        """
        door = self._door
        moves, refused = sorted_out(
            pairs, lambda pair: (door.changed(pair[0]), door.landing(pair[1], overwrite, "size"))
        )
        keys = (key for source, landing in moves for key in {source.key, landing.target.key})
        check_distinct(keys, "two pairs have a file in common")
        outcomes = self._exchange(
            [(landing, partial(copy.move, source=source, landing=landing)) for source, landing in moves]
        )
        return gathered(put_back(outcomes, refused), "moves", return_exceptions)

    def copy(self, src: str, dst: str, overwrite: bool = False) -> None:
        """Copies a file on the server where it can, else through this machine; ``dst`` appears only when it is whole.

        A copy onto itself changes nothing. Raises NotFound, AlreadyExists, InvalidPath for folders.
        """
        source, landing = self._door.changed(src), self._door.landing(dst, overwrite, "size")
        so_far = SoFar()
        work = partial(copy.copy, source=source, landing=landing, so_far=so_far)
        or_raise(self._land([Job(landing, partial(without_result, work), so_far=so_far)])[0])

    def delete(self, path: str, missing_ok: bool = False) -> None:
        """Removes a file, or a link and not its target. One round trip. Raises NotFound, InvalidPath for a folder."""
        place = self._door.changed(path)
        self._session.call(
            lambda scheduler: scheduler.run(naming(place, delete(scheduler, place, missing_ok=missing_ok)))
        )

    def delete_many(
        self, paths: Iterable[str], missing_ok: bool = False, *, return_exceptions: bool = False
    ) -> list[SFTPBackendError | OSError | None]:
        """Removes many files side by side, each as `delete` does; None for each that was, in order.

        Failures as in `upload_many`.
        """
        places, refused = sorted_out(paths, self._door.changed)

        def use(scheduler: SFTPScheduler) -> list[SFTPBackendError | OSError | None]:
            return scheduler.run_many(
                naming(place, delete(scheduler, place, missing_ok=missing_ok)) for place in places
            )

        outcomes = self._session.call(use) if places else []
        outcomes = [self._door.located(outcome) for outcome in put_back(outcomes, refused)]
        return gathered(outcomes, "deletions", return_exceptions)

    def delete_folder(self, path: str, recursive: bool = False, missing_ok: bool = False) -> None:
        """Removes an empty folder, with ``recursive`` all it holds first; links are removed, never entered.

        Raises NotFound, DirectoryNotEmpty, InvalidPath for a file.
        """
        place = self._door.changed(path)
        if recursive:
            with self._door.named(place):
                tree.delete_tree(self._session.call, place, missing_ok=missing_ok)
        else:
            self._session.call(
                lambda scheduler: scheduler.run(naming(place, deletion.delete_folder(place, missing_ok=missing_ok)))
            )

    # -- the connection -----------------------------------------------------------------------------------------------

    def unwrap(self, kind: type[T]) -> T:
        """The open ``paramiko.SSHClient`` or ``paramiko.SFTPClient`` of this backend's connection, which stays its
        owner.

        Raises CapabilityNotSupported for another type.
        """
        import paramiko  # its two types are all that is needed of it here

        found: object
        if kind is paramiko.SSHClient:
            found = self._session.ssh_client()
        elif kind is paramiko.SFTPClient:
            found = self._session.sftp_client()
        else:
            raise CapabilityNotSupported(
                f"a backend is a paramiko.SSHClient or paramiko.SFTPClient inside, no {kind!r}", server=self.address
            )
        return cast(T, found)

    def abort_within(self, seconds: float) -> None:
        """Gives the call under way, its tidying up and all later calls that many seconds together. Takes no lock: fit
        for a signal handler, which then raises what is to end the call."""
        self._session.abort_within(seconds)

    def close(self) -> None:
        """Closes the connection; the next call opens one again."""
        self._landings.forget()
        self._session.close()

    # -- behind the door ----------------------------------------------------------------------------------------------

    def _content(
        self, path: str, content: object, metadata: Mapping[str, str] | None, *, hashed: bool = False
    ) -> Content:
        if metadata:
            message = "SFTP servers keep no user metadata; leave metadata out"
            raise CapabilityNotSupported(message, path=path, server=self.address)
        return Content(content, hashed=hashed)

    def _look(self, place: RemotePath) -> Attributes | None:
        return self._ask(place, lambda _: operations.look(place))

    def _ask(self, place: RemotePath, operation: Callable[[SFTPScheduler], Operation[T]]) -> T:
        return self._session.call(lambda scheduler: scheduler.run(naming(place, operation(scheduler))), idempotent=True)

    def _exchange(
        self,
        operations: Sequence[tuple[Landing, Callable[[SFTPScheduler], Operation[int | None]]]],
        sweeps: bool = False,
    ) -> list[SFTPBackendError | OSError | None]:
        return self._land([Job(landing, partial(without_result, work), sweeps) for landing, work in operations])
