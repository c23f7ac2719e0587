"""What a server or this machine may not do to a task: wrong sizes, data without end, files that are none."""

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
from tests.airflow.conftest import Connect, errors_of, grow, held
from tests.servers import SaysOtherSizes

from .test_operators import delete, download, move, run, upload

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
    with pytest.raises(FilesFailed, match="1 of 3 files failed") as caught:
        run(upload(f"{tmp_path}/out/", "in/"))
    (failure,) = errors_of(caught.value)
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


# -- names ------------------------------------------------------------------------------------------------------------

ODD = "a\x9bb\u2028c\u202ed\u2066.csv"
SHOWN = r"a\x9bb\u2028c\u202ed\u2066.csv"


def test_names_reach_no_log_and_no_message_raw(
    remote: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grow(remote, {f"in/{ODD}": b"1", f"taken/{ODD}": b"2"})
    capsys.readouterr()
    run(SFTPFileSensor(task_id="wait", path=f"in/{ODD}", mode="poke"))
    run(download(f"in/{ODD}", f"{tmp_path}/{ODD}"))
    run(upload(f"{tmp_path}/{ODD}", f"up/{ODD}"))
    with pytest.raises(AlreadyExists) as caught:
        run(move(f"in/{ODD}", f"taken/{ODD}"))
    assert str(caught.value).isprintable()
    run(move(f"in/{ODD}", f"done/{ODD}"))
    run(delete(f"done/{ODD}"))
    assert held(remote) == {f"taken/{ODD}": b"2", f"up/{ODD}": b"1"}
    lines = [
        re.sub(r"\x1b\[[\d;]*m", "", line) for line in capsys.readouterr().out.split("\n")
    ]  # colours are structlog's
    assert [line for line in lines if not line.isprintable()] == []
    for done in ("waiting for", "downloaded", "uploaded", "moved", "deleted"):
        assert any(done in line and SHOWN in line for line in lines), done
