"""Limits select each file once, and refuse senseless values."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend import FileInfo
from airflow_sftp_backend._file_filters import (
    FileLimits,
    LimitArguments,
    parse_time,
    split_by_limits,
    take_oldest,
)

RUN = datetime(2026, 1, 31, 23, 30, tzinfo=timezone(timedelta(hours=-1)))
TIMES = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
SECONDS = TIMES.map(lambda time: time.replace(microsecond=0))


@st.composite
def listings(draw: st.DrawFn) -> list[FileInfo]:
    """Draw the files of a directory."""
    ages = st.one_of(st.none(), SECONDS, st.sampled_from([RUN.astimezone(UTC), RUN - timedelta(days=1)]))
    names = draw(st.lists(st.text("abc", min_size=1, max_size=3), unique=True, max_size=8))
    return [FileInfo(name, name, draw(st.integers(0, 3)), draw(ages)) for name in names]


def itself(info: FileInfo) -> FileInfo:
    """Return the file."""
    return info


# -- windows of time --------------------------------------------------------------------------------------------------


@given(SECONDS, st.lists(TIMES, min_size=1, max_size=5, unique=True))
def test_consecutive_windows_take_each_file_once(changed: datetime, limits: list[datetime]) -> None:
    edges = [None, *sorted(limits), None]
    windows = [FileLimits(newer, older) for newer, older in itertools.pairwise(edges)]
    assert [window.violated_by(1, changed) for window in windows].count(None) == 1


@given(SECONDS, TIMES)
def test_a_younger_file_is_never_older_than_a_limit(changed: datetime, limit: datetime) -> None:
    # The server reports whole seconds, so the change may be up to a second later.
    if FileLimits(older_than=limit).violated_by(1, changed) is None:
        assert changed + timedelta(seconds=1) <= limit.replace(microsecond=0) or changed < limit
        assert changed + timedelta(microseconds=999_999) < limit


@given(TIMES, TIMES)
def test_fractions_of_local_times_do_not_matter(changed: datetime, limit: datetime) -> None:
    whole = changed.replace(microsecond=0)
    for limits in (FileLimits(newer_than=limit), FileLimits(older_than=limit)):
        assert limits.violated_by(1, changed) == limits.violated_by(1, whole)


def test_limits_are_checked_in_the_order_of_size_and_time() -> None:
    limits = FileLimits(newer_than=RUN, older_than=RUN + timedelta(days=1), min_size=10)
    assert limits.violated_by(9, RUN) == "min_size"
    assert limits.violated_by(None, RUN) == "min_size"
    assert limits.violated_by(10, RUN - timedelta(seconds=1)) == "newer_than"
    assert limits.violated_by(10, RUN + timedelta(days=1)) == "older_than"
    assert limits.violated_by(10, RUN) is None


@given(listings(), st.integers(0, 3))
def test_every_file_is_accepted_left_out_or_undecided(files: list[FileInfo], min_size: int) -> None:
    limits = FileLimits(newer_than=RUN - timedelta(hours=1), min_size=min_size)
    split = split_by_limits(files, limits, itself)
    assert len(split.accepted) + split.left_out.total() + len(split.undecided) == len(files)
    assert all(info.modified_at is None and limit == "newer_than" for info, limit in split.undecided)
    assert split_by_limits(files, FileLimits(), itself).accepted == files


# -- the oldest files -------------------------------------------------------------------------------------------------


@given(listings(), st.integers(1, 9))
def test_runs_that_take_the_oldest_files_take_each_file_once(files: list[FileInfo], max_files: int) -> None:
    remaining, taken = files, list[FileInfo]()
    while remaining:
        batch = take_oldest(remaining, max_files, itself)
        assert 0 < len(batch) <= max_files
        taken += batch
        remaining = [info for info in remaining if info not in batch]
    assert sorted(info.path for info in taken) == sorted(info.path for info in files)
    known = [info.modified_at for info in taken if info.modified_at is not None]
    assert known == sorted(known)
    assert [info.modified_at for info in taken[len(known) :]] == [None] * (len(taken) - len(known))


@given(listings(), listings(), st.integers(1, 9), st.integers(0, 9))
def test_a_retry_takes_the_files_of_the_first_attempt(
    files: list[FileInfo], arrived: list[FileInfo], max_files: int, done: int
) -> None:
    first = take_oldest(files, max_files, itself)
    selected = {info.path for info in first}
    completed = {info.path for info in first[:done]}  # moved or deleted by the first attempt
    names = {info.path for info in files}
    present = [info for info in files if info.path not in completed]
    present += [info for info in arrived if info.path not in names]
    again = take_oldest(present, max_files, itself, selected)
    assert {info.path for info in again} >= selected - completed
    assert len(selected | {info.path for info in again}) <= max_files


def test_without_max_files_all_files_keep_their_order() -> None:
    files = [FileInfo("b", "b", 1, RUN), FileInfo("a", "a", 1, None)]
    assert take_oldest(files, None, itself, {"a"}) == files


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["newer_than", "older_than"])
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (date(2026, 1, 1), "not date: datetime.date(2026, 1, 1)"),
        (1_700_000_000, "not int: 1700000000"),
        (1.5, "not float: 1.5"),
        (("x",), "not tuple: ('x',)"),
        ("None", "'None'; expected a time such as 2026-01-31T06:00:00+01:00"),
        (" ", "' '; expected"),
        ("30 days", "or for an age a timedelta such as timedelta(days=30)"),
        ("2026-01-31", "2026-01-31T00:00:00 has none"),
        (datetime(2026, 1, 31), "needs a time zone"),
        (timedelta(seconds=-1), "a timedelta from 0, which counts back from the time of the run"),
        (timedelta.max, "a timedelta from 0, which counts back from the time of the run"),
    ],
)
def test_an_invalid_time_is_refused(argument: str, value: object, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        parse_time(value, argument, RUN)
    assert str(caught.value).startswith(f"{argument} ")
    if not isinstance(value, str):  # a text may be a template
        with pytest.raises(ValueError, match=re.escape(text)):
            LimitArguments.checked(**{"newer_than": None, "older_than": None} | {argument: value})


def test_a_time_may_be_a_datetime_a_text_or_a_timedelta() -> None:
    for value in (RUN, RUN.isoformat(), timedelta(0)):
        assert parse_time(value, "newer_than", RUN) == RUN
    assert parse_time(timedelta(days=30), "older_than", RUN) == RUN - timedelta(days=30)
    assert parse_time(None, "newer_than", RUN) is parse_time("", "newer_than", RUN) is None


def test_a_timedelta_without_a_run_is_refused() -> None:
    with pytest.raises(ValueError, match="newer_than must be a time, not a timedelta: a watch has no run"):
        parse_time(timedelta(days=1), "newer_than", None)


@pytest.mark.parametrize("empty", [None, ""])
def test_an_empty_limit_is_accepted_for_newer_than_only(empty: str | None) -> None:
    arguments = LimitArguments.checked("{{ newest }}", None)
    assert arguments.resolve(empty, None, run_after=RUN) == FileLimits()
    with pytest.raises(ValueError, match="newer_than is empty: this run has no logical date"):
        arguments.resolve(empty, None, run_after=RUN, is_scheduled=False)
    with pytest.raises(ValueError, match="older_than is empty: expected a time"):
        LimitArguments.checked(None, "{{ oldest }}").resolve(None, empty, run_after=RUN)


@pytest.mark.parametrize(
    "arguments", [{"max_files": 0}, {"max_files": 1.0}, {"max_files": True}, {"min_size": -1}, {"min_size": "1"}]
)
def test_invalid_numbers_are_refused(arguments: dict[str, object]) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name} must be a "):
        LimitArguments.checked(None, None, **arguments)
