"""Fixtures for what runs inside Airflow: connections, given to Airflow the way a deployment gives them."""

from __future__ import annotations

import json
from typing import Protocol

import pytest

from tests.servers import Server


class Connect(Protocol):
    """What the fixture `connect` is."""

    def __call__(
        self,
        server: Server,
        conn_id: str = "sftp_backend_default",
        *,
        conn_type: str = "sftp_backend",
        columns: dict[str, object] | None = None,
        **extra: object,
    ) -> str: ...


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Gives Airflow a connection for a server and returns its id.

    It logs in with the server's client key, knows the server's host keys and works in a fresh folder, unless
    ``columns`` and ``extra`` say otherwise; an extra that is None is left out.
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
        extra = {"private_key": server.client_key.read_text(), "known_host_keys": server.known_hosts} | extra
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
