"""OpenSSH's sshd on a loopback port."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.support.servers.server import Server, free_port, kill, wait_until


def sshd_path() -> str | None:
    """Return the path of sshd, or None."""
    return shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")


def sshd_version() -> str:
    """Return the version of the installed sshd, such as ``9.2p1``.

    A question mark means unknown.
    """
    sshd = sshd_path()
    version_text = subprocess.run([sshd, "-V"], capture_output=True, text=True, check=False).stderr if sshd else ""
    found = re.search(r"OpenSSH_(\w+\.\w+)", version_text)
    return found[1] if found else "?"


def sftp_server_path() -> Path:
    """Return the path of OpenSSH's sftp-server."""
    folders = ("/usr/lib/openssh", "/usr/libexec/openssh", "/usr/lib/ssh", "/usr/libexec")
    return next(file for folder in folders if (file := Path(folder) / "sftp-server").exists())


class OpenSSHServer(Server):
    """Run sshd on a free port as the current user.

    Only public keys are accepted: a password login needs the user's real password.

    ``options`` are sshd_config lines (a sequence as value repeats the keyword); they win over the ones given here.
    ``external`` serves through the sftp-server program instead of sshd's built-in one.
    """

    kind = "openssh"

    def __init__(
        self,
        options: Mapping[str, str | Sequence[str]] | None = None,
        *,
        host_keys: Sequence[str] = ("ssh-ed25519",),
        external: bool = False,
    ) -> None:
        super().__init__(host_keys=host_keys)
        self.username = pwd.getpwuid(os.geteuid()).pw_name
        self._options = dict(options or {})
        self._next_port: int | None = None
        self._external = external
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """Return sshd's log so far."""
        return (self._home / "log").read_text(errors="replace")

    def logins(self) -> int:
        return sum("Accepted publickey for " in line for line in self.log.splitlines())

    def connections(self) -> int:
        return sum(line.startswith("Connection from ") for line in self.log.splitlines())

    def kill_sessions(self) -> None:
        if self._process is not None:
            kill(psutil.Process(self._process.pid).children(recursive=True))

    def die(self) -> None:
        """Ends sshd and all its sessions by SIGKILL; its files stay."""
        self._stop()

    def revive(self, *, same_port: bool = False) -> None:
        """Starts it again after `die`, on another port unless ``same_port``."""
        self._next_port = self.port if same_port else None
        self._start()

    def _start(self) -> None:
        sshd = sshd_path()
        if sshd is None:
            raise FileNotFoundError("sshd is not installed")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's privilege separation folder
        public = self.login_key.export_public_key()
        (self._home / "authorized_keys").write_bytes(public)
        for number, key in enumerate(self.host_keys):
            file = self._home / f"host_key_{number}"
            key.write_private_key(str(file))
            file.chmod(0o600)
        for _ in range(5):  # another process may take the free port first
            self.port, self._next_port = self._next_port or free_port(), None
            (self._home / "sshd_config").write_text(self._config())
            (self._home / "log").write_bytes(b"")
            arguments = [sshd, "-D", "-f", str(self._home / "sshd_config"), "-E", str(self._home / "log")]
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
            )
            if self._listens(self._process):
                return
        raise RuntimeError(f"sshd does not start:\n{self.log}")

    def _listens(self, process: subprocess.Popen[bytes]) -> bool:
        wait_until(lambda: "Server listening on" in self.log or process.poll() is not None, "sshd to start")
        return process.poll() is None

    def _config(self) -> str:
        sftp = "internal-sftp"
        if self._external:
            sftp = str(sftp_server_path())
        defaults: dict[str, str | Sequence[str]] = {
            "ListenAddress": f"{self.host}:{self.port}",
            "HostKey": [str(self._home / f"host_key_{number}") for number in range(len(self.host_keys))],
            "AuthorizedKeysFile": str(self._home / "authorized_keys"),
            "PidFile": "none",
            "LogLevel": "VERBOSE",
            "StrictModes": "no",
            "UsePAM": "yes" if _is_locked(self.username) else "no",
            "UseDNS": "no",
            "PermitRootLogin": "prohibit-password",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "MaxStartups": "200",
            "Subsystem": f"sftp {sftp} -d {self.root}",
        }
        lines = []
        for name, value in (defaults | self._options).items():
            lines += [f"{name} {value}"] if isinstance(value, str) else [f"{name} {one}" for one in value]
        return "\n".join(lines) + "\n"

    def _stop(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            listener = psutil.Process(self._process.pid)
            listener.suspend()  # no session begins between counting them and killing them
            kill([*listener.children(recursive=True), listener])
        self._process.wait()
        self._process = None


def _is_locked(username: str) -> bool:
    """Tell whether /etc/shadow locks the account.

    sshd accepts such an account through PAM only. Only root can read the file.
    """
    try:
        entries = Path("/etc/shadow").read_text().splitlines()
    except OSError:
        return False
    return any(entry.startswith(f"{username}:!") for entry in entries)
