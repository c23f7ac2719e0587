"""Delete files on an SFTP server."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend._path_arguments import Names, Selection, require_one
from airflow_sftp_backend.backend import BackendUnavailable, InvalidPath, SFTPBackendError
from airflow_sftp_backend.backend._errors import escaped
from airflow_sftp_backend.plans import missing_error, on_server
from airflow_sftp_backend.tries import Row, Try

from ._base import Failures, FileOperator, distinct_failures, speakable

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

    def _work(self, backend: SFTPBackend, attempt: Try) -> tuple[list[Row], Failures]:
        selection = self._selected(backend, none_ok=self.missing_ok)
        _refuse_base_path(backend, selection)
        matches = on_server(backend, selection, self._filters)
        refused_paths = {failure.path for failure in matches.failures if isinstance(failure, InvalidPath)}
        named = [name.path for name in selection.names if name.is_directory and name.path not in refused_paths]
        folders = [] if self._filters else named  # filters may keep some of what a directory holds
        everything = matches.files
        found, refused = speakable(everything, lambda one: (one.info.path,))
        failures = matches.failures + refused
        for one in found:
            if attempt.delivered_since(one.info):
                self.log.info("%s was delivered again: left to the next run", escaped(one.info.path))
        found = [one for one in found if not attempt.delivered_since(one.info)]
        # an empty folder holds no file that fits, and is there to be deleted
        missing = [name for name in matches.missing if name not in folders or not backend.is_folder(name)]
        forgiven = attempt.names_of(None) if attempt.again else set()
        if not (self.missing_ok or (attempt.again and not attempt.remembers)):
            failures += [missing_error(backend, selection, name) for name in missing if name not in forgiven]
        if not self.only_plan:
            attempt.note_deletions(found, [name for name in folders if name not in missing])
        rows: list[Row] = []
        outcomes: list[SFTPBackendError | OSError | None] = [None for _ in found]
        if not self.only_plan:
            outcomes = backend.delete_many([one.info.path for one in found], missing_ok=True, return_exceptions=True)
        for one, outcome in zip(found, outcomes, strict=True):
            if outcome is None:
                action = "would delete" if self.only_plan else "deleted"
                rows.append({"path": one.info.path, "size": one.info.size, "action": action})
        failures += distinct_failures(outcomes)
        if any(isinstance(failure, BackendUnavailable) for failure in failures):
            return rows, failures
        kept = {one.info.path for one in everything} - {one.info.path for one in found}
        for name in [] if self.only_plan else folders:
            if any(path.startswith(f"{backend.resolve(name).key}/") for path in kept):
                continue
            try:
                backend.delete_folder(name, recursive=True, missing_ok=True)
            except SFTPBackendError as error:
                failures.append(error)
        return rows, failures


def _refuse_base_path(backend: SFTPBackend, selection: Selection) -> None:
    for name in selection.names:
        with suppress(InvalidPath):  # a failure of its own
            if name.is_directory and backend.resolve(name.path).key == "":
                raise InvalidArgument(
                    "path is the base path itself, which is not deleted; pattern='**' means all files below it"
                )
