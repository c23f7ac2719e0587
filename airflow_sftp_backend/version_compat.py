"""Provide the names and features that depend on Airflow's version.

Other modules use these names, and compare no versions. A few depend on the version nevertheless: `hooks.sftp` and
`_connections.form_widgets` build the form of Airflow 3.0 and 3.1, `assets.events` handles an error of Airflow 3.3.2.

* 3.0: no `BaseHook` in the SDK, and its `Connection` reads neither JSON nor a URI.
* 3.0 and 3.1: exceptions, configuration and metrics belong to the core. The SDK has its own from 3.2.
* before 3.3: no state stores.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol, cast

from airflow import __version__ as airflow_version
from packaging.version import Version

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from datetime import timedelta

    from airflow.providers.common.compat.openlineage.facet import Dataset, RunFacet
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import BaseHook, Connection, Context
    from airflow.sdk._shared.secrets_masker import _secrets_masker
    from airflow.sdk.configuration import conf
    from airflow.sdk.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSkipException,
    )
    from airflow.sdk.execution_time.context import (
        AssetStateStoreAccessors,
        TaskStateStoreAccessor,
    )
    from airflow.sdk.log import mask_secret
    from airflow.triggers.base import BaseEventTrigger

else:
    try:
        from airflow.sdk import BaseHook
    except ImportError:  # 3.0
        from airflow.hooks.base import BaseHook
    try:
        from airflow.sdk.configuration import conf
        from airflow.sdk.exceptions import (
            AirflowException,
            AirflowFailException,
            AirflowNotFoundException,
            AirflowSkipException,
        )
    except ImportError:  # 3.0 and 3.1
        from airflow.configuration import conf
        from airflow.exceptions import (
            AirflowException,
            AirflowFailException,
            AirflowNotFoundException,
            AirflowSkipException,
        )
    try:
        from airflow.sdk.log import mask_secret
    except ImportError:  # 3.0
        from airflow.sdk.execution_time.secrets_masker import mask_secret
    try:
        from airflow.sdk._shared.secrets_masker import _secrets_masker
    except ImportError:  # 3.0
        from airflow.sdk.execution_time.secrets_masker import _secrets_masker

AIRFLOW_VERSION: Final = airflow_version
"""Version of the running Airflow."""
HAS_STATE_STORES: Final = Version(airflow_version) >= Version("3.3")
"""Whether Airflow keeps state of task instances and of assets."""
FORM_COMES_FROM_HOOK: Final = Version(airflow_version) < Version("3.2")
"""Whether Airflow reads the fields of the connection form from the hook, and not from the provider info."""

__all__ = [
    "AIRFLOW_VERSION",
    "FORM_COMES_FROM_HOOK",
    "HAS_STATE_STORES",
    "AirflowException",
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowSkipException",
    "BaseHook",
    "Metrics",
    "PatternMasker",
    "arguments_of_call",
    "asset_state_stores",
    "conf",
    "connection_from_text",
    "mask_secret",
    "operator_lineage",
    "pattern_masker",
    "redact",
    "task_metrics",
    "task_state_store",
    "triggerer_metrics",
    "watch_state_store",
]


# -- secrets ----------------------------------------------------------------------------------------------------------


class PatternMasker(Protocol):
    """Airflow's masker of a process.

    :ivar patterns: the masked texts, escaped for a regular expression
    :ivar replacer: matches any of the patterns; None without patterns
    """

    patterns: set[str]
    replacer: re.Pattern[str] | None


def pattern_masker() -> PatternMasker | None:
    """Return the masker of this process.

    :returns: the masker; None if this Airflow keeps its masks in another way
    """
    masker: object = _secrets_masker()
    if isinstance(getattr(masker, "patterns", None), set) and hasattr(masker, "replacer"):
        return cast("PatternMasker", masker)
    return None


def redact(text: str) -> str:
    """Replace every masked secret in a text by ``***``.

    :param text: any text
    :returns: the text without secrets
    """
    return str(_secrets_masker().redact(text))


# -- connections ------------------------------------------------------------------------------------------------------


def connection_from_text(text: str, conn_id: str) -> Connection | None:
    """Read a connection in one of Airflow's two text forms.

    :param text: JSON or a URI
    :param conn_id: the id of the connection
    :returns: the connection; None if the text has neither form
    """
    from airflow.sdk import Connection

    is_json = text.lstrip().startswith("{")
    if not is_json and "://" not in text:
        return None
    try:
        if not hasattr(Connection, "from_json"):  # 3.0
            from airflow.models.connection import Connection as CoreConnection

            core = CoreConnection.from_json(text, conn_id) if is_json else CoreConnection(conn_id=conn_id, uri=text)
            return cast("Connection", core)  # its fields are the same
        return Connection.from_json(text, conn_id) if is_json else Connection.from_uri(text, conn_id)
    except (AirflowException, ValueError, TypeError, AttributeError):
        return None


# -- state stores -----------------------------------------------------------------------------------------------------


def task_state_store(context: Context) -> TaskStateStoreAccessor | None:
    """Return the state store of the running task instance.

    :param context: the context of the task
    :returns: the store; None before Airflow 3.3
    """
    return context.get("task_state_store")


def asset_state_stores(context: Context) -> AssetStateStoreAccessors | None:
    """Return the state stores of the task's assets.

    :param context: the context of the task
    :returns: the stores, by asset; None before Airflow 3.3
    """
    return context.get("asset_state_store")


def watch_state_store(trigger: BaseEventTrigger) -> AssetStateStoreAccessors | None:
    """Return the state store of the asset that a trigger watches.

    :param trigger: a trigger that runs in the triggerer
    :returns: the store; None before Airflow 3.3
    """
    return getattr(trigger, "asset_state_store", None)


# -- metrics ----------------------------------------------------------------------------------------------------------


class Metrics(Protocol):
    """Receive the metrics of a process."""

    def incr(self, stat: str, count: int = 1, *, tags: dict[str, str] | None = None) -> None:
        """Increase a counter.

        :param stat: the name
        :param count: the increase
        :param tags: labels of the metric, for receivers that support labels
        """

    def timing(self, stat: str, dt: timedelta, *, tags: dict[str, str] | None = None) -> None:
        """Record a duration.

        :param stat: the name
        :param dt: the duration
        :param tags: labels of the metric, for receivers that support labels
        """


def task_metrics() -> Metrics:
    """Return the metrics of a process that runs a task.

    :returns: the metrics, which Airflow has set up at the start of the task
    """
    return cast("Metrics", _stats("airflow.sdk.observability.stats"))


def triggerer_metrics() -> Metrics:
    """Return the metrics of the triggerer.

    Airflow sets them up in the core, and not in the SDK.

    :returns: the metrics
    """
    return cast("Metrics", _stats("airflow.observability.stats"))


def _stats(module: str) -> object:
    try:
        return import_module(module).Stats
    except ImportError:  # 3.0 and 3.1
        return import_module("airflow.stats").Stats


# -- decorators -------------------------------------------------------------------------------------------------------


def arguments_of_call(
    function: Callable[..., object], positional: Collection[object], arguments: Mapping[str, object]
) -> Mapping[str, object]:
    """Select the keyword arguments that a function takes.

    :param function: the function of a task
    :param positional: its positional arguments
    :param arguments: the values by name, with the context of the task
    :returns: the keyword arguments of the call
    """
    try:
        from airflow.sdk.bases.decorator import KeywordParameters
    except ImportError:  # 3.0 and 3.1
        from airflow.utils.operator_helpers import KeywordParameters  # type: ignore[attr-defined]
    return KeywordParameters.determine(function, positional, arguments).unpacking()


# -- lineage ----------------------------------------------------------------------------------------------------------


def operator_lineage() -> type[OperatorLineage[Dataset, RunFacet]] | None:
    """Return the class of an operator's OpenLineage datasets.

    :returns: the class; None if Airflow's OpenLineage provider is not installed
    """
    try:
        from airflow.providers.openlineage.extractors import OperatorLineage
    except ImportError:
        return None
    return OperatorLineage
