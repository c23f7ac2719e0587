"""Connect to a model server, with a fault at any message.

Nothing waits: a clock is advanced where a real client would have waited. Messages are numbered from 1 over all
connections and channels of a run, in the order in which the client sends them; INIT is one of them. The server carries
out a message when the client waits for a reply, so that the client knows every reply that it can know when the fault
happens.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, cast
from unittest import mock

from airflow_sftp_backend import BackendUnavailable, RetryPolicy, SFTPBackend
from airflow_sftp_backend.backend import sync
from airflow_sftp_backend.backend._protocol.channel import SFTPChannel
from airflow_sftp_backend.backend._protocol.scheduler import SFTPScheduler
from airflow_sftp_backend.backend._ssh import connect as connect_module
from airflow_sftp_backend.backend._ssh import session as session_module
from airflow_sftp_backend.backend._ssh.connect import ConnectAttempt
from airflow_sftp_backend.backend._ssh.session import Session
from airflow_sftp_backend.backend._ssh.socket_stream import SERVER_CLOSED
from tests.support.faults.server_model import EXTENDED, NAMES, Fields, Handles, ModelServer

if TYPE_CHECKING:
    import paramiko

    from airflow_sftp_backend.backend._protocol.striping import ChannelDemand
    from airflow_sftp_backend.backend._ssh._paramiko_compat import SSHTransport
    from airflow_sftp_backend.backend._ssh.connect import Hop
    from airflow_sftp_backend.backend._ssh.extra_channels import ExtraChannels
    from airflow_sftp_backend.backend._ssh.socket_stream import SocketStream
    from airflow_sftp_backend.backend.models import ConnectionInfo

IO_TIMEOUT: Final = 30.0
"""Seconds of silence after which the client gives a connection up."""
CONNECT_TIMEOUT: Final = 10.0
"""Seconds that each step of connecting may take."""

Kind = Literal["cut", "stall", "late", "later", "kill"]
Moment = Literal["before request", "after request", "before reply", "after reply"]
_WAKING: Final = ("late", "later")
MOMENTS: Final[tuple[Moment, ...]] = ("before request", "after request", "before reply", "after reply")


@dataclass(frozen=True)
class Fault:
    """Define the fault at the message with ``number``.

    ``kind``: the connection is ``cut``, or ``stalls`` for ever; ``late`` is a stall after which the server carries out
    what it was sent as soon as the client has connected anew, ``later`` one that ends with `Network.wake`; ``kill``
    ends the client's process. ``moment``:

    * before request: the message cannot be sent any more; the server carries out those before it.
    * after request: the message is sent and does not arrive.
    * before reply: the server carries the message out, and its reply is lost.
    * after reply: the client gets the reply, and nothing after it.
    """

    kind: Kind
    moment: Moment
    number: int

    def __str__(self) -> str:
        return f"{self.kind} {self.moment} {self.number}"


class Killed(BaseException):
    """End the client's process: its clean-up has no effect."""


class Clock:
    """Seconds, which pass only where somebody waits."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Lets the time pass."""
        self.now += seconds


@dataclass
class Message:
    """A request under way to the server."""

    number: int
    channel: ModelChannel
    packet: bytes

    def __str__(self) -> str:
        if self.packet[0] == EXTENDED:
            return Fields(self.packet[5:]).string().decode().partition("@")[0]
        return NAMES[self.packet[0]]


