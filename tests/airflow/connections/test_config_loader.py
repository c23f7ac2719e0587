"""Take connection values from Key Vault, and fetch rotated ones again."""

from __future__ import annotations

import copy
import json
import pickle
import time
from pathlib import Path

import pytest

from airflow_sftp_backend import AuthenticationFailed, BackendUnavailable, HostKeyRejected, SFTPBackend
from airflow_sftp_backend._connections.parser import InvalidConnection
from airflow_sftp_backend.backend import BackendConfig
from airflow_sftp_backend.hooks import SFTPBackendHook
from tests.support.airflow.connections import Connect
from tests.support.airflow.versions import AirflowFailException, AirflowNotFoundException, redact
from tests.support.key_vault import SECRET, Fault, Vault
from tests.support.servers import AsyncsshServer, OpenSSHServer, wait_until


def give(monkeypatch: pytest.MonkeyPatch, conn_id: str = "partner", **values: object) -> SFTPBackendHook:
    """Create the hook of a connection with these columns and extras."""
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps({"conn_type": "sftp_backend", **values}))
    return SFTPBackendHook(conn_id)


def revealed(config: BackendConfig) -> dict[str, str | None]:
    """Return the values of a configuration that can come from a vault."""
    secrets = {name: getattr(config, name) for name in ("password", "private_key", "passphrase")}
    plain: dict[str, str | None] = {name: secret and secret.reveal() for name, secret in secrets.items()}
    return plain | {"host": config.host, "username": config.username, "known_host_keys": config.known_host_keys}


KNOWN = "sftp.example.com ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHrZ1UlSgqy3h6kyR3Tzbg5mzHrLMrV2vq8UxNlQmJ7p"
VALUES = {
    "host": "sftp.example.com",
    "login": "partner-a",
    "password": "swordfish",
    "private_key": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----",
    "private_key_passphrase": "open sesame",
    "known_host_keys": KNOWN,
}
ALL = {
    "host": VALUES["host"],
    "username": VALUES["login"],
    "password": VALUES["password"],
    "private_key": VALUES["private_key"],
    "passphrase": VALUES["private_key_passphrase"],
    "known_host_keys": KNOWN,
}


def put_all(vault: Vault) -> None:
    """Each value in a secret of its own."""
    for name, value in VALUES.items():
        vault.put(name.replace("_", "-"), value)


# ---- where a value may come from


