"""``rclone serve sftp`` on a loopback port."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from tests.support.servers.program_server import ProgramServer, output, program
from tests.support.servers.server import Folder


class RcloneServer(ProgramServer):
    """Run rclone on a local directory.

    Clients are confined to the directory, so paths start there.

    Directories are never cached, because the tests change files behind its back; the other settings are its defaults.
    """

    kind = "rclone"
    title = "rclone"
    login_line = r"SSH login from "

    @classmethod
    def missing(cls) -> str | None:
        return None if program("rclone") else "rclone"

    @classmethod
    def version(cls) -> str:
        found = re.search(r"rclone v(\S+)", output(program("rclone") or "rclone", "version", "--check=false"))
        return (
            f"{found[1] if found else '?'}, rclone serve sftp with its default settings but for `--dir-cache-time 0s`"
        )

    def fresh(self) -> Folder:
        path = Path(tempfile.mkdtemp(prefix="case-", dir=self.root))
        return Folder(path, f"/{path.name}")

    def _command(self, port: int) -> list[str]:
        return [
            program("rclone") or "rclone", "serve", "sftp", str(self.root), "--addr", f"{self.host}:{port}",
            "--key", str(self._host_key_file), "--authorized-keys", str(self._authorized_keys),
            "--dir-cache-time", "0s", "--config", "/dev/null", "--cache-dir", str(self._home / "cache"), "-vv",
        ]  # fmt: skip
