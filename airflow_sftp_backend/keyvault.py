"""Azure Key Vault: a reference to a secret -> the Secret, through azure-identity and azure-keyvault-secrets.

`SecretReference` says which secret, `AzureIdentity` who asks; `VAULTS` holds one credential and one client per vault and
identity in this process, and what was fetched a short while ago. Importing this module loads no azure.

The process's environment counts as it does for the SDKs: AZURE_AUTHORITY_HOST (the login service), REQUESTS_CA_BUNDLE
(certificates to trust), HTTPS_PROXY, NO_PROXY, and what azure-identity's credentials read.
"""

from __future__ import annotations

import base64
import enum
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from .backend import RetryPolicy, Secret

if TYPE_CHECKING:
    from azure.core.exceptions import HttpResponseError
    from azure.identity import (
        CertificateCredential,
        ClientSecretCredential,
        DefaultAzureCredential,
        ManagedIdentityCredential,
        WorkloadIdentityCredential,
    )
    from azure.keyvault.secrets import KeyVaultSecret, SecretClient

    type Credential = (
        CertificateCredential
        | ClientSecretCredential
        | DefaultAzureCredential
        | ManagedIdentityCredential
        | WorkloadIdentityCredential
    )

__all__ = ["VAULTS", "AzureIdentity", "KeyVaultError", "KeyVaults", "Reason", "SecretReference", "is_reference"]

log = logging.getLogger(__name__)
_http_log = logging.getLogger(f"{__name__}.http")
"""Every request with its headers, on the level INFO: too much for a task's log."""
if _http_log.level == logging.NOTSET:
    _http_log.setLevel(logging.WARNING)

SCHEME: Final = "keyvault://"
MAX_AGE: Final = 60.0
"""Seconds for which a fetched secret is good, unless a call says otherwise."""
LONGEST_PAUSE: Final = 60.0
"""Seconds: a vault that asks for a longer pause is not waited for."""


# ---- errors ----------------------------------------------------------------------------------------------------------


class Reason(enum.Enum):
    """Why there is no secret."""

    BAD_SETTING = "bad setting"
    """A reference or an identity that cannot be meant."""
    MISSING = "missing"
    DISABLED = "disabled"
    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"
    FORBIDDEN = "forbidden"
    """The identity may not read it."""
    FIREWALL = "firewall"
    """The vault is closed to this network."""
    LOGIN_REFUSED = "login refused"
    WRONG_TENANT = "wrong tenant"
    NO_IDENTITY = "no identity"
    """Nothing here to log in with, or the machine's identity service does not answer (yet)."""
    UNTRUSTED = "untrusted"
    """Its certificate is not trusted here."""
    THROTTLED = "throttled"
    UNREACHABLE = "unreachable"
    UNAVAILABLE = "unavailable"
    """It, or the login service, answers with a failure of its own."""
    UNEXPECTED = "unexpected"
    """No Key Vault answers like that."""


_TRIED_AGAIN: Final = frozenset({Reason.THROTTLED, Reason.UNREACHABLE, Reason.UNAVAILABLE})
_PASSING: Final = _TRIED_AGAIN | {Reason.NO_IDENTITY}


class KeyVaultError(Exception):
    """There is no secret to be had. ``str()`` names secret and vault, says why and what to do; never a value.

    ``reference`` is None where the fault lies in the identity, or in a text that is no reference.
    """

    def __init__(self, reason: Reason, message: str, reference: SecretReference | None = None) -> None:
        super().__init__(reason, message, reference)
        self.reason = reason
        self.message = message
        self.reference = reference

    @property
    def retryable(self) -> bool:
        """True if it may pass by itself; False if somebody has to correct something."""
        return self.reason in _PASSING

    def __str__(self) -> str:
        return self.message if self.reference is None else f"Key Vault: {self.reference.described}: {self.message}"


class BadSetting(KeyVaultError, ValueError):
    """A reference or an identity cannot be meant. ``faults`` holds all that is wrong, one text each."""

    def __init__(self, *faults: str) -> None:
        super().__init__(Reason.BAD_SETTING, "; ".join(faults))
        self.faults = faults

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.faults


# ---- which secret ----------------------------------------------------------------------------------------------------


class Cloud(NamedTuple):
    """Where a cloud keeps its vaults, and where one logs in."""

    vaults: str
    authority: str


PUBLIC: Final = "AzurePublicCloud"
CLOUDS: Final[Mapping[str, Cloud]] = {
    PUBLIC: Cloud("vault.azure.net", "login.microsoftonline.com"),
    "AzureUSGovernment": Cloud("vault.usgovcloudapi.net", "login.microsoftonline.us"),
    "AzureChinaCloud": Cloud("vault.azure.cn", "login.chinacloudapi.cn"),
}
"""By the names of ``cloud_environment`` in Airflow's azure connection."""

