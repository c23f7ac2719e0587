"""Azure Key Vault: a reference to a secret -> the Secret.

`SecretReference` says which secret, an `AzureIdentity` who asks. `default_client` holds one credential and one client
per vault and identity of this process, and for a short while what was fetched. Importing this module loads no azure.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from airflow_sftp_backend.backend import RetryPolicy, Secret

from .identity import CLOUDS, PUBLIC, AzureIdentity, CredentialType, credential, transport

if TYPE_CHECKING:
    from azure.core.exceptions import HttpResponseError
    from azure.keyvault.secrets import KeyVaultSecret, SecretClient

    from .identity import Credential

__all__ = [
    "InvalidReference",
    "KeyVaultClient",
    "KeyVaultError",
    "Reason",
    "SecretReference",
    "default_client",
    "is_reference",
]

log = logging.getLogger(__name__)

SCHEME: Final = "keyvault://"
MAX_AGE: Final = 60.0
"""Seconds for which a fetched secret is good, unless a call says otherwise."""
LONGEST_PAUSE: Final = 60.0
"""Seconds: who asks for a longer pause is not asked again."""


# ---- errors ----------------------------------------------------------------------------------------------------------


class Reason(enum.Enum):
    """Why there is no secret."""

    BAD_SETTING = "bad setting"
    """A reference, or an identity, that cannot be meant."""
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
    """Nothing here to log in with, or the machine's identity service does not answer, as when it has just started."""
    UNTRUSTED = "untrusted"
    """Its certificate is not trusted here."""
    THROTTLED = "throttled"
    UNREACHABLE = "unreachable"
    UNAVAILABLE = "unavailable"
    """The vault, or the login service, fails by its own account."""
    UNEXPECTED = "unexpected"
    """No key vault answers like that."""


_TRIED_AGAIN: Final = frozenset({Reason.THROTTLED, Reason.UNREACHABLE, Reason.UNAVAILABLE})
_PASSING: Final = _TRIED_AGAIN | {Reason.NO_IDENTITY}


class KeyVaultError(Exception):
    """There is no secret to be had. ``str()`` names secret and vault, says why and what to do, and never a value."""

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
        return self.message if self.reference is None else f"{self.reference.described}: {self.message}"


class InvalidReference(KeyVaultError, ValueError):
    """A text, or parts, that name no secret. ``problems`` holds all that is wrong, one text each."""

    def __init__(self, *faults: str) -> None:
        super().__init__(Reason.BAD_SETTING, f"Key Vault reference: {'; '.join(faults)}")
        self.problems = faults

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.problems


# ---- which secret ----------------------------------------------------------------------------------------------------

_VAULT_NAME: Final = re.compile(r"(?=.{3,24}\Z)[A-Za-z][0-9A-Za-z]*(?:-[0-9A-Za-z]+)*")
_HOST: Final = re.compile(r"[0-9A-Za-z]+(?:[.-]+[0-9A-Za-z]+)*(?::[0-9]{1,5})?")
_SECRET_NAME: Final = re.compile(r"[0-9A-Za-z-]{1,127}")
_VERSION: Final = re.compile(r"[0-9A-Za-z]{32}")
_FORM: Final = f"expected {SCHEME}vault/secret or {SCHEME}vault/secret/version"
_SECRET_URL: Final = re.compile(r"https://(?P<vault>[^/?#@]+)/secrets/", re.IGNORECASE)
"""How a secret's identifier begins, as the portal and ``az keyvault secret show`` give it."""


def is_reference(text: str) -> bool:
    """True if a text means to be a reference, well-formed or not."""
    return text.lstrip()[: len(SCHEME)].lower() == SCHEME


def is_secret_url(text: str) -> bool:
    """True if a text begins as a secret's identifier does: ``https://vault/secrets/``."""
    return _SECRET_URL.match(text.strip()) is not None


