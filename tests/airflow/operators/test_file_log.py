"""The log has a line for each file, or sums of many."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from airflow.sdk import BaseOperator

from airflow_sftp_backend._file_rows import FileResult
from airflow_sftp_backend.hooks import FilesFailed
from airflow_sftp_backend.operators._reporting.file_log import MAX_LOGGED_FILES, log_each, log_files
from tests.support.airflow.operators import delete, download, move, run, upload
from tests.support.airflow.syncs import sync
from tests.support.files import write_files

MANY = MAX_LOGGED_FILES + 1
NAMES = [f"in/{number:04}" for number in range(MANY)]
XCOM = "the list is the result of the task (XCom)"


class Lines(list[str]):
    """Log that keeps its lines."""

    def info(self, message: str, /, *arguments: object) -> None:
        """Keep a line."""
        self.append(message % arguments)


def rows(count: int, action: str) -> list[FileResult]:
    return [{"path": f"{action}/{number}", "size": 10, "action": action} for number in range(count)]  # type: ignore[typeddict-item]


def test_up_to_500_files_have_a_line_each() -> None:
    log = Lines()
    log_files(log, rows(500, "deleted"), "deleted", XCOM)
    assert log == [f"deleted deleted/{number} (10 B)" for number in range(500)]


def test_more_than_500_files_are_summed_by_action() -> None:
    log = Lines()
    log_files(log, [*rows(400, "skipped"), *rows(101, "uploaded")], "uploaded", XCOM)
    assert log == ["skipped 400 files, 3.9 KiB", f"501 files in all; {XCOM}"]


def test_lines_of_the_same_text_end_with_the_number_of_the_others() -> None:
    log = Lines()
    log_each(log, "skipping %s", [f"{number}" for number in range(503)])
    assert (len(log), log[0], log[-1]) == (501, "skipping 0", "skipping 3 more")


@pytest.mark.parametrize("what", ["upload", "download", "move", "delete", "sync"])
def test_a_task_of_many_files_logs_number_bytes_time_and_rate(
    remote: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    here = write_files(tmp_path, dict.fromkeys(NAMES, b"abc"))
    make: dict[str, tuple[str, Callable[[], BaseOperator]]] = {
        "upload": ("uploaded", lambda: upload(f"{here}/in/", "out")),
        "download": ("downloaded", lambda: download("in/", tmp_path / "out")),
        "move": ("moved", lambda: move("in/", "out")),
        "delete": ("deleted", lambda: delete("in/")),
        "sync": ("uploaded", lambda: sync(f"{here}/in", "out")),
    }
    write_files(remote, dict.fromkeys(NAMES, b"abc"))
    action, operator = make[what]
    run(operator())
    log = capsys.readouterr().out
    rate = r"[\d.]+ [KM]?i?B/s, " if what not in ("move", "delete") else ""
    assert re.search(rf"{action} 501 files, 1\.5 KiB in [\d.]+ s, {rate}\d+ files/s\s", log)
    assert f"501 files in all; {XCOM}" in log
    assert not re.search(rf"{action} \S*/0007 ", log)


def test_the_log_says_if_the_list_of_many_files_is_kept_nowhere(
    remote: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(remote, dict.fromkeys(NAMES, b"abc"))
    run(move("in/", "out", do_xcom_push=False))
    assert "no list is kept, because do_xcom_push is False" in capsys.readouterr().out
    with pytest.raises(FilesFailed):
        run(delete(["out/", "missing"]))
    assert "no list is kept, because files failed" in capsys.readouterr().out


def test_a_dry_run_of_many_files_logs_their_sum(remote: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(remote, dict.fromkeys(NAMES, b"abc"))
    assert len(run(delete("in/", dry_run=True))) == MANY
    assert "would delete 501 files, 1.5 KiB" in capsys.readouterr().out
