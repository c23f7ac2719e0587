"""Move files in several processes over a faulty connection.

``make soak`` runs for 30 minutes; ``make soak ARGS="--minutes 2 --gibibytes 1"`` is a trial. The summary is written to
docs/reliability.md, unless ``--no-page`` is given. The exit status is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil

from airflow_sftp_backend.backend._paths import is_temp_name
from tests.support.servers import Folder, OpenSSHServer
from tests.support.servers.openssh_server import sshd_version

from .faulty_relay import FaultyRelay
from .worker import Settings

TOP: Final = Path(__file__).parents[3]
PAGE: Final = TOP / "docs/reliability.md"
BEGIN, END = "<!-- soak: written by make soak -->", "<!-- soak: end -->"
POOL_SIZE: Final = 96 << 20
GRACE_SECONDS: Final = 240.0
"""Seconds for the last operation of a process: a minute of reconnecting for each of its steps."""
MAX_GROWTH: Final = {"descriptors": 4, "threads": 3, "memory": 24 << 20}
"""Most growth of a process between the second quarter and the last quarter of the run."""

Report = dict[str, Any]
"""The JSON of `worker.Report`."""


@dataclass(frozen=True)
class Options:
    """Options of a run."""

    minutes: float
    gibibytes: float
    processes: int
    seed: int
    seconds_between_faults: float
    restart_seconds: float


@dataclass(frozen=True)
class Result:
    """Hold the results of a run."""

    options: Options
    reports: list[Report]
    faults: Counter[str]
    restarts: int
    compared: int
    leftovers: int
    problems: list[str]


def run(options: Options, scratch: Path) -> Result:
    """Run the processes against a server behind a faulty relay.

    :param options: the options
    :param scratch: an empty local directory
    :returns: the result
    """
    pool = scratch / "pool"
    pool.write_bytes(random.Random(options.seed).randbytes(POOL_SIZE))
    with OpenSSHServer(options={"RekeyLimit": "16M"}) as server:
        relay = FaultyRelay(server.port, options.seconds_between_faults, options.seed)
        try:
            folders = [server.fresh() for _ in range(options.processes)]
            processes = [
                start(options, server, relay, number, folder, scratch) for number, folder in enumerate(folders)
            ]
            restarts = restart_while_running(server, processes, options)
            reports, problems = collect(processes, scratch)
        finally:
            relay.close()
        compared = leftovers = 0
        for number, report in reports.items():
            files, temps, wrong = compare(report, folders[number].path, pool)
            compared, leftovers = compared + files, leftovers + temps
            problems += wrong
    for report in reports.values():
        problems += [*report["problems"], *growth_problems(report)]
    return Result(options, [*reports.values()], relay.faults, restarts, compared, leftovers, problems)


def start(
    options: Options, server: OpenSSHServer, relay: FaultyRelay, number: int, folder: Folder, scratch: Path
) -> subprocess.Popen[bytes]:
    """Start a process; its report goes to a file."""
    own = scratch / f"process-{number}"
    own.mkdir()
    settings = Settings(
        number=number,
        seed=options.seed * 1000 + number,
        seconds=options.minutes * 60,
        quota=int(options.gibibytes * 2**30 / options.processes),
        port=relay.port,
        username=server.username,
        key=str(server.client_key),
        known_hosts=server.known_hosts.replace(f"]:{server.port} ", f"]:{relay.port} "),
        folder=folder.base_path,
        scratch=str(own),
        pool=str(scratch / "pool"),
    )
    command = [sys.executable, "-m", "tests.support.soak.worker", json.dumps(asdict(settings))]
    with (scratch / f"report-{number}").open("wb") as out, (scratch / f"log-{number}").open("wb") as log:
        return subprocess.Popen(command, cwd=TOP, stdout=out, stderr=log)


def restart_while_running(server: OpenSSHServer, processes: list[subprocess.Popen[bytes]], options: Options) -> int:
    """Restart sshd until all processes have ended, and count."""
    chosen = random.Random(options.seed)
    end = time.monotonic() + options.minutes * 60 + GRACE_SECONDS
    restarts, next_restart = 0, time.monotonic() + options.restart_seconds
    while any(process.poll() is None for process in processes):
        now = time.monotonic()
        if now > end:
            for process in processes:
                process.kill()
        if now >= next_restart:
            server.die()
            time.sleep(chosen.uniform(0.5, 5.0))
            server.revive(same_port=True)
            restarts += 1
            next_restart = time.monotonic() + chosen.uniform(0.5, 1.5) * options.restart_seconds
        time.sleep(0.2)
    return restarts


def collect(processes: list[subprocess.Popen[bytes]], scratch: Path) -> tuple[dict[int, Report], list[str]]:
    """Return the reports, and a problem for each missing end."""
    reports: dict[int, Report] = {}
    problems: list[str] = []
    for number, process in enumerate(processes):
        if process.wait() != 0:
            log = (scratch / f"log-{number}").read_text()
            problems.append(f"process {number} ended with {process.returncode}: {log[-2000:]}")
        else:
            reports[number] = json.loads((scratch / f"report-{number}").read_text())
    return reports, problems


def compare(report: Report, folder: Path, pool: Path) -> tuple[int, int, list[str]]:
    """Compare the files of a process with what they may contain.

    :returns: the number of compared names, the number of temporary files that are left, and what is wrong
    """
    problems: list[str] = []
    present = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    temps = [name for name, path in present.items() if is_temp_name(path.name)]
    unknown = present.keys() - report["files"].keys() - set(temps)
    problems += [f"{name} was never written" for name in sorted(unknown)]
    with pool.open("rb") as random_bytes:

        def is_content(path: Path | None, content: list[int] | None) -> bool:
            if content is None or path is None:
                return content is None and path is None
            random_bytes.seek(content[0])
            return path.stat().st_size == content[1] and path.read_bytes() == random_bytes.read(content[1])

        for name, allowed in report["files"].items():
            if not any(is_content(present.get(name), content) for content in allowed):
                problems.append(f"{name} has none of the contents that it may have: {allowed}")
        for source, target, offset, size in report["moves"]:
            if not any(is_content(present.get(name), [offset, size]) for name in (source, target)):
                problems.append(f"the move of {source} to {target} lost the file")
    return len(report["files"]), len(temps), problems


def quarters(report: Report, column: int) -> tuple[int, int]:
    """Return a column's median in the second and last quarter."""
    values = [sample[column] for sample in report["samples"]]
    quarter = max(1, len(values) // 4)
    return int(median(values[quarter : 2 * quarter] or values)), int(median(values[-quarter:]))


def growth_problems(report: Report) -> list[str]:
    """Return the resources of a process that grew during the run."""
    if len(report["samples"]) < 8:
        return []
    problems = []
    for column, (name, most) in enumerate(MAX_GROWTH.items(), start=1):
        early, late = quarters(report, column)
        if late - early > most:
            problems.append(f"{name} grew from {early} to {late}")
    return problems


def summary(result: Result) -> str:
    """Return the result as text of the page."""
    options, reports = result.options, result.reports
    operations, failures = Counter[str](), Counter[str]()
    for report in reports:
        operations.update(report["operations"])
        failures.update(report["failures"])
    transferred = sum(report["transferred"] for report in reports) / 2**30
    logins, resumed = (sum(report[name] for report in reports) for name in ("logins", "resumed"))
    date = datetime.now(UTC).date().isoformat()
    machine = f"{psutil.cpu_count()} processors, OpenSSH {sshd_version()} with `RekeyLimit 16M`"
    lines = [
        f"{date}: {options.processes} processes for {options.minutes:g} minutes, {machine}, seed {options.seed}.",
        "",
        "| | |",
        "|---|---|",
        f"| transferred | {transferred:.1f} GiB in {operations.total()} operations |",
        f"| faults of the network | {listed(result.faults)} |",
        f"| restarts of sshd | {result.restarts} |",
        f"| connections opened, transfers resumed | {logins}, {resumed} |",
        f"| operations that failed | {listed(failures) or 'none'} |",
        f"| files compared at the end | {result.compared}, {len(result.problems)} problems |",
        f"| temporary files left | {result.leftovers} |",
    ]
    for column, (name, unit, label) in enumerate(
        (("descriptors", 1, ""), ("threads", 1, ""), ("memory", 2**20, " MiB")), start=1
    ):
        pairs = [quarters(report, column) for report in reports if report["samples"]]
        if pairs:
            early, late = (max(values) // unit for values in zip(*pairs, strict=True))
            lines.append(f"| most {name} of a process, second and last quarter | {early}{label}, {late}{label} |")
    return "\n".join(lines)


def listed(counts: Counter[str]) -> str:
    """Return counts as text: ``3 cut, 2 stall``."""
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def write_page(text: str) -> None:
    """Put the text between the markers of the page."""
    page = PAGE.read_text()
    new = re.sub(f"{BEGIN}\n.*?{END}", lambda _: f"{BEGIN}\n\n{text}\n\n{END}", page, flags=re.DOTALL)
    PAGE.write_text(new)


def main() -> int:
    """Run, print the summary and write the page; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="length of the run")
    parser.add_argument("--gibibytes", type=float, default=20, help="bytes of all processes together")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="seed of all random choices")
    parser.add_argument("--seconds-between-faults", type=float, default=3.0, help="mean time between two faults")
    parser.add_argument("--restart-seconds", type=float, default=60.0, help="mean time between two restarts of sshd")
    parser.add_argument("--no-page", action="store_true", help="print the summary only")
    arguments = vars(parser.parse_args())
    no_page = arguments.pop("no_page")
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="soak-", dir=in_memory) as scratch:
        result = run(Options(**arguments), Path(scratch))
    text = summary(result)
    sys.stdout.write("\n".join([text, *result.problems]) + "\n")
    if not no_page:
        write_page(text)
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
