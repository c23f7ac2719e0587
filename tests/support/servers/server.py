"""The base class of all SSH servers of the tests."""

from __future__ import annotations

import base64
import contextlib
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import asyncssh
import psutil
from asyncssh.public_key import SSHKey

HOST = "127.0.0.1"
PATIENCE = 20.0
"""Seconds until a server that should start, stop or count is given up."""


@dataclass(frozen=True)
class Folder:
    """Hold an empty directory on a server.

    ``path`` is its path on this machine, ``base_path`` its path for the client.
    """

    path: Path
    base_path: str


class Server:
    """Provide the base of all SSH servers of the tests.

    Attributes from ``port`` on exist after the start.
    """

    kind: ClassVar[str]
    host = HOST
    port: int
    username: str
    password: str | None = None

    def __init__(self, *, host_keys: Sequence[str] = ("ssh-ed25519",)) -> None:
        self.host_keys = [_new_key(kind) for kind in host_keys]
        self.login_key = asyncssh.generate_private_key("ssh-ed25519")

    @property
    def root(self) -> Path:
        """Directory of relative paths: the login directory of SFTP."""
        return self._home / "files"

    @property
    def client_key(self) -> Path:
        """File of the accepted private key.

        It is an Ed25519 key in OpenSSH format without a passphrase.
        """
        return self._home / "client_key"

    @property
    def host_key_blob(self) -> bytes:
        """The first host key in SSH wire format."""
        return self.host_keys[0].public_data

    @property
    def known_hosts(self) -> str:
        """One known_hosts line for each host key."""
        return "\n".join(self.known_hosts_line(key) for key in self.host_keys)

    def known_hosts_line(self, key: SSHKey) -> str:
        """The known_hosts line that says ``key`` is this server's."""
        return f"[{self.host}]:{self.port} {key.get_algorithm()} {base64.b64encode(key.public_data).decode()}"

    def fresh(self) -> Folder:
        """A new, empty folder on this server."""
        path = Path(tempfile.mkdtemp(prefix="case-", dir=self.root))
        return Folder(path, str(path))

    def logins(self) -> int:
        """Return the number of accepted logins.

        It is exact once each client has had its first SFTP reply.
        """
        raise NotImplementedError

    def connections(self) -> int:
        """TCP connections accepted so far."""
        raise NotImplementedError

    def kill_sessions(self) -> None:
        """Cut every connection without an SSH message.

        New connections are accepted.
        """
        raise NotImplementedError

    def start(self) -> None:
        """Starts it; returns when it accepts connections."""
        self._home = Path(tempfile.mkdtemp(prefix="sftp-server-"))
        self.root.mkdir()
        self.login_key.write_private_key(str(self.client_key))
        self.client_key.chmod(0o600)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server with all connections, and remove its files.

        May be called twice.
        """
        self._stop()
        shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def _start(self) -> None:
        raise NotImplementedError

    def _stop(self) -> None:
        raise NotImplementedError


def free_port() -> int:
    """Return a free loopback port outside the ephemeral range."""
    while True:
        port = random.randint(12_000, 32_000)
        try:
            with socket.create_server((HOST, port)):
                return port
        except OSError:
            continue


def wait_until(condition: Callable[[], bool], what: str, *, timeout: float = PATIENCE) -> None:
    """Wait until ``condition()`` is true.

    Raises TimeoutError with ``what`` after ``timeout`` seconds.
    """
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {timeout:g} s for {what}")
        time.sleep(0.005)


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[Path | None]:
    """Provide a directory on a tmpfs of ``size`` bytes.

    It is None if this user may not mount a tmpfs.
    """
    folder = Path(tempfile.mkdtemp(prefix="small-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True).returncode == 0
        try:
            yield folder if mounted else None
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)
    finally:
        folder.rmdir()


def _new_key(kind: str) -> SSHKey:
    if kind == "ssh-rsa":
        return asyncssh.generate_private_key(kind, key_size=2048)
    return asyncssh.generate_private_key(kind)


def kill(processes: Sequence[psutil.Process]) -> None:
    """Kills the processes and waits until each is gone or a zombie."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until(lambda: all(_is_over(process) for process in processes), "killed processes to end")


def _is_over(process: psutil.Process) -> bool:
    """Tell whether a process has ended.

    A zombie has ended too: its sockets are closed, and its parent decides when it is reaped.
    """
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


ALL_HOST_KEYS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa")
