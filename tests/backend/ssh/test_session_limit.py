"""A process opens no more sessions to an account than max_sessions."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend.backend import (
    AuthenticationFailed,
    BackendConfig,
    BackendUnavailable,
    RetryPolicy,
    Secret,
    SFTPBackend,
)
from airflow_sftp_backend.backend._ssh import session_limit
from airflow_sftp_backend.backend._ssh.session import Session
from airflow_sftp_backend.backend._ssh.session_limit import SessionSlot, SessionSlots
from tests.support.servers import AsyncsshServer, OpenSSHServer, Server, wait_until
from tests.support.sessions import assert_nothing_left, config_of, round_trip, session_to

WAIT_BRIEFLY = RetryPolicy(max_attempts=1, timeout=0.5)


@pytest.fixture(params=["openssh", "asyncssh_plain"])
def server(request: pytest.FixtureRequest) -> Server:
    """OpenSSH's and asyncssh's server."""
    found: Server = request.getfixturevalue(request.param)
    return found


@contextmanager
def sessions(*configs: BackendConfig) -> Iterator[list[Session]]:
    """Sessions with these configurations, all closed at the end."""
    made = [Session(config) for config in configs]
    try:
        yield made
    finally:
        for session in made:
            session.close()
        for config in configs:
            assert_nothing_left(config.port)


@pytest.fixture(autouse=True)
def _none_open() -> Iterator[None]:
    """Each test starts and ends without open sessions."""
    gc.collect()
    session_limit.slots.abandon_after_fork()
    yield
    session_limit.slots.abandon_after_fork()


def test_a_further_session_fails_with_the_name_of_the_option(server: Server) -> None:
    with sessions(*[config_of(server, max_sessions=2, retry=WAIT_BRIEFLY)] * 3) as (first, second, third):
        assert first.call(round_trip)
        assert second.call(round_trip)
        with pytest.raises(BackendUnavailable) as caught:
            third.call(round_trip)
        text = str(caught.value)
        assert f"this process has 2 open to sftp://127.0.0.1:{server.port} as {server.username}" in text
        assert "max_sessions" in text
        assert "0.5 s" in text
        first.close()
        assert third.call(round_trip)


def test_a_further_session_opens_when_another_ends(server: Server) -> None:
    with sessions(*[config_of(server, max_sessions=1)] * 2) as (first, second):
        assert first.call(round_trip)
        waiting = threading.Event()
        outcome: list[bool] = []

        def call() -> None:
            waiting.set()
            outcome.append(second.call(round_trip))

        thread = threading.Thread(target=call)
        thread.start()
        assert waiting.wait(30)
        assert (first.is_connected, second.is_connected) == (True, False)
        first.close()
        thread.join(30)
        assert outcome == [True]


def test_sessions_without_the_option_are_not_counted(server: Server) -> None:
    with sessions(config_of(server), config_of(server, max_sessions=1, retry=WAIT_BRIEFLY)) as (free, limited):
        assert free.call(round_trip)
        assert limited.call(round_trip)


def test_a_failed_login_gives_its_place_back(server: Server) -> None:
    config = config_of(server, max_sessions=1, retry=WAIT_BRIEFLY)
    with sessions(replace(config, key_file=None, password=Secret("wrong")), config) as (refused, session):
        for _ in range(2):
            with pytest.raises(AuthenticationFailed):
                refused.call(round_trip)
        assert session.call(round_trip)


def test_a_lost_connection_gives_its_place_back(server: Server) -> None:
    with session_to(server, max_sessions=1, retry=WAIT_BRIEFLY) as session:
        assert session.call(round_trip)
        session.ssh_client().close()
        assert session.call(round_trip, idempotent=True)
        assert session.connection_count == 2


def test_closing_a_session_ends_its_wait(server: Server) -> None:
    with sessions(*[config_of(server, max_sessions=1)] * 2) as (first, second):
        assert first.call(round_trip)
        failure: list[BaseException] = []

        def call() -> None:
            try:
                second.call(round_trip)
            except BackendUnavailable as error:
                failure.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        second.abort_within(0)
        thread.join(30)
        assert not thread.is_alive()
        assert len(failure) == 1


def test_a_jump_host_has_a_limit_of_its_own(openssh: OpenSSHServer, bastion: OpenSSHServer) -> None:
    through = config_of(openssh, jump=config_of(bastion, max_sessions=1), retry=WAIT_BRIEFLY)
    with sessions(through, through, config_of(openssh)) as (first, second, direct):
        assert first.call(round_trip)
        assert direct.call(round_trip)
        with pytest.raises(BackendUnavailable, match=f"open to sftp://127.0.0.1:{bastion.port} .*max_sessions"):
            second.call(round_trip)


def test_a_forked_child_does_not_count_the_sessions_of_its_parent(
    openssh: OpenSSHServer, make_backend: Callable[..., SFTPBackend]
) -> None:
    backend = make_backend(openssh, config={"max_sessions": 1}, retry=WAIT_BRIEFLY)
    assert backend.exists("")
    backend.check_health()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            backend.check_health()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


# -- the counting -----------------------------------------------------------------------------------------------------

CONFIG = BackendConfig(host="a", username="u", max_sessions=3)


@given(st.lists(st.sampled_from(["open", "close", "forget"]), max_size=40), st.integers(1, 4))
def test_never_more_sessions_than_allowed_nor_fewer_than_possible(steps: list[str], most: int) -> None:
    slots, config, held = SessionSlots(), replace(CONFIG, max_sessions=most), list[SessionSlot]()
    for step in steps:
        if step == "open":
            slot = slots.acquire(config)
            assert isinstance(slot, SessionSlot) == (len(held) < most)
            held += [slot] if isinstance(slot, SessionSlot) else []
            del slot
        elif held:
            (held.pop().release if step == "close" else held.pop)()
    assert len(held) <= most


def test_other_accounts_have_limits_of_their_own() -> None:
    slots, one = SessionSlots(), replace(CONFIG, max_sessions=1)
    held = [slots.acquire(config) for config in (one, replace(one, username="other"), replace(one, port=2222))]
    assert all(isinstance(slot, SessionSlot) for slot in held)
    assert slots.acquire(one) == one


def test_a_limit_on_the_way_takes_no_place_elsewhere() -> None:
    slots, jump = SessionSlots(), BackendConfig(host="j", max_sessions=1)
    through = replace(CONFIG, jump=jump, max_sessions=1)
    held = slots.acquire(jump)
    assert slots.acquire(through) == jump
    assert isinstance(held, SessionSlot)
    held.release()
    assert isinstance(slots.acquire(through), SessionSlot)


@pytest.mark.parametrize("name", ["max_rate", "max_sessions"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_a_limit_is_a_whole_number_from_1(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number from 1"):
        SFTPBackend("h", config={name: value})


def test_a_session_that_the_server_has_ended_does_not_count(asyncssh_plain: AsyncsshServer) -> None:
    config = config_of(asyncssh_plain, max_sessions=1, retry=WAIT_BRIEFLY)
    with sessions(config, config) as (first, second):
        assert first.call(round_trip)
        asyncssh_plain.kill_sessions()
        wait_until(lambda: not first.is_connected, "the loss to be noticed")
        assert second.call(round_trip)
