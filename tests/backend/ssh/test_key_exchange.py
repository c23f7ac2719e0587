"""Transfers survive key exchanges by either side."""

from __future__ import annotations

import filecmp
import random
import time
from collections.abc import Callable
from pathlib import Path

import paramiko
import pytest

from airflow_sftp_backend import BackendUnavailable, SFTPBackend
from tests.support.servers import AsyncsshServer, OpenSSHServer, wait_until

MakeBackend = Callable[..., SFTPBackend]
MiB = 1 << 20


def exchanges(server: OpenSSHServer) -> int:
    """Key exchanges that sshd has seen to their end."""
    return server.log.count("SSH2_MSG_NEWKEYS received")


def fill(path: Path, size: int) -> Path:
    """``size`` MiB, no two of them alike."""
    block = random.Random(size).randbytes(MiB - 8)
    with path.open("wb") as file:
        for number in range(size):
            file.write(number.to_bytes(8, "big"))
            file.write(block)
    return path


def there_and_back(
    server: OpenSSHServer, make_backend: MakeBackend, folder: Path, size: int, channels: int
) -> list[int]:
    """Key exchanges on the way there and on the way back."""
    local, here, there = fill(folder / "local", size), folder / "back", server.fresh()
    backend = make_backend(server, base_path=there.base_path)
    backend.check_health()
    before = exchanges(server)
    backend.upload(local, "remote", channels=channels)
    between = exchanges(server)
    assert filecmp.cmp(local, there.path / "remote", shallow=False)
    backend.download("remote", here)
    after = exchanges(server)
    assert filecmp.cmp(local, here, shallow=False)
    for path in (local, here, there.path / "remote"):
        path.unlink()
    assert server.logins() == 1
    return [between - before, after - between]


@pytest.mark.system
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("sshd")
def test_our_own_key_exchanges_during_large_transfers_lose_no_byte(make_backend: MakeBackend, tmp_path: Path) -> None:
    with OpenSSHServer({"LogLevel": "DEBUG1"}) as server:
        assert min(there_and_back(server, make_backend, tmp_path, 1536, 1)) >= 2


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("sshd")
@pytest.mark.parametrize("channels", [1, 4])
def test_constant_key_exchanges_by_the_server_lose_no_byte(
    make_backend: MakeBackend, tmp_path: Path, channels: int
) -> None:
    with OpenSSHServer({"LogLevel": "DEBUG1", "RekeyLimit": "4M"}) as server:
        assert min(there_and_back(server, make_backend, tmp_path, 96, channels)) >= 10


def transport_of(backend: SFTPBackend) -> paramiko.Transport:
    transport = backend.unwrap(paramiko.SSHClient).get_transport()
    assert transport is not None
    return transport


@pytest.mark.timeout(25)  # paramiko itself gives up after 30 seconds, with an error of its own
def test_a_key_exchange_that_never_ends_is_a_stalled_connection(make_backend: MakeBackend) -> None:
    with AsyncsshServer() as server:
        folder = server.fresh()
        (folder.path / "a").touch()
        backend = make_backend(server, base_path=folder.base_path, io_timeout=0.5)
        backend.check_health()
        transport_of(backend).clear_to_send.clear()
        with pytest.raises(BackendUnavailable, match=r"no answer for 0\.5 s"):
            backend.write("b", b"content")
        assert backend.exists("a")
        transport_of(backend).clear_to_send.clear()
        assert backend.exists("a")  # a query is repeated over a new connection
        assert server.logins() == 3


def test_no_keepalive_is_sent_during_a_key_exchange(make_backend: MakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    with AsyncsshServer() as server:
        backend = make_backend(server, base_path=server.fresh().base_path, config={"keepalive_interval": 0.2})
        backend.check_health()
        transport, sent = transport_of(backend), list[bool]()
        monkeypatch.setattr(transport, "global_request", lambda *_, **__: sent.append(transport.clear_to_send.is_set()))
        transport.clear_to_send.clear()
        time.sleep(1)
        transport.clear_to_send.set()
        wait_until(lambda: len(sent) > 1, "keepalives")
        assert all(sent)
