"""Each extra of a foreign connection works as its provider documents."""

from __future__ import annotations

import logging
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from airflow_sftp_backend import AuthenticationFailed, BackendUnavailable, HostKeyRejected
from airflow_sftp_backend.backend.models import ConnectionInfo
from airflow_sftp_backend.hooks import SFTPBackendHook
from tests.support.airflow.connections import Connect
from tests.support.servers import (
    AsyncsshServer,
    OpenSSHServer,
    Server,
    SilentLogin,
    banner_listener,
    closing_listener,
    mute_listener,
    wait_until,
)

pytestmark = pytest.mark.parametrize("conn_type", ["sftp", "ssh"])


def adopted(connect: Connect, server: Server, conn_type: str, **extra: Any) -> SFTPBackendHook:
    """Create a hook with a key file and foreign host key settings."""
    given: dict[str, Any] = {
        "private_key": None, "known_host_keys": None, "base_path": None, "key_file": str(server.client_key),
        "host_key": server.known_hosts.splitlines()[0].split(" ", 1)[1],
    }  # fmt: skip
    return SFTPBackendHook(connect(server, conn_type=conn_type, **(given | extra)))


def facts_of(hook: SFTPBackendHook) -> ConnectionInfo:
    """Connect, and return the properties of the connection."""
    backend = hook.get_conn()
    try:
        backend.check_health()
        assert backend._session.info is not None
        return backend._session.info
    finally:
        hook.close()


def refusal(hook: SFTPBackendHook) -> BackendUnavailable:
    """Connect, and return the error."""
    with pytest.raises(BackendUnavailable) as caught:
        facts_of(hook)
    return caught.value


# -- what is negotiated


@pytest.mark.parametrize("written", [["aes256-ctr"], "aes256-ctr", "aes256-ctr,aes128-ctr"], ids=str)
def test_ciphers(openssh: OpenSSHServer, connect: Connect, conn_type: str, written: object) -> None:
    assert facts_of(adopted(connect, openssh, conn_type, ciphers=written)).cipher == "aes256-ctr"


def test_disabled_algorithms(openssh: OpenSSHServer, connect: Connect, conn_type: str) -> None:
    usual = facts_of(adopted(connect, openssh, conn_type))
    disabled = {"kex": [usual.key_exchange], "ciphers": [usual.cipher]}
    found = facts_of(adopted(connect, openssh, conn_type, disabled_algorithms=disabled))
    assert found.key_exchange not in ("", usual.key_exchange)
    assert found.cipher not in ("", usual.cipher)


def test_disabled_algorithms_of_keys_to_log_in_with(connect: Connect, conn_type: str) -> None:
    with AsyncsshServer() as server:
        server.login_key = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
        server.login_key.write_private_key(str(server.client_key))
        both = {"pubkeys": ["rsa-sha2-256", "rsa-sha2-512"]}
        assert facts_of(
            adopted(connect, server, conn_type, disabled_algorithms={"pubkeys": both["pubkeys"][:1]})
        ).logged_in
        assert isinstance(refusal(adopted(connect, server, conn_type, disabled_algorithms=both)), BackendUnavailable)


@pytest.mark.parametrize(
    ("written", "found"), [(True, "zlib@openssh.com"), ("true", "zlib@openssh.com"), ("false", "none")]
)
def test_compress(openssh: OpenSSHServer, connect: Connect, conn_type: str, written: object, found: str) -> None:
    assert facts_of(adopted(connect, openssh, conn_type, compress=written)).compression == found


# -- the host key


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"])
def test_host_key_with_its_type(openssh: OpenSSHServer, connect: Connect, conn_type: str, kind: str) -> None:
    (line,) = (line for line in openssh.known_hosts.splitlines() if f" {kind} " in line)
    hook = adopted(connect, openssh, conn_type, host_key=line.split(" ", 1)[1])
    assert facts_of(hook).host_key_type == kind


def test_host_key_bare_means_rsa(openssh: OpenSSHServer, connect: Connect, conn_type: str) -> None:
    (line,) = (line for line in openssh.known_hosts.splitlines() if " ssh-rsa " in line)
    assert facts_of(adopted(connect, openssh, conn_type, host_key=line.split(" ")[2])).host_key_type == "ssh-rsa"


