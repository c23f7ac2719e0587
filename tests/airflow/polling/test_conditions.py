"""Evaluate number, size, age, stability and done files."""

from __future__ import annotations

import json
import math
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend import FileInfo
from airflow_sftp_backend._polling.conditions import (
    FileCondition,
    PollResult,
    StabilityState,
    done_file_of,
    evaluate,
)

NOON = datetime(2026, 2, 3, 12, tzinfo=UTC)


def file(path: str, size: int = 10, modified_at: datetime | None = NOON) -> FileInfo:
    return FileInfo(path, path.rpartition("/")[2], size, modified_at)


def judged(
    files: list[FileInfo],
    *,
    patterns: tuple[str, ...] = ("in/*",),
    named: tuple[str, ...] = (),
    done: set[str] | None = None,
    earlier: StabilityState | None = None,
    now: float = 0,
    **condition: Any,
) -> PollResult:
    return evaluate(FileCondition(named, patterns=patterns, **condition), files, done or set(), earlier or {}, now)


def names(verdict: PollResult) -> list[str]:
    return [row["path"] for row in verdict.files]


def test_one_file_is_enough_unless_min_files_is_higher() -> None:
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
    assert json.loads(json.dumps(verdict.stability)) == verdict.stability


def test_a_file_must_have_the_minimum_size() -> None:
    verdict = judged([file("in/a", 9), file("in/b", 10)], min_size=10)
    assert (names(verdict), verdict.done) == (["in/b"], True)
    assert judged([file("in/a", 9)], min_size=10).reason == ("no file is ready; 'in/a' does not count: 9 of 10 bytes")


def test_the_first_ineligible_file_is_explained_and_all_are_counted() -> None:
    many = [file(f"in/{number}", number) for number in range(5)]
    verdict = judged(many, min_size=10, done_file="{name}.done")
    assert verdict.reason == (
        "no file is ready; 'in/0' does not count: 0 of 10 bytes, or the server reports no size;"
        " 'in/1' does not count: 1 of 10 bytes; 'in/2' does not count: 2 of 10 bytes; and 2 more"
    )
    assert verdict.counts == judged(many[::-1], min_size=9, done_file="{name}.done").counts == (0, 5, 0, 0, 0, 0)
    without_time = judged([file("in/a", 10, None)], newer_than="2026-02-03T12:00:00+00:00").reason
    assert "the server reports no time, so newer_than (2026-02-03T12:00:00+00:00) cannot be decided" in without_time
    assert "its done file 'in/a.done' is missing" in judged([file("in/a")], done_file="{name}.done").reason
    assert "not unchanged for 30 s yet" in judged([file("in/a")], stable_for=30).reason


@pytest.mark.parametrize(
    ("newer_than", "ready"),
    [
        ("2026-02-03T11:59:59+00:00", True),
        ("2026-02-03T12:00:00+00:00", True),
        ("2026-02-03T12:00:01+00:00", False),
        ("2026-02-03T13:00:00+01:00", True),
        ("2026-02-03T13:00:01+01:00", False),
    ],
)
def test_a_file_must_be_newer_than_the_given_time(newer_than: str, ready: bool) -> None:
    assert judged([file("in/a")], newer_than=newer_than).done == ready
    assert not judged([file("in/a", modified_at=None)], newer_than=newer_than).done


def test_a_file_must_be_stable_for_the_given_time() -> None:
    first = judged([file("in/a")], stable_for=30, now=100)
    assert not first.done
    assert first.stability == {"in/a": [10, "2026-02-03T12:00:00+00:00", 100]}
    early = judged([file("in/a")], stable_for=30, earlier=first.stability, now=129.9)
    assert not early.done
    assert judged([file("in/a")], stable_for=30, earlier=early.stability, now=130).done


@pytest.mark.parametrize(
    "changed", [file("in/a", 11), file("in/a", 10, NOON + timedelta(seconds=1)), file("in/a", 10, None)]
)
def test_a_change_of_size_or_time_restarts_the_stability_wait(changed: FileInfo) -> None:
    first = judged([file("in/a")], stable_for=30, now=100)
    second = judged([changed], stable_for=30, earlier=first.stability, now=130)
    assert not second.done
    assert judged([changed], stable_for=30, earlier=second.stability, now=160).done


def test_a_file_that_disappeared_and_returned_is_new() -> None:
    first = judged([file("in/a")], stable_for=30, now=100)
    gone = judged([], stable_for=30, earlier=first.stability, now=110)
    assert gone.stability == {}
    assert not judged([file("in/a")], stable_for=30, earlier=gone.stability, now=140).done


