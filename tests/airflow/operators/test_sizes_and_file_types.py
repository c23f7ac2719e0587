"""Wrong sizes, endless data and special files fail without harm."""

from __future__ import annotations

import os
import re
from functools import partial
from operator import add
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_sftp_backend import AlreadyExists, SFTPBackendError, TransferCorrupted
from airflow_sftp_backend.hooks import FilesFailed
from airflow_sftp_backend.sensors import SFTPFileSensor
from tests.support.airflow.connections import Connect
from tests.support.airflow.operators import delete, download, file_errors, move, run, upload
from tests.support.files import read_files, write_files
from tests.support.servers import SaysOtherSizes

LESS = 3_205
CONTENT = os.urandom(1_000_000)


@pytest.mark.parametrize("verify", ["size", "sha256"])
def test_an_object_of_unexpected_size_is_not_created(connect: Connect, store: str, verify: Any) -> None:
    for more in (-LESS, LESS):
        with SaysOtherSizes(partial(add, more)) as server:
            folder = server.fresh()
            write_files(folder.path, {"file": CONTENT})
            connect(server, base_path=folder.base_path)
            with pytest.raises(
                TransferCorrupted, match=f"{len(CONTENT) + more} bytes, but the server sends {len(CONTENT)}. The"
            ):
                run(download("file", f"{store}/file", verify=verify))
            assert list(ObjectStoragePath(store).rglob("*")) == []


def test_an_unverified_object_is_read_to_its_end(connect: Connect, store: str) -> None:
    with SaysOtherSizes(lambda size: size - LESS) as server:
        folder = server.fresh()
        write_files(folder.path, {"file": CONTENT})
        connect(server, base_path=folder.base_path)
        (row,) = run(download("file", f"{store}/file", verify="none"))
        assert row["size"] == len(CONTENT)
        assert ObjectStoragePath(f"{store}/file").read_bytes() == CONTENT


@pytest.mark.parametrize("verify", ["size", "none"])
def test_endless_data_creates_no_object(connect: Connect, store: str, verify: Any) -> None:
    with SaysOtherSizes(lambda _: 100_000, endless=True) as server:
        folder = server.fresh()
        write_files(folder.path, {"file": b""})
        connect(server, base_path=folder.base_path, max_file_bytes="30000000")
        with pytest.raises(
            SFTPBackendError, match=r"more than 30000000 bytes|100000 bytes, but the server sends more than"
        ):
            run(download("file", f"{store}/file", verify=verify))
        assert list(ObjectStoragePath(store).rglob("*")) == []


# -- files of this machine --------------------------------------------------------------------------------------------


def test_a_fifo_in_a_source_directory_fails_only_itself(remote: Path, tmp_path: Path) -> None:
    write_files(tmp_path, {"out/a": b"1", "out/deep/b": b"2"})
    os.mkfifo(tmp_path / "out/deep/fifo")
    with pytest.raises(FilesFailed, match="1 of 3 files failed") as caught:
        run(upload(f"{tmp_path}/out/", "in/"))
    (failure,) = file_errors(caught.value)
    assert isinstance(failure, OSError)
    assert f"{tmp_path}/out/deep/fifo" in str(failure)
    assert "a FIFO, not a regular file (uploading to" in str(failure)
    assert read_files(remote) == {"in/a": b"1", "in/deep/b": b"2"}


@pytest.mark.parametrize("source", ["/dev/zero", "/dev/null"])
def test_a_device_is_refused_as_a_source(remote: Path, source: str) -> None:
    with pytest.raises(OSError, match="a character device, not a regular file"):
        run(upload(source, "file"))
    assert read_files(remote) == {}


@pytest.mark.parametrize("if_exists", ["fail", "replace", "skip", "skip_same"])
def test_a_device_is_refused_as_a_target(remote: Path, if_exists: Any) -> None:
    write_files(remote, {"file": b"1"})
    with pytest.raises(OSError, match="a character device, not a regular file"):
        run(download("file", "/dev/null", if_exists=if_exists))
    assert Path("/dev/null").is_char_device()


def test_a_local_directory_error_names_both_paths(remote: Path, tmp_path: Path) -> None:
    write_files(remote, {"file": b"1"})
    (tmp_path / "taken").touch()
    with pytest.raises(OSError, match=f"downloading '{remote}/file'") as caught:
        run(download("file", f"{tmp_path}/taken/file"))
    assert caught.value.filename == f"{tmp_path}/taken/file"


# -- names ------------------------------------------------------------------------------------------------------------

ODD = "a\x9bb\u2028c\u202ed\u2066.csv"
SHOWN = r"a\x9bb\u2028c\u202ed\u2066.csv"


def test_names_are_escaped_in_every_log_and_message(
    remote: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(remote, {f"in/{ODD}": b"1", f"taken/{ODD}": b"2"})
    capsys.readouterr()
    run(SFTPFileSensor(task_id="wait", path=f"in/{ODD}", mode="poke"))
    run(download(f"in/{ODD}", f"{tmp_path}/{ODD}"))
    run(upload(f"{tmp_path}/{ODD}", f"up/{ODD}"))
    with pytest.raises(AlreadyExists) as caught:
        run(move(f"in/{ODD}", f"taken/{ODD}"))
    assert str(caught.value).isprintable()
    run(move(f"in/{ODD}", f"done/{ODD}"))
    run(delete(f"done/{ODD}"))
    assert read_files(remote) == {f"taken/{ODD}": b"2", f"up/{ODD}": b"1"}
    lines = [
        re.sub(r"\x1b\[[\d;]*m", "", line) for line in capsys.readouterr().out.split("\n")
    ]  # colours are structlog's
    assert [line for line in lines if not line.isprintable()] == []
    for done in ("waiting for", "downloaded", "uploaded", "moved", "deleted"):
        assert any(done in line and SHOWN in line for line in lines), done
