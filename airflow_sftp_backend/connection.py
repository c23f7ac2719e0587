"""Airflow connection -> BackendConfig, by one table of fields.

`FIELDS` holds what a connection may say, each name once: the form, the parser, the README's table and the tests are
derived from it. Beside ``sftp_backend`` connections, those of the types ``sftp`` and ``ssh`` are taken as they are.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from .backend import BackendConfig, HostKeyPolicy, RetryPolicy, Secret

log = logging.getLogger(__name__)

CONN_TYPE: Final = "sftp_backend"
HOOK_NAME: Final = "SFTP Backend"
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


@dataclass(frozen=True)
class Kind:
    """What a field takes: in words (``expected``), as JSON Schema (``schema``), and as the function that turns what was
    given into the argument, or raises ValueError (``read``)."""

    expected: str
    read: Callable[[object], object]
    schema: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Field:
    """One thing a connection may say.

    ``name`` is a column of the connection (``column``) or a key of its Extra; ``aliases`` are other names of the key,
    of less weight. ``argument`` is what BackendConfig calls it; None for what is more than a matter of names.
    ``example`` is what the form shows in the empty column. ``in_form``: the form has a field for it.
    """

    name: str
    label: str
    description: str
    kind: Kind
    argument: str | None = None
    default: str | float | bool | None = None
    example: str = ""
    aliases: tuple[str, ...] = ()
    column: bool = False
    in_form: bool = False
    required: bool = False
    secret: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All names it goes by, the first that is given counts."""
        return (self.name, *self.aliases)


# ---- kinds -----------------------------------------------------------------------------------------------------------


def _text(given: object) -> str:
    if not isinstance(given, str):
        raise ValueError("not text")
    return given


def _line(given: object) -> str:
    text = _text(given).strip()
    if not text.isprintable():
        raise ValueError("not one line")
    return text


def _host(given: object) -> str:
    text = _line(given)
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return BackendConfig(host=bare).host


def _folder(given: object) -> str:
    text = _line(given)
    if ".." in text.split("/"):
        raise ValueError("leads up")
    return text


