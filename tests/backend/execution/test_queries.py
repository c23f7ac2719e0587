"""List directories; describe files and directories alike."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from airflow_sftp_backend import FileInfo, FolderEntry, NotFound, SFTPBackend
from tests.support.assertions import refused
from tests.support.servers import AsyncsshServer, Folder

NOON = 1_700_000_000


@pytest.fixture
def folder(asyncssh_plain: AsyncsshServer) -> Folder:
    """A directory with three levels, and a link to the first."""
    folder = asyncssh_plain.fresh()
    (folder.path / "a" / "b").mkdir(parents=True)
    (folder.path / "a" / "b" / "file").write_bytes(b"12")
    (folder.path / "a" / "b" / "up").symlink_to("..")
    for path in (folder.path / "a" / "b" / "file", folder.path / "a" / "b", folder.path / "a"):
        path.chmod(0o750)
        os.utime(path, (NOON, NOON))
    return folder


@pytest.fixture
def backend(make_backend: Callable[..., SFTPBackend], asyncssh_plain: AsyncsshServer, folder: Folder) -> SFTPBackend:
    """A backend in the directory."""
    return make_backend(asyncssh_plain, base_path=folder.base_path)


def test_iter_children_lists_levels_and_enters_no_links(backend: SFTPBackend) -> None:
    def paths(max_depth: int | None) -> list[str]:
        return [entry.path for entry in backend.iter_children("", recursive=True, max_depth=max_depth)]

    assert [entry.path for entry in backend.iter_children("")] == ["a"]
    assert paths(0) == ["a"]
    assert paths(1) == ["a", "a/b"]
    assert sorted(paths(None)) == ["a", "a/b", "a/b/file", "a/b/up"]
    with pytest.raises(ValueError, match="max_depth"):
        backend.iter_children("", recursive=True, max_depth=-1)


def test_directories_have_times_and_modes(backend: SFTPBackend) -> None:
    at_noon = datetime.fromtimestamp(NOON, UTC)
    for folder in (backend.get_entry("a/b"), *backend.list_folders("a"), *backend.iter_children("a")):
        assert isinstance(folder, FolderEntry)
        assert (folder.path, folder.name, folder.modified_at, folder.mode) == ("a/b", "b", at_noon, 0o750)
        assert folder == FolderEntry("a/b", "b")
    assert backend.get_entry("a/b/file") == FileInfo("a/b/file", "file", 2, at_noon, 0o750)
    assert isinstance(backend.get_entry(""), FolderEntry)
    with refused(NotFound, backend, "a/c"):
        backend.get_entry("a/c")
