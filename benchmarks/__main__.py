"""Measure speed, memory and CPU, and print one table of targets.

Run with ``make bench``. The exit status is 0 if every target is met, 1 if one is missed, and 2 if something could not
be measured.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from shutil import which

from tests.support.servers import sshd_path

from . import page
from .parts import PARTS, measure_parts
from .targets import MISSED, NOT_MEASURED, ClientTable, Options, Row, show


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print.

    :param arguments: command line arguments; None for those of the process
    :returns: the exit status
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.page is not None and (given.scale != 1 or given.work or given.client):
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
    rounds = "1 round" if given.rounds == 1 else f"{given.rounds} rounds"
    description = f"{page.machine()}, {rounds}, load average {load:.1f} before and {load_after:.1f} after"
    rows = [row for row in found if isinstance(row, Row)]
    show(rows, f"{began:%Y-%m-%d %H:%M} UTC: {description}")
    for name in missing:
        print(f"NOT MEASURED: {name}", file=sys.stderr)
    _publish(given, found, f"{began:%Y-%m-%d %H:%M}", description, keep=bool(given.part or missing))
    verdicts = {row.verdict for row in rows}
    return 2 if missing or NOT_MEASURED in verdicts else int(MISSED in verdicts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="measure this part only")
    parser.add_argument("--scale", type=float, default=1.0, help="factor for sizes and numbers of files (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each piece of work (default 3)")
    parser.add_argument("--work", action="append", default=[], help="measure work with this word in its title only")
    parser.add_argument("--client", action="append", default=[], help="compare with this client and sftp only")
    parser.add_argument(
        "--page", type=Path, nargs="*", metavar="FILE.md", help="write to these pages, or docs/speed.md and README.md"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the tables of clients")
    return parser


def _publish(
    given: argparse.Namespace, found: Sequence[Row | ClientTable], run: str, description: str, *, keep: bool
) -> None:
    tables = [table for table in found if isinstance(table, ClientTable)]
    rows = [row for row in found if isinstance(row, Row)]
    for path in () if given.page is None else given.page or page.PAGES:
        text = page.with_targets(path.read_text(), rows, run, description, keep)
        for table in tables:
            text = page.with_clients(text, table, f"{run}: {description}")
        path.write_text(text)
    speeds = [table for table in tables if table.name.startswith("clients")]
    if given.plot and speeds:
        from .plot import draw  # here, because it loads matplotlib

        draw(speeds, given.plot)


if __name__ == "__main__":
    sys.exit(main())
