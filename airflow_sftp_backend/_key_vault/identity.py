"""Parse fields into an `AzureIdentity`, and create its credential.

Importing this module does not import the Azure SDKs. The SDKs read AZURE_AUTHORITY_HOST (the login service),
REQUESTS_CA_BUNDLE (trusted certificates), HTTPS_PROXY, NO_PROXY and the variables of DefaultAzureCredential from the
environment.
"""

from __future__ import annotations

import base64
import enum
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from airflow_sftp_backend.backend import Secret

from .login_record import RecordedCredential, record_login_reply, record_request

if TYPE_CHECKING:
    from azure.identity import (
        CertificateCredential,
        ClientSecretCredential,
        DefaultAzureCredential,
        ManagedIdentityCredential,
        WorkloadIdentityCredential,
    )

    _Credential: TypeAlias = (
        CertificateCredential
        | ClientSecretCredential
        | DefaultAzureCredential
        | ManagedIdentityCredential
        | WorkloadIdentityCredential
    )

__all__ = [
    "CLOUDS",
    "PUBLIC",
    "AzureIdentity",
    "Cloud",
    "CredentialType",
    "InvalidIdentity",
    "client_options",
    "create_credential",
]

_http_log: Final = logging.getLogger(f"{__name__}.http")
"""Logger of the SDKs' HTTP requests. The SDKs log every request with its headers at level INFO."""
if _http_log.level == logging.NOTSET:
    _http_log.setLevel(logging.WARNING)


class Cloud(NamedTuple):
    """Domain of a cloud's vaults, and host of its login service."""

    vaults: str
    authority: str


PUBLIC: Final = "AzurePublicCloud"
CLOUDS: Final[Mapping[str, Cloud]] = {
    PUBLIC: Cloud("vault.azure.net", "login.microsoftonline.com"),
    "AzureUSGovernment": Cloud("vault.usgovcloudapi.net", "login.microsoftonline.us"),
    "AzureChinaCloud": Cloud("vault.azure.cn", "login.chinacloudapi.cn"),
}
"""Clouds by the value of ``cloud_environment`` in Airflow's azure connection."""


class InvalidIdentity(ValueError):
    """Report invalid fields of an identity.

    :param problems: one text for each problem
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return f"Azure identity: {'; '.join(self.problems)}"


class CredentialType(enum.Enum):
    """Type of login."""

    DEFAULT = "default"
    """DefaultAzureCredential: environment, workload identity, managed identity, a developer's login."""
    CLIENT_SECRET = "client_secret"  # noqa: S105 - the name of a type
    CERTIFICATE = "certificate"
    MANAGED_IDENTITY = "managed_identity"
    WORKLOAD_IDENTITY = "workload_identity"

    @property
    def label(self) -> str:
        """Words for messages."""
        return self.value.replace("_", " ")


@dataclass(frozen=True, kw_only=True)
class AzureIdentity:
    """Identity for the login to a vault. Equal identities share a credential.

    :ivar client_id: client id of the application; for `CredentialType.DEFAULT`, of the managed identity
    :ivar tenant_id: tenant of the application; for `CredentialType.DEFAULT`, of the workload identity
    :ivar certificate: certificate with its RSA private key, PEM or base64 of PKCS#12, as exported by Key Vault
    :ivar cloud: key of `CLOUDS`
    :ivar authority: host or URL of a login service
    """

    credential_type: CredentialType = CredentialType.DEFAULT
    tenant_id: str | None = None
    client_id: str | None = None
    client_secret: Secret | None = None
    certificate: Secret | None = None
    certificate_path: str | None = None
    certificate_password: Secret | None = None
    cloud: str | None = None
    authority: str | None = None

    @classmethod
    def from_fields(cls, fields: Mapping[str, object]) -> AzureIdentity:
        """Parse fields with the names of Airflow's azure connection and AzureKeyVaultBackend.

        These are ``login`` or ``client_id``; ``password`` or ``client_secret``; ``tenantId`` or ``tenant_id``;
        ``managed_identity_client_id``; ``workload_identity_tenant_id``; ``cloud_environment``. Additional names are
        ``certificate_data``, ``certificate_path``, ``certificate_password``, ``authority``, and ``credential``, a value
        of `CredentialType`. Without ``credential``, the fields decide, in this order: a certificate; a client secret; a
        managed identity without a workload identity; a workload identity without a managed identity; otherwise
        DefaultAzureCredential, which gets both identities if both are set.

        :param fields: values by name; null and blank values and other names are ignored
        :raises InvalidIdentity: with all problems
        """
        values = {name: value for name, value in fields.items() if _is_set(value)}
        problems = [
            f"{name}: expected text"
            for name, types in _FIELD_TYPES.items()
            if not isinstance(values.get(name, ""), types)
        ]
        if values.keys() & {"key_path", "key_json"}:
            problems.append("key_path and key_json are not supported: set login, password and tenantId instead")
        credential_type = _parse_credential_type(values, problems)
        text = {name: _stripped(values[name]) for name in _FIELD_TYPES if name in values}
        client_id, tenant_id = _client_and_tenant_id(credential_type, text)
        has_secret = credential_type is CredentialType.CLIENT_SECRET
        has_certificate = credential_type is CredentialType.CERTIFICATE
        identity = cls(
            credential_type=credential_type,
            client_id=client_id,
            tenant_id=tenant_id,
            client_secret=_first_secret(values, "password", "client_secret") if has_secret else None,
            certificate=_first_secret(values, "certificate_data") if has_certificate else None,
            certificate_path=text.get("certificate_path") if has_certificate else None,
            certificate_password=_first_secret(values, "certificate_password") if has_certificate else None,
            cloud=_cloud(text.get("cloud_environment"), problems),
            authority=_authority(text.get("authority"), problems),
        )
        if missing := _missing_fields(identity):
            problems.append(f"a login by {credential_type.label} also needs {' and '.join(missing)}")
        if problems:
            raise InvalidIdentity(*problems)
        return identity

    def authority_for(self, vault_url: str) -> str | None:
        """Return the login service for a vault; None for the public cloud.

        The order is ``authority``, ``cloud``, the sovereign cloud of the vault's URL, AZURE_AUTHORITY_HOST.
        """
        if self.authority is not None:
            return self.authority
        if self.cloud is not None:
            return CLOUDS[self.cloud].authority
        host = urlsplit(vault_url).hostname or ""
        for name, cloud in CLOUDS.items():
            if name != PUBLIC and host.endswith(f".{cloud.vaults}"):
                return cloud.authority
        return os.environ.get("AZURE_AUTHORITY_HOST") or None


