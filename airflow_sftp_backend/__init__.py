"""Files on any SSH/SFTP server, for Airflow and without it.

The names below are imported at first access: importing the package loads neither paramiko nor azure nor airflow. Hook,
operators, sensor and triggers are in the modules of those names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str

    from .backend import (
        AlreadyExists,
        AuthenticationFailed,
        BackendStatistics,
        BackendUnavailable,
        Capability,
        CapabilityNotSupported,
        DirectoryNotEmpty,
        FileInfo,
        FolderEntry,
        FolderInfo,
        HostKeyPolicy,
        HostKeyRejected,
        InvalidPath,
        NotFound,
        PermissionDenied,
        ResolutionPlan,
        RetryPolicy,
        Secret,
        SFTPBackend,
        SFTPBackendError,
        SFTPUtils,
        SyncBackendAdapter,
        TransferCorrupted,
        WriteResult,
    )

__all__ = [
    "AlreadyExists",
    "AuthenticationFailed",
    "BackendStatistics",
    "BackendUnavailable",
    "Capability",
    "CapabilityNotSupported",
    "DirectoryNotEmpty",
    "FileInfo",
    "FolderEntry",
    "FolderInfo",
    "HostKeyPolicy",
    "HostKeyRejected",
    "InvalidPath",
    "NotFound",
    "PermissionDenied",
    "ResolutionPlan",
    "RetryPolicy",
    "SFTPBackend",
    "SFTPBackendError",
    "SFTPUtils",
    "Secret",
    "SyncBackendAdapter",
    "TransferCorrupted",
    "WriteResult",
]


def __getattr__(name: str) -> object:
    value: object
    if name == "__version__":
        # Read from the installed package: pyproject.toml is the only place that states the version.
        value = import_module("importlib.metadata").version("airflow-sftp-backend")
    elif name in __all__:
        value = getattr(import_module(".backend", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
