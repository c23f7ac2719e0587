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

__all__ = ["CLOUDS", "PUBLIC", "AzureIdentity", "Cloud", "CredentialType", "InvalidIdentity", "credential", "transport"]

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

    def __init__(self, *faults: str) -> None:
        super().__init__(*faults)
        self.problems = faults

    def __str__(self) -> str:
        return f"Azure identity: {'; '.join(self.problems)}"


class CredentialType(enum.Enum):
    """How an identity logs in."""

    DEFAULT = "default"
    """DefaultAzureCredential: environment, workload identity, managed identity, a developer's login."""
    CLIENT_SECRET = "client_secret"  # noqa: S105 - the name of a kind
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
        given = {name: value for name, value in fields.items() if _is_given(value)}
        faults = [
            f"{name}: expected text" for name, kinds in _NAMES.items() if not isinstance(given.get(name, ""), kinds)
        ]
        if given.keys() & {"key_path", "key_json"}:
            faults.append("key_path and key_json are not read here: give login, password and tenantId in their place")
        credential_type = _parse_credential_type(given, faults)
        text = {name: _plain(given[name]) for name in _NAMES if name in given}
        client, tenant = text.get("login", text.get("client_id")), text.get("tenantId", text.get("tenant_id"))
        managed, workload = text.get("managed_identity_client_id"), text.get("workload_identity_tenant_id")
        if credential_type is CredentialType.DEFAULT:
            client, tenant = managed, workload
        elif credential_type in (CredentialType.MANAGED_IDENTITY, CredentialType.WORKLOAD_IDENTITY):
            client, tenant = managed or client, workload or tenant
        made = cls(
            credential_type=credential_type,
            client_id=client,
            tenant_id=None if credential_type is CredentialType.MANAGED_IDENTITY else tenant,
            client_secret=_secret(given, "password", "client_secret")
            if credential_type is CredentialType.CLIENT_SECRET
            else None,
            certificate=_secret(given, "certificate_data") if credential_type is CredentialType.CERTIFICATE else None,
            certificate_path=text.get("certificate_path") if credential_type is CredentialType.CERTIFICATE else None,
            certificate_password=_secret(given, "certificate_password")
            if credential_type is CredentialType.CERTIFICATE
            else None,
            cloud=_cloud(text.get("cloud_environment"), faults),
            authority=_authority(text.get("authority"), faults),
        )
        if missing := _missing(made):
            faults.append(f"a login by {credential_type.value.replace('_', ' ')} also needs {' and '.join(missing)}")
        if faults:
            raise InvalidIdentity(*faults)
        return made

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

_NAMES: Final[Mapping[str, tuple[type, ...]]] = {
    **dict.fromkeys(("login", "client_id", "tenantId", "tenant_id", "managed_identity_client_id"), (str,)),
    **dict.fromkeys(("workload_identity_tenant_id", "cloud_environment", "authority", "credential"), (str,)),
    **dict.fromkeys(("password", "client_secret", "certificate_data", "certificate_password"), (str, Secret)),
    "certificate_path": (str,),
}


def _is_given(value: object) -> bool:
    return value is not None and bool(value.strip() if isinstance(value, str) else value)


