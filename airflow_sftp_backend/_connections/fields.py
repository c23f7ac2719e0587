"""What a connection may say: the one table of its fields.

`FIELDS` holds each name once: the form, the parser, the README's table and the tests are derived from it.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from airflow_sftp_backend.backend import BackendConfig, HostKeyPolicy
from airflow_sftp_backend.backend.config import (
    DEFAULT_MAX_ENTRIES,
    DEFAULT_MAX_FILE_BYTES,
    DEFAULT_MAX_LISTING_BYTES,
    NAMES_PORT,
)

CONN_TYPE: Final = "sftp_backend"
HOOK_NAME: Final = "SFTP Backend"


@dataclass(frozen=True)
class FieldType:
    """What a field takes: in words (``expected``), as JSON Schema (``schema``), and as the function that turns what was
    given into the argument, or raises ValueError (``parse``)."""

    expected: str
    parse: Callable[[object], object]
    schema: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Field:
    """One thing a connection may say.

    ``name`` is a column of the connection (``column``) or a key of its Extra; ``aliases`` are other names of the key,
    of less weight. ``argument`` is what BackendConfig calls it; None for what is more than a matter of names.
    ``example`` is what the form shows in the empty column, ``group`` the part of the form that has a field for it; the
    form's order is the table's. ``accepts_secret_reference``: its value may be a reference to a Key Vault secret, or
    be in the secret that the field ``<name>_secret`` names. ``is_identity``: a part of the identity for the vault.
    """

    name: str
    label: str
    description: str
    type: FieldType
    argument: str | None = None
    default: str | float | bool | None = None
    example: str = ""
    aliases: tuple[str, ...] = ()
    column: bool = False
    group: str = ""
    required: bool = False
    secret: bool = False
    accepts_secret_reference: bool = False
    is_identity: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All names it goes by, the first that is given counts."""
        return (self.name, *self.aliases)


class InvalidFieldValue(ValueError):
    """A value that cannot be meant, with the text that says what to do."""


# ---- kinds -----------------------------------------------------------------------------------------------------------


def _parse_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not text")
    return value


def _parse_line(value: object) -> str:
    text = _parse_text(value).strip()
    if not text.isprintable():
        raise ValueError("not one line")
    return text


def _parse_host(value: object) -> str:
    text = _parse_line(value)
    if match := NAMES_PORT.fullmatch(text):
        raise InvalidFieldValue(f"put {match[1]} into Port")
    return BackendConfig(host=text).host


def _parse_directory(value: object) -> str:
    text = _parse_text(value)  # a blank at the end belongs to the name
    if not text.isprintable():
        raise ValueError("not one line")
    if ".." in text.split("/"):
        raise ValueError("leads up")
    return text


def _parse_number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("not a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def _parse_seconds(value: object) -> float:
    number = _parse_number(value)
    if number <= 0:
        raise ValueError("not positive")
    return number


def _parse_seconds_or_never(value: object) -> float | None:
    return None if _parse_number(value) == 0 else _parse_seconds(value)


def _parse_interval(value: object) -> float:
    return _parse_seconds_or_never(value) or 0.0


def _parse_count(value: object) -> int:
    number = _parse_number(value)
    if number != int(number) or number < 1:
        raise ValueError("not a whole number from 1")
    return int(number)


def _whole_number(low: int, high: int) -> FieldType:
    def parse(value: object) -> int:
        number = _parse_number(value)
        if number != int(number) or not low <= number <= high:
            raise ValueError("out of range")
        return int(number)

    return FieldType(
        f"a whole number from {low} to {high}", parse, {"type": ["integer", "null"], "minimum": low, "maximum": high}
    )


def _parse_flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = _parse_line(value).lower()
    if word not in ("true", "false"):
        raise ValueError("neither")
    return word == "true"


def _parse_policy(value: object) -> HostKeyPolicy:
    return HostKeyPolicy.parse(_parse_text(value))


def _parse_names(value: object) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list):
        raise ValueError("not a list")
    return tuple(_parse_line(name) for name in names)


def _parse_algorithms(value: object) -> dict[str, tuple[str, ...]]:
    algorithms = json.loads(value) if isinstance(value, str) else value
    if not isinstance(algorithms, dict):
        raise ValueError("not an object")
    return {_parse_line(use): _parse_names(names) for use, names in algorithms.items()}


def _parse_host_key(value: object) -> str:
    """The key as ``type base64``; the type is part of the key (RFC 4253 section 6.6), so that a bare one has it too."""
    from airflow_sftp_backend.backend._ssh.known_hosts import (
        key_type,  # here, because every Airflow process imports this module
    )

    words = _parse_text(value).split()
    if len(words) == 1 and words[0].startswith("SHA256:"):
        return words[0]
    declared, blob = (words[0], words[1]) if len(words) > 1 else ("", words[0])
    actual = key_type(base64.b64decode(blob, validate=True))
    is_family = declared == "ssh-ecdsa" and actual.startswith("ecdsa-")
    if declared not in ("", actual) and not is_family:
        raise ValueError("not a key of that type")
    return f"{actual} {blob}"


