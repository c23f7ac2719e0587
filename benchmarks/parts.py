"""Measure parts of the benchmarks, each in a process of its own."""

from __future__ import annotations

import logging
import multiprocessing
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from typing import Final

from .targets import ClientTable, Options, Row, console, number

PARTS: Final = (
    "clients", "distant-clients", "large-files", "directories", "many-files", "syncing", "watching", "waiting",
    "imports", "masking",
)  # fmt: skip
"""Modules, whose function ``measure`` gives rows and tables."""


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