# ---- reading fields --------------------------------------------------------------------------------------------------

_FIELD_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    **dict.fromkeys(("login", "client_id", "tenantId", "tenant_id", "managed_identity_client_id"), (str,)),
    **dict.fromkeys(("workload_identity_tenant_id", "cloud_environment", "authority", "credential"), (str,)),
    **dict.fromkeys(("password", "client_secret", "certificate_data", "certificate_password"), (str, Secret)),
    "certificate_path": (str,),
}


def _is_set(value: object) -> bool:
    return value is not None and bool(value.strip() if isinstance(value, str) else value)


def _stripped(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _first_secret(values: Mapping[str, object], *names: str) -> Secret | None:
    present_values = [values[name] for name in names if name in values]
    return next((Secret.of(value) for value in present_values if isinstance(value, str | Secret)), None)


def _parse_credential_type(values: Mapping[str, object], problems: list[str]) -> CredentialType:
    if "credential" in values:
        for credential_type in CredentialType:
            if credential_type.value == _stripped(values["credential"]).lower():
                return credential_type
        problems.append(
            f"credential: expected one of {', '.join(credential_type.value for credential_type in CredentialType)}"
        )
    if values.keys() & {"certificate_data", "certificate_path"}:
        return CredentialType.CERTIFICATE
    if values.keys() & {"password", "client_secret"}:
        return CredentialType.CLIENT_SECRET
    is_managed, is_workload = "managed_identity_client_id" in values, "workload_identity_tenant_id" in values
    if is_managed and not is_workload:
        return CredentialType.MANAGED_IDENTITY
    return CredentialType.WORKLOAD_IDENTITY if is_workload and not is_managed else CredentialType.DEFAULT


def _client_and_tenant_id(credential_type: CredentialType, text: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Return the ids of a type of login."""
    client_id, tenant_id = text.get("login", text.get("client_id")), text.get("tenantId", text.get("tenant_id"))
    managed_client_id, workload_tenant_id = (
        text.get("managed_identity_client_id"),
        text.get("workload_identity_tenant_id"),
    )
    match credential_type:
        case CredentialType.DEFAULT:
            return managed_client_id, workload_tenant_id
        case CredentialType.MANAGED_IDENTITY:
            return managed_client_id or client_id, None
        case CredentialType.WORKLOAD_IDENTITY:
            return managed_client_id or client_id, workload_tenant_id or tenant_id
        case CredentialType.CLIENT_SECRET | CredentialType.CERTIFICATE:
            return client_id, tenant_id


def _cloud(value: str | None, problems: list[str]) -> str | None:
    if value is None:
        return None
    for name in CLOUDS:
        if name.lower() == value.lower():
            return name
    problems.append(f"cloud_environment {value!r}: expected one of {', '.join(CLOUDS)}")
    return None


def _authority(value: str | None, problems: list[str]) -> str | None:
    if value is not None and "://" in value and not value.lower().startswith("https://"):
        problems.append(f"authority {value!r}: expected a host, or https:// and a host")
    return value


def _missing_fields(identity: AzureIdentity) -> list[str]:
    """Return the missing fields of the credential type."""
    required: dict[str, object] = {}
    if identity.credential_type in (CredentialType.CLIENT_SECRET, CredentialType.CERTIFICATE):
        required = {"a client id (login)": identity.client_id, "a tenant id (tenantId)": identity.tenant_id}
    if identity.credential_type is CredentialType.CLIENT_SECRET:
        required["a client secret (password)"] = identity.client_secret
    if identity.credential_type is CredentialType.CERTIFICATE:
        required["certificate_data or certificate_path"] = identity.certificate or identity.certificate_path
    return [name for name, value in required.items() if not value]


# ---- logging in ------------------------------------------------------------------------------------------------------


def client_options(timeout: float) -> dict[str, Any]:
    """Return the arguments of every SDK client: time limits, logger and hook."""
    return {
        "connection_timeout": timeout,
        "read_timeout": timeout,
        "logger": _http_log,
        "raw_request_hook": record_request,
    }


def create_credential(identity: AzureIdentity, vault_url: str, *, timeout: float) -> RecordedCredential:
    """Create a credential for a vault.

    Opens no connection; the caller closes the credential.

    The credential does not retry, except that a managed identity keeps the SDK's retries.

    :param identity: the identity for the login
    :param vault_url: URL of the vault
    :param timeout: longest time in seconds to connect, and for each read
    :raises ValueError: if a value is invalid
    :raises OSError: if a file cannot be read
    """
    from azure.identity import DefaultAzureCredential

    credential = _create_sdk_credential(identity, vault_url, timeout)
    if isinstance(credential, DefaultAzureCredential):
        credential.credentials = tuple(RecordedCredential(member) for member in credential.credentials)
    return RecordedCredential(credential)


def _create_sdk_credential(identity: AzureIdentity, vault_url: str, timeout: float) -> _Credential:
    from azure import identity as azure

    client_kwargs = client_options(timeout) | {"raw_response_hook": record_login_reply}
    authority = identity.authority_for(vault_url)
    if authority is not None:
        client_kwargs["authority"] = authority
        # Microsoft's instance discovery does not know private login services.
        client_kwargs["disable_instance_discovery"] = (
            authority.removeprefix("https://").rstrip("/") not in _KNOWN_AUTHORITIES
        )
    ids = {"client_id": identity.client_id, "tenant_id": identity.tenant_id}
    match identity.credential_type:
        case CredentialType.DEFAULT:
            return azure.DefaultAzureCredential(**client_kwargs, **_default_ids(identity))
        case CredentialType.MANAGED_IDENTITY:
            return azure.ManagedIdentityCredential(client_id=identity.client_id, read_timeout=timeout, logger=_http_log)
        case CredentialType.WORKLOAD_IDENTITY:
            return azure.WorkloadIdentityCredential(**ids, **client_kwargs, retry_total=0)
        case CredentialType.CLIENT_SECRET:
            assert identity.client_secret is not None
            return azure.ClientSecretCredential(
                **_none_as_empty(ids), client_secret=identity.client_secret.reveal(), **client_kwargs, retry_total=0
            )
        case CredentialType.CERTIFICATE:
            return azure.CertificateCredential(
                **_none_as_empty(ids),
                **_certificate(identity),
                **client_kwargs,
                retry_total=0,
                # An application that trusts issuer and name then accepts a renewed certificate without a change.
                send_certificate_chain=True,
            )


_KNOWN_AUTHORITIES: Final = frozenset(cloud.authority for cloud in CLOUDS.values())


def _none_as_empty(ids: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value or "" for name, value in ids.items()}


def _default_ids(identity: AzureIdentity) -> dict[str, Any]:
    """Return the ids for DefaultAzureCredential."""
    # Ids that are not set are omitted: None would override AZURE_CLIENT_ID and AZURE_TENANT_ID.
    client_kwargs: dict[str, Any] = {}
    if identity.client_id:
        client_kwargs["managed_identity_client_id"] = identity.client_id
    if identity.tenant_id:
        client_kwargs["workload_identity_tenant_id"] = identity.tenant_id
        client_kwargs["additionally_allowed_tenants"] = [identity.tenant_id]
    return client_kwargs


def _certificate(identity: AzureIdentity) -> dict[str, Any]:
    password = identity.certificate_password.reveal() if identity.certificate_password else None
    if identity.certificate is None:
        return {"certificate_path": identity.certificate_path, "password": password}
    text = identity.certificate.reveal()
    data = text.encode() if "-----BEGIN" in text else base64.b64decode("".join(text.split()), validate=True)
    return {"certificate_data": data, "password": password}