@dataclass(frozen=True)
class SecretReference:
    """A secret in a vault, the current one where no ``version`` is given. Raises InvalidReference.

    ``vault`` may be given as the name of a vault in the public cloud, a host, or a URL; it is kept as a host, with its
    port where that is not 443.
    """

    vault: str
    name: str
    version: str | None = None

    def __post_init__(self) -> None:
        faults = []
        try:
            object.__setattr__(self, "vault", _host(self.vault, PUBLIC))
        except ValueError as error:
            faults.append(str(error))
        if not _SECRET_NAME.fullmatch(self.name):
            faults.append(f"secret {self.name!r}: expected a name of 1 to 127 letters, digits and hyphens")
        if self.version is not None and not _VERSION.fullmatch(self.version):
            faults.append(f"version {self.version!r}: expected its 32 characters, or none for the current one")
        if faults:
            raise InvalidReference(*faults)

    @classmethod
    def parse(cls, text: str, *, cloud: str | None = None) -> SecretReference:
        """``keyvault://vault/secret[/version]``, or a secret's identifier as Azure shows it: ``https://vault/secrets/...``.
        ``vault`` is a host, or the name of a vault in ``cloud`` (a key of
        `CLOUDS`, the public one by default).

        Raises InvalidReference.
        """
        if found := _SECRET_URL.match(text.strip()):
            text = f"{SCHEME}{found['vault']}/{text.strip()[found.end() :]}"
        if not is_reference(text):
            raise InvalidReference(f"text that does not start with {SCHEME}; {_FORM}")
        vault, *rest = text.strip()[len(SCHEME) :].removesuffix("/").split("/")
        if len(rest) > 1 and rest[0] == "secrets" and not _VERSION.fullmatch(rest[1]):
            raise InvalidReference(f"{text.strip()!r}: leave out 'secrets/'; {_FORM}")
        if not 1 <= len(rest) <= 2 or "" in (vault, *rest):
            raise InvalidReference(f"{text.strip()!r}; {_FORM}")
        return cls.of(vault, *rest, cloud=cloud)

    @classmethod
    def of(cls, vault: str, name: str, version: str | None = None, *, cloud: str | None = None) -> SecretReference:
        """As the constructor, with a blank version for none, and the name of a vault meaning one in ``cloud``."""
        with contextlib.suppress(ValueError):  # the constructor tells all that is wrong
            vault = _host(vault, cloud or PUBLIC)
        return cls(vault, name.strip(), (version or "").strip() or None)

    @property
    def url(self) -> str:
        """The vault's URL."""
        return f"https://{self.vault}"

    @property
    def pinned(self) -> bool:
        """True if it names a version: its value never changes."""
        return self.version is not None

    @property
    def described(self) -> str:
        """As errors name it."""
        version = f", version {self.version}" if self.version else ""
        return f"Key Vault secret {self.name!r}{version} in {self.vault}"

    def __str__(self) -> str:
        return "/".join([f"{SCHEME}{self.vault}", self.name, *([self.version] if self.version else [])])


def _host(given: str, cloud: str) -> str:
    scheme, mark, rest = given.strip().rstrip("/").partition("://")
    host = rest if mark else scheme
    if mark and scheme.lower() != "https":
        raise ValueError(f"vault {given!r}: expected https")
    if not mark and _VAULT_NAME.fullmatch(host):
        host = f"{host}.{CLOUDS[cloud].vaults}"
    if not _HOST.fullmatch(host) or not set(host) & set(".:"):
        raise ValueError(
            f"vault {given!r}: expected a vault's name (3 to 24 letters, digits, single hyphens) or a host"
        )
    return host.lower().removesuffix(":443")


# ---- asking ----------------------------------------------------------------------------------------------------------

_DEFAULT: Final = AzureIdentity()
_Key = tuple[AzureIdentity, SecretReference]


@dataclass(frozen=True)
class _Kept:
    """A secret, when it was fetched, and when it expires."""

    secret: Secret
    at: float
    expires: float | None

    def good(self, now: float, max_age: float) -> bool:
        return 0 <= now - self.at < max_age and (self.expires is None or now < self.expires)