@dataclass
class Connection:
    """One connection: its channels, and what is under way on it."""

    network: Network
    state: Literal["open", "cut", "stall", "late", "later"] = "open"
    channels: list[ModelChannel] = field(default_factory=list)
    queue: deque[Message] = field(default_factory=deque)
    seconds: float | None = None
    """Timeout of the current connecting step; None once connected."""
    timed_out: bool = False
    """That step has taken too long."""
    breaks_with: Fault | None = None
    """The fault that happened to a request on its way: replies to those before it still arrive."""
    closed: bool = False

    @property
    def failure(self) -> str | None:
        """Return the cause that the client sees; None while connected."""
        if self.timed_out:
            return f"no answer within {CONNECT_TIMEOUT:g} s"
        return SERVER_CLOSED if self.state == "cut" else None

    def carry_out_next(self) -> None:
        """Lets the server carry out the next message."""
        message = self.queue.popleft()
        fault = self.network.fault_at(message.number)
        packet_reply = self.network.carry_out(message)
        if fault is not None and fault.moment in ("before reply", "after reply"):
            self.breaks_with = fault
            if fault.kind not in _WAKING:
                self.queue.clear()
        if fault is None or fault.moment != "before reply":
            message.channel.inbox += struct.pack(">I", len(packet_reply)) + packet_reply
        self.settle()

    def settle(self) -> None:
        """Breaks the connection once the client can get nothing more over it."""
        late = self.breaks_with is not None and self.breaks_with.kind in _WAKING
        if self.breaks_with is not None and (late or not self.queue):
            self.state = cast("Literal['cut', 'stall', 'late', 'later']", self.breaks_with.kind)


class ModelChannel:
    """A channel of a connection, as a channel uses one."""

    def __init__(self, connection: Connection) -> None:
        self.handles = Handles()
        self.inbox = b""
        self.in_background = False
        """A thread of its own waits for its replies: the time passes for the others meanwhile."""
        self._connection = connection
        self._network = connection.network
        self._sent = b""
        connection.channels.append(self)

    def send(self, data: bytes | memoryview, /) -> int:
        """Takes ``data``, or its part before the message that cannot be sent."""
        connection, data = self._connection, bytes(data)
        self._network.check_alive()
        if connection.closed or connection.failure is not None:
            return 0
        taken = 0
        while taken < len(data):
            missing = self._missing()
            piece = data[taken : taken + missing]
            if missing and len(self._sent) + len(piece) == self._length():
                if not self._take(self._sent + piece):
                    return taken
                self._sent = b""
            else:
                self._sent += piece
            taken += len(piece)
        return taken

    def _length(self) -> int | None:
        """Return the length of the current message, if known."""
        return None if len(self._sent) < 4 else int.from_bytes(self._sent[:4], "big") + 4

    def _missing(self) -> int:
        return (self._length() or 4) - len(self._sent)

    def _take(self, frame: bytes) -> bool:
        """Takes one message; False if it cannot be sent."""
        connection, network = self._connection, self._network
        packet = frame[4:]
        number = network.next_number()
        fault = network.fault_at(number)
        if connection.breaks_with is not None:
            if connection.breaks_with.kind in _WAKING:
                connection.queue.append(Message(number, self, packet))
            return True
        if fault is not None and fault.moment == "before request":
            while connection.queue:
                connection.carry_out_next()
            connection.breaks_with = fault
            connection.settle()
            if fault.kind != "cut":
                self._wait_in_vain()
            return False
        connection.queue.append(Message(number, self, packet))
        if fault is not None and fault.moment == "after request":
            connection.breaks_with = fault
            if fault.kind not in _WAKING:
                connection.queue.pop()
            connection.settle()
        return True

    def recv(self, count: int, /) -> bytes:
        """Return the server's next bytes; none after a cut."""
        connection, network = self._connection, self._network
        network.check_alive()
        while not self.inbox and connection.state == "open" and connection.queue and not connection.closed:
            connection.carry_out_next()
        if self.inbox and not connection.closed:
            data, self.inbox = self.inbox[:count], self.inbox[count:]
            return data
        if connection.closed or connection.failure is not None:
            return b""
        if connection.state == "open":
            raise AssertionError("the client waits for a reply that no server owes it")
        self._wait_in_vain()
        return b""

    def _wait_in_vain(self) -> None:
        """Lets the client wait for as long as it does.

        Raises TimeoutError unless that ends the attempt to connect.
        """
        connection, clock = self._connection, self._network.clock
        if self.in_background:
            raise TimeoutError
        if connection.seconds is None:
            clock.sleep(IO_TIMEOUT)
            raise TimeoutError
        clock.sleep(connection.seconds)
        connection.timed_out = True

    def send_ready(self) -> bool:
        """It always takes something."""
        return True

    def recv_ready(self) -> bool:
        """True if something has come."""
        return bool(self.inbox)

    def settimeout(self, seconds: float | None) -> None:
        """Its timeout is `IO_TIMEOUT`."""

    def invoke_subsystem(self, name: str) -> None:
        """Has SFTP on it from the start."""

    def close(self) -> None:
        """Ends it; see `Network.close`."""


