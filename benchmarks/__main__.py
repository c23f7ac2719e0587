"""``make bench``: measures and prints a table. Exit status 0 if every target is met."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tests.servers import sshd_path

from . import imports, memory, transfers
from .rivals import OURS, RIVALS
from .site import CIPHER, site

console = Console(highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--size", type=int, default=256, help="MiB of the file that is transferred (default 256)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each transfer (default 5)")
    parser.add_argument(
        "--memory", type=int, default=2048, help="MiB of the transfers watched for memory (default 2048)"
    )
    given = parser.parse_args(arguments)
    if sshd_path() is None or shutil.which("sftp") is None:
        print("OpenSSH's sshd and sftp are needed: install openssh-server and openssh-client", file=sys.stderr)
        return 2
    with site() as where:
        results = transfers.measure(where, given.size << 20, given.rounds)
        added = memory.measure(where, given.memory << 20)
    share = imports.measure(given.rounds)
    _show_transfers(results, given.size, given.rounds)
    _show("memory added by a transfer of", f"{given.memory} MiB", added, memory.LIMIT)
    console.print(
        f"importing the operators adds {share:.2%} to importing airflow.sdk's bases:"
        f" {_verdict(share < imports.LIMIT, f'under {imports.LIMIT:.0%}')}"
    )
    met = [
        *(result.met for result in results),
        *(size < memory.LIMIT for size in added.values()),
        share < imports.LIMIT,
    ]
    return 0 if all(met) else 1


def _show_transfers(results: Sequence[transfers.Result], size: int, rounds: int) -> None:
    table = Table(title=f"{size} MiB over loopback, connecting included, {CIPHER}, median of {rounds}")
    table.add_column("client")
    for result in results:
        table.add_column(f"{result.direction}, MiB/s", justify="right")
        table.add_column("to sftp", justify="right")
    for rival in RIVALS:
        cells = []
        for result in results:
            cells += [f"{size / result.median(rival.name):.0f}", f"{result.ratio(rival.name):.2f}"]
        table.add_row(rival.name, *cells, style="bold" if rival is OURS else None)
    console.print(table)
    for result in results:
        target = f"at least {transfers.TARGETS[result.direction]:.1f} times the sftp command"
        console.print(
            f"{result.direction}: {result.ratio(OURS.name):.2f} times the sftp command: {_verdict(result.met, target)}"
        )


def _show(what: str, amount: str, added: dict[str, int], limit: int) -> None:
    for direction, size in added.items():
        verdict = _verdict(size < limit, f"under {limit >> 20} MiB")
        console.print(f"{what} {amount} {direction}: {size / (1 << 20):.0f} MiB: {verdict}")


def _verdict(met: bool, target: str) -> str:
    return f"[green]met[/] ({target})" if met else f"[red]missed[/] ({target})"


if __name__ == "__main__":
    sys.exit(main())
