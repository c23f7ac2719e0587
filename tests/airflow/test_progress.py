"""Progress is told at a human pace and in words people use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend.progress import PACE, ProgressLog, counted, duration, quantity


class Log:
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, message: str, /) -> None:
        """One line."""
        self.lines.append(message)


class Clock:
    """Time as the test says."""

    now = 100.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def test_a_line_tells_bytes_share_rate_and_time_left() -> None:
    log, clock = Log(), Clock()
    progress = ProgressLog(log, 100 << 20, clock)
    clock.now += 10
    progress(25 << 20)
    assert log.lines == ["25.0 MiB of 100.0 MiB (25%), 2.5 MiB/s, 30 s left"]
    assert (progress.done, progress.elapsed) == (25 << 20, 10)


def test_lines_come_no_oftener_than_the_pace() -> None:
    log, clock = Log(), Clock()
    progress = ProgressLog(log, 1000, clock)
    for _ in range(100):
        clock.now += 0.5
        progress(10)
    assert len(log.lines) == 50 / PACE
    assert progress.done == 1000


@pytest.mark.parametrize("total", [None, 0])
def test_an_unknown_total_is_left_out(total: int | None) -> None:
    log, clock = Log(), Clock()
    progress = ProgressLog(log, total, clock)
    clock.now += 10
    progress(2048)
    assert log.lines == ["2.0 KiB so far, 205 B/s"]


def test_going_back_is_subtracted_and_more_than_all_is_all() -> None:
    log, clock = Log(), Clock()
    progress = ProgressLog(log, 1024, clock)
    progress(1024)
    progress(-1024)
    clock.now += 10
    progress(0)
    clock.now += 10
    progress(2048)
    assert log.lines == [
        "0 B of 1.0 KiB (0%), 0 B/s, unknown time left",
        "2.0 KiB of 1.0 KiB (100%), 102 B/s, 0.0 s left",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1 << 20, "1.0 MiB"),
        (3 << 29, "1.5 GiB"),
        (1 << 50, "1024.0 TiB"),
    ],
)
def test_bytes_are_told_in_the_unit_that_fits(count: int, text: str) -> None:
    assert quantity(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (0.44, "0.4 s"),
        (9.99, "10.0 s"),
        (45.4, "45 s"),
        (59.7, "1 min 0 s"),
        (125, "2 min 5 s"),
        (12000, "3 h 20 min"),
    ],
)
def test_times_are_told_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1e18, allow_nan=False), st.floats(0, 1e9, allow_nan=False))
def test_any_quantity_and_time_can_be_told(count: float, seconds: float) -> None:
    assert len(quantity(count)) < 20
    assert duration(seconds)


def test_files_are_counted() -> None:
    assert (counted(0), counted(1), counted(2)) == ("0 files", "1 file", "2 files")
