"""Values that come out: plain, frozen, comparable, picklable."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from datetime import UTC, datetime
from types import MappingProxyType
from typing import ClassVar, Literal

Progress = Callable[[int], None]
"""Called with the bytes a transfer has gained since the last call; negative where it had to go back."""


@dataclass(frozen=True, slots=True)
class PreparedFile:
    """A complete and verified temporary file that is about to get its final name.

    ``path`` is the key, of a download the local path; ``temp`` the name of the temporary file; ``size`` in bytes;
    ``modified`` its time, which a rename keeps: seconds since 1970 as the server tells, of a download nanoseconds, None
    where the server does not tell; ``digest`` is ``"sha256:<hex>"`` where it was computed.
    """

    path: str
    temp: str
    size: int
    modified: int | None
    digest: str | None


BeforeRename = Callable[[Sequence[PreparedFile]], None]
"""Called before files get their names, once for many: whatever it records is known even if the process is killed."""


class _StaysInTask:
    """A dataclass that tasks cannot return: Airflow reads back no classes of other packages (its allow list)."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Field[object]]]

    def serialize(self) -> dict[str, object]:
        """Give the plain values to whoever shows them, such as Airflow's page of rendered arguments.

        :raises TypeError: if Airflow asks for a task's return value, with what to return in its place.
        """
        # Both callers use this one method; without an error here only the task that reads the value would fail.
        if str(sys._getframe(1).f_globals.get("__name__")).endswith(".serde"):
            raise TypeError(
                f"a task cannot return a {type(self).__name__}: Airflow would refuse to read it back from XCom. Return"
                " plain values: SFTPBackendHook.find() gives rows, or take what you need, such as"
                " [file.path for file in files]"
            )
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class FileInfo(_StaysInTask):
    """A file. ``path`` is its key (relative to base_path), ``size`` in bytes, ``modified_at`` in UTC or None where the
    server does not say, ``mode`` its POSIX permission bits or None where the server does not say."""

    path: str
    name: str
    size: int
    modified_at: datetime | None
    mode: int | None = None


PartialAction = Literal["removed", "restored", "left", "would remove", "would restore"]


@dataclass(frozen=True, slots=True)
class PartialFile:
    """A temporary file or backup that an interrupted transfer left, and what was done with it.

    ``path`` is its key, of a local file its path; ``size`` in bytes; ``modified_at`` in UTC, None where the server does
    not tell. ``action`` is ``"removed"``, ``"restored"`` (a backup got the name of its missing file back), ``"left"``,
    or what would be done; ``reason`` says why a file was left.
    """

    path: str
    size: int
    modified_at: datetime | None
    action: PartialAction
    reason: str = ""


@dataclass(frozen=True, slots=True)
class FolderEntry(_StaysInTask):
    """A folder in a listing."""

    path: str
    name: str


@dataclass(frozen=True, slots=True)
class FolderInfo(_StaysInTask):
    """A folder with all it holds, at any depth: number of files, bytes, time (UTC) of the latest change of one."""

    path: str
    file_count: int
    total_size: int
    modified_at: datetime | None


@dataclass(frozen=True, slots=True)
class WriteResult(_StaysInTask):
    """What a write left behind: ``size`` in bytes; ``digest`` is ``"sha256:<hex>"`` where it was computed.

    ``last_modified`` is the time of the file on the server (UTC), of a download that of the source. It is not compared,
    and None where the server does not tell it or, with ``verify="none"``, is not asked. ``action`` is ``"written"``, or
    ``"skipped"`` where the same file stood there already.
    """

    path: str
    size: int
    source: str = "native"
    digest: str | None = None
    action: Literal["written", "skipped"] = "written"
    last_modified: datetime | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ResolutionPlan(_StaysInTask):
    """Where a key leads, without asking the server. ``details`` is read-only: host, port, base_path."""

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
    """Convert seconds since 1970, as servers tell times, to a time in UTC; None stays None."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


class Capability(enum.Enum):
    """What a backend can do on any server."""

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
