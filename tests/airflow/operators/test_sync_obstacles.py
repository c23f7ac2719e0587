"""Entries in the way of files are found before the first change."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from airflow_sftp_backend.backend._paths import name_digest
from airflow_sftp_backend.operators._object_storage import FileState
from airflow_sftp_backend.operators._sync.obstacles import (
    emptied_directories,
    find_obstacles,
    protected_by_backups,
    protected_by_links,
)
from airflow_sftp_backend.operators._sync.tree_differences import TreeListing

STATE = FileState(1, 1)
TARGET = TreeListing(
    files={"dir/a": STATE, "dir/deep/b": STATE, "full/a": STATE, "file": STATE},
    others={"link", "full/link", "to-file"},
    links_to_files={"to-file"},
    left_out={"kept", "excluded/x"},
    directories={"dir", "dir/deep", "dir/empty", "empty", "full", "excluded"},
)
DELETED = {"dir/a", "dir/deep/b", "full/a", "file"}


@pytest.mark.parametrize(
    ("path", "deletions", "reason"),
    [
        ("new", None, None),
        ("dir/new", None, None),
        ("to-file", None, None),
        ("link", DELETED, "'link' in the target is a link"),
        ("link/below", DELETED, "'link' in the target is a link"),
        ("kept/below", DELETED, "the filters exclude"),
        ("file/below", None, "'file' in the target is a file"),
        ("file/below", {"dir/a"}, "'file' in the target is a file"),
        ("dir", None, "has a directory of this name"),
        ("dir", {"dir/a"}, "has a directory of this name"),
        ("empty", None, "has a directory of this name"),
        ("full", DELETED, "has a directory of this name"),
        ("excluded", DELETED, "has a directory of this name"),
    ],
)
def test_a_file_that_cannot_be_transferred_is_refused(
    path: str, deletions: Collection[str] | None, reason: str | None
) -> None:
    obstacles = find_obstacles([path], TARGET, deletions)
    assert obstacles.late == set()
    assert obstacles.refused.keys() == ({path} if reason else set())
    assert (reason or "") in obstacles.refused.get(path, "")


@pytest.mark.parametrize(
    ("path", "directories"),
    [("dir", ["dir/deep", "dir/empty", "dir"]), ("empty", ["empty"]), ("file/below", [])],
)
def test_what_replaces_deleted_entries_comes_late(path: str, directories: list[str]) -> None:
    obstacles = find_obstacles([path, "new"], TARGET, DELETED)
    assert (obstacles.late, obstacles.directories, obstacles.refused) == ({path}, directories, {})


def test_files_below_a_link_of_the_source_are_protected() -> None:
    assert protected_by_links(["a/b/c", "a/b", "ab/c"], {"a/b"}) == {"a/b/c", "a/b"}


@pytest.mark.parametrize("directory", ["", "sub"])
def test_a_file_that_is_being_replaced_is_protected(directory: str) -> None:
    backups = {(directory, name_digest("x")): "x"}
    prefix = f"{directory}/" if directory else ""
    assert protected_by_backups([f"{prefix}x", f"{prefix}y", "other/x"], backups) == {f"{prefix}x"}


def test_only_directories_that_the_source_lacks_are_emptied() -> None:
    assert emptied_directories(["a/b/c", "a/d", "e"], ["a/x"]) == ["a/b"]
    assert emptied_directories(["a/b/c"], []) == ["a/b", "a"]
