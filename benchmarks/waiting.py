"""Measure the cost of many waiting triggers in one process.

They are compared with those of Airflow's sftp provider on the same sshd.

``make waiting`` prints a table for each number of triggers and exits with 0 if the targets are met.
Each trigger waits for a file of its own in one folder, which never comes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import psutil
from rich.console import Console
from rich.table import Table

from tests.support.servers import OpenSSHServer, sftp_server_path

Whose = Literal["ours", "sftp provider"]
INTERVAL: Final = 5.0
"""Seconds between two polls of a trigger."""
BEGINNING: Final = 10.0
"""Seconds in which triggers begin to wait, before the use of the processor is measured."""
CPU_TARGET: Final = 20.0
"""Factor by which a poll must use less CPU, at `AT` triggers."""
AT: Final = 200

console = Console(highlight=False, soft_wrap=True, width=120)


@dataclass(frozen=True)
class Cost:
    """Measure the cost of many waits.

    Counts without another unit are those of one minute in which all triggers wait.

    :ivar logins: all logins
    :ivar logins_a_minute: logins per minute
    :ivar polls: polls that the server received
    :ivar punctual: triggers that polled in each interval of the minute
    :ivar requests: requests that the server received
    :ivar processor: seconds of CPU
    :ivar memory: bytes for the triggers and their imports
    :ivar gave_up: triggers that ended
    """

    logins: int
    logins_a_minute: float
    polls: float
    punctual: int
    requests: float
    processor: float
    memory: int
    gave_up: int

    @property
    def processor_per_poll(self) -> float:
        """Milliseconds."""
        return 1000 * self.processor / self.polls if self.polls else math.inf


def measure(whose: Whose, count: int, seconds: float) -> Cost:
    """Measure ``count`` triggers that wait for some seconds.

    They run in a separate process.
    """
    with tempfile.TemporaryDirectory(prefix="sftp-waiting-") as folder:
        requests = Path(folder) / "requests"
        requests.touch()
        subsystem = f"sftp {sftp_server_path()} -e -l DEBUG3 2>>{requests}"
        with OpenSSHServer({"Subsystem": subsystem, "MaxStartups": "1000"}) as server:
            inbox = server.fresh().path / "inbox"
            inbox.mkdir()
            command = [sys.executable, "-m", "benchmarks.waiting", "wait", whose, str(count), str(seconds)]
            command += [str(inbox), str(requests)]
            environment = os.environ | {"AIRFLOW_CONN_WAITING": _connection(server, whose, Path(folder))}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            used = json.loads(done.stdout.splitlines()[-1])
            log = requests.read_bytes()[used["begin"] : used["end"]].decode(errors="replace")
            request_types = re.findall(r"request \d+: (?!sent )(\w+)", log)
            polls = sum(request in ("stat", "lstat") for request in request_types)
            times_polled = Counter(re.findall(r'stat name ".*/(\d+)\.csv"', log))
            minute = 60 / seconds
            return Cost(
                logins=server.logins(),
                logins_a_minute=server.logins() * 60 / (BEGINNING + seconds),
                polls=polls * minute,
                punctual=sum(times >= int(seconds / INTERVAL) for times in times_polled.values()),
                requests=len(request_types) * minute,
                processor=used["processor"] * minute,
                memory=used["memory"],
                gave_up=used["gave_up"],
            )


def _connection(server: OpenSSHServer, whose: Whose, folder: Path) -> str:
    known_hosts = folder / "known_hosts"
    known_hosts.write_text(server.known_hosts + "\n")
    extra = {"key_file": str(server.client_key), "known_hosts": str(known_hosts)}
    if whose == "ours":
        extra = {"key_file": str(server.client_key), "known_host_keys": server.known_hosts}
    return json.dumps({
        "conn_type": "sftp_backend" if whose == "ours" else "sftp",
        "host": server.host, "port": server.port, "login": server.username, "extra": extra,
    })  # fmt: skip


def _triggers(whose: str, paths: Sequence[str]) -> list[Any]:  # BaseTrigger, which is not imported before it is timed
    if whose == "ours":
        from airflow_sftp_backend._polling.conditions import FileCondition
        from airflow_sftp_backend.triggers import SFTPFileTrigger

        return [SFTPFileTrigger("waiting", FileCondition((path,)).as_json(), INTERVAL) for path in paths]
    from airflow.providers.sftp.triggers.sftp import SFTPTrigger

    return [SFTPTrigger(path, sftp_conn_id="waiting", poke_interval=INTERVAL) for path in paths]


def _now(requests: str) -> tuple[int, float]:
    """Return the log size in bytes, and CPU seconds so far.

    The log is that of requests. CPU is that of this process.
    """
    return os.path.getsize(requests), time.process_time()


async def _wait(whose: str, count: int, seconds: float, inbox: str, requests: str) -> dict[str, float]:
    triggers = _triggers(whose, [f"{inbox}/{number}.csv" for number in range(count)])
    process = psutil.Process()
    memory = process.memory_info().rss

    async def run(trigger: Any) -> None:
        async for _ in trigger.run():
            return

    tasks = [asyncio.create_task(run(trigger)) for trigger in triggers]
    await asyncio.sleep(BEGINNING)
    begin, before = _now(requests)
    await asyncio.sleep(seconds)
    end, after = _now(requests)
    held = process.memory_info().rss - memory
    gave_up = sum(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
    return {"begin": begin, "end": end, "processor": after - before, "memory": held, "gave_up": gave_up}


def compare(counts: Sequence[int], seconds: float) -> bool:
    """Measures and prints; whether the targets are met."""
    met = []
    for count in counts:
        costs: dict[Whose, Cost] = {
            "ours": measure("ours", count, seconds),
            "sftp provider": measure("sftp provider", count, seconds),
        }
        _show(count, costs)
        met.append(_is_met(count, costs))
    return all(met)


def _is_met(count: int, costs: Mapping[Whose, Cost]) -> bool:
    ours, theirs = costs["ours"], costs["sftp provider"]
    if ours.logins != 1 or ours.gave_up:
        return False
    return count != AT or theirs.processor_per_poll >= CPU_TARGET * ours.processor_per_poll


def _show(count: int, costs: Mapping[Whose, Cost]) -> None:
    table = Table("", title=f"{count} triggers wait on one server, a poll every {INTERVAL:g} s")
    for whose in costs:
        table.add_column(whose, justify="right")
    rows: dict[str, Callable[[Cost], str]] = {
        "logins in all": lambda cost: f"{cost.logins}",
        "logins a minute": lambda cost: f"{cost.logins_a_minute:,.1f}",
        f"polls a minute, of {count * 60 / INTERVAL:,.0f}": lambda cost: f"{cost.polls:,.0f}",
        "triggers that polled each time": lambda cost: f"{cost.punctual}",
        "requests a minute": lambda cost: f"{cost.requests:,.0f}",
        "seconds of the processor a minute": lambda cost: f"{cost.processor:.2f}",
        "milliseconds of the processor a poll": lambda cost: f"{cost.processor_per_poll:.2f}",
        "memory in MiB": lambda cost: f"{cost.memory / 2**20:.0f}",
        "triggers that gave up": lambda cost: f"{cost.gave_up}",
    }
    for what, told in rows.items():
        table.add_row(what, *map(told, costs.values()))
    console.print(table)
    ratio = costs["sftp provider"].processor_per_poll / costs["ours"].processor_per_poll
    target = f" (target {CPU_TARGET:g})" if count == AT else ""
    console.print(f"a poll of the sftp provider's triggers uses {ratio:.0f} times as much of the processor{target}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.waiting", description=__doc__)
    parser.add_argument("--triggers", type=int, action="append", help="how many wait (default 200, and 1000)")
    parser.add_argument("--seconds", type=float, default=60, help="for how long (default 60)")
    given = parser.parse_args(arguments)
    return 0 if compare(given.triggers or [200, 1000], given.seconds) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["wait"]:
        wait = _wait(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), *sys.argv[5:])
        print(json.dumps(asyncio.run(wait)))
        sys.exit(0)
    sys.exit(main())
