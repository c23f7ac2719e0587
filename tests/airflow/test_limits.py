"""What a server or this machine may not do to a task: wrong sizes, data without end, files that are none."""

from __future__ import annotations

import os
from functools import partial
from operator import add
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_sftp_backend import SFTPBackendError, TransferCorrupted
from tests.airflow.conftest import Connect, grow
from tests.servers import SaysOtherSizes

from .test_operators import download, run

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
