"""SFTP version 3 over one channel: frames, request ids, the table of replies owed, and the running of operations.

An operation is a generator. It yields a `Request`, which is posted, and is sent a `Pending`; it yields a `Pending`
and is sent the reply once it is there, or has the `Refused` thrown into it. `ask` and `ask_all` are built of these
two steps. While one operation waits, the others run: `run_many` keeps many going on one channel, one round trip deep.

An interruption (KeyboardInterrupt, a signal handler's exception) is thrown into the operations at the step where they
wait; what they yield after it, their clean-up, is still run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, Generic, Protocol, TypeVar, cast

from ._codec import MAX_FRAME, Cursor, Limits, ProtocolError
from ._errors import BackendUnavailable, Refused, SFTPBackendError
from ._messages import AskLimits, Close, Request, decode_version, encode_init

T = TypeVar("T")
R = TypeVar("R")

IN_FLIGHT: Final = 12 << 20
"""Most bytes of reads and writes in flight on a channel: less than its receive window (`_session.CHANNEL_WINDOW`), so
that the server can always send what it owes and goes on reading what it is sent.
"""

_RECEIVE: Final = 4 << 20
_BATCH: Final = 32 << 10


class Channel(Protocol):
    """What the wire needs of a ``paramiko.Channel``."""

    def send(self, data: bytes, /) -> int:
        """Sends some of it; the number of bytes sent, 0 if the channel is closed; TimeoutError after the channel's
        timeout.
        """

    def recv(self, count: int, /) -> bytes:
        """Some bytes, none if the channel is closed; TimeoutError after the channel's timeout."""

    def close(self) -> None:
        """Ends the channel."""


class Pending(Generic[R]):
    """The reply to a posted request, now or later."""

    __slots__ = ("_error", "_outcome", "_waiter", "done", "request")

    def __init__(self, request: Request[R]) -> None:
        self.request = request
        self.done = False
        self._outcome: R | None = None
        self._error: Exception | None = None
        self._waiter: _Run[Any] | None = None

    def settle(self, outcome: R | None, error: Exception | None) -> None:
        """Notes the outcome and wakes the operation that waits for it."""
        self.done, self._outcome, self._error = True, outcome, error
        if self._waiter is not None:
            self.await_by(self._waiter)

    def await_by(self, run: _Run[Any]) -> None:
        """Wakes ``run`` with the outcome, now or when it is there."""
        if self.done:
            self._waiter = None
            run.wake(self._outcome, self._error)
        else:
            self._waiter, run.waits_for = run, self

    def give_up(self) -> None:
        """Wakes nobody any more."""
        self._waiter = None


Operation = Generator[Request[Any] | Pending[Any], Any, T]  # each step is sent the value of what it yielded


def post(request: Request[R]) -> Operation[Pending[R]]:
    """Posts a request and goes on; waits only while too many bytes are in flight."""
    return cast("Pending[R]", (yield request))


def wait(pending: Pending[R]) -> Operation[R]:
    """The reply to a posted request. Raises Refused."""
    return cast(R, (yield pending))


def ask(request: Request[R]) -> Operation[R]:
    """One request and its reply: one round trip. Raises Refused."""
    return cast(R, (yield (yield request)))


def ask_all(requests: Sequence[Request[R]]) -> Operation[list[R | Refused]]:
    """Several requests sent together: one round trip. A refusal stands in the place of its reply."""
    pendings: deque[Pending[R]] = deque()
    for request in requests:
        pendings.append((yield from post(request)))
    answers: list[R | Refused] = []
    for pending in pendings:
        try:
            answers.append((yield from wait(pending)))
        except Refused as refused:
            answers.append(refused)
    return answers


class _Run(Generic[T]):
    """One operation under way, and what it is to be sent next."""

    __slots__ = ("_ready", "error", "operation", "parked", "place", "value", "waits_for")

    def __init__(self, operation: Operation[T], place: int, ready: deque[_Run[T]]) -> None:
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

    def step(self) -> Request[Any] | Pending[Any]:
        """Runs it up to its next step. Raises StopIteration with its result, or what it raises."""
        value, error, self.value, self.error = self.value, self.error, None, None
        return self.operation.send(value) if error is None else self.operation.throw(error)


