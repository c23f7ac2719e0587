"""The triggers that wait for files and watch directories on SFTP servers."""

from __future__ import annotations

from .new_files import SFTPNewFilesTrigger
from .sftp import SFTPFileTrigger

__all__ = ["SFTPFileTrigger", "SFTPNewFilesTrigger"]
