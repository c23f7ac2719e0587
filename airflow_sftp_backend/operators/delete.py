"""Delete files on an SFTP server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend._file_rows import Action, FileResult
from airflow_sftp_backend._path_arguments import Names, Selection, check_selectors, split_pattern
from airflow_sftp_backend.backend import (
    BackendUnavailable,
    DirectoryNotEmpty,
    InvalidPath,
    NotFound,
    SFTPBackendError,
)

from ._base import FileOperator, drop_non_utf8
from ._reporting.failures import Failures, distinct_failures
from ._reporting.file_log import log_each
from ._retry_state import RetryState
from ._transfer_planning import Matches, RemoteMatch, match_remote, missing_error

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend


@dataclass(frozen=True, slots=True)
class DeletePlan:
    """Hold the files, links and directories to delete.

    :ivar files: matched files to delete
    :ivar links: names of symbolic links to delete
    :ivar directories: names of directories to delete after the files, with all remaining entries
    :ivar existing_directories: the directories that exist now
    :ivar deletions: path of each file and link, with its size if known
    :ivar kept: paths of matched files that stay, and with them their directories; empty without ``directories``
    :ivar failures: failures of planning
    """

    files: list[RemoteMatch]
    links: list[str]
    directories: list[str]
    existing_directories: list[str]
    deletions: list[tuple[str, int | None]]
    kept: Set[str]
    failures: Failures


class SFTPDeleteOperator(FileOperator[DeletePlan]):
    """Delete files on an SFTP server.

    :param path: literal names of the files to delete, relative to the connection's base path: a path, a row of another
        task, or a list of these. A text that ends with ``/`` selects the directory and all its entries. (templated)
    :param pattern: globs (with ``**``) of paths on the server, in place of ``path``: a text or a list. (templated)
    :param from_manifest: path or URL of a manifest of another task, in place of ``path``: its rows are the names. Or
        the result of a task with ``manifest``, or a list of these. (templated)
    :param include: globs of file names. Of a directory or pattern, only matching files are deleted. The directories
        stay, unless ``empty_folders`` deletes them.
    :param exclude: globs of file and directory names. Matching entries of a directory or pattern stay, and so do the
        directories.
    :param newer_than: earliest time of a file by the server's clock: a datetime with a time zone, ISO 8601 text, or a
        timedelta that counts back from the time when the run was due. Applies to names too. (templated)
    :param older_than: time before which a file must be modified, in the same forms. (templated)
    :param min_size: size that a file must have at least, in bytes
    :param max_files: number of files to delete, the oldest first; the next run takes the others
    :param sftp_conn_id: id of an Airflow connection of type ``sftp_backend``, ``sftp`` or ``ssh``. (templated)
    :param empty_folders: also delete the directories that the deletions leave empty, below the directory that the
        name or the pattern begins with
    :param missing_ok: accept missing files and an empty list
    :param dry_run: return the planned results, delete nothing
    :param manifest: local path or URL of a file to write the rows to, one JSON object a line. The task then returns
        ``{"manifest": path, "count": rows, "size": bytes}`` in place of the list. (templated)
    :param kwargs: arguments of ``BaseOperator``
    """

    template_fields: Sequence[str] = (
        "path",
        "pattern",
        "sftp_conn_id",
        "newer_than",
        "older_than",
        "from_manifest",
        "manifest",
    )
    _action = "deleted"
    _names = "path"

    def __init__(
        self, *, path: Names | None = None, empty_folders: bool = False, missing_ok: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_selectors(path, self.pattern, self.from_manifest, "path")
        self.path = path
        self.empty_folders = empty_folders
        self.missing_ok = missing_ok

    def _plan(self, backend: SFTPBackend, retry_state: RetryState) -> DeletePlan:
        from airflow_sftp_backend.backend._tree_queries import find_links  # not needed to parse DAGs

        selection = self._parse_selection(backend, none_ok=self.missing_ok)
        _check_not_base_path(backend, selection)
        if self.empty_folders and selection.names and not selection.searches:
            raise InvalidArgument("empty_folders applies to directories and patterns, but path names files")
        selection, links = self._without_links(backend, selection)
        matches = match_remote(backend, selection, self._filters, restores=not self.is_dry_run)
        links += _extract_links(backend, matches)
        if self._limits:
            named_links = find_links(backend, [name.path for name in selection.names if not name.is_directory])
            _check_no_links(backend, [*links, *named_links])
        directories = self._whole_directories(selection, matches)
        files, failures = self._files_to_delete(matches, retry_state)
        # match_remote reports a directory without files as missing, but an empty directory can be deleted.
        missing = [name for name in matches.missing if name not in directories or not backend.is_folder(name)]
        missing = self._without_empty_directories(backend, selection, missing)
        return DeletePlan(
            files=files,
            links=links,
            directories=directories,
            existing_directories=[name for name in directories if name not in missing],
            deletions=_deletions(backend, files, links),
            kept=_kept(matches.files, files) if directories else frozenset(),
            failures=matches.failures + failures + self._missing_errors(backend, selection, missing, retry_state),
        )

    def _whole_directories(self, selection: Selection, matches: Matches) -> list[str]:
        """Return the names of directories to delete with all their entries."""
        if self._filters or self._limits:  # these may keep some entries
            return []
        refused_paths = {failure.path for failure in matches.failures if isinstance(failure, InvalidPath)}
        return [name.path for name in selection.names if name.is_directory and name.path not in refused_paths]

    def _files_to_delete(self, matches: Matches, retry_state: RetryState) -> tuple[list[RemoteMatch], Failures]:
        """Return the files within the limits, and the failures of others."""
        within_limits, undecided = self._within_limits(matches.files, lambda file: file.info)
        matched, not_utf8 = drop_non_utf8(within_limits, lambda file: (file.info.path,))
        files = matched
        if retry_state.is_retry_since_cleared:
            redelivered = dict.fromkeys(file.info.path for file in matched if retry_state.was_redelivered(file.info))
            log_each(self.log, "skipping %s: delivered again, left to the next run", [*redelivered])
            files = [file for file in matched if file.info.path not in redelivered]
        return self._take_oldest(files, lambda file: file.info, retry_state), [*undecided, *not_utf8]

    def _missing_errors(
        self, backend: SFTPBackend, selection: Selection, missing: Sequence[str], retry_state: RetryState
    ) -> Failures:
        # Without a store a retry cannot know whether an earlier attempt deleted the missing files.
        if self.missing_ok or (retry_state.is_retry and not retry_state.has_store):
            return []
        deleted_earlier = retry_state.arguments_naming(None) if retry_state.is_retry else set()
        return [missing_error(backend, selection, name) for name in missing if name not in deleted_earlier]

    def _preview(self, plan: DeletePlan) -> tuple[list[FileResult], Failures]:
        return [_result(path, size, "would delete") for path, size in plan.deletions], plan.failures

    def _execute_plan(
        self, backend: SFTPBackend, plan: DeletePlan, retry_state: RetryState
    ) -> tuple[list[FileResult], Failures]:
        retry_state.record_planned_deletions(plan.files, [*plan.links, *plan.existing_directories])
        results, refused = _delete(backend, plan.deletions)
        failures = plan.failures + refused
        if not any(isinstance(failure, BackendUnavailable) for failure in failures):
            failures += _delete_directories(backend, plan.directories, plan.kept)
            if self.empty_folders:
                failures += self._delete_empty_directories(backend, plan, retry_state)
        return results, failures

    def _delete_empty_directories(
        self, backend: SFTPBackend, plan: DeletePlan, retry_state: RetryState
    ) -> list[SFTPBackendError]:
        """Delete the directories that all attempts left empty, the deepest first."""
        deleted = {file.info.path: file.source for file in plan.files} | retry_state.deletions_planned_earlier
        parents = {
            parent
            for path, source in deleted.items()
            if self._by_pattern or source.endswith("/")
            for parent in _parents_below(path, _top_of(backend, source))
        }
        failures: list[SFTPBackendError] = []
        empty: list[str] = []
        for parent in sorted(parents, key=lambda path: path.count("/"), reverse=True):
            try:
                backend.delete_folder(parent)
            except (DirectoryNotEmpty, NotFound):
                continue
            except SFTPBackendError as error:
                failures.append(error)
            else:
                empty.append(parent)
        log_each(self.log, "deleted the empty directory %s", empty)
        return failures

    def _without_links(self, backend: SFTPBackend, selection: Selection) -> tuple[Selection, list[str]]:
        """Separate directory names that are symbolic links.

        Only the link is deleted, not its target.

        :raises InvalidPath: if ``include`` or ``exclude`` would filter the files behind a link
        """
        from airflow_sftp_backend.backend._tree_queries import find_links  # not needed to parse DAGs

        links = find_links(backend, [name.path for name in selection.names if name.is_directory])
        if links and self._filters:
            message = (
                "path is a symbolic link, and include and exclude do not apply behind links; name the link's target"
            )
            raise InvalidPath(message, path=min(links), server=backend.address)
        if not links:
            return selection, []
        removed = {name: None for name in selection.names if name.is_directory and name.path in links}
        kept = tuple(name for name in selection.names if name not in removed)
        return replace(selection, names=kept), [name.path for name in removed]


def _extract_links(backend: SFTPBackend, matches: Matches) -> list[str]:
    """Remove symbolic links from the missing and refused names.

    :returns: the links; each leads to a directory, or to nothing
    """
    from airflow_sftp_backend.backend._tree_queries import find_links  # not needed to parse DAGs

    refusals = [failure for failure in matches.failures if isinstance(failure, InvalidPath)]
    refused = [failure.path for failure in refusals if failure.path is not None]
    candidates = [*matches.missing, *refused]
    links = find_links(backend, candidates)
    matches.failures = [failure for failure in matches.failures if getattr(failure, "path", None) not in links]
    matches.missing = [name for name in matches.missing if name not in links]
    return [*dict.fromkeys(path for path in candidates if path in links)]


def _check_no_links(backend: SFTPBackend, links: Sequence[str]) -> None:
    if links:
        message = "path is a symbolic link; limits of time, size and number apply to files only"
        raise InvalidPath(message, path=links[0], server=backend.address)


def _kept(matched: Sequence[RemoteMatch], files: Sequence[RemoteMatch]) -> Set[str]:
    return {file.info.path for file in matched} - {file.info.path for file in files}


def _deletions(
    backend: SFTPBackend, matches: Sequence[RemoteMatch], links: Sequence[str]
) -> list[tuple[str, int | None]]:
    """Return the paths to remove one by one.

    Each has its size if known.
    """
    files: list[tuple[str, int | None]] = [(file.info.path, file.info.size) for file in matches]
    return files + [(backend.resolve(link).key, None) for link in links]


def _delete(backend: SFTPBackend, paths: Sequence[tuple[str, int | None]]) -> tuple[list[FileResult], Failures]:
    outcomes = backend.delete_many([path for path, _ in paths], missing_ok=True, return_exceptions=True)
    deleted = [deletion for deletion, outcome in zip(paths, outcomes, strict=True) if outcome is None]
    return [_result(path, size, "deleted") for path, size in deleted], distinct_failures(outcomes)


def _result(path: str, size: int | None, action: Action) -> FileResult:
    return {"path": path, "size": size, "action": action}


def _top_of(backend: SFTPBackend, source: str) -> str:
    """Return the directory that a name or a pattern begins with."""
    return backend.resolve(source if source.endswith("/") else split_pattern(source)[0]).key


def _parents_below(path: str, top: str) -> Iterator[str]:
    """Yield the parents of a path that are below a directory."""
    prefix = f"{top}/" if top else ""
    parent = path.rpartition("/")[0]
    while parent.startswith(prefix) and parent != "":
        yield parent
        parent = parent.rpartition("/")[0]


def _delete_directories(backend: SFTPBackend, names: Sequence[str], kept: Set[str]) -> Failures:
    """Delete directories with all remaining entries, except the directories of ``kept`` files."""
    failures: Failures = []
    for name in names:
        if any(path.startswith(f"{backend.resolve(name).key}/") for path in kept):
            continue
        try:
            backend.delete_folder(name, recursive=True, missing_ok=True)
        except SFTPBackendError as error:
            failures.append(error)
    return failures


def _check_not_base_path(backend: SFTPBackend, selection: Selection) -> None:
    for name in selection.names:
        if not name.is_directory:
            continue
        with suppress(InvalidPath):  # match_remote reports this failure
            if backend.resolve(name.path).key == "":
                raise InvalidArgument(
                    "path is the base path, and the base path is never deleted; pattern='**' selects all its files"
                )
