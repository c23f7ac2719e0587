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

from airflow_sftp_backend.backend.errors import Code, Refused

from .codec import Kind

_REFUSALS: Final = frozenset({Code.FAILURE, Code.PERMISSION_DENIED})
"""Statuses with which servers refuse one file too many."""


@dataclass(slots=True)
class _Channel:
    """The handles of one channel.

    Those that are open, with their kind, and for the others their kind and the number of the request that closes them.
    """

    open: dict[bytes, Kind] = field(default_factory=dict)
    closing: dict[bytes, tuple[Kind, int]] = field(default_factory=dict)


@dataclass(slots=True)
class _Asked:
    """A request to open a file or folder that is not answered yet.

    ``most`` is the number of open ones of its kind, at the most, since it was sent; ``beside`` is True if anything was
    open or asked for meanwhile.
    """

    kind: Kind
    most: int
    beside: bool


class HandleTable:
    """The open handles of a connection, over all its channels.

    Requests have numbers, which grow in the order in which they are sent.

    :param limit: files that may be open at once, as an earlier connection to this server has found; None: unknown
    :param shared: an earlier connection has found that the server gives one handle to several files
    """

    def __init__(self, *, limit: int | None = None, shared: bool = False) -> None:
        self.limit = 1 if shared else limit
        """Files that the server lets be open at once; None if no limit is known."""
        self.shared = shared
        """The server gives one handle to several open files."""
        self._asked: dict[int, _Asked] = {}
        self._counts: Counter[Kind] = Counter()
        self._most: Counter[Kind] = Counter()
        self._channels: defaultdict[Hashable, _Channel] = defaultdict(_Channel)

    @property
    def count(self) -> int:
        """Files and folders that are open now; closed are those whose close was answered."""
        return self._counts.total()

    def count_of(self, kind: Kind) -> int:
        """Return how many files, or folders, are open now.

        :param kind: OPEN or OPENDIR
        :returns: their number; closed are those whose close was answered
        """
        return self._counts[kind]

    def asking(self, number: int, kind: Kind) -> None:
        """Note that a request to open a file is sent. Need not be called for a server without a limit.

        :param number: number of that request
        :param kind: OPEN or OPENDIR
        """
        for other in self._asked.values():
            other.beside = True
        self._asked[number] = _Asked(kind, self._counts[kind], beside=self.count > 0 or bool(self._asked))

    def may_be_limit(self, number: int, refused: Refused) -> bool:
        """Note a refusal, and tell whether the number of open files may be its reason.

        A server may count files only, or folders as well, and may answer other requests in between.

        :param number: number of the request that was refused
        :param refused: the refusal
        :returns: False if more were open at once before, or nothing was open, or the status has another meaning, or
            the request was not noted
        """
        asked = self._asked.pop(number, None)
        if asked is None or refused.code not in _REFUSALS:
            return False
        return asked.beside and asked.most >= self._most[asked.kind]

    def opened(self, channel: Hashable, handle: bytes, number: int, kind: Kind) -> bool:
        """Note a handle that the server has given.

        :param channel: where it was given
        :param handle: the handle
        :param number: number of the request that asked for it
        :param kind: OPEN or OPENDIR
        :returns: False if another open file has that handle
        """
        request = self._asked.pop(number, None)
        handles = self._channels[channel]
        # A request that was sent before the close was also answered before it: the handle was not free then.
        if handle in handles.open or (handle in handles.closing and handles.closing[handle][1] > number):
            self.shared = True
            self.limit = 1
            return False
        handles.open[handle] = kind
        self._counts[kind] += 1
        if request is None:
            return True
        for asked in self._asked.values():
            asked.beside = True
            asked.most = max(asked.most, self._counts[asked.kind])
        # Closes that were sent before may be done already, even if their replies come later.
        freed = sum(
            closed_kind is kind and close < number
            for other in self._channels.values()
            for closed_kind, close in other.closing.values()
        )
        self._most[kind] = max(self._most[kind], self._counts[kind] - freed)
        return True

    def closing(self, channel: Hashable, handle: bytes, number: int) -> None:
        """Note that a request to close a handle is sent.

        :param channel: where it is sent
        :param handle: the handle
        :param number: number of that request
        """
        handles = self._channels[channel]
        if handle in handles.open:
            handles.closing[handle] = handles.open.pop(handle), number

    def closed(self, channel: Hashable, handle: bytes) -> None:
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

    def learn(self, limit: int) -> None:
        """Remember a limit.

        :param limit: files that were open when a request was refused that succeeded with fewer
        """
        self.limit = limit if self.limit is None else min(self.limit, limit)
