"""Twisted Conch's SFTP server on a loopback port."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

from tests.support.servers.program_server import ProgramServer


class ConchServer(ProgramServer):
    """Run Twisted Conch in a separate Python process.

    It has Conch's SFTP server for Unix users.
    """

    kind = "conch"
    title = "Twisted Conch"
    login_line = r"(?m)^accepted a login$"

    @classmethod
    def missing(cls) -> str | None:
        try:
            importlib.metadata.version("twisted")
        except importlib.metadata.PackageNotFoundError:
            return "twisted[conch] from PyPI"
        return None

    @classmethod
    def version(cls) -> str:
        return importlib.metadata.version("twisted")

    def _command(self, port: int) -> list[str]:
        program = str(Path(__file__).parent / "programs" / "conch_program.py")
        return [
            sys.executable,
            program,
            str(port),
            str(self.root),
            str(self._host_key_file),
            str(self._authorized_keys),
        ]
