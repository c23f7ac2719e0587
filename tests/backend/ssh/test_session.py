"""Share one connection among threads, and replace it when lost.

One connection, opened when it is needed: shared by threads, replaced when lost, left alone by a forked child, and
nothing left of it at the end.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import paramiko
import pytest

from airflow_sftp_backend.backend import (
    AuthenticationFailed,
    BackendUnavailable,
    HostKeyRejected,
    NotFound,
    RetryPolicy,
)
from airflow_sftp_backend.backend._protocol.scheduler import SFTPScheduler
from airflow_sftp_backend.backend._ssh.session import Session
from airflow_sftp_backend.backend.models import ConnectionInfo
from tests.support.servers import (
    AsyncsshServer,
    OneChannel,
    OpenSSHServer,
    Server,
    closing_listener,
    free_port,
    mute_listener,
    wait_until,
)
from tests.support.sessions import assert_nothing_left, config_of, round_trip, session_to, sockets_to


@pytest.fixture(params=["openssh", "asyncssh_plain"])
def server(request: pytest.FixtureRequest) -> Server:
    """OpenSSH's and asyncssh's server."""
    found: Server = request.getfixturevalue(request.param)
    return found


class Nowhere:
    """An address where nobody listens."""

    host = "127.0.0.1"

    def __init__(self) -> None:
        self.port = free_port()


# -- open and close


def test_nothing_is_sent_before_the_first_call(server: Server) -> None:
    before = server.connections()
    with session_to(server) as session:
        assert (session.is_connected, session.info, session.connection_count) == (False, None, 0)
        assert not sockets_to(server.port)
        assert server.connections() == before


def test_many_calls_are_one_login(server: Server) -> None:
    before = server.logins()
    with session_to(server) as session:
        assert all(session.call(round_trip) for _ in range(5))
        assert session.call(lambda scheduler: session.call(lambda same: same is scheduler))
        assert (session.is_connected, session.connection_count) == (True, 1)
        assert server.logins() == before + 1


def test_a_closed_session_opens_again(server: Server) -> None:
    with session_to(server) as session:
        session.close()
        schedulers: list[SFTPScheduler] = []
        for _ in range(2):
            session.call(schedulers.append)
            session.close()
            session.close()
            assert not session.is_connected
            assert session.info is None
            assert_nothing_left(server.port)
        assert schedulers[0] is not schedulers[1]
        assert all(scheduler.failure for scheduler in schedulers)
        assert session.connection_count == 2


def test_the_connection_info_describes_the_open_connection(openssh: OpenSSHServer) -> None:
    with session_to(openssh) as session:
        session.call(round_trip)
        facts = session.info
    assert isinstance(facts, ConnectionInfo)
    assert facts.username == openssh.username
    assert facts.server_version.startswith("SSH-2.0-OpenSSH_")
    assert (facts.host_key_type, facts.trust_reason) == ("ssh-ed25519", "known_host_keys line 1")
    assert facts.host_key_fingerprint == openssh.host_keys[0].get_fingerprint()
    assert (facts.cipher, facts.compression) == ("aes128-gcm@openssh.com", "none")
    assert facts.strict_key_exchange


def test_each_connection_is_one_line_in_the_log(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), session_to(server) as session:
        session.call(round_trip)
    ours = [record for record in caplog.records if not record.name.startswith("asyncssh")]
    assert [record.levelname for record in ours] == ["INFO"]
    assert (
        ours[0].getMessage().startswith(f"connected to sftp://127.0.0.1:{server.port} as {server.username}: SSH-2.0-")
    )


# -- paramiko's own clients


def test_paramikos_clients_share_the_connection(server: Server) -> None:
    before = server.logins()
    folder = server.fresh()
    (folder.path / "seen").touch()
    with session_to(server) as session:
        ssh, sftp = session.ssh_client(), session.sftp_client()
        assert isinstance(ssh, paramiko.SSHClient)
        assert session.sftp_client() is sftp
        assert sftp.listdir(folder.base_path) == ["seen"]
        assert session.call(round_trip)
        assert server.logins() == before + 1
        session.close()
        assert ssh.get_transport() is None
        with pytest.raises(OSError, match="closed"):
            sftp.listdir(folder.base_path)


def test_a_server_with_one_channel_has_none_for_paramikos_client(one_channel: OneChannel) -> None:
    with session_to(one_channel) as session:
        session.call(round_trip)
        with pytest.raises(BackendUnavailable, match="opening a second channel: the server refuses a channel"):
            session.sftp_client()
        assert session.call(round_trip)
        assert session.connection_count == 1


# -- lost


def test_a_connection_lost_while_idle_is_reopened(server: Server) -> None:
    with session_to(server) as session:
        session.call(round_trip)
        server.kill_sessions()
        while session.is_connected:
            pass
        assert session.call(round_trip)
        assert session.connection_count == 2


def losing(server: Server, times: int, schedulers: list[SFTPScheduler]) -> Callable[[SFTPScheduler], bool]:
    """A use that loses its connection the first ``times`` times it runs."""

    def use(scheduler: SFTPScheduler) -> bool:
        schedulers.append(scheduler)
        if len(schedulers) <= times:
            server.kill_sessions()
        return round_trip(scheduler)

    return use


def test_an_idempotent_call_is_repeated_after_a_loss(server: Server) -> None:
    schedulers: list[SFTPScheduler] = []
    with session_to(server) as session:
        assert session.call(losing(server, 1, schedulers), idempotent=True)
        assert len(set(map(id, schedulers))) == 2
        assert session.connection_count == 2


def test_an_idempotent_call_is_repeated_only_once(server: Server) -> None:
    schedulers: list[SFTPScheduler] = []
    with session_to(server) as session:
        with pytest.raises(BackendUnavailable, match="connection"):
            session.call(losing(server, 2, schedulers), idempotent=True)
        assert len(schedulers) == 2
        assert session.call(round_trip)


def test_a_call_that_is_not_idempotent_is_not_repeated(server: Server) -> None:
    schedulers: list[SFTPScheduler] = []
    with session_to(server) as session:
        with pytest.raises(BackendUnavailable, match="connection") as caught:
            session.call(losing(server, 1, schedulers))
        assert caught.value.server == f"sftp://127.0.0.1:{server.port}"
        assert not session.is_connected
        assert_nothing_left(server.port)
        assert session.call(round_trip)
        assert (len(schedulers), session.connection_count) == (1, 2)


def test_a_login_refused_after_a_loss_is_not_retried() -> None:
    with AsyncsshServer() as server, session_to(server, password=server.password) as session:

        def use(scheduler: SFTPScheduler) -> bool:
            server.password = "another one"
            server.kill_sessions()
            return round_trip(scheduler)

        with pytest.raises(AuthenticationFailed):
            session.call(use, idempotent=True)
        assert server.connections() == 2


def test_a_session_without_reconnection_stays_lost(server: Server) -> None:
    before = server.connections()

    def use(scheduler: SFTPScheduler) -> bool:
        tries.append(scheduler)
        server.kill_sessions()
        return round_trip(scheduler)

    tries: list[SFTPScheduler] = []
    with session_to(server, options={"reconnects": False}) as session:
        assert session.call(round_trip)
        with pytest.raises(BackendUnavailable):
            session.call(use, idempotent=True)
        for _ in range(2):
            with pytest.raises(BackendUnavailable, match="was lost, and reconnecting is off"):
                session.call(round_trip, idempotent=True)
        assert (len(tries), session.connection_count, server.connections()) == (1, 1, before + 1)


def test_a_session_without_reconnection_retries_its_first_connection(
    monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    with session_to(server, options={"reconnects": False}) as session:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
            with pytest.raises(BackendUnavailable, match="has no address"):
                session.call(round_trip)
        assert session.call(round_trip)


def test_an_aborted_session_stops_connecting() -> None:
    failures: list[str] = []

    def call(session: Session) -> None:
        with pytest.raises(BackendUnavailable) as caught:
            session.call(round_trip, idempotent=True)
        failures.append(str(caught.value))

    with mute_listener() as mute, session_to(mute, timeout=60, retry=RetryPolicy(max_attempts=5)) as session:
        thread = threading.Thread(target=call, args=[session])
        thread.start()
        wait_until(lambda: mute.connections == 1, "the connection")
        session.abort_within(0)
        thread.join(3)
        assert not thread.is_alive()
        assert mute.connections == 1
        call(session)  # and does not begin again
        assert mute.connections == 1
    assert len(failures) == 2


def test_a_call_within_a_call_stays_on_its_connection(server: Server) -> None:
    seen: list[SFTPScheduler] = []

    def inner(scheduler: SFTPScheduler) -> bool:
        seen.append(scheduler)
        return round_trip(scheduler)

    def outer(scheduler: SFTPScheduler) -> None:
        server.kill_sessions()
        for _ in range(2):
            with pytest.raises(BackendUnavailable):
                session.call(inner, idempotent=True)
        assert seen == [scheduler, scheduler]

    with session_to(server) as session:
        session.call(outer)
        assert session.connection_count == 1
        assert not session.is_connected
        assert session.call(round_trip)


def test_errors_name_the_server_and_keep_the_connection(server: Server) -> None:
    def use(_scheduler: SFTPScheduler) -> None:
        raise NotFound("no such file", path="a")

    with session_to(server) as session:
        with pytest.raises(NotFound) as caught:
            session.call(use)
        assert str(caught.value) == f"no such file ('a' on sftp://127.0.0.1:{server.port})"
        with pytest.raises(ZeroDivisionError):
            session.call(lambda _: 1 / 0)
        assert session.call(round_trip)
        assert session.connection_count == 1


def test_closing_from_within_a_call_ends_it(server: Server) -> None:
    def use(scheduler: SFTPScheduler) -> bool:
        session.close()
        return round_trip(scheduler)

    with session_to(server) as session:
        with pytest.raises(BackendUnavailable, match="the session was closed meanwhile"):
            session.call(use)
        assert not session.is_connected
        assert session.call(round_trip)


# -- trying again


def failing(policy: RetryPolicy, attempts: int | None = None, **options: Any) -> tuple[BackendUnavailable, list[float]]:
    """Return the error of an unreachable session, and its pauses."""
    slept: list[float] = []
    options = {"sleep": slept.append, "random": lambda: 0.5, **options}
    with session_to(Nowhere(), retry=policy, options=options) as session:
        with pytest.raises(BackendUnavailable) as caught:
            session.call(round_trip, attempts=attempts)
        assert session.connection_count == 0
    return caught.value, slept


def test_connecting_is_retried_with_backoff(caplog: pytest.LogCaptureFixture) -> None:
    policy = RetryPolicy(max_attempts=4, backoff_base=1, backoff_max=3, jitter=0.2)
    with caplog.at_level(logging.WARNING):
        error, slept = failing(policy)
    assert slept == pytest.approx([1.1, 2.1, 3.1])
    assert error.message.endswith("; tried 4 times")
    assert [record.getMessage().split("; retrying ")[1] for record in caplog.records] == [
        "in 1.1 s (attempt 2 of 4)",
        "in 2.1 s (attempt 3 of 4)",
        "in 3.1 s (attempt 4 of 4)",
    ]


def test_a_call_may_request_fewer_attempts() -> None:
    error, slept = failing(RetryPolicy(max_attempts=4), attempts=1)
    assert slept == []
    assert "tried" not in error.message


def test_the_total_time_of_all_attempts_is_bounded() -> None:
    now = [100.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    policy = RetryPolicy(max_attempts=50, backoff_base=1, jitter=0, timeout=10)
    error, _ = failing(policy, sleep=sleep, clock=lambda: now[0])
    assert slept == [1, 2, 4]
    assert error.message.endswith("; tried 4 times")


def test_a_later_attempt_succeeds(monkeypatch: pytest.MonkeyPatch, asyncssh_plain: AsyncsshServer) -> None:
    real, calls = socket.getaddrinfo, []

    def first_fails(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return real(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", first_fails)
    slept: list[float] = []
    options = {"sleep": slept.append, "random": lambda: 0.0}
    with session_to(asyncssh_plain, retry=RetryPolicy(), options=options) as session:
        assert session.call(round_trip)
        assert (len(calls), slept, session.connection_count) == (2, [1.0], 1)


def test_a_refused_login_is_not_retried(asyncssh_plain: AsyncsshServer) -> None:
    before, slept = asyncssh_plain.connections(), list[float]()
    options = {"sleep": slept.append}
    with session_to(asyncssh_plain, password="wrong", retry=RetryPolicy(), options=options) as session:
        for call in (session.ssh_client, session.sftp_client, lambda: session.call(round_trip, idempotent=True)):
            with pytest.raises(AuthenticationFailed):
                call()
    assert (slept, asyncssh_plain.connections()) == ([], before + 3)


def test_a_refused_host_key_is_not_retried(asyncssh_plain: AsyncsshServer) -> None:
    before, slept = asyncssh_plain.connections(), list[float]()
    changed = f"* ssh-ed25519 SHA256:{'A' * 43}"
    options = {"sleep": slept.append}
    with session_to(asyncssh_plain, known_host_keys=changed, retry=RetryPolicy(), options=options) as session:
        for idempotent in (True, False):
            with pytest.raises(HostKeyRejected):
                session.call(round_trip, idempotent=idempotent)
    assert (slept, asyncssh_plain.connections()) == ([], before + 2)


def test_closing_during_backoff_ends_the_attempts() -> None:
    sessions: list[Session] = []
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        sessions[0].close()

    with (
        closing_listener() as listener,
        session_to(listener, retry=RetryPolicy(max_attempts=9), options={"sleep": sleep}) as session,
    ):
        sessions.append(session)
        with pytest.raises(BackendUnavailable):
            session.call(round_trip)
        assert (len(slept), listener.connections) == (1, 1)


# -- threads


def test_threads_use_the_session_one_at_a_time(server: Server) -> None:
    before = server.logins()
    inside = threading.Semaphore(1)

    def use(scheduler: SFTPScheduler) -> bool:
        assert inside.acquire(blocking=False), "two calls at once"
        try:
            return round_trip(scheduler)
        finally:
            inside.release()

    with session_to(server) as session, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: session.call(use), range(80)))
        assert session.connection_count == 1
    assert server.logins() == before + 1


# -- fork


def in_child(work: Callable[[], None]) -> None:
    """Run a function in a forked child, and check its success."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - a child must not run on into the tests
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


