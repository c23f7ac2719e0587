"""Open sessions to a test server, and check that nothing stays open."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import paramiko
import psutil

from airflow_sftp_backend.backend import BackendConfig, RetryPolicy, Secret
from airflow_sftp_backend.backend._protocol.scheduler import SFTPScheduler
from airflow_sftp_backend.backend._ssh.session import Session
from tests.support.servers import Server, wait_until


class Address(Protocol):
    """Address of a listener."""

    host: str
    port: int


def config_of(server: Address, **changes: Any) -> BackendConfig:
    """Return the configuration for ``server``.

    It has the server's keys, if any, and one connection attempt.
    """
    values: dict[str, Any] = {"host": server.host, "port": server.port, "retry": RetryPolicy.disabled()}
    values |= {"username": "tester", "known_host_keys": "SHA256:" + "A" * 43}
    if isinstance(server, Server):
        values |= {"username": server.username, "known_host_keys": server.known_hosts}
        values |= {} if "password" in changes else {"key_file": str(server.client_key)}
    if isinstance(changes.get("password"), str):
        changes["password"] = Secret(changes["password"])
    return BackendConfig(**(values | changes))


@contextmanager
def session_to(server: Address, *, options: dict[str, Any] | None = None, **changes: Any) -> Iterator[Session]:
    """Provide a session, and close it at the end.

    A session; closed at the end, when nothing may be left of it. ``options`` go to Session, the rest to its
    configuration.
    """
    config = config_of(server, **changes)
    session = Session(config, **(options or {}))
    try:
        yield session
    finally:
        session.close()
        assert_nothing_left(config.port)


def assert_nothing_left(port: int) -> None:
    """Fail if a socket or a thread of paramiko remains."""
    wait_until(lambda: not sockets_to(port) and not threads(), f"{sockets_to(port)} and {threads()} to end")


def sockets_to(port: int) -> list[Any]:
    """This process's connections to a port."""
    found = psutil.Process().net_connections("tcp")
    return [connection for connection in found if connection.raddr and connection.raddr.port == port]


def threads() -> list[threading.Thread]:
    """Return the threads of connections and of attempts."""
    return [found for found in threading.enumerate() if isinstance(found, paramiko.Transport | threading.Timer)]


def round_trip(scheduler: SFTPScheduler) -> bool:
    """Tell whether the login directory exists, in one round trip."""
    from airflow_sftp_backend.backend._files.file_info import check_folder
    from airflow_sftp_backend.backend._paths import Jail

    scheduler.run(check_folder(Jail("/").root))
    return True
