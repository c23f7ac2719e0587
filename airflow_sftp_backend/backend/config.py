"""Values that go in: what a backend is told. Plain data, checked where it is made; nothing here connects."""

from __future__ import annotations

import enum
import hmac
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn, TypeGuard

DEFAULT_PORT = 22
MAX_CHANNELS = 10  # the channels OpenSSH allows a connection by itself (sshd_config: MaxSessions)
DEFAULT_HOST_KEYS_PATH = "~/.ssh/known_hosts"
NAMES_PORT = re.compile(r"(?:\[[^\[\]]*\]|[^:\[\]]+):([0-9]+)/?")
"""A host with its port, the port as its group; an IPv6 address without brackets has more than one colon."""
DEFAULT_MAX_ENTRIES = 10_000_000
DEFAULT_MAX_LISTING_BYTES = 4 << 30
DEFAULT_MAX_FILE_BYTES = 1 << 40
CONFIG_KEYS = frozenset(
    {
        "known_host_keys", "banner_timeout", "auth_timeout", "keepalive_interval", "compress", "ciphers",
        "disabled_algorithms", "allow_ssh_rsa_sha1", "proxy_command", "look_for_keys", "max_channels", "max_entries",
        "max_listing_bytes", "max_file_bytes", "reconnect_timeout",
    }
)  # fmt: skip
"""Names that the ``config`` argument of SFTPBackend may hold."""


class HostKeyPolicy(enum.Enum):
    """What to do with a server key that no known_hosts entry vouches for."""

    STRICT = "strict"
    """Unknown or changed: refused."""
    TRUST_ON_FIRST_USE = "tofu"
    """Unknown: remembered in the known_hosts file. Changed: refused."""
    AUTO_ADD = "auto"
    """Unknown: accepted with a warning, not remembered."""

    @classmethod
    def parse(cls, value: HostKeyPolicy | str) -> HostKeyPolicy:
        """The policy of that value (``"strict"``) or name (``"TRUST_ON_FIRST_USE"``), in any case.

        Raises ValueError for any other text, TypeError for another type.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, str):
            raise TypeError(f"host key policy must be a HostKeyPolicy or str, not {type(value).__name__}")
        wanted = value.strip().lower()
        for policy in cls:
            if wanted in (policy.value, policy.name.lower()):
                return policy
        choices = ", ".join(repr(policy.value) for policy in cls)
        raise ValueError(f"unknown host key policy {value!r}; choose one of {choices}")


class Secret:
    """A text that never shows itself: ``repr`` and ``str`` give ``***``. Pickles with its value.

    Raises TypeError for anything but a str.
    """

    __slots__ = ("_value",)
    _value: str

    def __init__(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError(f"a Secret holds a str, not {type(value).__name__}")
        object.__setattr__(self, "_value", value)

    @classmethod
    def of(cls, value: Secret | str) -> Secret:
        """The secret itself, or one made of a str."""
        return value if isinstance(value, Secret) else cls(value)

    def reveal(self) -> str:
        """The text."""
        return self._value

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Secret cannot be changed")

    def __repr__(self) -> str:
        return "Secret('***')"

    def __str__(self) -> str:
        return "***"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        mine, theirs = (s._value.encode("utf-8", "surrogatepass") for s in (self, other))
        return hmac.compare_digest(mine, theirs)

    def __hash__(self) -> int:
        return hash(("Secret", self._value))

    def __reduce__(self) -> tuple[type[Secret], tuple[str]]:
        return Secret, (self._value,)


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and how patiently connecting is tried. StatusError logins and host keys are never tried again.

    The pause before try n+1 is ``min(backoff_max, backoff_base * 2**(n-1))`` seconds plus up to ``jitter``
    seconds drawn at random; ``timeout`` bounds all tries together, in seconds.
    """

    max_attempts: int = 3
    backoff_base: float = 1.0
    backoff_max: float = 60.0
    jitter: float = 1.0
    timeout: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.max_attempts, bool) or not isinstance(self.max_attempts, int) or self.max_attempts < 1:
            raise ValueError(f"max_attempts must be a whole number from 1, not {self.max_attempts!r}")
        for name in ("backoff_base", "backoff_max", "jitter"):
            value = getattr(self, name)
            if not _is_number(value) or value < 0:
                raise ValueError(f"{name} must be a number of seconds from 0, not {value!r}")
        if self.timeout is not None:
            check_seconds("timeout", self.timeout)

    @classmethod
    def disabled(cls) -> RetryPolicy:
        """One try, no second."""
        return cls(max_attempts=1)

    def pause(self, attempt: int, random: float) -> float:
        """Seconds to wait after failed try ``attempt`` (from 1); ``random`` lies in [0, 1)."""
        return min(self.backoff_max, self.backoff_base * 2.0 ** min(attempt - 1, 1000)) + self.jitter * random


