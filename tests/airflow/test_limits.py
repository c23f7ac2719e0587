"""What a server or this machine may not do to a task: wrong sizes, data without end, files that are none."""

from __future__ import annotations

import os
from functools import partial
from operator import add
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_sftp_backend import SFTPBackendError, TransferCorrupted
from tests.airflow.conftest import Connect, grow, held
from tests.servers import SaysOtherSizes

from .test_operators import download, run, upload

LESS = 3_205
CONTENT = os.urandom(1_000_000)


@pytest.mark.parametrize("verify", ["size", "sha256"])
def test_an_object_of_another_size_than_the_server_says_is_not_made(connect: Connect, store: str, verify: Any) -> None:
    for more in (-LESS, LESS):
        with SaysOtherSizes(partial(add, more)) as server:
            folder = server.fresh()
            grow(folder.path, {"file": CONTENT})
            connect(server, base_path=folder.base_path)
            with pytest.raises(TransferCorrupted, match=f"{len(CONTENT) + more} bytes, and sends {len(CONTENT)}: it"):
                run(download("file", f"{store}/file", verify=verify))
            assert list(ObjectStoragePath(store).rglob("*")) == []


def test_an_object_is_read_to_its_end_where_nothing_is_verified(connect: Connect, store: str) -> None:
    with SaysOtherSizes(lambda size: size - LESS) as server:
        folder = server.fresh()
        grow(folder.path, {"file": CONTENT})
        connect(server, base_path=folder.base_path)
        (row,) = run(download("file", f"{store}/file", verify="none"))
        assert row["size"] == len(CONTENT)
        assert ObjectStoragePath(f"{store}/file").read_bytes() == CONTENT


@pytest.mark.parametrize("verify", ["size", "none"])
def test_endless_data_fills_no_object(connect: Connect, store: str, verify: Any) -> None:
    with SaysOtherSizes(lambda _: 100_000, endless=True) as server:
        folder = server.fresh()
        grow(folder.path, {"file": b""})
        connect(server, base_path=folder.base_path, max_file_bytes="30000000")
        with pytest.raises(SFTPBackendError, match=r"more than 30000000 bytes|100000 bytes, and sends more than"):
            run(download("file", f"{store}/file", verify=verify))
        assert list(ObjectStoragePath(store).rglob("*")) == []


# -- files of this machine --------------------------------------------------------------------------------------------


def test_a_fifo_in_a_source_directory_fails_alone(remote: Path, tmp_path: Path) -> None:
    grow(tmp_path, {"out/a": b"1", "out/deep/b": b"2"})
    os.mkfifo(tmp_path / "out/deep/fifo")
    with pytest.raises(ExceptionGroup, match="1 of 3 files failed") as caught:
        run(upload(f"{tmp_path}/out", "in/"))
    (failure,) = caught.value.exceptions
    assert isinstance(failure, OSError)
    assert f"{tmp_path}/out/deep/fifo" in str(failure)
    assert "a FIFO, not a regular file (uploading to" in str(failure)
    assert held(remote) == {"in/a": b"1", "in/deep/b": b"2"}


@pytest.mark.parametrize("source", ["/dev/zero", "/dev/null"])
def test_a_device_is_no_source(remote: Path, source: str) -> None:
    with pytest.raises(OSError, match="a character device, not a regular file"):
        run(upload(source, "file"))
    assert held(remote) == {}


@pytest.mark.parametrize("if_exists", ["fail", "replace", "skip", "skip_same"])
def test_a_device_is_no_target(remote: Path, if_exists: Any) -> None:
    grow(remote, {"file": b"1"})
    with pytest.raises(OSError, match="a character device, not a regular file"):
        run(download("file", "/dev/null", if_exists=if_exists))
    assert Path("/dev/null").is_char_device()


def test_a_local_directory_that_cannot_be_made_names_both_ends(remote: Path, tmp_path: Path) -> None:
    grow(remote, {"file": b"1"})
    (tmp_path / "taken").touch()
    with pytest.raises(OSError, match=f"downloading '{remote}/file'") as caught:
        run(download("file", f"{tmp_path}/taken/file"))
    assert caught.value.filename == f"{tmp_path}/taken/file"
