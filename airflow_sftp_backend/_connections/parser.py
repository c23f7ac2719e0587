"""Airflow connection -> BackendConfig, by the table of fields. Beside ``sftp_backend`` connections, those of the types
``sftp`` and ``ssh`` are taken as they are.
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

from .field_types import InvalidFieldValue
from .fields import CONN_TYPE, FIELDS, Field

log = logging.getLogger(__name__)

FOREIGN_CONN_TYPES: Final = ("sftp", "ssh")
"""Types of connections made for others, which are taken unchanged."""


class AirflowConnection(Protocol):
    """What is read of an Airflow connection: both of Airflow's own classes have it. ``extra`` is JSON text."""

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
    """A connection says something it cannot mean. Trying again does not help: somebody has to correct it.

    ``problems`` holds all that is wrong, one text each, in the words of the connection form.
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
"""How much of an unknown name has to agree with a known one, as `difflib` measures it, to be taken for a slip."""
_IGNORED_NAMES: Final = frozenset({"cmd_timeout"})
"""Names in Extra that hooks of the ssh provider read and that mean nothing for files."""
_TYPE_NAMES: Final[Mapping[type, str]] = {
    str: "text", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "an object",
    type(None): "null",
}  # fmt: skip


@dataclass(frozen=True)
class ConnectionRecord:
    """A connection as plain values: what is kept of one of Airflow's."""

    conn_id: str
    conn_type: str | None = CONN_TYPE
    host: str | None = None
    port: int | None = None
    login: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)
    extra: str | None = dataclasses.field(default=None, repr=False)
    schema: str | None = dataclasses.field(default=None, repr=False)

    @classmethod
    def of(cls, conn: AirflowConnection) -> ConnectionRecord:
        """The same values."""
        return cls(
            conn.conn_id, conn.conn_type, conn.host, conn.port, conn.login, conn.password, conn.extra, conn.schema
        )


@dataclass(frozen=True)
class FieldValue:
    """What a field was given: ``origin`` is where, as faults name it; ``hidden``: no message shows the value."""

    value: object
    origin: str
    hidden: bool = False

    @property
    def text(self) -> str:
        """One line of text; blank for anything else."""
        return self.value.strip() if isinstance(self.value, str) else ""


@dataclass(frozen=True)
class ConnectionValues:
    """What is set in a connection, by the names of its fields, before it is judged. Null and blank count as not set."""

    conn_id: str
    conn_type: str | None
    fields: Mapping[str, FieldValue]
    problems: tuple[str, ...] = ()
    unknown: frozenset[str] = frozenset()
    """Names in its Extra that are none of a field's."""

    @classmethod
    def of(cls, conn: AirflowConnection, *, origin: str | None = None) -> ConnectionValues:
        """``origin``: where the connection as a whole comes from, if not from Airflow; nothing of it is shown then."""
        problems: list[str] = []
        if conn.conn_type and conn.conn_type not in (CONN_TYPE, *FOREIGN_CONN_TYPES):
            problems.append(f'Connection Type: "{conn.conn_type}" given; expected {CONN_TYPE}, sftp or ssh')
        extra = _parse_extra(conn, problems)
        known = {name for field in FIELDS if not field.column for name in field.names}
        fields: dict[str, FieldValue] = {}
        for field in FIELDS:
            for name, raw in _raw_values(field, conn, extra):
                if raw is not None and not (isinstance(raw, str) and not raw.strip()):
                    value_origin = origin or ("" if field.column else f'Extra "{name}"')
                    fields.setdefault(
                        field.name, FieldValue(raw, value_origin, hidden=field.secret or origin is not None)
                    )
        _apply_uri_path(conn, fields, problems, origin)
        return cls(conn.conn_id, conn.conn_type, fields, tuple(problems), frozenset(extra.keys() - known))

    def text(self, name: str) -> str:
        """A field's one line of text; blank where it has none."""
        return self.fields[name].text if name in self.fields else ""

    def with_fallback(self, fallback: ConnectionValues) -> ConnectionValues:
        """With the other's values where this one has none, and the other's type where it is one made for others."""
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
        """With these in place of what is given."""
        return replace(self, fields={**self.fields, **fields})

    def validate(self, *, excluding: Collection[str] = ()) -> list[str]:
        """All its faults, without looking at some fields."""
        return self._parse(excluding)[1]

    def config(self) -> BackendConfig:
        """What it says. Raises InvalidConnection, which holds all its faults. Nothing connects."""
        parsed, problems = self._parse(())
        if problems:
            raise InvalidConnection(self.conn_id, problems)
        misspelt, ssh_config_notes = (
            list(_misspelt_names(self.unknown)),
            list(_ssh_config_notes(self.conn_type, parsed)),
        )
        for level, notes in ((logging.WARNING, misspelt), (logging.INFO, ssh_config_notes)):
            for note in notes:
                log.log(level, "connection %r: %s", self.conn_id, note)
        if self.unknown:
            names = ", ".join(sorted(self.unknown))
            log.debug("connection %r: unknown names in Extra are ignored: %s", self.conn_id, names)
        config = _config(self.conn_id, parsed, explicit="host_key_policy" in self.fields)
        return replace(config, notes=(*misspelt, *ssh_config_notes))

    def _parse(self, excluding: Collection[str]) -> tuple[dict[str, Any], list[str]]:
        problems = list(self.problems)
        parsed: dict[str, Any] = {}  # BackendConfig checks each of them
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
        if self.conn_type in FOREIGN_CONN_TYPES:  # as the hooks of these types do
            parsed.setdefault("look_for_keys", True)
            if "password" in parsed:
                parsed["password"] = parsed["password"].strip()
            _apply_ssh_config(parsed, problems)
        return parsed, problems + _contradictions(self.fields, parsed)


