"""A deletion removes the directories that it empties, no others."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.airflow.arguments import Glob
from tests.support.airflow.context import State
from tests.support.airflow.operators import delete, run
from tests.support.airflow.versions import AirflowFailException
from tests.support.files import write_files


def test_a_deletion_removes_the_directories_that_it_leaves_empty(remote: Path) -> None:
    write_files(remote, {"archive/1/a/x": b"", "archive/1/b/x": b"", "archive/2/x": b"", "archive/2/y.keep": b""})
    (remote / "archive/empty").mkdir()
    state = State()
    arguments: dict[str, Any] = {"exclude": "*.keep", "empty_folders": True}
    run(delete(Glob("archive/**"), dry_run=True, **arguments), state=state)
    assert (remote / "archive/1/a/x").exists()
    run(delete(Glob("archive/**"), **arguments), state=state)
    assert sorted(path.relative_to(remote).as_posix() for path in remote.rglob("*")) == [
        "archive",
        "archive/2",
        "archive/2/y.keep",
        "archive/empty",
    ]


def test_a_retried_deletion_removes_directories_of_the_first_attempt(remote: Path) -> None:
    write_files(remote, {"archive/1/a": b"", "archive/2/b": b"", "archive/3/c": b""})
    state = State()
    run(delete(Glob("archive/[12]/*")), state=state)  # the worker dies before it deletes the directories
    run(delete(Glob("archive/*/*"), empty_folders=True), try_number=2, state=state)
    assert [path.name for path in remote.rglob("*")] == ["archive"]


def test_a_named_directory_stays_if_a_filter_applies(remote: Path) -> None:
    write_files(remote, {"archive/1/a.csv": b"", "archive/1/b.csv": b""})
    run(delete("archive/", include="*.csv", empty_folders=True))
    assert [path.name for path in remote.rglob("*")] == ["archive"]
    with pytest.raises(AirflowFailException, match="empty_folders applies to directories and patterns"):
        run(delete("archive/1/a.csv", empty_folders=True))


def test_a_link_given_by_name_is_not_deleted_under_a_limit(remote: Path) -> None:
    write_files(remote, {"old": b""})
    os.utime(remote / "old", (1_600_000_000, 1_600_000_000))
    (remote / "latest").symlink_to("old")
    with pytest.raises(AirflowFailException, match="symbolic link"):
        run(delete("latest", older_than=timedelta(days=1)))
    assert (remote / "latest").is_symlink()


def test_directories_of_a_named_file_remain(remote: Path) -> None:
    write_files(remote, {"in/x": b"", "b[1]/kept/file": b""})
    run(delete([{"path": "b[1]/kept/file"}, "in/"], empty_folders=True))
    assert (remote / "b[1]/kept").is_dir()
