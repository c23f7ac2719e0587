"""Track open handles of a connection and its limit on open files.

The table detects two deviations of servers:

* The server returns the same handle for several open files, so that a request for a file reaches another file. The
  connection can then no longer be trusted.
* The server refuses to open a file while too many files are open, with a status that has other causes as well. The
  request waits until a file is closed, and is then repeated.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

from airflow_sftp_backend.backend.errors import StatusCode, StatusError

from .codec import PacketType

_LIMIT_STATUSES: Final = frozenset({StatusCode.FAILURE, StatusCode.PERMISSION_DENIED})
"""Statuses with which servers refuse to exceed their limit on open files."""


@dataclass(slots=True)
class _ChannelHandles:
    """Open and closing handles of a channel.

    ``open`` maps handles to the request type that opened them. ``closing`` adds the number of the CLOSE request.
    """

    open: dict[bytes, PacketType] = field(default_factory=dict)
    closing: dict[bytes, tuple[PacketType, int]] = field(default_factory=dict)


@dataclass(slots=True)
class _OpenRequest:
    """Unanswered request to open a file or directory.

    ``max_open`` is the maximum number of open handles of its type since the request was sent. ``concurrent`` is True
    if, meanwhile, another handle was open or requested.
    """

    open_type: PacketType
    max_open: int
    concurrent: bool


class HandleTable:
    """Open handles of a connection, over all its channels.

    Request numbers increase in the order of sending.

    :param limit: maximum number of open files found by an earlier connection to the server; None if unknown
    :param shares_handles: whether an earlier connection received the same handle for several files
    """

    def __init__(self, *, limit: int | None = None, shares_handles: bool = False) -> None:
        self.limit = 1 if shares_handles else limit
        """Maximum number of open files on the server; None if unknown."""
        self.shares_handles = shares_handles
        """True if the server returned the same handle for several open files."""
        self._open_requests: dict[int, _OpenRequest] = {}
        self._counts: Counter[PacketType] = Counter()
        self._max_open: Counter[PacketType] = Counter()
        self._channels: defaultdict[Hashable, _ChannelHandles] = defaultdict(_ChannelHandles)

    @property
    def count(self) -> int:
        """Number of open files and directories.

        A handle counts until the reply to its CLOSE.
        """
        return self._counts.total()

    def count_of(self, open_type: PacketType) -> int:
        """Return the number of open files or directories.

        A handle counts until the reply to its CLOSE.

        :param open_type: OPEN or OPENDIR
        :returns: the number of open handles
        """
        return self._counts[open_type]

    def open_sent(self, number: int, open_type: PacketType) -> None:
        """Record a sent request to open a file.

        Not called for a server that is known to open many files.

        :param number: number of the request
        :param open_type: OPEN or OPENDIR
        """
        for other in self._open_requests.values():
            other.concurrent = True
        self._open_requests[number] = _OpenRequest(
            open_type, self._counts[open_type], concurrent=self.count > 0 or bool(self._open_requests)
        )

    def may_be_open_file_limit(self, number: int, refused: StatusError) -> bool:
        """Record a refusal; return whether open files may explain it.

        :param number: number of the refused request
        :param refused: the refusal
        :returns: False if more files were open at once before, if no handle was open, for a status with another
            meaning, or for a request without a record
        """
        # Any other handle makes the request concurrent, because a server may count directories as well as files.
        request = self._open_requests.pop(number, None)
        if request is None or refused.code not in _LIMIT_STATUSES:
            return False
        return request.concurrent and request.max_open >= self._max_open[request.open_type]

    def open_succeeded(self, channel: Hashable, handle: bytes, number: int, open_type: PacketType) -> bool:
        """Record a handle returned by the server.

        :param channel: the channel of the request
        :param handle: the handle
        :param number: number of the request
        :param open_type: OPEN or OPENDIR
        :returns: False if another open file has the same handle
        """
        request = self._open_requests.pop(number, None)
        handles = self._channels[channel]
        # A request sent before the CLOSE was also answered before it, when the handle was not yet free.
        if handle in handles.open or (handle in handles.closing and handles.closing[handle][1] > number):
            self.shares_handles = True
            self.limit = 1
            return False
        handles.open[handle] = open_type
        self._counts[open_type] += 1
        if request is None:
            return True
        for other_request in self._open_requests.values():
            other_request.concurrent = True
            other_request.max_open = max(other_request.max_open, self._counts[other_request.open_type])
        # The server may have performed earlier CLOSE requests whose replies have not arrived.
        freed = sum(
            closed_type is open_type and close < number
            for other in self._channels.values()
            for closed_type, close in other.closing.values()
        )
        self._max_open[open_type] = max(self._max_open[open_type], self._counts[open_type] - freed)
        return True

    def close_sent(self, channel: Hashable, handle: bytes, number: int) -> None:
        """Record a sent request to close a handle.

        :param channel: the channel of the request
        :param handle: the handle
        :param number: number of the request
        """
        handles = self._channels[channel]
        if handle in handles.open:
            handles.closing[handle] = handles.open.pop(handle), number

    def close_answered(self, channel: Hashable, handle: bytes) -> None:
        """Record a reply to CLOSE, with any status.

        :param channel: the channel of the request
        :param handle: the handle
        """
        handles = self._channels[channel]
        if handle in handles.closing:
            self._counts[handles.closing.pop(handle)[0]] -= 1

    @property
    def any_open(self) -> bool:
        """True if a handle is open without a request to close it."""
        return any(handles.open for handles in self._channels.values())

    def lower_limit(self, limit: int) -> None:
        """Lower the limit on open files.

        :param limit: number of files that were open when a request was refused that later succeeded with fewer
        """
        self.limit = limit if self.limit is None else min(self.limit, limit)
