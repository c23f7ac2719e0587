"""The hook that builds an `SFTPBackend` from an Airflow connection."""

from __future__ import annotations

from airflow_sftp_backend._file_rows import FoundFile

from .sftp import FilesFailed, SFTPBackendHook

__all__ = ["FilesFailed", "FoundFile", "SFTPBackendHook"]
