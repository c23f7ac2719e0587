"""Fixtures for tests of operators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.airflow.connections import Connect
from tests.support.airflow.file_systems import close_file_systems
from tests.support.airflow.syncs import Serve
from tests.support.servers import Server


@pytest.fixture(autouse=True)
def closed_file_systems() -> Iterator[None]:
    """Close the cached file systems of a test."""
    yield
    close_file_systems()


@pytest.fixture
def serve(connect: Connect) -> Iterator[Serve]:
    """Start a server with a connection of its own; return its directory."""
    with ExitStack() as servers:

        def start(server: Server, conn_id: str = "sftp_backend_default") -> Path:
            folder = servers.enter_context(server).fresh()
            connect(server, conn_id, base_path=folder.base_path)
            return folder.path

        yield start