_STRING: Final = {"type": ["string", "null"]}
_SECONDS_SCHEMA: Final = {"type": ["number", "null"], "minimum": 0}

TEXT = FieldType("text", _parse_text, _STRING)
LINE = FieldType("one line of text", _parse_line, _STRING)
HOST = FieldType("the bare name or address of the server", _parse_host, _STRING)
DIRECTORY = FieldType("a folder on the server without '..'", _parse_directory, _STRING)
PORT = _whole_number(1, 65535)
ATTEMPTS = _whole_number(1, 100)
CHANNELS = _whole_number(1, 10)
COUNT = FieldType("a whole number from 1", _parse_count, {"type": ["integer", "null"], "minimum": 1})
SECONDS = FieldType("a number of seconds above 0", _parse_seconds, {"type": ["number", "null"], "exclusiveMinimum": 0})
SECONDS_OR_NEVER = FieldType("a number of seconds, 0 for no limit", _parse_seconds_or_never, _SECONDS_SCHEMA)
INTERVAL = FieldType("a number of seconds, 0 for never", _parse_interval, _SECONDS_SCHEMA)
FLAG = FieldType("true or false", _parse_flag, {"type": ["boolean", "null"]})
POLICY = FieldType(
    "one of " + ", ".join(policy.value for policy in HostKeyPolicy),
    _parse_policy,
    {**_STRING, "enum": [policy.value for policy in HostKeyPolicy]},
)
MULTILINE = FieldType("text", _parse_text, {**_STRING, "format": "multiline"})
PASSWORD = FieldType("text", _parse_text, {**_STRING, "format": "password"})
NAMES = FieldType("a list of names", _parse_names, {"type": ["array", "null"]})
ALGORITHMS = FieldType(
    'an object of lists, such as {"kex": ["diffie-hellman-group14-sha1"]}',
    _parse_algorithms,
    {"type": ["object", "null"]},
)
SECRET_NAME = FieldType("the name of a secret in the vault, as name or name/version", _parse_line, _STRING)
HOST_KEY = FieldType("a public key as 'ssh-ed25519 AAAA…', or its fingerprint as 'SHA256:…'", _parse_host_key, _STRING)

# ---- the table -------------------------------------------------------------------------------------------------------

