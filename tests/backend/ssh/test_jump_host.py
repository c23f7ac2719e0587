"""Connect through a jump host, and name the host that failed."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest

from airflow_sftp_backend import BackendUnavailable, HostKeyPolicy, SFTPBackend
from airflow_sftp_backend.backend import BackendConfig
from airflow_sftp_backend.backend._protocol.scheduler import SFTPScheduler
from airflow_sftp_backend.backend._ssh.session import Session
from tests.support.servers import AsyncsshServer, Login, OpenSSHServer, Server, free_port, mute_listener, wait_until
from tests.support.sessions import assert_nothing_left, config_of, round_trip


@contextmanager
def behind(target: Server, jump: BackendConfig, **changes: Any) -> Iterator[SFTPBackend]:
    """Backend behind a jump host; nothing stays open at either."""
    backend = SFTPBackend.from_config(config_of(target, jump=jump, **changes))
    try:
        yield backend
    finally:
        backend.close()
        assert_nothing_left(jump.port)


def failure_of(target: Server, jump: BackendConfig, **changes: Any) -> BackendUnavailable:
    """Connect, and return the error."""
    with behind(target, jump, **changes) as backend, pytest.raises(BackendUnavailable) as caught:
        backend.check_health()
    return caught.value


# -- what goes through


def test_transfers_through_a_jump_host_log_in_once_on_each_server(
    bastion: OpenSSHServer, openssh: OpenSSHServer
) -> None:
    folder = openssh.fresh()
    logins = bastion.logins(), openssh.logins()
    content = os.urandom(9 << 20)
    with behind(openssh, config_of(bastion), base_path=folder.base_path) as backend:
        backend.write("a", content)
        assert backend.read_bytes("a") == content
        assert [file.name for file in backend.list_files("")] == ["a"]
        wait_until(lambda: (bastion.logins(), openssh.logins()) == (logins[0] + 1, logins[1] + 1), "one login each")
    assert (folder.path / "a").read_bytes() == content


def test_a_jump_host_may_be_behind_another(
    bastion: OpenSSHServer, openssh: OpenSSHServer, asyncssh_plain: Server
) -> None:
    logins = bastion.logins(), openssh.logins(), asyncssh_plain.logins()
    with behind(asyncssh_plain, config_of(openssh, jump=config_of(bastion))) as backend:
        backend.check_health()
        backend.check_health()
        assert asyncssh_plain.logins() == logins[2] + 1
    wait_until(lambda: (bastion.logins(), openssh.logins()) == (logins[0] + 1, logins[1] + 1), "one login each")
    assert_nothing_left(bastion.port)


class ForwardingLogin(Login):
    """Lets its users go on to wherever they want."""

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        return True


class Forwarding(AsyncsshServer):
    """asyncssh's server, to be gone through."""

    login: ClassVar[type[Login]] = ForwardingLogin


def test_any_ssh_server_can_be_a_jump_host(openssh: OpenSSHServer) -> None:
    with Forwarding() as server, behind(openssh, config_of(server)) as backend:
        backend.check_health()


def test_several_channels_work_through_a_jump_host(bastion: OpenSSHServer, openssh: OpenSSHServer) -> None:
    folder = openssh.fresh()
    content = os.urandom(24 << 20)
    (folder.path / "source").write_bytes(content)
    with behind(openssh, config_of(bastion), base_path=folder.base_path) as backend:
        backend.upload(folder.path / "source", "target", channels=3)
    assert (folder.path / "target").read_bytes() == content


def test_a_copy_uses_the_same_jump_host(bastion: OpenSSHServer, openssh: OpenSSHServer) -> None:
    with behind(openssh, config_of(bastion)) as backend:
        for twin in (copy.deepcopy(backend), pickle.loads(pickle.dumps(backend))):
            with twin:
                logins = bastion.logins()
                twin.check_health()
                wait_until(lambda: bastion.logins() == logins + 1, "a login at the jump host")  # noqa: B023 - at once


# -- how it ends


def test_a_lost_jump_host_is_named_and_reconnected(sshd: str, openssh: OpenSSHServer) -> None:
    assert sshd
    with OpenSSHServer() as bastion, behind(openssh, config_of(bastion)) as backend:

        def lose(scheduler: SFTPScheduler) -> None:
            bastion.kill_sessions()
            round_trip(scheduler)

        with pytest.raises(BackendUnavailable) as caught:
            backend._session.call(lose)
        assert f"(the jump host sftp://{bastion.host}:{bastion.port}: the server closed" in str(caught.value)
        backend.check_health()


def test_a_silent_jump_host_times_out_on_its_own_timeout(openssh: OpenSSHServer) -> None:
    with mute_listener() as silent:
        error = failure_of(openssh, config_of(silent, banner_timeout=0.3))
        assert error.message == "jump host: waiting for the SSH banner: no answer within 0.3 s"
        assert error.server == f"sftp://{silent.host}:{silent.port}"


def test_a_silent_target_times_out_on_its_own_timeout(bastion: OpenSSHServer, openssh: OpenSSHServer) -> None:
    with mute_listener() as silent:
        error = failure_of(openssh, config_of(bastion), port=silent.port, banner_timeout=0.3)
        assert error.message == "waiting for the SSH banner: no answer within 0.3 s"
        assert error.server == f"sftp://{silent.host}:{silent.port}"


