"""Delete files on an SFTP server."""

from __future__ import annotations

from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend._path_arguments import Names, Selection, require_one
from airflow_sftp_backend.backend import BackendUnavailable, InvalidPath, SFTPBackendError
from airflow_sftp_backend.backend.errors import escaped

from ._base import Failures, FileOperator, distinct_failures, drop_non_utf8
from ._planning import Matches, RemoteMatch, match_remote, missing_error
from ._retry_state import FileResult, RetryState

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend


class SFTPDeleteOperator(FileOperator):
    """Deletes files on an SFTP server.

    :param path: names of what to delete, literal, relative to the connection's base path: a path, a row of another
        task, or a list of these; a text that ends with ``/`` means the directory with what it holds. (templated)
    :param pattern: globs (``**`` too), in place of ``path``: a text or a list. (templated)
    :param include: globs of file names; of what a directory or pattern finds, only these are deleted, and no directory.
    :param exclude: globs of names, of files and directories, that are not deleted, and no directory is.
    :param sftp_conn_id: the Airflow connection, of type ``sftp_backend``, ``sftp`` or ``ssh``. (templated)
    :param missing_ok: nothing to delete is no failure, nor is an empty list.
    :param dry_run: delete nothing, return what would be done.
    """

    template_fields: Sequence[str] = ("path", "pattern", "sftp_conn_id")
    _action = "deleted"
    _names = "path"

    def __init__(self, *, path: Names | None = None, missing_ok: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require_one(path, self.pattern, "path")
        self.path = path
        self.missing_ok = missing_ok

    def _work(self, backend: SFTPBackend, retry_state: RetryState) -> tuple[list[FileResult], Failures]:
        selection = self._parse_selection(backend, none_ok=self.missing_ok)
        _refuse_base_path(backend, selection)
        selection, links = self._without_links(backend, selection)
        matches = match_remote(backend, selection, self._filters)
        links += _extract_links(backend, matches)
        refused_paths = {failure.path for failure in matches.failures if isinstance(failure, InvalidPath)}
        named = [name.path for name in selection.names if name.is_directory and name.path not in refused_paths]
        folders = [] if self._filters else named  # filters may keep some of what a directory holds
        found, refused = drop_non_utf8(matches.files, lambda one: (one.info.path,))
        failures = matches.failures + refused
        for one in found:
            if retry_state.was_redelivered(one.info):
                self.log.info("%s was delivered again: left to the next run", escaped(one.info.path))
        found = [one for one in found if not retry_state.was_redelivered(one.info)]
        # an empty folder holds no file that fits, and is there to be deleted
        missing = [name for name in matches.missing if name not in folders or not backend.is_folder(name)]
        forgiven = retry_state.arguments_naming(None) if retry_state.is_retry else set()
        if not (self.missing_ok or (retry_state.is_retry and not retry_state.has_store)):
            failures += [missing_error(backend, selection, name) for name in missing if name not in forgiven]
        if self.is_dry_run:
            return [_row(path, size, "would delete") for path, size in _deletions(backend, found, links)], failures
        retry_state.record_planned_deletions(found, [*links, *(name for name in folders if name not in missing)])
        rows, refused = _delete(backend, _deletions(backend, found, links))
        failures += refused
        if not any(isinstance(failure, BackendUnavailable) for failure in failures):
            kept = {one.info.path for one in matches.files} - {one.info.path for one in found}
            failures += _delete_directories(backend, folders, kept)
        return rows, failures

    def _without_links(self, backend: SFTPBackend, selection: Selection) -> tuple[Selection, list[str]]:
        """Take out the names of directories that are links: a link goes, and nothing behind it.

        :raises InvalidPath: if there are filters, which would have to look behind the link
        """
        from airflow_sftp_backend.backend._link_query import find_links  # here, because it loads the engine

        links = find_links(backend, [name.path for name in selection.names if name.is_directory])
        if links and self._filters:
            message = "it is a link: include and exclude would look behind it; name the directory that it leads to"
            raise InvalidPath(message, path=min(links), server=backend.address)
        names = tuple(name for name in selection.names if not (name.is_directory and name.path in links))
        return replace(selection, names=names), [name.path for name in selection.names if name not in names]


def _extract_links(backend: SFTPBackend, matches: Matches) -> list[str]:
    """Take the links out of what was not found to be a file: those to directories, and those that lead nowhere."""
    refused = [failure.path for failure in matches.failures if isinstance(failure, InvalidPath)]
    from airflow_sftp_backend.backend._link_query import find_links  # here, because it loads the engine

    links = find_links(backend, [*matches.missing, *(path for path in refused if path is not None)])
    matches.failures = [failure for failure in matches.failures if getattr(failure, "path", None) not in links]
    missing = matches.missing
    matches.missing = [name for name in missing if name not in links]
    return [*dict.fromkeys(path for path in (*missing, *refused) if path in links)]


def _deletions(
    backend: SFTPBackend, found: Sequence[RemoteMatch], links: Sequence[str]
) -> list[tuple[str, int | None]]:
    """Return what is to be removed one by one, each with its size if that is known."""
    files: list[tuple[str, int | None]] = [(one.info.path, one.info.size) for one in found]
    return files + [(backend.resolve(link).key, None) for link in links]


def _delete(backend: SFTPBackend, paths: Sequence[tuple[str, int | None]]) -> tuple[list[FileResult], Failures]:
    outcomes = backend.delete_many([path for path, _ in paths], missing_ok=True, return_exceptions=True)
    deleted = [one for one, outcome in zip(paths, outcomes, strict=True) if outcome is None]
    return [_row(path, size, "deleted") for path, size in deleted], distinct_failures(outcomes)


def _row(path: str, size: int | None, action: str) -> FileResult:
    return {"path": path, "size": size, "action": action}


def _delete_directories(backend: SFTPBackend, names: Sequence[str], kept: Set[str]) -> Failures:
    """Delete directories with what is left in them, but for those that hold something that is ``kept``."""
    failures: Failures = []
    for name in names:
        if any(path.startswith(f"{backend.resolve(name).key}/") for path in kept):
            continue
        try:
            backend.delete_folder(name, recursive=True, missing_ok=True)
        except SFTPBackendError as error:
            failures.append(error)
    return failures


def _refuse_base_path(backend: SFTPBackend, selection: Selection) -> None:
    for name in selection.names:
        with suppress(InvalidPath):  # a failure of its own
            if name.is_directory and backend.resolve(name.path).key == "":
                raise InvalidArgument(
                    "path is the base path itself, which is not deleted; pattern='**' means all files below it"
                )
