"""Log progress at intervals, and draw bars on a terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend.operators import SFTPDownloadOperator, SFTPUploadOperator
from airflow_sftp_backend.progress import (
    LOG_INTERVAL,
    ProgressBar,
    ProgressLog,
    format_duration,
    format_size,
    pluralize_files,
)
from tests.support.airflow.context import context


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


def test_a_line_shows_bytes_share_rate_and_remaining_time() -> None:
    log, clock = Log(), Clock()
    progress = ProgressLog(log, 100 << 20, clock)
    clock.now += 10
    progress(25 << 20)
    assert log.lines == ["25.0 MiB of 100.0 MiB (25%), 2.5 MiB/s, 30 s left"]
    assert (progress.done, progress.elapsed) == (25 << 20, 10)


def test_lines_are_logged_at_most_once_per_interval() -> None:
    log, clock = Log(), Clock()
    progress = ProgressLog(log, 1000, clock)
    for _ in range(100):
        clock.now += 0.5
        progress(10)
    assert len(log.lines) == 50 / LOG_INTERVAL
    assert progress.done == 1000


def test_each_line_is_an_occasion_to_send_counts() -> None:
    log, clock, calls = Log(), Clock(), list[float]()
    progress = ProgressLog(log, 1000, clock, on_line=lambda: calls.append(clock.now))
    for _ in range(100):
        clock.now += 0.5
        progress(10)
    assert len(calls) == len(log.lines) == 50 / LOG_INTERVAL


@pytest.mark.parametrize("total", [None, 0])
def test_an_unknown_total_is_left_out(total: int | None) -> None:
    log, clock = Log(), Clock()
    progress = ProgressLog(log, total, clock)
    clock.now += 10
    progress(2048)
    assert log.lines == ["2.0 KiB so far, 205 B/s"]


def test_going_back_is_subtracted_and_the_share_is_at_most_100() -> None:
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


def test_rate_and_remaining_time_are_of_this_attempt() -> None:
    log, clock = Log(), Clock()
    progress = ProgressLog(log, 100 << 20, clock)
    progress.resumed(60 << 20)
    clock.now += 10
    progress(20 << 20)
    assert log.lines == ["80.0 MiB of 100.0 MiB (80%), 2.0 MiB/s, 10 s left"]
    assert (progress.done, progress.rate) == (80 << 20, 2 << 20)
    clock.now += 30  # what comes after the last byte is no transfer
    assert progress.rate == 2 << 20


def test_bytes_sent_again_cause_no_negative_rate() -> None:
    log, clock = Log(), Clock()
    progress = ProgressLog(log, 100, clock)
    progress.resumed(60)
    clock.now += 10
    progress(-60)
    assert log.lines == ["0 B of 100 B (0%), 0 B/s, unknown time left"]


def test_verification_has_separate_lines_at_the_same_interval() -> None:
    log, clock = Log(), Clock()
    progress = ProgressLog(log, 100 << 20, clock)
    clock.now += 5
    progress(100 << 20)
    for _ in range(100):
        progress.verified(1 << 20)
        clock.now += 1
    assert len(log.lines) == 10
    assert log.lines[0] == "verifying: 6.0 MiB of 100.0 MiB (6%), 1.2 MiB/s, 1 min 18 s left"
    assert log.lines[-1] == "verifying: 96.0 MiB of 100.0 MiB (96%), 1.0 MiB/s, 4.0 s left"
    assert progress.done == 100 << 20


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
def test_bytes_are_shown_in_a_fitting_unit(count: int, text: str) -> None:
    assert format_size(count) == text


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
def test_times_are_shown_in_a_fitting_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(0, 1e18, allow_nan=False), st.floats(0, 1e9, allow_nan=False))
def test_any_size_and_time_can_be_formatted(count: float, seconds: float) -> None:
    assert len(format_size(count)) < 20
    assert format_duration(seconds)


def test_files_are_counted() -> None:
    assert (pluralize_files(0), pluralize_files(1), pluralize_files(2)) == ("0 files", "1 file", "2 files")


# -- the bar ----------------------------------------------------------------------------------------------------------


def on_a_terminal(
    program: str, printed: list[str] | None = None, *, raw: bool = False, env: Mapping[str, str] | None = None
) -> str:
    """Return a program's standard error on a terminal.

    ``raw`` keeps the control sequences; ``env`` is added to its environment.
    """
    ours, theirs = pty.openpty()
    output = bytearray()

    def read() -> None:
        while True:
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # what Linux says once nobody has the other end open
                return
            output.extend(piece)

    reading = threading.Thread(target=read)
    reading.start()
    try:
        environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"}
        for name in ("NO_COLOR", "TTY_COMPATIBLE"):
            environment.pop(name, None)
        environment |= env or {}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, env=environment, check=True)
    finally:
        os.close(theirs)
        reading.join()
        os.close(ours)
    if printed is not None:
        printed.append(done.stdout.decode())
    return output.decode() if raw else re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode())


def moved(total: str, then: str = "pass") -> str:
    """Move 3 MiB, take back 1 MiB, and move 2 MiB more."""
    return f"""
