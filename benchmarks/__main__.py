"""Measure speed, memory and CPU, and print one table of targets.

Run with ``make bench``. The exit status is 0 if every target is met, 1 if one is missed, and 2 if something could not
be measured.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from shutil import which
from typing import Final

from tests.support.servers import sshd_path

from . import page
from .targets import MISSED, NOT_MEASURED, ClientTable, Options, Row, console, number, show

PARTS: Final = (
    "clients", "large-files", "directories", "many-files", "syncing", "watching", "waiting", "imports", "masking",
)  # fmt: skip
"""Modules, whose function ``measure`` gives rows and tables."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print.

    :param arguments: command line arguments; None for those of the process
    :returns: the exit status
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.page and (given.scale != 1 or given.work or given.client):
        parser.error("--page publishes whole parts of full size: only --part and --rounds go with it")
    if sshd_path() is None or which("sftp") is None:
        print("OpenSSH's sshd and sftp are needed: install openssh-server and openssh-client", file=sys.stderr)
        return 2
    missing = [name for name in ("rclone", "lftp") if which(name) is None]
    options = Options(given.scale, given.rounds, given.work, given.client)
    began, load = datetime.now(UTC), os.getloadavg()[0]
    found, failed = measure_parts(given.part or PARTS, options)
    missing += failed
    load_after = os.getloadavg()[0]
    description = f"{page.machine()}, {given.rounds} rounds, load average {load:.1f} before and {load_after:.1f} after"
    rows = [row for row in found if isinstance(row, Row)]
    show(rows, f"{began:%Y-%m-%d %H:%M} UTC: {description}")
    for name in missing:
        print(f"NOT MEASURED: {name}", file=sys.stderr)
    _publish(given, found, f"{began:%Y-%m-%d %H:%M}", description, keep=bool(given.part or missing))
    verdicts = {row.verdict for row in rows}
    return 2 if missing or NOT_MEASURED in verdicts else int(MISSED in verdicts)


def measure_parts(parts: Sequence[str], options: Options) -> tuple[list[Row | ClientTable], list[str]]:
    """Measure parts, each in a process of its own.

    :param parts: some of `PARTS`
    :param options: how much is measured
    :returns: rows and tables, and the parts that failed
    """
    found: list[Row | ClientTable] = []
    failed = []
    for part in parts:
        # What other parts load and allocate would slow the garbage collector.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
            try:
                found += executor.submit(run_part, part, options).result()
            except Exception:  # noqa: BLE001 - the results of other parts took hours
                traceback.print_exc()
                failed.append(part)
    return found, failed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="measure this part only")
    parser.add_argument("--scale", type=float, default=1.0, help="factor for sizes and numbers of files (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each piece of work (default 3)")
    parser.add_argument("--work", action="append", default=[], help="measure work with this word in its title only")
    parser.add_argument("--client", action="append", default=[], help="compare with this client and sftp only")
    parser.add_argument("--page", action="store_true", help="write the results to docs/speed.md")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the tables of clients")
    return parser


def run_part(part: str, options: Options) -> list[Row | ClientTable]:
    """Measure a part, and print each result at once.

    :param part: one of `PARTS`
    :param options: how much is measured
    :returns: rows and tables of the part
    """
    logging.disable(logging.INFO)
    found: list[Row | ClientTable] = []
    for result in import_module(f".{part.replace('-', '_')}", __package__).measure(options):
        if isinstance(result, ClientTable):
            result.show()
        else:
            console.print(f"{result.work}: {number(result.result)} {result.unit}: {result.verdict}")
        found.append(result)
    return found


def _publish(
    given: argparse.Namespace, found: Sequence[Row | ClientTable], run: str, description: str, *, keep: bool
) -> None:
    tables = [table for table in found if isinstance(table, ClientTable)]
    if given.page:
        rows = [row for row in found if isinstance(row, Row)]
        text = page.with_targets(page.PAGE.read_text(), rows, run, description, keep)
        for table in tables:
            text = page.with_clients(text, table, run)
        page.PAGE.write_text(text)
    if given.plot is not None:
        from .plot import draw  # here, because it loads matplotlib

        draw([table for table in tables if table.name.startswith("clients")], given.plot)


if __name__ == "__main__":
    sys.exit(main())
