"""Classify the errors of the Azure SDKs. Of their texts only codes, names and ids are passed on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from .errors import Reason
from .identity import AzureIdentity, CredentialType
from .references import SecretReference


def classify_sdk_error(error: Exception, reference: SecretReference, identity: AzureIdentity) -> tuple[Reason, str]:
    """What an exception of the SDKs means. Of its text only codes, names and ids are passed on."""
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
        if isinstance(error, ClientAuthenticationError) and code != "Unauthorized":
            return _classify_login_failure(text, reference, identity)
        inner_code: object = (error.error.innererror or {}).get("code") if error.error is not None else None
        return _classify_refusal(error.status_code or 0, str(inner_code or code or ""), text, reference)
    if (network := _classify_network_failure(text, reference)) is not None:
        return network
    if isinstance(error, ServiceRequestError | ServiceResponseError):
        return Reason.UNREACHABLE, f"{reference.vault} cannot be reached; check network, firewall and HTTPS_PROXY."
    if isinstance(error, OSError):
        return Reason.BAD_SETTING, f"{error.filename or 'a file'} cannot be read: {error.strerror or 'unreadable'}."
    return Reason.UNEXPECTED, f"{reference.vault} does not answer as a key vault does; check the vault's name or URL."


def _classify_refusal(status: int, code: str, text: str, reference: SecretReference) -> tuple[Reason, str]:
    """What the vault's own refusal means; ``code`` is the innermost one it gives."""
    vault = reference.vault.partition(".")[0]
    if status == 404:
        missing = "no such version" if reference.pinned else "no such secret"
        hint = f"see `az keyvault secret list --vault-name {vault}`; a deleted one can be recovered"
        return Reason.MISSING, f"the vault has {missing}; {hint}."
    if status == 403 and code == "SecretDisabled":
        return Reason.DISABLED, f"it is disabled; enable it: {set_attributes_command(reference)} --enabled true"
    if status == 403 and (code in _FIREWALL_CODES or "Client address is not authorized" in text):
        hint = "add this network to the vault's firewall, or use its private endpoint"
        return Reason.FIREWALL, f"the vault is closed to this network ({code}); {hint}."
    if status == 403:
        match = re.search(r"\boid=([0-9a-fA-F-]{36})", text)
        assignee = match[1] if match else "<object id>"
        command = (
            f'az role assignment create --role "Key Vault Secrets User" --assignee {assignee}'
            f' --scope "$(az keyvault show --name {vault} --query id --output tsv)"'
        )
        return Reason.FORBIDDEN, (
            "the identity may not read it. Grant it the role Key Vault Secrets User (where the vault uses access"
            f" policies, the secret permission Get), which takes effect within minutes: {command}"
        )
    if status == 401 and "AKV10032" in text:
        return Reason.WRONG_TENANT, "the identity is of another tenant than the vault; use one of the vault's tenant."
    if status == 401:
        return Reason.LOGIN_REFUSED, f"the vault does not accept the identity's token ({code})."
    if status == 429:
        return Reason.THROTTLED, "the vault throttles: too many requests; let fewer tasks start at once."
    if status == 408 or status >= 500:
        return Reason.UNAVAILABLE, f"the vault fails with status {status}; it may pass."
    return Reason.UNEXPECTED, f"the vault answers with status {status} ({code or 'no code'})."


_FIREWALL_CODES: Final = frozenset({"ForbiddenByFirewall", "ForbiddenByConnection"})

_LOGIN_CODES: Final[Mapping[str, tuple[Reason, str]]] = {
    "7000215": (Reason.LOGIN_REFUSED, "the client secret is wrong; what is wanted is its value, not its id"),
    "7000222": (Reason.LOGIN_REFUSED, "the client secret has expired; make a new one"),
    "700016": (Reason.LOGIN_REFUSED, "the tenant has no application of that client id; check both ids"),
    "700027": (Reason.LOGIN_REFUSED, "the certificate is none of the application's; add it there, or give another"),
    "70021": (Reason.LOGIN_REFUSED, "no federated credential of the application fits issuer, subject and audience"),
    "700211": (Reason.LOGIN_REFUSED, "no federated credential of the application fits the token's issuer"),
    "700212": (Reason.LOGIN_REFUSED, "no federated credential of the application fits the token's audience"),
    "700213": (Reason.LOGIN_REFUSED, "no federated credential of the application fits the token's subject"),
    "90002": (Reason.WRONG_TENANT, "there is no such tenant in this cloud; check tenant id and cloud"),
    "90033": (Reason.UNAVAILABLE, "the login service fails for the moment"),
    "90055": (Reason.THROTTLED, "the login service throttles the tenant"),
}
"""Error codes of Microsoft Entra (AADSTS…) with a cure of their own."""


