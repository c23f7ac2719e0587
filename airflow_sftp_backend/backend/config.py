"""Configuration of a backend: plain data, checked at creation, without a connection."""

from __future__ import annotations

import codecs
import enum
import hmac
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NoReturn, TypeGuard

DEFAULT_PORT = 22
MAX_CHANNELS = 10  # OpenSSH's default limit for a connection (sshd_config: MaxSessions)
DEFAULT_HOST_KEYS_PATH = "~/.ssh/known_hosts"
HOST_WITH_PORT = re.compile(r"(?:\[[^\[\]]*\]|[^:\[\]]+):([0-9]+)/?")
"""Host with a port, which is the group. An IPv6 address without brackets does not match: it has several colons."""
DEFAULT_MAX_ENTRIES = 10_000_000
DEFAULT_MAX_LISTING_BYTES = 4 << 30
DEFAULT_MAX_FILE_BYTES = 1 << 40
CONFIG_KEYS = frozenset(
    {
        "known_host_keys", "banner_timeout", "auth_timeout", "keepalive_interval", "compress", "ciphers",
        "disabled_algorithms", "allow_ssh_rsa_sha1", "proxy_command", "look_for_keys", "max_channels", "max_entries",
        "max_listing_bytes", "max_file_bytes", "reconnect_timeout", "name_encoding", "max_rate", "max_sessions",
    }
)  # fmt: skip
"""Names allowed in the ``config`` argument of SFTPBackend."""


