"""Define the steps of an operation.

An operation is a generator without a socket.

* After ``yield`` of a `Request`, or of a `ChannelRequest` for a channel other than the first, the scheduler sends the
  request and returns a `Pending`.
* After ``yield`` of a `Pending`, the scheduler returns the reply sent by the server, or throws a `StatusError`.

`request` and `request_all` combine the two steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, cast

from airflow_sftp_backend.backend.errors import StatusError

from .channel import Pending, SFTPChannel
from .messages import Request
from .server_traits import ServerTraits

T = TypeVar("T")
R = TypeVar("R")

MAX_PIPELINED: Final = 1024
"""Maximum requests of one `request_all` without a reply, so that the replies fit into the channel's receive window."""


@dataclass(frozen=True, slots=True)
class ChannelRequest(Generic[R]):
    """Pair a request with its channel."""

    channel: SFTPChannel
    request: Request[R]


@dataclass(frozen=True, slots=True)
class TraitsQuery:
    """Ask the scheduler for the server's traits; no request is sent."""


Yielded = Request[Any] | ChannelRequest[Any] | Pending[Any] | TraitsQuery
Operation = Generator[Yielded, Any, T]  # each yield returns the value of the yielded step


def send(request: Request[R], channel: SFTPChannel | None = None) -> Operation[Pending[R]]:
    """Send a request; wait only for the limits on content.

    :param request: the request
    :param channel: its channel; None for the first
    :returns: the pending reply, for `reply`
    """
    return cast("Pending[R]", (yield request if channel is None else ChannelRequest(channel, request)))


def reply(pending: Pending[R]) -> Operation[R]:
    """Wait for the reply to a sent request. Raises StatusError."""
    return cast(R, (yield pending))


def server_traits() -> Operation[ServerTraits]:
    """Return the known traits of the server, without a request."""
    return cast("ServerTraits", (yield TraitsQuery()))


def request(request: Request[R]) -> Operation[R]:
    """Send a request and wait for its reply. Raises StatusError."""
    return cast(R, (yield (yield request)))


def request_all(requests: Sequence[Request[R]]) -> Operation[list[R | StatusError]]:
    """Send several requests together and wait for their replies.

    Up to `MAX_PIPELINED` requests take a single round trip.

    :param requests: the requests
    :returns: the replies in the order of the requests; for a refused request, its StatusError
    """
    pendings: deque[Pending[R]] = deque()
    answers: list[R | StatusError] = []
    for request in requests:
        if len(pendings) == MAX_PIPELINED:
            answers.append((yield from reply_or_error_of(pendings.popleft())))
        pendings.append((yield from send(request)))
    while pendings:
        answers.append((yield from reply_or_error_of(pendings.popleft())))
    return answers


def reply_or_error_of(pending: Pending[R]) -> Operation[R | StatusError]:
    if pending.done:
        # without a yield, which costs a pass through the loop
        return pending.reply_or_error
    try:
        return (yield from reply(pending))
    except StatusError as refused:
        return refused.with_traceback(None)  # its frames reference the answers, which contain the error: a cycle