@dataclass(frozen=True, kw_only=True)
class BackendConfig:
    """Everything a backend is told, checked: ValueError names the argument that is wrong.

    ``pkey`` is a ``paramiko.PKey``; ``private_key`` the text of one (any form `load_private_key` takes),
    ``key_file`` the path of one. Times are in seconds. ``jump`` is the server to go through, by an SSH connection of
    its own. A transfer that lost its connection tries to connect again for ``reconnect_timeout``; 0 is one attempt.
    ``max_entries`` and ``max_listing_bytes`` bound one listing, search or recursive deletion;
    ``max_file_bytes`` bounds a file whose size is not trusted. ``refresh`` gives the configuration with the secrets of
    now, None where they are not to be had: it is asked once when a login or a host key is refused. ``notes`` are what
    a person who checks the configuration should know, one text each.
    """

    host: str
    port: int = DEFAULT_PORT
    username: str | None = None
    password: Secret | None = None
    pkey: object | None = field(default=None, repr=False)
    private_key: Secret | None = None
    key_file: str | None = None
    passphrase: Secret | None = None
    base_path: str = "/"
    host_key_policy: HostKeyPolicy = HostKeyPolicy.STRICT
    known_host_keys: str | None = None
    host_keys_path: str | None = None
    timeout: float = 10
    banner_timeout: float | None = None
    auth_timeout: float | None = None
    io_timeout: float | None = 120.0
    reconnect_timeout: float = 60.0
    keepalive_interval: float = 30.0
    max_channels: int = 9
    max_entries: int = DEFAULT_MAX_ENTRIES
    max_listing_bytes: int = DEFAULT_MAX_LISTING_BYTES
    max_file_bytes: int = DEFAULT_MAX_FILE_BYTES
    compress: bool = False
    ciphers: tuple[str, ...] = ()
    disabled_algorithms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    allow_ssh_rsa_sha1: bool = False
    proxy_command: str | None = field(default=None, repr=False)
    look_for_keys: bool | None = None
    connect_kwargs: Mapping[str, object] = field(default_factory=dict, repr=False)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    jump: BackendConfig | None = None
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)
    refresh: Callable[[], BackendConfig | None] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "connect_kwargs", hidden_arguments(self.connect_kwargs))
        if isinstance(self.pkey, str):
            object.__setattr__(self, "pkey", Secret(self.pkey))
        if not isinstance(self.host, str) or not self.host.strip():
            raise ValueError("host must not be blank")
        if bracketed := re.fullmatch(r"\[([^\[\]]*)\]", self.host):  # how URLs write an IPv6 address (RFC 3986)
            object.__setattr__(self, "host", bracketed[1])
        if named := NAMES_PORT.fullmatch(self.host):
            raise ValueError(f"host must not name a port; pass port={named[1]}")
        if self.host != self.host.strip() or any(ord(c) < 33 or c == "/" for c in self.host):
            raise ValueError(f"host must be a bare name or address, not {self.host!r}")
        if isinstance(self.port, bool) or not isinstance(self.port, int) or not 1 <= self.port <= 65535:
            raise ValueError(f"port must be a whole number from 1 to 65535, not {self.port!r}")
        if "\0" in self.base_path:
            raise ValueError("base_path must not contain NUL")
        check_seconds("timeout", self.timeout)
        for name in ("banner_timeout", "auth_timeout", "io_timeout"):
            if (value := getattr(self, name)) is not None:
                check_seconds(name, value)
        for name in ("keepalive_interval", "reconnect_timeout"):
            if not _is_number(value := getattr(self, name)) or value < 0:
                raise ValueError(f"{name} must be seconds from 0, not {value!r}")
        check_channels("max_channels", self.max_channels)
        for name in ("max_entries", "max_listing_bytes", "max_file_bytes"):
            check_count(name, getattr(self, name))
        if self.jump is not None and not isinstance(self.jump, BackendConfig):
            raise ValueError(f"jump must be a BackendConfig, not {type(self.jump).__name__}")
        if self.jump is not None and self.proxy_command is not None:
            raise ValueError("one way is enough: jump and proxy_command were given")
        sources = [n for n in ("pkey", "private_key", "key_file") if getattr(self, n) is not None]
        if len(sources) > 1:
            raise ValueError(f"one private key is enough: {' and '.join(sources)} were given")

    @property
    def address(self) -> str:
        """``sftp://host:port``, the server as errors and logs name it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"sftp://{host}:{self.port}"


def hidden_arguments(arguments: Mapping[str, object]) -> dict[str, object]:
    """Wraps passwords and key texts among arguments, so that no local variable shows them.

    :param arguments: Arguments of `paramiko.SSHClient.connect`.
    :returns: The same arguments, their secret texts as `Secret`.
    """
    secrets = {"password", "passphrase", "pkey"}
    return {
        name: Secret(value) if name in secrets and isinstance(value, str) else value
        for name, value in arguments.items()
    }


def check_channels(name: str, value: object) -> None:
    """ValueError unless ``value`` is a number of channels a connection may have."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_CHANNELS:
        raise ValueError(f"{name} must be a whole number from 1 to {MAX_CHANNELS}, not {value!r}")


def check_count(name: str, value: object) -> None:
    """Check that ``value`` is a positive whole number.

    :raises ValueError: if ``value`` is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number from 1, not {value!r}")


def check_seconds(name: str, value: object) -> None:
    """ValueError unless ``value`` is a positive, finite number."""
    if not _is_number(value) or not value > 0:
        raise ValueError(f"{name} must be a positive number of seconds, not {value!r}")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
