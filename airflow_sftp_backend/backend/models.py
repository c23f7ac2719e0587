"""Values that the backend returns: frozen, comparable and picklable."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from datetime import UTC, datetime
from types import MappingProxyType, MemberDescriptorType
from typing import ClassVar, Literal, cast

Progress = Callable[[int], None]
"""Receives the bytes gained since the previous call; a negative number if the transfer starts over."""


@dataclass(frozen=True, slots=True)
class PreparedFile:
    """A complete and verified temporary file just before it is renamed.

    :param path: the key; the local path of a download
    :param temp: the name of the temporary file
    :param size: bytes
    :param mtime: modification time, which a rename keeps: seconds since 1970, or nanoseconds for a download; None if
        the server reports none
    :param digest: ``"sha256:<hex>"`` if computed
    """

    path: str
    temp: str
    size: int
    mtime: int | None
    digest: str | None


Verify = Literal["size", "sha256", "none"]
"""Verification of a transfer: compare the sizes, the SHA-256 digests of the content, or nothing."""

BeforeRename = Callable[[Sequence[PreparedFile]], None]
"""Receives files just before they are renamed, several at once, so that it can record them."""


class _StaysInTask:
    """Refuse to be the return value of a task.

    Airflow does not deserialize classes outside its allow list.
    """

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Field[object]]]

    def serialize(self) -> dict[str, object]:
        """Return the fields as plain values, for Airflow's page of rendered arguments.

        :returns: the fields by name
        :raises TypeError: if Airflow serializes the return value of a task; the text names the alternative
        """
        # Airflow calls this method for both purposes. Without an error, the task that reads the value would fail.
        if str(sys._getframe(1).f_globals.get("__name__")).endswith(".serde"):
            raise TypeError(
                f"a task cannot return a {type(self).__name__}: Airflow would refuse to read it back from XCom. Return"
                " plain values: SFTPBackendHook.find() gives rows, or take what you need, such as"
                " [file.path for file in files]"
            )
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class FileInfo(_StaysInTask):
    """A file on the server.

    :param path: the key, relative to ``base_path``
    :param name: the last segment of the key
    :param size: bytes
    :param modified_at: modification time in UTC; None if the server reports none
    :param mode: POSIX permission bits; None if the server reports none
    """

    path: str
    name: str
    size: int
    modified_at: datetime | None
    mode: int | None = None


_set_path, _set_name, _set_size, _set_modified_at, _set_mode = (
    cast("MemberDescriptorType", FileInfo.__dict__[attribute]).__set__
    for attribute in ("path", "name", "size", "modified_at", "mode")
)


def create_file_info(path: str, name: str, size: int, modified_at: datetime | None, mode: int | None) -> FileInfo:
    """Create a FileInfo faster than its constructor.

    :param path: as for `FileInfo`
    :param name: as for `FileInfo`
    :param size: as for `FileInfo`
    :param modified_at: as for `FileInfo`
    :param mode: as for `FileInfo`
    :returns: the file
    """
    # The constructor of a frozen dataclass looks up each attribute by its name.
    info = object.__new__(FileInfo)
    _set_path(info, path)
    _set_name(info, name)
    _set_size(info, size)
    _set_modified_at(info, modified_at)
    _set_mode(info, mode)
    return info


PartialAction = Literal["removed", "restored", "kept", "would remove", "would restore"]


@dataclass(frozen=True, slots=True)
class PartialFile:
    """Temporary file or backup of an interrupted transfer.

    It has the action that was taken.

    :param path: the key; the path of a local file
    :param size: bytes
    :param modified_at: modification time in UTC; None if the server reports none
    :param action: ``"removed"``, ``"restored"`` (a backup got the name of its missing file back), ``"kept"``,
        or, in a dry run, the action that would be taken
    :param reason: why the file was left
    """

    path: str
    size: int
    modified_at: datetime | None
    action: PartialAction
    reason: str = ""


@dataclass(frozen=True, slots=True)
class FolderEntry(_StaysInTask):
    """A directory in a listing. Entries with equal keys are equal.

    :param path: the key, relative to ``base_path``
    :param name: the last segment of the key
    :param modified_at: modification time in UTC; None if the server reports none
    :param mode: POSIX permission bits; None if the server reports none
    """

    path: str
    name: str
    modified_at: datetime | None = field(default=None, compare=False)
    mode: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class FolderInfo(_StaysInTask):
    """The totals of a directory at any depth.

    :param path: the key, relative to ``base_path``
    :param file_count: number of files
    :param total_size: bytes
    :param modified_at: latest modification time of a file in UTC; None if there is none
    """

    path: str
    file_count: int
    total_size: int
    modified_at: datetime | None


@dataclass(frozen=True, slots=True)
class WriteResult(_StaysInTask):
    """The result of a write.

    :param path: the key, relative to ``base_path``
    :param size: bytes
    :param source: always ``"native"``: the values come from the transfer itself
    :param digest: ``"sha256:<hex>"`` if computed
    :param action: ``"written"``, or ``"skipped"`` if the same file existed already
    :param last_modified: modification time in UTC of the file on the server; None if the server reports none, or
        ``verify="none"`` asked for none. Not part of comparisons.
    """

    path: str
    size: int
    source: str = "native"
    digest: str | None = None
    action: Literal["written", "skipped"] = "written"
    last_modified: datetime | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendStatistics(_StaysInTask):
    """Counters of a backend since its creation.

    :param bytes_sent: acknowledged bytes of file content, with those that were sent again
    :param bytes_received: received bytes of file content, with those that were received again or read for a comparison
    :param logins: opened connections, each with one login
    :param connection_retries: attempts to connect that followed a failed attempt
    :param resumed_transfers: files whose transfer was resumed over a new connection
    """

    bytes_sent: int = 0
    bytes_received: int = 0
    logins: int = 0
    connection_retries: int = 0
    resumed_transfers: int = 0

    def __sub__(self, earlier: BackendStatistics) -> BackendStatistics:
        """Return the counts since earlier counters of the same backend.

        :param earlier: the earlier counters
        :returns: the differences
        """
        return BackendStatistics(
            **{field.name: getattr(self, field.name) - getattr(earlier, field.name) for field in fields(self)}
        )


@dataclass(frozen=True, slots=True)
class ResolutionPlan(_StaysInTask):
    """The location of a key. No I/O.

    :param kind: ``"sftp"``
    :param backend: ``"sftp"``
    :param key: the key, relative to ``base_path``
    :param native_path: the path on the server
    :param details: read-only mapping of ``host``, ``port`` and ``base_path``
    """

    kind: str
    backend: str
    key: str
    native_path: str
    details: Mapping[str, str | int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "details", MappingProxyType(dict(self.details)))

    def __reduce__(self) -> tuple[object, ...]:
        return ResolutionPlan, (self.kind, self.backend, self.key, self.native_path, dict(self.details))

    def __hash__(self) -> int:
        return hash((self.kind, self.backend, self.key, self.native_path))


def utc(seconds: int | None) -> datetime | None:
    """Convert a time of SFTP 3.

    :param seconds: seconds since 1970, or None
    :returns: the time in UTC, or None
    """
    return datetime.fromtimestamp(seconds, UTC) if seconds else None


class Capability(enum.Enum):
    """Capabilities of a backend that hold on every server."""

    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    LIST = "list"
    MOVE = "move"
    COPY = "copy"
    ATOMIC_WRITE = "atomic_write"
    ATOMIC_MOVE = "atomic_move"
    METADATA = "metadata"
    USER_METADATA = "user_metadata"
    SEEKABLE_READ = "seekable_read"
    LAZY_READ = "lazy_read"
    GLOB = "glob"
    WRITE_RESULT_NATIVE = "write_result_native"


@dataclass(frozen=True, kw_only=True)
class ConnectionInfo:
    """Properties of a connection or of a failed attempt.

    Unknown values are blank.

    :ivar server_version: identification of the server, such as ``SSH-2.0-OpenSSH_9.2``
    :ivar key_exchange: key exchange algorithm, such as ``curve25519-sha256@libssh.org``
    :ivar host_key_type: type of the host key, such as ``ssh-ed25519``
    :ivar host_key_fingerprint: ``SHA256:`` and base64
    :ivar host_key_line: known_hosts line for the host key
    :ivar trust_reason: reason why the host key is trusted
    :ivar mac: blank if the cipher authenticates by itself
    :ivar strict_key_exchange: True if the countermeasure to Terrapin (CVE-2023-48795) is in effect
    :ivar login_methods: authentication methods of the server, if it has listed them
    :ivar login_refused: refused credentials, such as ``the password``
    :ivar login_accepted: accepted credentials
    :ivar proposed: proposed algorithms by the field names of `HostAlgorithms`
    :ivar incompatible: True if the attempt failed because there is no algorithm in common
    :ivar jump: properties of the connection to the jump host
    """

    username: str
    server_version: str
    key_exchange: str
    host_key_type: str
    host_key_fingerprint: str
    host_key_line: str
    trust_reason: str
    cipher: str
    mac: str
    compression: str
    strict_key_exchange: bool
    login_methods: tuple[str, ...]
    login_refused: tuple[str, ...]
    login_accepted: tuple[str, ...]
    logged_in: bool
    proposed: Mapping[str, tuple[str, ...]]
    incompatible: bool
    jump: ConnectionInfo | None
