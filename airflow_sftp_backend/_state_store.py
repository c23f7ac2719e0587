"""Reads and writes the state store of a task instance, which Airflow has from 3.3."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from .killed import undisturbed

if TYPE_CHECKING:
    from airflow.sdk.execution_time.context import TaskStateStoreAccessor
    from pydantic import JsonValue

log = logging.getLogger(__name__)


def load(store: TaskStateStoreAccessor, key: str) -> dict[str, Any]:
    """Return the value of a key: a JSON object, empty if there is none.

    :param store: ``context["task_state_store"]``.
    :param key: its key.
    :returns: the object; anything else was not written by this package, and counts as empty.
    :raises Exception: whatever Airflow, or the deployment's own state store backend, raises.
    """
    with undisturbed():
        value = store.get(key)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def load_if_possible(store: TaskStateStoreAccessor, key: str, purpose: str) -> dict[str, Any] | None:
    """Return the value of a key as `load` does; None, with a warning, if Airflow does not return it.

    :param store: ``context["task_state_store"]``.
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

    :param store: ``context["task_state_store"]``.
    :param key: its key.
    :param value: plain JSON: lists, not tuples, which the SDK's message refuses.
    :param purpose: what the next attempt cannot do without it, for the log.
    :returns: True if Airflow has it.
    """
    try:
        with undisturbed():
            store.set(key, value)
    except Exception as error:
        # Whatever is raised here must not replace the outcome of the task, whose files are already transferred.
        log.warning("cannot write %r to the task's state store, so the next attempt cannot %s: %s", key, purpose, error)
        return False
    return True
