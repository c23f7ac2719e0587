"""Keep the seen files of a watch in the asset's state store.

The store has a value of limited size for each key, and no transactions. So the seen files are a log of changes: the
head, which every save replaces, has the latest changes and the names of the parts, which have the earlier changes and
are never replaced. A part counts from the moment in which the head names it, so a triggerer may stop between any two
writes. If the log is twice as long as after its last replacement, and at least 16 KiB longer, the seen files replace
the log.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, cast

from airflow.sdk.exceptions import AirflowRuntimeError
from pydantic import ValidationError

from .seen_files import Change, NewFilesBatch, SeenFiles

if TYPE_CHECKING:
    from airflow.sdk.execution_time.context import AssetStateStoreAccessors
    from pydantic import JsonValue

_ACKNOWLEDGE_SECONDS: Final = 30.0
"""Seconds after which Airflow is assumed to have stored an event."""
_PART_SIZE: Final = 48 * 1024
"""Characters of a part, unless one change alone is longer. Airflow warns of values above 64 KiB."""
_HEAD_SIZE: Final = 16 * 1024
"""Characters of changes in the head, which every save writes."""


@dataclass(frozen=True, slots=True)
class _Head:
    """Describe the log of changes.

    :ivar changes: the latest changes
    :ivar parts: ids of the parts with the earlier changes, oldest first
    :ivar unused: ids of parts to remove: replaced ones, and those of a save that may not have been completed
    :ivar size: characters of all changes
    :ivar compacted: characters that the seen files had when they last replaced the log
    """

    changes: list[Change] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    size: int = 0
    compacted: int = 0

    def with_changes(self, changes: list[Change]) -> _Head:
        """Return the head with further changes of its own."""
        return replace(self, changes=[*self.changes, *changes], size=self.size + _size(changes))

    @property
    def is_too_long(self) -> bool:
        """True if the seen files should replace the log."""
        return self.size > self.compacted + max(self.compacted, _HEAD_SIZE)


class SeenFilesStore:
    """Keep the seen files of one watch.

    They are kept in memory, and in the asset's state store if available.

    :param watch: description of the watch; an asset may have several watches
    :param store: the asset's state store; None before Airflow 3.3
    :param warn: logs a warning
    :param clock: returns seconds
    """

    def __init__(
        self,
        watch: str,
        store: AssetStateStoreAccessors | None,
        warn: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key = f"sftp new files seen {hashlib.sha256(watch.encode()).hexdigest()[:16]}"
        self._store = store
        self._warn = warn
        self._clock = clock
        self._current: SeenFiles | None = None
        self._stored_head: object = None
        self._head = _Head()
        self._sent_at: dict[str, float] = {}

    async def load(self) -> SeenFiles:
        """Return the seen files without the acknowledged batches.

        A batch that was sent at least 30 s ago is assumed to be stored by Airflow.

        :returns: the seen files
        :raises AirflowRuntimeError: if Airflow cannot return the stored files
        """
        if self._current is None:
            await self._read_log(await self._get_head())
        current = cast("SeenFiles", self._current)
        now = self._clock()
        unacknowledged = (
            batch
            for batch in current.unacknowledged
            if now - self._sent_at.get(batch.batch_id, now) < _ACKNOWLEDGE_SECONDS
        )
        return replace(current, unacknowledged=tuple(unacknowledged))

    async def _get_head(self) -> object:
        if self._store is not None:
            try:
                return cast("object", await self._store.aget(self._key))
            except ValidationError:  # a malformed response; this is a ValueError too
                raise
            except ValueError:  # the store cannot choose among several assets
                self._warn(
                    "several assets share this watch, so Airflow cannot store its files: each start of the triggerer"
                    " reports all existing files again; give each asset its own watch"
                )
                self._store = None
        return None

    async def _read_log(self, stored_head: object) -> None:
        """Read the log of changes that a stored head describes.

        Without a valid log, no file has been seen.
        """
        while True:
            log = await self._try_read_log(stored_head)
            if log is not None or stored_head is None:
                break
            # Another triggerer may have removed the parts of this head.
            if (latest := await self._get_head()) == stored_head:
                self._warn("the stored files of this watch are not valid: all existing files are reported again")
                break
            stored_head = latest
        self._head, self._current = log or (_Head(), SeenFiles())
        self._stored_head = stored_head

    async def _try_read_log(self, stored_head: object) -> tuple[_Head, SeenFiles] | None:
        """Return the head and the seen files; None without a valid log."""
        try:
            head = _Head(**cast("dict[str, Any]", stored_head))
            changes = [change for part in head.parts for change in await self._get_part(part)]
            return head, await asyncio.to_thread(SeenFiles().apply, [*changes, *head.changes])
        except ValidationError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, zlib.error):
            return None

    async def _get_part(self, part: str) -> list[Change]:
        value = await cast("AssetStateStoreAccessors", self._store).aget(f"{self._key} {part}")
        return cast("dict[str, list[Change]]", value)["changes"]

    async def save(self, seen_files: SeenFiles) -> None:
        """Save the seen files.

        If another triggerer saved other files meanwhile, load those instead.

        :param seen_files: the seen files
        :raises AirflowRuntimeError: if Airflow cannot store the files; then nothing has changed
        """
        if self._store is not None:
            changes = await asyncio.to_thread(seen_files.changes_since, self._current or SeenFiles())
            if changes and not await self._write(seen_files, changes):
                return
        self._current = seen_files
        self._sent_at = {
            batch.batch_id: self._sent_at[batch.batch_id]
            for batch in seen_files.unacknowledged
            if batch.batch_id in self._sent_at
        }

    async def _write(self, seen_files: SeenFiles, changes: list[Change]) -> bool:
        """Write the changes, unless another triggerer wrote since the last read."""
        if await self._read_if_changed():
            return False
        unused, replaced = self._head.unused, list[str]()
        head = replace(self._head.with_changes(changes), unused=[])
        if head.is_too_long:
            replaced = head.parts
            changes = await asyncio.to_thread(seen_files.changes_since, SeenFiles())
            head = _Head(changes, size=_size(changes), compacted=_size(changes))
        if _size(head.changes) > _HEAD_SIZE:
            parts = {uuid.uuid4().hex[:8]: part for part in _split_into_parts(head.changes)}
            # A triggerer that finds this head removes the parts, if this one stops before they count.
            await self._set_head(replace(self._head, unused=[*unused, *parts]))
            for part, part_changes in parts.items():
                await self._set(part, {"changes": part_changes})
            if await self._read_if_changed():
                return False
            head = replace(head, changes=[], parts=[*head.parts, *parts])
        await self._set_head(replace(head, unused=replaced))
        await self._remove(unused)
        return True

    async def _read_if_changed(self) -> bool:
        """Read the log again if another triggerer has changed it.

        :returns: whether the log was read again
        """
        stored_head = await self._get_head()
        if self._store is None or stored_head == self._stored_head:
            return False
        await self._read_log(stored_head)
        return True

    async def _set_head(self, head: _Head) -> None:
        stored_head = asdict(head)
        await self._set(None, stored_head)
        self._head, self._stored_head = head, stored_head

    async def _set(self, part: str | None, value: dict[str, Any]) -> None:
        """Write a part, or the head."""
        if self._store is not None:
            await self._store.aset(self._key if part is None else f"{self._key} {part}", cast("JsonValue", value))

    async def _remove(self, parts: Iterable[str]) -> None:
        with suppress(AirflowRuntimeError):  # the seen files are saved, and what stays is never read
            for part in parts:
                await cast("AssetStateStoreAccessors", self._store).adelete(f"{self._key} {part}")

    def unsent(self) -> Sequence[NewFilesBatch]:
        """Return the unsent batches that are saved, oldest first."""
        batches = () if self._current is None else self._current.unacknowledged
        return [batch for batch in batches if batch.batch_id not in self._sent_at]

    def mark_sent(self, batch: NewFilesBatch) -> None:
        """Record the time at which a batch was sent to Airflow.

        :param batch: the batch
        """
        self._sent_at[batch.batch_id] = self._clock()


def _size(changes: Iterable[Change]) -> int:
    return sum(len(json.dumps(change)) + 2 for change in changes)


def _split_into_parts(changes: Iterable[Change]) -> Iterator[list[Change]]:
    part: list[Change] = []
    size = 0
    for change in changes:
        size += _size([change])
        if part and size > _PART_SIZE:
            yield part
            part, size = [], _size([change])
        part.append(change)
    if part:
        yield part
