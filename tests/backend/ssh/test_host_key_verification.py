"""Decide on host keys by policy, and store keys on first use."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import paramiko
import psutil
import pytest

from airflow_sftp_backend.backend import BackendConfig, HostKeyPolicy, HostKeyRejected
from airflow_sftp_backend.backend._ssh.host_certificates import fingerprint
from airflow_sftp_backend.backend._ssh.host_key_verification import HostKeyStatus, HostKeyVerifier, decide
from airflow_sftp_backend.backend._ssh.known_hosts import KnownHosts
from tests.support.host_keys import AUTHORITY, HOST, NAME, NOW, PORT, blob, certificate, new_key, text
from tests.support.servers import OpenSSHServer, small_disk, wait_until


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the path of known_hosts."""
    return tmp_path / "ssh" / "known_hosts"


Make = Callable[..., HostKeyVerifier]


@pytest.fixture
def checker(file: Path) -> Make:
    """``checker(policy, inline keys, environment, **configuration)``."""

    def make(
        policy: HostKeyPolicy = HostKeyPolicy.STRICT, inline: str | None = None, env: str | None = None, **more: Any
    ) -> HostKeyVerifier:
        config = BackendConfig(
            **{"host": HOST, "port": PORT, "host_keys_path": str(file), **more},
            host_key_policy=policy,
            known_host_keys=inline,
        )
        return HostKeyVerifier(config, {} if env is None else {"SFTP_KNOWN_HOST_KEYS": env}, lambda: NOW)

    return make


