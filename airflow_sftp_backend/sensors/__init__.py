"""Wait for files on SFTP servers."""

from __future__ import annotations

from .sftp import SFTPFileSensor

__all__ = ["SFTPFileSensor"]