class Wire:
    """An SFTP conversation over ``channel``. For one thread at a time; `_session` sees to that.

    The channel's own timeout measures the silence; ``io_timeout``, in seconds, is what error texts call it.
    """

    def __init__(self, channel: Channel, *, io_timeout: float | None) -> None:
        self._channel = channel
        self.io_timeout = io_timeout
        """Seconds of silence after which the channel gives up, as error texts call it."""
        self._owed: dict[int, Pending[Any]] = {}
        self._parked: deque[_Run[Any]] = deque()
        self._in_flight = 0
        self._next_id = 0
        self._inbox = bytearray()
        self._outbox: list[bytes] = []
        self._outbox_size = 0
        self._limits: Pending[Limits] = Pending(AskLimits())
        self._forsaken: deque[bytes] = deque()
        self.broken: str | None = None
        """Why nothing more can be sent, or None."""
        self.extensions: dict[str, str] = {}
        """The server's extensions by name, with their data; known after `handshake`."""

    def handshake(self) -> None:
        """Agrees on version 3 (filexfer-02 section 4) and posts the question for the server's limits without waiting.

        Raises BackendUnavailable.
        """
        self._outbox.append(encode_init())
        self._flush()
        while not (frames := self._receive()):
            pass
        try:
            if len(frames) != 1:
                raise ProtocolError("it answers before it is asked")
            self.extensions = decode_version(frames[0])
        except ProtocolError as error:
            raise self._protocol_broken(error) from None
        if AskLimits.extension in self.extensions:
            self._send(self._limits)
        else:
            self._limits.settle(Limits(), None)

    def limits(self) -> Operation[Limits]:
        """How large reads and writes may be, in bytes."""
        try:
            return (yield from wait(self._limits))
        except Refused:
            return Limits()

    def supports(self, request: type[Request[Any]]) -> bool:
        """True if the server announced the extension of that request."""
        return getattr(request, "extension", None) in self.extensions

    def close(self) -> None:
        """Ends the conversation."""
        if self.broken is None:
            self._break("the connection was closed")
        self._channel.close()

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
        source = iter(operations)
        ready: deque[_Run[T]] = deque()
        active: dict[int, _Run[T]] = {}
        outcomes: list[T | SFTPBackendError | OSError | None] = []
        stopped_by: BaseException | None = None
        while self._forsaken and self.broken is None:
            self._send(Pending(Close(self._forsaken.popleft())))
        while True:
            ended: _Run[T] | None = None
            try:
                while stopped_by is None and len(active) < limit and (operation := next(source, None)) is not None:
                    run = active[len(outcomes)] = _Run(operation, len(outcomes), ready)
                    outcomes.append(None)
                    run.wake()
                if ready:
                    ended = ready.popleft()
                    step = ended.step()
                    run, ended = ended, None
                    self._take_up(run, step)
                elif active:
                    self._await_replies()
                else:
                    break
            except StopIteration as end:
                assert ended is not None
                outcomes[ended.place] = end.value
                del active[ended.place]
            except BaseException as error:
                # Whatever it is, the operations that wait must hear of it and clean up before it goes on its way.
                if ended is None:
                    self._break("interrupted")
                else:
                    del active[ended.place]
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

    def _take_up(self, run: _Run[Any], step: Request[Any] | Pending[Any]) -> None:
        if isinstance(step, Pending):
            step.await_by(run)
        elif step.cost and self._in_flight and (self._parked or self._in_flight + step.cost > IN_FLIGHT):
            run.parked = step
            self._parked.append(run)
        else:
            self._post(run, step)

    def _post(self, run: _Run[Any], request: Request[Any]) -> None:
        try:
            if self.broken is not None:
                raise BackendUnavailable(self.broken)
            pending = self._send(Pending(request))
        except BackendUnavailable as error:
            run.wake(error=error)
        else:
            run.wake(pending)

    def _interrupt(self, run: _Run[Any], error: BaseException, ready: deque[_Run[T]]) -> None:
        if run in ready:  # it is about to go on, and hears of the error instead
            run.error = error
            return
        if run in self._parked:
            self._parked.remove(run)
        if run.waits_for is not None:
            run.waits_for.give_up()
        run.wake(error=error)

    def _send(self, pending: Pending[R]) -> Pending[R]:
        request_id = self._next_id
        self._next_id = (request_id + 1) & 0xFFFFFFFF
        frame = pending.request.frame(request_id)
        self._owed[request_id] = pending
        self._in_flight += pending.request.cost
        self._outbox.append(frame)
        self._outbox_size += len(frame)
        if self._outbox_size >= _BATCH:
            self._flush()
        return pending

    def _flush(self) -> None:
        if not self._outbox or self.broken is not None:
            return
        data = memoryview(b"".join(self._outbox))
        self._outbox.clear()
        self._outbox_size = 0
        with self._unbroken():
            while data:
                sent = self._channel.send(cast(bytes, data))  # paramiko takes any buffer, its stub bytes only
                if not sent:
                    raise EOFError
                data = data[sent:]

    def _receive(self) -> list[memoryview]:
        """The packets that have come, without their lengths; waits for some bytes."""
        received = b""
        with self._unbroken():
            received = self._channel.recv(_RECEIVE)
            if not received:
                raise EOFError
        if self._inbox:
            self._inbox += received
        data = self._inbox or received
        frames, view, at = [], memoryview(data), 0
        while len(view) - at >= 4:
            length = int.from_bytes(view[at : at + 4], "big")
            if not 1 <= length <= MAX_FRAME:
                raise self._protocol_broken(_not_a_length(bytes(view[at : at + 60])))
            if len(view) - at - 4 < length:
                break
            frames.append(view[at + 4 : at + 4 + length])
            at += 4 + length
        if at or data is not self._inbox:
            self._inbox = bytearray(view[at:])  # a new one: the frames still look into the old
        else:
            view.release()
        return frames

    def _await_replies(self) -> None:
        try:
            self._flush()
            for frame in self._receive():
                self._dispatch(frame)
        except ProtocolError as error:
            self._protocol_broken(error)
        except BackendUnavailable:
            return  # every operation has been woken with it
        while self._parked:
            request = self._parked[0].parked
            assert request is not None
            if self._in_flight and self._in_flight + request.cost > IN_FLIGHT:
                break
            self._post(self._parked.popleft(), request)

    def _dispatch(self, frame: memoryview) -> None:
        if len(frame) < 5:
            raise ProtocolError("a packet without a request id")
        request_id = int.from_bytes(frame[1:5], "big")
        pending = self._owed.get(request_id)
        if pending is None:
            raise ProtocolError("a reply to a request that was never made")
        try:
            outcome = pending.request.answer(frame[0], Cursor(frame[5:]))
        except Refused as refused:
            self._settled(request_id).settle(None, refused)
        else:
            self._settled(request_id).settle(outcome, None)

    def _settled(self, request_id: int) -> Pending[Any]:
        pending = self._owed.pop(request_id)
        self._in_flight -= pending.request.cost
        return pending

    @contextmanager
    def _unbroken(self) -> Iterator[None]:
        """Around the channel's calls: what interrupts one leaves the stream at an unknown place, so it ends here."""
        why = "interrupted in the middle of a packet"
        try:
            yield
            why = ""
        except TimeoutError:
            seconds = "" if self.io_timeout is None else f" for {self.io_timeout:g} s"
            why = (
                f"no answer{seconds} while replies are owed: the server or the line has stalled;"
                " raise io_timeout if this server is that slow"
            )
            raise BackendUnavailable(why) from None
        except (EOFError, OSError) as error:
            why = "the connection was lost"
            raise BackendUnavailable(f"{why} ({error})" if str(error) else why) from None
        finally:
            if why:
                self._break(why)

    def _protocol_broken(self, error: ProtocolError) -> BackendUnavailable:
        return self._break(f"the server does not speak SFTP version 3 as it should: {error}")

    def _break(self, why: str) -> BackendUnavailable:
        self.broken = self.broken or why
        owed, self._owed = self._owed, {}
        self._in_flight = 0
        for pending in owed.values():
            pending.settle(None, BackendUnavailable(why))
        while self._parked:
            self._parked.popleft().wake(error=BackendUnavailable(why))
        return BackendUnavailable(why)


def _not_a_length(start: bytes) -> ProtocolError:
    text = start.decode("utf-8", "replace").rstrip("\ufffd")  # the last character may be cut
    if text and all(c != "\ufffd" and (c.isprintable() or c in "\r\n\t") for c in text):
        return ProtocolError(f"it sends text ({text!r}); a login script on the server that prints is the usual cause")
    return ProtocolError(f"a packet is announced as {int.from_bytes(start[:4], 'big')} bytes long")
