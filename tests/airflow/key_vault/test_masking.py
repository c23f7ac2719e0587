"""Secrets of Key Vault are masked before use and in tracebacks."""

from __future__ import annotations

import json

import pytest

from airflow_sftp_backend import _masking
from airflow_sftp_backend._connections.parser import InvalidConnection
from airflow_sftp_backend.backend import BackendUnavailable
from airflow_sftp_backend.hooks.sftp import SFTPBackendHook
from airflow_sftp_backend.version_compat import redact
from tests.support.key_vault import CLIENT_SECRET, SECRET, Fault, Vault
from tests.support.tracebacks import shown_by

MINE, WRONG, VALUE = "s3cret/of the application", "wr0ng/secret", "v@lue that nobody sees"


def connect(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, client_secret: str, *, behind: bool = False
) -> SFTPBackendHook:
    """Create a hook with its password in the vault."""
    login = {"client_id": vault.register(secret=MINE).client_id, "client_secret": client_secret}
    login["tenant_id"] = vault.tenant
    extra = {"key_vault_url": vault.url, "password_secret": "password"}
    if behind:
        monkeypatch.setenv("AIRFLOW_CONN_AZURE", json.dumps({"conn_type": "azure", "extra": login}))
        extra["azure_conn_id"] = "azure"
    else:
        extra |= login
    connection = {"conn_type": "sftp_backend", "host": "h", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_PARTNER", json.dumps(connection))
    return SFTPBackendHook("partner")


def readable(error: BaseException, *secrets: str) -> list[str]:
    """Return the masked texts of an error that show a secret."""
    shown = [redact(text) for text in shown_by(error)]
    assert len(shown) > 5
    return [text for text in shown if any(secret in text for secret in secrets)]


@pytest.mark.parametrize("behind", [False, True], ids=["its own", "of azure_conn_id"])
def test_vault_secrets_are_masked_before_their_first_use(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, behind: bool
) -> None:
    seen: list[str] = []
    mine = f"{MINE} {behind}"  # one that is not masked yet
    vault.when_asked = lambda kind: seen.append(redact(f"{kind}: {mine}"))
    vault.put("password", f"{VALUE} {behind}")
    hook = connect(vault, monkeypatch, mine, behind=behind)
    vault.applications[-1].secret = mine
    assert redact(mine) == mine
    assert hook.config().password is not None
    assert f"{CLIENT_SECRET}: ***" in seen
    assert set(seen) == {f"{text.partition(':')[0]}: ***" for text in seen}
    assert redact(f"{VALUE} {behind}") == "***"


@pytest.mark.parametrize("behind", [False, True], ids=["its own", "of azure_conn_id"])
def test_a_refused_login_at_the_vault_shows_no_secret_in_any_frame(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, behind: bool
) -> None:
    vault.put("password", VALUE)
    with pytest.raises(InvalidConnection, match="client secret is wrong") as caught:
        connect(vault, monkeypatch, WRONG, behind=behind).config()
    assert readable(caught.value, WRONG, MINE, VALUE) == []


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.error(403, "Forbidden", "ForbiddenByRbac", f"Caller is not authorized for {VALUE}"), InvalidConnection),
        (Fault.error(500, "Broken", message=VALUE), BackendUnavailable),
    ],
    ids=["forbidden", "failing"],
)
def test_a_refused_secret_shows_no_secret_in_any_frame(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, fault: Fault, kind: type[Exception]
) -> None:
    monkeypatch.setattr("airflow_sftp_backend._key_vault.client.default_client._sleep", lambda seconds: None)
    vault.fail(SECRET, *[fault] * 6)
    with pytest.raises(kind) as caught:
        connect(vault, monkeypatch, MINE).config()
    assert vault.tokens()
    assert readable(caught.value, MINE, VALUE, *vault.tokens()) == []


class Interrupted(BaseException):
    """Stand for a kill of the task."""


def test_an_interruption_while_a_value_is_masked_does_not_show_it(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = "a value that is not masked yet"

    def interrupt(masks: list[str]) -> None:
        if value in masks:
            raise Interrupted

    vault.put("password", value)
    hook = connect(vault, monkeypatch, MINE)
    monkeypatch.setattr(_masking, "mask_secret", interrupt)
    with pytest.raises(Interrupted) as caught:
        hook.config()
    assert redact(value) == value
    assert [text for text in shown_by(caught.value) if value in text] == []
