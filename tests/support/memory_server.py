"""Answer the requests of operations from memory, and fail at given requests."""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast

from airflow_sftp_backend import BackendUnavailable, SFTPBackendError
from airflow_sftp_backend.backend._protocol.channel import Pending
from airflow_sftp_backend.backend._protocol.codec import (
    Attributes,
    DirEntry,
    OpenFlag,
    ServerLimits,
    encode_name,
    encode_string,
)
from airflow_sftp_backend.backend._protocol.directory_reply import DirectoryReply, read_entries
from airflow_sftp_backend.backend._protocol.messages import (
    Close,
    CopyData,
    FSetStat,
    FStat,
    LStat,
    MakeDir,
    Open,
    OpenDir,
    PosixRename,
    Read,
    ReadDir,
    ReadLink,
    Remove,
    RemoveDir,
    Rename,
    Request,
    SetStat,
    Stat,
    Write,
)
from airflow_sftp_backend.backend._protocol.scheduler import ChannelRequest, Operation, SFTPScheduler, TraitsQuery
from airflow_sftp_backend.backend._protocol.server_traits import OPENSSH, ServerTraits
from airflow_sftp_backend.backend._receive_limits import LimitExceeded
from airflow_sftp_backend.backend.errors import StatusCode, StatusError

T = TypeVar("T")

Failure = Literal["failure", "denied", "missing", "lost before", "lost after"]
FAILURES: tuple[Failure, ...] = ("failure", "denied", "missing", "lost before", "lost after")
_CODES = {"failure": StatusCode.FAILURE, "denied": StatusCode.PERMISSION_DENIED, "missing": StatusCode.NO_SUCH_FILE}


def directory_reply(entries: Iterable[DirEntry]) -> DirectoryReply:
    """Return the reply to READDIR with some entries, decoded from its packet."""
    packets = [
        encode_string(encode_name(entry.name)) + encode_string(b"") + entry.attributes.encode() for entry in entries
    ]
    return read_entries(memoryview(b"".join(packets)), len(packets))


@dataclass
class File:
    """A file's content and mode bits."""

    content: bytearray
    mode: int = 0o644


@dataclass(frozen=True)
class Renames:
    """Define how a server renames onto an existing name.

    Behaviour of a server's renames: ``posix`` and ``plain`` with a taken name ("no": there is no posix-rename), and
    whether they work between the folders of the top level.
    """

    posix: Literal["replaces", "refuses", "no"] = "replaces"
    plain: Literal["replaces", "refuses"] = "refuses"
    across: bool = True


