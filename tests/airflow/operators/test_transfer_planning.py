"""Each source has one target inside the local directory."""

from __future__ import annotations

import glob
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_sftp_backend import FileInfo, InvalidPath
from airflow_sftp_backend._file_filters import FileFilters
from airflow_sftp_backend._path_arguments import Selection, parse_names, parse_patterns
from airflow_sftp_backend.backend._files.glob import Pattern
from airflow_sftp_backend.operators._object_storage import is_url
from airflow_sftp_backend.operators._rename_template import RenameTemplate, check_rename
from airflow_sftp_backend.operators._transfer_planning import (
    LocalFile,
    RemoteMatch,
    TransferItem,
    assign_numbers,
    check_unique_targets,
    conflicting_targets,
    find_local_files,
    numbered_pattern,
    plan_downloads,
    plan_moves,
    plan_uploads,
    target_is_directory,
    utf8_error,
)
from tests.support.airflow.arguments import Glob
from tests.support.files import write_files

RUN = datetime(2026, 1, 31, 22, 30, tzinfo=timezone(timedelta(hours=-2)))  # 2026-02-01 in UTC
KEYS = st.lists(st.text("ab*?[]!.\\", min_size=1, max_size=4), min_size=1, max_size=3).map("/".join)
ALL = FileFilters()


def found(path: str, below: str | None = None, size: int = 1) -> RemoteMatch:
    return RemoteMatch(FileInfo(path, path.rpartition("/")[2], size, None), below or path.rpartition("/")[2])


def selection(wanted: Any) -> Selection:
    """Parse an argument: local names, or a `Glob`."""
    if isinstance(wanted, Glob):
        return parse_patterns(list(wanted.patterns))
    return parse_names(wanted, "source", end="local")


def sent(wanted: Any, target: str, filters: FileFilters = ALL) -> list[TransferItem]:
    """The steps of an upload in which nothing is missing."""
    files, failures = find_local_files(selection(wanted), filters)
    if failures:
        raise failures[0]
    return plan_uploads(files, selection(wanted), target)


@given(KEYS, KEYS)
def test_an_escaped_pattern_matches_only_its_own_path(key: str, other: str) -> None:
    if {".", ".."} & {*key.split("/"), *other.split("/")}:
        return
    pattern = Pattern.parse(glob.escape(key))
    assert pattern.matches(key)
    assert pattern.matches(other) == (other == key)


@pytest.mark.parametrize(
    ("text", "url"),
    [("a/b.csv", False), ("s3://bucket/a", True), ("abfs://c@x/a*", True), ("C://x", False), ("/a://b", False)],
)
def test_urls_are_distinguished_from_paths(text: str, url: bool) -> None:
    assert is_url(text) == url


@pytest.mark.parametrize(
    ("source", "target", "into"),
    [
        ("a", "b", False),
        ("a*", "b", False),
        ({"path": "a/"}, "b", False),
        ("a", "b/", True),
        (["a"], "b", True),
        ([{"path": "a"}], "b", True),
        ('[{"path": "a"}]', "b", True),
        (["a", "b"], "c", True),
        (Glob("a"), "c", True),
        ("a/", "c", True),
    ],
)
def test_a_target_is_a_directory_unless_one_name_is_given(source: Any, target: str, into: bool) -> None:
    assert target_is_directory(selection(source), target) == into