from airflow_sftp_backend.progress import ProgressBar
with ProgressBar("big [1].bin", {total}) as bar:
    bar(3 << 20); bar(-(1 << 20)); bar(2 << 20)
    {then}
"""


@pytest.mark.parametrize("total", ["4 << 20", "None"])
def test_a_terminal_shows_a_bar_that_ends_full(total: str) -> None:
    last = on_a_terminal(moved(total)).rstrip().splitlines()[-1]
    assert "big [1].bin" in last
    assert "100%" in last
    assert "4.0/4.0 MiB" in last
    assert "━" in last


def test_a_bar_that_does_not_finish_is_not_full() -> None:
    output = on_a_terminal(moved("8 << 20", then="raise SystemExit"))
    assert " 50%" in output
    assert "100%" not in output


def test_a_bar_shows_the_rate_of_this_attempt() -> None:
    program = """
import time
from airflow_sftp_backend.progress import ProgressBar
with ProgressBar("big.bin", 1023 << 30) as bar:
    bar.resumed(512 << 30)
    for _ in range(8):
        bar(1 << 20); time.sleep(0.05)
    raise SystemExit
"""
    output = on_a_terminal(program)
    assert "512.0" in output
    assert "GiB/s" not in output


def test_a_bar_shows_the_verification() -> None:
    output = on_a_terminal(moved("8 << 20", then="bar.verified(2 << 20); raise SystemExit"))
    assert re.search(r"verifying .*25%", output)


def test_without_a_terminal_the_rate_is_of_this_attempt() -> None:
    stream = io.StringIO()
    with ProgressBar("big.bin", 1 << 50, stream) as bar:
        bar.resumed(1 << 50)
        bar.verified(5)
        bar(1)
    assert re.search(r"big\.bin: 1024\.0 TiB in \S+ s, \d+ B/s", stream.getvalue()) or "KiB/s" in stream.getvalue()


def test_other_output_is_not_redirected_by_the_bar() -> None:
    printed: list[str] = []
    output = on_a_terminal(moved("4 << 20", then="print('a result')"), printed)
    assert printed == ["a result\n"]
    assert "a result" not in output


def test_messages_to_the_same_terminal_are_lines_of_their_own() -> None:
    output = on_a_terminal(moved("4 << 20", then="import sys; print('a warning', file=sys.stderr)"))
    assert "a warning" in [line.strip() for line in re.split(r"[\r\n]+", output)]


def test_a_title_does_not_move_the_cursor() -> None:
    output = on_a_terminal(moved("4 << 20").replace("big [1].bin", r"a\x1b[2Jb\nc\x1b]0;d\x07"), raw=True)
    assert "\x1b[2J" not in output
    assert "\x1b]0;" not in output
    assert r"a\x1b[2Jb\nc\x1b]0;d\x07" in output


def test_a_long_title_is_shortened() -> None:
    last = (
        on_a_terminal(moved("4 << 20").replace("big [1].bin", "name" * 30), env={"COLUMNS": "80"})
        .rstrip()
        .splitlines()[-1]
    )
    assert last.startswith("namenamenamename")
    assert "━━━━━━━━" in last
    assert "100% 4.0/4.0 MiB" in last


def test_a_bar_that_goes_back_shows_remaining_time_again() -> None:
    program = """
import time
from airflow_sftp_backend.progress import ProgressBar
with ProgressBar("big.bin", 64 << 20) as bar:
    for _ in range(64):
        bar(1 << 20); time.sleep(0.005)
    bar(-(63 << 20)); time.sleep(0.01); bar(1024)
    raise SystemExit