class HostKeyPolicy(enum.Enum):
    """Policy for a server key without a known_hosts entry."""

    STRICT = "strict"
    """Refuse unknown and changed keys."""
    TRUST_ON_FIRST_USE = "tofu"
    """Add unknown keys to the known_hosts file. Refuse changed keys."""
    AUTO_ADD = "auto"
    """Accept unknown keys with a warning, without adding them."""

    @classmethod
    def parse(cls, value: HostKeyPolicy | str) -> HostKeyPolicy:
        """Parse a policy by value (``"strict"``) or name (``"TRUST_ON_FIRST_USE"``), in any case.

        :param value: the policy or its text
        :returns: the policy
        :raises ValueError: for an unknown text
        :raises TypeError: if ``value`` is neither a policy nor a str
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
    """Text hidden from logs: ``repr`` and ``str`` return ``***``.

    Pickles with its value.

    :param value: the text
    :raises TypeError: if ``value`` is not a str
    """

    __slots__ = ("_value",)
    _value: str

    def __init__(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError(f"a Secret holds a str, not {type(value).__name__}")
        object.__setattr__(self, "_value", value)

    @classmethod
    def of(cls, value: Secret | str) -> Secret:
        """Return a secret unchanged, or wrap a str.

        :param value: the secret or its text
        :returns: the secret
        """
        return value if isinstance(value, Secret) else cls(value)

    def reveal(self) -> str:
        """Return the text."""
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
        # in constant time, so that the time reveals no common prefix
        return hmac.compare_digest(mine, theirs)

    def __hash__(self) -> int:
        return hash(("Secret", self._value))

    def __reduce__(self) -> tuple[type[Secret], tuple[str]]:
        return Secret, (self._value,)


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Number and intervals of connection attempts.

    A refused login or host key is not retried.

    The pause after attempt n is ``min(backoff_max, backoff_base * 2**(n-1))`` seconds plus a random time.

    :param max_attempts: number of attempts, at least 1
    :param backoff_base: seconds of the first pause
    :param backoff_max: maximum seconds of a pause, without the random time
    :param jitter: maximum seconds of the random time
    :param timeout: maximum seconds of all attempts together; None for no limit
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
        """Return a policy with a single attempt."""
        return cls(max_attempts=1)

    def pause(self, attempt: int, random: float) -> float:
        """Return the seconds to wait after a failed attempt.

        :param attempt: number of the failed attempt, from 1
        :param random: random number in [0, 1)
        :returns: seconds
        """
        return min(self.backoff_max, self.backoff_base * 2.0 ** min(attempt - 1, 1000)) + self.jitter * random


@dataclass(frozen=True, kw_only=True)
class BackendConfig:
    """Checked configuration of a backend.

    Raises ValueError with the name of an invalid argument.

    Times are in seconds.

    * ``pkey`` is a ``paramiko.PKey``, ``private_key`` the text of a key in any form accepted by `load_private_key`, and
      ``key_file`` its path.
    * ``jump`` is the configuration of a jump host, with its own SSH connection.
    * ``reconnect_timeout`` limits reconnecting after a transfer has lost its connection; 0 means a single attempt.
    * ``max_entries`` and ``max_listing_bytes`` limit a listing, search or recursive deletion.
    * ``max_file_bytes`` limits the bytes read of a file whose size is not verified.
    * ``name_encoding`` is the encoding of names on the server: UTF-8, or a single-byte encoding such as ``latin-1``.
    * ``max_rate`` limits the bytes per second of file content, in both directions together; None for no limit.
    * ``max_sessions`` limits the sessions of this process that are open at once to the same host, port and user, as far
      as they have this limit. A further session waits; None for no limit.
    * ``refresh`` returns the configuration with current secrets, or None if they are unavailable. A refused login or
      host key causes a single call.
    * ``notes`` are texts for a person who checks the configuration.
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
    name_encoding: str = "utf-8"
    max_rate: int | None = None
    max_sessions: int | None = None
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
        object.__setattr__(self, "connect_kwargs", wrap_secrets(self.connect_kwargs))
        if isinstance(self.pkey, str):
            object.__setattr__(self, "pkey", Secret(self.pkey))
        self._check_address()
        self._check_numbers()
        self._check_alternatives()

    def _check_address(self) -> None:
        """Check host, port and base path.

        The brackets of an IPv6 address are removed.
        """
        if not isinstance(self.host, str) or not self.host.strip():
            raise ValueError("host must not be blank")
        if bracketed := re.fullmatch(r"\[([^\[\]]*)\]", self.host):  # an IPv6 address as in a URL (RFC 3986)
            object.__setattr__(self, "host", bracketed[1])
        if named := HOST_WITH_PORT.fullmatch(self.host):
            raise ValueError(f"host must not name a port; pass port={named[1]}")
        if self.host != self.host.strip() or any(ord(c) < 33 or c == "/" for c in self.host):
            raise ValueError(f"host must be a bare name or address, not {self.host!r}")
        if isinstance(self.port, bool) or not isinstance(self.port, int) or not 1 <= self.port <= 65535:
            raise ValueError(f"port must be a whole number from 1 to 65535, not {self.port!r}")
        if "\0" in self.base_path:
            raise ValueError("base_path must not contain NUL")
        object.__setattr__(self, "name_encoding", check_name_encoding(self.name_encoding))
        if character := missing_character(self.base_path, self.name_encoding):
            raise ValueError(f"base_path has a character that {self.name_encoding} lacks: {character!r}")

    def _check_numbers(self) -> None:
        """Check the times and limits."""
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
        for name in ("max_rate", "max_sessions"):
            if (value := getattr(self, name)) is not None:
                check_count(name, value)

    def _check_alternatives(self) -> None:
        """Check that arguments that exclude each other are not set together."""
        if self.jump is not None and not isinstance(self.jump, BackendConfig):
            raise ValueError(f"jump must be a BackendConfig, not {type(self.jump).__name__}")
        if self.jump is not None and self.proxy_command is not None:
            raise ValueError("set either jump or proxy_command, not both")
        sources = [name for name in ("pkey", "private_key", "key_file") if getattr(self, name) is not None]
        if len(sources) > 1:
            raise ValueError(f"set only one private key, not {' and '.join(sources)}")

    @property
    def address(self) -> str:
        """Address of the server in errors and logs: ``sftp://host:port``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"sftp://{host}:{self.port}"


def base_path_of_url(path: str) -> str:
    """Return the base path for the path of a URL.

    :param path: the path of the URL, decoded; ``/~`` is the login directory; may be blank
    :returns: ``path``, or the rest below ``/~`` as a relative path
    """
    if path == "/~" or path.startswith("/~/"):
        path = path[3:]
    return path or "."


def wrap_secrets(arguments: Mapping[str, object]) -> dict[str, object]:
    """Wrap passwords and key texts among arguments.

    No local variable then shows them in a traceback.

    :param arguments: arguments of `paramiko.SSHClient.connect`
    :returns: the arguments, with secret texts as `Secret`
    """
    secrets = {"password", "passphrase", "pkey"}
    return {
        name: Secret(value) if name in secrets and isinstance(value, str) else value
        for name, value in arguments.items()
    }


def check_channels(name: str, value: object) -> None:
    """Check that ``value`` is a number of channels from 1 to `MAX_CHANNELS`.

    :param name: name of the argument, for the error
    :param value: its value
    :raises ValueError: if ``value`` is anything else
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_CHANNELS:
        raise ValueError(f"{name} must be a whole number from 1 to {MAX_CHANNELS}, not {value!r}")


