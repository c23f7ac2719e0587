"""Wait for files and watch directories in the triggerer."""

from __future__ import annotations

from .new_files import SFTPNewFilesTrigger
from .sftp import SFTPFileTrigger

__all__ = ["SFTPFileTrigger", "SFTPNewFilesTrigger"]
