"""Airflow connection -> BackendConfig, by the table of fields. Beside ``sftp_backend`` connections, those of the types
``sftp`` and ``ssh`` are taken as they are.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from airflow_sftp_backend._key_vault.client import is_reference
from airflow_sftp_backend.backend import BackendConfig, HostKeyPolicy, RetryPolicy, Secret
from airflow_sftp_backend.backend._ssh.ssh_config import SSH_CONFIG_PATH, SSHConfigEntry, ssh_config_entry

from .fields import CONN_TYPE, FIELDS, Field, Hint

log = logging.getLogger(__name__)

ADOPTED_TYPES: Final = ("sftp", "ssh")
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

    ``faults`` holds all that is wrong, one text each, in the words of the connection form.
    """

    def __init__(self, conn_id: str, faults: Sequence[str]) -> None:
        super().__init__(conn_id, faults)
        self.conn_id = conn_id
        self.faults = tuple(faults)

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return f"connection {self.conn_id!r} needs correcting: {self.faults[0]}"
        head = f"connection {self.conn_id!r} needs correcting in {len(self.faults)} places:"
        return "\n- ".join([head, *self.faults])


_LONGEST_SHOWN: Final = 100
_SIMILAR: Final = 0.8
"""How much of an unknown name has to agree with a known one, as `difflib` measures it, to be taken for a slip."""
_NAMES_OF_OTHERS: Final = frozenset({"cmd_timeout"})
"""Names in Extra that hooks of the ssh provider read and that mean nothing for files."""
_TYPE_NAMES: Final[Mapping[type, str]] = {
    str: "text", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "an object",
    type(None): "null",
}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """A connection as plain values: what is kept of one of Airflow's."""

    conn_id: str
    conn_type: str | None = CONN_TYPE
    host: str | None = None
    port: int | None = None
    login: str | None = None
    password: str | None = field(default=None, repr=False)
    extra: str | None = field(default=None, repr=False)
    schema: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, conn: AirflowConnection) -> Columns:
        """The same values."""
        return cls(
            conn.conn_id, conn.conn_type, conn.host, conn.port, conn.login, conn.password, conn.extra, conn.schema
        )


@dataclass(frozen=True)
class Given:
    """What a field was given: ``place`` is where, as faults name it; ``hidden``: no message shows the value."""

    value: object
    place: str
    hidden: bool = False

    @property
    def text(self) -> str:
        """One line of text; blank for anything else."""
        return self.value.strip() if isinstance(self.value, str) else ""


@dataclass(frozen=True)
class Draft:
    """What is set in a connection, by the names of its fields, before it is judged. Null and blank count as not set."""

    conn_id: str
    conn_type: str | None
    given: Mapping[str, Given]
    faults: tuple[str, ...] = ()
    unknown: frozenset[str] = frozenset()
    """Names in its Extra that are none of a field's."""

    @classmethod
    def of(cls, conn: AirflowConnection, *, origin: str | None = None) -> Draft:
        """``origin``: where the connection as a whole comes from, if not from Airflow; nothing of it is shown then."""
        faults: list[str] = []
        if conn.conn_type and conn.conn_type not in (CONN_TYPE, *ADOPTED_TYPES):
            faults.append(f'Connection Type: "{conn.conn_type}" given; expected {CONN_TYPE}, sftp or ssh')
        extra = _extra(conn, faults)
        known = {name for one in FIELDS if not one.column for name in one.names}
        given: dict[str, Given] = {}
        for one in FIELDS:
            for name, raw in _spellings(one, conn, extra):
                if raw is not None and not (isinstance(raw, str) and not raw.strip()):
                    place = origin or ("" if one.column else f'Extra "{name}"')
                    given.setdefault(one.name, Given(raw, place, hidden=one.secret or origin is not None))
        _take_uri(conn, given, faults, origin)
        return cls(conn.conn_id, conn.conn_type, given, tuple(faults), frozenset(extra.keys() - known))

    def text(self, name: str) -> str:
        """A field's one line of text; blank where it has none."""
        return self.given[name].text if name in self.given else ""

    def over(self, below: Draft) -> Draft:
        """With the other's values where this one has none, and the other's type where it is one made for others."""
        hidden = {name for one in FIELDS if one.vaulted for name in _twins(one, self.given)}
        kept = {name: value for name, value in below.given.items() if name not in hidden}
        adopted = below.conn_type if below.conn_type in ADOPTED_TYPES else self.conn_type
        return replace(
            self,
            conn_type=adopted,
            given={**kept, **self.given},
            faults=self.faults + below.faults,
            unknown=self.unknown | below.unknown,
        )

    def filled(self, values: Mapping[str, Given]) -> Draft:
        """With these in place of what is given."""
        return replace(self, given={**self.given, **values})

    def problems(self, *, apart_from: Collection[str] = ()) -> list[str]:
        """All its faults, without looking at some fields."""
        return self._read(apart_from)[1]

    def config(self) -> BackendConfig:
        """What it says. Raises InvalidConnection, which holds all its faults. Nothing connects."""
        said, faults = self._read(())
        if faults:
            raise InvalidConnection(self.conn_id, faults)
        slips, entries = list(_similar_names(self.unknown)), list(_ssh_config_notes(self.conn_type, said))
        for level, notes in ((logging.WARNING, slips), (logging.INFO, entries)):
            for note in notes:
                log.log(level, "connection %r: %s", self.conn_id, note)
        if self.unknown:
            names = ", ".join(sorted(self.unknown))
            log.debug("connection %r: unknown names in Extra are ignored: %s", self.conn_id, names)
        config = _config(self.conn_id, said, explicit="host_key_policy" in self.given)
        return replace(config, notes=(*slips, *entries))

    def _read(self, apart_from: Collection[str]) -> tuple[dict[str, Any], list[str]]:
        faults = list(self.faults)
        said: dict[str, Any] = {}  # BackendConfig checks each of them
        for one in FIELDS:
            if one.name in apart_from:
                continue
            if one.name in self.given:
                given = self.given[one.name]
                try:
                    said[one.name] = one.kind.read(given.value)
                except Hint as hint:
                    faults.append(f"{_fault(one, given)}; {hint}")
                except (ValueError, OverflowError):
                    faults.append(_fault(one, given))
            elif one.required:
                faults.append(f"{one.label}: nothing given; expected {one.kind.expected}, such as {one.example}")
            elif one.default is not None:
                said[one.name] = one.kind.read(one.default)
        if self.conn_type in ADOPTED_TYPES:  # as the hooks of these types do
            said.setdefault("look_for_keys", True)
            if "password" in said:
                said["password"] = said["password"].strip()
            _apply_ssh_config(said, faults)
        return said, faults + _contradictions(self.given, said)


