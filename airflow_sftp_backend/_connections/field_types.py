"""Define the types of connection fields."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from airflow_sftp_backend.backend import BackendConfig, HostKeyPolicy
from airflow_sftp_backend.backend.config import HOST_WITH_PORT, check_name_encoding


@dataclass(frozen=True)
class FieldType:
    """Describe the values of a field, and parse them.

    :ivar expected: description for error messages.
    :ivar parse: converts a configured value to the argument of `BackendConfig`, or raises ValueError.
    :ivar schema: JSON Schema for the connection form.
    """

    expected: str
    parse: Callable[[object], object]
    schema: Mapping[str, object]


class InvalidFieldValue(ValueError):
    """Report an invalid value, with a hint for the user.

    The user sees the text of this error, but of other ValueErrors only `FieldType.expected`.
    """


def _parse_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not text")
    return value


def _parse_line(value: object) -> str:
    text = _parse_text(value).strip()
    if not text.isprintable():
        raise ValueError("not one line")
    return text


def _parse_encoding(value: object) -> str:
    return check_name_encoding(_parse_line(value))


def _parse_host(value: object) -> str:
    text = _parse_line(value)
    if match := HOST_WITH_PORT.fullmatch(text):
        raise InvalidFieldValue(f"put {match[1]} into Port")
    return BackendConfig(host=text).host


def _parse_directory(value: object) -> str:
    text = _parse_text(value)  # not stripped: a blank at the end belongs to the directory's name
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
    return {_parse_line(kind): _parse_names(names) for kind, names in algorithms.items()}


def _parse_host_key(value: object) -> str:
    """Return a public key as ``type base64``, or a fingerprint unchanged.

    The key's type is encoded in its base64 (RFC 4253 section 6.6), so a key without a type before it is complete.
    """
    # Imported here: every Airflow process imports this module, and few of them need paramiko and cryptography.
    from airflow_sftp_backend.backend._ssh.host_certificates import key_type

    words = _parse_text(value).split()
    if len(words) == 1 and words[0].startswith("SHA256:"):
        return words[0]
    declared, blob = (words[0], words[1]) if len(words) > 1 else ("", words[0])
    actual = key_type(base64.b64decode(blob, validate=True))
    # Airflow's SSH hook calls all ECDSA keys "ssh-ecdsa".
    is_family = declared == "ssh-ecdsa" and actual.startswith("ecdsa-")
    if declared not in ("", actual) and not is_family:
        raise ValueError("not a key of that type")
    return f"{actual} {blob}"


_STRING: Final = {"type": ["string", "null"]}
_SECONDS_SCHEMA: Final = {"type": ["number", "null"], "minimum": 0}

LINE = FieldType("one line of text", _parse_line, _STRING)
HOST = FieldType("the bare name or address of the server", _parse_host, _STRING)
DIRECTORY = FieldType("a directory on the server without '..'", _parse_directory, _STRING)
ENCODING = FieldType("utf-8, or a single-byte encoding such as latin-1 or cp1252", _parse_encoding, _STRING)
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