def test_a_file_must_have_its_done_file_if_configured() -> None:
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
        ("{stem}.done", "in/a.csv", "in/a.done"),
        ("{stem}.ok", "in.x/{name}.tar.gz", "in.x/{name}.tar.ok"),
    ],
)
def test_a_done_file_stands_beside_its_file(template: str, path: str, expected: str) -> None:
    assert done_file_of(template, path) == expected


@pytest.mark.parametrize("template", ["{other}.done", "{name}{}", "{date}/{name}"])
def test_a_done_file_template_with_unknown_fields_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"done_file has \{\w*\} in it, an unknown placeholder; expected \{name\}"):
        FileCondition(patterns=("in/*",), done_file=template)


@pytest.mark.parametrize("folder", [".tmp", "up.part"])
def test_files_in_a_directory_of_unfinished_files_count_only_if_named(folder: str) -> None:
    path = f"in/{folder}/deep/a.csv"
    for pattern in ("in/**", "**/*.csv", "in/*/deep/*", "**/deep/a.csv"):
        assert not judged([file(path)], patterns=(pattern,)).done
        assert judged([file(path)], patterns=(pattern,), exclude=()).done
    other_patterns = (f"*/{folder}/deep/*", f"**/{folder}/**", f"in/{folder[:2]}*/*/a.csv", f"*/?{folder[1:]}/deep/*")
    for pattern in (f"in/{folder}/**", f"/in//{folder}/*/a.csv", *other_patterns):
        assert judged([file(path)], patterns=(pattern,)).done
        assert judged([file(path)], patterns=("in/**", pattern)).done
    assert judged([file(path)], named=(path,)).done


@pytest.mark.parametrize("name", [".hidden", "a.part", "a.tmp", "a.filepart", "a.crdownload"])
def test_names_of_unfinished_files_count_only_if_named(name: str) -> None:
    path = f"in/{name}"
    assert not judged([file(path)]).done
    assert judged([file(path)], named=(path,)).done
    assert judged([file(path)], named=(f"/{path}",)).done
    assert judged([file(path)], named=(f"./in//{name}",)).done
    assert judged([file(path)], exclude=()).done


def test_excluded_patterns_can_be_configured() -> None:
    assert names(judged([file("in/a.csv"), file("in/a.done")], exclude=("*.done",))) == ["in/a.csv"]


@pytest.mark.parametrize("path", ["in/x.ok", "in//x.ok", "/in/x.ok"])
def test_a_done_file_counts_as_a_file_only_if_named(path: str) -> None:
    files, done = [file("in/x"), file("in/x.ok")], {"in/x.ok", "in/x.ok.ok"}
    assert names(judged(files, done_file="{name}.ok", done=done)) == ["in/x"]
    assert names(judged(files, named=(path,), done_file="{name}.ok", done=done)) == ["in/x", "in/x.ok"]
    assert names(judged(files[1:], done_file="{name}.ok", done=done)) == ["in/x.ok"]  # it is nobody's


def test_a_shared_done_file_does_not_count_as_a_file() -> None:
    assert names(judged([file("in/READY")], done_file="READY", done={"in/READY"})) == []
    assert names(judged([file("in/READY"), file("in/a")], done_file="READY", done={"in/READY"})) == ["in/a"]
    assert (
        names(judged([file("in/READY")], named=("in/READY",), patterns=(), done_file="READY", done={"in/READY"})) != []
    )
    apart = [file("in/a"), file("in/done/a.ok")]
    assert names(judged(apart, patterns=("in/**",), done_file="done/{name}.ok", done={"in/done/a.ok"})) == ["in/a"]


