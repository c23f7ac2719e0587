"""Pause the collector of cyclic garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the collector of cyclic garbage while a plan is made."""
    # A plan of many files has no cycles, but so many objects that the collector would examine all objects of Airflow
    # several times: a third of the CPU of a task without transfers.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
