"""Define the measured clients: this package and others.

A client connects and closes for each workload.

A client that has no way to do a piece of work leaves it out.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import shlex
import subprocess
import tarfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from .site import CIPHER, Site

if TYPE_CHECKING:
    import asyncssh
    import paramiko

    from airflow_sftp_backend import SFTPBackend

Work: TypeAlias = Callable[[Site, Path, Path], object]
"""(site, local file or folder, file or folder on the server)"""


@dataclass(frozen=True)
class Rival:
    """Define a client and its workloads.

    It transfers a file or a directory, lists a directory, or deletes a directory with its files.
    """

    name: str
    up: Work | None = None
    down: Work | None = None
    many_up: Work | None = None
    many_down: Work | None = None
    names: Work | None = None
    delete: Work | None = None
    connect: Work | None = None
    sync_up: Work | None = None
    sync_down: Work | None = None

    def work(self, name: str) -> Work | None:
        """Return the function for a piece of work, or None."""
        found: Work | None = getattr(self, name)
        return found


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
        config={"ciphers": [site.cipher]},
    )


def _with_backend(use: Callable[[SFTPBackend, Path, str], object]) -> Work:
    def work(site: Site, local: Path, remote: Path) -> None:
        with backend(site) as ours:
            use(ours, local, str(remote))

    return work


def _upload_folder(ours: SFTPBackend, local: Path, remote: str) -> None:
    ours.upload_many([(path, f"{remote}/{path.name}") for path in local.iterdir()])


def _download_folder(ours: SFTPBackend, local: Path, remote: str) -> None:
    ours.download_many([(info.path, local / info.name) for info in ours.list_files(remote)])


def _sync(site: Site, source: Path, target: Path, direction: Literal["upload", "download"]) -> None:
    """Run the sync operator as a task does."""
    from airflow_sftp_backend.operators import SFTPSyncOperator
    from tests.support.airflow.context import context

    connection = {
        "conn_type": "sftp_backend",
        "host": site.host,
        "port": site.port,
        "login": site.username,
        "extra": {
            "private_key": site.client_key.read_text(),
            "known_host_keys": site.known_hosts.read_text(),
            "ciphers": CIPHER,
        },
    }
    os.environ["AIRFLOW_CONN_BENCHMARK"] = json.dumps(connection)
    SFTPSyncOperator(
        task_id="sync", source=source, target=target, direction=direction, delete=True, sftp_conn_id="benchmark"
    ).execute(context())


OURS = Rival(
    "ours",
    up=_with_backend(lambda ours, local, remote: ours.upload(local, remote, overwrite=True)),
    down=_with_backend(lambda ours, local, remote: ours.download(remote, local, overwrite=True)),
    many_up=_with_backend(_upload_folder),
    many_down=_with_backend(_download_folder),
    names=_with_backend(lambda ours, _, remote: list(ours.list_files(remote))),
    delete=_with_backend(lambda ours, _, remote: ours.delete_folder(remote, recursive=True)),
    connect=_with_backend(lambda ours, _, __: ours.check_health()),
    sync_up=lambda site, local, remote: _sync(site, local, remote, "upload"),
    sync_down=lambda site, local, remote: _sync(site, remote, local, "download"),
)


# -- OpenSSH's own clients --------------------------------------------------------------------------------------------


def _with_sftp(*commands: str) -> Work:
    def work(site: Site, local: Path, remote: Path) -> None:
        lines = [command.format(local=local, remote=remote) for command in commands]
        subprocess.run(
            ["sftp", "-q", *site.ssh_options, "-P", str(site.port), "-b", "-", f"{site.username}@{site.host}"],
            input="\n".join(lines).encode(),
            stdout=subprocess.DEVNULL,
            check=True,
        )

    return work


SFTP = Rival(
    "sftp",
    up=_with_sftp("put {local} {remote}"),
    down=_with_sftp("get {remote} {local}"),
    many_up=_with_sftp("put {local}/* {remote}/"),
    many_down=_with_sftp("get {remote}/* {local}/"),
    names=_with_sftp("ls -1 {remote}"),
    delete=_with_sftp("rm {remote}/*", "rmdir {remote}"),
    connect=_with_sftp("pwd"),
)


def _ssh(site: Site, command: str, **streams: Any) -> None:
    options = [*site.ssh_options, "-p", str(site.port), f"{site.username}@{site.host}"]
    subprocess.run(["ssh", "-q", *options, command], check=True, **streams)


def _cat_up(site: Site, local: Path, remote: Path) -> None:
    with local.open("rb") as source:
        _ssh(site, f"cat > {shlex.quote(str(remote))}", stdin=source)


def _cat_down(site: Site, local: Path, remote: Path) -> None:
    with local.open("wb") as sink:
        _ssh(site, f"cat {shlex.quote(str(remote))}", stdin=subprocess.DEVNULL, stdout=sink)


def _tar_up(site: Site, local: Path, remote: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in local.iterdir():
            tar.add(path, path.name)
    _ssh(site, f"tar -x -C {shlex.quote(str(remote))}", input=packed.getvalue())


CAT = Rival(
    "ssh cat",
    up=_cat_up,
    down=_cat_down,
    many_up=_tar_up,
    connect=lambda site, _, __: _ssh(site, "true"),
)


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


def _with_paramiko(use: Callable[[paramiko.SFTPClient, Path, str], object]) -> Work:
    def work(site: Site, local: Path, remote: Path) -> None:
        with _paramiko(site) as client, client.open_sftp() as sftp:
            use(sftp, local, str(remote))

    return work


def _paramiko_delete(sftp: paramiko.SFTPClient, _: Path, remote: str) -> None:
    for name in sftp.listdir(remote):
        sftp.remove(f"{remote}/{name}")
    sftp.rmdir(remote)


def _paramiko_get_all(sftp: paramiko.SFTPClient, local: Path, remote: str) -> None:
    for name in sftp.listdir(remote):
        sftp.get(f"{remote}/{name}", str(local / name))


PARAMIKO = Rival(
    "paramiko",
    up=_with_paramiko(lambda sftp, local, remote: sftp.put(str(local), remote)),
    down=_with_paramiko(lambda sftp, local, remote: sftp.get(remote, str(local))),
    many_up=_with_paramiko(
        lambda sftp, local, remote: [sftp.put(str(path), f"{remote}/{path.name}") for path in local.iterdir()]
    ),
    many_down=_with_paramiko(_paramiko_get_all),
    names=_with_paramiko(lambda sftp, _, remote: sftp.listdir_attr(remote)),
    delete=_with_paramiko(_paramiko_delete),
    connect=_with_paramiko(lambda sftp, _, __: sftp.normalize(".")),
)


# -- asyncssh ---------------------------------------------------------------------------------------------------------


def _with_asyncssh(use: Callable[[asyncssh.SFTPClient, Path, str], Coroutine[Any, Any, object]]) -> Work:
    async def work(site: Site, local: Path, remote: Path) -> None:
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
            await use(sftp, local, str(remote))

    return lambda site, local, remote: asyncio.run(work(site, local, remote))


ASYNCSSH = Rival(
    "asyncssh",
    up=_with_asyncssh(lambda sftp, local, remote: sftp.put(str(local), remote)),
    down=_with_asyncssh(lambda sftp, local, remote: sftp.get(remote, str(local))),
    many_up=_with_asyncssh(lambda sftp, local, remote: sftp.put([str(path) for path in local.iterdir()], remote)),
    many_down=_with_asyncssh(lambda sftp, local, remote: sftp.mget(f"{remote}/*", str(local))),
    names=_with_asyncssh(lambda sftp, _, remote: sftp.readdir(remote)),
    delete=_with_asyncssh(lambda sftp, _, remote: sftp.rmtree(remote)),
    connect=_with_asyncssh(lambda sftp, _, __: sftp.realpath(".")),
)


# -- Airflow's own provider -------------------------------------------------------------------------------------------


def _with_hook(use: Callable[[Any, Path, str], object]) -> Work:
    def work(site: Site, local: Path, remote: Path) -> None:
        from airflow.providers.sftp.hooks.sftp import SFTPHook

        host_key = " ".join(site.known_hosts.read_text().split()[1:3])
        connection = {
            "conn_type": "sftp",
            "host": site.host,
            "port": site.port,
            "login": site.username,
            "extra": {"private_key": site.client_key.read_text(), "no_host_key_check": False, "host_key": host_key},
        }
        os.environ["AIRFLOW_CONN_BENCHMARK"] = json.dumps(connection)
        hook = SFTPHook(ssh_conn_id="benchmark")
        with hook.get_managed_conn():
            use(hook, local, str(remote))

    return work


HOOK = Rival(
    "SFTPHook",
    up=_with_hook(lambda hook, local, remote: hook.store_file(remote, str(local))),
    down=_with_hook(lambda hook, local, remote: hook.retrieve_file(remote, str(local))),
    many_up=_with_hook(
        lambda hook, local, remote: [hook.store_file(f"{remote}/{path.name}", str(path)) for path in local.iterdir()]
    ),
    many_down=_with_hook(
        lambda hook, local, remote: [
            hook.retrieve_file(f"{remote}/{name}", str(local / name)) for name in hook.list_directory(remote)
        ]
    ),
    names=_with_hook(lambda hook, _, remote: hook.describe_directory(remote)),
    delete=_with_hook(lambda hook, _, remote: hook.delete_directory(remote, include_files=True)),
    connect=_with_hook(lambda hook, _, __: hook.test_connection()),
)


# -- where installed --------------------------------------------------------------------------------------------------


def _with_lftp(command: str) -> Work:
    def work(site: Site, local: Path, remote: Path) -> None:
        connect = shlex.join(["ssh", "-a", "-x", *site.ssh_options])
        script = (
            f'set sftp:connect-program "{connect}"; open -p {site.port} -u {site.username}, sftp://{site.host}; '
            + command.format(local=local, remote=remote)
            + "; exit"
        )
        subprocess.run(["lftp", "-c", script], check=True, stdout=subprocess.DEVNULL)

    return work


LFTP = Rival(
    "lftp",
    up=_with_lftp("put {local} -o {remote}"),
    down=_with_lftp("get {remote} -o {local}"),
    many_up=_with_lftp("mirror -R -P 8 {local} {remote}"),
    many_down=_with_lftp("mirror -P 8 {remote} {local}"),
    names=_with_lftp("cls -1 {remote}"),
    delete=_with_lftp("rm -r {remote}"),
    sync_up=_with_lftp("mirror -R -P 8 --delete {local} {remote}"),
    sync_down=_with_lftp("mirror -P 8 --delete {remote} {local}"),
)


def _with_rclone(*command: str) -> Work:
    def work(site: Site, local: Path, remote: Path) -> None:
        there = (
            f":sftp,host={site.host},port={site.port},user={site.username},key_file={site.client_key},"
            f"known_hosts_file={site.known_hosts},ciphers={CIPHER},shell_type=none:{remote}"
        )
        given = [part.format(local=local, remote=there) for part in command]
        subprocess.run(["rclone", "--config", "", *given], check=True, stdout=subprocess.DEVNULL)

    return work


RCLONE = Rival(
    "rclone",
    up=_with_rclone("copyto", "{local}", "{remote}"),
    down=_with_rclone("copyto", "{remote}", "{local}"),
    many_up=_with_rclone("copy", "{local}", "{remote}"),
    many_down=_with_rclone("copy", "{remote}", "{local}"),
    names=_with_rclone("lsf", "{remote}"),
    delete=_with_rclone("purge", "{remote}"),
    sync_up=_with_rclone("sync", "{local}", "{remote}"),
    sync_down=_with_rclone("sync", "{remote}", "{local}"),
)


def rivals() -> list[Rival]:
    """Return the installed clients: this package, the reference, the others."""
    found = [OURS, SFTP, CAT, ASYNCSSH, PARAMIKO]
    if find_spec("airflow.providers") is not None and find_spec("airflow.providers.sftp") is not None:
        found.append(HOOK)
    return found + [rival for rival, command in ((LFTP, "lftp"), (RCLONE, "rclone")) if which(command)]