@dataclass
class _Process:
    """What one process has. ``lock`` guards the tables; nobody waits for a network while holding it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    clients: dict[tuple[AzureIdentity, str], tuple[SecretClient, Credential]] = field(default_factory=dict)
    kept: dict[_Key, _Kept] = field(default_factory=dict)
    flights: dict[_Key, Future[Secret]] = field(default_factory=dict)


class KeyVaultClient:
    """Fetches secrets. May be used by several threads; a fork begins anew, with connections of its own.

    ``timeout``: seconds to connect, and seconds of silence. ``retry``: how often a vault is asked that throttles, fails
    or is not reached; a Retry-After counts instead of the policy's pause. ``clock`` gives seconds since 1970.
    """

    def __init__(
        self,
        *,
        timeout: float = 10.0,
        retry: RetryPolicy | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._timeout = timeout
        self._retry = retry or RetryPolicy()
        self._clock = clock
        self._sleep = sleep
        self._chance = chance
        self._processes: dict[int, _Process] = {}

    def fetch(
        self, reference: SecretReference, identity: AzureIdentity = _DEFAULT, *, max_age: float = MAX_AGE
    ) -> Secret:
        """The secret, as it was at most ``max_age`` seconds ago. Threads that want the same one wait for one request.

        Raises KeyVaultError.
        """
        here, key = self._here(), (identity, reference)
        while True:
            with here.lock:
                kept = here.kept.get(key)
                if kept is not None and kept.good(self._clock(), max_age):
                    return kept.secret
                flight = here.flights.get(key)
                if flight is None:
                    mine = here.flights[key] = Future[Secret]()
                    break
            with contextlib.suppress(CancelledError):  # who asked was interrupted
                return flight.result()
        try:
            secret = self._ask(here, reference, identity)
            mine.set_result(secret)
        except KeyVaultError as error:
            mine.set_exception(error)
            raise
        finally:
            with here.lock:
                del here.flights[key]
            mine.cancel()
        return secret

    def close(self) -> None:
        """Forgets everything and closes the connections. The next call opens new ones."""
        here = self._here()
        with here.lock:
            clients = list(here.clients.values())
            here.clients.clear()
            here.kept.clear()
        for client, login in clients:
            client.close()
            login.close()

    def _here(self) -> _Process:
        """This process's own. What a fork has inherited is dropped: its locks and connections belong to the parent."""
        pid = os.getpid()
        here = self._processes.get(pid)
        if here is None:
            here = self._processes.setdefault(pid, _Process())
            for other in self._processes.keys() - {pid}:
                self._processes.pop(other, None)
        return here

    def _ask(self, here: _Process, reference: SecretReference, identity: AzureIdentity) -> Secret:
        attempt = 0
        while True:
            attempt += 1
            try:
                answer, pause = self._try(here, reference, identity)
            except BaseException as error:  # noqa: BLE001 - it is raised again
                # An interruption, or a defect: the SDKs' frames hold the client secret, tokens and values, and a
                # traceback with locals would print them.
                error.__context__ = None
                raise error.with_traceback(None) from None
            if isinstance(answer, _Kept):
                with here.lock:
                    here.kept[identity, reference] = answer
                return answer.secret
            if answer.reason not in _TRIED_AGAIN or attempt >= self._retry.max_attempts:
                raise answer
            pause = self._retry.pause(attempt, self._chance()) if pause is None else pause
            if pause > LONGEST_PAUSE:
                raise answer
            log.info("%s; trying again in %.1f s", answer, pause)
            self._sleep(pause)

    def _try(
        self, here: _Process, reference: SecretReference, identity: AzureIdentity
    ) -> tuple[_Kept | KeyVaultError, float | None]:
        """The secret, or why there is none and for how long not to ask. The SDK's exceptions end here: they hold
        requests with tokens, and answers, so that none becomes the cause or context of ours."""
        from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

        try:
            client = self._client(here, reference.url, identity)
        except (ValueError, OSError) as error:
            return KeyVaultError(Reason.BAD_SETTING, _unmade(error, identity), reference), None
        try:
            found = client.get_secret(reference.name, reference.version)
        except (AzureError, ValueError, OSError) as error:
            reason, message = _explained(error, reference, identity)
            if isinstance(error, ClientAuthenticationError):  # MSAL repeats an answer from memory: begin anew
                with here.lock:
                    here.clients.pop((identity, reference.vault), None)
            pause = _retry_after(error, self._clock()) if isinstance(error, HttpResponseError) else None
            if pause is not None and pause > LONGEST_PAUSE:
                message = f"{message} It asks for a pause of {pause:.0f} s."
            return KeyVaultError(reason, message, reference), pause
        return _checked(found, reference, self._clock()), None

    def _client(self, here: _Process, url: str, identity: AzureIdentity) -> SecretClient:
        from azure.keyvault.secrets import SecretClient

        key = (identity, url)
        with here.lock:
            if key not in here.clients:
                login = credential(identity, url, timeout=self._timeout)
                here.clients[key] = SecretClient(url, login, retry_total=0, **transport(self._timeout)), login
            return here.clients[key][0]


