"""Parse Airflow connections into a `BackendConfig`, by `FIELDS`.

The supported types are ``sftp_backend``, ``sftp`` and ``ssh``.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from airflow_sftp_backend._key_vault.references import is_reference
from airflow_sftp_backend.backend import BackendConfig, HostKeyPolicy, RetryPolicy, Secret
from airflow_sftp_backend.backend._ssh.ssh_config import SSH_CONFIG_PATH, SSHConfigEntry, ssh_config_entry
from airflow_sftp_backend.backend.config import base_path_of_url, missing_character

from .field_types import InvalidFieldValue
from .fields import CONN_TYPE, FIELDS, Field

log = logging.getLogger(__name__)

FOREIGN_CONN_TYPES: Final = ("sftp", "ssh")
"""Connection types of the sftp and ssh providers; accepted unchanged."""


class AirflowConnection(Protocol):
    """Common attributes of both connection classes of Airflow. ``extra`` is JSON text."""

    @property
    def conn_id(self) -> str: ...
    @property
    def conn_type(self) -> str | None: ...
    @property
    def host(self) -> str | None: ...
    @property
    def port(self) -> int | None: ...
    @property
    def login(self) -> str | None: ...
    @property
    def password(self) -> str | None: ...
    @property
    def schema(self) -> str | None: ...
    @property
    def extra(self) -> str | None: ...


class InvalidConnection(ValueError):
    """Report invalid fields of a connection.

    A retry cannot succeed: the connection must be corrected.

    :param conn_id: id of the connection
    :param problems: one text for each problem, with the labels of the connection form
    """

    def __init__(self, conn_id: str, problems: Sequence[str]) -> None:
        super().__init__(conn_id, problems)
        self.conn_id = conn_id
        self.problems = tuple(problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return f"connection {self.conn_id!r} needs correcting: {self.problems[0]}"
        head = f"connection {self.conn_id!r} needs correcting in {len(self.problems)} places:"
        return "\n- ".join([head, *self.problems])


_MAX_SHOWN_CHARS: Final = 100
_MIN_SIMILARITY: Final = 0.8
"""Least similarity of an unknown name to a known name for a spelling hint, as a ratio of `difflib`."""
_IGNORED_NAMES: Final = frozenset({"cmd_timeout"})
"""Names in Extra for the hooks of the ssh provider, without a meaning for file transfers."""
_TYPE_NAMES: Final[Mapping[type, str]] = {
    str: "text", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "an object",
    type(None): "null",
}  # fmt: skip


@dataclass(frozen=True)
class ConnectionRecord:
    """Connection that is not stored in Airflow."""

    conn_id: str
    conn_type: str | None = CONN_TYPE
    host: str | None = None
    port: int | None = None
    login: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)
    extra: str | None = dataclasses.field(default=None, repr=False)
    schema: str | None = dataclasses.field(default=None, repr=False)


@dataclass(frozen=True)
class FieldValue:
    """Configured value of a field, not parsed.

    :ivar origin: source of the value for messages, such as ``Extra "port"``; blank for a column.
    :ivar hidden: True if messages must not show the value.
    """

    value: object
    origin: str
    hidden: bool = False

    @property
    def text(self) -> str:
        """The value without surrounding blanks; blank if it is not text."""
        return self.value.strip() if isinstance(self.value, str) else ""


@dataclass(frozen=True)
class ConnectionValues:
    """Configured values of a connection by field name, before validation.

    Null and blank values are not set.

    :ivar unknown: names in Extra that do not belong to a field.
    :ivar secrets: texts of all secret fields, under any of their names, without Key Vault references.
    """

    conn_id: str
    conn_type: str | None
    fields: Mapping[str, FieldValue] = dataclasses.field(repr=False)
    problems: tuple[str, ...] = ()
    unknown: frozenset[str] = frozenset()
    secrets: tuple[str, ...] = dataclasses.field(default=(), repr=False)

    @classmethod
    def of(cls, conn: AirflowConnection, *, origin: str | None = None) -> ConnectionValues:
        """Read the values of a connection.

        :param conn: the connection
        :param origin: source of the whole connection if it is not Airflow; its values are hidden then
        """
        problems: list[str] = []
        if conn.conn_type and conn.conn_type not in (CONN_TYPE, *FOREIGN_CONN_TYPES):
            problems.append(f'Connection Type: "{conn.conn_type}" given; expected {CONN_TYPE}, sftp or ssh')
        extra = _parse_extra(conn, problems)
        known = {name for field in FIELDS if not field.column for name in field.names}
        fields: dict[str, FieldValue] = {}
        secrets: list[str] = []
        for field in FIELDS:
            for name, raw in _raw_values(field, conn, extra):
                if raw is None or (isinstance(raw, str) and not raw.strip()):
                    continue
                value_origin = origin or ("" if field.column else f'Extra "{name}"')
                fields.setdefault(field.name, FieldValue(raw, value_origin, hidden=field.secret or origin is not None))
                if field.secret and isinstance(raw, str) and not is_reference(raw):
                    secrets.append(raw)
        _apply_uri_path(conn, fields, problems, origin)
        unknown = frozenset(extra.keys() - known)
        return cls(conn.conn_id, conn.conn_type, fields, tuple(problems), unknown, tuple(secrets))

    def text(self, name: str) -> str:
        """Return the text of a field; blank if not set."""
        return self.fields[name].text if name in self.fields else ""

    def with_fallback(self, fallback: ConnectionValues) -> ConnectionValues:
        """Fill missing fields from another connection.

        The type of the other connection is taken if it is ``sftp`` or ``ssh``.

        A field and its ``_secret`` field count as one: setting either ignores both of ``fallback``.
        """
        overridden = {
            name
            for field in FIELDS
            if field.accepts_secret_reference
            for name in _field_and_secret_names(field, self.fields)
        }
        inherited = {name: value for name, value in fallback.fields.items() if name not in overridden}
        conn_type = fallback.conn_type if fallback.conn_type in FOREIGN_CONN_TYPES else self.conn_type
        return replace(
            self,
            conn_type=conn_type,
            fields={**inherited, **self.fields},
            problems=self.problems + fallback.problems,
            unknown=self.unknown | fallback.unknown,
        )

    def with_values(self, fields: Mapping[str, FieldValue]) -> ConnectionValues:
        """Replace the values of some fields."""
        return replace(self, fields={**self.fields, **fields})

    def validate(self, *, excluding: Collection[str] = ()) -> list[str]:
        """Return all problems, except those of the ``excluding`` fields."""
        return self._parse(excluding)[1]

    def config(self) -> BackendConfig:
        """Return the configuration of the backend. Opens no connection.

        :raises InvalidConnection: with all problems
        """
        parsed, problems = self._parse(())
        if problems:
            raise InvalidConnection(self.conn_id, problems)
        misspelt = list(_misspelt_names(self.unknown))
        ssh_config_notes = list(_ssh_config_notes(self.conn_type, parsed))
        for level, notes in ((logging.WARNING, misspelt), (logging.INFO, ssh_config_notes)):
            for note in notes:
                log.log(level, "connection %r: %s", self.conn_id, note)
        if self.unknown:
            names = ", ".join(sorted(self.unknown))
            log.debug("connection %r: ignoring unknown names in Extra: %s", self.conn_id, names)
        config = _config(self.conn_id, parsed, explicit="host_key_policy" in self.fields)
        return replace(config, notes=(*misspelt, *ssh_config_notes))

    def _parse(self, excluding: Collection[str]) -> tuple[dict[str, Any], list[str]]:
        problems = list(self.problems)
        parsed: dict[str, Any] = {}  # Any: BackendConfig checks the type of each argument
        for field in FIELDS:
            if field.name in excluding:
                continue
            if field.name in self.fields:
                value = self.fields[field.name]
                try:
                    parsed[field.name] = field.type.parse(value.value)
                except InvalidFieldValue as hint:
                    problems.append(f"{_problem(field, value)}; {hint}")
                except (ValueError, OverflowError):
                    problems.append(_problem(field, value))
            elif field.required:
                problems.append(
                    f"{field.label}: nothing given; expected {field.type.expected}, such as {field.example}"
                )
            elif field.default is not None:
                parsed[field.name] = field.type.parse(field.default)
        if self.conn_type in FOREIGN_CONN_TYPES:  # the defaults and the stripping of these providers' hooks
            parsed.setdefault("look_for_keys", True)
            if "password" in parsed:
                parsed["password"] = parsed["password"].strip()
            _apply_ssh_config(parsed, problems)
        return parsed, problems + _contradictions(self.fields, parsed)


def _apply_uri_path(
    conn: AirflowConnection, fields: dict[str, FieldValue], problems: list[str], origin: str | None
) -> None:
    """Use the path of a connection URI as base path.

    Airflow stores the path as schema.
    """
    schema = conn.schema or ""
    if not conn.conn_type and not conn.host and schema.startswith(CONN_TYPE[1:]):
        # urlsplit() knows no scheme with an underscore (RFC 3986 section 3.1), and Airflow cuts the first character.
        problems.append("Connection URI: its scheme is given with an underscore; expected sftp-backend://")
    elif conn.conn_type == CONN_TYPE and schema:
        path = base_path_of_url(f"/{schema.lstrip('/')}")
        if "base_path" in fields and fields["base_path"].value != path:
            problems.append("Base path: given by the path of the URI (the schema) and in Extra; expected one of them")
        fields.setdefault("base_path", FieldValue(path, origin or "path of the URI", hidden=origin is not None))


def _misspelt_names(unknown: frozenset[str]) -> Iterator[str]:
    """Yield a warning for each probably misspelt name in Extra."""
    from difflib import get_close_matches  # imported here: few connections have unknown names

    known = {name for field in FIELDS for name in field.names}
    for name in sorted(unknown - _IGNORED_NAMES):
        if matches := get_close_matches(name.lower(), known, n=1, cutoff=_MIN_SIMILARITY):
            yield f'Extra "{name}" is unknown and ignored; did you mean "{matches[0]}"?'


def _entry_of(host: str) -> SSHConfigEntry | None:
    try:
        return ssh_config_entry(host)
    except ValueError:
        return None


def _apply_ssh_config(parsed: dict[str, Any], problems: list[str]) -> None:
    """Add the values that the ssh provider's hook reads from ``~/.ssh/config``.

    These are the proxy command and, without a password and a key file, the first identity file (ssh provider 7.0,
    ``SSHHook.__init__``). A missing identity file is ignored, as in that hook.
    """
    if "host" not in parsed:
        return
    try:
        entry = ssh_config_entry(parsed["host"])
    except ValueError as error:
        problems.append(str(error))
        return
    if entry is None:
        return
    if entry.proxy_command and not parsed.keys() & {"host_proxy_cmd", "jump_conn_id"}:
        parsed["host_proxy_cmd"] = entry.proxy_command
    if entry.identity_file and not parsed.keys() & {"password", "key_file", "private_key"}:
        key_path = os.path.expanduser(entry.identity_file)
        if os.path.exists(key_path):
            parsed["key_file"] = key_path


def _ssh_config_notes(conn_type: str | None, parsed: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note with the used keywords of ``~/.ssh/config``."""
    entry = _entry_of(parsed["host"])
    if entry is None:
        return
    used = []
    if conn_type in FOREIGN_CONN_TYPES:
        used += ["ProxyCommand"] if parsed.get("host_proxy_cmd") == entry.proxy_command is not None else []
        file = entry.identity_file and os.path.expanduser(entry.identity_file)
        used += ["IdentityFile"] if file and parsed.get("key_file") == file else []
    used_text = " and ".join(used)
    yield f"{SSH_CONFIG_PATH} has an entry for {parsed['host']}; used keywords: {used_text or 'none'}"


