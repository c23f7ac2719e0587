"""Delete files on an SFTP server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend.backend import BackendUnavailable, SFTPBackendError
from airflow_sftp_backend.plans import is_glob, on_server, paths
from airflow_sftp_backend.tries import Row, Try

from ._base import Failures, FileOperator, Paths, distinct_failures, missing_failures, speakable

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend


class SFTPDeleteOperator(FileOperator):
    """Deletes files on an SFTP server.

    :param path: what to delete: a path, a glob (``**`` too), a folder ending with ``/`` (the folder and all it holds),
        or a list of these. (templated)
    :param sftp_conn_id: the Airflow connection, of type ``sftp_backend``, ``sftp`` or ``ssh``. (templated)
    :param missing_ok: nothing to delete is no failure, nor is an empty list.
    :param dry_run: delete nothing, return what would be done.
    """

    template_fields: Sequence[str] = ("path", "sftp_conn_id")
    _action = "deleted"

    def __init__(self, *, path: Paths, missing_ok: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.missing_ok = missing_ok

    def _work(self, backend: SFTPBackend, attempt: Try) -> tuple[list[Row], Failures]:
        wanted = paths(self.path, "path", none_ok=self.missing_ok)
        folders = [name for name in wanted if name.endswith("/") and not is_glob(name)]
        if any(backend.resolve(name).key == "" for name in folders):
            raise InvalidArgument(
                "path names the base path itself, which is not deleted; say '**' for all files below it"
            )
        everything, missing = on_server(backend, wanted)
        found, failures = speakable(everything, lambda one: (one.info.path,))
        # an empty folder holds no file that fits, and is there to be deleted
        missing = [name for name in missing if name not in folders or not backend.is_folder(name)]
        forgiven = attempt.names_of(None) if attempt.again else set()
        ok = self.missing_ok or (attempt.again and not attempt.remembers)
        failures += missing_failures(backend, [name for name in missing if name not in forgiven], ok=ok)
        if not self.only_plan:
            names = {one.source for one in found} | {name for name in folders if name not in missing}
            attempt.note_names(names)
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
