"""A reference has several forms; an invalid form is reported."""

from __future__ import annotations

import pytest

from airflow_sftp_backend._key_vault.errors import InvalidReference
from airflow_sftp_backend._key_vault.references import SecretReference


@pytest.mark.parametrize(
    ("text", "vault", "name", "version"),
    [
        ("keyvault://my-vault/db", "my-vault.vault.azure.net", "db", None),
        (" KEYVAULT://my-vault/db/ ", "my-vault.vault.azure.net", "db", None),
        (f"keyvault://my-vault.vault.azure.cn/db/{'a' * 32}", "my-vault.vault.azure.cn", "db", "a" * 32),
        ("keyvault://127.0.0.1:8443/db", "127.0.0.1:8443", "db", None),
        ("https://my-vault.vault.azure.net/secrets/db", "my-vault.vault.azure.net", "db", None),
        (f" HTTPS://my-vault.vault.azure.net/secrets/db/{'a' * 32}\n", "my-vault.vault.azure.net", "db", "a" * 32),
    ],
)
def test_a_reference_is_read(text: str, vault: str, name: str, version: str | None) -> None:
    reference = SecretReference.parse(text)
    assert (reference.vault, reference.name, reference.version) == (vault, name, version)
    assert SecretReference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "expected_text"),
    [
        ("keyvault://my-vault", "expected keyvault://vault/secret or keyvault://vault/secret/version"),
        ("keyvault://my-vault/secrets/db", "leave out 'secrets/'"),
        ("keyvault://my-vault/db/1", "version '1': expected its 32 characters, or none for the current one"),
        ("keyvault://my--vault/d_b", "secret 'd_b': expected a name of 1 to 127 letters, digits and hyphens"),
        ("https://my-vault/db", "text that does not start with keyvault://"),
    ],
)
def test_an_invalid_reference_is_reported(text: str, expected_text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        SecretReference.parse(text)
    assert any(expected_text in fault for fault in caught.value.problems)
