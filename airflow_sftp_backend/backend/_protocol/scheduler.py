"""Run operations over the channels of a connection.

While an operation waits, others run: `run_many` pipelines the requests of many operations, so a single round trip
serves all of them.

An interruption (KeyboardInterrupt, the exception of a signal handler) is thrown into every waiting operation. An
operation may then yield further requests to clean up; these are still sent.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, TypeVar, cast

from airflow_sftp_backend.backend._receive_limits import DEFAULT_RECEIVE_LIMITS, ReceiveLimits
from airflow_sftp_backend.backend.errors import (
    BackendUnavailable,
    CapabilityNotSupported,
    SFTPBackendError,
    StatusError,
)

from .channel import ChannelSource, Pending, SFTPChannel, SSHChannel, Waiter
from .codec import ProtocolError, ServerLimits
from .handle_table import HandleTable
from .messages import Close, LimitsRequest, Request
from .name_encoding import NameEncoding
from .operation import (
    MAX_PIPELINED,
    ChannelRequest,
    Operation,
    TraitsQuery,
    Yielded,
    reply,
    reply_or_error_of,
    request,
    request_all,
    send,
    server_traits,
)
from .server_traits import UNKNOWN, detect_traits
from .traffic import TrafficMeter

__all__ = [
    "MAX_BYTES_IN_FLIGHT",
    "MAX_PIPELINED",
    "ChannelRequest",
    "Operation",
    "SFTPScheduler",
    "TraitsQuery",
    "reply",
    "request",
    "request_all",
    "send",
    "server_traits",
]

T = TypeVar("T")
R = TypeVar("R")

MAX_BYTES_IN_FLIGHT: Final = 24 << 20
"""Maximum bytes of reads and writes in flight on a channel.

Below the channel's receive window (`session.CHANNEL_WINDOW`): the server can always send its replies, and so continues
to read requests.
"""


class RunningOperation(Generic[T]):
    """State of a running operation."""

    __slots__ = ("_ready", "awaiting", "error", "index", "operation", "queued", "value")

    def __init__(self, operation: Operation[T], index: int, ready: deque[RunningOperation[T]]) -> None:
        self.operation = operation
        self.index = index
        self.value: object = None
        self.error: BaseException | None = None
        self.queued: Request[Any] | None = None
        self.awaiting: Pending[Any] | None = None
        self._ready = ready

    def wake(self, value: object = None, error: BaseException | None = None) -> None:
        """Schedule the operation's next step with a value or an exception."""
        self.value, self.error = value, error
        self.queued = self.awaiting = None
        self._ready.append(self)

    def advance(self) -> Yielded:
        """Run the operation up to its next yield."""
        value, error, self.value, self.error = self.value, self.error, None, None
        try:
            return self.operation.send(value) if error is None else self.operation.throw(error)
        finally:
            # Python 3.12 and 3.13 keep this frame with those of the traceback: the variable would make a cycle.
            error = None


@dataclass(slots=True)
class _OperationGroup(Generic[T]):
    """Operations of a call of `SFTPScheduler.run_many`, with their outcomes in order."""

    source: Iterator[Operation[T]]
    limit: int
    """Maximum number of running operations."""
    collect_errors: bool
    """Whether an SFTPBackendError or OSError becomes the outcome of its operation and the others continue."""
    active: dict[int, RunningOperation[T]] = field(default_factory=dict)
    ready: deque[RunningOperation[T]] = field(default_factory=deque)
    outcomes: list[T | SFTPBackendError | OSError | None] = field(default_factory=list)
    can_start: bool = True
    """False while the maximum of operations runs, or after the last has started."""
    interrupted_by: BaseException | None = None

    def remove(self, run: RunningOperation[T]) -> None:
        """Remove a finished operation."""
        del self.active[run.index]
        self.can_start = True


