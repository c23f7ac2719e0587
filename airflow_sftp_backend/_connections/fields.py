"""Declare every field of a connection once.

The form, the parser, the documented table and the tests read `FIELDS`.
"""

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
    ENCODING,
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
    """Declare a field of a connection.

    :ivar name: column of the connection if ``column`` is true, else key of Extra.
    :ivar argument: argument of `BackendConfig` with the same value; None if the parser computes the arguments.
    :ivar default: value of a field that is not set; None for no value.
    :ivar example: placeholder of the empty form field; the form then does not fill in the default.
    :ivar aliases: other keys of Extra, read if ``name`` is not set.
    :ivar group: section of the form that shows the field; blank if the form does not. The order is that of `FIELDS`.
    :ivar accepts_secret_reference: True if the value may be a reference to a Key Vault secret, or may come from the
        secret named by the field ``<name>_secret``.
    :ivar is_identity: True for a part of the Azure identity.
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
        """The name and the aliases, in order of precedence."""
        return (self.name, *self.aliases)

    @property
    def form_default(self) -> str | float | bool | None:
        """The value that the form fills in."""
        return None if self.example else self.default


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
        description="User to log in as. Default: the user that Airflow runs as.",
    ),
    Field(
        name="password", label="Password", type=PASSWORD, argument="password", column=True, secret=True,
        accepts_secret_reference=True,
        description="Password of the user. Also used as passphrase of the private key if none is set.",
    ),
    Field(
        name="base_path", label="Base path", type=DIRECTORY, argument="base_path", group="Server", default="/",
        example="/outbox",
        description="Directory on the server, such as /outbox. All paths are relative to it, and none can leave it."
        " A path without a leading slash starts at the login directory. Default: /.",
    ),
    Field(
        name="known_host_keys", label="Known host keys", type=MULTILINE, group="Server", accepts_secret_reference=True,
        description="Trusted keys of the server, one per line: known_hosts lines as `ssh-keyscan sftp.example.com`"
        " prints, or fingerprints such as SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8. Default: the known hosts"
        " file.",
    ),
    Field(
        name="host_key_policy", label="Host key policy", type=POLICY, group="Server", default="strict",
        description="Treatment of an unknown host key: strict refuses the key, tofu stores the key in the known hosts"
        " file on first use, auto accepts the key, also from an attacker who poses as the server.",
    ),
    Field(
        name="name_encoding", label="Name encoding", type=ENCODING, argument="name_encoding", group="Server",
        default="utf-8",
        description="Encoding of file names on the server: utf-8, or a single-byte encoding such as latin-1 or cp1252.",
    ),
    Field(
        name="private_key", label="Private key", type=MULTILINE, argument="private_key", group="Private key",
        secret=True, accepts_secret_reference=True,
        description="Text of the private key, from -----BEGIN to END-----. Line breaks lost in pasting are restored.",
    ),
    Field(
        name="private_key_passphrase", label="Private key passphrase", type=PASSWORD, argument="passphrase",
        group="Private key", secret=True, aliases=("passphrase", "private_key_pass"), accepts_secret_reference=True,
        description="Passphrase of an encrypted private key. Default: the password.",
    ),
    Field(
        name="key_file", label="Private key file", type=LINE, argument="key_file", group="Private key",
        description="Path of the private key on every worker, such as ~/.ssh/id_ed25519. Alternative to the text.",
    ),
    Field(
        name="key_vault_url", label="Key Vault", type=LINE, group="Azure Key Vault",
        description="URL or name of the Azure Key Vault with the secrets below, such as https://my-vault.vault.azure.net.",
    ),
    Field(
        name="password_secret", label="Password secret", type=SECRET_NAME, group="Azure Key Vault",
        description="Name of the password's secret in the vault, as name or name/version.",
    ),
    Field(
        name="private_key_secret", label="Private key secret", type=SECRET_NAME, group="Azure Key Vault",
        description="Name of the private key's secret in the vault.",
    ),
    Field(
        name="private_key_passphrase_secret", label="Passphrase secret", type=SECRET_NAME,
        aliases=("passphrase_secret",), description="Name of the passphrase's secret in the vault.",
    ),
    Field(
        name="host_secret", label="Host secret", type=SECRET_NAME,
        description="Name of the host's secret in the vault.",
    ),
    Field(
        name="login_secret", label="Username secret", type=SECRET_NAME,
        description="Name of the user name's secret in the vault.",
    ),
    Field(
        name="known_host_keys_secret", label="Known host keys secret", type=SECRET_NAME,
        aliases=("known_hosts_secret",), description="Name of the known host keys' secret in the vault.",
    ),
    Field(
        name="connection_secret", label="Connection secret", type=SECRET_NAME,
        description="Name of a secret with a whole connection, as URI or JSON, in the format of Airflow's"
        " AzureKeyVaultBackend. Fields of this connection take precedence.",
    ),
    Field(
        name="azure_conn_id", label="Azure connection", type=LINE,
        description="Id of an Airflow connection of type azure for the login to the vault. Default, unless the Azure"
        " fields below are set: DefaultAzureCredential (environment, workload identity, managed identity).",
    ),
    Field(
        name="tenantId", label="Azure tenant id", type=LINE, aliases=("tenant_id",), is_identity=True,
        description="Tenant id of the application for the login to the vault.",
    ),
    Field(
        name="client_id", label="Azure client id", type=LINE, is_identity=True,
        description="Client id of the application for the login to the vault.",
    ),
    Field(
        name="client_secret", label="Azure client secret", type=PASSWORD, is_identity=True, secret=True,
        description="Client secret of the application for the login to the vault.",
    ),
    Field(
        name="certificate_path", label="Azure certificate file", type=LINE, is_identity=True,
        description="Path of the application's certificate with its private key on every worker, PEM or PKCS#12.",
    ),
    Field(
        name="certificate_data", label="Azure certificate", type=MULTILINE, is_identity=True, secret=True,
        description="Text of the application's certificate with its private key, PEM or base64 of PKCS#12.",
    ),
    Field(
        name="certificate_password", label="Azure certificate password", type=PASSWORD, is_identity=True, secret=True,
        description="Password of an encrypted certificate. Default: none.",
    ),
    Field(
        name="managed_identity_client_id", label="Managed identity", type=LINE, is_identity=True,
        description="Client id of a user-assigned managed identity for the login to the vault.",
    ),
    Field(
        name="workload_identity_tenant_id", label="Workload identity tenant", type=LINE, is_identity=True,
        description="Tenant id of a workload identity for the login to the vault.",
    ),
    Field(
        name="cloud_environment", label="Azure cloud", type=LINE, is_identity=True,
        description="AzurePublicCloud, AzureUSGovernment or AzureChinaCloud. Default: the cloud of the vault's URL.",
    ),
    Field(
        name="authority", label="Azure login service", type=LINE, is_identity=True,
        description="Host of the login service. Default: the login service of the cloud.",
    ),
    Field(
        name="credential", label="Azure credential", type=LINE, is_identity=True,
        description="Type of login: default, client_secret, certificate, managed_identity or workload_identity."
        " Default: the type that fits the Azure fields.",
    ),
    Field(
        name="jump_conn_id", label="Jump host connection", type=LINE, group="Jump host",
        description="Id of a connection (sftp_backend, sftp or ssh) to the jump host. Default: a direct connection.",
    ),
    Field(
        name="host_keys_path", label="Known hosts file", type=LINE, aliases=("known_hosts",),
        description="Path of a known_hosts file on every worker. Default: ~/.ssh/known_hosts.",
    ),
    Field(
        name="conn_timeout", label="Connection timeout", type=SECONDS, argument="timeout",
        default=10, aliases=("timeout",),
        description="Longest time in seconds for each step of connecting, such as TCP and key exchange.",
    ),
    Field(
        name="io_timeout", label="Reply timeout", type=SECONDS_OR_NEVER, argument="io_timeout",
        default=120,
        description="Longest silence of the server in seconds while a reply is outstanding; 0 for no limit.",
    ),
    Field(
        name="banner_timeout", label="Banner timeout", type=SECONDS, argument="banner_timeout", default=30,
        description="Longest time in seconds until the server sends its SSH banner. Busy servers are slow here.",
    ),
    Field(
        name="auth_timeout", label="Login timeout", type=SECONDS, argument="auth_timeout", default=30,
        description="Longest time in seconds until the server answers a login request.",
    ),
    Field(
        name="conn_retry_attempts", label="Connection attempts", type=ATTEMPTS, default=3,
        description="Number of attempts to connect. A refused login or host key is never retried.",
    ),
    Field(
        name="reconnect_timeout", label="Reconnect timeout", type=INTERVAL, argument="reconnect_timeout", default=60,
        description="Time in seconds for which a transfer with a lost connection reconnects; 0 for one attempt.",
    ),
    Field(
        name="keepalive_interval", label="Keepalive interval", type=INTERVAL, argument="keepalive_interval", default=30,
        description="Time in seconds between keepalive messages on an idle connection; 0 for none.",
    ),
    Field(
        name="max_channels", label="Maximum channels", type=CHANNELS, argument="max_channels", default=9,
        description="Most SFTP channels of one connection for a large upload if the round trip is long.",
    ),
    Field(
        name="max_entries", label="Maximum entries", type=COUNT, argument="max_entries", default=DEFAULT_MAX_ENTRIES,
        description="Most entries that one listing, search or recursive deletion accepts from the server.",
    ),
    Field(
        name="max_listing_bytes", label="Maximum listing size", type=COUNT, argument="max_listing_bytes",
        default=DEFAULT_MAX_LISTING_BYTES,
        description="Most bytes of replies that one listing, search or recursive deletion accepts from the server.",
    ),
    Field(
        name="max_file_bytes", label="Maximum file size", type=COUNT, argument="max_file_bytes",
        default=DEFAULT_MAX_FILE_BYTES,
        description="Most bytes to read of a file without a verified size. The read fails if the server sends more.",
    ),
    Field(
        name="max_rate", label="Maximum rate", type=COUNT, argument="max_rate",
        description="Most bytes of file content per second, in both directions together, for each task or triggerer."
        " Default: no limit.",
    ),
    Field(
        name="max_sessions", label="Maximum sessions", type=COUNT, argument="max_sessions",
        description="Most sessions that one process opens at once to this host, port and user; a further session waits"
        " up to a minute. Default: no limit.",
    ),
    Field(
        name="compress", label="Compression", type=FLAG, argument="compress", default=False,
        description="Compress the data on the connection. Slower, except for text over a slow network.",
    ),
    Field(
        name="look_for_keys", label="Look for keys", type=FLAG, argument="look_for_keys",
        description="Try the private keys in ~/.ssh and in an SSH agent. Default: true without a key and a password;"
        " always true for sftp and ssh connections.",
    ),
    Field(
        name="ciphers", label="Ciphers", type=NAMES, argument="ciphers",
        description='Ciphers to offer, best first, such as ["aes256-ctr"]. Default: the ciphers of paramiko.',
    ),
    Field(
        name="disabled_algorithms", label="Disabled algorithms", type=ALGORITHMS, argument="disabled_algorithms",
        description="Algorithms not to offer, as lists by use: kex, keys, pubkeys, ciphers, macs, compression.",
    ),
    Field(
        name="allow_ssh_rsa_sha1", label="Allow ssh-rsa with SHA-1", type=FLAG, argument="allow_ssh_rsa_sha1",
        default=False, description="Accept SHA-1 signatures of RSA keys, for old servers only.",
    ),
    Field(
        name="host_proxy_cmd", label="Proxy command", type=LINE, argument="proxy_command",
        description="Command that carries the connection over standard input and output, such as"
        " `ssh -W sftp.example.com:22 bastion`. Default: a direct connection.",
    ),
    Field(
        name="host_key", label="Host key", type=HOST_KEY,
        description="Trusted public key of the server, as in ssh connections: ssh-ed25519 AAAA…, AAAA… or SHA256:….",
    ),
    Field(
        name="no_host_key_check", label="No host key check", type=FLAG, aliases=("ignore_hostkey_verification",),
        default=False,
        description="Accept unknown host keys, as in ssh connections.",
    ),
    Field(
        name="allow_host_key_change", label="Allow host key change", type=FLAG, default=False,
        description="Use host_key_policy auto and no known hosts file, as in ssh connections.",
    ),
)  # fmt: skip


def conn_fields() -> dict[str, dict[str, object]]:
    """Return the form's extra fields, for ``conn-fields`` of the provider info."""
    return {
        field.name: {
            "label": field.label,
            "description": field.description,
            "schema": {
                **field.type.schema,
                **({"examples": [field.example]} if field.example else {}),
                **({} if field.form_default is None else {"default": field.form_default}),
                "section": field.group,
            },
        }
        for field in FIELDS
        if field.group
    }


def field_behaviour() -> dict[str, Any]:
    """Return labels and placeholders of the form's columns.

    The format is that of a hook's ``get_ui_field_behaviour``.
    """
    columns = [field for field in FIELDS if field.column]
    return {
        "hidden_fields": ["schema"],
        "relabeling": {field.name: field.label for field in columns if field.label.lower() != field.name},
        "placeholders": {field.name: field.example for field in columns if field.example},
    }
