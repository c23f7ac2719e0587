"""Fetch secrets from Azure Key Vault.

Importing this module does not import the Azure SDKs.

`default_client` keeps a credential and an SDK client for each vault and identity, and caches secrets for a short time.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from airflow_sftp_backend.backend import RetryPolicy, Secret
from airflow_sftp_backend.backend._backoff import Backoff
from airflow_sftp_backend.backend._forks import ForkAware

from .errors import RETRIED, FailureReason, KeyVaultError
from .identity import AzureIdentity, client_options, create_credential
from .login_record import recorded_login
from .references import SecretReference
from .sdk_errors import classify_sdk_error, credential_problem, set_attributes_command

if TYPE_CHECKING:
    from azure.core.exceptions import HttpResponseError
    from azure.keyvault.secrets import KeyVaultSecret, SecretClient

    from .login_record import RecordedCredential

log = logging.getLogger(__name__)

MAX_AGE: Final = 60.0
"""Default lifetime of a cached secret, in seconds."""
MAX_PAUSE: Final = 60.0
"""Longest pause before a retry, in seconds. If the vault requests a longer pause, the fetch fails."""
_DEFAULT: Final = AzureIdentity()
_Key = tuple[AzureIdentity, SecretReference]


@dataclass(frozen=True)
class _CacheEntry:
    """Cached secret with its fetch time and expiry, in seconds since 1970."""

    secret: Secret
    fetched_at: float
    expires_on: float | None

    def is_fresh(self, now: float, max_age: float) -> bool:
        return 0 <= now - self.fetched_at < max_age and (self.expires_on is None or now < self.expires_on)


@dataclass
class _ProcessState:
    """Clients and caches of one process.

    ``lock`` guards the tables and is never held during network I/O.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    clients: dict[tuple[AzureIdentity, str], tuple[SecretClient, RecordedCredential]] = field(default_factory=dict)
    cache: dict[_Key, _CacheEntry] = field(default_factory=dict)
    in_flight: dict[_Key, Future[Secret]] = field(default_factory=dict)


