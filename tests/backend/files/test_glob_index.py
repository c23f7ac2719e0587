"""The index finds exactly the names that its globs match."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from airflow_sftp_backend.backend._files import glob_index
from airflow_sftp_backend.backend._files.glob import Pattern
from airflow_sftp_backend.backend._files.glob_index import GlobIndex

SEGMENT = st.text(alphabet="ab.*?[]!-A\\é€\udcff", min_size=1, max_size=8).filter(lambda text: text not in (".", ".."))
MANY_LENGTHS = st.lists(st.text(alphabet="abc.", min_size=1, max_size=9), min_size=4, max_size=9).flatmap(
    lambda parts: st.lists(
        st.sampled_from([shape.format(part) for part in parts for shape in ("{}*", "*{}", "*{}*", "*{}*b", "{}")]),
        max_size=20,
    )
)
NAME = st.lists(
    st.sampled_from(
        [b"a", b"b", b"c", b".", b"-", b"A", b"\\", b"[", b"]", b"*", b"\xc3\xa9", b"\xe2\x82\xac", b"\xff"]
    ),
    min_size=1,
    max_size=10,
).map(b"".join)


def expected(segments: list[str], names: list[bytes], encoding: str) -> list[tuple[int, str, set[str]]]:
    """Match each name with each segment."""
    found = []
    for index, raw in enumerate(names):
        name = raw.decode(encoding, "surrogateescape")
        matching = {segment for segment in segments if Pattern((segment,)).matches(name)}
        if matching:
            found.append((index, name, matching))
    return found


def check(segments: list[str], names: list[bytes], encoding: str = "utf-8") -> None:
    """Compare the index with the matcher of single names."""
    matches = GlobIndex(dict.fromkeys(segments), encoding).matches(names)
    assert [(index, name, set(found)) for index, name, found in matches] == expected(segments, names, encoding)


@settings(max_examples=300)
@given(st.lists(SEGMENT | st.just("**"), max_size=6), st.lists(NAME, max_size=8))
@example(["*.csv", "a*", "[a]b", "[*]x", "**"], [b"a.csv", b".csv", b"ab", b"*x", b""])
@example(["a*a"], [b"a", b"aa"])
@example(["[]a]*", "[!]a]*", "[a", "*[a*"], [b"]x", b"a", b"bx", b"[a", b"b[ab"])
def test_an_index_matches_like_its_globs_one_by_one(segments: list[str], names: list[bytes]) -> None:
    check(segments, names)


@settings(max_examples=300)
@given(MANY_LENGTHS, st.lists(NAME, max_size=8))
def test_parts_of_many_lengths_match_too(segments: list[str], names: list[bytes]) -> None:
    check(segments, names)


@given(
    st.lists(st.text(alphabet="aé*?[]\udc81", min_size=1, max_size=5), max_size=4),
    st.lists(st.binary(min_size=1, max_size=5).filter(lambda name: not {*b"\n/"} & {*name}), max_size=6),
    st.sampled_from(["iso8859-1", "cp1252"]),
)
def test_other_encodings_match_as_decoded(segments: list[str], names: list[bytes], encoding: str) -> None:
    if encoding == "iso8859-1":
        segments = [segment for segment in segments if "\udc81" not in segment]
    check(segments, names, encoding)


def test_case_and_hidden_names_are_as_in_globs() -> None:
    check(["*.CSV", "*", "?"], [b"a.csv", b"a.CSV", b".hidden", b"\xc3\xa9"])


def test_a_name_is_decoded_only_if_a_part_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    matched: list[str] = []

    def matcher(*globs: str) -> object:
        def matches(name: str) -> bool:
            matched.append(name)
            return name.endswith("-7.csv")

        return matches

    monkeypatch.setattr(glob_index, "name_matcher", matcher)
    globs = [
        f"{shape}" for number in range(200) for shape in (f"s{number:03}-*", f"*-{number}.csv", f"*={number:03}=*")
    ]
    names = [b"other-%d.dat" % number for number in range(1000)]
    assert list(GlobIndex(globs, "utf-8").matches([*names, b"x-7.csv"])) == [(1000, "x-7.csv", ["*-7.csv"])]
    assert set(matched) == {"x-7.csv"}