fork = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@fork
def test_a_forked_child_opens_its_own_connection(openssh: OpenSSHServer) -> None:
    before = openssh.logins()
    with session_to(openssh) as session:
        session.call(round_trip)
        sftp = session.sftp_client()

        def work() -> None:
            assert not session.is_connected
            assert session.call(round_trip)
            assert session.connection_count == 2
            session.close()
            gc.collect()

        in_child(work)
        assert session.is_connected
        assert session.call(round_trip)
        assert sftp.listdir(".") == sftp.listdir(".")
        assert session.connection_count == 1
        assert openssh.logins() == before + 2


FORKING = """
import os, sys
from airflow_sftp_backend.backend import BackendConfig
from airflow_sftp_backend.backend._ssh.session import Session
from tests.support.sessions import round_trip

host, port, user, key, known = sys.argv[1:]
session = Session(BackendConfig(host=host, port=int(port), username=user, key_file=key, known_host_keys=known))
session.call(round_trip)
sftp = session.sftp_client()
child = os.fork()
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    session.call(round_trip)
    assert sftp.listdir(".") == sftp.listdir(".")
    assert session.connection_count == 1
    session.close()
"""


@pytest.mark.parametrize("last", ["", "\nimport gc; session = sftp = None; gc.collect()"])
def test_a_forked_child_that_exits_keeps_the_parents_connection_open(openssh: OpenSSHServer, last: str) -> None:
    arguments = [openssh.host, str(openssh.port), openssh.username, str(openssh.client_key), openssh.known_hosts]
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKING + last, *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")


