"""Assert that an error has the expected type, path and server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from airflow_sftp_backend import SFTPBackend, SFTPBackendError


@contextmanager
def refused(kind: type[SFTPBackendError], backend: SFTPBackend, path: str) -> Iterator[SFTPBackendError]:
    """Check that the block raises ``kind`` with this path and backend."""
    error = kind("not raised")
    with pytest.raises(kind) as caught:
        yield error
    assert type(caught.value) is kind
    check_located(caught.value, backend, path)
    vars(error).update(vars(caught.value))


def check_located(error: SFTPBackendError, backend: SFTPBackend, path: str) -> None:
    """Check that fields and text name path and server."""
    assert (error.path, error.server) == (path, backend.address)
    assert error.backend == backend.name == "sftp"
    assert repr(path) in str(error)
    assert backend.address in str(error)
