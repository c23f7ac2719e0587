"""A mailbox opens a file once, and never describes it later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_sftp_backend import SFTPBackend
from tests.support.files import tree
from tests.support.servers import SterlingLike

BIG = bytes(range(256)) * 4000


@pytest.fixture
def mailbox() -> Iterator[SterlingLike]:
    """The server."""
    with SterlingLike() as server:
        yield server


def test_files_can_be_uploaded_to_a_mailbox(
    mailbox: SterlingLike, make_backend: Callable[..., SFTPBackend], tmp_path: Path
) -> None:
    folder = mailbox.fresh()
    (tmp_path / "local").write_bytes(BIG)
    backend = make_backend(mailbox, base_path=folder.base_path)
    backend.write("plain", BIG)
    backend.write_atomic("atomic", BIG)
    backend.upload(tmp_path / "local", "uploaded")
    backend.upload(tmp_path / "local", "unverified", verify="none")
    backend.upload_many([(tmp_path / "local", f"in/{number}") for number in range(5)])
    assert set(tree(folder.path).values()) == {None, BIG}
    assert len(tree(folder.path)) == 10


def test_files_can_be_downloaded_from_a_mailbox_once(
    mailbox: SterlingLike, make_backend: Callable[..., SFTPBackend], tmp_path: Path
) -> None:
    folder = mailbox.fresh()
    for name in ("a", "b", "c"):
        (folder.path / name).write_bytes(BIG)
    backend = make_backend(mailbox, base_path=folder.base_path)
    names = [file.path for file in backend.find("*")]
    backend.download(names[0], tmp_path / "a")
    backend.download_many([(name, tmp_path / name) for name in names[1:]], verify="sha256")
    assert tree(tmp_path) == dict.fromkeys("abc", BIG)
