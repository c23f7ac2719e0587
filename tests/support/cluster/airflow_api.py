"""Speak to the REST API of the cluster's Airflow."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import httpx

PATIENCE: Final = 120.0
"""Seconds for which a request is repeated while the server is away."""


@dataclass(frozen=True)
class Task:
    """Hold the state of a task instance.

    ``attempt`` counts from 1; ``worker`` is the host name of the machine of the last attempt.
    """

    name: str
    index: int
    state: str
    attempt: int
    worker: str
    triggerer: int | None
    started: datetime | None
    ended: datetime | None

    @classmethod
    def of(cls, response: Mapping[str, Any]) -> Task:
        """Read a task instance of the API."""
        times = [
            datetime.fromisoformat(text) if text else None for text in (response["start_date"], response["end_date"])
        ]
        return cls(
            name=response["task_id"],
            index=response["map_index"],
            state=response["state"] or "none",
            attempt=response["try_number"],
            worker=response["hostname"] or "",
            triggerer=(response["trigger"] or {}).get("triggerer_id"),
            started=times[0],
            ended=times[1],
        )

    @property
    def is_over(self) -> bool:
        """Return whether the task has its last state."""
        return self.state in {"success", "failed", "upstream_failed", "skipped", "removed"}


class AirflowAPI:
    """Send requests as an administrator.

    :param port: port of the API server
    """

    def __init__(self, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)
        self._authorized = False

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str, **parameters: object) -> Any:
        """Return the JSON of a GET request."""
        return self.request("GET", path, params=parameters)

    def request(self, method: str, path: str, *, patience: float = PATIENCE, **options: Any) -> Any:
        """Send a request, and repeat it while the server cannot be reached.

        :param method: HTTP method
        :param path: path below ``/api/v2/``
        :param patience: seconds
        :param options: arguments of ``httpx.Client.request``
        :returns: the JSON of the response
        """
        end = time.monotonic() + patience
        while (response := self._try(method, path, options)) is None or response.status_code >= 500:
            if time.monotonic() > end:
                raise TimeoutError(f"{method} {path}: {'no response' if response is None else response.text}")
            time.sleep(0.2)
        assert response.is_success, f"{method} {path}: {response.status_code} {response.text}"
        return response.json() if response.content else None

    def answers(self) -> bool:
        """Return whether the server answers."""
        try:
            return self._client.get("/api/v2/version").is_success
        except httpx.TransportError:
            return False

    def tasks(self, dag: str, run: str) -> list[Task]:
        """List the task instances of a run."""
        path = f"dags/{dag}/dagRuns/{run}/taskInstances"
        return [Task.of(response) for response in self.get(path, limit=100)["task_instances"]]

    def result(self, dag: str, run: str, task: str, index: int = -1) -> Any:
        """Return the result of a task."""
        path = f"dags/{dag}/dagRuns/{run}/taskInstances/{task}/xcomEntries/return_value"
        return self.get(path, map_index=index)["value"]

    def _try(self, method: str, path: str, options: Mapping[str, Any]) -> httpx.Response | None:
        try:
            self._authorize()
            return self._client.request(method, f"/api/v2/{path}", **options)
        except httpx.TransportError:
            return None

    def _authorize(self) -> None:
        if self._authorized:
            return
        response = self._client.get("/auth/token")
        if response.is_success:
            self._client.headers["Authorization"] = f"Bearer {response.json()['access_token']}"
            self._authorized = True