# -- uploads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("a", "t", {"a": "t"}),
        ("a", "t/", {"a": "t/a"}),
        ("a", "/", {"a": "/a"}),
        ("d/", "t", {"d/b": "t/b", "d/e/c": "t/e/c"}),
        ("d/", "t/", {"d/b": "t/b", "d/e/c": "t/e/c"}),
        (Glob("d/*"), "t", {"d/b": "t/b"}),
        (Glob("**"), "t", {"a": "t/a", "d/b": "t/d/b", "d/e/c": "t/d/e/c"}),
        (Glob("d/**/c"), "t", {"d/e/c": "t/e/c"}),
        (Glob("[a]"), "t", {"a": "t/a"}),
    ],
)
def test_local_files_are_sent_relative_to_their_source(
    tmp_path: Path, source: Any, target: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    top = write_files(tmp_path / "[x]*", {"a": b"1", "d/b": b"22", "d/e/c": b"333"})
    whole = Glob(f"{glob.escape(str(top))}/{source.patterns[0]}") if isinstance(source, Glob) else f"{top}/{source}"
    steps = sent(whole, target)
    assert {os.path.relpath(step.source, top): step.target for step in steps} == expected
    assert all(step.size == os.path.getsize(step.source) for step in steps)
    monkeypatch.chdir(top)
    assert [step.target for step in sent(source, target)] == [step.target for step in steps]


def test_local_names_are_always_literal(tmp_path: Path) -> None:
    write_files(tmp_path, {"[a]": b"", "a": b"", "x[y]/b": b"", "xy/c": b""})
    assert sent(f"{tmp_path}/[a]", "t") == [TransferItem(f"{tmp_path}/[a]", "t", 0)]
    assert [step.target for step in sent(f"{tmp_path}/x[y]/", "t/")] == ["t/b"]
    for name in ("[ab]", "?", "*", "[x]", "x*/"):
        with pytest.raises(FileNotFoundError, match="pass globs as pattern="):
            sent(f"{tmp_path}/{name}", "t")
    with pytest.raises(InvalidPath, match="the path is a directory; to select its files"):
        sent(f"{tmp_path}/xy", "t")


def test_missing_local_files_do_not_stop_the_others(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": b"", "d/b": b""})
    files, failures = find_local_files(selection([f"{tmp_path}/{name}" for name in ("no", "a", "d", "e/")]), ALL)
    assert [file.relative_path for file in files] == ["a"]
    assert [type(failure) for failure in failures] == [FileNotFoundError, InvalidPath, FileNotFoundError]


@pytest.mark.parametrize("source", ["missing", Glob("*.missing"), "empty/", Glob("empty/**"), "missing/"])
def test_a_source_that_holds_no_file_is_missing(tmp_path: Path, source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        sent(source, "t")


@pytest.mark.parametrize("source", ["d/", Glob("**/*")])
def test_filters_apply_to_matches_and_not_to_names(tmp_path: Path, source: Any) -> None:
    write_files(tmp_path, {"d/a.csv": b"", "d/b.txt": b"", "d/.x/c.csv": b"", "d/e/c.csv": b"", "d/.d.csv": b""})
    whole = Glob(f"{tmp_path}/d/{source.patterns[0]}") if isinstance(source, Glob) else f"{tmp_path}/{source}"
    steps = sent(whole, "t", FileFilters(("*.csv",), (".*",)))
    assert [step.target for step in steps] == ["t/a.csv", "t/e/c.csv"]
    assert [step.target for step in sent(f"{tmp_path}/d/b.txt", "t", FileFilters(("*.csv",)))] == ["t"]


@pytest.mark.parametrize("source", ["d/", Glob("d/*"), Glob("d/**"), Glob("**/*")])
def test_partial_downloads_are_sent_only_if_named(tmp_path: Path, source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    half = f".a.{'0' * 8}-{'1' * 12}.part"
    write_files(tmp_path, {"d/a": b"", f"d/{half}": b"", "d/b.part": b""})
    monkeypatch.chdir(tmp_path)
    assert {os.path.basename(step.source) for step in sent(source, "t")} == {"a", "b.part"}
    assert [step.target for step in sent(f"d/{half}", "t")] == ["t"]
    with pytest.raises(FileNotFoundError):
        sent(Glob("d/.a.*"), "t")


def test_a_name_that_is_not_utf_8_is_shown_with_its_bytes() -> None:
    assert utf8_error("café", "日本") is None
    error = utf8_error("ok", os.fsdecode(b"caf\xe9.csv"))
    assert error is not None
    assert error.path == r"caf\xe9.csv"
    assert "not UTF-8" in str(error)


def test_conflicting_targets_are_refused_and_repeated_sources_sent_once() -> None:
    assert check_unique_targets([TransferItem("a", "t/a"), TransferItem("a", "t/a")]) == [TransferItem("a", "t/a")]
    with pytest.raises(ValueError, match="'x/a' and 'y/a' have the same target, 't/a'"):
        check_unique_targets([TransferItem("x/a", "t/a"), TransferItem("y/a", "t/a")])


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
    assert [step.target for step in plan_downloads([found("in/d/b", "d/b")], selection(Glob("in/**")), target)] == [
        expected
    ]


def test_one_file_is_fetched_and_moved_as_named() -> None:
    one, file = selection("in/b"), [found("in/b", size=7)]
    assert plan_downloads(file, one, "/here/c") == [TransferItem("in/b", "/here/c", 7)]
    assert plan_moves(file, one, "out/c") == [TransferItem("in/b", "out/c", 7)]
    assert plan_moves(file, one, "out/") == [TransferItem("in/b", "out/b", 7)]
    assert plan_moves(file, one, "out/{date}*") == [TransferItem("in/b", "out/{date}*", 7)]
    assert plan_moves([found("in/d/b", "d/b")], selection("in/"), "/") == [TransferItem("in/d/b", "/d/b", 1)]


@pytest.mark.parametrize(
    ("rename", "expected"),
    [
        ("{date}/{name}", "archive/2026-02-01/b.tar.gz"),
        ("{stem}-{date}{suffix}", "archive/b.tar-2026-02-01.gz"),
        ("{name}/{name}", "archive/b.tar.gz/b.tar.gz"),
        ("of{suffix}", "archive/of.gz"),
        ("{timestamp}_{stem}-{time}{suffix}", "archive/20260201T003000_b.tar-003000.gz"),
        ("*[1]?", "archive/*[1]?"),
    ],
)
@pytest.mark.parametrize("source", ["in/d/b.tar.gz", Glob("in/**"), "in/"])
def test_a_template_names_each_file_below_the_target(rename: str, expected: str, source: Any) -> None:
    check_rename(rename)
    files = [found("in/d/b.tar.gz", "d/b.tar.gz")]
    for target in ("archive", "archive/"):
        assert plan_moves(files, selection(source), target, RenameTemplate.parse(rename, RUN)) == [
            TransferItem("in/d/b.tar.gz", expected, 1)
        ]


def test_braces_in_names_stand_for_themselves() -> None:
    (step,) = plan_moves([found("in/{date}")], selection(Glob("in/*")), "o{stem}", RenameTemplate("{name}", RUN))
    assert step.target == "o{stem}/{date}"


def test_a_name_that_begins_with_two_dots_is_its_own_stem() -> None:
    assert RenameTemplate("{date}/{stem}{suffix}", RUN).fill("..a") == "2026-02-01/..a"


def test_a_template_names_uploads_and_downloads_too() -> None:
    rename = RenameTemplate("{date}/{stem}-{time}{suffix}", RUN)
    remote = [found("in/d/b.csv", "d/b.csv")]
    local = [LocalFile("/in/d/b.csv", "d/b.csv", 1), LocalFile("s3://in/d/c.csv", "d/c.csv", None)]
    for chosen in (selection("in/"), selection("in/d/b.csv")):
        (item,) = plan_downloads(remote, chosen, "/here", rename)
        assert item.target == "/here/2026-02-01/b-003000.csv"
        assert [item.target for item in plan_uploads(local, chosen, "out", rename)] == [
            "out/2026-02-01/b-003000.csv",
            "out/2026-02-01/c-003000.csv",
        ]
    with pytest.raises(ValueError, match="have the same target"):
        plan_downloads([found("a/x"), found("b/x")], selection(Glob("**")), "/here", RenameTemplate("{name}", RUN))


@pytest.mark.parametrize("rename", ["x/{suffix}", "{suffix}", "x/{suffix}{suffix}"])
def test_a_template_that_leaves_no_file_name_is_refused(rename: str) -> None:
    template = RenameTemplate(rename, RUN)
    assert template.fill("a.csv").endswith(".csv")
    with pytest.raises(InvalidPath, match=r"makes '.*' of the name 'README', which is not a file name; the file was"):
        template.fill("README")


@pytest.mark.parametrize("rename", ["{day}/{name}", "{}", "", "/", "{name}/", "../{name}", "a/.", 7, None, ["{name}"]])
def test_a_template_without_a_valid_name_is_refused(rename: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"rename (is|has) .*(expected|there are)"):
        check_rename(rename)


def test_files_with_the_same_name_are_numbered() -> None:
    steps = [
        TransferItem("a/r.csv", "r.csv"),
        TransferItem("b/r.csv", "r.csv"),
        TransferItem("c/r.csv", "r.csv"),
        TransferItem("d/x", "x"),
    ]
    assert conflicting_targets(steps, {"x"}) == ["r.csv", "x"]
    targets = [step.target for step in assign_numbers(steps, {"r-1.csv", "x"})]
    assert targets == ["r.csv", "r-2.csv", "r-3.csv", "x-1"]
    assert assign_numbers([steps[0], steps[0]], set()) == [steps[0]]
    assert assign_numbers([TransferItem("r.csv", "r.csv")], {"r.csv"}) == [
        TransferItem("r.csv", "r.csv")
    ]  # it is there itself
    assert [numbered_pattern(name) for name in ("d.x/r", "[a].csv")] == ["d.x/r-*", "[[]a]-*.csv"]


@given(
    st.lists(st.sampled_from(["r.csv", "r-1.csv", "r", "d/r.csv"]), max_size=12),
    st.sets(st.sampled_from(["r.csv", "r-1.csv", "r-2.csv", "r-1"])),
)
def test_a_numbered_name_is_unique_among_new_and_existing_files(wanted: list[str], taken: set[str]) -> None:
    targets = [
        step.target for step in assign_numbers([TransferItem(f"{n}", name) for n, name in enumerate(wanted)], taken)
    ]
    assert len({*targets}) == len(wanted)
    assert not taken.intersection(targets)


@pytest.mark.parametrize("below", ["../b", "d/../../b", "", "d//b", ".", "d/."])
def test_a_server_name_with_a_separator_is_not_a_local_name(below: str) -> None:
    with pytest.raises(ValueError, match="is not valid for a local file"):
        plan_downloads([RemoteMatch(FileInfo("in/x", "x", 1, None), below)], selection(Glob("in/**")), "/here/")


@given(st.lists(st.text(max_size=5), max_size=4).map("/".join))
def test_no_server_name_leads_out_of_the_local_directory(below: str) -> None:
    try:
        (step,) = plan_downloads(
            [RemoteMatch(FileInfo("in/x", "x", 1, None), below)], selection(Glob("in/**")), "/here/"
        )
    except ValueError:
        return
    assert os.path.normpath(step.target).startswith("/here/")