def test_host_key_of_another_server(
    openssh: OpenSSHServer, bastion: OpenSSHServer, connect: Connect, conn_type: str
) -> None:
    other = bastion.known_hosts.split(" ", 1)[1]
    assert isinstance(refusal(adopted(connect, openssh, conn_type, host_key=other)), HostKeyRejected)


@pytest.mark.parametrize("extra", ["no_host_key_check", "ignore_hostkey_verification", "allow_host_key_change"])
@pytest.mark.parametrize("written", [True, "true"], ids=["boolean", "text"])
def test_an_unchecked_host_key_is_taken_and_the_line_to_pin_it_is_shown(
    openssh: OpenSSHServer,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    conn_type: str,
    extra: str,
    written: object,
) -> None:
    hook = adopted(connect, openssh, conn_type, host_key=None, **{extra: written})
    with caplog.at_level(logging.WARNING, logger="airflow_sftp_backend"):
        assert facts_of(hook).trust_reason.startswith("accepted unchecked")
    # Airflow's masker warns once in a process.
    ours = [record for record in caplog.records if record.name.startswith("airflow_sftp_backend")]
    (warning,) = [record.getMessage() for record in ours if record.levelno == logging.WARNING]
    found = re.search(r"set\s+known_host_keys to this line: (.+)$", warning)
    assert found is not None
    line = found[1]
    assert line == openssh.known_hosts.splitlines()[0]
    pinned = adopted(connect, openssh, conn_type, host_key=None, known_host_keys=line)
    assert facts_of(pinned).trust_reason == "known_host_keys line 1"


@pytest.mark.parametrize("written", [False, "false"], ids=["boolean", "text"])
def test_a_host_key_is_checked_where_that_is_not_switched_off(
    openssh: OpenSSHServer, connect: Connect, conn_type: str, written: object
) -> None:
    hook = adopted(connect, openssh, conn_type, host_key=None, no_host_key_check=written)
    assert isinstance(refusal(hook), HostKeyRejected)


def test_known_hosts_names_a_file(openssh: OpenSSHServer, connect: Connect, tmp_path: Path, conn_type: str) -> None:
    file = tmp_path / "hosts of the partner"
    file.write_text(openssh.known_hosts + "\n")
    found = facts_of(adopted(connect, openssh, conn_type, host_key=None, known_hosts=str(file)))
    assert found.trust_reason == f"{file} line 1"


def test_known_hosts_none_checks_nothing_and_warns(
    openssh: OpenSSHServer, connect: Connect, caplog: pytest.LogCaptureFixture, conn_type: str
) -> None:
    assert facts_of(adopted(connect, openssh, conn_type, host_key=None, known_hosts="None")).trust_reason
    assert "(known_hosts)" in caplog.text


# -- the login


@pytest.mark.parametrize("name", ["private_key_passphrase", "passphrase", "private_key_pass"])
def test_a_passphrase_by_each_of_its_names(
    openssh: OpenSSHServer, connect: Connect, tmp_path: Path, conn_type: str, name: str
) -> None:
    openssh.login_key.write_private_key(str(tmp_path / "key"), passphrase="swordfish", rounds=1, ignore_few_rounds=True)
    key = {"key_file": str(tmp_path / "key")}
    assert facts_of(adopted(connect, openssh, conn_type, **key, **{name: "swordfish"})).logged_in
    assert isinstance(refusal(adopted(connect, openssh, conn_type, **key, **{name: "shark"})), AuthenticationFailed)


@pytest.mark.parametrize(("written", "found"), [(None, True), ("true", True), ("false", False), (False, False)])
def test_look_for_keys(
    openssh: OpenSSHServer,
    connect: Connect,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    conn_type: str,
    written: object,
    found: bool,
) -> None:
    (tmp_path / ".ssh").mkdir()
    openssh.login_key.write_private_key(str(tmp_path / ".ssh/id_ed25519"))
    monkeypatch.setenv("HOME", str(tmp_path))
    hook = adopted(connect, openssh, conn_type, key_file=None, look_for_keys=written)
    if found:
        assert facts_of(hook).login_accepted == (
            f"the ssh-ed25519 key {openssh.login_key.get_fingerprint()} of {tmp_path}/.ssh/id_ed25519",
        )
    else:
        assert isinstance(refusal(hook), AuthenticationFailed)


