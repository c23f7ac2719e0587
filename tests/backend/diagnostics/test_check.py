"""Diagnose a connection: its results, where it stops, and its hints."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from airflow_sftp_backend import HostKeyPolicy, Secret, SFTPBackend
from airflow_sftp_backend.backend import BackendConfig
from airflow_sftp_backend.backend._diagnostics import probes
from airflow_sftp_backend.backend._diagnostics.check import CheckResult, CheckTitle, Diagnosis, Probe, diagnose
from tests.support.servers import (
    AsyncsshServer,
    DeniesEverything,
    Listener,
    Login,
    NoSubsystem,
    OpenSSHServer,
    chatty_listener,
    closing_listener,
    free_port,
    mute_listener,
)
from tests.support.sessions import Address, assert_nothing_left, config_of

ALL_PROBES: Mapping[CheckTitle, Probe] = {
    CheckTitle.WRITING: probes.writing,
    CheckTitle.SPEED: probes.speed,
    CheckTitle.ALL_HOST_KEYS: probes.host_keys,
}


def found_at(server: Address, probes: Mapping[CheckTitle, Probe] | None = None, **changes: Any) -> Diagnosis:
    """The diagnosis of a server, of which nothing is left behind."""
    config = config_of(server, **changes)
    found = diagnose(config, probes)
    assert_nothing_left(config.port)
    return found


def step(found: Diagnosis, title: str) -> CheckResult:
    """The step of that title."""
    (one,) = (step for step in found.steps if step.title == title)
    return one


def failure(found: Diagnosis) -> tuple[str, str]:
    """Return title and text of the failed step, the last one."""
    assert not found.ok
    assert [step.ok for step in found.steps] == [True] * (len(found.steps) - 1) + [False]
    return found.steps[-1].title, "\n".join(found.steps[-1].lines)


# -- what is found


def test_every_step_is_reported(openssh: OpenSSHServer) -> None:
    folder = openssh.fresh()
    (folder.path / "a").write_bytes(b"")
    found = found_at(openssh, base_path=folder.base_path)
    assert found.ok
    assert (found.server, found.username) == (f"sftp://127.0.0.1:{openssh.port}", openssh.username)
    assert [one.title for one in found.steps] == [
        "Name", "Server", "Encryption", "Host key", "Login", "SFTP", "Base path", "Round trip",
    ]  # fmt: skip
    key = openssh.host_keys[0]
    assert step(found, "Name").data == {"addresses": ["127.0.0.1"]}
    assert step(found, "Server").lines[0].startswith("SSH-2.0-OpenSSH")
    assert step(found, "Encryption").data == {
        "key_exchange": "curve25519-sha256@libssh.org",
        "cipher": "aes128-gcm@openssh.com",
        "mac": "",
        "compression": "none",
        "strict_key_exchange": True,
    }
    assert step(found, "Host key").data == {
        "type": "ssh-ed25519",
        "fingerprint": key.get_fingerprint(),
        "known_hosts": openssh.known_hosts.splitlines()[0],
        "trust": "known_host_keys line 1",
    }
    login = step(found, "Login").data
    assert login["methods"] == ["publickey"]
    assert login["accepted"] == [f"the ssh-ed25519 key {openssh.login_key.get_fingerprint()}"]
    sftp = step(found, "SFTP").data
    assert sftp["limits"] == {"read": 261120, "write": 261120}
    assert isinstance(sftp["extensions"], dict)
    assert sftp["extensions"]["posix-rename@openssh.com"] == "1"
    assert step(found, "Base path").data == {"path": folder.base_path, "real_path": folder.base_path, "entries": 1}
    assert step(found, "Round trip").lines[0].endswith("ms (the median of 7)")


def test_the_reported_algorithms_are_those_negotiated() -> None:
    options = {"Ciphers": "aes256-ctr", "MACs": "hmac-sha2-512", "KexAlgorithms": "ecdh-sha2-nistp384"}
    with OpenSSHServer(options) as server:
        data = step(found_at(server, compress=True), "Encryption").data
    assert (data["cipher"], data["mac"], data["key_exchange"]) == ("aes256-ctr", "hmac-sha2-512", "ecdh-sha2-nistp384")
    assert data["compression"] == "zlib@openssh.com"


def test_a_relative_base_path_is_shown_with_its_absolute_path(openssh: OpenSSHServer) -> None:
    found = found_at(openssh, base_path=".")
    assert step(found, "Base path").lines[0] == f"., which is {openssh.root}"


class CountingLogin(Login):
    """Notes each password it is shown."""

    shown: ClassVar[list[str]] = []

    def validate_password(self, username: str, password: str) -> bool:
        self.shown.append(password)
        return super().validate_password(username, password)


class Counting(AsyncsshServer):
    """Notes each password it is shown."""

    login = CountingLogin


def test_auth_methods_are_queried_and_a_wrong_password_is_sent_once() -> None:
    CountingLogin.shown.clear()
    with Counting() as server:
        assert step(found_at(server, password=server.password), "Login").data["methods"] == [
            "publickey", "keyboard-interactive", "password",
        ]  # fmt: skip
        found = found_at(server, password="wrong horse")
        assert CountingLogin.shown == [server.password, "wrong horse"]
    title, text = failure(found)
    assert title == "Login"
    assert "refused: the password; accepted methods: publickey, keyboard-interactive, password" in text
    assert "check the user name and the password" in text
    assert "wrong horse" not in repr(found)


def test_the_jump_host_is_reported_too(bastion: OpenSSHServer, openssh: OpenSSHServer) -> None:
    found = found_at(openssh, jump=config_of(bastion))
    assert step(found, "Name").lines[0] == "127.0.0.1 is resolved by the jump host"
    lines = step(found, "Jump host").lines
    assert lines[0] == f"sftp://127.0.0.1:{bastion.port} as {bastion.username}"
    assert f"ssh-ed25519 {bastion.host_keys[0].get_fingerprint()}" in lines
    assert step(found, "Host key").lines[0].endswith(openssh.host_keys[0].get_fingerprint())


# -- where it stops: on the way


def test_an_unresolvable_host_name_is_reported() -> None:
    title, text = failure(diagnose(BackendConfig(host="nowhere.invalid")))
    assert title == "Name"
    assert "the host name cannot be resolved" in text
    assert "check its spelling and DNS" in text


@pytest.mark.parametrize(
    ("make", "expected_text"),
    [
        (mute_listener, "waiting for the SSH banner: no answer within 0.3 s"),
        (chatty_listener, "the server does not speak SSH but says '220 mail.example.org ESMTP ready"),
        (lambda: Listener(b"HTTP/1.1 400 Bad Request\r\n\r\n", hangs_up=True), "says 'HTTP/1.1 400 Bad Request"),
        (closing_listener, "too many connections at once, an address ban or a firewall are usual causes"),
    ],
    ids=["silent", "mail", "web", "closing"],
)
def test_who_is_no_ssh_server(make: Callable[[], AbstractContextManager[Listener]], expected_text: str) -> None:
    with make() as listener:
        title, text = failure(found_at(listener, banner_timeout=0.3))
    assert title == "Connection"
    assert expected_text in text


def test_an_unreachable_host_is_reported() -> None:
    title, text = failure(diagnose(BackendConfig(host="127.0.0.1", port=free_port())))
    assert title == "Connection"
    assert "the server refuses connections; check host, port and firewall, and that the server runs" in text


def test_an_unknown_jump_host_is_named_with_its_own_line(bastion: OpenSSHServer, openssh: OpenSSHServer) -> None:
    found = found_at(openssh, jump=config_of(bastion, known_host_keys="SHA256:" + "A" * 43))
    title, text = failure(found)
    assert title == "Jump host"
    assert f"sftp://127.0.0.1:{bastion.port}" in text
    assert bastion.known_hosts in "\n".join(found.advice)


# -- where it stops: the host key


def test_an_unknown_host_key_comes_with_its_known_hosts_line(openssh: OpenSSHServer, tmp_path: Path) -> None:
    logins = openssh.logins()
    missing = str(tmp_path / "none")
    found = found_at(openssh, known_host_keys=None, host_keys_path=missing)
    title, text = failure(found)
    assert title == "Host key"
    assert "unknown host key" in text
    assert (
        f"add this line to known_host_keys, or to {missing} on this machine:\n{openssh.known_hosts.splitlines()[0]}\n"
        in text
    )
    assert openssh.logins() == logins
    to_paste = json.loads(found.advice[-1].partition("Extra: ")[2])
    assert found_at(openssh, **to_paste).ok


def test_a_changed_host_key_shows_both_keys_and_the_new_line(openssh: OpenSSHServer, bastion: OpenSSHServer) -> None:
    other = f"[127.0.0.1]:{openssh.port} {bastion.known_hosts.split(' ', 1)[1]}"
    found = found_at(openssh, known_host_keys=other)
    title, text = failure(found)
    assert title == "Host key"
    assert "wrong host key" in text
    for server in (openssh, bastion):
        assert server.host_keys[0].get_fingerprint() in text
    assert openssh.known_hosts.splitlines()[0] in found.advice[-1]


def test_a_revoked_key_comes_without_advice_to_trust_it(openssh: OpenSSHServer) -> None:
    found = found_at(openssh, known_host_keys=f"@revoked {openssh.known_hosts.splitlines()[0]}")
    title, text = failure(found)
    assert title == "Host key"
    assert "Do not connect until the server has a new key" in text
    assert found.advice == ()


@pytest.mark.parametrize(
    ("policy", "why"), [(HostKeyPolicy.AUTO_ADD, "accepted unchecked"), (HostKeyPolicy.TRUST_ON_FIRST_USE, "first use")]
)
def test_a_key_trusted_by_policy_alone_is_marked(
    openssh: OpenSSHServer, tmp_path: Path, policy: HostKeyPolicy, why: str
) -> None:
    path = str(tmp_path / "known_hosts")
    found = found_at(openssh, known_host_keys=None, host_keys_path=path, host_key_policy=policy)
    assert str(step(found, "Host key").data["trust"]).startswith(why)


# -- where it stops: algorithms


def widening(options: dict[str, str], host_keys: tuple[str, ...] = ("ssh-ed25519",), **changes: Any) -> str:
    """The advice for a server that knows only these."""
    with OpenSSHServer(options, host_keys=host_keys) as server:
        found = found_at(server, **changes)
    title, text = failure(found)
    assert title == "Encryption"
    assert "the server and this client have no algorithm in common" in text
    return "\n".join(found.advice)


def test_a_missing_common_cipher_is_explained() -> None:
    advice = widening({"Ciphers": "chacha20-poly1305@openssh.com"})
    assert "ciphers in common: none; the server offers chacha20-poly1305@openssh.com" in advice
    assert "no setting helps: the server must allow one of aes128-gcm@openssh.com, aes128-ctr" in advice


def test_a_too_narrow_cipher_list_is_explained() -> None:
    advice = widening({"Ciphers": "aes256-ctr"}, ciphers=("aes128-ctr",))
    assert (
        "the server offers aes256-ctr\nciphers allows none of these: remove the setting, or add one of these" in advice
    )


def test_a_disabled_algorithm_is_explained() -> None:
    advice = widening(
        {"KexAlgorithms": "ecdh-sha2-nistp256"}, disabled_algorithms={"kex": ("ecdh-sha2-nistp256", "other")}
    )
    assert "key exchange algorithms in common: none; the server offers ecdh-sha2-nistp256" in advice
    assert advice.endswith("remove ecdh-sha2-nistp256 from disabled_algorithms (kex)")


def test_a_missing_common_mac_is_explained() -> None:
    advice = widening({"Ciphers": "aes128-ctr", "MACs": "umac-64@openssh.com"})
    assert "MACs in common: none; the server offers umac-64@openssh.com" in advice


def test_a_server_that_signs_only_with_sha1_is_explained() -> None:
    options = {"HostKeyAlgorithms": "ssh-rsa", "PubkeyAcceptedAlgorithms": "+ssh-rsa"}
    advice = widening(options, host_keys=("ssh-rsa",))
    assert 'set in Extra: {"allow_ssh_rsa_sha1": true}' in advice
    with OpenSSHServer(options, host_keys=("ssh-rsa",)) as server:
        assert found_at(server, allow_ssh_rsa_sha1=True).ok


# -- where it stops: the login


PUTTY = "PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\nComment: me\nPublic-Lines: 2\nAAAAC3NzaC1lZDI1NTE5AAAA\n"


def test_a_putty_key_comes_with_how_to_convert_it(openssh: OpenSSHServer) -> None:
    title, text = failure(found_at(openssh, key_file=None, private_key=Secret(PUTTY)))
    assert title == "Login"
    assert "is a PuTTY key (.ppk); convert it with `puttygen KEY.ppk -O private-openssh -o KEY`" in text


def test_a_missing_or_wrong_passphrase_is_explained(openssh: OpenSSHServer) -> None:
    key = Secret(
        openssh.login_key.export_private_key("openssh", passphrase="right", rounds=1, ignore_few_rounds=True).decode()
    )
    for given, expected_text in [(None, "set the passphrase"), (Secret("Wr0ng"), "the passphrase is wrong")]:
        title, text = failure(found_at(openssh, key_file=None, private_key=key, passphrase=given))
        assert title == "Login"
        assert expected_text in text
        assert "Wr0ng" not in text


def test_a_key_unknown_to_the_server_is_explained(openssh: OpenSSHServer, bastion: OpenSSHServer) -> None:
    title, text = failure(found_at(openssh, key_file=str(bastion.client_key)))
    assert title == "Login"
    assert "check the user name and that the key is among the user's authorized keys on the server" in text


# -- where it stops: files


def test_a_server_without_the_sftp_subsystem_is_named() -> None:
    with NoSubsystem() as server:
        title, text = failure(found_at(server))
    assert title == "SFTP"
    assert "sshd_config: Subsystem sftp internal-sftp" in text


def test_a_base_path_that_is_missing_or_a_file_is_explained(openssh: OpenSSHServer) -> None:
    folder = openssh.fresh()
    (folder.path / "file").write_bytes(b"")
    for name, expected_text in [("none", "no such directory"), ("file", "the path is a file, not a directory")]:
        path = f"{folder.base_path}/{name}"
        found = found_at(openssh, base_path=path)
        assert failure(found) == ("Base path", f"{expected_text} ({path!r} on sftp://127.0.0.1:{openssh.port})")
        assert found.advice[0].startswith("base_path is a directory on the server: absolute, or relative to")


def test_a_denied_base_path_is_explained() -> None:
    with DeniesEverything() as server:
        title, text = failure(found_at(server, base_path="/somewhere"))
    assert title == "Base path"
    assert "permission denied; check the rights of the login user on the server" in text
    assert "'/somewhere'" in text


# -- probes


def test_the_probes_report_what_they_did_and_leave_nothing(openssh: OpenSSHServer, tmp_path: Path) -> None:
    folder = openssh.fresh()
    found = found_at(openssh, ALL_PROBES, base_path=folder.base_path)
    assert found.ok
    assert step(found, "Writing").lines[0] == "a file was written, renamed, read and removed"
    assert "MB/s, down" in step(found, "Speed").lines[0]
    assert step(found, "Speed").data["bytes"] in {1 << 20, 8 << 20, 64 << 20}
    host_keys = step(found, "All host keys").data["keys"]
    assert isinstance(host_keys, list)
    assert {one["known_hosts"] for one in host_keys} == set(openssh.known_hosts.splitlines())
    assert all(one["trust"].startswith("known_host_keys line") for one in host_keys)
    assert os.listdir(folder.path) == []


def test_unknown_keys_are_shown_and_not_stored(openssh: OpenSSHServer, tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    first = openssh.known_hosts.splitlines()[0] + "\n"
    file.write_text(first)
    found = found_at(
        openssh,
        {CheckTitle.ALL_HOST_KEYS: probes.host_keys},
        known_host_keys=None, host_keys_path=str(file), host_key_policy=HostKeyPolicy.TRUST_ON_FIRST_USE,
    )  # fmt: skip
    lines = step(found, "All host keys").lines
    assert [line.endswith("(not among the known keys)") for line in lines] == [False, True, True]
    assert file.read_text() == first


def test_a_directory_that_is_not_writable_is_explained() -> None:
    with OpenSSHServer({"Subsystem": "sftp internal-sftp -R"}) as server:
        folder = server.fresh()
        title, text = failure(found_at(server, {CheckTitle.WRITING: probes.writing}, base_path=folder.base_path))
    assert title == "Writing"
    assert "permission denied; check the rights of the login user on the server" in text


class Interrupted(SFTPBackend):
    """Is interrupted while it reads."""

    def read_bytes(self, path: str) -> bytes:
        raise KeyboardInterrupt


def test_an_interrupted_probe_removes_its_file(openssh: OpenSSHServer) -> None:
    folder = openssh.fresh()
    backend = Interrupted.from_config(config_of(openssh, base_path=folder.base_path))
    with backend, pytest.raises(KeyboardInterrupt):
        probes.writing(backend)
    assert os.listdir(folder.path) == []


class Locked(Interrupted):
    """Loses the right to remove what it has written."""

    def delete(self, path: str, missing_ok: bool = False) -> None:
        super().delete(path + "-other")


def test_a_probe_file_that_could_not_be_removed_is_named(openssh: OpenSSHServer) -> None:
    folder = openssh.fresh()
    backend = Locked.from_config(config_of(openssh, base_path=folder.base_path))
    with backend, pytest.raises(KeyboardInterrupt) as caught:
        probes.writing(backend)
    (left,) = os.listdir(folder.path)
    assert caught.value.__notes__[0].startswith(f"{folder.base_path}/{left} may be left on the server: ")
    assert stat.S_ISREG((folder.path / left).stat().st_mode)


def test_warnings_about_the_settings_come_first() -> None:
    found = diagnose(BackendConfig(host="127.0.0.1", port=free_port(), notes=("basepath is not known",)))
    assert (found.steps[0].title, found.steps[0].lines) == ("Settings", ("basepath is not known",))
