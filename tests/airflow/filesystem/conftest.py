"""Fixtures for tests of the fsspec file system."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from airflow_sftp_backend import SFTPBackend
from airflow_sftp_backend.filesystem import SFTPBackendFileSystem
from tests.support.airflow.file_systems import close_file_systems
from tests.support.servers import AsyncsshServer, Folder


@pytest.fixture(autouse=True)
def closed_file_systems() -> Iterator[None]:
    """Close the cached file systems of a test."""
    yield
    close_file_systems()


@pytest.fixture
def folder(server: AsyncsshServer) -> Folder:
    """A fresh, empty folder on the server."""
    return server.fresh()


@pytest.fixture
def backend(make_backend: Callable[..., SFTPBackend], server: AsyncsshServer, folder: Folder) -> SFTPBackend:
    """A backend in the folder."""
    return make_backend(server, base_path=folder.base_path)


@pytest.fixture
def fs(backend: SFTPBackend) -> SFTPBackendFileSystem:
    """The file system over the backend."""
    return SFTPBackendFileSystem(backend=backend)
