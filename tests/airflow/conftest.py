"""Fixtures for what runs inside Airflow: connections, given to Airflow the way a deployment gives them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, cast
from uuid import UUID

import pytest
from airflow.sdk._shared.secrets_masker import reset_secrets_masker
from airflow.sdk.execution_time.comms import SetAssetStateStoreByName, SetTaskStateStore
from airflow.sdk.execution_time.context import OutletEventAccessors
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]  # has no types

from airflow_sftp_backend._path_arguments import parse_names, parse_patterns
from airflow_sftp_backend._polling.conditions import FileCondition, condition_paths
from tests.servers import AsyncsshServer, Server

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pydantic import BaseModel


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


@pytest.fixture(autouse=True)
def masks() -> Iterator[None]:
    """Forgets what a test has had masked: with each secret Airflow compiles all of them anew."""
    yield
    reset_secrets_masker()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """The URL of a folder in an object store: one without transactions, which renames by copying."""
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
    """The base path of the default connection, as a folder of this machine."""
    folder = server.fresh()
    connect(server, base_path=folder.base_path)
    return folder.path


class State:
    """The state store of a task instance: every write builds the message that Airflow's SDK sends for it."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def message(self, key: str, value: Any) -> BaseModel:
        """The SDK's message for a write: it refuses whatever is not plain JSON, a tuple too."""
        return SetTaskStateStore(ti_id=UUID(int=1), key=key, value=value, expires_at=None)

    def get(self, key: str, default: object = None) -> Any:
        """The value as Airflow returns it."""
        return json.loads(self.values[key])["value"] if key in self.values else default

    def set(self, key: str, value: object, **options: object) -> None:
        """Keeps the value of the message. ValueError for None, as the SDK."""
        if value is None:
            raise ValueError("Cannot set value as None")
        self.values[key] = self.message(key, value).model_dump_json(include={"value"})


class AssetState(State):
    """The state store of an asset."""

    def message(self, key: str, value: Any) -> BaseModel:
        """The SDK's message for a write."""
        return SetAssetStateStoreByName(name="inbox", key=key, value=value)

    async def aget(self, key: str) -> Any:
        """`get`, as the triggerer calls it."""
        return self.get(key)

    async def aset(self, key: str, value: object) -> None:
        """`set`, as the triggerer calls it."""
        self.set(key, value)


def context(
    try_number: int = 1,
    state: State | None = None,
    *,
    cleared: int = 0,
    run_type: str = "manual",
    logical_date: datetime | None = None,
) -> Context:
    """What a task is run with, as far as operators and sensors look at it; ``cleared`` after as many tries."""
    started = datetime.now(UTC)
    instance = SimpleNamespace(
        dag_id="dag", task_id="task", run_id="run", map_index=-1,
        try_number=try_number, max_tries=cleared + 3, task=SimpleNamespace(retries=3),
        get_first_reschedule_date=lambda _: started,
    )  # fmt: skip
    run_after = datetime(2026, 1, 31, 23, 30, tzinfo=timezone(timedelta(hours=-1)))
    run = SimpleNamespace(start_date=None, run_after=run_after, run_type=run_type, logical_date=logical_date)
    found: dict[str, Any] = {"ti": instance, "dag_run": run, "outlet_events": OutletEventAccessors()}
    if logical_date is not None:
        found["logical_date"] = logical_date
    if state is not None:
        found["task_state_store"] = state
    return cast("Context", found)


class Glob:
    """Patterns, where a test's helper takes names or these."""

    def __init__(self, *patterns: str) -> None:
        self.patterns = patterns


def selecting(wanted: Any, names: str = "source") -> dict[str, Any]:
    """The argument of an operator or sensor that selects ``wanted``: names, or a `Glob`."""
    if not isinstance(wanted, Glob):
        return {names: wanted}
    return {"pattern": wanted.patterns[0] if len(wanted.patterns) == 1 else list(wanted.patterns)}


def waiting_for(path: str, **arguments: Any) -> FileCondition:
    """The condition of a wait for a name or, with an asterisk in it, a pattern."""
    wanted = parse_patterns(path) if "*" in path else parse_names(path, "path")
    return FileCondition(**condition_paths(wanted), **arguments)


def grow(folder: Path, files: dict[str, bytes]) -> Path:
    """Writes files into a folder, by path below it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def held(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden and temporary ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def errors_of(failed: BaseException) -> tuple[Exception, ...]:
    """The errors of the files behind a failure that names them all in one text."""
    assert isinstance(failed.__cause__, ExceptionGroup)
    return failed.__cause__.exceptions
