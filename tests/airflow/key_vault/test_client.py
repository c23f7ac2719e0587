"""Read secrets with the real Azure SDKs, and explain failures."""

from __future__ import annotations

import base64
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest

from airflow_sftp_backend import RetryPolicy
from airflow_sftp_backend._key_vault.client import KeyVaultClient
from airflow_sftp_backend._key_vault.errors import FailureReason, KeyVaultError
from airflow_sftp_backend._key_vault.identity import AzureIdentity, CredentialType
from airflow_sftp_backend._key_vault.references import SecretReference
from tests.support.key_vault import (
    CHALLENGE,
    CLIENT_SECRET,
    DISCOVERY,
    MANAGED_IDENTITY,
    SECRET,
    TENANT,
    Clock,
    Fault,
    Vault,
    client_certificate,
)
from tests.support.servers import free_port
from tests.support.tracebacks import shown_by

VALUE = "a value that nobody sees"


@pytest.fixture
def clock() -> Clock:
    """The time of `vaults`."""
    return Clock()


@pytest.fixture
def vaults(clock: Clock) -> Iterator[KeyVaultClient]:
    """Build the client under test."""
    made = KeyVaultClient(timeout=5, clock=clock, sleep=clock.sleep, random_fraction=lambda: 0.0)
    yield made
    made.close()


def reference(vault: Vault, name: str = "password", version: str | None = None) -> SecretReference:
    """A secret of the loopback vault."""
    return SecretReference(vault.host, name, version)


def failure(vaults: KeyVaultClient, wanted: SecretReference, identity: AzureIdentity | None = None) -> KeyVaultError:
    """Return the error of a fetch, and check its cause."""
    with pytest.raises(KeyVaultError) as caught:
        vaults.fetch(wanted, identity or AzureIdentity())
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    return caught.value


# -- logins


def test_the_environment_logs_in_by_default(vault: Vault, vaults: KeyVaultClient) -> None:
    vault.put("password", VALUE)
    assert vaults.fetch(reference(vault)).reveal() == VALUE
    assert vault.counts[CLIENT_SECRET] == 1


def test_a_client_secret_logs_in(vault: Vault, vaults: KeyVaultClient) -> None:
    vault.put("password", VALUE)
    who = vault.register(secret="mine")
    fields = {"login": who.client_id, "password": "mine", "tenantId": vault.tenant}
    assert vaults.fetch(reference(vault), AzureIdentity.from_fields(fields)).reveal() == VALUE


@pytest.mark.parametrize("form", ["PEM", "file"])
def test_a_certificate_logs_in(vault: Vault, vaults: KeyVaultClient, tmp_path: Path, form: str) -> None:
    vault.put("password", VALUE)
    certificate, pem = client_certificate()
    who = vault.register(certificate=certificate)
    (tmp_path / "client.pem").write_text(pem)
    given = {"certificate_data": pem} if form == "PEM" else {"certificate_path": str(tmp_path / "client.pem")}
    fields = {"client_id": who.client_id, "tenant_id": vault.tenant, **given}
    assert vaults.fetch(reference(vault), AzureIdentity.from_fields(fields)).reveal() == VALUE
    assert vault.counts["certificate"] == 1


@pytest.mark.parametrize("client_id", ["", "11111111-2222-3333-4444-555555555555"])
def test_a_managed_identity_logs_in(vault: Vault, vaults: KeyVaultClient, client_id: str) -> None:
    vault.put("password", VALUE)
    vault.managed_identities[client_id] = vault.tenant
    identity = AzureIdentity.from_fields({"credential": "managed_identity", "managed_identity_client_id": client_id})
    assert identity.credential_type is CredentialType.MANAGED_IDENTITY
    assert vaults.fetch(reference(vault), identity).reveal() == VALUE
    assert (vault.counts[MANAGED_IDENTITY] >= 1, vault.counts[CLIENT_SECRET]) == (True, 0)


