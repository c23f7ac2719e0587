"""Make backends for tests that need no server."""

from __future__ import annotations

from collections.abc import Callable

from airflow_sftp_backend import RetryPolicy, SFTPBackend
from tests.support.servers import free_port


def offline(base_path: str = "/data") -> SFTPBackend:
    """Backend without a server: each connection raises BackendUnavailable."""
    return SFTPBackend("127.0.0.1", port=free_port(), base_path=base_path, retry=RetryPolicy.disabled(), timeout=5)


MakeBackend = Callable[..., SFTPBackend]