FIELDS: Final[tuple[Field, ...]] = (
    Field(
        name="host", label="Host", type=HOST, argument="host", column=True, required=True,
        example="sftp.example.com", accepts_secret_reference=True,
        description="Name or address of the server, such as sftp.example.com.",
    ),
    Field(
        name="port", label="Port", type=PORT, argument="port", column=True, default=22, example="22",
        description="Port of the SSH server.",
    ),
    Field(
        name="login", label="Username", type=LINE, argument="username", column=True, example="partner-a",
        accepts_secret_reference=True,
        description="User to log in as; the one Airflow runs as where it is left out.",
    ),
    Field(
        name="password", label="Password", type=PASSWORD, argument="password", column=True, secret=True,
        accepts_secret_reference=True,
        description="Password of the user. Also opens the private key where that has no passphrase of its own here.",
    ),
    Field(
        name="base_path", label="Base path", type=DIRECTORY, argument="base_path", group="Server", default="/",
        description="Folder on the server that all paths are relative to and that none leaves, such as /outbox."
        " Without a leading slash it starts at the login folder.",
    ),
    Field(
        name="known_host_keys", label="Known host keys", type=MULTILINE, group="Server", accepts_secret_reference=True,
        description="Keys the server may have: known_hosts lines as `ssh-keyscan sftp.example.com` prints them, or"
        " fingerprints such as SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8, one a line. In place of the file.",
    ),
    Field(
        name="host_key_policy", label="Host key policy", type=POLICY, group="Server", default="strict",
        description="What to do with a server key nobody has vouched for: strict refuses it, tofu remembers it in the"
        " known hosts file on first use, auto accepts it, and with it anyone who poses as the server.",
    ),
    Field(
        name="private_key", label="Private key", type=MULTILINE, argument="private_key", group="Private key",
        secret=True, accepts_secret_reference=True,
        description="Text of the private key, from -----BEGIN to END-----; line breaks lost in pasting are restored.",
    ),
    Field(
        name="private_key_passphrase", label="Passphrase of the private key", type=PASSWORD, argument="passphrase",
        group="Private key", secret=True, aliases=("passphrase", "private_key_pass"), accepts_secret_reference=True,
        description="Passphrase of the private key, where it has one.",
    ),
    Field(
        name="key_file", label="Private key file", type=LINE, argument="key_file", group="Private key",
        description="Path of a private key on every worker, in place of its text, such as ~/.ssh/id_ed25519.",
    ),
    Field(
        name="key_vault_url", label="Key Vault", type=LINE, group="Azure Key Vault",
        description="URL or name of the Azure Key Vault that the secrets below are in, such as"
        " https://my-vault.vault.azure.net.",
    ),
    Field(
        name="password_secret", label="Password secret", type=SECRET_NAME, group="Azure Key Vault",
        description="Name of the secret in the vault that holds the password, as name or name/version.",
    ),
    Field(
        name="private_key_secret", label="Private key secret", type=SECRET_NAME, group="Azure Key Vault",
        description="Name of the secret that holds the private key.",
    ),
    Field(
        name="private_key_passphrase_secret", label="Passphrase secret", type=SECRET_NAME,
        aliases=("passphrase_secret",), description="Name of the secret that holds the passphrase of the private key.",
    ),
    Field(
        name="host_secret", label="Host secret", type=SECRET_NAME,
        description="Name of the secret that holds the host.",
    ),
    Field(
        name="login_secret", label="Username secret", type=SECRET_NAME,
        description="Name of the secret that holds the user name.",
    ),
    Field(
        name="known_host_keys_secret", label="Known host keys secret", type=SECRET_NAME,
        aliases=("known_hosts_secret",), description="Name of the secret that holds the known host keys.",
    ),
    Field(
        name="connection_secret", label="Connection secret", type=SECRET_NAME,
        description="Name of the secret that holds a whole connection, as URI or JSON, the way Airflow's"
        " AzureKeyVaultBackend keeps them. What is set here as well counts before it.",
    ),
    Field(
        name="azure_conn_id", label="Azure connection", type=LINE,
        description="Id of the Airflow connection of type azure to log in to the vault with. Without it and the next"
        " ones DefaultAzureCredential finds a login: the environment, a workload or managed identity.",
    ),
    Field(
        name="tenantId", label="Azure tenant id", type=LINE, aliases=("tenant_id",), is_identity=True,
        description="Tenant of the application that logs in to the vault.",
    ),
    Field(
        name="client_id", label="Azure client id", type=LINE, is_identity=True,
        description="Client id of the application that logs in to the vault.",
    ),
    Field(
        name="client_secret", label="Azure client secret", type=PASSWORD, is_identity=True, secret=True,
        description="Client secret of that application.",
    ),
    Field(
        name="certificate_path", label="Azure certificate file", type=LINE, is_identity=True,
        description="Path of the application's certificate with its key, PEM or PKCS#12, on every worker.",
    ),
    Field(
        name="certificate_data", label="Azure certificate", type=MULTILINE, is_identity=True, secret=True,
        description="The certificate with its key, as PEM, or PKCS#12 in base64.",
    ),
    Field(
        name="certificate_password", label="Azure certificate password", type=PASSWORD, is_identity=True, secret=True,
        description="Password of the certificate, where it has one.",
    ),
    Field(
        name="managed_identity_client_id", label="Managed identity", type=LINE, is_identity=True,
        description="Client id of the user-assigned managed identity to log in to the vault with.",
    ),
    Field(
        name="workload_identity_tenant_id", label="Workload identity tenant", type=LINE, is_identity=True,
        description="Tenant of the workload identity to log in to the vault with.",
    ),
    Field(
        name="cloud_environment", label="Azure cloud", type=LINE, is_identity=True,
        description="AzurePublicCloud, AzureUSGovernment or AzureChinaCloud; told by the vault's URL otherwise.",
    ),
    Field(
        name="authority", label="Azure login service", type=LINE, is_identity=True,
        description="Host of the login service, where it is none of the clouds' own.",
    ),
    Field(
        name="credential", label="Azure credential", type=LINE, is_identity=True,
        description="default, client_secret, certificate, managed_identity or workload_identity, where what is given"
        " leaves a choice.",
    ),
    Field(
        name="jump_conn_id", label="Jump host connection", type=LINE, group="Jump host",
        description="Id of another connection (sftp_backend, sftp or ssh) whose server to go through.",
    ),
    Field(
        name="host_keys_path", label="Known hosts file", type=LINE, aliases=("known_hosts",),
        description="Path of a known_hosts file on every worker; ~/.ssh/known_hosts where it is left out.",
    ),
    Field(
        name="conn_timeout", label="Connection timeout", type=SECONDS, argument="timeout",
        default=10, aliases=("timeout",), description="Seconds that connecting may take, each step of it.",
    ),
    Field(
        name="io_timeout", label="Silence timeout", type=SECONDS_OR_NEVER, argument="io_timeout",
        default=120, description="Seconds the server may be silent while it owes an answer.",
    ),
    Field(
        name="banner_timeout", label="Banner timeout", type=SECONDS, argument="banner_timeout", default=30,
        description="Seconds the server may take to say its first word. Busy servers are slow with it.",
    ),
    Field(
        name="auth_timeout", label="Login timeout", type=SECONDS, argument="auth_timeout", default=30,
        description="Seconds the server may take to judge a login.",
    ),
    Field(
        name="conn_retry_attempts", label="Connection attempts", type=ATTEMPTS, default=3,
        description="How often connecting is tried. A refused login or host key is never tried again.",
    ),
    Field(
        name="reconnect_timeout", label="Reconnect timeout", type=INTERVAL, argument="reconnect_timeout", default=60,
        description="Seconds for which a transfer that lost its connection tries to connect again; 0 for one attempt.",
    ),
    Field(
        name="keepalive_interval", label="Keepalive interval", type=INTERVAL, argument="keepalive_interval", default=30,
        description="Seconds between signs of life on an idle connection.",
    ),
    Field(
        name="max_channels", label="Most channels", type=CHANNELS, argument="max_channels", default=9,
        description="Channels of one connection that a large upload may use where the round trip is long; 1 for one.",
    ),
    Field(
        name="max_entries", label="Most entries", type=COUNT, argument="max_entries", default=DEFAULT_MAX_ENTRIES,
        description="Entries that one listing, search or recursive deletion takes from the server.",
    ),
    Field(
        name="max_listing_bytes", label="Most bytes of a listing", type=COUNT, argument="max_listing_bytes",
        default=DEFAULT_MAX_LISTING_BYTES,
        description="Bytes of replies that one listing, search or recursive deletion takes from the server.",
    ),
    Field(
        name="max_file_bytes", label="Most bytes of a file", type=COUNT, argument="max_file_bytes",
        default=DEFAULT_MAX_FILE_BYTES,
        description="Bytes that are read of a file whose size is not verified; a server that sends more is cut off.",
    ),
    Field(
        name="compress", label="Compression", type=FLAG, argument="compress", default=False,
        description="Compress what is sent. Slower, except for text over a slow line.",
    ),
    Field(
        name="look_for_keys", label="Look for keys", type=FLAG, argument="look_for_keys",
        description="Whether private keys in ~/.ssh and in an agent are tried. Where it is left out they are if neither"
        " key nor password is given; in sftp and ssh connections always.",
    ),
    Field(
        name="ciphers", label="Ciphers", type=NAMES, argument="ciphers",
        description='Ciphers to offer, best first, such as ["aes256-ctr"].',
    ),
    Field(
        name="disabled_algorithms", label="Disabled algorithms", type=ALGORITHMS, argument="disabled_algorithms",
        description="Algorithms not to offer, by their use: kex, keys, pubkeys, ciphers, macs, compression.",
    ),
    Field(
        name="allow_ssh_rsa_sha1", label="Allow ssh-rsa with SHA-1", type=FLAG, argument="allow_ssh_rsa_sha1",
        default=False, description="Accept signatures with SHA-1, which old servers alone still make.",
    ),
    Field(
        name="host_proxy_cmd", label="Proxy command", type=LINE, argument="proxy_command",
        description="Command whose input and output lead to the server, such as `ssh -W sftp.example.com:22 bastion`.",
    ),
    Field(
        name="host_key", label="Host key", type=HOST_KEY,
        description="The server's public key, as ssh connections have it: ssh-ed25519 AAAA…, or AAAA… alone.",
    ),
    Field(
        name="no_host_key_check", label="No host key check", type=FLAG, aliases=("ignore_hostkey_verification",),
        default=False,
        description="As ssh connections have it: true accepts unknown host keys.",
    ),
    Field(
        name="allow_host_key_change", label="Allow host key change", type=FLAG, default=False,
        description="As ssh connections have it; true means host_key_policy auto.",
    ),
)  # fmt: skip


def conn_fields() -> dict[str, dict[str, object]]:
    """The form's own fields, as the key ``conn-fields`` of a provider's info wants them."""
    return {
        field.name: {
            "label": field.label,
            "description": field.description,
            "schema": {
                **field.type.schema,
                **({} if field.default is None else {"default": field.default}),
                "section": field.group,
            },
        }
        for field in FIELDS
        if field.group
    }


def field_behaviour() -> dict[str, Any]:
    """What the form does with the columns every connection has, as a hook's ``get_ui_field_behaviour`` returns it."""
    columns = [field for field in FIELDS if field.column]
    return {
        "hidden_fields": ["schema"],
        "relabeling": {field.name: field.label for field in columns if field.label.lower() != field.name},
        "placeholders": {field.name: field.example for field in columns if field.example},
    }