def check_name_encoding(encoding: object) -> str:
    """Check an encoding of names.

    UTF-8 and single-byte encodings with the characters of ASCII are accepted.

    :param encoding: name of the encoding, in any spelling that Python knows
    :returns: Python's name of the encoding
    :raises ValueError: for any other encoding
    """
    expected = "expected utf-8, or a single-byte encoding such as latin-1 or cp1252"
    try:
        name = codecs.lookup(encoding).name if isinstance(encoding, str) else ""
        is_supported = name == "utf-8" or _is_single_byte(name)
    except (LookupError, UnicodeError, ValueError):
        name, is_supported = "", False
    if not is_supported:
        raise ValueError(f"name_encoding is {encoding!r}; {expected}")
    if name != "utf-8" and not _keeps_bytes(name):
        raise ValueError(
            f"name_encoding is {encoding!r}, in which several bytes are one character, so that not every name could be"
            f" sent back to the server; {expected}"
        )
    return name


def _is_single_byte(encoding: str) -> bool:
    """Tell whether an encoding extends ASCII by single bytes.

    :raises LookupError: for an unknown encoding
    :raises UnicodeError: for an encoding without the characters of ASCII
    """
    ascii_bytes, other_bytes = bytes(range(128)), bytes(range(128, 256))
    other_characters = other_bytes.decode(encoding, "replace")
    # a multi-byte encoding combines bytes, and a stateful one has no characters for them
    has_characters = len(other_characters) == len(other_bytes) and set(other_characters) != {"\ufffd"}
    return has_characters and ascii_bytes.decode(encoding) == ascii_bytes.decode("ascii")


def _keeps_bytes(encoding: str) -> bool:
    """Tell whether decoding and encoding keeps every byte."""
    every_byte = bytes(range(256))
    try:
        return every_byte.decode(encoding, "surrogateescape").encode(encoding, "surrogateescape") == every_byte
    except UnicodeError:
        return False


def missing_character(path: str, encoding: str) -> str:
    """Find the first character of a path that an encoding lacks.

    :param path: the path
    :param encoding: a checked encoding of names
    :returns: the character; blank if the encoding has all characters
    """
    try:
        path.encode(encoding, "surrogateescape")
    except UnicodeEncodeError as error:
        return path[error.start]
    return ""


def check_mode(mode: object) -> None:
    """Check that ``mode`` has permission bits only.

    :param mode: the value
    :raises ValueError: if ``mode`` is not a whole number from 0 to 0o7777, or looks like an octal number without 0o
    """
    # decimal 640 is 0o1200: no useful mode begins with 0o10 to 0o14
    if isinstance(mode, int) and 512 <= mode <= 777 and not set(str(mode)) & {"8", "9"}:
        raise ValueError(f"mode must be an octal number: write 0o{mode}, because {mode} is 0o{mode:o}")
    if isinstance(mode, bool) or not isinstance(mode, int) or not 0 <= mode <= 0o7777:
        shown = f"{mode} (0o{mode:o})" if isinstance(mode, int) and mode >= 0 else repr(mode)
        raise ValueError(f"mode must be a number from 0 to 0o7777, such as 0o640, not {shown}")


def epoch_seconds(name: str, time: object) -> int:
    """Convert a datetime to the seconds of SFTP 3.

    :param name: name of the argument, for the error
    :param time: the value
    :returns: seconds since 1970, rounded down
    :raises ValueError: if ``time`` is not a datetime with a time zone, or is not in the years 1970 to 2106
    """
    if not isinstance(time, datetime) or time.tzinfo is None:
        raise ValueError(f"{name} must be a datetime with a time zone, not {time!r}")
    seconds = math.floor(time.timestamp())
    if not 0 <= seconds < 1 << 32:  # uint32, filexfer-02 section 5
        raise ValueError(f"{name} must be from 1970 to 2106, because SFTP has no other times; it is {time.isoformat()}")
    return seconds


def check_count(name: str, value: object) -> None:
    """Check that ``value`` is a positive whole number.

    :param name: name of the argument, for the error
    :param value: its value
    :raises ValueError: if ``value`` is anything else
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number from 1, not {value!r}")


def check_seconds(name: str, value: object) -> None:
    """Check that ``value`` is a positive, finite number of seconds.

    :param name: name of the argument, for the error
    :param value: its value
    :raises ValueError: if ``value`` is anything else
    """
    if not _is_number(value) or not value > 0:
        raise ValueError(f"{name} must be a positive number of seconds, not {value!r}")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