def _classify_login_failure(text: str, reference: SecretReference, identity: AzureIdentity) -> tuple[Reason, str]:
    """Why there is no token for the vault."""
    login_name = identity.credential_type.value.replace("_", " ") + (
        f" {identity.client_id}" if identity.client_id else ""
    )
    login = f"the login ({login_name}) failed"
    if match := re.search(r"acquire tokens for tenant ([0-9A-Za-z.-]*[0-9A-Za-z])", text):
        own_tenant = f"tenant {identity.tenant_id}" if identity.tenant_id else "another tenant"
        return (
            Reason.WRONG_TENANT,
            f"the vault is of tenant {match[1]}, the identity of {own_tenant}; use one of the vault's.",
        )
    if "Unable to get authority configuration" in text:
        hint = "check tenant id and cloud"
        return (
            Reason.WRONG_TENANT,
            f"{login}: the login service knows no tenant {identity.tenant_id or 'here'}; {hint}.",
        )
    if match := re.search(r"AADSTS([0-9]+)", text):
        reason, cause = _LOGIN_CODES.get(match[1], (Reason.LOGIN_REFUSED, "Microsoft Entra refuses it"))
        return reason, f"{login}: {cause} (AADSTS{match[1]}, https://login.microsoftonline.com/error?code={match[1]})."
    if (network := _classify_network_failure(text, reference)) is not None:
        return network[0], f"{login}: {network[1]}"
    if "authentication unavailable" not in text:
        return Reason.UNAVAILABLE, f"{login}: the login service gave no token and no reason; it may pass."
    if identity.credential_type is CredentialType.MANAGED_IDENTITY:
        missing = f"has no managed identity {identity.client_id}" if identity.client_id else "has no managed identity"
        return Reason.NO_IDENTITY, f"{login}: this machine {missing}, or its identity service does not answer."
    hint = (
        "assign a managed or workload identity, set AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET, or give"
    )
    return Reason.NO_IDENTITY, f"{login}: there is nothing to log in with here; {hint} the identity in the connection."


def _classify_network_failure(text: str, reference: SecretReference) -> tuple[Reason, str] | None:
    """What a text of the HTTP client means for the network; None if it says nothing of it."""
    match = re.search(r"host='([^']+)'", text)
    host = match[1] if match else reference.vault
    if "CERTIFICATE_VERIFY_FAILED" in text or "CA certificate bundle" in text:
        hint = "REQUESTS_CA_BUNDLE names the file of certificates to trust, such as those of a proxy that inspects TLS"
        return Reason.UNTRUSTED, f"the certificate of {host} is not trusted here; {hint}."
    if "Failed to resolve" in text:
        hint = "check the vault's name and cloud, and DNS (a private endpoint needs its private zone)"
        return Reason.UNREACHABLE, f"the name {host} cannot be resolved; {hint}."
    if re.search(r"Failed to establish a new connection|timed out|Connection (aborted|refused|broken)|proxy", text):
        return Reason.UNREACHABLE, f"{host} cannot be reached; check network, firewall and HTTPS_PROXY."
    return None


def credential_problem(error: Exception, identity: AzureIdentity) -> str:
    """Why no credential can be made of an identity."""
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'} cannot be read: {error.strerror or 'unreadable'}."
    if identity.credential_type is CredentialType.CERTIFICATE:
        expected = "PEM or PKCS#12 (in base64), with its RSA private key, and a password that fits"
        return f"the client certificate cannot be used; wanted is {expected}."
    if identity.credential_type is CredentialType.WORKLOAD_IDENTITY:
        names = "AZURE_FEDERATED_TOKEN_FILE, AZURE_CLIENT_ID, AZURE_TENANT_ID"
        return f"workload identity is not set up here; a pod that has it has {names} in its environment."
    login = identity.credential_type.value.replace("_", " ")
    return f"the login ({login}) cannot be made: check tenant id, authority and cloud."


def set_attributes_command(reference: SecretReference) -> str:
    """The beginning of a command that changes a secret's attributes."""
    version = f" --version {reference.version}" if reference.version else ""
    name = f"--vault-name {reference.vault.partition('.')[0]} --name {reference.name}"
    return f"az keyvault secret set-attributes {name}{version}"
