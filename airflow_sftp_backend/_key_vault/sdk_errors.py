"""Classify the errors of the Azure SDKs by types, statuses and codes.

The vault publishes some details only in a text. They select the hint, never whether a retry helps. Messages for users
contain only codes, names and ids from these texts: other parts may hold tokens.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from .errors import FailureReason
from .identity import AzureIdentity, CredentialType
from .login_record import LoginRecord, LoginRefusal
from .references import SecretReference

if TYPE_CHECKING:
    from azure.core.exceptions import HttpResponseError


def classify_sdk_error(
    error: Exception, record: LoginRecord, reference: SecretReference, identity: AzureIdentity
) -> tuple[FailureReason, str]:
    """Return the reason of an SDK's exception and a message for users.

    :param error: the exception
    :param record: the record of the fetch
    :param reference: the requested secret
    :param identity: the identity of the login
    """
    from azure.core.exceptions import DecodeError, HttpResponseError

    if record.error is not None:
        return _classify_login_failure(record.error, record, identity)
    if isinstance(error, HttpResponseError) and not isinstance(error, DecodeError):
        return _classify_refusal(error, reference)
    if (network := _classify_network_failure(error, record.host or reference.vault)) is not None:
        return network
    if isinstance(error, OSError):
        return (
            FailureReason.BAD_SETTING,
            f"{error.filename or 'a file'} cannot be read: {error.strerror or 'unreadable'}.",
        )
    return (
        FailureReason.UNEXPECTED,
        f"{reference.vault} does not reply like a key vault; check the vault's name or URL.",
    )


def _classify_refusal(error: HttpResponseError, reference: SecretReference) -> tuple[FailureReason, str]:
    """Classify an error reply of the vault."""
    status = error.status_code or 0
    code, text = "", ""
    if error.error is not None:
        # The inner code is the precise one, such as ForbiddenByRbac inside Forbidden.
        code = str((error.error.innererror or {}).get("code") or error.error.code or "")
        text = error.error.message or ""
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
    if status == 403 and code in _FIREWALL_CODES:
        hint = "add this network to the vault's firewall, or use its private endpoint"
        return FailureReason.FIREWALL, f"the vault is closed to this network ({code}); {hint}."
    if status == 403:
        # Only the text names the object id of the identity, which the command needs.
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
    # Key Vault has one code for all refused tokens; only the text tells a token of another tenant (AKV10032).
    if status == 401 and text.startswith("AKV10032"):
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


_TEMPORARY_OAUTH_ERRORS: Final = frozenset({"temporarily_unavailable", "server_error"})


def _classify_login_failure(
    error: Exception, record: LoginRecord, identity: AzureIdentity
) -> tuple[FailureReason, str]:
    """Classify a failed login."""
    from azure.identity import CredentialUnavailableError

    client = f" {identity.client_id}" if identity.client_id else ""
    login = f"the login ({identity.credential_type.label}{client}) failed"
    # A managed identity has no other secret or setting that could be wrong.
    if identity.credential_type is CredentialType.MANAGED_IDENTITY:
        missing = f"has no managed identity{client}"
        return FailureReason.NO_IDENTITY, f"{login}: this machine {missing}, or its identity service does not answer."
    if isinstance(error, CredentialUnavailableError):
        hint = (
            "assign a managed or workload identity to this machine, set AZURE_CLIENT_ID, AZURE_TENANT_ID and"
            " AZURE_CLIENT_SECRET, or set the identity in the connection"
        )
        return FailureReason.NO_IDENTITY, f"{login}: no Azure credential is available; {hint}."
    if (network := _classify_network_failure(error, record.host or "the login service")) is not None:
        return network[0], f"{login}: {network[1]}"
    own_tenant = identity.tenant_id or os.environ.get("AZURE_TENANT_ID")
    if record.refusal is not None:
        reason, cause = _classify_login_refusal(record.refusal, own_tenant or "of the login")
        return reason, f"{login}: {cause}."
    if own_tenant and record.vault_tenant not in (None, own_tenant):  # the SDK refuses this without a request
        tenants = f"the vault belongs to tenant {record.vault_tenant}, the identity to tenant {own_tenant}"
        return FailureReason.WRONG_TENANT, f"{tenants}; use one of the vault's tenant."
    # MSAL repeats a refusal from its cache, as text only, to a thread that logs in at the same time. The next attempt
    # has a new client and gets a reply, so the text changes the hint only.
    repeated = re.search(r"AADSTS([0-9]+)", str(error))
    hint = f"the last reply was {_aadsts(repeated[1])}" if repeated else "retry later"
    return FailureReason.UNAVAILABLE, f"{login}: the login service sent neither a token nor a reason; {hint}."


def _classify_login_refusal(refusal: LoginRefusal, tenant: str) -> tuple[FailureReason, str]:
    """Classify an error reply of the login service."""
    known = [code for code in refusal.codes if code in _LOGIN_CODES]
    if known:
        reason, cause = _LOGIN_CODES[known[0]]
        return reason, f"{cause} ({_aadsts(known[0])})"
    if refusal.status == 429:
        return FailureReason.THROTTLED, "the login service throttles: too many requests"
    if refusal.status >= 500 or refusal.error in _TEMPORARY_OAUTH_ERRORS:
        return FailureReason.UNAVAILABLE, f"the login service fails with status {refusal.status}; retry later"
    if refusal.is_discovery:
        return (
            FailureReason.WRONG_TENANT,
            f"the login service does not know the tenant {tenant}; check tenant id and cloud",
        )
    if refusal.codes:
        return FailureReason.LOGIN_REFUSED, f"refused by Microsoft Entra ({_aadsts(refusal.codes[0])})"
    if refusal.error:
        return FailureReason.LOGIN_REFUSED, f"refused by the login service ({refusal.error})"
    return (
        FailureReason.UNAVAILABLE,
        f"the login service replies with status {refusal.status} and no reason; retry later",
    )


def _aadsts(code: str) -> str:
    return f"AADSTS{code}, https://login.microsoftonline.com/error?code={code}"


def _classify_network_failure(error: Exception, host: str) -> tuple[FailureReason, str] | None:
    """Classify a network failure by the exceptions behind ``error``.

    The result is None for other failures.
    """
    from azure.core.exceptions import ServiceRequestError, ServiceResponseError

    causes = [*_causes(error)]
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            openssl_reason = cause.verify_message
            message = f"the certificate of {host} is not trusted ({openssl_reason}); {_CA_BUNDLE_HINT}."
            return FailureReason.UNTRUSTED, message
    # requests raises a bare OSError without an error number for a missing file of certificates.
    if any(type(cause) is OSError and cause.errno is None for cause in causes):
        return FailureReason.UNTRUSTED, f"the certificate of {host} cannot be verified; {_CA_BUNDLE_HINT}."
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        hint = "check the vault's name and cloud, and DNS (a private endpoint needs its private zone)"
        return FailureReason.UNREACHABLE, f"the name {host} cannot be resolved; {hint}."
    if any(isinstance(cause, ServiceRequestError | ServiceResponseError) for cause in causes):
        return FailureReason.UNREACHABLE, f"{host} cannot be reached; check network, firewall and HTTPS_PROXY."
    return None


_CA_BUNDLE_HINT: Final = (
    "REQUESTS_CA_BUNDLE names the file of trusted certificates, such as those of a TLS-inspecting proxy"
)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and all exceptions behind it."""
    pending: list[object] = [error]
    known: set[int] = set()
    while pending:
        cause = pending.pop()
        if isinstance(cause, BaseException) and id(cause) not in known:
            known.add(id(cause))
            yield cause
            # urllib3 and requests wrap an exception as an argument, azure-core as `inner_exception`.
            pending += [cause.__cause__, cause.__context__, getattr(cause, "inner_exception", None), *cause.args]


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
