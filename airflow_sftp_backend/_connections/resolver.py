"""Where the values of a connection come from beside itself: secrets of a key vault, and other connections.

Whatever is fetched is masked in the log before it is used.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from airflow_sftp_backend._key_vault.client import (
    MAX_AGE,
    VAULTS,
    BadReference,
    KeyVaultError,
    SecretReference,
    is_reference,
    is_secret_url,
)
from airflow_sftp_backend._key_vault.identity import AzureIdentity, BadIdentity
from airflow_sftp_backend._masking import mask_secrets
from airflow_sftp_backend.backend import BackendUnavailable

from .fields import FIELDS
from .parser import AirflowConnection, Columns, Draft, Given, InvalidConnection, extra_of, secrets

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import BackendConfig

log = logging.getLogger(__name__)

_WHOLE: Final = "connection_secret"
_VAULT: Final = "key_vault_url"
_PLACES: Final = {"cloud_environment", "authority"}
"""Fields of an identity that may stand beside ``azure_conn_id``."""
_LABELS: Final = {one.name: one.label for one in FIELDS}


def resolve(conn: AirflowConnection, get: Callable[[str], AirflowConnection]) -> BackendConfig:
    """What a connection says, with what it takes from key vaults and other connections; ``get`` gives out the latter.

    Raises InvalidConnection with all that somebody has to correct, BackendUnavailable where a vault may answer later.
    """
    return _resolve(conn, get, ())


def _resolve(
    conn: AirflowConnection, get: Callable[[str], AirflowConnection], through: tuple[str, ...]
) -> BackendConfig:
    columns = Columns.of(conn)
    mask_secrets(secrets(columns))
    recipe = _Recipe(columns, _identity(Draft.of(columns), get))
    draft = recipe.draft(fresh=False)
    jump_id = draft.text("jump_conn_id")
    if jump_id:
        if jump_id in (*through, columns.conn_id):
            way = " -> ".join([*through, columns.conn_id, jump_id])
            raise InvalidConnection(columns.conn_id, [f"{_LABELS['jump_conn_id']}: goes in a circle: {way}"])
        recipe = replace(recipe, jump=_resolve(get(jump_id), get, (*through, columns.conn_id)))
    return recipe.config(draft, fresh=False)


def _identity(draft: Draft, get: Callable[[str], AirflowConnection]) -> AzureIdentity:
    """Who asks the vault."""
    given = {one.name: draft.given[one.name].value for one in FIELDS if one.identity and one.name in draft.given}
    faults: list[str] = []
    identity = AzureIdentity()
    if azure_id := draft.text("azure_conn_id"):
        if own := sorted(given.keys() - _PLACES):
            faults.append(
                f"{_LABELS['azure_conn_id']} and {', '.join(_LABELS[name] for name in own)}: both given; expected one"
            )
        azure = get(azure_id)
        extra = extra_of(azure)
        mask_secrets(
            text for text in (azure.password, *map(extra.get, _HIDDEN)) if isinstance(text, str) and text.strip()
        )
        given = {"login": azure.login, "password": azure.password, **extra, **given}
    try:
        identity = AzureIdentity.from_fields(given)
    except BadIdentity as error:
        faults += [f"{azure_id and f'connection {azure_id!r}, '}Azure identity: {fault}" for fault in error.faults]
    if faults:
        raise InvalidConnection(draft.conn_id, faults)
    return identity


_HIDDEN: Final = ("client_secret", "certificate_data", "certificate_password")


@dataclass(frozen=True)
class _Recipe:
    """How a configuration is made of a connection, which can be done again when its secrets have changed: called, it
    gives the configuration with the current ones, None where they are not to be had."""

    columns: Columns
    identity: AzureIdentity
    jump: BackendConfig | None = field(default=None, repr=False)

    def __call__(self) -> BackendConfig | None:
        try:
            return self.config(self.draft(fresh=True), fresh=True)
        except (BackendUnavailable, InvalidConnection) as error:
            log.warning("the login is not tried with newer secrets: %s", error)
            return None

    def draft(self, *, fresh: bool) -> Draft:
        """The connection with the values of the one that a secret holds as a whole, if there is one."""
        draft = Draft.of(self.columns)
        if _WHOLE not in draft.given:
            return draft
        faults: list[str] = []
        reference = self._reference(draft, _WHOLE, faults)
        if reference is None:
            raise InvalidConnection(draft.conn_id, faults)
        text = self._fetch(_WHOLE, reference, faults, fresh=fresh)
        if text is None:
            raise InvalidConnection(draft.conn_id, faults)
        found = _connection_in(text, draft.conn_id)
        if found is None:
            wanted = "expected a connection's URI, or its JSON object"
            raise InvalidConnection(draft.conn_id, [f"{_LABELS[_WHOLE]}: {reference.described}: {wanted}"])
        mask_secrets(secrets(found))
        return draft.over(Draft.of(found, origin=reference.described))

    def config(self, draft: Draft, *, fresh: bool) -> BackendConfig:
        """The backend's configuration. Raises as `resolve` does."""
        faults: list[str] = []
        references = self._references(draft, faults)
        faults += draft.problems(apart_from=references)
        if faults:
            raise InvalidConnection(draft.conn_id, faults)
        values: dict[str, Given] = {}
        for name, reference in references.items():
            text = self._fetch(name, reference, faults, fresh=fresh)
            if text is not None:
                values[name] = Given(text, reference.described, hidden=True)
        if faults:
            raise InvalidConnection(draft.conn_id, faults)
        renewable = _WHOLE in draft.given or any(not reference.pinned for reference in references.values())
        return replace(draft.filled(values).config(), jump=self.jump, renew=self if renewable else None)

    def _references(self, draft: Draft, faults: list[str]) -> Mapping[str, SecretReference]:
        """The secrets that fields are to be filled from, by field."""
        found: dict[str, SecretReference] = {}
        for one in FIELDS:
            if not one.vaulted:
                continue
            given, named = draft.given.get(one.name), f"{one.name}_secret"
            if given is not None and named in draft.given:
                faults.append(f"{one.label} and {_LABELS[named]}: both given; expected one of them")
            elif named in draft.given or (given is not None and is_reference(given.text)):
                place = named if named in draft.given else one.name
                if (reference := self._reference(draft, place, faults)) is not None:
                    found[one.name] = reference
        return found

    def _reference(self, draft: Draft, place: str, faults: list[str]) -> SecretReference | None:
        """The reference in a field, which may be complete, or a name in the vault of the connection."""
        text, vault = draft.text(place), draft.text(_VAULT)
        try:
            if is_reference(text) or is_secret_url(text):
                return SecretReference.parse(text, cloud=self.identity.cloud)
            if vault:
                name, _, version = text.partition("/")
                return SecretReference.of(vault, name, version, cloud=self.identity.cloud)
        except BadReference as error:
            faults += [f"{_LABELS[place]}: {fault}" for fault in error.faults]
            return None
        faults.append(f"{_LABELS[_VAULT]}: nothing given; expected its URL or name, as {_LABELS[place]} needs it")
        return None

    def _fetch(self, place: str, reference: SecretReference, faults: list[str], *, fresh: bool) -> str | None:
        """The secret's text, without the newline that files end with."""
        max_age = math.inf if reference.pinned else 0.0 if fresh else MAX_AGE
        try:
            secret = VAULTS.fetch(reference, self.identity, max_age=max_age)
        except KeyVaultError as error:
            if error.retryable:
                raise BackendUnavailable(f"{_LABELS[place]} of connection {self.columns.conn_id!r}: {error}") from error
            faults.append(f"{_LABELS[place]}: {error}")
            return None
        mask_secrets(shown(secret.reveal()) for shown in (str, _trimmed))  # no local holds the text before it is masked
        return _trimmed(secret.reveal())


def _trimmed(text: str) -> str:
    return text.rstrip("\r\n")


def _connection_in(text: str, conn_id: str) -> AirflowConnection | None:
    """The connection in the text of a secret; None if there is none."""
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowException

    try:
        if text.lstrip().startswith("{"):
            return Connection.from_json(text, conn_id)
        return Connection.from_uri(text, conn_id) if "://" in text else None
    except (AirflowException, ValueError, TypeError, AttributeError):
        return None
