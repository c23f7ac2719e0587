"""Hide the secrets among the arguments of a file system.

fsspec keeps the arguments of each file system, and caches file systems by the texts of their arguments.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from airflow_sftp_backend.backend import Secret
from airflow_sftp_backend.backend.config import wrap_secrets


class _ComparableSecret(Secret):
    """Secret whose text tells equal secrets from others.

    Equal secrets have equal texts in one process. The text does not reveal the secret.
    """

    __slots__ = ()
    _KEY: ClassVar[bytes] = secrets.token_bytes(32)

    def __repr__(self) -> str:
        value = self._value.encode("utf-8", "surrogatepass")
        return f"Secret('***', {hmac.new(self._KEY, value, 'sha256').hexdigest()[:32]})"


PLAIN_VALUES: Final = (str, int, float, bool, type(None), _ComparableSecret)
"""Types of arguments: two values with equal texts are equal."""


def hide_secrets(arguments: Mapping[str, object]) -> dict[str, Any]:
    """Return arguments with comparable secrets in place of passwords and keys.

    :param arguments: arguments of the file system
    :returns: the arguments
    """
    return {
        name: _ComparableSecret(value.reveal())
        if isinstance(value, Secret)
        else hide_secrets(value)
        if isinstance(value, Mapping)
        else value
        for name, value in wrap_secrets(arguments).items()
    }


def without_secrets(arguments: Mapping[str, object]) -> dict[str, object]:
    """Return arguments without secrets.

    :param arguments: arguments of the file system, as from `hide_secrets`
    :returns: the other arguments
    """
    return {
        name: without_secrets(value) if isinstance(value, Mapping) else value
        for name, value in arguments.items()
        if not isinstance(value, Secret)
    }
