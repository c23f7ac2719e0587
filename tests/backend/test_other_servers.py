"""The promises hold on servers that differ from OpenSSH."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from airflow_sftp_backend import SFTPBackend
from tests.servers import Folder, ListsLinksAsTargets, Server, SwapsFolderForLink

from .expect import tree

MakeBackend = Callable[..., SFTPBackend]


def put(folder: Folder, *names: str) -> None:
    """Files of one byte, with their folders."""
    for name in names:
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_bytes(b"x")


# -- links ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lists_targets() -> Iterator[Server]:
    """A server that lists links as what they lead to."""
    with ListsLinksAsTargets() as server:
        yield server


@pytest.fixture
def linked(lists_targets: Server) -> Folder:
    """A folder with links to the folder ``precious`` beside it, and to nothing."""
    folder = lists_targets.fresh()
    put(folder, "precious/payroll", "top/sub/deep/file", "top/file")
    (folder.path / "top" / "link").symlink_to("../precious")
    (folder.path / "top" / "sub" / "link").symlink_to(folder.path / "precious")
    (folder.path / "top" / "payroll").symlink_to("../precious/payroll")
    (folder.path / "top" / "nothing").symlink_to("missing")
    return folder


def test_a_recursive_delete_never_enters_a_link_that_is_listed_as_a_folder(
    lists_targets: Server, linked: Folder, make_backend: MakeBackend
) -> None:
    make_backend(lists_targets, base_path=linked.base_path).delete_folder("top", recursive=True)
    assert tree(linked.path) == {"precious": None, "precious/payroll": b"x"}


def test_a_recursive_delete_of_a_link_removes_the_link_alone(
    lists_targets: Server, linked: Folder, make_backend: MakeBackend
) -> None:
    backend = make_backend(lists_targets, base_path=linked.base_path)
    backend.delete_folder("top/link", recursive=True)
    backend.delete_folder("top/sub/link")
    assert not (linked.path / "top" / "link").is_symlink()
    assert not (linked.path / "top" / "sub" / "link").is_symlink()
    assert (linked.path / "precious" / "payroll").read_bytes() == b"x"


def test_recursive_listings_never_enter_a_link_that_is_listed_as_a_folder(
    lists_targets: Server, linked: Folder, make_backend: MakeBackend
) -> None:
    backend = make_backend(lists_targets, base_path=linked.base_path)
    inside = ["top/file", "top/payroll", "top/sub/deep/file"]
    assert sorted(file.path for file in backend.list_files("top", recursive=True)) == inside
    assert [file.path for file in backend.find("top/**")] == inside
    assert [file.path for file in backend.find("top/*/*", "top/**/*")] == inside
    assert [file.path for file in backend.find("top/*/payroll")] == []
    assert backend.get_folder_info("top").file_count == 3


def test_a_link_to_a_folder_that_is_named_is_listed_and_searched(
    lists_targets: Server, linked: Folder, make_backend: MakeBackend
) -> None:
    backend = make_backend(lists_targets, base_path=linked.base_path)
    assert [file.path for file in backend.list_files("top/link", recursive=True)] == ["top/link/payroll"]
    assert [file.path for file in backend.find("top/link/*", "*/link/payroll")] == ["top/link/payroll"]
    assert {entry.path for entry in backend.list_folders("top")} == {"top/link", "top/sub"}


@pytest.mark.parametrize("swapped", ["top", "sub"])
def test_a_folder_that_becomes_a_link_before_it_is_listed_loses_nothing_behind_it(
    swapped: str, make_backend: MakeBackend
) -> None:
    with SwapsFolderForLink(swapped=swapped) as server:
        folder, precious = server.fresh(), server.fresh()
        put(precious, "payroll")
        put(folder, "top/sub/file", "top/file")
        server.link_to = precious.path
        make_backend(server, base_path=folder.base_path).delete_folder("top", recursive=True)
        assert tree(precious.path) == {"payroll": b"x"}
        assert not (folder.path / "top").exists()
