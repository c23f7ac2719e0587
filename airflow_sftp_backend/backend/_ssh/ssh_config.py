"""Look up a host in ``~/.ssh/config`` (ssh_config(5))."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

SSH_CONFIG_PATH: Final = "~/.ssh/config"


@dataclass(frozen=True)
class SSHConfigEntry:
    """Keywords that apply to a host.

    :ivar proxy_command: command to connect to the host, with expanded tokens; None without a command
    :ivar identity_file: path of the first private key; None without a key
    """

    proxy_command: str | None
    identity_file: str | None


def ssh_config_entry(host: str, path: str = SSH_CONFIG_PATH) -> SSHConfigEntry | None:
    """Look up a host in an OpenSSH client configuration.

    :param host: the configured name; the file may contain patterns
    :param path: the file; ``~`` is the home directory
    :returns: the entry; None without the file or without keywords for the host
    :raises ValueError: if the file cannot be read or is invalid
    """
    file = os.path.expanduser(path)
    if not os.path.isfile(file):
        return None
    import paramiko  # imported here: many machines have no such file

    try:
        options = paramiko.SSHConfig.from_path(file).lookup(host)
    except (paramiko.SSHException, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    keywords = {name: value for name, value in options.items() if name != "hostname" or value != host}
    if not keywords:
        return None
    files = keywords.get("identityfile")
    return SSHConfigEntry(keywords.get("proxycommand") or None, files[0] if files else None)
