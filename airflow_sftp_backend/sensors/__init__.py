"""The sensor that waits for files on an SFTP server."""

from __future__ import annotations

from .sftp import SFTPFileSensor

__all__ = ["SFTPFileSensor"]
