"""Remember the files that earlier runs of a task have taken.

An asset's state store keeps the files, as hashes of names, sizes and times. The state store of the task instance keeps
the files of the present run, so that a retry and a cleared task take the same files again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from airflow.sdk import Asset

from airflow_sftp_backend._arguments import InvalidArgument
from airflow_sftp_backend._file_rows import FoundFile, found_file
from airflow_sftp_backend._polling.seen_files import SeenFiles
from airflow_sftp_backend._state_store import StateStore, load, save
from airflow_sftp_backend.version_compat import AIRFLOW_VERSION, HAS_STATE_STORES, asset_state_stores

if TYPE_CHECKING:
    from airflow.sdk import Context

    from ._retry_state import RetryState
    from ._transfer_planning import RemoteMatch

log = logging.getLogger(__name__)

_OLD_AIRFLOW: Final = (
    f"only_new needs Airflow 3.3 or later, which keeps the state of assets; this is Airflow {AIRFLOW_VERSION}. Use"
    " newer_than, or move each file to an archive (SFTPMoveOperator)"
)


def find_asset(inlets: Iterable[object], outlets: Iterable[object]) -> Asset:
    """Return the asset that remembers the files, when the DAG is parsed.

    :param inlets: the inlets of the task
    :param outlets: the outlets of the task
    :returns: the asset
    :raises InvalidArgument: unless there is exactly one asset, and before Airflow 3.3
    """
    if not HAS_STATE_STORES:
        raise InvalidArgument(_OLD_AIRFLOW)
    assets = {item.name: item for item in (*inlets, *outlets) if isinstance(item, Asset)}
    if len(assets) != 1:
        raise InvalidArgument(
            f"only_new needs exactly one Asset among inlets and outlets, not {len(assets)}: the asset's state store"
            " remembers the files"
        )
    return next(iter(assets.values()))


class TakenFiles:
    """Tell new files from files that earlier runs have taken.

    :param context: the context of the task
    :param asset: the asset that remembers the files
    :param retry_state: the state of the task instance
    :param selection: description of the selected files, to separate mapped tasks
    :raises InvalidArgument: if Airflow has no state store for the asset
    :raises AirflowRuntimeError: if Airflow cannot return the files
    """

    def __init__(self, context: Context, asset: Asset, retry_state: RetryState, selection: Sequence[object]) -> None:
        stores = asset_state_stores(context)
        if stores is None:
            raise InvalidArgument(_OLD_AIRFLOW)
        instance = context["ti"]
        parts: list[object] = [instance.dag_id, instance.task_id, retry_state.server_id]
        # The instances of a mapped task run side by side, and must not overwrite each other's state.
        is_mapped = instance.map_index is not None and instance.map_index >= 0
        parts += [list(selection)] if is_mapped else []
        digest = hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]
        self._key = f"sftp files taken {digest}"
        self._store = cast("StateStore", stores[asset])
        self._retry_state = retry_state
        self._rows: dict[str, FoundFile] = {}
        self._present: list[str] = []

    def new_among(self, files: Sequence[RemoteMatch], present: Iterable[str]) -> list[RemoteMatch]:
        """Return the new files.

        Files that an earlier attempt of this run has taken count as new, and so do files with another size or time than
        before.

        :param files: the files to choose from
        :param present: paths of all files that the selection matches
        :returns: the files
        """
        taken_before, taken_by_run = self._load(), self._retry_state.taken_earlier
        self._present = list(present)
        self._rows = {file.info.path: found_file(file.info) for file in files}
        new = {path for path, row in self._rows.items() if path in taken_by_run or not taken_before.has(row)}
        return [file for file in files if file.info.path in new]

    def save(self, paths: Iterable[str], now: float) -> None:
        """Remember files that were taken.

        :param paths: paths of the files, among those of `new_among`
        :param now: the present time in epoch seconds
        """
        taken = list(paths)
        self._retry_state.record_taken(taken)
        # Read again, because another run of the task may have saved its files meanwhile.
        updated = self._load().with_files((self._rows[path] for path in taken), self._present, now)
        purpose = "tell these files from new files"
        save(self._store, self._key, updated.as_json(), purpose, owner="asset", reader="next run")

    def _load(self) -> SeenFiles:
        stored: dict[str, Any] = load(self._store, self._key)
        if not stored:
            return SeenFiles()
        try:
            return SeenFiles.from_json(stored)
        except (LookupError, TypeError, ValueError, AttributeError):
            log.warning("the stored files of this task are not valid: all existing files are new")
            return SeenFiles()