class _ExtraChannels:
    """Open the extra channels at once, up to ``maximum`` in all."""

    def __init__(self, connection: Connection, maximum: int, clock: Clock) -> None:
        self._connection = connection
        self._maximum = maximum
        self._clock = clock
        self._opened: list[SFTPChannel] = []

    def request(self, count: int) -> None:
        """Opens them."""
        while len(self._connection.channels) < min(count, self._maximum):
            model_channel = self._connection.network.channel(self._connection)
            channel = SFTPChannel(model_channel, io_timeout=IO_TIMEOUT, clock=self._clock)
            model_channel.in_background = True
            try:
                channel.handshake()
            except BackendUnavailable:  # as `extra_channels` takes it
                self._maximum = 0
            else:
                self._opened.append(channel)
            model_channel.in_background = False

    def take_opened(self) -> list[SFTPChannel]:
        """Return the channels opened since the previous call."""
        opened, self._opened = self._opened, []
        return opened


class Network:
    """Network to one model server, with its faults."""

    connection: ClassVar[type[Connection]] = Connection
    channel: ClassVar[type[ModelChannel]] = ModelChannel

    def __init__(self, server: ModelServer, clock: Clock, faults: Sequence[Fault] = ()) -> None:
        self.server = server
        self.clock = clock
        self.connections: list[Connection] = []
        self.log: list[str] = []
        """Messages that the server has processed."""
        self.sent = 0
        """Messages sent so far."""
        self.sent_to_connect = 0
        """Messages that opening the first connection took."""
        self.fired: list[Fault] = []
        self.at_kill: Callable[[], object] = lambda: None
        """Called when the process is killed, before anything it tries afterwards."""
        self.before: Callable[[int], object] = lambda number: None
        """Called with the number of each message before the server carries it out."""
        self.killed = False
        self._faults = {fault.number: fault for fault in faults}

    def end_faults(self) -> None:
        """Lets no more faults happen."""
        self._faults.clear()

    def next_number(self) -> int:
        """The number of a message that is being sent."""
        self.sent += 1
        return self.sent

    def fault_at(self, number: int) -> Fault | None:
        """The fault at that message; noted as having happened."""
        fault = self._faults.get(number)
        if fault is not None and fault.kind != "kill" and fault not in self.fired:
            self.fired.append(fault)
        return fault if fault is not None and fault.kind != "kill" else None

    def carry_out(self, message: Message) -> bytes:
        """The server's reply to a message.

        Raises Killed if the process is to end when it was carried out.
        """
        self.before(message.number)
        reply = self.server.reply(message.channel.handles, message.packet)
        self.log.append(str(message))
        fault = self._faults.get(message.number)
        if fault is not None and fault.kind == "kill":
            self.fired.append(fault)
            self.killed = True
            self.at_kill()
            raise Killed
        return reply

    def check_alive(self) -> None:
        """Raises Killed once the process has ended."""
        if self.killed:
            raise Killed

    def connect(self) -> Connection:
        """A new connection."""
        self.check_alive()
        for old in self.connections:
            if old.state == "late":
                self._catch_up(old)
        connection = self.connection(self)
        self.connections.append(connection)
        return connection

    def wake(self) -> None:
        """Lets servers that have stalled carry out what they were sent."""
        for connection in self.connections:
            if connection.state == "later":
                self._catch_up(connection)

    def _catch_up(self, connection: Connection) -> None:
        """Lets a server that has stalled carry out what it was sent."""
        connection.state = "cut"
        while connection.queue:
            self.carry_out(connection.queue.popleft())

    def close(self, connection: Connection) -> None:
        """End a connection after the server has handled all requests."""
        while connection.queue and connection.state == "open" and not self.killed:
            connection.carry_out_next()
        connection.closed = True
        for channel in connection.channels:
            channel.handles.clear()

    def open_handles(self) -> int:
        """Handles that are open on connections that the client still has."""
        live = [c for c in self.connections if c.state == "open" and not c.closed]
        for connection in live:
            while connection.queue:
                connection.carry_out_next()
        return sum(len(channel.handles) for c in live if c.state == "open" for channel in c.channels)

    @contextmanager
    def backend(self, **arguments: Any) -> Iterator[SFTPBackend]:
        """Provide a backend on this network, closed at the end."""
        session = partial(Session, clock=self.clock, sleep=self.clock.sleep, random=lambda: 0.0)
        attempt = partial(_ModelConnectAttempt, self)
        with (
            mock.patch.object(sync, "Session", session),
            mock.patch.object(session_module, "ConnectAttempt", attempt),
            mock.patch.object(connect_module, "SFTPScheduler", partial(SFTPScheduler, clock=self.clock)),
        ):
            defaults: dict[str, Any] = {"base_path": "/data", "io_timeout": IO_TIMEOUT, "timeout": CONNECT_TIMEOUT}
            defaults["retry"] = RetryPolicy.disabled()
            backend = SFTPBackend("model.test", **(defaults | arguments))
            try:
                yield backend
            finally:
                backend.close()


