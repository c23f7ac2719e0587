"""Measure, and print a table for each link.

Run with ``make bench``. The exit status is 0 if every target is met.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import statistics
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.support.servers import sshd_path

from . import imports, memory
from .delay import delayed
from .rivals import OURS, PARAMIKO, Rival, rivals
from .site import CIPHER, site, site_at
from .workloads import WORKLOADS, Bench, Result

console = Console(highlight=False, soft_wrap=True, width=120)
LINKS = {"loopback": 0.0, "50 ms": 0.05}
"""Round trip of each link, in seconds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    given = _options().parse_args(arguments)
    logging.disable(logging.INFO)
    if sshd_path() is None or shutil.which("sftp") is None:
        print("OpenSSH's sshd and sftp are needed: install openssh-server and openssh-client", file=sys.stderr)
        return 2
    clients = [client for client in rivals() if given.client is None or client.name in given.client]
    met: list[bool] = []
    found: dict[str, list[Result]] = {}
    with site() as near:
        bench = Bench(near, given.size << 20)
        for at, (link, round_trip) in enumerate(LINKS.items()):
            if given.link is not None and link not in given.link:
                continue
            with delayed(near.port, round_trip) if round_trip else nullcontext(near.port) as port:
                bench.site = site_at(near, port)
                found[link] = [
                    bench.measure(work, work.targets[at], clients, given.rounds)
                    for work in WORKLOADS
                    if given.work is None or work.name in given.work
                ]
            _show_results(link, found[link], clients, given.size, given.rounds)
            met += [result.met for result in found[link]]
            if not round_trip:
                met += _show_rivals(found[link])
                met += _show_processor(found[link], given.size)
        if given.memory:
            added = memory.measure(near, given.memory << 20)
            _show_memory(given.memory, added)
            met += [size < memory.LIMIT for size in added.values()]
    if given.work is None:
        share = imports.measure(given.rounds)
        verdict = _verdict(share < imports.LIMIT, f"under {imports.LIMIT:.0%}")
        console.print(f"importing the operators adds {share:.2%} to importing airflow.sdk's bases: {verdict}")
        met.append(share < imports.LIMIT)
    if given.plot is not None:
        from .plot import draw  # here, because it loads matplotlib

        draw(found, given.size, given.plot)
    return 0 if all(met) else 1


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--size", type=int, default=256, help="MiB of the large file (default 256)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each piece of work (default 5)")
    parser.add_argument(
        "--memory", type=int, default=4096, help="MiB of the transfers watched for memory (default 4096, 0 for none)"
    )
    parser.add_argument("--link", action="append", choices=LINKS, help="measure this link only")
    parser.add_argument("--client", action="append", help="measure this client only (sftp must be among them)")
    parser.add_argument("--work", action="append", choices=[work.name for work in WORKLOADS], help="only this work")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the ratios, too")
    return parser


def _show_results(link: str, results: Sequence[Result], clients: Sequence[Rival], size: int, rounds: int) -> None:
    table = Table(title=f"{link}: speed as a multiple of the sftp command's, seconds below ({CIPHER}, connecting"
                        f" included, median of {rounds})")  # fmt: skip
    table.add_column("")
    for client in clients:
        table.add_column(client.name, justify="right")
    table.add_column("target", justify="right")
    for result in results:
        cells = [_cell(result, client.name) for client in clients]
        target = "" if result.target is None else f"{result.target:g}\n{_verdict(result.met, '')}"
        table.add_row(result.workload.title.format(size=size), *cells, target)
    console.print(table)


def _cell(result: Result, name: str) -> str:
    if name not in result.seconds:
        return "-"
    return f"{result.ratio(name):.2f}\n{result.median(name):.2f} s"


def _show_rivals(results: Sequence[Result]) -> list[bool]:
    """Whether each target is met that is not about the sftp command."""
    met = []
    for result in results:
        for name, target in result.workload.rivals.items():
            if name in result.seconds:
                ratio = result.median(name) / result.median(OURS.name)
                met.append(ratio >= target)
                said = f"{result.workload.name}: {ratio:.2f} times as fast as {name}"
                console.print(f"{said}: {_verdict(ratio >= target, f'{target:g}')}")
    return met


def _show_processor(results: Sequence[Result], size: int) -> list[bool]:
    """Tell whether the package needs no more CPU than paramiko.

    ``size`` is in MiB.
    """
    met = []
    for result in results:
        if result.workload.name not in ("up", "down"):
            continue
        used = {name: statistics.median(spent) * 1024 / size for name, spent in result.processor.items()}
        told = ", ".join(f"{name} {seconds:.1f}" for name, seconds in used.items())
        verdict = ""
        if PARAMIKO.name in used:
            met.append(used[OURS.name] <= used[PARAMIKO.name])
            verdict = f": {_verdict(met[-1], 'no more than paramiko')}"
        console.print(f"seconds of the processor per GiB {result.workload.name}: {told}{verdict}")
    return met


def _show_memory(amount: int, added: dict[str, int]) -> None:
    for direction, size in added.items():
        verdict = _verdict(size < memory.LIMIT, f"under {memory.LIMIT >> 20} MiB")
        console.print(f"memory added by a transfer of {amount} MiB {direction}: {size / (1 << 20):.0f} MiB: {verdict}")


def _verdict(met: bool, target: str) -> str:
    said = "[green]met[/]" if met else "[red]missed[/]"
    return f"{said} ({target})" if target else said


if __name__ == "__main__":
    sys.exit(main())
