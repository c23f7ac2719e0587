"""Show the progress of a transfer in a log or a terminal."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, Final, Protocol, TextIO, cast

from .backend.errors import escaped

if TYPE_CHECKING:
    from rich.progress import Progress

LOG_INTERVAL: Final = 10.0
"""Minimum of the seconds between two log lines."""

_BAR_LOCK = threading.Lock()
"""Held by the bar that is drawn: only one bar is drawn at a time."""


class Log(Protocol):
    """Accept log lines: Airflow's task log, or any logger."""

    def info(self, message: str, /) -> object:
        """Log a line.

        :param message: the line
        :returns: not used
        """


class ProgressLog:
    """Log bytes, percentage, rate and remaining time of a transfer at intervals.

    Rate and remaining time count only the bytes of this attempt, not those of earlier attempts.

    :param log: the log to write to
    :param total: bytes of all files, None if unknown
    :param clock: returns seconds
    :param on_line: called with each line
    """

    def __init__(
        self,
        log: Log,
        total: int | None,
        clock: Callable[[], float] = time.monotonic,
        on_line: Callable[[], object] | None = None,
    ) -> None:
        self.done = 0
        """Transferred bytes, including those of earlier attempts."""
        self._transferred = self._verified = 0
        self._log = log
        self._total = total
        self._clock = clock
        self._on_line = on_line
        self._started = self._last_logged = self._last_transfer = clock()
        self._verifying_since: float | None = None

    def __call__(self, count: int, /) -> None:
        """Count transferred bytes.

        :param count: bytes since the last call; negative if the transfer had to repeat a part
        """
        self.done += count
        self._transferred += count
        self._last_transfer = self._clock()
        if self._is_line_due(self._last_transfer):
            self._log_line(_progress_text(self.done, self._total, self.rate))

    def resumed(self, count: int, /) -> None:
        """Count bytes that an earlier attempt transferred.

        :param count: bytes
        """
        self.done += count

    def verified(self, count: int, /) -> None:
        """Count bytes that were read back for verification.

        :param count: bytes since the last call
        """
        now = self._clock()
        self._verified += count
        if self._verifying_since is None:
            self._verifying_since = now
        if self._is_line_due(now):
            seconds = now - self._verifying_since
            rate = self._verified / seconds if seconds > 0 else 0
            self._log_line(f"verifying: {_progress_text(self._verified, self._total, rate)}")

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    @property
    def rate(self) -> float:
        """Bytes per second of this attempt; 0 if unknown.

        Measured until the last transferred byte.
        """
        seconds = self._last_transfer - self._started
        return max(0, self._transferred) / seconds if seconds > 0 else 0

    def _is_line_due(self, now: float) -> bool:
        return now - self._last_logged >= LOG_INTERVAL

    def _log_line(self, text: str) -> None:
        """Log a line, and restart the interval."""
        self._last_logged = self._clock()
        self._log.info(text)
        if self._on_line is not None:
            self._on_line()


