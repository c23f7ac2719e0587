"""Errors of Azure Key Vault with their reasons."""

from __future__ import annotations

import enum
from typing import Final


class FailureReason(enum.Enum):
    """Reason of a failed fetch."""

    BAD_SETTING = "bad setting"
    """The reference or the identity is invalid."""
    MISSING = "missing"
    DISABLED = "disabled"
    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"
    FORBIDDEN = "forbidden"
    """The identity may not read the secret."""
    FIREWALL = "firewall"
    """The vault's firewall refuses this network."""
    LOGIN_REFUSED = "login refused"
    WRONG_TENANT = "wrong tenant"
    NO_IDENTITY = "no identity"
    """No credential is available, or the machine's identity service does not answer, as during its start."""
    UNTRUSTED = "untrusted"
    """The server's TLS certificate is not trusted."""
    THROTTLED = "throttled"
    UNREACHABLE = "unreachable"
    UNAVAILABLE = "unavailable"
    """The vault or the login service reports a failure of its own."""
    UNEXPECTED = "unexpected"
    """The reply is not that of a key vault."""


RETRIED: Final = frozenset({FailureReason.THROTTLED, FailureReason.UNREACHABLE, FailureReason.UNAVAILABLE})
"""Reasons for an immediate retry of the request."""
_TRANSIENT: Final = RETRIED | {FailureReason.NO_IDENTITY}


class KeyVaultError(Exception):
    """Report a failed fetch.

    ``str()`` names secret, vault, cause and remedy, and never a secret's value.

    :param reason: the cause, for code
    :param message: cause and remedy, for users
    :param secret: secret and vault, as in `SecretReference.description`
    """

    def __init__(self, reason: FailureReason, message: str, secret: str | None = None) -> None:
        super().__init__(reason, message, secret)
        self.reason = reason
        self.message = message
        self.secret = secret

    @property
    def retryable(self) -> bool:
        """True if a later attempt may succeed without a correction."""
        return self.reason in _TRANSIENT

    def __str__(self) -> str:
        return self.message if self.secret is None else f"{self.secret}: {self.message}"


class InvalidReference(KeyVaultError, ValueError):
    """Report an invalid reference to a secret.

    :param problems: one text for each problem
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(FailureReason.BAD_SETTING, f"Key Vault reference: {'; '.join(problems)}")
        self.problems = problems

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.problems
