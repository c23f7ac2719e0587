"""Use the file system through Airflow's ObjectStoragePath."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from airflow.sdk import ObjectStoragePath
from upath import UPath

from tests.support.airflow.connections import Connect
from tests.support.servers import AsyncsshServer, Folder


@pytest.fixture(autouse=True)
def partner(server: AsyncsshServer, folder: Folder, connect: Connect) -> str:
    """A connection in the folder."""
    return connect(server, "partner", base_path=folder.base_path)


def test_a_path_is_read_and_written(folder: Folder) -> None:
    path = ObjectStoragePath("sftpbackend://partner@/inbox/orders.csv")
    assert not path.exists()
    path.parent.mkdir(parents=True)
    with path.open("w") as file:
        file.write("a,b\n")
    assert (folder.path / "inbox" / "orders.csv").read_text() == path.read_text() == "a,b\n"
    assert path.is_file()
    assert path.parent.is_dir()
    assert path.stat().st_size == path.size() == 4
    assert path.stat().st_mtime == (folder.path / "inbox" / "orders.csv").stat().st_mtime // 1
    assert (path.serialize()["conn_id"], path.protocol, path.name, path.key) == (
        "partner", "sftpbackend", "orders.csv", "inbox/orders.csv",
    )  # fmt: skip
    path.unlink()
    path.parent.rmdir()
    assert not path.parent.exists()


def test_a_block_that_raises_writes_nothing(folder: Folder) -> None:
    with pytest.raises(KeyError), ObjectStoragePath("sftpbackend://partner@/file").open("wb") as file:
        file.write(b"half")
        raise KeyError
    assert [*folder.path.iterdir()] == []


def test_directories_are_listed_and_searched() -> None:
    top = ObjectStoragePath("sftpbackend:///top", conn_id="partner")
    for name in ("one.csv", "sub/two.csv", "sub/a@b/x?y#z.csv"):
        target = top / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(name.encode())
    assert sorted(entry.name for entry in top.iterdir()) == ["one.csv", "sub"]
    found = sorted(top.glob("**/*.csv"), key=str)
    assert [path.read_text() for path in found] == ["one.csv", "sub/a@b/x?y#z.csv", "sub/two.csv"]
    moved = (top / "one.csv").rename(top / "sub" / "moved.csv")
    assert moved.read_text() == "one.csv"
    assert not (top / "one.csv").exists()


def test_copies_go_to_this_machine_and_to_other_stores(store: str, tmp_path: Path, folder: Folder) -> None:
    (folder.path / "file").write_bytes(b"x" * 100_000)
    path = ObjectStoragePath("sftpbackend://partner@/file")
    path.copy(ObjectStoragePath(f"file://{tmp_path}/local"))
    path.copy(ObjectStoragePath(f"{store}/object"))
    path.copy(ObjectStoragePath("sftpbackend://partner@/copy"))
    assert (tmp_path / "local").read_bytes() == (folder.path / "copy").read_bytes() == b"x" * 100_000
    assert ObjectStoragePath(f"{store}/object").read_bytes() == b"x" * 100_000


def test_universal_pathlib_takes_the_url_without_a_warning(folder: Folder) -> None:
    (folder.path / "file").write_text("x")
    path = UPath("sftpbackend://partner@/file")
    assert path.read_text() == "x"
    assert [child.name for child in path.parent.iterdir()] == ["file"]


def test_a_path_in_a_dag_file_reads_no_connection(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        ObjectStoragePath("sftpbackend://unknown@/inbox/x.csv")
    assert "Could not pre-populate" not in caplog.text


def test_a_name_with_wildcard_characters_is_that_name(folder: Folder) -> None:
    root = ObjectStoragePath("sftpbackend://partner@/")
    for name in ("a1.csv", "a[1].csv"):
        (folder.path / name).write_text(name)
    (root / "a[1].csv").rename(root / "moved.csv")
    assert sorted(path.name for path in folder.path.iterdir()) == ["a1.csv", "moved.csv"]
    (folder.path / "a[1].csv").write_text("again")
    (root / "a[1].csv").unlink()
    assert sorted(path.name for path in folder.path.iterdir()) == ["a1.csv", "moved.csv"]
