"""Run a server program on loopback behind a relay.

It is ended with all its children.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import psutil

from tests.support.servers.relay import Relay
from tests.support.servers.server import HOST, Server, free_port, kill, wait_until

SYSTEM_FOLDERS = "/usr/sbin:/usr/local/sbin:/sbin"


def program(name: str) -> str | None:
    """Return the path of an installed program, or None.

    System directories are searched too.
    """
    return shutil.which(name) or shutil.which(name, path=SYSTEM_FOLDERS)


class ProgramServer(Server):
    """Run a server as a separate process.

    It has one host key, and accepts only the client key.

    A subclass gives the command line and the line its log has for each accepted login. Clients connect through a
    relay, which counts and cuts connections, so every program can be cut in the same way.
    """

    title: ClassVar[str]
    """Public name of the server."""
    login_line: ClassVar[str]
    """Regular expression of the log line for one accepted login."""
    username = "tester"

    def __init__(self, *, host_keys: Sequence[str] = ("ssh-ed25519",)) -> None:
        super().__init__(host_keys=host_keys)
        self._process: subprocess.Popen[bytes] | None = None
        self._relay: Relay | None = None

    @classmethod
    def missing(cls) -> str | None:
        """Return the missing program of this server, or None."""
        raise NotImplementedError

    @classmethod
    def version(cls) -> str:
        """Version of the installed program."""
        raise NotImplementedError

    @property
    def log(self) -> str:
        """Return the server's log so far."""
        return self._log_file.read_text(errors="replace")

    @property
    def relay(self) -> Relay:
        """The relay that clients connect to."""
        assert self._relay is not None
        return self._relay

    @property
    def process(self) -> psutil.Process:
        """The server's process."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def logins(self) -> int:
        return len(re.findall(self.login_line, self.log))

    def connections(self) -> int:
        return self.relay.connections

    def kill_sessions(self) -> None:
        self.relay.cut_all()

    @property
    def _log_file(self) -> Path:
        return self._home / "log"

    @property
    def _host_key_file(self) -> Path:
        return self._home / "host_key"

    @property
    def _authorized_keys(self) -> Path:
        return self._home / "authorized_keys"

    def _prepare(self, port: int) -> None:
        """Writes what the program reads, beside the keys."""

    def _command(self, port: int) -> list[str]:
        """The command line that serves on ``port``."""
        raise NotImplementedError

    def _start(self) -> None:
        if (missing := self.missing()) is not None:
            raise FileNotFoundError(missing)
        self.host_keys[0].write_private_key(str(self._host_key_file))
        self._host_key_file.chmod(0o600)
        self._authorized_keys.write_bytes(self.login_key.export_public_key())
        for _ in range(5):  # another process may take the free port first
            port = free_port()
            self._prepare(port)
            with self._log_file.open("wb") as log:
                self._process = subprocess.Popen(
                    self._command(port), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                    cwd=self.root,
                )  # fmt: skip
            if self._listens(self._process, port):
                self._relay = Relay(port)
                self.port = self._relay.port
                return
        raise RuntimeError(f"{self.title} does not start:\n{self.log}")

    def _listens(self, process: subprocess.Popen[bytes], port: int) -> bool:
        wait_until(lambda: process.poll() is not None or _is_open(port), f"{self.title} to start")
        return process.poll() is None

    def _stop(self) -> None:
        if self._relay is not None:
            self._relay.close()
            self._relay = None
        if self._process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            listener = psutil.Process(self._process.pid)
            listener.suspend()  # no session begins between listing its children and killing them
            kill([*listener.children(recursive=True), listener])
        self._process.wait()
        self._process = None


def _is_open(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), 1).close()
    except OSError:
        return False
    return True


def output(*command: str) -> str:
    """Return the output of a command on both streams."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout
