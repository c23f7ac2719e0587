"""The rows that stand for files in what tasks return: plain JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, NotRequired, TypedDict

if TYPE_CHECKING:
    from .backend import FileInfo


class FileResult(TypedDict):
    """What an operator did with a file, or would do with it."""

    path: str
    """On the server, relative to the connection's base path."""
    size: int | None
    """Bytes; None if unknown."""
    action: str
    """``uploaded``, ``skipped``, ``would move`` and the like."""
    source: NotRequired[str]
    """The local source of an upload, the former path of a moved file."""
    target: NotRequired[str]
    """The local target of a download, the target that a skipped file of a move has."""
    sha256: NotRequired[str]
    """Hexadecimal digest of the content, if it is known."""


class FoundFile(TypedDict):
    """A file on the server."""

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