def _apply_uri_path(
    conn: AirflowConnection, fields: dict[str, FieldValue], problems: list[str], origin: str | None
) -> None:
    """Take the path of a connection URI, which Airflow keeps as the schema, for the base path."""
    schema = conn.schema or ""
    if not conn.conn_type and not conn.host and schema.startswith(CONN_TYPE[1:]):
        # urlsplit() knows no scheme with an underscore (RFC 3986 section 3.1), and Airflow cuts the first character.
        problems.append("Connection URI: its scheme is given with an underscore; expected sftp-backend://")
    elif conn.conn_type == CONN_TYPE and schema:
        path = f"/{schema.lstrip('/')}"
        path = path[3:] or "." if path == "/~" or path.startswith("/~/") else path
        if "base_path" in fields and fields["base_path"].value != path:
            problems.append("Base path: given by the path of the URI (the schema) and in Extra; expected one of them")
        fields.setdefault("base_path", FieldValue(path, origin or "path of the URI", hidden=origin is not None))


def _misspelt_names(unknown: frozenset[str]) -> Iterator[str]:
    """Tell of names in Extra that are probably misspelt."""
    from difflib import get_close_matches  # here, because hardly any connection needs it

    known = {name for field in FIELDS for name in field.names}
    for name in sorted(unknown - _IGNORED_NAMES):
        if matches := get_close_matches(name.lower(), known, n=1, cutoff=_MIN_SIMILARITY):
            yield f'Extra "{name}" is not known and counts for nothing; did you mean "{matches[0]}"?'


def _entry_of(host: str) -> SSHConfigEntry | None:
    try:
        return ssh_config_entry(host)
    except ValueError:
        return None


def _apply_ssh_config(parsed: dict[str, Any], problems: list[str]) -> None:
    """Fill in what the ssh provider's hook takes from ``~/.ssh/config`` of the worker.

    That is the proxy command and, where neither password nor key file is given, the first identity file (ssh provider
    7.0, ``SSHHook.__init__``). An identity file that does not exist is left out: that hook goes on without it as well.
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
    """Tell which part of the host's entry in ``~/.ssh/config`` counts."""
    entry = _entry_of(parsed["host"])
    if entry is None:
        return
    used = []
    if conn_type in FOREIGN_CONN_TYPES:
        used += ["ProxyCommand"] if parsed.get("host_proxy_cmd") == entry.proxy_command is not None else []
        file = entry.identity_file and os.path.expanduser(entry.identity_file)
        used += ["IdentityFile"] if file and parsed.get("key_file") == file else []
    used_text = " and ".join(used)
    yield f"{SSH_CONFIG_PATH} has an entry for {parsed['host']}; of it is used: {used_text or 'nothing'}"


