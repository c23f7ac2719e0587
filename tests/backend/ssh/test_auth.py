"""Refused logins quote the server; configured credentials come first."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from airflow_sftp_backend.backend import AuthenticationFailed, BackendUnavailable, RetryPolicy, SFTPBackendError
from tests.support.servers import AsyncsshServer, Listener, Login, OpenSSHServer, wait_until
from tests.support.sessions import Address, round_trip, session_to

RETRIES = RetryPolicy(max_attempts=3, jitter=0.0)


def refusal(server: Address, kind: type[SFTPBackendError], slept: list[float] | None = None, **changes: Any) -> str:
    """Return the connect error; ``slept`` collects the pauses."""
    pauses = [] if slept is None else slept
    options = {"sleep": pauses.append}
    with session_to(server, retry=RETRIES, options=options, **changes) as session, pytest.raises(kind) as caught:
        session.call(round_trip)
    assert type(caught.value) is kind
    return caught.value.message


# -- a new password, a one-time code


class _Expired(Login):
    def validate_password(self, username: str, password: str) -> bool:
        raise asyncssh.PasswordChangeRequired("Your password has expired, choose a new one: ")


class ExpiredPassword(AsyncsshServer):
    """Takes no password without a new one."""

    login = _Expired


@pytest.mark.parametrize("legacy", [False, True])
def test_an_expired_password_is_reported_in_the_servers_words(legacy: bool) -> None:
    slept: list[float] = []
    with ExpiredPassword() as server:
        text = refusal(server, AuthenticationFailed, slept, password=server.password, allow_ssh_rsa_sha1=legacy)
        assert (slept, server.connections()) == ([], 1)
    assert "'Your password has expired, choose a new one:'" in text
    assert "change the password on the server" in text


class _AsksForCode(Login):
    """Prompt for the password, then ``further``; disconnect if ``cuts``."""

    further = ("", "", "", [("Verification code: ", False)])
    cuts = False

    def password_auth_supported(self) -> bool:
        return False

    def kbdint_auth_supported(self) -> bool:
        return True

    def get_kbdint_challenge(self, username: str, lang: str, submethods: str) -> Any:
        self.rounds = 0
        return "", "", "", [("Password: ", False)]

    def validate_kbdint_response(self, username: str, responses: Any) -> Any:
        self.rounds += 1
        if self.rounds == 1:
            return self.further
        if self.cuts:
            self.server.cut(self.connection)
        return False


class CodeServer(AsyncsshServer):
    """Asks for a one-time code after the password."""

    login = _AsksForCode


class _AsksForNewPassword(_AsksForCode):
    further = ("Expired", "You are required to change your password immediately.", "", [("New password: ", False)])
    cuts = True


class NewPasswordServer(AsyncsshServer):
    """Require a new password; disconnect if it is empty."""

    login = _AsksForNewPassword


def test_a_one_time_code_prompt_is_quoted() -> None:
    with CodeServer() as server:
        text = refusal(server, AuthenticationFailed, password=server.password)
    assert "prompts: 'Password:', 'Verification code:'" in text
    assert "a one-time code or a new password" in text


def test_a_new_password_asked_for_by_prompt_is_quoted_and_not_retried() -> None:
    slept: list[float] = []
    with NewPasswordServer() as server:
        text = refusal(server, AuthenticationFailed, slept, password=server.password)
        assert (slept, server.connections()) == ([], 1)
    assert "'You are required to change your password immediately.', 'New password:'" in text


class _AsksForEver(_AsksForCode):
    def validate_kbdint_response(self, username: str, responses: Any) -> Any:
        self.rounds += 1
        return ("", "", "", [(f"Prompt {self.rounds}: ", False)]) if self.rounds < 50 else False


class EndlessPrompts(AsyncsshServer):
    """Asks fifty times."""

    login = _AsksForEver


def test_prompts_without_end_are_quoted_only_in_part() -> None:
    with EndlessPrompts() as server:
        text = refusal(server, AuthenticationFailed, password=server.password)
    assert "'Prompt 7:'" in text
    assert "'Prompt 8:'" not in text


# -- keys that are found


@pytest.fixture
def agent(sshd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An SSH agent without keys."""
    assert sshd
    address = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(address)], stdout=subprocess.DEVNULL)
    try:
        wait_until(address.exists, "the agent to start")
        monkeypatch.setenv("SSH_AUTH_SOCK", str(address))
        monkeypatch.setenv("SSH_ASKPASS", "/nonexistent")
        yield
    finally:
        process.terminate()
        process.wait()


