"""Skip files whose size and times, or whose content, are the same."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from airflow.sdk import BaseOperator

from tests.support.airflow.operators import download, move, run, upload
from tests.support.files import read_files, write_files

NOW = int(time.time())


def aged(path: Path, seconds: float) -> None:
    """Sets the time of a file to so long ago."""
    os.utime(path, (NOW - seconds, NOW - seconds))


@pytest.mark.parametrize(
    ("new", "source_age", "target_age", "action"),
    [
        (b"new", 10, 100, "done"),  # written after the target: changed, of the same size
        (b"old", 10, 100, "done"),
        (b"new", 100, 10, "skipped"),  # a time and a size cannot tell more
        (b"new", 50, 50.4, "done"),
        (b"new", 50, 50, "skipped"),
        (b"newer", 100, 10, "done"),
    ],
)
@pytest.mark.parametrize("what", ["upload", "download", "move"])
def test_sizes_and_times_are_compared(
    remote: Path, tmp_path: Path, what: str, new: bytes, source_age: float, target_age: float, action: str
) -> None:
    here, there = write_files(tmp_path, {"a": b""}) / "a", write_files(remote, {"a": b""}) / "a"
    source, target = (here, there) if what == "upload" else (there, here)
    if what == "move":
        target = write_files(remote, {"b": b""}) / "b"
    source.write_bytes(new)
    target.write_bytes(b"old")
    aged(source, source_age)
    aged(target, target_age)
    make: dict[str, Callable[[], BaseOperator]] = {
        "upload": lambda: upload(here, "a", if_exists="skip_same"),
        "download": lambda: download("a", here, if_exists="skip_same"),
        "move": lambda: move("a", "b", if_exists="skip_same"),
    }
    (row,) = run(make[what]())
    assert (row["action"] == "skipped") == (action == "skipped")
    assert target.read_bytes() == (b"old" if action == "skipped" else new)


@pytest.mark.parametrize(
    ("new", "source_age", "action"), [(b"new", 100, "done"), (b"old", 10, "skipped"), (b"newer", 100, "done")]
)
@pytest.mark.parametrize("what", ["upload", "download"])
def test_with_sha256_the_content_decides(
    remote: Path, tmp_path: Path, what: str, new: bytes, source_age: float, action: str
) -> None:
    here, there = write_files(tmp_path, {"a": new}) / "a", write_files(remote, {"a": b"old"}) / "a"
    operator: BaseOperator = upload(here, "a", if_exists="skip_same", verify="sha256")
    if what == "download":
        here.write_bytes(b"old")
        there.write_bytes(new)
        operator = download("a", here, if_exists="skip_same", verify="sha256")
    aged(here if what == "upload" else there, source_age)
    aged(there if what == "upload" else here, 50)
    (row,) = run(operator)
    assert (row["action"] == "skipped") == (action == "skipped")
    assert read_files(tmp_path) == read_files(remote) == {"a": b"old" if action == "skipped" else new}


def test_a_time_just_below_a_full_second_is_no_change(remote: Path, tmp_path: Path) -> None:
    source = write_files(tmp_path, {"a": b"old"}) / "a"
    time_ns = 1_700_000_000_999_999_999  # as a float, a second later
    os.utime(source, ns=(time_ns, time_ns))
    run(upload(source, "a", keep_times=True))
    (row,) = run(upload(source, "a", keep_times=True, if_exists="skip_same"))
    assert row["action"] == "skipped"
