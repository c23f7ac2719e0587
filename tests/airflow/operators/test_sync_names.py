"""A sync loses no file if the target makes names equal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.airflow.syncs import Serve, counts, run_sync, sync
from tests.support.airflow.versions import AirflowFailException
from tests.support.files import read_files, write_files
from tests.support.servers import AsyncsshServer, IgnoresCase, LikeWindows

OTHER_SPELLING = "does not distinguish this path"
ONE_NAME = "for one name"


@pytest.mark.parametrize("dry_run", [False, True])
def test_an_excluded_name_is_not_overwritten_by_another_spelling(serve: Serve, tmp_path: Path, dry_run: bool) -> None:
    remote = serve(IgnoresCase())
    write_files(remote, {"out/KEEP.csv": b"kept", "out/Dir/x.log": b"kept"})
    here = write_files(tmp_path / "in", {"keep.csv": b"new", "dir/X.LOG": b"new", "other": b"1"})
    with pytest.raises(AirflowFailException, match=f"2 of 3 files failed:\n- .*{OTHER_SPELLING}"):
        run_sync(sync(here, "out", exclude=["KEEP.csv", "*.log"], dry_run=dry_run))
    assert read_files(remote / "out").items() >= {"KEEP.csv": b"kept", "Dir/x.log": b"kept"}.items()


@pytest.mark.parametrize(("server", "deleted"), [(IgnoresCase(), 0), (AsyncsshServer(), 2)], ids=["caseless", "exact"])
def test_the_copy_of_an_excluded_name_is_not_deleted(
    serve: Serve, tmp_path: Path, server: AsyncsshServer, deleted: int
) -> None:
    remote = serve(server)
    target = {"a.csv": b"copy", "dir/x": b"copy", "b": b"1"}
    write_files(remote / "out", target)
    here = write_files(tmp_path / "in", {"A.csv": b"excluded", "Dir/x": b"excluded", "b": b"1"})
    result = run_sync(sync(here, "out", delete=True, exclude=["A.csv", "Dir"]))
    assert result["deleted"] == deleted
    assert read_files(remote / "out").keys() == (target.keys() if not deleted else {"b"})


def test_the_copy_of_a_link_of_the_source_is_not_deleted(serve: Serve, tmp_path: Path) -> None:
    remote = serve(IgnoresCase())
    write_files(remote / "out", {"sub/b": b"copy", "a": b"1"})
    here = write_files(tmp_path / "in", {"a": b"1"})
    (here / "Sub").symlink_to(write_files(tmp_path / "elsewhere", {"b": b"copy"}))
    assert run_sync(sync(here, "out", delete=True))["deleted"] == 0
    assert read_files(remote / "out").keys() == {"sub/b", "a"}


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    "names",
    [("A.csv", "a.csv"), ("Dir/a", "dir/b"), ("a", "a."), ("a", "a "), ("sub/b", "sub\\b")],
)
def test_two_names_that_become_one_fail_before_any_write(
    serve: Serve, tmp_path: Path, names: tuple[str, str], dry_run: bool
) -> None:
    remote = serve(LikeWindows())
    here = write_files(tmp_path / "in", {**dict.fromkeys(names, b"1"), "other": b"1"})
    with pytest.raises(AirflowFailException, match=ONE_NAME):
        run_sync(sync(here, "out", dry_run=dry_run))
    assert not [*remote.rglob("*")]


def test_after_one_of_two_names_is_removed_the_sync_succeeds(serve: Serve, tmp_path: Path) -> None:
    remote = serve(IgnoresCase())
    write_files(remote / "out", {"A.csv": b"1"})
    here = write_files(tmp_path / "in", {"A.csv": b"1", "a.csv": b"2", "b": b"3"})
    with pytest.raises(AirflowFailException, match=OTHER_SPELLING):
        run_sync(sync(here, "out", delete=True))
    assert read_files(remote / "out") == {"A.csv": b"1", "b": b"3"}
    (here / "a.csv").unlink()
    assert counts(run_sync(sync(here, "out", delete=True)))[2:] == (2, 0)


@pytest.mark.parametrize(
    ("existing", "name"),
    [("report", "report."), ("report", "report "), ("sub/b", "sub\\b"), ("Sub/b", "sub./b")],
)
def test_a_name_that_windows_takes_for_an_existing_one_fails(
    serve: Serve, tmp_path: Path, existing: str, name: str
) -> None:
    remote = serve(LikeWindows())
    write_files(remote / "out", {existing: b"old"})
    here = write_files(tmp_path / "in", {name: b"new"})
    with pytest.raises(AirflowFailException, match=OTHER_SPELLING):
        run_sync(sync(here, "out", delete=True))
    assert read_files(remote / "out") == {existing: b"old"}


def test_deleting_a_name_with_a_dot_leaves_the_one_without(serve: Serve, tmp_path: Path) -> None:
    remote = serve(LikeWindows())
    write_files(remote / "out", {"x": b"1", "x.": b"2", "extra": b""})
    here = write_files(tmp_path / "in", {"x": b"1"})
    assert run_sync(sync(here, "out", delete=True))["deleted"] == 1
    assert read_files(remote / "out") == {"x": b"1", "x.": b"2"}


def test_names_that_only_windows_merges_are_synced_elsewhere(remote: Path, tmp_path: Path) -> None:
    files = {"a": b"1", "a.": b"2", "A ": b"3", "sub/b": b"4", "sub\\b": b"5", "é": b"6", "e\u0301": b"7", "nul": b"8"}
    here = write_files(tmp_path / "in", files)
    assert counts(run_sync(sync(here, "out"))) == (8, 0, 0, 0)
    assert read_files(remote / "out") == files
    assert counts(run_sync(sync("out", tmp_path / "back", "download"))) == (8, 0, 0, 0)
    assert read_files(tmp_path / "back") == files
    (here / "a.").unlink()
    assert run_sync(sync(here, "out", delete=True))["deleted"] == 1
    assert counts(run_sync(sync(here, "out"))) == (0, 0, 7, 0)


def test_objects_whose_names_differ_in_case_are_separate(remote: Path, store: str) -> None:
    write_files(remote / "in", {"A": b"1", "a": b"2"})
    assert counts(run_sync(sync("in", f"{store}/out", "download"))) == (2, 0, 0, 0)
    assert counts(run_sync(sync("in", f"{store}/out", "download"))) == (0, 0, 2, 0)
