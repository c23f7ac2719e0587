"""Paths and errors that all calls of the file system share."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path

from airflow_sftp_backend._arguments import check_no_password
from airflow_sftp_backend._path_arguments import URL_SCHEME
from airflow_sftp_backend.backend import SFTPBackendError

from .os_errors import as_os_error

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend

PROTOCOL: Final = URL_SCHEME
_URL: Final = re.compile(rf"{PROTOCOL}:(?://(?:(?P<conn_id>[^/@]*)@)?|:|(?=/))")


class BackendFileSystem(AbstractFileSystem):
    """File system over a backend. Its calls are in the subclasses."""

    protocol = PROTOCOL
    root_marker = "/"

    @property
    @abstractmethod
    def backend(self) -> SFTPBackend:
        """Return the backend."""

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """Return the path of a URL: ``/inbox/orders.csv`` for ``sftpbackend://partner@/inbox/orders.csv``."""
        if isinstance(path, list):
            return [cls._strip_protocol(single_path) for single_path in path]
        text = stringify_path(path)
        url = _URL.match(text)
        return "/" + re.sub("/+", "/", text if url is None else text[url.end() :]).strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        """Return the connection id of a URL as an argument."""
        check_no_password(path, "the path")
        url = _URL.match(path)
        return {"conn_id": url["conn_id"]} if url is not None and url["conn_id"] else {}


def raise_first(outcomes: Iterable[object]) -> None:
    """Raise the first error among outcomes.

    The texts of the others become its notes.
    """
    errors = [outcome for outcome in outcomes if isinstance(outcome, SFTPBackendError | OSError)]
    if errors:
        first = as_os_error(errors[0]) if isinstance(errors[0], SFTPBackendError) else errors[0]
        for other in errors[1:]:
            first.add_note(str(other))
        raise first
