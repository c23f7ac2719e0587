"""Import names from the installed Airflow; skip tests without them.

* 3.0: exceptions, serialization and provider discovery belong to the core, the masker to `execution_time`.
* before 3.3: no state stores, and a supervisor by another name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
from airflow import __version__ as airflow_version
from packaging.version import Version
from pydantic import BaseModel

from airflow_sftp_backend.version_compat import connection_from_text

if TYPE_CHECKING:
    from airflow.executors.workloads.base import BundleInfo
    from airflow.sdk import BaseHook, Connection
    from airflow.sdk._shared.secrets_masker import (
        _secrets_masker,
        redact,
        reset_secrets_masker,
        should_hide_value_for_key,
    )
    from airflow.sdk.exceptions import (
        AirflowFailException,
        AirflowNotFoundException,
        AirflowRescheduleException,
        AirflowSensorTimeout,
        AirflowSkipException,
        TaskDeferred,
    )
    from airflow.sdk.execution_time.comms import SetAssetStateStoreByName, SetTaskStateStore
    from airflow.sdk.execution_time.context import AssetStateStoreAccessors
    from airflow.sdk.execution_time.supervisor import supervise_task
    from airflow.sdk.log import mask_secret
    from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime
    from airflow.sdk.serde import deserialize, serialize
else:
    try:
        from airflow.sdk import BaseHook
        from airflow.sdk._shared.secrets_masker import (
            _secrets_masker,
            redact,
            reset_secrets_masker,
            should_hide_value_for_key,
        )
        from airflow.sdk.log import mask_secret
    except ImportError:  # 3.0
        from airflow.hooks.base import BaseHook
        from airflow.sdk.execution_time.secrets_masker import (
            _secrets_masker,
            mask_secret,
            redact,
            reset_secrets_masker,
            should_hide_value_for_key,
        )
    try:
        from airflow.sdk.exceptions import (
            AirflowFailException,
            AirflowNotFoundException,
            AirflowRescheduleException,
            AirflowSensorTimeout,
            AirflowSkipException,
            TaskDeferred,
        )
        from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime
        from airflow.sdk.serde import deserialize, serialize
    except ImportError:  # 3.0 and 3.1
        from airflow.exceptions import (
            AirflowFailException,
            AirflowNotFoundException,
            AirflowRescheduleException,
            AirflowSensorTimeout,
            AirflowSkipException,
            TaskDeferred,
        )
        from airflow.providers_manager import ProvidersManager as ProvidersManagerTaskRuntime
        from airflow.serialization.serde import deserialize, serialize
    try:
        from airflow.sdk.execution_time.comms import SetAssetStateStoreByName, SetTaskStateStore
        from airflow.sdk.execution_time.context import AssetStateStoreAccessors
    except ImportError:  # before 3.3
        SetAssetStateStoreByName = SetTaskStateStore = AssetStateStoreAccessors = None
    try:
        from airflow.executors.workloads.base import BundleInfo
    except ImportError:  # 3.0 and 3.1
        from airflow.executors.workloads import BundleInfo
    try:
        from airflow.sdk.execution_time.supervisor import supervise_task
    except ImportError:  # before 3.3
        from airflow.sdk.execution_time.supervisor import supervise as supervise_task

AIRFLOW_VERSION: Final = Version(airflow_version)

HAS_STATE_STORES: Final = SetTaskStateStore is not None
NO_STATE_STORES: Final = f"Airflow {airflow_version} has no state stores: they came with 3.3"
needs_state_stores: Final = pytest.mark.skipif(not HAS_STATE_STORES, reason=NO_STATE_STORES)


HAS_LITERAL: Final = Version("3.1") <= AIRFLOW_VERSION
needs_literal: Final = pytest.mark.skipif(not HAS_LITERAL, reason=f"Airflow {airflow_version} has no `literal`")


def connection_from_uri(uri: str, conn_id: str) -> Connection:
    """Read a connection from a URI, as Airflow reads an environment variable."""
    found = connection_from_text(uri, conn_id)
    assert found is not None
    return found


def connection_as_json(connection: Connection) -> str:
    """Write a connection as JSON, or for Airflow 3.0 as URI."""
    write = getattr(connection, "as_json", connection.get_uri)
    return str(write())


def known_fields(model: type[BaseModel], **values: Any) -> dict[str, Any]:
    """Keep the values whose fields this version's model has.

    :param model: a model of Airflow's that differs from version to version.
    :param values: the fields of the newest version.
    :returns: the fields that ``model`` has.
    """
    return {name: value for name, value in values.items() if name in model.model_fields}


__all__ = [
    "AIRFLOW_VERSION",
    "HAS_LITERAL",
    "HAS_STATE_STORES",
    "NO_STATE_STORES",
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowRescheduleException",
    "AirflowSensorTimeout",
    "AirflowSkipException",
    "AssetStateStoreAccessors",
    "BaseHook",
    "BundleInfo",
    "ProvidersManagerTaskRuntime",
    "SetAssetStateStoreByName",
    "SetTaskStateStore",
    "TaskDeferred",
    "_secrets_masker",
    "connection_as_json",
    "connection_from_uri",
    "deserialize",
    "known_fields",
    "mask_secret",
    "needs_literal",
    "needs_state_stores",
    "redact",
    "reset_secrets_masker",
    "serialize",
    "should_hide_value_for_key",
    "supervise_task",
]
