"""Use ssh-rsa with SHA-1 only if allowed and necessary."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncssh
import paramiko
import pytest

from airflow_sftp_backend.backend._ssh._paramiko_compat import Sha1RSAKey
from airflow_sftp_backend.backend._ssh.legacy_rsa import LegacyTransport, legacy_transport
from airflow_sftp_backend.backend._ssh.private_keys import load_private_key
from tests.support.servers import AsyncsshServer, OpenSSHServer, Server, wait_until

OLD = {"HostKeyAlgorithms": "ssh-rsa", "PubkeyAcceptedAlgorithms": "ssh-rsa"}
STRONGER = ("rsa-sha2-512", "rsa-sha2-256")


@pytest.fixture(scope="module")
def rsa() -> asyncssh.SSHKey:
    """An RSA key to log in with."""
    return asyncssh.generate_private_key("ssh-rsa", key_size=2048)


@pytest.fixture(scope="module")
def pkey(rsa: asyncssh.SSHKey) -> paramiko.PKey:
    """The same as paramiko knows it."""
    return load_private_key(rsa.export_private_key())


@contextmanager
def connected(server: Server, pkey: paramiko.PKey, **arguments: Any) -> Iterator[paramiko.Transport]:
    """A logged-in connection."""
    with paramiko.SSHClient() as client:
        client.set_missing_host_key_policy(paramiko.MissingHostKeyPolicy())
        client.connect(
            server.host, server.port, server.username, pkey=pkey, allow_agent=False, look_for_keys=False, **arguments
        )
        transport = client.get_transport()
        assert transport is not None
        yield transport


@pytest.fixture(scope="module")
def old_openssh(sshd: str, rsa: asyncssh.SSHKey) -> Iterator[OpenSSHServer]:
    """sshd that signs with SHA-1 and takes nothing else."""
    assert sshd
    server = OpenSSHServer(OLD, host_keys=["ssh-rsa"])
    server.login_key = rsa
    with server:
        yield server


def test_a_server_that_supports_only_ssh_rsa_is_reached(old_openssh: OpenSSHServer, pkey: paramiko.PKey) -> None:
    before = old_openssh.logins()
    with connected(old_openssh, pkey, transport_factory=legacy_transport) as transport:
        assert transport.host_key_type == "ssh-rsa"
        with transport.open_session() as channel:
            channel.invoke_subsystem("sftp")
    assert old_openssh.logins() == before + 1
    assert "ssh2: RSA SHA256:" in old_openssh.log


def test_another_connection_still_refuses_ssh_rsa(old_openssh: OpenSSHServer, pkey: paramiko.PKey) -> None:
    with (
        connected(old_openssh, pkey, transport_factory=legacy_transport),
        pytest.raises(paramiko.ssh_exception.IncompatiblePeer),
        connected(old_openssh, pkey),
    ):
        pass


def test_paramiko_itself_is_not_changed(pkey: paramiko.PKey) -> None:
    assert isinstance(pkey, paramiko.RSAKey)
    for names in (vars(paramiko.Transport)["_preferred_keys"], vars(paramiko.Transport)["_preferred_pubkeys"]):
        assert "ssh-rsa" not in names
    assert "ssh-rsa" not in vars(paramiko.Transport)["_key_info"]
    signature = Sha1RSAKey.of(pkey).sign_ssh_data(b"data", "ssh-rsa")
    signature.rewind()
    assert Sha1RSAKey.of(pkey).verify_ssh_sig(b"data", signature)
    signature.rewind()
    assert not pkey.verify_ssh_sig(b"data", signature)
    with pytest.raises(KeyError):
        pkey.sign_ssh_data(b"data", "ssh-rsa")


def test_stronger_algorithms_are_preferred(sshd: str, rsa: asyncssh.SSHKey, pkey: paramiko.PKey) -> None:
    assert sshd
    server = OpenSSHServer({"HostKeyAlgorithms": "+ssh-rsa", "PubkeyAcceptedAlgorithms": "+ssh-rsa"},
                           host_keys=["ssh-rsa"])  # fmt: skip
    server.login_key = rsa
    with server, connected(server, pkey, transport_factory=legacy_transport) as transport:
        assert transport.host_key_type == "rsa-sha2-512"
        assert vars(transport)["_agreed_pubkey_algorithm"] == "rsa-sha2-512"


def test_algorithms_disabled_by_the_caller_stay_disabled(old_openssh: OpenSSHServer, pkey: paramiko.PKey) -> None:
    with (
        pytest.raises(paramiko.AuthenticationException),
        connected(old_openssh, pkey, transport_factory=legacy_transport, disabled_algorithms={"pubkeys": ["ssh-rsa"]}),
    ):
        pass


def test_a_server_that_names_only_ssh_rsa_gets_one_attempt(rsa: asyncssh.SSHKey, pkey: paramiko.PKey) -> None:
    server = AsyncsshServer(signature_algs=["ssh-rsa"])
    server.login_key = rsa
    with server, connected(server, pkey, transport_factory=legacy_transport) as transport:
        assert vars(transport)["_agreed_pubkey_algorithm"] == "ssh-rsa"
        wait_until(lambda: server.logins() == 1, "the login to be counted")


def test_a_server_without_key_login_gets_one_attempt(sshd: str, pkey: paramiko.PKey) -> None:
    assert sshd
    with (
        OpenSSHServer({"PubkeyAuthentication": "no", "KbdInteractiveAuthentication": "yes"}) as server,
        pytest.raises(paramiko.BadAuthenticationType),
        connected(server, pkey, transport_factory=legacy_transport),
    ):
        pass


def test_a_wrong_rsa_key_is_still_refused(old_openssh: OpenSSHServer) -> None:
    stranger = load_private_key(asyncssh.generate_private_key("ssh-rsa", key_size=2048).export_private_key())
    with (
        pytest.raises(paramiko.AuthenticationException),
        connected(old_openssh, stranger, transport_factory=legacy_transport),
    ):
        pass


def test_other_key_types_log_in_unchanged(openssh: OpenSSHServer) -> None:
    with connected(openssh, load_private_key(openssh.client_key), transport_factory=legacy_transport) as transport:
        assert transport.is_authenticated()
        assert transport.host_key_type == "ssh-ed25519"


def test_a_certificate_is_signed_for_with_sha1(sshd: str, rsa: asyncssh.SSHKey, tmp_path: Path) -> None:
    assert sshd
    authority = asyncssh.generate_private_key("ssh-ed25519")
    (tmp_path / "ca.pub").write_bytes(authority.export_public_key())
    server = OpenSSHServer(
        {**OLD, "PubkeyAcceptedAlgorithms": "ssh-rsa-cert-v01@openssh.com", "AuthorizedKeysFile": "none",
         "TrustedUserCAKeys": str(tmp_path / "ca.pub")},
        host_keys=["ssh-rsa"],
    )  # fmt: skip
    certificate = authority.generate_user_certificate(rsa, "id", principals=[server.username])
    pkey = load_private_key(rsa.export_private_key() + certificate.export_certificate())
    with server, connected(server, pkey, transport_factory=legacy_transport) as transport:
        assert transport.is_authenticated()


class AnyKey(paramiko.ServerInterface):
    """Lets everybody in who signs well."""

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.common.AUTH_SUCCESSFUL

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"


@pytest.mark.parametrize(
    ("host_key", "takes", "signed_with"),
    [
        ("ssh-rsa", ("ssh-rsa",), "ssh-rsa"),
        ("ssh-ed25519", ("ssh-rsa",), "ssh-rsa"),
        ("rsa-sha2-256", ("ssh-rsa", *STRONGER), "rsa-sha2-512"),
    ],
)
def test_without_server_sig_algs_the_host_key_decides_on_sha1(
    host_key: str, takes: tuple[str, ...], signed_with: str, pkey: paramiko.PKey
) -> None:
    ours, theirs = socket.socketpair()
    hidden = {"keys": [name for name in STRONGER if name != host_key], "pubkeys": {*STRONGER} - {*takes}}
    server = LegacyTransport(theirs, server_sig_algs=False, disabled_algorithms=hidden)
    if host_key == "ssh-ed25519":
        server.add_server_key(load_private_key(asyncssh.generate_private_key(host_key).export_private_key()))
    else:
        assert isinstance(pkey, paramiko.RSAKey)
        server.add_server_key(Sha1RSAKey.of(pkey))
    client = legacy_transport(ours)
    try:
        server.start_server(threading.Event(), AnyKey())
        client.start_client(timeout=20)
        assert client.host_key_type == host_key
        assert client.auth_publickey("tester", pkey) == []
        assert vars(client)["_agreed_pubkey_algorithm"] == signed_with
        assert server.auth_handler is not None
        assert vars(server.auth_handler)["auth_fail_count"] == 0
    finally:
        client.close()
        server.close()
        ours.close()
        theirs.close()