class KeyVaultClient(ForkAware):
    """Fetch secrets.

    Safe for several threads; a forked process opens connections of its own.

    :param timeout: longest time in seconds to connect, and for each read
    :param retry: attempts and pauses if a vault throttles, fails or cannot be reached; a Retry-After header replaces
        the pause
    :param clock: returns seconds since 1970
    :param sleep: waits for a number of seconds
    :param random_fraction: returns a random number from 0 to 1 for each pause
    """

    def __init__(
        self,
        *,
        timeout: float = 10.0,
        retry: RetryPolicy | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        random_fraction: Callable[[], float] = random.random,
    ) -> None:
        self._timeout = timeout
        self._retry = retry or RetryPolicy()
        self._clock = clock
        self._sleep = sleep
        self._random_fraction = random_fraction
        self._state = _ProcessState()
        self._inherited: list[_ProcessState] = []
        """States of parent processes, see `abandon_after_fork`."""
        super().__init__()

    def fetch(
        self, reference: SecretReference, identity: AzureIdentity = _DEFAULT, *, max_age: float = MAX_AGE
    ) -> Secret:
        """Return a secret, from the cache or by a request.

        Threads that fetch the same secret wait for a single request.

        :param reference: the secret
        :param identity: the identity for the login
        :param max_age: largest age of a cached secret, in seconds
        :raises KeyVaultError: if the secret cannot be fetched
        """
        state, key = self._state, (identity, reference)
        while True:
            with state.lock:
                entry = state.cache.get(key)
                if entry is not None and entry.is_fresh(self._clock(), max_age):
                    return entry.secret
                pending = state.in_flight.get(key)
                if pending is None:
                    own_request = state.in_flight[key] = Future[Secret]()
                    break
            with contextlib.suppress(CancelledError):  # the requesting thread was interrupted: request again
                return pending.result()
        try:
            secret = self._request_with_retries(state, reference, identity)
            own_request.set_result(secret)
        except KeyVaultError as error:
            own_request.set_exception(error)
            raise
        finally:
            with state.lock:
                del state.in_flight[key]
            own_request.cancel()  # no effect after a result; without one, a waiting thread sends a request of its own
        return secret

    def close(self) -> None:
        """Close the connections and clear the cache.

        The next fetch opens new connections.
        """
        state = self._state
        with state.lock:
            clients = list(state.clients.values())
            state.clients.clear()
            state.cache.clear()
        for client, credential in clients:
            client.close()
            credential.close()

    def abandon_after_fork(self) -> None:
        """Start without secrets and connections in a forked child."""
        # Keep the parent's state: the destructor of a connection pool takes the pool's lock, and a thread of the parent
        # may have held the lock at the fork.
        self._inherited.append(self._state)
        self._state = _ProcessState()

    def _request_with_retries(
        self, state: _ProcessState, reference: SecretReference, identity: AzureIdentity
    ) -> Secret:
        # Not by azure-core's RetryPolicy: it waits for any time that Retry-After names, retries at once after the first
        # failure, and does not retry if the login is throttled.
        backoff = Backoff(self._retry, self._random_fraction)
        while True:
            try:
                outcome, pause = self._request(state, reference, identity)
            except BaseException as error:  # noqa: BLE001 - raised again
                # After an interruption or a defect, a traceback with local variables would print the client secret,
                # tokens and values in the SDKs' frames.
                error.__context__ = None
                raise error.with_traceback(None) from None
            if isinstance(outcome, _CacheEntry):
                with state.lock:
                    state.cache[identity, reference] = outcome
                return outcome.secret
            backoff_pause = backoff.fail()
            if outcome.reason not in RETRIED or backoff.exhausted:
                raise outcome
            pause = backoff_pause if pause is None else pause
            if pause > MAX_PAUSE:
                raise outcome
            log.info("%s; retrying in %.1f s", outcome, pause)
            self._sleep(pause)

    def _request(
        self, state: _ProcessState, reference: SecretReference, identity: AzureIdentity
    ) -> tuple[_CacheEntry | KeyVaultError, float | None]:
        """Send one request.

        Return the secret or the error, and the pause in seconds that the vault requested.

        Exceptions of the SDK hold tokens and replies, so our errors have no SDK exception as cause or context.
        """
        from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

        try:
            client = self._sdk_client(state, reference.url, identity)
        except (ValueError, OSError) as error:
            return KeyVaultError(
                FailureReason.BAD_SETTING, credential_problem(error, identity), reference.description
            ), None
        with recorded_login() as record:
            try:
                response = client.get_secret(reference.name, reference.version)
            except (AzureError, ValueError, OSError) as error:
                reason, message = classify_sdk_error(error, record, reference, identity)
                if isinstance(error, ClientAuthenticationError):  # MSAL caches the refusal: use a new client
                    with state.lock:
                        state.clients.pop((identity, reference.url), None)
                pause = _retry_after(error) if isinstance(error, HttpResponseError) else None
                if pause is not None and pause > MAX_PAUSE:
                    message = f"{message} The requested pause is {pause:.0f} s."
                return KeyVaultError(reason, message, reference.description), pause
        return _cache_entry_or_error(response, reference, self._clock()), None

    def _sdk_client(self, state: _ProcessState, url: str, identity: AzureIdentity) -> SecretClient:
        from azure.keyvault.secrets import SecretClient

        key = (identity, url)
        with state.lock:
            if key not in state.clients:
                credential = create_credential(identity, url, timeout=self._timeout)
                # Without the SDK's retries, see `_request_with_retries`.
                client = SecretClient(url, credential, retry_total=0, **client_options(self._timeout))
                state.clients[key] = client, credential
            return state.clients[key][0]


default_client: Final = KeyVaultClient()
"""Client of this process."""


def _cache_entry_or_error(
    response: KeyVaultSecret, reference: SecretReference, now: float
) -> _CacheEntry | KeyVaultError:
    """Return the cache entry of a valid secret, else the error."""
    properties = response.properties  # checked here: a vault returns expired and not yet valid secrets
    command = set_attributes_command(reference)
    not_before, expires_on = (
        (date.timestamp() if date else None) for date in (properties.not_before, properties.expires_on)
    )
    if properties.enabled is False:
        return KeyVaultError(
            FailureReason.DISABLED, f"disabled; enable the secret: {command} --enabled true", reference.description
        )
    if expires_on is not None and expires_on <= now:
        hint = f"set a new version, or change the date: {command} --expires {_format_date(now + 31_536_000)}"
        return KeyVaultError(
            FailureReason.EXPIRED, f"expired on {_format_date(expires_on)}; {hint}", reference.description
        )
    if not_before is not None and now < not_before:
        hint = f"wait, or change the date: {command} --not-before {_format_date(now)}"
        return KeyVaultError(
            FailureReason.NOT_YET_VALID,
            f"not valid before {_format_date(not_before)}; {hint}",
            reference.description,
        )
    if response.value is None:
        return KeyVaultError(FailureReason.UNEXPECTED, "the reply holds no value", reference.description)
    return _CacheEntry(Secret(response.value), now, expires_on)


def _format_date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _retry_after(error: HttpResponseError) -> float | None:
    """Parse the Retry-After header as seconds (RFC 9110 section 10.2.3)."""
    from azure.core.pipeline import policies

    # Not every response type of the SDK declares headers.
    headers: Mapping[str, str] = getattr(error.response, "headers", None) or {}
    if not (value := headers.get("Retry-After")):
        return None
    try:
        return policies.RetryPolicy().parse_retry_after(value)
    except ValueError:
        return None
