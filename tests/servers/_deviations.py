"""Servers that read SFTP 3 in their own way: one small subclass of `AsyncsshServer` for each way that was seen."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import asyncssh

from ._asyncssh import AsyncsshServer, Files


class _TargetsListed(Files):
    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        self.before_listing(path)
        async for name in super().scandir(path):
            assert isinstance(name.filename, bytes)
            with suppress(FileNotFoundError):
                name.attrs = asyncssh.SFTPAttrs.from_local(os.stat(os.path.join(self.map_path(path), name.filename)))
            yield name

    def before_listing(self, path: bytes) -> None:
        """Called when a folder is opened for listing."""


class ListsLinksAsTargets(AsyncsshServer):
    """READDIR gives a link the attributes of what it leads to; LSTAT says that it is a link."""

    files = _TargetsListed


class _Swapping(_TargetsListed):
    def before_listing(self, path: bytes) -> None:
        assert isinstance(self.server, SwapsFolderForLink)
        local = Path(os.fsdecode(self.map_path(path)))
        if local.name == self.server.swapped and not local.is_symlink():
            local.rename(self.server.link_to.with_name("moved away"))
            local.symlink_to(self.server.link_to)


class SwapsFolderForLink(ListsLinksAsTargets):
    """Puts a link to ``link_to`` in the place of a folder named ``swapped`` the moment this is opened for listing."""

    files = _Swapping

    def __init__(self, *, swapped: str) -> None:
        super().__init__()
        self.swapped = swapped
        self.link_to = Path("/missing")
