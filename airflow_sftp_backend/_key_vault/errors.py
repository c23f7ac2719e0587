"""The errors of Azure Key Vault: why a secret cannot be fetched, and whether a retry may help."""

from __future__ import annotations

import enum
from typing import Final


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


RETRIED: Final = frozenset({Reason.THROTTLED, Reason.UNREACHABLE, Reason.UNAVAILABLE})
"""Reasons for which a request is sent again at once."""
_TRANSIENT: Final = RETRIED | {Reason.NO_IDENTITY}


class KeyVaultError(Exception):
    """A secret cannot be fetched. ``str()`` names secret and vault, the cause and the remedy, and never a value.

    :param reason: the kind of cause, for code.
    :param message: the cause and the remedy.
    :param secret: the secret and its vault, as errors name them.
    """

    def __init__(self, reason: Reason, message: str, secret: str | None = None) -> None:
        super().__init__(reason, message, secret)
        self.reason = reason
        self.message = message
        self.secret = secret

    @property
    def retryable(self) -> bool:
        """True if it may pass by itself; False if somebody has to correct something."""
        return self.reason in _TRANSIENT

    def __str__(self) -> str:
        return self.message if self.secret is None else f"{self.secret}: {self.message}"


class InvalidReference(KeyVaultError, ValueError):
    """A text, or parts, that name no secret. ``problems`` holds all that is wrong, one text each."""

    def __init__(self, *problems: str) -> None:
        super().__init__(Reason.BAD_SETTING, f"Key Vault reference: {'; '.join(problems)}")
        self.problems = problems

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.problems