def test_a_workload_identity_logs_in(
    vault: Vault, vaults: KeyVaultClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.put("password", VALUE)
    who = vault.register(federated_token="token of the pod")
    (tmp_path / "token").write_text("token of the pod")
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AZURE_CLIENT_ID", who.client_id)
    identity = AzureIdentity.from_fields({"workload_identity_tenant_id": vault.tenant})
    assert identity.credential_type is CredentialType.WORKLOAD_IDENTITY
    assert vaults.fetch(reference(vault), identity).reveal() == VALUE
    assert vault.counts["workload identity"] == 1


# -- caching and retries


def test_logins_clients_and_secrets_are_cached_briefly(vault: Vault, vaults: KeyVaultClient, clock: Clock) -> None:
    vault.put("password", VALUE)
    vault.put("other", "other")
    for _ in range(3):
        vaults.fetch(reference(vault))
    vaults.fetch(reference(vault, "other"))
    assert (vault.counts[SECRET], vault.counts[CLIENT_SECRET], vault.counts[CHALLENGE]) == (2, 1, 1)
    vault.put("password", "newer")
    assert vaults.fetch(reference(vault)).reveal() == VALUE
    clock.now += 61
    assert vaults.fetch(reference(vault)).reveal() == "newer"
    assert vaults.fetch(reference(vault), max_age=0).reveal() == "newer"
    assert vault.counts[SECRET] == 4


def test_a_secret_is_not_cached_beyond_its_expiry(vault: Vault, vaults: KeyVaultClient, clock: Clock) -> None:
    vault.put("password", VALUE, expires=clock.now + 30)
    assert vaults.fetch(reference(vault)).reveal() == VALUE
    clock.now += 40
    assert failure(vaults, reference(vault)).reason is FailureReason.EXPIRED


def test_a_pinned_version_is_cached_for_good(vault: Vault, vaults: KeyVaultClient) -> None:
    pinned = vault.put("password", VALUE)
    vault.put("password", "newer")
    assert vaults.fetch(reference(vault, version=pinned), max_age=0).reveal() == VALUE
    assert vaults.fetch(reference(vault), max_age=0).reveal() == "newer"


def test_threads_that_need_the_same_secret_share_one_request(vault: Vault, vaults: KeyVaultClient) -> None:
    vault.put("password", VALUE)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(vaults.fetch(reference(vault)).reveal())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [VALUE] * 8
    assert vault.counts[SECRET] == 1


def test_a_forked_process_sends_its_own_requests(vault: Vault, vaults: KeyVaultClient) -> None:
    vault.put("password", VALUE)
    vaults.fetch(reference(vault))
    child = os.fork()
    if child == 0:
        os._exit(0 if vaults.fetch(reference(vault)).reveal() == VALUE else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert vault.counts[SECRET] == 2


@pytest.mark.parametrize(("header", "pauses"), [({}, [1.0, 2.0]), ({"Retry_After": "7"}, [7.0, 7.0])])
def test_a_throttling_vault_is_retried_as_its_headers_say(
    vault: Vault, vaults: KeyVaultClient, clock: Clock, header: dict[str, str], pauses: list[float]
) -> None:
    vault.put("password", VALUE)
    fault = Fault.error(429, "Throttled", **header)
    vault.fail(SECRET, fault, fault)
    assert vaults.fetch(reference(vault)).reveal() == VALUE
    assert clock.pauses == pauses
    vault.fail(SECRET, fault, fault, fault)
    error = failure(vaults, reference(vault, "throttled"))
    assert (error.reason, error.retryable) == (FailureReason.THROTTLED, True)
    assert "the vault throttles: too many requests; let fewer tasks start at once." in str(error)


def test_a_too_long_retry_delay_is_reported(vault: Vault, vaults: KeyVaultClient, clock: Clock) -> None:
    vault.fail(SECRET, Fault.error(429, "Throttled", Retry_After="600"))
    assert "The requested pause is 600 s." in str(failure(vaults, reference(vault)))
    assert clock.pauses == []


# -- invalid secrets

DAY = 86400.0
WRONG_SECRETS: dict[str, tuple[dict[str, Any], FailureReason, list[str]]] = {
    "expired": (
        {"expires": time.time() - DAY},
        FailureReason.EXPIRED,
        [
            "expired on 20",
            "set a new version, or change the date: az keyvault secret set-attributes",
            "--expires",
        ],
    ),
    "not yet": (
        {"not_before": time.time() + DAY},
        FailureReason.NOT_YET_VALID,
        ["not valid before 20", "wait, or change the date: az keyvault secret set-attributes", "--not-before"],
    ),
    "disabled": (
        {"enabled": False},
        FailureReason.DISABLED,
        ["disabled; enable the secret: az keyvault secret set-attributes --vault-name", "--enabled true"],
    ),
}


@pytest.mark.parametrize("case", WRONG_SECRETS)
def test_a_disabled_or_expired_secret_is_explained_with_a_hint(vault: Vault, vaults: KeyVaultClient, case: str) -> None:
    attributes, reason, expected_text = WRONG_SECRETS[case]
    vault.put("password", VALUE, **attributes)
    error = failure(vaults, reference(vault))
    assert (error.reason, error.retryable) == (reason, False)
    assert str(error).startswith(f"Key Vault secret 'password' in {vault.host}: ")
    for text in expected_text:
        assert text in str(error)
    assert VALUE not in str(error)


def test_a_missing_secret_or_version_is_reported(vault: Vault, vaults: KeyVaultClient) -> None:
    error = failure(vaults, reference(vault, "nothing"))
    assert error.reason is FailureReason.MISSING
    assert "the vault has no such secret; see `az keyvault secret list --vault-name 127`" in str(error)
    vault.put("password", VALUE)
    error = failure(vaults, reference(vault, version="b" * 32))
    assert f"Key Vault secret 'password', version {'b' * 32} in {vault.host}: the vault has no such version" in str(
        error
    )


# -- refused logins

OBJECT = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
FORBIDDEN = Fault.error(403, "Forbidden", "ForbiddenByRbac", f"Caller is not authorized. Caller: appid=x;oid={OBJECT};")
FAULTS: dict[str, tuple[Fault, FailureReason, list[str]]] = {
    "forbidden": (
        FORBIDDEN,
        FailureReason.FORBIDDEN,
        [
            "the identity may not read the secret. Grant the role Key Vault Secrets User, effective",
            f'az role assignment create --role "Key Vault Secrets User" --assignee {OBJECT}',
        ],
    ),
    "firewall": (
        Fault.error(403, "Forbidden", "ForbiddenByFirewall", "Client address is not authorized"),
        FailureReason.FIREWALL,
        ["the vault is closed to this network (ForbiddenByFirewall); add this network to the vault's firewall"],
    ),
    "odd": (
        Fault(418, {"error": {"code": "Teapot"}}),
        FailureReason.UNEXPECTED,
        ["unexpected status 418 of the vault (Teapot)."],
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_vault_that_denies_access_gets_a_hint(vault: Vault, vaults: KeyVaultClient, case: str) -> None:
    fault, reason, expected_text = FAULTS[case]
    vault.fail(SECRET, fault)
    error = failure(vaults, reference(vault))
    assert (error.reason, error.retryable) == (reason, False)
    for text in expected_text:
        assert text in str(error)


def principal(vault: Vault, **changes: str) -> AzureIdentity:
    """An application with its client secret."""
    who = vault.register(secret="S3cret of the application")
    fields = {"client_id": who.client_id, "client_secret": "S3cret of the application", "tenant_id": vault.tenant}
    return AzureIdentity.from_fields(fields | changes)


@pytest.mark.parametrize(
    ("changes", "reason", "expected_text"),
    [
        (
            {"client_secret": "Wr0ng secret"},
            FailureReason.LOGIN_REFUSED,
            "the client secret is wrong; set the secret's value, not its id (AADSTS7000215",
        ),
        (
            {"client_id": OBJECT},
            FailureReason.LOGIN_REFUSED,
            "the tenant has no application with the client id; check both ids (AADSTS700016",
        ),
        (
            {"tenant_id": OBJECT},
            FailureReason.WRONG_TENANT,
            f"the vault belongs to tenant {TENANT}, the identity to tenant {OBJECT};",
        ),
    ],
    ids=["secret", "client", "tenant"],
)
def test_a_refused_azure_login_is_explained(
    vault: Vault, vaults: KeyVaultClient, changes: dict[str, str], reason: FailureReason, expected_text: str
) -> None:
    vault.put("password", VALUE)
    error = failure(vaults, reference(vault), principal(vault, **changes))
    assert (error.reason, error.retryable) == (reason, False)
    assert expected_text in str(error)
    for secret in ("S3cret", "Wr0ng"):
        assert secret not in str(error)


def test_a_login_service_that_fails_once_is_asked_again(vault: Vault, vaults: KeyVaultClient) -> None:
    vault.put("password", VALUE)
    vault.fail(CLIENT_SECRET, Fault(503, b'{"error": "temporarily_unavailable"}'))
    assert vaults.fetch(reference(vault), principal(vault)).reveal() == VALUE


def test_a_refused_login_of_the_environment_is_explained(
    vault: Vault, vaults: KeyVaultClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "Wr0ng secret")
    error = failure(vaults, reference(vault))
    assert (error.reason, error.retryable) == (FailureReason.LOGIN_REFUSED, False)
    assert "the login (default) failed: the client secret is wrong; set the secret's value" in str(error)


@pytest.mark.parametrize(
    ("kind", "fault", "reason", "text"),
    [
        (
            CLIENT_SECRET,
            Fault(503, b""),
            FailureReason.UNAVAILABLE,
            "the login service fails with status 503; retry later.",
        ),
        (CLIENT_SECRET, Fault(429, b""), FailureReason.THROTTLED, "the login service throttles: too many requests."),
        (
            CLIENT_SECRET,
            Fault(400, {"error_codes": [90033]}),
            FailureReason.UNAVAILABLE,
            "temporarily unavailable (AADSTS90033",
        ),
        (
            CLIENT_SECRET,
            Fault(400, {"error_codes": [53003]}),
            FailureReason.LOGIN_REFUSED,
            "Microsoft Entra (AADSTS53003",
        ),
        (
            CLIENT_SECRET,
            Fault(400, {"error": "invalid_scope"}),
            FailureReason.LOGIN_REFUSED,
            "login service (invalid_scope).",
        ),
        (
            CLIENT_SECRET,
            Fault(400, b"no"),
            FailureReason.UNAVAILABLE,
            "replies with status 400 and no reason; retry later.",
        ),
        (
            DISCOVERY,
            Fault(400, {"error": "x"}),
            FailureReason.WRONG_TENANT,
            "the login service does not know the tenant",
        ),
    ],
)
def test_a_login_error_is_classified_by_status_and_code(
    vault: Vault, vaults: KeyVaultClient, kind: str, fault: Fault, reason: FailureReason, text: str
) -> None:
    vault.fail(kind, fault, fault, fault)
    error = failure(vaults, reference(vault), principal(vault))
    assert error.reason is reason
    assert text in str(error)


@pytest.mark.parametrize("default", [True, False])
def test_an_unreachable_login_service_is_reported(
    vault: Vault, vaults: KeyVaultClient, monkeypatch: pytest.MonkeyPatch, default: bool
) -> None:
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", f"https://localhost:{free_port()}")
    error = failure(vaults, reference(vault), AzureIdentity() if default else principal(vault))
    assert (error.reason, error.retryable) == (FailureReason.UNREACHABLE, True)
    assert "failed: localhost cannot be reached; check network, firewall and HTTPS_PROXY." in str(error)


def test_an_identity_of_another_tenant_is_explained(vault: Vault, vaults: KeyVaultClient) -> None:
    vault.managed_identities[""] = OBJECT  # a token of that tenant
    identity = AzureIdentity.from_fields({"credential": "managed_identity"})
    error = failure(vaults, reference(vault), identity)
    assert error.reason is FailureReason.WRONG_TENANT
    assert "the identity is not of the vault's tenant; use an identity of that tenant." in str(error)


def test_a_machine_without_an_identity_is_explained(vault: Vault, vaults: KeyVaultClient) -> None:
    identity = AzureIdentity.from_fields({"managed_identity_client_id": OBJECT})
    error = failure(vaults, reference(vault), identity)
    assert (error.reason, error.retryable) == (FailureReason.NO_IDENTITY, True)
    assert f"this machine has no managed identity {OBJECT}, or its identity service does not answer." in str(error)


@pytest.mark.parametrize(
    ("fields", "expected_text"),
    [
        (
            {"credential": "workload_identity"},
            "the pod must have AZURE_FEDERATED_TOKEN_FILE, AZURE_CLIENT_ID",
        ),
        (
            {"client_id": "c", "tenant_id": "t", "certificate_data": base64.b64encode(b"no certificate").decode()},
            "the client certificate cannot be used; expected PEM or base64 of PKCS#12, with its RSA private key",
        ),
        (
            {"client_id": "c", "tenant_id": "t", "certificate_path": "/no/such/file"},
            "/no/such/file cannot be read: No such file or directory.",
        ),
    ],
)
def test_an_invalid_identity_is_explained(
    vault: Vault, vaults: KeyVaultClient, fields: dict[str, object], expected_text: str
) -> None:
    error = failure(vaults, reference(vault), AzureIdentity.from_fields(fields))
    assert error.reason is FailureReason.BAD_SETTING
    assert expected_text in str(error)


# -- unreachable vaults


def test_an_unreachable_vault_is_reported(vaults: KeyVaultClient, vault: Vault, clock: Clock) -> None:
    error = failure(vaults, SecretReference(f"127.0.0.1:{free_port()}", "password"))
    assert (error.reason, error.retryable) == (FailureReason.UNREACHABLE, True)
    assert "127.0.0.1 cannot be reached; check network, firewall and HTTPS_PROXY." in str(error)
    assert clock.pauses == [1.0, 2.0]


def test_a_silent_vault_times_out(vault: Vault) -> None:
    hasty = KeyVaultClient(timeout=0.5, retry=RetryPolicy.disabled())
    vault.put("password", VALUE)
    vault.fail(SECRET, Fault(silent=True))
    try:
        assert failure(hasty, reference(vault)).reason is FailureReason.UNREACHABLE
    finally:
        hasty.close()


def test_an_invalid_vault_name_is_refused(vaults: KeyVaultClient, vault: Vault) -> None:
    error = failure(vaults, SecretReference("my-vault.vault.invalid", "password"))
    assert error.reason is FailureReason.UNREACHABLE
    assert "the name my-vault.vault.invalid cannot be resolved; check the vault's name and cloud, and DNS" in str(error)


def test_an_untrusted_certificate_is_reported(
    vault: Vault, vaults: KeyVaultClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    error = failure(vaults, reference(vault))
    assert (error.reason, error.retryable) == (FailureReason.UNTRUSTED, False)
    assert re.search(r"is not trusted \([a-z -]+ certificate[a-z -]*\); REQUESTS_CA_BUNDLE names", str(error))


@pytest.mark.skipif(sys.version_info < (3, 13), reason="Python before 3.13 accepts such an authority")
def test_openssls_reason_to_refuse_an_authority_is_reported(
    tmp_path: Path, vaults: KeyVaultClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Vault(tmp_path, lax_authority=True) as vault:
        for name, value in vault.environment().items():
            monkeypatch.setenv(name, value)
        error = failure(vaults, reference(vault))
    assert error.reason is FailureReason.UNTRUSTED
    assert "is not trusted (Missing Authority Key Identifier); REQUESTS_CA_BUNDLE names" in str(error)


def test_a_missing_file_of_certificates_is_reported(
    vault: Vault, vaults: KeyVaultClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/file")
    error = failure(vaults, reference(vault))
    assert (error.reason, error.retryable) == (FailureReason.UNTRUSTED, False)
    assert "the certificate of 127.0.0.1 cannot be verified; REQUESTS_CA_BUNDLE names the file" in str(error)


@pytest.mark.parametrize("status", [500, 503])
def test_a_failing_vault_is_retried_and_reported(vault: Vault, vaults: KeyVaultClient, status: int) -> None:
    fault = Fault.error(status, "InternalServerError")
    vault.fail(SECRET, fault, fault, fault)
    error = failure(vaults, reference(vault))
    assert (error.reason, error.retryable) == (FailureReason.UNAVAILABLE, True)
    assert f"the vault fails with status {status}; retry later." in str(error)


def test_a_server_that_is_not_a_vault_is_reported(vault: Vault, vaults: KeyVaultClient) -> None:
    vault.fail(SECRET, Fault(200, b"<html>a proxy says hello</html>"))
    error = failure(vaults, reference(vault))
    assert error.reason is FailureReason.UNEXPECTED
    assert "does not reply like a key vault; check the vault's name or URL." in str(error)


# -- secrets in logs and tracebacks


class Interrupted(BaseException):
    """Stand for a timeout, a kill or Ctrl+C."""


def interrupt(*_: object) -> None:
    """Handles a signal, or stands in for a function."""
    raise Interrupted


@pytest.mark.parametrize("at", [DISCOVERY, CLIENT_SECRET, SECRET, "answer"])
def test_an_interruption_shows_neither_client_secret_nor_value(
    vault: Vault, vaults: KeyVaultClient, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    vault.put("password", VALUE)
    thread = threading.main_thread().ident
    assert thread is not None
    if at == "answer":
        monkeypatch.setattr("azure.keyvault.secrets.KeyVaultSecret._from_secret_bundle", interrupt)
    vault.fail(at, Fault(silent=True))
    vault.when_asked = lambda credential_type: (
        signal.pthread_kill(thread, signal.SIGUSR1) if credential_type == at else None
    )
    identity = principal(vault)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(Interrupted) as caught:
            vaults.fetch(reference(vault), identity)
    finally:
        signal.signal(signal.SIGUSR1, before)
    shown = "\n".join(shown_by(caught.value))
    assert "KeyVaultClient.fetch, reference: " in shown
    for secret in (VALUE, "S3cret", quote_plus("S3cret of the application"), *vault.tokens()):
        assert secret not in shown


@pytest.mark.parametrize("right", [True, False])
def test_a_refusal_shows_neither_client_secret_nor_token(vault: Vault, vaults: KeyVaultClient, right: bool) -> None:
    vault.put("password", VALUE, expires=1.0)
    identity = principal(vault) if right else principal(vault, client_secret="S3cret of another application")
    shown = "\n".join(shown_by(failure(vaults, reference(vault), identity)))
    assert "KeyVaultClient._request_with_retries, identity: " in shown
    assert bool(vault.tokens()) is right
    for secret in (VALUE, "S3cret", *vault.tokens()):
        assert secret not in shown


LEAKS: dict[str, Callable[[Vault], object]] = {
    "success": lambda vault: vault.put("password", VALUE),
    "forbidden": lambda vault: vault.fail(SECRET, FORBIDDEN),
    "failing": lambda vault: vault.fail(SECRET, *[Fault.error(500, "Oops", message=VALUE)] * 3),
    "no JSON": lambda vault: vault.fail(SECRET, Fault(200, VALUE.encode())),
}


@pytest.mark.parametrize("case", LEAKS)
def test_no_value_token_or_client_secret_is_logged_or_raised(
    vault: Vault, vaults: KeyVaultClient, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    LEAKS[case](vault)
    with caplog.at_level(logging.DEBUG):
        try:
            shown = repr(vaults.fetch(reference(vault), principal(vault)))
        except KeyVaultError as error:
            shown = f"{error} {error!r} {error.__dict__}"
    text = shown + "\n".join(f"{record.getMessage()} {record.exc_text}" for record in caplog.records)
    assert vault.tokens()
    for secret in (VALUE, "S3cret of the application", *vault.tokens()):
        assert secret not in text