def parse(conn: AirflowConnection) -> BackendConfig:
    """Parse a connection without Key Vault references and other connections.

    Opens no connection.

    :raises InvalidConnection: with all problems
    """
    return ConnectionValues.of(conn).config()


def _field_and_secret_names(field: Field, fields: Mapping[str, FieldValue]) -> set[str]:
    """Return the names of field and ``_secret`` field if either is set."""
    names = {field.name, f"{field.name}_secret"}
    return names if names & fields.keys() else set()


def extra_of(conn: AirflowConnection) -> dict[str, object]:
    """Parse Extra; empty if it is not a JSON object."""
    return _parse_extra(conn, [])


def _raw_values(field: Field, conn: AirflowConnection, extra: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield each name of a field with its configured value."""
    if field.column:
        yield field.name, getattr(conn, field.name)
    else:
        yield from ((name, extra.get(name)) for name in field.names)


def _parse_extra(conn: AirflowConnection, problems: list[str]) -> dict[str, object]:
    if conn.extra is None or not conn.extra.strip():
        return {}
    expected = 'expected a JSON object such as {"base_path": "/outbox"}'
    try:
        parsed = json.loads(conn.extra)
    except ValueError as error:
        where = ""
        if isinstance(error, json.JSONDecodeError):
            where = f" (line {error.lineno}, column {error.colno}: {error.msg})"
        problems.append(f"Extra: invalid JSON given{where}; {expected}")
        return {}
    if not isinstance(parsed, dict):
        problems.append(f"Extra: {_TYPE_NAMES[type(parsed)]} given; {expected}")
        return {}
    return parsed


def _problem(field: Field, value: FieldValue) -> str:
    label = f"{field.label} ({value.origin})" if value.origin else field.label
    shown_value = json.dumps(value.value, ensure_ascii=False, default=str)
    if value.hidden or not isinstance(value.value, str | int | float) or len(shown_value) > _MAX_SHOWN_CHARS:
        shown_value = _TYPE_NAMES.get(type(value.value), "something else")
    shown_value = re.sub(r'[^/"\s]+@', "***@", shown_value)  # a URL in place of a host may hold a password
    return f"{label}: {shown_value} given; expected {field.type.expected}"


def _contradictions(fields: Mapping[str, FieldValue], parsed: Mapping[str, Any]) -> list[str]:
    problems = [
        f"{field.label}: the Key Vault secret holds another reference; expected the value"
        for field in FIELDS
        if field.accepts_secret_reference and isinstance(text := parsed.get(field.name), str) and is_reference(text)
    ]
    if "private_key" in fields and "key_file" in fields:
        problems.append("Private key and Private key file: both given; expected one of them")
    if "jump_conn_id" in fields and "host_proxy_cmd" in fields:
        problems.append("Jump host connection and Proxy command: both given; expected one of them")
    if missing_character(parsed.get("base_path", ""), parsed.get("name_encoding", "utf-8")):
        problems.append(
            "Base path and Name encoding: the encoding lacks a character of the path; expected another encoding"
        )
    if "host_key" in fields and "host_key_policy" not in fields and parsed.get("no_host_key_check"):
        problems.append("Host key and No host key check: contradictory; expected one of them")
    return problems


def _config(conn_id: str, parsed: Mapping[str, Any], *, explicit: bool) -> BackendConfig:
    """Convert parsed fields to a configuration.

    ``explicit``: ``host_key_policy`` is set in the connection.
    """
    values: dict[str, Any] = {}
    for field in FIELDS:
        if field.argument is not None and field.name in parsed:
            value = parsed[field.name]
            values[field.argument] = Secret(value) if field.secret else value
    if "password" in values and values.keys() & {"private_key", "key_file"}:
        values.setdefault("passphrase", values["password"])
    retry = RetryPolicy(max_attempts=parsed["conn_retry_attempts"])
    return BackendConfig(**values, **_host_key_settings(conn_id, parsed, explicit=explicit), retry=retry)


def _host_key_settings(conn_id: str, parsed: Mapping[str, Any], *, explicit: bool) -> dict[str, Any]:
    """Return the host key arguments of the configuration.

    The ssh provider's names for "do not check" apply only without ``host_key_policy``. ``host_key`` is always checked.
    """
    policy, path, pinned = parsed["host_key_policy"], parsed.get("host_keys_path"), parsed.get("host_key")
    unchecked_fields = [name for name in ("no_host_key_check", "allow_host_key_change") if parsed[name]]
    if path is not None and path.lower() == "none":  # asyncssh and the sftp provider: no check
        path = None
        unchecked_fields += [] if pinned else ["known_hosts"]
    if unchecked_fields and explicit:
        log.info("connection %r: host_key_policy overrides %s", conn_id, ", ".join(unchecked_fields))
    elif unchecked_fields:
        policy = HostKeyPolicy.AUTO_ADD
        if unchecked_fields != ["no_host_key_check"]:  # these also accept a key that contradicts the known hosts file
            path = os.devnull
        # The host key checker logs a warning with the line to pin, once the server has sent its key.
        log.info("connection %r: host keys are not checked (%s)", conn_id, ", ".join(unchecked_fields))
    lines = [text for text in (parsed.get("known_host_keys"), pinned) if text is not None]
    return {"host_key_policy": policy, "known_host_keys": "\n".join(lines) or None, "host_keys_path": path}
