"""Real and simulated servers behave as documented."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
from pathlib import Path

import asyncssh
import psutil
import pytest

from tests.support.servers import (
    HOST,
    REAL_SERVERS,
    AWSTransferLike,
    AzureBlobLike,
    Listener,
    ProgramServer,
    SterlingLike,
)
from tests.support.servers.relay import Relay
from tests.support.ssh_client import get, put, rename_both_ways, talk

SILENCE = 0.3
"""Seconds after which a server that should stay silent is believed."""


# ---- stand-ins for services


def test_azure_like_refuses_what_azure_documents() -> None:
    with AzureBlobLike() as server:
        folder = server.fresh()

        async def conversation(sftp: asyncssh.SFTPClient) -> None:
            with pytest.raises(asyncssh.SFTPOpUnsupported):
                await sftp.open(f"{folder.base_path}/file", "w+b")
            with pytest.raises(asyncssh.SFTPOpUnsupported):
                await sftp.symlink("file", f"{folder.base_path}/link")
            await put(sftp, f"{folder.base_path}/file", b"content")
            assert await get(sftp, f"{folder.base_path}/file") == b"content"
            assert not sftp.supports_remote_copy

        talk(server, conversation)
        base_path = server.fresh().base_path
        assert talk(server, lambda sftp: rename_both_ways(sftp, base_path)) == [False, False]


def test_aws_like_takes_writes_in_order_only_and_no_attributes() -> None:
    with AWSTransferLike() as server:
        folder = server.fresh()

        async def conversation(sftp: asyncssh.SFTPClient) -> None:
            await put(sftp, f"{folder.base_path}/file", b"x" * 5000)
            with pytest.raises(asyncssh.SFTPOpUnsupported):
                await sftp.chmod(f"{folder.base_path}/file", 0o600)
            async with sftp.open(f"{folder.base_path}/file", "r+b", block_size=0) as file:
                with pytest.raises(asyncssh.SFTPFailure):
                    await file.write(b"y", 5000)
                await file.write(b"y", 0)

        talk(server, conversation)
        assert (folder.path / "file").read_bytes() == b"y" + b"x" * 4999


def test_sterling_like_opens_a_file_once_and_describes_it_before_only() -> None:
    with SterlingLike() as server:
        folder = server.fresh()
        path = f"{folder.base_path}/file"
        (folder.path / "file").write_bytes(b"content")

        async def conversation(sftp: asyncssh.SFTPClient) -> None:
            assert (await sftp.stat(path)).size == 7
            assert await get(sftp, path) == b"content"
            for refused in (sftp.stat(path), sftp.lstat(path), get(sftp, path)):
                with pytest.raises(asyncssh.SFTPFailure):
                    await refused
            await sftp.rename(path, f"{path}.done")
            await sftp.remove(f"{path}.done")

        talk(server, conversation)
        assert list(folder.path.iterdir()) == []


# ---- servers of other makers


@pytest.mark.parametrize("kind", REAL_SERVERS.values(), ids=list(REAL_SERVERS))
def test_a_program_serves_the_fresh_folder_counts_and_leaves_nothing(kind: type[ProgramServer]) -> None:
    if (missing := kind.missing()) is not None:
        pytest.skip(f"NOT TESTED AGAINST {kind.title.upper()}: it needs {missing}")
    assert re.match(r"\d+\.\d+", kind.version())
    with kind() as server:
        folder = server.fresh()
        talk(server, lambda sftp: put(sftp, f"{folder.base_path}/file", b"content"))
        assert (folder.path / "file").read_bytes() == b"content"
        assert (server.logins(), server.connections()) == (1, 1)

        async def cut(sftp: asyncssh.SFTPClient) -> None:
            assert await get(sftp, f"{folder.base_path}/file") == b"content"
            await asyncio.to_thread(server.kill_sessions)
            with pytest.raises((OSError, asyncssh.Error)):
                await sftp.stat(folder.base_path)

        talk(server, cut)
        assert (server.logins(), server.connections()) == (2, 2)
        home, port, process = server.root.parent, server.port, server.process
    assert not home.exists()
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, port))


def test_a_relay_cuts_after_so_many_bytes_and_goes_on_with_new_connections() -> None:
    with Listener() as target:
        relay = Relay(target.port)
        with socket.create_connection((HOST, relay.port)) as client:
            relay.cut_after(10)
            client.sendall(b"x" * 5)
            client.sendall(b"x" * 5)
            assert client.recv(1) == b""
        with socket.create_connection((HOST, relay.port)) as client:
            client.sendall(b"x" * 50)
            client.settimeout(SILENCE)
            with pytest.raises(TimeoutError):
                client.recv(1)
        assert relay.connections == 2
        relay.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, relay.port))


def test_without_a_program_its_tests_are_skipped_with_one_loud_line() -> None:
    start = (
        "import sys, pytest, tests.support.servers as s; s.RcloneServer.missing = lambda: 'a package';"
        " pytest.main(sys.argv[1:])"
    )
    chosen = ["-p", "no:cacheprovider", "-q", "--servers", "rclone", "tests/backend/test_contract_reading.py"]
    command = [sys.executable, "-c", start, *chosen, "-k", "read_of or read_gives"]
    output = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1]).stdout
    loud = [line for line in output.splitlines() if "NOT TESTED AGAINST RCLONE: it needs a package" in line]
    assert len(loud) == 1, output
    assert "4 skipped" in output
