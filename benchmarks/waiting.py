"""Measure the cost of many waiting triggers in one process.

They are compared with those of Airflow's sftp provider on the same sshd.

Each trigger waits for a file of its own in one folder, which never comes.
"""

from __future__ import annotations

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import psutil

from tests.support.servers import OpenSSHServer, sftp_server_path

from .targets import ClientTable, Options, Row

Whose = Literal["ours", "sftp provider"]
INTERVAL: Final = 5.0
"""Seconds between two polls of a trigger."""
BEGINNING: Final = 10.0
"""Seconds in which triggers begin to wait, before the use of the processor is measured."""
COUNTS: Final = (200, 1000)
CPU_TARGET: Final = 20.0
"""Factor by which a poll of the first of `COUNTS` must use less CPU."""


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


def measure_waits(whose: Whose, count: int, seconds: float) -> Cost:
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
            command = [sys.executable, "-m", "benchmarks.waiting", whose, str(count), str(seconds)]
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


def measure(options: Options) -> Iterator[Row | ClientTable]:
    """Measure all rows.

    :param options: how much is measured
    """
    seconds = max(60 * options.scale, 3 * INTERVAL + 1)
    for full_count in COUNTS:
        count = options.count(full_count)
        costs: dict[Whose, Cost] = {
            "ours": measure_waits("ours", count, seconds),
            "sftp provider": measure_waits("sftp provider", count, seconds),
        }
        yield from rows(count, costs, has_cpu_target=full_count == COUNTS[0])
        yield _table(count, costs)


def rows(count: int, costs: Mapping[Whose, Cost], *, has_cpu_target: bool) -> Iterator[Row]:
    """Return the rows for a number of triggers.

    :param count: number of triggers
    :param costs: their costs
    :param has_cpu_target: whether the CPU has a target
    """
    ours, theirs = costs["ours"], costs["sftp provider"]
    title = f"{count} waits on one server"
    yield Row(f"{title}: logins", "logins", ours.logins, 1)
    yield Row(f"{title}: that gave up", "waits", ours.gave_up, 0)
    if has_cpu_target:
        ratio = theirs.processor_per_poll / ours.processor_per_poll
        yield Row(f"{title}: CPU of a poll", "sftp provider / ours", ratio, CPU_TARGET, at_least=True)


def _table(count: int, costs: Mapping[Whose, Cost]) -> ClientTable:
    all_costs = costs.values()
    return ClientTable(
        "waiting",
        f"{count} triggers wait on one server, a poll every {INTERVAL:g} s",
        list(costs),
        {
            "logins in all": [cost.logins for cost in all_costs],
            "logins a minute": [cost.logins_a_minute for cost in all_costs],
            f"polls a minute, of {count * 60 / INTERVAL:,.0f}": [cost.polls for cost in all_costs],
            "triggers that polled each time": [cost.punctual for cost in all_costs],
            "requests a minute": [cost.requests for cost in all_costs],
            "seconds of CPU a minute": [cost.processor for cost in all_costs],
            "milliseconds of CPU a poll": [cost.processor_per_poll for cost in all_costs],
            "memory in MiB": [cost.memory / 2**20 for cost in all_costs],
            "triggers that gave up": [cost.gave_up for cost in all_costs],
        },
    )


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_wait(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:]))))