@fork
def test_a_child_forked_during_a_call_is_not_blocked(openssh: OpenSSHServer) -> None:
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        assert session.call(round_trip)

    def busy(scheduler: SFTPScheduler) -> bool:
        entered.set()
        return leave.wait() and round_trip(scheduler)

    with session_to(openssh) as session, ThreadPoolExecutor(1) as pool:
        running = pool.submit(session.call, busy)
        entered.wait()
        try:
            in_child(work)
        finally:
            leave.set()
        assert running.result()
        assert session.connection_count == 1


@fork
def test_a_child_forked_within_a_call_cannot_use_its_connection(openssh: OpenSSHServer) -> None:
    def use(scheduler: SFTPScheduler) -> bool:
        def work() -> None:
            assert scheduler.failure is not None
            assert session.call(lambda other: other is not scheduler)
            session.close()

        in_child(work)
        return round_trip(scheduler)

    with session_to(openssh) as session:
        assert session.call(use)
        assert session.connection_count == 1


# -- forgotten


def test_a_forgotten_session_warns_and_leaves_nothing(server: Server) -> None:
    session = Session(config_of(server))
    session.call(round_trip)
    session.sftp_client()
    kept = [session]
    del session
    with pytest.warns(ResourceWarning, match=f"unclosed connection to sftp://127.0.0.1:{server.port}"):
        kept.clear()
    assert_nothing_left(server.port)


def test_a_session_in_a_reference_cycle_warns_and_leaves_nothing(server: Server) -> None:
    session = Session(config_of(server))
    session.call(round_trip)
    circle: list[object] = [session]
    circle.append(circle)
    del session, circle
    with pytest.warns(ResourceWarning, match="unclosed connection"):
        gc.collect()
    assert_nothing_left(server.port)


def test_a_closed_session_is_forgotten_silently(server: Server) -> None:
    session = Session(config_of(server))
    session.call(round_trip)
    session.close()
    del session
    gc.collect()
    assert_nothing_left(server.port)
