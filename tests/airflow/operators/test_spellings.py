"""Names that some target takes for one are found, and no others."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_sftp_backend.operators._sync.spellings import (
    ANY_RULES,
    NameRules,
    merged_paths,
    unlisted_prefixes,
    with_parents,
)

EXACT = NameRules(ignores_case=False, ignores_form=False, drops_ends=False, splits_at_backslash=False)

paths = st.lists(st.text("aAbéÉſ. \\", min_size=1, max_size=2), min_size=1, max_size=3).map("/".join)
rules = st.builds(NameRules, st.booleans(), st.booleans(), st.booleans(), st.booleans())


@pytest.mark.parametrize(
    ("spelling", "others"),
    [
        ("a/b", {"A/B", "a./b", "a /b.. ", "a\\b"}),
        ("é", {"e\u0301", "É", "E\u0301", "é."}),
        ("strasse", {"straße", "STRASSE"}),
        ("", {"...", ". ", " "}),
    ],
)
def test_all_spellings_of_a_name_are_equal(spelling: str, others: set[str]) -> None:
    assert {ANY_RULES.fold(other) for other in others} <= {spelling}
    assert ANY_RULES.fold(spelling) == spelling
    assert {EXACT.fold(other) for other in others} == others


@given(paths, rules)
def test_a_folded_path_has_no_other_spelling(path: str, rule: NameRules) -> None:
    assert rule.fold(rule.fold(path)) == rule.fold(path)


@given(paths, paths, rules)
@example("\\", "\\.", NameRules(ignores_case=False, ignores_form=False, drops_ends=True, splits_at_backslash=False))
def test_what_one_target_merges_counts_for_any_target(path: str, other: str, rule: NameRules) -> None:
    if rule.fold(path) == rule.fold(other):
        assert ANY_RULES.fold(path) == ANY_RULES.fold(other)


@pytest.mark.parametrize(
    ("paths", "listed", "lookups"),
    [
        (["a", "b"], {"c"}, {}),
        (["a"], {"A"}, {"a": "a"}),
        (["A"], {"A", "a"}, {}),
        (["d/y"], {"D", "D/x"}, {"d/y": "d"}),
        (["D/y"], {"D", "D/x"}, {}),
        (["D/X"], {"D", "D/x"}, {"D/X": "D/X"}),
        (["x/é"], {"x", "x/e\u0301"}, {"x/é": "x/é"}),
        (["a", "b"], {"a.", "b "}, {"a": "a", "b": "b"}),
        (["a./b", "c\\d", "LONGNA~1.TXT", "x:y"], set(), {
            "a./b": "a.", "c\\d": "c\\d", "LONGNA~1.TXT": "LONGNA~1.TXT", "x:y": "x:y",
        }),
        (["nul", "sub/AUX.txt", "com1", "auxiliary", "console"], set(), {
            "nul": "nul", "sub/AUX.txt": "sub/AUX.txt", "com1": "com1",
        }),
    ],
)  # fmt: skip
def test_new_names_that_may_exist_are_looked_up(paths: list[str], listed: set[str], lookups: Mapping[str, str]) -> None:
    assert unlisted_prefixes(paths, listed) == lookups


@given(st.sets(paths, max_size=6), st.sets(paths, max_size=6))
def test_a_name_that_is_not_looked_up_has_its_own_spelling(new: set[str], existing: set[str]) -> None:
    listed = with_parents(existing)
    lookups = unlisted_prefixes(new, listed)
    for path in new - lookups.keys() - listed:
        assert ANY_RULES.fold(path) not in {ANY_RULES.fold(entry) for entry in listed}


@pytest.mark.parametrize(
    ("known", "rule", "merged"),
    [
        ({"a", "b"}, ANY_RULES, {}),
        ({"A", "a"}, ANY_RULES, {"A": "a", "a": "A"}),
        ({"A", "a"}, EXACT, {}),
        ({"D/x", "d/y"}, ANY_RULES, {"D/x": "d", "d/y": "D"}),
        ({"a", "a."}, NameRules(False, False, True, False), {"a": "a.", "a.": "a"}),
        ({"a", "a."}, NameRules(True, True, False, True), {}),
        ({"a/b", "a\\b"}, ANY_RULES, {"a/b": "a\\b", "a\\b": "a/b"}),
    ],
)
def test_names_that_a_target_merges_are_found(known: set[str], rule: NameRules, merged: Mapping[str, str]) -> None:
    assert merged_paths(known, with_parents(known), rule) == merged


@given(st.sets(paths, max_size=6), rules)
def test_paths_that_are_not_merged_remain_distinct(known: set[str], rule: NameRules) -> None:
    distinct = known - merged_paths(known, with_parents(known), rule).keys()
    assert len({rule.fold(path) for path in distinct}) == len(distinct)