# -- patience


def test_patience_with_a_silent_server(connect: Connect, conn_type: str, openssh: OpenSSHServer) -> None:
    with mute_listener() as silent:
        columns = {"port": silent.port}
        hook = adopted(connect, openssh, conn_type, columns=columns, conn_retry_attempts=1, banner_timeout="0.4")
        assert "waiting for the SSH banner: no answer within 0.4 s" in refusal(hook).message


def test_patience_with_a_silent_login(connect: Connect, conn_type: str) -> None:
    with SilentLogin() as server:
        hook = adopted(connect, server, conn_type, auth_timeout="0.4", conn_retry_attempts=1)
        assert "logging in: no answer within 0.4 s" in refusal(hook).message


def test_patience_with_a_key_exchange_that_never_starts(
    connect: Connect, conn_type: str, openssh: OpenSSHServer
) -> None:
    with banner_listener() as listener:
        for name in ("conn_timeout", "timeout"):
            columns = {"port": listener.port}
            hook = adopted(connect, openssh, conn_type, columns=columns, conn_retry_attempts=1, **{name: "0.4"})
            assert "exchanging keys: no answer within 0.4 s" in refusal(hook).message


def test_keepalive_interval(connect: Connect, conn_type: str) -> None:
    with OpenSSHServer({"LogLevel": "DEBUG1"}) as server:
        backend = adopted(connect, server, conn_type, keepalive_interval="1").get_conn()
        with backend:
            backend.check_health()
            wait_until(lambda: "rtype keepalive@lag.net" in server.log, "a sign of life")


def test_conn_retry_attempts(connect: Connect, conn_type: str, openssh: OpenSSHServer) -> None:
    with closing_listener() as listener:
        hook = adopted(connect, openssh, conn_type, columns={"port": listener.port}, conn_retry_attempts="2")
        assert refusal(hook).message.endswith("; tried 2 times")
        assert listener.connections == 2


# -- the way


RELAY = """
import os, pathlib, socket, sys, threading
pathlib.Path(sys.argv[1]).write_text(" ".join(sys.argv[2:]))
line = socket.create_connection((sys.argv[2], int(sys.argv[3])))

def up():
    while data := os.read(0, 65536):
        line.sendall(data)
    line.shutdown(socket.SHUT_WR)

threading.Thread(target=up, daemon=True).start()
while data := line.recv(65536):
    os.write(1, data)
"""


def test_host_proxy_cmd(openssh: OpenSSHServer, connect: Connect, tmp_path: Path, conn_type: str) -> None:
    script, note = tmp_path / "relay.py", tmp_path / "note"
    script.write_text(RELAY)
    command = f"{shlex.join([sys.executable, str(script), str(note)])} %h %p %r"
    assert facts_of(adopted(connect, openssh, conn_type, host_proxy_cmd=command)).logged_in
    assert note.read_text() == f"{openssh.host} {openssh.port} {openssh.username}"


# -- everything else


def test_unknown_extras_are_ignored_with_one_log_line(
    openssh: OpenSSHServer, connect: Connect, caplog: pytest.LogCaptureFixture, conn_type: str
) -> None:
    hook = adopted(connect, openssh, conn_type, of_another_age="1")
    with caplog.at_level(logging.DEBUG, logger="airflow_sftp_backend._connections.parser"):
        assert facts_of(hook).logged_in
    assert len([record for record in caplog.records if "of_another_age" in record.getMessage()]) == 1


def test_a_blank_port_is_22(openssh: OpenSSHServer, connect: Connect, conn_type: str) -> None:
    hook = adopted(connect, openssh, conn_type, columns={"port": None})
    assert hook.get_conn().address == "sftp://127.0.0.1:22"
