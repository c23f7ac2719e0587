"""When a wait is over: by number, size, age, stability and done file, and for the same reason wherever it is judged."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend import FileInfo
from airflow_sftp_backend.waiting import Condition, Observed, Verdict, done_file, judge

NOON = datetime(2026, 2, 3, 12, tzinfo=UTC)


def file(path: str, size: int = 10, modified_at: datetime | None = NOON) -> FileInfo:
    return FileInfo(path, path.rpartition("/")[2], size, modified_at)


def judged(
    files: list[FileInfo],
    *,
    patterns: tuple[str, ...] = ("in/*",),
    done: set[str] | None = None,
    earlier: Observed | None = None,
    now: float = 0,
    **condition: Any,
) -> Verdict:
    return judge(Condition(patterns, **condition), files, done or set(), earlier or {}, now)


def names(verdict: Verdict) -> list[str]:
    return [row["path"] for row in verdict.files]


def test_one_file_is_enough_unless_more_are_asked_for() -> None:
    assert judged([file("in/a")]).done
    assert not judged([]).done
    assert not judged([file("in/a")], min_files=2).done
    assert judged([file("in/a"), file("in/b")], min_files=2).done


def test_the_result_is_plain_json() -> None:
    verdict = judged([file("in/a"), file("in/b", 0, None)])
    assert (
        verdict.files
        == json.loads(json.dumps(verdict.files))
        == [
            {"path": "in/a", "size": 10, "modified_at": "2026-02-03T12:00:00+00:00"},
            {"path": "in/b", "size": 0, "modified_at": None},
        ]
    )
    assert json.loads(json.dumps(verdict.observed)) == verdict.observed


def test_a_file_must_have_the_size_asked_for() -> None:
    verdict = judged([file("in/a", 9), file("in/b", 10)], min_size=10)
    assert (names(verdict), verdict.done) == (["in/b"], True)
    assert judged([file("in/a", 9)], min_size=10).missing == "0 of 1 files are there, 1 not ready yet"


@pytest.mark.parametrize(
    ("newer_than", "ready"),
    [
        ("2026-02-03T11:59:59+00:00", True),
        ("2026-02-03T12:00:00+00:00", False),
        ("2026-02-03T12:59:59+01:00", True),
        ("2026-02-03T13:00:00+01:00", False),
    ],
)
def test_a_file_must_have_changed_after_the_time_asked_for(newer_than: str, ready: bool) -> None:
    assert judged([file("in/a")], newer_than=newer_than).done == ready
    assert not judged([file("in/a", modified_at=None)], newer_than=newer_than).done


def test_a_file_must_be_stable_for_the_time_asked_for() -> None:
    first = judged([file("in/a")], stable_for=30, now=100)
    assert not first.done
    assert first.observed == {"in/a": [10, "2026-02-03T12:00:00+00:00", 100]}
    early = judged([file("in/a")], stable_for=30, earlier=first.observed, now=129.9)
    assert not early.done
    assert judged([file("in/a")], stable_for=30, earlier=early.observed, now=130).done


@pytest.mark.parametrize(
    "changed", [file("in/a", 11), file("in/a", 10, NOON + timedelta(seconds=1)), file("in/a", 10, None)]
)
def test_a_change_of_size_or_time_starts_the_wait_anew(changed: FileInfo) -> None:
    first = judged([file("in/a")], stable_for=30, now=100)
    second = judged([changed], stable_for=30, earlier=first.observed, now=130)
    assert not second.done
    assert judged([changed], stable_for=30, earlier=second.observed, now=160).done


def test_a_file_that_went_and_came_back_is_new() -> None:
    first = judged([file("in/a")], stable_for=30, now=100)
    gone = judged([], stable_for=30, earlier=first.observed, now=110)
    assert gone.observed == {}
    assert not judged([file("in/a")], stable_for=30, earlier=gone.observed, now=140).done


def test_a_file_must_have_its_done_file_where_one_is_asked_for() -> None:
    files = [file("in/a"), file("in/b")]
    assert names(judged(files, done_file="{name}.done", done={"in/b.done"})) == ["in/b"]
    assert names(judged(files, done_file="ready", done={"in/ready"})) == ["in/a", "in/b"]


@pytest.mark.parametrize(
    ("template", "path", "expected"),
    [
        ("{name}.done", "in/a.csv", "in/a.csv.done"),
        ("{name}.done", "a.csv", "a.csv.done"),
        (".{name}.ok", "in/deep/a", "in/deep/.a.ok"),
        ("READY", "in/a", "in/READY"),
        ("{other}{name}", "in/a", "in/{other}a"),
    ],
)
def test_a_done_file_stands_beside_its_file(template: str, path: str, expected: str) -> None:
    assert done_file(template, path) == expected


@pytest.mark.parametrize("name", [".hidden", "a.part", "a.tmp", "a.filepart", "a.crdownload"])
def test_names_of_unfinished_files_do_not_count_unless_named(name: str) -> None:
    path = f"in/{name}"
    assert not judged([file(path)]).done
    assert judged([file(path)], patterns=(path,)).done
    assert judged([file(path)], patterns=(f"/{path}",)).done
    assert judged([file(path)], patterns=(f"./in//{name}",)).done
    assert judged([file(path)], ignore=()).done


def test_what_is_ignored_may_be_chosen() -> None:
    assert names(judged([file("in/a.csv"), file("in/a.done")], ignore=("*.done",))) == ["in/a.csv"]


FILES = st.lists(
    st.builds(file, st.sampled_from(["in/a", "in/b", "in/c.part"]), st.integers(0, 3)), unique_by=lambda f: f.path
)


@given(st.lists(FILES, min_size=1, max_size=6), st.integers(1, 3), st.integers(0, 2), st.integers(0, 3))
def test_what_is_remembered_may_travel_as_json(
    looks: list[list[FileInfo]], min_files: int, min_size: int, stable_for: int
) -> None:
    condition = Condition(("in/*",), min_files=min_files, min_size=min_size, stable_for=stable_for)
    travelled = Condition.from_json(json.loads(json.dumps(condition.as_json())))
    assert travelled == condition
    here: Observed = {}
    there: Observed = {}
    for now, files in enumerate(looks):
        one, other = judge(condition, files, (), here, now), judge(travelled, files, (), there, now)
        assert one == other
        assert one.done == (len(one.files) >= min_files)
        assert {row["path"] for row in one.files} <= {info.path for info in files if info.size >= min_size}
        here, there = one.observed, json.loads(json.dumps(other.observed))
