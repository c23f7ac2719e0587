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
    ``example`` is what the form shows in the empty column, ``group`` the part of the form that has a field for it; the
    form's order is the table's. ``vaulted``: its value may be a reference to a Key Vault secret, or in one that the
    field ``<name>_secret`` names. ``identity``: it says who asks the vault.
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
    group: str = ""
    required: bool = False
    secret: bool = False
    vaulted: bool = False
    identity: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All names it goes by, the first that is given counts."""
        return (self.name, *self.aliases)


class Hint(ValueError):
    """A value that cannot be meant, with the text that says what to do."""


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
    if named := NAMES_PORT.fullmatch(text):
        raise Hint(f"put {named[1]} into Port")
    return BackendConfig(host=text).host


def _folder(given: object) -> str:
    text = _text(given)  # a blank at the end belongs to the name
    if not text.isprintable():
        raise ValueError("not one line")
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


def _count(given: object) -> int:
    number = _number(given)
    if number != int(number) or number < 1:
        raise ValueError("not a whole number from 1")
    return int(number)


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
    from airflow_sftp_backend.backend._ssh.known_hosts import (
        key_type,  # here, because every Airflow process imports this module
    )

    words = _text(given).split()
    if len(words) == 1 and words[0].startswith("SHA256:"):
        return words[0]
    said, body = (words[0], words[1]) if len(words) > 1 else ("", words[0])
    found = key_type(base64.b64decode(body, validate=True))
    of_family = said == "ssh-ecdsa" and found.startswith("ecdsa-")
    if said not in ("", found) and not of_family:
        raise ValueError("not a key of that type")
    return f"{found} {body}"


_STRING: Final = {"type": ["string", "null"]}
_SECONDS_SCHEMA: Final = {"type": ["number", "null"], "minimum": 0}

TEXT = Kind("text", _text, _STRING)
LINE = Kind("one line of text", _line, _STRING)
HOST = Kind("the bare name or address of the server", _host, _STRING)
FOLDER = Kind("a folder on the server without '..'", _folder, _STRING)
PORT = _whole(1, 65535)
ATTEMPTS = _whole(1, 100)
LANES = _whole(1, 10)
COUNT = Kind("a whole number from 1", _count, {"type": ["integer", "null"], "minimum": 1})
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
SECRET_NAME = Kind("the name of a secret in the vault, as name or name/version", _line, _STRING)
HOST_KEY = Kind("a public key as 'ssh-ed25519 AAAA…', or its fingerprint as 'SHA256:…'", _host_key, _STRING)

# ---- the table -------------------------------------------------------------------------------------------------------

FIELDS: Final[tuple[Field, ...]] = (
    Field(
        name="host", label="Host", kind=HOST, argument="host", column=True, required=True,
        example="sftp.example.com", vaulted=True,
        description="Name or address of the server, such as sftp.example.com.",
    ),
    Field(
        name="port", label="Port", kind=PORT, argument="port", column=True, default=22, example="22",
        description="Port of the SSH server.",
    ),
    Field(
        name="login", label="Username", kind=LINE, argument="username", column=True, example="partner-a",
        vaulted=True,
        description="User to log in as; the one Airflow runs as where it is left out.",
    ),
    Field(
        name="password", label="Password", kind=PASSWORD, argument="password", column=True, secret=True,
        vaulted=True,
        description="Password of the user. Also opens the private key where that has no passphrase of its own here.",
    ),
    Field(
        name="base_path", label="Base path", kind=FOLDER, argument="base_path", group="Server", default="/",
        description="Folder on the server that all paths are relative to and that none leaves, such as /outbox."
        " Without a leading slash it starts at the login folder.",
    ),
    Field(
        name="known_host_keys", label="Known host keys", kind=MULTILINE, group="Server", vaulted=True,
        description="Keys the server may have: known_hosts lines as `ssh-keyscan sftp.example.com` prints them, or"
        " fingerprints such as SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8, one a line. In place of the file.",
    ),
    Field(
        name="host_key_policy", label="Host key policy", kind=POLICY, group="Server", default="strict",
        description="What to do with a server key nobody has vouched for: strict refuses it, tofu remembers it in the"
        " known hosts file on first use, auto accepts it, and with it anyone who poses as the server.",
    ),
    Field(
        name="private_key", label="Private key", kind=MULTILINE, argument="private_key", group="Private key",
        secret=True, vaulted=True,
        description="Text of the private key, from -----BEGIN to END-----; line breaks lost in pasting are restored.",
    ),
    Field(
        name="private_key_passphrase", label="Passphrase of the private key", kind=PASSWORD, argument="passphrase",
        group="Private key", secret=True, aliases=("passphrase", "private_key_pass"), vaulted=True,
        description="Passphrase of the private key, where it has one.",
    ),
    Field(
        name="key_file", label="Private key file", kind=LINE, argument="key_file", group="Private key",
        description="Path of a private key on every worker, in place of its text, such as ~/.ssh/id_ed25519.",
    ),
    Field(
        name="key_vault_url", label="Key Vault", kind=LINE, group="Azure Key Vault",
        description="URL or name of the Azure Key Vault that the secrets below are in, such as"
        " https://my-vault.vault.azure.net.",
    ),
    Field(
        name="password_secret", label="Password secret", kind=SECRET_NAME, group="Azure Key Vault",
        description="Name of the secret in the vault that holds the password, as name or name/version.",
    ),
    Field(
        name="private_key_secret", label="Private key secret", kind=SECRET_NAME, group="Azure Key Vault",
        description="Name of the secret that holds the private key.",
    ),
    Field(
        name="private_key_passphrase_secret", label="Passphrase secret", kind=SECRET_NAME,
        aliases=("passphrase_secret",), description="Name of the secret that holds the passphrase of the private key.",
    ),
    Field(
        name="host_secret", label="Host secret", kind=SECRET_NAME,
        description="Name of the secret that holds the host.",
    ),
    Field(
        name="login_secret", label="Username secret", kind=SECRET_NAME,
        description="Name of the secret that holds the user name.",
    ),
    Field(
        name="known_host_keys_secret", label="Known host keys secret", kind=SECRET_NAME,
        aliases=("known_hosts_secret",), description="Name of the secret that holds the known host keys.",
    ),
    Field(
        name="connection_secret", label="Connection secret", kind=SECRET_NAME,
        description="Name of the secret that holds a whole connection, as URI or JSON, the way Airflow's"
        " AzureKeyVaultBackend keeps them. What is set here as well counts before it.",
    ),
    Field(
        name="azure_conn_id", label="Azure connection", kind=LINE,
        description="Id of the Airflow connection of type azure to log in to the vault with. Without it and the next"
        " ones DefaultAzureCredential finds a login: the environment, a workload or managed identity.",
    ),
    Field(
        name="tenantId", label="Azure tenant id", kind=LINE, aliases=("tenant_id",), identity=True,
        description="Tenant of the application that logs in to the vault.",
    ),
    Field(
        name="client_id", label="Azure client id", kind=LINE, identity=True,
        description="Client id of the application that logs in to the vault.",
    ),
    Field(
        name="client_secret", label="Azure client secret", kind=PASSWORD, identity=True, secret=True,
        description="Client secret of that application.",
    ),
    Field(
        name="certificate_path", label="Azure certificate file", kind=LINE, identity=True,
        description="Path of the application's certificate with its key, PEM or PKCS#12, on every worker.",
    ),
    Field(
        name="certificate_data", label="Azure certificate", kind=MULTILINE, identity=True, secret=True,
        description="The certificate with its key, as PEM, or PKCS#12 in base64.",
    ),
    Field(
        name="certificate_password", label="Azure certificate password", kind=PASSWORD, identity=True, secret=True,
        description="Password of the certificate, where it has one.",
    ),
    Field(
        name="managed_identity_client_id", label="Managed identity", kind=LINE, identity=True,
        description="Client id of the user-assigned managed identity to log in to the vault with.",
    ),
    Field(
        name="workload_identity_tenant_id", label="Workload identity tenant", kind=LINE, identity=True,
        description="Tenant of the workload identity to log in to the vault with.",
    ),
    Field(
        name="cloud_environment", label="Azure cloud", kind=LINE, identity=True,
        description="AzurePublicCloud, AzureUSGovernment or AzureChinaCloud; told by the vault's URL otherwise.",
    ),
    Field(
        name="authority", label="Azure login service", kind=LINE, identity=True,
        description="Host of the login service, where it is none of the clouds' own.",
    ),
    Field(
        name="credential", label="Azure credential", kind=LINE, identity=True,
        description="default, client_secret, certificate, managed_identity or workload_identity, where what is given"
        " leaves a choice.",
    ),
    Field(
        name="jump_conn_id", label="Jump host connection", kind=LINE, group="Jump host",
        description="Id of another connection (sftp_backend, sftp or ssh) whose server to go through.",
    ),
    Field(
        name="host_keys_path", label="Known hosts file", kind=LINE, aliases=("known_hosts",),
        description="Path of a known_hosts file on every worker; ~/.ssh/known_hosts where it is left out.",
    ),
    Field(
        name="conn_timeout", label="Connection timeout", kind=SECONDS, argument="timeout",
        default=10, aliases=("timeout",), description="Seconds that connecting may take, each step of it.",
    ),
    Field(
        name="io_timeout", label="Silence timeout", kind=SECONDS_OR_NEVER, argument="io_timeout",
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
        name="reconnect_timeout", label="Reconnect timeout", kind=INTERVAL, argument="reconnect_timeout", default=60,
        description="Seconds for which a transfer that lost its connection tries to connect again; 0 for one attempt.",
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
        name="max_entries", label="Most entries", kind=COUNT, argument="max_entries", default=DEFAULT_MAX_ENTRIES,
        description="Entries that one listing, search or recursive deletion takes from the server.",
    ),
    Field(
        name="max_listing_bytes", label="Most bytes of a listing", kind=COUNT, argument="max_listing_bytes",
        default=DEFAULT_MAX_LISTING_BYTES,
        description="Bytes of replies that one listing, search or recursive deletion takes from the server.",
    ),
    Field(
        name="max_file_bytes", label="Most bytes of a file", kind=COUNT, argument="max_file_bytes",
        default=DEFAULT_MAX_FILE_BYTES,
        description="Bytes that are read of a file whose size is not verified; a server that sends more is cut off.",
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
        default=False,
        description="As ssh connections have it: true accepts unknown host keys.",
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
            "schema": {
                **field.kind.schema,
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
