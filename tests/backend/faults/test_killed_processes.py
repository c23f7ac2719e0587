"""Killed processes leave old or new content on OpenSSH."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from airflow_sftp_backend import NotFound, SFTPBackend
from airflow_sftp_backend.backend._paths import STALE_SECONDS, is_temp_name
from tests.support.faults.killed_operations import NEW, OLD, OPERATIONS, Operation
from tests.support.servers import Folder, OpenSSHServer, wait_until

KILLS: Final = 12
SEED: Final = 20261126
TOP: Final = Path(__file__).parents[3]


class Victim:
    """Process that is killed at a random send of its operation."""

    def __init__(self, chance: random.Random, name: str, server: OpenSSHServer, local: Path) -> None:
        self.name = name
        self.operation: Operation = OPERATIONS[name]
        self.folder: Folder = server.fresh()
        self.local = local
        local.mkdir()
        (local / "source").write_bytes(NEW)
        (local / "target").write_bytes(OLD)
        for path, content in self.operation.before.items():
            file = self.folder.path / path
            file.parent.mkdir(exist_ok=True)
            assert content is not None
            file.write_bytes(content)
        (self.folder.path / "in").mkdir(exist_ok=True)
        self.kill_at, self.after = chance.randint(1, self.operation.sends), chance.random() < 0.5
        connection = {
            "host": server.host, "port": server.port, "username": server.username,
            "known_host_keys": server.known_hosts, "pkey": server.client_key.read_text(),
            "base_path": self.folder.base_path,
        }  # fmt: skip
        job = {
            "connection": connection, "operation": name, "local": str(local),
            "kill_at": self.kill_at, "after": self.after,
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.faults.killed_program", json.dumps(job)], cwd=TOP
        )

    def __str__(self) -> str:
        return f"{self.name}, killed {'after' if self.after else 'before'} send {self.kill_at}"

    def check_state(self) -> bool:
        """Every file holds its old or its new content.

        True if all are new.
        """
        before, after = self.operation.before, self.operation.after
        held = {path: _content(self.folder.path / path) for path in before}
        for path, content in held.items():
            assert content in (before[path], after[path]), f"{self}: {path}"
        if "out/source" in held:
            assert NEW in held.values(), f"{self}: the source is lost"
        assert (self.local / "target").read_bytes() in (OLD, NEW), str(self)
        return held == dict(after)

    def leftovers(self) -> list[Path]:
        """Temporary files on the server and on this machine."""
        found = [*(self.folder.path / "in").iterdir(), *self.local.iterdir()]
        return [path for path in found if is_temp_name(path.name)]


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _no_sessions(server: OpenSSHServer) -> bool:
    process: Any = server._process
    return not psutil.Process(process.pid).children()


@pytest.mark.system
@pytest.mark.timeout(180)
def test_killed_processes_leave_old_or_new_content_and_retries_clean_up(
    make_backend: Callable[..., SFTPBackend], sshd: str, tmp_path: Path
) -> None:
    assert sshd
    chance = random.Random(SEED)
    names = [*OPERATIONS, *chance.sample(sorted(OPERATIONS), KILLS - len(OPERATIONS))]
    with OpenSSHServer() as server:
        victims = [Victim(chance, name, server, tmp_path / str(number)) for number, name in enumerate(names)]
        assert [victim.process.wait() for victim in victims] == [-signal.SIGKILL] * KILLS
        wait_until(lambda: _no_sessions(server), "the sessions of the killed processes to end")
        for victim in victims:
            done = victim.check_state()
            backend = make_backend(server, base_path=victim.folder.base_path)
            try:
                victim.operation.act(backend, str(victim.local))
            except NotFound:
                assert done, str(victim)
            assert victim.check_state(), str(victim)
            if victim.name == "download":
                assert (victim.local / "target").read_bytes() == NEW
            hours_ago = time.time() - STALE_SECONDS - 60
            for path in victim.leftovers():  # which may be those of a writer that lives, until nobody has written
                os.utime(path, (hours_ago, hours_ago))
            backend.close()
            again = make_backend(server, base_path=victim.folder.base_path)
            again.write_atomic("in/target", NEW, overwrite=True)
            again.download("in/target", victim.local / "target", overwrite=True)
            assert not victim.leftovers(), str(victim)
            again.close()
