"""Who is measured: we, and what a user would pick instead. Each connects, moves one file and is closed again."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .site import CIPHER, Site

if TYPE_CHECKING:
    import asyncssh
    import paramiko

    from airflow_sftp_backend import SFTPBackend

Transfer = Callable[[Site, Path, Path], object]
"""(site, local path, path on the server)"""


@dataclass(frozen=True)
class Rival:
    """A client: ``up`` and ``down`` take the site, the local path and the path on the server."""

    name: str
    up: Transfer
    down: Transfer


# -- we ---------------------------------------------------------------------------------------------------------------


def backend(site: Site) -> SFTPBackend:
    """Our backend for the site, rooted at ``/``, not connected yet."""
    from airflow_sftp_backend import SFTPBackend

    return SFTPBackend(
        site.host,
        port=site.port,
        username=site.username,
        pkey=site.client_key.read_text(),
        known_host_keys=site.known_hosts.read_text(),
        config={"ciphers": [CIPHER]},
    )


def _our_upload(site: Site, local: Path, remote: Path) -> None:
    with backend(site) as ours:
        ours.upload(local, str(remote), overwrite=True)


def _our_download(site: Site, local: Path, remote: Path) -> None:
    with backend(site) as ours:
        ours.download(str(remote), local, overwrite=True)


# -- OpenSSH's sftp ---------------------------------------------------------------------------------------------------


def _sftp(site: Site, command: str) -> None:
    subprocess.run(
        ["sftp", "-q", *site.ssh_options, "-P", str(site.port), "-b", "-", f"{site.username}@{site.host}"],
        input=command.encode(),
        stdout=subprocess.DEVNULL,
        check=True,
    )


def _sftp_upload(site: Site, local: Path, remote: Path) -> None:
    _sftp(site, f"put {local} {remote}\n")


def _sftp_download(site: Site, local: Path, remote: Path) -> None:
    _sftp(site, f"get {remote} {local}\n")


# -- paramiko ---------------------------------------------------------------------------------------------------------


def _paramiko(site: Site) -> paramiko.SSHClient:
    import paramiko

    def transport(sock: paramiko.transport._SocketLike, **arguments: object) -> paramiko.Transport:
        made = paramiko.Transport(sock, **arguments)  # type: ignore[arg-type]  # passed on as SSHClient gives them
        made.get_security_options().ciphers = [CIPHER]
        return made

    client = paramiko.SSHClient()
    client.load_host_keys(str(site.known_hosts))
    client.connect(
        site.host,
        site.port,
        site.username,
        key_filename=str(site.client_key),
        look_for_keys=False,
        allow_agent=False,
        transport_factory=transport,
    )
    return client


def _paramiko_upload(site: Site, local: Path, remote: Path) -> None:
    with _paramiko(site) as client, client.open_sftp() as sftp:
        sftp.put(str(local), str(remote))


def _paramiko_download(site: Site, local: Path, remote: Path) -> None:
    with _paramiko(site) as client, client.open_sftp() as sftp:
        sftp.get(str(remote), str(local))


# -- asyncssh ---------------------------------------------------------------------------------------------------------


async def _asyncssh(site: Site, move: Callable[[asyncssh.SFTPClient], object]) -> None:
    import asyncssh

    async with (
        asyncssh.connect(
            site.host,
            site.port,
            username=site.username,
            client_keys=[str(site.client_key)],
            known_hosts=str(site.known_hosts),
            encryption_algs=[CIPHER],
            config=None,
        ) as connection,
        connection.start_sftp_client() as sftp,
    ):
        moving = move(sftp)
        assert asyncio.iscoroutine(moving)
        await moving


def _asyncssh_upload(site: Site, local: Path, remote: Path) -> None:
    asyncio.run(_asyncssh(site, lambda sftp: sftp.put(str(local), str(remote))))


def _asyncssh_download(site: Site, local: Path, remote: Path) -> None:
    asyncio.run(_asyncssh(site, lambda sftp: sftp.get(str(remote), str(local))))


OURS = Rival("airflow-sftp-backend", _our_upload, _our_download)
SFTP = Rival("sftp command", _sftp_upload, _sftp_download)
RIVALS = (
    OURS,
    SFTP,
    Rival("asyncssh", _asyncssh_upload, _asyncssh_download),
    Rival("paramiko", _paramiko_upload, _paramiko_download),
)
