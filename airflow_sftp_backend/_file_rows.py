"""The row that stands for a file in what tasks return."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from .backend import FileInfo


class FoundFile(TypedDict):
    """A file on the server as plain JSON."""

    path: str
    """Relative to the connection's base path."""
    size: int
    """Bytes."""
    modified_at: str | None
    """ISO 8601 in UTC; None if the server does not tell it."""


def found_file(info: FileInfo) -> FoundFile:
    """Convert a file of a listing to its row.

    :param info: the file; its path is UTF-8, which is all that Airflow carries.
    :returns: the row.
    """
    modified = None if info.modified_at is None else info.modified_at.isoformat()
    return FoundFile(path=info.path, size=info.size, modified_at=modified)
