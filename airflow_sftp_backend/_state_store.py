"""Read and write the state stores of tasks and assets.

Airflow has the store from version 3.3 on.

The store is made for small values (64 KiB). `RowTable` splits any number of rows into chunks of that size.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from ._cancellation import shield_from_kill

if TYPE_CHECKING:
    from pydantic import JsonValue

log = logging.getLogger(__name__)

Endpoints = tuple[str, str]
"""Source and target of a file."""
_ROWS_PER_CHUNK: Final = 200
"""Rows in one value of the store, about 40 KiB."""
_MAX_CHUNKS: Final = 100
API_SERVER_PATIENCE: Final = 90.0
"""Seconds for which a record is written again while Airflow's API server is away: a restart takes about a minute."""
_SECONDS_BETWEEN_WRITES: Final = 2.0


class StateStore(Protocol):
    """Interface of the state store of a task or an asset."""

    def get(self, key: str) -> JsonValue:
        """Return the value under a key; None if the key is missing."""

    def set(self, key: str, value: JsonValue) -> None:
        """Write the value under a key."""


def load(store: StateStore, key: str) -> dict[str, Any]:
    """Return the JSON object under a key.

    The object is empty if the key is missing.

    :param store: the store of `task_state_store`
    :param key: the key
    :returns: the object; empty for a value of another type, which this package did not write
    :raises Exception: any error of Airflow or of the deployment's state store backend
    """
    with shield_from_kill():
        value = store.get(key)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def load_if_possible(store: StateStore, key: str, purpose: str) -> dict[str, Any] | None:
    """Return the object under a key, or log a failure.

    See `load`.

    :param store: the store of `task_state_store`
    :param key: the key
    :param purpose: verb phrase for the log: "the task cannot <purpose>"
    :returns: the object; None after an error
    """
    try:
        return load(store, key)
    except Exception as error:
        log.warning("cannot read %r from the task's state store, so the task cannot %s: %s", key, purpose, error)
        return None


def save(
    store: StateStore,
    key: str,
    value: JsonValue,
    purpose: str,
    *,
    owner: str = "task",
    reader: str = "next attempt",
    patience: float = 0,
) -> bool:
    """Write the object under a key, or log a failure.

    :param store: the store of `task_state_store`
    :param key: the key
    :param value: plain JSON: lists, not tuples, because the SDK's message refuses tuples
    :param purpose: verb phrase for the log: "the <reader> cannot <purpose>"
    :param owner: owner of the store, for the log
    :param reader: reader of the value, for the log
    :param patience: seconds for which the write is repeated while Airflow's API server is away
    :returns: True if Airflow stored the object
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            with shield_from_kill():
                store.set(key, value)
        except Exception as error:
            if _is_api_server_away(error) and time.monotonic() < deadline:
                log.info("Airflow's API server is away; writing %r again: %s", key, error)
                time.sleep(_SECONDS_BETWEEN_WRITES)
                continue
            # An error must not replace the outcome of the task: the files are already transferred.
            message = "cannot write %r to the %s's state store, so the %s cannot %s: %s"
            log.warning(message, key, owner, reader, purpose, error)
            return False
        return True


def _is_api_server_away(error: Exception) -> bool:
    """Tell whether Airflow's API server failed or cannot be reached."""
    # The SDK answers with an ErrorResponse: status_code is None without a response of the server.
    detail = getattr(getattr(error, "error", None), "detail", None)
    if not isinstance(detail, dict) or "status_code" not in detail:
        return False
    status: int | None = detail["status_code"]
    return status is None or status >= 500


class RowTable:
    """Keep rows for the next attempt of the task instance.

    Each pair of source and target has one row.

    :param store: the store of `task_state_store`; None before Airflow 3.3, then nothing is kept
    :param name: first word of the store's keys
    :param scope: name of the server or upload; rows of another scope do not count
    :param purpose: verb phrase for the log: "the next attempt cannot <purpose>"
    :param may_exist: whether an earlier attempt may have written rows
    """

    def __init__(self, store: StateStore | None, name: str, scope: str, purpose: str, *, may_exist: bool) -> None:
        self._store = store
        self._name = name
        self._scope = scope
        self._purpose = purpose
        self._may_exist = may_exist
        self._failed = False

    @property
    def is_persistent(self) -> bool:
        """True if a store keeps the rows."""
        return self._store is not None

    @cached_property
    def _chunks(self) -> list[dict[Endpoints, list[Any]]]:
        chunks: list[dict[Endpoints, list[Any]]] = []
        while self._store is not None and self._may_exist and len(chunks) < _MAX_CHUNKS:
            value = load(self._store, f"{self._name} {len(chunks)}")
            if value.get("scope") != self._scope:
                break
            chunks.append({(row[0], row[1]): row[2:] for row in value["rows"]})
        return chunks

    @cached_property
    def _chunk_numbers(self) -> dict[Endpoints, int]:
        """Number of the chunk of each row."""
        # A search of all chunks for each of many rows would take long.
        numbers: dict[Endpoints, int] = {}
        for number, chunk in enumerate(self._chunks):
            for endpoints in chunk:
                numbers.setdefault(endpoints, number)
        return numbers

    @property
    def rows(self) -> dict[Endpoints, list[Any]]:
        """All rows by source and target; reading raises the errors of `load`."""
        return {endpoints: values for chunk in self._chunks for endpoints, values in chunk.items()}

    def get(self, endpoints: Endpoints) -> list[Any] | None:
        """Return the values of a row.

        :param endpoints: source and target
        :returns: the values; None if there is no row
        :raises Exception: the errors of `load`
        """
        number = self._chunk_numbers.get(endpoints)
        return None if number is None else self._chunks[number][endpoints]

    def _discard(self, endpoints: Endpoints) -> int | None:
        """Remove a row; return the number of its chunk, if any."""
        number = self._chunk_numbers.pop(endpoints, None)
        if number is not None:
            del self._chunks[number][endpoints]
        return number

    def put(
        self, rows: Mapping[Endpoints, list[Any]], removed: Iterable[Endpoints] = (), *, even_after_failure: bool = True
    ) -> None:
        """Write and remove rows, with one request for each changed chunk.

        :param rows: plain JSON values; existing rows are replaced
        :param removed: rows to remove
        :param even_after_failure: False writes nothing after a failed write, because an unreachable API server would
            delay each later group of files
        """
        changed = {number for endpoints in removed if (number := self._discard(endpoints)) is not None}
        for endpoints, values in rows.items():
            number = self._chunk_for(endpoints)
            if number is not None:  # otherwise a retry does not recognise the file, but the task works
                self._chunks[number][endpoints] = values
                self._chunk_numbers[endpoints] = number
                changed.add(number)
        if self._store is None or (self._failed and not even_after_failure):
            return
        for number in sorted(changed):
            stored = [[*endpoints, *values] for endpoints, values in self._chunks[number].items()]
            value = cast("JsonValue", {"scope": self._scope, "rows": stored})
            # Later groups of files do not wait again.
            patience = 0 if self._failed else API_SERVER_PATIENCE
            self._failed = not save(self._store, f"{self._name} {number}", value, self._purpose, patience=patience)

    def _chunk_for(self, endpoints: Endpoints) -> int | None:
        """Return the number of a row's chunk; None if all are full."""
        if endpoints in self._chunk_numbers:
            return self._chunk_numbers[endpoints]
        if not self._chunks or len(self._chunks[-1]) >= _ROWS_PER_CHUNK:
            if len(self._chunks) == _MAX_CHUNKS:
                return None
            self._chunks.append({})
        return len(self._chunks) - 1
