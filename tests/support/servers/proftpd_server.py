"""ProFTPD's mod_sftp on a loopback port."""

from __future__ import annotations

import grp
import os
import pwd
import re
from pathlib import Path

from tests.support.servers.program_server import ProgramServer, output, program

_MODULES = ("/usr/lib/proftpd", "/usr/libexec/proftpd", "/usr/lib64/proftpd", "/usr/local/libexec")


class ProFTPDServer(ProgramServer):
    """Run ProFTPD with mod_sftp as the current user.

    ProFTPD with mod_sftp, as the current user, with one virtual user of the same id; ``SFTPOptions`` are its
    defaults. One process a connection.
    """

    kind = "proftpd"
    title = "ProFTPD"
    login_line = r"authenticated via 'publickey' method"

    @classmethod
    def missing(cls) -> str | None:
        return None if program("proftpd") and _modules() else "proftpd-core and proftpd-mod-crypto"

    @classmethod
    def version(cls) -> str:
        found = re.search(r"ProFTPD Version (\S+)", output(program("proftpd") or "proftpd", "--version"))
        return f"{found[1] if found else '?'}, with mod_sftp"

    def _prepare(self, port: int) -> None:
        public = self.login_key.export_public_key("rfc4716")
        self._authorized_keys.write_bytes(public)
        users = self._home / "users"
        users.write_text(f"{self.username}:*:{os.geteuid()}:{os.getegid()}::{self.root}:/bin/sh\n")
        users.chmod(0o600)
        (self._home / "config").write_text(self._config(port, users))

    def _config(self, port: int, users: Path) -> str:
        return f"""
            ServerName test
            ServerType standalone
            ModulePath {_modules()}
            LoadModule mod_sftp.c
            DefaultAddress {self.host}
            SocketBindTight on
            UseIPv6 off
            Port {port}
            User {pwd.getpwuid(os.geteuid()).pw_name}
            Group {grp.getgrgid(os.getegid()).gr_name}
            RootLogin on
            RequireValidShell off
            UseFtpUsers off
            UseReverseDNS off
            AuthOrder mod_auth_file.c
            AuthUserFile {users}
            PidFile {self._home / "pid"}
            ScoreboardFile {self._home / "scoreboard"}
            DelayEngine off
            WtmpLog off
            MaxInstances none
            AllowOverwrite on
            SystemLog {self._home / "system_log"}
            TransferLog none
            SFTPEngine on
            SFTPLog {self._home / "sftp_log"}
            SFTPHostKey {self._host_key_file}
            SFTPAuthMethods publickey
            SFTPAuthorizedUserKeys file:{self._authorized_keys}
        """

    @property
    def log(self) -> str:
        files = (self._log_file, self._home / "system_log", self._home / "sftp_log")
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def _command(self, port: int) -> list[str]:
        return [program("proftpd") or "proftpd", "--nodaemon", "--config", str(self._home / "config")]


def _modules() -> str | None:
    """The folder that mod_sftp is in."""
    return next((folder for folder in _MODULES if (Path(folder) / "mod_sftp.so").exists()), None)
