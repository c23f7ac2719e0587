"""Reads and writes the state store of a task instance, which Airflow has from 3.3.

`RowTable` keeps rows of any number in pieces: the store is made for small values (64 KiB).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, cast

from ._cancellation import shield_from_kill

if TYPE_CHECKING:
    from airflow.sdk.execution_time.context import TaskStateStoreAccessor
    from pydantic import JsonValue

log = logging.getLogger(__name__)

Endpoints = tuple[str, str]
"""Source and target of a file."""
_ROWS_PER_CHUNK: Final = 200
"""Rows in one value of the store: some 40 KiB."""
_MAX_CHUNKS: Final = 100


def load(store: TaskStateStoreAccessor, key: str) -> dict[str, Any]:
    """Return the value of a key: a JSON object, empty if there is none.

    :param store: that of `task_state_store`.
    :param key: its key.
    :returns: the object; anything else was not written by this package, and counts as empty.
    :raises Exception: whatever Airflow, or the deployment's own state store backend, raises.
    """
    with shield_from_kill():
        value = store.get(key)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def load_if_possible(store: TaskStateStoreAccessor, key: str, purpose: str) -> dict[str, Any] | None:
    """Return the value of a key as `load` does; None, with a warning, if Airflow does not return it.

    :param store: that of `task_state_store`.
    :param key: its key.
    :param purpose: what the task cannot do without it, for the log.
    :returns: the object.
    """
    try:
        return load(store, key)
    except Exception as error:
        log.warning("cannot read %r from the task's state store, so the task cannot %s: %s", key, purpose, error)
        return None


def save(store: TaskStateStoreAccessor, key: str, value: JsonValue, purpose: str) -> bool:
    """Write the value of a key, or log why Airflow did not keep it.

    :param store: that of `task_state_store`.
    :param key: its key.
    :param value: plain JSON: lists, not tuples, which the SDK's message refuses.
    :param purpose: what the next attempt cannot do without it, for the log.
    :returns: True if Airflow has it.
    """
    try:
        with shield_from_kill():
            store.set(key, value)
    except Exception as error:
        # Whatever is raised here must not replace the outcome of the task, whose files are already transferred.
        log.warning("cannot write %r to the task's state store, so the next attempt cannot %s: %s", key, purpose, error)
        return False
    return True


class RowTable:
    """Rows that the next attempt of the task instance finds again, one for a source and a target.

    :param store: that of `task_state_store`; None before Airflow 3.3, where nothing is kept.
    :param name: the first word of the store's keys.
    :param scope: rows that were written under another scope do not count.
    :param purpose: what the next attempt cannot do without the rows, for the log.
    :param read: whether an earlier attempt may have written rows.
    """

    def __init__(
        self, store: TaskStateStoreAccessor | None, name: str, scope: str, purpose: str, *, read: bool
    ) -> None:
        self._store = store
        self._name = name
        self._scope = scope
        self._purpose = purpose
        self._read = read
        self._failed = False

    @property
    def is_persistent(self) -> bool:
        """True if there is a store to keep the rows in."""
        return self._store is not None

    @cached_property
    def _chunks(self) -> list[dict[Endpoints, list[Any]]]:
        chunks: list[dict[Endpoints, list[Any]]] = []
        while self._store is not None and self._read and len(chunks) < _MAX_CHUNKS:
            value = load(self._store, f"{self._name} {len(chunks)}")
            if value.get("scope") != self._scope:
                break
            chunks.append({(row[0], row[1]): row[2:] for row in value["rows"]})
        return chunks

    @property
    def rows(self) -> dict[Endpoints, list[Any]]:
        """Return the values of each row. Raises what `load` raises."""
        return {endpoints: values for chunk in self._chunks for endpoints, values in chunk.items()}

    def get(self, endpoints: Endpoints) -> list[Any] | None:
        """Return the values of a row, None if there is none."""
        return next((chunk[endpoints] for chunk in self._chunks if endpoints in chunk), None)

    def put(
        self, rows: Mapping[Endpoints, list[Any]], removed: Iterable[Endpoints] = (), *, insist: bool = True
    ) -> None:
        """Write rows and remove others, with one write for some hundred rows.

        :param rows: plain JSON values; a row that exists is replaced.
        :param removed: rows to remove.
        :param insist: False writes nothing if an earlier write has failed: an API server that is away would hold up
            the transfer again and again.
        """
        changed = {
            number for endpoints in removed for number, chunk in enumerate(self._chunks) if chunk.pop(endpoints, None)
        }
        for endpoints, values in rows.items():
            number = next((number for number, chunk in enumerate(self._chunks) if endpoints in chunk), None)
            if number is None:
                if not self._chunks or len(self._chunks[-1]) >= _ROWS_PER_CHUNK:
                    if len(self._chunks) == _MAX_CHUNKS:
                        continue
                    self._chunks.append({})
                number = len(self._chunks) - 1
            self._chunks[number][endpoints] = values
            changed.add(number)
        if self._store is None or (self._failed and not insist):
            return
        for number in sorted(changed):
            stored = [[*endpoints, *values] for endpoints, values in self._chunks[number].items()]
            value = cast("JsonValue", {"scope": self._scope, "rows": stored})
            self._failed = not save(self._store, f"{self._name} {number}", value, self._purpose)