def test_closing_while_the_jump_host_is_silent_ends_the_attempt(openssh: OpenSSHServer) -> None:
    with mute_listener() as silent:
        backend = SFTPBackend.from_config(config_of(openssh, jump=config_of(silent)))
        failures: list[BackendUnavailable] = []

        def connect() -> None:
            try:
                backend.check_health()
            except BackendUnavailable as error:
                failures.append(error)

        thread = threading.Thread(target=connect)
        thread.start()
        wait_until(lambda: silent.connections == 1, "the try")
        opening = backend._session._attempt
        assert opening is not None
        opening.abort()
        thread.join(10)
        assert [error.message for error in failures] == [
            "jump host: waiting for the SSH banner: the session was closed meanwhile"
        ]


def test_a_forgotten_connection_leaves_nothing(bastion: OpenSSHServer, openssh: OpenSSHServer) -> None:
    session = Session(config_of(openssh, jump=config_of(bastion)))
    session.call(lambda scheduler: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del session
        gc.collect()
        assert_nothing_left(bastion.port)


def test_a_forked_child_leaves_the_parents_jump_host_alone(bastion: OpenSSHServer, openssh: OpenSSHServer) -> None:
    with behind(openssh, config_of(bastion)) as backend:
        backend.check_health()
        logins = bastion.logins()
        child = os.fork()
        if not child:
            try:
                backend.check_health()
                backend.close()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        wait_until(lambda: bastion.logins() == logins + 1, "the child's login")
        backend.check_health()
        assert bastion.logins() == logins + 1


# -- what goes wrong


def test_an_unknown_host_key_of_the_jump_host_is_refused(bastion: OpenSSHServer, openssh: OpenSSHServer) -> None:
    error = failure_of(openssh, config_of(bastion, known_host_keys=openssh.known_hosts))
    assert str(error).startswith("jump host: unknown host key: the server's key is ssh-ed25519 SHA256:")
    assert bastion.known_hosts.split()[2] in str(error)
    assert error.server == f"sftp://{bastion.host}:{bastion.port}"


def test_the_jump_host_has_its_own_host_key_policy(bastion: OpenSSHServer, openssh: OpenSSHServer) -> None:
    lenient = config_of(bastion, known_host_keys=None, host_key_policy=HostKeyPolicy.AUTO_ADD)
    error = failure_of(openssh, lenient, known_host_keys=bastion.known_hosts)
    assert str(error).startswith("unknown host key: ")
    assert error.server == f"sftp://{openssh.host}:{openssh.port}"


def test_a_login_refused_by_the_jump_host_is_not_retried(bastion: OpenSSHServer, openssh: OpenSSHServer) -> None:
    connections = bastion.connections()
    error = failure_of(openssh, config_of(bastion, username="nobody-at-all"), retry=BackendConfig(host="h").retry)
    assert str(error).startswith("jump host: the server refuses the login of 'nobody-at-all': refused: the ssh-")
    assert error.server == f"sftp://{bastion.host}:{bastion.port}"
    assert bastion.connections() == connections + 1


def test_a_jump_host_that_refuses_forwarding_says_what_to_allow(sshd: str, openssh: OpenSSHServer) -> None:
    assert sshd
    with OpenSSHServer({"AllowTcpForwarding": "no"}) as bastion:
        error = failure_of(openssh, config_of(bastion), retry=BackendConfig(host="h").retry)
        target = f"{openssh.host}:{openssh.port}"
        assert str(error) == (
            f"the jump host sftp://{bastion.host}:{bastion.port} does not forward to {target} (administratively"
            " prohibited); have the forwarding allowed (in OpenSSH's sshd_config: AllowTcpForwarding yes, and"
            f" {target} in PermitOpen if PermitOpen is set) (on sftp://{target})"
        )
        assert bastion.connections() == 1


def test_a_target_the_jump_host_cannot_reach_is_named(bastion: OpenSSHServer, openssh: OpenSSHServer) -> None:
    port = free_port()
    error = failure_of(openssh, config_of(bastion), port=port)
    assert str(error).startswith(
        f"the jump host sftp://{bastion.host}:{bastion.port} cannot reach {openssh.host}:{port} (connect"
    )


def test_an_unreachable_jump_host_is_named(openssh: OpenSSHServer, bastion: OpenSSHServer) -> None:
    nowhere = config_of(bastion, port=free_port())
    error = failure_of(openssh, nowhere)
    assert str(error).startswith("jump host: connecting: the server refuses connections")
    assert (error.hop, error.attempts) == ("jump host", 1)
    assert error.server == nowhere.address


@pytest.mark.parametrize(
    ("changes", "expected_text"),
    [
        ({"jump": "bastion"}, "jump must be a BackendConfig, not str"),
        ({"jump": BackendConfig(host="b"), "proxy_command": "nc"}, "set either jump or proxy_command, not both"),
    ],
)
def test_an_invalid_jump_configuration_is_refused(changes: dict[str, Any], expected_text: str) -> None:
    with pytest.raises(ValueError, match=expected_text):
        BackendConfig(host="h", **changes)