def parse(conn: AirflowConnection) -> BackendConfig:
    """What a connection says by itself. Raises InvalidConnection, which holds all its faults. Nothing connects."""
    return ConnectionValues.of(conn).config()


def secret_texts(conn: AirflowConnection) -> Iterator[str]:
    """Every secret text in a connection, as it stands there."""
    extra = extra_of(conn)
    for field in FIELDS:
        if field.secret:
            texts = (raw for _, raw in _raw_values(field, conn, extra))
            yield from (text for text in texts if isinstance(text, str) and text.strip() and not is_reference(text))


def _field_and_secret_names(field: Field, fields: Mapping[str, FieldValue]) -> set[str]:
    """Both names by which a value may come, if one of them is given."""
    names = {field.name, f"{field.name}_secret"}
    return names if names & fields.keys() else set()


def extra_of(conn: AirflowConnection) -> dict[str, object]:
    """Its Extra; nothing where that is no JSON object."""
    return _parse_extra(conn, [])


def _raw_values(field: Field, conn: AirflowConnection, extra: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Each name a field may be given under, with what is given there."""
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
        problems.append(f"Extra: text that is not JSON given{where}; {expected}")
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
    shown_value = re.sub(r'[^/"\s]+@', "***@", shown_value)  # a URL's user and password, given for a host
    return f"{label}: {shown_value} given; expected {field.type.expected}"


def _contradictions(fields: Mapping[str, FieldValue], parsed: Mapping[str, Any]) -> list[str]:
    problems = [
        f"{field.label}: a reference to Key Vault where its value belongs; one reference leads to a value, not"
        " to another"
        for field in FIELDS
        if field.accepts_secret_reference and isinstance(text := parsed.get(field.name), str) and is_reference(text)
    ]
    if "private_key" in fields and "key_file" in fields:
        problems.append("Private key and Private key file: both given; expected one of them")
    if "jump_conn_id" in fields and "host_proxy_cmd" in fields:
        problems.append("Jump host connection and Proxy command: both given; expected one of them")
    if "host_key" in fields and "host_key_policy" not in fields and parsed.get("no_host_key_check"):
        problems.append("Host key and No host key check: one says to check, the other not to; expected one of them")
    return problems


def _config(conn_id: str, parsed: Mapping[str, Any], *, explicit: bool) -> BackendConfig:
    """The values of the fields -> the backend's. ``explicit``: the host key policy was given."""
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
    """Which host keys to trust. The old names for "do not check" count where no policy is given; a key that is given is
    checked in any case."""
    policy, path, pinned = parsed["host_key_policy"], parsed.get("host_keys_path"), parsed.get("host_key")
    unchecked_fields = [name for name in ("no_host_key_check", "allow_host_key_change") if parsed[name]]
    if path is not None and path.lower() == "none":  # what asyncssh, and so an sftp connection, means by it
        path = None
        unchecked_fields += [] if pinned else ["known_hosts"]
    if unchecked_fields and explicit:
        log.info("connection %r: host_key_policy counts, and not %s", conn_id, ", ".join(unchecked_fields))
    elif unchecked_fields:
        policy = HostKeyPolicy.AUTO_ADD
        if unchecked_fields != ["no_host_key_check"]:  # a key that contradicts the known hosts file is taken, too
            path = os.devnull
        # The warning, with the line that pins the key, follows when the server has shown its key.
        log.info("connection %r: host keys are not checked (%s)", conn_id, ", ".join(unchecked_fields))
    lines = [text for text in (parsed.get("known_host_keys"), pinned) if text is not None]
    return {"host_key_policy": policy, "known_host_keys": "\n".join(lines) or None, "host_keys_path": path}
