"""Operations, and their running over the channels of one connection.

An operation is a generator. It yields a `Request` (or a `ChannelRequest`, for a channel that is not the first), which
is posted, and is sent a `Pending`; it yields a `Pending` and is sent the reply once it is there, or has the
`StatusError` thrown into it. `request` and `request_all` are built of these two steps. While one operation waits, the
others run: `run_many` keeps many going on one channel, one round trip deep.

An interruption (KeyboardInterrupt, a signal handler's exception) is thrown into the operations at the step where they
wait; what they yield after it, their clean-up, is still run.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, Protocol, TypeVar, cast

from airflow_sftp_backend.backend._limits import DEFAULT_BOUNDS, Bounds
from airflow_sftp_backend.backend.errors import (
    BackendUnavailable,
    CapabilityNotSupported,
    SFTPBackendError,
    StatusError,
)

from .channel import Pending, SFTPChannel, SSHChannel, Waiter
from .codec import Limits, ProtocolError
from .handle_table import HandleTable
from .messages import Close, LimitsRequest, Request
from .server_traits import UNKNOWN, ServerTraits, detect_traits

T = TypeVar("T")
R = TypeVar("R")

MAX_BYTES_IN_FLIGHT: Final = 24 << 20
"""Most bytes of reads and writes in flight on a channel: less than its receive window (`session.CHANNEL_WINDOW`), so
that the server can always send what it owes and goes on reading what it is sent.
"""

MAX_PIPELINED: Final = 1024
"""Most requests of one `request_all` whose answers are owed, for the same reason."""


@dataclass(frozen=True, slots=True)
class ChannelRequest(Generic[R]):
    """A request, and the channel it is for."""

    channel: SFTPChannel
    request: Request[R]


class ChannelSource(Protocol):
    """Where channels beside the first come from."""

    def request(self, count: int) -> None:
        """Has that many opened in all, without waiting."""

    def take_opened(self) -> list[SFTPChannel]:
        """Those that have been opened since it was last asked."""


@dataclass(frozen=True, slots=True)
class TraitsQuery:
    """The question for the server's traits, which the wire answers itself."""


Yielded = Request[Any] | ChannelRequest[Any] | Pending[Any] | TraitsQuery
Operation = Generator[Yielded, Any, T]  # each step is sent the value of what it yielded


def send(request: Request[R], channel: SFTPChannel | None = None) -> Operation[Pending[R]]:
    """Posts a request, on the first channel if on no other, and goes on; waits only while too many bytes are in
    flight."""
    return cast("Pending[R]", (yield request if channel is None else ChannelRequest(channel, request)))


def reply(pending: Pending[R]) -> Operation[R]:
    """The reply to a posted request. Raises StatusError."""
    return cast(R, (yield pending))


def server_traits() -> Operation[ServerTraits]:
    """Get what the server is known to do, without a request."""
    return cast("ServerTraits", (yield TraitsQuery()))


def request(request: Request[R]) -> Operation[R]:
    """One request and its reply: one round trip. Raises StatusError."""
    return cast(R, (yield (yield request)))


def request_all(requests: Sequence[Request[R]]) -> Operation[list[R | StatusError]]:
    """Several requests sent together: one round trip up to `MAX_PIPELINED`. A refusal stands in the place of its
    reply."""
    pendings: deque[Pending[R]] = deque()
    answers: list[R | StatusError] = []
    for request in requests:
        if len(pendings) == MAX_PIPELINED:
            answers.append((yield from _reply_or_error(pendings.popleft())))
        pendings.append((yield from send(request)))
    while pendings:
        answers.append((yield from _reply_or_error(pendings.popleft())))
    return answers


def _reply_or_error(pending: Pending[R]) -> Operation[R | StatusError]:
    if pending.done:
        return pending.reply_or_error
    try:
        return (yield from reply(pending))
    except StatusError as refused:
        return refused.with_traceback(None)  # the frames in it have the answers, of which it is one


class RunningOperation(Generic[T]):
    """One operation under way, and what it is to be sent next."""

    __slots__ = ("_ready", "awaiting", "error", "index", "operation", "queued", "value")

    def __init__(self, operation: Operation[T], place: int, ready: deque[RunningOperation[T]]) -> None:
        self.operation = operation
        self.index = place
        self.value: object = None
        self.error: BaseException | None = None
        self.queued: Request[Any] | None = None
        self.awaiting: Pending[Any] | None = None
        self._ready = ready

    def wake(self, value: object = None, error: BaseException | None = None) -> None:
        """Lets it go on with a value or an exception."""
        self.value, self.error = value, error
        self.queued = self.awaiting = None
        self._ready.append(self)

    def advance(self) -> Yielded:
        """Runs it up to its next step. Raises StopIteration with its result, or what it raises."""
        value, error, self.value, self.error = self.value, self.error, None, None
        return self.operation.send(value) if error is None else self.operation.throw(error)


