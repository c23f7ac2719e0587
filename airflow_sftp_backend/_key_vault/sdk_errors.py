"""Classify the errors of the Azure SDKs.

The SDKs publish most causes only in the text of an exception. Messages for users contain only codes, names and ids
from these texts: other parts may hold tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from .errors import FailureReason
from .identity import AzureIdentity, CredentialType
from .references import SecretReference


def classify_sdk_error(
    error: Exception, reference: SecretReference, identity: AzureIdentity
) -> tuple[FailureReason, str]:
    """Return the reason of an SDK's exception and a message for users.

    :param error: the exception
    :param reference: the requested secret
    :param identity: the identity of the login
    """
    from azure.core.exceptions import (
        ClientAuthenticationError,
        DecodeError,
        HttpResponseError,
        ServiceRequestError,
        ServiceResponseError,
    )

    text = str(error)
    if isinstance(error, HttpResponseError) and not isinstance(error, DecodeError):
        code = error.error.code if error.error is not None else None
        # The SDKs raise ClientAuthenticationError for a failed login and also for a refused token, which has this code.
        if isinstance(error, ClientAuthenticationError) and code != "Unauthorized":
            return _classify_login_failure(text, reference, identity)
        inner_code: object = (error.error.innererror or {}).get("code") if error.error is not None else None
        return _classify_refusal(error.status_code or 0, str(inner_code or code or ""), text, reference)
    if (network := _classify_network_failure(text, reference)) is not None:
        return network
    if isinstance(error, ServiceRequestError | ServiceResponseError):
        return (
            FailureReason.UNREACHABLE,
            f"{reference.vault} cannot be reached; check network, firewall and HTTPS_PROXY.",
        )
    if isinstance(error, OSError):
        return (
            FailureReason.BAD_SETTING,
            f"{error.filename or 'a file'} cannot be read: {error.strerror or 'unreadable'}.",
        )
    return (
        FailureReason.UNEXPECTED,
        f"{reference.vault} does not reply like a key vault; check the vault's name or URL.",
    )


def _classify_refusal(status: int, code: str, text: str, reference: SecretReference) -> tuple[FailureReason, str]:
    """Classify an error reply of the vault.

    ``code`` is its innermost error code.
    """
    vault = reference.vault.partition(".")[0]
    if status == 404:
        missing = "no such version" if reference.pinned else "no such secret"
        hint = f"see `az keyvault secret list --vault-name {vault}`; a deleted secret can be recovered"
        return FailureReason.MISSING, f"the vault has {missing}; {hint}."
    if status == 403 and code == "SecretDisabled":
        return (
            FailureReason.DISABLED,
            f"disabled; enable the secret: {set_attributes_command(reference)} --enabled true",
        )
    if status == 403 and (code in _FIREWALL_CODES or "Client address is not authorized" in text):
        hint = "add this network to the vault's firewall, or use its private endpoint"
        return FailureReason.FIREWALL, f"the vault is closed to this network ({code}); {hint}."
    if status == 403:
        # The text names the object id of the identity, which the role assignment needs.
        match = re.search(r"\boid=([0-9a-fA-F-]{36})", text)
        assignee = match[1] if match else "<object id>"
        command = (
            f'az role assignment create --role "Key Vault Secrets User" --assignee {assignee}'
            f' --scope "$(az keyvault show --name {vault} --query id --output tsv)"'
        )
        return FailureReason.FORBIDDEN, (
            "the identity may not read the secret. Grant the role Key Vault Secrets User, effective within minutes"
            f" (or, for a vault with access policies, the secret permission Get): {command}"
        )
    if status == 401 and "AKV10032" in text:
        return (
            FailureReason.WRONG_TENANT,
            "the identity is not of the vault's tenant; use an identity of that tenant.",
        )
    if status == 401:
        return FailureReason.LOGIN_REFUSED, f"the vault does not accept the identity's token ({code})."
    if status == 429:
        return FailureReason.THROTTLED, "the vault throttles: too many requests; let fewer tasks start at once."
    if status == 408 or status >= 500:
        return FailureReason.UNAVAILABLE, f"the vault fails with status {status}; retry later."
    return FailureReason.UNEXPECTED, f"unexpected status {status} of the vault ({code or 'no code'})."


_FIREWALL_CODES: Final = frozenset({"ForbiddenByFirewall", "ForbiddenByConnection"})

_LOGIN_CODES: Final[Mapping[str, tuple[FailureReason, str]]] = {
    "7000215": (FailureReason.LOGIN_REFUSED, "the client secret is wrong; set the secret's value, not its id"),
    "7000222": (FailureReason.LOGIN_REFUSED, "the client secret has expired; create a new secret"),
    "700016": (FailureReason.LOGIN_REFUSED, "the tenant has no application with the client id; check both ids"),
    "700027": (
        FailureReason.LOGIN_REFUSED,
        "the application does not have the certificate; add the certificate there",
    ),
    "70021": (
        FailureReason.LOGIN_REFUSED,
        "no federated credential of the application matches issuer, subject and audience",
    ),
    "700211": (FailureReason.LOGIN_REFUSED, "no federated credential of the application matches the token's issuer"),
    "700212": (FailureReason.LOGIN_REFUSED, "no federated credential of the application matches the token's audience"),
    "700213": (FailureReason.LOGIN_REFUSED, "no federated credential of the application matches the token's subject"),
    "90002": (FailureReason.WRONG_TENANT, "the cloud has no such tenant; check tenant id and cloud"),
    "90033": (FailureReason.UNAVAILABLE, "the login service is temporarily unavailable"),
    "90055": (FailureReason.THROTTLED, "the login service throttles the tenant"),
}
"""Reasons and causes by error code of Microsoft Entra (AADSTS…)."""


def _classify_login_failure(
    text: str, reference: SecretReference, identity: AzureIdentity
) -> tuple[FailureReason, str]:
    """Classify a failed login, from the text of the exception."""
    client = f" {identity.client_id}" if identity.client_id else ""
    login = f"the login ({identity.credential_type.label}{client}) failed"
    if match := re.search(r"acquire tokens for tenant ([0-9A-Za-z.-]*[0-9A-Za-z])", text):
        own_tenant = f"tenant {identity.tenant_id}" if identity.tenant_id else "another tenant"
        return (
            FailureReason.WRONG_TENANT,
            f"the vault belongs to tenant {match[1]}, the identity to {own_tenant}; use one of the vault's tenant.",
        )
    if "Unable to get authority configuration" in text:
        hint = "check tenant id and cloud"
        return (
            FailureReason.WRONG_TENANT,
            f"{login}: the login service does not know the tenant {identity.tenant_id or 'of the login'}; {hint}.",
        )
    if match := re.search(r"AADSTS([0-9]+)", text):
        reason, cause = _LOGIN_CODES.get(match[1], (FailureReason.LOGIN_REFUSED, "refused by Microsoft Entra"))
        return reason, f"{login}: {cause} (AADSTS{match[1]}, https://login.microsoftonline.com/error?code={match[1]})."
    if (network := _classify_network_failure(text, reference)) is not None:
        return network[0], f"{login}: {network[1]}"
    if "authentication unavailable" not in text:
        return FailureReason.UNAVAILABLE, f"{login}: the login service sent neither a token nor a reason; retry later."
    if identity.credential_type is CredentialType.MANAGED_IDENTITY:
        missing = f"has no managed identity {identity.client_id}" if identity.client_id else "has no managed identity"
        return FailureReason.NO_IDENTITY, f"{login}: this machine {missing}, or its identity service does not answer."
    hint = (
        "assign a managed or workload identity to this machine, set AZURE_CLIENT_ID, AZURE_TENANT_ID and"
        " AZURE_CLIENT_SECRET, or set the identity in the connection"
    )
    return FailureReason.NO_IDENTITY, f"{login}: no Azure credential is available; {hint}."


def _classify_network_failure(text: str, reference: SecretReference) -> tuple[FailureReason, str] | None:
    """Classify a network failure by text; None for other failures."""
    match = re.search(r"host='([^']+)'", text)
    host = match[1] if match else reference.vault
    if "CERTIFICATE_VERIFY_FAILED" in text or "CA certificate bundle" in text:
        hint = "REQUESTS_CA_BUNDLE names the file of trusted certificates, such as those of a TLS-inspecting proxy"
        return FailureReason.UNTRUSTED, f"the certificate of {host} is not trusted; {hint}."
    if "Failed to resolve" in text:
        hint = "check the vault's name and cloud, and DNS (a private endpoint needs its private zone)"
        return FailureReason.UNREACHABLE, f"the name {host} cannot be resolved; {hint}."
    if re.search(r"Failed to establish a new connection|timed out|Connection (aborted|refused|broken)|proxy", text):
        return FailureReason.UNREACHABLE, f"{host} cannot be reached; check network, firewall and HTTPS_PROXY."
    return None


def credential_problem(error: Exception, identity: AzureIdentity) -> str:
    """Return a message for a credential that cannot be created."""
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'} cannot be read: {error.strerror or 'unreadable'}."
    if identity.credential_type is CredentialType.CERTIFICATE:
        expected = "PEM or base64 of PKCS#12, with its RSA private key, and the right password"
        return f"the client certificate cannot be used; expected {expected}."
    if identity.credential_type is CredentialType.WORKLOAD_IDENTITY:
        names = "AZURE_FEDERATED_TOKEN_FILE, AZURE_CLIENT_ID, AZURE_TENANT_ID"
        return f"workload identity is not set up; the environment of the pod must have {names}."
    return f"the login ({identity.credential_type.label}) is invalid: check tenant id, authority and cloud."


def set_attributes_command(reference: SecretReference) -> str:
    """Return the start of a command to change a secret's attributes."""
    version = f" --version {reference.version}" if reference.version else ""
    name = f"--vault-name {reference.vault.partition('.')[0]} --name {reference.name}"
    return f"az keyvault secret set-attributes {name}{version}"
