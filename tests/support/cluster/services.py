"""Start the distribution's database and broker for the cluster."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

from tests.support.cluster.machine import Machine, environment_without_proxies
from tests.support.servers import free_port

DATABASE_USER = "postgres"
# A process that changes its user no longer ends with its parent: the machine's first process is a shell instead.
# SIGINT makes PostgreSQL end without waiting for its clients.
_STOP_FAST = 'trap "kill -INT %1" TERM; "$@" & wait; wait'


def postgres_bin() -> Path | None:
    """Return the directory of PostgreSQL's newest programs, or None.

    On Debian, no PATH has these programs.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    path = found[-1] if found else shutil.which("postgres")
    return Path(path).parent if path else None


def redis_path() -> str | None:
    """Return the path of the Redis server, or None."""
    return shutil.which("redis-server")


def version_of(program: Path | str) -> str:
    """Return the first number in the output of ``--version``."""
    text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return next(word.removeprefix("v=") for word in text.split() if word.removeprefix("v=")[:1].isdigit())


class PostgreSQL(Machine):
    """Run PostgreSQL with an empty database.

    :param home: directory of the data and the log; the database's user must reach it
    """

    def __init__(self, home: Path) -> None:
        programs = postgres_bin()
        assert programs is not None
        self.port = free_port()
        self._data, self._programs = home / "postgresql", programs
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self._data),
            "max_connections": "200",
            "fsync": "off",  # no test takes the power from the database's machine
        }
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        command = [str(programs / "postgres"), "-D", str(self._data), "-p", str(self.port), *arguments]
        super().__init__(
            "database",
            home,
            ["bash", "-c", _STOP_FAST, DATABASE_USER, *_as_database_user(), *command],
            environment_without_proxies(),
            ready="database system is ready to accept connections",
        )

    @property
    def url(self) -> str:
        """Return the URL of the database, without a driver."""
        return f"://{DATABASE_USER}@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        """Create the data directory."""
        self._data.mkdir()
        user = pwd.getpwnam(DATABASE_USER)
        os.chown(self._data, user.pw_uid, user.pw_gid)
        options = ["-A", "trust", "-U", DATABASE_USER, "-E", "UTF8", "--no-locale", "--no-sync"]
        command = [*_as_database_user(), str(self._programs / "initdb"), "-D", str(self._data), *options]
        subprocess.run(command, check=True, capture_output=True, cwd="/")


class Redis(Machine):
    """Run Redis, which keeps its queues over a restart.

    :param home: directory of the data and the log
    """

    def __init__(self, home: Path) -> None:
        path = redis_path()
        assert path is not None
        self.port = free_port()
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(home), "--appendonly", "yes"]
        ready = "Ready to accept connections"
        super().__init__("broker", home, [path, *options], environment_without_proxies(), ready=ready)

    @property
    def url(self) -> str:
        """Return the URL of the queues."""
        return f"redis://127.0.0.1:{self.port}/0"


def _as_database_user() -> list[str]:
    """Return the start of a command that runs as the database's user.

    PostgreSQL refuses to run as root.
    """
    return ["setpriv", "--reuid", DATABASE_USER, "--regid", DATABASE_USER, "--init-groups"]
