"""The differences of a sync are a function of two listings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend.operators._object_storage import FileState
from airflow_sftp_backend.operators._sync.tree_differences import (
    Differences,
    TimeRule,
    TreeListing,
    classify,
    compare_by_state,
    depends_on_time_rule,
)

KEPT = TimeRule(is_kept=True)
NOT_KEPT = TimeRule(is_kept=False)

names = st.text("aAbéÉſ", min_size=1, max_size=2)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
times = st.none() | st.integers(0, 9).map(float)
states = st.builds(FileState, st.none() | st.integers(0, 3), times)
listings = st.builds(TreeListing, st.dictionaries(paths, states, max_size=8))
rules = st.builds(TimeRule, is_kept=st.booleans(), clock_lead=st.integers(-5, 5).map(float))


def files(differences: Differences) -> list[str]:
    return [*differences.new, *differences.changed, *differences.unchanged, *differences.extra]


@given(listings, listings, rules)
def test_each_file_is_in_exactly_one_class(source: TreeListing, target: TreeListing, rule: TimeRule) -> None:
    differences = compare_by_state(source, target, rule)
    assert sorted(files(differences)) == sorted(source.files.keys() | target.files.keys())
    assert set(differences.new) == source.files.keys() - target.files.keys()
    assert set(differences.extra) == target.files.keys() - source.files.keys()


@given(listings, listings, rules)
def test_after_a_sync_that_keeps_times_all_files_are_unchanged(
    source: TreeListing, target: TreeListing, rule: TimeRule
) -> None:
    differences = compare_by_state(source, target, rule)
    copied = {path: source.files[path] for path in [*differences.new, *differences.changed]}
    after = TreeListing({**{path: target.files[path] for path in differences.unchanged}, **copied})
    again = compare_by_state(source, after, rule)
    assert not again.new
    assert not again.extra
    assert all(source.files[path].size is None for path in again.changed)


@given(listings, st.floats(0, 100))
def test_after_a_sync_without_times_all_files_are_unchanged(source: TreeListing, delay: float) -> None:
    after = TreeListing({path: FileState(state.size, 10 + delay) for path, state in source.files.items()})
    again = compare_by_state(source, after, NOT_KEPT)
    assert all(source.files[path].size is None for path in again.changed)


@given(listings, listings)
def test_the_time_rule_matters_only_where_a_target_is_newer(source: TreeListing, target: TreeListing) -> None:
    differs = compare_by_state(source, target, KEPT) != compare_by_state(source, target, NOT_KEPT)
    assert differs == depends_on_time_rule(source, target)


@given(listings, listings, st.integers(1, 5))
def test_a_target_clock_ahead_hides_no_change(source: TreeListing, target: TreeListing, lead: int) -> None:
    plain = compare_by_state(source, target, NOT_KEPT)
    corrected = compare_by_state(source, target, TimeRule(is_kept=False, clock_lead=lead))
    assert set(plain.changed) <= set(corrected.changed)


@given(listings, listings, st.sets(paths))
def test_equal_content_decides_alone(source: TreeListing, target: TreeListing, equal: set[str]) -> None:
    differences = classify(source, target, equal)
    assert set(differences.unchanged) == source.files.keys() & target.files.keys() & equal


@pytest.mark.parametrize(
    ("source", "target", "kept", "not_kept"),
    [
        (FileState(1, 5), FileState(1, 5), True, True),
        (FileState(1, 5.9), FileState(1, 5), True, True),
        (FileState(1, 5), FileState(1, 6), False, True),
        (FileState(1, 6), FileState(1, 5), False, False),
        (FileState(2, 5), FileState(1, 5), False, False),
        (FileState(1, None), FileState(1, 5), True, True),
        (FileState(1, 5), FileState(1, None), True, True),
        (FileState(None, 5), FileState(None, 5), False, False),
    ],
)
def test_sizes_and_times_decide(source: FileState, target: FileState, kept: bool, not_kept: bool) -> None:
    for rule, expected in ((KEPT, kept), (NOT_KEPT, not_kept)):
        differences = compare_by_state(TreeListing({"a": source}), TreeListing({"a": target}), rule)
        assert (differences.unchanged == ["a"]) == expected
