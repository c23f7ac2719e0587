"""Watch directories and start DAGs for new files."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final

from airflow.sdk.exceptions import AirflowRuntimeError
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_sftp_backend._arguments import InvalidArgument, check_conn_id
from airflow_sftp_backend._file_filters import TEMPORARY_NAMES, LimitArguments, parse_globs
from airflow_sftp_backend._path_arguments import (
    Globs,
    Names,
    Patterns,
    check_names_or_patterns,
    parse_names,
    parse_patterns,
)
from airflow_sftp_backend._polling.conditions import (
    FileCondition,
    PollResult,
    PollSnapshot,
    StabilityState,
    condition_paths,
    evaluate,
)
from airflow_sftp_backend._polling.seen_files import MAX_BATCH_FILES, SeenFiles
from airflow_sftp_backend._polling.seen_files_store import SeenFilesStore
from airflow_sftp_backend._polling.shared_connection import SharedConnection
from airflow_sftp_backend.backend import SFTPBackendError
from airflow_sftp_backend.backend.errors import escaped
from airflow_sftp_backend.hooks.sftp import NON_RETRYABLE_ERRORS, SFTPBackendHook
from airflow_sftp_backend.progress import pluralize_files
from airflow_sftp_backend.version_compat import AirflowException, watch_state_store

_RECOVERABLE_ERRORS = (
    *NON_RETRYABLE_ERRORS,
    SFTPBackendError,
    AirflowException,
    AirflowRuntimeError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
)
"""Errors after which a watch polls again."""
_PAUSE: Final = 0.1
"""Seconds between two events, so that the triggerer does other work meanwhile."""
_LAST_PAUSE: Final = 10.0
"""Seconds before the last event of a poll, in which the scheduler starts runs for the other events."""


class SFTPNewFilesTrigger(BaseEventTrigger):
    """Start DAGs for files that arrive on an SFTP server.

    Use the trigger in an `AssetWatcher`; the first task of the DAG calls `assets.new_files`. A poll with new files
    fires one event for each 500 files: ``{"batch": id, "sftp_conn_id": ..., "files": [...]}``, each file with ``path``,
    ``size`` and ``modified_at``. The events of a poll follow one another within seconds, and Airflow may start one run
    for several of them. At most 100 events are sent in half a minute; later polls report the other files. The first
    poll reports all existing files.

    From Airflow 3.3, the asset's state store keeps the reported files, so a restart of the triggerer loses no file. A
    batch stays in the store until the first poll at least 30 s after the batch was sent. A triggerer that stops before
    that poll sends the batch again with the same id, and `assets.new_files` drops the repetition. In earlier versions,
    and for a watch that several assets share, the reported files are kept in memory: every start of the triggerer
    reports all existing files.

    The watch never ends. After an error the trigger polls again after ``poke_interval`` seconds, less often while the
    server is away or refuses the login. The same error is not logged twice in a row.

    :param path: literal names to watch, relative to the connection's base path: a path, a mapping with ``path``, or a
        list of these. A text that ends with ``/`` watches all files below the directory.
    :param sftp_conn_id: id of an Airflow connection of type ``sftp_backend``, ``sftp`` or ``ssh``
    :param poke_interval: seconds between two polls
    :param stable_for: seconds without a change of a file's size and time
    :param pattern: globs (with ``**``), in place of ``path``: a text or a list
    :param changed: also report a known file if its size or time changes. Without ``changed``, a known file is new again
        only if a poll found the file missing in between; set ``changed`` for names that are reused at once.
    :param min_size: size that a file must have at least, in bytes
    :param newer_than: earliest time of a file by the server's clock: a datetime with a time zone, or ISO 8601 text
    :param max_files: number of files in the only event of a poll, from 1 to 500, the oldest first; the next poll
        reports the others. By default a poll reports all files, in the order of their paths.
    :param done_file: name of a file that must exist beside each file, such as ``{name}.done``, or ``{stem}.done``
        without the file's suffix
    :param include: globs of file names; only matching files of a directory or pattern count
    :param exclude: globs of names that do not count, for files and for the directories on their paths that ``pattern``
        does not name. By default, the names that programs give to unfinished files. A file in ``path`` always
        counts.
    :raises InvalidArgument: if an argument is invalid
    """

    def __init__(
        self,
        path: Names | None = None,
        sftp_conn_id: str = SFTPBackendHook.default_conn_name,
        poke_interval: float = 10.0,
        stable_for: float = 10.0,
        *,
        pattern: Patterns | None = None,
        changed: bool = False,
        min_size: int = 0,
        done_file: str | None = None,
        include: Globs | None = None,
        exclude: Globs | None = TEMPORARY_NAMES,
        newer_than: datetime | str | None = None,
        max_files: int | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # Airflow leaves it untyped
        check_conn_id(sftp_conn_id)
        self.sftp_conn_id = sftp_conn_id
        self.poke_interval = poke_interval
        self.changed = changed
        self._stability: StabilityState = {}
        self._warning = ""
        check_names_or_patterns(path, pattern, "path")
        limits = LimitArguments.checked(None, None, min_size, max_files).resolve(newer_than, None, run_after=None)
        if max_files is not None and max_files > MAX_BATCH_FILES:
            raise InvalidArgument(f"max_files must be at most {MAX_BATCH_FILES}, not {max_files}")
        self.max_files = max_files
        self.condition = FileCondition(
            **condition_paths(parse_names(path, "path") if pattern is None else parse_patterns(pattern)),
            min_size=min_size,
            newer_than=None if limits.newer_than is None else limits.newer_than.isoformat(),
            stable_for=stable_for,
            done_file=done_file,
            include=parse_globs(include, "include"),
            exclude=parse_globs(exclude, "exclude"),
        )
        if poke_interval <= 0:
            raise InvalidArgument(f"poke_interval is a number of seconds above 0, not {poke_interval!r}")

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the import path of the class, and its arguments.

        No argument is a secret.
        """
        return f"{__name__}.{type(self).__name__}", {
            "path": self._path(),
            "pattern": list(self.condition.patterns) or None,
            "sftp_conn_id": self.sftp_conn_id,
            "poke_interval": self.poke_interval,
            "stable_for": self.condition.stable_for,
            "changed": self.changed,
            "min_size": self.condition.min_size,
            "done_file": self.condition.done_file,
            "include": list(self.condition.include),
            "exclude": list(self.condition.exclude),
            "newer_than": self.condition.newer_than,
            "max_files": self.max_files,
        }

    def _path(self) -> list[dict[str, str] | str] | None:
        """Return an equivalent ``path`` argument with names as rows."""
        # A text that ends with a slash is a directory, a row is always a file.
        names = [{"path": name} for name in self.condition.names]
        return [*names, *self.condition.directories] or None

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until cancelled; yield an event for each new batch.

        All batches of a poll are saved before the first event is sent, and kept for at least 30 s after their events.
        Then Airflow is assumed to have stored the event.

        :returns: the events
        """
        condition = self.condition
        watch = json.dumps([self.sftp_conn_id, condition.names, condition.directories, condition.patterns])
        state_store = watch_state_store(self)
        store = SeenFilesStore(watch, state_store, self.log.warning)
        description = escaped(", ".join(condition.descriptions))
        self._log_start(description, has_store=state_store is not None)
        connection = SharedConnection.acquire(self.sftp_conn_id)
        last_error = ""
        try:
            while True:
                await connection.sleep_until_next_poll(self.poke_interval)
                try:
                    await self._poll(store, connection)
                except _RECOVERABLE_ERRORS as error:
                    if str(error) != last_error:  # an error that repeats at every poll is logged once
                        self.log.warning("cannot poll for new files of %s, will poll again: %s", description, error)
                    last_error = str(error)
                    continue
                last_error = ""
                batches = store.unsent()
                for number, batch in enumerate(batches, 1):
                    if number > 1:
                        await self._pause_before_event(is_last=number == len(batches))
                    first = escaped(batch.files[0]["path"])
                    self.log.info("%s new, the first is %s", pluralize_files(len(batch.files)), first)
                    yield _event(batch=batch.batch_id, sftp_conn_id=self.sftp_conn_id, files=batch.files)
                    store.mark_sent(batch)
        finally:
            connection.release()

    def _log_start(self, description: str, *, has_store: bool) -> None:
        self.log.info("watching for new files of %s on connection %r", description, self.sftp_conn_id)
        if not has_store:
            self.log.info(
                "the files seen so far are kept in memory, because this watch has no state store (Airflow 3.3 has one"
                " for the watch of one asset): after a restart of the triggerer all files are reported again"
            )
        for name in self.condition.names_with_wildcards:
            self.log.warning("path %r has a wildcard, but names are literal; pass globs as pattern=", name)

    async def _pause_before_event(self, *, is_last: bool) -> None:
        # Airflow may start one run for several events, and then pass it the first only. The event after the long pause
        # starts a run of its own, which gets all events before.
        await asyncio.sleep(min(self.poke_interval, _LAST_PAUSE) if is_last else _PAUSE)

    async def _poll(self, store: SeenFilesStore, connection: SharedConnection) -> None:
        """Poll once and save the new files as batches.

        If an unsent batch exists, nothing is polled.
        """
        await store.save(await store.load())  # `load` omits the batches sent at least 30 s ago
        if store.unsent():
            return
        seen_files = await store.load()

        def decide(snapshot: PollSnapshot) -> tuple[SeenFiles, PollResult]:
            files, done_files = snapshot
            now = time.time()
            result = evaluate(self.condition, files, done_files, self._stability, now)
            present = (info.path for info in files)
            updated = seen_files.updated_with(
                result.files, present, now, changed=self.changed, max_files=self.max_files
            )
            return updated, result

        updated, result = await connection.poll(self.condition, decide)
        self._stability = result.stability
        if result.warning not in ("", self._warning):
            self.log.warning("%s", escaped(result.warning))
        self._warning = result.warning
        await store.save(updated)


def _event(**payload: object) -> TriggerEvent:
    return TriggerEvent(payload)  # type: ignore[no-untyped-call] # Airflow leaves it untyped