def _number(given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise ValueError("not a number")
    number = float(given)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def _seconds(given: object) -> float:
    number = _number(given)
    if number <= 0:
        raise ValueError("not positive")
    return number


def _seconds_or_never(given: object) -> float | None:
    return None if _number(given) == 0 else _seconds(given)


def _interval(given: object) -> float:
    return _seconds_or_never(given) or 0.0


def _whole(low: int, high: int) -> Kind:
    def read(given: object) -> int:
        number = _number(given)
        if number != int(number) or not low <= number <= high:
            raise ValueError("out of range")
        return int(number)

    return Kind(
        f"a whole number from {low} to {high}", read, {"type": ["integer", "null"], "minimum": low, "maximum": high}
    )


def _flag(given: object) -> bool:
    if isinstance(given, bool):
        return given
    word = _line(given).lower()
    if word not in ("true", "false"):
        raise ValueError("neither")
    return word == "true"


def _policy(given: object) -> HostKeyPolicy:
    return HostKeyPolicy.parse(_text(given))


def _names(given: object) -> tuple[str, ...]:
    names = given.split(",") if isinstance(given, str) else given
    if not isinstance(names, list):
        raise ValueError("not a list")
    return tuple(_line(name) for name in names)


def _algorithms(given: object) -> dict[str, tuple[str, ...]]:
    table = json.loads(given) if isinstance(given, str) else given
    if not isinstance(table, dict):
        raise ValueError("not an object")
    return {_line(use): _names(names) for use, names in table.items()}


def _host_key(given: object) -> str:
    """The key as ``type base64``; the type is part of the key (RFC 4253 section 6.6), so that a bare one has it too."""
    from .backend._hostkeys import key_type  # here, because every Airflow process imports this module

    words = _text(given).split()
    if len(words) == 1 and words[0].startswith("SHA256:"):
        return words[0]
    said, body = (words[0], words[1]) if len(words) > 1 else ("", words[0])
    found = key_type(base64.b64decode(body, validate=True))
    of_family = said == "ssh-ecdsa" and found.startswith("ecdsa-")
    if said not in ("", found) and not of_family:
        raise ValueError("not a key of that type")
    return f"{found} {body}"


_LONGEST_SHOWN: Final = 100
_TYPE_NAMES: Final[Mapping[type, str]] = {
    str: "text", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "an object",
    type(None): "null",
}  # fmt: skip

_STRING: Final = {"type": ["string", "null"]}
_SECONDS_SCHEMA: Final = {"type": ["number", "null"], "minimum": 0}

TEXT = Kind("text", _text, _STRING)
LINE = Kind("one line of text", _line, _STRING)
HOST = Kind("the bare name or address of the server", _host, _STRING)
FOLDER = Kind("a folder on the server without '..'", _folder, _STRING)
PORT = _whole(1, 65535)
ATTEMPTS = _whole(1, 100)
LANES = _whole(1, 10)
SECONDS = Kind("a number of seconds above 0", _seconds, {"type": ["number", "null"], "exclusiveMinimum": 0})
SECONDS_OR_NEVER = Kind("a number of seconds, 0 for no limit", _seconds_or_never, _SECONDS_SCHEMA)
INTERVAL = Kind("a number of seconds, 0 for never", _interval, _SECONDS_SCHEMA)
FLAG = Kind("true or false", _flag, {"type": ["boolean", "null"]})
POLICY = Kind(
    "one of " + ", ".join(policy.value for policy in HostKeyPolicy),
    _policy,
    {**_STRING, "enum": [policy.value for policy in HostKeyPolicy]},
)
MULTILINE = Kind("text", _text, {**_STRING, "format": "multiline"})
PASSWORD = Kind("text", _text, {**_STRING, "format": "password"})
NAMES = Kind("a list of names", _names, {"type": ["array", "null"]})
ALGORITHMS = Kind(
    'an object of lists, such as {"kex": ["diffie-hellman-group14-sha1"]}', _algorithms, {"type": ["object", "null"]}
)
HOST_KEY = Kind("a public key as 'ssh-ed25519 AAAA…', or its fingerprint as 'SHA256:…'", _host_key, _STRING)

# ---- the table -------------------------------------------------------------------------------------------------------

FIELDS: Final[tuple[Field, ...]] = (
    Field(
        name="host", label="Host", kind=HOST, argument="host", column=True, in_form=True, required=True,
        example="sftp.example.com", description="Name or address of the server, such as sftp.example.com.",
    ),
    Field(
        name="port", label="Port", kind=PORT, argument="port", column=True, in_form=True, default=22, example="22",
        description="Port of the SSH server.",
    ),
    Field(
        name="login", label="Username", kind=LINE, argument="username", column=True, in_form=True, example="partner-a",
        description="User to log in as; the one Airflow runs as where it is left out.",
    ),
    Field(
        name="password", label="Password", kind=PASSWORD, argument="password", column=True, in_form=True, secret=True,
        description="Password of the user. Also opens the private key where that has no passphrase of its own here.",
    ),
    Field(
        name="base_path", label="Base path", kind=FOLDER, argument="base_path", in_form=True, default="/",
        description="Folder on the server that all paths are relative to and that none leaves, such as /outbox."
        " Without a leading slash it starts at the login folder.",
    ),
    Field(
        name="private_key", label="Private key", kind=MULTILINE, argument="private_key", in_form=True, secret=True,
        description="Text of the private key, from -----BEGIN to END-----; line breaks lost in pasting are restored.",
    ),
    Field(
        name="private_key_passphrase", label="Passphrase of the private key", kind=PASSWORD, argument="passphrase",
        in_form=True, secret=True, aliases=("passphrase", "private_key_pass"),
        description="Passphrase of the private key, where it has one.",
    ),
    Field(
        name="key_file", label="Private key file", kind=LINE, argument="key_file", in_form=True,
        description="Path of a private key on every worker, in place of its text, such as ~/.ssh/id_ed25519.",
    ),
    Field(
        name="host_key_policy", label="Host key policy", kind=POLICY, in_form=True, default="strict",
        description="What to do with a server key nobody has vouched for: strict refuses it, tofu remembers it in the"
        " known hosts file on first use, auto accepts it, and with it anyone who poses as the server.",
    ),
    Field(
        name="known_host_keys", label="Known host keys", kind=MULTILINE, in_form=True,
        description="Keys the server may have: known_hosts lines as `ssh-keyscan sftp.example.com` prints them, or"
        " fingerprints such as SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8, one a line. In place of the file.",
    ),
    Field(
        name="host_keys_path", label="Known hosts file", kind=LINE, in_form=True, aliases=("known_hosts",),
        description="Path of a known_hosts file on every worker; ~/.ssh/known_hosts where it is left out.",
    ),
    Field(
        name="conn_timeout", label="Connection timeout", kind=SECONDS, argument="timeout", in_form=True,
        default=10, aliases=("timeout",), description="Seconds that connecting may take, each step of it.",
    ),
    Field(
        name="io_timeout", label="Silence timeout", kind=SECONDS_OR_NEVER, argument="io_timeout", in_form=True,
        default=120, description="Seconds the server may be silent while it owes an answer.",
    ),
    Field(
        name="banner_timeout", label="Banner timeout", kind=SECONDS, argument="banner_timeout", default=30,
        description="Seconds the server may take to say its first word. Busy servers are slow with it.",
    ),
    Field(
        name="auth_timeout", label="Login timeout", kind=SECONDS, argument="auth_timeout", default=30,
        description="Seconds the server may take to judge a login.",
    ),
    Field(
        name="conn_retry_attempts", label="Connection attempts", kind=ATTEMPTS, default=3,
        description="How often connecting is tried. A refused login or host key is never tried again.",
    ),
    Field(
        name="keepalive_interval", label="Keepalive interval", kind=INTERVAL, argument="keepalive_interval", default=30,
        description="Seconds between signs of life on an idle connection.",
    ),
    Field(
        name="max_lanes", label="Most lanes", kind=LANES, argument="max_lanes", default=9,
        description="Channels of one connection that a large upload may use where the round trip is long; 1 for one.",
    ),
    Field(
        name="compress", label="Compression", kind=FLAG, argument="compress", default=False,
        description="Compress what is sent. Slower, except for text over a slow line.",
    ),
    Field(
        name="look_for_keys", label="Look for keys", kind=FLAG, argument="look_for_keys",
        description="Whether private keys in ~/.ssh and in an agent are tried. Where it is left out they are if neither"
        " key nor password is given; in sftp and ssh connections always.",
    ),
    Field(
        name="ciphers", label="Ciphers", kind=NAMES, argument="ciphers",
        description='Ciphers to offer, best first, such as ["aes256-ctr"].',
    ),
    Field(
        name="disabled_algorithms", label="Disabled algorithms", kind=ALGORITHMS, argument="disabled_algorithms",
        description="Algorithms not to offer, by their use: kex, keys, pubkeys, ciphers, macs, compression.",
    ),
    Field(
        name="allow_ssh_rsa_sha1", label="Allow ssh-rsa with SHA-1", kind=FLAG, argument="allow_ssh_rsa_sha1",
        default=False, description="Accept signatures with SHA-1, which old servers alone still make.",
    ),
    Field(
        name="host_proxy_cmd", label="Proxy command", kind=LINE, argument="proxy_command",
        description="Command whose input and output lead to the server, such as `ssh -W sftp.example.com:22 bastion`.",
    ),
    Field(
        name="host_key", label="Host key", kind=HOST_KEY,
        description="The server's public key, as ssh connections have it: ssh-ed25519 AAAA…, or AAAA… alone.",
    ),
    Field(
        name="no_host_key_check", label="No host key check", kind=FLAG, aliases=("ignore_hostkey_verification",),
        default=False, description="As ssh connections have it; true means host_key_policy auto.",
    ),
    Field(
        name="allow_host_key_change", label="Allow host key change", kind=FLAG, default=False,
        description="As ssh connections have it; true means host_key_policy auto.",
    ),
)  # fmt: skip


def conn_fields() -> dict[str, dict[str, object]]:
    """The form's own fields, as the key ``conn-fields`` of a provider's info wants them."""
    return {
        field.name: {
            "label": field.label,
            "description": field.description,
            "schema": {**field.kind.schema, **({} if field.default is None else {"default": field.default})},
        }
        for field in FIELDS
        if field.in_form and not field.column
    }


def field_behaviour() -> dict[str, Any]:
    """What the form does with the columns every connection has, as a hook's ``get_ui_field_behaviour`` returns it."""
    columns = [field for field in FIELDS if field.column]
    return {
        "hidden_fields": ["schema"],
        "relabeling": {field.name: field.label for field in columns if field.label.lower() != field.name},
        "placeholders": {field.name: field.example for field in columns if field.example},
    }


# ---- reading a connection --------------------------------------------------------------------------------------------


def parse(conn: AirflowConnection) -> BackendConfig:
    """What a connection says. Raises InvalidConnection, which holds all its faults. Nothing connects."""
    faults: list[str] = []
    given = _given(conn, faults)
    said: dict[str, Any] = {}  # BackendConfig checks each of them
    for field in FIELDS:
        if field.name in given:
            spelling, raw = given[field.name]
            try:
                said[field.name] = field.kind.read(raw)
            except (ValueError, OverflowError):
                faults.append(_fault(field, spelling, raw))
        elif field.required:
            faults.append(f"{field.label}: nothing given; expected {field.kind.expected}, such as {field.example}")
        elif field.default is not None:
            said[field.name] = field.kind.read(field.default)
    if conn.conn_type in ADOPTED_TYPES:  # as the hooks of these types do
        said.setdefault("look_for_keys", True)
        if "password" in said:
            said["password"] = said["password"].strip()
    faults += _contradictions(given, said)
    if faults:
        raise InvalidConnection(conn.conn_id, faults)
    return _config(conn.conn_id, said, explicit="host_key_policy" in given)


def secrets(conn: AirflowConnection) -> Iterator[str]:
    """Every secret text in a connection, as it stands there."""
    extra = _extra(conn, [])
    for field in FIELDS:
        if field.secret:
            found = (raw for _, raw in _spellings(field, conn, extra))
            yield from (text for text in found if isinstance(text, str) and text.strip())


def _given(conn: AirflowConnection, faults: list[str]) -> dict[str, tuple[str, object]]:
    """What is set, by field: the name it was given under, and its value. Null and blank count as not set."""
    if conn.conn_type and conn.conn_type not in (CONN_TYPE, *ADOPTED_TYPES):
        faults.append(f'Connection Type: "{conn.conn_type}" given; expected {CONN_TYPE}, sftp or ssh')
    extra = _extra(conn, faults)
    known = {name for field in FIELDS if not field.column for name in field.names}
    if unknown := sorted(extra.keys() - known):
        log.debug("connection %r: unknown names in Extra are ignored: %s", conn.conn_id, ", ".join(unknown))
    given: dict[str, tuple[str, object]] = {}
    for field in FIELDS:
        for name, raw in _spellings(field, conn, extra):
            if raw is not None and not (isinstance(raw, str) and not raw.strip()):
                given.setdefault(field.name, (name, raw))
    return given


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


def _fault(field: Field, spelling: str, raw: object) -> str:
    where = field.label if field.column else f'{field.label} (Extra "{spelling}")'
    shown = json.dumps(raw, ensure_ascii=False, default=str)
    if field.secret or not isinstance(raw, str | int | float) or len(shown) > _LONGEST_SHOWN:
        shown = _TYPE_NAMES.get(type(raw), "something else")
    shown = re.sub(r'[^/"\s]+@', "***@", shown)  # a URL's user and password, given for a host
    return f"{where}: {shown} given; expected {field.kind.expected}"


def _contradictions(given: Mapping[str, object], said: Mapping[str, Any]) -> list[str]:
    found = []
    if "private_key" in given and "key_file" in given:
        found.append("Private key and Private key file: both given; expected one of them")
    if "host_key" in given and "host_key_policy" not in given and said.get("no_host_key_check"):
        found.append("Host key and No host key check: one says to check, the other not to; expected one of them")
    return found


def _config(conn_id: str, said: Mapping[str, Any], *, explicit: bool) -> BackendConfig:
    """The values of the fields -> the backend's. ``explicit``: the host key policy was given."""
    values: dict[str, Any] = {}
    for field in FIELDS:
        if field.argument is not None and field.name in said:
            value = said[field.name]
            values[field.argument] = Secret(value) if field.secret else value
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
        log.warning(
            "connection %r: an unknown host key is accepted (%s): anyone on the way can pose as the server. To pin the"
            " key, set known_host_keys to what `ssh-keyscan -p %s %s` prints, compare it with what the server's owner"
            " says, and remove the former.",
            conn_id, ", ".join(unchecked), said["port"], said["host"],
        )  # fmt: skip
    lines = [text for text in (said.get("known_host_keys"), pinned) if text is not None]
    return {"host_key_policy": policy, "known_host_keys": "\n".join(lines) or None, "host_keys_path": path}
