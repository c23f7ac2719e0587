"""paramiko's own SFTP server on a loopback port."""

from __future__ import annotations

import sys
from pathlib import Path

import paramiko

from tests.support.servers.program_server import ProgramServer


class ParamikoServer(ProgramServer):
    """Run paramiko's ``SFTPServer`` in a separate Python process.

    It serves this machine's file system.
    """

    kind = "paramiko"
    title = "paramiko"
    login_line = r"(?m)^accepted a login$"

    @classmethod
    def missing(cls) -> str | None:
        return None

    @classmethod
    def version(cls) -> str:
        return f"{paramiko.__version__}, its SFTPServer over the files of this machine"

    def _command(self, port: int) -> list[str]:
        program = str(Path(__file__).parent / "programs" / "paramiko_program.py")
        return [
            sys.executable,
            program,
            str(port),
            str(self.root),
            str(self._host_key_file),
            str(self._authorized_keys),
        ]
