"""The handles that are open on a connection, and how many files the server lets be open at once.

Two deviations of servers are found out here. One gives the same handle to several open files, so that what is sent to
one reaches another: then nothing more can be trusted on that connection. The other refuses to open a file while too
many are open, with a status that a file of its own would get for another reason: such a request waits until another
file is closed, and is then sent again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

from airflow_sftp_backend.backend.errors import StatusCode, StatusError

from .codec import PacketType

_LIMIT_STATUSES: Final = frozenset({StatusCode.FAILURE, StatusCode.PERMISSION_DENIED})
"""Statuses with which servers refuse one file too many."""


@dataclass(slots=True)
class _ChannelHandles:
    """The handles of one channel.

    Those that are open, with their kind, and for the others their kind and the number of the request that closes them.
    """

    open: dict[bytes, PacketType] = field(default_factory=dict)
    closing: dict[bytes, tuple[PacketType, int]] = field(default_factory=dict)


@dataclass(slots=True)
class _OpenRequest:
    """A request to open a file or folder that is not answered yet.

    ``max_open`` is the number of open ones of its kind, at the most, since it was sent; ``concurrent`` is True if
    anything was open or asked for meanwhile.
    """

    open_type: PacketType
    max_open: int
    concurrent: bool


class HandleTable:
    """The open handles of a connection, over all its channels.

    Requests have numbers, which grow in the order in which they are sent.

    :param limit: files that may be open at once, as an earlier connection to this server has found; None: unknown
    :param shares_handles: an earlier connection has found that the server gives one handle to several files
    """

    def __init__(self, *, limit: int | None = None, shares_handles: bool = False) -> None:
        self.limit = 1 if shares_handles else limit
        """Files that the server lets be open at once; None if no limit is known."""
        self.shares_handles = shares_handles
        """The server gives one handle to several open files."""
        self._open_requests: dict[int, _OpenRequest] = {}
        self._counts: Counter[PacketType] = Counter()
        self._max_open: Counter[PacketType] = Counter()
        self._channels: defaultdict[Hashable, _ChannelHandles] = defaultdict(_ChannelHandles)

    @property
    def count(self) -> int:
        """Files and folders that are open now; closed are those whose close was answered."""
        return self._counts.total()

    def count_of(self, open_type: PacketType) -> int:
        """Return how many files, or folders, are open now.

        :param open_type: OPEN or OPENDIR
        :returns: their number; closed are those whose close was answered
        """
        return self._counts[open_type]

    def open_sent(self, number: int, open_type: PacketType) -> None:
        """Note that a request to open a file is sent. Need not be called for a server without a limit.

        :param number: number of that request
        :param open_type: OPEN or OPENDIR
        """
        for other in self._open_requests.values():
            other.concurrent = True
        self._open_requests[number] = _OpenRequest(
            open_type, self._counts[open_type], concurrent=self.count > 0 or bool(self._open_requests)
        )

    def may_be_open_file_limit(self, number: int, refused: StatusError) -> bool:
        """Note a refusal, and tell whether the number of open files may be its reason.

        A server may count files only, or folders as well, and may answer other requests in between.

        :param number: number of the request that was refused
        :param refused: the refusal
        :returns: False if more were open at once before, or nothing was open, or the status has another meaning, or
            the request was not noted
        """
        request = self._open_requests.pop(number, None)
        if request is None or refused.code not in _LIMIT_STATUSES:
            return False
        return request.concurrent and request.max_open >= self._max_open[request.open_type]

    def open_succeeded(self, channel: Hashable, handle: bytes, number: int, open_type: PacketType) -> bool:
        """Note a handle that the server has given.

        :param channel: where it was given
        :param handle: the handle
        :param number: number of the request that asked for it
        :param open_type: OPEN or OPENDIR
        :returns: False if another open file has that handle
        """
        request = self._open_requests.pop(number, None)
        handles = self._channels[channel]
        # A request that was sent before the close was also answered before it: the handle was not free then.
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
        # Closes that were sent before may be done already, even if their replies come later.
        freed = sum(
            closed_type is open_type and close < number
            for other in self._channels.values()
            for closed_type, close in other.closing.values()
        )
        self._max_open[open_type] = max(self._max_open[open_type], self._counts[open_type] - freed)
        return True

    def close_sent(self, channel: Hashable, handle: bytes, number: int) -> None:
        """Note that a request to close a handle is sent.

        :param channel: where it is sent
        :param handle: the handle
        :param number: number of that request
        """
        handles = self._channels[channel]
        if handle in handles.open:
            handles.closing[handle] = handles.open.pop(handle), number

    def close_answered(self, channel: Hashable, handle: bytes) -> None:
        """Note that the server has answered a request to close a handle, whatever it said.

        :param channel: where it was sent
        :param handle: the handle
        """
        handles = self._channels[channel]
        if handle in handles.closing:
            self._counts[handles.closing.pop(handle)[0]] -= 1

    @property
    def any_open(self) -> bool:
        """True while there is a handle that no request to close it was sent for."""
        return any(handles.open for handles in self._channels.values())

    def lower_limit(self, limit: int) -> None:
        """Remember a limit.

        :param limit: files that were open when a request was refused that succeeded with fewer
        """
        self.limit = limit if self.limit is None else min(self.limit, limit)
