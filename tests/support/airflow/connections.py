"""The type of the fixture that gives Airflow a connection."""

from __future__ import annotations

from typing import Protocol

from tests.support.servers import Server


class Connect(Protocol):
    """Type of the fixture `connect`."""

    def __call__(
        self,
        server: Server,
        conn_id: str = "sftp_backend_default",
        *,
        conn_type: str = "sftp_backend",
        columns: dict[str, object] | None = None,
        **extra: object,
    ) -> str: ...
