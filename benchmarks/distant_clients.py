"""Compare all clients over a round trip of 50 ms."""

from __future__ import annotations

from collections.abc import Iterator

from .clients import measure_link
from .targets import ClientTable, Options, Row


def measure(options: Options) -> Iterator[Row | ClientTable]:
    """Measure all clients over a long round trip.

    :param options: how much is measured
    :returns: rows, and a table of speeds
    """
    return measure_link("50 ms", options)
