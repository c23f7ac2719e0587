"""Connect with a checked host key, time limits and clear errors.

Connecting: the host key is checked, the login uses what there is, each step has its time, every failure says what
and why, and nothing of a failed try stays.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import paramiko
import psutil
import pytest

from airflow_sftp_backend.backend import (
    AuthenticationFailed,
    BackendUnavailable,
    HostKeyPolicy,
    HostKeyRejected,
    RetryPolicy,
    SFTPBackendError,
)
from airflow_sftp_backend.backend._ssh.private_keys import load_private_key
from airflow_sftp_backend.backend._ssh.session import Session
from airflow_sftp_backend.backend.models import ConnectionInfo
from tests.support.servers import (
    AsyncsshServer,
    Login,
    NoChannel,
    NoSubsystem,
    OpenSSHServer,
    SilentChannel,
    SilentLogin,
    SilentSFTP,
    SilentSubsystem,
    banner_listener,
    chatty_listener,
    closing_listener,
    free_port,
    mute_listener,
    wait_until,
)
from tests.support.servers.server import ALL_HOST_KEYS
from tests.support.sessions import Address, assert_nothing_left, config_of, round_trip, session_to


def facts_of(server: Address, **changes: Any) -> ConnectionInfo:
    """Connect with these settings, and return the properties of the connection."""
    with session_to(server, **changes) as session:
        assert session.call(round_trip)
        assert session.info is not None
        return session.info


def failure_of(server: Address, kind: type[SFTPBackendError] = BackendUnavailable, **changes: Any) -> str:
    """Return the connect error, and check that nothing stays open."""
    with session_to(server, **changes) as session:
        with pytest.raises(kind) as caught:
            session.call(round_trip)
        assert type(caught.value) is kind
        assert caught.value.server == session_address(session)
        assert (session.is_connected, session.connection_count) == (False, 0)
        assert_nothing_left(server.port)
    return caught.value.message


def session_address(session: Session) -> str:
    """The server as errors name it."""
    return session._config.address


# -- host keys


def test_strict_policy_accepts_only_the_known_key(openssh: OpenSSHServer) -> None:
    before = openssh.logins()
    other = openssh.known_hosts_line(asyncssh.generate_private_key("ssh-ed25519"))
    assert "wrong host key" in failure_of(openssh, HostKeyRejected, known_host_keys=other)
    elsewhere = openssh.known_hosts.replace("127.0.0.1", "elsewhere")
    assert "unknown host key" in failure_of(openssh, HostKeyRejected, known_host_keys=elsewhere)
    assert openssh.logins() == before
    assert facts_of(openssh).trust_reason == "known_host_keys line 1"


def test_the_first_key_is_stored_and_a_different_one_refused(tmp_path: Path) -> None:
    settings = {
        "host_key_policy": HostKeyPolicy.TRUST_ON_FIRST_USE,
        "known_host_keys": None,
        "host_keys_path": str(tmp_path / "known_hosts"),
    }
    with AsyncsshServer() as server:
        assert facts_of(server, **settings).trust_reason.startswith("first use")
        assert facts_of(server, **settings).trust_reason.endswith("line 1")
        server.host_keys = [asyncssh.generate_private_key("ssh-ed25519")]
        port = server.port
    with AsyncsshServer() as another:
        line = (tmp_path / "known_hosts").read_text().replace(str(port), str(another.port))
        (tmp_path / "known_hosts").write_text(line)
        assert "wrong host key" in failure_of(another, HostKeyRejected, **settings)


@pytest.mark.parametrize("number", range(len(ALL_HOST_KEYS)), ids=ALL_HOST_KEYS)
def test_the_key_exchange_requests_the_known_key_type(openssh: OpenSSHServer, number: int) -> None:
    known = openssh.known_hosts_line(openssh.host_keys[number])
    assert facts_of(openssh, known_host_keys=known).host_key_type == ALL_HOST_KEYS[number]


@pytest.mark.parametrize("kind", ALL_HOST_KEYS)
def test_the_key_exchange_requests_a_certificate_for_a_known_authority(kind: str, tmp_path: Path) -> None:
    authority = asyncssh.generate_private_key("ssh-ed25519")
    server = AsyncsshServer(host_keys=(kind,))
    certificate = authority.generate_host_certificate(server.host_keys[0], "test", principals=[server.host])
    certificate.write_certificate(str(tmp_path / "cert.pub"))
    server._listen_options["server_host_certs"] = [str(tmp_path / "cert.pub")]
    with server:
        known = f"@cert-authority * {authority.export_public_key().decode()}"
        facts = facts_of(server, known_host_keys=known)
        assert facts.host_key_type == f"{kind}-cert-v01@openssh.com"
        assert facts.host_key_fingerprint == server.host_keys[0].get_fingerprint()
        assert facts.trust_reason.startswith("certified")
        assert facts_of(server).host_key_type == kind
        stranger = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        assert "wrong host key" in failure_of(server, HostKeyRejected, known_host_keys=f"@cert-authority * {stranger}")


# -- logging in


def test_a_password_logs_in(asyncssh_plain: AsyncsshServer) -> None:
    assert facts_of(asyncssh_plain, password=asyncssh_plain.password).username == "tester"


def test_a_wrong_password_is_refused_with_a_hint(asyncssh_plain: AsyncsshServer) -> None:
    text = failure_of(asyncssh_plain, AuthenticationFailed, password="not the right one")
    assert text.startswith("the server refuses the login of 'tester': refused: the password; accepted methods: ")
    assert {"password", "publickey", "keyboard-interactive"} == set(
        text.split("accepted methods: ")[1].split(";")[0].split(", ")
    )
    assert text.endswith("; check the user name and the password")
    assert "not the right one" not in text


def test_a_wrong_key_is_refused_with_a_hint(openssh: OpenSSHServer) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    pkey = load_private_key(key.export_private_key())
    text = failure_of(openssh, AuthenticationFailed, key_file=None, pkey=pkey)
    assert f"refused: the ssh-ed25519 key {key.get_fingerprint()}; accepted methods: publickey; " in text
    assert text.endswith("check the user name and that the key is among the user's authorized keys on the server")


def test_a_password_is_refused_where_only_keys_are_accepted(openssh: OpenSSHServer) -> None:
    text = failure_of(openssh, AuthenticationFailed, password="any")
    assert text.endswith("accepted methods: publickey; set a private key, as passwords are not accepted")


def test_a_key_that_cannot_be_used_is_an_error_before_anything_is_sent(openssh: OpenSSHServer) -> None:
    before = openssh.connections()
    assert "does not exist" in failure_of(openssh, AuthenticationFailed, key_file="/nowhere/key")
    assert openssh.connections() == before


def test_key_then_password_on_one_connection(asyncssh_plain: AsyncsshServer, tmp_path: Path) -> None:
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(tmp_path / "key"))
    before = asyncssh_plain.connections()
    facts_of(asyncssh_plain, key_file=str(tmp_path / "key"), password=asyncssh_plain.password)
    assert asyncssh_plain.connections() == before + 1


class _Questions(Login):
    """Prompt for the password with texts of its own."""

    prompts = (("Password: ", False),)
    replies: list[list[str]] = []  # noqa: RUF012 - emptied by each test

    def password_auth_supported(self) -> bool:
        return False

    def kbdint_auth_supported(self) -> bool:
        return True

    def get_kbdint_challenge(self, username: str, lang: str, submethods: str) -> Any:
        return "", "", "", self.prompts

    def validate_kbdint_response(self, username: str, responses: Any) -> Any:
        self.replies.append(list(responses))
        if len(self.replies) == 1:
            return "", "", "", []  # a round without questions, as some servers have
        return self.replies[0] == [self.server.password]


class _Interactive(AsyncsshServer):
    login = _Questions


def test_keyboard_interactive_is_answered_with_the_password() -> None:
    _Questions.replies = []
    with _Interactive() as server:
        facts_of(server, password=server.password)
    assert _Questions.replies == [[server.password], []]


class _Insisting(_Questions):
    def validate_kbdint_response(self, username: str, responses: Any) -> Any:
        self.replies.append(list(responses))
        return ("", "", "", [("Code: ", False), ("Name: ", True)]) if len(self.replies) < 3 else False


class _InsistingServer(AsyncsshServer):
    login = _Insisting


def test_the_password_answers_only_one_prompt() -> None:
    _Questions.replies = []
    with _InsistingServer() as server:
        text = failure_of(server, AuthenticationFailed, password=server.password)
    assert _Questions.replies == [[server.password], ["", ""], ["", ""]]
    assert "refused: the password" in text


@pytest.fixture
def two_keys(sshd: str, tmp_path: Path) -> Iterator[OpenSSHServer]:
    """sshd that requires two keys; ``second`` is the second one."""
    assert sshd
    second = asyncssh.generate_private_key("ecdsa-sha2-nistp256")
    second.write_private_key(str(tmp_path / "second"))
    server = OpenSSHServer({"AuthenticationMethods": "publickey,publickey"})
    keys = server.login_key.export_public_key() + second.export_public_key()
    (tmp_path / "authorized").write_bytes(keys)
    server._options["AuthorizedKeysFile"] = str(tmp_path / "authorized")
    with server:
        yield server


def test_a_server_that_requires_two_methods_gets_both(two_keys: OpenSSHServer, tmp_path: Path) -> None:
    facts_of(two_keys, connect_kwargs={"key_filename": str(tmp_path / "second")})
    assert two_keys.connections() == 1


def test_a_method_that_is_missing_is_named(two_keys: OpenSSHServer) -> None:
    text = failure_of(two_keys, AuthenticationFailed)
    assert text.endswith("the server also requires publickey, and no other credential is set")


def test_default_keys_are_tried_if_no_login_is_configured(
    openssh: OpenSSHServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519").write_text("not a key")
    (tmp_path / ".ssh" / "id_rsa").write_bytes(openssh.client_key.read_bytes())
    facts_of(openssh, key_file=None)
    text = failure_of(openssh, AuthenticationFailed, key_file=None, look_for_keys=False)
    assert text.endswith("set a password or a private key")
    text = failure_of(openssh, AuthenticationFailed, password="any")
    assert "key" not in text.split(";")[0]
    facts_of(openssh, password="any", look_for_keys=True)
    (tmp_path / ".ssh" / "id_rsa").unlink()
    assert "(not tried: the private key file" in failure_of(openssh, AuthenticationFailed, key_file=None)


def test_agent_keys_are_tried_if_no_login_is_configured(
    openssh: OpenSSHServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(address)], stdout=subprocess.DEVNULL)
    try:
        wait_until(address.exists, "the agent to start")
        monkeypatch.setenv("SSH_AUTH_SOCK", str(address))
        subprocess.run(["ssh-add", "-q", str(openssh.client_key)], check=True, stderr=subprocess.DEVNULL)
        facts_of(openssh, key_file=None)
        assert failure_of(openssh, AuthenticationFailed, key_file=None, connect_kwargs={"allow_agent": False})
        assert failure_of(openssh, AuthenticationFailed, password="any")
    finally:
        agent.terminate()
        agent.wait()


# -- what the caller gives to paramiko


@pytest.mark.parametrize("name", ["sock", "hostname", "port", "transport_factory", "nonsense"])
def test_connect_kwargs_refuse_arguments_with_a_parameter_of_their_own(name: str, openssh: OpenSSHServer) -> None:
    with pytest.raises(ValueError, match=name):
        Session(config_of(openssh, connect_kwargs={name: 1}))


def test_connect_kwargs_override_the_defaults(asyncssh_plain: AsyncsshServer) -> None:
    given = {"username": "tester", "password": asyncssh_plain.password, "compress": True, "timeout": None}
    facts = facts_of(asyncssh_plain, username="wrong", password="wrong", connect_kwargs=given)
    assert facts.username == "tester"
    pkey = load_private_key(asyncssh_plain.client_key, from_file=True)
    facts_of(asyncssh_plain, key_file="/nowhere", connect_kwargs={"pkey": pkey})


def test_a_custom_auth_strategy_is_used(asyncssh_plain: AsyncsshServer) -> None:
    class Strategy(paramiko.AuthStrategy):  # type: ignore[name-defined,misc] # the stub does not list it here
        def __init__(self, password: str | None) -> None:
            super().__init__(paramiko.SSHConfig())
            self.password = password

        def get_sources(self) -> Iterator[object]:
            yield paramiko.Password("tester", lambda: self.password)  # type: ignore[attr-defined] # the same

    given = {"auth_strategy": Strategy(asyncssh_plain.password)}
    facts_of(asyncssh_plain, password="wrong", connect_kwargs=given)
    given = {"auth_strategy": Strategy("wrong")}
    assert "is refused" in failure_of(asyncssh_plain, AuthenticationFailed, password="wrong", connect_kwargs=given)


# -- each step has its time


SOON: dict[str, Any] = {"timeout": 3000, "banner_timeout": 3000}


@pytest.mark.parametrize(
    ("make", "limit", "doing"),
    [
        (mute_listener, SOON | {"banner_timeout": 0.2}, "waiting for the SSH banner"),
        (banner_listener, SOON | {"timeout": 0.2}, "exchanging keys"),
        (SilentLogin, SOON | {"auth_timeout": 0.2}, "logging in"),
        (SilentChannel, SOON | {"connect_kwargs": {"channel_timeout": 0.2}}, "opening a channel"),
        (SilentSubsystem, {"timeout": 2}, "starting SFTP"),
        (SilentSFTP, {"timeout": 2}, "agreeing on the SFTP version"),
    ],
)
def test_silence_at_any_step_is_a_timeout_error(make: Callable[[], Any], limit: dict[str, Any], doing: str) -> None:
    seconds = "2" if limit["timeout"] == 2 else "0.2"
    with make() as server:
        assert failure_of(server, **limit) == f"{doing}: no answer within {seconds} s"


def test_the_retry_policy_timeout_bounds_each_step() -> None:
    with mute_listener() as listener:
        text = failure_of(listener, timeout=3000, retry=RetryPolicy(max_attempts=1, timeout=0.5))
    assert text.startswith("waiting for the SSH banner: no answer within 0.")


def test_a_host_silent_during_login_is_retried() -> None:
    slept: list[float] = []
    with (
        SilentLogin() as server,
        session_to(
            server, auth_timeout=0.2, retry=RetryPolicy(max_attempts=2), options={"sleep": slept.append}
        ) as session,
        pytest.raises(BackendUnavailable),
    ):
        session.call(round_trip)
    assert len(slept) == 1


# -- what else can go wrong


def test_a_refused_port_is_unavailable(openssh: OpenSSHServer) -> None:
    text = failure_of(openssh, port=free_port())
    assert text.startswith("connecting: the server refuses connections; check host, port and firewall")


def test_an_unknown_host_name_is_unavailable(openssh: OpenSSHServer) -> None:
    assert "the host name cannot be resolved" in failure_of(openssh, host="no-such-host.invalid")
    assert "the host name cannot be resolved" in failure_of(openssh, host="a" * 70 + ".invalid")


def test_a_server_that_does_not_speak_ssh_is_unavailable() -> None:
    with chatty_listener() as listener:
        assert failure_of(listener).startswith("the server does not speak SSH but says '220 mail.example.org")
    with closing_listener() as listener:
        assert failure_of(listener).startswith("waiting for the SSH banner: the server closed the connection; too many")


def test_a_server_without_the_sftp_subsystem_is_named() -> None:
    slept: list[float] = []
    with NoSubsystem() as server:
        assert failure_of(
            server, retry=RetryPolicy(max_attempts=3), options={"sleep": slept.append}
        ).startswith("the server has no SFTP subsystem")  # fmt: skip
        assert server.connections() == 1
    assert slept == []


def test_a_server_that_refuses_channels_is_unavailable() -> None:
    with NoChannel() as server:
        assert failure_of(server).startswith("opening a channel: the server refuses a channel")


@pytest.mark.usefixtures("sshd")
def test_output_of_a_login_script_is_quoted() -> None:
    with OpenSSHServer({"Subsystem": "sftp echo Welcome to the server, dear user"}) as server:
        text = failure_of(server, AuthenticationFailed)
    assert "sends text before SFTP starts: 'Welcome to the server, dear user'" in text


@pytest.mark.usefixtures("sshd")
def test_a_disconnect_message_is_quoted(tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(3)]
    for file in files:
        asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(file))
    with OpenSSHServer({"MaxAuthTries": "2"}) as server:
        given = {"key_filename": list(map(str, files))}
        text = failure_of(server, AuthenticationFailed, key_file=None, connect_kwargs=given)
    assert "refused: the ssh-ed25519 key SHA256:" in text
    assert "then the server disconnected: 'Too many authentication failures" in text


class _HangsUp(Login):
    def begin_auth(self, username: str) -> bool:
        self.server.cut(self.connection)
        return True


class _HangingUp(AsyncsshServer):
    login = _HangsUp


def test_a_disconnect_during_login_is_not_retried() -> None:
    slept: list[float] = []
    with _HangingUp() as server:
        text = failure_of(server, retry=RetryPolicy(), options={"sleep": slept.append})
        assert text.startswith("logging in: the server closed the connection")
        assert (slept, server.connections()) == ([], 1)


def test_an_interrupted_attempt_leaves_nothing() -> None:
    class Interrupting(Login):
        async def begin_auth(self, username: str) -> bool:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
            return True

    class Server(AsyncsshServer):
        login = Interrupting

    with Server() as server, session_to(server) as session:
        with pytest.raises(KeyboardInterrupt):
            session.call(round_trip)
        assert_nothing_left(server.port)
        assert not session.is_connected


def test_a_signal_handler_may_close_the_session_while_it_connects() -> None:
    class Signalling(Login):
        async def begin_auth(self, username: str) -> bool:
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.Event().wait()
            return True

    class Server(AsyncsshServer):
        login = Signalling

    with Server() as server, session_to(server, timeout=3000, retry=RetryPolicy()) as session:
        before = signal.signal(signal.SIGUSR1, lambda *_: session.close())
        try:
            with pytest.raises(BackendUnavailable, match="logging in: the session was closed meanwhile"):
                session.call(round_trip)
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert server.connections() == 1


def test_paramiko_log_messages_are_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), closing_listener() as listener:
        failure_of(listener)
    levels = {record.levelno for record in caplog.records if record.name.startswith("paramiko")}
    assert levels == {logging.DEBUG}


# -- algorithms


def test_configured_ciphers_are_used(openssh: OpenSSHServer) -> None:
    assert facts_of(openssh, ciphers=("aes256-ctr", "aes128-ctr")).cipher == "aes256-ctr"


def test_an_unknown_cipher_is_an_error_that_lists_the_known_ones(openssh: OpenSSHServer) -> None:
    text = failure_of(openssh, ciphers=("aes128-ctr", "rot13"))
    assert text.startswith("unknown ciphers: rot13; supported are ")
    assert "aes128-gcm@openssh.com" in text


def test_disabled_algorithms_are_not_used(openssh: OpenSSHServer) -> None:
    disabled = {"ciphers": ("aes128-gcm@openssh.com", "aes128-ctr"), "keys": ("ssh-ed25519",)}
    facts = facts_of(openssh, disabled_algorithms=disabled)
    assert (facts.cipher, facts.host_key_type) == ("aes192-ctr", "ecdsa-sha2-nistp256")


def test_compression_is_used_if_asked_for(openssh: OpenSSHServer) -> None:
    assert facts_of(openssh, compress=True).compression == "zlib@openssh.com"


def test_a_missing_common_algorithm_lists_both_sides() -> None:
    slept: list[float] = []
    with AsyncsshServer(encryption_algs=["chacha20-poly1305@openssh.com"]) as server:
        text = failure_of(server, retry=RetryPolicy(), options={"sleep": slept.append})
    assert "have no algorithm in common (Incompatible ssh server (no acceptable ciphers))" in text
    assert slept == []


@pytest.mark.usefixtures("sshd")
def test_sha1_signatures_are_used_if_allowed() -> None:
    with OpenSSHServer({"HostKeyAlgorithms": "ssh-rsa"}, host_keys=("ssh-rsa",)) as server:
        assert "no algorithm in common" in failure_of(server)
        assert facts_of(server, allow_ssh_rsa_sha1=True).host_key_type == "ssh-rsa"


# -- through a proxy command


RELAY = """
import socket, sys, threading, os
line = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def back():
    while data := line.recv(65536):
        os.write(1, data)
    os._exit(0)