def _take_uri(conn: AirflowConnection, given: dict[str, Given], faults: list[str], origin: str | None) -> None:
    """Take the path of a connection URI, which Airflow keeps as the schema, for the base path."""
    schema = conn.schema or ""
    if not conn.conn_type and not conn.host and schema.startswith(CONN_TYPE[1:]):
        # urlsplit() knows no scheme with an underscore (RFC 3986 section 3.1), and Airflow cuts the first character.
        faults.append("Connection URI: its scheme is given with an underscore; expected sftp-backend://")
    elif conn.conn_type == CONN_TYPE and schema:
        path = f"/{schema.lstrip('/')}"
        path = path[3:] or "." if path == "/~" or path.startswith("/~/") else path
        if "base_path" in given and given["base_path"].value != path:
            faults.append("Base path: given by the path of the URI (the schema) and in Extra; expected one of them")
        given.setdefault("base_path", Given(path, origin or "path of the URI", hidden=origin is not None))


def _similar_names(unknown: frozenset[str]) -> Iterator[str]:
    """Tell of names in Extra that are probably misspelt."""
    from difflib import get_close_matches  # here, because hardly any connection needs it

    known = {name for one in FIELDS for name in one.names}
    for name in sorted(unknown - _NAMES_OF_OTHERS):
        if close := get_close_matches(name.lower(), known, n=1, cutoff=_SIMILAR):
            yield f'Extra "{name}" is not known and counts for nothing; did you mean "{close[0]}"?'


def _entry_of(host: str) -> SSHConfigEntry | None:
    try:
        return ssh_config_entry(host)
    except ValueError:
        return None


def _apply_ssh_config(said: dict[str, Any], faults: list[str]) -> None:
    """Fill in what the ssh provider's hook takes from ``~/.ssh/config`` of the worker.

    That is the proxy command and, where neither password nor key file is given, the first identity file (ssh provider
    7.0, ``SSHHook.__init__``). An identity file that does not exist is left out: that hook goes on without it as well.
    """
    if "host" not in said:
        return
    try:
        entry = ssh_config_entry(said["host"])
    except ValueError as error:
        faults.append(str(error))
        return
    if entry is None:
        return
    if entry.proxy_command and not said.keys() & {"host_proxy_cmd", "jump_conn_id"}:
        said["host_proxy_cmd"] = entry.proxy_command
    if entry.identity_file and not said.keys() & {"password", "key_file", "private_key"}:
        file = os.path.expanduser(entry.identity_file)
        if os.path.exists(file):
            said["key_file"] = file


def _ssh_config_notes(conn_type: str | None, said: Mapping[str, Any]) -> Iterator[str]:
    """Tell which part of the host's entry in ``~/.ssh/config`` counts."""
    entry = _entry_of(said["host"])
    if entry is None:
        return
    counts = []
    if conn_type in ADOPTED_TYPES:
        counts += ["ProxyCommand"] if said.get("host_proxy_cmd") == entry.proxy_command is not None else []
        file = entry.identity_file and os.path.expanduser(entry.identity_file)
        counts += ["IdentityFile"] if file and said.get("key_file") == file else []
    shown = " and ".join(counts)
    yield f"{SSH_CONFIG_PATH} has an entry for {said['host']}; of it is used: {shown or 'nothing'}"


