"""Operations, and their running over the lanes of one connection.

An operation is a generator. It yields a `Request` (or a `Posting`, for a lane that is not the first), which is posted,
and is sent a `Pending`; it yields a `Pending` and is sent the reply once it is there, or has the `Refused` thrown into
it. `ask` and `ask_all` are built of these two steps. While one operation waits, the others run: `run_many` keeps many
going on one channel, one round trip deep.

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
from airflow_sftp_backend.backend.errors import BackendUnavailable, CapabilityNotSupported, Refused, SFTPBackendError

from .channel import Channel, Lane, Pending, Waiter
from .codec import Limits, ProtocolError
from .handle_table import HandleTable
from .messages import AskLimits, Close, Request
from .server_traits import UNKNOWN, ServerTraits, traits_of

T = TypeVar("T")
R = TypeVar("R")

IN_FLIGHT: Final = 24 << 20
"""Most bytes of reads and writes in flight on a lane: less than its receive window (`session.CHANNEL_WINDOW`), so
that the server can always send what it owes and goes on reading what it is sent.
"""

TOGETHER: Final = 1024
"""Most requests of one `ask_all` whose answers are owed, for the same reason."""


@dataclass(frozen=True, slots=True)
class Posting(Generic[R]):
    """A request, and the lane it is for."""

    lane: Lane
    request: Request[R]


class FurtherLanes(Protocol):
    """Where lanes beside the first come from."""

    def want(self, count: int) -> None:
        """Has that many opened in all, without waiting."""

    def arrived(self) -> list[Lane]:
        """Those that have been opened since it was last asked."""


@dataclass(frozen=True, slots=True)
class TraitsQuery:
    """The question for the server's traits, which the wire answers itself."""


Step = Request[Any] | Posting[Any] | Pending[Any] | TraitsQuery
Operation = Generator[Step, Any, T]  # each step is sent the value of what it yielded


def post(request: Request[R], lane: Lane | None = None) -> Operation[Pending[R]]:
    """Posts a request, on the first lane if on no other, and goes on; waits only while too many bytes are in flight."""
    return cast("Pending[R]", (yield request if lane is None else Posting(lane, request)))


def wait(pending: Pending[R]) -> Operation[R]:
    """The reply to a posted request. Raises Refused."""
    return cast(R, (yield pending))


def server_traits() -> Operation[ServerTraits]:
    """Get what the server is known to do, without a request."""
    return cast("ServerTraits", (yield TraitsQuery()))


def ask(request: Request[R]) -> Operation[R]:
    """One request and its reply: one round trip. Raises Refused."""
    return cast(R, (yield (yield request)))


def ask_all(requests: Sequence[Request[R]]) -> Operation[list[R | Refused]]:
    """Several requests sent together: one round trip up to `TOGETHER`. A refusal stands in the place of its reply."""
    pendings: deque[Pending[R]] = deque()
    answers: list[R | Refused] = []
    for request in requests:
        if len(pendings) == TOGETHER:
            answers.append((yield from _answer(pendings.popleft())))
        pendings.append((yield from post(request)))
    while pendings:
        answers.append((yield from _answer(pendings.popleft())))
    return answers


def _answer(pending: Pending[R]) -> Operation[R | Refused]:
    if pending.done:
        return pending.answer
    try:
        return (yield from wait(pending))
    except Refused as refused:
        return refused.with_traceback(None)  # the frames in it have the answers, of which it is one


class Run(Generic[T]):
    """One operation under way, and what it is to be sent next."""

    __slots__ = ("_ready", "error", "operation", "parked", "place", "value", "waits_for")

    def __init__(self, operation: Operation[T], place: int, ready: deque[Run[T]]) -> None:
        self.operation = operation
        self.place = place
        self.value: object = None
        self.error: BaseException | None = None
        self.parked: Request[Any] | None = None
        self.waits_for: Pending[Any] | None = None
        self._ready = ready

    def wake(self, value: object = None, error: BaseException | None = None) -> None:
        """Lets it go on with a value or an exception."""
        self.value, self.error = value, error
        self.parked = self.waits_for = None
        self._ready.append(self)

    def step(self) -> Step:
        """Runs it up to its next step. Raises StopIteration with its result, or what it raises."""
        value, error, self.value, self.error = self.value, self.error, None, None
        return self.operation.send(value) if error is None else self.operation.throw(error)


