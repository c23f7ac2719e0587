"""Who asks a key vault: the fields of a connection -> `AzureIdentity` -> a credential of azure-identity.

Importing this module loads no azure. The process's environment counts as it does for the SDKs: AZURE_AUTHORITY_HOST
(the login service), REQUESTS_CA_BUNDLE (certificates to trust), HTTPS_PROXY, NO_PROXY, and what DefaultAzureCredential
and the credentials it consists of read.
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

if TYPE_CHECKING:
    from azure.identity import (
        CertificateCredential,
        ClientSecretCredential,
        DefaultAzureCredential,
        ManagedIdentityCredential,
        WorkloadIdentityCredential,
    )

    Credential: TypeAlias = (
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
"""The SDKs' requests with their headers, on the level INFO: more than a task's log is for."""
if _http_log.level == logging.NOTSET:
    _http_log.setLevel(logging.WARNING)


class Cloud(NamedTuple):
    """The domain of a cloud's vaults, and the host of its login service."""

    vaults: str
    authority: str


PUBLIC: Final = "AzurePublicCloud"
CLOUDS: Final[Mapping[str, Cloud]] = {
    PUBLIC: Cloud("vault.azure.net", "login.microsoftonline.com"),
    "AzureUSGovernment": Cloud("vault.usgovcloudapi.net", "login.microsoftonline.us"),
    "AzureChinaCloud": Cloud("vault.azure.cn", "login.chinacloudapi.cn"),
}
"""By the names that ``cloud_environment`` has in Airflow's azure connection."""


class InvalidIdentity(ValueError):
    """Fields that cannot mean an identity. ``problems`` holds all that is wrong, one text each."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return f"Azure identity: {'; '.join(self.problems)}"


class CredentialType(enum.Enum):
    """How an identity logs in."""

    DEFAULT = "default"
    """DefaultAzureCredential: environment, workload identity, managed identity, a developer's login."""
    CLIENT_SECRET = "client_secret"  # noqa: S105 - the name of a type
    CERTIFICATE = "certificate"
    MANAGED_IDENTITY = "managed_identity"
    WORKLOAD_IDENTITY = "workload_identity"


@dataclass(frozen=True, kw_only=True)
class AzureIdentity:
    """Who asks a vault. Equal ones share a credential.

    ``certificate`` is PEM, or PKCS#12 in base64 as Key Vault exports it, with its RSA private key. ``cloud`` is a key
    of `CLOUDS`; ``authority`` the host or URL of a login service. For `CredentialType.DEFAULT`, ``client_id`` is that
    of the managed identity and ``tenant_id`` that of the workload identity.
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
        """By the names of Airflow's azure connection and of the arguments of its AzureKeyVaultBackend.

        ``login`` or ``client_id``; ``password`` or ``client_secret``; ``tenantId`` or ``tenant_id``;
        ``managed_identity_client_id``; ``workload_identity_tenant_id``; ``cloud_environment``. Beyond these,
        ``certificate_data``, ``certificate_path``, ``certificate_password``, ``authority``, and ``credential``, a value
        of `CredentialType`. Without the last, what is given decides: a certificate, else a client secret, else a
        managed identity (its client id alone), a workload identity (its tenant alone), else DefaultAzureCredential,
        with both of these where both are given. Null and blank count as not given; other names are ignored.

        :raises InvalidIdentity: with all problems.
        """
        values = {name: value for name, value in fields.items() if _is_set(value)}
        problems = [
            f"{name}: expected text"
            for name, kinds in _FIELD_TYPES.items()
            if not isinstance(values.get(name, ""), kinds)
        ]
        if values.keys() & {"key_path", "key_json"}:
            problems.append("key_path and key_json are not read here: give login, password and tenantId in their place")
        credential_type = _parse_credential_type(values, problems)
        text = {name: _stripped(values[name]) for name in _FIELD_TYPES if name in values}
        client, tenant = text.get("login", text.get("client_id")), text.get("tenantId", text.get("tenant_id"))
        managed, workload = text.get("managed_identity_client_id"), text.get("workload_identity_tenant_id")
        if credential_type is CredentialType.DEFAULT:
            client, tenant = managed, workload
        elif credential_type in (CredentialType.MANAGED_IDENTITY, CredentialType.WORKLOAD_IDENTITY):
            client, tenant = managed or client, workload or tenant
        identity = cls(
            credential_type=credential_type,
            client_id=client,
            tenant_id=None if credential_type is CredentialType.MANAGED_IDENTITY else tenant,
            client_secret=_first_secret(values, "password", "client_secret")
            if credential_type is CredentialType.CLIENT_SECRET
            else None,
            certificate=_first_secret(values, "certificate_data")
            if credential_type is CredentialType.CERTIFICATE
            else None,
            certificate_path=text.get("certificate_path") if credential_type is CredentialType.CERTIFICATE else None,
            certificate_password=_first_secret(values, "certificate_password")
            if credential_type is CredentialType.CERTIFICATE
            else None,
            cloud=_cloud(text.get("cloud_environment"), problems),
            authority=_authority(text.get("authority"), problems),
        )
        if missing := _missing_fields(identity):
            problems.append(f"a login by {credential_type.value.replace('_', ' ')} also needs {' and '.join(missing)}")
        if problems:
            raise InvalidIdentity(*problems)
        return identity

    def authority_for(self, vault_url: str) -> str | None:
        """The login service for a vault: ``authority``, that of ``cloud``, of the sovereign cloud the vault is in, or
        AZURE_AUTHORITY_HOST; None for the public cloud's."""
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
    given = [values[name] for name in names if name in values]
    return next((Secret.of(value) for value in given if isinstance(value, str | Secret)), None)


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
    alone = values.keys() & {"managed_identity_client_id", "workload_identity_tenant_id"}
    if alone == {"managed_identity_client_id"}:
        return CredentialType.MANAGED_IDENTITY
    return CredentialType.WORKLOAD_IDENTITY if alone == {"workload_identity_tenant_id"} else CredentialType.DEFAULT


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
    """What a service principal needs and has not."""
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
    """Arguments of any client of the SDKs: seconds to connect and seconds of silence, and who keeps its log."""
    return {"connection_timeout": timeout, "read_timeout": timeout, "logger": _http_log}


def create_credential(identity: AzureIdentity, vault_url: str, *, timeout: float) -> Credential:
    """A new credential for that vault; nothing connects. The caller closes it.

    It tries once; those that ask a machine's identity service keep the patience the SDK has with it. Raises ValueError
    or OSError where one cannot be made of what is given.
    """
    from azure import identity as azure

    client_kwargs = client_options(timeout)
    authority = identity.authority_for(vault_url)
    if authority is not None:
        client_kwargs["authority"] = authority
        # Microsoft's own directory of login services knows no private one.
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
                send_certificate_chain=True,
            )


_KNOWN_AUTHORITIES: Final = frozenset(cloud.authority for cloud in CLOUDS.values())


def _none_as_empty(ids: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value or "" for name, value in ids.items()}


def _default_ids(identity: AzureIdentity) -> dict[str, Any]:
    """Left out where not given: a null would keep the SDK from AZURE_CLIENT_ID and AZURE_TENANT_ID."""
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
