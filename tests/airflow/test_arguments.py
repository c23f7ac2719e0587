"""Arguments with a password are refused, and no error shows the password."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend.hooks import SFTPBackendHook
from airflow_sftp_backend.operators import SFTPDeleteOperator, SFTPMoveOperator
from airflow_sftp_backend.sensors import SFTPFileSensor
from airflow_sftp_backend.triggers import SFTPNewFilesTrigger
from tests.support.airflow.connections import Connect
from tests.support.airflow.context import context
from tests.support.airflow.operators import download, upload
from tests.support.airflow.syncs import sync
from tests.support.airflow.versions import AirflowFailException
from tests.support.servers import AsyncsshServer

URL = "sftp://user:hunter2@sftp.example.com/in"


@pytest.mark.parametrize(
    "make",
    [
        lambda: upload("a", "b", sftp_conn_id=URL),
        lambda: sync("a", "b", sftp_conn_id=URL),
        lambda: SFTPFileSensor(task_id="wait", path="a", sftp_conn_id="user:hunter2@sftp.example.com"),
        lambda: SFTPNewFilesTrigger(path="in/", sftp_conn_id=URL),
    ],
    ids=["upload", "sync", "sensor", "watch"],
)
def test_a_url_in_place_of_a_connection_id_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidArgument, match="the connection id contains @, as a URL does") as refused:
        make()
    assert "hunter2" not in str(refused.value)


def test_a_url_that_a_template_renders_fails_the_task_at_once(caplog: pytest.LogCaptureFixture) -> None:
    operator = download("a", "/tmp/b", sftp_conn_id="{{ var.value.partner }}")
    operator.sftp_conn_id = URL
    with pytest.raises(AirflowFailException, match="the connection id contains @") as refused:
        operator.execute(context())
    with pytest.raises(InvalidArgument, match="the connection id contains @"):
        SFTPBackendHook(URL).config()
    assert "hunter2" not in str(refused.value) + caplog.text


def test_a_url_as_jump_host_is_refused(server: AsyncsshServer, connect: Connect) -> None:
    connect(server, jump_conn_id=URL)
    with pytest.raises(ValueError, match="the connection id contains @") as refused:
        SFTPBackendHook().config()
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("path", ["sftpbackend://user:hunter2@partner/in/a", "s3://key:hunter2@bucket/a", URL])
@pytest.mark.parametrize(
    "make",
    [
        lambda path: upload(path, "b"),
        lambda path: upload({"path": path}, "b"),
        lambda path: upload(None, "b/", pattern=f"{path}*"),
        lambda path: upload("/etc/hosts", path),
        lambda path: download("a", path),
        lambda path: download(path, "/tmp/a"),
        lambda path: sync(path, "b"),
        lambda path: sync("a", path, "download"),
        lambda path: SFTPDeleteOperator(task_id="delete", path=path),
        lambda path: SFTPMoveOperator(task_id="move", source="a", target=path),
        lambda path: SFTPFileSensor(task_id="wait", path=path),
    ],
    ids=[
        "upload source", "row", "pattern", "upload target", "download target", "download source", "sync source",
        "sync target", "delete", "move target", "sensor",
    ],
)  # fmt: skip
def test_a_url_with_a_password_is_refused(
    remote: Path, caplog: pytest.LogCaptureFixture, make: Callable[[str], Any], path: str
) -> None:
    with pytest.raises(AirflowFailException, match=r"is a \w+:// URL with a password; the text before @") as refused:
        make(path).execute(context())
    assert "hunter2" not in str(refused.value) + caplog.text
