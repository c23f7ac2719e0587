"""dropbear on a loopback port, with OpenSSH's sftp-server as its SFTP side."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

from tests.support.servers.openssh_server import sshd_version
from tests.support.servers.program_server import ProgramServer, output, program

_SFTP_SERVER = Path("/usr/lib/sftp-server")  # the path Debian's dropbear is built with


class DropbearServer(ProgramServer):
    """dropbear with OpenSSH's sftp-server, as the current user. One process a connection.

    dropbear reads the user's home from /etc/passwd and the keys from there. So it runs in a mount namespace of its
    own, where /etc/passwd is a file of the test: the machine's own files are not touched.
    """

    kind = "dropbear"
    title = "dropbear"
    login_line = r"Pubkey auth succeeded for '"

    @classmethod
    def missing(cls) -> str | None:
        if not (program("dropbear") and program("dropbearconvert") and _SFTP_SERVER.exists()):
            return "dropbear-bin and openssh-sftp-server"
        return None if _may_mount() else "the right to make a mount namespace (unshare --mount)"

    @classmethod
    def version(cls) -> str:
        found = re.search(r"v(\S+)", output(program("dropbear") or "dropbear", "-V"))
        return f"{found[1] if found else '?'}, with the sftp-server of OpenSSH {sshd_version()}"

    @property
    def _authorized_keys(self) -> Path:
        return self.root / ".ssh" / "authorized_keys"

    def _prepare(self, port: int) -> None:
        self.root.chmod(0o700)
        self._authorized_keys.parent.chmod(0o700)
        self._authorized_keys.chmod(0o600)
        users = Path("/etc/passwd").read_text()
        (self._home / "passwd").write_text(
            f"{self.username}:x:{os.geteuid()}:{os.getegid()}::{self.root}:/bin/sh\n{users}"
        )
        self.host_keys[0].write_private_key(str(self._host_key_file))
        convert = [program("dropbearconvert") or "dropbearconvert", "openssh", "dropbear"]
        converted = self._home / "dropbear_key"
        subprocess.run([*convert, str(self._host_key_file), str(converted)], check=True, capture_output=True)

    def _command(self, port: int) -> list[str]:
        serve = [
            program("dropbear") or "dropbear", "-F", "-E", "-s", "-r", str(self._home / "dropbear_key"),
            "-p", f"{self.host}:{port}", "-P", str(self._home / "pid"),
        ]  # fmt: skip
        bind = ["mount", "--bind", str(self._home / "passwd"), "/etc/passwd"]
        return [*_unshare(), "sh", "-c", f"{shlex.join(bind)} && exec {shlex.join(serve)}"]

    def _start(self) -> None:
        (self.root / ".ssh").mkdir(exist_ok=True)
        super()._start()


def _unshare() -> list[str]:
    if os.geteuid() == 0:
        return ["unshare", "--mount"]
    return ["unshare", "--map-current-user", "--keep-caps", "--mount"]


@cache
def _may_mount() -> bool:
    """Tell whether this user may create bind mounts.

    They need a namespace of their own.
    """
    try:
        command = [*_unshare(), "mount", "--bind", "/etc/passwd", "/etc/passwd"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