def write(file: Path, lines: str) -> None:
    """Fills the known_hosts file."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(lines)


def rejection(made: HostKeyVerifier, key: bytes) -> str:
    """The text of the refusal."""
    with pytest.raises(HostKeyRejected) as caught:
        made.check(key)
    assert caught.value.server == f"sftp://{HOST}:{PORT}"
    return caught.value.message


STRICT, TOFU, AUTO = HostKeyPolicy.STRICT, HostKeyPolicy.TRUST_ON_FIRST_USE, HostKeyPolicy.AUTO_ADD


@pytest.mark.parametrize("policy", HostKeyPolicy)
def test_a_known_key_is_trusted_and_its_line_named(policy: HostKeyPolicy, checker: Make, file: Path) -> None:
    write(file, f"\n{NAME} {text()}\n")
    assert checker(policy).check(blob()) == f"{file} line 2"
    assert checker(policy, f"{NAME} {text()}").check(blob()) == "known_host_keys line 1"
    assert checker(policy, env=f"{NAME} {text()}").check(blob()) == "SFTP_KNOWN_HOST_KEYS line 1"


@pytest.mark.parametrize("policy", HostKeyPolicy)
@pytest.mark.parametrize("other", [("ssh-ed25519", 1), ("ssh-rsa", 0)])
@pytest.mark.parametrize("where", ["inline", "env", "file"])
def test_a_changed_key_is_refused_by_every_policy(
    where: str, other: tuple[str, int], policy: HostKeyPolicy, checker: Make, file: Path
) -> None:
    line = f"{NAME} {text()}"
    write(file, line if where == "file" else "")
    message = rejection(checker(policy, **({} if where == "file" else {where: line})), blob(*other))
    source = {"inline": "known_host_keys", "env": "SFTP_KNOWN_HOST_KEYS", "file": str(file)}[where]
    assert message.startswith(f"wrong host key: the server's key is {other[0]} {fingerprint(blob(*other))}")
    assert f"ssh-ed25519 {fingerprint(blob())} ({source} line 1)" in message
    assert f"\n{NAME} {text(*other)}\n" in message
    assert file.read_text() == (line if where == "file" else "")


@pytest.mark.parametrize("policy", HostKeyPolicy)
def test_a_revoked_key_is_refused_by_every_policy(policy: HostKeyPolicy, checker: Make, file: Path) -> None:
    write(file, f"@revoked * {text()}\n")
    message = rejection(checker(policy), blob())
    assert message.startswith("revoked host key: ")
    assert text() not in message, "no line to add"


def test_an_unknown_key_is_refused_with_a_hint(checker: Make, file: Path) -> None:
    write(file, f"other {text(number=1)}\n")
    message = rejection(checker(), blob())
    assert message.startswith(f"unknown host key: the server's key is ssh-ed25519 {fingerprint(blob())}")
    assert f"no line of {file} names {NAME}" in message
    assert f"add this line to known_host_keys, or to {file} on this machine:\n{NAME} {text()}\n" in message
    assert checker(inline=message.splitlines()[1]).check(blob())


def test_a_missing_known_hosts_file_is_named(checker: Make, file: Path) -> None:
    assert f"{file} does not exist" in rejection(checker(), blob())
    assert not file.exists()


@pytest.mark.parametrize("policy", HostKeyPolicy)
def test_an_unreadable_known_hosts_file_trusts_no_host(policy: HostKeyPolicy, checker: Make, file: Path) -> None:
    file.mkdir(parents=True)
    made = checker(policy)
    assert f"cannot be checked: {file} cannot be read" in rejection(made, blob())
    with pytest.raises(HostKeyRejected):
        made.preferred_types()


@pytest.mark.parametrize("policy", HostKeyPolicy)
def test_a_malformed_host_key_is_refused(policy: HostKeyPolicy, checker: Make) -> None:
    assert "not a public key" in rejection(checker(policy), b"nonsense")


def test_configured_keys_take_precedence_over_the_file(checker: Make, file: Path) -> None:
    write(file, f"{NAME} {text(number=2)}\n")
    inline, env = f"{NAME} {text()}", f"{NAME} {text(number=1)}"
    assert checker(inline=inline, env=env).check(blob())
    rejection(checker(inline=inline, env=env), blob(number=1))
    rejection(checker(inline=inline, env=env), blob(number=2))
    assert checker(env=env).check(blob(number=1))
    rejection(checker(env=env), blob(number=2))
    assert checker(inline=" \n", env=" ").check(blob(number=2)), "blank is not given"


def test_strict_policy_ignores_the_file_if_keys_are_configured(checker: Make, file: Path) -> None:
    write(file, f"{NAME} {text()}\n")
    message = rejection(checker(inline=f"other {text(number=1)}"), blob())
    assert "no line of known_host_keys names" in message


def test_only_configured_keys_may_omit_the_host(checker: Make) -> None:
    assert checker(inline=fingerprint(blob())).check(blob())
    assert "without a host name" in rejection(checker(env=fingerprint(blob())), blob())


@pytest.mark.parametrize("joint", ["\\n", "\\r\\n", " ", "\r\n", "  \t "])
@pytest.mark.parametrize("comment", ["", " root@host", " two words"])
def test_joined_lines_are_separated(joint: str, comment: str, checker: Make) -> None:
    lines = [f"{NAME} {text()}{comment}", f"{NAME} {text('ssh-rsa')}{comment}", f"@revoked * {text(number=3)}{comment}"]
    made = checker(inline=joint.join(lines))
    assert made.check(blob()) == "known_host_keys line 1"
    assert made.check(blob("ssh-rsa")) == "known_host_keys line 2"
    assert "line 3" in rejection(made, blob(number=3))


def test_joined_fingerprints_are_separated(checker: Make) -> None:
    lines = [f"256 {fingerprint(blob())} root@host (ED25519)", f"{fingerprint(blob('ssh-rsa'))} (RSA)",
             fingerprint(blob(number=2)), f"{NAME} {fingerprint(blob(number=3))}"]  # fmt: skip
    made = checker(inline=" ".join(lines))
    assert made.preferred_types() == ("ssh-ed25519", "rsa-sha2-512", "rsa-sha2-256")
    for key in (blob(), blob("ssh-rsa"), blob(number=2), blob(number=3)):
        assert made.check(key)


def test_algorithms_of_known_keys_are_requested_first(checker: Make, file: Path) -> None:
    assert checker().preferred_types() == ()
    write(file, f"{NAME} {text('ecdsa-sha2-nistp256')}\n")
    rsa = f"{NAME} {text('ssh-rsa')}\n{NAME} {text()}"
    assert checker(inline=rsa).preferred_types() == ("rsa-sha2-512", "rsa-sha2-256", "ssh-ed25519")
    assert checker(inline=rsa, allow_ssh_rsa_sha1=True).preferred_types()[:3] == (
        "rsa-sha2-512", "rsa-sha2-256", "ssh-rsa",
    )  # fmt: skip
    assert checker().preferred_types() == ("ecdsa-sha2-nistp256",)
    assert checker(TOFU, inline=f"other {text()}").preferred_types() == ("ecdsa-sha2-nistp256",)
    certified = checker(inline=AUTHORITY).preferred_types()
    assert certified[0] == "ssh-ed25519-cert-v01@openssh.com"
    assert "rsa-sha2-512-cert-v01@openssh.com" in certified


def test_unreadable_lines_are_logged_once_and_shown(
    checker: Make, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(file, f"{NAME} ssh-ed25519 AAAA\n{NAME} nonsense\n")
    made = checker()
    for _ in range(2):
        made.preferred_types()
        message = rejection(made, blob())
        assert f"{file} line 1: the ssh-ed25519 key is damaged" in message
        assert f"{file} line 2: unknown key type" in message
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_a_known_hosts_file_that_is_not_utf8_is_read(checker: Make, file: Path) -> None:
    write(file, "")
    file.write_bytes(b"h\xf6st ssh-rsa caf\xe9\n" + f"{NAME} {text()} J\u00fcrgen\n".encode("latin-1"))
    assert checker().check(blob()) == f"{file} line 2"


def test_auto_accepts_an_unknown_key_with_a_warning(
    checker: Make, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert "unchecked" in checker(AUTO, inline=f"other {text(number=1)}").check(blob())
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{NAME} {text()}" in record.getMessage()
    assert not file.exists()


# ---- trust on first use


def test_the_first_key_is_stored_and_a_different_one_refused(checker: Make, file: Path) -> None:
    assert checker(TOFU).check(blob()) == f"first use; added to {file}"
    assert file.read_text() == f"{NAME} {text()}\n"
    assert checker(TOFU).check(blob()) == f"{file} line 1"
    rejection(checker(TOFU), blob(number=1))
    rejection(checker(TOFU), blob("ssh-rsa"))
    assert checker(STRICT).check(blob())
    assert file.read_text() == f"{NAME} {text()}\n"


def test_the_key_of_an_unknown_authoritys_certificate_is_stored(checker: Make, file: Path) -> None:
    checker(TOFU).check(certificate(HOST))
    assert file.read_text() == f"{NAME} {text()}\n"
    assert checker(STRICT).check(blob())


def test_created_files_and_directories_are_private(checker: Make, file: Path) -> None:
    umask = os.umask(0)
    try:
        checker(TOFU).check(blob())
    finally:
        os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_existing_lines_and_modes_are_kept(checker: Make, file: Path) -> None:
    write(file, f"# mine\nother {text(number=1)}")  # no final newline
    file.chmod(0o640)
    checker(TOFU).check(blob())
    assert file.read_text() == f"# mine\nother {text(number=1)}\n{NAME} {text()}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.parametrize("dangling", [False, True])
def test_a_linked_file_stays_a_link(dangling: bool, checker: Make, file: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    file.parent.mkdir()
    file.symlink_to(target)
    if not dangling:
        target.write_text("# mine\n")
    checker(TOFU).check(blob())
    assert file.is_symlink()
    assert target.read_text().endswith(f"{NAME} {text()}\n")


def test_configured_keys_for_the_host_override_the_file(checker: Make, file: Path) -> None:
    file.mkdir(parents=True)  # would be an error if it were read
    made = checker(TOFU, inline=f"{NAME} {text()}")
    assert made.check(blob()) == "known_host_keys line 1"
    rejection(made, blob(number=1))


def test_without_configured_keys_for_the_host_the_file_decides(checker: Make, file: Path) -> None:
    made = checker(TOFU, inline=f"other {text(number=1)}")
    assert made.check(blob()) == f"first use; added to {file}"
    assert made.check(blob()) == f"{file} line 1"
    assert f"({file} line 1)" in rejection(made, blob(number=1))


@pytest.mark.parametrize("same", [True, False])
def test_concurrent_processes_add_one_line(same: bool, checker: Make, file: Path) -> None:
    count = 16
    made = [checker(TOFU) for _ in range(count)]
    start = threading.Barrier(count)

    def one(number: int) -> str:
        start.wait()
        try:
            return made[number].check(blob(number=0 if same else number % 4))
        except HostKeyRejected:
            return "rejected"

    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(one, range(count)))
    assert len(file.read_text().splitlines()) == 1
    assert sum(result.startswith("first use") for result in results) == 1
    assert results.count("rejected") == (0 if same else 12)


def test_concurrently_added_hosts_are_all_stored(checker: Make, file: Path) -> None:
    hosts = [f"host{number}" for number in range(16)]
    with ThreadPoolExecutor(len(hosts)) as pool:
        list(pool.map(lambda host: checker(TOFU, host=host).check(blob()), hosts))
    assert sorted(file.read_text().splitlines()) == sorted(f"[{host}]:{PORT} {text()}" for host in hosts)


def test_a_line_is_added_to_a_concurrently_replaced_file(checker: Make, file: Path) -> None:
    write(file, "# old\n")
    with file.open() as holder, ThreadPoolExecutor(1) as pool:
        fcntl.flock(holder, fcntl.LOCK_EX)
        result = pool.submit(checker(TOFU).check, blob())
        wait_until(lambda: [f.path for f in psutil.Process().open_files()].count(str(file)) == 2, "a second opening")
        new = file.with_name("new")
        new.write_text("# new\n")
        new.replace(file)
        fcntl.flock(holder, fcntl.LOCK_UN)
        assert result.result().startswith("first use")
    assert file.read_text() == f"# new\n{NAME} {text()}\n"


@pytest.mark.parametrize("number", [0, 1])
def test_a_concurrently_added_line_is_respected(number: int, checker: Make, file: Path) -> None:
    write(file, "")
    with file.open("a") as holder, ThreadPoolExecutor(1) as pool:
        fcntl.flock(holder, fcntl.LOCK_EX)
        result = pool.submit(checker(TOFU).check, blob())
        wait_until(lambda: [f.path for f in psutil.Process().open_files()].count(str(file)) == 2, "a second opening")
        holder.write(f"{NAME} {text(number=number)}\n")
        holder.flush()
        fcntl.flock(holder, fcntl.LOCK_UN)
        if number == 0:
            assert result.result() == f"{file} line 1"
        else:
            with pytest.raises(HostKeyRejected, match="wrong host key"):
                result.result()
    assert file.read_text() == f"{NAME} {text(number=number)}\n"


def test_the_wait_for_a_held_lock_is_bounded(checker: Make, file: Path) -> None:
    write(file, "")
    with file.open() as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        message = rejection(checker(TOFU, timeout=0.05), blob())
    assert "another process holds the lock" in message
    assert file.read_text() == ""


def test_a_key_that_cannot_be_stored_is_not_trusted(checker: Make, tmp_path: Path) -> None:
    (tmp_path / "in the way").write_text("")
    message = rejection(checker(TOFU, host_keys_path=str(tmp_path / "in the way" / "known_hosts")), blob())
    assert "cannot be" in message


def test_a_full_disk_leaves_known_hosts_unchanged(checker: Make) -> None:
    with small_disk(1 << 16) as folder:
        if folder is None:
            pytest.skip("this user may not mount a small disk")
        known_hosts = folder / "known_hosts"
        known_hosts.write_text(f"# {'-' * 4000}\n")
        with (folder / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(1024))
        message = rejection(checker(TOFU, host_keys_path=str(known_hosts)), blob())
        assert "No space left on device" in message
        assert known_hosts.read_text() == f"# {'-' * 4000}\n"


def test_the_default_file_is_the_users_known_hosts(
    checker: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    checker(TOFU, host_keys_path=None).check(blob())
    assert (tmp_path / ".ssh" / "known_hosts").read_text() == f"{NAME} {text()}\n"
    assert stat.S_IMODE((tmp_path / ".ssh").stat().st_mode) == 0o700


# ---- a real server


@pytest.fixture(scope="module")
def certified(sshd: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSSHServer]:
    """sshd with a host certificate beside its host key."""
    assert sshd
    path = tmp_path_factory.mktemp("certified") / "host-cert.pub"
    server = OpenSSHServer({"HostCertificate": str(path)})
    made = new_key(number=9).generate_host_certificate(server.host_keys[0], "id", principals=[server.host])
    path.write_bytes(made.export_certificate())
    with server:
        yield server


def shown_by(server: OpenSSHServer, algorithm: str) -> bytes:
    """Return the host key that the server sends, verified by paramiko."""
    transport = paramiko.Transport((server.host, server.port))
    try:
        transport.get_security_options().key_types = [algorithm]
        transport.start_client(timeout=20)
        key = transport.get_remote_server_key()
        certificate_blob = getattr(key, "public_blob", None)
        return key.asbytes() if certificate_blob is None else bytes(certificate_blob.key_blob)
    finally:
        transport.close()


def test_a_real_host_certificate_is_trusted(certified: OpenSSHServer) -> None:
    config = BackendConfig(
        host=certified.host, port=certified.port, known_host_keys=f"@cert-authority 127.* {text(number=9)}"
    )
    made = HostKeyVerifier(config, {})
    algorithm = made.preferred_types()[0]
    assert algorithm == "ssh-ed25519-cert-v01@openssh.com"
    assert made.check(shown_by(certified, algorithm)).startswith("certified by")
    with pytest.raises(HostKeyRejected):
        made.check(shown_by(certified, "ssh-ed25519"))


def test_a_real_host_key_is_trusted(openssh: OpenSSHServer) -> None:
    for algorithm in ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512"):
        key = shown_by(openssh, algorithm)
        found = decide(KnownHosts.parse(openssh.known_hosts), openssh.host, openssh.port, key, time.time())
        assert found.status is HostKeyStatus.TRUSTED
