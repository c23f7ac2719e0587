"""Run programs as machines.

The processes of a machine end together. Each machine has its own host name and directories.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals

import psutil

from tests.support.servers import wait_until

_NAMESPACES = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
# The machine ends with the thread that has started it, also if that thread's process is killed.
_BOUND = ["setpriv", "--pdeathsig", "KILL"]
_SET_UP = """
set -e
hostname "$1"; shift
while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done
shift
exec "$@"
"""


def missing_namespaces() -> str | None:
    """Return the reason why no machine can be started here, or None."""
    for program in ("unshare", "setpriv", "mount", "hostname"):
        if shutil.which(program) is None:
            return f"the program {program}"
    done = subprocess.run([*_NAMESPACES, "hostname", "probe"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"root, for namespaces ({done.stderr.strip()})"


class Machine:
    """Run a program in namespaces of its own.

    :param name: host name of the machine
    :param home: directory of the log
    :param command: the program and its arguments
    :param environment: environment of the program
    :param mounts: directories of this machine alone, by the path where it sees them
    :param ready: text in the log of a program that is ready, if the log has such a text
    """

    def __init__(
        self,
        name: str,
        home: Path,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        mounts: Mapping[Path, Path] | None = None,
        ready: str = "",
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log_file = home / f"{name}.log"
        self.environment = dict(environment)
        self._mounts = dict(mounts or {})
        self._ready = ready
        self.started = datetime.min.replace(tzinfo=UTC)
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """Return the log of all starts."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    @property
    def is_ready(self) -> bool:
        """Return whether the program runs and has logged the ready text."""
        self.check_running()
        with self.log_file.open("rb") as log:
            log.seek(self._log_start)
            return self._ready.encode() in log.read()

    @property
    def is_running(self) -> bool:
        """Return whether the machine has not ended."""
        return self._process is not None and self._process.poll() is None

    def check_running(self) -> None:
        """Raise if the machine has ended.

        :raises RuntimeError: with the end of its log
        """
        if not self.is_running:
            raise RuntimeError(f"{self.name} has ended:\n{self.log[-4000:]}")

    def start(self) -> None:
        """Start the machine unless it runs.

        The main thread must call this, because the machine ends with the calling thread.
        """
        if self.is_running:
            return
        mounts = [str(path) for where, own in self._mounts.items() for path in (own, where)]
        set_up = ["bash", "-c", _SET_UP, "set-up", self.name, *mounts, "--", *self.command]
        with self.log_file.open("ab") as log:
            self.started, self._log_start = datetime.now(UTC), log.tell()
            self._process = subprocess.Popen(
                [*_BOUND, *_NAMESPACES, *set_up],
                env=self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )

    def signal(self, number: Signals, *, everything: bool = False) -> None:
        """Send a signal to the program, or to all of its processes."""
        for process in self._processes() if everything else self._processes()[:1]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def freeze(self) -> None:
        """Stop all processes without ending them."""
        self.signal(SIGSTOP, everything=True)

    def thaw(self) -> None:
        """Let the processes continue."""
        self.signal(SIGCONT, everything=True)

    def kill(self) -> None:
        """Kill all processes at once, like a loss of power."""
        if self._process is None:
            return
        # The kernel kills a PID namespace with its first process. unshare ends when the namespace is empty.
        self.signal(SIGKILL)
        self._process.wait(60)
        self._process = None

    def stop(self, number: Signals = SIGTERM, timeout: float = 60) -> None:
        """Ask the program to end, and wait for its end."""
        self.signal(number)
        wait_until(lambda: not self.is_running, f"{self.name} to end", timeout=timeout)

    def memory(self) -> int:
        """Return the bytes of memory of all processes.

        Shared pages are divided among the processes.
        """
        total = 0
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
        return total

    def _processes(self) -> list[psutil.Process]:
        """List the processes of the machine, the first one first."""
        if self._process is None:
            return []
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).children(recursive=True)
        return []


def environment_without_proxies() -> dict[str, str]:
    """Return this process's environment without Airflow and proxy settings."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AIRFLOW") and not name.lower().endswith("_proxy")
    }