default_client: Final = KeyVaultClient()
"""The one of this process."""


# ---- what an answer means --------------------------------------------------------------------------------------------


def _checked(found: KeyVaultSecret, reference: SecretReference, now: float) -> _Kept | KeyVaultError:
    """A vault gives out the values of secrets that are expired, or not valid yet."""
    about = found.properties
    az = _az(reference)
    starts, ends = ((at.timestamp() if at else None) for at in (about.not_before, about.expires_on))
    if about.enabled is False:
        return KeyVaultError(Reason.DISABLED, f"it is disabled; enable it: {az} --enabled true", reference)
    if ends is not None and ends <= now:
        cure = f"set a new version of it, or move the date: {az} --expires {_date(now + 31_536_000)}"
        return KeyVaultError(Reason.EXPIRED, f"it expired on {_date(ends)}; {cure}", reference)
    if starts is not None and now < starts:
        cure = f"wait, or move the date: {az} --not-before {_date(now)}"
        return KeyVaultError(Reason.NOT_YET_VALID, f"it is not valid before {_date(starts)}; {cure}", reference)
    if found.value is None:
        return KeyVaultError(Reason.UNEXPECTED, "the answer holds no value", reference)
    return _Kept(Secret(found.value), now, ends)


def _date(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _az(reference: SecretReference) -> str:
    """The beginning of a command that changes a secret's attributes."""
    version = f" --version {reference.version}" if reference.version else ""
    name = f"--vault-name {reference.vault.partition('.')[0]} --name {reference.name}"
    return f"az keyvault secret set-attributes {name}{version}"


def _retry_after(error: HttpResponseError, now: float) -> float | None:
    """Seconds, from a number of them or from a date (RFC 9110 section 10.2.3)."""
    headers: Mapping[str, str] = (
        getattr(error.response, "headers", None) or {}
    )  # not all responses are typed to have them
    if not (given := headers.get("Retry-After")):
        return None
    try:
        return max(0.0, float(given) if given.strip().isdecimal() else parsedate_to_datetime(given).timestamp() - now)
    except ValueError:
        return None


def _explained(error: Exception, reference: SecretReference, identity: AzureIdentity) -> tuple[Reason, str]:
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
            return _no_token(text, reference, identity)
        inner: object = (error.error.innererror or {}).get("code") if error.error is not None else None
        return _refused(error.status_code or 0, str(inner or code or ""), text, reference)
    if (network := _network(text, reference)) is not None:
        return network
    if isinstance(error, ServiceRequestError | ServiceResponseError):
        return Reason.UNREACHABLE, f"{reference.vault} cannot be reached; check network, firewall and HTTPS_PROXY."
    if isinstance(error, OSError):
        return Reason.BAD_SETTING, f"{error.filename or 'a file'} cannot be read: {error.strerror or 'unreadable'}."
    return Reason.UNEXPECTED, f"{reference.vault} does not answer as a key vault does; check the vault's name or URL."


def _refused(status: int, code: str, text: str, reference: SecretReference) -> tuple[Reason, str]:
    """What the vault's own refusal means; ``code`` is the innermost one it gives."""
    vault = reference.vault.partition(".")[0]
    if status == 404:
        what = "no such version" if reference.pinned else "no such secret"
        cure = f"see `az keyvault secret list --vault-name {vault}`; a deleted one can be recovered"
        return Reason.MISSING, f"the vault has {what}; {cure}."
    if status == 403 and code == "SecretDisabled":
        return Reason.DISABLED, f"it is disabled; enable it: {_az(reference)} --enabled true"
    if status == 403 and (code in _CLOSED or "Client address is not authorized" in text):
        cure = "add this network to the vault's firewall, or use its private endpoint"
        return Reason.FIREWALL, f"the vault is closed to this network ({code}); {cure}."
    if status == 403:
        found = re.search(r"\boid=([0-9a-fA-F-]{36})", text)
        who = found[1] if found else "<object id>"
        grant = (
            f'az role assignment create --role "Key Vault Secrets User" --assignee {who}'
            f' --scope "$(az keyvault show --name {vault} --query id --output tsv)"'
        )
        return Reason.FORBIDDEN, (
            "the identity may not read it. Grant it the role Key Vault Secrets User (where the vault uses access"
            f" policies, the secret permission Get), which takes effect within minutes: {grant}"
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


_CLOSED: Final = frozenset({"ForbiddenByFirewall", "ForbiddenByConnection"})

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


def _no_token(text: str, reference: SecretReference, identity: AzureIdentity) -> tuple[Reason, str]:
    """Why there is no token for the vault."""
    who = identity.credential_type.value.replace("_", " ") + (f" {identity.client_id}" if identity.client_id else "")
    login = f"the login ({who}) failed"
    if found := re.search(r"acquire tokens for tenant ([0-9A-Za-z.-]*[0-9A-Za-z])", text):
        mine = f"tenant {identity.tenant_id}" if identity.tenant_id else "another tenant"
        return (
            Reason.WRONG_TENANT,
            f"the vault is of tenant {found[1]}, the identity of {mine}; use one of the vault's.",
        )
    if "Unable to get authority configuration" in text:
        cure = "check tenant id and cloud"
        return (
            Reason.WRONG_TENANT,
            f"{login}: the login service knows no tenant {identity.tenant_id or 'here'}; {cure}.",
        )
    if found := re.search(r"AADSTS([0-9]+)", text):
        reason, why = _LOGIN_CODES.get(found[1], (Reason.LOGIN_REFUSED, "Microsoft Entra refuses it"))
        return reason, f"{login}: {why} (AADSTS{found[1]}, https://login.microsoftonline.com/error?code={found[1]})."
    if (network := _network(text, reference)) is not None:
        return network[0], f"{login}: {network[1]}"
    if "authentication unavailable" not in text:
        return Reason.UNAVAILABLE, f"{login}: the login service gave no token and no reason; it may pass."
    if identity.credential_type is CredentialType.MANAGED_IDENTITY:
        which = f"has no managed identity {identity.client_id}" if identity.client_id else "has no managed identity"
        return Reason.NO_IDENTITY, f"{login}: this machine {which}, or its identity service does not answer."
    cure = (
        "assign a managed or workload identity, set AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET, or give"
    )
    return Reason.NO_IDENTITY, f"{login}: there is nothing to log in with here; {cure} the identity in the connection."


def _network(text: str, reference: SecretReference) -> tuple[Reason, str] | None:
    """What a text of the HTTP client means for the network; None if it says nothing of it."""
    found = re.search(r"host='([^']+)'", text)
    host = found[1] if found else reference.vault
    if "CERTIFICATE_VERIFY_FAILED" in text or "CA certificate bundle" in text:
        cure = "REQUESTS_CA_BUNDLE names the file of certificates to trust, such as those of a proxy that inspects TLS"
        return Reason.UNTRUSTED, f"the certificate of {host} is not trusted here; {cure}."
    if "Failed to resolve" in text:
        cure = "check the vault's name and cloud, and DNS (a private endpoint needs its private zone)"
        return Reason.UNREACHABLE, f"the name {host} cannot be resolved; {cure}."
    if re.search(r"Failed to establish a new connection|timed out|Connection (aborted|refused|broken)|proxy", text):
        return Reason.UNREACHABLE, f"{host} cannot be reached; check network, firewall and HTTPS_PROXY."
    return None


def _unmade(error: Exception, identity: AzureIdentity) -> str:
    """Why no credential can be made of an identity."""
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'} cannot be read: {error.strerror or 'unreadable'}."
    if identity.credential_type is CredentialType.CERTIFICATE:
        wanted = "PEM or PKCS#12 (in base64), with its RSA private key, and a password that fits"
        return f"the client certificate cannot be used; wanted is {wanted}."
    if identity.credential_type is CredentialType.WORKLOAD_IDENTITY:
        names = "AZURE_FEDERATED_TOKEN_FILE, AZURE_CLIENT_ID, AZURE_TENANT_ID"
        return f"workload identity is not set up here; a pod that has it has {names} in its environment."
    login = identity.credential_type.value.replace("_", " ")
    return f"the login ({login}) cannot be made: check tenant id, authority and cloud."