def test_every_value_may_come_from_a_secret_named_beside_it(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    put_all(vault)
    names = {f"{name}_secret": name.replace("_", "-") for name in VALUES}
    hook = give(monkeypatch, extra={"key_vault_url": vault.url, **names})
    assert revealed(hook.config()) == ALL


def test_every_value_may_be_a_secret_reference(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    put_all(vault)
    to = {name: f"keyvault://{vault.host}/{name.replace('_', '-')}" for name in VALUES}
    columns = {name: to.pop(name) for name in ("host", "login", "password")}
    assert revealed(give(monkeypatch, **columns, extra=to).config()) == ALL


@pytest.mark.parametrize("with_vault", [False, True])
@pytest.mark.parametrize("with_version", [False, True])
def test_a_secret_may_be_named_by_its_identifier(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, with_version: bool, with_vault: bool
) -> None:
    first = vault.put("password", "first")
    vault.put("password", "second")
    identifier = f"https://{vault.host}/secrets/password" + (f"/{first}" if with_version else "")
    extra = {"password_secret": identifier} | ({"key_vault_url": vault.url} if with_vault else {})
    config = give(monkeypatch, host="h", extra=extra).config()
    assert revealed(config)["password"] == ("first" if with_version else "second")


@pytest.mark.parametrize("form", ["name/version", "reference"])
def test_a_version_may_be_named(vault: Vault, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    first = vault.put("password", "first")
    vault.put("password", "second")
    where = {
        "name/version": {"key_vault_url": vault.url, "password_secret": f"password/{first}"},
        "reference": {"password": f"keyvault://{vault.host}/password/{first}"},
    }[form]
    password = where.pop("password", None)
    config = give(monkeypatch, host="h", password=password, extra=where).config()
    assert revealed(config)["password"] == "first"


def test_a_trailing_newline_is_not_part_of_a_password(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    vault.put("password", " sword fish \r\n")
    hook = give(monkeypatch, host="h", extra={"key_vault_url": vault.url, "password_secret": "password"})
    assert revealed(hook.config())["password"] == " sword fish "


AS_JSON = json.dumps(
    {
        "conn_type": "sftp",
        "host": "sftp.example.com",
        "login": "partner-a",
        "password": "swordfish",
        "port": 2222,
        "extra": {"private_key": VALUES["private_key"], "passphrase": "open sesame", "base_path": "/from-vault"},
    }
)
AS_URI = (
    "sftp-backend://partner-a:swordfish@sftp.example.com:2222/?private_key=-----BEGIN+OPENSSH+PRIVATE+KEY-----%0A"
    "b3BlbnNzaC1rZXktdjEAAAAA%0A-----END+OPENSSH+PRIVATE+KEY-----&passphrase=open+sesame&base_path=%2Ffrom-vault"
)


@pytest.mark.parametrize("whole", [AS_JSON, AS_URI], ids=["JSON", "URI"])
def test_one_secret_may_hold_the_whole_connection(vault: Vault, monkeypatch: pytest.MonkeyPatch, whole: str) -> None:
    vault.put("airflow-connections-partner", whole)
    extra = {"key_vault_url": vault.url, "connection_secret": "airflow-connections-partner"}
    config = give(monkeypatch, extra=extra).config()
    assert revealed(config) == ALL | {"known_host_keys": None}
    assert (config.port, config.base_path) == (2222, "/from-vault")


def test_connection_values_take_precedence_over_the_secret(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    vault.put("whole", AS_JSON)
    vault.put("newer", "rotated")
    extra = {"key_vault_url": vault.url, "connection_secret": "whole", "base_path": "/own", "password_secret": "newer"}
    config = give(monkeypatch, host="own.example.com", extra=extra).config()
    assert (config.host, config.base_path, revealed(config)["password"]) == ("own.example.com", "/own", "rotated")
    assert config.look_for_keys, "a connection of type sftp looks for keys"


def test_no_airflow_connection_is_needed(vault: Vault, server: AsyncsshServer) -> None:
    folder = server.fresh()
    vault.put("key", server.client_key.read_text())
    vault.put("hosts", server.known_hosts)
    hook = SFTPBackendHook.from_key_vault(
        vault.url, host=server.host, port=server.port, login=server.username,
        private_key_secret="key", known_host_keys_secret="hosts", base_path=folder.base_path,
    )  # fmt: skip
    with hook.backend() as backend:
        backend.write("a", b"hello")
    assert (folder.path / "a").read_bytes() == b"hello"


def test_a_field_that_does_not_exist_is_named() -> None:
    with pytest.raises(TypeError, match=r"unknown fields: pasword_secret; there are .*password_secret"):
        SFTPBackendHook.from_key_vault("https://v.vault.azure.net", pasword_secret="x")


# ---- who asks


def test_the_connection_may_hold_the_vaults_client_secret(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLIENT_ID", "CLIENT_SECRET", "TENANT_ID"):
        monkeypatch.delenv(f"AZURE_{name}")
    who = vault.register(secret="another application's")
    vault.put("password", "swordfish")
    identity = {"tenantId": vault.tenant, "client_id": who.client_id, "client_secret": "another application's"}
    extra = {"key_vault_url": vault.url, "password_secret": "password", **identity}
    assert revealed(give(monkeypatch, host="h", extra=extra).config())["password"] == "swordfish"


def test_an_azure_connection_may_log_in_to_the_vault(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLIENT_ID", "CLIENT_SECRET", "TENANT_ID"):
        monkeypatch.delenv(f"AZURE_{name}")
    who = vault.register(secret="another application's")
    vault.put("password", "swordfish")
    login = {"login": who.client_id, "password": "another application's", "extra": {"tenantId": vault.tenant}}
    monkeypatch.setenv("AIRFLOW_CONN_CLOUD", json.dumps({"conn_type": "azure", **login}))
    extra = {"key_vault_url": vault.url, "password_secret": "password", "azure_conn_id": "cloud"}
    assert revealed(give(monkeypatch, host="h", extra=extra).config())["password"] == "swordfish"
    assert "another" not in redact("the log shows another application's")


# ---- rotation


def changing(vault: Vault, server: AsyncsshServer, monkeypatch: pytest.MonkeyPatch, secret: str) -> SFTPBackend:
    """A backend that logs in with the password in the vault."""
    extra = {
        "key_vault_url": vault.url, "password_secret": secret, "known_host_keys_secret": "hosts",
        "look_for_keys": False, "base_path": server.fresh().base_path,
    }  # fmt: skip
    hook = give(monkeypatch, host=server.host, port=server.port, login=server.username, extra=extra)
    return hook.get_conn()


def test_a_changed_password_is_fetched_when_the_old_one_is_refused(
    vault: Vault, server: AsyncsshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.put("hosts", server.known_hosts)
    vault.put("password", "the old one")
    with changing(vault, server, monkeypatch, "password") as backend:
        vault.put("password", server.password)
        logins = server.logins()
        backend.check_health()
        assert server.logins() == logins + 1
        backend.close()
        backend.check_health()  # and the newer one is kept
    assert redact(f"it was {server.password}") == "it was ***"


def test_an_unchanged_password_is_not_retried(
    vault: Vault, server: AsyncsshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.put("hosts", server.known_hosts)
    vault.put("password", "wrong all along")
    with changing(vault, server, monkeypatch, "password") as backend:
        connections = server.connections()
        with pytest.raises(AuthenticationFailed):
            backend.check_health()
        assert server.connections() == connections + 1


def test_a_changed_password_that_is_refused_is_tried_once(
    vault: Vault, server: AsyncsshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.put("hosts", server.known_hosts)
    vault.put("password", "wrong")
    with changing(vault, server, monkeypatch, "password") as backend:
        vault.put("password", "as wrong")
        connections = server.connections()
        with pytest.raises(AuthenticationFailed):
            backend.check_health()
        assert server.connections() == connections + 2


def test_a_pinned_secret_version_is_never_replaced(
    vault: Vault, server: AsyncsshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.put("hosts", server.known_hosts)
    version = vault.put("password", "the pinned one")
    vault.put("password", server.password)
    with changing(vault, server, monkeypatch, f"password/{version}") as backend, pytest.raises(AuthenticationFailed):
        backend.check_health()


def test_changed_host_keys_are_fetched_when_the_server_key_is_refused(
    vault: Vault, server: AsyncsshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.put("hosts", "SHA256:" + "A" * 43)
    vault.put("password", server.password)
    with changing(vault, server, monkeypatch, "password") as backend:
        with pytest.raises(HostKeyRejected):
            backend.check_health()
        vault.put("hosts", server.known_hosts)
        backend.check_health()


def test_an_unreachable_vault_leaves_the_login_error_unchanged(
    vault: Vault, server: AsyncsshServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vault.put("hosts", server.known_hosts)
    vault.put("password", "wrong")
    with changing(vault, server, monkeypatch, "password") as backend:
        vault.fail(SECRET, Fault.error(403, "Forbidden"))
        with pytest.raises(AuthenticationFailed, match="the server refuses the login of"):
            backend.check_health()
    assert "not retrying with the current secrets: connection 'partner'" in caplog.text


def test_a_copied_backend_refreshes_its_secrets_too(
    vault: Vault, server: AsyncsshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.put("hosts", server.known_hosts)
    vault.put("password", "the old one")
    original = changing(vault, server, monkeypatch, "password")
    copies = [copy.deepcopy(original), pickle.loads(pickle.dumps(original))]
    vault.put("password", server.password)
    for backend in copies:
        with backend:
            backend.check_health()


# ---- what is wrong


def test_all_reference_problems_are_reported_at_once(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    vault.put("expired", "swordfish", expires=time.time() - 60)
    extra = {
        "key_vault_url": vault.url, "password_secret": "expired", "private_key_secret": "missing",
        "login_secret": "fine", "known_host_keys_secret": "off",
    }  # fmt: skip
    vault.put("fine", "partner-a")
    vault.put("off", KNOWN, enabled=False)
    with pytest.raises(InvalidConnection) as caught:
        give(monkeypatch, host="h", extra=extra).config()
    password, known, key = caught.value.problems
    assert password.startswith(f"Password: Key Vault secret 'expired' in {vault.host}: expired on 2")
    assert key.startswith(f"Private key: Key Vault secret 'missing' in {vault.host}: the vault has no such secret")
    assert known.startswith(f"Known host keys: Key Vault secret 'off' in {vault.host}: disabled; enable the secret: ")
    assert "swordfish" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "extra", "expected_text"),
    [
        (
            {},
            {"password_secret": "a"},
            "Key Vault: nothing given; expected the URL or name of the vault of Password secret",
        ),
        ({"password": "x"}, {"password_secret": "a"}, "Password and Password secret: both given; expected one of them"),
        ({}, {"password_secret": "a_b", "key_vault_url": "v-1"}, "Password secret: secret 'a_b': expected a name of 1"),
        (
            {},
            {"password_secret": "a", "key_vault_url": "http://v.x"},
            "Password secret: vault 'http://v.x': expected",
        ),
        ({"password": "keyvault://v-1"}, {}, "Password: 'keyvault://v-1'; expected keyvault://vault/secret"),
        ({}, {"client_id": "a", "client_secret": "b"}, "Azure identity: a login by client secret also needs a tenant"),
        ({}, {"cloud_environment": "Mars"}, "Azure identity: cloud_environment 'Mars': expected one of AzurePublic"),
        ({}, {"azure_conn_id": "cloud", "client_id": "a"}, "Azure connection and Azure client id: both given"),
    ],
)
def test_an_invalid_reference_is_reported_with_its_form_label(
    monkeypatch: pytest.MonkeyPatch, columns: dict[str, str], extra: dict[str, str], expected_text: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_CLOUD", json.dumps({"conn_type": "azure"}))
    hook = give(monkeypatch, host="h", **columns, extra=extra)
    with pytest.raises(InvalidConnection) as caught:
        hook.config()
    assert any(fault.startswith(expected_text) for fault in caught.value.problems), caught.value.problems


@pytest.mark.parametrize("text", ["", "no connection", "{broken", '{"port": "many"}', "sftp://h:port/", "[1]"])
def test_a_secret_without_a_connection_in_it_is_named_and_not_shown(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    vault.put("whole", text)
    with pytest.raises(InvalidConnection) as caught:
        give(monkeypatch, extra={"key_vault_url": vault.url, "connection_secret": "whole"}).config()
    (fault,) = caught.value.problems
    assert fault == (
        f"Connection secret: Key Vault secret 'whole' in {vault.host}: expected a connection's URI, or its JSON object"
    )
    assert caught.value.__context__ is None


def test_a_value_from_the_vault_is_never_shown(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    vault.put("host", "two words")
    vault.put("whole", json.dumps({"conn_type": "sftp", "port": 70000, "extra": {"base_path": "/a/../b"}}))
    extra = {"key_vault_url": vault.url, "host_secret": "host", "connection_secret": "whole"}
    with pytest.raises(InvalidConnection) as caught:
        give(monkeypatch, extra=extra).config()
    assert "70000" not in str(caught.value)
    assert "/a/../b" not in str(caught.value)
    extra.pop("connection_secret")
    with pytest.raises(InvalidConnection) as caught:
        give(monkeypatch, extra=extra).config()
    assert caught.value.problems == (
        f"Host (Key Vault secret 'host' in {vault.host}): text given; expected the bare name or address of the server",
    )


def test_a_reference_in_a_secret_is_not_followed(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    vault.put("first", f"keyvault://{vault.host}/second")
    hook = give(monkeypatch, host="h", extra={"key_vault_url": vault.url, "password_secret": "first"})
    with pytest.raises(InvalidConnection, match="Password: the Key Vault secret holds another reference"):
        hook.config()


def test_a_temporary_vault_error_is_retried(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    vault.put("password", "swordfish")
    hook = give(monkeypatch, host="h", extra={"key_vault_url": vault.url, "password_secret": "password"})
    vault.fail(SECRET, *[Fault.error(429, "Throttled", Retry_After="0")] * 3)
    with (
        pytest.raises(BackendUnavailable, match=r"Password of connection 'partner': .*the vault throttles"),
        hook.backend(),
    ):
        pass
    with hook.backend() as backend:
        assert backend.config.password


def test_a_permanent_secret_error_fails_the_task(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = give(monkeypatch, host="h", extra={"key_vault_url": vault.url, "password_secret": "missing"})
    with pytest.raises(AirflowFailException, match="no such secret"), hook.backend():
        pass


# ---- what a log may show


def test_fetched_secrets_are_masked_whole_by_line_as_json_and_repr(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, server: AsyncsshServer, tmp_path: Path
) -> None:
    key = server.client_key.read_text()
    password = 'a "quoted"\tpässword\\'
    vault.put("key", key)
    vault.put("whole", json.dumps({"conn_type": "sftp", "host": "h", "password": password}))
    extra = {"key_vault_url": vault.url, "connection_secret": "whole", "private_key_secret": "key"}
    give(monkeypatch, extra=extra).config()
    for secret in (key, password):
        for shown in (secret, repr(secret), json.dumps(secret), json.dumps(secret, ensure_ascii=False)):
            assert secret not in str(redact(f"<{shown}>"))
            assert "***" in str(redact(f"<{shown}>"))
    for line in key.splitlines()[1:-1]:
        shown = str(redact(line))
        assert not [line[at : at + 8] for at in range(len(line) - 7) if line[at : at + 8] in shown]


# ---- other connections


@pytest.mark.parametrize("conn_type", ["ssh", "sftp", "sftp_backend"])
def test_another_connection_may_be_the_jump_host(
    openssh: OpenSSHServer, bastion: OpenSSHServer, connect: Connect, conn_type: str
) -> None:
    connect(bastion, "bastion", conn_type=conn_type)
    logins = bastion.logins()
    hook = SFTPBackendHook(connect(openssh, jump_conn_id="bastion"))
    with hook.backend() as backend:
        backend.check_health()
    wait_until(lambda: bastion.logins() == logins + 1, "a login at the jump host")


def test_the_jump_hosts_secrets_may_come_from_a_vault_and_change(
    vault: Vault, openssh: OpenSSHServer, bastion: OpenSSHServer, connect: Connect
) -> None:
    vault.put("hosts", "SHA256:" + "A" * 43)
    connect(bastion, "bastion", known_host_keys=None, known_host_keys_secret="hosts", key_vault_url=vault.url)
    with SFTPBackendHook(connect(openssh, jump_conn_id="bastion")).get_conn() as backend:
        vault.put("hosts", bastion.known_hosts)
        backend.check_health()


def test_circular_jump_connections_are_reported(openssh: OpenSSHServer, connect: Connect) -> None:
    connect(openssh, "one", jump_conn_id="two")
    connect(openssh, "two", jump_conn_id="one")
    with pytest.raises(InvalidConnection, match="Jump host connection: circular chain: one -> two -> one"):
        SFTPBackendHook("one").config()


def test_an_invalid_jump_connection_is_named(openssh: OpenSSHServer, connect: Connect) -> None:
    connect(openssh, "bastion", columns={"port": 70000})
    with pytest.raises(InvalidConnection, match="connection 'bastion' needs correcting: Port: 70000 given"):
        SFTPBackendHook(connect(openssh, jump_conn_id="bastion")).config()
    with pytest.raises(AirflowNotFoundException, match="nobody"):
        SFTPBackendHook(connect(openssh, jump_conn_id="nobody")).config()


def test_jump_host_and_proxy_command_together_are_refused(openssh: OpenSSHServer, connect: Connect) -> None:
    connect(openssh, "bastion")
    with pytest.raises(InvalidConnection, match="Jump host connection and Proxy command: both given"):
        SFTPBackendHook(connect(openssh, jump_conn_id="bastion", host_proxy_cmd="nc %h %p")).config()
