"""Open and close backends, mask secrets, and classify errors."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import wtforms
from airflow.serialization.helpers import serialize_template_field

from airflow_sftp_backend import (
    AlreadyExists,
    AuthenticationFailed,
    BackendUnavailable,
    CapabilityNotSupported,
    DirectoryNotEmpty,
    FileInfo,
    FolderEntry,
    FolderInfo,
    HostKeyRejected,
    InvalidPath,
    NotFound,
    PermissionDenied,
    ResolutionPlan,
    SFTPBackendError,
    TransferCorrupted,
    WriteResult,
)
from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend._connections.fields import conn_fields
from airflow_sftp_backend._connections.form_widgets import connection_form_widgets
from airflow_sftp_backend._connections.parser import InvalidConnection
from airflow_sftp_backend._masking import mask_secrets
from airflow_sftp_backend.hooks import FilesFailed, SFTPBackendHook
from airflow_sftp_backend.hooks.sftp import translate_errors
from airflow_sftp_backend.version_compat import FORM_COMES_FROM_HOOK
from tests.support.airflow.connections import Connect
from tests.support.airflow.operators import file_errors
from tests.support.airflow.versions import (
    AirflowFailException,
    AirflowNotFoundException,
    deserialize,
    redact,
    serialize,
)
from tests.support.files import write_files
from tests.support.servers import AsyncsshServer, OpenSSHServer, free_port

# ---- a backend of one's own


def test_a_block_has_one_backend_with_one_login(server: AsyncsshServer, connect: Connect) -> None:
    logins = server.logins()
    with SFTPBackendHook(connect(server)).backend() as backend:
        backend.write("a/b.txt", b"hello")
        assert backend.read_bytes("a/b.txt") == b"hello"
        assert [file.path for file in backend.list_files("a")] == ["a/b.txt"]
    assert server.logins() == logins + 1


def test_the_backend_is_closed_after_the_block_however_it_ends(server: AsyncsshServer, connect: Connect) -> None:
    hook = SFTPBackendHook(connect(server))
    with pytest.raises(KeyboardInterrupt), hook.backend() as first:
        first.check_health()
        raise KeyboardInterrupt
    with pytest.raises(AirflowFailException), hook.backend() as second:
        second.read_bytes("../up")
    assert first is not second
    logins = server.logins()
    with hook.backend() as third:
        third.check_health()
        assert server.logins() == logins + 1


def test_a_block_of_the_hook_closes_the_hook_and_translates_errors(
    server: AsyncsshServer, connect: Connect, remote: Path
) -> None:
    write_files(remote, {"in/a.csv": b"1"})
    logins = server.logins()
    with SFTPBackendHook() as hook:
        assert [row["path"] for row in hook.find("in/*")] == ["in/a.csv"]
        backend = hook.get_conn()
    assert hook.get_conn() is not backend
    hook.close()
    with pytest.raises(AirflowFailException), hook:
        hook.find("../up")
    assert server.logins() == logins + 1


def test_a_block_without_a_call_needs_no_login(server: AsyncsshServer, connect: Connect) -> None:
    connections = server.connections()
    with SFTPBackendHook(connect(server)).backend() as backend:
        assert backend.resolve("a").details["port"] == server.port
    assert server.connections() == connections


def test_the_hook_has_one_backend_until_it_is_closed(server: AsyncsshServer, connect: Connect) -> None:
    hook = SFTPBackendHook(connect(server))
    backend = hook.get_conn()
    assert hook.get_conn() is backend
    hook.close()
    hook.close()
    assert hook.get_conn() is not backend


def test_a_connection_that_was_changed_is_read_after_close(server: AsyncsshServer, connect: Connect) -> None:
    hook = SFTPBackendHook(connect(server, base_path="/before"))
    assert hook.get_conn().config.base_path == "/before"
    connect(server, base_path="/after")
    hook.close()
    assert hook.get_conn().config.base_path == "/after"


def test_the_default_connection_is_used(server: AsyncsshServer, connect: Connect) -> None:
    connect(server, "sftp_backend_default")
    assert SFTPBackendHook().test_connection()[0]


def test_the_triggerers_loop_reads_the_same_connection(server: AsyncsshServer, connect: Connect) -> None:
    hook = SFTPBackendHook(connect(server))
    assert asyncio.run(hook.aconfig()) == hook.config()


def test_a_missing_connection_is_named() -> None:
    with pytest.raises(AirflowNotFoundException, match="nowhere"):
        SFTPBackendHook("nowhere").get_conn()


# ---- connections made for the sftp and ssh hooks


@pytest.mark.parametrize("conn_type", ["sftp", "ssh"])
def test_a_foreign_connection_is_used_unchanged(openssh: OpenSSHServer, connect: Connect, conn_type: str) -> None:
    host_key = openssh.known_hosts.splitlines()[0].split(" ", 1)[1]
    conn_id = connect(
        openssh, conn_type=conn_type, private_key=None, known_host_keys=None, base_path=None,
        key_file=str(openssh.client_key), host_key=host_key, no_host_key_check="false", look_for_keys="false",
    )  # fmt: skip
    folder = openssh.fresh()
    with SFTPBackendHook(conn_id).backend() as backend:
        backend.write(f"{folder.path}/a", b"hello")
    assert (folder.path / "a").read_bytes() == b"hello"


def test_the_known_hosts_file_of_a_foreign_connection_is_used(
    openssh: OpenSSHServer, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    hook = SFTPBackendHook(connect(openssh, conn_type="sftp", known_host_keys=None))
    (tmp_path / ".ssh").mkdir()
    file = tmp_path / ".ssh/known_hosts"
    for content, expected_text in [
        (openssh.known_hosts, f"{file} line 1"),
        (openssh.known_hosts_line(asyncssh.generate_private_key("ssh-ed25519")), "is not the known one"),
        ("", "is not known"),
    ]:
        file.write_text(content + "\n")
        success, text = hook.test_connection()
        assert (success, expected_text in text) == (expected_text.startswith(str(file)), True), text


def test_a_foreign_connection_without_host_key_checks_connects(
    openssh: OpenSSHServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    hook = SFTPBackendHook(connect(openssh, conn_type="ssh", known_host_keys=None, no_host_key_check=True))
    success, text = hook.test_connection()
    assert (success, text.endswith(": accepted unchecked: host_key_policy is 'auto'")) == (True, True)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert openssh.known_hosts.splitlines()[0] in warnings[0]


def test_the_connection_test_names_a_misspelt_field(openssh: OpenSSHServer, connect: Connect) -> None:
    extra: dict[str, Any] = {"basepath": "/x"}
    success, text = SFTPBackendHook(connect(openssh, **extra)).test_connection()
    assert success
    assert 'Note: Extra "basepath" is unknown and ignored; did you mean "base_path"?' in text


@pytest.mark.parametrize(("extra", "accepted"), [("no_host_key_check", False), ("allow_host_key_change", True)])
def test_a_changed_host_key_is_accepted_only_where_another_hook_accepts_it(
    openssh: OpenSSHServer,
    connect: Connect,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    extra: str,
    accepted: bool,
) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519")
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/known_hosts").write_text(openssh.known_hosts_line(other) + "\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    more: dict[str, Any] = {extra: "true"}
    hook = SFTPBackendHook(connect(openssh, conn_type="ssh", known_host_keys=None, **more))
    assert hook.test_connection()[0] is accepted


def test_a_password_beside_an_unencrypted_key_is_accepted(openssh: OpenSSHServer, connect: Connect) -> None:
    hook = SFTPBackendHook(connect(openssh, conn_type="sftp", columns={"password": "swordfish"}))
    assert hook.test_connection()[0]


def test_the_password_opens_an_encrypted_key(openssh: OpenSSHServer, connect: Connect, tmp_path: Path) -> None:
    openssh.login_key.write_private_key(str(tmp_path / "key"), passphrase="swordfish", rounds=1, ignore_few_rounds=True)
    key: dict[str, Any] = {"private_key": None, "key_file": str(tmp_path / "key")}
    hook = SFTPBackendHook(connect(openssh, conn_type="sftp", columns={"password": "swordfish"}, **key))
    assert hook.test_connection()[0]
    hook = SFTPBackendHook(connect(openssh, conn_type="sftp", **key))
    assert not hook.test_connection()[0]


# ---- the connection test


def test_the_connection_test_names_what_it_reached(server: AsyncsshServer, connect: Connect) -> None:
    folder = server.fresh()
    conn_id = connect(server, base_path=folder.base_path)
    server_shown = f"{server.username}@{server.host}:{server.port}"
    key = server.host_keys[0].get_fingerprint()
    assert SFTPBackendHook(conn_id).test_connection() == (
        True,
        f"Connected to {server_shown}, base path {folder.base_path}; host key {key}: known_host_keys line 1",
    )


def test_the_connection_test_leaves_no_connection_behind(server: AsyncsshServer, connect: Connect) -> None:
    logins = server.logins()
    hook = SFTPBackendHook(connect(server))
    assert hook.test_connection()[0]
    assert hook.test_connection()[0]
    assert server.logins() == logins + 2


@pytest.mark.parametrize(
    ("columns", "extra", "expected_text"),
    [
        ({"port": free_port()}, {}, "refuses connections"),
        ({"host": "", "port": 70000}, {}, "needs correcting in 2 places"),
        ({"login": "nobody-at-all"}, {}, "nobody-at-all"),
        ({}, {"base_path": "/no/such/folder"}, "no such directory"),
        ({}, {"known_host_keys": "SHA256:" + "A" * 43}, "SHA256:"),
        ({}, {"private_key": "not a key"}, "key"),
    ],
)
def test_the_connection_test_says_why_it_failed(
    server: AsyncsshServer, connect: Connect, columns: dict[str, object], extra: dict[str, Any], expected_text: str
) -> None:
    conn_id = connect(server, columns=columns, conn_retry_attempts=1, **extra)
    success, text = SFTPBackendHook(conn_id).test_connection()
    assert not success
    assert re.search(expected_text, text), text


@pytest.mark.parametrize("known", [None, "another key"])
def test_a_refused_host_key_is_one_sentence_and_a_known_hosts_line(
    openssh: OpenSSHServer, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str | None
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    other = openssh.known_hosts_line(asyncssh.generate_private_key("ssh-ed25519"))
    success, text = SFTPBackendHook(connect(openssh, known_host_keys=known and other)).test_connection()
    sentence, line, more = text.splitlines()
    assert not success
    assert sentence.startswith("The host key SHA256:")
    assert ("is not known" if known is None else "is not the known one") in sentence
    assert sentence.endswith("set Known host keys to:")
    assert line in openssh.known_hosts.splitlines()
    assert more == "More: airflow-sftp-backend check CONN_ID"
    assert len(sentence.split()) < 25


def test_the_connection_test_of_no_connection_fails() -> None:
    success, text = SFTPBackendHook("nowhere").test_connection()
    assert (success, "nowhere" in text) == (False, True)


# ---- what a log may show


def key_text(kind: str) -> str:
    """A private key in its usual PEM form."""
    form = "openssh" if kind == "ssh-ed25519" else "pkcs8-pem"
    return asyncssh.generate_private_key(kind).export_private_key(form).decode()


def body_lines(pem: str) -> list[str]:
    """Return the lines of a key that are long enough for masks."""
    return [line for line in pem.splitlines() if "-----" not in line and len(line) >= 16]


PASTED: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "spaces for line breaks": lambda pem: pem.replace("\n", " "),
    "no line breaks": lambda pem: pem.replace("\n", ""),
    "escaped line breaks": lambda pem: pem.replace("\n", "\\n"),
    "CRLF": lambda pem: pem.replace("\n", "\r\n"),
    "base64": lambda pem: base64.b64encode(pem.encode()).decode(),
    "base64 in lines": lambda pem: base64.encodebytes(pem.encode()).decode(),
    "base64 of UTF-16": lambda pem: base64.b64encode(pem.encode("utf-16")).decode(),
}


@pytest.mark.parametrize("form", PASTED)
@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256"])
def test_no_line_of_a_private_key_is_seen_in_a_log(
    server: AsyncsshServer, connect: Connect, form: str, kind: str
) -> None:
    pem = key_text(kind)
    given = PASTED[form](pem)
    SFTPBackendHook(connect(server, private_key=given)).config()
    shown = [
        given,
        pem,
        json.dumps({"extra": given}),
        json.dumps({"extra": pem}),
        repr(given),
        repr([pem]),
        *pem.splitlines(),
    ]
    for text in shown:
        seen = str(redact(text))
        assert [line for line in body_lines(pem) + body_lines(given) if line in seen] == []
    assert given not in str(redact(given))


@pytest.mark.parametrize("name", ["passphrase", "private_key_pass", "private_key_passphrase"])
def test_a_secret_is_hidden_in_every_quoting(server: AsyncsshServer, connect: Connect, name: str) -> None:
    secret, extra = 'se"cr\\et\twörd', {name: 'open "sesame" \\ now'}
    hook = SFTPBackendHook(connect(server, columns={"password": secret}, private_key=None, key_file="/key", **extra))
    config = hook.config()
    for plain in (secret, *extra.values()):
        for shown in (plain, json.dumps(plain), json.dumps(plain, ensure_ascii=False), repr(plain)):
            assert shown.strip("'\"") not in str(redact(f"<{shown}>"))
    assert secret not in f"{config} {hook.get_conn()!r}"


def test_secrets_are_masked_before_connection_errors_are_logged(server: AsyncsshServer, connect: Connect) -> None:
    hook = SFTPBackendHook(connect(server, columns={"host": "", "password": "swordfish"}))
    with pytest.raises(InvalidConnection):
        hook.config()
    assert redact("swordfish") == "***"


# ---- what is worth another try


NON_RETRYABLE_ERRORS: list[Exception] = [
    AuthenticationFailed("no"), HostKeyRejected("no"), PermissionDenied("no", path="a"), InvalidPath("no"),
    CapabilityNotSupported("no"), InvalidConnection("partner", ["Port: 0 given"]), InvalidArgument("no"),
]  # fmt: skip
HOPEFUL: list[Exception] = [
    BackendUnavailable("no"), NotFound("no"), AlreadyExists("no"), DirectoryNotEmpty("no"), TransferCorrupted("no"),
    SFTPBackendError("the disk is full"), FileNotFoundError("no"), OSError("no"), TimeoutError("no"),
    ValueError("a programming error"), TypeError("a programming error"),
]  # fmt: skip


def kind_of(error: Exception) -> str:
    """The name of its class."""
    return type(error).__name__


@pytest.mark.parametrize("error", NON_RETRYABLE_ERRORS, ids=kind_of)
def test_a_non_retryable_error_fails_the_task(error: Exception) -> None:
    with pytest.raises(AirflowFailException) as caught, translate_errors():
        raise error
    assert (str(caught.value), caught.value.__cause__) == (str(error), error)


def test_the_traceback_of_a_non_retryable_error_shows_the_callers_line() -> None:
    def fail_in_my_task() -> None:
        raise NON_RETRYABLE_ERRORS[0]

    with pytest.raises(AirflowFailException) as caught, translate_errors():
        fail_in_my_task()
    text = "".join(traceback.format_exception(caught.value))
    assert text.count("Traceback (most recent call last)") == 1
    assert "in fail_in_my_task" in text


@pytest.mark.parametrize("error", HOPEFUL, ids=kind_of)
def test_a_retryable_error_is_left_to_airflows_retries(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, translate_errors():
        raise error
    assert caught.value is error
    assert not isinstance(error, AirflowFailException)


def test_a_group_without_a_retryable_error_fails_the_task() -> None:
    group = ExceptionGroup(
        "3 of 9 uploads failed", [NON_RETRYABLE_ERRORS[2], ExceptionGroup("inner", [NON_RETRYABLE_ERRORS[3]])]
    )
    with pytest.raises(AirflowFailException) as caught, translate_errors():
        raise group
    assert str(caught.value).splitlines() == ["3 of 9 uploads failed:", "- no ('a')", "- no"]


def test_a_group_with_a_retryable_error_is_retried() -> None:
    group = ExceptionGroup("2 of 9 uploads failed", [NON_RETRYABLE_ERRORS[0], HOPEFUL[0]])
    with pytest.raises(FilesFailed) as caught, translate_errors():
        raise group
    assert not isinstance(caught.value, AirflowFailException)
    assert str(caught.value).splitlines() == ["2 of 9 uploads failed:", "- no", "- no"]
    assert file_errors(caught.value) == group.exceptions


@pytest.mark.parametrize("other", [NON_RETRYABLE_ERRORS[0], HOPEFUL[0]], ids=kind_of)
def test_no_error_of_a_group_shows_a_secret(other: Exception) -> None:
    mask_secrets(["marmalade"])
    behind = OSError("marmalade of the system")
    leaf = HostKeyRejected("the server says marmalade", path="a")
    leaf.__cause__ = behind
    group = ExceptionGroup("2 files with marmalade failed", [other, ExceptionGroup("more marmalade", [leaf])])
    with pytest.raises((FilesFailed, AirflowFailException)) as caught, translate_errors():
        raise group
    shown = [str(caught.value), repr(caught.value), repr(caught.value.__cause__), str(caught.value.__cause__)]
    shown += [text for error in (leaf, behind) for text in (str(error), repr(error))]
    assert [text for text in shown if "marmalade" in text] == []
    assert "the server says ***" in str(caught.value)


def test_a_translated_error_is_not_translated_again() -> None:
    with pytest.raises(AirflowFailException) as caught, translate_errors(), translate_errors():
        raise NON_RETRYABLE_ERRORS[0]
    assert caught.value.__cause__ is NON_RETRYABLE_ERRORS[0]


@pytest.mark.parametrize("error", [ValueError("mine"), TypeError("mine")], ids=kind_of)
def test_the_hooks_block_passes_the_callers_errors_unchanged(
    server: AsyncsshServer, connect: Connect, error: Exception
) -> None:
    with pytest.raises(type(error)) as caught, SFTPBackendHook(connect(server)).backend():
        raise error
    assert caught.value is error


def test_the_hooks_block_fails_the_task_for_an_invalid_connection(server: AsyncsshServer, connect: Connect) -> None:
    hook = SFTPBackendHook(connect(server, compress="perhaps"))
    with pytest.raises(AirflowFailException, match="needs correcting"), hook.backend():
        pytest.fail("there is no backend to use")


def test_the_form_of_older_airflows_has_the_same_fields() -> None:
    shown = type("Shown", (wtforms.Form,), dict(connection_form_widgets()))()
    fields = conn_fields()
    assert {field.name for field in shown} == {*fields}
    for field in shown:
        name, declared = field.name, fields[field.name]
        schema: Any = declared["schema"]
        assert (field.label.text, field.description) == (declared["label"], declared["description"])
        assert field.default == schema.get("default")
        assert isinstance(field, wtforms.PasswordField) == (schema.get("format") == "password"), name


def test_the_hook_declares_the_form_only_where_airflow_asks_it() -> None:
    assert ("get_connection_form_widgets" in vars(SFTPBackendHook)) == FORM_COMES_FROM_HOOK
    assert ("get_ui_field_behaviour" in vars(SFTPBackendHook)) == FORM_COMES_FROM_HOOK


# ---- rows for other tasks


def test_found_files_are_rows_that_a_task_can_return(server: AsyncsshServer, connect: Connect) -> None:
    folder = server.fresh()
    for name in ("b[1].csv", "a.csv", "c.txt"):
        (folder.path / name).write_bytes(b"abc")
    (folder.path / os.fsdecode(b"\xff.csv")).write_bytes(b"abc")
    hook = SFTPBackendHook(connect(server, base_path=folder.base_path))
    rows = hook.find("*.csv")
    hook.close()
    assert [row["path"] for row in rows] == ["a.csv", "b[1].csv"]
    assert rows[0]["size"] == 3
    assert rows[0]["modified_at"] is not None
    assert deserialize(json.loads(json.dumps(serialize(rows)))) == rows


@pytest.mark.parametrize("within", [lambda value: value, lambda value: [value], lambda value: {"file": value}])
@pytest.mark.parametrize(
    "value",
    [
        FileInfo("a", "a", 1, None),
        FolderEntry("a", "a"),
        FolderInfo("a", 1, 1, None),
        WriteResult("a", 1),
        ResolutionPlan("sftp", "sftp", "a", "/a", {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_task_that_returns_a_value_of_the_backend_fails_with_the_remedy(
    value: object, within: Callable[[object], object]
) -> None:
    with pytest.raises(TypeError, match=r"a task cannot return a \w+: .*SFTPBackendHook.find\(\) gives rows"):
        serialize(within(value))


def test_a_value_of_the_backend_may_be_shown_as_an_argument() -> None:
    shown = serialize_template_field([FileInfo("a", "a", 1, None)], "source")
    assert re.search(r"'path': 'a'|path='a'", str(shown))