def parse(conn: AirflowConnection) -> BackendConfig:
    """What a connection says by itself. Raises InvalidConnection, which holds all its faults. Nothing connects."""
    return Draft.of(conn).config()


def secrets(conn: AirflowConnection) -> Iterator[str]:
    """Every secret text in a connection, as it stands there."""
    extra = extra_of(conn)
    for one in FIELDS:
        if one.secret:
            found = (raw for _, raw in _spellings(one, conn, extra))
            yield from (text for text in found if isinstance(text, str) and text.strip() and not is_reference(text))


def _twins(field: Field, given: Mapping[str, Given]) -> set[str]:
    """Both names by which a value may come, if one of them is given."""
    twins = {field.name, f"{field.name}_secret"}
    return twins if twins & given.keys() else set()


def extra_of(conn: AirflowConnection) -> dict[str, object]:
    """Its Extra; nothing where that is no JSON object."""
    return _extra(conn, [])


def _spellings(field: Field, conn: AirflowConnection, extra: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Each name a field may be given under, with what is given there."""
    if field.column:
        yield field.name, getattr(conn, field.name)
    else:
        yield from ((name, extra.get(name)) for name in field.names)


def _extra(conn: AirflowConnection, faults: list[str]) -> dict[str, object]:
    if conn.extra is None or not conn.extra.strip():
        return {}
    expected = 'expected a JSON object such as {"base_path": "/outbox"}'
    try:
        found = json.loads(conn.extra)
    except ValueError as error:
        where = ""
        if isinstance(error, json.JSONDecodeError):
            where = f" (line {error.lineno}, column {error.colno}: {error.msg})"
        faults.append(f"Extra: text that is not JSON given{where}; {expected}")
        return {}
    if not isinstance(found, dict):
        faults.append(f"Extra: {_TYPE_NAMES[type(found)]} given; {expected}")
        return {}
    return found


def _fault(field: Field, given: Given) -> str:
    where = f"{field.label} ({given.place})" if given.place else field.label
    shown = json.dumps(given.value, ensure_ascii=False, default=str)
    if given.hidden or not isinstance(given.value, str | int | float) or len(shown) > _LONGEST_SHOWN:
        shown = _TYPE_NAMES.get(type(given.value), "something else")
    shown = re.sub(r'[^/"\s]+@', "***@", shown)  # a URL's user and password, given for a host
    return f"{where}: {shown} given; expected {field.kind.expected}"


def _contradictions(given: Mapping[str, Given], said: Mapping[str, Any]) -> list[str]:
    found = [
        f"{one.label}: a reference to Key Vault where its value belongs; one reference leads to a value, not to another"
        for one in FIELDS
        if one.vaulted and isinstance(text := said.get(one.name), str) and is_reference(text)
    ]
    if "private_key" in given and "key_file" in given:
        found.append("Private key and Private key file: both given; expected one of them")
    if "jump_conn_id" in given and "host_proxy_cmd" in given:
        found.append("Jump host connection and Proxy command: both given; expected one of them")
    if "host_key" in given and "host_key_policy" not in given and said.get("no_host_key_check"):
        found.append("Host key and No host key check: one says to check, the other not to; expected one of them")
    return found


def _config(conn_id: str, said: Mapping[str, Any], *, explicit: bool) -> BackendConfig:
    """The values of the fields -> the backend's. ``explicit``: the host key policy was given."""
    values: dict[str, Any] = {}
    for one in FIELDS:
        if one.argument is not None and one.name in said:
            value = said[one.name]
            values[one.argument] = Secret(value) if one.secret else value
    if "password" in values and values.keys() & {"private_key", "key_file"}:
        values.setdefault("passphrase", values["password"])
    retry = RetryPolicy(max_attempts=said["conn_retry_attempts"])
    return BackendConfig(**values, **_trust(conn_id, said, explicit=explicit), retry=retry)


def _trust(conn_id: str, said: Mapping[str, Any], *, explicit: bool) -> dict[str, Any]:
    """Which host keys to trust. The old names for "do not check" count where no policy is given; a key that is given is
    checked in any case."""
    policy, path, pinned = said["host_key_policy"], said.get("host_keys_path"), said.get("host_key")
    unchecked = [name for name in ("no_host_key_check", "allow_host_key_change") if said[name]]
    if path is not None and path.lower() == "none":  # what asyncssh, and so an sftp connection, means by it
        path = None
        unchecked += [] if pinned else ["known_hosts"]
    if unchecked and explicit:
        log.info("connection %r: host_key_policy counts, and not %s", conn_id, ", ".join(unchecked))
    elif unchecked:
        policy = HostKeyPolicy.AUTO_ADD
        if unchecked != ["no_host_key_check"]:  # a key that contradicts the known hosts file is taken, too
            path = os.devnull
        # The warning, with the line that pins the key, follows when the server has shown its key.
        log.info("connection %r: host keys are not checked (%s)", conn_id, ", ".join(unchecked))
    lines = [text for text in (said.get("known_host_keys"), pinned) if text is not None]
    return {"host_key_policy": policy, "known_host_keys": "\n".join(lines) or None, "host_keys_path": path}
