"""Files on any SSH/SFTP server: the backend, its values and its errors. Knows neither Airflow nor Azure."""

from ._backend import SFTPBackend
from ._config import BackendConfig, HostKeyPolicy, RetryPolicy, Secret
from ._errors import (
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
from ._models import (
    Capability,
    FileInfo,
    FolderEntry,
    FolderInfo,
    Progress,
    ResolutionPlan,
    WriteResult,
)
from ._scan import SFTPUtils
from .aio import SyncBackendAdapter

__all__ = [
    "AlreadyExists",
    "AuthenticationFailed",
    "BackendConfig",
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
