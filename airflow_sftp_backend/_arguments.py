"""Check arguments that a DAG author passed."""

from __future__ import annotations

import re
from typing import Final

from .backend.config import check_mode

_PASSWORD_IN_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://[^/@:]*:[^/]*@")


class InvalidArgument(ValueError):
    """Report an invalid argument of an operator, sensor or trigger.

    A retry cannot help, so the error fails a task at once. Raise it only for values that a DAG author passed. Any other
    ValueError or TypeError is a programming error, and Airflow retries the task.
    """


def check_conn_id(conn_id: object) -> None:
    """Refuse a URL in place of a connection id.

    :param conn_id: the id, or a template of it
    :raises InvalidArgument: if the text contains ``@``, which Airflow allows in no id. The error omits the text, which
        may hold a password.
    """
    if isinstance(conn_id, str) and "@" in conn_id and "{" not in conn_id:
        raise InvalidArgument(
            "the connection id contains @, as a URL does; expected the id of an Airflow connection, which holds host,"
            " user and password"
        )


def check_no_password(text: str, argument: str) -> None:
    """Refuse a URL with a password.

    :param text: a path or URL
    :param argument: name of the argument, for the error
    :raises InvalidArgument: if the URL has a password. The error omits the text after the scheme.
    """
    if url := _PASSWORD_IN_URL.match(text):
        raise InvalidArgument(
            f"{argument} is a {url[1]}:// URL with a password; the text before @ is the id of an Airflow connection,"
            f" which holds the password: {url[1]}://conn_id@..."
        )


def check_mode_argument(mode: object) -> None:
    """Check the permission bits of targets.

    :param mode: the value to check; None for the usual ones
    :raises InvalidArgument: if the value is not a number of permission bits
    """
    if mode is not None:
        try:
            check_mode(mode)
        except ValueError as error:
            raise InvalidArgument(str(error)) from None
