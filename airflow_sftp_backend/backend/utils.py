"""Collect the helpers for host keys and private keys in `SFTPUtils`."""

from __future__ import annotations

from airflow_sftp_backend.backend._ssh.private_keys import load_private_key
from airflow_sftp_backend.backend._ssh.scan import scan_host_algorithms, scan_host_keys

from .config import HostKeyPolicy


class SFTPUtils:
    """Collect helpers for private keys, and for scans without a login."""

    HostKeyPolicy = HostKeyPolicy
    load_private_key = staticmethod(load_private_key)
    scan_host_keys = staticmethod(scan_host_keys)
    scan_host_algorithms = staticmethod(scan_host_algorithms)