@dataclass(frozen=True, slots=True)
class _RefusedOpen:
    """A request to open a file that was refused while ``limit`` files were open, and may succeed with fewer."""

    lane: Lane
    pending: Pending[Any]
    refused: Refused
    limit: int
    final: bool = False
    """It was sent again although as many files are open: there is nothing to wait for."""


class Wire:
    """An SFTP conversation over ``channel``. For one thread at a time; `session` sees to that.

    The channel's own timeout measures the silence; ``io_timeout``, in seconds, is what error texts call it. ``further``
    is where more lanes come from, if any do; ``banner`` is the server's identification, as ``SSH-2.0-OpenSSH_9.2``;
    ``bounds`` is what the server may send; ``clock`` gives seconds, to measure the round trip.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        io_timeout: float | None,
        further: FurtherLanes | None = None,
        banner: str = "",
        bounds: Bounds = DEFAULT_BOUNDS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._first = Lane(channel, io_timeout=io_timeout, clock=clock)
        self.lanes = [self._first]
        """The lanes there are, each a channel of the same connection."""
        self._banner = banner
        self.bounds = bounds
        self.traits = UNKNOWN
        """What the server is known to do; assumed until `handshake`."""
        self.sets_modes = True
        """False once the server has refused to set a mode, by handle and by path."""
        self.reads_small_files = False
        """The file that was opened for reading last had less than a block: so may the next, which is not asked for more
        before its size is known."""
        self.told_of_modes = False
        """A warning has said that modes cannot be set."""
        self._further = further
        self._count = 0
        self._limits: Pending[Limits] = Pending(AskLimits())
        self._forsaken: deque[bytes] = deque()
        self.broken: str | None = None
        """Why nothing more can be sent, or None."""

        self.handles = HandleTable()
        """The open handles of all lanes, and how many the server bears."""
        self._active: list[Sized] = []
        self._refused: deque[_RefusedOpen] = deque()
        self._resent: dict[Pending[Any], _RefusedOpen] = {}
        self._first.observe = self._observe

    def handshake(self) -> None:
        """Agrees on version 3 (filexfer-02 section 4) and posts the question for the server's limits without waiting.

        Raises BackendUnavailable.
        """
        with self._whole():
            self._first.handshake()
        self.traits = traits_of(self._banner, self.extensions)
        if AskLimits.extension in self.extensions:
            self._send(self._first, self._limits)
        else:
            self._limits.settle(Limits(), None)

    @property
    def io_timeout(self) -> float | None:
        """Seconds of silence after which the channel gives up, as error texts call it."""
        return self._first.io_timeout

    @property
    def extensions(self) -> dict[str, str]:
        """The server's extensions by name, with their data; known after `handshake`."""
        return self._first.extensions

    @property
    def unexpected_text(self) -> str:
        """Text that came where a packet was expected, such as the output of a login script; empty if none did."""
        return self._first.unexpected_text

    @property
    def overtaxed(self) -> bool:
        """True if it stalled while it had several lanes: one may be what the server bears."""
        return len(self.lanes) > 1 and any(lane.stalled for lane in self.lanes)

    @property
    def round_trip(self) -> float:
        """Seconds of the fastest reply so far; infinite before the first."""
        return self._first.round_trip

    def want_lanes(self, count: int) -> None:
        """Has more lanes opened, if there are to be had, and takes up those that are."""
        if self._further is not None:
            self._further.want(count)
            arrived = self._further.arrived()
            for lane in arrived:
                lane.observe = self._observe
            self.lanes += arrived

    def limits(self) -> Operation[Limits]:
        """How large reads and writes may be, in bytes."""
        answer = yield from _answer(self._limits)
        return Limits() if isinstance(answer, Refused) else answer

    def supports(self, request: type[Request[Any]]) -> bool:
        """True if the server announced the extension of that request."""
        return getattr(request, "extension", None) in self.extensions

    def close(self) -> None:
        """Ends the conversation."""
        if self.broken is None:
            self._break("the connection was closed")
        for lane in self.lanes:
            lane.close()

    def close_later(self, handle: bytes) -> None:
        """Closes a handle along with the next thing sent. May be called at any moment, by the garbage collector too."""
        self._forsaken.append(handle)

    def run(self, operation: Operation[T]) -> T:
        """Runs one operation to its end. Raises what it raises."""
        outcome = self._drive([operation], 1, gathers=False)[0]
        return cast(T, outcome)

    def run_many(self, operations: Iterable[Operation[T]], limit: int = 64) -> list[T | SFTPBackendError | OSError]:
        """Runs operations side by side, at most ``limit`` at once; the outcome of each, in order.

        An SFTPBackendError or OSError of one stands in its place and the others go on. Any other exception ends all,
        after their clean-up, and is raised.
        """
        return self._drive(operations, limit, gathers=True)

    def _drive(
        self, operations: Iterable[Operation[T]], limit: int, *, gathers: bool
    ) -> list[T | SFTPBackendError | OSError]:
        active: dict[int, Run[T]] = {}
        self._active.append(active)
        try:
            return self._run_all(iter(operations), active, limit, gathers=gathers)
        finally:
            self._active.pop()

    def _run_all(
        self, source: Iterator[Operation[T]], active: dict[int, Run[T]], limit: int, *, gathers: bool
    ) -> list[T | SFTPBackendError | OSError]:
        ready: deque[Run[T]] = deque()
        outcomes: list[T | SFTPBackendError | OSError | None] = []
        stopped_by: BaseException | None = None
        has_room = True  # false from when as many run as may until one of them ends
        while self._forsaken and self.broken is None:
            self._send(self._first, Pending(Close(self._forsaken.popleft())))
        while True:
            ended: Run[T] | None = None
            try:
                if has_room:
                    has_room = False
                    while (
                        stopped_by is None
                        and len(active) < min(limit, self.handles.limit or limit)
                        and (operation := next(source, None)) is not None
                    ):
                        run = active[len(outcomes)] = Run(operation, len(outcomes), ready)
                        outcomes.append(None)
                        run.wake()
                if ready:
                    ended = ready.popleft()
                    step = ended.step()
                    run, ended = ended, None
                    self._take_up(run, step)
                elif active:
                    self._resend_refused()
                    if not ready:
                        self._await_replies()
                else:
                    break
            except StopIteration as end:
                assert ended is not None
                outcomes[ended.place] = end.value
                del active[ended.place]
                has_room = True
            except BaseException as error:
                # Whatever it is, the operations that wait must hear of it and clean up before it goes on its way.
                if ended is None:
                    self._break("interrupted")
                else:
                    del active[ended.place]
                    has_room = True
                if ended is not None and isinstance(error, SFTPBackendError | OSError) and (gathers or stopped_by):
                    outcomes[ended.place] = error
                elif stopped_by is None:
                    stopped_by = error
                    for run in active.values():
                        self._interrupt(run, error, ready)
                elif error is not stopped_by:
                    raise
        with suppress(BackendUnavailable):  # what nobody waited for, closing handles, must not wait for the next call
            self._flush()
        if stopped_by is not None:
            raise stopped_by
        return cast("list[T | SFTPBackendError | OSError]", outcomes)

    def _take_up(self, run: Run[Any], step: Step) -> None:
        if isinstance(step, Pending):
            step.await_by(run)
            return
        if isinstance(step, TraitsQuery):
            run.wake(self.traits)
            return
        lane, request = (step.lane, step.request) if isinstance(step, Posting) else (self._first, step)
        if request.cost and lane.in_flight and (lane.parked or lane.in_flight + request.cost > IN_FLIGHT):
            run.parked = request
            lane.parked.append(run)
        else:
            self._post(run, lane, request)

    def _post(self, run: Waiter, lane: Lane, request: Request[Any]) -> None:
        try:
            if self.broken is not None:
                raise BackendUnavailable(self.broken)
            if request.tracked and self.handles.shared and not isinstance(request, Close):
                self._check_alone()
            pending = self._send(lane, Pending(request))
        except SFTPBackendError as error:
            run.wake(error=error)
        else:
            run.wake(pending)

    def _interrupt(self, run: Run[Any], error: BaseException, ready: deque[Run[T]]) -> None:
        if run in ready:  # it is about to go on, and hears of the error instead
            run.error = error
            return
        for lane in self.lanes:
            if run in lane.parked:
                lane.parked.remove(run)
        if run.waits_for is not None:
            run.waits_for.give_up(run)
        run.wake(error=error)

    def _send(self, lane: Lane, pending: Pending[R]) -> Pending[R]:
        pending.number = self._count
        self._count += 1
        request = pending.request
        if request.tracked:
            if isinstance(request, Close):
                self.handles.closing(lane, request.handle, pending.number)
            elif not self.traits.opens_many_files:
                self.handles.asking(pending.number, request.kind)
        lane.send(pending)
        if lane.has_batch:
            with self._whole():
                if len(self.lanes) == 1:
                    lane.flush()
                else:
                    lane.flush_some()
        return pending

    def _flush(self) -> None:
        with self._whole():
            for lane in self.lanes:
                lane.flush()

    def _await_replies(self) -> None:
        """Waits for the lane that has owed a reply longest, and takes in what has come on the others meanwhile."""
        try:
            with self._whole():
                waited_for = min(self.lanes, key=lambda lane: lane.oldest)
                others = [lane for lane in self.lanes if lane is not waited_for]
                for lane in others:
                    lane.flush_some()
                waited_for.flush()
                waited_for.receive()
                for lane in others:
                    lane.receive_ready()
        except BackendUnavailable:
            return  # every operation has been woken with it
        for lane in self.lanes:
            while lane.parked:
                request = lane.parked[0].parked
                assert request is not None
                if lane.in_flight and lane.in_flight + request.cost > IN_FLIGHT:
                    break
                self._post(lane.parked.popleft(), lane, request)

    # -- how many files may be open -----------------------------------------------------------------------------------

    def _check_alone(self) -> None:
        """Refuse to open a file beside another one on a server that gives both the same handle."""
        if self.handles.any_open:
            raise CapabilityNotSupported(
                "another file is open on this connection, and the server gives one handle to several open files:"
                " close the other file first, or read or write it as a whole"
            )

    def _observe(self, lane: Lane, pending: Pending[Any], outcome: object, error: Exception | None) -> bool:
        """Account for the reply to a request that opens or closes a handle; False if it will be settled later."""
        if isinstance(pending.request, Close):
            self.handles.closed(lane, pending.request.handle)
            return True
        before = self._resent.pop(pending, None)
        if error is not None:
            if not isinstance(error, Refused) or not self._may_succeed_later(pending, error, before):
                return True
            self._refused.append(_RefusedOpen(lane, pending, error, max(1, self.handles.count)))
            return False
        assert isinstance(outcome, bytes)
        if not self.handles.opened(lane, outcome, pending.number, pending.request.kind):
            raise ProtocolError("it gives one handle to several open files")
        if pending.abandoned:
            self.close_later(outcome)
        if before is not None:
            self.handles.learn(before.limit)
        kind = pending.request.kind
        while self._refused and self.handles.count_of(kind) > self._refused[0].limit:  # so many are no hindrance
            self._settle_refused()
        return True

    def _may_succeed_later(self, pending: Pending[Any], refused: Refused, before: _RefusedOpen | None) -> bool:
        """True if a file may be refused because others are open that other operations will close."""
        likely = self.handles.may_be_limit(pending.number, refused)
        others = sum(map(len, self._active)) > 1
        final = before is not None and before.final
        return likely and others and not final

    def _settle_refused(self) -> None:
        held = self._refused.popleft()
        held.pending.settle(None, held.refused)

    def _resend_refused(self) -> None:
        """Send requests to open a file again if fewer files are open than when they were refused.

        If nothing is left to wait for, the first is sent again too: the files that are open stay open.
        """
        while self._refused:
            held = self._refused[0]
            if held.pending.abandoned:
                self._settle_refused()
                continue
            idle = all(math.isinf(lane.oldest) for lane in self.lanes)
            fewer = self.handles.count + len(self._resent) < held.limit
            if not idle and not fewer:
                return
            self._refused.popleft()
            self._resent[held.pending] = replace(held, final=not fewer)
            with suppress(BackendUnavailable):  # every operation has been woken with it
                self._send(held.lane, held.pending)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Around what lanes do: where one ends, all end."""
        try:
            yield
        except BackendUnavailable as error:
            self._break(error.message)
            raise

    def _break(self, why: str) -> None:
        self.broken = self.broken or next((lane.broken for lane in self.lanes if lane.broken is not None), why)
        for lane in self.lanes:
            lane.end(self.broken)
        while self._refused:
            self._refused.popleft().pending.settle(None, BackendUnavailable(self.broken))
        self._resent.clear()
