"""A download with only_new takes each version of a file once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Asset, AssetAlias
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend._file_rows import FoundFile
from airflow_sftp_backend._polling.seen_files import SeenFiles
from airflow_sftp_backend.hooks import FilesFailed
from airflow_sftp_backend.operators import SFTPDownloadOperator
from tests.support.airflow.context import AssetState, State, context
from tests.support.airflow.operators import run_in
from tests.support.airflow.versions import AirflowFailException, needs_state_stores
from tests.support.files import read_files, write_files

INBOX = Asset("inbox")


def take(
    target: Path,
    asset_state: AssetState,
    state: State | None = None,
    *,
    attempt: int = 1,
    cleared: int = 0,
    **given: Any,
) -> dict[str, str]:
    """Run a download of new files, and return its actions by path."""
    arguments = {"pattern": "in/*", "outlets": [INBOX]} | given
    operator = SFTPDownloadOperator(task_id="load", target=f"{target}/", only_new=True, **arguments)
    rows = run_in(operator, context(attempt, state or State(), cleared=cleared, asset_state=asset_state))
    return {row["path"]: row["action"] for row in rows}


def test_each_run_takes_the_files_that_no_run_has_taken(remote: Path, tmp_path: Path) -> None:
    asset = AssetState()
    write_files(remote, {"in/a": b"1", "in/b": b"2"})
    assert take(tmp_path / "1", asset) == {"in/a": "downloaded", "in/b": "downloaded"}
    assert take(tmp_path / "2", asset) == {}
    write_files(remote, {"in/c": b"3"})
    assert take(tmp_path / "3", asset) == {"in/c": "downloaded"}
    (remote / "in/a").unlink()
    assert take(tmp_path / "4", asset) == {}
    assert not (tmp_path / "4").exists()
    assert len(json.dumps(asset.values)) < 500


def test_a_file_with_another_size_or_time_is_new(remote: Path, tmp_path: Path) -> None:
    asset = AssetState()
    write_files(remote, {"in/size": b"1", "in/time": b"2", "in/same": b"3"})
    take(tmp_path / "1", asset)
    write_files(remote, {"in/size": b"longer"})
    os.utime(remote / "in/time", (1_000_000_000, 1_000_000_000))
    assert take(tmp_path / "2", asset) == {"in/size": "downloaded", "in/time": "downloaded"}


def test_max_files_leaves_files_to_the_next_run(remote: Path, tmp_path: Path) -> None:
    asset = AssetState()
    write_files(remote, {f"in/{number}": b"" for number in range(5)})
    for number in range(5):
        os.utime(remote / f"in/{number}", (1_800_000_000 - number, 1_800_000_000 - number))
    runs = [list(take(tmp_path / str(number), asset, max_files=2)) for number in range(4)]
    assert runs == [["in/4", "in/3"], ["in/2", "in/1"], ["in/0"], []]


def test_an_empty_directory_has_no_new_files(remote: Path, tmp_path: Path) -> None:
    (remote / "in").mkdir()
    assert take(tmp_path, AssetState()) == take(tmp_path, AssetState(), pattern=None, source="in/") == {}
    with pytest.raises(Exception, match="no file matches the pattern"):
        take(tmp_path, AssetState(), pattern="missing/*")


def test_a_retry_returns_the_files_of_the_first_attempt(remote: Path, tmp_path: Path) -> None:
    asset, state = AssetState(), State()
    write_files(remote, {"in/a": b"1", "in/b": b"2"})
    write_files(tmp_path, {"out/b/in-the-way": b""})
    with pytest.raises((AirflowFailException, FilesFailed, OSError)):
        take(tmp_path / "out", asset, state)
    (tmp_path / "out/b/in-the-way").unlink()
    (tmp_path / "out/b").rmdir()
    assert take(tmp_path / "out", asset, state, attempt=2) == {
        "in/a": "downloaded by an earlier attempt",
        "in/b": "downloaded",
    }
    assert read_files(tmp_path / "out") == {"a": b"1", "b": b"2"}
    assert take(tmp_path / "next", asset) == {}


def test_a_cleared_task_takes_its_files_again(remote: Path, tmp_path: Path) -> None:
    asset, state = AssetState(), State()
    write_files(remote, {"in/a": b"1"})
    take(tmp_path / "out", asset, state)
    write_files(remote, {"in/b": b"2"})
    take(tmp_path / "other run", asset)
    again = take(tmp_path / "again", asset, state, attempt=2, cleared=1)
    assert again == {"in/a": "downloaded"}


def test_a_dry_run_takes_no_file(remote: Path, tmp_path: Path) -> None:
    asset, state = AssetState(), State()
    write_files(remote, {"in/a": b"1"})
    assert take(tmp_path, asset, state, dry_run=True) == {"in/a": "would download"}
    assert asset.values == state.values == {}


def test_tasks_and_servers_remember_their_own_files(remote: Path, tmp_path: Path) -> None:
    asset = AssetState()
    write_files(remote, {"in/a": b"1"})
    take(tmp_path / "1", asset)
    for task_id, directory in (("other", tmp_path / "2"), ("load", tmp_path / "3")):
        run = context(state=State(), asset_state=asset)
        run["ti"].task_id = task_id
        arguments: dict[str, Any] = {"pattern": "in/*", "target": f"{directory}/", "inlets": [INBOX]}
        rows = SFTPDownloadOperator(task_id=task_id, only_new=True, **arguments).execute(run)
        assert len(rows) == 1
    assert len(asset.values) == 3


def test_a_write_that_fails_keeps_the_files(
    remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: State, key: str, value: object, **options: object) -> None:
        raise RuntimeError("away")

    write_files(remote, {"in/a": b"1"})
    monkeypatch.setattr(AssetState, "set", refuse)
    assert take(tmp_path, AssetState()) == {"in/a": "downloaded"}
    assert "asset's state store, so the next run cannot tell these files from new files: away" in caplog.text


def test_a_damaged_store_counts_as_empty(remote: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asset = AssetState()
    write_files(remote, {"in/a": b"1"})
    take(tmp_path / "1", asset)
    for key in asset.values:
        asset.set(key, {"directories": 7})
    assert take(tmp_path / "2", asset) == {"in/a": "downloaded"}
    assert "the stored files of this task are not valid" in caplog.text


# -- what is refused --------------------------------------------------------------------------------------------------


@needs_state_stores
@pytest.mark.parametrize(
    ("assets", "count"),
    [({}, 0), ({"inlets": [INBOX], "outlets": [Asset("other")]}, 2), ({"outlets": [AssetAlias("inbox")]}, 0)],
)
def test_exactly_one_asset_is_needed_when_the_dag_is_parsed(assets: dict[str, Any], count: int) -> None:
    with pytest.raises(ValueError, match=f"only_new needs exactly one Asset among inlets and outlets, not {count}"):
        SFTPDownloadOperator(task_id="load", pattern="in/*", target="out/", only_new=True, **assets)
    SFTPDownloadOperator(task_id="load", pattern="in/*", target="out/", only_new=True, inlets=[INBOX], outlets=[INBOX])


@needs_state_stores
def test_airflow_before_3_3_is_refused(remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: dict[str, Any] = {"task_id": "load", "pattern": "in/*", "target": f"{tmp_path}/", "inlets": [INBOX]}
    operator = SFTPDownloadOperator(only_new=True, **arguments)
    write_files(remote, {"in/a": b"1"})
    with pytest.raises(AirflowFailException, match=r"only_new needs Airflow 3.3 or later, .* Use newer_than, or move"):
        operator.execute(context(state=State()))
    monkeypatch.setattr("airflow_sftp_backend.operators._taken_files.HAS_STATE_STORES", False)
    with pytest.raises(ValueError, match=r"only_new needs Airflow 3.3 or later"):
        SFTPDownloadOperator(only_new=True, **arguments)


def test_names_of_files_are_refused(remote: Path, tmp_path: Path) -> None:
    with pytest.raises(AirflowFailException, match="only_new applies to directories and patterns"):
        take(tmp_path, AssetState(), pattern=None, source="in/a")


# -- the decision -----------------------------------------------------------------------------------------------------

ROWS = st.builds(
    lambda path, size, time: FoundFile(path=path, size=size, modified_at=time),
    st.sampled_from(["a", "b", "in/a", "in/b"]),
    st.integers(0, 2),
    st.sampled_from([None, "2026-01-01T00:00:00+00:00"]),
)


@given(st.lists(st.lists(ROWS, unique_by=lambda row: row["path"], max_size=4), max_size=5))
def test_a_file_is_known_while_it_exists_unchanged(polls: list[list[FoundFile]]) -> None:
    seen, known = SeenFiles(), dict[str, FoundFile]()
    for files in polls:
        for row in files:
            assert seen.has(row) == (known.get(row["path"]) == row) or row["path"] not in known
        paths = [row["path"] for row in files]
        seen = SeenFiles.from_json(json.loads(json.dumps(seen.with_files(files, paths, 0).as_json())))
        assert all(seen.has(row) for row in files)
        directories = {path.rpartition("/")[0] for path in paths}
        known = {path: row for path, row in known.items() if path.rpartition("/")[0] not in directories}
        known |= {row["path"]: row for row in files}
