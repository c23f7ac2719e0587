"""Connecting with a lost connection at each message has a clear error.

Wherever a connection is lost while it is made, from the identification of SSH to the version of SFTP, the error says
so in time and nothing of the connection stays.

Each message of a real connection is lost in a run of its own. What is before a message is after the one before it.
"""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace
from typing import Any, Final, Literal

import pytest

from airflow_sftp_backend.backend import BackendUnavailable
from airflow_sftp_backend.backend._ssh import socket_stream
from airflow_sftp_backend.backend._ssh.socket_stream import SERVER_CLOSED
from tests.support.servers import OpenSSHServer
from tests.support.servers.relay import Sender
from tests.support.servers.ssh_relay import SSHRelay
from tests.support.sessions import session_to

TIMEOUT: Final = 30.0
HASTE: Final = 100
"""Factor by which the client's clock runs faster after the connection has stalled."""
STEPS: Final = (
    "waiting for the SSH banner", "exchanging keys", "logging in", "opening a channel", "starting SFTP",
    "agreeing on the SFTP version",
)  # fmt: skip


class HastyClock:
    """Replace the module ``time``: seconds are short after a stall."""

    def __init__(self, relay: SSHRelay) -> None:
        self._stalled_at: float | None = None
        self._relay = relay

    def monotonic(self) -> float:
        now = time.monotonic()
        if self._stalled_at is None and self._relay.fired.is_set():
            self._stalled_at = now
        return now if self._stalled_at is None else self._stalled_at + HASTE * (now - self._stalled_at)


def lost_at(
    server: OpenSSHServer, kind: Literal["cut", "stall"], sender: Sender, number: int, monkeypatch: pytest.MonkeyPatch
) -> str | None:
    """Return the error of a connection lost at a message, or None."""
    relay = SSHRelay(server.port, kind, sender, number)
    clock = HastyClock(relay)
    known = server.host_keys[0].get_fingerprint()
    address = SimpleNamespace(host=server.host, port=relay.port)
    login: dict[str, Any] = {"username": server.username, "key_file": str(server.client_key), "known_host_keys": known}
    try:
        with monkeypatch.context() as patch, session_to(address, timeout=TIMEOUT, **login) as session:
            patch.setattr(socket_stream, "time", clock)
            try:
                session.call(lambda scheduler: None)
            except BackendUnavailable as error:
                assert type(error) is BackendUnavailable
                assert relay.fired.is_set(), error
                assert error.server == f"sftp://{server.host}:{relay.port}"
                assert (session.is_connected, session.connection_count) == (False, 0)
                return error.message
            assert not relay.fired.is_set()
            return None
    finally:
        relay.close()


@pytest.mark.parametrize("sender", ["client", "server"])
@pytest.mark.parametrize(("kind", "cause"), [("cut", SERVER_CLOSED), ("stall", "no answer within 30 s")])
def test_a_connection_lost_at_any_message_of_its_opening_is_told_in_time(
    openssh: OpenSSHServer, kind: Literal["cut", "stall"], cause: str, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    for number in itertools.count(1):
        text = lost_at(openssh, kind, sender, number, monkeypatch)
        if text is None:
            break
        step, _, why = text.partition(": ")
        assert why.startswith(cause), text
        steps.append(step)
    phases = tuple(dict.fromkeys(steps))
    assert phases in (STEPS, STEPS[1:])  # the server's identification may come before the client's is lost
    assert len(steps) >= 9
