"""Connection URIs, misspelt fields, and ssh_config as in the ssh provider."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.ssh.hooks.ssh import SSHHook
from airflow.sdk import Connection

from airflow_sftp_backend._connections.parser import InvalidConnection, parse
from tests.support.airflow.versions import BaseHook, connection_from_uri

PEM = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----\n"
ADOPTED = pytest.mark.parametrize("conn_type", ["sftp", "ssh"])


def make(extra: dict[str, object] | None = None, conn_type: str = "sftp_backend", **columns: Any) -> Connection:
    """A connection to sftp.example.com."""
    text = None if extra is None else json.dumps(extra)
    return Connection(conn_id="partner", conn_type=conn_type, extra=text, **{"host": "sftp.example.com", **columns})


def faults(connection: Connection) -> tuple[str, ...]:
    """Return the problems of a connection."""
    with pytest.raises(InvalidConnection) as caught:
        parse(connection)
    return caught.value.problems


# ---- what is nearly right


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("basepath", "base_path"),
        ("known_host_key", "known_host_keys"),
        ("hostkey", "host_key"),
        ("Key_File", "key_file"),
    ],
)
def test_a_misspelt_field_is_one_warning_with_the_nearest_name(
    written: str, meant: str, caplog: pytest.LogCaptureFixture
) -> None:
    note = f'Extra "{written}" is unknown and ignored; did you mean "{meant}"?'
    assert parse(make({written: "x", "wholly_unrelated": 1})).notes == (note,)
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [f"connection 'partner': {note}"]


@ADOPTED
def test_fields_of_other_hooks_are_not_reported_as_misspelt(conn_type: str) -> None:
    assert parse(make({"cmd_timeout": 5, "extra__sftp__x": 1}, conn_type)).notes == ()


@pytest.mark.parametrize("host", ["h:2222", "[::1]:2222", "sftp.example.com:2222/"])
def test_a_port_in_the_host_field_gets_a_hint_to_the_port_field(host: str) -> None:
    (fault,) = faults(make(host=host))
    assert fault.startswith("Host: ")
    assert fault.endswith("put 2222 into Port")


@pytest.mark.parametrize(("host", "meant"), [("[::1]", "::1"), ("::1", "::1"), ("[fe80::1%eth0]", "fe80::1%eth0")])
def test_an_ipv6_address_may_be_in_brackets(host: str, meant: str) -> None:
    assert parse(make(host=host)).host == meant


# ---- connections as URIs


@pytest.mark.parametrize(
    ("path", "base_path"),
    [
        ("", "/"), ("/", "/"), ("/outbox", "/outbox"), ("/out%20box/a", "/out box/a"), ("//outbox", "/outbox"),
        ("/~/x", "x"), ("/~", "."),
    ],
)  # fmt: skip
def test_the_path_of_a_uri_is_the_base_path(path: str, base_path: str) -> None:
    assert parse(connection_from_uri(f"sftp-backend://u@sftp.example.com{path}", "partner")).base_path == base_path


def test_a_uri_path_that_contradicts_the_extra_is_an_error() -> None:
    uri = "sftp-backend://u@sftp.example.com/outbox?base_path=%2F"
    assert faults(connection_from_uri(f"{uri}inbox", "partner"))[0].startswith(
        "Base path: given by the path of the URI"
    )
    assert parse(connection_from_uri(f"{uri}outbox", "partner")).base_path == "/outbox"


@ADOPTED
def test_the_schema_of_another_hooks_connection_is_not_read(conn_type: str) -> None:
    assert parse(make(None, conn_type, schema="outbox")).base_path == "/"


def test_a_uri_with_an_underscore_in_its_scheme_names_the_right_one() -> None:
    found = faults(connection_from_uri("sftp_backend://u:swordfish@sftp.example.com/outbox", "partner"))
    assert "Connection URI: its scheme is given with an underscore; expected sftp-backend://" in found
    assert "swordfish" not in "".join(found)


# ---- ~/.ssh/config of the worker


@pytest.fixture
def ssh_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, with an entry for sftp.example.com; its key exists."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/partner").write_text(PEM)
    file = tmp_path / ".ssh/config"
    file.write_text(
        "Host sftp.*\n  ProxyCommand nc -X 5 %h %p\n  IdentityFile ~/.ssh/partner\n  IdentityFile ~/.ssh/other\n"
    )
    return file


@ADOPTED
def test_the_workers_ssh_config_applies_as_in_the_ssh_provider(
    ssh_config: Path, conn_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = str(ssh_config.parent / "partner")
    for extra, columns in [
        ({}, {}),
        ({"key_file": "/own"}, {}),
        ({}, {"password": "swordfish"}),
        ({}, {"host": "other.example.com"}),
    ]:
        connection = make({"no_host_key_check": "true", **extra}, conn_type, **columns)
        config = parse(connection)
        monkeypatch.setattr(BaseHook, "get_connection", lambda *_, found=connection: found)
        theirs = SSHHook("partner")
        assert (config.proxy_command, config.key_file) == (theirs.host_proxy_cmd, theirs.key_file)
    assert parse(make(None, conn_type)).proxy_command == "nc -X 5 sftp.example.com 22"
    assert parse(make(None, conn_type)).key_file == key
    assert parse(make(None, conn_type)).notes == (
        "~/.ssh/config has an entry for sftp.example.com; used keywords: ProxyCommand and IdentityFile",
    )
    own = parse(make({"host_proxy_cmd": "ssh -W x bastion"}, conn_type))
    assert own.proxy_command == "ssh -W x bastion"


def test_ssh_config_does_not_apply_to_sftp_backend_connections(ssh_config: Path) -> None:
    assert ssh_config.exists()
    config = parse(make())
    assert (config.proxy_command, config.key_file) == (None, None)
    assert config.notes == ("~/.ssh/config has an entry for sftp.example.com; used keywords: none",)


@ADOPTED
def test_a_missing_identity_file_is_ignored(ssh_config: Path, conn_type: str) -> None:
    (ssh_config.parent / "partner").unlink()
    assert parse(make(None, conn_type)).key_file is None


@ADOPTED
def test_an_unreadable_ssh_config_is_an_error(ssh_config: Path, conn_type: str) -> None:
    ssh_config.write_text("Match nonsense\n")
    assert any("~/.ssh/config cannot be read" in fault for fault in faults(make(None, conn_type)))
    assert parse(make()).notes == ()
