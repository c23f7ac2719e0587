"""Delete files of the target of a sync."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from airflow_sftp_backend.backend import BackendUnavailable, DirectoryNotEmpty, SFTPBackendError
from airflow_sftp_backend.operators._object_storage import is_url, object_path, remove_object

if TYPE_CHECKING:
    from airflow_sftp_backend.backend import SFTPBackend

log = logging.getLogger(__name__)

Outcomes = list[SFTPBackendError | OSError | None]


def delete_on_server(backend: SFTPBackend, paths: Iterable[str], directories: Iterable[str]) -> Outcomes:
    """Delete files on the server, then the directories that are empty.

    :param backend: the backend of the task
    :param paths: the files
    :param directories: the directories, the deepest first
    :returns: None for each deleted or missing file, else the failure
    """
    outcomes = backend.delete_many(paths, missing_ok=True, return_exceptions=True)
    if any(isinstance(outcome, BackendUnavailable) for outcome in outcomes):
        return outcomes
    for directory in directories:
        try:
            backend.delete_folder(directory, missing_ok=True)
        except (DirectoryNotEmpty, BackendUnavailable):
            continue
        except SFTPBackendError as error:
            log.warning("an empty directory remains: %s", error)
    return outcomes


def delete_local(paths: Iterable[str], directories: Iterable[str]) -> Outcomes:
    """Delete local files or objects, then the local directories that are empty.

    :param paths: the local paths or URLs
    :param directories: the directories, the deepest first
    :returns: None for each deleted or missing file, else the failure
    """
    outcomes: Outcomes = []
    for path in paths:
        try:
            if is_url(path):
                remove_object(object_path(path))
            else:
                os.unlink(path)
        except FileNotFoundError:
            outcomes.append(None)
        except OSError as error:
            outcomes.append(error)
        else:
            outcomes.append(None)
    for directory in directories:
        if not is_url(directory):
            with suppress(OSError):  # a directory with entries stays
                os.rmdir(directory)
    return outcomes
