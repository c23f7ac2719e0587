"""Store files on any SSH/SFTP server.

The package has the backend, its values and its errors. It imports neither Airflow nor Azure.

Values and errors are cheap to import. The modules that use SSH are imported at first access.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .config import BackendConfig, HostKeyPolicy, RetryPolicy, Secret
from .errors import (
    AlreadyExists,
    AuthenticationFailed,
    BackendUnavailable,
    CapabilityNotSupported,
    DirectoryNotEmpty,
    HostKeyRejected,
    InvalidPath,
    NotFound,
    PermissionDenied,
    SFTPBackendError,
    TransferCorrupted,
)
from .models import (
    BackendStatistics,
    BeforeRename,
    Capability,
    FileInfo,
    FolderEntry,
    FolderInfo,
    PartialFile,
    PreparedFile,
    Progress,
    ResolutionPlan,
    WriteResult,
)

if TYPE_CHECKING:
    from .aio import SyncBackendAdapter
    from .sync import SFTPBackend
    from .utils import SFTPUtils

__all__ = [
    "AlreadyExists",
    "AuthenticationFailed",
    "BackendConfig",
    "BackendStatistics",
    "BackendUnavailable",
    "BeforeRename",
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
    "PartialFile",
    "PermissionDenied",
    "PreparedFile",
    "Progress",
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

_LAZY_MODULES = {"SFTPBackend": ".sync", "SFTPUtils": ".utils", "SyncBackendAdapter": ".aio"}


def __getattr__(name: str) -> object:
    if name not in _LAZY_MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_LAZY_MODULES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