class _NoChannel:
    def send(self, data: bytes | memoryview, /) -> int:
        raise NotImplementedError

    def recv(self, count: int, /) -> bytes:
        raise NotImplementedError

    def send_ready(self) -> bool:
        raise NotImplementedError

    def recv_ready(self) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to close."""


class MemoryServer(SFTPScheduler):
    """Files and folders by absolute path, and the scheduler over them.

    The requests numbered ``fail_at`` (from 1) fail as ``failure`` says: refused, or the connection is lost before or
    after it was carried out. ``after`` is called after each request. ``traits`` are what the client holds of it.
    """

    def __init__(
        self,
        files: dict[str, bytes | None],
        *,
        renames: Renames = Renames(),
        copies: bool = False,
        block: int = 4,
        fail_at: Collection[int] = (),
        failure: Failure = "failure",
        after: Callable[[MemoryServer], None] | None = None,
        traits: ServerTraits = OPENSSH,
    ) -> None:
        super().__init__(_NoChannel(), io_timeout=None)
        replaces = traits.posix_rename_replaces and renames.posix == "replaces"
        self.traits = replace(traits, posix_rename_replaces=replaces)
        self.files: dict[str, File | None] = {"/": None}
        for path, content in files.items():
            self.files[path] = None if content is None else File(bytearray(content))
        self.requests: list[Request[Any]] = []
        self.open: dict[bytes, File | list[DirEntry]] = {}
        self._renames = renames
        self._copies = copies
        self._block = block
        self._fail_at = fail_at
        self._failure = failure
        self._after = after
        self._fault: AssertionError | None = None

    def content(self) -> dict[str, bytes]:
        """Return the content of the files."""
        return {path: bytes(file.content) for path, file in self.files.items() if file is not None}

    def reconnect(self, fail_at: Collection[int] = ()) -> None:
        """Fail at the requests with these numbers, counted overall."""
        self.failure, self._fail_at = None, fail_at
        self.open.clear()

    # -- the scheduler ------------------------------------------------------------------------------------------------

    def server_limits(self) -> Operation[ServerLimits]:
        """``block`` bytes both ways."""
        yield from ()
        return ServerLimits(self._block, self._block)

    def supports(self, request: type[Request[Any]]) -> bool:
        """posix-rename and copy-data, as set."""
        return (request is PosixRename and self._renames.posix != "no") or (request is CopyData and self._copies)

    def run(self, operation: Operation[T]) -> T:
        """Runs it, each request carried out when it is posted.

        Raises what it raises, or first what ``after`` did.
        """
        try:
            return self._driven(operation)
        finally:
            fault, self._fault = self._fault, None
            if fault is not None:
                raise fault

    def run_many(self, operations: Iterable[Operation[T]], limit: int = 64) -> list[T | SFTPBackendError | OSError]:
        """Runs them one after another; what one raises stands in its place."""
        outcomes: list[T | SFTPBackendError | OSError] = []
        for operation in operations:
            try:
                outcomes.append(self.run(operation))
            except (SFTPBackendError, OSError) as error:
                outcomes.append(error)
        return outcomes

    def _driven(self, operation: Operation[T]) -> T:
        ticket = _Ticket()
        while True:
            value, error, ticket.value, ticket.error = ticket.value, ticket.error, None, None
            try:
                step = operation.send(value) if error is None else operation.throw(error)
            except StopIteration as end:
                return cast(T, end.value)
            if isinstance(step, Pending):
                step.add_waiter(cast(Any, ticket))
            elif isinstance(step, TraitsQuery):
                ticket.value = self.traits
            elif self.failure is not None:
                ticket.error = BackendUnavailable(self.failure)
            else:
                ticket.value = self._posted(step.request if isinstance(step, ChannelRequest) else step)

    def _posted(self, request: Request[Any]) -> Pending[Any]:
        pending: Pending[Any] = Pending(request)
        self.requests.append(request)
        failure = self._failure if len(self.requests) in self._fail_at else None
        try:
            if failure in _CODES:
                if isinstance(request, Close):  # refused or not, the handle is free, as after close(2)
                    self.carry_out(request)
                raise StatusError(_CODES[failure], "refused by the test")
            answer = None if failure == "lost before" else self.carry_out(request)
            if failure is not None:
                self.failure = "the connection was lost"
                pending.set_result(None, BackendUnavailable(self.failure))
            else:
                pending.set_result(answer, None)
        except (StatusError, LimitExceeded) as refused:
            pending.set_result(None, refused)
        if self._after is not None:
            try:
                self._after(self)
            except AssertionError as fault:  # raised when the operation is over: it has clean-up to do
                self._fault = self._fault or fault
        return pending

    # -- the requests -------------------------------------------------------------------------------------------------

    def carry_out(self, request: Request[Any]) -> object:
        """The answer to a request. Raises Refused."""
        if isinstance(request, Open):
            return self._handle(self._opened(request))
        if isinstance(request, OpenDir):
            return self._handle([DirEntry(name, _attributes(node)) for name, node in self._children(request.path)])
        if isinstance(request, Close):
            del self.open[request.handle]
            return None
        if isinstance(request, Stat | LStat):
            return _attributes(self._at(request.path))
        if isinstance(request, ReadLink):
            raise StatusError(
                StatusCode.FAILURE if request.path in self.files else StatusCode.NO_SUCH_FILE, "it has no links"
            )
        if isinstance(request, SetStat):
            file = self._at(request.path)
            assert file is not None
            assert request.attributes.mode is not None
            file.mode = request.attributes.mode
            return None
        if isinstance(request, MakeDir):
            return self._made(request.path)
        if isinstance(request, Remove | RemoveDir):
            return self._removed(request)
        if isinstance(request, Rename | PosixRename):
            return self._renamed(request)
        return self._of_handle(request)

    def _of_handle(self, request: Request[Any]) -> object:
        if isinstance(request, ReadDir):
            entries = self.open[request.handle]
            assert isinstance(entries, list)
            self.open[request.handle] = []
            if request.tally is not None:
                request.tally.add_reply(len(entries), 0)
            return directory_reply(entries)
        if isinstance(request, CopyData):
            source, target = self._file(request.source), self._file(request.target)
            piece = source.content[request.source_offset :][: request.length or None]  # 0 means to the end
            target.content[request.target_offset :] = piece
            return None
        assert isinstance(request, Read | Write | FStat | FSetStat)
        file = self._file(request.handle)
        if isinstance(request, Read):
            return memoryview(bytes(file.content[request.offset : request.offset + request.length]))
        if isinstance(request, Write):
            file.content[request.offset : request.offset + len(request.data)] = request.data
            return None
        if isinstance(request, FSetStat):
            assert request.attributes.mode is not None
            file.mode = request.attributes.mode
            return None
        return _attributes(file)

    def _file(self, handle: bytes) -> File:
        file = self.open[handle]
        assert isinstance(file, File)
        return file

    def _handle(self, opened: File | list[DirEntry]) -> bytes:
        handle = f"{len(self.requests)}".encode()
        self.open[handle] = opened
        return handle

    def _at(self, path: str) -> File | None:
        if path not in self.files:
            raise StatusError(StatusCode.NO_SUCH_FILE)
        return self.files[path]

    def _children(self, path: str) -> list[tuple[str, File | None]]:
        if self._at(path) is not None:
            raise StatusError(StatusCode.FAILURE)
        prefix = path.rstrip("/") + "/"
        return [
            (name.removeprefix(prefix), node)
            for name, node in self.files.items()
            if name.startswith(prefix) and name != "/" and "/" not in name.removeprefix(prefix)
        ]

    def _parent_of(self, path: str) -> None:
        parent = path.rpartition("/")[0] or "/"
        if self.files.get(parent, ...) is not None:
            raise StatusError(StatusCode.NO_SUCH_FILE)

    def _opened(self, request: Open) -> File:
        self._parent_of(request.path)
        if request.path in self.files:
            node = self.files[request.path]
            if node is None or request.flags & OpenFlag.EXCLUSIVE:
                raise StatusError(StatusCode.FAILURE)
            if request.flags & OpenFlag.TRUNCATE:
                node.content.clear()
            return node
        if not request.flags & OpenFlag.CREATE:
            raise StatusError(StatusCode.NO_SUCH_FILE)
        made = self.files[request.path] = File(bytearray())
        return made

    def _made(self, path: str) -> object:
        self._parent_of(path)
        if path in self.files:
            raise StatusError(StatusCode.FAILURE)
        self.files[path] = None
        return None

    def _removed(self, request: Remove | RemoveDir) -> object:
        node = self._at(request.path)
        if isinstance(request, Remove) == (node is None) or (node is None and self._children(request.path)):
            raise StatusError(StatusCode.FAILURE)
        del self.files[request.path]
        return None

    def _renamed(self, request: Rename | PosixRename) -> object:
        node = self._at(request.source)
        self._parent_of(request.target)
        manner = self._renames.plain if isinstance(request, Rename) else self._renames.posix
        if not self._renames.across and request.source.split("/")[1] != request.target.split("/")[1]:
            raise StatusError(StatusCode.FAILURE, "cross-device link")
        if request.target in self.files and (manner == "refuses" or self.files[request.target] is None):
            raise StatusError(StatusCode.FAILURE)
        self.files[request.target] = node
        del self.files[request.source]
        return None


@dataclass
class _Ticket:
    """Value or error for the next step of an operation."""

    value: object = None
    error: BaseException | None = None

    def wake(self, value: object = None, error: BaseException | None = None) -> None:
        """Notes it."""
        self.value, self.error = value, error


def _attributes(node: File | None) -> Attributes:
    if node is None:
        return Attributes(mode=stat.S_IFDIR | 0o755, atime=1_000_000, mtime=1_000_000)
    return Attributes(len(node.content), 0, 0, stat.S_IFREG | node.mode, 1_000_000, 1_000_000)
