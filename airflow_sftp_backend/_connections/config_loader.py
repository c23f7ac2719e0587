"""Load a connection with its secrets and the connections it names.

Every fetched secret is masked in the log before its first use.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from airflow_sftp_backend._key_vault.client import MAX_AGE, default_client
from airflow_sftp_backend._key_vault.errors import InvalidReference, KeyVaultError
from airflow_sftp_backend._key_vault.identity import AzureIdentity, InvalidIdentity
from airflow_sftp_backend._key_vault.references import SecretReference, is_reference, is_secret_url
from airflow_sftp_backend._masking import mask_secrets
from airflow_sftp_backend.backend import BackendUnavailable
from airflow_sftp_backend.version_compat import connection_from_text

from .fields import FIELDS
from .parser import (
    AirflowConnection,
    ConnectionValues,
    FieldValue,
    InvalidConnection,
    extra_of,
)

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import BackendConfig

log = logging.getLogger(__name__)

_WHOLE_CONNECTION: Final = "connection_secret"
_VAULT_URL: Final = "key_vault_url"
_CLOUD_FIELDS: Final = {"cloud_environment", "authority"}
"""Fields of the Azure identity that may be combined with ``azure_conn_id``."""
_SECRET_IDENTITY_FIELDS: Final = ("client_secret", "certificate_data", "certificate_password")
_LABELS: Final = {field.name: field.label for field in FIELDS}


def load_config(conn: AirflowConnection, get: Callable[[str], AirflowConnection]) -> BackendConfig:
    """Return the configuration of a connection, with its secrets and jump hosts.

    :param conn: the connection
    :param get: returns the connection with an id
    :returns: the configuration; it can fetch changed secrets again, by ``refresh``
    :raises InvalidConnection: with all problems of the first stage that fails: Azure identity, ``connection_secret``,
        jump host, fields, secrets
    :raises AirflowNotFoundException: if a named connection does not exist
    :raises BackendUnavailable: if a vault cannot be reached or throttles
    """
    return _load_config(conn, get, ())


def _load_config(
    conn: AirflowConnection, get: Callable[[str], AirflowConnection], visited: tuple[str, ...]
) -> BackendConfig:
    values = ConnectionValues.of(conn)
    mask_secrets(values.secrets)
    loader = ConfigLoader(values, _azure_identity(values, get))
    connection = loader.connection(fresh=False)
    jump_id = connection.text("jump_conn_id")
    if jump_id:
        if jump_id in (*visited, values.conn_id):
            chain = " -> ".join([*visited, values.conn_id, jump_id])
            raise InvalidConnection(values.conn_id, [f"{_LABELS['jump_conn_id']}: circular chain: {chain}"])
        loader = replace(loader, jump=_load_config(get(jump_id), get, (*visited, values.conn_id)))
    return loader.config(connection, fresh=False)


def _azure_identity(connection: ConnectionValues, get: Callable[[str], AirflowConnection]) -> AzureIdentity:
    """Return the identity for the login to the vault."""
    fields = {
        field.name: connection.fields[field.name].value
        for field in FIELDS
        if field.is_identity and field.name in connection.fields
    }
    problems: list[str] = []
    identity = AzureIdentity()
    if azure_id := connection.text("azure_conn_id"):
        if own_fields := sorted(fields.keys() - _CLOUD_FIELDS):
            problems.append(
                f"{_LABELS['azure_conn_id']} and {', '.join(_LABELS[name] for name in own_fields)}: both given;"
                " expected one"
            )
        azure_connection = get(azure_id)
        extra = extra_of(azure_connection)
        mask_secrets(
            text
            for text in (azure_connection.password, *map(extra.get, _SECRET_IDENTITY_FIELDS))
            if isinstance(text, str) and text.strip()
        )
        fields = {"login": azure_connection.login, "password": azure_connection.password, **extra, **fields}
    try:
        identity = AzureIdentity.from_fields(fields)
    except InvalidIdentity as error:
        origin = f"connection {azure_id!r}, " if azure_id else ""
        problems += [f"{origin}Azure identity: {problem}" for problem in error.problems]
    if problems:
        raise InvalidConnection(connection.conn_id, problems)
    return identity


@dataclass(frozen=True)
class ConfigLoader:
    """Build the configuration of a connection.

    A call of the object fetches the current secrets and returns the configuration. If the configuration is invalid, or
    a vault does not answer, the call logs a warning and returns None.
    """

    values: ConnectionValues
    identity: AzureIdentity
    jump: BackendConfig | None = dataclasses.field(default=None, repr=False)

    def __call__(self) -> BackendConfig | None:
        try:
            return self.config(self.connection(fresh=True), fresh=True)
        except (BackendUnavailable, InvalidConnection) as error:
            log.warning("not retrying with the current secrets: %s", error)
            return None

    def connection(self, *, fresh: bool) -> ConnectionValues:
        """Return the values of the connection, completed from ``connection_secret``.

        :param fresh: do not use a cached secret
        :returns: the values
        :raises InvalidConnection: if the secret cannot be used
        :raises BackendUnavailable: if the vault cannot be reached or throttles
        """
        connection = self.values
        if _WHOLE_CONNECTION not in connection.fields:
            return connection
        problems: list[str] = []
        reference = self._reference(connection, _WHOLE_CONNECTION, problems)
        if reference is None:
            raise InvalidConnection(connection.conn_id, problems)
        text = self._fetch(_WHOLE_CONNECTION, reference, problems, fresh=fresh)
        if text is None:
            raise InvalidConnection(connection.conn_id, problems)
        stored = connection_from_text(text, connection.conn_id)
        if stored is None:
            expected = "expected a connection's URI, or its JSON object"
            raise InvalidConnection(
                connection.conn_id, [f"{_LABELS[_WHOLE_CONNECTION]}: {reference.description}: {expected}"]
            )
        stored_values = ConnectionValues.of(stored, origin=reference.description)
        mask_secrets(stored_values.secrets)
        return connection.with_fallback(stored_values)

    def config(self, connection: ConnectionValues, *, fresh: bool) -> BackendConfig:
        """Fetch the secrets of the fields and return the configuration.

        :param connection: the values of the connection
        :param fresh: do not use a cached secret
        :returns: the configuration
        :raises InvalidConnection: with all problems of the fields, or else of the secrets
        :raises BackendUnavailable: if a vault cannot be reached or throttles
        """
        problems: list[str] = []
        references = self._references(connection, problems)
        # All fields with a value are validated before the first request to a vault.
        problems += connection.validate(excluding=references)
        if problems:
            raise InvalidConnection(connection.conn_id, problems)
        fetched: dict[str, FieldValue] = {}
        for name, reference in references.items():
            text = self._fetch(name, reference, problems, fresh=fresh)
            if text is not None:
                fetched[name] = FieldValue(text, reference.description, hidden=True)
        if problems:
            raise InvalidConnection(connection.conn_id, problems)
        refreshable = _WHOLE_CONNECTION in connection.fields or any(
            not reference.pinned for reference in references.values()
        )
        return replace(connection.with_values(fetched).config(), jump=self.jump, refresh=self if refreshable else None)

    def _references(self, connection: ConnectionValues, problems: list[str]) -> Mapping[str, SecretReference]:
        """Return the secret references of the connection by field name."""
        references: dict[str, SecretReference] = {}
        for field in FIELDS:
            if not field.accepts_secret_reference:
                continue
            value, secret_field = connection.fields.get(field.name), f"{field.name}_secret"
            if value is not None and secret_field in connection.fields:
                problems.append(f"{field.label} and {_LABELS[secret_field]}: both given; expected one of them")
            elif secret_field in connection.fields or (value is not None and is_reference(value.text)):
                name = secret_field if secret_field in connection.fields else field.name
                if (reference := self._reference(connection, name, problems)) is not None:
                    references[field.name] = reference
        return references

    def _reference(self, connection: ConnectionValues, field_name: str, problems: list[str]) -> SecretReference | None:
        """Return the reference in a field.

        The field has a complete reference, or the name of a secret in the connection's vault.
        """
        text, vault = connection.text(field_name), connection.text(_VAULT_URL)
        try:
            if is_reference(text) or is_secret_url(text):
                return SecretReference.parse(text, cloud=self.identity.cloud)
            if vault:
                name, _, version = text.partition("/")
                return SecretReference.of(vault, name, version, cloud=self.identity.cloud)
        except InvalidReference as error:
            problems += [f"{_LABELS[field_name]}: {problem}" for problem in error.problems]
            return None
        problems.append(
            f"{_LABELS[_VAULT_URL]}: nothing given; expected the URL or name of the vault of {_LABELS[field_name]}"
        )
        return None

    def _fetch(self, field_name: str, reference: SecretReference, problems: list[str], *, fresh: bool) -> str | None:
        """Fetch the text of a secret, without a newline at its end."""
        # The text of a pinned version never changes.
        max_age = math.inf if reference.pinned else 0.0 if fresh else MAX_AGE
        try:
            secret = default_client.fetch(reference, self.identity, max_age=max_age)
        except KeyVaultError as error:
            if error.retryable:
                raise BackendUnavailable(
                    f"{_LABELS[field_name]} of connection {self.values.conn_id!r}: {error}"
                ) from error
            problems.append(f"{_LABELS[field_name]}: {error}")
            return None
        # No local variable holds the text before it is masked: a traceback might show it.
        mask_secrets((secret.reveal(), _without_final_newline(secret.reveal())))
        return _without_final_newline(secret.reveal())


def _without_final_newline(text: str) -> str:
    return text.rstrip("\r\n")
