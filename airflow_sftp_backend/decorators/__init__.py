"""Wait for files on SFTP servers in a decorated function."""

from __future__ import annotations

from .sftp_files import SFTPFilesDecoratedOperator, sftp_files_task

__all__ = ["SFTPFilesDecoratedOperator", "sftp_files_task"]
