"""What a watch has seen: which files are new is decided from it.

It outlives the triggerer as plain JSON in the asset's state store. A report that may not have reached Airflow is kept
there too and made again under its name, so that whoever takes it (`assets.new_files`) can tell.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import ValidationError

from airflow_sftp_backend._file_rows import FoundFile

if TYPE_CHECKING:
    from airflow.sdk.execution_time.context import AssetStateStoreAccessors
    from pydantic import JsonValue

_MAX_BATCH_FILES: Final = 500
"""Files in one report: Airflow keeps an event with all it carries, and shows it to every task of its run."""
_EMPTY_DIRECTORY_SECONDS: Final = 24 * 3600.0
"""Seconds for which the files of a folder without any are known: a folder that was away for a while is not new."""
_ACKNOWLEDGE_SECONDS: Final = 30.0
"""Seconds in which Airflow has surely written an event down."""
_NAME_BYTES, _CONTENT_BYTES = 8, 4
"""Bytes that stand for the name of a file, and for its size and time."""

_Hashes = dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class NewFilesBatch:
    """Files that are new, under a name no other report has."""

    files: list[FoundFile]
    batch_id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])


@dataclass(frozen=True, slots=True)
class _SeenDirectory:
    """The files of a folder that were reported, by name, each name and content a hash.

    ``present``: there at the last poll; ``missing``: absent at one, and not ready since. ``empty_since``: since
    when (epoch seconds) there is none of any name.
    """

    present: _Hashes = field(default_factory=dict)
    missing: _Hashes = field(default_factory=dict)
    empty_since: float | None = None

    def after_poll(self, names: Collection[bytes], now: float) -> _SeenDirectory | None:
        """What is known of it once these names are there; None: nothing any more. Of a folder that has files, those it
        has no more are forgotten; of one that has none, for a day not one."""
        if names:
            return _SeenDirectory(
                {name: content for name, content in self.present.items() if name in names},
                {name: content for name, content in self.missing.items() if name in names},
            )
        since = now if self.empty_since is None else self.empty_since
        return (
            _SeenDirectory({}, self.missing | self.present, since) if now - since < _EMPTY_DIRECTORY_SECONDS else None
        )

    def is_new(self, name: bytes, content: bytes, *, changed: bool) -> bool:
        """True for a name that is not known, or that is back with another content, or with ``changed`` has another."""
        known = self.missing.get(name)
        if known is not None:
            return known != content
        known = self.present.get(name)
        return known is None or (changed and known != content)


@dataclass(frozen=True, slots=True)
class SeenFiles:
    """What a watch has seen, by folder. ``unacknowledged`` are the reports of which it is not known whether they have
    reached Airflow, the oldest first."""

    directories: Mapping[str, _SeenDirectory] = field(default_factory=dict)
    unacknowledged: tuple[NewFilesBatch, ...] = ()

    def updated_with(
        self, ready: Iterable[FoundFile], present: Iterable[str], now: float, *, changed: bool
    ) -> SeenFiles:
        """What is known after a look: of the new files the first 500 are another report.

        ``ready`` are the files that may be reported, ``present`` the paths of all that are there, ``now`` in epoch
        seconds. A file is new if its path is not known; if it was gone and has come back with another size or time;
        and with ``changed``, if its size or time is another.
        """
        names: dict[str, set[bytes]] = {}
        for path in present:
            directory, _, name_text = path.rpartition("/")
            names.setdefault(directory, set()).add(_hash(name_text, _NAME_BYTES))
        directories: dict[str, _SeenDirectory] = {}
        for directory, seen in self.directories.items():
            if (remaining := seen.after_poll(names.get(directory, ()), now)) is not None:
                directories[directory] = remaining
        new: list[FoundFile] = []
        for file in ready:
            directory, _, name_text = file["path"].rpartition("/")
            name, content = (
                _hash(name_text, _NAME_BYTES),
                _hash(f"{file['size']} {file['modified_at']}", _CONTENT_BYTES),
            )
            seen = directories.setdefault(directory, _SeenDirectory())
            if seen.is_new(name, content, changed=changed):
                if len(new) == _MAX_BATCH_FILES:
                    continue
                new.append(file)
            seen.missing.pop(name, None)
            seen.present[name] = content
        unacknowledged = (*self.unacknowledged, NewFilesBatch(new)) if new else self.unacknowledged
        return SeenFiles(
            {directory: seen for directory, seen in directories.items() if seen != _SeenDirectory()}, unacknowledged
        )

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, for `from_json`: 16 characters a file, and the unsettled reports."""
        return {
            "directories": {
                directory: [_pack(seen.present), _pack(seen.missing), seen.empty_since]
                for directory, seen in self.directories.items()
            },
            "unacknowledged": [[batch.files, batch.batch_id] for batch in self.unacknowledged],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SeenFiles:
        """What `as_json` gave."""
        directories = {
            directory: _SeenDirectory(_unpack(present), _unpack(missing), empty_since)
            for directory, (present, missing, empty_since) in values["directories"].items()
        }
        return cls(directories, tuple(NewFilesBatch(*batch) for batch in values["unacknowledged"]))


def _hash(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=size).digest()


def _pack(contents: _Hashes) -> str:
    return b64encode(b"".join(name + content for name, content in contents.items())).decode()


def _unpack(text: str) -> _Hashes:
    data, record_size = b64decode(text), _NAME_BYTES + _CONTENT_BYTES
    return {
        data[start : start + _NAME_BYTES]: data[start + _NAME_BYTES : start + record_size]
        for start in range(0, len(data), record_size)
    }


class SeenFilesStore:
    """What one watch has seen: in the asset's state store where there is one, and as long as the watch runs.

    ``watch`` says what is watched, since an asset may have several watches; ``clock`` in seconds.
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
        self._stored = SeenFiles()
        self._sent_at: dict[str, float] = {}

    async def load(self) -> SeenFiles:
        """What is known, without the reports that must have reached Airflow by now.

        Raises AirflowRuntimeError if Airflow cannot say.
        """
        if self._current is None:
            self._current = self._stored = await self._read_store()
        now = self._clock()
        unacknowledged = (
            batch
            for batch in self._current.unacknowledged
            if now - self._sent_at.get(batch.batch_id, now) < _ACKNOWLEDGE_SECONDS
        )
        return replace(self._current, unacknowledged=tuple(unacknowledged))

    async def _read_store(self) -> SeenFiles:
        if self._store is not None:
            try:
                stored = await self._store.aget(self._key)
            except ValidationError:  # of an answer; a ValueError as well
                raise
            except ValueError:  # of which asset?
                self._warn(
                    "several assets have this watch, so that Airflow keeps nothing for it: when the triggerer"
                    " starts again, all files that are there are reported again; give each asset its own watch"
                )
                self._store = None
            else:
                return SeenFiles() if stored is None else self._parse(cast("dict[str, Any]", stored))
        return SeenFiles()

    def _parse(self, stored: Mapping[str, Any]) -> SeenFiles:
        try:
            return SeenFiles.from_json(stored)
        except (LookupError, TypeError, ValueError, AttributeError):
            self._warn("what Airflow keeps for this watch is not what it wrote: all files that are there are reported")
            return SeenFiles()

    async def save(self, seen_files: SeenFiles) -> None:
        """Keeps it; where another triggerer has kept something else in the meantime, that is what is known instead.

        Raises AirflowRuntimeError if Airflow cannot; then nothing has changed.
        """
        if self._store is not None and seen_files != self._stored:
            stored = await self._read_store()
            if stored != self._stored:
                self._current = self._stored = stored
                return
            await self._store.aset(self._key, cast("JsonValue", seen_files.as_json()))
            self._stored = seen_files
        self._current = seen_files
        self._sent_at = {
            batch.batch_id: self._sent_at[batch.batch_id]
            for batch in seen_files.unacknowledged
            if batch.batch_id in self._sent_at
        }

    def next_unsent(self) -> NewFilesBatch | None:
        """The oldest report that is kept and that this watch has not sent."""
        batches = () if self._current is None else self._current.unacknowledged
        return next((batch for batch in batches if batch.batch_id not in self._sent_at), None)

    def mark_sent(self, batch: NewFilesBatch) -> None:
        """It is on its way to Airflow."""
        self._sent_at[batch.batch_id] = self._clock()
