"""Operators select files by limits; a retry selects the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_sftp_backend import NotFound
from airflow_sftp_backend.hooks import FilesFailed
from airflow_sftp_backend.operators import SFTPDeleteOperator, SFTPMoveOperator
from tests.support.airflow.arguments import Glob
from tests.support.airflow.connections import Connect
from tests.support.airflow.context import State, context
from tests.support.airflow.operators import actions, delete, download, move, run, upload
from tests.support.airflow.versions import AirflowFailException
from tests.support.files import read_files, write_files
from tests.support.servers import BareAttributes

DUE = context()["dag_run"].run_after.timestamp()
DAY = 86_400


def write_aged(top: Path, days: dict[str, float]) -> None:
    """Write files with the given ages in days, and sizes."""
    write_files(top, {name: bytes(int(age)) for name, age in days.items()})
    for name, age in days.items():
        os.utime(top / name, (DUE - age * DAY, DUE - age * DAY))


def test_retention_deletes_old_files_only(remote: Path) -> None:
    write_aged(remote, {"archive/a/old": 31, "archive/old": 30.001, "archive/exact": 30, "archive/b/young": 2})
    rows = run(delete(Glob("archive/**"), older_than=timedelta(days=30)))
    assert sorted(row["path"] for row in rows) == ["archive/a/old", "archive/old"]
    assert sorted(read_files(remote)) == ["archive/b/young", "archive/exact"]
    assert run(delete(Glob("archive/**"), older_than=timedelta(days=30))) == []


def test_a_directory_keeps_the_files_that_limits_leave_out(remote: Path) -> None:
    write_aged(remote, {"archive/a/old": 31, "archive/b/young": 2})
    run(delete("archive/", older_than=timedelta(days=30)))
    assert sorted(read_files(remote)) == ["archive/b/young"]


def test_an_empty_directory_has_nothing_to_retain_or_load(remote: Path, tmp_path: Path) -> None:
    (remote / "empty").mkdir()
    (tmp_path / "empty").mkdir()
    day = timedelta(days=1)
    assert run(delete(Glob("empty/**"), older_than=day)) == []
    assert run(delete("empty/", older_than=day)) == []
    assert run(move(Glob("empty/*.csv"), "out/", newer_than=day)) == []
    assert run(download(Glob("empty/*.csv"), tmp_path / "out", newer_than=day)) == []
    assert run(upload(Glob(f"{tmp_path}/empty/*.csv"), "out/", newer_than=day)) == []
    for operator in (delete(Glob("missing/**"), older_than=day), move(Glob("missing/*"), "out/", newer_than=day)):
        with pytest.raises(NotFound):
            run(operator)
    with pytest.raises(NotFound):
        run(download("empty/a.csv", tmp_path / "out", newer_than=day))
    with pytest.raises(FileNotFoundError):
        run(upload(Glob(f"{tmp_path}/missing/*.csv"), "out/", newer_than=day))
    with pytest.raises(NotFound):
        run(delete(Glob("empty/**"), min_size=1))


@pytest.mark.parametrize("way", ["upload", "download", "move", "delete"])
def test_every_operator_has_the_limits(remote: Path, tmp_path: Path, way: str) -> None:
    top = tmp_path / "local" if way == "upload" else remote
    write_aged(top, {f"in/{name}": age for name, age in {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}.items()})
    make: dict[str, Callable[..., Any]] = {
        "upload": lambda **limits: upload(f"{top}/in/", "out/", dry_run=True, **limits),
        "download": lambda **limits: download("in/", tmp_path / "out", dry_run=True, **limits),
        "move": lambda **limits: move(Glob("in/*"), "out/", dry_run=True, **limits),
        "delete": lambda **limits: delete(Glob("in/*"), dry_run=True, **limits),
    }

    def selected(**limits: Any) -> list[str]:
        return [Path(row.get("source") or row["path"]).name for row in run(make[way](**limits))]

    assert sorted(selected(newer_than=timedelta(days=3))) == ["a", "b", "c"]
    assert sorted(selected(older_than=timedelta(days=3))) == ["d", "e"]
    assert sorted(selected(newer_than=timedelta(days=4), older_than=timedelta(days=2))) == ["c", "d"]
    assert sorted(selected(min_size=4)) == ["d", "e"]
    assert selected(max_files=2) == ["e", "d"]
    assert selected(max_files=2, exclude="e") == ["d", "c"]
    assert selected(newer_than=context()["dag_run"].run_after - timedelta(days=1), max_files=9) == ["a"]


def test_names_are_limited_too(remote: Path, tmp_path: Path) -> None:
    write_aged(remote, {"a": 1, "b": 2})
    rows = run(download([{"path": "a"}, {"path": "b"}], tmp_path / "out", older_than=timedelta(days=1)))
    assert [row["path"] for row in rows] == ["b"]


def test_clocks_that_differ_do_not_change_the_comparison(remote: Path) -> None:
    # A server three hours ahead: its times are compared with the time of the run as they are.
    write_aged(remote, {"in/now": -3 / 24, "in/hour-ago": -2 / 24})
    hour = timedelta(hours=1)
    assert len(run(move(Glob("in/*"), "out/", newer_than=hour, dry_run=True))) == 2
    assert run(move(Glob("in/*"), "out/", older_than=hour, dry_run=True)) == []


def test_the_next_run_takes_the_files_beyond_max_files(remote: Path) -> None:
    write_aged(remote, {f"in/{age}": age for age in range(1, 6)})
    batches = [[row["source"] for row in run(move(Glob("in/*"), "out/", max_files=2))] for _ in range(3)]
    assert batches == [["in/5", "in/4"], ["in/3", "in/2"], ["in/1"]]


@pytest.mark.parametrize("if_exists", ["skip", "skip_same"])
def test_skipped_files_do_not_count_towards_max_files(remote: Path, tmp_path: Path, if_exists: Any) -> None:
    write_aged(remote, {f"in/{age}": age for age in range(1, 6)})
    for number in (2, 4, 5, 5):
        run(download(Glob("in/*"), tmp_path / "out", max_files=2, if_exists=if_exists))
        assert len(read_files(tmp_path / "out")) == number
    run(upload(f"{tmp_path}/out/", "up/", max_files=3, if_exists=if_exists))
    run(upload(f"{tmp_path}/out/", "up/", max_files=3, if_exists=if_exists))
    assert len(read_files(remote / "up")) == 5


# -- retries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("if_exists", ["fail", "replace", "skip", "number"])
def test_a_retried_move_takes_no_file_beyond_the_first_selection(remote: Path, if_exists: str) -> None:
    state = State()
    write_aged(remote, {f"in/{age}": age for age in range(1, 6)})
    way = write_files(remote, {"out/4/in-the-way": b""}) / "out/4"
    with pytest.raises((AirflowFailException, FilesFailed)):
        run(move(Glob("in/*"), "out/", max_files=3, if_exists="fail"), state=state)
    (way / "in-the-way").unlink()
    way.rmdir()
    write_aged(remote, {"in/older": 9})
    rows = run(move(Glob("in/*"), "out/", max_files=3, if_exists=if_exists), try_number=2, state=state)
    assert sorted(row["source"] for row in rows) == ["in/3", "in/4", "in/5"]
    assert sorted(read_files(remote)) == ["in/1", "in/2", "in/older", "out/3", "out/4", "out/5"]


def test_a_retried_delete_takes_no_file_beyond_the_first_selection(remote: Path) -> None:
    state = State()
    write_aged(remote, {f"in/{age}": age for age in range(1, 6)})
    run(delete(Glob("in/*"), max_files=2), state=state)  # the worker dies after the last file
    assert run(delete(Glob("in/*"), max_files=2), try_number=2, state=state) == []
    assert sorted(read_files(remote)) == ["in/1", "in/2", "in/3"]


def test_a_retried_transfer_recognises_its_selection(remote: Path, tmp_path: Path) -> None:
    state = State()
    write_aged(remote, {f"in/{age}": age for age in range(1, 6)})
    run(download(Glob("in/*"), tmp_path / "out", max_files=2), state=state)
    write_aged(remote, {"in/older": 9})
    rows = run(download(Glob("in/*"), tmp_path / "out", max_files=2), try_number=2, state=state)
    assert actions(rows) == dict.fromkeys(["in/5", "in/4"], "downloaded by an earlier attempt")


def test_a_dry_run_records_no_selection(remote: Path) -> None:
    state = State()
    write_aged(remote, {"in/1": 1, "in/2": 2})
    run(move(Glob("in/*"), "out/", max_files=1, dry_run=True), state=state)
    assert state.values == {}


# -- what cannot be decided -------------------------------------------------------------------------------------------


def test_a_server_without_times_deletes_nothing_by_age(connect: Connect) -> None:
    with BareAttributes() as server:
        folder = server.fresh()
        write_files(folder.path, {"in/a": b"x"})
        connect(server, base_path=folder.base_path)
        with pytest.raises(AirflowFailException, match="the time of the file is unknown, so older_than cannot be"):
            run(delete(Glob("in/*"), older_than=timedelta(days=1)))
        assert read_files(folder.path) == {"in/a": b"x"}


def test_an_empty_template_limits_nothing_only_for_newer_than(remote: Path) -> None:
    write_aged(remote, {"in/a": 1})
    young = SFTPMoveOperator(task_id="mv", pattern="in/*", target="out/", newer_than="{{ newest }}", dry_run=True)
    young.newer_than = ""  # as rendering leaves it
    with pytest.raises(AirflowFailException, match="newer_than is empty: this run has no logical date"):
        young.execute(context())
    assert len(young.execute(context(logical_date=context()["dag_run"].run_after))) == 1
    for nothing in ("", None):
        old = SFTPDeleteOperator(task_id="rm", pattern="in/*", older_than="{{ oldest }}")
        old.older_than = nothing
        with pytest.raises(AirflowFailException, match="older_than is empty: expected a time"):
            old.execute(context())
    assert sorted(read_files(remote)) == ["in/a"]


def test_a_link_is_not_deleted_by_age(remote: Path) -> None:
    write_aged(remote, {"data/a": 31})
    (remote / "link").symlink_to("data")
    for name in ("link", "link/"):
        with pytest.raises(AirflowFailException, match="symbolic link"):
            run(delete(name, older_than=timedelta(days=30)))
    assert (remote / "link").is_symlink()
    assert (remote / "data/a").exists()