@dataclass(frozen=True, slots=True)
class _DeferredOpen:
    """Refused open, which may succeed with fewer than ``limit`` open files."""

    channel: SFTPChannel
    pending: Pending[Any]
    error: StatusError
    limit: int
    is_last_attempt: bool = False
    """True if the request was repeated without fewer open files, because no operation could close any."""


class SFTPScheduler:
    """Schedule the operations of a connection. Not thread-safe: `session` serializes.

    :param ssh_channel: the first channel; its timeout limits the silence of the server
    :param io_timeout: the channel's timeout in seconds, for error texts
    :param channel_source: source of further channels, or None
    :param banner: the server's identification, such as ``SSH-2.0-OpenSSH_9.2``
    :param receive_limits: limits on the data sent by the server
    :param clock: returns seconds, to measure the round trip
    :param name_encoding: converts the names of files; None for UTF-8
    """

    def __init__(
        self,
        ssh_channel: SSHChannel,
        *,
        io_timeout: float | None,
        channel_source: ChannelSource | None = None,
        banner: str = "",
        receive_limits: ReceiveLimits = DEFAULT_RECEIVE_LIMITS,
        clock: Callable[[], float] = time.perf_counter,
        name_encoding: NameEncoding | None = None,
    ) -> None:
        self._main_channel = SFTPChannel(ssh_channel, io_timeout=io_timeout, clock=clock, name_encoding=name_encoding)
        self.channels = [self._main_channel]
        """The open channels, all of the same connection; the main channel is the first."""
        self._banner = banner
        self.receive_limits = receive_limits
        self.traits = UNKNOWN
        """Known traits of the server; defaults until `handshake`."""
        self.can_set_modes = True
        """False after the server has refused to set a mode, both by handle and by path."""
        self.reads_small_files = False
        """True if the last file opened for reading was smaller than a block: the next file may be small too."""
        self.mode_warning_logged = False
        """Whether a warning was logged that modes cannot be set."""
        self.can_set_times = True
        """False after the server has refused to set a time."""
        self.time_warning_logged = False
        """Whether a warning was logged that times cannot be set."""
        self._channel_source = channel_source
        self._requests_sent = 0
        self._server_limits: Pending[ServerLimits] = Pending(LimitsRequest())
        self._handles_to_close: deque[bytes] = deque()
        self.failure: str | None = None
        """Reason why requests can no longer be sent, or None."""

        self.handles = HandleTable()
        """The open handles of all channels, and the server's limit on open files."""
        self._running: list[Sized] = []
        self._deferred_opens: deque[_DeferredOpen] = deque()
        self._resent_opens: dict[Pending[Any], _DeferredOpen] = {}
        self._main_channel.on_handle_reply = self._on_handle_reply
        self._is_pausing = False
        self.traffic = self._main_channel.traffic
        """Counts the content of reads and writes on all channels, and limits their rate."""

    def use_traffic(self, traffic: TrafficMeter) -> None:
        """Continue the counters and the rate limit of earlier connections."""
        self.traffic = traffic
        for channel in self.channels:
            channel.traffic = traffic

    def handshake(self) -> None:
        """Negotiate version 3 (filexfer-02 section 4), request the limits. Raises BackendUnavailable."""
        with self._fail_all_on_error():
            self._main_channel.handshake()
        self.traits = detect_traits(self._banner, self.extensions)
        if LimitsRequest.extension in self.extensions:
            self._send(self._main_channel, self._server_limits)
        else:
            self._server_limits.set_result(ServerLimits(), None)

    @property
    def io_timeout(self) -> float | None:
        """Seconds of silence after which a channel fails, for error texts."""
        return self._main_channel.io_timeout

    @property
    def extensions(self) -> dict[str, str]:
        """The server's extensions by name, with their data; set by `handshake`."""
        return self._main_channel.extensions

    @property
    def unexpected_text(self) -> str:
        """Text received in place of a packet; otherwise empty."""
        # A login script with output is the usual source
        return self._main_channel.unexpected_text

    @property
    def stalled_multichannel(self) -> bool:
        """True if a reply timed out with several open channels."""
        # The server may support only a single channel
        return len(self.channels) > 1 and any(channel.stalled for channel in self.channels)

    @property
    def round_trip(self) -> float:
        """Seconds of the fastest reply so far; infinite before the first."""
        return self._main_channel.round_trip

    def request_channels(self, count: int) -> None:
        """Request channels up to ``count`` in all; add opened channels."""
        if self._channel_source is not None:
            self._channel_source.request(count)
            opened = self._channel_source.take_opened()
            for channel in opened:
                channel.on_handle_reply = self._on_handle_reply
                channel.traffic = self.traffic
            self.channels += opened

    def server_limits(self) -> Operation[ServerLimits]:
        """Return the maximum sizes of reads and writes, in bytes."""
        answer = yield from reply_or_error_of(self._server_limits)
        limits = ServerLimits() if isinstance(answer, StatusError) else answer
        most = self.traffic.max_block
        return limits if math.isinf(most) else ServerLimits(int(min(limits.read, most)), int(min(limits.write, most)))

    def supports(self, request: type[Request[Any]]) -> bool:
        """Return whether the server announced the extension of a request type."""
        return getattr(request, "extension", None) in self.extensions

    def close(self) -> None:
        """Close all channels."""
        if self.failure is None:
            self._fail("the connection was closed")
        for channel in self.channels:
            channel.close()

    def close_later(self, handle: bytes) -> None:
        """Close a handle with the next request sent."""
        # Safe at any moment, also in the garbage collector
        self._handles_to_close.append(handle)

    def run(self, operation: Operation[T]) -> T:
        """Run an operation; return its result or raise its error."""
        outcome = self._run_together([operation], 1, collect_errors=False)[0]
        return cast(T, outcome)

    def run_many(self, operations: Iterable[Operation[T]], limit: int = 64) -> list[T | SFTPBackendError | OSError]:
        """Run operations side by side.

        An SFTPBackendError or OSError does not stop other operations. Any other exception interrupts all operations and
        is raised after their clean-up.

        :param operations: the operations; created one by one, as running operations end
        :param limit: maximum number of running operations
        :returns: the results or errors, in the order of the operations
        """
        return self._run_together(operations, limit, collect_errors=True)

    def _run_together(
        self, operations: Iterable[Operation[T]], limit: int, *, collect_errors: bool
    ) -> list[T | SFTPBackendError | OSError]:
        group = _OperationGroup(iter(operations), limit, collect_errors)
        self._running.append(group.active)
        try:
            return self._run_group(group)
        finally:
            self._running.pop()

    def _run_group(self, group: _OperationGroup[T]) -> list[T | SFTPBackendError | OSError]:
        ready = group.ready
        while self._handles_to_close and self.failure is None:
            self._send(self._main_channel, Pending(Close(self._handles_to_close.popleft())))
        while True:
            current: RunningOperation[T] | None = None
            try:
                if group.can_start:
                    self._start_operations(group)
                if ready:
                    current = ready.popleft()
                    yielded = current.advance()
                    # an error from here on is the scheduler's, not the operation's
                    run, current = current, None
                    self._handle_yielded(run, yielded)
                    del yielded  # a reply that becomes an error whose traceback can reference this frame: a cycle
                elif group.active:
                    self._wake_waiting(ready)
                else:
                    break
            except StopIteration as end:
                assert current is not None
                group.remove(current)
                group.outcomes[current.index] = end.value
            except BaseException as error:
                # Whatever the error: waiting operations must receive it and clean up before it is raised.
                if not self._handle_error(group, current, error):
                    raise
        with suppress(BackendUnavailable):  # CLOSE, which no operation waits for, must not wait for the next call
            self._flush()
        if group.interrupted_by is not None:
            raise group.interrupted_by
        return cast("list[T | SFTPBackendError | OSError]", group.outcomes)

    def _wake_waiting(self, ready: deque[RunningOperation[T]]) -> None:
        """Repeat refused opens; wait if no operation is ready then."""
        self._resend_deferred()
        if not ready:
            if self._is_idle and (queued := [channel for channel in self.channels if channel.queued]):
                self._is_pausing = True
                self.traffic.pause()
                self._is_pausing = False
                # also after a pause that ended early: the session is aborted, and sending reports the reason
                self._send_first_queued(queued[0])
                self._send_queued()
            else:
                self._await_replies()

    def _start_operations(self, group: _OperationGroup[T]) -> None:
        """Start operations of a group up to its limits."""
        # One limit is that of the server on open files
        group.can_start = False
        limit = min(group.limit, self.handles.limit or group.limit)
        while (
            group.interrupted_by is None
            and len(group.active) < limit
            and (operation := next(group.source, None)) is not None
        ):
            index = len(group.outcomes)
            run = group.active[index] = RunningOperation(operation, index, group.ready)
            group.outcomes.append(None)
            run.wake()

    def _handle_error(
        self, group: _OperationGroup[T], failed: RunningOperation[T] | None, error: BaseException
    ) -> bool:
        """Store an error as its operation's outcome, or interrupt the group.

        :param group: the running operations
        :param failed: the operation that raised ``error``; None for the scheduler
        :param error: the error
        :returns: False if another error has already interrupted the group
        """
        if failed is None:
            if not self._is_pausing:  # a pause for the rate limit interrupts no packet: the channels can go on
                self._fail("interrupted")
            self._is_pausing = False
        else:
            group.remove(failed)
            is_collecting = group.collect_errors or group.interrupted_by is not None
            if is_collecting and isinstance(error, SFTPBackendError | OSError):
                group.outcomes[failed.index] = error
                return True
        if group.interrupted_by is None:
            group.interrupted_by = error
            for run in group.active.values():
                self._interrupt(run, error, group.ready)
        return error is group.interrupted_by

    def _handle_yielded(self, run: RunningOperation[Any], yielded: Yielded) -> None:
        """Perform a yielded step: wait for a reply or send a request."""
        # A request beyond the limit is queued
        if isinstance(yielded, Pending):
            yielded.add_waiter(run)
            return
        if isinstance(yielded, TraitsQuery):
            run.wake(self.traits)
            return
        channel, request = (
            (yielded.channel, yielded.request) if isinstance(yielded, ChannelRequest) else (self._main_channel, yielded)
        )
        if request.has_payload and request.payload_size and (channel.queued or self._must_wait(channel, request)):
            run.queued = request
            channel.queued.append(run)
        else:
            self._send_for(run, channel, request)

    def _must_wait(self, channel: SFTPChannel, request: Request[Any]) -> bool:
        """Return whether a limit on content delays a request."""
        in_flight = channel.in_flight
        is_full = in_flight > 0 and in_flight + request.payload_size > MAX_BYTES_IN_FLIGHT
        return is_full or self.traffic.is_exhausted

    def _send_queued(self) -> None:
        """Send the queued requests that need not wait any longer."""
        for channel in self.channels:
            while channel.queued:
                request = channel.queued[0].queued
                assert request is not None
                if self._must_wait(channel, request):
                    break
                self._send_first_queued(channel)

    def _send_first_queued(self, channel: SFTPChannel) -> None:
        run = channel.queued.popleft()
        assert run.queued is not None
        self._send_for(run, channel, run.queued)

    def _send_for(self, run: Waiter, channel: SFTPChannel, request: Request[Any]) -> None:
        try:
            if self.failure is not None:
                raise BackendUnavailable(self.failure)
            if request.tracked and self.handles.shares_handles and not isinstance(request, Close):
                self._check_no_open_handle()
            if request.has_payload and request.payload_size:
                self.traffic.start(request.payload_size)
            pending = self._send(channel, Pending(request))
        except SFTPBackendError as error:
            run.wake(error=error)
        else:
            run.wake(pending)

    def _interrupt(self, run: RunningOperation[Any], error: BaseException, ready: deque[RunningOperation[T]]) -> None:
        if run in ready:  # its next step receives the error instead of the value
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
                # with several channels, waiting for a full channel would delay the others
                if len(self.channels) == 1:
                    channel.flush()
                else:
                    channel.flush_some()
        return pending

    @property
    def _is_idle(self) -> bool:
        """True if no reply is outstanding."""
        return all(math.isinf(channel.oldest_outstanding) for channel in self.channels)

    def _flush(self) -> None:
        with self._fail_all_on_error():
            for channel in self.channels:
                channel.flush()

    def _await_replies(self) -> None:
        """Wait on the channel with the oldest outstanding reply.

        Then receive from the other channels without waiting.
        """
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
            return  # every operation has been woken with the error
        self._send_queued()

    # -- limit on open files ------------------------------------------------------------------------------------------

    def _check_no_open_handle(self) -> None:
        """Refuse to open a second file.

        The server returns the same handle for several files.
        """
        if self.handles.any_open:
            raise CapabilityNotSupported(
                "another file is open on this connection, and the server returns the same handle for both."
                " Close the other file first, or read or write files as a whole"
            )

    def _on_handle_reply(
        self, channel: SFTPChannel, pending: Pending[Any], outcome: object, error: Exception | None
    ) -> bool:
        """Count a reply to OPEN or CLOSE; False delays its result."""
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
            raise ProtocolError("the same handle for several open files")
        if pending.abandoned:
            # no operation received the handle
            self.close_later(outcome)
        if earlier is not None:
            self.handles.lower_limit(earlier.limit)
        open_type = pending.request.packet_type
        # so many open files were no problem, so their number did not cause these refusals
        while self._deferred_opens and self.handles.count_of(open_type) > self._deferred_opens[0].limit:
            self._fail_first_deferred()
        return True

    def _may_succeed_later(self, pending: Pending[Any], refused: StatusError, earlier: _DeferredOpen | None) -> bool:
        """Return whether a refused open may succeed later."""
        # Other operations may close files until then
        likely = self.handles.may_be_open_file_limit(pending.sequence_number, refused)
        others = sum(map(len, self._running)) > 1
        final = earlier is not None and earlier.is_last_attempt
        return likely and others and not final

    def _fail_first_deferred(self) -> None:
        deferred = self._deferred_opens.popleft()
        deferred.pending.set_result(None, deferred.error)

    def _resend_deferred(self) -> None:
        """Repeat refused opens if fewer files are open than at the refusal."""
        # If no reply is outstanding, repeat the first too: no operation will close a file
        while self._deferred_opens:
            deferred = self._deferred_opens[0]
            if deferred.pending.abandoned:
                self._fail_first_deferred()
                continue
            fewer = self.handles.count + len(self._resent_opens) < deferred.limit
            if not fewer and not self._is_idle:
                return
            self._deferred_opens.popleft()
            self._resent_opens[deferred.pending] = replace(deferred, is_last_attempt=not fewer)
            with suppress(BackendUnavailable):  # every operation has been woken with the error
                self._send(deferred.channel, deferred.pending)

    @contextmanager
    def _fail_all_on_error(self) -> Iterator[None]:
        """Fail all channels if a channel fails in the block."""
        try:
            yield
        except BackendUnavailable as error:
            self._fail(error.message)
            raise

    def _fail(self, reason: str) -> None:
        self.failure = self.failure or next(
            (channel.failure for channel in self.channels if channel.failure is not None), reason
        )
        for channel in self.channels:
            channel.fail_all(self.failure)
        while self._deferred_opens:
            self._deferred_opens.popleft().pending.set_result(None, BackendUnavailable(self.failure))
        self._resent_opens.clear()
