"""Measure single large files beside the sftp command.

On idle and busy processors, with a distant server, and with other servers.

``python -m benchmarks.large_files`` prints a table of targets and results, and exits with 0 if every target is met.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.servers import ConchServer, RcloneServer, sshd_path
from tests.support.servers.program_server import ProgramServer

from .delay import delayed
from .rivals import OURS, SFTP, Rival
from .site import Site, site, site_at
from .targets import Row, show
from .workloads import WORKLOADS, Bench, Result, WrongBytes

DIRECTIONS: Final = ("up", "down")
_ROUND_TRIP: Final = 0.05
OTHER_SERVERS: Final[tuple[type[ProgramServer], ...]] = (ConchServer, RcloneServer)
_CTR: Final = "aes128-ctr"
"""Cipher for servers that do not offer AES-GCM."""
_SPIN: Final = "while True: pass"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print.

    :param arguments: command line arguments; None for those of the process
    :returns: the exit status; 2 if a program is missing
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_files", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each row (default 5)")
    parser.add_argument("--size", type=int, default=512, help="MiB of the file on loopback (default 512)")
    options = parser.parse_args(arguments)
    if sshd_path() is None:
        print("OpenSSH's sshd is needed: install openssh-server", file=sys.stderr)
        return 2
    return 0 if show(measure(options.size, options.rounds)) else 1


def measure(size: int, rounds: int) -> Iterator[Row]:
    """Measure all rows.

    :param size: MiB of the file on loopback; half of it is sent to the distant server
    :param rounds: rounds of each row
    :returns: the rows, one by one
    """
    with site() as near:
        yield from _loopback_rows(Bench(near, size << 20), size, rounds)
    with site() as near, delayed(near.port, _ROUND_TRIP) as port:
        half = max(size // 2, 1)
        far = Bench(near, half << 20)
        far.site = site_at(near, port)
        for direction, target in zip(DIRECTIONS, (6.0, 8.0), strict=True):
            result = _measure(far, direction, rounds)
            yield Row(f"{half} MiB {direction}, 50 ms", "speed / sftp", result.ratio(OURS.name), target, True)
    for server in OTHER_SERVERS:
        if server.missing() is None:
            yield _other_server_row(server, max(size // 8, 1), rounds)


def _loopback_rows(bench: Bench, size: int, rounds: int) -> Iterator[Row]:
    processor: list[Row] = []
    for direction, target in zip(DIRECTIONS, (1.7, 1.8), strict=True):
        result = _measure(bench, direction, rounds)
        yield Row(f"{size} MiB {direction}, idle processors", "speed / sftp", result.ratio(OURS.name), target, True)
        ours, theirs = (statistics.median(result.processor[name]) for name in (OURS.name, SFTP.name))
        processor.append(Row(f"CPU per GiB {direction}", "CPU / sftp", ours / theirs, 0.7))
    yield from processor
    for direction, target in zip(DIRECTIONS, (1.3, 1.4), strict=True):
        with _busy_processors():
            result = _measure(bench, direction, rounds)
        yield Row(f"{size} MiB {direction}, busy processors", "speed / sftp", result.ratio(OURS.name), target, True)


def _other_server_row(kind: type[ProgramServer], size: int, rounds: int) -> Row:
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
        result = _measure(Bench(place, size << 20), "up", rounds, Rival(SFTP.name, up=_put_and_end))
    return Row(f"{size} MiB up to {kind.title}", "speed / sftp", result.ratio(OURS.name), 1.0, True)


def _measure(bench: Bench, direction: str, rounds: int, sftp: Rival = SFTP) -> Result:
    work = next(work for work in WORKLOADS if work.name == direction)
    return bench.measure(work, None, [OURS, sftp], rounds)


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


if __name__ == "__main__":
    sys.exit(main())
