"""Every file is given the one target its source means, and no name from a server leads out of a local folder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend import FileInfo, Secret
from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend.backend._tree import Pattern
from airflow_sftp_backend.ends import is_url
from airflow_sftp_backend.plans import (
    Found,
    Step,
    checked,
    crowded_targets,
    downloads,
    goes_into_folder,
    is_glob,
    literally,
    moves,
    numbered,
    numbered_names,
    paths,
    unspeakable,
    uploads,
)
from tests.airflow.conftest import grow

KEYS = st.lists(st.text("ab*?[]!.\\", min_size=1, max_size=4), min_size=1, max_size=3).map("/".join)


def found(path: str, below: str | None = None, size: int = 1) -> Found:
    return Found(FileInfo(path, path.rpartition("/")[2], size, None), below or path.rpartition("/")[2])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", ["a"]),
        (Path("a/b"), ["a/b"]),
        (["a", Path("b")], ["a", "b"]),
        (("a",), ["a"]),
        ((one for one in "ab"), ["a", "b"]),
    ],
)
def test_an_argument_is_one_path_or_several(value: str | Sequence[str], expected: list[str]) -> None:
    assert paths(value, "source") == expected


@pytest.mark.parametrize("value", ["", " ", [], ["a", ""], ["\n"]])
def test_an_empty_argument_says_which_and_why(value: str | list[str]) -> None:
    with pytest.raises(ValueError, match="source is empty; if it is a template"):
        paths(value, "source")


@pytest.mark.parametrize("value", [None, ["a", None]])
def test_none_says_which_and_that_a_template_rendered_to_it(value: Any) -> None:
    with pytest.raises(ValueError, match="source is None; if it is a template, that is what it rendered to"):
        paths(value, "source")


def test_an_empty_list_is_nothing_to_do_where_that_is_allowed() -> None:
    assert paths([], "source", none_ok=True) == []
    with pytest.raises(ValueError, match="source is empty"):
        paths("", "source", none_ok=True)


@pytest.mark.parametrize("value", [5, [5], [Secret("a")], b"x", [b"x"]])
def test_what_is_not_a_path_is_refused_by_the_arguments_name_without_its_value(value: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^source is a path or a list of paths, not (int|Secret|bytes)$"):
        paths(value, "source")  # type: ignore[arg-type]  # what is tested


@given(KEYS, KEYS)
def test_a_literal_pattern_fits_its_path_and_no_other(key: str, other: str) -> None:
    if {".", ".."} & {*key.split("/"), *other.split("/")}:
        return
    pattern = Pattern.parse(literally(key))
    assert pattern.matches(key)
    assert pattern.matches(other) == (other == key)


@pytest.mark.parametrize(
    ("text", "glob", "url"),
    [
        ("a/b.csv", False, False),
        ("a/*.csv", True, False),
        ("a?", True, False),
        ("[ab]", True, False),
        ("s3://bucket/a", False, True),
        ("abfs://c@x/a*", True, True),
        ("C://x", False, False),
        ("/a://b", False, False),
    ],
)
def test_globs_and_urls_are_told_from_paths(text: str, glob: bool, url: bool) -> None:
    assert (is_glob(text), is_url(text)) == (glob, url)


@pytest.mark.parametrize(
    ("sources", "target", "into"),
    [
        (["a"], "b", False),
        (["a"], "b/", True),
        (["a", "b"], "c", True),
        (["a*"], "c", True),
        (["a/"], "c", True),
    ],
)
def test_a_target_is_a_folder_where_there_may_be_several_files(sources: list[str], target: str, into: bool) -> None:
    assert goes_into_folder(sources, target) == into


# -- uploads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("a", "t", {"a": "t"}),
        ("a", "t/", {"a": "t/a"}),
        ("a", "/", {"a": "/a"}),
        ("d", "t", {"d/b": "t/b", "d/e/c": "t/e/c"}),
        ("d/", "t/", {"d/b": "t/b", "d/e/c": "t/e/c"}),
        ("d/*", "t", {"d/b": "t/b"}),
        ("**", "t", {"a": "t/a", "d/b": "t/d/b", "d/e/c": "t/d/e/c"}),
        ("d/**/c", "t", {"d/e/c": "t/e/c"}),
        ("[a]", "t", {"a": "t/a"}),
    ],
)
def test_local_files_are_sent_below_what_named_them(
    tmp_path: Path, source: str, target: str, expected: dict[str, str]
) -> None:
    grow(tmp_path, {"a": b"1", "d/b": b"22", "d/e/c": b"333"})
    steps = uploads([f"{tmp_path}/{source}"], target)
    assert {os.path.relpath(step.source, tmp_path): step.target for step in steps} == expected
    assert all(step.size == os.path.getsize(step.source) for step in steps)


def test_a_relative_source_is_sent_below_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, {"a": b"", "d/b": b""})
    monkeypatch.chdir(tmp_path)
    assert [step.target for step in uploads(["*", "d"], "t")] == ["t/a", "t/b"]
    assert [step.target for step in uploads(["**/*"], "t")] == ["t/a", "t/d/b"]


def test_a_local_name_with_wildcards_is_a_name_where_it_exists(tmp_path: Path) -> None:
    grow(tmp_path, {"[a]": b"", "a": b""})
    (step,) = uploads([f"{tmp_path}/[a]"], "t")
    assert step == Step(f"{tmp_path}/[a]", "t", 0)


@pytest.mark.parametrize("source", ["missing", "*.missing", "empty", "empty/**"])
def test_a_source_that_holds_no_file_is_missing(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError):
        uploads([f"{tmp_path}/{source}"], "t")


@pytest.mark.parametrize("source", ["d", "d/*", "d/**", "**/*"])
def test_what_a_download_has_not_finished_is_sent_only_where_it_is_named(tmp_path: Path, source: str) -> None:
    half = f".a.{'0' * 8}-{'1' * 12}.part"
    grow(tmp_path, {"d/a": b"", f"d/{half}": b"", "d/b.part": b""})
    sent = uploads([f"{tmp_path}/{source}"], "t")
    assert {os.path.basename(step.source) for step in sent} == {"a", "b.part"}
    assert [step.target for step in uploads([f"{tmp_path}/d/{half}"], "t")] == ["t"]
    with pytest.raises(FileNotFoundError):
        uploads([f"{tmp_path}/d/.a.*"], "t")


def test_a_name_that_is_not_utf_8_is_shown_with_its_bytes() -> None:
    assert unspeakable("café", "日本") is None
    error = unspeakable("ok", os.fsdecode(b"caf\xe9.csv"))
    assert error is not None
    assert error.path == r"caf\xe9.csv"
    assert "not UTF-8" in str(error)


def test_two_files_with_one_target_are_refused_and_one_named_twice_is_sent_once() -> None:
    assert checked([Step("a", "t/a"), Step("a", "t/a")]) == [Step("a", "t/a")]
    with pytest.raises(ValueError, match="'x/a' and 'y/a' would both become 't/a'"):
        checked([Step("x/a", "t/a"), Step("y/a", "t/a")])


# -- downloads and moves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/here", "/here/d/b"),
        ("/here/", "/here/d/b"),
        ("s3://bucket/in/", "s3://bucket/in/d/b"),
        ("rel", "rel/d/b"),
    ],
)
def test_files_of_a_glob_are_fetched_below_the_target(target: str, expected: str) -> None:
    assert [step.target for step in downloads([found("in/d/b", "d/b")], ["in/**"], target)] == [expected]


def test_one_plain_file_is_fetched_and_moved_as_named() -> None:
    assert downloads([found("in/b", size=7)], ["in/b"], "/here/c") == [Step("in/b", "/here/c", 7)]
    assert moves([found("in/b", size=7)], ["in/b"], "out/c", "2026-02-01") == [Step("in/b", "out/c", 7)]
    assert moves([found("in/b", size=7)], ["in/b"], "out/", "2026-02-01") == [Step("in/b", "out/b", 7)]
    assert moves([found("in/d/b", "d/b")], ["in/**"], "/", "2026-02-01") == [Step("in/d/b", "/d/b", 1)]
    assert moves([found("in/b", size=7)], ["in/b"], "out/{date}", "2026-02-01") == [Step("in/b", "out/2026-02-01", 7)]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("archive/{date}/{name}", "archive/2026-02-01/b.tar.gz"),
        ("archive/{date}/", "archive/2026-02-01/d/b.tar.gz"),
        ("{stem}-{date}{suffix}", "b.tar-2026-02-01.gz"),
        ("all/{name}/{name}", "all/b.tar.gz/b.tar.gz"),
        ("archive/{date}", "archive/2026-02-01/d/b.tar.gz"),
        ("archive/of{suffix}", "archive/of.gz/d/b.tar.gz"),
    ],
)
def test_a_target_may_say_where_each_file_goes(target: str, expected: str) -> None:
    (step,) = moves([found("in/d/b.tar.gz", "d/b.tar.gz")], ["in/**"], target, "2026-02-01")
    assert step == Step("in/d/b.tar.gz", expected, 1)


def test_braces_in_a_files_own_name_stand_for_themselves() -> None:
    (step,) = moves([found("in/{date}")], ["in/*"], "out/{name}", "2026-02-01")
    assert step.target == "out/{date}"


def test_a_word_in_braces_that_stands_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("{day} in it, which stands for nothing; there are {name}, {stem}")):
        moves([found("in/b")], ["in/*"], "out/{day}/", "2026-02-01")


def test_files_that_would_have_one_name_are_numbered() -> None:
    steps = [Step("a/r.csv", "r.csv"), Step("b/r.csv", "r.csv"), Step("c/r.csv", "r.csv"), Step("d/x", "x")]
    assert crowded_targets(steps, {"x"}) == ["r.csv", "x"]
    targets = [step.target for step in numbered(steps, {"r-1.csv", "x"})]
    assert targets == ["r.csv", "r-2.csv", "r-3.csv", "x-1"]
    assert numbered([steps[0], steps[0]], set()) == [steps[0]]
    assert numbered([Step("r.csv", "r.csv")], {"r.csv"}) == [Step("r.csv", "r.csv")]  # it is there itself
    assert [numbered_names(name) for name in ("d.x/r", "[a].csv")] == ["d.x/r-*", "[[]a]-*.csv"]


@given(
    st.lists(st.sampled_from(["r.csv", "r-1.csv", "r", "d/r.csv"]), max_size=12),
    st.sets(st.sampled_from(["r.csv", "r-1.csv", "r-2.csv", "r-1"])),
)
def test_no_two_files_and_nothing_that_is_there_share_a_numbered_name(wanted: list[str], taken: set[str]) -> None:
    targets = [step.target for step in numbered([Step(f"{n}", name) for n, name in enumerate(wanted)], taken)]
    assert len({*targets}) == len(wanted)
    assert not taken.intersection(targets)


@pytest.mark.parametrize("below", ["../b", "d/../../b", "", "d//b", ".", "d/."])
def test_a_servers_name_that_would_lead_elsewhere_is_no_local_name(below: str) -> None:
    with pytest.raises(ValueError, match="is no name for a local file"):
        downloads([Found(FileInfo("in/x", "x", 1, None), below)], ["in/**"], "/here/")


@given(st.lists(st.text(max_size=5), max_size=4).map("/".join))
def test_no_name_of_a_server_leads_out_of_the_local_folder(below: str) -> None:
    try:
        (step,) = downloads([Found(FileInfo("in/x", "x", 1, None), below)], ["in/**"], "/here/")
    except ValueError:
        return
    assert os.path.normpath(step.target).startswith("/here/")
