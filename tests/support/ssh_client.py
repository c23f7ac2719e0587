"""An independent client, asyncssh's, to test the servers of the tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar, cast

import asyncssh

from tests.support.servers.server import Server

T = TypeVar("T")
Talk = Callable[[asyncssh.SFTPClient], Awaitable[T]]


def connect(server: Server, **options: object) -> AbstractAsyncContextManager[asyncssh.SSHClientConnection]:
    """An asyncssh connection with the server's client key and host keys."""
    keys = asyncssh.import_known_hosts(server.known_hosts)
    arguments = {"username": server.username, "client_keys": [str(server.client_key)], "known_hosts": keys}
    return asyncssh.connect(server.host, server.port, config=None, agent_path=None, **(arguments | options))


def talk(server: Server, conversation: Talk[T]) -> T:
    """Run ``conversation`` on the server's SFTP, and return its result."""

    async def run() -> T:
        async with connect(server) as connection, connection.start_sftp_client() as sftp:
            return await conversation(sftp)

    return asyncio.run(run())


async def put(sftp: asyncssh.SFTPClient, path: str, content: bytes, block: int = 1000) -> None:
    """Writes a file block by block, each write waited for."""
    async with sftp.open(path, "wb", block_size=0) as file:
        for offset in range(0, len(content), block):
            await file.write(content[offset : offset + block], offset)


async def get(sftp: asyncssh.SFTPClient, path: str, size: int = -1) -> bytes:
    """Read ``size`` bytes, by default the whole file."""
    async with sftp.open(path, "rb", block_size=0 if size >= 0 else -1) as file:
        return cast(bytes, await file.read(size))  # bytes, the file being opened as "rb"


async def rename_both_ways(sftp: asyncssh.SFTPClient, base_path: str) -> list[bool]:
    """For plain rename and for posix-rename: whether a file replaces another."""
    outcomes = []
    for number, rename in enumerate((lambda a, b: sftp.rename(a, b, flags=0), sftp.posix_rename)):
        old, new = f"{base_path}/old-{number}", f"{base_path}/new-{number}"
        await put(sftp, old, b"old")
        await put(sftp, new, b"new")
        try:
            await rename(old, new)
        except asyncssh.SFTPFailure:
            assert await get(sftp, old) == b"old"
        outcomes.append(await get(sftp, new) == b"old")
    return outcomes