def add_to_agent(key: Path, *options: str) -> None:
    """Add a private key file to the agent."""
    subprocess.run(["ssh-add", "-q", *options, str(key)], check=True, stderr=subprocess.DEVNULL)


def new_key(path: Path) -> Path:
    """Write a new private key."""
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(path))
    path.chmod(0o600)
    return path


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("legacy", [False, True])
def test_an_agent_key_that_cannot_sign_is_skipped(openssh: OpenSSHServer, tmp_path: Path, legacy: bool) -> None:
    # The agent asks for a confirmation before it signs, which nobody can give here.
    add_to_agent(new_key(tmp_path / "unusable"), "-c")
    add_to_agent(openssh.client_key)
    with session_to(openssh, key_file=None, allow_ssh_rsa_sha1=legacy) as session:
        assert session.call(round_trip)


@pytest.mark.usefixtures("agent")
def test_a_key_that_cannot_sign_is_listed_as_not_tried(openssh: OpenSSHServer, tmp_path: Path) -> None:
    add_to_agent(new_key(tmp_path / "unusable"), "-c")
    text = refusal(openssh, AuthenticationFailed, key_file=None)
    assert "(not tried: the ssh-ed25519 key SHA256:" in text
    assert "key cannot be used for signing" in text


@pytest.mark.usefixtures("agent")
def test_configured_credentials_are_tried_before_default_keys(tmp_path: Path) -> None:
    for number in range(8):
        add_to_agent(new_key(tmp_path / f"key{number}"))
    with AsyncsshServer() as server, session_to(server, password=server.password, look_for_keys=True) as session:
        assert session.call(round_trip)
        assert session.info is not None
        assert session.info.login_refused == ()
        assert session.info.login_accepted == ("the password",)


# -- text before SFTP starts


@pytest.mark.usefixtures("sshd")
@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        (r"Welcome to the server", "Welcome to the server"),
        (r"\033[1;32mWelcome\033[0m to the server\n", "Welcome to the server"),
        (r"\033]0;title\007Welcome", "Welcome"),
        (r"\n\nThis account is currently not available.\n", "This account is currently not available."),
        (r"Grüße", "Grüße"),
        (r"Hi\n", "Hi"),
    ],
)
def test_login_script_output_is_quoted_and_not_retried(printed: str, shown: str, tmp_path: Path) -> None:
    script = tmp_path / "subsystem"
    script.write_text(f"#!/bin/sh\nprintf '{printed}'\nexec cat\n")
    script.chmod(0o755)
    slept: list[float] = []
    with OpenSSHServer({"Subsystem": f"sftp {script}"}) as server:
        text = refusal(server, AuthenticationFailed, slept)
        assert (slept, server.connections()) == ([], 1)
    assert "but sends text before SFTP starts: '" in text
    assert shown in text
    assert "\x1b" not in text


# -- too many connections


def test_too_many_connections_are_named_as_such_and_retried_for_a_while() -> None:
    now = [0.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    options = {"sleep": sleep, "clock": lambda: now[0], "random": lambda: 0.5}
    policy = RetryPolicy(max_attempts=3, jitter=1.0)
    with (
        Listener(b"Exceeded MaxStartups\r\n", hangs_up=True) as listener,
        session_to(listener, retry=policy, options=options) as session,
        pytest.raises(BackendUnavailable, match="too many connections at once: the server says") as caught,
    ):
        session.call(round_trip)
    assert type(caught.value) is BackendUnavailable
    assert 60 <= sum(slept) < 70
    assert all(pause % 1 == 0.5 for pause in slept), "every pause has its random part"


def test_too_many_connections_are_not_retried_when_retry_is_disabled() -> None:
    with Listener(b"Exceeded MaxStartups\r\n", hangs_up=True) as listener:
        with session_to(listener) as session, pytest.raises(BackendUnavailable, match="too many connections"):
            session.call(round_trip)
        assert listener.connections == 1


@pytest.mark.usefixtures("sshd")
def test_a_login_succeeds_once_sshd_accepts_connections_again() -> None:
    with (
        OpenSSHServer({"MaxStartups": "1:100:1"}) as server,
        socket.create_connection((server.host, server.port)) as held,
        session_to(server, retry=RETRIES, options={"sleep": lambda _: held.close()}) as session,
    ):
        assert held.recv(4) == b"SSH-"
        assert session.call(round_trip)


def test_a_temporarily_blocked_address_is_reported() -> None:
    with Listener(b"Not allowed at this time\r\n", hangs_up=True) as listener:
        text = refusal(listener, BackendUnavailable)
    assert text.startswith("the server refuses this address for a while: 'Not allowed at this time'")