@dataclass(frozen=True, slots=True)
class _DeferredOpen:
    """A request to open a file that was refused while ``limit`` files were open, and may succeed with fewer."""

    channel: SFTPChannel
    pending: Pending[Any]
    error: StatusError
    limit: int
    is_last_attempt: bool = False
    """It was sent again although as many files are open: there is nothing to wait for."""


class SFTPScheduler:
    """An SFTP conversation over ``ssh_channel``. For one thread at a time; `session` sees to that.

    The channel's own timeout measures the silence; ``io_timeout``, in seconds, is what error texts call it.
    ``channel_source`` is where more channels come from, if any do; ``banner`` is the server's identification, as
    ``SSH-2.0-OpenSSH_9.2``; ``bounds`` is what the server may send; ``clock`` gives seconds, to measure the round trip.
    """

    def __init__(
        self,
        ssh_channel: SSHChannel,
        *,
        io_timeout: float | None,
        channel_source: ChannelSource | None = None,
        banner: str = "",
        bounds: Bounds = DEFAULT_BOUNDS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._main_channel = SFTPChannel(ssh_channel, io_timeout=io_timeout, clock=clock)
        self.channels = [self._main_channel]
        """The channels there are, each a channel of the same connection."""
        self._banner = banner
        self.bounds = bounds
        self.traits = UNKNOWN
        """What the server is known to do; assumed until `handshake`."""
        self.can_set_modes = True
        """False once the server has refused to set a mode, by handle and by path."""
        self.reads_small_files = False
        """The file that was opened for reading last had less than a block: so may the next, which is not asked for more
        before its size is known."""
        self.mode_warning_logged = False
        """A warning has said that modes cannot be set."""
        self._channel_source = channel_source
        self._requests_sent = 0
        self._limits: Pending[Limits] = Pending(LimitsRequest())
        self._handles_to_close: deque[bytes] = deque()
        self.broken: str | None = None
        """Why nothing more can be sent, or None."""

        self.handles = HandleTable()
        """The open handles of all channels, and how many the server bears."""
        self._running: list[Sized] = []
        self._deferred_opens: deque[_DeferredOpen] = deque()
        self._resent_opens: dict[Pending[Any], _DeferredOpen] = {}
        self._main_channel.on_handle_reply = self._on_handle_reply

    def handshake(self) -> None:
        """Agrees on version 3 (filexfer-02 section 4) and posts the question for the server's limits without waiting.

        Raises BackendUnavailable.
        """
        with self._fail_all_on_error():
            self._main_channel.handshake()
        self.traits = detect_traits(self._banner, self.extensions)
        if LimitsRequest.extension in self.extensions:
            self._send(self._main_channel, self._limits)
        else:
            self._limits.set_result(Limits(), None)

    @property
    def io_timeout(self) -> float | None:
        """Seconds of silence after which the channel gives up, as error texts call it."""
        return self._main_channel.io_timeout

    @property
    def extensions(self) -> dict[str, str]:
        """The server's extensions by name, with their data; known after `handshake`."""
        return self._main_channel.extensions

    @property
    def unexpected_text(self) -> str:
        """Text that came where a packet was expected, such as the output of a login script; empty if none did."""
        return self._main_channel.unexpected_text

    @property
    def stalled_multichannel(self) -> bool:
        """True if it stalled while it had several channels: one may be what the server bears."""
        return len(self.channels) > 1 and any(channel.stalled for channel in self.channels)

    @property
    def round_trip(self) -> float:
        """Seconds of the fastest reply so far; infinite before the first."""
        return self._main_channel.round_trip

    def request_channels(self, count: int) -> None:
        """Has more channels opened, if there are to be had, and takes up those that are."""
        if self._channel_source is not None:
            self._channel_source.request(count)
            opened = self._channel_source.take_opened()
            for channel in opened:
                channel.on_handle_reply = self._on_handle_reply
            self.channels += opened

    def limits(self) -> Operation[Limits]:
        """How large reads and writes may be, in bytes."""
        answer = yield from _reply_or_error(self._limits)
        return Limits() if isinstance(answer, StatusError) else answer

    def supports(self, request: type[Request[Any]]) -> bool:
        """True if the server announced the extension of that request."""
        return getattr(request, "extension", None) in self.extensions

    def close(self) -> None:
        """Ends the conversation."""
        if self.broken is None:
            self._fail("the connection was closed")
        for channel in self.channels:
            channel.close()

    def close_later(self, handle: bytes) -> None:
        """Closes a handle along with the next thing sent. May be called at any moment, by the garbage collector too."""
        self._handles_to_close.append(handle)

    def run(self, operation: Operation[T]) -> T:
        """Runs one operation to its end. Raises what it raises."""
        outcome = self._run_together([operation], 1, collect_errors=False)[0]
        return cast(T, outcome)

    def run_many(self, operations: Iterable[Operation[T]], limit: int = 64) -> list[T | SFTPBackendError | OSError]:
        """Runs operations side by side, at most ``limit`` at once; the outcome of each, in order.

        An SFTPBackendError or OSError of one stands in its place and the others go on. Any other exception ends all,
        after their clean-up, and is raised.
        """
        return self._run_together(operations, limit, collect_errors=True)

    def _run_together(
        self, operations: Iterable[Operation[T]], limit: int, *, collect_errors: bool
    ) -> list[T | SFTPBackendError | OSError]:
        active: dict[int, RunningOperation[T]] = {}
        self._running.append(active)
        try:
            return self._run_loop(iter(operations), active, limit, collect_errors=collect_errors)
        finally:
            self._running.pop()

    def _run_loop(
        self,
        source: Iterator[Operation[T]],
        active: dict[int, RunningOperation[T]],
        limit: int,
        *,
        collect_errors: bool,
    ) -> list[T | SFTPBackendError | OSError]:
        ready: deque[RunningOperation[T]] = deque()
        outcomes: list[T | SFTPBackendError | OSError | None] = []
        interrupted_by: BaseException | None = None
        has_room = True  # false from when as many run as may until one of them ends
        while self._handles_to_close and self.broken is None:
            self._send(self._main_channel, Pending(Close(self._handles_to_close.popleft())))
        while True:
            current: RunningOperation[T] | None = None
            try:
                if has_room:
                    has_room = False
                    while (
                        interrupted_by is None
                        and len(active) < min(limit, self.handles.limit or limit)
                        and (operation := next(source, None)) is not None
                    ):
                        run = active[len(outcomes)] = RunningOperation(operation, len(outcomes), ready)
                        outcomes.append(None)
                        run.wake()
                if ready:
                    current = ready.popleft()
                    yielded = current.advance()
                    run, current = current, None
                    self._handle_yielded(run, yielded)
                elif active:
                    self._resend_deferred()
                    if not ready:
                        self._await_replies()
                else:
                    break
            except StopIteration as end:
                assert current is not None
                outcomes[current.index] = end.value
                del active[current.index]
                has_room = True
            except BaseException as error:
                # Whatever it is, the operations that wait must hear of it and clean up before it goes on its way.
                if current is None:
                    self._fail("interrupted")
                else:
                    del active[current.index]
                    has_room = True
                if (
                    current is not None
                    and isinstance(error, SFTPBackendError | OSError)
                    and (collect_errors or interrupted_by)
                ):
                    outcomes[current.index] = error
                elif interrupted_by is None:
                    interrupted_by = error
                    for run in active.values():
                        self._interrupt(run, error, ready)
                elif error is not interrupted_by:
                    raise
        with suppress(BackendUnavailable):  # what nobody waited for, closing handles, must not wait for the next call
            self._flush()
        if interrupted_by is not None:
            raise interrupted_by
        return cast("list[T | SFTPBackendError | OSError]", outcomes)

    def _handle_yielded(self, run: RunningOperation[Any], yielded: Yielded) -> None:
        if isinstance(yielded, Pending):
            yielded.add_waiter(run)
            return
        if isinstance(yielded, TraitsQuery):
            run.wake(self.traits)
            return
        channel, request = (
            (yielded.channel, yielded.request) if isinstance(yielded, ChannelRequest) else (self._main_channel, yielded)
        )
        if (
            request.payload_size
            and channel.in_flight
            and (channel.queued or channel.in_flight + request.payload_size > MAX_BYTES_IN_FLIGHT)
        ):
            run.queued = request
            channel.queued.append(run)
        else:
            self._send_for(run, channel, request)

    def _send_for(self, run: Waiter, channel: SFTPChannel, request: Request[Any]) -> None:
        try:
            if self.broken is not None:
                raise BackendUnavailable(self.broken)
            if request.tracked and self.handles.shares_handles and not isinstance(request, Close):
                self._check_no_open_handle()
            pending = self._send(channel, Pending(request))
        except SFTPBackendError as error:
            run.wake(error=error)
        else:
            run.wake(pending)

    def _interrupt(self, run: RunningOperation[Any], error: BaseException, ready: deque[RunningOperation[T]]) -> None:
        if run in ready:  # it is about to go on, and hears of the error instead
            run.error = error
            return
        for channel in self.channels:
            if run in channel.queued:
                channel.queued.remove(run)
        if run.awaiting is not None:
            run.awaiting.detach(run)
        run.wake(error=error)

    def _send(self, channel: SFTPChannel, pending: Pending[R]) -> Pending[R]:
        pending.sequence_number = self._requests_sent
        self._requests_sent += 1
        request = pending.request
        if request.tracked:
            if isinstance(request, Close):
                self.handles.close_sent(channel, request.handle, pending.sequence_number)
            elif not self.traits.opens_many_files:
                self.handles.open_sent(pending.sequence_number, request.packet_type)
        channel.send(pending)
        if channel.has_batch:
            with self._fail_all_on_error():
                if len(self.channels) == 1:
                    channel.flush()
                else:
                    channel.flush_some()
        return pending

    def _flush(self) -> None:
        with self._fail_all_on_error():
            for channel in self.channels:
                channel.flush()

    def _await_replies(self) -> None:
        """Waits for the channel that has owed a reply longest, and takes in what has come on the others meanwhile."""
        try:
            with self._fail_all_on_error():
                waited_for = min(self.channels, key=lambda channel: channel.oldest_outstanding)
                others = [channel for channel in self.channels if channel is not waited_for]
                for channel in others:
                    channel.flush_some()
                waited_for.flush()
                waited_for.receive()
                for channel in others:
                    channel.receive_ready()
        except BackendUnavailable:
            return  # every operation has been woken with it
        for channel in self.channels:
            while channel.queued:
                request = channel.queued[0].queued
                assert request is not None
                if channel.in_flight and channel.in_flight + request.payload_size > MAX_BYTES_IN_FLIGHT:
                    break
                self._send_for(channel.queued.popleft(), channel, request)

    # -- how many files may be open -----------------------------------------------------------------------------------

    def _check_no_open_handle(self) -> None:
        """Refuse to open a file beside another one on a server that gives both the same handle."""
        if self.handles.any_open:
            raise CapabilityNotSupported(
                "another file is open on this connection, and the server gives one handle to several open files:"
                " close the other file first, or read or write it as a whole"
            )

    def _on_handle_reply(
        self, channel: SFTPChannel, pending: Pending[Any], outcome: object, error: Exception | None
    ) -> bool:
        """Account for the reply to a request that opens or closes a handle; False if it will be settled later."""
        if isinstance(pending.request, Close):
            self.handles.close_answered(channel, pending.request.handle)
            return True
        earlier = self._resent_opens.pop(pending, None)
        if error is not None:
            if not isinstance(error, StatusError) or not self._may_succeed_later(pending, error, earlier):
                return True
            self._deferred_opens.append(_DeferredOpen(channel, pending, error, max(1, self.handles.count)))
            return False
        assert isinstance(outcome, bytes)
        if not self.handles.open_succeeded(channel, outcome, pending.sequence_number, pending.request.packet_type):
            raise ProtocolError("it gives one handle to several open files")
        if pending.abandoned:
            self.close_later(outcome)
        if earlier is not None:
            self.handles.lower_limit(earlier.limit)
        kind = pending.request.packet_type
        # so many are no hindrance
        while self._deferred_opens and self.handles.count_of(kind) > self._deferred_opens[0].limit:
            self._fail_first_deferred()
        return True

    def _may_succeed_later(self, pending: Pending[Any], refused: StatusError, earlier: _DeferredOpen | None) -> bool:
        """True if a file may be refused because others are open that other operations will close."""
        likely = self.handles.may_be_open_file_limit(pending.sequence_number, refused)
        others = sum(map(len, self._running)) > 1
        final = earlier is not None and earlier.is_last_attempt
        return likely and others and not final

    def _fail_first_deferred(self) -> None:
        deferred = self._deferred_opens.popleft()
        deferred.pending.set_result(None, deferred.error)

    def _resend_deferred(self) -> None:
        """Send requests to open a file again if fewer files are open than when they were refused.

        If nothing is left to wait for, the first is sent again too: the files that are open stay open.
        """
        while self._deferred_opens:
            deferred = self._deferred_opens[0]
            if deferred.pending.abandoned:
                self._fail_first_deferred()
                continue
            idle = all(math.isinf(channel.oldest_outstanding) for channel in self.channels)
            fewer = self.handles.count + len(self._resent_opens) < deferred.limit
            if not idle and not fewer:
                return
            self._deferred_opens.popleft()
            self._resent_opens[deferred.pending] = replace(deferred, is_last_attempt=not fewer)
            with suppress(BackendUnavailable):  # every operation has been woken with it
                self._send(deferred.channel, deferred.pending)

    @contextmanager
    def _fail_all_on_error(self) -> Iterator[None]:
        """Around what channels do: where one ends, all end."""
        try:
            yield
        except BackendUnavailable as error:
            self._fail(error.message)
            raise

    def _fail(self, reason: str) -> None:
        self.broken = self.broken or next(
            (channel.broken for channel in self.channels if channel.broken is not None), reason
        )
        for channel in self.channels:
            channel.fail_all(self.broken)
        while self._deferred_opens:
            self._deferred_opens.popleft().pending.set_result(None, BackendUnavailable(self.broken))
        self._resent_opens.clear()
