"""Measure large files on busy processors, other servers, and their memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.servers import ConchServer, RcloneServer
from tests.support.servers.program_server import ProgramServer

from . import memory
from .rivals import OURS, SFTP, Rival
from .site import Site, site
from .targets import Options, Row
from .workloads import WORKLOADS, Bench, Result, WrongBytes

OTHER_SERVERS: Final[tuple[type[ProgramServer], ...]] = (ConchServer, RcloneServer)
_UNIT: Final = f"speed / {SFTP.name}"
_CTR: Final = "aes128-ctr"
"""Cipher for servers that do not offer AES-GCM."""
_SPIN: Final = "while True: pass"


def measure(options: Options) -> Iterator[Row]:
    """Measure all rows.

    :param options: how much is measured
    """
    size = options.count(512)
    with site() as near:
        bench = Bench(near, size, options)
        for direction, target in (("up", 1.3), ("down", 1.4)):
            title = f"{size} MiB {direction}, busy processors"
            if options.includes(title):
                with _busy_processors():
                    result = _measure(bench, direction, options.rounds)
                yield Row(title, _UNIT, result.ratio(OURS.name), target, at_least=True)
    size = options.count(64)
    for server in OTHER_SERVERS:
        title = f"{size} MiB up to {server.title}"
        if options.includes(title):
            speed = _speed(server, size, options) if server.missing() is None else None
            yield Row(title, _UNIT, speed, 1.0, at_least=True)
    size = options.count(4096)
    title = f"transfer of {size} MiB: memory added"
    if options.includes(title):
        with site() as near:
            for direction, added in memory.measure(near, size << 20).items():
                yield Row(f"{title} {direction}", "MiB", added / (1 << 20), 64)


def _speed(kind: type[ProgramServer], size: int, options: Options) -> float:
    """Return the speed of an upload as a multiple of sftp's."""
    with kind() as server, site() as near:
        folder = server.fresh()
        here = folder.path / "here"
        here.mkdir()
        known_hosts = near.known_hosts.with_name(f"known_hosts-{server.port}")
        known_hosts.write_text(server.known_hosts + "\n")
        place = Site(
            server.host, server.port, server.username, server.client_key, known_hosts, here, folder.path,
            cipher=_CTR, remote_top=Path(folder.base_path),
        )  # fmt: skip
        sftp = Rival(SFTP.name, up=_put_and_end)
        return _measure(Bench(place, size, options), "up", options.rounds, sftp).ratio(OURS.name)


def _measure(bench: Bench, direction: str, rounds: int, sftp: Rival = SFTP) -> Result:
    work = next(work for work in WORKLOADS if work.name == direction)
    return bench.measure(work, [OURS, sftp], rounds)


def _put_and_end(place: Site, local: Path, remote: Path) -> None:
    """Upload with the sftp command, and end the command.

    Twisted Conch does not close the session, for which sftp waits.
    """
    command = ["sftp", "-q", *place.ssh_options, "-P", str(place.port), "-b", "-", f"{place.username}@{place.host}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sftp:
        assert sftp.stdin is not None
        assert sftp.stdout is not None
        sftp.stdin.write(f"put {local} {remote}\npwd\n")
        sftp.stdin.flush()
        is_done = any("working directory:" in line for line in sftp.stdout)
        sftp.terminate()
    if not is_done:
        raise WrongBytes(f"sftp did not upload to {place.host}:{place.port}")


@contextmanager
def _busy_processors() -> Iterator[None]:
    """Keep all processors busy with other processes."""
    processes = [subprocess.Popen([sys.executable, "-c", _SPIN]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