def _plain(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _secret(given: Mapping[str, object], *names: str) -> Secret | None:
    values = [given[name] for name in names if name in given]
    return next((Secret.of(value) for value in values if isinstance(value, str | Secret)), None)


def _parse_credential_type(given: Mapping[str, object], faults: list[str]) -> CredentialType:
    if "credential" in given:
        for credential_type in CredentialType:
            if credential_type.value == _plain(given["credential"]).lower():
                return credential_type
        faults.append(
            f"credential: expected one of {', '.join(credential_type.value for credential_type in CredentialType)}"
        )
    if given.keys() & {"certificate_data", "certificate_path"}:
        return CredentialType.CERTIFICATE
    if given.keys() & {"password", "client_secret"}:
        return CredentialType.CLIENT_SECRET
    alone = given.keys() & {"managed_identity_client_id", "workload_identity_tenant_id"}
    if alone == {"managed_identity_client_id"}:
        return CredentialType.MANAGED_IDENTITY
    return CredentialType.WORKLOAD_IDENTITY if alone == {"workload_identity_tenant_id"} else CredentialType.DEFAULT


def _cloud(said: str | None, faults: list[str]) -> str | None:
    if said is None:
        return None
    for name in CLOUDS:
        if name.lower() == said.lower():
            return name
    faults.append(f"cloud_environment {said!r}: expected one of {', '.join(CLOUDS)}")
    return None


def _authority(said: str | None, faults: list[str]) -> str | None:
    if said is not None and "://" in said and not said.lower().startswith("https://"):
        faults.append(f"authority {said!r}: expected a host, or https:// and a host")
    return said


def _missing(identity: AzureIdentity) -> list[str]:
    """What a service principal needs and has not."""
    wanted: dict[str, object] = {}
    if identity.credential_type in (CredentialType.CLIENT_SECRET, CredentialType.CERTIFICATE):
        wanted = {"a client id (login)": identity.client_id, "a tenant id (tenantId)": identity.tenant_id}
    if identity.credential_type is CredentialType.CLIENT_SECRET:
        wanted["a client secret (password)"] = identity.client_secret
    if identity.credential_type is CredentialType.CERTIFICATE:
        wanted["certificate_data or certificate_path"] = identity.certificate or identity.certificate_path
    return [name for name, value in wanted.items() if not value]


# ---- logging in ------------------------------------------------------------------------------------------------------


def transport(timeout: float) -> dict[str, Any]:
    """Arguments of any client of the SDKs: seconds to connect and seconds of silence, and who keeps its log."""
    return {"connection_timeout": timeout, "read_timeout": timeout, "logger": _http_log}


def credential(identity: AzureIdentity, vault_url: str, *, timeout: float) -> Credential:
    """A new credential for that vault; nothing connects. The caller closes it.

    It tries once; those that ask a machine's identity service keep the patience the SDK has with it. Raises ValueError
    or OSError where one cannot be made of what is given.
    """
    from azure import identity as azure

    scheduler = transport(timeout)
    authority = identity.authority_for(vault_url)
    if authority is not None:
        scheduler["authority"] = authority
        # Microsoft's own directory of login services knows no private one.
        scheduler["disable_instance_discovery"] = authority.removeprefix("https://").rstrip("/") not in _KNOWN
    ids = {"client_id": identity.client_id, "tenant_id": identity.tenant_id}
    match identity.credential_type:
        case CredentialType.DEFAULT:
            return azure.DefaultAzureCredential(**scheduler, **_default_ids(identity))
        case CredentialType.MANAGED_IDENTITY:
            return azure.ManagedIdentityCredential(client_id=identity.client_id, read_timeout=timeout, logger=_http_log)
        case CredentialType.WORKLOAD_IDENTITY:
            return azure.WorkloadIdentityCredential(**ids, **scheduler, retry_total=0)
        case CredentialType.CLIENT_SECRET:
            assert identity.client_secret is not None
            return azure.ClientSecretCredential(
                **_complete(ids), client_secret=identity.client_secret.reveal(), **scheduler, retry_total=0
            )
        case CredentialType.CERTIFICATE:
            return azure.CertificateCredential(
                **_complete(ids), **_certificate(identity), **scheduler, retry_total=0, send_certificate_chain=True
            )


_KNOWN: Final = frozenset(cloud.authority for cloud in CLOUDS.values())


def _complete(ids: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value or "" for name, value in ids.items()}


def _default_ids(identity: AzureIdentity) -> dict[str, Any]:
    """Left out where not given: a null would keep the SDK from AZURE_CLIENT_ID and AZURE_TENANT_ID."""
    said: dict[str, Any] = {}
    if identity.client_id:
        said["managed_identity_client_id"] = identity.client_id
    if identity.tenant_id:
        said["workload_identity_tenant_id"] = identity.tenant_id
        said["additionally_allowed_tenants"] = [identity.tenant_id]
    return said


def _certificate(identity: AzureIdentity) -> dict[str, Any]:
    password = identity.certificate_password.reveal() if identity.certificate_password else None
    if identity.certificate is None:
        return {"certificate_path": identity.certificate_path, "password": password}
    text = identity.certificate.reveal()
    data = text.encode() if "-----BEGIN" in text else base64.b64decode("".join(text.split()), validate=True)
    return {"certificate_data": data, "password": password}
