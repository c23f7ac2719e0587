"""Close the file systems that fsspec and Airflow cache."""

from __future__ import annotations

from airflow.sdk.io.store import _STORE_CACHE

from airflow_sftp_backend.filesystem import _FILE_SYSTEMS, SFTPBackendFileSystem


def close_file_systems() -> None:
    """Close and drop all file systems before the next test."""
    for file_system in [*_FILE_SYSTEMS.values()]:
        file_system.close()
    SFTPBackendFileSystem.clear_instance_cache()
    for alias in [alias for alias in _STORE_CACHE if alias.startswith("sftpbackend")]:
        del _STORE_CACHE[alias]
