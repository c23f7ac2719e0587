"""Log the files of a task, many of them as sums."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Final, Protocol

from airflow_sftp_backend._file_rows import Action, FileResult
from airflow_sftp_backend.backend.errors import escaped
from airflow_sftp_backend.progress import format_duration, format_size, pluralize_files

MAX_LOGGED_FILES: Final = 500
"""Files that are logged one by one. A line of the task log costs as much CPU as the deletion of several files."""


class Log(Protocol):
    """Accept log lines with arguments: Airflow's task log, or any logger."""

    def info(self, message: str, /, *arguments: object) -> object:
        """Log a line.

        :param message: the line, with placeholders
        :param arguments: the values of the placeholders
        :returns: not used
        """


def log_files(log: Log, results: Sequence[FileResult], summarized: Action, list_location: str) -> None:
    """Log a line for each file, or for many files their sum.

    :param log: the log
    :param results: the files
    :param summarized: the action that `log_total` reports
    :param list_location: the place of the whole list, for the log of many files
    """
    if len(results) <= MAX_LOGGED_FILES:
        for result in results:
            log.info("%s", _line(result))
        return
    for action in dict.fromkeys(result["action"] for result in results):
        if action != summarized:
            sizes = [result["size"] or 0 for result in results if result["action"] == action]
            log.info("%s %s, %s", action, pluralize_files(len(sizes)), format_size(sum(sizes)))
    log.info("%s in all; %s", pluralize_files(len(results)), list_location)


def _line(result: FileResult) -> str:
    path, other_end = result["path"], ""
    if "source" in result:
        other_end = f" <- {result['source']}"
    elif "target" in result and result["action"] in ("deleted", "would delete"):
        path = result["target"]  # a deleted local file; its `path` is the name that the server lacks
    elif "target" in result:
        other_end = f" -> {result['target']}"
    return f"{result['action']} {escaped(path)} ({format_size(result['size'] or 0)}){escaped(other_end)}"


def log_total(log: Log, action: Action, sizes: Sequence[int], size: int, seconds: float, rate: float) -> None:
    """Log the sum of a task.

    :param log: the log
    :param action: the action of the task
    :param sizes: the sizes of the files
    :param size: bytes that were transferred, or the sum of ``sizes``
    :param seconds: duration
    :param rate: bytes per second; 0 if no bytes were transferred
    """
    rates = f", {format_size(rate)}/s" if rate and size else ""
    if len(sizes) > MAX_LOGGED_FILES and seconds > 0:
        rates += f", {len(sizes) / seconds:.0f} files/s"
    log.info(
        "%s %s, %s in %s%s",
        action,
        pluralize_files(len(sizes)),
        format_size(size),
        format_duration(seconds),
        rates,
    )


def log_each(log: Log, message: str, paths: Sequence[str]) -> None:
    """Log a line for each of the first paths.

    A last line has the number of the others.

    :param log: the log
    :param message: the line, with one placeholder
    :param paths: the paths
    """
    for path in islice(paths, MAX_LOGGED_FILES):
        log.info(message, escaped(path))
    if len(paths) > MAX_LOGGED_FILES:
        log.info(message, f"{len(paths) - MAX_LOGGED_FILES} more")
