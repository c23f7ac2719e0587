"""Provide connections, a server and an object store inside Airflow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem

from tests.support.airflow.connections import Connect
from tests.support.airflow.versions import reset_secrets_masker
from tests.support.servers import AsyncsshServer, Server


@pytest.fixture(autouse=True)
def masks() -> Iterator[None]:
    """Remove the masks of a test: Airflow recompiles all for each secret."""
    yield
    reset_secrets_masker()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """URL of a directory in an object store without transactions."""
    attach("memory", fs=MemoryFileSystem())
    yield f"memory://{tmp_path.name}"
    MemoryFileSystem.store.clear()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Gives Airflow a connection for a server and returns its id.

    It logs in with the server's client key, knows the server's host keys, works in a fresh folder and tries once to
    connect again, unless ``columns`` and ``extra`` say otherwise; an extra that is None is left out.
    """

    def connect(
        server: Server,
        conn_id: str = "sftp_backend_default",
        *,
        conn_type: str = "sftp_backend",
        columns: dict[str, object] | None = None,
        **extra: object,
    ) -> str:
        if "base_path" not in extra:
            extra["base_path"] = server.fresh().base_path
        defaults: dict[str, object] = {
            "private_key": server.client_key.read_text(),
            "known_host_keys": server.known_hosts,
        }
        if conn_type == "sftp_backend":
            defaults["reconnect_timeout"] = 0
        extra = defaults | extra
        connection = {
            "conn_type": conn_type,
            "host": server.host,
            "port": server.port,
            "login": server.username,
            "extra": {name: value for name, value in extra.items() if value is not None},
        }
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection | (columns or {})))
        return conn_id

    return connect


@pytest.fixture
def server(asyncssh_plain: AsyncsshServer) -> AsyncsshServer:
    """The one server most of these tests need."""
    return asyncssh_plain


@pytest.fixture
def remote(server: AsyncsshServer, connect: Connect) -> Path:
    """Base path of the default connection, as a local directory."""
    folder = server.fresh()
    connect(server, base_path=folder.base_path)
    return folder.path