"""
    last = on_a_terminal(program).rstrip().splitlines()[-1]
    assert " 2% 1.0/64.0 MiB" in last or " 1% 1.0/64.0 MiB" in last
    assert "00:00" not in last


def test_of_two_bars_one_is_drawn_and_the_other_is_one_line() -> None:
    output = on_a_terminal(moved("4 << 20", then="with ProgressBar('second.bin', 2) as other: other(2)"))
    assert re.search(r"^second\.bin: 2 B in 0\.0 s, .*B/s$", output.replace("\r", "\n"), re.MULTILINE)
    assert "big [1].bin ━" in output
    assert "second.bin ━" not in output
    assert "second.bin ━" in on_a_terminal(moved("4 << 20") + "with ProgressBar('second.bin', 2) as other: other(2)")


@pytest.mark.parametrize("variable", ["TERM=dumb", "TERM=", "TTY_COMPATIBLE=0"])
def test_a_terminal_that_cannot_draw_gets_one_plain_line(variable: str) -> None:
    name, _, value = variable.partition("=")
    output = on_a_terminal(moved("4 << 20"), raw=True, env={name: value})
    assert re.fullmatch(r"big \[1\]\.bin: 4\.0 MiB in 0\.\d s, [\d.]+ [KMGT]iB/s\r\n", output)


def test_a_pipe_gets_no_control_characters_in_any_environment() -> None:
    environment = os.environ | {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "TERM": "xterm-256color"}
    done = subprocess.run([sys.executable, "-c", moved("4 << 20")], stderr=subprocess.PIPE, env=environment, check=True)
    assert re.fullmatch(rb"big \[1\]\.bin: [ -~]+\n", done.stderr)


def test_a_terminal_that_is_closed_does_not_fail_the_transfer() -> None:
    ours, theirs = pty.openpty()
    stream = os.fdopen(theirs, "w")
    try:
        with ProgressBar("big.bin", 4 << 20, stream) as bar:
            os.close(ours)
            bar(4 << 20)
            time.sleep(0.3)  # a few frames
        with pytest.raises(OSError, match="Input/output"):
            stream.flush()  # what the bar wrote could not be written
    finally:
        with suppress(OSError):
            stream.close()


@pytest.mark.parametrize("stream", ["None", "open(os.devnull)", "closed"])
def test_a_blocked_stream_does_not_fail_the_transfer(stream: str) -> None:
    program = f"""
import os, sys
from airflow_sftp_backend.progress import ProgressBar
closed = open(os.devnull, "w"); closed.close()
errors, sys.stderr = sys.stderr, {stream}
with ProgressBar("big.bin", 4) as bar: bar(4)
sys.stderr = errors
print(bar.done)
"""
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True).stdout == b"4\n"


def test_a_stream_that_is_not_a_terminal_gets_one_plain_line() -> None:
    stream = io.StringIO()
    with ProgressBar("big.bin", 4 << 20, stream) as bar:
        bar(3 << 20)
        bar(-(1 << 20))
        bar(2 << 20)
        assert stream.getvalue() == ""
    assert re.fullmatch(r"big\.bin: 4\.0 MiB in 0\.\d s, [\d.]+ [KMGT]iB/s\n", stream.getvalue())


def test_a_line_marks_an_incomplete_transfer() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), ProgressBar("big.bin", 4 << 20, stream) as bar:
        bar(1 << 20)
        raise KeyboardInterrupt
    assert stream.getvalue().startswith("big.bin: 1.0 MiB in ")
    assert stream.getvalue().endswith(", incomplete\n")


def test_several_threads_may_update_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("many", None) as bar:

        def move() -> None:
            for _ in range(10_000):
                bar(1)

        threads = [threading.Thread(target=move) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert bar.done == 40_000
    assert capsys.readouterr().err.startswith("many: 39.1 KiB in ")


def test_the_operators_do_not_load_what_draws_bars() -> None:
    program = "import sys, airflow_sftp_backend.progress; assert 'rich.progress' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


# -- in tasks ---------------------------------------------------------------------------------------------------------


def test_a_task_logs_the_progress_of_its_verification(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("airflow_sftp_backend.progress.LOG_INTERVAL", 0.0)
    (tmp_path / "here").write_bytes(bytes(1 << 20))
    for task in (
        SFTPUploadOperator(task_id="up", source=str(tmp_path / "here"), target="there", verify="sha256"),
        SFTPDownloadOperator(task_id="down", source="there", target=str(tmp_path / "back"), verify="sha256"),
    ):
        task.execute(context())
        assert "verifying: 1.0 MiB of 1.0 MiB (100%)" in capsys.readouterr().out
    assert (remote / "there").exists()
