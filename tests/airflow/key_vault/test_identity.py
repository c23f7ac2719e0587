"""Connection fields give an Azure identity, or all their problems."""

from __future__ import annotations

import pytest

from airflow_sftp_backend._key_vault.identity import AzureIdentity, InvalidIdentity
from airflow_sftp_backend._key_vault.references import SecretReference


@pytest.mark.parametrize(
    ("cloud", "host", "authority"),
    [
        ("AzureUSGovernment", "my-vault.vault.usgovcloudapi.net", "login.microsoftonline.us"),
        ("AzureChinaCloud", "my-vault.vault.azure.cn", "login.chinacloudapi.cn"),
        ("AzurePublicCloud", "my-vault.vault.azure.net", None),
    ],
)
def test_a_vault_leads_to_the_login_service_of_its_cloud(cloud: str, host: str, authority: str | None) -> None:
    reference = SecretReference.of("my-vault", "db", cloud=cloud)
    assert reference.vault == host
    assert AzureIdentity().authority_for(reference.url) == authority


@pytest.mark.parametrize(
    ("fields", "expected_text"),
    [
        ({"password": "x"}, "a login by client secret also needs a client id (login) and a tenant id (tenantId)"),
        ({"certificate_data": "x", "login": "me"}, "a login by certificate also needs a tenant id (tenantId)"),
        ({"credential": "magic"}, "credential: expected one of default, client_secret, certificate"),
        ({"cloud_environment": "Mars"}, "cloud_environment 'Mars': expected one of AzurePublicCloud"),
        ({"authority": "http://login"}, "authority 'http://login': expected a host, or https:// and a host"),
        ({"key_path": "/x"}, "key_path and key_json are not supported"),
        ({"login": 5}, "login: expected text"),
    ],
)
def test_fields_that_give_no_identity_are_reported(fields: dict[str, object], expected_text: str) -> None:
    with pytest.raises(InvalidIdentity) as caught:
        AzureIdentity.from_fields(fields)
    assert any(expected_text in fault for fault in caught.value.problems)
