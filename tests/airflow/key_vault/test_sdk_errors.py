"""Classify errors of the Azure SDKs that no server produces."""

from __future__ import annotations

from azure.core.exceptions import ClientAuthenticationError

from airflow_sftp_backend._key_vault.errors import FailureReason
from airflow_sftp_backend._key_vault.identity import AzureIdentity
from airflow_sftp_backend._key_vault.login_record import LoginRecord
from airflow_sftp_backend._key_vault.references import SecretReference
from airflow_sftp_backend._key_vault.sdk_errors import classify_sdk_error


def test_a_refusal_known_only_by_its_text_changes_the_hint_only() -> None:
    record = LoginRecord(error=ClientAuthenticationError("Authentication failed: AADSTS7000215: Invalid secret."))
    assert record.error is not None
    wanted = SecretReference("vault", "password")
    reason, message = classify_sdk_error(record.error, record, wanted, AzureIdentity())
    assert (reason, "the last reply was AADSTS7000215, https://" in message) == (FailureReason.UNAVAILABLE, True)
