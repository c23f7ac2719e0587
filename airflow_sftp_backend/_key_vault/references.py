"""References to secrets: ``keyvault://vault/secret[/version]``, parsed and checked."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Final

from .errors import InvalidReference
from .identity import CLOUDS, PUBLIC

SCHEME: Final = "keyvault://"
_VAULT_NAME: Final = re.compile(r"(?=.{3,24}\Z)[A-Za-z][0-9A-Za-z]*(?:-[0-9A-Za-z]+)*")
_HOST: Final = re.compile(r"[0-9A-Za-z]+(?:[.-]+[0-9A-Za-z]+)*(?::[0-9]{1,5})?")
_SECRET_NAME: Final = re.compile(r"[0-9A-Za-z-]{1,127}")
_VERSION: Final = re.compile(r"[0-9A-Za-z]{32}")
_EXPECTED: Final = f"expected {SCHEME}vault/secret or {SCHEME}vault/secret/version"
_SECRET_URL: Final = re.compile(r"https://(?P<vault>[^/?#@]+)/secrets/", re.IGNORECASE)
"""Start of a secret's identifier, as shown by the portal and by ``az keyvault secret show``."""


def is_reference(text: str) -> bool:
    """Return whether a text starts with ``keyvault://``, valid or not."""
    return text.lstrip()[: len(SCHEME)].lower() == SCHEME


def is_secret_url(text: str) -> bool:
    """Return whether a text starts like a secret's identifier: ``https://vault/secrets/``."""
    return _SECRET_URL.match(text.strip()) is not None


@dataclass(frozen=True)
class SecretReference:
    """Name a secret in a vault.

    :param vault: name of a vault in the public cloud, or host or URL of a vault. The attribute has the host, with the
        port unless the port is 443.
    :param name: name of the secret
    :param version: version of the secret; None for the current version
    :raises InvalidReference: with all problems
    """

    vault: str
    name: str
    version: str | None = None

    def __post_init__(self) -> None:
        problems = []
        try:
            object.__setattr__(self, "vault", _vault_host(self.vault, PUBLIC))
        except ValueError as error:
            problems.append(str(error))
        if not _SECRET_NAME.fullmatch(self.name):
            problems.append(f"secret {self.name!r}: expected a name of 1 to 127 letters, digits and hyphens")
        if self.version is not None and not _VERSION.fullmatch(self.version):
            problems.append(f"version {self.version!r}: expected its 32 characters, or none for the current one")
        if problems:
            raise InvalidReference(*problems)

    @classmethod
    def parse(cls, text: str, *, cloud: str | None = None) -> SecretReference:
        """Parse ``keyvault://vault/secret[/version]``, or a secret's identifier, ``https://vault/secrets/...``.

        :param text: the reference; its vault is a host, or the name of a vault in ``cloud``
        :param cloud: key of `CLOUDS`; the public cloud by default
        :raises InvalidReference: with all problems
        """
        if match := _SECRET_URL.match(text.strip()):
            text = f"{SCHEME}{match['vault']}/{text.strip()[match.end() :]}"
        if not is_reference(text):
            raise InvalidReference(f"text that does not start with {SCHEME}; {_EXPECTED}")
        vault, *parts = text.strip()[len(SCHEME) :].removesuffix("/").split("/")
        if len(parts) > 1 and parts[0] == "secrets" and not _VERSION.fullmatch(parts[1]):
            raise InvalidReference(f"{text.strip()!r}: leave out 'secrets/'; {_EXPECTED}")
        if not 1 <= len(parts) <= 2 or "" in (vault, *parts):
            raise InvalidReference(f"{text.strip()!r}; {_EXPECTED}")
        return cls.of(vault, *parts, cloud=cloud)

    @classmethod
    def of(cls, vault: str, name: str, version: str | None = None, *, cloud: str | None = None) -> SecretReference:
        """Return the reference to a secret of a vault in ``cloud``.

        A blank version means the current version.

        :raises InvalidReference: with all problems
        """
        with contextlib.suppress(ValueError):  # the constructor reports all problems together
            vault = _vault_host(vault, cloud or PUBLIC)
        return cls(vault, name.strip(), (version or "").strip() or None)

    @property
    def url(self) -> str:
        """URL of the vault."""
        return f"https://{self.vault}"

    @property
    def pinned(self) -> bool:
        """True if the reference has a version: the secret never changes."""
        return self.version is not None

    @property
    def description(self) -> str:
        """Secret, version and vault, as in errors."""
        version = f", version {self.version}" if self.version else ""
        return f"Key Vault secret {self.name!r}{version} in {self.vault}"

    def __str__(self) -> str:
        return "/".join([f"{SCHEME}{self.vault}", self.name, *([self.version] if self.version else [])])


def _vault_host(vault: str, cloud: str) -> str:
    scheme, separator, after_scheme = vault.strip().rstrip("/").partition("://")
    host = after_scheme if separator else scheme
    if separator and scheme.lower() != "https":
        raise ValueError(f"vault {vault!r}: expected https")
    if not separator and _VAULT_NAME.fullmatch(host):
        host = f"{host}.{CLOUDS[cloud].vaults}"
    if not _HOST.fullmatch(host) or not set(host) & set(".:"):
        raise ValueError(
            f"vault {vault!r}: expected a vault's name (3 to 24 letters, digits, single hyphens) or a host"
        )
    return host.lower().removesuffix(":443")