threading.Thread(target=back, daemon=True).start()
while data := os.read(0, 65536):
    line.sendall(data)
"""


@pytest.fixture
def relay(tmp_path: Path) -> str:
    """A proxy command."""
    (tmp_path / "re lay.py").write_text(RELAY)
    return f"{sys.executable} '{tmp_path}/re lay.py' %h %p 100%% %r"


def children() -> list[psutil.Process]:
    """Processes that run a proxy command."""
    return [child for child in psutil.Process().children() if any("re lay" in word for word in child.cmdline())]


def test_a_proxy_command_carries_the_connection_and_ends_with_it(openssh: OpenSSHServer, relay: str) -> None:
    with session_to(openssh, proxy_command=relay) as session:
        assert session.call(round_trip)
        (child,) = children()
        assert child.cmdline()[-4:] == ["127.0.0.1", str(openssh.port), "100%", openssh.username]
        child.kill()
        wait_until(lambda: not session.is_connected, "the loss to be noticed")
        assert session.call(round_trip)
        assert session.connection_count == 2
        assert len(children()) == 1
        session.close()
        assert not children()


def test_the_error_output_of_a_proxy_command_is_quoted(openssh: OpenSSHServer) -> None:
    text = failure_of(openssh, proxy_command="sh -c 'echo no route for you >&2; exit 1'")
    assert "the server closed the connection (the proxy command says: no route for you)" in text


@pytest.mark.parametrize("command", ["/nowhere/proxy %h", "'unbalanced", ""])
def test_a_proxy_command_that_cannot_start_is_named(openssh: OpenSSHServer, command: str) -> None:
    assert failure_of(openssh, proxy_command=command).startswith("the proxy command cannot be started: ")


def test_a_silent_proxy_command_is_ended(openssh: OpenSSHServer) -> None:
    silent = f"{sys.executable} -c 'import time; time.sleep(999)' 're lay'"
    text = failure_of(openssh, proxy_command=silent, banner_timeout=0.5)
    assert text.startswith("waiting for the SSH banner: no answer within 0.5 s")
    assert not children()
