"""Declare every field of a connection once: the form, the parser, the documented table and the tests read `FIELDS`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from airflow_sftp_backend.backend.config import DEFAULT_MAX_ENTRIES, DEFAULT_MAX_FILE_BYTES, DEFAULT_MAX_LISTING_BYTES

from .field_types import (
    ALGORITHMS,
    ATTEMPTS,
    CHANNELS,
    COUNT,
    DIRECTORY,
    FLAG,
    HOST,
    HOST_KEY,
    INTERVAL,
    LINE,
    MULTILINE,
    NAMES,
    PASSWORD,
    POLICY,
    PORT,
    SECONDS,
    SECONDS_OR_NEVER,
    SECRET_NAME,
    FieldType,
)

CONN_TYPE: Final = "sftp_backend"
HOOK_NAME: Final = "SFTP Backend"


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field of a connection.

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
        """Return the name and its aliases; the first that has a value counts."""
        return (self.name, *self.aliases)


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
