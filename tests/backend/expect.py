"""What the contract tests look for: errors that say what they must, and folders that hold what they should."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from airflow_sftp_backend import RetryPolicy, SFTPBackend, SFTPBackendError
from tests.servers import free_port


@contextmanager
def refused(kind: type[SFTPBackendError], backend: SFTPBackend, path: str) -> Iterator[SFTPBackendError]:
    """The block must raise exactly ``kind`` with that path and the backend's name, in its fields and in its text."""
    error = kind("not raised")
    with pytest.raises(kind) as caught:
        yield error
    assert type(caught.value) is kind
    check_located(caught.value, backend, path)
    vars(error).update(vars(caught.value))


def check_located(error: SFTPBackendError, backend: SFTPBackend, path: str) -> None:
    """The error names path and server, in its fields and in its text."""
    assert (error.path, error.server) == (path, backend.address)
    assert error.backend == backend.name == "sftp"
    assert repr(path) in str(error)
    assert backend.address in str(error)


def tree(folder: Path) -> dict[str, bytes | None]:
    """All below ``folder``, hidden and temporary names too: the content of files, None for folders, links as text."""
    held: dict[str, bytes | None] = {}
    for place in sorted(folder.rglob("*")):
        name = place.relative_to(folder).as_posix()
        if place.is_symlink():
            held[name] = os.fsencode(f"-> {place.readlink()}")
        else:
            held[name] = None if place.is_dir() else place.read_bytes()
    return held


def offline(base_path: str = "/data") -> SFTPBackend:
    """A backend for a server that is not there: any attempt to speak to it raises BackendUnavailable."""
    return SFTPBackend("127.0.0.1", port=free_port(), base_path=base_path, retry=RetryPolicy.disabled(), timeout=5)
