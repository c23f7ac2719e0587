"""Define the JSON rows of files in the results of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NotRequired, TypeAlias, TypedDict

if TYPE_CHECKING:
    from .backend import FileInfo

CompletedAction: TypeAlias = Literal["uploaded", "downloaded", "moved", "deleted"]
"""Completed actions of the operators."""
EarlierAction: TypeAlias = Literal[
    "uploaded by an earlier attempt", "downloaded by an earlier attempt", "moved by an earlier attempt"
]
"""Completed actions of an earlier attempt, as a retry reports them."""
PlannedAction: TypeAlias = Literal["would upload", "would download", "would move", "would delete", "would fail"]
"""Actions of a dry run."""
Action: TypeAlias = Literal[CompletedAction, EarlierAction, PlannedAction, "skipped"]


class FileResult(TypedDict):
    """Describe the result of an operator for one file.

    A dry run returns the planned result.
    """

    path: str
    """Path on the server, relative to the connection's base path."""
    size: int | None
    """Size in bytes; None if unknown."""
    action: Action
    """The action of the operator on the file."""
    source: NotRequired[str]
    """Local source of an upload, or former path of a moved file."""
    target: NotRequired[str]
    """Local target of a download, or intended target of a file that a move skipped."""
    sha256: NotRequired[str]
    """Hexadecimal digest of the content, if known."""


class ManifestResult(TypedDict):
    """Describe the result of an operator with ``manifest``.

    The manifest has the `FileResult` rows, one JSON object a line.
    """

    manifest: str
    """Absolute local path or URL of the manifest."""
    count: int
    """Number of rows."""
    size: int
    """Bytes of all rows; unknown sizes count as 0."""


class SyncCounts(TypedDict):
    """Count the files of a sync, or of its dry run."""

    new: int
    """Files of the source that the target lacked."""
    changed: int
    """Files of the source that replaced a file of the target."""
    unchanged: int
    """Files that were equal at both ends."""
    extra: int
    """Files of the target that the source lacks."""
    deleted: int
    """Extra files that were deleted."""
    size: int
    """Bytes of the transferred files."""


class SyncResult(SyncCounts):
    """Describe the result of a sync, or of its dry run.

    Unchanged files are only counted.
    """

    files: list[FileResult]
    """A row for each transferred and each deleted file."""


class SyncManifestResult(SyncCounts):
    """Describe the result of a sync with ``manifest``."""

    manifest: str
    """Absolute local path or URL of the manifest, which has the rows of `SyncResult`."""
    count: int
    """Number of rows in the manifest."""


class FoundFile(TypedDict):
    """Describe a file on the server.

    Sensors, triggers and the hook return such rows.
    """

    path: str
    """Path on the server, relative to the connection's base path."""
    size: int
    """Size in bytes."""
    modified_at: str | None
    """Modification time as ISO 8601 in UTC; None if the server reports no time."""


def found_file(info: FileInfo) -> FoundFile:
    """Convert a file of a listing to its row.

    :param info: the file; the path must be UTF-8, because XCom carries no other text
    :returns: the row
    """
    modified_at = None if info.modified_at is None else info.modified_at.isoformat()
    return FoundFile(path=info.path, size=info.size, modified_at=modified_at)