def _progress_text(done: int, total: int | None, rate: float) -> str:
    if not total:
        return f"{format_size(done)} so far, {format_size(rate)}/s"
    remaining = format_duration((total - done) / rate) if rate > 0 else "unknown time"
    percentage = min(100, 100 * done // total)
    return f"{format_size(done)} of {format_size(total)} ({percentage}%), {format_size(rate)}/s, {remaining} left"


class ProgressBar:
    """Draw a progress bar in a terminal; elsewhere, log one line.

    Pass the bar as the ``progress`` of a transfer, and use it as a context manager. Other output to the same terminal
    appears above the bar. Only one bar is drawn at a time; another bar writes one line at its end. Errors of the
    stream, such as a closed terminal, are ignored.

    :param title: description of the transfer
    :param total: bytes of all files, None if unknown
    :param stream: the stream to write to; standard error by default
    """

    def __init__(self, title: str, total: int | None, stream: TextIO | None = None) -> None:
        self.done = 0
        """Transferred bytes, including those of earlier attempts."""
        self._transferred = 0
        self._title = escaped(title)  # control characters of a file name must not move the cursor
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._started = 0.0
        self._lock = threading.Lock()
        self._bar: Progress | None = None

    def __call__(self, count: int, /) -> None:
        """Count transferred bytes.

        :param count: bytes since the last call; negative if the transfer had to repeat a part
        """
        with self._lock:
            self.done += count
            self._transferred += count
            if self._bar is not None:
                if count < 0:
                    self._bar.tasks[0].finished_time = None  # rich may have marked the task as finished
                self._bar.update(self._bar.task_ids[0], completed=self.done)

    def resumed(self, count: int, /) -> None:
        """Count bytes of an earlier attempt, without effect on the rate.

        :param count: bytes
        """
        with self._lock:
            self.done += count
            if self._bar is not None:
                self._bar.reset(self._bar.task_ids[0], completed=self.done)

    def verified(self, count: int, /) -> None:
        """Count bytes that were read back for verification, in a separate bar.

        :param count: bytes since the last call
        """
        with self._lock:
            if self._bar is not None:
                if len(self._bar.task_ids) == 1:
                    self._bar.add_task("verifying", total=self._total)
                self._bar.update(self._bar.task_ids[1], advance=count)

    def __enter__(self) -> ProgressBar:
        self._started = time.monotonic()
        if _can_draw(self._stream) and _BAR_LOCK.acquire(blocking=False):
            bar = _create_bar(self._stream)
            width = bar.console.width
            name = self._title if len(self._title) <= max(12, width - 60) else f"{self._title[: max(9, width - 63)]}..."
            bar.add_task(name, total=self._total, completed=self.done)
            bar.start()
            self._bar = bar
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        with self._lock:
            bar, self._bar = self._bar, None
        if bar is not None:
            if self._total is None and kind is None:
                bar.update(bar.task_ids[0], total=self.done)
            try:
                bar.stop()
            finally:
                _BAR_LOCK.release()
            return
        elapsed = time.monotonic() - self._started
        rate = f", {format_size(max(0, self._transferred) / elapsed)}/s" if elapsed > 0 else ""
        state = "" if kind is None else ", incomplete"
        _SafeStream(self._stream).write(
            f"{self._title}: {format_size(self.done)} in {format_duration(elapsed)}{rate}{state}\n"
        )


class _SafeStream:
    """Write to a stream and ignore its errors."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write and flush a text; return the number of its characters."""
        with suppress(OSError, ValueError):  # ValueError: a closed stream, or characters outside its encoding
            if self._stream is not None:
                self._stream.write(text)
                self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """Do nothing: `write` has flushed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _can_draw(stream: TextIO | None) -> bool:
    """Tell whether a stream is a terminal on which nothing else draws."""
    is_disabled = os.environ.get("TTY_COMPATIBLE") == "0" or os.environ.get("TERM", "").lower() in (
        "",
        "dumb",
        "unknown",
    )
    if is_disabled or not _is_terminal(stream):
        return False
    from rich.file_proxy import FileProxy

    return not isinstance(stream, FileProxy)


def _is_terminal(stream: TextIO | None) -> bool:
    with suppress(OSError, ValueError):
        return stream is not None and stream.isatty()
    return False


def _create_bar(stream: TextIO) -> Progress:
    from rich import progress  # late import: operators draw no bar
    from rich.console import Console
    from rich.text import Text

    class Rate(progress.ProgressColumn):
        """Show the rate in the units of the log lines."""

        def render(self, task: progress.Task) -> Text:
            """Return bytes per second; no text while the rate is unknown."""
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{format_size(speed)}/s")

    is_standard_stream = stream in (sys.stdout, sys.stderr)  # if so, rich prints other output above the bar
    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.DownloadColumn(binary_units=True),
        Rate(),
        progress.TimeRemainingColumn(compact=True),
        console=Console(file=cast("IO[str]", _SafeStream(stream)), force_terminal=True, force_interactive=True),
        redirect_stdout=is_standard_stream and _is_terminal(sys.stdout),
        redirect_stderr=is_standard_stream and _is_terminal(sys.stderr),
    )


def format_size(count: float) -> str:
    """Format bytes for people: ``512 B``, ``4.0 KiB``, ``1.5 GiB``.

    :param count: bytes
    :returns: the text
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def pluralize_files(files: int) -> str:
    """Format a number of files: ``1 file``, ``4 files``.

    :param files: the number
    :returns: the text
    """
    return f"{files} file" if files == 1 else f"{files} files"


def format_duration(seconds: float) -> str:
    """Format a duration for people.

    Examples: ``0.4 s``, ``45 s``, ``2 min 5 s``, ``3 h 20 min``.

    :param seconds: the duration
    :returns: the text
    """
    whole_seconds = max(0, round(seconds))
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    if whole_seconds < 60:
        return f"{whole_seconds} s"
    if whole_seconds < 3600:
        return f"{whole_seconds // 60} min {whole_seconds % 60} s"
    return f"{whole_seconds // 3600} h {whole_seconds % 3600 // 60} min"
