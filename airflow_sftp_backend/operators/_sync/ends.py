"""Read and name the files at the two ends of a sync."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

from airflow_sftp_backend._file_filters import FileFilters
from airflow_sftp_backend.backend._garbage_collector import collector_paused
from airflow_sftp_backend.operators._object_storage import FileState, is_url, object_path
from airflow_sftp_backend.operators._transfer_planning import LocalEnd, TransferItem, local_path_below

from .listings import backend_of_url, list_local, list_server
from .name_probe import LocalNames, ObjectNames, ServerNames, TargetNames, probe_name_rules
from .spellings import NameRules
from .tree_differences import TreeListing

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend

Direction: TypeAlias = Literal["upload", "download"]


@dataclass(frozen=True, slots=True)
class SyncEnds:
    """Hold the two directories of a sync.

    A path is relative to both.

    :ivar backend: the backend of the task
    :ivar direction: the end on the server: the target of an upload, the source of a download
    :ivar server: the directory on the server
    :ivar other: the local directory or URL
    """

    backend: SFTPBackend
    direction: Direction
    server: str
    other: str

    @property
    def local_end(self) -> LocalEnd:
        """The end of a transfer that is not on the server."""
        return "source" if self.direction == "upload" else "target"

    def list_both(self, filters: FileFilters, *, restores: bool) -> tuple[TreeListing | None, TreeListing | None]:
        """List both directories.

        :param filters: the filters of the sync
        :param restores: restore the files of interrupted replacements in the source
        :returns: the source and the target; None for a directory that does not exist
        """
        is_upload = self.direction == "upload"
        with collector_paused():
            server = list_server(self.backend, self.server, filters, restores=restores and not is_upload)
            local = list_local(self.other, filters, restores=restores and is_upload)
        return (local, server) if is_upload else (server, local)

    def server_path(self, path: str) -> str:
        """Return the path of a file on the server.

        :param path: the path in the listings
        :returns: the key
        """
        prefix = self.backend.resolve(self.server).key
        return f"{prefix}/{path}" if prefix else path

    def local_path(self, path: str) -> str:
        """Return the local path or URL of a file.

        :param path: the path in the listings
        :returns: the path or URL
        :raises InvalidArgument: for a name that is not valid for a local file
        """
        return local_path_below(self.other, path)

    def both(self, path: str) -> tuple[str, str]:
        """Return the paths of a file at both ends.

        :param path: the path in the listings
        :returns: the path on the server, and the local path or URL
        """
        return self.server_path(path), self.local_path(path)

    def item(self, path: str, state: FileState) -> TransferItem:
        """Return the transfer of a file.

        :param path: the path in the listings
        :param state: the state of the source
        :returns: the transfer
        """
        server_path, local_path = self.both(path)
        if self.direction == "upload":
            time = None if state.mtime is None else datetime.fromtimestamp(state.mtime, UTC)
            return TransferItem(local_path, server_path, state.size, time)
        return TransferItem(server_path, local_path, state.size)

    # -- names in the target ------------------------------------------------------------------------------------------

    def existing_in_target(self, paths: Iterable[str]) -> set[str]:
        """Find the paths that exist in the target, listed or not.

        :param paths: paths in the listings
        :returns: the existing ones, dangling links too
        """
        names, convert, _ = self._target()
        converted = {convert(path): path for path in paths}
        return {converted[path] for path in names.existing([*converted])}

    def replaces_link(self, path: str) -> bool:
        """Tell whether a transfer replaces a link of the target.

        :param path: a link of the target
        :returns: False if the transfer would change the file that the link leads to
        """
        names, convert, _ = self._target()
        return names.replaces_link(convert(path))

    def probe_target(self) -> NameRules:
        """Test which spellings the target does not distinguish.

        :returns: the rules
        :raises SFTPBackendError: if the server refuses a temporary file
        :raises OSError: if the target refuses a temporary file
        """
        names, _, top = self._target()
        return probe_name_rules(names, top)

    def _target(self) -> tuple[TargetNames, Callable[[str], str], str]:
        """Return the target: its names, a conversion of paths, its directory."""
        if self.direction == "upload":
            return ServerNames(self.backend), self.server_path, self.backend.resolve(self.server).key
        if not is_url(self.other):
            return LocalNames(), self.local_path, self.other.rstrip(os.sep) or os.sep
        if (backend := backend_of_url(self.other)) is not None:
            return (
                ServerNames(backend),
                lambda path: object_path(self.local_path(path)).path,
                object_path(self.other).path,
            )
        return ObjectNames(), self.local_path, self.other.rstrip("/")