@pytest.mark.parametrize("template", ["", " ", "../done/{name}.ok", "ok/", "/ok", "a//b", ".", "a\0", "{name}", 7])
def test_an_invalid_done_file_is_refused(template: Any) -> None:
    with pytest.raises(ValueError, match=r"^done_file must (be|differ) ") as caught:
        FileCondition(patterns=("in/*",), done_file=template)
    assert repr(template) in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("min_files", [0, -1, 1.0, True, "1", None, math.inf]),
        ("min_size", [-1, "1", True, None, math.nan]),
        ("stable_for", [-0.1, "1", math.nan, math.inf, False, None, timedelta(1)]),
    ],
)
def test_an_invalid_number_is_refused(argument: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^{argument} must be a .*, not {re.escape(repr(value))}$"):
            FileCondition(patterns=("in/*",), **{argument: value})


# -- times ------------------------------------------------------------------------------------------------------------


def test_a_file_must_be_older_than_the_given_time() -> None:
    verdict = judged([file("in/a"), file("in/b", modified_at=None)], older_than="2026-02-03T12:00:00.9+00:00")
    assert verdict.reason == (
        "no file is ready; 'in/a' does not count: modified 2026-02-03T12:00:00+00:00, not older than"
        " 2026-02-03T12:00:00.9+00:00; 'in/b' does not count: the server reports no time, so older_than"
        " (2026-02-03T12:00:00.9+00:00) cannot be decided"
    )
    assert judged([file("in/a")], older_than="2026-02-03T12:00:01+00:00").done


def test_at_most_max_files_are_returned_the_oldest_first() -> None:
    files = [file("in/a", modified_at=NOON), file("in/b", modified_at=NOON - timedelta(hours=1)), file("in/c")]
    assert names(judged(files, max_files=2)) == ["in/b", "in/a"]
    assert names(judged(files, max_files=9)) == ["in/b", "in/a", "in/c"]
    with pytest.raises(ValueError, match="max_files is 2, less than min_files, 3"):
        FileCondition(patterns=("in/*",), min_files=3, max_files=2)


def test_clock_differences_make_no_file_stable_too_early_or_never() -> None:
    ahead = judged([file("in/a")], stable_for=30, now=1000)
    back = judged([file("in/a")], stable_for=30, earlier=ahead.stability, now=100)
    assert not back.done
    assert back.stability["in/a"][2] == 100
    assert judged([file("in/a")], stable_for=30, earlier=back.stability, now=130).done


# -- states and messages -----------------------------------------------------------------------------


def test_no_state_is_kept_without_a_stability_condition() -> None:
    assert judged([file("in/a")]).stability == {}
    assert judged([file("in/a")], stable_for=1).stability != {}


@pytest.mark.parametrize(
    ("condition", "settling"),
    [
        ({}, True),
        ({"min_files": 2}, True),
        ({"min_files": 3}, False),
        ({"done_file": "{name}.ok"}, False),
        ({"min_size": 11}, False),
        ({"newer_than": "2026-02-03T12:00:01+00:00"}, False),
        ({"older_than": "2026-02-03T12:00:00+00:00"}, False),
    ],
)
def test_awaiting_stability_is_reported_if_nothing_else_is_missing(condition: dict[str, Any], settling: bool) -> None:
    assert judged([file("in/a"), file("in/b")], stable_for=30, **condition).awaiting_stability == settling


def test_a_finished_wait_reports_no_pending_stability() -> None:
    assert not judged([file("in/a")], stable_for=0).awaiting_stability


def test_a_name_that_is_not_utf8_is_skipped_with_a_warning() -> None:
    odd, odder = file("in/caf\udce9"), file("in/\udcff/x")
    verdict = judged([file("in/a"), odd, file("in/é😀")])
    assert names(verdict) == ["in/a", "in/é😀"]
    assert r"in/caf\udce9; set the connection's name_encoding, or rename the files" in verdict.warning
    assert "UTF-8" in verdict.warning
    assert r"in/caf\udce9 and 1 more" in judged([odd, odder], stable_for=3).warning
    json.dumps([verdict.files, verdict.stability, verdict.warning], ensure_ascii=False).encode()
    assert judged([file("in/a")]).warning == judged([file("in/\udcff.part")]).warning == ""


def test_a_directory_of_fifty_thousand_names_is_evaluated_quickly() -> None:
    files = [file(f"in/file-{number:06}.csv") for number in range(50_000)]
    began = time.process_time()
    assert len(judged(files).files) == 50_000
    assert time.process_time() - began < 2


FILES = st.lists(
    st.builds(file, st.sampled_from(["in/a", "in/b", "in/c.part"]), st.integers(0, 3)), unique_by=lambda f: f.path
)


@given(st.lists(FILES, min_size=1, max_size=6), st.integers(1, 3), st.integers(0, 2), st.integers(0, 3))
def test_the_stability_state_can_be_serialized_as_json(
    polls: list[list[FileInfo]], min_files: int, min_size: int, stable_for: int
) -> None:
    condition = FileCondition(patterns=("in/*",), min_files=min_files, min_size=min_size, stable_for=stable_for)
    travelled = FileCondition.from_json(json.loads(json.dumps(condition.as_json())))
    assert travelled == condition
    here: StabilityState = {}
    there: StabilityState = {}
    for now, files in enumerate(polls):
        one, other = evaluate(condition, files, (), here, now), evaluate(travelled, files, (), there, now)
        assert one == other
        assert one.done == (len(one.files) >= min_files)
        assert {row["path"] for row in one.files} <= {info.path for info in files if info.size >= min_size}
        here, there = one.stability, json.loads(json.dumps(other.stability))