_VAULT_NAME: Final = re.compile(r"[A-Za-z](?:-?[0-9A-Za-z]){2,23}")
_HOST: Final = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z.-]*[0-9A-Za-z])?(?::[0-9]{1,5})?")
_SECRET_NAME: Final = re.compile(r"[0-9A-Za-z-]{1,127}")
_VERSION: Final = re.compile(r"[0-9A-Za-z]{32}")


def is_reference(text: str) -> bool:
    """True if a text means to be a reference, well-formed or not."""
    return text.lstrip()[: len(SCHEME)].lower() == SCHEME


@dataclass(frozen=True)
class SecretReference:
    """A secret in a vault; without ``version`` the current one. Raises BadSetting for what cannot be.

    ``vault_url`` may be given as a vault's name, a host or a URL; it is kept as ``https://host``.
    """

    vault_url: str
    name: str
    version: str | None = None

    def __post_init__(self) -> None:
        url, faults = _vault_url(self.vault_url, PUBLIC)
        object.__setattr__(self, "vault_url", url)
        if not _SECRET_NAME.fullmatch(self.name):
            faults.append(f"secret name {self.name!r}: expected 1 to 127 letters, digits and hyphens")
        if self.version is not None and not _VERSION.fullmatch(self.version):
            faults.append(f"secret version {self.version!r}: expected its 32 characters, or nothing for the current one")
        if faults:
            raise BadSetting(*faults)

    @classmethod
    def parse(cls, text: str, *, cloud: str = PUBLIC) -> SecretReference:
        """``keyvault://vault/secret[/version]``; ``vault`` is a full host, or the name of a vault in ``cloud``.

        Raises BadSetting.
        """
        form = f"expected {SCHEME}vault-name/secret-name or {SCHEME}vault-name/secret-name/version"
        if not is_reference(text):
            raise BadSetting(f"reference {text[:40]!r} does not start with {SCHEME}; {form}")
        vault, *rest = text.strip()[len(SCHEME) :].split("/")
        if rest[:1] == ["secrets"] and len(rest) > 1 and not _VERSION.fullmatch(rest[1]):
            raise BadSetting(f"reference {text.strip()!r}: leave out the segment 'secrets'; {form}")
        if not 1 <= len(rest) <= 2 or "" in (vault, *rest):
            raise BadSetting(f"reference {text.strip()!r} names a vault, a secret and at most a version; {form}")
        try:
            return cls.of(vault, *rest, cloud=cloud)
        except BadSetting as error:
            faults = error.faults
        raise BadSetting(*(f"reference {text.strip()!r}: {fault}" for fault in faults))

    @classmethod
    def of(cls, vault: str, name: str, version: str | None = None, *, cloud: str = PUBLIC) -> SecretReference:
        """As the constructor; a vault's bare name is one in ``cloud``."""
        url, faults = _vault_url(vault, cloud)
        if faults:
            raise BadSetting(*faults)
        return cls(url, name, version or None)

    @property
    def pinned(self) -> bool:
        """True if it names a version: its value never changes."""
        return self.version is not None

    @property
    def host(self) -> str:
        """The vault's host, with its port where that is not 443."""
        return self.vault_url.removeprefix("https://")

    @property
    def described(self) -> str:
        """As errors name it."""
        version = f", version {self.version}" if self.version else ""
        return f"secret {self.name!r}{version} in vault {self.host}"

    def __str__(self) -> str:
        return "/".join([f"{SCHEME}{self.host}", self.name, *([self.version] if self.version else [])])


def _vault_url(given: str, cloud: str) -> tuple[str, list[str]]:
    """The URL of a vault that is given by name, host or URL; and what is wrong with it."""
    text = given.strip().rstrip("/")
    scheme, mark, rest = text.partition("://")
    host = rest if mark else text
    if mark and scheme.lower() != "https":
        return text, [f"vault {given!r}: expected https"]
    if not mark and "." not in host and ":" not in host:
        if not _VAULT_NAME.fullmatch(host):
            return text, [f"vault {given!r}: expected a name of 3 to 24 letters, digits and single hyphens, or a host"]
        host = f"{host}.{CLOUDS[cloud].vaults}"
    if not _HOST.fullmatch(host) or ".." in host:
        return text, [f"vault {given!r}: expected a name, a host, or https:// and a host"]
    return f"https://{host.lower().removesuffix(':443')}", []