class _ModelStream:
    """Stands in for the socket of a connection."""

    timed_out = False
    closed_by_server = False  # matters before the banner only
    greeting = b""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def failure(self) -> str | None:
        """Return the cause of the connection's failure."""
        return self._connection.failure

    def set_deadline(self, seconds: float | None, *, after_first_bytes: float = 0.0) -> None:
        """Sets how long the client waits for the next step of connecting."""
        self._connection.seconds = seconds

    def abort_within(self, seconds: float) -> None:
        """Never ends it."""

    def abort(self, reason: str | None = None) -> None:
        """Leaves it to `_ModelTransport.abort`."""

    def close_descriptor(self) -> None:
        """Closes nothing."""


class _ModelTransport:
    """Stands in for paramiko's transport, on a connection that is logged in."""

    disconnect_message = None

    def __init__(self, network: Network, connection: Connection) -> None:
        self.server_version = network.server.traits.banner
        self._network = network
        self._connection = connection

    def open_session(self, **options: int) -> ModelChannel:
        """Opens the first channel."""
        return self._network.channel(self._connection)

    def is_active(self) -> bool:
        """Tells the end of a connection, which paramiko's thread notices."""
        return self._connection.failure is None

    def abort(self) -> None:
        """Ends the connection."""
        self._network.close(self._connection)

    def stop_threads(self, seconds: float) -> bool:
        """Ends the connection, which has no thread."""
        self.abort()
        return True


class _ModelConnectAttempt(ConnectAttempt):
    """Open connections to the model, real from the channel on."""

    def __init__(
        self,
        network: Network,
        hop: Hop,
        remaining_time: Callable[[], float],
        channel_demand: ChannelDemand | None = None,
        *,
        query_auth_methods: bool = False,
    ) -> None:
        super().__init__(hop, remaining_time, channel_demand, query_auth_methods=query_auth_methods)
        self._network = network

    def _connect_and_authenticate(self) -> tuple[paramiko.SSHClient, SSHTransport, SocketStream]:
        network = self._network
        connection = self._connection = network.connect()
        stream = self._stream = cast("SocketStream", _ModelStream(connection))
        transport = self._transport = cast("SSHTransport", _ModelTransport(network, connection))
        return cast("paramiko.SSHClient", SimpleNamespace(close=lambda: None)), transport, stream

    def _start_sftp(self, stream: SocketStream, transport: SSHTransport) -> SFTPScheduler:
        scheduler = super()._start_sftp(stream, transport)
        self._network.sent_to_connect = self._network.sent_to_connect or self._network.sent
        return scheduler

    def _extra_channels(self, transport: paramiko.Transport) -> ExtraChannels:
        extra_channels = _ExtraChannels(self._connection, self._settings.config.max_channels, self._network.clock)
        return cast("ExtraChannels", extra_channels)

    def info(self) -> ConnectionInfo:
        """Return properties that stand for those of an SSH connection."""
        names = ("username", "server_version", "host_key_fingerprint", "trust_reason", "cipher")
        return cast("ConnectionInfo", SimpleNamespace(**dict.fromkeys(names, "a model")))
